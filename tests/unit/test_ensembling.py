# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest

from openmarigold.ensembling import ensemble
from openmarigold.errors import InvalidValueError, NumericalError


def scene(height: int = 24, width: int = 32) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    depth = 0.7 * rows / height + 0.2 * np.sin(columns / 5.0)
    return ((depth - depth.min()) / np.ptp(depth)).astype(np.float32)


def noisy_members(count: int, *, strength: float = 0.03, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = scene()
    scale, shift = rng.uniform(0.4, 1.0, (count, 1, 1)), rng.uniform(-0.2, 0.2, (count, 1, 1))
    return (scale * depth + shift + strength * rng.standard_normal((count, *depth.shape))).astype(np.float32)


def squared_distances(aligned: np.ndarray) -> float:
    return sum(float(np.mean((a - b) ** 2)) for a, b in itertools.combinations(aligned, 2))


def test_members_that_differ_by_scale_and_shift_only_agree_exactly():
    depth = scene()
    members = np.stack([depth, 0.5 * depth + 0.25, 3.0 * depth - 1.0]).astype(np.float32)
    result = ensemble(members)
    np.testing.assert_allclose(result.depth, depth, atol=1e-6)
    np.testing.assert_allclose(result.uncertainty, 0.0, atol=1e-6)
    np.testing.assert_allclose(result.scale, [1.0, 2.0, 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(result.shift, [0.0, -0.5, 1 / 3], atol=1e-5)


def test_scale_and_shift_put_the_members_into_the_frame_of_the_depth():
    members = noisy_members(5)
    result = ensemble(members)
    aligned = members * result.scale[:, None, None] + result.shift[:, None, None]
    median = np.median(aligned, axis=0)
    np.testing.assert_allclose(result.depth, median, atol=1e-5)
    np.testing.assert_allclose(result.uncertainty, np.median(np.abs(aligned - median), axis=0), atol=1e-5)
    assert (result.depth.min(), result.depth.max()) == (0.0, 1.0)
    assert result.depth.dtype == result.uncertainty.dtype == np.float32


def test_mean_reduction_reports_the_standard_deviation():
    members = noisy_members(4)
    result = ensemble(members, reduction="mean")
    aligned = members * result.scale[:, None, None] + result.shift[:, None, None]
    np.testing.assert_allclose(result.depth, aligned.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(result.uncertainty, aligned.std(axis=0, ddof=1), atol=1e-5)


def test_median_of_an_even_count_is_between_the_middle_two():
    members = noisy_members(4)
    result = ensemble(members)
    aligned = np.sort(members * result.scale[:, None, None] + result.shift[:, None, None], axis=0)
    np.testing.assert_allclose(result.depth, (aligned[1] + aligned[2]) / 2, atol=1e-5)


def test_no_other_scales_of_the_same_mean_variance_are_closer():
    members = noisy_members(5, strength=0.2)
    result = ensemble(members)
    spread = members.std(axis=(1, 2))
    means = members.mean(axis=(1, 2), keepdims=True)

    def objective(scale: np.ndarray) -> float:
        scale = scale * np.sqrt(len(scale) / np.sum((scale * spread) ** 2))  # the gauge
        return squared_distances(scale[:, None, None] * (members - means))

    best = objective(result.scale)
    rng = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 0.1, 0.5):
        for _ in range(10):
            assert objective(result.scale * np.exp(size * rng.standard_normal(5))) > best


def test_shifts_make_the_means_of_the_aligned_members_equal():
    members = noisy_members(5, strength=0.2)
    result = ensemble(members)
    means = result.scale * members.mean(axis=(1, 2), dtype=np.float64) + result.shift
    np.testing.assert_allclose(means, means[0], atol=1e-7)


def test_an_outlier_counts_less_than_the_others():
    members = noisy_members(5)
    members[2] = np.random.default_rng(5).random(members.shape[1:])
    result = ensemble(members)
    aligned_spread = result.scale * members.std(axis=(1, 2))
    assert aligned_spread[2] < 0.5 * np.delete(aligned_spread, 2).min()
    assert np.corrcoef(result.depth.ravel(), scene().ravel())[0, 1] > 0.99


def test_a_member_turned_inside_out_gets_no_scale_and_does_not_turn_the_result():
    members = noisy_members(5)
    members[3] = 1.0 - members[3]
    result = ensemble(members)
    assert result.scale[3] == 0.0
    assert (np.delete(result.scale, 3) > 0).all()
    assert np.corrcoef(result.depth.ravel(), scene().ravel())[0, 1] > 0.99


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_two_members_that_contradict_each_other_stay_finite_and_of_equal_weight(factor):
    depth = scene()
    members = np.stack([depth, factor * (1.0 - depth)]).astype(np.float32)
    result = ensemble(members)
    assert np.isfinite(result.depth).all()
    assert (result.scale >= 0).all()
    spread = result.scale * members.std(axis=(1, 2))
    assert spread[0] == pytest.approx(spread[1], rel=1e-4)


def test_uncorrelated_members_have_equal_weight():
    columns = np.arange(32)
    waves = np.stack([np.cos(2 * np.pi * k * columns / 32) for k in (1, 2, 3)])[:, None, :].astype(np.float32)
    result = ensemble(waves)
    np.testing.assert_allclose(result.scale, result.scale[0], rtol=1e-4)


def test_a_constant_member_lies_at_the_mean_and_takes_no_scale():
    members = noisy_members(4)
    members[1] = 0.3
    result = ensemble(members)
    means = result.scale * members.mean(axis=(1, 2), dtype=np.float64) + result.shift
    assert result.scale[1] == 0.0
    np.testing.assert_allclose(means, means[0], atol=1e-7)
    assert np.isfinite(result.depth).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_constant_members_give_zeros(count):
    members = np.broadcast_to(np.linspace(0.1, 0.7, count, dtype=np.float32)[:, None, None], (count, 3, 4))
    result = ensemble(np.ascontiguousarray(members))
    assert not result.depth.any()
    assert not result.uncertainty.any()
    assert np.isfinite(result.depth).all()


def test_one_member_is_normalized_and_certain():
    member = noisy_members(1)
    result = ensemble(member)
    np.testing.assert_allclose(result.depth, (member[0] - member.min()) / np.ptp(member), atol=1e-6)
    assert not result.uncertainty.any()
    assert not ensemble(member, reduction="mean").uncertainty.any()


def test_maps_larger_than_a_chunk_give_what_one_chunk_gives():
    members = np.tile(noisy_members(3), (1, 8, 8))  # 49152 pixels, two chunks
    np.testing.assert_allclose(ensemble(members).depth[:24, :32], ensemble(noisy_members(3)).depth, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_numerical_errors(value):
    members = noisy_members(3)
    members[1, 2, 3] = value
    with pytest.raises(NumericalError, match="not finite"):
        ensemble(members)


def test_unknown_settings_and_empty_ensembles_are_refused():
    with pytest.raises(InvalidValueError, match="reduction='mode' is not one of median, mean"):
        ensemble(noisy_members(2), reduction="mode")
    with pytest.raises(InvalidValueError, match="invariance='none' is not one of affine, scale, absolute"):
        ensemble(noisy_members(2), invariance="none")
    with pytest.raises(InvalidValueError, match="hold no pixel"):
        ensemble(np.zeros((0, 4, 4), np.float32))


def scaled_members(count: int, *, strength: float = 0.03, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = 1.0 + scene()
    noise = strength * rng.standard_normal((count, *depth.shape))
    return (rng.uniform(0.2, 3.0, (count, 1, 1)) * (depth + noise)).astype(np.float32)


def test_scale_only_members_keep_zero_where_it_is():
    depth = 1.0 + scene()
    result = ensemble(np.stack([depth, 0.5 * depth, 3.0 * depth]).astype(np.float32), invariance="scale")
    np.testing.assert_allclose(result.depth, depth / depth.max(), atol=1e-6)
    np.testing.assert_allclose(result.uncertainty, 0.0, atol=1e-6)
    assert not result.shift.any()
    # Aligned as affine members, the nearest pixel would have become 0.
    assert result.depth.min() > 0.4


def test_no_other_scales_of_the_same_mean_power_are_closer():
    members = scaled_members(5, strength=0.3)
    result = ensemble(members, invariance="scale")
    power = np.sqrt(np.mean(members.astype(np.float64) ** 2, axis=(1, 2)))

    def objective(scale: np.ndarray) -> float:
        scale = scale * np.sqrt(len(scale) / np.sum((scale * power) ** 2))
        return squared_distances(scale[:, None, None] * members)

    best = objective(result.scale)
    rng = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 0.1, 0.5):
        for _ in range(10):
            assert objective(result.scale * np.exp(size * rng.standard_normal(5))) > best


@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_absolute_members_are_only_reduced(reduction):
    members = noisy_members(5)
    result = ensemble(members, invariance="absolute", reduction=reduction)
    np.testing.assert_allclose(result.depth, getattr(np, reduction)(members, axis=0), atol=1e-6)
    np.testing.assert_array_equal(result.scale, np.ones(5))
    assert not result.shift.any()


@pytest.mark.parametrize("invariance", ["scale", "absolute"])
def test_zero_and_constant_members_stay_finite_whatever_the_invariance(invariance):
    for members in (np.zeros((3, 4, 5)), np.full((3, 4, 5), 0.3), np.stack([np.zeros((4, 5)), np.ones((4, 5))])):
        result = ensemble(members.astype(np.float32), invariance=invariance)
        assert np.isfinite(result.depth).all()
        assert np.isfinite(result.uncertainty).all()
    constant = ensemble(np.full((3, 4, 5), 0.3, np.float32), invariance=invariance)
    np.testing.assert_allclose(constant.depth, 1.0 if invariance == "scale" else 0.3, rtol=1e-6)


def test_unknown_invariance_is_refused():
    with pytest.raises(InvalidValueError, match="invariance='shift' is not one of affine, scale, absolute"):
        ensemble(noisy_members(2), invariance="shift")
