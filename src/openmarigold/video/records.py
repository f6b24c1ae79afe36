# SPDX-License-Identifier: Apache-2.0
"""What is written about the frames: `_frames.npz`, and the record of the whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from openmarigold.files import write_atomically
from openmarigold.results.prediction import Prediction
from openmarigold.results.provenance import RECORD_NAME, to_json
from openmarigold.video.clip import ClipFrame
from openmarigold.video.products import Range


@runtime_checkable
class Streamed(Protocol):
    """What a stream gives for a frame; `predictor.stream.StreamedFrame`."""

    number: int
    prediction: Prediction
    scale: float
    shift: float
    shot: int
    is_cut: bool
    bounds: tuple[float, float] | None
    inliers: float


def frame_record(frame: ClipFrame, item: Streamed, ranges: Mapping[str, Range]) -> dict[str, Any]:
    """One line about one frame, for JSON."""
    return {
        "number": item.number,
        "pts": frame.pts,
        "time_s": float(frame.time),
        "scale": float(item.scale),
        "shift": float(item.shift),
        "shot": int(item.shot),
        "is_cut": bool(item.is_cut),
        "bounds": None if item.bounds is None else [float(value) for value in item.bounds],
        "inliers": float(item.inliers),
        "ranges": {name: list(values) for name, values in ranges.items()},
    }


def write_frames(
    path: Path, frames: Sequence[Mapping[str, Any]], *, time_base: Fraction, record: Mapping[str, Any]
) -> None:
    """Writes the records of all frames as arrays; docs/video.md lists them.

    Raises:
        OutputError: the file cannot be written.
    """
    nothing = [float("nan"), float("nan")]
    arrays: dict[str, Any] = {
        "number": np.array([one["number"] for one in frames], dtype=np.int64),
        "pts": np.array([one["pts"] for one in frames], dtype=np.int64),
        "time_base": np.array([time_base.numerator, time_base.denominator], dtype=np.int64),
        "time_s": np.array([one["time_s"] for one in frames], dtype=np.float64),
        "scale": np.array([one["scale"] for one in frames], dtype=np.float64),
        "shift": np.array([one["shift"] for one in frames], dtype=np.float64),
        "shot": np.array([one["shot"] for one in frames], dtype=np.int64),
        "is_cut": np.array([one["is_cut"] for one in frames], dtype=bool),
        "bounds": np.array([one["bounds"] or nothing for one in frames], dtype=np.float64),
        "inliers": np.array([one["inliers"] for one in frames], dtype=np.float64),
    }
    for name in frames[0]["ranges"]:
        arrays[f"range_{name}"] = np.array([one["ranges"][name] for one in frames], dtype=np.float64)
    arrays[RECORD_NAME] = np.array(to_json(record))

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, save)
