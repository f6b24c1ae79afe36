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

# Depth ratios between neighbours above which they belong to different surfaces.
_CONTOUR_RATIOS = np.linspace(1.05, 1.25, 10)


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


def boundary_f1(
    pred: Float[np.ndarray, "h w"], gt: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"]
) -> float:
    """F1 of occluding contours, [0, 1], blind to a common scale: Depth Pro's score for sharp boundaries.

    A contour runs between two neighbours, in one of four directions, where the farther is more than t times as far as
    the nearer. For each of ten ratios t from 1.05 to 1.25, precision and recall of the predicted contours are averaged
    over the directions and combined; the F1 values are averaged with weights proportional to t. A direction without
    contours has precision (recall) 0, so a map without any scores 0. Only pairs of valid pixels count: on sparse ground
    truth there are few.

    Paper: Bochkovskii et al. 2024 (Depth Pro), §3.2 and its published evaluation.
    """
    _valid_pixels(pred, gt, valid_mask)
    levels = len(_CONTOUR_RATIOS)
    # Number of pairs whose contour is seen up to each ratio, by direction: in both maps, in pred, in gt.
    counts = np.zeros((3, 4, levels))
    for axis in (0, 1):
        first, second = ((slice(None), slice(None, -1)), (slice(None), slice(1, None)))
        if axis == 0:
            first, second = first[::-1], second[::-1]
        pairs = valid_mask[first] & valid_mask[second]
        near = [depth[first][pairs].astype(np.float64) for depth in (pred, gt)]
        far = [depth[second][pairs].astype(np.float64) for depth in (pred, gt)]
        for sign, (over, under) in enumerate(((far, near), (near, far))):
            # Number of ratios that a pair exceeds: its contour is seen at all of them.
            in_pred, in_gt = (np.searchsorted(_CONTOUR_RATIOS, a / b) for a, b in zip(over, under, strict=True))
            for row, exceeded in enumerate((np.minimum(in_pred, in_gt), in_pred, in_gt)):
                found = np.bincount(exceeded, minlength=levels + 1)
                counts[row, 2 * axis + sign] = found[::-1].cumsum()[::-1][1:]
    hits, predicted, true = counts
    precision = (hits / np.maximum(predicted, 1)).mean(axis=0)
    recall = (hits / np.maximum(true, 1)).mean(axis=0)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return float(np.average(f1, weights=_CONTOUR_RATIOS))


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
