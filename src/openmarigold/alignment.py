# SPDX-License-Identifier: Apache-2.0
"""Fits of scale and shift between a prediction and ground truth: least squares, and RANSAC in logarithms.

Paper: §4.1 (evaluation protocol: affine-invariant predictions are aligned to the ground truth before measuring).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.errors import DataError, InvalidValueError
from openmarigold.seeding import generator_for

Map: TypeAlias = Float[np.ndarray, "*shape"]
Mask: TypeAlias = Bool[np.ndarray, "*shape"]

# Spread of a prediction, relative to its magnitude, below which its values differ by rounding only.
_CONSTANT_SPREAD = 1e-10
# Smallest disparity [1/m] that a fit may give: depth is capped at 1000 m.
MIN_DISPARITY = 1e-3
# Trials of `fit_log_ransac`, at most, and the probability of one without outliers after which it stops.
_MAX_TRIALS = 1000
_ENOUGH = 0.99


def fit_scale_shift(pred: Map, gt: Map, valid_mask: Mask) -> tuple[float, float]:
    """Scale and shift that minimize Σ (scale·pred + shift − gt)² over the valid pixels, computed in float64.

    A constant prediction cannot tell scale from shift: its scale is 0 and its shift the mean of `gt`.

    Raises:
        DataError: no valid pixel, or ground truth that is not finite on a valid pixel.
        InvalidValueError: a prediction that is not finite on a valid pixel.
    """
    valid_pred, valid_gt = _valid_pixels(pred, gt, valid_mask)
    pred_mean, gt_mean = valid_pred.mean(), valid_gt.mean()
    # Centering first keeps the normal equations well conditioned for maps far from 0.
    centered = valid_pred - pred_mean
    variance = np.mean(centered**2)
    if np.sqrt(variance) <= _CONSTANT_SPREAD * np.abs(valid_pred).max():
        return 0.0, float(gt_mean)
    scale = np.mean(centered * (valid_gt - gt_mean)) / variance
    return float(scale), float(gt_mean - scale * pred_mean)


def align_depth(pred: Map, gt: Map, valid_mask: Mask) -> Float64[np.ndarray, "*shape"]:
    """The whole prediction as depth in the unit of `gt` [m], fitted in depth; not clipped, so it may be negative.

    Raises what `fit_scale_shift` raises.
    """
    scale, shift = fit_scale_shift(pred, gt, valid_mask)
    return scale * pred.astype(np.float64) + shift


def align_disparity(pred_disparity: Map, gt: Map, valid_mask: Mask) -> Float64[np.ndarray, "*shape"]:
    """The whole prediction as depth in the unit of `gt` [m], fitted in disparity (1/depth), at most 1000.

    Raises:
        DataError: ground truth that is not positive on a valid pixel; else see `fit_scale_shift`.
        InvalidValueError: see `fit_scale_shift`.
    """
    scale, shift = fit_disparity(pred_disparity, gt, valid_mask)
    return 1.0 / np.maximum(scale * pred_disparity.astype(np.float64) + shift, MIN_DISPARITY)


def fit_disparity(pred_disparity: Map, gt: Map, valid_mask: Mask) -> tuple[float, float]:
    """Scale and shift that minimize Σ (scale·pred + shift − 1/gt)² over the valid pixels.

    Raises what `align_disparity` raises.
    """
    valid_mask = valid_mask.astype(bool, copy=False)  # 0 and 1 of another type would choose pixels by number
    if (gt[valid_mask] <= 0).any():
        raise DataError("the ground truth is not positive on valid pixels; mark them invalid")
    if not np.isfinite(gt[valid_mask]).all():
        raise DataError("the ground truth is not finite on valid pixels; mark them invalid")
    gt_disparity = np.zeros(gt.shape)
    gt_disparity[valid_mask] = 1.0 / gt[valid_mask].astype(np.float64)
    return fit_scale_shift(pred_disparity, gt_disparity, valid_mask)


def fit_scale(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """The factor that minimizes Σ (scale·pred − gt)² over the valid pixels; 0 for a prediction of zeros.

    Raises what `fit_scale_shift` raises.
    """
    valid_pred, valid_gt = _valid_pixels(pred, gt, valid_mask)
    power = np.mean(valid_pred**2)
    return float(np.mean(valid_pred * valid_gt) / power) if power > 0 else 0.0


def fit_scale_median(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """The median of gt / pred over the valid pixels whose prediction is above 0; 0 where none is.

    Raises what `fit_scale_shift` raises.
    """
    valid_pred, valid_gt = _valid_pixels(pred, gt, valid_mask)
    positive = valid_pred > 0
    return float(np.median(valid_gt[positive] / valid_pred[positive])) if positive.any() else 0.0


def at_least_smallest_positive(pred: Map, valid_mask: Mask) -> Float64[np.ndarray, "*shape"]:
    """The prediction in float64, what is not above 0 replaced by its smallest positive value on a valid pixel.

    Without a positive value on a valid pixel it is 1 there, a constant.
    """
    positive = pred[valid_mask.astype(bool, copy=False) & (pred > 0)]
    floor = float(positive.min()) if positive.size else 1.0
    return np.maximum(pred.astype(np.float64), floor)  # keeps NaN


def fit_log(pred: Map, gt: Map, valid_mask: Mask) -> tuple[Float64[np.ndarray, "*shape"], float]:
    """The whole prediction as depth in the unit of `gt` [m], fitted in log depth, and the fitted scale.

    Scale and shift minimize Σ (scale·log(pred) + shift − log(gt))² over the valid pixels; depth is
    exp(shift)·pred^scale. A prediction that is not above 0 counts as the smallest positive one. Not clipped.

    Raises:
        DataError: ground truth that is not positive on a valid pixel; else see `fit_scale_shift`.
        InvalidValueError: see `fit_scale_shift`.
    """
    valid_mask = valid_mask.astype(bool, copy=False)
    _, valid_gt = _valid_pixels(pred, gt, valid_mask)
    if valid_gt.min() <= 0:
        raise DataError("the ground truth is not positive on valid pixels; mark them invalid")
    log_pred = np.log(at_least_smallest_positive(pred, valid_mask))
    log_gt = np.zeros(gt.shape)
    log_gt[valid_mask] = np.log(valid_gt)
    scale, shift = fit_scale_shift(log_pred, log_gt, valid_mask)
    return np.exp(scale * log_pred + shift), scale


def fit_log_ransac(
    pred: Map, gt: Map, valid_mask: Mask, *, seed: int = 0
) -> tuple[Float64[np.ndarray, "*shape"], float]:
    """The whole prediction as depth, fitted by RANSAC to log(1 + gt), and the slope of the line that was fitted.

    Depth is clipped to the largest valid `gt`.

    **It leaks ground truth**: pixels that disagree are left out of the fit, and nothing can be farther than the
    image's own farthest measurement. Its scores must not be shown next to those of another protocol; for the same maps
    AbsRel on DIODE falls from 31 to 10 % by the protocol alone.

    A trial fits a line through two pixels, drawn by `seed`. Its inliers are the pixels that lie nearer to the line
    than the median absolute deviation of the targets. The trial with the most inliers (then the least squared
    residual) is fitted again to its inliers by least squares. A line that does not rise cannot give depth: then the
    prediction is scaled to the mean of log(1 + gt), as in the published procedure.

    Protocol of Pixel-Perfect Depth and Marigold V2, whose own draws depend on a global seed.

    Raises:
        DataError: ground truth that is not above -1 on a valid pixel; else see `fit_scale_shift`.
        InvalidValueError: see `fit_scale_shift`.
    """
    x, valid_gt = _valid_pixels(pred, gt, valid_mask)
    if valid_gt.min() <= -1:
        raise DataError("the ground truth is not positive on valid pixels; mark them invalid")
    y = np.log1p(valid_gt)
    scale, shift = _ransac_line(x, y, generator_for(seed, "log-ransac"))
    if scale > 0:
        aligned = scale * pred.astype(np.float64) + shift
    else:
        mean = x.mean()
        aligned = pred.astype(np.float64) * (y.mean() / mean if mean != 0 else 0.0)
    # Beyond the clip an exponential may overflow; the clip in logarithms is the same.
    return np.expm1(np.minimum(aligned, y.max())), scale


def _ransac_line(
    x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], rng: np.random.Generator
) -> tuple[float, float]:
    """Slope and intercept of the line with the most inliers."""
    tolerance = np.median(np.abs(y - np.median(y)))
    best, best_inliers = (-1, -np.inf), np.ones(x.size, dtype=bool)
    trials, needed = 0, float(_MAX_TRIALS)
    while trials < min(needed, _MAX_TRIALS) and x.size > 1:
        trials += 1
        a = int(rng.integers(x.size))
        b = (a + 1 + int(rng.integers(x.size - 1))) % x.size
        if x[a] == x[b]:
            continue
        slope = (y[b] - y[a]) / (x[b] - x[a])
        residual = np.abs(y - (y[a] + slope * (x - x[a])))
        inliers = residual <= tolerance
        count = int(np.count_nonzero(inliers))
        score = (count, -float(np.sum(residual[inliers] ** 2)))
        if score > best:
            best, best_inliers = score, inliers
            missed = 1.0 - (count / x.size) ** 2
            needed = np.log(1.0 - _ENOUGH) / np.log(missed) if 0 < missed < 1 else 0.0
    return fit_scale_shift(x[best_inliers], y[best_inliers], np.ones(int(best_inliers.sum()), dtype=bool))


def _valid_pixels(pred: Map, gt: Map, valid_mask: Mask) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Valid pixels of both maps in float64, all finite."""
    valid_mask = valid_mask.astype(bool, copy=False)  # 0 and 1 of another type would choose pixels by number
    valid_pred = pred[valid_mask].astype(np.float64)
    valid_gt = gt[valid_mask].astype(np.float64)
    if valid_gt.size == 0:
        raise DataError("the ground truth has no valid pixel; leave this image out")
    if not np.isfinite(valid_gt).all():
        raise DataError("the ground truth is not finite on valid pixels; mark them invalid")
    if not np.isfinite(valid_pred).all():
        raise InvalidValueError("the prediction is not finite on valid pixels; it cannot be aligned")
    return valid_pred, valid_gt
