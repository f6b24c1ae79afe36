# SPDX-License-Identifier: Apache-2.0
"""Joint alignment of several predictions of one photo, their consensus and its uncertainty.

A checkpoint states what its depth is known up to, the `invariance`:

- "affine": a positive scale s_i and a shift t_i, each member its own (every published depth checkpoint);
- "scale": a positive scale; zero is zero, so there are no shifts;
- "absolute": nothing; members are comparable as they are and are only reduced.

The paper chooses scales and shifts so that the aligned members d'_i = s_i·d_i + t_i differ least from each other, with
a regularizer against the trivial solution s = 0. Here the gauge is fixed instead: the aligned members have mean
variance 1 ("scale": mean power 1). What is minimized is then

    Σ_{i<j} mean_px (d'_i − d'_j)²  =  n·Σ_i w_i² − wᵀC w,    w_i = s_i·std(d_i),  Σ_i w_i² = n,

where the shifts make all means equal and C is the members' correlation matrix ("scale": no shifts, root mean squares in
the place of standard deviations, and the cosines between members). The leading eigenvector of C, which the n×n Gram
matrix gives, is the minimum: no iteration over pixels, no gradient, no starting point, and the result does not depend
on the members' own scales and shifts.

Paper: §3.4 (test-time ensembling), eq. 4; the published solver is `solver="compat"`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from openmarigold.config import INVARIANCES
from openmarigold.errors import InvalidValueError, MissingExtraError, NumericalError

REDUCTIONS = ("median", "mean")
SOLVERS = ("closed_form", "compat")

_CHUNK_PIXELS = 1 << 15  # float64 copies of a chunk stay in the cache and far below the size of the members
_CONSTANT_SPREAD = 1e-6  # standard deviation, relative to the magnitude, that float32 rounding can produce
_MIN_RANGE = 1e-6
_EIGENVALUE_TIE = 1e-9
_POWER_ITERATIONS = 1000

# The published solver: regularizer weight, size of the copy it works on, and diffusers' stopping rule for BFGS.
_REGULARIZER = 0.02
_SOLVER_RESOLUTION = 1024
_SOLVER_ITERATIONS = 2
_SOLVER_TOLERANCE = 1e-3
_DIFFERENCE_STEP = 1e-4


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Consensus of aligned members.

    Member i contributes `scale[i] * members[i] + shift[i]`, in the frame of `depth`; a scale of 0 means that the member
    was constant or contradicted the others, and contributes its vote as a flat map.
    """

    depth: Float32[np.ndarray, "h w"]
    """"affine": the nearest pixel 0, the farthest 1; all 0 if every member is constant. "scale": the farthest pixel 1.
    "absolute": in the members' own units."""
    uncertainty: Float32[np.ndarray, "h w"]
    """Median absolute deviation of the aligned members (standard deviation for the mean), in units of `depth`, ≥ 0."""
    scale: Float64[np.ndarray, " n"]
    """All 1 for "absolute"."""
    shift: Float64[np.ndarray, " n"]
    """All 0 for "scale" and "absolute"."""


def ensemble(
    members: Float32[np.ndarray, "n h w"],
    *,
    invariance: str = "affine",
    reduction: str = "median",
    solver: str = "closed_form",
) -> Ensemble:
    """Consensus of `n` members [n h w], each a depth map that is known up to `invariance`.

    The result does not change when a member is mapped by what the invariance allows, or when members change places (up
    to rounding). One affine member comes back normalized to [0, 1]. The median of an even count is the mean of the
    middle two ("compat" takes the lower one, as the published code does).

    Args:
        members: at least one; finite, and not negative where zero means zero ("scale").
        invariance: "affine", "scale" or "absolute"; see the module.
        reduction: "median" or "mean" over the aligned members.
        solver: "closed_form", or "compat": the published cost minimized by scipy's BFGS (slow, for comparison).

    Raises:
        InvalidValueError: no member, or an unknown invariance, reduction or solver.
        NumericalError: a member with a value that is not finite.
        MissingExtraError: "compat" without scipy.

    Paper: §3.4.
    """
    if members.size == 0:
        raise InvalidValueError(f"members of shape {members.shape} hold no pixel; give at least one map")
    for name, value, accepted in (
        ("invariance", invariance, INVARIANCES),
        ("reduction", reduction, REDUCTIONS),
        ("solver", solver, SOLVERS),
    ):
        if value not in accepted:
            raise InvalidValueError(f"{name}={value!r} is not one of {', '.join(accepted)}")
    flat = members.reshape(len(members), -1)
    mean, covariance = _moments(flat)
    if not np.isfinite(covariance).all():
        raise NumericalError("ensemble members hold values that are not finite; the network's output is broken")
    if invariance == "absolute":
        scale, shift = np.ones(len(members)), np.zeros(len(members))
    elif solver == "compat":
        scale, shift = _compat_scale_shift(members, invariance=invariance, reduction=reduction)
    elif invariance == "scale":
        gram = covariance + np.outer(mean, mean)
        scale, shift = _consensus_scale(gram, magnitude=np.zeros(len(members))), np.zeros(len(members))
    else:
        scale = _consensus_scale(covariance, magnitude=np.abs(mean))
        shift = -scale * mean
    depth, uncertainty = _reduce(flat, scale, shift, reduction=reduction, lower_median=solver == "compat")
    nearest, extent = _frame(depth, invariance=invariance)
    return Ensemble(
        depth=((depth - nearest) / extent).reshape(members.shape[1:]),
        uncertainty=(uncertainty / extent).reshape(members.shape[1:]),
        scale=scale / extent,
        shift=(shift - nearest) / extent,
    )


def _frame(depth: Float32[np.ndarray, " pixels"], *, invariance: str) -> tuple[float, float]:
    """What becomes 0 and the length that becomes 1 in the consensus: what the invariance leaves free is fixed here."""
    if invariance == "absolute":
        return 0.0, 1.0
    if invariance == "scale":
        return 0.0, max(float(depth.max()), _MIN_RANGE)
    return float(depth.min()), max(float(np.ptp(depth)), _MIN_RANGE)


def pairwise_cost(
    gram: Float64[np.ndarray, "n n"],
    mean: Float64[np.ndarray, " n"],
    scale: Float64[np.ndarray, " n"],
    shift: Float64[np.ndarray, " n"],
) -> float:
    """Σ_{i<j} √ mean_px (d'_i − d'_j)² of the aligned members, without touching a pixel.

    Args:
        gram: mean over the pixels of d_i·d_j.
        mean: mean over the pixels of d_i.
        scale: of each member.
        shift: of each member.

    Paper: eq. 4, first term (the published code sums the roots, the paper takes one root of the sum).
    """
    offset = shift[:, None] - shift[None, :]
    scaled_mean = scale * mean
    scaled_gram = scale[:, None] * scale[None, :] * gram
    power = np.diag(scaled_gram)
    squared = power[:, None] + power[None, :] - 2.0 * scaled_gram
    squared += 2.0 * offset * (scaled_mean[:, None] - scaled_mean[None, :]) + offset**2
    pairs = np.triu_indices(len(scale), k=1)
    return float(np.sqrt(np.maximum(squared[pairs], 0.0)).sum())


def _moments(
    flat: Float32[np.ndarray, "n pixels"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n n"]]:
    """Means and covariance matrix of the members over the pixels, in float64, a chunk at a time."""
    covariance = np.zeros((len(flat), len(flat)))
    with np.errstate(invalid="ignore"):  # the caller reports what is not finite
        mean = flat.mean(axis=1, dtype=np.float64)
        for start in range(0, flat.shape[1], _CHUNK_PIXELS):
            centered = flat[:, start : start + _CHUNK_PIXELS] - mean[:, None]
            covariance += centered @ centered.T
    return mean, covariance / flat.shape[1]


def _consensus_scale(
    covariance: Float64[np.ndarray, "n n"], *, magnitude: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Scales s_i ≥ 0 that minimize the pairwise distances under the gauge Σ_i s_i²·C_ii = n; see the module.

    `covariance` C is the Gram matrix of the centered members, or of the members themselves where zero is zero. Members
    whose spread is rounding beside their `magnitude` (constant ones) get scale 0. Where the leading eigenvector has
    negative entries (a member runs against the others), depth must not be turned inside out: the objective is maximized
    over w ≥ 0 by projected power iteration from equal weights, which never lowers it; a member that contradicts the
    consensus ends at scale 0.
    """
    spread = np.sqrt(np.diag(covariance))
    varying = (spread > _CONSTANT_SPREAD * np.maximum(magnitude, spread)) & (spread > 0.0)
    scale = np.zeros(len(spread))
    if not varying.any():
        return scale
    spread = spread[varying]
    correlation = covariance[np.ix_(varying, varying)] / np.outer(spread, spread)
    values, vectors = np.linalg.eigh(correlation)
    # Equal weights projected on the leading eigenspace: fixes the sign, and the choice where eigenvalues tie.
    leading = vectors[:, values >= values[-1] * (1.0 - _EIGENVALUE_TIE)]
    weights = leading @ leading.sum(axis=0)
    if weights.min() <= 0.0:
        weights = _nonnegative_weights(correlation)
    weights *= np.sqrt(len(weights) / np.sum(weights**2))
    scale[varying] = weights / spread
    return scale


def _nonnegative_weights(correlation: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, " n"]:
    """Weights w ≥ 0 of length 1 at which wᵀC w is stationary, ascending from equal weights."""
    weights = np.full(len(correlation), len(correlation) ** -0.5)
    for _ in range(_POWER_ITERATIONS):
        ascended = np.maximum(correlation @ weights, 0.0)
        length = np.linalg.norm(ascended)
        if length < _EIGENVALUE_TIE:  # the members cancel: none is preferred
            break
        ascended /= length
        converged = np.abs(ascended - weights).max() < 1e-12
        weights = ascended
        if converged:
            break
    return weights


def _reduce(
    flat: Float32[np.ndarray, "n pixels"],
    scale: Float64[np.ndarray, " n"],
    shift: Float64[np.ndarray, " n"],
    *,
    reduction: str,
    lower_median: bool,
) -> tuple[Float32[np.ndarray, " pixels"], Float32[np.ndarray, " pixels"]]:
    """Reduction of the aligned members and its spread, a chunk at a time (the aligned members are never all held)."""
    center = np.empty(flat.shape[1], dtype=np.float32)
    deviation = np.empty(flat.shape[1], dtype=np.float32)
    factor, offset = scale.astype(np.float32)[:, None], shift.astype(np.float32)[:, None]
    for start in range(0, flat.shape[1], _CHUNK_PIXELS):
        chunk = slice(start, start + _CHUNK_PIXELS)
        aligned = flat[:, chunk] * factor + offset
        if reduction == "mean":
            center[chunk] = aligned.mean(axis=0)
            deviation[chunk] = aligned.std(axis=0, ddof=1) if len(aligned) > 1 else 0.0
        else:
            center[chunk] = _median(aligned, lower=lower_median)
            deviation[chunk] = _median(np.abs(aligned - center[chunk]), lower=lower_median)
    return center, deviation


def _median(values: Float[np.ndarray, "n pixels"], *, lower: bool) -> Float[np.ndarray, " pixels"]:
    """Median over the members; of an even count the mean of the middle two, or the lower one."""
    ordered = np.sort(values, axis=0)
    low, high = (len(values) - 1) // 2, len(values) // 2
    return ordered[low] if lower or low == high else (ordered[low] + ordered[high]) / 2


def _compat_scale_shift(
    members: Float32[np.ndarray, "n h w"], *, invariance: str, reduction: str
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Scales and shifts by the published recipe: BFGS from min-max normalization, two iterations as in diffusers.

    Deviation: the cost is float64 and its finite differences have a step of 1e-4. The published code steps 1.5e-8 in
    float32, below the resolution of the numbers it steps, so that its gradient is rounding noise.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise MissingExtraError("scipy", "dev") from error
    flat = _shrink(members).reshape(len(members), -1)
    low, high = flat.min(axis=1).astype(np.float64), flat.max(axis=1).astype(np.float64)
    if invariance == "affine":
        initial_scale = 1.0 / np.maximum(high - low, _MIN_RANGE)
        start = np.concatenate([initial_scale, -initial_scale * low])
    else:
        start = 1.0 / np.maximum(high, _MIN_RANGE)
    solution = minimize(
        compat_cost,
        start,
        args=(flat, *_moments(flat), reduction),
        method="BFGS",
        tol=_SOLVER_TOLERANCE,
        options={"maxiter": _SOLVER_ITERATIONS, "eps": _DIFFERENCE_STEP},
    )
    return _split(solution.x, len(members))


def compat_cost(
    parameters: Float64[np.ndarray, " parameters"],
    flat: Float32[np.ndarray, "n pixels"],
    mean: Float64[np.ndarray, " n"],
    covariance: Float64[np.ndarray, "n n"],
    reduction: str,
) -> float:
    """Published cost at (scales, shifts): pairwise distances + 0.02·(|nearest| + |1 − farthest|) of the consensus.

    `parameters` holds n scales and n shifts, or n scales only.
    """
    scale, shift = _split(parameters, len(flat))
    consensus, _ = _reduce(flat, scale, shift, reduction=reduction, lower_median=True)
    regularizer = abs(float(consensus.min())) + abs(1.0 - float(consensus.max()))
    return pairwise_cost(covariance + np.outer(mean, mean), mean, scale, shift) + _REGULARIZER * regularizer


def _split(
    parameters: Float64[np.ndarray, " parameters"], count: int
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    return parameters[:count], parameters[count:] if len(parameters) > count else np.zeros(count)


def _shrink(members: Float32[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n hs ws"]:
    """Members with a longer side of at most 1024 px, by picking the pixel nearest to each new center."""
    height, width = members.shape[1:]
    longer = max(height, width)
    if longer <= _SOLVER_RESOLUTION:
        return members
    rows, columns = (
        ((np.arange(count) + 0.5) * side / count).astype(np.intp)
        for side, count in ((side, max(1, side * _SOLVER_RESOLUTION // longer)) for side in (height, width))
    )
    return members[:, rows][:, :, columns]
