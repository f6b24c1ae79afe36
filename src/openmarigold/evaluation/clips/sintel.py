# SPDX-License-Identifier: Apache-2.0
"""MPI Sintel: final/ or clean/, depth/ (.dpt), camdata_left/ (.cam) and, where given, flow/ (.flo), by scene.

Files are little-endian and start with the number 202021.25. Depth: width, height, float32. Camera: a 3x3 matrix of
intrinsics and a 3x4 matrix world-to-camera, float64. Flow: width, height, float32 x and y.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from openmarigold.camera import Camera
from openmarigold.errors import DataError
from openmarigold.evaluation.clips.clip import (
    Clip,
    ClipFrame,
    Layout,
    camera_of,
    checked_pose,
    make_frame,
    read_bytes,
    read_rgb,
)

_TAG = np.float32(202021.25)
_MAX_DEPTH = 70.0
_FRAMES_PER_SECOND = 24.0
_CAMERA_BYTES = 4 + 8 * (9 + 12)


def read_picture(path: Path, channels: int) -> Float32[np.ndarray, "h w c"]:
    """The values of a .dpt (one channel) or .flo file (two).

    Raises:
        DataError: it is missing, damaged or of another kind.
    """
    content = read_bytes(path)
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != _TAG:
        raise DataError(f"{path} does not start with {_TAG}; get the clip again")
    width, height = (int(number) for number in np.frombuffer(content, "<i4", 2, 4))
    if min(width, height) < 1 or len(content) != 12 + 4 * channels * width * height:
        raise DataError(f"{path} holds {len(content)} bytes, which is not {width}x{height}; get the clip again")
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, channels).astype(np.float32)


def _read_camera(path: Path, size: tuple[int, int]) -> tuple[Camera, np.ndarray | None]:
    content = read_bytes(path)
    if len(content) != _CAMERA_BYTES or np.frombuffer(content, "<f4", 1)[0] != _TAG:
        raise DataError(f"{path} is not a camera of Sintel; get the clip again")
    numbers = np.frombuffer(content[4:], "<f8")
    matrix, to_camera = numbers[:9].reshape(3, 3), np.eye(4)
    to_camera[:3] = numbers[9:].reshape(3, 4)
    rigid = checked_pose(to_camera, str(path))
    return camera_of(matrix, size, path), None if rigid is None else np.linalg.inv(rigid)


def _open(root: Path, rendering: str, scene: str) -> Clip:
    photos = sorted((root / rendering / scene).glob("*.png"))
    if not photos:
        raise DataError(f"{root / rendering / scene} holds no frames; get Sintel again")
    flows = root / "flow" / scene

    def files(number: int) -> list[Path]:
        stem = photos[number].stem
        return [
            photos[number],
            root / "depth" / scene / f"{stem}.dpt",
            root / "camdata_left" / scene / f"{stem}.cam",
        ]

    def read(number: int) -> ClipFrame:
        photo, measured, its_camera = files(number)
        depth = read_picture(measured, 1)[..., 0]
        camera, pose = _read_camera(its_camera, (depth.shape[0], depth.shape[1]))
        return make_frame(
            name=photo.stem,
            rgb=read_rgb(photo),
            depth=depth,
            camera=camera,
            pose=pose,
            time_s=number / _FRAMES_PER_SECOND,
            depth_range=(clip.min_depth, clip.max_depth),
        )

    has_flow = flows.is_dir()
    clip = Clip(
        name=scene,
        layout="sintel" if rendering == "final" else f"sintel-{rendering}",
        frame_names=[photo.stem for photo in photos],
        read=read,
        files=lambda number: [
            *files(number),
            *([flow] if (flow := flows / f"{photos[number].stem}.flo").is_file() else []),
        ],
        flow=(lambda number: read_picture(flows / f"{photos[number].stem}.flo", 2)) if has_flow else None,
        max_depth=_MAX_DEPTH,
        facts={"rendering": rendering},
    )
    return clip


def _find(rendering: str, root: Path) -> dict:
    for place in (root, root / "training"):
        if all((place / part).is_dir() for part in (rendering, "depth", "camdata_left")):
            scenes = sorted(folder.name for folder in (place / rendering).iterdir() if folder.is_dir())
            return {scene: partial(_open, place, rendering, scene) for scene in scenes}
    return {}


_NEEDED = "depth/ and camdata_left/, the folders of MPI Sintel's training set"
SINTEL = Layout(name="sintel", summary=f"final/, {_NEEDED}", find=partial(_find, "final"))
SINTEL_CLEAN = Layout(name="sintel-clean", summary=f"clean/, {_NEEDED}", find=partial(_find, "clean"))
