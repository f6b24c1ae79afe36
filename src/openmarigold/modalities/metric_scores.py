# SPDX-License-Identifier: Apache-2.0
"""Scores of metric depth: as it is (`metric`), and of depth that was completed from points (`completion`).

`completion` has the scores of the field's completion benchmarks. KITTI's page states the same in millimeters (MAE,
RMSE) and in 1/km (iMAE, iRMSE).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool

from openmarigold.metrics import completion_metrics
from openmarigold.modalities import depth_scores
from openmarigold.modalities.protocol import (
    PIXELS_SCORED,
    Aligned,
    BenchmarkSample,
    Maps,
    PredictionSpace,
    Protocol,
    Score,
)

_SMALLEST_DEPTH = 1e-3
"""[m]: plain fits give less, even negative depth, whose inverse means nothing."""

SPACES: tuple[PredictionSpace, ...] = ("metric",)


def _at_least_smallest(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Aligned:
    return Aligned(maps={"depth": np.maximum(maps["depth"].astype(np.float64), _SMALLEST_DEPTH)})


def _score(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> dict[str, float]:
    return completion_metrics(maps["depth"], sample.maps["depth"], usable)


COMPLETION = Protocol(
    name="completion",
    summary="no alignment, no upper limit; depth below 1 mm counts as 1 mm",
    accepts=frozenset(SPACES),
    scores=(
        Score(name="mae", label="MAE", unit="m", digits=4, table_digits=3),
        Score(name="rmse", label="RMSE", unit="m", digits=4, table_digits=3),
        Score(name="i_mae", label="iMAE", unit="1/m", digits=4, table_digits=4),
        Score(name="i_rmse", label="iRMSE", unit="1/m", digits=4, table_digits=4),
        Score(name="abs_rel", label="AbsRel", unit="%"),
        Score(name="delta1", label="delta1", unit="%", higher_is_better=True),
        PIXELS_SCORED,
    ),
    score=_score,
    align=_at_least_smallest,
    headline=("mae", "rmse"),
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {"metric": depth_scores.PROTOCOLS["metric"], COMPLETION.name: COMPLETION}
)


def default_protocol(space: PredictionSpace) -> str:
    """Benchmarks of completion name theirs."""
    return "metric"
