# SPDX-License-Identifier: Apache-2.0
"""Scale and shift between two noisy maps: hand values, outliers, and no drift along a chain of fits."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.gauges import fit_gauge

RNG = np.random.default_rng(0)


def test_an_exact_line_is_found() -> None:
    pred = RNG.random(50)
    fit = fit_gauge(pred, 3.0 * pred - 0.5)
    assert fit is not None
    assert (fit.scale, fit.shift) == (pytest.approx(3.0), pytest.approx(-0.5))
    assert fit.spread == pytest.approx(0.0, abs=1e-12)
    assert fit.correlation == pytest.approx(1.0)
    np.testing.assert_allclose(fit.apply(pred), 3.0 * pred - 0.5)


def test_the_slope_is_the_ratio_of_the_standard_deviations() -> None:
    pred, target = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 2.0, 1.0, 3.0])
    fit = fit_gauge(pred, target)  # correlation 0.8: least squares would give 0.8
    assert fit is not None
    assert fit.scale == pytest.approx(1.0)
    assert fit.correlation == pytest.approx(0.8)


def test_a_fifth_of_the_samples_cannot_drag_the_rest() -> None:
    pred = RNG.random(1000)
    target = 0.7 * pred + 0.2 + 0.001 * RNG.standard_normal(1000)
    target[:200] = 0.1
    fit = fit_gauge(pred, target)
    assert fit is not None
    assert fit.scale == pytest.approx(0.7, rel=0.01)
    assert fit.shift == pytest.approx(0.2, abs=0.005)
    assert fit.inliers == pytest.approx(0.8, abs=0.02)


def test_the_shift_alone() -> None:
    pred = RNG.random(1000)
    target = pred + 0.3
    target[:400] += 5.0
    fit = fit_gauge(pred, target, with_scale=False)
    assert fit is not None
    assert fit.scale == 1.0
    assert fit.shift == pytest.approx(0.3)
    assert fit.inliers == pytest.approx(0.6)


def test_a_chain_of_fits_does_not_shrink() -> None:
    """Each frame is fitted to the one before; ordinary least squares would lose half of the scale in 700 frames."""
    truth = RNG.random(2000)
    aligned = truth
    for _ in range(200):
        pred = truth * RNG.uniform(0.7, 1.4) + RNG.uniform(-0.2, 0.2) + 0.01 * RNG.standard_normal(truth.size)
        fit = fit_gauge(pred, aligned)
        assert fit is not None
        aligned = fit.apply(pred)
    end = fit_gauge(aligned, truth)
    assert end is not None
    assert abs(np.log(end.scale)) < 0.02


def test_maps_that_run_against_each_other_have_a_negative_scale() -> None:
    pred = RNG.random(50)
    fit = fit_gauge(pred, -pred)
    assert fit is not None
    assert fit.scale == pytest.approx(-1.0)


def test_a_constant_map_has_no_scale() -> None:
    fit = fit_gauge(np.full(50, 0.25), RNG.random(50))
    assert fit is not None
    assert (fit.scale, fit.correlation) == (0.0, 0.0)


def test_samples_that_are_not_finite_or_have_no_weight_are_left_out() -> None:
    pred = np.array([0.0, 1.0, np.nan, 2.0, 9.0])
    target = np.array([1.0, 3.0, 0.0, 5.0, 0.0])
    fit = fit_gauge(pred, target, weights=np.array([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert fit is not None
    assert (fit.scale, fit.shift) == (pytest.approx(2.0), pytest.approx(1.0))
    assert fit_gauge(pred[:1], target[:1]) is None
