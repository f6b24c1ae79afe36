# SPDX-License-Identifier: Apache-2.0
"""Sparse points for one photo, read from any usual file and checked.

Whatever the file, the points are pixels of the photo (x right, y down, centers at whole numbers) with planar depth [m].
Invalid points are left out and counted in `notes`; a fault of all points is one error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from openmarigold.camera import Camera
from openmarigold.completion import colmap, point_files
from openmarigold.completion.evidence import SAME_ASPECT, SparsePoints
from openmarigold.completion.known import FARTHEST_USUAL, METERS, Unit, check_no_second_scale
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.files import as_path

_MAYBE_CENTIMETERS = 50.0
_WINDOW = 7
_BEHIND = 1.5
_ON_A_LINE = 1e-3  # width by length of the cloud of pixels


@dataclass(frozen=True, kw_only=True)
class PointOptions:
    """Facts that a file of points does not state itself."""

    unit: Unit | None = None
    """Unit of depth, but of PNGs, whose `depth_scale` gives meters. None: meters; values that look like millimeters are
    refused."""
    depth_scale: float | None = None
    """Levels of a depth PNG for one meter. None: the file's text `depth_scale`, or the steps that our results state."""
    image: str | None = None
    """Name of the photo in a COLMAP model; None: the only one there is."""
    transform: Path | str | None = None
    """File with the 3x4 or 4x4 matrix from the axes of a point cloud to the camera's; KITTI's calibration files too.
    None: the cloud is in the camera's axes (x right, y down, z forward)."""
    along_ray: bool = False
    """Depth in tables and maps is the distance along the ray, not planar."""
    remove_see_through: bool = False
    """Leave out points that a nearer surface hides from the camera (`see_through`)."""


def read_points(path: Path | str, *, camera: Camera, options: PointOptions | None = None) -> SparsePoints:
    """The sparse points of one photo.

    | file | content |
    |---|---|
    | .csv, .txt, .tsv | x, y, depth, in any order under a header such as `x,y,depth` or `u,v,z` |
    | .npy, .npz | `[n 3]` of x, y, depth, or a map `[h w]` of depth with 0 or NaN where there is none |
    | .png | a map of 16 bits, in levels by `depth_scale` |
    | .exr | a map (extra `exr`) |
    | .ply, .xyz | a point cloud |
    | .bin | KITTI's LiDAR, float32 `[n 4]`, with a `transform` |
    | a folder | a COLMAP model: cameras, images and points3D as .txt or .bin |

    Args:
        path: the file or folder.
        camera: of the photo; a map of another size and the same shape is scaled to the photo.
        options: facts that the file does not state.

    Raises:
        DataError: a file that is missing, damaged or of another kind; no point is left; depths look like millimeters.
        InvalidValueError: an option that is not accepted or is missing for this file.
        MissingExtraError: an EXR file without the extra `exr`.
    """
    options = options or PointOptions()
    path = as_path(path, "points")
    _check(options)
    if path.is_dir():
        found = colmap.observed_points(path, image=options.image, size=camera.size)
        found = replace(found, depth=found.depth * METERS[options.unit or "m"])
        points = checked_points(found, camera=camera, check_unit=False)
        return without_see_through(points) if options.remove_see_through else points
    if path.suffix.lower() == ".png":
        check_no_second_scale(options.unit, str(path))
    found = point_files.read(path, depth_scale=options.depth_scale)
    notes: list[str] = []
    if isinstance(found, point_files.Cloud):
        pixels, depth, notes = _projected(found, camera, path, options)
    else:
        pixels, depth = found.pixels, found.depth
        if found.map_size is not None:
            pixels, notes = _scaled(pixels, found.map_size, camera, path)
    points = SparsePoints(
        pixels=pixels, depth=depth * METERS[options.unit or "m"], source=path.name, notes=tuple(notes)
    )
    if options.along_ray and not isinstance(found, point_files.Cloud):
        points = replace(points, depth=points.depth / camera_ray_lengths(camera, points.pixels))
    points = checked_points(points, camera=camera, check_unit=options.unit is None)
    return without_see_through(points) if options.remove_see_through else points


def checked_points(points: SparsePoints, *, camera: Camera, check_unit: bool = True) -> SparsePoints:
    """The points that can be used; the others are counted in `notes`.

    Args:
        points: as they were given; they may hold NaN.
        camera: of the photo.
        check_unit: refuse depths in meters that must be millimeters.

    Raises:
        DataError: no point is left, or depths look like millimeters.
    """
    if len(points) == 0:
        raise DataError(f"{points.source} holds no points; give at least one pixel with its depth in meters")
    notes = list(points.notes)
    pixels, depth = points.pixels.astype(np.float64), points.depth.astype(np.float64)
    known = np.isfinite(pixels).all(axis=1) & np.isfinite(depth)
    positive = known & (np.where(known, depth, 0.0) > 0)
    x, y = np.where(known[:, None], pixels, 0.0).T
    inside = (x >= -0.5) & (x <= camera.width - 0.5) & (y >= -0.5) & (y <= camera.height - 0.5)
    _count(notes, ~known, "are not finite")
    _count(notes, known & ~positive, "have depth 0 or less")
    _count(notes, positive & ~inside, f"lie outside of the picture of {camera.width}x{camera.height}")
    kept = positive & inside
    if not kept.any():
        why = "; ".join(notes[-3:])
        raise DataError(
            f"{points.source}: none of {len(points)} points can be used ({why}); points are x, y in pixels of the "
            "photo and depth above 0"
        )
    pixels, depth = pixels[kept], depth[kept]
    if check_unit:
        _check_unit(depth, points.source, notes)
    notes += _shape_notes(pixels)
    return SparsePoints(pixels=pixels, depth=depth, source=points.source, notes=tuple(notes))


def without_see_through(points: SparsePoints) -> SparsePoints:
    """The points without those that a nearer surface hides from the camera.

    A sensor next to the camera sees past edges. A point is left out if another one within a window of 7x7 pixels is
    more than 1.5 m nearer, as is usual for KITTI and DDAD.
    """
    hidden = see_through(points)
    notes = list(points.notes)
    _count(notes, hidden, f"are more than {_BEHIND} m behind another one within {_WINDOW}x{_WINDOW} pixels")
    return replace(points, pixels=points.pixels[~hidden], depth=points.depth[~hidden], notes=tuple(notes))


def see_through(points: SparsePoints) -> Bool[np.ndarray, " n"]:
    """Which points have another one within a window of 7x7 pixels that is more than 1.5 m nearer."""
    cells = np.rint(points.pixels).astype(np.int64)
    cells -= cells.min(axis=0) - _WINDOW
    width, height = (cells.max(axis=0) + _WINDOW + 1).tolist()
    nearest = np.full((height, width), np.inf)
    np.minimum.at(nearest, (cells[:, 1], cells[:, 0]), points.depth)
    reach = _WINDOW // 2
    around = np.full(len(points), np.inf)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            around = np.minimum(around, nearest[cells[:, 1] + dy, cells[:, 0] + dx])
    return points.depth > around + _BEHIND


def camera_ray_lengths(camera: Camera, pixels: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Distance along the ray divided by planar depth, at pixels (x, y)."""
    return np.linalg.norm(camera.unproject_at(pixels, np.ones(len(pixels))), axis=1)


def _check(options: PointOptions) -> None:
    if options.unit is not None and options.unit not in METERS:
        raise InvalidValueError(f"unit={options.unit!r} is not accepted; use one of {', '.join(METERS)}")
    scale = options.depth_scale
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise InvalidValueError(f"depth_scale={scale!r} is not accepted; give the levels of one meter, such as 1000")


def _projected(
    cloud: point_files.Cloud, camera: Camera, path: Path, options: PointOptions
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, " n"], list[str]]:
    """Pixels and depth of the points in front of the camera."""
    places = cloud.places
    if options.transform is not None:
        matrix = point_files.read_transform(as_path(options.transform, "transform"))
        places = places @ matrix[:, :3].T + matrix[:, 3]
    elif cloud.needs_transform:
        raise InvalidValueError(
            f"{path} is in the axes of its LiDAR; give the 3x4 or 4x4 matrix from the LiDAR to the camera as transform"
        )
    known = np.asarray(np.isfinite(places).all(axis=1))
    front = np.asarray(known & (np.where(known, places[:, 2], 0.0) > 0))
    notes: list[str] = []
    _count(notes, ~known, "are not finite")
    _count(notes, known & ~front, "lie behind the camera")
    if len(places) and not front.any():
        raise DataError(
            f"{path}: none of {len(places)} points lies in front of the camera; its axes are x right, y down, z "
            "forward: give a transform if the cloud has others"
        )
    return camera.project(places[front]), places[front, 2].copy(), notes


def _scaled(
    pixels: Float64[np.ndarray, "n 2"], size: tuple[int, int], camera: Camera, path: Path
) -> tuple[Float64[np.ndarray, "n 2"], list[str]]:
    """Pixels of a map as pixels of the photo, which may have the same shape in another size."""
    if size == camera.size:
        return pixels, []
    factors = np.array([camera.width / size[1], camera.height / size[0]])
    sizes = f"{size[1]}x{size[0]} and the photo {camera.width}x{camera.height} (width x height)"
    if abs(np.log(factors[0] / factors[1])) > SAME_ASPECT:
        raise DataError(f"{path} is {sizes}; a sparse map must have the photo's shape")
    return (pixels + 0.5) * factors - 0.5, [f"the map is {sizes}; its pixels were scaled"]


def _count(notes: list[str], mask: Bool[np.ndarray, " n"], what: str) -> None:
    count = int(mask.sum())
    if count:
        notes.append(f"{count} of {len(mask)} points {what} and were left out")


def _check_unit(depth: Float64[np.ndarray, " n"], source: str, notes: list[str]) -> None:
    middle = float(np.median(depth))
    whole = bool((depth == np.rint(depth)).all())
    if middle > FARTHEST_USUAL:
        raise DataError(
            f"{source}: half of the points are farther than {middle:.4g} m"
            f"{', all of them whole numbers' if whole else ''}, which looks like millimeters; give the unit mm, or m "
            "if they are meters"
        )
    if middle > _MAYBE_CENTIMETERS and whole and len(depth) > 2:
        notes.append(f"depths are whole numbers about {middle:.4g}: if they are centimeters, give the unit cm")


def _shape_notes(pixels: Float64[np.ndarray, "n 2"]) -> list[str]:
    if len(pixels) < 3:
        return []
    spread = np.linalg.svd(pixels - pixels.mean(axis=0), compute_uv=False)
    if spread[0] < 1e-6:
        return [f"all {len(pixels)} points are at one pixel: they give only a scale"]
    if spread[1] < _ON_A_LINE * spread[0]:
        return ["all points are on one line of the picture: away from it, depth comes from the model alone"]
    return []
