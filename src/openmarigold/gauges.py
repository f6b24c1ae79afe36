# SPDX-License-Identifier: Apache-2.0
"""Scale and shift between two predictions of one scene, such as neighboring frames, or a tile and the whole photo.

Both maps are noisy, so ordinary least squares shrinks the slope a little at each fit, and along a clip the shrinkage
multiplies. The symmetric slope (reduced major axis) treats both alike. Towards exact values, such as ground truth,
least squares stays right (`alignment`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_ROUNDS = 8
_INLIER_DEVIATIONS = 3.0
_NORMAL = 1.4826  # times the median absolute deviation: the standard deviation of normal errors
_FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class GaugeFit:
    """`scale * pred + shift` is about the target, on the inliers."""

    scale: float
    """Below 0 where the maps run against each other; 0 where one of them is constant."""
    shift: float
    spread: float
    """Standard deviation of the inliers' errors, in the unit of the target, robust."""
    correlation: float
    """Between the maps on the inliers, -1 to 1; 0 where one of them is constant."""
    inliers: float
    """Share of the samples within 3 spreads, 0 to 1."""

    def apply(self, values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The values in the gauge of the target, in their own precision."""
        return values * values.dtype.type(self.scale) + values.dtype.type(self.shift)


def fit_gauge(
    pred: Float[np.ndarray, " n"],
    target: Float[np.ndarray, " n"],
    *,
    weights: Float[np.ndarray, " n"] | None = None,
    with_scale: bool = True,
) -> GaugeFit | None:
    """The symmetric, trimmed fit of scale and shift, in float64; None of fewer than two samples that are finite.

    Eight rounds, each of which leaves out what is off by more than three robust standard deviations of the one before.

    Args:
        pred: samples of one map.
        target: the same samples of the other map.
        weights: of the samples, not below 0; None: all the same.
        with_scale: False fits the shift alone (the scale stays 1), as between logarithms of depth up to scale.
    """
    usable = np.isfinite(pred) & np.isfinite(target)
    if weights is not None:
        usable &= weights > 0
    x, y = pred[usable].astype(np.float64), target[usable].astype(np.float64)
    w = np.ones(x.size) if weights is None else weights[usable].astype(np.float64)
    if x.size < _FEWEST:
        return None
    kept = np.ones(x.size, dtype=bool)
    if not with_scale:  # the median is a start that half of the samples cannot move
        kept = _within(y - x, float(np.median(y - x)))[0]
    for _ in range(_ROUNDS):
        scale, shift, correlation = _line(x[kept], y[kept], w[kept], with_scale)
        error = y - (scale * x + shift)
        now, spread = _within(error, 0.0)
        if now.sum() < _FEWEST or (now == kept).all():
            break
        kept = now
    return GaugeFit(
        scale=scale, shift=shift, spread=spread, correlation=correlation, inliers=float(kept.sum() / kept.size)
    )


def _within(error: Float[np.ndarray, " n"], middle: float) -> tuple[np.ndarray, float]:
    """Which errors are within three robust standard deviations, and that deviation."""
    off = np.abs(error - middle)
    spread = _NORMAL * float(np.median(off))
    return off <= max(_INLIER_DEVIATIONS * spread, np.finfo(float).tiny), spread


def _line(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], w: Float[np.ndarray, " n"], with_scale: bool
) -> tuple[float, float, float]:
    """Scale, shift and correlation."""
    mean_x, mean_y = np.average(x, weights=w), np.average(y, weights=w)
    var_x = np.average((x - mean_x) ** 2, weights=w)
    var_y = np.average((y - mean_y) ** 2, weights=w)
    covariance = np.average((x - mean_x) * (y - mean_y), weights=w)
    flat = min(var_x, var_y) <= (1e-12 * max(abs(mean_x), abs(mean_y), 1e-30)) ** 2
    correlation = 0.0 if flat else float(covariance / np.sqrt(var_x * var_y))
    if not with_scale:
        return 1.0, float(mean_y - mean_x), correlation
    scale = 0.0 if flat else float(np.sign(covariance) * np.sqrt(var_y / var_x))
    return scale, float(mean_y - scale * mean_x), correlation
