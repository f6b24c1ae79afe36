# SPDX-License-Identifier: Apache-2.0
"""Edges of predicted depth against edges that people drew: precision, recall and the area under their curve.

Source: Talker et al. 2024 (Mind The Edge) and its published evaluation; matching as in the Berkeley benchmark of
boundaries (Martin et al. 2004), here with as many pairs as there can be.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.errors import InvalidValueError, needs_extra
from openmarigold.temporal.flow import opencv

THRESHOLDS = tuple(range(20, 241, 20))
"""Upper thresholds of the edge detector, for depth in 256 steps; the lower ones are half of them."""
TOLERANCE = 0.002
"""Largest distance of two edge pixels that belong together, in diagonals of the picture."""
TALLY_SIZE = 2 * len(THRESHOLDS) + 1

_PRECISIONS = np.arange(100) / 100


def depth_edges(depth: Float[np.ndarray, "h w"], farthest: float, threshold: int) -> Bool[np.ndarray, "h w"]:
    """Canny's edges of depth in 256 steps from 0 to `farthest`; what is farther, or no number, counts as that far.

    Args:
        depth: depth [m].
        farthest: of the steps [m].
        threshold: the upper one of the edge detector, of gradients over 3 x 3 pixels; the lower one is half of it.

    Raises:
        InvalidValueError: `farthest` is not positive and finite.
        MissingExtraError: without OpenCV (extra `video`).
    """
    if not 0 < farthest < math.inf:
        raise InvalidValueError(f"farthest={farthest!r} is not accepted; give a distance in meters above 0")
    steps = 255.0 / farthest * np.clip(np.nan_to_num(depth, nan=farthest, posinf=farthest), 0.0, farthest)
    return opencv().Canny(steps.astype(np.uint8), threshold / 2, threshold) > 0


def num_matches(predicted: Bool[np.ndarray, "h w"], drawn: Bool[np.ndarray, "h w"]) -> int:
    """The largest number of pairs of a predicted and a drawn pixel that are near enough, each pixel in one at most.

    Raises:
        MissingExtraError: without scipy (extra `metric`).
    """
    with needs_extra("metric"):
        from scipy.sparse.csgraph import maximum_bipartite_matching
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]
    if not (predicted.any() and drawn.any()):
        return 0
    trees = [cKDTree(np.argwhere(mask)) for mask in (predicted, drawn)]
    near = trees[0].sparse_distance_matrix(trees[1], TOLERANCE * math.hypot(*drawn.shape), output_type="coo_matrix")
    near.data[:] = 1.0  # pixels in the same place have a distance of 0, which would be no entry
    return int(np.count_nonzero(maximum_bipartite_matching(near.tocsr(), perm_type="column") >= 0))


def edge_tally(
    depth: Float[np.ndarray, "h w"], drawn: Bool[np.ndarray, "h w"], farthest: float
) -> Float64[np.ndarray, " k"]:
    """Numbers of drawn pixels, and for each of `THRESHOLDS` of matched ones, then of predicted ones.

    Raises:
        InvalidValueError, MissingExtraError: as `depth_edges` and `num_matches`.
    """
    found = [depth_edges(depth, farthest, threshold) for threshold in THRESHOLDS]
    matched = [num_matches(predicted, drawn) for predicted in found]
    return np.array([np.count_nonzero(drawn), *matched, *map(np.count_nonzero, found)], dtype=np.float64)


def edge_scores(tallies: Float64[np.ndarray, "r k"]) -> dict[str, Float64[np.ndarray, " r"]]:
    """`de_auc` of sums of tallies, [0, 1]: the mean of recall at precisions of 0 to 0.99 in steps of 0.01.

    Each threshold with predicted edges gives a precision and a recall; between them recall is interpolated, beyond them
    it is that of the nearest.
    """
    return {"de_auc": np.array([_area(tally) for tally in tallies], dtype=np.float64)}


def _area(tally: Float64[np.ndarray, " k"]) -> float:
    drawn, matched, predicted = tally[0], tally[1 : 1 + len(THRESHOLDS)], tally[1 + len(THRESHOLDS) :]
    some = predicted > 0
    if not some.any() or drawn == 0:
        return 0.0
    precision, recall = matched[some] / predicted[some], matched[some] / drawn
    order = np.argsort(precision, kind="stable")
    return float(np.interp(_PRECISIONS, precision[order], recall[order]).mean())
