# SPDX-License-Identifier: Apache-2.0
"""Scores of surface normals: angles [deg] to the measured ones, and the baseline that faces the camera.

Source: the published evaluation of Marigold (`marigold-normals`): errors of each image, averaged over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float

from openmarigold.geometry import angles_between, unit_vectors
from openmarigold.modalities.protocol import (
    PIXELS_SCORED,
    Baseline,
    BenchmarkSample,
    Maps,
    PredictionSpace,
    Protocol,
    Score,
)

SPACES: tuple[PredictionSpace, ...] = ("normals",)
"""Unit normals in the frame "rub"."""
HEADLINE_METRICS = ("mean_angle", "below_11.25")
LIMITS = (5.0, 7.5, 11.25, 22.5, 30.0)
"""Degrees; the share of pixels strictly below each is a score."""

_FACING = np.array([0.0, 0.0, 1.0], dtype=np.float32)

SCORES = (
    Score(name="mean_angle", label="mean", unit="°"),
    Score(name="median_angle", label="median", unit="°"),
    Score(name="rmse_angle", label="RMSE", unit="°"),
    *(Score(name=f"below_{limit:g}", label=f"< {limit:g}°", unit="%", higher_is_better=True) for limit in LIMITS),
    PIXELS_SCORED,
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
    return angle_metrics(angular_errors(maps["normals"], sample.maps["normals"], usable))


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "marigold-normals": Protocol(
            name="marigold-normals",
            summary="angular errors of each image, averaged over images",
            accepts=frozenset(SPACES),
            scores=SCORES,
            score=_score,
        )
    }
)


def default_protocol(space: PredictionSpace) -> str:
    """Errors of each image, as published."""
    return "marigold-normals"


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "facing the camera": Baseline(
            space="normals",
            estimate=lambda rgb: {"normals": np.broadcast_to(_FACING, (*rgb.shape[:2], 3))},
        )
    }
)
