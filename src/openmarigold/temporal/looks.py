# SPDX-License-Identifier: Apache-2.0
"""What is kept of a photo to compare it with others: a small gray picture without its brightness, and its colors.

Cuts follow from it: where a clip continues with something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

LOOK_SIDE = 160
"""Longer side of a look [px], at most."""

_BINS = 6  # of each color
_FLAT = 4.0  # gray levels of local deviation that count as noise
_UNIT = 42.0  # gray levels of a look for one local standard deviation
_LIMIT = 3.0  # local standard deviations that a look tells apart
_BLIND = 0.02  # share of textured pixels below which a photo shows nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """A photo, small. One pixel stands for `factor` x `factor` of the photo, at its right and lower edge for fewer."""

    features: UInt8[np.ndarray, "h w"]
    """Gray, less its mean around, by its deviation around: a flash or a fade hardly changes it. 42 levels stand for one
    deviation."""
    textured: Bool[np.ndarray, "h w"]
    """Where there is something to see."""
    histogram: Float32[np.ndarray, " n"]
    """Shares of colors."""
    factor: int

    @property
    def is_blind(self) -> bool:
        """Whether nothing is to be seen, as in a black frame."""
        return float(self.textured.mean()) < _BLIND

    def points(self, values: Float[np.ndarray, "c H W"]) -> Float[np.ndarray, "c h w"]:
        """A map's values at the middle of each pixel of the look, without a mean over edges."""
        rows, columns = (
            np.minimum(np.arange(small) * self.factor + self.factor // 2, full - 1)
            for small, full in zip(self.features.shape, values.shape[1:], strict=True)
        )
        return values[:, rows[:, None], columns]

    def enlarged(self, small: Float32[np.ndarray, "h w"], size: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
        """A picture on the look's pixels at the photo's size, bilinear."""
        height, width = small.shape
        whole = Image.fromarray(small).resize((width * self.factor, height * self.factor), Image.Resampling.BILINEAR)
        return np.asarray(whole)[: size[0], : size[1]]


def look_at(rgb: UInt8[np.ndarray, "H W 3"]) -> Look:
    """The look of a photo, sRGB."""
    factor = max(1, -(-max(rgb.shape[:2]) // LOOK_SIDE))
    small = np.asarray(Image.fromarray(rgb).reduce(factor))
    gray = small.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    radius = max(2, max(gray.shape) // 16)
    mean = box_mean(gray, radius)
    deviation = np.sqrt(np.maximum(box_mean(gray * gray, radius) - mean * mean, 0))
    normalized = np.clip((gray - mean) / (deviation + np.float32(_FLAT)), -_LIMIT, _LIMIT)
    bins = (small.reshape(-1, 3).astype(np.int32) * _BINS) >> 8
    counts = np.bincount((bins[:, 0] * _BINS + bins[:, 1]) * _BINS + bins[:, 2], minlength=_BINS**3)
    return Look(
        features=np.rint(128 + np.float32(_UNIT) * normalized).astype(np.uint8),
        textured=deviation > _FLAT,
        histogram=(counts / counts.sum()).astype(np.float32),
        factor=factor,
    )


def histogram_distance(one: Look, other: Look) -> float:
    """Share of the pixels that have another color: 0 to 1."""
    return float(np.abs(one.histogram - other.histogram).sum()) / 2


def box_mean(picture: Float32[np.ndarray, "h w"], radius: int) -> Float32[np.ndarray, "h w"]:
    """Mean over a square of `2 * radius + 1` pixels; beyond the edge the edge is repeated."""
    side = 2 * radius + 1
    for axis in (0, 1):
        padded = np.pad(picture, [(radius + 1, radius) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        sums = np.cumsum(padded, axis=axis, dtype=np.float64)
        upper = sums[side:] if axis == 0 else sums[:, side:]
        lower = sums[:-side] if axis == 0 else sums[:, :-side]
        picture = ((upper - lower) / side).astype(np.float32)
    return picture


DOUBTFUL = 0.5
"""Share of the textured pixels that are found again below which a cut is looked for."""
POOR_FIT = 0.3
"""Share of inliers, and correlation where a scale is fitted, below which a fit says nothing."""
SAME_SCENE = 0.85
"""Correlation of two maps on the pixels that are found again, below which these were found by chance."""

_LOST = 0.4  # of the textured pixels: few are found again
_GONE = 0.2  # of the textured pixels: nothing is found again
_OTHER_COLORS = 0.3  # share of the pixels that have another color


def cut_in_photos(share: float, distance: float) -> Literal["no", "maybe", "yes"]:
    """Whether a cut lies between two photos; maybe: the maps must tell.

    Args:
        share: of the textured pixels of the later one, those found in the earlier one.
        distance: of their colors, 0 to 1 (`looks.histogram_distance`).
    """
    if share >= DOUBTFUL:
        return "no"
    return "yes" if share < _GONE or (share < _LOST and distance > _OTHER_COLORS) else "maybe"
