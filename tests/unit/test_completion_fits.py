# SPDX-License-Identifier: Apache-2.0
"""The global fit against lines whose scale and shift are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.completion.fits import fit_points
from openmarigold.errors import InvalidValueError

DEPTHS = np.linspace(0.1, 1.0, 30)


@pytest.mark.parametrize("space", ["depth", "log", "disparity"])
def test_exact_points_give_back_their_line(space):
    meters = {"depth": 5 * DEPTHS + 1, "log": 3 * DEPTHS**1.4, "disparity": 1 / (0.3 / DEPTHS + 0.2)}[space]
    fit = fit_points(DEPTHS, meters, invariance="scale")
    assert fit.space == space
    wanted = {"depth": (5, 1), "log": (1.4, np.log(3)), "disparity": (0.3, 0.2)}[space]
    assert (fit.scale, fit.shift) == pytest.approx(wanted, rel=1e-9)
    np.testing.assert_allclose(fit(DEPTHS), meters, rtol=1e-9)
    assert not fit.outliers.any()


def test_scale_alone_wins_where_it_is_true():
    noise = np.exp(0.02 * np.random.default_rng(0).normal(size=30))
    fit = fit_points(DEPTHS, 4 * DEPTHS * noise, invariance="scale")
    assert (fit.space, fit.shift) == ("depth", 0.0)
    assert fit.scale == pytest.approx(4, rel=0.01)


def test_a_fifth_of_wrong_points_does_not_move_the_line():
    rng = np.random.default_rng(1)
    meters = (5 * DEPTHS + 1) * np.exp(0.01 * rng.normal(size=30))
    wrong = rng.permutation(30)[:6]
    meters[wrong] *= rng.uniform(1.5, 3, size=6)
    fit = fit_points(DEPTHS, meters, invariance="affine")
    np.testing.assert_allclose(fit(DEPTHS), 5 * DEPTHS + 1, rtol=0.02)
    assert fit.outliers[wrong].all()
    plain = np.polyfit(DEPTHS, meters, 1)
    assert np.abs(np.polyval(plain, DEPTHS) / (5 * DEPTHS + 1) - 1).max() > 0.1  # what it is better than


def test_many_points_use_drawn_pairs():
    depths = np.random.default_rng(2).uniform(0, 1, 3000)
    meters = 5 * depths + 1
    meters[::4] = 20.0
    fit = fit_points(depths, meters, invariance="affine")
    assert (fit.scale, fit.shift) == pytest.approx((5, 1), rel=1e-6)
    assert fit.outliers.sum() >= 740  # of 750


def test_one_point_of_depth_up_to_scale():
    fit = fit_points(np.array([0.5]), np.array([3.0]), invariance="scale")
    np.testing.assert_allclose(fit(np.array([0.5, 1.0])), [3.0, 6.0])
    assert "so few points" in fit.reason


def test_one_point_of_affine_depth_needs_a_shift():
    with pytest.raises(InvalidValueError, match="one point gives a scale, and affine depth needs a shift"):
        fit_points(np.array([0.5]), np.array([3.0]), invariance="affine")
    fit = fit_points(np.array([0.5]), np.array([3.0]), invariance="affine", shift=0.25)
    np.testing.assert_allclose(fit(np.array([0.0, 0.5, 1.0])), [1.0, 3.0, 5.0])
    assert (fit.scale, fit.shift) == pytest.approx((4.0, 1.0))


def test_two_points_of_affine_depth():
    fit = fit_points(np.array([0.2, 0.8]), np.array([2.0, 5.0]), invariance="affine")
    assert (fit.scale, fit.shift) == pytest.approx((5, 1))


def test_equal_points_of_affine_depth_are_refused():
    with pytest.raises(InvalidValueError, match="3 points at one relative depth"):
        fit_points(np.full(3, 0.5), np.array([3.0, 3.1, 2.9]), invariance="affine")
    fit = fit_points(np.full(3, 0.5), np.array([3.0, 3.1, 2.9]), invariance="scale")
    assert fit.scale == pytest.approx(6, rel=0.03)


def test_points_against_the_model_are_refused():
    with pytest.raises(InvalidValueError, match="contradict the model"):
        fit_points(np.array([0.2, 0.5, 0.8]), np.array([5.0, 3.0, 2.0]), invariance="affine")


def test_affine_depth_has_one_space():
    with pytest.raises(InvalidValueError, match="only depth itself"):
        fit_points(DEPTHS, 1 + DEPTHS, invariance="affine", space="log")


@pytest.mark.parametrize(("meters", "match"), [([], "no points"), ([np.nan], "finite"), ([-1.0], "above 0")])
def test_bad_points(meters, match):
    with pytest.raises(InvalidValueError, match=match):
        fit_points(np.full(len(meters), 0.5), np.array(meters, dtype=float), invariance="scale")


def test_depth_never_leaves_what_the_points_support():
    fit = fit_points(np.array([0.5, 1.0]), np.array([1.0, 3.0]), invariance="affine")  # the line is below 0 at 0
    assert fit(np.array([0.0]))[0] == pytest.approx(0.25)
    assert np.isfinite(fit(np.array([1e9]))).all()


@given(
    factor=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
    count=st.integers(2, 80),
    invariance=st.sampled_from(["affine", "scale"]),
)
def test_a_factor_of_the_points_is_one_of_the_result(factor, seed, count, invariance):
    rng = np.random.default_rng(seed)
    depths = np.sort(rng.uniform(0.1, 1, count))
    meters = (4 * depths + 1) * np.exp(0.1 * rng.normal(size=count))
    meters[[0, -1]] = 1.2, 5.5
    plain, scaled = (fit_points(depths, meters * k, invariance=invariance, space="depth") for k in (1.0, factor))
    np.testing.assert_allclose(scaled(DEPTHS), factor * plain(DEPTHS), rtol=1e-6)
