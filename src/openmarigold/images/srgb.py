# SPDX-License-Identifier: Apache-2.0
"""Values in sRGB and linear light. Source: IEC 61966-2-1."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Float32, UInt8


def encode_srgb(light: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Values in sRGB, [0, 1], of linear light [0, 1].

    >>> round(float(encode_srgb(np.array(0.18))), 3)
    0.461
    """
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)


def decode_srgb(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Linear light, [0, 1], of values in sRGB [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, np.power((values + 0.055) / 1.055, 2.4))


def light_of_pixels(rgb: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Linear light, [0, 1], of the pixels of a photo in sRGB."""
    return _light_of_levels()[rgb]


@cache
def _light_of_levels() -> Float32[np.ndarray, " levels"]:
    return decode_srgb(np.arange(256) / 255).astype(np.float32)
