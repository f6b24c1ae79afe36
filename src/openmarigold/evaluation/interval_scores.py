# SPDX-License-Identifier: Apache-2.0
"""Scores of intervals: how much they cover, where, how wide they are, and whether their width ranks errors.

Errors are those of the modality's band, whatever protocol scores the maps: what is measured is what was calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from openmarigold.modalities.modality import Band
from openmarigold.modalities.protocol import BenchmarkSample, Maps, Score
from openmarigold.uncertainty.sparsification import sparsification

WIDTHS = tuple(f"width_{number}" for number in range(1, 5))
"""The quarters of a picture's pixels by the width of their intervals, the narrowest first."""
_NO_FIT = 1.0  # an error in the place of an infinite one, where areas of errors are summed
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
    """What means over pictures say about intervals: overall scores, and the coverage of each stratum.

    None where there were no intervals. A stratum that is nowhere has no coverage.
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
    """What tables call a stratum."""
    headings = ("narrowest quarter", "second quarter", "third quarter", "widest quarter")
    return dict(zip(WIDTHS, headings, strict=True)).get(stratum, stratum)
