# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime against torch: the same checkpoint, network by network and as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.engines import Engine, open_engine
from openmarigold.predictor import Predictor
from tiny import make_photo

TOLERANCE = 1e-4  # float32 sums in another order


@pytest.fixture(params=["kl", "tiny"])
def engines(request: pytest.FixtureRequest) -> tuple[Engine, Engine]:
    names = {"kl": ("kl_checkpoint", "kl_onnx_checkpoint"), "tiny": ("tiny_checkpoint", "onnx_checkpoint")}
    torch_dir, onnx_dir = (request.getfixturevalue(name) for name in names[request.param])
    return open_engine(read_checkpoint(torch_dir), device="cpu"), open_engine(read_checkpoint(onnx_dir))


# Latents of 6x8, 5x7 and 1x3 cells: the U-Net halves twice, so only multiples of 4 come back by doubling.
@pytest.mark.parametrize("size", [(48, 64), (40, 56), (8, 24), (64, 64)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_networks_agree(engines: tuple[Engine, Engine], size: tuple[int, int], batch_size: int) -> None:
    rng = np.random.default_rng(3)
    rgb = rng.uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    shape = (batch_size, engines[0].latent_channels, size[0] // 8, size[1] // 8)
    noise = rng.standard_normal(shape).astype(np.float32)
    results = []
    for engine in engines:
        rgb_latent = engine.encode(rgb)
        prediction = engine.denoise(rgb_latent, engine.to_engine(noise), timestep=999)
        results.append([np.asarray(rgb_latent), np.asarray(prediction), engine.decode(prediction)])
    for ours, other in zip(*results, strict=True):
        assert ours.dtype == other.dtype == np.float32
        np.testing.assert_allclose(ours, other, rtol=0, atol=TOLERANCE)
    assert results[0][1].shape == shape
    assert results[0][2].shape == (batch_size, 1, 1, *size)


@pytest.mark.parametrize("size", [(48, 64), (50, 70), (90, 33)])
@pytest.mark.parametrize("final_step", ["reference", "clean"])
def test_predictors_agree(tiny_checkpoint: Path, onnx_checkpoint: Path, size: tuple[int, int], final_step: str) -> None:
    rgb = make_photo(*size)
    settings = {"num_inference_steps": 4, "ensemble_size": 3, "final_step": final_step}
    ours = Predictor.load(onnx_checkpoint)(rgb, **settings)
    other = Predictor.load(tiny_checkpoint, device="cpu")(rgb, **settings)
    np.testing.assert_allclose(ours.depth, other.depth, rtol=0, atol=10 * TOLERANCE)
    np.testing.assert_allclose(ours.uncertainty, other.uncertainty, rtol=0, atol=10 * TOLERANCE)
