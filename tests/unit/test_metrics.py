# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from openmarigold.errors import DataError, InvalidValueError
from openmarigold.metrics import METRICS, boundary_f1, delta, depth_metrics, soft_edge_error

GT = np.array([[1.0, 2.0, 4.0, 5.0]])
PRED = np.array([[1.0, 1.0, 8.0, 5.0]])
EVERYWHERE = np.ones((1, 4), dtype=bool)

# By hand: differences 0, −1, 4, 0; ratios 1, 2, 2, 1; log2 ratios 0, −1, 1, 0.
BY_HAND = {
    "abs_rel": (0.5 + 1.0) / 4,
    "sq_rel": (0.5 + 4.0) / 4,
    "rmse": math.sqrt(17 / 4),
    "rmse_log": math.log(2) * math.sqrt(2 / 4),
    "log10": math.log10(2) * 2 / 4,
    "delta1": 0.5,
    "delta2": 0.5,
    "delta3": 0.5,  # 1.25³ = 1.953 < 2
    "i_rmse": math.sqrt((0.5**2 + 0.125**2) / 4),
    "silog": 100 * math.log(2) * math.sqrt(2 / 4),
}


def test_all_metrics_by_hand():
    assert depth_metrics(PRED, GT, EVERYWHERE) == pytest.approx(BY_HAND)


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_alone_gives_the_same(name):
    assert METRICS[name](PRED, GT, EVERYWHERE) == pytest.approx(BY_HAND[name])


def test_relative_errors_are_shares_of_the_ground_truth():
    scores = depth_metrics(np.array([[3.0]]), np.array([[2.0]]), np.ones((1, 1), bool))
    assert (scores["abs_rel"], scores["sq_rel"]) == (0.5, 0.5)


def test_contours_count_in_each_of_the_four_directions():
    step = np.ones((4, 6))
    step[2:] = 2.0
    for depth in (step, step[::-1], step.T, step.T[::-1]):
        assert boundary_f1(depth, depth, np.ones(depth.shape, bool)) == pytest.approx(0.25)


def test_the_soft_edge_error_by_hand():
    gt = np.array([[1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0]])  # one edge; the four columns at and next to it count
    everywhere = np.ones(gt.shape, bool)
    moved = np.array([[9.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 9.0]])
    assert soft_edge_error(moved, gt, everywhere) == 0.0  # the edge is one pixel out of place
    assert soft_edge_error(moved, gt, everywhere, k=1) == 1.0  # (2 + 0) / 2: without forgiveness
    two = np.array([[9.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 9.0]])
    assert soft_edge_error(two, gt, everywhere) == 0.5  # two pixels: 2 at the third column, of four
    blurred = np.array([[1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]])
    assert soft_edge_error(blurred, gt, everywhere) == 0.5  # 0.5, 1, 0.5, 0: no surface is there
    flat = np.full(gt.shape, 2.0)
    assert soft_edge_error(flat, flat, everywhere) == 0.0


def test_the_soft_edge_error_ends_at_borders_and_holes():
    gt = np.array([[2.0, 4.0], [2.0, 4.0]])
    everywhere = np.ones(gt.shape, bool)
    assert soft_edge_error(np.full((2, 2), 0.5), gt, everywhere) == 1.5  # not 0.5, as a border of zeros would have it
    with_hole = np.array([[True, False], [True, True]])
    gt = np.where(with_hole, gt, 0.5)  # what is not valid is neither an edge's side nor a value to compare with
    assert soft_edge_error(np.full((2, 2), 0.5), gt, with_hole) == 1.5
    assert soft_edge_error(np.full((1, 3), 3.0), np.array([[1.0, 0.1, 3.0]]), np.array([[True, False, True]])) == 0.0
    assert soft_edge_error(np.full((1, 2), 3.0), np.array([[1.0, 1.1]]), np.ones((1, 2), bool)) == 0.0  # just no edge
    with pytest.raises(InvalidValueError, match="k=2 is not accepted; give an odd number"):
        soft_edge_error(gt, gt, with_hole, k=2)


def test_delta_is_strict():
    gt = np.array([[4.0, 4.0]])
    assert delta(np.array([[5.0, 4.999]]), gt, np.ones((1, 2), bool)) == 0.5


def test_silog_ignores_a_common_scale_and_rmse_log_does_not():
    scores = depth_metrics(3.0 * GT, GT, EVERYWHERE)
    assert scores["silog"] == pytest.approx(0.0, abs=1e-6)
    assert scores["rmse_log"] == pytest.approx(math.log(3.0))


def test_invalid_pixels_do_not_count():
    pred, gt = PRED.copy(), GT.copy()
    pred[0, 1], gt[0, 2] = np.nan, 0.0
    scores = depth_metrics(pred, gt, np.array([[True, False, False, True]]))
    assert scores["abs_rel"] == 0.0
    assert scores["delta1"] == 1.0


def test_values_that_would_give_nonsense_are_refused():
    with pytest.raises(DataError, match="no valid pixel"):
        depth_metrics(PRED, GT, ~EVERYWHERE)
    with pytest.raises(DataError, match="ground truth is not positive"):
        depth_metrics(PRED, GT * 0.0, EVERYWHERE)
    for bad in (-1.0, 0.0, np.nan, np.inf):
        # A negative prediction has ratios below every threshold: delta would call it correct.
        with pytest.raises(InvalidValueError, match="prediction is not positive"):
            delta(np.where(GT == 2.0, bad, GT), GT, EVERYWHERE)
