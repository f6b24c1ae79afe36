# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.ensembling import ensemble

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, 9)
REDUCTIONS = st.sampled_from(["median", "mean"])


def members_of(seed: int, count: int, *, strength: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((10, 12)) + strength * rng.standard_normal((count, 10, 12))).astype(np.float32)


@given(seed=SEEDS, count=COUNTS, reduction=REDUCTIONS)
def test_affine_maps_of_single_members_do_not_matter(seed, count, reduction):
    members = members_of(seed, count)
    rng = np.random.default_rng(seed + 1)
    scale, shift = np.exp(rng.uniform(-3, 3, (count, 1, 1))), rng.uniform(-2, 2, (count, 1, 1))
    plain = ensemble(members, reduction=reduction)
    # float32 members far from 0 lose digits: 2 / exp(-3) * 6e-8
    mapped = ensemble((scale * members + shift).astype(np.float32), reduction=reduction)
    np.testing.assert_allclose(mapped.depth, plain.depth, atol=2e-5)
    np.testing.assert_allclose(mapped.uncertainty, plain.uncertainty, atol=2e-5)


@given(seed=SEEDS, count=COUNTS, reduction=REDUCTIONS, strength=st.sampled_from([0.1, 3.0]))
def test_order_of_members_does_not_matter(seed, count, reduction, strength):
    # Strength 3: members share almost nothing and some correlations are negative.
    members = members_of(seed, count, strength=strength)
    order = np.random.default_rng(seed + 1).permutation(count)
    plain, shuffled = ensemble(members, reduction=reduction), ensemble(members[order], reduction=reduction)
    np.testing.assert_allclose(shuffled.depth, plain.depth, atol=2e-5)
    np.testing.assert_allclose(shuffled.uncertainty, plain.uncertainty, atol=2e-5)
    np.testing.assert_allclose(shuffled.scale, plain.scale[order], atol=1e-4)


@given(seed=SEEDS)
def test_one_member_is_the_identity_after_normalization(seed):
    member = members_of(seed, 1)
    expected = (member[0] - member.min()) / np.ptp(member)
    np.testing.assert_allclose(ensemble(member).depth, expected, atol=2e-6)


@given(seed=SEEDS, count=COUNTS)
def test_copies_of_one_member_change_nothing(seed, count):
    member = members_of(seed, 1)
    result = ensemble(np.repeat(member, count, axis=0))
    np.testing.assert_allclose(result.depth, ensemble(member).depth, atol=2e-6)
    np.testing.assert_allclose(result.uncertainty, 0.0, atol=2e-6)


@given(seed=SEEDS, count=COUNTS, reduction=REDUCTIONS, flat=st.integers(0, 3))
def test_results_are_finite_and_in_range_whatever_the_members(seed, count, reduction, flat):
    members = members_of(seed, count, strength=3.0)
    members[:flat] = 0.5
    result = ensemble(members, reduction=reduction)
    assert (result.scale >= 0).all()
    assert result.depth.min() == 0.0
    assert result.depth.max() in (0.0, 1.0)
    assert np.isfinite(result.uncertainty).all()
    assert (result.uncertainty >= 0).all()


@given(seed=SEEDS, count=COUNTS, reduction=REDUCTIONS)
def test_scales_of_single_members_do_not_matter(seed, count, reduction):
    members = members_of(seed, count)
    members -= min(0.0, float(members.min()))
    scale = np.exp(np.random.default_rng(seed + 1).uniform(-3, 3, (count, 1, 1)))
    plain = ensemble(members, invariance="scale", reduction=reduction)
    mapped = ensemble((scale * members).astype(np.float32), invariance="scale", reduction=reduction)
    np.testing.assert_allclose(mapped.depth, plain.depth, atol=2e-5)
    np.testing.assert_allclose(mapped.uncertainty, plain.uncertainty, atol=2e-5)
    assert plain.depth.max() == 1.0


@given(seed=SEEDS, count=COUNTS, reduction=REDUCTIONS, invariance=st.sampled_from(["affine", "scale", "absolute"]))
def test_uncertainty_is_never_nan(seed, count, reduction, invariance):
    members = np.abs(members_of(seed, count, strength=3.0))
    members[seed % (count + 1) :] = (seed % 3) / 2
    result = ensemble(members, invariance=invariance, reduction=reduction)
    assert np.isfinite(result.depth).all()
    assert np.isfinite(result.uncertainty).all()
    assert (result.uncertainty >= 0).all()
