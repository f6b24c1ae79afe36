# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.alignment import align_depth
from openmarigold.metrics import depth_metrics

SEEDS = st.integers(0, 2**32 - 1)


def maps(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    valid_mask = rng.random((6, 8)) < 0.7
    valid_mask[0, 0] = valid_mask[1, 1] = True
    return rng.uniform(0.3, 5.0, (6, 8)), rng.uniform(0.3, 5.0, (6, 8)), valid_mask


def oracle(pred: np.ndarray, gt: np.ndarray, valid_mask: np.ndarray) -> dict[str, float]:
    pairs = [(p, d) for p, d, ok in zip(pred.flat, gt.flat, valid_mask.flat, strict=True) if ok]
    n = len(pairs)
    logs = [np.log(p / d) for p, d in pairs]
    return {
        "abs_rel": sum(abs(p / d - 1) for p, d in pairs) / n,
        "sq_rel": sum((p - d) ** 2 / d for p, d in pairs) / n,
        "rmse": (sum((p - d) ** 2 for p, d in pairs) / n) ** 0.5,
        "rmse_log": (sum(e * e for e in logs) / n) ** 0.5,
        "log10": sum(abs(np.log10(p / d)) for p, d in pairs) / n,
        "i_rmse": (sum((1 / p - 1 / d) ** 2 for p, d in pairs) / n) ** 0.5,
        "silog": 100 * (sum(e * e for e in logs) / n - (sum(logs) / n) ** 2) ** 0.5,
    } | {f"delta{k}": sum(max(p / d, d / p) < 1.25**k for p, d in pairs) / n for k in (1, 2, 3)}


@given(seed=SEEDS)
def test_metrics_equal_the_oracle(seed):
    pred, gt, valid_mask = maps(seed)
    assert depth_metrics(pred, gt, valid_mask) == pytest.approx(oracle(pred, gt, valid_mask), rel=1e-7)


@given(seed=SEEDS, scale=st.floats(0.1, 10.0), shift=st.floats(-1.0, 1.0))
def test_perfect_maps_have_no_error_after_alignment(seed, scale, shift):
    _, gt, valid_mask = maps(seed)
    scores = depth_metrics(align_depth(scale * gt + shift, gt, valid_mask), gt, valid_mask)
    for name, value in scores.items():
        assert value == pytest.approx(1.0 if name.startswith("delta") else 0.0, abs=1e-5)


@given(seed=SEEDS, scale=st.floats(0.1, 10.0))
def test_ratios_ignore_the_unit(seed, scale):
    pred, gt, valid_mask = maps(seed)
    meters, others = depth_metrics(pred, gt, valid_mask), depth_metrics(scale * pred, scale * gt, valid_mask)
    for name in ("abs_rel", "rmse_log", "log10", "silog"):
        assert others[name] == pytest.approx(meters[name], rel=1e-6)
    assert others["rmse"] == pytest.approx(scale * meters["rmse"], rel=1e-6)
    assert others["i_rmse"] == pytest.approx(meters["i_rmse"] / scale, rel=1e-6)


@given(seed=SEEDS)
def test_invalid_pixels_never_count(seed):
    pred, gt, valid_mask = maps(seed)
    expected = depth_metrics(pred, gt, valid_mask)
    pred[~valid_mask], gt[~valid_mask] = -1.0, np.nan
    assert depth_metrics(pred, gt, valid_mask) == expected
