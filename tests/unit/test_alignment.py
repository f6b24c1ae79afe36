# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from openmarigold.alignment import (
    align_depth,
    align_disparity,
    at_least_smallest_positive,
    fit_disparity,
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


def test_a_power_of_depth_is_fitted_exactly_in_logarithms():
    _, gt = random_maps()
    aligned, scale = fit_log(0.3 * gt**0.5, gt, EVERYWHERE)
    assert scale == pytest.approx(2.0, rel=1e-12)
    np.testing.assert_allclose(aligned, gt, rtol=1e-12)


def test_fit_in_logarithms_equals_numpys_least_squares():
    pred, gt = random_maps()
    valid_mask = EVERYWHERE.copy()
    valid_mask[0, :2] = False
    system = np.stack([np.log(pred[valid_mask].astype(float)), np.ones(valid_mask.sum())], axis=1)
    scale, shift = np.linalg.lstsq(system, np.log(gt[valid_mask]), rcond=None)[0]
    changed = np.where(valid_mask, gt, np.nan)
    aligned, found = fit_log(np.where(valid_mask, pred, np.float32(-9)), changed, valid_mask)
    assert found == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(aligned[valid_mask], (np.exp(shift) * pred.astype(float) ** scale)[valid_mask])


def test_what_is_not_positive_counts_as_the_smallest_positive_value():
    pred = np.array([[0.0, -2.0, 0.5, 1.0, np.nan, 0.1]])
    valid_mask = np.array([[True, True, True, True, False, False]])
    np.testing.assert_array_equal(at_least_smallest_positive(pred, valid_mask), [[0.5, 0.5, 0.5, 1.0, np.nan, 0.5]])
    np.testing.assert_array_equal(at_least_smallest_positive(-pred[:, :2], valid_mask[:, :2] & False), [[1.0, 2.0]])
    aligned, scale = fit_log(np.zeros((1, 2)), np.array([[1.0, 4.0]]), np.ones((1, 2), dtype=bool))
    assert scale == 0.0
    np.testing.assert_allclose(aligned, 2.0)  # the mean in logarithms


def test_the_median_of_ratios_is_not_moved_by_a_few_pixels():
    pred, _ = random_maps()
    gt = 3.0 * pred.astype(np.float64)
    gt[0, :3] = 1e4
    assert fit_scale_median(pred, gt, EVERYWHERE) == pytest.approx(3.0)
    assert fit_scale_median(-pred, gt, EVERYWHERE) == 0.0


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
    with pytest.raises(DataError, match="not positive"):
        fit_log(pred, gt * 0.0, EVERYWHERE)
    with pytest.raises(InvalidValueError, match="prediction is not finite"):
        fit_log(pred * np.float32(np.nan), gt, EVERYWHERE)
    with pytest.raises(InvalidValueError, match="prediction is not finite"):
        fit_scale_shift(pred * np.float32(np.nan), gt, EVERYWHERE)
    with pytest.raises(DataError, match="ground truth is not finite"):
        fit_scale_shift(pred, gt * np.inf, EVERYWHERE)


def test_infinite_truth_is_refused_in_disparity_too() -> None:
    truth = np.ones((4, 5))
    truth[0, 0] = np.inf
    with pytest.raises(DataError, match="not finite on valid pixels"):
        fit_disparity(np.random.default_rng(0).random((4, 5)), truth, np.ones((4, 5), dtype=bool))
