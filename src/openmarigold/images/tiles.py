# SPDX-License-Identifier: Apache-2.0
"""A large photo in overlapping tiles: their size and places, the weights that blend their maps, and filters for these.

Coordinates are those of the photo: pixel centers at whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from openmarigold.images.photo import rgb_to_planes

OVERLAP = 0.25
"""Minimum share of a tile's side that the next tile covers too."""
EMPTY_SHARE = 0.2
"""Share of the photo's pixels that may have no edge within reach of their tile (Boosting: R20)."""

_WEIGHT_STEPS = 4096  # weights are multiples of 1 / 4096: products of two and their sums are exact in float32
_THUMBNAIL_PIXELS = 512 * 384
_EDGE_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Where the tiles of a photo lie: on a grid of rows and columns, all of one size."""

    photo: tuple[int, int]
    """Height and width."""
    tile: tuple[int, int]
    tops: tuple[int, ...]
    """First rows, increasing."""
    lefts: tuple[int, ...]

    @property
    def number(self) -> int:
        return len(self.tops) * len(self.lefts)

    def boxes(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the tiles, one row of tiles after the other."""
        height, width = self.tile
        return ((slice(top, top + height), slice(left, left + width)) for top in self.tops for left in self.lefts)


def plan_tiles(photo: tuple[int, int], tile: tuple[int, int], *, step: int = 8, overlap: float = OVERLAP) -> TilePlan:
    """The fewest tiles that cover a photo (height, width) with at least this overlap, evenly spread.

    Starts are multiples of `step` [px], except for the last row and column, which end at the photo's edge.
    """
    tile = min(tile[0], photo[0]), min(tile[1], photo[1])
    tops, lefts = (_starts(*sides, step, overlap) for sides in zip(photo, tile, strict=True))
    return TilePlan(photo=photo, tile=tile, tops=tops, lefts=lefts)


def _starts(length: int, tile: int, step: int, overlap: float) -> tuple[int, ...]:
    last = length - tile
    if last <= 0:
        return (0,)
    stride = max(1, int(tile * (1 - overlap)))
    if stride >= step:
        stride -= stride % step
    else:
        step = 1
    count = 1 + -(-last // stride)
    return (*(round(last * number / (count - 1)) // step * step for number in range(count - 1)), last)


def axis_weights(starts: Sequence[int], tile: int, at: Float64[np.ndarray, " n"]) -> Float32[np.ndarray, "t n"]:
    """Weight of each tile of an axis at some coordinates: raised cosines over the overlaps, with a sum of exactly 1.

    Weights are multiples of 2^-12, so that the products of two axes also sum to 1 in float32.
    """
    windows = np.ones((len(starts), len(at)))
    edges = [(start - 0.5, start + tile - 0.5) for start in starts]
    for number, (begin, end) in enumerate(edges):
        if number > 0:
            windows[number] *= _rise((at - begin) / (edges[number - 1][1] - begin))
        if number + 1 < len(edges):
            windows[number] *= _rise((end - at) / (end - edges[number + 1][0]))
    sums = np.cumsum(windows, axis=0)
    steps = np.rint(sums / sums[-1] * _WEIGHT_STEPS)
    return (np.diff(steps, axis=0, prepend=0) / _WEIGHT_STEPS).astype(np.float32)


def _rise(share: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(share, 0.0, 1.0))


def lowpass(stack: Float[np.ndarray, "c h w"], sigma: float) -> Float32[np.ndarray, "c h w"]:
    """The stack, smoothed by a Gaussian of standard deviation `sigma` [px]; at borders only pixels inside count."""
    rows, columns = (_gaussian(length, sigma) for length in stack.shape[1:])
    return (rows @ stack.astype(np.float64) @ columns.T).astype(np.float32)


def _gaussian(length: int, sigma: float) -> Float64[np.ndarray, "n n"]:
    places = np.arange(length)
    kernel = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
    return kernel / kernel.sum(axis=1, keepdims=True)


def interpolate(
    stack: Float32[np.ndarray, "c h w"], rows: Float64[np.ndarray, " m"], columns: Float64[np.ndarray, " n"]
) -> Float32[np.ndarray, "c m n"]:
    """Values between the pixels of a stack, bilinear; outside, the values at the border."""
    down, below, low = _neighbors(stack.shape[1], rows)
    right, beside, far = _neighbors(stack.shape[2], columns)
    lines = stack[:, down] + (stack[:, below] - stack[:, down]) * low[:, None]
    first = lines[:, :, right]
    return first + (lines[:, :, beside] - first) * far


def _neighbors(length: int, at: Float64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inside = np.clip(at, 0, length - 1)
    first = inside.astype(np.intp)
    return first, np.minimum(first + 1, length - 1), (inside - first).astype(np.float32)


def smallest_tile(rgb: UInt8[np.ndarray, "h w 3"]) -> int:
    """The side [px] of square tiles that still show context: at most `EMPTY_SHARE` of the pixels see no edge.

    A pixel sees an edge if one lies within half a tile of it. Edges are where the brightness of a thumbnail changes by
    more than 0.4 of its largest change.

    Source: Miangoleh et al. 2021 (Boosting Monocular Depth Estimation), §4: the resolution R20, read the other way
    round: the receptive field is fixed, and the photo is divided.
    """
    height, width = rgb.shape[:2]
    shrink = max(1.0, math.sqrt(height * width / _THUMBNAIL_PIXELS))
    size = max(1, round(height / shrink)), max(1, round(width / shrink))
    edges = _edges(rgb_to_planes(rgb, size).mean(axis=0))
    low, high = 1, max(size)  # half a tile, in pixels of the thumbnail
    while low < high:
        reach = (low + high) // 2
        if 1.0 - _near(edges, reach).mean() <= EMPTY_SHARE:
            high = reach
        else:
            low = reach + 1
    return round(2 * low * shrink)


def _edges(gray: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    down, right = (np.abs(np.diff(gray, axis=axis, append=np.take(gray, [-1], axis=axis))) for axis in (0, 1))
    change = np.maximum(down, right)
    return (change > _EDGE_SHARE * change.max()) if change.max() > 0 else np.zeros(gray.shape, dtype=bool)


def _near(edges: Bool[np.ndarray, "h w"], reach: int) -> Bool[np.ndarray, "h w"]:
    """Where an edge lies within a square of `reach` pixels to each side."""
    sums = np.pad(edges.astype(np.int32).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    tops, bottoms, lefts, rights = (
        bound
        for length in edges.shape
        for bound in (np.maximum(np.arange(length) - reach, 0), np.minimum(np.arange(length) + reach + 1, length))
    )
    counts = sums[bottoms][:, rights] - sums[bottoms][:, lefts] - sums[tops][:, rights] + sums[tops][:, lefts]
    return counts > 0
