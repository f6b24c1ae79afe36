# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.alignment import align_depth, align_disparity, fit_scale_shift

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(0.01, 100.0)
SHIFTS = st.floats(-100.0, 100.0)


def maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    valid_mask = rng.random((7, 9)) < 0.6
    valid_mask[0, :2] = True
    return rng.random((7, 9)), valid_mask


@given(seed=SEEDS, scale=SCALES, shift=SHIFTS, sign=st.sampled_from([-1.0, 1.0]))
def test_known_scale_and_shift_are_recovered(seed, scale, shift, sign):
    pred, valid_mask = maps(seed)
    gt = np.where(valid_mask, sign * scale * pred + shift, 1e9)
    found = fit_scale_shift(pred, gt, valid_mask)
    np.testing.assert_allclose(found, (sign * scale, shift), rtol=1e-6, atol=1e-6)


@given(seed=SEEDS, scale=SCALES, shift=SHIFTS)
def test_aligned_depth_ignores_the_affine_map_of_the_prediction(seed, scale, shift):
    pred, valid_mask = maps(seed)
    gt = np.random.default_rng(seed + 1).random(pred.shape) + 0.5
    np.testing.assert_allclose(
        align_depth(scale * pred + shift, gt, valid_mask), align_depth(pred, gt, valid_mask), atol=1e-6
    )


@given(seed=SEEDS, scale=SCALES)
def test_true_disparity_gives_true_depth(seed, scale):
    gt, valid_mask = maps(seed)
    gt = gt + 0.5
    np.testing.assert_allclose(align_disparity(scale / gt, gt, valid_mask), gt, rtol=1e-6)


@given(seed=SEEDS)
def test_residual_is_orthogonal_to_the_prediction_and_has_no_mean(seed):
    pred, valid_mask = maps(seed)
    gt = np.random.default_rng(seed + 1).random(pred.shape)
    residual = (align_depth(pred, gt, valid_mask) - gt)[valid_mask]
    assert abs(residual.mean()) < 1e-10
    assert abs(np.mean(residual * pred[valid_mask])) < 1e-10
