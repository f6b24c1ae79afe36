# SPDX-License-Identifier: Apache-2.0
"""Models that come with the package and share an image encoder: it stands once, and nothing else can be named so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from encoded import make_encoded_checkpoint
from openmarigold.checkpoints import weight_files
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.integrity import describe, verify
from openmarigold.config import PredictConfig
from openmarigold.engines.converted import weight_bytes
from openmarigold.errors import CheckpointError
from openmarigold.evaluation.speed import count_flops
from openmarigold.networks import conversion
from openmarigold.networks.backbone import save_complete_checkpoint
from openmarigold.networks.conversion import export_checkpoint, export_shared
from openmarigold.predictor import Predictor
from tiny import edit_json, make_photo


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoded_checkpoint(tmp_path_factory.mktemp("encoded") / "trained")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package's folder of weights with two models of one image encoder."""
    folder = tmp_path_factory.mktemp("package") / "weights"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for module in (weight_files, conversion):
            patch.setattr(module, "WEIGHTS_DIR", folder)
        for name in ("first", "second"):
            export_shared(read_checkpoint(trained), folder / name)
    return folder


@pytest.fixture
def package(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which a test may change."""
    folder = tmp_path / "weights"
    shutil.copytree(exported, folder)
    for module in (weight_files, conversion):
        monkeypatch.setattr(module, "WEIGHTS_DIR", folder)
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def test_the_encoder_stands_once(package: Path) -> None:
    assert (package / "first" / "image_encoder" / "encoder.onnx").is_file()
    assert not (package / "second" / "image_encoder").exists()
    assert json.loads((package / "second" / "model_index.json").read_text())["image_encoder_of"] == "first"
    assert "image_encoder_of" not in json.loads((package / "first" / "model_index.json").read_text())


def test_it_can_be_written_again(package: Path, trained: Path) -> None:
    (package / "second" / "LICENSE.md").write_text("terms")
    before = checkpoint_sha256(read_checkpoint(package / "second"))
    export_shared(read_checkpoint(trained), package / "second")
    assert checkpoint_sha256(read_checkpoint(package / "second")) == before
    assert (package / "second" / "LICENSE.md").read_text() == "terms"


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_both_predict_the_same_without_a_warning(package: Path, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    photo = make_photo(40, 56, seed=2)
    first, second = (Predictor.load(package / name, engine=engine, device="cpu")(photo) for name in ("first", "second"))
    np.testing.assert_array_equal(first.depth, second.depth)
    assert not caplog.records


def test_description_hash_and_verification_know_it(package: Path) -> None:
    first, second = (read_checkpoint(package / name) for name in ("first", "second"))
    assert second.graphs and checkpoint_sha256(first) == checkpoint_sha256(second)
    found = describe(second)
    assert "../first/image_encoder/diffusion_pytorch_model.safetensors" in found["files"]
    assert found["parameters"] == describe(first)["parameters"]
    assert weight_bytes(first) == weight_bytes(second)
    first_flops, second_flops = (count_flops(each, PredictConfig(), 64, 64) for each in (first, second))
    assert first_flops == second_flops is not None
    assert [line for _, lines in verify(second) for line in lines] == []
    path = package / "first" / "image_encoder" / "diffusion_pytorch_model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-2:] = np.array([np.nan], dtype="<f2").tobytes()
    path.write_bytes(damaged)
    assert checkpoint_sha256(second) != found["sha256"]


def test_copies_hold_an_encoder_of_their_own(package: Path, tmp_path: Path) -> None:
    second = read_checkpoint(package / "second")
    save_complete_checkpoint(second, tmp_path / "complete", dtype="float16")
    export_shared(second, tmp_path / "shared")
    export_checkpoint(second, tmp_path / "onnx", format="onnx", dtype="float32")
    photo = make_photo(40, 56, seed=3)
    expected = Predictor.load(package / "second")(photo).depth
    for name in ("complete", "shared", "onnx"):
        assert "image_encoder_of" not in json.loads((tmp_path / name / "model_index.json").read_text())
        found = Predictor.load(tmp_path / name, engine="torch" if name == "complete" else "onnx")(photo).depth
        np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=name)


def test_a_missing_encoder_is_named(package: Path) -> None:
    shutil.rmtree(package / "first")
    with pytest.raises(CheckpointError, match=r"first/image_encoder is missing"):
        read_checkpoint(package / "second")


@pytest.mark.parametrize("other", ["../first", "first/../first", "/etc", "..", 3, ["first"]])
def test_only_the_name_of_a_sibling_is_accepted(package: Path, other: object) -> None:
    edit_json(package / "second" / "model_index.json", image_encoder_of=other)
    with pytest.raises(CheckpointError, match="image_encoder_of"):
        read_checkpoint(package / "second")


def test_a_folder_elsewhere_cannot_name_one(package: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(package / name, tmp_path / "elsewhere" / name)
    with pytest.raises(CheckpointError, match=r"only models that come with the package .* checkpoint export"):
        read_checkpoint(tmp_path / "elsewhere" / "second")
