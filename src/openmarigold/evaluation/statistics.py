# SPDX-License-Identifier: Apache-2.0
"""Means over images or places, or pooled scores, and how sure they are: seeded bootstrap intervals, single and paired.

Images of one place resemble each other, so an interval over images alone is too narrow; where a benchmark names places,
both are given. A resample is drawn from (seed, what), never from the order of a run.
A tally is an image's part of pooled scores. JSON holds it as a short text: float64, compressed, in base 64.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from openmarigold.modalities.protocol import Pooling
from openmarigold.seeding import generator_for

ALL_KINDS = "all"
NUM_RESAMPLES = 1000
_SEED = 2024
_LIMITS = (2.5, 97.5)
_RESAMPLES_AT_ONCE = 100  # sums of tallies that are held in memory
_WEIGHTS_AT_ONCE = 2**24  # of resamples: 128 MiB; up to 16,777 images all of them at once


@runtime_checkable
class Scored(Protocol):
    """An image with its metrics, of a kind and a place."""

    @property
    def kind(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def tally(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """Scores of a kind with 95 % intervals: means over its images (places if the benchmark asks), or of all pixels."""

    num_places: int
    num_images: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """By what is drawn ("images", "places"; the latter from two places on), then by metric."""


class _Run:
    """The scores of images, and the overall scores for any weights of the images."""

    def __init__(
        self, images: Sequence[Scored], names: Sequence[str], *, over_places: bool, pooled: Pooling | None
    ) -> None:
        self.names, self.over_places, self.pooled = list(names), over_places, pooled
        self.values = np.array([[image.metrics[name] for name in names] for image in images])
        # A place is named within its kind.
        self.places = _numbers([(image.kind, image.place) for image in images])
        self.tallies = None if pooled is None else np.stack([decode_tally(i.tally, pooled.size) for i in images])

    def scores(self, weights: Float64[np.ndarray, "r n"] | None = None) -> Float64[np.ndarray, "r m"]:
        """Scores by name where images count `weights` times each; None: each once."""
        weights = np.ones((1, len(self.places))) if weights is None else weights
        found = weighted_mean(self.values, weights, self.places, over_places=self.over_places)
        if self.pooled is None or self.tallies is None:
            return found
        for start in range(0, len(weights), _RESAMPLES_AT_ONCE):
            rows = slice(start, start + _RESAMPLES_AT_ONCE)
            for name, scores in self.pooled.combine(weights[rows] @ self.tallies).items():
                if name in self.names:
                    found[rows, self.names.index(name)] = scores
        return found


def summarize(images: Sequence[Scored], *, over_places: bool, pooled: Pooling | None = None) -> dict[str, KindScore]:
    """Scores per kind, in order of appearance, and over all; with `pooled` those of all pixels, each counting once.

    Raises:
        ValueError: a tally that is damaged or missing.
    """
    kinds = {}
    for kind in (*dict.fromkeys(image.kind for image in images), ALL_KINDS):
        chosen = [image for image in images if kind in (ALL_KINDS, image.kind)]
        names = list(chosen[0].metrics)
        run = _Run(chosen, names, over_places=over_places, pooled=pooled)
        mean, places = run.scores()[0], run.places
        intervals = {}
        for what, scores in resampled(places, kind, run.scores).items():
            low, high = np.percentile(scores, _LIMITS, axis=0)
            intervals[what] = {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
        kinds[kind] = KindScore(
            num_places=int(places.max()) + 1,
            num_images=len(chosen),
            metrics={name: float(value) for name, value in zip(names, mean, strict=True)},
            intervals=intervals,
        )
    return kinds


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of two runs on the same images."""

    a: float
    b: float
    difference: float
    """b - a."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % interval of the difference by what is drawn."""
    share_below: Mapping[str, float]
    """Share of resamples in which b is below a, half of those in which they are equal, by what is drawn."""


def paired_differences(
    a: Sequence[Scored], b: Sequence[Scored], *, over_places: bool, pooled: Pooling | None = None
) -> dict[str, Difference]:
    """Differences of the scores of two runs, whose images are the same in the same order, by metric.

    Each resample draws the same images (places) for both, so what is hard for both cancels out.

    Raises:
        ValueError: a tally that is damaged or missing.
    """
    names = [name for name in a[0].metrics if name in b[0].metrics]
    first, second = (_Run(run, names, over_places=over_places, pooled=pooled) for run in (a, b))
    second.places = first.places
    mean_a, mean_b = first.scores()[0], second.scores()[0]
    differences = resampled(first.places, ALL_KINDS, lambda weights: second.scores(weights) - first.scores(weights))
    limits = {what: np.percentile(values, _LIMITS, axis=0) for what, values in differences.items()}
    below = {what: np.mean((values < 0) + 0.5 * (values == 0), axis=0) for what, values in differences.items()}
    return {
        name: Difference(
            a=float(mean_a[i]),
            b=float(mean_b[i]),
            difference=float(mean_b[i] - mean_a[i]),
            intervals={what: (float(low[i]), float(high[i])) for what, (low, high) in limits.items()},
            share_below={what: float(share[i]) for what, share in below.items()},
        )
        for i, name in enumerate(names)
    }


def resampled(
    places: np.ndarray,
    what: str,
    score: Callable[[Float64[np.ndarray, "r n"]], Float64[np.ndarray, "r m"]],
    *,
    count: int = NUM_RESAMPLES,
) -> dict[str, Float64[np.ndarray, "count m"]]:
    """Scores of `count` resamples: of images drawn one by one and, from two places on, of whole places.

    Args:
        places: the number of each image's place.
        what: names the draws.
        score: scores for how often each image is drawn; called with as many resamples as fit into memory.
        count: number of resamples.
    """
    images, num_places = len(places), int(places.max()) + 1
    draws: dict[str, tuple[int, np.ndarray | None]] = {"images": (images, None)}
    if num_places > 1:
        draws["places"] = (num_places, places)
    found = {}
    for name, (number, members) in draws.items():
        rng = generator_for(_SEED, f"bootstrap {name} {what}", number)
        at_once, parts = max(1, _WEIGHTS_AT_ONCE // images), []
        for start in range(0, count, at_once):
            drawn = rng.multinomial(number, np.full(number, 1 / number), size=min(at_once, count - start))
            weights = drawn if members is None else drawn[:, members]
            parts.append(score(weights.astype(np.float64)))
        found[name] = np.concatenate(parts)
    return found


def weighted_mean(
    values: Float64[np.ndarray, "n m"], weights: Float64[np.ndarray, "r n"], places: np.ndarray, *, over_places: bool
) -> Float64[np.ndarray, "r m"]:
    """Means of images that count `weights` times each; with `over_places` an image counts as its share of its place."""
    if over_places:
        weights = weights / np.bincount(places)[places]
    return (weights @ values) / weights.sum(axis=1, keepdims=True)


def _numbers(keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """Keys as numbers from 0, in order of appearance."""
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys])


def encode_tally(tally: Float64[np.ndarray, " k"]) -> str:
    """The text of a tally; the same tally gives the same text.

    >>> decode_tally(encode_tally(np.array([3.0, 0.5])), 2)
    array([3. , 0.5])
    """
    return base64.b64encode(zlib.compress(tally.astype("<f8").tobytes())).decode()


def decode_tally(text: str, size: int) -> Float64[np.ndarray, " k"]:
    """The tally of a text.

    Raises:
        ValueError: it is damaged, or holds another count of numbers than `size`, or some that are not finite.
    """
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(base64.b64decode(text, validate=True), 8 * size + 1)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"a damaged tally ({error})") from error
    if len(content) != 8 * size:
        raise ValueError(f"a tally of {size} numbers is needed")
    tally = np.frombuffer(content, dtype="<f8").astype(np.float64)
    if not np.isfinite(tally).all():
        raise ValueError("a tally of numbers that are not finite")
    return tally
