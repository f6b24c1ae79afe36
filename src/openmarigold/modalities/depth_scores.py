# SPDX-License-Identifier: Apache-2.0
"""Scores of depth: seven protocols and three for drawn edges, two baselines, and the panels of a report page.

Paper: §4.1 (`marigold`). The other protocols are what the field uses; see docs/evaluation.md. Drawn edges:
precision, recall and the area under their curve. Source: Talker et al. 2024 (Mind The Edge) and its published
evaluation; matching as in the Berkeley benchmark of boundaries (Martin et al. 2004), here with as many pairs as there
can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from openmarigold.alignment import (
    MIN_DISPARITY,
    at_least_smallest_positive,
    fit_disparity,
    fit_log,
    fit_log_ransac,
    fit_scale,
    fit_scale_median,
    fit_scale_shift,
)
from openmarigold.errors import DataError, InvalidValueError, needs_extra
from openmarigold.metrics import METRICS, boundary_f1, depth_metrics, soft_edge_error
from openmarigold.modalities.colors import colorize
from openmarigold.modalities.protocol import (
    PIXELS_SCORED,
    Aligned,
    Baseline,
    BenchmarkSample,
    Maps,
    Pooling,
    PredictionSpace,
    Protocol,
    Score,
)
from openmarigold.temporal.flow import opencv

THRESHOLDS = tuple(range(20, 241, 20))
"""Upper thresholds of the edge detector, for depth in 256 steps; the lower ones are half of them."""
TOLERANCE = 0.002
"""Largest distance of two edge pixels that belong together, in diagonals of the picture."""
TALLY_SIZE = 2 * len(THRESHOLDS) + 1

_PRECISIONS = np.arange(100) / 100


def depth_edges(depth: Float[np.ndarray, "h w"], farthest: float, threshold: int) -> Bool[np.ndarray, "h w"]:
    """Canny's edges of depth in 256 steps from 0 to `farthest`; farther depth, and depth that is not a number, counts
    as `farthest`.

    Args:
        depth: depth [m].
        farthest: of the steps [m].
        threshold: the upper one of the edge detector, of gradients over 3 x 3 pixels; the lower one is half of it.

    Raises:
        InvalidValueError: `farthest` is not positive and finite.
        MissingExtraError: without OpenCV (extra `video`).
    """
    if not 0 < farthest < math.inf:
        raise InvalidValueError(f"farthest={farthest!r} is not accepted; give a distance in meters above 0")
    steps = 255.0 / farthest * np.clip(np.nan_to_num(depth, nan=farthest, posinf=farthest), 0.0, farthest)
    return opencv().Canny(steps.astype(np.uint8), threshold / 2, threshold) > 0


def num_matches(predicted: Bool[np.ndarray, "h w"], drawn: Bool[np.ndarray, "h w"]) -> int:
    """The largest number of pairs of a predicted and a drawn pixel that are near enough, each pixel in one at most.

    Raises:
        MissingExtraError: without scipy (extra `metric`).
    """
    with needs_extra("metric"):
        from scipy.sparse.csgraph import maximum_bipartite_matching
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]
    if not (predicted.any() and drawn.any()):
        return 0
    trees = [cKDTree(np.argwhere(mask)) for mask in (predicted, drawn)]
    near = trees[0].sparse_distance_matrix(trees[1], TOLERANCE * math.hypot(*drawn.shape), output_type="coo_matrix")
    near.data[:] = 1.0  # pixels in the same place have a distance of 0, which would be no entry
    return int(np.count_nonzero(maximum_bipartite_matching(near.tocsr(), perm_type="column") >= 0))


def edge_tally(
    depth: Float[np.ndarray, "h w"], drawn: Bool[np.ndarray, "h w"], farthest: float
) -> Float64[np.ndarray, " k"]:
    """Numbers of drawn pixels, and for each of `THRESHOLDS` of matched ones, then of predicted ones.

    Raises:
        InvalidValueError, MissingExtraError: as `depth_edges` and `num_matches`.
    """
    found = [depth_edges(depth, farthest, threshold) for threshold in THRESHOLDS]
    matched = [num_matches(predicted, drawn) for predicted in found]
    return np.array([np.count_nonzero(drawn), *matched, *map(np.count_nonzero, found)], dtype=np.float64)


def edge_scores(tallies: Float64[np.ndarray, "r k"]) -> dict[str, Float64[np.ndarray, " r"]]:
    """`de_auc` of sums of tallies, [0, 1]: the mean of recall at precisions of 0 to 0.99 in steps of 0.01.

    Each threshold with predicted edges gives a precision and a recall; between them recall is interpolated, beyond them
    it is that of the nearest.
    """
    return {"de_auc": np.array([_area(tally) for tally in tallies], dtype=np.float64)}


def _area(tally: Float64[np.ndarray, " k"]) -> float:
    drawn, matched, predicted = tally[0], tally[1 : 1 + len(THRESHOLDS)], tally[1 + len(THRESHOLDS) :]
    some = predicted > 0
    if not some.any() or drawn == 0:
        return 0.0
    precision, recall = matched[some] / predicted[some], matched[some] / drawn
    order = np.argsort(precision, kind="stable")
    return float(np.interp(_PRECISIONS, precision[order], recall[order]).mean())


# Smallest aligned depth [m], even if the benchmark's range is larger.
_SMALLEST_DEPTH = 1e-6
# A page shows relative errors from 0 (black) to this (white).
_FULL_ERROR = 0.5

SPACES: tuple[PredictionSpace, ...] = ("affine_depth", "scale", "metric", "disparity")
"""Depth up to scale and shift; depth up to scale; depth [m]; disparity up to scale and shift."""

HEADLINE_METRICS = ("abs_rel", "delta1")

_SHOWN = {
    "abs_rel": Score(name="abs_rel", label="AbsRel", unit="%"),
    "delta1": Score(name="delta1", label="delta1", unit="%", higher_is_better=True),
    "delta2": Score(name="delta2", higher_is_better=True),
    "delta3": Score(name="delta3", higher_is_better=True),
    "rmse": Score(name="rmse", label="RMSE", unit="m", digits=3),
    "silog": Score(name="silog", label="SILog"),
}
_NEGATIVE_SCALE = Score(name="negative_scale", flag="the fitted scale is negative: near and far are exchanged")
SCORES = (
    *(_SHOWN.get(name, Score(name=name)) for name in METRICS),
    Score(name="boundary_f1", label="boundary F1", unit="%", higher_is_better=True),
    Score(name="soft_edge_error", label="soft edge error", unit="m", digits=3, table_digits=3),
    PIXELS_SCORED,
    _NEGATIVE_SCALE,
)
_EDGE_SCORES = (Score(name="de_auc", label="DE-AUC", unit="%", higher_is_better=True), PIXELS_SCORED, _NEGATIVE_SCALE)
MARKS = ("edges",)

_Fit: TypeAlias = tuple[Float64[np.ndarray, "h w"], float]
"""Depth [m] and the fitted scale."""


def _fit_affine(pred: Float[np.ndarray, "h w"], sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]) -> _Fit:
    chosen = _fit_columns(sample)
    # A subset of the columns may hold no valid pixel; then all are used.
    if not usable[:, chosen].any():
        chosen = slice(None)
    scale, shift = fit_scale_shift(pred[:, chosen], sample.maps["depth"][:, chosen], usable[:, chosen])
    return scale * pred.astype(np.float64) + shift, scale


def _fit_disparity(pred: Float[np.ndarray, "h w"], sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]) -> _Fit:
    scale, shift = fit_disparity(pred, sample.maps["depth"], usable)
    return 1.0 / np.maximum(scale * pred.astype(np.float64) + shift, MIN_DISPARITY), scale


def _scaled_by(find: Callable[[np.ndarray, np.ndarray, np.ndarray], float]) -> Callable[..., _Fit]:
    """The fit of a scale alone, which `find` gives."""

    def fit(pred: Float[np.ndarray, "h w"], sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]) -> _Fit:
        scale = find(pred, sample.maps["depth"], usable)
        return scale * pred.astype(np.float64), scale

    return fit


_fit_scale, _fit_median = _scaled_by(fit_scale), _scaled_by(fit_scale_median)


def _fit_nothing(pred: Float[np.ndarray, "h w"], sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]) -> _Fit:
    return pred.astype(np.float64), 1.0


def _as_disparity(maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Maps:
    """The inverse of depth up to scale."""
    return {"depth": 1.0 / at_least_smallest_positive(maps["depth"], usable)}


def _fit_columns(sample: BenchmarkSample) -> slice | np.ndarray:
    """Columns that the fit sees: all, or `max_fit_width` nearest ones where the image is larger.

    The published evaluation of ETH3D means to shrink to 1024 pixels along the longer side, but shrinks the width only.
    """
    height, width = sample.valid_mask.shape
    if sample.max_fit_width is None or max(height, width) <= sample.max_fit_width:
        return slice(None)
    count = max(1, width * sample.max_fit_width // max(height, width))
    return np.arange(count) * width // count


def _score(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> dict[str, float]:
    compared = maps["depth"], sample.maps["depth"], usable
    return {
        **depth_metrics(*compared),
        "boundary_f1": boundary_f1(*compared),
        "soft_edge_error": soft_edge_error(*compared),
    }


def _tally(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, " k"]:
    """The image's part of the scores of drawn edges.

    Raises:
        DataError: it has none.
    """
    drawn = sample.marks.get("edges")
    if drawn is None or not drawn.any():
        raise DataError(f"{sample.name}: no edges are drawn; give edges.png, white on black, next to its depth")
    farthest = sample.max_value if sample.max_value < np.inf else float(sample.maps["depth"][sample.valid_mask].max())
    return edge_tally(maps["depth"], drawn, farthest)


def _score_edges(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> dict[str, float]:
    return {name: float(values[0]) for name, values in edge_scores(_tally(sample, maps, usable)[None]).items()}


_POOLED_EDGES = Pooling(size=TALLY_SIZE, tally=_tally, combine=edge_scores)


def _protocol(
    name: str,
    summary: str,
    accepts: frozenset[PredictionSpace],
    fit: Callable[[np.ndarray, BenchmarkSample, np.ndarray], _Fit],
    *,
    clip_to_range: bool = True,
    convert: Mapping[PredictionSpace, Callable[[Maps, Bool[np.ndarray, "h w"]], Maps]] = MappingProxyType({}),
    edges: bool = False,
) -> Protocol:
    """`clip_to_range=False`: the fit clips by itself, to what it takes from the ground truth. `edges`: drawn edges are
    scored instead of depth.
    """

    def align(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Aligned:
        depth, scale = fit(maps["depth"], sample, usable)
        lowest = max(sample.min_value, _SMALLEST_DEPTH) if clip_to_range else _SMALLEST_DEPTH
        clipped = np.clip(depth, lowest, sample.max_value if clip_to_range else None)
        return Aligned(maps={"depth": clipped}, scores={"negative_scale": float(scale < 0)})

    return Protocol(
        name=name,
        summary=summary,
        accepts=accepts,
        scores=_EDGE_SCORES if edges else SCORES,
        score=_score_edges if edges else _score,
        align=align,
        clips=clip_to_range,
        convert=convert,
        pooled=_POOLED_EDGES if edges else None,
        headline=("de_auc",) if edges else (),
    )


_METRIC: frozenset[PredictionSpace] = frozenset({"metric"})
_UP_TO_SCALE: frozenset[PredictionSpace] = frozenset({"scale", "metric"})
_ANY_DEPTH = _UP_TO_SCALE | {"affine_depth"}
_WITH_DISPARITY = _UP_TO_SCALE | {"disparity"}
_INVERTED = dict.fromkeys(sorted(_UP_TO_SCALE), _as_disparity)
_CLIPPED = "clipped to the benchmark's range"
_ALL = (
    _protocol("marigold", f"scale and shift by least squares in depth, {_CLIPPED}", _ANY_DEPTH, _fit_affine),
    _protocol(
        "disparity",
        f"scale and shift by least squares in disparity, {_CLIPPED}",
        _WITH_DISPARITY,
        _fit_disparity,
        convert=_INVERTED,
    ),
    _protocol(
        "log",
        "scale and shift by least squares in log depth, both ends clipped to the benchmark's range",
        _ANY_DEPTH,
        lambda pred, sample, usable: fit_log(pred, sample.maps["depth"], usable),
    ),
    _protocol(
        "log-ransac",
        "RANSAC against log(1 + depth), clipped to each image's own farthest depth: leaks ground truth",
        _ANY_DEPTH,
        lambda pred, sample, usable: fit_log_ransac(pred, sample.maps["depth"], usable),
        clip_to_range=False,
    ),
    _protocol("scale", f"scale by least squares in depth, {_CLIPPED}", _UP_TO_SCALE, _fit_scale),
    _protocol("scale-median", f"scale by the median of the ratios, {_CLIPPED}", _UP_TO_SCALE, _fit_median),
    _protocol("metric", f"no alignment, {_CLIPPED}", _METRIC, _fit_nothing),
    _protocol(
        "edges", "drawn edges, after scale and shift by least squares in depth", _ANY_DEPTH, _fit_affine, edges=True
    ),
    _protocol(
        "edges-disparity",
        "drawn edges, after scale and shift by least squares in disparity",
        _WITH_DISPARITY,
        _fit_disparity,
        convert=_INVERTED,
        edges=True,
    ),
    _protocol("edges-metric", "drawn edges, without alignment", _METRIC, _fit_nothing, edges=True),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.name: protocol for protocol in _ALL})


def default_protocol(space: PredictionSpace) -> str:
    """Disparity is fitted as disparity, depth as in the paper."""
    return "disparity" if space == "disparity" else "marigold"


def prediction_space(invariance: str) -> PredictionSpace:
    """The invariance of a checkpoint's depth, in the names of the protocols. Absolute depth has no stated unit.

    >>> [prediction_space(invariance) for invariance in ("affine", "scale", "absolute")]
    ['affine_depth', 'scale', 'scale']
    """
    return "affine_depth" if invariance == "affine" else "scale"


def _row_number(rgb: UInt8[np.ndarray, "h w 3"]) -> Maps:
    return {"depth": np.repeat(np.arange(len(rgb), dtype=float)[:, None], rgb.shape[1], axis=1)}


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        # The same depth everywhere: after the alignment, the image's mean depth.
        "constant": Baseline(space="affine_depth", estimate=lambda rgb: {"depth": np.ones(rgb.shape[:2])}),
        # Disparity grows with the row, as on a floor: knows where the bottom of a photo is, nothing else.
        "image row": Baseline(space="disparity", estimate=_row_number),
    }
)


def panels(sample: BenchmarkSample, maps: Maps, step: int) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
    """Measured and aligned depth, and the error |pred - gt| / gt, of every `step`-th pixel.

    Depth is colored by the measured depth's 2 % to 98 % range, near red. Pixels that do not count are gray.
    """
    depth, mask = sample.maps["depth"], sample.valid_mask
    low, high = np.quantile(depth[mask], (0.02, 0.98))
    scale = max(high - low, 1e-6)
    gt, pred, valid = depth[::step, ::step], maps["depth"][::step, ::step], mask[::step, ::step]
    with np.errstate(divide="ignore", invalid="ignore"):
        # A missing prediction is wrong by as much as is shown.
        error = np.where(valid, np.nan_to_num(np.abs(pred - gt) / gt, nan=_FULL_ERROR), 0.0)
    pred = np.nan_to_num(pred, nan=low, posinf=high)
    gray = np.repeat((255 * np.clip(error / _FULL_ERROR, 0, 1)).astype(np.uint8)[..., None], 3, axis=2)
    shown = [colorize(np.clip((values - low) / scale, 0, 1).astype(np.float32)) for values in (gt, pred)]
    return {
        "measured depth": _grayed(shown[0], valid),
        "prediction, aligned": shown[1],
        f"relative error, 0 to {100 * _FULL_ERROR:.0f} %": _grayed(gray, valid),
    }


def _grayed(picture: UInt8[np.ndarray, "h w 3"], valid: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.where(valid[..., None], picture, np.uint8(96))
