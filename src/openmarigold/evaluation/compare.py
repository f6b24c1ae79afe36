# SPDX-License-Identifier: Apache-2.0
"""Whether one run is better than another on the same images: a paired bootstrap of the difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openmarigold.errors import InvalidValueError
from openmarigold.evaluation.report import Report, read_report
from openmarigold.evaluation.scoring import INTERVAL_DIRECTIONS, INTERVAL_PREFIX
from openmarigold.evaluation.statistics import Difference, paired_differences
from openmarigold.modalities import find_modality
from openmarigold.modalities.protocol import Score

# If chance alone decided each image, five would all agree in more than one run of 20 (2 * 0.5**5), six would not.
MIN_IMAGES = 6
TOO_FEW = "too few images"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences of two runs by metric."""

    benchmark: str
    protocol: str
    scores: Mapping[str, Score]
    """What the protocol measures, by name; what tables show first comes first."""
    num_images: int
    num_places: int
    """Images of one place resemble each other. Where places are not known, each image has its own."""
    differences: Mapping[str, Difference]

    def verdict(self, metric: str) -> str | None:
        """Who is better: "a" or "b" where every interval of the difference excludes 0, else "undecided".

        Fewer than `MIN_IMAGES` images decide nothing: "too few images". None: of this score neither more nor less is
        better, such as the coverage of intervals.
        """
        higher_is_better = self._higher_is_better(metric)
        if higher_is_better is None:
            return None
        if self.num_images < MIN_IMAGES:
            return TOO_FEW
        intervals = self.differences[metric].intervals.values()
        if all(high < 0 for _, high in intervals):
            return "a" if higher_is_better else "b"
        if all(low > 0 for low, _ in intervals):
            return "b" if higher_is_better else "a"
        return "undecided"

    def _higher_is_better(self, metric: str) -> bool | None:
        if metric in self.scores and not metric.startswith(INTERVAL_PREFIX):
            return self.scores[metric].higher_is_better
        return INTERVAL_DIRECTIONS.get(metric)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark,
            "protocol": self.protocol,
            "num_images": self.num_images,
            "num_places": self.num_places,
            "differences": {
                name: {**asdict(difference), "better": self.verdict(name)}
                for name, difference in self.differences.items()
            },
        }


def compare(a: Path | str, b: Path | str) -> Comparison:
    """Comparison of two runs by their output folders or summary files.

    Raises:
        DataError: one is missing or damaged.
        InvalidValueError: they differ in modality, benchmark, protocol, images or the images' files.
    """
    return compare_reports(read_report(a), read_report(b))


def compare_reports(a: Report, b: Report) -> Comparison:
    """Comparison of two reports.

    Raises:
        InvalidValueError: they differ in modality, benchmark, protocol, images or the images' files.
    """
    for what in ("modality", "benchmark", "protocol"):
        first, second = getattr(a, what), getattr(b, what)
        if first != second:
            raise InvalidValueError(
                f"the runs have {what} {first} and {second}; only runs of one {what} can be compared"
            )
    if a.given != b.given:
        raise InvalidValueError(
            f"the runs were given {_words(a.given)} and {_words(b.given)}; only runs that knew the same can be compared"
        )
    by_name = {image.name: image for image in b.images}
    names = [image.name for image in a.images]
    differing = sorted(set(names) ^ by_name.keys())
    if differing:
        raise InvalidValueError(
            f"{len(differing)} images, such as {differing[0]}, were scored in one run only; score the same images"
        )
    changed = [image.name for image in a.images if image.input_hash != by_name[image.name].input_hash]
    if changed:
        raise InvalidValueError(
            f"the files of {len(changed)} images, such as {changed[0]}, or what their set states about them, changed "
            "between the runs, or one run is of an earlier version; evaluate both again"
        )
    ordered = [by_name[name] for name in names]
    return Comparison(
        benchmark=a.benchmark,
        protocol=a.protocol,
        scores=_headline_first(a),
        num_images=len(names),
        num_places=len({(image.kind, image.place) for image in a.images}),
        differences=paired_differences(a.images, ordered, over_places=a.over_places, pooled=a.pooled),
    )


def _words(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in given.items()) or "the photo alone"


def _headline_first(report: Report) -> dict[str, Score]:
    scores = {score.name: score for score in report.scores}
    headline = [name for name in find_modality(report.modality).headline(report.protocol) if name in scores]
    return {name: scores[name] for name in (*headline, *scores)}
