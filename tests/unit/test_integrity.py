# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.integrity import describe, verify, write_sums
from openmarigold.errors import CheckpointError
from openmarigold.networks.backbone import load_unet, load_vae
from tiny import edit_json

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copied"))


def problems_of(directory: Path) -> list[str]:
    return [line for _, lines in verify(read_checkpoint(directory)) for line in lines]


def test_description_counts_what_the_networks_hold(tiny_checkpoint: Path) -> None:
    content = describe(read_checkpoint(tiny_checkpoint))
    networks = {"unet": load_unet(tiny_checkpoint / "unet"), "vae": load_vae(tiny_checkpoint / "vae")}
    counts = {name: sum(value.numel() for value in model.state_dict().values()) for name, model in networks.items()}
    assert content["parameters"] == counts
    assert content["kind"] == "affine-invariant depth"
    assert content["scheduler"]["class"] == "DDIMScheduler"
    assert content["bytes"] == sum((tiny_checkpoint / name).stat().st_size for name in content["files"])
    for name, digest in content["files"].items():
        assert digest == hashlib.sha256((tiny_checkpoint / name).read_bytes()).hexdigest()
    assert {"unet/" + WEIGHTS, "vae/config.json", "model_index.json"} < set(content["files"])


def test_hash_depends_on_every_file(copied: Path, tiny_checkpoint: Path) -> None:
    expected = describe(read_checkpoint(tiny_checkpoint))["sha256"]
    assert describe(read_checkpoint(copied))["sha256"] == expected
    edit_json(copied / "scheduler" / "scheduler_config.json", steps_offset=0)
    assert describe(read_checkpoint(copied))["sha256"] != expected


def test_onnx_export_states_the_parameters(onnx_checkpoint: Path, tiny_checkpoint: Path) -> None:
    exported, source = (describe(read_checkpoint(path)) for path in (onnx_checkpoint, tiny_checkpoint))
    assert exported["parameters"] == source["parameters"]


@pytest.mark.parametrize(
    ("file", "text", "license"),
    [
        ("README.md", "---\ntags:\n- depth\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("README.md", '---\nlicense: "mit"\n---\n', "mit"),
        ("README.md", "# A model\nlicense: none of this is front matter\n", None),
        ("LICENSE.txt", "Do what you want.", "see LICENSE.txt"),
    ],
)
def test_license_when_stated(copied: Path, file: str, text: str, license: str | None) -> None:
    (copied / file).write_text(text)
    assert describe(read_checkpoint(copied))["license"] == license
    edit_json(copied / "model_index.json", license="openrail++")
    assert describe(read_checkpoint(copied))["license"] == "openrail++"


def test_intact_checkpoints_have_no_problems(copied: Path, onnx_checkpoint: Path) -> None:
    assert problems_of(copied) == problems_of(onnx_checkpoint) == []
    write_sums(copied)
    (compared, _), *_ = verify(read_checkpoint(copied))
    assert compared == "7 of 7 hashes are stated and compared"
    assert problems_of(copied) == []


def test_a_changed_byte_is_found(copied: Path) -> None:
    write_sums(copied)
    path = copied / "vae" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (line,) = problems_of(copied)
    assert str(path) in line
    assert "stated is" in line


def test_a_changed_byte_is_found_in_the_cache_of_the_hub(copied: Path, tmp_path: Path) -> None:
    path = copied / "unet" / WEIGHTS
    blob = tmp_path / hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(blob)
    path.symlink_to(blob)
    assert problems_of(copied) == []
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    (line,) = problems_of(copied)
    assert f"stated is {blob.name}" in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(copied: Path, dtype: torch.dtype, value: float) -> None:
    path = copied / "unet" / WEIGHTS
    weights = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    assert problems_of(copied) == []
    weights["conv_out.bias"][1] = value
    save_file(weights, path, metadata={"format": "pt"})
    assert problems_of(copied) == [f"{path}: conv_out.bias holds values that are not finite; get the checkpoint again"]


def test_a_broken_list_of_hashes_is_an_error(copied: Path) -> None:
    (copied / "SHA256SUMS").write_text("no hash\n")
    with pytest.raises(CheckpointError, match="has a line that is not in the format of sha256sum"):
        problems_of(copied)
