# SPDX-License-Identifier: Apache-2.0
"""Lengths in results of metric depth, read from their files or taken from a prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.camera import Camera
from openmarigold.config import OutputConfig
from openmarigold.errors import DataError, InvalidValueError, one_line
from openmarigold.files import as_path
from openmarigold.images.exr import read_exr
from openmarigold.modalities import find_modality
from openmarigold.modalities.metric import METRIC
from openmarigold.reconstruction.measure import Length, Pixel, length_between
from openmarigold.results.prediction import Prediction
from openmarigold.results.provenance import read_provenance

_ACCEPTED = (".npy", ".npz", ".exr")
_UNIT = "m"  # as results in meters state it


def measure(prediction: Prediction, first: Pixel, second: Pixel) -> Length:
    """The length [m] between the points that two pixels of a prediction in meters show, with its interval if known.

    Raises:
        InvalidValueError: a prediction that is not in meters, or a pixel without depth or outside of the picture.
    """
    modality = find_modality(prediction.modality, prediction.space)
    if modality.output_facts(OutputConfig()).get("unit") != _UNIT:
        raise InvalidValueError(
            f"a prediction of {prediction.modality} is not in meters; use completion.to_meters first"
        )
    camera = prediction.camera or Camera.from_dict(prediction.settings["camera"])
    return length_between(prediction.depth, camera, first, second, relative_90=_relative_90(prediction.settings))


def measure_file(path: Path | str, first: Pixel, second: Pixel) -> tuple[Length, str]:
    """The length between two pixels of a result file of `metric`, and its unit.

    Raises:
        InvalidValueError: not such a file, or a pixel without depth or outside of the picture.
        DataError, ImageError: the file is missing or damaged.
    """
    path = as_path(path, "the result file")
    if path.suffix.lower() not in _ACCEPTED:
        raise InvalidValueError(f"{path} is not accepted; give a result of `metric`: {', '.join(_ACCEPTED)}")
    record = read_provenance(path)
    if record.get("unit") != _UNIT or not isinstance(record.get("camera"), Mapping):
        raise InvalidValueError(
            f"{path} is not in meters; `openmarigold metric` makes metric depth of a photo and a known measurement"
        )
    camera = Camera.from_dict(record["camera"])
    depth = _read_depth(path)
    if depth.shape != camera.size:
        raise DataError(f"{path} is {list(depth.shape)} and its camera's picture {list(camera.size)}; predict it again")
    return length_between(depth, camera, first, second, relative_90=_relative_90(record)), _UNIT


def _relative_90(record: Mapping[str, Any]) -> float | None:
    errors = record.get("left_out_errors")
    stated = errors.get("relative_90") if isinstance(errors, Mapping) else None
    return float(stated) if isinstance(stated, (int, float)) and 0 <= stated < math.inf else None


def _read_depth(path: Path) -> np.ndarray:
    (depth,) = METRIC.maps
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as entries:
                return entries[depth.name]
        return read_exr(path)[depth.exr_channels[0]]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} is damaged or not a result of `metric` ({one_line(error)})") from error
