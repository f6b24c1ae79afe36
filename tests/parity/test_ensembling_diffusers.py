# SPDX-License-Identifier: Apache-2.0
"""Ensembling against diffusers' MarigoldDepthPipeline.ensemble_depth.

Diffusers minimizes with finite differences of 1.5e-8 in float32 maps, whose values near 1 are 6e-8 apart: its gradient
is rounding noise and its result changes by per cents when the input changes by 1e-7 (asserted below). So the solvers
are compared with one difference step that float32 can represent, and otherwise by the cost that both minimize.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from openmarigold.ensembling import ensemble, published
from openmarigold.errors import InvalidValueError, NumericalError
from openmarigold.modalities import DEPTH

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
optimize = pytest.importorskip("scipy.optimize")

CASES = [(2, 0), (3, 1), (4, 2), (5, 3), (10, 4)]
EVERY_CASE = pytest.mark.parametrize(("count", "seed"), CASES)


def members_of(count: int, seed: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    depth = 0.6 * rows / height + 0.2 * np.sin(columns / 9.0) + 0.1 * np.cos(rows / 5.0)
    depth = (depth - depth.min()) / np.ptp(depth)
    scale = rng.uniform(0.6, 1.0, (count, 1, 1))
    shift = rng.uniform(0.0, 1.0 - scale)
    return np.clip(scale * depth + shift + 0.02 * rng.standard_normal((count, height, width)), 0, 1).astype(np.float32)


def theirs(
    members: np.ndarray, reduction: str = "median", *, shift_invariant: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    depth, uncertainty = diffusers.MarigoldDepthPipeline.ensemble_depth(
        torch.from_numpy(members)[:, None],
        shift_invariant=shift_invariant,
        output_uncertainty=True,
        reduction=reduction,
    )
    return depth[0, 0].numpy(), uncertainty[0, 0].numpy()


@pytest.fixture
def meaningful_differences(monkeypatch):
    """Diffusers' call of BFGS with our difference step; everything else of it as it is. Keeps the last solution."""
    minimize = optimize.minimize
    seen = {}

    def patched(function, start, *, options, **arguments):
        options = options | {"eps": published.DIFFERENCE_STEP}
        seen["function"], seen["start"] = function, start
        seen["solution"] = minimize(function, start, options=options, **arguments)
        return seen["solution"]

    monkeypatch.setattr(optimize, "minimize", patched)
    return seen


@EVERY_CASE
@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_the_published_solver(count, seed, reduction, meaningful_differences):
    members = members_of(count, seed)
    depth, uncertainty = theirs(members, reduction)
    evaluations = meaningful_differences["solution"].nfev
    assert evaluations > 2 * count, "the solver left its starting point"
    our_depth, our_uncertainty = published.published_ensemble(members, reduction=reduction)
    np.testing.assert_allclose(our_depth, depth, atol=1e-3)
    np.testing.assert_allclose(our_uncertainty, uncertainty, atol=1e-3)


@EVERY_CASE
def test_cost_at_given_scales_and_shifts(count, seed, meaningful_differences):
    members = members_of(count, seed)
    theirs(members)
    their_cost, start = meaningful_differences["function"], meaningful_differences["start"]
    flat = members.reshape(count, -1)
    rng = np.random.default_rng(seed)
    for strength in (0.0, 0.1, 1.0):
        parameters = start + strength * rng.standard_normal(2 * count)
        ours = published.cost(parameters, flat, *published.moments(flat), "median")
        assert ours == pytest.approx(their_cost(parameters), rel=1e-5)


@EVERY_CASE
def test_the_published_solver_of_scale_only_members(count, seed, meaningful_differences):
    members = 0.2 + 0.8 * members_of(count, seed)
    depth, uncertainty = theirs(members, shift_invariant=False)
    assert meaningful_differences["solution"].nfev > count
    our_depth, our_uncertainty = published.published_ensemble(members, invariance="scale")
    np.testing.assert_allclose(our_depth, depth, atol=1e-3)
    np.testing.assert_allclose(our_uncertainty, uncertainty, atol=1e-3)


def pairwise_term(members: np.ndarray, scale: np.ndarray, shift: np.ndarray, *, invariance: str) -> float:
    """The published pairwise term in our gauge, which both solutions can be put into."""
    flat = members.reshape(len(members), -1)
    mean, gram = published.moments(flat)
    squares = np.diag(gram - np.outer(mean, mean) if invariance == "affine" else gram)
    size = np.sqrt(np.mean(scale**2 * squares))
    return published.pairwise_cost(gram, mean, scale / size, shift / size)


@pytest.mark.parametrize("shift_invariant", [True, False])
def test_never_a_worse_pairwise_term_in_the_same_gauge(shift_invariant, monkeypatch):
    """Over 20 seeded ensembles of 2 to 10 members, without touching diffusers' settings."""
    minimize, solutions = optimize.minimize, []

    def keeping(*arguments, **settings):
        solutions.append(minimize(*arguments, **settings))
        return solutions[-1]

    monkeypatch.setattr(optimize, "minimize", keeping)
    for seed in range(20):
        members = members_of(2 + seed % 9, seed)
        theirs(members, shift_invariant=shift_invariant)
        invariance = "affine" if shift_invariant else "scale"
        result = ensemble(members, invariance=invariance)
        ours = pairwise_term(members, result.scale, result.shift, invariance=invariance)
        split = published.split(solutions[-1].x, len(members))
        assert ours <= pairwise_term(members, *split, invariance=invariance) * (1 + 1e-9)


def test_maps_larger_than_the_solvers_resolution(meaningful_differences):
    members = members_of(2, 5, height=21, width=1300)
    depth, _ = theirs(members)
    np.testing.assert_allclose(published.published_ensemble(members)[0], depth, atol=1e-3)


def test_the_published_solution_is_not_reproducible():
    """Why the comparison above needs a common difference step."""
    changes = []
    for seed in range(6):
        members = members_of(5, seed)
        changes.append(np.abs(theirs(members)[0] - theirs(members + np.float32(1e-7))[0]).max())
    assert max(changes) > 5e-3
    for seed in range(6):
        members = members_of(5, seed)
        change = np.abs(ensemble(members).depth - ensemble(members + np.float32(1e-7)).depth).max()
        assert change < 2e-6


def test_closed_form_is_closer_to_the_truth_than_the_published_solution():
    """Mean absolute error against the common map, after the best affine fit, over 10 ensembles of 5."""
    rows, columns = np.mgrid[:48, :64]
    truth = 0.6 * rows / 48 + 0.2 * np.sin(columns / 9.0) + 0.1 * np.cos(rows / 5.0)

    def error(depth: np.ndarray) -> float:
        fit = np.polyfit(depth.ravel().astype(np.float64), truth.ravel(), 1)
        return float(np.abs(np.polyval(fit, depth.ravel()) - truth.ravel()).mean())

    ours, other = [], []
    for seed in range(10):
        members = members_of(5, seed)
        ours.append(error(ensemble(members).depth))
        other.append(error(theirs(members)[0]))
    assert np.mean(ours) <= np.mean(other)


def test_pairwise_cost_equals_the_direct_cost():
    rng = np.random.default_rng(4)
    members = members_of(5, 4).astype(np.float64)
    scale, shift = rng.uniform(0.5, 2.0, 5), rng.uniform(-1.0, 1.0, 5)
    aligned = scale[:, None, None] * members + shift[:, None, None]
    direct = sum(np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.combinations(aligned, 2))
    mean, gram = published.moments(members.reshape(5, -1))
    assert published.pairwise_cost(gram, mean, scale, shift) == pytest.approx(direct, rel=1e-9)
    one_root = np.sqrt(np.mean([(a - b) ** 2 for a, b in itertools.combinations(aligned, 2)]))  # the paper's
    assert published.pairwise_cost(gram, mean, scale, shift, one_root=True) == pytest.approx(one_root, rel=1e-9)


def test_published_ensembling_is_a_way_to_merge_depth():
    """Both kinds align affine copies of a map well: nearer to it than any of its noisy copies."""
    rows, columns = np.mgrid[:48, :64]
    truth = 0.6 * rows / 48 + 0.2 * np.sin(columns / 9.0) + 0.1 * np.cos(rows / 5.0)

    def error(depth: np.ndarray) -> float:
        fit = np.polyfit(depth.ravel().astype(np.float64), truth.ravel(), 1)
        return float(np.abs(np.polyval(fit, depth.ravel()) - truth.ravel()).mean())

    members = members_of(6, 2)
    found = {}
    for name, one_root in published.ONE_ROOT.items():
        merged = DEPTH.merge(members[:, None], "affine", name)
        depth, uncertainty = published.published_ensemble(members, one_root=one_root)
        np.testing.assert_array_equal(merged.stack[0], depth)
        np.testing.assert_array_equal(merged.uncertainty[0], uncertainty)
        assert (depth.min(), depth.max()) == (0.0, pytest.approx(1.0))
        found[name] = error(depth)
        assert found[name] < 0.6 * min(error(member) for member in members)
    assert found["published"] != found["published-v1-0"]
    with pytest.raises(InvalidValueError, match="published ensembling fits members to each other"):
        DEPTH.merge(members[:, None], "absolute", "published")
    members[0, 0, 0] = np.nan
    with pytest.raises(NumericalError, match="not finite"):
        published.published_ensemble(members)


def test_fifty_published_iterations_end_where_two_do():
    """Its gradient is rounding noise; fifty iterations of ours would shrink the scales, so two stand for them."""
    members = torch.from_numpy(members_of(6, 1))[:, None]
    pipeline = diffusers.MarigoldDepthPipeline
    two, fifty = (
        pipeline.ensemble_depth(members, max_iter=iterations, tol=tolerance)[0].numpy()
        for iterations, tolerance in ((2, 1e-3), (50, 1e-6))
    )
    ours, _ = published.published_ensemble(members[:, 0].numpy())
    assert np.abs(two - fifty).mean() < 0.002 and np.abs(ours - fifty[0, 0]).mean() < 0.02


def test_pairwise_cost_of_equal_members_is_zero_not_nan():
    gram, mean = np.full((2, 2), 1.0 / 3.0), np.full(2, 0.1)
    assert published.pairwise_cost(gram, mean, np.ones(2), np.zeros(2)) == pytest.approx(0.0, abs=1e-7)
