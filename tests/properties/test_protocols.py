# SPDX-License-Identifier: Apache-2.0
"""Scores equal those of a plain oracle, for masks, ties, constant, reversed and broken predictions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark_data import score_sample
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.scoring import align_sample
from openmarigold.modalities.depth_scores import PROTOCOLS
from openmarigold.modalities.protocol import BenchmarkSample

LOW, HIGH = 0.5, 9.0
EXACT = 1e-9


@st.composite
def cases(draw: st.DrawFn) -> tuple[BenchmarkSample, np.ndarray]:
    """A sample and a prediction of one of the kinds that go wrong elsewhere."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Few levels make ties, in the ground truth and in ratios at a threshold.
    levels = np.array([0.5, 1.0, 1.25, 1.5625, 2.0, 2.5, 4.0, 8.0])
    depth = rng.choice(levels, (height, width)) if draw(st.booleans()) else rng.uniform(0.4, 10, (height, width))
    kind = draw(st.sampled_from(["noise", "affine", "reversed", "constant", "ties", "broken"]))
    pred = {
        "noise": rng.uniform(-1, 1, depth.shape),
        "affine": 3 * depth - 2,
        "reversed": 1 - 0.1 * depth,
        "constant": np.full(depth.shape, 0.3),
        "ties": rng.choice([0.0, 0.5, 1.0], depth.shape),
        "broken": np.where(rng.random(depth.shape) < 0.3, rng.choice([np.nan, np.inf, -np.inf]), depth),
    }[kind]
    valid_mask = rng.random(depth.shape) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    if draw(st.booleans()):  # one valid pixel
        valid_mask[:] = False
    row, column = rng.integers(height), rng.integers(width)
    valid_mask[row, column] = True
    sample = BenchmarkSample(
        name="case",
        kind="room",
        place="a",
        rgb=np.zeros((height, width, 3), np.uint8),
        maps={"depth": depth},
        valid_mask=valid_mask,
        min_value=LOW,
        max_value=HIGH,
        full_size=(height, width),
    )
    return sample, pred.astype(np.float64)


def oracle_line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Least squares by the textbook's formula in exact sums; a constant x gives the mean of y."""
    n = len(x)
    mean_x, mean_y = math.fsum(x) / n, math.fsum(y) / n
    power = math.fsum((a - mean_x) ** 2 for a in x)
    if power <= n * (1e-10 * max(map(abs, x))) ** 2:
        return 0.0, mean_y
    slope = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / power
    return slope, mean_y - slope * mean_x


def oracle(sample: BenchmarkSample, pred: np.ndarray, *, disparity: bool) -> dict[str, float]:
    pixels = [
        (i, j)
        for i in range(pred.shape[0])
        for j in range(pred.shape[1])
        if sample.valid_mask[i, j] and math.isfinite(pred[i, j])
    ]
    x = [float(pred[pixel]) for pixel in pixels]
    d = [float(sample.maps["depth"][pixel]) for pixel in pixels]
    slope, shift = oracle_line(x, [1 / value for value in d] if disparity else d)
    line = [slope * value + shift for value in x]
    p = [min(max(1 / max(v, 1e-3) if disparity else v, LOW), HIGH) for v in line]
    n = len(p)
    logs = [math.log(a) - math.log(b) for a, b in zip(p, d, strict=True)]
    pairs = list(zip(p, d, strict=True))
    mean_log = math.fsum(logs) / n
    values = dict(zip(pixels, pairs, strict=True))
    return {
        "abs_rel": math.fsum(abs(a - b) / b for a, b in pairs) / n,
        "sq_rel": math.fsum((a - b) ** 2 / b for a, b in pairs) / n,
        "rmse": math.sqrt(math.fsum((a - b) ** 2 for a, b in pairs) / n),
        "rmse_log": math.sqrt(math.fsum(e * e for e in logs) / n),
        "log10": math.fsum(abs(e) for e in logs) / n / math.log(10),
        "i_rmse": math.sqrt(math.fsum((1 / a - 1 / b) ** 2 for a, b in pairs) / n),
        "silog": 100 * math.sqrt(math.fsum((e - mean_log) ** 2 for e in logs) / n),
        "boundary_f1": oracle_boundary_f1(values),
        "soft_edge_error": oracle_soft_edge_error(values),
        "pixels_scored": n / int(sample.valid_mask.sum()),
        "negative_scale": float(slope < 0),
        **{f"delta{k}": sum(max(a / b, b / a) < 1.25**k for a, b in pairs) / n for k in (1, 2, 3)},
    }


def oracle_boundary_f1(values: dict[tuple[int, int], tuple[float, float]]) -> float:
    """Depth Pro's definition, pair by pair."""
    total, weights = 0.0, 0.0
    for t in np.linspace(1.05, 1.25, 10):
        precision, recall = [], []
        for di, dj in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            edges = [
                (values[i + di, j + dj][0] / p > t, values[i + di, j + dj][1] / d > t)
                for (i, j), (p, d) in values.items()
                if (i + di, j + dj) in values
            ]
            hits = sum(a and b for a, b in edges)
            precision.append(hits / max(1, sum(a for a, _ in edges)))
            recall.append(hits / max(1, sum(b for _, b in edges)))
        p, r = sum(precision) / 4, sum(recall) / 4
        total += t * (2 * p * r / (p + r) if p + r else 0)
        weights += t
    return total / weights


def oracle_soft_edge_error(values: dict[tuple[int, int], tuple[float, float]]) -> float:
    """Windows of 3 x 3, pixel by pixel."""
    at_edges = {
        (i, j)
        for (i, j), (_, d) in values.items()
        for di, dj in ((0, 1), (0, -1), (1, 0), (-1, 0))
        if (i + di, j + dj) in values and max(d, values[i + di, j + dj][1]) > 1.1 * min(d, values[i + di, j + dj][1])
    }
    errors = []
    for (i, j), (p, _) in values.items():
        window = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)}
        if window & at_edges:
            errors.append(min(abs(values[place][1] - p) for place in window if place in values))
    return sum(errors) / len(errors) if errors else 0.0


def is_incomplete(sample: BenchmarkSample, pred: np.ndarray) -> bool:
    """Whether more than a hundredth of what counts has no prediction."""
    return np.isnan(np.where(np.isfinite(pred), pred, np.nan)[sample.valid_mask]).mean() > 0.01


def at_a_threshold(sample: BenchmarkSample, pred: np.ndarray, protocol: str) -> bool:
    """Whether a ratio lies so near a threshold that rounding decides: ours or the oracle's may fall to either side."""
    maps, usable = align_sample(sample, pred, PROTOCOLS[protocol])
    aligned = maps["depth"]
    ratios = [(aligned / sample.maps["depth"])[usable]]
    for axis in (0, 1):
        ratios.append(np.exp(np.diff(np.log(aligned), axis=axis)).ravel())
    seen = np.concatenate(ratios)
    thresholds = np.concatenate([1.25 ** np.arange(1, 4), np.linspace(1.05, 1.25, 10)])
    distance = np.abs(np.maximum(seen, 1 / seen)[:, None] - thresholds)
    return bool((distance < 1e-9).any())


@pytest.mark.parametrize("protocol", ["marigold", "disparity"])
@given(case=cases())
def test_scores_equal_the_oracle(protocol, case):
    sample, pred = case
    if is_incomplete(sample, pred):
        with pytest.raises(InvalidValueError, match="case: the estimate is not finite on"):
            score_sample(sample, pred, PROTOCOLS[protocol])
        return
    scores = score_sample(sample, pred, PROTOCOLS[protocol])
    expected = oracle(sample, pred, disparity=protocol == "disparity")
    assert set(scores) == set(expected)
    compared = set(expected)
    if at_a_threshold(sample, pred, protocol):
        compared -= {"delta1", "delta2", "delta3", "boundary_f1"}
    for name in compared:
        assert scores[name] == pytest.approx(expected[name], rel=EXACT, abs=EXACT), name


@given(case=cases())
def test_ties_at_a_threshold_do_not_count(case):
    sample, _ = case
    exact = replace(
        sample, maps={"depth": np.where(sample.maps["depth"] > 2, 4.0, 1.0)}, min_value=1e-3, max_value=100.0
    )
    # Without an alignment the ratio is exactly 1.25, which is not below 1.25.
    scores = score_sample(exact, 1.25 * exact.maps["depth"], PROTOCOLS["metric"])
    assert (scores["delta1"], scores["delta2"]) == (0, 1)
    assert scores["abs_rel"] == pytest.approx(0.25, abs=EXACT)


@given(case=cases())
def test_what_is_not_valid_never_counts(case):
    sample, pred = case
    if is_incomplete(sample, pred):
        return
    for name in ("marigold", "disparity", "log-ransac", "log", "scale-median"):
        expected = score_sample(sample, pred, PROTOCOLS[name])
        other = np.where(sample.valid_mask, pred, -1e9)
        changed = replace(sample, maps={"depth": np.where(sample.valid_mask, sample.maps["depth"], 0.0)})
        assert score_sample(changed, other, PROTOCOLS[name]) == expected


@given(case=cases())
def test_no_valid_pixel_is_an_error_of_the_data(case):
    sample, pred = case
    nothing = replace(sample, valid_mask=np.zeros_like(sample.valid_mask))
    for protocol in PROTOCOLS.values():
        with pytest.raises(DataError, match="case: the ground truth has no valid pixel"):
            score_sample(nothing, pred, protocol)


@given(case=cases())
def test_log_ransac_is_seeded_and_clips_to_the_images_own_maximum(case):
    sample, pred = case
    if is_incomplete(sample, pred):
        return
    maps, usable = align_sample(sample, pred, PROTOCOLS["log-ransac"])
    first, again = maps["depth"], align_sample(sample, pred, PROTOCOLS["log-ransac"])[0]["depth"]
    np.testing.assert_array_equal(first, again)
    assert first[usable].max() <= sample.maps["depth"][usable].max() + 1e-12


@given(seed=st.integers(0, 2**32 - 1))
def test_log_ransac_ignores_outliers(seed):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 8, (12, 12))
    sample = BenchmarkSample(
        name="case",
        kind="room",
        place="a",
        rgb=np.zeros((12, 12, 3), np.uint8),
        maps={"depth": depth},
        valid_mask=np.ones((12, 12), bool),
        min_value=LOW,
        max_value=HIGH,
        full_size=(12, 12),
    )
    pred = (np.log1p(depth) - 0.5) / 2
    outlier = rng.random(depth.shape) < 0.2
    aligned = align_sample(sample, np.where(outlier, 50.0, pred), PROTOCOLS["log-ransac"])[0]["depth"]
    np.testing.assert_allclose(aligned[~outlier], depth[~outlier], rtol=1e-6)
    # A prediction that falls with depth is not depth; it is scaled, not turned over.
    turned = align_sample(sample, 3.0 - pred, PROTOCOLS["log-ransac"])[0]["depth"]
    assert np.corrcoef(turned.ravel(), depth.ravel())[0, 1] < 0


def test_disparity_of_zero_and_less_is_as_far_as_the_range_goes():
    depth = np.array([[1.0, 2.0, 4.0, 8.0, 8.0]])
    sample = BenchmarkSample(
        name="case",
        kind="room",
        place="a",
        rgb=np.zeros((1, 5, 3), np.uint8),
        maps={"depth": depth},
        valid_mask=np.array([[True, True, True, False, False]]),
        min_value=LOW,
        max_value=HIGH,
        full_size=(1, 5),
    )
    pred = np.array([[1.0, 0.5, 0.25, 0.0, -0.5]])
    aligned = align_sample(sample, pred, PROTOCOLS["disparity"])[0]["depth"]
    np.testing.assert_allclose(aligned, [[1.0, 2.0, 4.0, HIGH, HIGH]], rtol=1e-9)


def test_log_and_the_median_ratio_are_exact_where_they_can_be():
    depth = np.array([[1.0, 2.0, 4.0, 8.0]])
    sample = replace(scaled_sample(depth), max_value=4.0)
    aligned = align_sample(sample, 5 * depth**3, PROTOCOLS["log"])[0]["depth"]
    np.testing.assert_allclose(aligned, [[1.0, 2.0, 4.0, 4.0]], rtol=1e-9)
    found = score_sample(scaled_sample(depth), depth**-1.0, PROTOCOLS["log"])
    assert found["abs_rel"] == pytest.approx(0) and found["negative_scale"] == 1
    pred = np.array([[0.1, 0.2, 0.4, 0.1]])
    aligned = align_sample(scaled_sample(depth), pred, PROTOCOLS["scale-median"])[0]["depth"]
    np.testing.assert_allclose(aligned, [[1.0, 2.0, 4.0, 1.0]], rtol=1e-9)


def test_depth_up_to_scale_is_fitted_as_disparity_by_its_inverse():
    depth = np.array([[1.0, 2.0, 4.0, 8.0]])
    pred = 1 / (3 / depth + 0.5)  # depth whose inverse is off by scale and shift
    for space in ("scale", "metric"):
        aligned = align_sample(scaled_sample(depth), pred, PROTOCOLS["disparity"], space)[0]["depth"]
        np.testing.assert_allclose(aligned, depth, rtol=1e-9)
    given = score_sample(scaled_sample(depth), 1 / pred, PROTOCOLS["disparity"], "disparity")
    assert given == pytest.approx(score_sample(scaled_sample(depth), pred, PROTOCOLS["disparity"], "scale"))


def scaled_sample(depth: np.ndarray) -> BenchmarkSample:
    return BenchmarkSample(
        name="case",
        kind="room",
        place="a",
        rgb=np.zeros((*depth.shape, 3), np.uint8),
        maps={"depth": depth},
        valid_mask=np.ones(depth.shape, dtype=bool),
        min_value=LOW,
        max_value=HIGH,
        full_size=depth.shape,
    )
