# SPDX-License-Identifier: Apache-2.0
"""Surfaces: directions of normals, normals from depth.

Normals are unit vectors in camera axes and point out of the surface, towards the viewer's side. Inside the package
their frame is "rub": x right, y up, z backward, so that a wall that faces the camera is (0, 0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Shaped

from openmarigold.config import NormalFrame
from openmarigold.errors import InvalidValueError

NORMAL_FRAMES: tuple[NormalFrame, ...] = get_args(NormalFrame)
"""Axes of stored normals: right, up, backward (Marigold, OpenGL); left, up, backward (DSINE, E2E-FT, Lotus); right,
down, forward (OpenCV, MoGe, Metric3D)."""
MIN_LENGTH = 1e-6
"""Smallest length of a vector that has a direction."""

_SIGNS: dict[str, tuple[float, float, float]] = {"rub": (1, 1, 1), "lub": (-1, 1, 1), "opencv": (1, -1, -1)}
_OCCLUSION = 0.02  # second difference of disparity, relative to disparity, that no smooth surface shows
_UNEVEN = 0.005  # deviation (root mean square) of a window's disparity from its plane, relative to disparity
_STEP_NOISE = 4e-4  # the same, below which a window is as flat as its pixels tell
_MAX_SUPPORT = 15
_CLEARLY = 0.5  # of the square of a deviation, for another window to be chosen
_SMOOTH = 1e-4  # the same, below which both neighbors count alike


def check_frame(frame: str) -> None:
    """Raises InvalidValueError unless a frame of normals is known."""
    if frame not in NORMAL_FRAMES:
        raise InvalidValueError(f"normal_frame={frame!r} is not known; use one of {', '.join(NORMAL_FRAMES)}")


def convert_frame(
    normals: Float[np.ndarray, "*lead c h w"], source: str, target: str, *, axis: int = -3
) -> Float[np.ndarray, "*lead c h w"]:
    """Normals of one frame in the axes of another; a copy, unless both are the same. Exact: only signs change.

    Args:
        normals: their three components lie along `axis`.
        source: one of `NORMAL_FRAMES`.
        target: another one.
        axis: of the components.

    Raises:
        InvalidValueError: an unknown frame.
    """
    check_frame(source)
    check_frame(target)
    if source == target:
        return normals
    signs = np.multiply(_SIGNS[source], _SIGNS[target]).astype(normals.dtype)
    shape = [1] * normals.ndim
    shape[axis] = 3
    return normals * signs.reshape(shape)


def unit_vectors(vectors: Float[np.ndarray, "*shape"], *, axis: int = -3) -> Float[np.ndarray, "*shape"]:
    """Vectors along `axis`, divided by their lengths, or by `MIN_LENGTH` if they are shorter."""
    length = np.sqrt(np.sum(np.square(vectors), axis=axis, keepdims=True))
    return vectors / np.maximum(length, MIN_LENGTH)


def angles_between(
    first: Float[np.ndarray, "*shape"], second: Float[np.ndarray, "*other"], *, axis: int = -3
) -> Float[np.ndarray, "*rest"]:
    """Angles [deg] in [0, 180] between unit vectors along `axis`; exact for small angles too (Kahan's formula)."""
    apart = np.sqrt(np.sum(np.square(first - second), axis=axis))
    along = np.sqrt(np.sum(np.square(first + second), axis=axis))
    return np.degrees(2 * np.arctan2(apart, along))


def normals_from_depth(
    depth: Float[np.ndarray, "h w"],
    *,
    focal: float | tuple[float, float],
    center: tuple[float, float] | None = None,
    valid_mask: Bool[np.ndarray, "h w"] | None = None,
    support: int = 0,
) -> tuple[Float32[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Normals (frame "rub") of the surface that a depth map shows, and where they can be trusted.

    On a plane 1/z is affine in the pixel's place, so that differences of 1/z between neighbors give a plane's normal
    exactly, whatever its tilt. In each direction the neighbor on the smoother side counts for more: a pixel of the
    foreground does not use the background. A scale of depth changes nothing; a shift or a wrong focal length tilts the
    normals.

    Depth that is stored in whole steps (millimeters, 16-bit codes) is a staircase, whose differences are not its slope:
    steps of 0.055 % are tilted by up to 12 degrees. `support` fits planes to windows instead, and gives each pixel the
    plane of the window around it, or of one of its eight neighbors that still hold the pixel, where that fits clearly
    better: so edges and creases stay sharp.

    Args:
        depth: planar depth, positive where valid, up to scale.
        focal: focal length [px], or (fx, fy).
        center: principal point (x, y) [px], pixel centers at whole numbers; None is the picture's middle.
        valid_mask: True = use this pixel; None: all that are finite and above 0.
        support: 0 for differences of neighbors, which suits exact and predicted depth; side of the windows [px], odd, 3
            to 15, for depth in steps.

    Returns:
        Unit normals, (0, 0, 0) where there is none, and a mask: False there and where no side of a pixel is smooth, or
        no window flat, as at occluding contours of thin things.

    Raises:
        InvalidValueError: a map of fewer than 3x3 pixels, a focal length that is not above 0, or another support.
    """
    height, width = depth.shape
    fx, fy = focal if isinstance(focal, Sequence) else (focal, focal)
    _check_arguments(depth.shape, (fx, fy), support)
    x0, y0 = center or ((width - 1) / 2, (height - 1) / 2)
    known = np.isfinite(depth) & (depth > 0) & (True if valid_mask is None else valid_mask)
    disparity = _scaled_disparity(depth, known)
    value = disparity
    if support:
        value, along_x, along_y, rough = _fitted_planes(disparity, support // 2)
        largest = _UNEVEN
    else:
        along_x, rough_x = _slope(disparity)
        along_y, rough_y = (part.T for part in _slope(disparity.T))
        rough, largest = np.maximum(rough_x, rough_y), _OCCLUSION
    x = np.arange(width)[None] - x0
    y = np.arange(height)[:, None] - y0
    towards = value - x * along_x - y * along_y
    vectors = np.stack([-fx * along_x, fy * along_y, towards], axis=-1)
    usable = np.asarray(np.isfinite(vectors).all(axis=-1))
    normals = unit_vectors(np.where(usable[..., None], vectors, 0.0), axis=-1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        smooth = rough < largest * disparity
    return normals, usable & smooth


def _scaled_disparity(depth: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """1 / depth times a power of two, which changes no digit: the unit of depth must not decide what is tiny."""
    with np.errstate(divide="ignore", invalid="ignore"):
        disparity = np.where(known, 1.0 / depth.astype(np.float64), np.nan)
    return np.ldexp(disparity, -round(np.log2(np.median(disparity[known])))) if known.any() else disparity


def _check_arguments(size: tuple[int, int], focal: tuple[float, float], support: int) -> None:
    if min(size) < 3:
        raise InvalidValueError(f"normals need a depth map of 3x3 pixels or more; this one has {size[0]}x{size[1]}")
    if support and not (support % 2 and 3 <= support <= _MAX_SUPPORT):
        raise InvalidValueError(f"support={support} is not accepted; give 0 or an odd number of 3 to {_MAX_SUPPORT}")
    if not (focal[0] > 0 and focal[1] > 0):
        raise InvalidValueError(f"focal={focal!r} is not accepted; give pixels, above 0")


def _slope(values: Float[np.ndarray, "h w"]) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Change from column to column, from the smoother side, and the roughness of that side; NaN where unknown.

    A side is rough by the second difference over the pixel, its neighbor and the next one. A neighbor without a next
    one has the second difference around the pixel itself.
    """
    step = np.full((values.shape[0], values.shape[1] + 1), np.nan)
    step[:, 1:-1] = np.diff(values, axis=1)
    bend = np.full((values.shape[0], values.shape[1] + 2), np.nan)  # around each pixel, with one unknown on each side
    bend[:, 1:-1] = np.abs(np.diff(step, axis=1))
    sides = []
    for slope, outer in ((step[:, :-1], bend[:, :-2]), (step[:, 1:], bend[:, 2:])):
        rough = np.where(np.isnan(outer), bend[:, 1:-1], outer)
        rough = np.where(np.isnan(rough), 0.0, rough)
        sides.append((slope, np.where(np.isnan(slope), np.inf, rough)))
    (left, rough_left), (right, rough_right) = sides
    floor = _SMOOTH * np.abs(values)
    weights = [1.0 / (np.square(rough) + np.square(floor)) for rough in (rough_left, rough_right)]  # 0 where unknown
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights[0] * np.nan_to_num(left) + weights[1] * np.nan_to_num(right)
        return total / (weights[0] + weights[1]), np.minimum(rough_left, rough_right)


def mirror_normals(normals: Shaped[np.ndarray, "h w 3"]) -> Shaped[np.ndarray, "h w 3"]:
    """Normals (frame "rub" or "lub") of a picture that is mirrored left to right: columns change places, x its sign."""
    return normals[:, ::-1] * np.array([-1, 1, 1], dtype=normals.dtype)


def _fitted_planes(
    disparity: Float[np.ndarray, "h w"], reach: int
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Value, change along x, change along y of the plane that suits each pixel, and its deviation; NaN where unknown.

    Each pixel chooses among nine windows that hold it.
    """
    height, width = disparity.shape
    planes = np.full((4, height + 2 * reach, width + 2 * reach), np.nan)
    planes[:, reach:-reach, reach:-reach] = _planes_around(disparity, reach)
    best = np.full((4, height, width), np.nan)
    lowest = np.full(disparity.shape, np.inf)
    floor = (_STEP_NOISE * disparity) ** 2
    shifts = sorted(
        ((y, x) for y in (-reach, 0, reach) for x in (-reach, 0, reach)), key=lambda at: abs(at[0]) + abs(at[1])
    )
    for y, x in shifts:
        value, along_x, along_y, deviation = planes[:, reach + y :, reach + x :][:, :height, :width]
        here = value - x * along_x - y * along_y
        with np.errstate(invalid="ignore"):
            # The own pixel counts too: a window of the neighboring surface may be flatter.
            cost = np.maximum(np.square(deviation) + np.square(here - disparity) / 4, floor)
            better = cost < lowest * _CLEARLY
        lowest[better] = cost[better]
        for target, found in zip(best, (here, along_x, along_y, np.sqrt(cost)), strict=True):
            target[better] = found[better]
    return best[0], best[1], best[2], best[3]


def _planes_around(disparity: Float[np.ndarray, "h w"], reach: int) -> Float[np.ndarray, "4 h w"]:
    """Least-squares planes of the known pixels around each pixel: value there, slopes, root mean square deviation."""
    height, width = disparity.shape
    padded = np.pad(disparity, reach, constant_values=np.nan)
    sums = np.zeros((10, height, width))
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            value = padded[reach + y :, reach + x :][:height, :width] - disparity  # small numbers keep their digits
            known = np.isfinite(value)
            value = np.where(known, value, 0.0)
            terms = (known, known * x, known * y, known * (x * x), known * (x * y), known * (y * y))
            for total, term in zip(sums, (*terms, value, x * value, y * value, np.square(value)), strict=True):
                total += term
    n, x, y, xx, xy, yy, v, xv, yv, vv = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x, mean_y, mean_v = x / n, y / n, v / n
        xx, xy, yy = xx - x * mean_x, xy - x * mean_y, yy - y * mean_y
        xv, yv, vv = xv - x * mean_v, yv - y * mean_v, vv - v * mean_v
        determinant = xx * yy - np.square(xy)
        along_x = (yy * xv - xy * yv) / determinant
        along_y = (xx * yv - xy * xv) / determinant
        deviation = np.sqrt(np.maximum(vv - along_x * xv - along_y * yv, 0.0) / n)
        value = disparity + mean_v - along_x * mean_x - along_y * mean_y
    planes = np.stack([value, along_x, along_y, deviation])
    # Few pixels, or pixels in about one line, fit any plane.
    return np.where((n > 2 * reach + 1) & (determinant > 1.0), planes, np.nan)
