# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from openmarigold.checkpoint import read_checkpoint
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError
from openmarigold.predictor import Predictor
from tiny import edit_json

WEIGHTS = "diffusion_pytorch_model.safetensors"


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_reads_both_kinds(tiny_checkpoint: Path, onnx_checkpoint: Path) -> None:
    for directory, weights in ((tiny_checkpoint, "safetensors"), (onnx_checkpoint, "onnx")):
        checkpoint = read_checkpoint(directory)
        assert checkpoint.weights == weights
        assert checkpoint.latent_channels == 8
        assert checkpoint.schedule == NoiseSchedule()
        assert checkpoint.default_num_inference_steps == 2
        assert checkpoint.default_processing_resolution == 64
        assert checkpoint.default_final_step == "reference"
        assert checkpoint.name == directory.name


def test_older_files_have_fewer_keys(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "older"
    shutil.copytree(tiny_checkpoint, directory)
    edit_json(
        directory / "model_index.json",
        _class_name="MarigoldPipeline",
        default_denoising_steps=None,
        default_processing_resolution=None,
    )
    (directory / "unet" / WEIGHTS).rename(directory / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    checkpoint = read_checkpoint(directory)
    assert checkpoint.default_num_inference_steps == 4
    assert checkpoint.default_processing_resolution == 768
    Predictor.load(directory, device="cpu")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda d: (d / "model_index.json").unlink(), "model_index.json is missing"),
    "broken index": (lambda d: (d / "model_index.json").write_text("{"), "model_index.json is not valid JSON"),
    "list as index": (lambda d: (d / "model_index.json").write_text("[]"), "model_index.json holds no JSON object"),
    "other pipeline": (
        lambda d: edit_json(d / "model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name is 'StableDiffusionPipeline'; accepted is MarigoldDepthPipeline",
    ),
    "normals": (lambda d: edit_json(d / "model_index.json", prediction_type="normals"), "is 'normals'; only depth"),
    "shift only": (
        lambda d: edit_json(d / "model_index.json", scale_invariant=False),
        "scale_invariant is false and shift_invariant true, which is not supported",
    ),
    "start noise": (
        lambda d: edit_json(d / "model_index.json", start_noise="ones"),
        "model_index.json: start_noise='ones' is not known; use gaussian or zeros",
    ),
    "odd resolution": (
        lambda d: edit_json(d / "model_index.json", default_processing_resolution=770),
        "model_index.json: processing_resolution=770 is not a multiple of 8",
    ),
    "steps as text": (
        lambda d: edit_json(d / "model_index.json", default_denoising_steps="4"),
        "default_denoising_steps is '4'; a whole number is needed",
    ),
    "no scheduler": (lambda d: shutil.rmtree(d / "scheduler"), "scheduler_config.json is missing"),
    "other scheduler": (
        lambda d: edit_json(d / "scheduler/scheduler_config.json", _class_name="PNDMScheduler"),
        "scheduler_config.json: the scheduler is PNDMScheduler; only DDIMScheduler and LCMScheduler are supported",
    ),
    "no unet": (lambda d: shutil.rmtree(d / "unet"), "unet is missing"),
    "broken config": (lambda d: (d / "vae/config.json").write_text("no"), "config.json is not valid JSON"),
    "no weights": (lambda d: (d / "vae" / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "pickled weights": (
        lambda d: (d / "vae" / WEIGHTS).rename(d / "vae/diffusion_pytorch_model.bin"),
        "diffusion_pytorch_model.bin is a pickle, which is never loaded: get the .safetensors file, or convert it",
    ),
    "truncated weights": (lambda d: truncate(d / "unet" / WEIGHTS), f"{WEIGHTS} is truncated"),
    "empty weights": (lambda d: (d / "unet" / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is truncated (0 bytes)"),
    "text as weights": (lambda d: (d / "unet" / WEIGHTS).write_text("x" * 99), f"{WEIGHTS} is truncated"),
    "no embedding": (
        lambda d: (d / "empty_prompt_embedding.safetensors").unlink(),
        "empty_prompt_embedding.safetensors is missing, and so are text_encoder/ and tokenizer/",
    ),
    "image generator": (
        lambda d: edit_json(d / "unet/config.json", in_channels=8),
        "8 input and 8 output channels do not fit a VAE of 8 latent channels; a depth checkpoint has 16 and 8",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_names_what_is_wrong(damage: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, directory)
    spoil, message = DAMAGES[damage]
    spoil(directory)
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read_checkpoint(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vae_encoder", "unet", "vae_decoder"])
def test_onnx_files_missing_empty_truncated(name: str, onnx_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(onnx_checkpoint, directory)
    path = directory / name / "model.onnx"
    truncate(path)
    with pytest.raises(CheckpointError, match=rf"{name}/model\.onnx cannot be loaded") as caught:
        Predictor.load(directory)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name}/model\.onnx is empty"):
        read_checkpoint(directory)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}/model\.onnx is missing"):
        read_checkpoint(directory)


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; give a downloaded folder"):
        read_checkpoint(tmp_path / "prs-eth" / "marigold-depth-v1-1")


def test_damage_that_only_shows_in_the_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, directory)
    edit_json(directory / "unet" / "config.json", block_out_channels=[8, 16, 24])
    with pytest.raises(CheckpointError, match="unet cannot be loaded"):
        Predictor.load(directory, device="cpu")
