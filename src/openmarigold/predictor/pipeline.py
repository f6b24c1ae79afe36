# SPDX-License-Identifier: Apache-2.0
"""A callable with the inputs and keys of transformers' depth pipeline, for programs written for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from PIL import Image

from openmarigold.config import CallOptions, ModelOptions
from openmarigold.errors import InvalidValueError
from openmarigold.predictor import Predictor

TASK = "depth-estimation"


def pipeline(
    task: str = TASK, model: Path | str | None = None, **options: Unpack[ModelOptions]
) -> Callable[..., dict[str, Any] | list[dict[str, Any]]]:
    """A callable that replaces `transformers.pipeline("depth-estimation")`.

    Called with a photo (path, PIL image, array or tensor) it returns a dict with "predicted_depth", float32 `[h w]` in
    [0, 1], and "depth", the same as an 8-bit gray PIL image; with a list of photos, a list of such dicts. The settings
    of `CallConfig` are keywords of the call. Different from transformers: `predicted_depth` is a NumPy array, has the
    photo's size, and near is 0 (black).

    Args:
        task: "depth-estimation", the only one.
        model: checkpoint folder or hub id; None is the embedded model.
        options: device (also a number, -1 for the CPU), dtype and the other settings of `ModelConfig`.

    Raises:
        InvalidValueError: another task, a setting that is not accepted, or a model that predicts something else.
        CheckpointError: see `Predictor.load`.
    """
    if task != TASK:
        raise InvalidValueError(f"task={task!r} is not known; use {TASK!r}")
    if (device := options.get("device")) is not None and not isinstance(device, str):
        # transformers also takes numbers of GPUs, -1 for the CPU, and torch's devices.
        number = device if isinstance(device, int) else None
        options["device"] = str(device) if number is None else "cpu" if number < 0 else f"cuda:{number}"
    predictor = Predictor.load(model, **options)
    if [kind.name for kind in predictor.modality.maps] != ["depth"]:
        raise InvalidValueError(
            f"model={model!r} predicts {predictor.modality.title}, and task {TASK} needs depth; use Predictor.load"
        )

    def estimate(inputs: Any, **call: Unpack[CallOptions]) -> dict[str, Any] | list[dict[str, Any]]:
        found = predictor(inputs, **call)
        return [_as_dict(one.depth) for one in found] if isinstance(found, list) else _as_dict(found.depth)

    return estimate


def _as_dict(depth: np.ndarray) -> dict[str, Any]:
    return {"predicted_depth": depth, "depth": Image.fromarray(np.rint(255 * depth).astype(np.uint8))}
