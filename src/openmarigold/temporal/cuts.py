# SPDX-License-Identifier: Apache-2.0
"""Cuts: where a clip goes on with something else."""

from __future__ import annotations

from typing import Literal

DOUBTFUL = 0.5
"""Share of the textured pixels that are found again below which a cut is looked for."""
POOR_FIT = 0.3
"""Share of inliers, and correlation where a scale is fitted, below which a fit says nothing."""
SAME_SCENE = 0.85
"""Correlation of two maps on the pixels that are found again, below which these were found by chance."""

_LOST = 0.4  # of the textured pixels: few are found again
_GONE = 0.2  # of the textured pixels: nothing is found again
_OTHER_COLORS = 0.3  # share of the pixels that have another color


def cut_in_photos(share: float, distance: float) -> Literal["no", "maybe", "yes"]:
    """Whether a cut lies between two photos; maybe: the maps must tell.

    Args:
        share: of the textured pixels of the later one, those found in the earlier one.
        distance: of their colors, 0 to 1 (`looks.histogram_distance`).
    """
    if share >= DOUBTFUL:
        return "no"
    return "yes" if share < _GONE or (share < _LOST and distance > _OTHER_COLORS) else "maybe"
