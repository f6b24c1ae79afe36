# SPDX-License-Identifier: Apache-2.0
"""Protocols: how a prediction is aligned and clipped before the metrics. Scores of two are never comparable.

Paper: §4.1 (`marigold`). The others are what the field uses beside it; see docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.alignment import MIN_DISPARITY, fit_disparity, fit_log_ransac, fit_scale, fit_scale_shift
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.benchmark import BenchmarkSample
from openmarigold.evaluation.estimators import Invariance
from openmarigold.metrics import METRICS, boundary_f1, depth_metrics

# Aligned depth is at least this [m], whatever the benchmark's range says.
_SMALLEST_DEPTH = 1e-6

MAX_MISSING = 0.01
"""Share of an image's valid pixels whose prediction may be missing (not a number); of more, the image has failed."""

SCORES = (*METRICS, "boundary_f1", "pixels_scored", "negative_scale")
"""Names of all scores of an image. `pixels_scored` is the share of valid pixels with a prediction; others count in no
score. `negative_scale` is 1 where the fitted scale is below 0, so that near and far are exchanged; else 0."""

Aligned: TypeAlias = tuple[Float64[np.ndarray, "h w"], float]
"""Depth [m] and the fitted scale."""


@dataclass(frozen=True, kw_only=True)
class AlignmentProtocol:
    """How predictions of some invariances become depth [m]."""

    name: str
    summary: str
    align: Callable[[np.ndarray, BenchmarkSample, np.ndarray], Aligned]
    accepts: frozenset[Invariance]
    clip_to_range: bool = True
    """False: the alignment clips by itself, to what it takes from the ground truth."""


def _align_marigold(
    pred: Float[np.ndarray, "h w"], sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]
) -> Aligned:
    chosen = _fit_columns(sample)
    # A subset of the columns may hold no valid pixel; then all are used.
    if not usable[:, chosen].any():
        chosen = slice(None)
    scale, shift = fit_scale_shift(pred[:, chosen], sample.depth[:, chosen], usable[:, chosen])
    return scale * pred.astype(np.float64) + shift, scale


def _align_disparity(
    pred: Float[np.ndarray, "h w"], sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]
) -> Aligned:
    scale, shift = fit_disparity(pred, sample.depth, usable)
    return 1.0 / np.maximum(scale * pred.astype(np.float64) + shift, MIN_DISPARITY), scale


def _align_scale(pred: Float[np.ndarray, "h w"], sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]) -> Aligned:
    scale = fit_scale(pred, sample.depth, usable)
    return scale * pred.astype(np.float64), scale


def _fit_columns(sample: BenchmarkSample) -> slice | np.ndarray:
    """Columns that the fit sees: all, or `max_fit_width` nearest ones where the image is larger.

    The published evaluation of ETH3D means to shrink to 1024 pixels along the longer side, but shrinks the width only.
    """
    height, width = sample.depth.shape
    if sample.max_fit_width is None or max(height, width) <= sample.max_fit_width:
        return slice(None)
    count = max(1, width * sample.max_fit_width // max(height, width))
    return np.arange(count) * width // count


PROTOCOLS: Mapping[str, AlignmentProtocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            AlignmentProtocol(
                name="marigold",
                summary="scale and shift by least squares in depth, clipped to the benchmark's range",
                align=_align_marigold,
                accepts=frozenset({"affine_depth", "scale", "metric"}),
            ),
            AlignmentProtocol(
                name="disparity",
                summary="scale and shift by least squares in disparity, clipped to the benchmark's range",
                align=_align_disparity,
                accepts=frozenset({"disparity"}),
            ),
            AlignmentProtocol(
                name="log-ransac",
                summary="RANSAC against log(1 + depth), clipped to each image's own farthest depth: leaks ground truth",
                align=lambda pred, sample, usable: fit_log_ransac(pred, sample.depth, usable),
                accepts=frozenset({"affine_depth", "scale", "metric"}),
                clip_to_range=False,
            ),
            AlignmentProtocol(
                name="scale",
                summary="scale by least squares in depth, clipped to the benchmark's range",
                align=_align_scale,
                accepts=frozenset({"scale", "metric"}),
            ),
            AlignmentProtocol(
                name="metric",
                summary="no alignment, clipped to the benchmark's range",
                align=lambda pred, sample, usable: (pred.astype(np.float64), 1.0),
                accepts=frozenset({"metric"}),
            ),
        )
    }
)


def choose_protocol(name: str | None, invariance: Invariance) -> AlignmentProtocol:
    """The protocol of a name; without one, `disparity` for disparity and `marigold` for depth.

    Raises:
        InvalidValueError: there is none of that name, or it does not fit the invariance.
    """
    if name is None:
        name = "disparity" if invariance == "disparity" else "marigold"
    if name not in PROTOCOLS:
        raise InvalidValueError(f"protocol={name!r} is not known; use one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if invariance not in protocol.accepts:
        fitting = ", ".join(other.name for other in PROTOCOLS.values() if invariance in other.accepts)
        raise InvalidValueError(f"protocol {name} does not score {invariance} estimates; use one of {fitting}")
    return protocol


def align_sample(
    sample: BenchmarkSample, predicted: Float[np.ndarray, "hp wp"], protocol: AlignmentProtocol
) -> tuple[Float64[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Aligned and clipped depth [m], and the valid pixels on which the prediction is a number.

    A prediction of the size before the benchmark's crop is cropped like the photo.

    Raises:
        InvalidValueError: a prediction of another size or of complex numbers, or one that is missing on more than
            `MAX_MISSING` of the valid pixels.
        DataError: the ground truth does not fit the protocol.
    """
    aligned, usable, _ = _align(sample, predicted, protocol)
    return aligned, usable


def _align(
    sample: BenchmarkSample, predicted: Float[np.ndarray, "hp wp"], protocol: AlignmentProtocol
) -> tuple[Float64[np.ndarray, "h w"], Bool[np.ndarray, "h w"], float]:
    if np.iscomplexobj(predicted):
        raise InvalidValueError(f"{sample.name}: the estimate holds complex numbers; real ones are needed")
    if sample.crop is not None and predicted.shape == sample.full_size:
        predicted = predicted[sample.crop]
    if predicted.shape != sample.depth.shape:
        raise InvalidValueError(
            f"{sample.name}: the estimate is {list(predicted.shape)} and the measured depth "
            f"{list(sample.depth.shape)}; both must have the photo's size"
        )
    if not sample.valid_mask.any():
        raise DataError(f"{sample.name}: the ground truth has no valid pixel; leave this image out")
    usable = sample.valid_mask & np.isfinite(predicted)
    _check_missing(sample, usable)
    try:
        # Overflow and NaN can only come from pixels that do not count.
        with np.errstate(over="ignore", invalid="ignore"):
            aligned, scale = protocol.align(predicted, sample, usable)
    except DataError as error:
        raise DataError(f"{sample.name}: {error}") from error
    lowest = max(sample.min_depth, _SMALLEST_DEPTH) if protocol.clip_to_range else _SMALLEST_DEPTH
    highest = sample.max_depth if protocol.clip_to_range else None
    aligned = np.clip(aligned, lowest, highest)
    usable = usable & np.isfinite(aligned)  # a range without an end does not clip what overflows
    _check_missing(sample, usable)
    return aligned, usable, scale


def _check_missing(sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]) -> None:
    """Refuses an estimate that leaves out what it likes: its scores would flatter it.

    Raises:
        InvalidValueError: more than `MAX_MISSING` of the valid pixels are not usable.
    """
    valid, present = np.count_nonzero(sample.valid_mask), np.count_nonzero(usable)
    if present == 0:
        raise InvalidValueError(f"{sample.name}: the estimate is not finite on any valid pixel; it cannot be aligned")
    if valid - present > MAX_MISSING * valid:
        raise InvalidValueError(
            f"{sample.name}: the estimate is not finite on {valid - present} of {valid} valid pixels "
            f"({100 * (1 - present / valid):.1f} %); at most {100 * MAX_MISSING:g} % may be missing: fill them"
        )


def score_sample(
    sample: BenchmarkSample, predicted: Float[np.ndarray, "hp wp"], protocol: AlignmentProtocol
) -> dict[str, float]:
    """`SCORES` of one prediction after alignment and clipping.

    Raises:
        InvalidValueError, DataError: see `align_sample`.
    """
    aligned, usable, scale = _align(sample, predicted, protocol)
    scores = depth_metrics(aligned, sample.depth, usable)
    scores["boundary_f1"] = boundary_f1(aligned, sample.depth, usable)
    scores["pixels_scored"] = np.count_nonzero(usable) / np.count_nonzero(sample.valid_mask)
    scores["negative_scale"] = float(scale < 0)
    return scores
