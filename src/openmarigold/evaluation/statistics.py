# SPDX-License-Identifier: Apache-2.0
"""Means over images or places, and how sure they are: seeded bootstrap intervals, single and paired.

Images of one place resemble each other, so an interval over images alone is too narrow; where a benchmark names places,
both are given. A resample is drawn from (seed, what), never from the order of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from openmarigold.seeding import generator_for

ALL_KINDS = "all"
NUM_RESAMPLES = 1000
_SEED = 2024
_LIMITS = (2.5, 97.5)


@runtime_checkable
class Scored(Protocol):
    """An image with its metrics, of a kind and a place."""

    @property
    def kind(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """Means over the images of a kind, or over its places if the benchmark asks for it, with 95 % intervals."""

    num_places: int
    num_images: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    """By what is drawn ("images", "places"; the latter from two places on), then by metric."""


def summarize(images: Sequence[Scored], *, over_places: bool) -> dict[str, KindScore]:
    """Scores per kind, in order of appearance, and over all."""
    kinds = {}
    for kind in (*dict.fromkeys(image.kind for image in images), ALL_KINDS):
        chosen = [image for image in images if kind in (ALL_KINDS, image.kind)]
        names = list(chosen[0].metrics)
        values = np.array([[image.metrics[name] for name in names] for image in chosen])
        # A place is named within its kind.
        places = _numbers([(image.kind, image.place) for image in chosen])
        mean = weighted_mean(values, np.ones((1, len(chosen))), places, over_places=over_places)[0]
        intervals = {}
        for what, weights in resample(places, kind).items():
            means = weighted_mean(values, weights, places, over_places=over_places)
            low, high = np.percentile(means, _LIMITS, axis=0)
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


def paired_differences(a: Sequence[Scored], b: Sequence[Scored], *, over_places: bool) -> dict[str, Difference]:
    """Differences of the means of two runs, whose images are the same in the same order, by metric.

    Each resample draws the same images (places) for both, so what is hard for both cancels out.
    """
    names = [name for name in a[0].metrics if name in b[0].metrics]
    first, second = (np.array([[image.metrics[name] for name in names] for image in run]) for run in (a, b))
    places = _numbers([(image.kind, image.place) for image in a])
    everything = np.ones((1, len(a)))
    mean_a, mean_b = (weighted_mean(run, everything, places, over_places=over_places)[0] for run in (first, second))
    differences = {
        what: weighted_mean(second, weights, places, over_places=over_places)
        - weighted_mean(first, weights, places, over_places=over_places)
        for what, weights in resample(places, ALL_KINDS).items()
    }
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


def resample(places: np.ndarray, what: str, *, count: int = NUM_RESAMPLES) -> dict[str, Float64[np.ndarray, "r n"]]:
    """How often each image is drawn, `count` times: images one by one and, from two places on, whole places."""
    images, num_places = len(places), int(places.max()) + 1
    rng = generator_for(_SEED, f"bootstrap images {what}", images)
    weights = {"images": rng.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)}
    if num_places > 1:
        rng = generator_for(_SEED, f"bootstrap places {what}", num_places)
        drawn = rng.multinomial(num_places, np.full(num_places, 1 / num_places), size=count)
        weights["places"] = drawn[:, places].astype(np.float64)
    return weights


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
