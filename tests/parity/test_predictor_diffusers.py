# SPDX-License-Identifier: Apache-2.0
"""The whole way from photo to depth against diffusers' pipeline, same tiny random weights and starting noise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import MarigoldDepthPipeline
from PIL import Image

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.images.photo import processing_size
from openmarigold.networks.backbone import load_empty_prompt_embedding, load_unet, load_vae
from openmarigold.predictor import Predictor
from tiny import edit_json, make_photo

# Ours has ᾱ in float64, diffusers in float32, and the tiny KL decoder enlarges it.
TOLERANCE = {"kl": 1e-5, "tiny": 1e-6}


def reference_depth(checkpoint: Path, rgb: np.ndarray, latents: np.ndarray, **settings: Any) -> np.ndarray:
    found = read_checkpoint(checkpoint)
    pipeline = MarigoldDepthPipeline(
        unet=load_unet(checkpoint / "unet"),
        vae=load_vae(checkpoint / "vae"),
        scheduler=getattr(diffusers, found.schedule.class_name).from_config(found.schedule.to_config()),
        text_encoder=None,
        tokenizer=None,
        prediction_type="depth",
        scale_invariant=found.invariance != "absolute",
        shift_invariant=found.invariance == "affine",
        default_denoising_steps=1,
        default_processing_resolution=0,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.empty_text_embedding = load_empty_prompt_embedding(checkpoint)
    result = pipeline(Image.fromarray(rgb), latents=torch.from_numpy(latents), **settings)
    return result.prediction[0, :, :, 0]


# Sizes are (height, width); 0 = native. 200x256 at 128 gives 100x128: a processing size that needs padding.
@pytest.mark.parametrize(
    ("size", "processing_resolution"),
    [
        ((48, 64), 0),
        ((40, 72), 0),
        ((96, 128), 64),
        ((48, 64), 128),
        ((50, 70), 0),
        ((33, 61), 0),
        ((121, 160), 64),
        ((200, 256), 128),
        ((60, 31), 96),
    ],
)
@pytest.mark.parametrize("num_inference_steps", [1, 4])
@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_equals_diffusers_pipeline(
    request: pytest.FixtureRequest,
    kind: str,
    size: tuple[int, int],
    processing_resolution: int,
    num_inference_steps: int,
) -> None:
    checkpoint: Path = request.getfixturevalue(f"{kind}_checkpoint")
    rgb = make_photo(*size)
    predictor = Predictor.load(checkpoint, device="cpu")
    height, width = processing_size(*size, processing_resolution=processing_resolution)
    shape = (1, predictor.engine.latent_channels, -(-height // 8), -(-width // 8))
    latents = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    settings = {"num_inference_steps": num_inference_steps, "processing_resolution": processing_resolution}

    expected = reference_depth(checkpoint, rgb, latents, **settings)
    depth = predictor(rgb, latents=latents, **settings).depth

    assert depth.shape == size
    assert expected.std() > 0.01, "a constant map proves nothing"
    np.testing.assert_allclose(depth, expected, rtol=0, atol=TOLERANCE[kind])


def variation(checkpoint: Path, directory: Path, *, scheduler: dict[str, Any], **index: Any) -> Path:
    """A copy of a checkpoint with changes in scheduler_config.json and model_index.json."""
    shutil.copytree(checkpoint, directory)
    edit_json(directory / "scheduler" / "scheduler_config.json", **scheduler)
    edit_json(directory / "model_index.json", **index)
    return directory


LCM = {"_class_name": "LCMScheduler", "timestep_spacing": "leading", "rescale_betas_zero_snr": False}


@pytest.mark.parametrize("num_inference_steps", [1, 2, 4])
def test_lcm_checkpoint_equals_diffusers_with_the_same_noise(
    tiny_checkpoint: Path, tmp_path: Path, num_inference_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = variation(tiny_checkpoint, tmp_path / "lcm", scheduler=LCM, default_denoising_steps=None)
    predictor = Predictor.load(checkpoint, device="cpu")
    assert predictor.checkpoint.default_num_inference_steps == 1
    rgb, latents = make_photo(50, 70), np.random.default_rng(5).standard_normal((1, 8, 7, 9)).astype(np.float32)
    settings = {"num_inference_steps": num_inference_steps, "processing_resolution": 0}

    # What ours puts between the steps is handed to diffusers in the place of its own random numbers.
    drawn, to_engine = [], predictor.engine.to_engine
    monkeypatch.setattr(predictor.engine, "to_engine", lambda array: drawn.append(array) or to_engine(array))
    depth = predictor(rgb, latents=latents, **settings).depth
    image, start, *fresh = drawn
    assert image.shape[1] == 3
    np.testing.assert_array_equal(start, latents)
    assert len({noise.tobytes() for noise in fresh}) == num_inference_steps - 1
    remaining = iter(fresh)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: torch.from_numpy(next(remaining))
    )
    expected = reference_depth(checkpoint, rgb, latents, **settings)
    assert expected.std() > 0.01
    np.testing.assert_allclose(depth, expected, rtol=0, atol=TOLERANCE["tiny"])


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 10), ("trailing", 1), ("trailing", 3)])
def test_v1_0_checkpoint_equals_diffusers(tiny_checkpoint: Path, tmp_path: Path, spacing: str, steps: int) -> None:
    scheduler = {"timestep_spacing": spacing, "rescale_betas_zero_snr": False}
    checkpoint = variation(tiny_checkpoint, tmp_path / "v1-0", scheduler=scheduler)
    rgb, latents = make_photo(48, 64), np.random.default_rng(5).standard_normal((1, 8, 6, 8)).astype(np.float32)
    settings = {"num_inference_steps": steps, "processing_resolution": 0}
    predictor = Predictor.load(checkpoint, device="cpu")
    depth = predictor(rgb, latents=latents, timestep_spacing=spacing, **settings).depth
    expected = reference_depth(checkpoint, rgb, latents, **settings)
    np.testing.assert_allclose(depth, expected, rtol=0, atol=TOLERANCE["tiny"])


def test_end_to_end_checkpoint_starts_from_zeros(tiny_checkpoint: Path, tmp_path: Path) -> None:
    scheduler = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": False}
    checkpoint = variation(tiny_checkpoint, tmp_path / "e2e", scheduler=scheduler, default_denoising_steps=1)
    prediction = Predictor.load(checkpoint, device="cpu")(make_photo(48, 64), processing_resolution=0)
    settings = {"num_inference_steps": 1, "processing_resolution": 0}
    expected = reference_depth(checkpoint, make_photo(48, 64), np.zeros((1, 8, 6, 8), np.float32), **settings)
    np.testing.assert_allclose(prediction.depth, expected, rtol=0, atol=TOLERANCE["tiny"])
    assert prediction.settings["start_noise"] == "zeros"
    # What diffusers does by itself, without `latents` of zeros.
    noise = np.random.default_rng(0).standard_normal((1, 8, 6, 8)).astype(np.float32)
    other = reference_depth(checkpoint, make_photo(48, 64), noise, **settings)
    assert np.abs(prediction.depth - other).mean() > 0.01
