# SPDX-License-Identifier: Apache-2.0
"""The published ways to ensemble: scales and shifts by BFGS from min-max normalization; slow, for comparison.

The paper and Marigold's code of 2024 take one root of the mean over all pairs, diffusers and Marigold's code since v1-1
sum the roots of the pairs. `ensembling` is what predictions use.

Deviation: the cost is float64 and its finite differences have a step of 1e-4. The published codes step 1.5e-8 in
float32, below the resolution of the numbers they step, so that their gradient is rounding noise. For the same reason
there are two iterations here, as in diffusers and the code of 2024, and not the 50 of v1-1: in its code they end where
two do, while 50 iterations of a gradient that can be used shrink the scales towards 0 (docs/faithfulness.md).

Paper: §3.4, eq. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from openmarigold.errors import InvalidValueError, NumericalError, needs_extra

REGULARIZER = 0.02
RESOLUTION = 1024  # of the copy that the solver works on
DIFFERENCE_STEP = 1e-4
MIN_RANGE = 1e-6


ITERATIONS = 2
TOLERANCE = 1e-3
ONE_ROOT: Mapping[str, bool] = MappingProxyType({"published": False, "published-v1-0": True})
"""Names for `ensemble_reduction`: the code of v1-1 and the code of the paper's tables. The value states whether the
distance is one root of the mean over all pairs, or the sum of each pair's root. Both take the median."""


def published_ensemble(
    members: Float32[np.ndarray, "n h w"],
    *,
    invariance: str = "affine",
    reduction: str = "median",
    one_root: bool = False,
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Depth and uncertainty of two or more members.

    Raises:
        InvalidValueError: members in units that are not to be fitted ("absolute"), which the published code refuses.
        MissingExtraError: without scipy (extra `metric`).
        NumericalError: a member with a value that is not finite.
    """
    if invariance not in ("affine", "scale"):
        raise InvalidValueError(
            f"published ensembling fits members to each other, and depth of invariance {invariance!r} is not to be "
            "fitted; use ensemble_reduction median"
        )
    minimize = find_solver()
    if not np.isfinite(members).all():
        raise NumericalError("ensemble members hold values that are not finite; the network's output is broken")
    shrunk = shrink(members).reshape(len(members), -1)
    low, high = shrunk.min(axis=1).astype(np.float64), shrunk.max(axis=1).astype(np.float64)
    if invariance == "affine":
        initial_scale = 1.0 / np.maximum(high - low, MIN_RANGE)
        start = np.concatenate([initial_scale, -initial_scale * low])
    else:
        start = 1.0 / np.maximum(high, MIN_RANGE)
    solution = minimize(
        cost,
        start,
        args=(shrunk, *moments(shrunk), reduction, one_root),
        method="BFGS",
        tol=TOLERANCE,
        options={"maxiter": ITERATIONS, "eps": DIFFERENCE_STEP},
    )
    depth, uncertainty = reduce(members.reshape(len(members), -1), *split(solution.x, len(members)), reduction)
    nearest = float(depth.min()) if invariance == "affine" else 0.0
    extent = max(float(depth.max()) - nearest, MIN_RANGE)
    shape = members.shape[1:]
    return ((depth - nearest) / extent).reshape(shape), (uncertainty / extent).reshape(shape)


def find_solver() -> Callable[..., Any]:
    """`scipy.optimize.minimize`.

    Raises:
        MissingExtraError: without scipy (extra `metric`).
    """
    with needs_extra("metric"):
        from scipy.optimize import minimize
    return minimize


def cost(
    parameters: Float64[np.ndarray, " p"],
    flat: Float32[np.ndarray, "n pixels"],
    mean: Float64[np.ndarray, " n"],
    gram: Float64[np.ndarray, "n n"],
    reduction: str,
    one_root: bool = False,
) -> float:
    """Pairwise distances + 0.02·(|nearest| + |1 − farthest|) of the consensus, of n scales and n shifts or none."""
    scale, shift = split(parameters, len(flat))
    consensus, _ = reduce(flat, scale, shift, reduction, with_spread=False)
    regularizer = abs(float(consensus.min())) + abs(1.0 - float(consensus.max()))
    return pairwise_cost(gram, mean, scale, shift, one_root=one_root) + REGULARIZER * regularizer


def pairwise_cost(
    gram: Float64[np.ndarray, "n n"],
    mean: Float64[np.ndarray, " n"],
    scale: Float64[np.ndarray, " n"],
    shift: Float64[np.ndarray, " n"],
    *,
    one_root: bool = False,
) -> float:
    """Σ_{i<j} √ mean_px (d'_i − d'_j)² of the aligned members, of their products and means; paper: eq. 4, first term.

    With `one_root` √ mean_{i<j,px} (d'_i − d'_j)², as in the paper.
    """
    offset = shift[:, None] - shift[None, :]
    scaled_mean = scale * mean
    scaled_gram = scale[:, None] * scale[None, :] * gram
    power = np.diag(scaled_gram)
    squared = power[:, None] + power[None, :] - 2.0 * scaled_gram
    squared += 2.0 * offset * (scaled_mean[:, None] - scaled_mean[None, :]) + offset**2
    squared = np.maximum(squared[np.triu_indices(len(scale), k=1)], 0.0)
    return float(np.sqrt(squared.mean()) if one_root else np.sqrt(squared).sum())


def moments(flat: Float[np.ndarray, "n pixels"]) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n n"]]:
    """Means of the members over the pixels, and means of their products."""
    exact = flat.astype(np.float64)
    return exact.mean(axis=1), exact @ exact.T / flat.shape[1]


def reduce(
    flat: Float[np.ndarray, "n pixels"],
    scale: Float64[np.ndarray, " n"],
    shift: Float64[np.ndarray, " n"],
    reduction: str,
    *,
    with_spread: bool = True,
) -> tuple[Float[np.ndarray, " pixels"], Float[np.ndarray, " pixels"]]:
    """Consensus and spread; the lower one of an even count's two middle values, as torch has it."""
    aligned = flat * scale.astype(np.float32)[:, None] + shift.astype(np.float32)[:, None]
    if reduction == "mean":
        center = aligned.mean(axis=0)
        return center, aligned.std(axis=0, ddof=1) if with_spread else center
    middle = (len(flat) - 1) // 2
    center = np.partition(aligned, middle, axis=0)[middle]
    return center, np.partition(np.abs(aligned - center), middle, axis=0)[middle] if with_spread else center


def split(
    parameters: Float64[np.ndarray, " p"], count: int
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Scales and shifts of the solver's parameters."""
    return parameters[:count], parameters[count:] if len(parameters) > count else np.zeros(count)


def shrink(members: Float32[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n hs ws"]:
    """Members with a longer side of at most 1024 px, by picking the pixel nearest to each new center."""
    height, width = members.shape[1:]
    longer = max(height, width)
    if longer <= RESOLUTION:
        return members
    rows, columns = (
        ((np.arange(count) + 0.5) * side / count).astype(np.intp)
        for side, count in ((side, max(1, side * RESOLUTION // longer)) for side in (height, width))
    )
    return members[:, rows][:, :, columns]
