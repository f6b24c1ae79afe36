# SPDX-License-Identifier: Apache-2.0
"""What `openmarigold checkpoint save` writes, loaded by diffusers' own from_pretrained: the same prediction."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MarigoldDepthPipeline
from PIL import Image

from openmarigold.checkpoints.checkpoint import EMBEDDING_FILE, read_checkpoint
from openmarigold.checkpoints.integrity import verify
from openmarigold.config import Dtype
from openmarigold.errors import CheckpointError, OutputError
from openmarigold.networks.backbone import save_complete_checkpoint
from openmarigold.predictor import Predictor
from tiny import add_text_encoder, edit_json, make_photo

TOLERANCE = {"kl": 1e-5, "tiny": 5e-6}  # see test_predictor_diffusers; the embedding has gone through a layer norm

LCM = {"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False}
CASES: dict[str, tuple[str, bool, dict[str, Any], dict[str, Any]]] = {
    "published": ("kl", True, {}, {}),
    "trained here": ("tiny", False, {}, {"default_final_step": "clean", "name": "ours", "default_denoising_steps": 1}),
    "lcm": (
        "tiny",
        True,
        {"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False},
        {"default_denoising_steps": 1},
    ),
    "end to end": ("tiny", True, {"rescale_betas_zero_snr": False}, {"default_denoising_steps": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_diffusers_loads_it_and_predicts_the_same(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    kind, has_text_encoder, scheduler, index = CASES[case]
    source, saved = tmp_path / "source", tmp_path / "saved"
    shutil.copytree(request.getfixturevalue(f"{kind}_checkpoint"), source)
    edit_json(source / "scheduler" / "scheduler_config.json", **scheduler)
    edit_json(source / "model_index.json", **index)
    if has_text_encoder:
        (source / EMBEDDING_FILE).unlink()
        add_text_encoder(source)
    save_complete_checkpoint(read_checkpoint(source), saved, dtype="float32")

    rgb = make_photo(48, 64)
    predictor = Predictor.load(saved, device="cpu")
    shape = (1, predictor.engine.latent_channels, 6, 8)
    latents = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    if predictor.checkpoint.default_start_noise == "zeros":
        latents[:] = 0
    pipeline = MarigoldDepthPipeline.from_pretrained(saved)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(Image.fromarray(rgb), latents=torch.from_numpy(latents)).prediction[0, :, :, 0]
    assert expected.std() > 0.01
    for directory in (saved, source):
        depth = Predictor.load(directory, device="cpu")(rgb, latents=latents).depth
        np.testing.assert_allclose(depth, expected, rtol=0, atol=TOLERANCE[kind])
    (compared, _), *_ = checks = list(verify(read_checkpoint(saved)))
    assert not [line for _, lines in checks for line in lines]
    assert compared == "7 of 7 hashes are stated and compared"


def test_what_cannot_be_saved_is_refused(tiny_checkpoint: Path, onnx_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds ONNX networks; give the checkpoint that they were made from"):
        save_complete_checkpoint(read_checkpoint(onnx_checkpoint), tmp_path / "new", dtype="float32")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    with pytest.raises(OutputError, match="exists and is not empty; choose a new folder"):
        save_complete_checkpoint(read_checkpoint(tiny_checkpoint), tmp_path / "full", dtype="float32")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_the_files(dtype: Dtype, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sizes = []
    for name, precision in {"float32": "float32", "half": dtype}.items():
        save_complete_checkpoint(read_checkpoint(tiny_checkpoint), tmp_path / name, dtype=precision)
        sizes.append((tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size)
        Predictor.load(tmp_path / name, device="cpu").try_out()
    assert sizes[1] < 0.6 * sizes[0]
