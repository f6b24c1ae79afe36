# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D: rgb.txt, depth.txt and groundtruth.txt, joined by timestamps.

Depth is 16-bit PNG, 5000 levels a meter, registered to the photos. The camera is ROS's default, fx = fy = 525, center
(319.5, 239.5) at 640x480, which the data set's authors recommend for the photos as they are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from openmarigold.camera import Camera
from openmarigold.errors import DataError
from openmarigold.evaluation.clips.clip import (
    Clip,
    ClipFrame,
    layout_of_folders,
    make_frame,
    read_bytes,
    read_depth_png,
    read_rgb,
)

_VALUES_PER_METER = 5000.0
_NEAREST_S = 0.02
_MAX_DEPTH = 10.0
_LISTS = ("rgb.txt", "depth.txt", "groundtruth.txt")


def _rows(path: Path, words: int) -> list[tuple[float, list[str]]]:
    """Timestamps and the words after them, in the order of time."""
    rows = []
    for number, line in enumerate(read_bytes(path).decode("utf-8", errors="replace").splitlines(), start=1):
        parts = line.replace(",", " ").split()
        if not parts or parts[0].startswith("#"):
            continue
        try:
            if len(parts) != 1 + words:
                raise ValueError(f"{len(parts)} words")
            rows.append((float(parts[0]), parts[1:]))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {line!r:.60} is not a time and {words} words") from error
    if not rows:
        raise DataError(f"{path} lists nothing; get the clip again")
    return sorted(rows, key=lambda row: row[0])


def _nearest(times: Sequence[float], wanted: float) -> int | None:
    """The row nearest in time, None where all are more than 20 ms away."""
    place = bisect_left(times, wanted)
    near = [index for index in (place - 1, place) if 0 <= index < len(times)]
    best = min(near, key=lambda index: abs(times[index] - wanted))
    return best if abs(times[best] - wanted) <= _NEAREST_S else None


def _pose(words: Sequence[str], where: Path) -> Float64[np.ndarray, "4 4"]:
    """Position and quaternion x y z w, camera to world."""
    try:
        values = np.array([float(word) for word in words])
        length = np.linalg.norm(values[3:])
        if not np.isfinite(values).all() or not 0.5 < length < 2:
            raise ValueError
    except ValueError as error:
        raise DataError(f"{where}: {' '.join(words):.60} is not a position and unit quaternion") from error
    x, y, z, w = values[3:] / length
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = values[:3]
    return pose


def _open(folder: Path, name: str) -> Clip:
    photos, depths, poses = (_rows(folder / file, words) for file, words in zip(_LISTS, (1, 1, 7), strict=True))
    depth_times, pose_times = [time for time, _ in depths], [time for time, _ in poses]
    joined = [
        (time, words[0], depths[depth][1][0], _nearest(pose_times, time))
        for time, words in photos
        if (depth := _nearest(depth_times, time)) is not None
    ]
    if not joined:
        raise DataError(f"{folder}: no photo has depth within {_NEAREST_S} s; get the clip again")
    for _, *files, _ in joined:
        if any(Path(file).is_absolute() or ".." in Path(file).parts for file in files):
            raise DataError(f"{folder}: the lists name files outside the clip; get the clip again")

    def read(number: int) -> ClipFrame:
        time, photo, measured, pose = joined[number]
        depth = read_depth_png(folder / measured, _VALUES_PER_METER)
        height, width = depth.shape
        camera = Camera(
            fx=525.0 * width / 640,
            fy=525.0 * height / 480,
            cx=(width - 1) / 2,
            cy=(height - 1) / 2,
            width=width,
            height=height,
            note="ROS's default",
        )
        return make_frame(
            name=Path(photo).stem,
            rgb=read_rgb(folder / photo),
            depth=depth,
            camera=camera,
            pose=None if pose is None else _pose(poses[pose][1], folder / "groundtruth.txt"),
            time_s=time - joined[0][0],
            depth_range=(clip.min_depth, clip.max_depth),
        )

    clip = Clip(
        name=name,
        layout=TUM.name,
        frame_names=[Path(photo).stem for _, photo, _, _ in joined],
        read=read,
        files=lambda number: [folder / _LISTS[2], folder / joined[number][1], folder / joined[number][2]],
        max_depth=_MAX_DEPTH,
        facts={"camera": "ROS's default, 525 px, center in the middle"},
    )
    return clip


TUM = layout_of_folders(
    "tum",
    "rgb.txt, depth.txt and groundtruth.txt of a TUM RGB-D sequence",
    is_clip=lambda folder: all((folder / file).is_file() for file in _LISTS),
    open_clip=_open,
)
