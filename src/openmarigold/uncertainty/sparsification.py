# SPDX-License-Identifier: Apache-2.0
"""Whether uncertainty ranks errors: the error that remains when the most uncertain pixels are left out.

Poggi et al. 2020, "On the uncertainty of self-supervised monocular depth estimation": AUSE and AURG.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

STEPS = 50
"""Parts in which pixels are left out."""


def remaining_error(
    error: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"], *, steps: int = STEPS
) -> Float64[np.ndarray, " k"]:
    """The mean error of what remains when 0, 1, .. `steps` parts of the pixels are left out, the most uncertain first.

    The last of the `steps + 1` values is 0: nothing remains. Pixels that are equally uncertain count with the mean
    error of their kind, so that their order does not matter. NaN is the largest uncertainty.
    """
    order = np.argsort(uncertainty, kind="stable")
    sorted_error, levels = error[order].astype(np.float64), uncertainty[order]
    unknown = np.isnan(levels)  # sorted last: the most uncertain
    first = np.r_[True, (levels[1:] > levels[:-1]) | (unknown[1:] & ~unknown[:-1])]  # of equally uncertain pixels
    group = np.cumsum(first) - 1
    sums = np.bincount(group, weights=sorted_error)
    shared = (sums / np.bincount(group))[group]
    total = np.r_[0.0, np.cumsum(shared)]
    kept = np.rint(error.size * (1 - np.arange(steps) / steps)).astype(int)
    kept = np.maximum(kept, 1)
    return np.r_[total[kept] / kept, 0.0]


def sparsification(
    error: Float[np.ndarray, " n"], uncertainty: Float[np.ndarray, " n"], *, steps: int = STEPS
) -> tuple[float, float]:
    """AUSE and AURG, in the unit of the error: areas over the share of pixels that is left out.

    AUSE: between the curve of the uncertainty and that of the errors themselves; 0 is the best. AURG: between no curve
    (pixels left out at random) and that of the uncertainty; above 0 is better than chance. All curves end at 0, where
    nothing remains. Poggi et al. let the random one end at the mean error, so their AURG is higher by this error / (2
    `steps`).
    """
    curve, oracle = (remaining_error(error, by, steps=steps) for by in (uncertainty, error))
    flat = np.r_[np.full(steps, float(np.mean(error))), 0.0]
    ours, best, chance = (float((values[1:] + values[:-1]).sum() / (2 * steps)) for values in (curve, oracle, flat))
    return ours - best, chance - ours
