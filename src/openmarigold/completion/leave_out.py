# SPDX-License-Identifier: Apache-2.0
"""Errors without ground truth: points that a method did not see, fold by fold.

What is estimated is the mean absolute error [m] of the map that all points give, over the part of the picture that the
points stand for: the whole of it where they lie evenly, as far as the points themselves are right.

A point that is far from its prediction is either wrong, or it shows what the map gets wrong: an edge that is blurred, a
thing that the model misses. Dropping all such points makes a map look better than it is, since most of its error lies
there. What decides is support. A real depth is usually measured at another point near by too; a wrong one is alone. So
a point counts as one that contradicts the others if its residual is beyond `_OUTLIER` robust sigmas and none of its
`_NEIGHBORS` nearest points has nearly its depth. Of clean points about `_ALONE` are alone, too; so that share counts
as errors of the map in any case. Leaving out a part makes the points sparser than they are; `_DENSITY` corrects that.
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
_SUPPORT = 0.05  # relative difference of depth between a point and one that supports it
_ALONE = 0.02
_DENSITY = 0.35  # errors fall about with this power of the number of points
_FEWEST = 3
_CHUNK = 1 << 22


class Answers(Protocol):
    """What gives depth [m] at pixels (x, y)."""

    def at(self, pixels: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Depth [m]."""
        ...


def pixel_indices(pixels: Float64[np.ndarray, "n 2"], size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels nearest to places (x, y): between two surfaces, a mean of both is neither."""
    columns = np.clip(np.rint(pixels[:, 0]).astype(np.int64), 0, size[1] - 1)
    rows = np.clip(np.rint(pixels[:, 1]).astype(np.int64), 0, size[0] - 1)
    return rows, columns


def left_out_errors(
    run: Callable[[SparsePoints], Answers], points: SparsePoints, *, min_points: int = 1, folds: int = FOLDS
) -> LeftOutErrors | None:
    """Errors of a method at points that it did not see; None where too few points remain.

    Args:
        run: the method.
        points: all points.
        min_points: how many `run` needs.
        folds: in how many parts the points are left out; fewer points than twice that are left out one by one.
    """
    count = len(points)
    folds = count if count < 2 * folds else folds
    if count < _FEWEST or count - -(-count // folds) < min_points:
        return None
    left = generator_for(0, "completion-folds", count).permutation(count)[:_MOST_LEFT_OUT]
    predicted = np.empty(len(left))
    for fold in range(folds):
        out = left[fold::folds]
        seen = np.ones(count, dtype=bool)
        seen[out] = False
        rest = replace(points, pixels=points.pixels[seen], depth=points.depth[seen])
        predicted[fold::folds] = run(rest).at(points.pixels[out])
    measured = points.depth[left]
    share = len(left) / folds / count
    return _summary(measured, predicted, is_alone(points, left), (1.0 - share) ** _DENSITY)


def is_alone(points: SparsePoints, which: np.ndarray) -> Bool[np.ndarray, " m"]:
    """Whether none of the nearest points has nearly the depth of each of the points `which`."""
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
    measured: Float64[np.ndarray, " m"],
    predicted: Float64[np.ndarray, " m"],
    alone: Bool[np.ndarray, " m"],
    factor: float,
) -> LeftOutErrors:
    """The errors, without those of points that contradict the others; `factor` corrects them for the density."""
    residual = np.abs(np.log(measured / predicted))
    sigma = 1.4826 * float(np.median(residual))
    errors = np.abs(measured - predicted)
    suspects = np.flatnonzero((residual > max(_OUTLIER * sigma, _SUPPORT)) & alone)
    suspects = suspects[np.argsort(residual[suspects], kind="stable")]
    outliers = suspects[max(1, round(_ALONE * len(measured))) :]
    inner = np.ones(len(measured), dtype=bool)
    inner[outliers] = False
    return LeftOutErrors(
        median_m=factor * float(np.median(errors[inner])),
        mean_m=factor * float(errors[inner].mean()),
        relative_90=factor * float(np.quantile(errors[inner] / measured[inner], 0.9)),
        num_points=len(measured),
        num_outliers=len(outliers),
    )
