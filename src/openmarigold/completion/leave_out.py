# SPDX-License-Identifier: Apache-2.0
"""Errors without ground truth: points that a method did not see, fold by fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
from jaxtyping import Float64

from openmarigold.completion.evidence import LeftOutErrors, SparsePoints
from openmarigold.seeding import generator_for

FOLDS = 10
_OUTLIER = 3.5
_FEWEST = 3


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
    order = generator_for(0, "completion-folds", count).permutation(count)
    fold_of = np.empty(count, dtype=np.int64)
    fold_of[order] = np.arange(count) % folds
    predicted = np.empty(count)
    for fold in range(folds):
        out = fold_of == fold
        seen = replace(points, pixels=points.pixels[~out], depth=points.depth[~out])
        predicted[out] = run(seen).at(points.pixels[out])
    return _summary(points.depth, predicted)


def _summary(measured: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " n"]) -> LeftOutErrors:
    residual = np.abs(np.log(measured / predicted))
    sigma = max(1.4826 * float(np.median(residual)), 1e-9)
    outliers = residual > _OUTLIER * sigma
    errors = np.abs(measured - predicted)
    inner = ~outliers
    return LeftOutErrors(
        median_m=float(np.median(errors[inner])),
        mean_m=float(errors[inner].mean()),
        relative_90=float(np.quantile(errors[inner] / measured[inner], 0.9)),
        num_points=len(measured),
        num_outliers=int(outliers.sum()),
    )
