# SPDX-License-Identifier: Apache-2.0
"""Lengths between two pixels, with an interval that follows from the error of depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError
from openmarigold.seeding import generator_for

Pixel: TypeAlias = tuple[float | int, float | int]
"""x and y, pixel centers at whole numbers."""

_DRAWS = 4000
_WITHIN_90 = 1.6449  # standard deviations of a normal distribution that hold 90 %


@dataclass(frozen=True, kw_only=True)
class Length:
    """Length of the straight line between the points that two pixels show."""

    value: float
    """In the unit of depth."""
    low: float | None = None
    high: float | None = None
    """The middle 90 %, where the error of depth is known."""
    ends: tuple[tuple[float, float, float], tuple[float, float, float]]
    """The two points: x right, y down, z forward, in the unit of depth."""


def depth_at(depth: Float[np.ndarray, "h w"], pixel: Pixel) -> float:
    """Depth of the pixel nearest to a place (x, y): between two surfaces, a mean of both is neither.

    Raises:
        InvalidValueError: the place lies outside of the picture, or no depth is known there.
    """
    height, width = depth.shape
    x, y = pixel
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):  # NaN too
        raise InvalidValueError(
            f"pixel {x:g},{y:g} lies outside of the picture of {width}x{height}; give x from 0 to {width - 1} and y "
            f"from 0 to {height - 1}"
        )
    value = float(depth[min(math.floor(y + 0.5), height - 1), min(math.floor(x + 0.5), width - 1)])
    if not (math.isfinite(value) and value > 0):
        raise InvalidValueError(f"no depth is known at pixel {x:g},{y:g}; choose another one on the same object")
    return value


def length_between(
    depth: Float[np.ndarray, "h w"], camera: Camera, first: Pixel, second: Pixel, *, relative_90: float | None = None
) -> Length:
    """The length between the points that two pixels (x, y) show.

    Args:
        depth: planar, in any unit, above 0.
        camera: of the picture that the map has.
        first: one pixel, centers at whole numbers.
        second: the other one.
        relative_90: 90 % of the errors of depth, divided by depth, are at most this; None where that is not known. The
            errors of the two ends are taken as independent and normally distributed.

    Raises:
        InvalidValueError: a pixel lies outside, no depth is known there, or a camera of another picture.
    """
    camera.check_map(depth)
    found = [depth_at(depth, pixel) for pixel in (first, second)]
    rays = camera.unproject_at(np.array([first, second], dtype=np.float64), np.ones(2))
    ends = rays * np.array(found)[:, None]
    value = float(np.linalg.norm(ends[0] - ends[1]))
    low = high = None
    if relative_90 is not None:
        draws = generator_for(0, "length", 0).standard_normal((_DRAWS, 2)) * (relative_90 / _WITHIN_90)
        moved = ends[None] * np.exp(draws)[..., None]
        lengths = np.linalg.norm(moved[:, 0] - moved[:, 1], axis=1)
        low, high = (float(bound) for bound in np.quantile(lengths, (0.05, 0.95)))
        low, high = min(low, value), max(high, value)  # noise only ever lengthens a short line that lies across
    first_end, second_end = ((float(x), float(y), float(z)) for x, y, z in ends)
    return Length(value=value, low=low, high=high, ends=(first_end, second_end))
