# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint folder says: its kind, its defaults, its noise schedule, and whether it is whole.

Reads JSON and file sizes only; no weights are loaded and torch is not needed. A checkpoint is a folder in diffusers
layout, see docs/architecture.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openmarigold.config import FinalStep, check_final_step, check_processing_resolution
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, InvalidValueError

EMBEDDED_DIR = Path(__file__).parent / "weights"
ONNX_FILES = {name: f"{name}/model.onnx" for name in ("vae_encoder", "unet", "vae_decoder")}
SAFETENSORS_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
EMBEDDING_FILE = "empty_prompt_embedding.safetensors"
PIPELINE_CLASSES = ("MarigoldDepthPipeline", "MarigoldPipeline")
FALLBACK_PROCESSING_RESOLUTION = 768
FALLBACK_INFERENCE_STEPS = {"trailing": 4, "leading": 10}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint folder and its defaults."""

    directory: Path
    name: str
    weights: Literal["onnx", "safetensors"]
    schedule: NoiseSchedule
    latent_channels: int
    default_num_inference_steps: int
    default_processing_resolution: int
    default_final_step: FinalStep
    processing_side: Literal["longer", "shorter"]
    """The side of the photo that a processing resolution gives: the longer one in published checkpoints."""


def read_checkpoint(directory: Path | None = None) -> Checkpoint:
    """The checkpoint in `directory`; None is the model that comes with the package.

    Raises:
        CheckpointError: a file is missing, empty, truncated or not understood, or the checkpoint predicts something
            other than affine-invariant depth.
    """
    if directory is None:
        directory = EMBEDDED_DIR
        if not (directory / "model_index.json").is_file():
            raise CheckpointError("the embedded model is missing from this installation; install openmarigold again")
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(
            f"checkpoint {directory} is not a folder; give a downloaded folder with model_index.json, or none for the "
            "embedded model"
        )
    index_path = directory / "model_index.json"
    index = _read_json(index_path)
    _check_kind(index, index_path)
    scheduler_path = directory / "scheduler" / "scheduler_config.json"
    scheduler_config = _read_json(scheduler_path)
    try:
        schedule = NoiseSchedule.from_config(scheduler_config)
    except CheckpointError as error:
        raise CheckpointError(f"{scheduler_path}: {error}") from error

    weights = _kind_of_weights(directory)
    channels = _check_onnx(directory, index) if weights == "onnx" else _check_safetensors(directory)
    try:
        steps = _integer(index, "default_denoising_steps", FALLBACK_INFERENCE_STEPS[schedule.timestep_spacing])
        resolution = _integer(index, "default_processing_resolution", FALLBACK_PROCESSING_RESOLUTION)
        final_step = index.get("default_final_step") or "reference"
        check_processing_resolution(resolution)
        check_final_step(final_step)
        processing_side = index.get("processing_side") or "longer"
        if processing_side not in ("longer", "shorter"):
            raise InvalidValueError(f"processing_side={processing_side!r} is not known; use longer or shorter")
    except InvalidValueError as error:
        raise CheckpointError(f"{index_path}: {error}") from error
    return Checkpoint(
        directory=directory,
        name=str(index.get("name") or directory.resolve().name),
        weights=weights,
        schedule=schedule,
        latent_channels=channels,
        default_num_inference_steps=steps,
        default_processing_resolution=resolution,
        default_final_step=final_step,
        processing_side=processing_side,
    )


def _check_kind(index: Mapping[str, Any], path: Path) -> None:
    if index.get("_class_name", PIPELINE_CLASSES[0]) not in PIPELINE_CLASSES:
        raise CheckpointError(
            f"{path}: _class_name is {index['_class_name']!r}; accepted is {PIPELINE_CLASSES[0]}, a depth checkpoint"
        )
    if (index.get("prediction_type") or "depth") != "depth":
        raise CheckpointError(
            f"{path}: prediction_type is {index['prediction_type']!r}; only depth checkpoints are supported"
        )
    for key in ("scale_invariant", "shift_invariant"):
        if index.get(key) is False:
            raise CheckpointError(f"{path}: {key} is false; only affine-invariant depth checkpoints are supported")


def _kind_of_weights(directory: Path) -> Literal["onnx", "safetensors"]:
    if any((directory / file).exists() for file in ONNX_FILES.values()):
        return "onnx"
    return "safetensors"


def _check_onnx(directory: Path, index: Mapping[str, Any]) -> int:
    for file in ONNX_FILES.values():
        path = directory / file
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; an ONNX checkpoint holds {', '.join(ONNX_FILES.values())}")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty; get the checkpoint again")
    try:
        return _integer(index, "latent_channels", None)
    except InvalidValueError as error:
        raise CheckpointError(f"{directory / 'model_index.json'}: {error}") from error


def _check_safetensors(directory: Path) -> int:
    configs = {}
    for name in ("unet", "vae"):
        folder = directory / name
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder} is missing; a checkpoint holds unet/ and vae/ with config.json and weights"
            )
        configs[name] = _read_json(folder / "config.json")
        weights = next((folder / file for file in SAFETENSORS_NAMES if (folder / file).is_file()), None)
        if weights is None:
            pickled = (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt"))
            hint = (
                f"; {pickled[0].name} is a pickle, which is never loaded: get the .safetensors file" if pickled else ""
            )
            raise CheckpointError(f"{folder / SAFETENSORS_NAMES[0]} is missing{hint}")
        check_safetensors_file(weights)
    embedding = directory / EMBEDDING_FILE
    if embedding.is_file():
        check_safetensors_file(embedding)
    elif not (directory / "text_encoder").is_dir() or not (directory / "tokenizer").is_dir():
        raise CheckpointError(
            f"{embedding} is missing, and so are text_encoder/ and tokenizer/; one of the two is needed"
        )

    channels = configs["vae"].get("latent_channels", 4)
    found = (configs["unet"].get("in_channels", 4), configs["unet"].get("out_channels", 4))
    if found != (2 * channels, channels):
        raise CheckpointError(
            f"{directory / 'unet' / 'config.json'}: {found[0]} input and {found[1]} output channels do not fit a VAE "
            f"of {channels} latent channels; a depth checkpoint has {2 * channels} and {channels}"
        )
    return channels


def check_safetensors_file(path: Path) -> None:
    """Compares the file's size with what its header announces, without reading the weights.

    Raises:
        CheckpointError: the file is truncated or not in safetensors format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or header_size > size - 8:
                raise CheckpointError(f"{path} is truncated ({size} bytes); get the checkpoint again")
            header = json.loads(file.read(header_size))
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a safetensors file; get the checkpoint again") from error
    expected = 8 + header_size + end
    if size != expected:
        raise CheckpointError(f"{path} is truncated ({size} of {expected} bytes); get the checkpoint again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; a checkpoint is a whole folder in diffusers layout") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON; get the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; get the checkpoint again")
    return content


def _integer(index: Mapping[str, Any], key: str, fallback: int | None) -> int:
    value = index.get(key)
    value = fallback if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidValueError(f"{key} is {value!r}; a whole number is needed")
    return value
