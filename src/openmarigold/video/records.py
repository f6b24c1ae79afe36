# SPDX-License-Identifier: Apache-2.0
"""What is written about the frames: `_frames.npz`, and the record of the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.files import write_atomically
from openmarigold.modalities.codes import Range
from openmarigold.predictor.stream_state import StreamedFrame
from openmarigold.results.provenance import RECORD_NAME, to_json
from openmarigold.results.writers import with_open_file
from openmarigold.video.clip import ClipFrame


def frame_record(frame: ClipFrame, item: StreamedFrame, ranges: Mapping[str, Range]) -> dict[str, Any]:
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


def frame_arrays(segments: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    """The records of all frames as arrays; docs/video.md lists them. Only one segment is held as it was read."""
    parts = [_arrays(lines) for lines in segments if lines]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _arrays(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    nothing = [float("nan"), float("nan")]
    types = {"number": np.int64, "pts": np.int64, "time_s": np.float64, "scale": np.float64, "shift": np.float64}
    types |= {"shot": np.int64, "is_cut": np.bool_, "inliers": np.float64}
    arrays = {name: np.array([one[name] for one in lines], dtype=dtype) for name, dtype in types.items()}
    arrays["bounds"] = np.array([one["bounds"] or nothing for one in lines], dtype=np.float64)
    for name in lines[0]["ranges"]:
        arrays[f"range_{name}"] = np.array([one["ranges"][name] for one in lines], dtype=np.float64)
    return arrays


def write_frames(
    path: Path, arrays: Mapping[str, np.ndarray], *, time_base: Fraction, record: Mapping[str, Any]
) -> None:
    """Writes what `frame_arrays` gives, with the unit of `pts` and the record.

    Raises:
        OutputError: the file cannot be written.
    """
    unit = np.array([time_base.numerator, time_base.denominator], dtype=np.int64)
    entries: dict[str, Any] = {**arrays, "time_base": unit, RECORD_NAME: np.array(to_json(record))}
    write_atomically(path, with_open_file(lambda file: np.savez(file, **entries)))
