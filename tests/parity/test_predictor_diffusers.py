# SPDX-License-Identifier: Apache-2.0
"""The whole way from photo to depth against diffusers' pipeline, same tiny random weights and starting noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, MarigoldDepthPipeline
from PIL import Image

from openmarigold.backbone import load_empty_prompt_embedding, load_unet, load_vae
from openmarigold.checkpoint import read_checkpoint
from openmarigold.image import processing_size
from openmarigold.predictor import Predictor
from tiny import make_photo


def reference_depth(checkpoint: Path, rgb: np.ndarray, latents: np.ndarray, **settings: Any) -> np.ndarray:
    pipeline = MarigoldDepthPipeline(
        unet=load_unet(checkpoint / "unet"),
        vae=load_vae(checkpoint / "vae"),
        scheduler=DDIMScheduler.from_config(read_checkpoint(checkpoint).schedule.to_config()),
        text_encoder=None,
        tokenizer=None,
        prediction_type="depth",
        scale_invariant=True,
        shift_invariant=True,
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
    np.testing.assert_allclose(depth, expected, rtol=0, atol=1e-5)
