# SPDX-License-Identifier: Apache-2.0
"""From a prediction to scores by a protocol, with the checks that all modalities share.

Scores of intervals: how much they cover, where, how wide they are, and whether their width ranks errors. Their errors
are those of the modality's band, whatever protocol scores the maps. So evaluation measures the same errors as
calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64

from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.statistics import encode_tally
from openmarigold.metrics import seam_energy
from openmarigold.modalities.modality import Band, Modality
from openmarigold.modalities.protocol import (
    PIXELS_SCORED,
    SEAM_ENERGY,
    Aligned,
    BenchmarkSample,
    Maps,
    PredictionSpace,
    Protocol,
    Score,
)
from openmarigold.uncertainty.sparsification import sparsification

WIDTHS = tuple(f"width_{number}" for number in range(1, 5))
"""The quarters of a picture's pixels by the width of their intervals, the narrowest first."""
_NO_FIT = 1.0  # an error in the place of an infinite one, where areas of errors are summed
INTERVAL_PREFIX = "interval_"
"""The beginning of the names of intervals' scores."""
INTERVAL_DIRECTIONS: Mapping[str, bool] = MappingProxyType({"interval_ause": False, "interval_aurg": True})
"""The scores of intervals of which more (True) or less (False) is better. The best coverage is the stated level, and
narrow intervals are better only if they cover as much."""
_OVERALL = ("coverage", "half_width", "ause", "aurg")


def strata_of(band: Band) -> tuple[str, ...]:
    """Names of the parts of a picture in which coverage is stated."""
    return (*band.strata, *WIDTHS)


def interval_score_names(band: Band | None) -> tuple[str, ...]:
    """Names of the scores that `interval_scores` gives each picture; none without a band."""
    if band is None:
        return ()
    parts = [f"interval_{what}_{name}" for name in strata_of(band) for what in ("share", "missed")]
    return (*(f"interval_{name}" for name in _OVERALL), *parts)


def listed_scores(band: Band | None) -> tuple[Score, ...]:
    """The same as entries of a report; tables of headline scores do not show them."""
    return tuple(Score(name=name) for name in interval_score_names(band))


def interval_scores(
    band: Band, sample: BenchmarkSample, maps: Maps, bounds: Maps, usable: Bool[np.ndarray, "h w"]
) -> dict[str, float]:
    """Scores of a picture's interval over the pixels that are True.

    `interval_coverage`: share of pixels whose error is at most the half width. `interval_half_width`: its mean, in the
    unit of the band. `interval_ause`, `interval_aurg`: see `sparsification`. Of each stratum the share of pixels that
    is in it, and the share of all pixels that is in it and missed: the means of these over pictures give its
    coverage.
    """
    error = band.error(maps, sample.maps, usable)[usable]
    half = band.half_width(maps, bounds)[usable]
    missed = error > half
    ause, aurg = sparsification(np.where(np.isfinite(error), error, _NO_FIT), half)
    found = [1.0 - float(missed.mean()), float(half.mean()), ause, aurg]
    for inside in _strata(band, sample.maps, usable, half):
        found += [float(inside.mean()), float((inside & missed).mean())]
    return dict(zip(interval_score_names(band), found, strict=True))


def _strata(
    band: Band, measured: Maps, usable: Bool[np.ndarray, "h w"], half: Float64[np.ndarray, " n"]
) -> list[Bool[np.ndarray, " n"]]:
    inside = [is_in(measured, usable)[usable] for is_in in band.strata.values()]
    quarter = np.digitize(half, np.quantile(half, (0.25, 0.5, 0.75)), right=True)
    return inside + [quarter == number for number in range(len(WIDTHS))]


def summary_of(metrics: Mapping[str, float]) -> dict[str, Any] | None:
    """Scores of intervals from means over pictures: overall scores, and the coverage of each stratum.

    None where there were no intervals. A stratum without pixels has no coverage.
    """
    if "interval_coverage" not in metrics:
        return None
    shares = {name.removeprefix("interval_share_"): value for name, value in metrics.items() if "_share_" in name}
    return {
        **{name: metrics[f"interval_{name}"] for name in _OVERALL},
        "coverage_by": {
            name: 1.0 - metrics[f"interval_missed_{name}"] / share for name, share in shares.items() if share > 0
        },
    }


def heading_of(stratum: str) -> str:
    """The heading of a stratum in tables."""
    headings = ("narrowest quarter", "second quarter", "third quarter", "widest quarter")
    return dict(zip(WIDTHS, headings, strict=True)).get(stratum, stratum)


MAX_MISSING = 0.01
"""Share of an image's valid pixels whose prediction may be missing (not a number); of more, the image has failed."""

Predicted: TypeAlias = np.ndarray | Mapping[str, np.ndarray]
"""Maps by name; of a benchmark with one map also the array alone."""


def choose_space(modality: Modality, space: PredictionSpace | None) -> PredictionSpace:
    """The space of predictions; without one, the modality's first.

    Raises:
        InvalidValueError: the modality has none of that name.
    """
    if space is None:
        return modality.spaces[0]
    if space not in modality.spaces:
        raise InvalidValueError(f"invariance={space!r} is not known; use one of {', '.join(modality.spaces)}")
    return space


def choose_protocol(modality: Modality, name: str | None, space: PredictionSpace) -> Protocol:
    """The protocol of a name; without one, the modality's default for the space.

    Raises:
        InvalidValueError: there is none of that name, or it does not fit the space.
    """
    space, protocols = choose_space(modality, space), modality.protocols
    name = modality.default_protocol(space) if name is None else name
    if name not in protocols:
        raise InvalidValueError(f"protocol={name!r} is not known; use one of {', '.join(protocols)}")
    protocol = protocols[name]
    if space not in protocol.accepts:
        fitting = ", ".join(other.name for other in protocols.values() if space in other.accepts)
        raise InvalidValueError(f"protocol {name} does not score {space} estimates; use one of {fitting}")
    return protocol


def align_sample(
    sample: BenchmarkSample, predicted: Predicted, protocol: Protocol, space: PredictionSpace | None = None
) -> tuple[Maps, Bool[np.ndarray, "h w"]]:
    """Aligned maps, and the valid pixels on which the prediction is a number.

    A prediction of the size before the benchmark's crop is cropped like the photo. `space` is what it is known up to;
    without it, it is taken as the protocol's fit takes it.

    Raises:
        InvalidValueError: a prediction without a map, of another size or of complex numbers, or one that is missing on
            more than `MAX_MISSING` of the valid pixels.
        DataError: the ground truth does not fit the protocol.
    """
    aligned, usable = _align(sample, predicted, protocol, space)
    return aligned.maps, usable


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of a protocol for one prediction."""

    metrics: Mapping[str, float]
    tally: str = ""
    """What it adds to pooled scores, as `encode_tally` writes it; "" where scores are averaged."""


def measure_sample(
    sample: BenchmarkSample,
    predicted: Predicted,
    protocol: Protocol,
    space: PredictionSpace | None = None,
    *,
    band: Band | None = None,
) -> Measured:
    """The protocol's scores of one prediction, which is known up to `space`, and its tally.

    With a band also the scores of its interval, whose maps are among those predicted.

    Raises:
        InvalidValueError, DataError: see `align_sample`; also a DataError for values too large to be scored.
    """
    aligned, usable = _align(sample, predicted, protocol, space)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        found = {**aligned.scores, **protocol.score(sample, aligned.maps, usable)}
    found[PIXELS_SCORED.name] = np.count_nonzero(usable) / np.count_nonzero(sample.valid_mask)
    if SEAM_ENERGY in protocol.scores:
        found[SEAM_ENERGY.name] = _worst_seam(predicted)
    tally = "" if protocol.pooled is None else encode_tally(protocol.pooled.tally(sample, aligned.maps, usable))
    metrics = {name: found[name] for name in protocol.score_names}
    if band is not None and isinstance(predicted, Mapping):
        maps = {name: _fitting(sample, name, values) for name, values in _by_name(sample, predicted).items()}
        shape = next(iter(maps.values())).shape[:2]
        bounds = {name: np.asarray(predicted[name]) for name in band.names}
        if sample.crop is not None and next(iter(bounds.values())).shape[:2] == sample.full_size:
            bounds = {name: values[sample.crop] for name, values in bounds.items()}
        assert all(values.shape[:2] == shape for values in bounds.values())
        metrics |= interval_scores(band, sample, maps, bounds, usable)
    if infinite := [name for name, value in metrics.items() if not np.isfinite(value)]:
        raise DataError(
            f"{sample.name}: {infinite[0]} is {metrics[infinite[0]]}, since the prediction or the measured map holds "
            "values that are too large; check both"
        )
    return Measured(metrics=metrics, tally=tally)


def _align(
    sample: BenchmarkSample, predicted: Predicted, protocol: Protocol, space: PredictionSpace | None
) -> tuple[Aligned, Bool[np.ndarray, "h w"]]:
    maps = {name: _fitting(sample, name, values) for name, values in _by_name(sample, predicted).items()}
    if not sample.valid_mask.any():
        raise DataError(f"{sample.name}: the ground truth has no valid pixel; leave this image out")
    usable = sample.valid_mask & _finite(maps)
    _check_missing(sample, usable)
    try:
        # Overflow and NaN can only come from pixels that do not count.
        with np.errstate(over="ignore", invalid="ignore"):
            if space is not None and space in protocol.convert:
                maps = protocol.convert[space](maps, usable)
            aligned = protocol.align(sample, maps, usable)
    except DataError as error:
        raise DataError(f"{sample.name}: {error}") from error
    usable = usable & _finite(aligned.maps)  # a range without an end does not clip what overflows
    _check_missing(sample, usable)
    return aligned, usable


def _worst_seam(predicted: Predicted) -> float:
    """The largest seam energy of all maps; 0 for maps that are not made of tiles."""
    lines = getattr(predicted, "lines", ())
    if not lines or not isinstance(predicted, Mapping):
        return 0.0
    planes = [plane for values in predicted.values() for plane in np.moveaxis(np.atleast_3d(values), 2, 0)]
    return max(seam_energy(plane, lines) for plane in planes)


def _by_name(sample: BenchmarkSample, predicted: Predicted) -> dict[str, np.ndarray]:
    """The predicted maps that were measured."""
    if not isinstance(predicted, Mapping):
        if len(sample.maps) > 1:
            raise InvalidValueError(
                f"{sample.name}: the estimate is one array; give a mapping with the maps {', '.join(sample.maps)}"
            )
        return {next(iter(sample.maps)): np.asarray(predicted)}
    absent = [name for name in sample.maps if name not in predicted]
    if absent:
        given = ", ".join(predicted) or "none"
        raise InvalidValueError(f"{sample.name}: the estimate has no map {absent[0]}, only {given}; give all maps")
    return {name: np.asarray(predicted[name]) for name in sample.maps}


def _fitting(sample: BenchmarkSample, name: str, values: np.ndarray) -> np.ndarray:
    """One predicted map, cropped like the photo, of the measured map's size."""
    if values.dtype.kind not in "biuf":
        raise InvalidValueError(f"{sample.name}: the estimate holds {values.dtype} values; real numbers are needed")
    if sample.crop is not None and values.shape[:2] == sample.full_size:
        values = values[sample.crop]
    measured = sample.maps[name]
    if values.shape != measured.shape:
        raise InvalidValueError(
            f"{sample.name}: the estimate is {list(values.shape)} and the measured {name} {list(measured.shape)}; both "
            "must have the photo's size"
        )
    return values


def _finite(maps: Maps) -> Bool[np.ndarray, "h w"]:
    """Pixels at which every channel of every map is a number."""
    finite = [np.isfinite(values) for values in maps.values()]
    return np.logical_and.reduce([where if where.ndim == 2 else where.all(axis=2) for where in finite])


def _check_missing(sample: BenchmarkSample, usable: Bool[np.ndarray, "h w"]) -> None:
    """Refuse an estimate that leaves out too many pixels: it could leave out the difficult ones and score too well.

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
