# SPDX-License-Identifier: Apache-2.0
"""The published way to ensemble: scales and shifts by BFGS from min-max normalization, two iterations as in diffusers.

Deviation: the cost is float64 and its finite differences have a step of 1e-4. The published code steps 1.5e-8 in
float32, below the resolution of the numbers it steps, so that its gradient is rounding noise.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

REGULARIZER = 0.02
RESOLUTION = 1024  # of the copy that the solver works on
ITERATIONS = 2
TOLERANCE = 1e-3
DIFFERENCE_STEP = 1e-4
MIN_RANGE = 1e-6


def published_ensemble(
    members: np.ndarray, *, invariance: str = "affine", reduction: str = "median"
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and uncertainty of members [n h w]."""
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
        args=(shrunk, *moments(shrunk), reduction),
        method="BFGS",
        tol=TOLERANCE,
        options={"maxiter": ITERATIONS, "eps": DIFFERENCE_STEP},
    )
    depth, uncertainty = reduce(members.reshape(len(members), -1), *split(solution.x, len(members)), reduction)
    nearest = float(depth.min()) if invariance == "affine" else 0.0
    extent = max(float(depth.max()) - nearest, MIN_RANGE)
    shape = members.shape[1:]
    return ((depth - nearest) / extent).reshape(shape), (uncertainty / extent).reshape(shape)


def cost(parameters: np.ndarray, flat: np.ndarray, mean: np.ndarray, gram: np.ndarray, reduction: str) -> float:
    """Pairwise distances + 0.02·(|nearest| + |1 − farthest|) of the consensus, of n scales and n shifts or none."""
    scale, shift = split(parameters, len(flat))
    consensus, _ = reduce(flat, scale, shift, reduction)
    regularizer = abs(float(consensus.min())) + abs(1.0 - float(consensus.max()))
    return pairwise_cost(gram, mean, scale, shift) + REGULARIZER * regularizer


def pairwise_cost(gram: np.ndarray, mean: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> float:
    """Σ_{i<j} √ mean_px (d'_i − d'_j)² of the aligned members, of their products and means; paper: eq. 4, first term.

    The published code sums the roots; the paper takes one root of the sum.
    """
    offset = shift[:, None] - shift[None, :]
    scaled_mean = scale * mean
    scaled_gram = scale[:, None] * scale[None, :] * gram
    power = np.diag(scaled_gram)
    squared = power[:, None] + power[None, :] - 2.0 * scaled_gram
    squared += 2.0 * offset * (scaled_mean[:, None] - scaled_mean[None, :]) + offset**2
    return float(np.sqrt(np.maximum(squared[np.triu_indices(len(scale), k=1)], 0.0)).sum())


def moments(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the members over the pixels, and means of their products."""
    exact = flat.astype(np.float64)
    return exact.mean(axis=1), exact @ exact.T / flat.shape[1]


def reduce(flat: np.ndarray, scale: np.ndarray, shift: np.ndarray, reduction: str) -> tuple[np.ndarray, np.ndarray]:
    """Consensus and spread; the lower one of an even count's two middle values, as torch has it."""
    aligned = flat * scale.astype(np.float32)[:, None] + shift.astype(np.float32)[:, None]
    if reduction == "mean":
        return aligned.mean(axis=0), aligned.std(axis=0, ddof=1)
    middle = (len(flat) - 1) // 2
    center = np.sort(aligned, axis=0)[middle]
    return center, np.sort(np.abs(aligned - center), axis=0)[middle]


def split(parameters: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shifts of the solver's parameters."""
    return parameters[:count], parameters[count:] if len(parameters) > count else np.zeros(count)


def shrink(members: np.ndarray) -> np.ndarray:
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
