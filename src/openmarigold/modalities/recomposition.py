# SPDX-License-Identifier: Apache-2.0
"""The identity photo = albedo * shading + residual, in linear light: the error that maps leave, and maps without an
error.

The photo's pixels are taken as sRGB. Division by the albedo is what other tools do too, such as compphoto/Intrinsic
(Careaga and Aksoy 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8

from openmarigold.images.pixels import decode_srgb, light_of_pixels

DARKEST = 1e-3
"""Nothing is divided by an albedo of at most this value."""

_STRIP_PIXELS = 2**17


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How maps meet the identity."""

    scale: float
    """Factor of shading and residual; 1 if they are not up to scale."""
    error: float
    """Root of the mean squared difference between photo and recomposition, over pixels and colors, in linear light."""


def fit_to_photo(
    rgb: UInt8[np.ndarray, "h w 3"],
    albedo: Float[np.ndarray, "h w 3"],
    shading: Float[np.ndarray, "h w 3"],
    residual: Float[np.ndarray, "h w 3"],
    *,
    up_to_scale: bool = True,
    albedo_in_srgb: bool = False,
) -> Fit:
    """The best common scale of shading and residual, by least squares, and the error that it leaves.

    Args:
        rgb: the photo.
        albedo: in linear light, unless `albedo_in_srgb`.
        shading: in linear light.
        residual: in linear light, in the unit of the shading.
        up_to_scale: False fixes the scale to 1.
        albedo_in_srgb: the albedo is decoded first.
    """
    light_power = made_power = product = 0.0
    for rows in _strips(rgb):
        light = light_of_pixels(rgb[rows]).astype(np.float64)
        made = _linear(albedo[rows], albedo_in_srgb) * shading[rows].astype(np.float64) + residual[rows]
        light_power += float(np.vdot(light, light))
        made_power += float(np.vdot(made, made))
        product += float(np.vdot(light, made))
    scale = product / made_power if up_to_scale and made_power > 0 else 1.0
    squared = light_power - 2 * scale * product + scale**2 * made_power
    return Fit(scale=scale, error=float(np.sqrt(max(squared, 0.0) / rgb.size)))


def recompose(
    rgb: UInt8[np.ndarray, "h w 3"],
    albedo: Float32[np.ndarray, "h w 3"],
    shading: Float32[np.ndarray, "h w 3"],
    residual: Float32[np.ndarray, "h w 3"],
    *,
    scale: float = 1.0,
    albedo_in_srgb: bool = False,
) -> None:
    """Changes `shading` and `residual` in place so that photo = albedo * shading + residual; the albedo stays.

    Both are multiplied with `scale` first. Then the shading becomes (photo - residual) / albedo, clipped to the range
    that it has in this photo; where the albedo is at most `DARKEST`, it stays. The residual becomes what is left, so
    that the identity holds up to rounding. It keeps its values where nothing was clipped. Elsewhere it may be negative:
    there the photo is darker than the albedo and the shading's range allow.
    """
    for values in (shading, residual):
        values *= np.float32(scale)
    low, high = shading.min(), shading.max()
    for rows in _strips(rgb):
        light, reflected = light_of_pixels(rgb[rows]), _linear(albedo[rows], albedo_in_srgb)
        quotient = np.clip((light - residual[rows]) / np.maximum(reflected, DARKEST), low, high)
        shading[rows] = np.where(reflected > DARKEST, quotient, shading[rows])
        residual[rows] = light - reflected * shading[rows]


def _linear(albedo: Float[np.ndarray, "h w 3"], in_srgb: bool) -> Float[np.ndarray, "h w 3"]:
    return decode_srgb(albedo) if in_srgb else albedo


def _strips(rgb: UInt8[np.ndarray, "h w 3"]) -> Iterator[slice]:
    """Rows that are worked on together: copies of a whole photo would be too many."""
    rows = max(1, _STRIP_PIXELS // rgb.shape[1])
    return (slice(top, top + rows) for top in range(0, rgb.shape[0], rows))
