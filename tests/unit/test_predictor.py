# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from openmarigold.errors import ImageError, InvalidValueError, NumericalError
from openmarigold.predictor import DepthPrediction, Predictor
from tiny import make_photo


@pytest.fixture(scope="module")
def predictor(onnx_checkpoint: Path) -> Predictor:
    return Predictor.load(onnx_checkpoint)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 70), (8, 8), (3, 5), (1, 1), (9, 200), (200, 9)])
def test_depth_has_the_photos_size(predictor: Predictor, size: tuple[int, int]) -> None:
    for processing_resolution in (0, 64):
        prediction = predictor(make_photo(*size), processing_resolution=processing_resolution)
        assert prediction.depth.shape == size
        assert prediction.depth.dtype == np.float32
        assert prediction.depth.min() >= 0
        assert prediction.depth.max() <= 1
        assert prediction.uncertainty is None


def test_inputs_of_all_kinds_are_equal(predictor: Predictor, tmp_path: Path) -> None:
    rgb = make_photo(40, 56)
    path = tmp_path / "photo.png"
    Image.fromarray(rgb).save(path)
    expected = predictor(rgb).depth
    for same in (path, str(path), Image.fromarray(rgb), rgb.astype(np.uint16) * 257, rgb / 255):
        np.testing.assert_array_equal(predictor(same).depth, expected)


def test_a_list_gives_the_results_of_its_photos(predictor: Predictor) -> None:
    photos = [make_photo(48, 64, seed=1), make_photo(50, 70, seed=2), make_photo(64, 64, seed=3)]
    together = predictor(photos, ensemble_size=2)
    assert isinstance(together, list)
    for photo, prediction in zip(photos[::-1], together[::-1], strict=True):
        np.testing.assert_array_equal(predictor(photo, ensemble_size=2).depth, prediction.depth)
    assert predictor([]) == []


@pytest.mark.parametrize("fixture", ["onnx_checkpoint", "tiny_checkpoint", "kl_checkpoint"])
def test_batch_size_never_changes_a_byte(request: pytest.FixtureRequest, fixture: str) -> None:
    predictor = Predictor.load(request.getfixturevalue(fixture), device="cpu")
    rgb = make_photo(50, 70)
    results = [predictor(rgb, ensemble_size=5, batch_size=batch_size) for batch_size in (1, 2, 5, 64)]
    for result in results[1:]:
        assert result.depth.tobytes() == results[0].depth.tobytes()
        assert result.uncertainty.tobytes() == results[0].uncertainty.tobytes()


def test_members_are_the_first_of_a_larger_ensemble(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, seen = make_photo(48, 64), []

    def to_engine(array: np.ndarray) -> np.ndarray:
        seen.append(array.tobytes())
        return array

    monkeypatch.setattr(predictor.engine, "to_engine", to_engine)
    predictor(rgb)
    predictor(rgb, ensemble_size=3)
    predictor(rgb, seed=1)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


def test_the_image_is_encoded_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(name: str) -> Any:
        method = getattr(predictor.engine, name)

        def counted(*args: Any, **named: Any) -> Any:
            calls.append(name)
            return method(*args, **named)

        return counted

    for name in ("encode", "denoise", "decode"):
        monkeypatch.setattr(predictor.engine, name, count(name))
    predictor(make_photo(48, 64), ensemble_size=3, num_inference_steps=2)
    assert (calls.count("encode"), calls.count("denoise"), calls.count("decode")) == (1, 6, 3)


def test_seed_and_photo_change_the_noise(predictor: Predictor) -> None:
    rgb = make_photo(48, 64)
    other = rgb.copy()
    other[0, 0, 0] ^= 1
    depth = predictor(rgb).depth
    np.testing.assert_array_equal(predictor(rgb).depth, depth)
    assert not np.array_equal(predictor(rgb, seed=1).depth, depth)
    assert not np.allclose(predictor(other).depth, depth, atol=1e-3)


def test_ensemble_has_uncertainty(predictor: Predictor) -> None:
    prediction = predictor(make_photo(50, 70), ensemble_size=4)
    assert prediction.uncertainty is not None
    assert prediction.uncertainty.shape == prediction.depth.shape == (50, 70)
    assert prediction.uncertainty.dtype == np.float32
    assert prediction.uncertainty.min() >= 0
    assert prediction.uncertainty.max() > 0


def test_settings_are_resolved(predictor: Predictor) -> None:
    settings = predictor(make_photo(48, 64)).settings
    assert settings == {
        "checkpoint": "tiny-8-onnx",
        "invariance": "affine",
        "num_inference_steps": 2,
        "ensemble_size": 1,
        "num_members": 1,
        "processing_resolution": 64,
        "seed": 2024,
        "timestep_spacing": "trailing",
        "start_noise": "gaussian",
        "final_step": "reference",
        "device": "cpu",
        "dtype": "float32",
    }
    clean = predictor(make_photo(48, 64), final_step="clean", num_inference_steps=1)
    assert isinstance(clean, DepthPrediction)
    assert (clean.settings["final_step"], clean.settings["num_inference_steps"]) == ("clean", 1)


def test_refuses(predictor: Predictor, onnx_checkpoint: Path, tmp_path: Path) -> None:
    rgb = make_photo(48, 64)
    with pytest.raises(InvalidValueError, match="ensemble_size=0 is not accepted"):
        predictor(rgb, ensemble_size=0)
    with pytest.raises(InvalidValueError, match="processing_resolution=770 is not a multiple of 8; try 768"):
        predictor(rgb, processing_resolution=770)
    with pytest.raises(InvalidValueError, match=r"latents has shape \[1, 4, 6, 8\]; .* it is \[1, 8, 6, 8\]"):
        predictor(rgb, latents=np.zeros((1, 4, 6, 8), np.float32))
    with pytest.raises(InvalidValueError, match="latents was given with a list"):
        predictor([rgb], latents=np.zeros((1, 8, 6, 8), np.float32))
    with pytest.raises(ImageError, match="does not exist"):
        predictor(tmp_path / "missing.png")
    with pytest.raises(InvalidValueError, match="device='cuda' does not run ONNX networks"):
        Predictor.load(onnx_checkpoint, device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_refuses_a_device_that_is_not_there(tiny_checkpoint: Path) -> None:
    with pytest.raises(InvalidValueError, match="device='cuda' is not available to torch"):
        Predictor.load(tiny_checkpoint, device="cuda")


def test_damaged_weights_do_not_become_a_depth_map(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "not-finite"
    shutil.copytree(tiny_checkpoint, directory)
    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"] = torch.full_like(weights["conv_in.bias"], float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"the U-Net of checkpoint not-finite .* not finite; .*checkpoint verify"):
        Predictor.load(directory, device="cpu")(make_photo(48, 64))
