# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.evaluation.report import ImageScore
from openmarigold.evaluation.statistics import paired_differences, resampled, summarize, weighted_mean

SEEDS = st.integers(0, 2**32 - 1)


def scored(values: np.ndarray, places: list[int]) -> list[ImageScore]:
    return [
        ImageScore(name=str(i), kind="room", place=f"p{place}", metrics={"abs_rel": float(value)})
        for i, (value, place) in enumerate(zip(values, places, strict=True))
    ]


@given(seed=SEEDS, count=st.integers(1, 12), over_places=st.booleans())
def test_means_equal_the_oracle(seed, count, over_places):
    rng = np.random.default_rng(seed)
    values, places = rng.random(count), [int(p) for p in rng.integers(0, 4, count)]
    score = summarize(scored(values, places), over_places=over_places)["all"]
    by_place = [values[np.array(places) == place].mean() for place in set(places)]
    assert score.metrics["abs_rel"] == pytest.approx(np.mean(by_place) if over_places else values.mean(), rel=1e-12)
    assert (score.num_images, score.num_places) == (count, len(set(places)))
    for intervals in score.intervals.values():
        low, high = intervals["abs_rel"]
        assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12
    assert ("places" in score.intervals) == (len(set(places)) > 1)


@given(seed=SEEDS)
def test_resamples_are_seeded_and_draw_places_as_a_whole(seed):
    places = np.random.default_rng(seed).integers(0, 5, 30)
    places[:5] = range(5)
    first, second = resampled(places, "all", np.asarray), resampled(places, "all", np.asarray)
    for what, weights in first.items():
        np.testing.assert_array_equal(weights, second[what])
    assert (first["images"].sum(axis=1) == 30).all()
    for place in range(5):
        chosen = first["places"][:, places == place]
        assert (chosen == chosen[:, :1]).all()


def test_resamples_are_the_same_however_many_fit_into_memory(monkeypatch):
    places = np.arange(30) // 3
    sample = scored(np.random.default_rng(2).random(30), list(places))
    draws, whole = resampled(places, "all", np.asarray), summarize(sample, over_places=True)["all"].intervals
    monkeypatch.setattr("openmarigold.evaluation.statistics._WEIGHTS_AT_ONCE", 30 * 7 + 1)
    sizes = []
    found = resampled(places, "all", lambda weights: sizes.append(len(weights)) or weights)
    assert max(sizes) == 7 and sum(sizes) == 2000
    for what, weights in draws.items():
        np.testing.assert_array_equal(found[what], weights)
    for what, intervals in summarize(sample, over_places=True)["all"].intervals.items():
        assert intervals["abs_rel"] == pytest.approx(whole[what]["abs_rel"], rel=1e-12)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(100):
        sample = scored(rng.exponential(1.0, 60), [0] * 60)
        low, high = summarize(sample, over_places=False)["all"].intervals["images"]["abs_rel"]
        covered.append(low <= 1.0 <= high)
    assert 0.87 <= np.mean(covered) <= 0.99


def test_images_of_one_place_make_the_interval_over_places_wider():
    rng = np.random.default_rng(1)
    values = np.repeat(rng.random(8), 10)  # ten equal images a place: 80 images say as much as 8
    intervals = summarize(scored(values, [int(i) for i in np.repeat(range(8), 10)]), over_places=False)["all"].intervals
    width = {what: high - low for what, (low, high) in ((what, i["abs_rel"]) for what, i in intervals.items())}
    assert width["places"] > 2 * width["images"]


@given(seed=SEEDS, shift=st.floats(-0.5, 0.5))
def test_a_common_difference_is_certain_however_hard_the_images(seed, shift):
    rng = np.random.default_rng(seed)
    values, places = rng.random(20), [int(p) for p in rng.integers(0, 6, 20)]
    found = paired_differences(scored(values, places), scored(values + shift, places), over_places=True)["abs_rel"]
    assert found.difference == pytest.approx(shift, abs=1e-12)
    for low, high in found.intervals.values():
        assert (low, high) == pytest.approx((shift, shift), abs=1e-12)


@given(seed=SEEDS)
def test_weights_are_counts(seed):
    rng = np.random.default_rng(seed)
    values, counts = rng.random((7, 2)), rng.integers(0, 3, 7)
    counts[0] = 1
    mean = weighted_mean(values, counts[None].astype(float), np.arange(7), over_places=True)[0]
    np.testing.assert_allclose(mean, np.repeat(values, counts, axis=0).mean(axis=0))
