# SPDX-License-Identifier: Apache-2.0
"""Scales of intervals, against hand values and against scenes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.errors import InvalidValueError
from openmarigold.uncertainty.conformal import (
    allowed_loss,
    fit_scale,
    hoeffding_bentkus,
    mean_loss,
    nonnegative_least_squares,
)
from openmarigold.uncertainty.sparsification import remaining_error, sparsification


def _single(scores: np.ndarray) -> list[list[np.ndarray]]:
    """Scenes of one picture of one pixel."""
    return [[np.array([score])] for score in scores]


@pytest.mark.parametrize(
    ("number", "alpha", "rank"),
    [(9, 0.1, 9), (19, 0.1, 18), (20, 0.1, 19), (99, 0.1, 90), (99, 0.05, 95), (7, 0.5, 4), (3, 0.25, 3)],
)
def test_the_scale_is_the_exact_order_statistic_of_single_pixels(number: int, alpha: float, rank: int) -> None:
    """ceil((n + 1)(1 - alpha)), whatever the order of the scenes; one rank off fails."""
    scores = np.random.default_rng(0).permutation(np.arange(1.0, number + 1))
    assert fit_scale(_single(scores), alpha) == rank


def test_too_few_scenes_give_no_scale() -> None:
    assert fit_scale(_single(np.arange(1.0, 9)), 0.1) is None  # 9 are needed
    assert allowed_loss(0.1, 8) is None
    assert fit_scale(_single(np.arange(1.0, 22)), 0.1, rule="rcps") is None  # 0.9 ** 21 is above 0.1
    assert fit_scale(_single(np.arange(1.0, 23)), 0.1, rule="rcps") == 22
    assert fit_scale(_single(np.array([1.0, np.inf, 2.0])), 0.25) is None  # no width covers what has no fit


def test_pictures_of_a_scene_share_its_weight() -> None:
    """Of a scene with a thousand pixels and one with a single one, each counts half."""
    scenes = [[np.linspace(1, 1000, 1000)], [np.array([5.0])]]
    assert mean_loss(scenes, 4.0) == pytest.approx((0.996 + 1) / 2)
    assert mean_loss(scenes, 5.0) == pytest.approx(0.995 / 2)
    halves = [[np.array([1.0, 9.0]), np.array([9.0, 9.0, 9.0, 9.0])]]
    assert mean_loss(halves, 5.0) == pytest.approx(0.75)


def test_expected_coverage_on_exchangeable_scenes_is_the_level() -> None:
    """Scenes of 30 dependent pixels, 19 for calibration, one new one: exactly 90 % in expectation for single pixels.

    The rank below would cover 85 %, the one above 95 %; 1,500 trials know the mean to within 0.8 %.
    """
    rng = np.random.default_rng(7)
    trials, number = 1500, 19
    difficulty = rng.gamma(2.0, size=(trials, number + 1, 1))
    scores = difficulty * np.abs(rng.normal(size=(trials, number + 1, 1)))
    covered = []
    for trial in scores:
        scale = fit_scale(_single(trial[:-1, 0]), 0.1)
        assert scale is not None
        covered.append(trial[-1, 0] <= scale)
    assert np.mean(covered) == pytest.approx(0.90, abs=0.024)
    dependent = difficulty[:200] * np.abs(rng.normal(size=(200, number + 1, 30)))
    shares = []
    for trial in dependent:
        scale = fit_scale([[scene] for scene in trial[:-1]], 0.1)
        assert scale is not None
        shares.append(np.mean(trial[-1] <= scale))
    assert 0.89 <= np.mean(shares) <= 0.96  # never below the level, and not far above it


def test_risk_is_controlled_in_most_calibrations() -> None:
    """With rule rcps and delta 0.1, the true risk is above 10 % in at most a tenth of 200 calibrations (here fewer)."""
    rng = np.random.default_rng(3)
    new = rng.gamma(2.0, size=(4000, 1)) * np.abs(rng.normal(size=(4000, 20)))
    too_risky = {"rcps": 0, "conformal": 0}
    for _ in range(200):
        scenes = [[scene] for scene in rng.gamma(2.0, size=(80, 1)) * np.abs(rng.normal(size=(80, 20)))]
        for rule in too_risky:
            scale = fit_scale(scenes, 0.1, rule=rule)
            assert scale is not None
            too_risky[rule] += float(np.mean(new > scale)) > 0.1
    assert too_risky["rcps"] <= 20
    assert 30 <= too_risky["conformal"] <= 110  # right on average: about every third or second is on the other side


def test_the_bound_by_hand() -> None:
    """Without a loss the bound solves (1 - R)^n = delta by Hoeffding, and e (1 - R)^n = delta by Bentkus: the first."""
    for number, delta in ((10, 0.1), (50, 0.05)):
        assert hoeffding_bentkus(0.0, number, delta) == pytest.approx(1 - delta ** (1 / number), abs=1e-6)
    assert hoeffding_bentkus(1.0, 10, 0.1) == 1.0
    bounds = [hoeffding_bentkus(mean, 100, 0.1) for mean in (0.0, 0.05, 0.1, 0.5)]
    assert bounds == sorted(bounds) and all(
        bound > mean for bound, mean in zip(bounds, (0.0, 0.05, 0.1, 0.5), strict=True)
    )
    # e * P[Bin(2, R) <= 1] = 0.1 where 1 - R^2 = 0.1 / e: Bentkus rounds the count up, as the theorem does.
    assert hoeffding_bentkus(0.3, 2, 0.1) <= np.sqrt(1 - 0.1 / np.e) + 1e-6
    assert hoeffding_bentkus(0.05, 400, 0.1) < hoeffding_bentkus(0.05, 100, 0.1)


@pytest.mark.parametrize("rule", ["conformal", "rcps"])
def test_scales_grow_with_the_level(rule: str) -> None:
    rng = np.random.default_rng(1)
    scenes = [[np.abs(rng.normal(size=50)), np.abs(rng.normal(size=20))] for _ in range(150)]
    scales = [fit_scale(scenes, 1 - level, rule=rule) for level in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)]
    found = [scale for scale in scales if scale is not None]
    assert len(found) == 6 and found == sorted(found) and len(set(found)) == 6
    for level, scale in zip((0.5, 0.6, 0.7, 0.8, 0.9, 0.95), found, strict=True):
        assert mean_loss(scenes, scale) <= 1 - level


def test_wrong_rules_and_shares_are_refused() -> None:
    with pytest.raises(InvalidValueError, match="rule='mean' is not known; use conformal or rcps"):
        fit_scale(_single(np.ones(3)), 0.1, rule="mean")
    with pytest.raises(InvalidValueError, match=r"alpha=0\.0"):
        fit_scale(_single(np.ones(3)), 0.0)
    with pytest.raises(InvalidValueError, match=r"delta=1\.5"):
        fit_scale(_single(np.ones(3)), 0.1, rule="rcps", delta=1.5)


def test_weights_are_not_negative_and_exact() -> None:
    rng = np.random.default_rng(2)
    columns = rng.uniform(size=(500, 3))
    assert nonnegative_least_squares(columns, columns @ [0.5, 0.0, 2.0]) == pytest.approx([0.5, 0.0, 2.0], abs=1e-9)
    # Where the free solution is negative, the best one without that column is taken.
    values = columns[:, 0] - 0.3 * columns[:, 1]
    found = nonnegative_least_squares(columns, values)
    alone = columns[:, 0] @ values / (columns[:, 0] @ columns[:, 0])
    assert found[1] == 0 and found == pytest.approx([alone, 0, 0])


def test_sparsification_by_hand() -> None:
    error = np.array([4.0, 3.0, 2.0, 1.0])
    assert remaining_error(error, error, steps=4) == pytest.approx([2.5, 2.0, 1.5, 1.0, 0.0])
    assert remaining_error(error, -error, steps=4) == pytest.approx([2.5, 3.0, 3.5, 4.0, 0.0])
    assert remaining_error(error, np.ones(4), steps=4) == pytest.approx([2.5, 2.5, 2.5, 2.5, 0.0])
    assert sparsification(error, error, steps=4)[0] == 0
    ause, aurg = sparsification(error, -error, steps=4)
    assert ause == pytest.approx((0.0 + 1.0 + 2.0 + 3.0 + 0.0) / 4)
    assert aurg == pytest.approx(-(0.5 + 1.0 + 1.5) / 4)
    assert sparsification(error, np.ones(4), steps=4)[1] == pytest.approx(0.0)


def test_no_scenes_give_no_scale_and_unknown_uncertainty_is_the_largest() -> None:
    assert fit_scale([], 0.1) is None
    error = np.array([0.1, 0.2, 0.3, 0.4])
    known, unknown = np.array([0.1, 0.2, 0.9, 0.9]), np.array([0.1, 0.2, np.nan, np.nan])
    np.testing.assert_array_equal(remaining_error(error, unknown), remaining_error(error, known))
