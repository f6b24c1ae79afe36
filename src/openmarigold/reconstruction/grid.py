# SPDX-License-Identifier: Apache-2.0
"""The pixels of a depth map that become points, and which neighbors lie on one surface.

A grid of rows and columns is laid over the picture, as dense as a budget allows; every pixel on it keeps its own
depth. Two neighbors of the grid are linked unless there is an edge between them. Depth alone cannot tell an edge from a
floor at a grazing angle: both change by much from pixel to pixel. On a plane 1/z (disparity) is affine in the pixel's
place, so a link is compared with the slope of disparity on both sides of it: a floor continues, an edge does not.
Predicted edges are ramps of a few pixels; so the sides are looked at beyond the width of such a ramp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from openmarigold.camera import Camera
from openmarigold.config import check_max_depth, check_share, check_whole
from openmarigold.errors import InvalidValueError

MAX_SLANT = 5.0
"""Change of depth per radian of the view, by depth, that a link may have beyond what the surface next to it has: the
tangent of an angle of 79 degrees."""
_FOLLOWED = 0.5  # share of the slope next to a link by which the link may deviate more
_FOOT = 0.4  # of `MAX_SLANT`: what is cut next to an edge, where a ramp begins and ends
_RAMP = 0.016  # width of a predicted edge [rad]: 12 pixels of 768 at a field of view of 55 degrees
_QUANTILE_LINES = 1000  # quantiles are those of so many rows and columns
_SPARSER = 1.005  # from one try for a grid to the next


@dataclass(frozen=True, kw_only=True)
class PixelChoice:
    """Which pixels become points.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    max_points: int | None = None
    """At most so many, on a grid that is as dense as they allow; None: every pixel."""
    max_depth: float | None = None
    """Leave out what is deeper, in the unit of the depth; None: nothing."""
    drop_far: float = 0.0
    """Leave out this share of the pixels, the farthest ones, such as a sky; 0 to below 1."""
    drop_uncertain: float = 0.0
    """Leave out this share of the pixels, the most uncertain ones; 0 to below 1."""
    cut_edges: bool = True
    """No surface from an object to what is behind it, and no points between the two."""

    def __post_init__(self) -> None:
        if self.max_points is not None:
            check_whole("max_points", self.max_points)
        check_max_depth(self.max_depth)
        check_share("drop_far", self.drop_far)
        check_share("drop_uncertain", self.drop_uncertain)


@dataclass(frozen=True, kw_only=True)
class SurfaceGrid:
    """Chosen rows and columns of a depth map, and what is linked there."""

    rows: Int64[np.ndarray, " r"]
    columns: Int64[np.ndarray, " c"]
    depth: Float[np.ndarray, "r c"]
    kept: Bool[np.ndarray, "r c"]
    """Whether there is a point."""
    across: Bool[np.ndarray, "r d"]
    """Whether a point and the one right of it lie on one surface."""
    down: Bool[np.ndarray, "e c"]
    """Whether a point and the one below it lie on one surface."""


def surface_grid(
    depth: Float[np.ndarray, "h w"],
    camera: Camera,
    choice: PixelChoice,
    uncertainty: Float[np.ndarray, "_ _"] | None = None,
) -> SurfaceGrid:
    """The points of a depth map and their links.

    Args:
        depth: planar depth, above 0; NaN, infinity and 0 stand for unknown.
        camera: of the picture.
        choice: which pixels.
        uncertainty: larger is worse; NaN is the worst.

    Raises:
        InvalidValueError: maps or camera of different sizes, or `drop_uncertain` without uncertainty.
    """
    camera.check_map(depth)
    chosen = _chosen(depth, uncertainty, choice)
    rows, columns = _grid_lines(chosen, choice.max_points)
    values = depth[np.ix_(rows, columns)].astype(np.float64)
    kept = chosen[np.ix_(rows, columns)]
    across, down = np.zeros((len(rows), len(columns) - 1), bool), np.zeros((len(rows) - 1, len(columns)), bool)
    if choice.cut_edges:
        with np.errstate(divide="ignore", invalid="ignore"):
            disparity = np.where(np.isfinite(values) & (values > 0), 1.0 / values, np.nan)
        across, down = _edges(disparity, columns / camera.fx), _edges(disparity.T, rows / camera.fy).T
        kept = kept & ~(_between_two(across) | _between_two(down.T).T)
    return SurfaceGrid(
        rows=rows,
        columns=columns,
        depth=values,
        kept=kept,
        across=~across & kept[:, 1:] & kept[:, :-1],
        down=~down & kept[1:] & kept[:-1],
    )


def _chosen(
    depth: Float[np.ndarray, "h w"], uncertainty: Float[np.ndarray, "_ _"] | None, choice: PixelChoice
) -> Bool[np.ndarray, "h w"]:
    if choice.drop_uncertain and uncertainty is None:
        raise InvalidValueError(
            "drop_uncertain needs an uncertainty map; predict with ensemble_size 2 or more, or leave it out"
        )
    if uncertainty is not None and uncertainty.shape != depth.shape:
        raise InvalidValueError(
            f"the uncertainty is {uncertainty.shape[0]}x{uncertainty.shape[1]} and the depth map {depth.shape[0]}x"
            f"{depth.shape[1]}; they must be of one size"
        )
    with np.errstate(invalid="ignore"):
        chosen = np.isfinite(depth) & (depth > 0)
        known = chosen.copy() if choice.drop_far or choice.drop_uncertain else chosen
        if choice.max_depth is not None:
            chosen &= depth <= choice.max_depth
        if choice.drop_far:
            chosen &= _nearer(depth, known, 1.0 - choice.drop_far)
        if choice.drop_uncertain and uncertainty is not None:
            chosen &= uncertainty <= _quantile(
                uncertainty, known & np.isfinite(uncertainty), 1.0 - choice.drop_uncertain
            )
    return chosen


def _nearer(depth: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], share: float) -> Bool[np.ndarray, "h w"]:
    """The nearest share of the pixels, without those of a plateau that goes beyond it, such as a sky at depth 1."""
    limit = _quantile(depth, known, share)
    nearer = depth < limit
    is_plateau = not (depth[known] > limit).any() and (nearer & known).any()
    return nearer if is_plateau else depth <= limit


def _quantile(values: Float[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], share: float) -> float:
    """Quantile of every n-th row and column, so that a large map needs no sorted copy; inf where no value is known."""
    height, width = values.shape
    some = slice(None, None, max(1, height // _QUANTILE_LINES)), slice(None, None, max(1, width // _QUANTILE_LINES))
    found = values[some][known[some]]
    return float(np.quantile(found, share)) if found.size else math.inf


def _grid_lines(
    chosen: Bool[np.ndarray, "h w"], max_points: int | None
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " c"]]:
    """Rows and columns at one distance, rounded to pixels, that meet in at most `max_points` chosen pixels."""
    height, width = chosen.shape
    if max_points is None:
        return np.arange(height), np.arange(width)
    count = int(np.count_nonzero(chosen))
    spacing = max(1.0, math.sqrt(count / max_points))
    while True:
        rows, columns = _lines(height, spacing), _lines(width, spacing)
        if np.count_nonzero(chosen[np.ix_(rows, columns)]) <= max_points:
            return rows, columns
        spacing *= _SPARSER


def _lines(side: int, spacing: float) -> Int64[np.ndarray, " n"]:
    number = max(1, int(side / spacing))
    return ((np.arange(number) + 0.5) * (side / number)).astype(np.int64)


def _edges(disparity: Float[np.ndarray, "r c"], place: Float[np.ndarray, " c"]) -> Bool[np.ndarray, "r d"]:
    """Whether there is an edge between a column and the next; `place` is that of the columns [tangent of the view]."""
    if len(place) < 2:
        return np.zeros((len(disparity), 0), dtype=bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        near = np.fmax(disparity[:, 1:], disparity[:, :-1])
        slope = np.diff(disparity, axis=1) / np.diff(place)[None] / near
        reach = max(1, round(_RAMP * (len(place) - 1) / (place[-1] - place[0])))
        left = _side(disparity, place, reach) / near
        right = -_side(disparity[:, ::-1], -place[::-1], reach)[:, ::-1] / near
        beyond = np.full(slope.shape, np.inf)
        for side in (left, right):
            beyond = np.fmin(beyond, np.abs(slope - side) - _FOLLOWED * np.abs(side))
        beyond = np.where(np.isinf(beyond), np.abs(slope), beyond)  # nothing is known on either side
        steepness = np.fmin(np.abs(slope), beyond)
    edges = steepness > MAX_SLANT
    foot = steepness > _FOOT * MAX_SLANT
    for _ in range(reach // 2):  # from link to link
        grown = edges.copy()
        grown[:, 1:] |= edges[:, :-1] & foot[:, 1:]
        grown[:, :-1] |= edges[:, 1:] & foot[:, :-1]
        edges = grown
    return edges


def _side(disparity: Float[np.ndarray, "r c"], place: Float[np.ndarray, " c"], reach: int) -> Float[np.ndarray, "r d"]:
    """Slope of disparity left of each link, from `reach` to twice as far from it; NaN where unknown."""
    last = np.maximum(np.arange(len(place) - 1) - reach, 0)
    first = np.maximum(last - reach, 0)  # where both are 0, too little is left of the link: 0 / 0
    return (disparity[:, last] - disparity[:, first]) / (place[last] - place[first])[None]


def _between_two(edges: Bool[np.ndarray, "r d"]) -> Bool[np.ndarray, "r c"]:
    """Columns with an edge on both sides: within a ramp."""
    found = np.zeros((edges.shape[0], edges.shape[1] + 1), dtype=bool)
    found[:, 1:-1] = edges[:, 1:] & edges[:, :-1]
    return found


def triangles_of(grid: SurfaceGrid) -> Int64[np.ndarray, "t 3"]:
    """Triangles of linked points, as places in the flattened grid; their front faces the camera.

    A cell of four points is cut from top right to bottom left; where one of those two is not linked to the others, from
    top left to bottom right.
    """
    number = np.arange(grid.depth.size).reshape(grid.depth.shape)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    top, bottom = grid.across[:-1], grid.across[1:]
    left, right = grid.down[:, :-1], grid.down[:, 1:]
    other = (~top & ~right & left & bottom) | (~left & ~bottom & top & right)
    parts = [
        np.stack([corner[wanted] for corner in corners], axis=-1)
        for wanted, corners in (
            (top & left & ~other, (a, c, b)),
            (bottom & right & ~other, (b, c, d)),
            (left & bottom & other, (a, c, d)),
            (top & right & other, (a, d, b)),
        )
    ]
    return np.concatenate(parts)
