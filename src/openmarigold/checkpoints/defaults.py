# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's recommended settings: from model_index.json, else a known fact, else inferred."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from openmarigold.checkpoints.known import Known
from openmarigold.checkpoints.network_configs import MAX_PROCESSING_RESOLUTION, whole_number
from openmarigold.config import (
    LATENT_FACTOR,
    MAX_INFERENCE_STEPS,
    FinalStep,
    Invariance,
    StartNoise,
    check_choice,
    check_processing_resolution,
    is_number,
)
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, InvalidValueError

_FALLBACK_PROCESSING_RESOLUTION = 768
_FALLBACK_INFERENCE_STEPS = {"trailing": 4, "leading": 10, "lcm": 1}
# (scale_invariant, shift_invariant) of model_index.json
_INVARIANCE_OF: dict[tuple[bool, bool], Invariance] = {
    (True, True): "affine",
    (True, False): "scale",
    (False, False): "absolute",
}


def recommended(index: Mapping[str, Any], path: Path, schedule: NoiseSchedule, known: Known | None) -> dict[str, Any]:
    """Defaults by their names in `Checkpoint`, from the content of model_index.json at `path`.

    Raises:
        CheckpointError: a value that is not accepted.
    """
    fallback = (known.num_inference_steps if known is not None else None) or _FALLBACK_INFERENCE_STEPS[
        "lcm" if schedule.sampler == "lcm" else schedule.timestep_spacing
    ]
    steps = whole_number(index, path, "default_denoising_steps", fallback, least=1, most=MAX_INFERENCE_STEPS)
    resolution = whole_number(
        index, path, "default_processing_resolution", _FALLBACK_PROCESSING_RESOLUTION, most=MAX_PROCESSING_RESOLUTION
    )
    coarse = whole_number(index, path, "coarse_resolution", 0, most=MAX_PROCESSING_RESOLUTION)
    final_step = index.get("default_final_step") or "reference"
    start_noise = index.get("start_noise") or (known and known.start_noise) or "gaussian"
    ensemble_start_noise = index.get("ensemble_start_noise") or start_noise
    ensemble_mirror, noise_scale = index.get("ensemble_mirror"), index.get("ensemble_noise_scale")
    noise_scale = 1.0 if noise_scale is None else noise_scale
    processing_side = index.get("processing_side") or "longer"
    try:
        try:
            schedule.timesteps(steps)
        except InvalidValueError as error:
            raise InvalidValueError(f"default_denoising_steps is {steps}: {error}") from error
        check_processing_resolution(resolution)
        _check_coarse_resolution(coarse, resolution)
        check_choice("final_step", final_step, get_args(FinalStep))
        check_choice("start_noise", start_noise, get_args(StartNoise))
        check_choice("ensemble_start_noise", ensemble_start_noise, get_args(StartNoise))
        check_choice("processing_side", processing_side, ("longer", "shorter"))
        if not isinstance(ensemble_mirror, (bool, type(None))):
            raise InvalidValueError(f"ensemble_mirror is {ensemble_mirror!r:.60}; true or false is needed")
        if not is_number(noise_scale) or not 0 < noise_scale <= 1:
            raise InvalidValueError(f"ensemble_noise_scale is {noise_scale!r:.60}; a number above 0, to 1, is needed")
    except InvalidValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return {
        "default_num_inference_steps": steps,
        "default_processing_resolution": resolution,
        "coarse_resolution": coarse or None,
        "default_final_step": final_step,
        "default_start_noise": start_noise,
        "default_ensemble_start_noise": ensemble_start_noise,
        "default_ensemble_mirror": bool(ensemble_mirror),
        "ensemble_noise_scale": float(noise_scale),
        "processing_side": processing_side,
    }


def _check_coarse_resolution(coarse: int, resolution: int) -> None:
    try:
        check_processing_resolution(coarse)
    except InvalidValueError as error:
        raise InvalidValueError(f"coarse_resolution is {coarse}; a multiple of {LATENT_FACTOR} is needed") from error
    if coarse and 0 < resolution <= coarse:
        raise InvalidValueError(
            f"coarse_resolution is {coarse}; less than default_processing_resolution ({resolution}) is needed"
        )


def invariance(index: Mapping[str, Any], path: Path, accepted: Iterable[str]) -> Invariance:
    """The invariance of predictions: "absolute" if only that is `accepted`, else from the flags in model_index.json.

    Raises:
        CheckpointError: a value that is not true or false, or a pair of them without a meaning.
    """
    if set(accepted) == {"absolute"}:
        return "absolute"
    for key in ("scale_invariant", "shift_invariant"):
        if not isinstance(index.get(key), (bool, type(None))):
            raise CheckpointError(f"{path}: {key} is {index[key]!r}; true or false is needed")
    pair = index.get("scale_invariant") is not False, index.get("shift_invariant") is not False
    if pair not in _INVARIANCE_OF:
        raise CheckpointError(
            f"{path}: scale_invariant is false and shift_invariant true, which is not supported; depth is affine (both "
            "true), known up to its scale (scale_invariant only), or absolute (both false)"
        )
    return _INVARIANCE_OF[pair]
