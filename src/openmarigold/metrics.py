# SPDX-License-Identifier: Apache-2.0
"""Depth metrics of one image: functions of (pred, gt, valid_mask), both maps in the same unit [m].

The caller aligns predictions and clips them to positive values (`alignment`) first. Values are ratios, not percent. The
caller averages them over images; pixels of several images are never pooled.

Paper: §4.1 (AbsRel and δ1); the other definitions are those of the KITTI and NYU benchmarks (Eigen et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.errors import DataError, InvalidValueError

Map: TypeAlias = Float[np.ndarray, "*shape"]
Mask: TypeAlias = Bool[np.ndarray, "*shape"]

# Depth ratios between neighbors above which they belong to different surfaces.
_CONTOUR_RATIOS = np.linspace(1.05, 1.25, 10)
# Neighbors whose ratio is nearer to 1 than this, or whose inverse ratio is, are certainly below all of them.
_NO_CONTOUR = 0.04
# Depth ratio between neighbors above which `soft_edge_error` sees an edge.
_EDGE_RATIO = 1.1


def abs_rel(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Mean of |pred − gt| / gt, ≥ 0."""
    return _FORMULAS["abs_rel"](_valid_pixels(pred, gt, valid_mask))


def sq_rel(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Mean of (pred − gt)² / gt [m], ≥ 0."""
    return _FORMULAS["sq_rel"](_valid_pixels(pred, gt, valid_mask))


def mae(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Mean of |pred − gt| [m], ≥ 0."""
    return _FORMULAS["mae"](_valid_pixels(pred, gt, valid_mask))


def rmse(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Root of the mean squared difference [m], ≥ 0."""
    return _FORMULAS["rmse"](_valid_pixels(pred, gt, valid_mask))


def rmse_log(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Root of the mean squared difference of natural logarithms, ≥ 0."""
    return _FORMULAS["rmse_log"](_valid_pixels(pred, gt, valid_mask))


def log10(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Mean absolute difference of decimal logarithms, ≥ 0."""
    return _FORMULAS["log10"](_valid_pixels(pred, gt, valid_mask))


def delta(pred: Map, gt: Map, valid_mask: Mask, *, k: int = 1) -> float:
    """Share of pixels, [0, 1], with max(pred / gt, gt / pred) strictly below 1.25^k."""
    return _share_below(_valid_pixels(pred, gt, valid_mask), 1.25**k)


def i_mae(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Mean of |1 / pred − 1 / gt| [1/m], ≥ 0."""
    return _FORMULAS["i_mae"](_valid_pixels(pred, gt, valid_mask))


def i_rmse(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """Root of the mean squared difference of inverse depth [1/m], ≥ 0."""
    return _FORMULAS["i_rmse"](_valid_pixels(pred, gt, valid_mask))


def silog(pred: Map, gt: Map, valid_mask: Mask) -> float:
    """100 × standard deviation of the difference of natural logarithms, ≥ 0: blind to a common scale."""
    return _FORMULAS["silog"](_valid_pixels(pred, gt, valid_mask))


def boundary_f1(
    pred: Float[np.ndarray, "h w"], gt: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"]
) -> float:
    """F1 of occluding contours, [0, 1], blind to a common scale: Depth Pro's score for sharp boundaries.

    A contour runs between two neighbors, in one of four directions, where the farther is more than t times as far as
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
        # Few pairs are a contour in either map; the margin leaves the decision to the exact quotients below.
        ratios = [b / a for a, b in zip(near, far, strict=True)]
        some = np.logical_or.reduce([np.abs(ratio - 1.0) > _NO_CONTOUR for ratio in ratios])
        near, far = ([values[some] for values in maps] for maps in (near, far))
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


def soft_edge_error(
    pred: Float[np.ndarray, "h w"], gt: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"], *, k: int = 3
) -> float:
    """Mean error near depth edges [m], ≥ 0, which forgives edges that are up to k // 2 pixels out of place.

    Two neighbors in a row or column, both valid, hold an edge where the farther is more than 1.1 times as far as the
    nearer in `gt`. The valid pixels in the k x k windows around such pixels count; the error of each is the smallest
    |gt − pred| between its prediction and a valid value of `gt` in its k x k window. Windows end at the borders. A
    blurred edge has depths that no surface has, so nothing near forgives it. 0 where there is no edge.

    Args:
        pred: aligned depth [m].
        gt: measured depth [m].
        valid_mask: pixels that count.
        k: odd edge of the windows [px].

    Raises:
        InvalidValueError: an even `k`; else as `depth_metrics`.

    Paper: Chen et al. 2019 (SEE, of disparity, near edges of disparity); its values are not comparable with these.
    """
    if k < 1 or k % 2 == 0:
        raise InvalidValueError(f"k={k!r} is not accepted; give an odd number, such as 3")
    _valid_pixels(pred, gt, valid_mask)
    near = near_edges(gt, valid_mask, k=k)
    rows, columns = np.nonzero(near)
    if not rows.size:
        return 0.0
    margin = k // 2
    around = np.pad(np.where(valid_mask, gt, np.inf).astype(np.float64), margin, constant_values=np.inf)
    predicted = pred[near].astype(np.float64)
    errors = np.full(predicted.shape, np.inf)
    for down in range(k):
        for right in range(k):
            np.minimum(errors, np.abs(around[rows + down, columns + right] - predicted), out=errors)
    return float(errors.mean())


def near_edges(
    gt: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"], *, k: int = 3
) -> Bool[np.ndarray, "h w"]:
    """Valid pixels in the k x k windows around depth edges, as `soft_edge_error` sees these."""
    return _grown(_at_edges(gt, valid_mask), k) & valid_mask


def _at_edges(gt: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of a pair of neighbors, both valid, of which the farther is beyond `_EDGE_RATIO` times the nearer."""
    found = np.zeros(gt.shape, dtype=bool)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        near, far = np.minimum(gt[first], gt[second]), np.maximum(gt[first], gt[second])
        is_edge = valid_mask[first] & valid_mask[second] & (far > _EDGE_RATIO * near)
        found[first] |= is_edge
        found[second] |= is_edge
    return found


def _grown(mask: Bool[np.ndarray, "h w"], k: int) -> Bool[np.ndarray, "h w"]:
    """Pixels whose k x k window holds one of the mask."""
    for axis in (0, 1):
        padded = np.pad(mask, [(k // 2, k // 2) if one == axis else (0, 0) for one in (0, 1)])
        mask = np.lib.stride_tricks.sliding_window_view(padded, k, axis=axis).max(axis=-1)
    return mask


def seam_energy(values: Float[np.ndarray, "h w"], lines: Sequence[tuple[int, int]], *, distance: int = 8) -> float:
    """How much more a map changes across a seam than next to it, by the map's mean change; of the worst seam.

    About 0 is a map without seams. A map that does not change has 0. The change across a line is the mean of absolute
    differences along it. Above 0 may also be an edge of the scene on the line.

    Args:
        values: the map.
        lines: (axis, place): between rows (axis 0) or columns (axis 1) `place - 1` and `place`. A side that is too near
            to the border does not count.
        distance: to the lines that are compared with [px].

    Raises:
        InvalidValueError: no line, or one that does not lie within the map.
    """
    changes = [np.abs(np.diff(values.astype(np.float64), axis=axis)).mean(axis=1 - axis) for axis in (0, 1)]
    mean = [float(change.mean()) if change.size else 0.0 for change in changes]
    energies = []
    for axis, place in lines:
        if not 1 <= place < values.shape[axis]:
            raise InvalidValueError(
                f"line {place} of axis {axis} does not lie within a map of {list(values.shape)}; give 1 to "
                f"{values.shape[axis] - 1}"
            )
        change = changes[axis]
        sides = [at for at in (place - 1 - distance, place - 1 + distance) if 0 <= at < len(change)]
        around = float(np.mean(change[sides])) if sides else mean[axis]
        energies.append((float(change[place - 1]) - around) / mean[axis] if mean[axis] > 0 else 0.0)
    if not energies:
        raise InvalidValueError("there is no line to measure; give one or more")
    return max(energies)


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


def depth_metrics(pred: Map, gt: Map, valid_mask: Mask) -> dict[str, float]:
    """Every metric of `METRICS` by name.

    Raises:
        DataError: no valid pixel, or ground truth that is not positive and finite on a valid pixel.
        InvalidValueError: a prediction that is not positive and finite on a valid pixel.
    """
    pixels = _valid_pixels(pred, gt, valid_mask)
    deltas = {f"delta{k}": _share_below(pixels, 1.25**k) for k in (1, 2, 3)}
    return {name: deltas[name] if name in deltas else _FORMULAS[name](pixels) for name in METRICS}


def completion_metrics(pred: Map, gt: Map, valid_mask: Mask) -> dict[str, float]:
    """The scores of depth completion by name: mae, rmse, i_mae, i_rmse, abs_rel and delta1. Raises as `depth_metrics`.

    Source: the KITTI depth completion benchmark (Uhrig et al. 2017), which states MAE and RMSE in mm, the others in
    1/km.
    """
    pixels = _valid_pixels(pred, gt, valid_mask)
    formulas = ("mae", "rmse", "i_mae", "i_rmse", "abs_rel")
    return {**{name: _FORMULAS[name](pixels) for name in formulas}, "delta1": _share_below(pixels, 1.25)}


class _Pixels:
    """Valid pixels of both maps in float64, and what several metrics need of them, computed once."""

    def __init__(self, pred: Float64[np.ndarray, " n"], gt: Float64[np.ndarray, " n"]) -> None:
        self.pred, self.gt = pred, gt

    @cached_property
    def error(self) -> Float64[np.ndarray, " n"]:
        return self.pred - self.gt

    @cached_property
    def ratio(self) -> Float64[np.ndarray, " n"]:
        """The larger over the smaller of the two, ≥ 1."""
        return np.maximum(self.pred / self.gt, self.gt / self.pred)

    @cached_property
    def log_error(self) -> Float64[np.ndarray, " n"]:
        return np.log(self.pred / self.gt)


_FORMULAS: MappingProxyType[str, Callable[[_Pixels], float]] = MappingProxyType(
    {
        "abs_rel": lambda x: float(np.mean(np.abs(x.error) / x.gt)),
        "sq_rel": lambda x: float(np.mean(x.error**2 / x.gt)),
        "mae": lambda x: float(np.mean(np.abs(x.error))),
        "rmse": lambda x: float(np.sqrt(np.mean(x.error**2))),
        "rmse_log": lambda x: float(np.sqrt(np.mean(x.log_error**2))),
        "log10": lambda x: float(np.mean(np.abs(x.log_error)) / np.log(10.0)),
        "i_mae": lambda x: float(np.mean(np.abs(1.0 / x.pred - 1.0 / x.gt))),
        "i_rmse": lambda x: float(np.sqrt(np.mean((1.0 / x.pred - 1.0 / x.gt) ** 2))),
        "silog": lambda x: float(100.0 * np.std(x.log_error)),
    }
)


def _share_below(pixels: _Pixels, limit: float) -> float:
    return float(np.mean(pixels.ratio < limit))


def _valid_pixels(pred: Map, gt: Map, valid_mask: Mask) -> _Pixels:
    """Valid pixels of both maps, all positive and finite.

    A negative prediction must not pass: its ratios are below any threshold, so `delta` would count it as correct.
    """
    valid_mask = valid_mask.astype(bool, copy=False)  # 0 and 1 of another type would choose pixels by number
    p, d = pred[valid_mask].astype(np.float64), gt[valid_mask].astype(np.float64)
    if d.size == 0:
        raise DataError("the ground truth has no valid pixel; leave this image out")
    if not (d.min() > 0 and d.max() < np.inf):  # also false for NaN
        raise DataError("the ground truth is not positive and finite on valid pixels; mark them invalid")
    if not (p.min() > 0 and p.max() < np.inf):
        raise InvalidValueError(
            "the prediction is not positive and finite on valid pixels; align it and clip it to at least 0.001 first"
        )
    return _Pixels(p, d)
