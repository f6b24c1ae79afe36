# SPDX-License-Identifier: Apache-2.0
"""Depth metrics of one image: functions of (pred, gt, valid_mask), both maps in the same unit [m].

Predictions are aligned and clipped to positive values before (`alignment`). Values are ratios, not percent, and are
averaged over images by the caller, not pooled over pixels.

Paper: §4.1 (AbsRel and δ1); the other definitions are those of the KITTI and NYU benchmarks (Eigen et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.errors import DataError, InvalidValueError


def abs_rel(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Mean of |pred − gt| / gt, ≥ 0."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(np.mean(np.abs(p - d) / d))


def sq_rel(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Mean of (pred − gt)² / gt [m], ≥ 0."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(np.mean((p - d) ** 2 / d))


def rmse(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Root of the mean squared difference [m], ≥ 0."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(np.sqrt(np.mean((p - d) ** 2)))


def rmse_log(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Root of the mean squared difference of natural logarithms, ≥ 0."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(np.sqrt(np.mean((np.log(p) - np.log(d)) ** 2)))


def log10(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Mean absolute difference of decimal logarithms, ≥ 0."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(np.mean(np.abs(np.log10(p) - np.log10(d))))


def delta(
    pred: Float[np.ndarray, "*shape"],
    gt: Float[np.ndarray, "*shape"],
    valid_mask: Bool[np.ndarray, "*shape"],
    *,
    k: int = 1,
) -> float:
    """Share of pixels, [0, 1], with max(pred / gt, gt / pred) strictly below 1.25^k."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(np.mean(np.maximum(p / d, d / p) < 1.25**k))


def i_rmse(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Root of the mean squared difference of inverse depth [1/m], ≥ 0."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(np.sqrt(np.mean((1.0 / p - 1.0 / d) ** 2)))


def silog(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> float:
    """100 × standard deviation of the difference of natural logarithms, ≥ 0: blind to a common scale."""
    p, d = _valid_pixels(pred, gt, valid_mask)
    return float(100.0 * np.std(np.log(p) - np.log(d)))


METRICS: MappingProxyType[str, Callable[..., float]] = MappingProxyType(
    {
        "abs_rel": abs_rel,
        "sq_rel": sq_rel,
        "rmse": rmse,
        "rmse_log": rmse_log,
        "log10": log10,
        "delta1": partial(delta, k=1),
        "delta2": partial(delta, k=2),
        "delta3": partial(delta, k=3),
        "i_rmse": i_rmse,
        "silog": silog,
    }
)


def depth_metrics(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> dict[str, float]:
    """Every metric of `METRICS` by name.

    Raises:
        DataError: no valid pixel, or ground truth that is not positive and finite on a valid pixel.
        InvalidValueError: a prediction that is not positive and finite on a valid pixel.
    """
    p, d = _valid_pixels(pred, gt, valid_mask)
    everywhere = np.ones(p.shape, dtype=bool)
    return {name: metric(p, d, everywhere) for name, metric in METRICS.items()}


def _valid_pixels(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Valid pixels of both maps in float64, all positive and finite.

    A negative prediction must not pass: its ratios are below any threshold, so `delta` would count it as correct.
    """
    p, d = pred[valid_mask].astype(np.float64), gt[valid_mask].astype(np.float64)
    if d.size == 0:
        raise DataError("the ground truth has no valid pixel; leave this image out")
    if not (d.min() > 0 and d.max() < np.inf):  # also false for NaN
        raise DataError("the ground truth is not positive and finite on valid pixels; mark them invalid")
    if not (p.min() > 0 and p.max() < np.inf):
        raise InvalidValueError(
            "the prediction is not positive and finite on valid pixels; align it and clip it to at least 0.001 first"
        )
    return p, d
