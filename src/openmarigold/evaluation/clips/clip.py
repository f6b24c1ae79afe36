# SPDX-License-Identifier: Apache-2.0
"""What a clip with measured depth is, whatever its layout, and what the readers of layouts share."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.data.arrays import load_npy
from openmarigold.errors import DataError, ImageError, InvalidValueError, OpenMarigoldError, one_line
from openmarigold.images.photo import read_photo

_ORTHOGONAL = 1e-3


@dataclass(frozen=True, kw_only=True)
class ClipFrame:
    """One frame: its photo, and what was measured."""

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"]
    """Planar depth [m]; 0 where it is not known."""
    valid_mask: Bool[np.ndarray, "h w"]
    camera: Camera
    pose: Float64[np.ndarray, "4 4"] | None
    """Camera to world, OpenCV's axes; None where it is not known."""
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip whose frames are read one by one.

    Attributes:
        name: within its data set.
        layout: name of the layout.
        frame_names: one for each frame.
        read: frame by its number from 0. Raises DataError for one that is missing or damaged.
        files: the files that a frame is made of, for its hash.
        flow: measured flow from a frame to the next, NaN where it is not known; None: it follows from depth and poses,
            as of a static scene.
        min_depth: of what counts, exclusive [m].
        max_depth: of what counts, exclusive [m].
        facts: what the reader assumed, for the report.
    """

    name: str
    layout: str
    frame_names: Sequence[str]
    read: Callable[[int], ClipFrame]
    files: Callable[[int], Sequence[Path]]
    flow: Callable[[int], Float32[np.ndarray, "h w 2"]] | None = None
    min_depth: float = 1e-3
    max_depth: float = float("inf")
    facts: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame_names)


def within(clip: Clip, bounds: tuple[float, float]) -> Clip:
    """The clip with measured depth between these bounds alone, exclusive [m]; what its layout leaves out stays so."""
    low, high = max(bounds[0], clip.min_depth), min(bounds[1], clip.max_depth)

    def read(number: int) -> ClipFrame:
        frame = clip.read(number)
        return replace(frame, valid_mask=frame.valid_mask & (frame.depth > low) & (frame.depth < high))

    return replace(clip, read=read, min_depth=low, max_depth=high)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to keep clips in folders.

    Attributes:
        name: on the command line.
        summary: what the folder must hold, for messages.
        find: the clips of a folder by name, opened late; none where the folder has another layout.
    """

    name: str
    summary: str
    find: Callable[[Path], dict[str, Callable[[], Clip]]]


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); the clip is incomplete, get it again") from error


def read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A photo. Raises DataError where it is missing or damaged."""
    content = read_bytes(path)
    try:
        return read_photo(io.BytesIO(content)).rgb
    except (ImageError, OpenMarigoldError) as error:
        raise DataError(f"{path} is not a photo ({one_line(error)}); get the clip again") from error


def read_depth_png(path: Path, values_per_meter: float) -> Float32[np.ndarray, "h w"]:
    """Depth [m] of a PNG with 16-bit grays. Raises DataError where it is missing, damaged or of another kind."""
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if not image.mode.startswith("I"):
                raise ValueError(f"Pillow mode {image.mode}, not 16-bit grays")
            return (np.asarray(image).astype(np.float64) / values_per_meter).astype(np.float32)
    except Exception as error:  # Pillow raises many kinds for damaged bytes
        raise DataError(f"{path} is not a depth map of 16-bit grays ({one_line(error)}); get the clip again") from error


def read_depth_npy(path: Path) -> Float32[np.ndarray, "h w"]:
    """Depth [m] of a .npy file, what is not finite as 0. Raises DataError where it is missing or damaged."""
    try:
        values = load_npy(read_bytes(path))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a depth map ({one_line(error)}); get the clip again") from error
    if values.ndim != 2:
        raise DataError(f"{path} has the shape {list(values.shape)}; depth of shape [h, w] is needed")
    return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def read_matrix(path: Path, rows: int, columns: int) -> Float64[np.ndarray, "_ _"]:
    """A matrix of numbers in a text file, which may be infinite. Raises DataError for anything else."""
    try:
        values = np.array([float(word) for word in read_bytes(path).decode().split()])
        return values.reshape(rows, columns)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a matrix of {rows}x{columns} numbers; get the clip again") from error


def checked_pose(pose: Float64[np.ndarray, "4 4"], where: str) -> Float64[np.ndarray, "4 4"] | None:
    """A rigid pose as it is; None for one that is not finite, as trackers write where they are lost.

    Raises:
        DataError: it is not a rotation with a position.
    """
    if not np.isfinite(pose).all():
        return None
    turn = pose[:3, :3]
    if np.abs(turn @ turn.T - np.eye(3)).max() > _ORTHOGONAL or np.linalg.det(turn) < 0:
        raise DataError(f"{where}: the pose is not a rotation with a position; give camera-to-world 4x4")
    return pose


def make_frame(
    *,
    name: str,
    rgb: UInt8[np.ndarray, "h w 3"],
    depth: Float32[np.ndarray, "h1 w1"],
    camera: Camera,
    pose: Float64[np.ndarray, "4 4"] | None,
    time_s: float,
    depth_range: tuple[float, float],
) -> ClipFrame:
    """A frame of checked sizes; valid is what lies within the range.

    Raises:
        DataError: photo, depth and camera differ in size.
    """
    if rgb.shape[:2] != depth.shape or depth.shape != (camera.height, camera.width):
        raise DataError(
            f"{name}: the photo is {list(rgb.shape[:2])}, its depth {list(depth.shape)} and the camera's picture "
            f"{[camera.height, camera.width]}; all must have one size"
        )
    return ClipFrame(
        name=name,
        rgb=rgb,
        depth=np.where(np.isfinite(depth), depth, np.float32(0)),
        valid_mask=np.isfinite(depth) & (depth > depth_range[0]) & (depth < depth_range[1]),
        camera=camera,
        pose=pose,
        time_s=time_s,
    )


def camera_of(matrix: Float64[np.ndarray, "_ _"], size: tuple[int, int], where: Path) -> Camera:
    """The camera of a matrix of intrinsics for pictures of a size (height, width). Raises DataError for a wrong one."""
    (fx, cx), (fy, cy) = matrix[0, [0, 2]].tolist(), matrix[1, 1:3].tolist()
    try:
        return Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=size[1], height=size[0])
    except InvalidValueError as error:
        raise DataError(f"{where}: {error}") from error


def layout_of_folders(
    name: str, summary: str, *, is_clip: Callable[[Path], bool], open_clip: Callable[[Path, str], Clip]
) -> Layout:
    """A layout with a folder for each clip: the one that is given, or those in it, by name."""

    def find(root: Path) -> dict[str, Callable[[], Clip]]:
        if is_clip(root):
            return {root.resolve().name: partial(open_clip, root, root.resolve().name)}
        folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()] if root.is_dir() else []
        return {folder.name: partial(open_clip, folder, folder.name) for folder in folders if is_clip(folder)}

    return Layout(name=name, summary=summary, find=find)
