# SPDX-License-Identifier: Apache-2.0
"""Views of an equirectangular panorama as a pinhole camera would take them.

A panorama is not a picture of a pinhole camera: straight lines are bent, and depth along its columns and rows is not
planar depth. So its views are predicted one by one, and each gives points in axes of its own; `View.rotation` turns
them into those of the panorama.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, UInt8

from openmarigold.camera import Camera
from openmarigold.config import check_fov
from openmarigold.errors import InvalidValueError

_STRIP_ROWS = 64
_MAX_FOV = 120.0


@dataclass(frozen=True, kw_only=True)
class View:
    """A part of a panorama."""

    rgb: UInt8[np.ndarray, "s s 3"]
    camera: Camera
    yaw: float
    """Degrees to the right of the panorama's middle."""
    pitch: float
    """Degrees above the horizon."""
    rotation: Float64[np.ndarray, "3 3"]
    """From the view's axes to those of the view of the panorama's middle (x right, y down, z forward): points of the
    panorama are `points @ rotation.T`."""


def cut_panorama(
    rgb: UInt8[np.ndarray, "h w 3"],
    *,
    yaws: Sequence[float] = (0.0, 90.0, 180.0, 270.0),
    pitch: float = 0.0,
    fov: float = 90.0,
    size: int | None = None,
) -> list[View]:
    """Square views of a whole equirectangular panorama, one for each yaw [deg].

    Args:
        rgb: all around from left to right, from straight up to straight down, so twice as wide as high.
        yaws: directions [deg] to the right of the middle.
        pitch: direction [deg] above the horizon, -90 to 90.
        fov: of each view [deg], 1 to 120.
        size: side of a view [px]; None: as fine as the panorama in the view's middle.

    Raises:
        InvalidValueError: a picture of another shape, or a value that is not accepted.

    >>> views = cut_panorama(np.zeros((64, 128, 3), dtype=np.uint8))
    >>> [(view.yaw, view.camera.size) for view in views]
    [(0.0, (41, 41)), (90.0, (41, 41)), (180.0, (41, 41)), (270.0, (41, 41))]
    """
    height, width = rgb.shape[:2]
    if abs(width - 2 * height) > max(2, width // 100):
        raise InvalidValueError(
            f"the picture is {width}x{height} pixels; a whole equirectangular panorama is twice as wide as high"
        )
    check_fov(fov)
    if fov > _MAX_FOV or not -90 <= pitch <= 90:
        raise InvalidValueError(f"fov={fov:g} and pitch={pitch:g}: give a fov up to {_MAX_FOV:g}, a pitch of -90 to 90")
    if size is not None and size < 1:
        raise InvalidValueError(f"size={size} is not accepted; give pixels, 1 or above")
    side = size or max(1, round(width / math.pi * math.tan(math.radians(fov) / 2)))
    camera = Camera.from_fov((side, side), fov, note="view of a panorama")
    views = []
    for yaw in yaws:
        rotation = _rotation(yaw, pitch)
        views.append(
            View(rgb=_seen(rgb, camera, rotation), camera=camera, yaw=float(yaw), pitch=pitch, rotation=rotation)
        )
    return views


def _rotation(yaw: float, pitch: float) -> Float64[np.ndarray, "3 3"]:
    (a, b), (c, d) = ((math.cos(angle), math.sin(angle)) for angle in (math.radians(yaw), math.radians(pitch)))
    return np.array([[a, 0.0, b], [0.0, 1.0, 0.0], [-b, 0.0, a]]) @ np.array(
        [[1.0, 0.0, 0.0], [0.0, c, -d], [0.0, d, c]]
    )


def _seen(
    rgb: UInt8[np.ndarray, "h w 3"], camera: Camera, rotation: Float64[np.ndarray, "3 3"]
) -> UInt8[np.ndarray, "s s 3"]:
    """The panorama where the rays of a camera meet it, bilinear."""
    height, width = rgb.shape[:2]
    out = np.empty((*camera.size, 3), dtype=np.uint8)
    for top in range(0, camera.height, _STRIP_ROWS):
        x, y, z = np.moveaxis(camera.rays(slice(top, top + _STRIP_ROWS)) @ rotation.T, -1, 0)
        column = (np.arctan2(x, z) / (2 * math.pi) + 0.5) * width - 0.5
        row = np.clip((np.arctan2(y, np.hypot(x, z)) / math.pi + 0.5) * height - 0.5, 0, height - 1)
        left, above = np.floor(column).astype(int), np.floor(row).astype(int)
        right_share, below_share = (column - left)[..., None], (row - above)[..., None]
        right, below = (left + 1) % width, np.minimum(above + 1, height - 1)
        left %= width
        upper = _between(rgb[above, left], rgb[above, right], right_share)
        lower = _between(rgb[below, left], rgb[below, right], right_share)
        out[top : top + _STRIP_ROWS] = np.rint(_between(upper, lower, below_share))
    return out


def _between(first: np.ndarray, second: np.ndarray, share: Float[np.ndarray, "h w 1"]) -> Float[np.ndarray, "h w 3"]:
    return first * (1 - share) + second * share
