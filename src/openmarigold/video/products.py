# SPDX-License-Identifier: Apache-2.0
"""Products of a frame's maps: colors, the clip next to its colors, 16-bit codes of a stated range, `_frames.npz`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from openmarigold.files import write_atomically
from openmarigold.modalities import Modality
from openmarigold.modalities.codes import LARGEST_CODE, Range, code_range, to_codes
from openmarigold.modalities.modality import MapKind, Maps
from openmarigold.predictor.stream_state import StreamedFrame
from openmarigold.results.provenance import RECORD_NAME, to_json
from openmarigold.results.writers import with_open_file
from openmarigold.video.clip import ClipFrame
from openmarigold.video.settings import VideoConfig


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The pictures and maps of one frame."""

    rgb: UInt8[np.ndarray, "h w 3"]
    """The frame of the clip."""
    maps: Maps
    """As stored in files of numbers."""
    colors: UInt8[np.ndarray, "h w 3"]
    ranges: Mapping[str, Range]
    """The values that codes 0 and 65535 stand for, by map."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """A video that is written."""

    product: str
    suffix: str
    """The end of its file name."""
    codec: str
    pixel_format: str
    container: str
    pixels: Callable[[Picture], Shaped[np.ndarray, "h w *c"]]
    """A frame of it: RGB for H.264, codes for FFV1."""
    content: str
    """For its record."""
    with_sound: bool = False
    map_name: str | None = None
    """Name of the map whose codes it holds; None for colors."""


def tracks_of(modality: Modality, config: VideoConfig) -> list[Track]:
    """The requested videos."""
    tracks = []
    h264 = partial(Track, codec="libx264", pixel_format="yuv420p", container="mp4")
    content, stem = f"{modality.title} in colors", f"_{modality.name}"
    if "colored" in config.format:
        suffix = f"{stem}_colored.mp4"
        tracks.append(h264(product="colored", suffix=suffix, pixels=lambda one: one.colors, content=content))
    if "sidebyside" in config.format:
        both = h264(
            product="sidebyside",
            suffix=f"{stem}_sidebyside.mp4",
            pixels=lambda one: np.concatenate([one.rgb, one.colors], axis=1),
            content=f"the clip, and {content}",
            with_sound=True,
        )
        tracks.append(both)
    if "ffv1" in config.format:
        tracks += [_coded(kind) for kind in modality.maps]
    return tracks


def _coded(kind: MapKind) -> Track:
    return Track(
        product="ffv1",
        suffix=f"_{kind.file_name}.mkv",
        codec="ffv1",
        pixel_format="gray16le" if kind.channels == 1 else "gbrp16le",
        container="matroska",
        pixels=lambda one: to_codes(one.maps[kind.name], one.ranges[kind.name]),
        content=f"{kind.name} x = low + code / {LARGEST_CODE} * (high - low), ranges of each frame in _frames.npz",
        map_name=kind.name,
    )


def picture_of(
    rgb: UInt8[np.ndarray, "h w 3"],
    maps: Maps,
    *,
    exported: Maps,
    modality: Modality,
    bounds: Range | None,
    colors: str,
) -> Picture:
    """The pictures of a frame; `bounds` are those of its shot, so that neither colors nor codes flicker."""
    within = modality.picture_within
    shown = modality.picture(maps, colors) if within is None or bounds is None else within(maps, colors, bounds)
    ranges = {kind.name: code_range(exported[kind.name], kind, bounds) for kind in modality.maps}
    return Picture(rgb=rgb, maps=exported, colors=shown, ranges=ranges)


def to_even(pixels: Shaped[np.ndarray, "h w *c"]) -> Shaped[np.ndarray, "H W *c"]:
    """Pixels with even sides, as H.264 with halved chroma needs them: the last row and column are repeated."""
    odd = [(0, side % 2) for side in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, odd, mode="edge") if any(side for _, side in odd) else pixels


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
    """The records of all frames as arrays; docs/video.md lists them. Only one segment is read at a time."""
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
    """Writes the arrays of `frame_arrays`, with the unit of `pts` and the record.

    Raises:
        OutputError: the file cannot be written.
    """
    unit = np.array([time_base.numerator, time_base.denominator], dtype=np.int64)
    entries: dict[str, Any] = {**arrays, "time_base": unit, RECORD_NAME: np.array(to_json(record))}
    write_atomically(path, with_open_file(lambda file: np.savez(file, **entries)))
