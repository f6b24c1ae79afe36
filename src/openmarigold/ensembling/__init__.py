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

Paper: §3.4 (test-time ensembling), eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from openmarigold.config import INVARIANCES
from openmarigold.errors import InvalidValueError, NumericalError

REDUCTIONS = ("median", "mean")

_CHUNK_PIXELS = 1 << 15  # float64 copies of a chunk stay in the cache and far below the size of the members
_CONSTANT_SPREAD = 1e-6  # standard deviation, relative to the magnitude, that float32 rounding can produce
_MIN_RANGE = 1e-6
_EIGENVALUE_TIE = 1e-9
_POWER_ITERATIONS = 1000


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
    members: Float32[np.ndarray, "n h w"], *, invariance: str = "affine", reduction: str = "median"
) -> Ensemble:
    """Consensus of `n` members [n h w], each a depth map that is known up to `invariance`.

    The result does not change when a member is mapped by what the invariance allows, or when members change places (up
    to rounding). One affine member comes back normalized to [0, 1]. The median of an even count is the mean of the
    middle two.

    Args:
        members: at least one; finite, and not negative where zero means zero ("scale").
        invariance: "affine", "scale" or "absolute"; see the module.
        reduction: "median" or "mean" over the aligned members.

    Raises:
        InvalidValueError: no member, or an unknown invariance or reduction.
        NumericalError: a member with a value that is not finite.

    Paper: §3.4.
    """
    if members.size == 0:
        raise InvalidValueError(f"members of shape {members.shape} hold no pixel; give at least one map")
    for name, value, accepted in (("invariance", invariance, INVARIANCES), ("reduction", reduction, REDUCTIONS)):
        if value not in accepted:
            raise InvalidValueError(f"{name}={value!r} is not one of {', '.join(accepted)}")
    flat = members.reshape(len(members), -1)
    mean, covariance = _moments(flat)
    if not np.isfinite(covariance).all():
        raise NumericalError("ensemble members hold values that are not finite; the network's output is broken")
    if invariance == "absolute":
        scale, shift = np.ones(len(members)), np.zeros(len(members))
    elif invariance == "scale":
        gram = covariance + np.outer(mean, mean)
        scale, shift = _consensus_scale(gram, magnitude=np.zeros(len(members))), np.zeros(len(members))
    else:
        scale = _consensus_scale(covariance, magnitude=np.abs(mean))
        shift = -scale * mean
    depth, uncertainty = _reduce(flat, scale, shift, reduction=reduction)
    nearest, extent = _frame(depth, invariance=invariance)
    return Ensemble(
        depth=((depth - nearest) / extent).reshape(members.shape[1:]),
        uncertainty=(uncertainty / extent).reshape(members.shape[1:]),
        scale=scale / extent,
        shift=(shift - nearest) / extent,
    )


def _frame(depth: Float32[np.ndarray, " pixels"], *, invariance: str) -> tuple[float, float]:
    """Depth that becomes 0 and length that becomes 1 in the consensus; this fixes what the invariance leaves free."""
    if invariance == "absolute":
        return 0.0, 1.0
    if invariance == "scale":
        return 0.0, max(float(depth.max()), _MIN_RANGE)
    return float(depth.min()), max(float(np.ptp(depth)), _MIN_RANGE)


def _moments(flat: Float32[np.ndarray, "n pixels"]) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n n"]]:
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
    whose spread is rounding next to their `magnitude` (constant ones) get scale 0. Where the leading eigenvector has
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
            center[chunk] = _median(aligned)
            deviation[chunk] = _median(np.abs(aligned - center[chunk]))
    return center, deviation


def _median(values: Float[np.ndarray, "n pixels"]) -> Float[np.ndarray, " pixels"]:
    """Median over the members; of an even count the mean of the middle two."""
    ordered = np.sort(values, axis=0)
    low, high = (len(values) - 1) // 2, len(values) // 2
    return ordered[low] if low == high else (ordered[low] + ordered[high]) / 2
