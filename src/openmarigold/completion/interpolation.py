# SPDX-License-Identifier: Apache-2.0
"""Baselines of completion: interpolation between the points, which needs no model, and plain least squares."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from openmarigold.errors import InvalidValueError, needs_extra

_NEAREST_CHUNK = 1 << 22  # distances at a time


def nearest(
    pixels: Float[np.ndarray, "n 2"], depth: Float[np.ndarray, " n"], at: Float[np.ndarray, "m 2"]
) -> Float64[np.ndarray, " m"]:
    """Depth of the point nearest to each place `at` (x, y) of the picture."""
    values = np.asarray(depth, dtype=np.float64)
    try:
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]
    except ModuleNotFoundError:  # the same by brute force
        rows = [
            np.square(part[:, None] - pixels[None]).sum(axis=-1).argmin(axis=1)
            for part in np.array_split(at, max(1, len(at) * len(pixels) // _NEAREST_CHUNK))
        ]
        return values[np.concatenate(rows)]
    return values[cKDTree(pixels).query(at)[1]]


def linear(
    pixels: Float[np.ndarray, "n 2"], depth: Float[np.ndarray, " n"], at: Float[np.ndarray, "m 2"]
) -> Float64[np.ndarray, " m"]:
    """Depth at places `at` (x, y), interpolated linearly in the Delaunay triangles of the points.

    Outside of their hull, and if the points form no triangle, it is the depth of the nearest point.

    Raises:
        MissingExtraError: without scipy (extra `metric`).
    """
    with needs_extra("metric"):
        from scipy.interpolate import LinearNDInterpolator
        from scipy.spatial import QhullError
    outside = nearest(pixels, depth, at)
    if len(pixels) < 3:
        return outside
    try:
        inside = LinearNDInterpolator(pixels, np.asarray(depth, dtype=np.float64))(at)
    except QhullError:  # on one line
        return outside
    return np.where(np.isnan(inside), outside, inside)


def least_squares(relative: Float[np.ndarray, " n"], depth: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Scale and shift with the least squared error of `scale * relative + shift` in meters; all points weigh the same.

    Raises:
        InvalidValueError: fewer than two points of different relative depth.
    """
    x, z = np.asarray(relative, dtype=np.float64), np.asarray(depth, dtype=np.float64)
    variance = float(np.square(x - x.mean()).sum()) if len(x) else 0.0
    if variance <= 0:
        raise InvalidValueError("least squares of scale and shift needs two points of different relative depth")
    scale = float(((x - x.mean()) * (z - z.mean())).sum() / variance)
    return scale, float(z.mean() - scale * x.mean())
