# SPDX-License-Identifier: Apache-2.0
"""Distances between what pixels show."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError


def length_between(
    camera: Camera, depth: Float[np.ndarray, "h w"], first: tuple[float, float], second: tuple[float, float]
) -> float:
    """The straight distance between the points that two pixels show, in the unit of depth.

    Each pixel has the depth of the nearest whole pixel: a mean over neighbors would mix surfaces at edges.

    Args:
        camera: of the picture.
        depth: planar, up to scale or in meters.
        first: pixel (x, y), pixel centers at whole numbers.
        second: the other one.

    Raises:
        InvalidValueError: a pixel outside the picture or without depth, one pixel twice, or a camera of another size.
    """
    if depth.shape != camera.size:
        raise InvalidValueError(
            f"the depth map is {depth.shape[0]}x{depth.shape[1]} and the camera's picture {camera.height}x"
            f"{camera.width}; use camera.resized"
        )
    depths = np.array([_depth_at(depth, pixel) for pixel in (first, second)])
    if tuple(first) == tuple(second):
        raise InvalidValueError(f"both ends of the length are pixel {first[0]:g},{first[1]:g}; give two pixels")
    start, end = camera.unproject_at(np.array([first, second], dtype=np.float64), depths)
    return float(np.linalg.norm(end - start))


def _depth_at(depth: Float[np.ndarray, "h w"], pixel: tuple[float, float]) -> float:
    x, y = pixel
    height, width = depth.shape
    inside = math.isfinite(x) and math.isfinite(y) and -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
    if not inside:
        raise InvalidValueError(
            f"pixel {x:g},{y:g} is outside the picture; x is 0 to {width - 1} and y is 0 to {height - 1}"
        )
    value = float(depth[min(math.floor(y + 0.5), height - 1), min(math.floor(x + 0.5), width - 1)])
    if not (math.isfinite(value) and value > 0):
        raise InvalidValueError(f"pixel {x:g},{y:g} has no depth; choose another one on the same object")
    return value
