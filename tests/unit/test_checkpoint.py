# SPDX-License-Identifier: Apache-2.0
"""Folders of checkpoints: what is read from them, and how what is wrong is named."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.configured import resolve_settings
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.integrity import describe
from openmarigold.config import PredictConfig
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, InvalidValueError
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


def reshape_one(path: Path) -> None:
    """Makes the header state another shape for a tensor, in as many bytes."""
    content = path.read_bytes()
    name = b'"conv_out.bias":{"dtype":"F16","shape":[8]'
    assert name in content
    path.write_bytes(content.replace(name, name.replace(b"[8]", b"[9]")))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda d: (d / "model_index.json").unlink(), "model_index.json is missing"),
    "broken index": (lambda d: (d / "model_index.json").write_text("{"), "model_index.json is not valid JSON"),
    "list as index": (lambda d: (d / "model_index.json").write_text("[]"), "model_index.json holds no JSON object"),
    "other pipeline": (
        lambda d: edit_json(d / "model_index.json", _class_name="StableDiffusionPipeline"),
        "_class_name is 'StableDiffusionPipeline'; accepted are MarigoldDepthPipeline",
    ),
    "normals": (
        lambda d: edit_json(d / "model_index.json", prediction_type="normals"),
        "is 'normals'; a MarigoldDepthPipeline has 'depth'",
    ),
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
    "coarse as text": (
        lambda d: edit_json(d / "model_index.json", coarse_resolution="32"),
        "model_index.json: coarse_resolution is '32'; a whole number from 0 to 16384 is needed",
    ),
    "odd coarse": (
        lambda d: edit_json(d / "model_index.json", coarse_resolution=30),
        "model_index.json: coarse_resolution is 30; a multiple of 8 is needed",
    ),
    "coarse not below": (
        lambda d: edit_json(d / "model_index.json", coarse_resolution=64),
        "coarse_resolution is 64; less than default_processing_resolution (64) is needed",
    ),
    "steps as text": (
        lambda d: edit_json(d / "model_index.json", default_denoising_steps="4"),
        "model_index.json: default_denoising_steps is '4'; a whole number from 1 to 1000 is needed",
    ),
    "no steps": (
        lambda d: edit_json(d / "model_index.json", default_denoising_steps=0),
        "default_denoising_steps is 0; a whole number from 1 to 1000 is needed",
    ),
    "channels as table": (
        lambda d: edit_json(d / "vae/config.json", latent_channels={}),
        "vae/config.json: latent_channels is {}; a whole number from 1 to 1024 is needed",
    ),
    "scaling as text": (
        lambda d: edit_json(d / "vae/config.json", scaling_factor="x"),
        "vae/config.json: scaling_factor is 'x'; a number above 0 is needed",
    ),
    "channels as text": (
        lambda d: edit_json(d / "unet/config.json", in_channels="16"),
        "unet/config.json: in_channels is '16'; a whole number from 1 to 1000000 is needed",
    ),
    "scheduler as list": (
        lambda d: edit_json(d / "scheduler/scheduler_config.json", _class_name=["DDIMScheduler"]),
        "scheduler_config.json: the scheduler is ['DDIMScheduler']; only DDIMScheduler and LCMScheduler are supported",
    ),
    "invariance as text": (
        lambda d: edit_json(d / "model_index.json", scale_invariant="false"),
        "model_index.json: scale_invariant is 'false'; true or false is needed",
    ),
    "more steps than LCM has": (
        lambda d: (
            edit_json(d / "scheduler/scheduler_config.json", _class_name="LCMScheduler", rescale_betas_zero_snr=False),
            edit_json(d / "model_index.json", default_denoising_steps=60),
        ),
        "model_index.json: default_denoising_steps is 60: num_inference_steps=60 is more than the 50 that this LCM",
    ),
    "tensor of another size than its shape": (lambda d: reshape_one(d / "unet" / WEIGHTS), "is not a safetensors file"),
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
        "8 input and 8 output channels do not fit a VAE of 8 latent channels; a checkpoint for depth has 16 and 8",
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
    with pytest.raises(CheckpointError, match=rf"{name}/model\.onnx is not a whole ONNX file") as caught:
        Predictor.load(directory)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name}/model\.onnx is empty"):
        read_checkpoint(directory)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}/model\.onnx is missing"):
        read_checkpoint(directory)


SCHEDULER_VALUES = {
    "num_train_timesteps": (1000.5, "1000", None, True, float("nan"), [1000]),
    "steps_offset": (0.5, "1", False),
    "beta_start": ("0.00085", None, [0.1], float("nan")),
    "beta_end": (True, {}),
    "rescale_betas_zero_snr": (1, "true", None),
    "set_alpha_to_one": ("no", 0),
    "beta_schedule": (["linear"], 3),
    "timestep_spacing": (None, 1),
    "prediction_type": ({},),
}


@pytest.mark.parametrize("key", SCHEDULER_VALUES)
def test_wrong_types_in_a_scheduler_are_named_at_once(key: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "wrong")
    path = directory / "scheduler" / "scheduler_config.json"
    for value in SCHEDULER_VALUES[key]:
        edit_json(path, **{key: value})
        with pytest.raises(CheckpointError, match=re.escape(f"{path}: {key} is {value!r}, which is not ")):
            read_checkpoint(directory)
    # A number out of range is named too.
    edit_json(path, **{**json.loads((tiny_checkpoint / "scheduler" / path.name).read_text()), "steps_offset": -1})
    with pytest.raises(CheckpointError, match="steps_offset=-1 is not a timestep"):
        read_checkpoint(directory)
    edit_json(path, steps_offset=1, num_train_timesteps=10**12)
    with pytest.raises(CheckpointError, match="num_train_timesteps=1000000000000 is outside 2 … 100000; try 1000"):
        read_checkpoint(directory)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        f"unet/{WEIGHTS}",
        "vae/config.json",
        "empty_prompt_embedding.safetensors",
        "unet/model.onnx",
    ],
)
def test_files_that_cannot_be_read(
    file: str, tiny_checkpoint: Path, onnx_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root may read everything, the system's refusal is played."""
    directory = copied(onnx_checkpoint if file.endswith(".onnx") else tiny_checkpoint, tmp_path / "refused")
    refused = directory / file
    real = Path.open

    def refuse(path: Path, *args: Any, **named: Any) -> Any:
        if path == refused:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *args, **named)

    found = read_checkpoint(directory)
    monkeypatch.setattr(Path, "open", refuse)
    messages = []
    for use in (checkpoint_sha256, describe, lambda _: Predictor.load(directory, device="cpu")):
        try:
            use(found)
        except CheckpointError as error:
            messages.append(str(error))
    advice = f"{refused} cannot be read: Input/output error; check its permissions"
    assert messages and all(message.startswith(advice) for message in messages), messages


def test_settings_of_the_hub_are_said_to_be_unused_for_folders(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "local")
    for _ in range(2):
        read_checkpoint(directory, revision="main", local_files_only=True)
    assert [record.getMessage() for record in caplog.records] == [
        "revision and local_files_only belong to checkpoints on the hub and are not used: the checkpoint is the folder "
        f"{directory}"
    ]
    caplog.clear()
    read_checkpoint(None, revision="v2")
    assert caplog.messages == [
        "revision belongs to checkpoints on the hub and is not used: the checkpoint is the embedded model"
    ]
    caplog.clear()
    read_checkpoint(directory)
    assert not caplog.messages


def test_too_many_steps_for_the_schedule_are_said_before_any_photo(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "lcm")
    edit_json(
        directory / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler", rescale_betas_zero_snr=False
    )
    with pytest.raises(InvalidValueError, match="num_inference_steps=51 is more than the 50"):
        resolve_settings(PredictConfig(num_inference_steps=51), read_checkpoint(directory))


def test_onnx_networks_of_other_channels_than_stated(onnx_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(onnx_checkpoint, tmp_path / "other")
    edit_json(directory / "model_index.json", latent_channels=5)
    with pytest.raises(CheckpointError, match=r"latent_channels is 5, and the networks have 8; get the checkpoint aga"):
        Predictor.load(directory)


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; give a downloaded folder"):
        read_checkpoint(tmp_path / "prs-eth" / "marigold-depth-v1-1")


def test_damage_that_only_shows_in_the_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, directory)
    edit_json(directory / "unet" / "config.json", block_out_channels=[8, 16, 24])
    with pytest.raises(CheckpointError, match="unet cannot be loaded"):
        Predictor.load(directory, device="cpu")


def copied(source: Path, directory: Path) -> Path:
    return Path(shutil.copytree(source, directory))


KINDS = {
    "v1-1": ({}, {"default_denoising_steps": 4}, "gaussian"),
    "v1-0": ({"timestep_spacing": "leading", "rescale_betas_zero_snr": False}, {}, "gaussian"),
    "end to end": ({"rescale_betas_zero_snr": False}, {"default_denoising_steps": 1}, "zeros"),
    "end to end, four steps": ({"rescale_betas_zero_snr": False}, {"default_denoising_steps": 4}, "gaussian"),
    "trained here": (
        {"rescale_betas_zero_snr": False},
        {"default_denoising_steps": 1, "default_final_step": "reference"},
        "gaussian",
    ),
    "stated": ({}, {"start_noise": "zeros"}, "zeros"),
    "stated otherwise": (
        {"rescale_betas_zero_snr": False},
        {"default_denoising_steps": 1, "start_noise": "gaussian"},
        "gaussian",
    ),
    "lcm": ({"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False}, {}, "gaussian"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_start_noise_is_inferred_or_stated(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "kind")
    scheduler, index, expected = KINDS[kind]
    edit_json(directory / "scheduler" / "scheduler_config.json", **scheduler)
    edit_json(directory / "model_index.json", **index)
    assert read_checkpoint(directory).default_start_noise == expected


@pytest.mark.parametrize(
    ("index", "invariance"),
    [
        ({}, "affine"),
        ({"shift_invariant": False}, "scale"),
        ({"scale_invariant": False, "shift_invariant": False}, "absolute"),
        ({"scale_invariant": None, "shift_invariant": None}, "affine"),
    ],
)
def test_invariance(index: dict[str, Any], invariance: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = copied(tiny_checkpoint, tmp_path / "invariance")
    edit_json(directory / "model_index.json", **index)
    assert read_checkpoint(directory).invariance == invariance
