# SPDX-License-Identifier: Apache-2.0
"""Clips with `sequence.json`, as `openmarigold-render path` writes them.

The file holds `format`, `version`, `width`, `height`, `camera` (`fx`, `fy`, `cx`, `cy` [px], pixel centers at whole
numbers), `depth_unit_m` where depth is in 16-bit PNG, and `frames`: `rgb` and `depth` (paths; .npy holds float32 [m], 0
is unknown), `time_s`, `camera_to_world` (4x4, OpenCV's axes).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from openmarigold.camera import Camera
from openmarigold.errors import DataError, OpenMarigoldError, one_line
from openmarigold.evaluation.clips.clip import (
    Clip,
    ClipFrame,
    checked_pose,
    layout_of_folders,
    make_frame,
    read_bytes,
    read_depth_npy,
    read_depth_png,
    read_rgb,
)
from openmarigold.text_files import DamagedTextError, parse_json

FILE_NAME = "sequence.json"
FORMAT, VERSION = "openmarigold sequence", 1


def _open(folder: Path, name: str) -> Clip:
    path = folder / FILE_NAME
    try:
        facts: Any = parse_json(read_bytes(path))
    except DamagedTextError as error:
        raise DataError(f"{path} is not valid JSON ({error}); render the clip again") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise DataError(f"{path} is not a {FORMAT} of version {VERSION}; render the clip again")
    try:
        intrinsics: dict[str, Any] = {name: float(facts["camera"][name]) for name in ("fx", "fy", "cx", "cy")}
        camera = Camera(width=facts["width"], height=facts["height"], **intrinsics)
        unit = float(facts.get("depth_unit_m", 0.001))
        rows = [_row(row) for row in facts["frames"]]
    except (KeyError, TypeError, ValueError, AttributeError, OpenMarigoldError) as error:
        raise DataError(f"{path} is incomplete or damaged ({one_line(error)}); render the clip again") from error
    if not rows or not 0 < unit < np.inf:
        raise DataError(f"{path} names no frames, or a depth_unit_m that is not above 0; render the clip again")

    def files(number: int) -> list[Path]:
        return [folder / rows[number]["rgb"], folder / rows[number]["depth"]]

    def read(number: int) -> ClipFrame:
        row, (photo, measured) = rows[number], files(number)
        depth = read_depth_npy(measured) if measured.suffix == ".npy" else read_depth_png(measured, 1 / unit)
        return make_frame(
            name=photo.stem,
            rgb=read_rgb(photo),
            depth=depth,
            camera=camera,
            pose=checked_pose(row["pose"], f"{path}, frame {number}"),
            time_s=row["time_s"],
            depth_range=(clip.min_depth, clip.max_depth),
        )

    clip = Clip(
        name=name,
        layout=RENDERED.name,
        frame_names=[PurePosixPath(row["rgb"]).stem for row in rows],
        read=read,
        files=lambda number: [path, *files(number)],
    )
    return clip


def _row(row: Any) -> dict[str, Any]:
    """One frame's line, checked. Raises KeyError, TypeError or ValueError."""
    for key in ("rgb", "depth"):
        path = PurePosixPath(row[key])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{row[key]!r:.80} lies outside the clip")
    pose = np.array(row["camera_to_world"], dtype=np.float64)
    if pose.shape != (4, 4):
        raise ValueError(f"camera_to_world of shape {list(pose.shape)}, not [4, 4]")
    return {"rgb": row["rgb"], "depth": row["depth"], "time_s": float(row["time_s"]), "pose": pose}


RENDERED = layout_of_folders(
    "rendered",
    f"{FILE_NAME}, as `openmarigold-render path` writes it",
    is_clip=lambda folder: (folder / FILE_NAME).is_file(),
    open_clip=_open,
)
