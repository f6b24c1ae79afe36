# SPDX-License-Identifier: Apache-2.0
"""The types for scoring predictions of any modality: samples of benchmarks, protocols and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, UInt8

Maps: TypeAlias = Mapping[str, np.ndarray]
"""Arrays by name: `[h w]` of one channel, `[h w c]` of more."""

PredictionSpace: TypeAlias = str
"""The space of a prediction (up to which transform it is known), named as in protocols, such as "affine_depth" or
"metric"."""

Window: TypeAlias = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSample:
    """A photo and its measured maps, cropped as the benchmark asks; True in `valid_mask` = use this pixel."""

    name: str
    kind: str
    """Kind of place, such as "room" or "outdoor"."""
    place: str
    rgb: UInt8[np.ndarray, "h w 3"]
    maps: Maps
    valid_mask: Bool[np.ndarray, "h w"]
    min_value: float = -np.inf
    max_value: float = np.inf
    """Range of measured values; protocols may clip predictions to it."""
    max_fit_width: int | None = None
    """Columns that a fit to the measured map uses, at most."""
    full_size: tuple[int, int]
    """Height and width before the crop."""
    crop: Window | None = None
    given: Maps = field(default_factory=dict)
    """What an estimator may know besides the photo: measured values `[h w]` at some pixels, 0 at all others."""
    marks: Mapping[str, Bool[np.ndarray, "h w"]] = field(default_factory=dict)
    """Marks that people drew on the photo, by name, such as edges of depth."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number that a protocol gives an image, and how tables show it."""

    name: str
    label: str = ""
    """Its heading in tables; a score without a label appears in files only."""
    unit: str = ""
    """Scores in "%" are stored as shares and shown times 100."""
    digits: int = 2
    """Digits after the decimal point in a comparison."""
    table_digits: int = 1
    """Digits after the decimal point in a table of means."""
    higher_is_better: bool = False
    flag: str = ""
    """The defect of an image whose score is above 0; reports count such images."""

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label} {self.unit}".strip()

    def text(self, value: float, spec: str = "") -> str:
        """The number as tables show it, without the unit; `spec` in place of `table_digits`.

        >>> Score(name="abs_rel", unit="%").text(0.0561)
        '5.6'
        """
        return format(self.shown(value), spec or f".{self.table_digits}f")

    def shown(self, value: float) -> float:
        """The number in the unit that tables show."""
        return (100 if self.unit == "%" else 1) * value


PIXELS_SCORED = Score(name="pixels_scored", higher_is_better=True)
"""The share of valid pixels with a prediction. Every protocol has it: evaluation adds it where it is not listed."""

SEAM_ENERGY = Score(name="seam_energy", label="seam energy", digits=3, table_digits=3)
"""`metrics.seam_energy` on the lines where tiles begin and end, of the worst line of all maps; 0 where there are none.
Evaluation adds it where tiles are asked for."""


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A prediction in the space of the measured maps, and scores that the fit itself gives."""

    maps: Maps
    scores: Mapping[str, float] = field(default_factory=dict)


def _as_predicted(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Aligned:
    return Aligned(maps=maps)


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Scores of all pixels of a set at once, such as their median, which is not a mean of the images' medians.

    Each image gives a tally, such as counts, sums and a histogram. Tallies are added, each as often as its image
    counts, and the sum gives the scores.
    """

    size: int
    """Numbers in a tally."""
    tally: Callable[[BenchmarkSample, Maps, Bool[np.ndarray, "h w"]], Float64[np.ndarray, " k"]]
    """The tally of an image, from the aligned maps over the pixels that are True."""
    combine: Callable[[Float64[np.ndarray, "r k"]], Mapping[str, Float64[np.ndarray, " r"]]]
    """Scores of `r` sums of tallies, by name. Scores of the protocol that are not there are averaged over images."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to score predictions. Scores of two protocols are never comparable.

    Before a protocol sees a prediction, evaluation has checked its size and cropped it, and counted the missing pixels.
    """

    name: str
    summary: str
    accepts: frozenset[PredictionSpace]
    scores: tuple[Score, ...]
    """All scores of an image, in their order."""
    score: Callable[[BenchmarkSample, Maps, Bool[np.ndarray, "h w"]], Mapping[str, float]]
    """Scores of the aligned maps over the pixels that are True."""
    align: Callable[[BenchmarkSample, Maps, Bool[np.ndarray, "h w"]], Aligned] = _as_predicted
    """Fits a prediction to the measured maps on the pixels that are True. Pages show the result."""
    convert: Mapping[PredictionSpace, Callable[[Maps, Bool[np.ndarray, "h w"]], Maps]] = field(default_factory=dict)
    """Predictions of a space as `align` takes them, given the pixels that are True; of others as they are."""
    clips: bool = True
    """Whether `align` clips to the range of measured values, where these have one."""
    pooled: Pooling | None = None
    """How the scores of a set come from all of its pixels; None: they are means over images or places."""
    headline: tuple[str, ...] = ()
    """Scores that tables show first, where they are not those of the modality."""

    def __post_init__(self) -> None:
        if PIXELS_SCORED.name not in (score.name for score in self.scores):
            object.__setattr__(self, "scores", (*self.scores, PIXELS_SCORED))

    @cached_property
    def score_names(self) -> tuple[str, ...]:
        """Names of all scores of an image, in their order."""
        return tuple(score.name for score in self.scores)

    def with_seams(self) -> Protocol:
        """The protocol, and `SEAM_ENERGY`."""
        return self if SEAM_ENERGY in self.scores else replace(self, scores=(*self.scores, SEAM_ENERGY))


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """An estimator that does not look at the photo."""

    space: PredictionSpace
    estimate: Callable[[UInt8[np.ndarray, "h w 3"]], Maps]
