# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from openmarigold.alignment import (
    SMALLEST_DEPTH,
    align_depth,
    align_disparity,
    fit_log,
    fit_log_ransac,
    fit_scale_median,
    fit_scale_shift,
)
from openmarigold.errors import DataError, InvalidValueError

EVERYWHERE = np.ones((3, 4), dtype=bool)


def random_maps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((3, 4), dtype=np.float32), rng.random((3, 4)) + 1.0


def test_fit_equals_numpys_least_squares():
    pred, gt = random_maps()
    valid_mask = EVERYWHERE.copy()
    valid_mask[0, :2] = False
    system = np.stack([pred[valid_mask], np.ones(valid_mask.sum())], axis=1)
    expected = np.linalg.lstsq(system, gt[valid_mask], rcond=None)[0]
    np.testing.assert_allclose(fit_scale_shift(pred, gt, valid_mask), expected, rtol=1e-6)


def test_invalid_pixels_never_influence_the_fit():
    pred, gt = random_maps()
    valid_mask = EVERYWHERE.copy()
    valid_mask[1, 1] = False
    expected = fit_scale_shift(pred, gt, valid_mask)
    pred[1, 1], gt[1, 1] = np.nan, np.inf
    assert fit_scale_shift(pred, gt, valid_mask) == expected


def test_fit_keeps_its_precision_far_from_zero():
    pred = 1e6 + np.linspace(0.0, 1.0, 12).reshape(3, 4)
    scale, shift = fit_scale_shift(pred, 2.0 * (pred - 1e6) + 1.0, EVERYWHERE)
    assert scale == pytest.approx(2.0, rel=1e-8)
    assert scale * 1e6 + shift == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e5])
def test_constant_prediction_becomes_the_mean(value):
    _, gt = random_maps()
    assert fit_scale_shift(np.full((3, 4), value, np.float32), gt, EVERYWHERE) == (0.0, gt.mean())


def test_align_depth_fills_the_whole_map():
    pred, _ = random_maps()
    gt = 3.0 * pred.astype(np.float64) + 0.5
    valid_mask = EVERYWHERE.copy()
    valid_mask[2] = False
    np.testing.assert_allclose(align_depth(pred, gt, valid_mask), gt, rtol=1e-6)


def test_align_disparity_fits_in_inverse_depth_and_caps_it():
    disparity = np.array([[0.1, 0.2, 0.4, -1.0]])
    gt = np.array([[1 / 0.3, 1 / 0.5, 1 / 0.9, 0.0]])
    aligned = align_disparity(disparity, gt, np.array([[True, True, True, False]]))
    np.testing.assert_allclose(aligned[0, :3], gt[0, :3], rtol=1e-9)
    assert aligned[0, 3] == pytest.approx(1000.0)


def test_what_disagrees_by_more_than_the_median_deviation_is_left_out():
    pred = np.linspace(0.0, 1.0, 100)
    log_gt = 1.0 + 0.1 * pred
    log_gt[60:80] += 0.3  # less than the mean deviation, which the far ones make large
    log_gt[80:] += 5.0
    aligned, slope = fit_log_ransac(pred, np.expm1(log_gt), np.ones(100, bool))
    assert slope == pytest.approx(0.1)
    np.testing.assert_allclose(aligned[:60], np.expm1(log_gt[:60]))


def test_maps_that_cannot_be_aligned_are_refused():
    pred, gt = random_maps()
    with pytest.raises(DataError, match="no valid pixel"):
        fit_scale_shift(pred, gt, ~EVERYWHERE)
    with pytest.raises(DataError, match="not positive"):
        align_disparity(pred, gt * 0.0, EVERYWHERE)
    with pytest.raises(InvalidValueError, match="prediction is not finite"):
        fit_scale_shift(pred * np.float32(np.nan), gt, EVERYWHERE)
    with pytest.raises(DataError, match="ground truth is not finite"):
        fit_scale_shift(pred, gt * np.inf, EVERYWHERE)


def test_log_fit_finds_the_power_law_and_ignores_what_is_invalid() -> None:
    pred, _ = random_maps()
    gt = 3.0 * (pred.astype(np.float64) + 0.1) ** 1.7
    valid_mask = EVERYWHERE.copy()
    valid_mask[0, 0], gt[0, 0] = False, np.nan
    scale, shift = fit_log(pred + np.float32(0.1), gt, valid_mask)
    assert (scale, np.exp(shift)) == pytest.approx((1.7, 3.0), rel=1e-5)


def test_log_fit_and_median_take_zeros_for_the_smallest_depth() -> None:
    pred, gt = np.array([[0.0, 0.5, 1.0]]), np.array([[1.0, 2.0, 4.0]])
    everywhere = np.ones(pred.shape, dtype=bool)
    logs = np.log(np.maximum(pred, SMALLEST_DEPTH))
    expected = np.polyfit(logs[0], np.log(gt[0]), 1)
    assert fit_log(pred, gt, everywhere) == pytest.approx(tuple(expected))
    assert fit_scale_median(pred, gt, everywhere) == pytest.approx(4.0)


def test_median_scale_withstands_outliers() -> None:
    pred, _ = random_maps()
    gt = 2.5 * (pred.astype(np.float64) + 1.0)
    gt[0, :3] = 1000.0
    assert fit_scale_median(pred + 1.0, gt, EVERYWHERE) == pytest.approx(2.5, rel=1e-6)


@pytest.mark.parametrize("fit", [fit_log, fit_scale_median])
def test_fits_of_depth_up_to_scale_refuse_what_others_refuse(fit) -> None:
    pred, gt = random_maps()
    with pytest.raises(DataError, match="no valid pixel"):
        fit(pred, gt, ~EVERYWHERE)
    pred[0, 0] = np.nan
    with pytest.raises(InvalidValueError, match="not finite"):
        fit(pred, gt, EVERYWHERE)


def test_log_fit_refuses_depth_of_zero() -> None:
    pred, gt = random_maps()
    gt[1, 1] = 0.0
    with pytest.raises(DataError, match="not positive"):
        fit_log(pred, gt, EVERYWHERE)
