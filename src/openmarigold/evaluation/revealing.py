# SPDX-License-Identifier: Apache-2.0
"""Points for benchmarks of depth completion: sampled from the measured depth, or read from a sensor's own map."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64

from openmarigold.completion.evidence import SparsePoints
from openmarigold.config import check_whole
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.benchmark import Benchmark, Reveal
from openmarigold.modalities import METRIC
from openmarigold.modalities.metric import COMPLETION
from openmarigold.modalities.protocol import BenchmarkSample, Maps
from openmarigold.seeding import generator_for

POINTS_SEED = 2024
MAX_OUTLIERS = 0.5
"""Largest share of wrong points. With more of them, no method can tell which points are right."""
_OUTLIER_FACTORS = (1.3, 2.0)
_DEPTH = METRIC.maps[0].name


def with_points(benchmark: Benchmark, num_points: int, *, outliers: float = 0.0, seed: int = POINTS_SEED) -> Benchmark:
    """The same benchmark as one of depth completion: estimators know points of each image, the other pixels count.

    The points of an image depend on the seed and the image's name alone. A smaller set of points is a part of every
    larger one.

    Args:
        benchmark: one of depth.
        num_points: of each image, drawn from the measured pixels that count.
        outliers: share of the points, [0, 0.5], whose depth is 1.3 to 2 times as far or as near as measured.
        seed: of the draws.

    Raises:
        InvalidValueError: a value that is not accepted, or a benchmark that measures no depth or has its own points.
    """
    check_whole("points", num_points)
    check_whole("points_seed", seed, least=0)
    if not isinstance(outliers, (int, float)) or not 0 <= outliers <= MAX_OUTLIERS:
        raise InvalidValueError(f"outliers={outliers!r} is not accepted; give a share from 0 to {MAX_OUTLIERS:g}")
    row = benchmark.row
    if row.reveal is not None:
        raise InvalidValueError(f"{row.name} has points of its own; leave points and outliers out")
    if [kind.name for kind in row.modality.maps] != [_DEPTH]:
        raise InvalidValueError(f"{row.name} measures {row.modality.title}; points need a benchmark of depth")

    def given(sample: BenchmarkSample, files: Mapping[str, bytes]) -> Maps:
        generator = generator_for(seed, "points of a benchmark", zlib.crc32(sample.name.encode(errors="replace")))
        known = sample_points(sample.maps[_DEPTH], sample.valid_mask, num_points, generator)
        return {_DEPTH: with_outliers(known, outliers, generator)}

    facts = {"points": num_points, "outliers": float(outliers), "seed": seed, "given_pixels_scored": False}
    added = f"{num_points} points" + (f", {100 * outliers:g} % of them wrong" if outliers else "")
    changed = copy.copy(benchmark)
    changed.row = replace(
        row,
        title=f"{row.title}, {added}",
        modality=METRIC,
        reveal=Reveal(given=given, scored=False, facts=facts),
        protocol=COMPLETION.name,
    )
    return changed


def sample_points(
    depth: Float64[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
    num_points: int,
    generator: np.random.Generator,
) -> Float64[np.ndarray, "h w"]:
    """Depth at `num_points` of the valid pixels, 0 at all others.

    Raises:
        DataError: there are fewer valid pixels, or none would be left to score.
    """
    places = np.flatnonzero(valid_mask)
    if num_points >= len(places):
        raise DataError(f"has {len(places)} measured pixels, too few for {num_points} points; ask for fewer")
    return _only(depth, generator.permutation(places)[:num_points])


def shuffled_points(
    depth: Float64[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"], num_points: int
) -> Float64[np.ndarray, "h w"]:
    """Depth at those valid pixels that the published evaluation of Marigold-DC draws, 0 at all others.

    It shuffles the places in row order by NumPy's legacy generator, with the seed 2024 for every image, and takes the
    first ones; all, where there are fewer.
    """
    places = np.argwhere(valid_mask)
    np.random.RandomState(2024).shuffle(places)
    rows, columns = places[:num_points].T
    return _only(depth, rows * depth.shape[1] + columns)


def _only(depth: Float64[np.ndarray, "h w"], places: np.ndarray) -> Float64[np.ndarray, "h w"]:
    known = np.zeros(depth.size)
    known[places] = depth.reshape(-1)[places]
    return known.reshape(depth.shape)


def with_outliers(
    known: Float64[np.ndarray, "h w"], share: float, generator: np.random.Generator
) -> Float64[np.ndarray, "h w"]:
    """Points of which a share is wrong: 1.3 to 2 times as far, or as near."""
    places = np.flatnonzero(known)
    count = round(share * len(places))
    wrong = generator.permutation(places)[:count]
    factors = generator.uniform(*_OUTLIER_FACTORS, count) ** generator.choice([-1.0, 1.0], count)
    changed = known.copy().reshape(-1)
    changed[wrong] *= factors
    return changed.reshape(known.shape)


def drop_see_through(
    known: Float64[np.ndarray, "h w"], *, window: int = 7, behind: float = 1.5
) -> Float64[np.ndarray, "h w"]:
    """LiDAR points without those that the camera cannot see because something nearer is in front of them.

    A point is dropped where it lies in the window (`window` x `window` pixels) of some point (itself included) and more
    than `behind` meters behind the nearest point of that window.

    Source: Conti et al. 2022 (arXiv:2210.03118), as in the published evaluations of VPP4DC and Marigold-DC.
    """
    there = known > 0
    nearest = np.where(there, _least_around(np.where(there, known, np.inf), window), np.inf)
    return np.where(known - _least_around(nearest, window) > behind, 0.0, known)


def _least_around(values: Float64[np.ndarray, "h w"], window: int) -> Float64[np.ndarray, "h w"]:
    """The minimum of each pixel's window."""
    reach = window // 2
    padded = np.pad(values, reach, constant_values=np.inf)
    rows = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0).min(axis=-1)
    return np.lib.stride_tricks.sliding_window_view(rows, window, axis=1).min(axis=-1)


def sparse_points(known: Float64[np.ndarray, "h w"], source: str) -> SparsePoints:
    """The pixels above 0 as points."""
    rows, columns = np.nonzero(known)
    pixels = np.stack([columns, rows], axis=1).astype(np.float64)
    return SparsePoints(pixels=pixels, depth=known[rows, columns].astype(np.float64), source=source)


def from_file(
    decode: Callable[[bytes], Float64[np.ndarray, "h w"]],
) -> Callable[[BenchmarkSample, Mapping[str, bytes]], Maps]:
    """`Reveal.given` of points that lie in the file of the role "sparse"."""
    return lambda sample, files: {_DEPTH: decode(files["sparse"])}
