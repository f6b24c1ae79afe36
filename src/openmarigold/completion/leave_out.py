# SPDX-License-Identifier: Apache-2.0
"""Errors without ground truth: points that a method did not see, fold by fold.

They estimate the mean absolute error [m] of the map made from all points, over the part of the picture that the points
represent: the whole picture if they are spread evenly. The estimate is only as good as the points.

A point that is far from its prediction is either wrong, or it shows an error of the map: a misplaced edge, a missed
object. Dropping all such points would make a map look better than it is, since most of its error is there. Support
decides: a real depth usually occurs at another point nearby, or in the map a few pixels away, behind an edge; a wrong
depth stands alone. So a point counts as contradicting the others if its residual is beyond `_OUTLIER` robust sigmas,
none of its `_NEIGHBORS` nearest points has nearly its depth, and the map does not reach its depth within `_REACH` of
the picture's longer side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float64

from openmarigold.completion.evidence import LeftOutErrors, SparsePoints
from openmarigold.seeding import generator_for

FOLDS = 10
_MOST_LEFT_OUT = 2000
_OUTLIER = 3.5
_NEIGHBORS = 8
_SUPPORT = 0.03  # relative difference of depth between a point and one that supports it
_REACH = (0.006, 0.012, 0.024)  # of the picture's longer side: radii around a point, at which the map is sampled
_DIRECTIONS = 8
_FEWEST = 3
_CHUNK = 1 << 22


class Answers(Protocol):
    """Anything that gives depth [m] at pixels (x, y)."""

    def at(self, pixels: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Depth [m]."""
        ...


def pixel_indices(pixels: Float64[np.ndarray, "n 2"], size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels nearest to places (x, y); a mean of two surfaces would be on neither."""
    columns = np.clip(np.rint(pixels[:, 0]).astype(np.int64), 0, size[1] - 1)
    rows = np.clip(np.rint(pixels[:, 1]).astype(np.int64), 0, size[0] - 1)
    return rows, columns


def left_out_errors(
    run: Callable[[SparsePoints], Answers],
    points: SparsePoints,
    size: tuple[int, int],
    *,
    min_points: int = 1,
    folds: int = FOLDS,
) -> LeftOutErrors | None:
    """Errors of a method at points that it did not see; None if too few points remain.

    Args:
        run: the method.
        points: all points.
        size: height and width of the picture.
        min_points: how many `run` needs.
        folds: number of parts in which points are left out; fewer points than twice this are left out one by one.
    """
    count = len(points)
    folds = count if count < 2 * folds else folds
    if count < _FEWEST or count - -(-count // folds) < min_points:
        return None
    left = generator_for(0, "completion-folds", count).permutation(count)[:_MOST_LEFT_OUT]
    predicted = np.empty(len(left))
    around = _circles(points.pixels[left], size)
    nearest, farthest = np.empty(len(left)), np.empty(len(left))
    for fold in range(folds):
        out = left[fold::folds]
        seen = np.ones(count, dtype=bool)
        seen[out] = False
        rest = replace(points, pixels=points.pixels[seen], depth=points.depth[seen])
        answers = run(rest)
        predicted[fold::folds] = answers.at(points.pixels[out])
        near = answers.at(around[fold::folds].reshape(-1, 2)).reshape(len(out), around.shape[1])
        nearest[fold::folds], farthest[fold::folds] = near.min(axis=1, initial=np.inf), near.max(axis=1, initial=0.0)
    measured = points.depth[left]
    nearest, farthest = np.minimum(nearest, predicted), np.maximum(farthest, predicted)
    reached = (measured >= nearest * (1 - _SUPPORT)) & (measured <= farthest * (1 + _SUPPORT))
    return _summary(measured, predicted, ~reached & is_alone(points, left))


def _circles(pixels: Float64[np.ndarray, "n 2"], size: tuple[int, int]) -> Float64[np.ndarray, "n k 2"]:
    """Places on circles around pixels, within the picture."""
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    offsets = np.concatenate([radius * max(size) * directions for radius in _REACH])
    return np.clip(pixels[:, None] + offsets, 0.0, np.array([size[1] - 1.0, size[0] - 1.0]))


def is_alone(points: SparsePoints, which: np.ndarray) -> Bool[np.ndarray, " m"]:
    """For each of the points `which`, whether none of its nearest points has nearly its depth."""
    count = min(_NEIGHBORS, len(points) - 1)
    alone = np.ones(len(which), dtype=bool)
    step = max(1, _CHUNK // len(points))
    for start in range(0, len(which), step):
        some = which[start : start + step]
        square = np.square(points.pixels[some, None] - points.pixels[None]).sum(axis=-1)
        square[np.arange(len(some)), some] = np.inf
        near = np.argpartition(square, count - 1, axis=1)[:, :count]
        apart = np.abs(np.log(points.depth[near] / points.depth[some, None]))
        alone[start : start + step] = apart.min(axis=1) > _SUPPORT
    return alone


def _summary(
    measured: Float64[np.ndarray, " m"], predicted: Float64[np.ndarray, " m"], unsupported: Bool[np.ndarray, " m"]
) -> LeftOutErrors:
    """The errors, without those of points that contradict the others."""
    residual = np.abs(np.log(measured / predicted))
    sigma = 1.4826 * float(np.median(residual))
    errors = np.abs(measured - predicted)
    outliers = (residual > max(_OUTLIER * sigma, _SUPPORT)) & unsupported
    inner = ~outliers
    return LeftOutErrors(
        median_m=float(np.median(errors[inner])),
        mean_m=float(errors[inner].mean()),
        relative_90=float(np.quantile(errors[inner] / measured[inner], 0.9)),
        num_points=len(measured),
        num_outliers=int(outliers.sum()),
    )
