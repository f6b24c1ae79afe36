# SPDX-License-Identifier: Apache-2.0
"""Metric depth: planar depth in meters, its files, and its scores.

`openmarigold.completion` makes it from depth up to scale (and shift) and what is known; docs/metric.md. A checkpoint
whose model_index.json states the space "metric_log" predicts it; none of the published family does.
The protocol `completion` has the scores of the field's completion benchmarks. KITTI's page states the same in
millimeters (MAE, RMSE) and in 1/km (iMAE, iRMSE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

from openmarigold.ensembling import REDUCTIONS
from openmarigold.errors import DataError
from openmarigold.metrics import completion_metrics
from openmarigold.modalities import depth_scores
from openmarigold.modalities.depth import LOG_DEPTH, METRIC_SPACE, colored_logs
from openmarigold.modalities.modality import Merged, Picture, Surface, Target
from openmarigold.modalities.protocol import (
    PIXELS_SCORED,
    Aligned,
    BenchmarkSample,
    Maps,
    PredictionSpace,
    Protocol,
    Score,
)
from openmarigold.reconstruction.saving import METERS

_SMALLEST_DEPTH = 1e-3
"""Smallest depth that is scored [m]. Plain fits give smaller, even negative depth, whose inverse has no meaning."""

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
    clips=False,
    headline=("mae", "rmse"),
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {"metric": depth_scores.PROTOCOLS["metric"], COMPLETION.name: COMPLETION}
)


def default_protocol(space: PredictionSpace) -> str:
    """Benchmarks of completion name theirs."""
    return "metric"


MILLIMETERS = 1000
"""Steps per meter of a 16-bit picture, as in ScanNet and of RealSense cameras; up to 65.5 m."""
FAR_STEPS = 256
"""Steps per meter where something is farther, as in KITTI; up to 256 m."""

METRIC_MIDDLE = math.log(4.0)
"""Log depth [log m] that a normalized value of 0 means."""
METRIC_HALF_RANGE = 3.0
"""Difference of log depth that a normalized value of 1 means. Targets span 0.2 to 80 m."""

_STRIP_ROWS = 256
_LARGEST = 65535


def steps_per_meter(depth: Float[np.ndarray, "h w"]) -> int:
    """How many steps of a 16-bit picture stand for a meter: `MILLIMETERS` where all depth fits, else `FAR_STEPS`."""
    farthest = float(np.nanmax(depth, initial=0.0, where=np.isfinite(depth)))
    return MILLIMETERS if farthest * MILLIMETERS <= _LARGEST else FAR_STEPS


def to_uint16(depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Meters as 16-bit steps, rounded, at least 1; 0 where depth is not known, 65535 where it is beyond the range."""
    steps = steps_per_meter(depth)
    out = np.zeros(depth.shape, dtype=np.uint16)
    for top in range(0, len(out), _STRIP_ROWS):
        strip = depth[top : top + _STRIP_ROWS].astype(np.float64)
        known = np.isfinite(strip)
        out[top : top + _STRIP_ROWS][known] = np.clip(np.rint(strip[known] * steps), 1, _LARGEST)
    return out


_CONTENTS: Mapping[int, str] = MappingProxyType(
    {
        MILLIMETERS: "planar depth in millimeters, 0 is unknown",
        FAR_STEPS: f"planar depth in 1/{FAR_STEPS} m, 0 is unknown",
    }
)
"""The content of a 16-bit picture in its record, by steps per meter."""


def steps_of_content(content: object) -> int | None:
    """Steps per meter of a 16-bit picture whose record states `content`; None: it is no such picture."""
    return next((steps for steps, known in _CONTENTS.items() if known == content), None)


def _shown(depth: Float[np.ndarray, "h w"], color_map: str) -> UInt8[np.ndarray, "h w 3"]:
    known = np.isfinite(depth)
    farthest = float(depth.max(initial=0.0, where=known)) or 1.0
    picture = colored_logs(np.where(known, depth / farthest, 1.0).astype(np.float32), color_map)
    picture[~known] = 96
    return picture


def normalize_metric_depth(
    depth: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Training target in [-1, 1]: (log depth [m] - `METRIC_MIDDLE`) / `METRIC_HALF_RANGE`, clipped; invalid is far (1).

    Raises:
        DataError: no valid pixel, or a valid pixel that is not finite or not above 0.
    """
    known = depth[valid_mask]
    if known.size == 0:
        raise DataError("the depth map has no valid pixel; skip this sample")
    if not (np.isfinite(known).all() and known.min() > 0):
        raise DataError("valid pixels of the depth map are not finite or not above 0; mark them invalid")
    logs = np.log(np.where(valid_mask, depth, 1.0).astype(np.float64))
    values = np.clip((logs - METRIC_MIDDLE) / METRIC_HALF_RANGE, -1.0, 1.0)
    return np.where(valid_mask, values, 1.0).astype(np.float32)


def to_meters(norm_depth: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The depth [m] of a normalized metric depth."""
    return np.exp(METRIC_HALF_RANGE * norm_depth + METRIC_MIDDLE)


def _differentiable(norm_depth: Float[np.ndarray, "*shape"]) -> tuple[np.ndarray, np.ndarray]:
    depth = to_meters(norm_depth)
    return depth, METRIC_HALF_RANGE * depth


def _to_target(maps: Maps, valid_mask: Bool[np.ndarray, "h w"], invalid: str) -> Target:
    del invalid  # unknown pixels become far: their stored values are not depth
    span = math.exp(METRIC_MIDDLE - METRIC_HALF_RANGE), math.exp(METRIC_MIDDLE + METRIC_HALF_RANGE)
    return Target(values=normalize_metric_depth(maps["depth"], valid_mask)[None, None], bounds=span)


def _merge(members: Float[np.ndarray, "n 1 h w"], invariance: str, reduction: str) -> Merged:
    """Members are in meters: they are merged as they are."""
    del invariance
    merged = np.median(members, axis=0) if reduction == "median" else members.mean(axis=0)
    spread = np.median(np.abs(members - merged[None]), axis=0)
    return Merged(stack=merged.astype(np.float32), uncertainty=spread.astype(np.float32))


METRIC = replace(
    LOG_DEPTH,
    name="metric",
    title="metric depth",
    maps=(
        replace(
            LOG_DEPTH.maps[0], range=(0.0, float("inf")), unit="meters, planar", exr_channels=("Z",), file_name="metric"
        ),
    ),
    uncertainties=("metric_uncertainty",),
    to_target=_to_target,
    from_decoded=lambda decoded: to_meters(decoded[:, 0]),
    merge=_merge,
    reductions=REDUCTIONS,
    finish=lambda stack: stack,
    picture=lambda maps, color_map: _shown(maps["depth"], color_map),
    pictures=(
        Picture(
            suffix="_metric.png",
            content=lambda maps: _CONTENTS[steps_per_meter(maps["depth"])],
            make=lambda maps, output: to_uint16(maps["depth"]),
        ),
        Picture(
            suffix="_metric_colored.png",
            content="the logarithm of depth in colors, gray where it is unknown",
            make=lambda maps, output: _shown(maps["depth"], output.color_map),
        ),
    ),
    quantities=MappingProxyType({"absolute": "planar depth (z) in meters"}),
    protocols=PROTOCOLS,
    default_protocol=default_protocol,
    spaces=SPACES,
    gauge=lambda invariance: None,
    surface=lambda maps, settings: Surface(depth=maps["depth"], unit=METERS),
    prediction_space=lambda invariance: "metric",
    baselines=MappingProxyType({}),
    output_facts=lambda output: {"unit": "m", "convention": "planar"},
    claims=lambda index: index.get("space") == METRIC_SPACE,
    index_facts=MappingProxyType({"scale_invariant": False, "shift_invariant": False, "space": METRIC_SPACE}),
    space=METRIC_SPACE,
    space_of=lambda index: index.get("space"),
    picture_spaces=frozenset(),
    variants=MappingProxyType({}),
    relative_depth=_differentiable,
)
