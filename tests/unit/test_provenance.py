# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from openmarigold import files
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.config import OutputConfig
from openmarigold.errors import ImageError, InvalidValueError
from openmarigold.files import file_sha256
from openmarigold.networks.prompt import load_empty_prompt_embedding
from openmarigold.results.manifest import Manifest
from openmarigold.results.provenance import is_result, read_provenance
from openmarigold.results.writers import write_prediction
from tiny import add_text_encoder

DEPTH = np.linspace(0.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
MAPS, SPREAD = {"depth": DEPTH}, {"uncertainty": DEPTH / 9}
RECORD = {"software": "openmarigold", "seed": 7, "checkpoint": "näno"}
EVERYTHING = OutputConfig(format=("npy", "png", "npz", "exr"), inverted=True, uncertainty_picture=True)


def test_hash_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 10**6)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 10**6).hexdigest()


@pytest.mark.parametrize("fixture", ["onnx_checkpoint", "tiny_checkpoint"])
def test_hash_of_a_checkpoint_is_that_of_what_shapes_a_prediction(request, fixture, tmp_path):
    original = request.getfixturevalue(fixture)
    copy = tmp_path / "other name"
    shutil.copytree(original, copy)
    sha256 = checkpoint_sha256(read_checkpoint(original))
    assert len(sha256) == 64
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "name": "renamed"}))
    (copy / "README.md").write_text("notes")
    assert checkpoint_sha256(read_checkpoint(copy)) == sha256
    found = read_checkpoint(copy)
    for path in sorted(copy.rglob("*")):
        counts = path.suffix in (".onnx", ".safetensors") or path.name in ("config.json", "scheduler_config.json")
        if path.is_file() and counts:
            content = path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            assert checkpoint_sha256(found) != sha256, path
            path.write_bytes(content)
    assert checkpoint_sha256(read_checkpoint(copy)) == sha256


def test_large_files_are_hashed_once(tmp_path, monkeypatch, onnx_checkpoint):
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    copy = tmp_path / "checkpoint"
    shutil.copytree(onnx_checkpoint, copy)
    plain = checkpoint_sha256(read_checkpoint(copy))
    assert not (tmp_path / "cache").exists(), "small files are not worth an entry"

    monkeypatch.setattr(files, "REMEMBERED_FROM_BYTES", 0)
    hashed: list[Path] = []
    monkeypatch.setattr(files, "file_sha256", lambda path: hashed.append(path) or file_sha256(path))
    assert checkpoint_sha256(read_checkpoint(copy)) == plain
    assert len(hashed) == len(list((tmp_path / "cache" / "sha256").iterdir())) == 4
    hashed.clear()
    assert checkpoint_sha256(read_checkpoint(copy)) == plain
    assert hashed == []

    unet = copy / "unet" / "model.onnx"
    content = unet.read_bytes()
    unet.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoint_sha256(read_checkpoint(copy)) != plain
    assert hashed == [unet]
    for entry in (tmp_path / "cache" / "sha256").iterdir():
        entry.write_text("[damaged")
    hashed.clear()
    assert checkpoint_sha256(read_checkpoint(copy)) != plain
    assert len(hashed) == 4


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch, onnx_checkpoint):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    plain = checkpoint_sha256(read_checkpoint(onnx_checkpoint))
    monkeypatch.setattr(files, "REMEMBERED_FROM_BYTES", 0)
    assert checkpoint_sha256(read_checkpoint(onnx_checkpoint)) == plain


def test_every_result_tells_where_it_comes_from(tmp_path):
    paths = write_prediction(
        MAPS,
        SPREAD,
        output_dir=tmp_path,
        stem="cat",
        output=EVERYTHING,
        provenance=RECORD,
    )
    assert len(paths) == 8
    carrying = [path for path in paths if path.suffix != ".npy"]
    contents = [read_provenance(path) for path in carrying]
    assert all({**content, "content": None} == {**RECORD, "content": None} for content in contents)
    assert len({content["content"] for content in contents if "float32" not in content["content"]}) == 4
    with pytest.raises(InvalidValueError, match=r"cat_depth\.npy carries no provenance, and no manifest"):
        read_provenance(paths[0])
    Manifest(tmp_path).append(
        "cat", "done", outputs={path.name: path.stat().st_size for path in paths}, provenance=RECORD
    )
    assert read_provenance(paths[0]) == RECORD


def test_the_same_prediction_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_prediction(
            MAPS,
            SPREAD,
            output_dir=tmp_path / name,
            stem="cat",
            output=EVERYTHING,
            provenance=RECORD,
        )
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("suffix", ["_depth.png", "_depth.npz", "_depth.exr"])
def test_results_of_others_and_damaged_ones(tmp_path, suffix):
    write_prediction(MAPS, output_dir=tmp_path, stem="cat", output=EVERYTHING)
    path = tmp_path / f"cat{suffix}"
    with pytest.raises(InvalidValueError, match="carries no provenance"):
        read_provenance(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=f"cat{suffix} is damaged"):
        read_provenance(path)
    with pytest.raises(ImageError, match="does not exist or is not a file"):
        read_provenance(tmp_path / "missing.png")


def test_results_are_told_from_photos(tmp_path):
    paths = write_prediction(
        MAPS,
        SPREAD,
        output_dir=tmp_path,
        stem="cat",
        output=EVERYTHING,
        provenance=RECORD,
    )
    assert {path.name for path in paths if is_result(path)} == {
        *("cat_depth.png", "cat_depth_colored.png", "cat_depth_inverted.png", "cat_uncertainty.png", "cat_depth.exr")
    }
    without = write_prediction(MAPS, output_dir=tmp_path, stem="dog", output=EVERYTHING)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"tEXtopenmarigold\0 in no picture")
    for path in (*without, tmp_path / "empty.png", tmp_path / "text.png"):
        assert not is_result(path), path
    with pytest.raises(OSError, match="No such file"):
        is_result(tmp_path / "missing.png")


def test_a_large_result_is_read_without_a_warning_and_a_bomb_refused(tmp_path, monkeypatch):
    (path,) = write_prediction(
        MAPS, output_dir=tmp_path, stem="cat", output=OutputConfig(format=("png",)), provenance=RECORD
    )[:1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)  # of 12: Pillow warns
    assert read_provenance(path)["seed"] == 7
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)  # and refuses
    with pytest.raises(ImageError, match=r"cat_depth\.png is damaged or cannot be read"):
        read_provenance(path)


@pytest.mark.parametrize("fp16_text_encoder", [True, False])
def test_the_hash_of_a_variant_does_not_depend_on_earlier_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, fp16_text_encoder: bool
) -> None:
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    fresh = tmp_path / "fresh"
    shutil.copytree(tiny_checkpoint, fresh)
    (fresh / "empty_prompt_embedding.safetensors").unlink()
    add_text_encoder(fresh)
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for name, stem in stems.items():
        if name != "text_encoder" or fp16_text_encoder:
            weights = load_file(fresh / name / f"{stem}.safetensors")
            half = {key: value.half() for key, value in weights.items()}
            save_file(half, fresh / name / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
    expected = {variant: checkpoint_sha256(read_checkpoint(fresh, variant=variant)) for variant in (None, "fp16")}
    assert len(set(expected.values())) == 2
    values = {}
    for number, order in enumerate(((None, "fp16", None), ("fp16", None, "fp16"))):
        used = tmp_path / f"used-{number}"
        shutil.copytree(fresh, used)
        monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / f"cache-{number}"))
        for variant in order:
            embedding = load_empty_prompt_embedding(used, variant=variant)
            assert torch.equal(values.setdefault(variant, embedding), embedding)
            assert checkpoint_sha256(read_checkpoint(used, variant=variant)) == expected[variant]
    assert torch.equal(values[None], values["fp16"]) != fp16_text_encoder
