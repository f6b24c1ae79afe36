# SPDX-License-Identifier: Apache-2.0
"""Weight files of a checkpoint: shards, variants, old names and pickles."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from openmarigold.checkpoints.checkpoint import loaded_variant, read_checkpoint
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.integrity import describe
from openmarigold.checkpoints.weight_files import weight_files
from openmarigold.errors import CheckpointError
from openmarigold.networks.backbone import hash_of_weights, load_unet, load_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


def copied(source: Path, directory: Path) -> Path:
    return Path(shutil.copytree(source, directory))


def shard(path: Path, index_name: str, shard_name: str) -> None:
    """Turns one weight file into two shards with an index, as diffusers writes large networks."""
    weights = sorted(load_file(path).items())
    weight_map = {}
    for number, part in enumerate((weights[::2], weights[1::2]), start=1):
        name = shard_name.format(number)
        save_file(dict(part), path.parent / name, metadata={"format": "pt"})
        weight_map |= {key: name for key, _ in part}
    (path.parent / index_name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    path.unlink()


SHARD_NAMES = {
    "plain": ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-{:05d}-of-00002.safetensors"),
    "fp16": (
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.fp16-{:05d}-of-00002.safetensors",
    ),
}


@pytest.mark.parametrize("kind", SHARD_NAMES)
def test_shards_are_read_like_one_file(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "sharded")
    shard(directory / "unet" / WEIGHTS, *SHARD_NAMES[kind])
    expected = load_unet(tiny_checkpoint / "unet").state_dict()
    found = load_unet(directory / "unet").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert len(weight_files(directory / "unet")[1]) == 2
    read_checkpoint(directory)
    (directory / "unet" / SHARD_NAMES[kind][1].format(2)).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors, which .* names, is missing"):
        read_checkpoint(directory)


def test_an_index_names_only_safetensors_files_beside_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "sharded")
    (directory / "unet" / WEIGHTS).unlink()
    index = directory / "unet" / SHARD_NAMES["plain"][0]
    for name in ("../vae/diffusion_pytorch_model.safetensors", "weights.bin"):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
        with pytest.raises(CheckpointError, match="which is not a safetensors file next to it"):
            read_checkpoint(directory)


def test_variants(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "variants")
    with pytest.raises(CheckpointError, match=r"is missing; the folder holds .*choose with --variant"):
        read_checkpoint(directory, variant="fp16")
    for name in ("unet", "vae"):
        weights = load_file(directory / name / WEIGHTS)
        half = {key: 2 * value.half() for key, value in weights.items()}
        save_file(half, directory / name / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    plain, half = (load_unet(directory / "unet", variant=variant).conv_in.weight for variant in (None, "fp16"))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, 2 * plain, rtol=1e-3, atol=1e-6)
    assert read_checkpoint(directory, variant="fp16").variant == "fp16"

    # What is recorded is what is read, not what was asked for.
    assert loaded_variant(read_checkpoint(directory)) is None
    assert loaded_variant(read_checkpoint(directory, variant="fp16")) == "fp16"
    (directory / "unet" / WEIGHTS).unlink()
    assert loaded_variant(read_checkpoint(directory)) == "unet fp16, vae plain"
    (directory / "vae" / WEIGHTS).unlink()
    found = read_checkpoint(directory)
    assert loaded_variant(found) == describe(found)["variant"] == "fp16"
    assert checkpoint_sha256(found) == checkpoint_sha256(read_checkpoint(directory, variant="fp16"))


def test_names_of_old_attention_layers(kl_checkpoint: Path, tmp_path: Path) -> None:
    """The VAE of Stable Diffusion 2 was written before diffusers 0.14."""
    directory = copied(kl_checkpoint, tmp_path / "old")
    path = directory / "vae" / WEIGHTS
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, value in load_file(path).items():
        for current, former in new.items():
            name = name.replace(f".{current}.", f".{former}.")
        old[name] = value
    assert any(".proj_attn." in name for name in old)
    save_file(old, path, metadata={"format": "pt"})
    expected, found = load_vae(kl_checkpoint / "vae").state_dict(), load_vae(directory / "vae").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_loading_gives_what_diffusers_gives(kl_checkpoint: Path) -> None:
    """And the same configuration: training states record a hash of both."""
    theirs = UNet2DConditionModel.from_pretrained(kl_checkpoint / "unet", low_cpu_mem_usage=False)
    ours = load_unet(kl_checkpoint / "unet")
    assert hash_of_weights(ours) == hash_of_weights(theirs)
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert not ours.training


def test_the_printed_line_converts_a_pickle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "pickled")
    weights = load_file(directory / "vae" / WEIGHTS)
    (directory / "vae" / WEIGHTS).unlink()
    torch.save(weights, directory / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is a pickle, which is never loaded") as caught:
        read_checkpoint(directory)
    line = str(caught.value).partition("): ")[2]
    line = line.replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(line, shell=True, check=True, cwd=directory / "vae")
    read_checkpoint(directory)
    converted = load_file(directory / "vae" / WEIGHTS)
    assert all(torch.equal(converted[name], value) for name, value in weights.items())
