# SPDX-License-Identifier: Apache-2.0
"""Cuts: where a clip goes on with something else."""

from __future__ import annotations

from typing import Literal

LOST = 0.3
"""Share of the textured pixels that are found again below which a cut is looked for."""
POOR_FIT = 0.3
"""Share of inliers below which a fit says nothing."""

_GONE = 0.12  # of the textured pixels: nothing is found again
_OTHER_COLORS = 0.3  # share of the pixels that have another color


def cut_in_photos(share: float, distance: float) -> Literal["no", "maybe", "yes"]:
    """Whether a cut lies between two photos; maybe: the maps must tell.

    Args:
        share: of the textured pixels of the later one, those found in the earlier one.
        distance: of their colors, 0 to 1 (`looks.histogram_distance`).
    """
    if share >= LOST:
        return "no"
    return "yes" if share < _GONE or distance > _OTHER_COLORS else "maybe"
