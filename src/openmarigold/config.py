# SPDX-License-Identifier: Apache-2.0
"""Every setting of prediction, its default and its check; the command line is generated from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openmarigold.errors import InvalidValueError

FinalStep = Literal["reference", "clean"]

MAX_INFERENCE_STEPS = 1000
INVARIANCES = ("affine", "scale", "absolute")
LATENT_FACTOR = 8


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of prediction.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    checkpoint: Path | None = None
    """Checkpoint folder: ONNX networks, or safetensors weights with the extra `torch`. None: the embedded model."""
    num_inference_steps: int | None = None
    """Denoising steps, 1 to 1000. None: the checkpoint's default."""
    ensemble_size: int = 1
    """Predictions from different noise that are aligned and merged; from 2 on there is an uncertainty map."""
    processing_resolution: int | None = None
    """Longer side (embedded model: shorter side) that the networks see [px], a multiple of 8. 0: the photo's own size.
    None: the checkpoint's default."""
    seed: int = 2024
    """Seed of the noise. The same photo and seed give the same depth, alone or among others."""
    batch_size: int = 4
    """Ensemble members that are denoised at once on a GPU. On a CPU they run one after another."""
    device: str = "auto"
    """Where the networks run: auto, cpu, cuda, cuda:1 or mps. ONNX networks run on cpu."""
    final_step: FinalStep | None = None
    """Last denoising step: reference (as published, keeps 3 % of the noise) or clean. None: the checkpoint's
    default."""

    def __post_init__(self) -> None:
        if self.num_inference_steps is not None:
            _check_count("num_inference_steps", self.num_inference_steps, maximum=MAX_INFERENCE_STEPS)
        _check_count("ensemble_size", self.ensemble_size)
        _check_count("batch_size", self.batch_size)
        if self.processing_resolution is not None:
            check_processing_resolution(self.processing_resolution)
        if not _is_integer(self.seed) or self.seed < 0:
            raise InvalidValueError(f"seed={self.seed!r} is not accepted; give a whole number, 0 or above")
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise InvalidValueError(f"device={self.device!r} is not known; use auto, cpu, cuda, cuda:1 or mps")
        check_final_step(self.final_step)


def check_processing_resolution(value: object) -> None:
    """Accepts 0 and positive multiples of 8."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidValueError(
            f"processing_resolution={value!r} is not accepted; give a multiple of {LATENT_FACTOR}, or 0 for the "
            "photo's own size"
        )
    if value % LATENT_FACTOR:
        nearest = max(LATENT_FACTOR, LATENT_FACTOR * round(value / LATENT_FACTOR))
        raise InvalidValueError(
            f"processing_resolution={value} is not a multiple of {LATENT_FACTOR}; try {nearest}, or 0 for the photo's "
            "own size"
        )


def check_final_step(value: object) -> None:
    """Accepts None, "reference" and "clean"."""
    if value not in (None, "reference", "clean"):
        raise InvalidValueError(f"final_step={value!r} is not known; use reference or clean")


def _check_count(name: str, value: object, *, maximum: int | None = None) -> None:
    if not _is_integer(value) or value < 1 or (maximum is not None and value > maximum):  # pyright: ignore
        accepted = "1 or above" if maximum is None else f"1 to {maximum}"
        raise InvalidValueError(f"{name}={value!r} is not accepted; give a whole number, {accepted}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
