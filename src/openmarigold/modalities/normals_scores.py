# SPDX-License-Identifier: Apache-2.0
"""Scores of surface normals: angles [deg] to the measured ones, and two baselines.

Source: the published evaluations of Marigold (`marigold-normals`: errors of each image, averaged over images) and of
DSINE, Bae and Davison 2024 (`dsine`: errors of all pixels of the set), which is also that of E2E-FT and Lotus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from openmarigold.config import NormalFrame
from openmarigold.geometry import angles_between, convert_frame, unit_vectors
from openmarigold.modalities.protocol import (
    PIXELS_SCORED,
    Baseline,
    BenchmarkSample,
    Maps,
    Pooling,
    PredictionSpace,
    Protocol,
    Score,
)

SPACES: tuple[PredictionSpace, ...] = ("normals", "normals_lub", "normals_opencv")
"""Unit normals in the frame "rub", which is Marigold's and the package's own, in "lub" and in "opencv"."""
HEADLINE_METRICS = ("mean_angle", "below_11.25")
LIMITS = (5.0, 7.5, 11.25, 22.5, 30.0)
"""Degrees; the share of pixels strictly below each is a score."""

BIN_WIDTH = 0.05
"""Degrees of a bin of the histograms that give pooled medians, which are exact to one of them."""

_FACING, _UP = np.eye(3, dtype=np.float32)[[2, 1]]
_NUM_BINS = round(180 / BIN_WIDTH)

SCORES = (
    Score(name="mean_angle", label="mean", unit="°"),
    Score(name="median_angle", label="median", unit="°"),
    Score(name="rmse_angle", label="RMSE", unit="°"),
    *(Score(name=f"below_{limit:g}", label=f"< {limit:g}°", unit="%", higher_is_better=True) for limit in LIMITS),
    PIXELS_SCORED,
    Score(name="facing_away", flag="the predicted normals point away from the viewer, as those of another frame do"),
)


def angular_errors(
    pred: Float[np.ndarray, "h w 3"], gt: Float[np.ndarray, "h w 3"], valid_mask: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, " n"]:
    """Angles [deg] between predicted and measured normals of the pixels that count; lengths do not matter."""
    first, second = (unit_vectors(normals[valid_mask].astype(np.float64), axis=-1) for normals in (pred, gt))
    return angles_between(first, second, axis=-1)


def angle_metrics(errors: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Mean, median and root mean square [deg] of angular errors, and the shares in [0, 1] below each of `LIMITS`."""
    return {
        "mean_angle": float(errors.mean()),
        "median_angle": float(np.median(errors)),
        "rmse_angle": float(np.sqrt(np.square(errors).mean())),
        **{f"below_{limit:g}": float((errors < limit).mean()) for limit in LIMITS},
    }


def _score(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Mapping[str, float]:
    away = float(maps["normals"][usable][:, 2].mean() < 0)
    return {**angle_metrics(angular_errors(maps["normals"], sample.maps["normals"], usable)), "facing_away": away}


def tally_of(errors: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " k"]:
    """The tally of an image's angular errors [deg] for pooled scores.

    Their number, sum and sum of squares, how many are below each of `LIMITS`, and a histogram from 0 to 180.
    """
    bins = np.minimum((errors / BIN_WIDTH).astype(np.intp), _NUM_BINS - 1)
    below = [np.count_nonzero(errors < limit) for limit in LIMITS]
    sums = [errors.size, errors.sum(), np.square(errors).sum(), *below]
    return np.concatenate([sums, np.bincount(bins, minlength=_NUM_BINS)]).astype(np.float64)


def pooled_metrics(tallies: Float64[np.ndarray, "r k"]) -> dict[str, Float64[np.ndarray, " r"]]:
    """The scores of `angle_metrics` for sums of tallies; medians to within `BIN_WIDTH`."""
    count, total, squares = tallies[:, :3].T
    below, histogram = tallies[:, 3 : 3 + len(LIMITS)], tallies[:, 3 + len(LIMITS) :]
    return {
        "mean_angle": total / count,
        "median_angle": _medians(histogram),
        "rmse_angle": np.sqrt(squares / count),
        **{f"below_{limit:g}": below[:, index] / count for index, limit in enumerate(LIMITS)},
    }


def _medians(histogram: Float64[np.ndarray, "r b"]) -> Float64[np.ndarray, " r"]:
    """The mean of the lower and the upper median, each at its share of its bin."""
    reached = histogram.cumsum(axis=1)
    half = reached[:, -1] / 2
    rows = np.arange(len(histogram))
    found = np.zeros(len(histogram))
    for is_there in (reached >= half[:, None], reached > half[:, None]):
        place = is_there.argmax(axis=1)
        inside = histogram[rows, place]
        found += (place + (half - (reached[rows, place] - inside)) / inside) / 2
    return BIN_WIDTH * found


def _converted(frame: NormalFrame) -> Callable[[Maps, Bool[np.ndarray, "h w"]], Maps]:
    return lambda maps, usable: {"normals": convert_frame(maps["normals"], frame, "rub", axis=-1)}


_CONVERT = MappingProxyType({"normals_lub": _converted("lub"), "normals_opencv": _converted("opencv")})
_POOLING = Pooling(
    size=3 + len(LIMITS) + _NUM_BINS,
    tally=lambda sample, maps, usable: tally_of(angular_errors(maps["normals"], sample.maps["normals"], usable)),
    combine=pooled_metrics,
)


def _protocol(name: str, summary: str, pooled: Pooling | None) -> Protocol:
    return Protocol(
        name=name,
        summary=summary,
        accepts=frozenset(SPACES),
        scores=SCORES,
        score=_score,
        convert=_CONVERT,
        pooled=pooled,
    )


_ALL = (
    _protocol("marigold-normals", "angular errors of each image, averaged over images", None),
    _protocol("dsine", "angular errors of all pixels of the set", _POOLING),
)
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({protocol.name: protocol for protocol in _ALL})


def default_protocol(space: PredictionSpace) -> str:
    """Errors of each image, as published."""
    return "marigold-normals"


def _floor_and_wall(rgb: UInt8[np.ndarray, "h w 3"]) -> Maps:
    height, width = rgb.shape[:2]
    is_floor = np.arange(height)[:, None, None] >= height / 2
    return {"normals": np.broadcast_to(np.where(is_floor, _UP, _FACING), (height, width, 3))}


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "facing the camera": Baseline(
            space="normals", estimate=lambda rgb: {"normals": np.broadcast_to(_FACING, (*rgb.shape[:2], 3))}
        ),
        # A floor below the middle row, a wall above: knows where the bottom of a photo is, nothing else.
        "floor and wall": Baseline(space="normals", estimate=_floor_and_wall),
    }
)
