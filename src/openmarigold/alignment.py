# SPDX-License-Identifier: Apache-2.0
"""Least-squares fits of scale and shift between a prediction and ground truth.

Paper: §4.1 (evaluation protocol: affine-invariant predictions are aligned to the ground truth before measuring).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.errors import DataError, InvalidValueError

# Spread of a prediction, relative to its magnitude, below which its values differ by rounding only.
_CONSTANT_SPREAD = 1e-10
# Smallest disparity [1/m] that a fit may give: depth is capped at 1000 m.
_MIN_DISPARITY = 1e-3


def fit_scale_shift(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> tuple[float, float]:
    """Scale and shift that minimise Σ (scale·pred + shift − gt)² over the valid pixels, computed in float64.

    A constant prediction cannot tell scale from shift: its scale is 0 and its shift the mean of `gt`.

    Raises:
        DataError: no valid pixel, or ground truth that is not finite on a valid pixel.
        InvalidValueError: a prediction that is not finite on a valid pixel.
    """
    valid_pred = pred[valid_mask].astype(np.float64)
    valid_gt = gt[valid_mask].astype(np.float64)
    if valid_gt.size == 0:
        raise DataError("the ground truth has no valid pixel; leave this image out")
    if not np.isfinite(valid_gt).all():
        raise DataError("the ground truth is not finite on valid pixels; mark them invalid")
    if not np.isfinite(valid_pred).all():
        raise InvalidValueError("the prediction is not finite on valid pixels; it cannot be aligned")
    pred_mean, gt_mean = valid_pred.mean(), valid_gt.mean()
    # Centring first keeps the normal equations well conditioned for maps far from 0.
    centred = valid_pred - pred_mean
    variance = np.mean(centred**2)
    if np.sqrt(variance) <= _CONSTANT_SPREAD * np.abs(valid_pred).max():
        return 0.0, float(gt_mean)
    scale = np.mean(centred * (valid_gt - gt_mean)) / variance
    return float(scale), float(gt_mean - scale * pred_mean)


def align_depth(
    pred: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """The whole prediction as depth in the unit of `gt` [m], fitted in depth; not clipped, so it may be negative.

    Raises:
        DataError, InvalidValueError: see `fit_scale_shift`.
    """
    scale, shift = fit_scale_shift(pred, gt, valid_mask)
    return scale * pred.astype(np.float64) + shift


def align_disparity(
    pred_disparity: Float[np.ndarray, "*shape"], gt: Float[np.ndarray, "*shape"], valid_mask: Bool[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """The whole prediction as depth in the unit of `gt` [m], fitted in disparity (1/depth), at most 1000.

    Raises:
        DataError: ground truth that is not positive on a valid pixel; else see `fit_scale_shift`.
        InvalidValueError: see `fit_scale_shift`.
    """
    if (gt[valid_mask] <= 0).any():
        raise DataError("the ground truth is not positive on valid pixels; mark them invalid")
    gt_disparity = np.zeros(gt.shape)
    gt_disparity[valid_mask] = 1.0 / gt[valid_mask].astype(np.float64)
    return 1.0 / np.maximum(align_depth(pred_disparity, gt_disparity, valid_mask), _MIN_DISPARITY)
