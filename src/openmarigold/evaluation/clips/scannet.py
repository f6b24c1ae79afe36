# SPDX-License-Identifier: Apache-2.0
"""ScanNet scenes exported from their .sens files: color/N.jpg, depth/N.png [mm], pose/N.txt, intrinsic/.

Depth has its own size (640x480), to which the photos are resized; its intrinsics count. Lost poses are -inf.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openmarigold.errors import DataError
from openmarigold.evaluation.clips.clip import (
    Clip,
    ClipFrame,
    camera_of,
    checked_pose,
    layout_of_folders,
    make_frame,
    read_depth_png,
    read_matrix,
    read_rgb,
)
from openmarigold.images.photo import resize

_VALUES_PER_METER = 1000.0
_FRAMES_PER_SECOND = 30.0
_MAX_DEPTH = 10.0


def _open(folder: Path, name: str) -> Clip:
    photos = {int(path.stem): path for path in (folder / "color").glob("*.*") if path.stem.isdecimal()}
    if not photos:
        raise DataError(f"{folder / 'color'} holds no photos 0.jpg, 1.jpg, ...; export the .sens file again")
    numbers = sorted(photos)
    intrinsic = folder / "intrinsic" / "intrinsic_depth.txt"
    matrix = read_matrix(intrinsic, 4, 4)

    def files(number: int) -> list[Path]:
        frame = numbers[number]
        return [photos[frame], folder / "depth" / f"{frame}.png", folder / "pose" / f"{frame}.txt"]

    def read(number: int) -> ClipFrame:
        photo, measured, pose = files(number)
        depth = read_depth_png(measured, _VALUES_PER_METER)
        rgb = read_rgb(photo)
        if rgb.shape[:2] != depth.shape:
            planes = np.moveaxis(rgb, 2, 0).astype(np.float32)
            shrunk = resize(planes, (depth.shape[0], depth.shape[1]), antialias=True)
            rgb = np.moveaxis(np.clip(np.rint(shrunk), 0, 255).astype(np.uint8), 0, 2)
        return make_frame(
            name=photo.stem,
            rgb=rgb,
            depth=depth,
            camera=camera_of(matrix, (depth.shape[0], depth.shape[1]), intrinsic),
            pose=checked_pose(read_matrix(pose, 4, 4), str(pose)),
            time_s=numbers[number] / _FRAMES_PER_SECOND,
            depth_range=(clip.min_depth, clip.max_depth),
        )

    clip = Clip(
        name=name,
        layout=SCANNET.name,
        frame_names=[str(number) for number in numbers],
        read=read,
        files=lambda number: [intrinsic, *files(number)],
        max_depth=_MAX_DEPTH,
        facts={"photos": "resized to the size of the depth", "camera": "intrinsic_depth.txt"},
    )
    return clip


SCANNET = layout_of_folders(
    "scannet",
    "color/, depth/, pose/ and intrinsic/, exported from a .sens file",
    is_clip=lambda folder: all((folder / part).is_dir() for part in ("color", "depth", "pose", "intrinsic")),
    open_clip=_open,
)
