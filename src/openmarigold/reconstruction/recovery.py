# SPDX-License-Identifier: Apache-2.0
"""Shift and focal length of a photo from its depth and its normals.

Depth up to scale and shift has no shape: each shift and each focal length give another surface. Normals say which one:
those of the right surface point as the predicted ones. The fit looks for shift and focal length with the smallest mean
angle between both. Angles above `CAP` count as `CAP`, so that wrong pixels do not pull. On a plane 1/z is affine in the
pixel's place, so that its differences give the normals of planes exactly, for each shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from openmarigold.camera import ASSUMED_FOV, Camera
from openmarigold.errors import InvalidValueError
from openmarigold.geometry import unit_vectors

CAP = 40.0
"""Largest angle [deg] that a pixel counts."""
FOV_RANGE = (25.0, 110.0)
"""Fields of view along the longer side [deg] that are tried."""
SHIFT_RANGE = (0.01, 10.0)
"""Depths of the nearest pixel that are tried, by the range of depth."""
RELIABLE = 0.1
"""Confidence from which a fit is used."""
LARGEST_COST = 15.0
"""Mean angle [deg] up to which a focal length is used: above, fits were no better than `ASSUMED_FOV` on renders
(docs/experiments.md)."""
ASSUMED_SHIFT = 0.1
"""Depth of the nearest pixel by the range of depth, where the fit finds none."""

_COARSE, _FINE = 64, 128  # longer sides [px] of the maps that are compared
_LARGEST = 512  # longer side [px] from which blocks of pixels are averaged first
_NUM_FOVS, _NUM_SHIFTS, _NUM_FOVS_ALONE = 18, 25, 61
_ROUNDS = ((_COARSE, 4), (_FINE, 5))
_AROUND = np.linspace(-1.0, 1.0, 5)
_SHRINK = 0.55
_BENT = 0.08  # share of the cells that is left out
_WHOLE = 0.99  # share of a cell that must be known
_SHORTEST = 0.5  # of a normal that is known
_FEWEST_CELLS = 100
_FLAT = 1e-6  # range of depth, relative to depth, that is none
_LARGEST_ERROR = 2 * math.sin(math.radians(CAP / 2))  # between unit vectors
_SMALLEST_ERROR = 1e-9
_UNLIKE = 0.05  # correlation that is none
_PRIOR_SPREAD = 0.3  # of the logarithm of the focal length: 42 to 70 degrees
_SMALLEST_ANGLE = 1e-3  # degrees


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What depth and normals tell about the camera and the shift of depth."""

    camera: Camera
    """The given one; else one of source "estimated", or "assumed" where the fit is not reliable."""
    shift: float
    """The number to add to depth, in its unit, to make it depth up to scale; 0 if it is so already."""
    confidence: float
    """How much the maps tell about what is unknown, in [0, 1]: 1 - (spread after the fit / spread before)^2.

    The spreads are of the logarithms of focal length and of shift; the less certain of both counts. The cost around the
    solution gives the spread after the fit: a sharp minimum is a small spread. 0: the maps tell nothing, as a wall does
    that faces the camera. 1: known; also where nothing is unknown.
    """
    fov_spread: float
    """Standard deviation of the field of view [deg] by the same; 0 of a given camera."""
    cost: float
    """Mean angle [deg] between the predicted normals and those of the result, angles above `CAP` counted as `CAP`.

    0 where nothing was fitted.
    """
    is_reliable: bool
    """Whether the fit is used: its confidence is at least `RELIABLE`, and its cost at most `LARGEST_COST` where the
    focal length is unknown. If not, the camera is assumed, and the shift is fitted to it, or assumed as well."""
    note: str = ""
    """Why it is not reliable, one line."""


def recover(
    depth: Float[np.ndarray, "h w"],
    normals: Float[np.ndarray, "h w 3"],
    *,
    invariance: Literal["affine", "scale"],
    camera: Camera | None = None,
    valid_mask: Bool[np.ndarray, "h w"] | None = None,
) -> Recovered:
    """The camera and the shift of depth with which depth has the predicted normals.

    Of affine depth both are found, or the shift alone with a given camera; of depth up to scale the focal length alone.
    Scale of depth changes nothing, nor does a shift of affine depth, but that the result's shift is smaller by it.
    Unknown focal lengths start from a prior around `ASSUMED_FOV`, which yields as the angles get smaller.

    Args:
        depth: planar, near small; of "scale" above 0 where valid.
        normals: unit vectors in the frame "rub"; (0, 0, 0) is unknown.
        invariance: what is unknown of depth: "affine" scale and shift, "scale" scale alone.
        camera: of the picture, where it is known; None looks for its focal length, with square pixels and the
            principal point in the middle.
        valid_mask: True = use this pixel, such as not sky; None uses all finite ones.

    Raises:
        InvalidValueError: maps of different sizes, of fewer than 3x3 pixels, or another invariance.
    """
    _check(depth, normals, invariance, camera)
    if camera is not None and invariance == "scale":
        return Recovered(camera=camera, shift=0.0, confidence=1.0, fov_spread=0.0, cost=0.0, is_reliable=True)
    known = np.isfinite(depth) & (np.square(np.nan_to_num(normals)).sum(axis=-1) > _SHORTEST**2)
    known &= True if valid_mask is None else valid_mask
    if invariance == "scale":
        known &= depth > 0
    frame = _Frame.of(depth, known, invariance, camera)
    if isinstance(frame, str):
        return _assumed(depth, known, invariance, camera, frame)
    views = {side: _view(depth, normals, known, frame, side) for side in (_COARSE, _FINE)}
    if min(view.num_cells for view in views.values()) < _FEWEST_CELLS:
        return _assumed(depth, known, invariance, camera, "too few pixels have depth and normals")
    found = _search(views, frame)
    cost = views[_FINE].cost(found.shift, found.focal)
    if found.confidence < RELIABLE:
        return _fallback(views, frame, found, camera, depth.shape, f"its confidence is {found.confidence:.2f}")
    if camera is None and cost > LARGEST_COST:
        return _fallback(views, frame, found, camera, depth.shape, f"the angles that remain are {cost:.0f} degrees")
    return Recovered(
        camera=camera or Camera.from_focal(depth.shape, found.focal * max(depth.shape), source="estimated"),
        shift=frame.to_depth(found.shift),
        confidence=found.confidence,
        fov_spread=0.0 if camera else found.fov_spread,
        cost=cost,
        is_reliable=True,
    )


def _fallback(
    views: dict[int, _View], frame: _Frame, found: _Found, camera: Camera | None, size: tuple[int, int], why: str
) -> Recovered:
    """The shift with an assumed camera, unless depth and normals tell nothing about the shift either."""
    fixed = replace(frame, focal=frame.focal or _focal_of(ASSUMED_FOV))
    again = _search(views, fixed)
    shift = again.shift if again.confidence >= RELIABLE else min(ASSUMED_SHIFT, float(fixed.shifts[-1]))
    return Recovered(
        camera=camera or Camera.assumed(size),
        shift=fixed.to_depth(shift),
        confidence=found.confidence,
        fov_spread=0.0 if camera else _fov_spread(_focal_of(ASSUMED_FOV), _PRIOR_SPREAD),
        cost=views[_FINE].cost(shift, again.focal),
        is_reliable=False,
        note=f"the fit of depth and normals is not used: {why}",
    )


def _check(depth: np.ndarray, normals: np.ndarray, invariance: str, camera: Camera | None) -> None:
    if invariance not in ("affine", "scale"):
        raise InvalidValueError(f"invariance={invariance!r} is not accepted; use affine or scale")
    if depth.ndim != 2 or normals.shape != (*depth.shape, 3):
        raise InvalidValueError(
            f"depth is {depth.shape} and normals are {normals.shape}; give [h w] and [h w 3] of one picture"
        )
    if min(depth.shape) < 3:
        raise InvalidValueError(f"a fit needs maps of 3x3 pixels or more; these have {depth.shape[0]}x{depth.shape[1]}")
    if camera is not None:
        camera.check_map(depth)


def _assumed(depth: np.ndarray, known: np.ndarray, invariance: str, camera: Camera | None, note: str) -> Recovered:
    """What is returned where no fit is possible."""
    shift = 0.0
    if invariance == "affine" and known.any():
        low, high = float(depth[known].min()), float(depth[known].max())
        shift = (ASSUMED_SHIFT * (high - low) or max(abs(low), 1.0)) - low
    return Recovered(
        camera=camera or Camera.assumed(depth.shape),
        shift=shift,
        confidence=0.0,
        fov_spread=0.0 if camera else _fov_spread(_focal_of(ASSUMED_FOV), _PRIOR_SPREAD),
        cost=0.0,
        is_reliable=False,
        note=note,
    )


def _focal_of(fov: float) -> float:
    """Focal length by the longer side."""
    return 0.5 / math.tan(math.radians(fov) / 2)


def _fov_spread(focal: float, spread: float) -> float:
    """Standard deviation of the field of view [deg] for one of the logarithm of the focal length."""
    return math.degrees(spread * 4 * focal / (4 * focal**2 + 1))


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The units of the search: depth from `low` on in `unit`, focal lengths and pixels by the longer side."""

    low: float
    unit: float
    shifts: Float[np.ndarray, " s"]
    """Depths of the nearest pixel that are tried first."""
    focal: float | None
    """None: unknown."""
    aspect: float
    """fy / fx."""
    center: tuple[float, float]
    """Principal point [px] of the whole picture."""

    @classmethod
    def of(cls, depth: np.ndarray, known: np.ndarray, invariance: str, camera: Camera | None) -> _Frame | str:
        """The units for a map, or why there are none."""
        values = depth[known].astype(np.float64)
        if values.size < _FEWEST_CELLS:
            return "too few pixels have depth and normals"
        center = (camera.cx, camera.cy) if camera else ((depth.shape[1] - 1) / 2, (depth.shape[0] - 1) / 2)
        low, unit, shifts = 0.0, float(np.median(values)), np.zeros(1)
        if invariance == "affine":
            low = float(values.min())
            unit = float(np.subtract(*np.quantile(values, (0.98, 0.02))))
            shifts = np.geomspace(*SHIFT_RANGE, _NUM_SHIFTS)
            if unit <= _FLAT * float(np.abs(values).max()):
                return "depth is the same everywhere"
        return cls(
            low=low,
            unit=unit,
            shifts=shifts,
            focal=camera.fx / max(depth.shape) if camera else None,
            aspect=camera.fy / camera.fx if camera else 1.0,
            center=center,
        )

    def to_depth(self, shift: float) -> float:
        """The number to add to depth, given the depth of the nearest pixel in `unit`."""
        return shift * self.unit - self.low if len(self.shifts) > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class _View:
    """Both maps, resized, with the cells that are compared."""

    depth: Float[np.ndarray, "h w"]
    normals: Float[np.ndarray, "3 n"]
    cells: Bool[np.ndarray, "h-2 w-2"]
    """Cells of the interior that are compared."""
    x: Float[np.ndarray, " w-2"]
    y: Float[np.ndarray, " h-2"]
    step: tuple[float, float]
    """Between cells, along x and y."""
    aspect: float

    @property
    def num_cells(self) -> int:
        """How many cells are compared."""
        return self.normals.shape[1]

    def angles(self, shift: float, focals: Float[np.ndarray, " f"]) -> Float[np.ndarray, "f n"]:
        """Angles [deg] between predicted normals and those of the surface, at most `CAP`."""
        along_x, along_y, towards = self._slopes(shift)
        sideways = self.normals[1] * along_y - self.normals[0] * along_x
        steep = np.square(along_x) + np.square(along_y)
        lengths = np.sqrt(np.square(focals)[:, None] * steep + np.square(towards))
        cosines = (focals[:, None] * sideways + self.normals[2] * towards) / lengths
        return np.minimum(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))), CAP)

    def num_patches(self, shift: float, focal: float) -> float:
        """How many independent cells the map has, by how far the errors of the normals are alike along x and y."""
        along_x, along_y, towards = self._slopes(shift)
        surface = unit_vectors(np.stack([-focal * along_x, focal * along_y, towards]), axis=0)
        errors = self.normals - surface
        lengths = np.linalg.norm(errors, axis=0)
        errors = errors * (np.minimum(lengths, _LARGEST_ERROR) / np.maximum(lengths, _SMALLEST_ERROR))
        field = np.zeros((3, *self.cells.shape))
        field[:, self.cells] = errors
        return self.num_cells / (_alike(field, self.cells) * _alike(field.swapaxes(1, 2), self.cells.T))

    def _slopes(self, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Changes of disparity along x and y, and its value on the optical axis if the surface continued; of the cells.

        The surface's normal is (-focal along_x, focal along_y, towards).
        """
        disparity = 1.0 / (self.depth + shift)
        along_x = (disparity[1:-1, 2:] - disparity[1:-1, :-2]) / (2 * self.step[0])
        along_y = (disparity[2:, 1:-1] - disparity[:-2, 1:-1]) / (2 * self.step[1])
        towards = disparity[1:-1, 1:-1] - self.x * along_x - self.y[:, None] * along_y
        return along_x[self.cells], self.aspect * along_y[self.cells], towards[self.cells]

    def cost(self, shift: float, focal: float) -> float:
        """Mean angle [deg]."""
        return float(self.angles(shift, np.array([focal])).mean())

    def costs(self, shifts: Float[np.ndarray, " s"], focals: Float[np.ndarray, " f"]) -> Float[np.ndarray, "s f"]:
        """Mean angles [deg] of all pairs."""
        return np.stack([self.angles(float(shift), focals).mean(axis=1) for shift in shifts])


def _alike(field: Float[np.ndarray, "3 h w"], cells: Bool[np.ndarray, "h w"]) -> float:
    """Length of correlation along a row [cells], at least 1: the sum of the correlations at all distances."""
    power = float(np.square(field).sum() / cells.sum())
    length = 1.0
    for distance in range(1, field.shape[2] // 2):
        both = cells[:, distance:] & cells[:, :-distance]
        product = np.sum(field[:, :, distance:] * field[:, :, :-distance])
        correlation = float(product) / max(1, int(both.sum())) / max(power, 1e-30)
        if correlation < _UNLIKE:
            break
        length += 2 * correlation
    return length


def _view(depth: np.ndarray, normals: np.ndarray, known: np.ndarray, frame: _Frame, longer: int) -> _View:
    """Means over the cells of a grid; cells with unknown pixels, and the most bent ones, are not compared."""
    factor = max(1, max(depth.shape) // _LARGEST)
    height, width = (side // factor * factor for side in depth.shape)
    maps = np.concatenate([(depth - frame.low)[..., None] / frame.unit, normals, known[..., None]], axis=-1)
    maps = np.where(known[..., None], maps, 0.0)[:height, :width]
    maps = maps.reshape(height // factor, factor, width // factor, factor, 5).mean(axis=(1, 3))
    scale = min(1.0, longer / max(maps.shape[:2]))
    rows, columns = (_areas(side, max(3, round(side * scale))) for side in maps.shape[:2])
    maps = np.tensordot(rows, maps, axes=(1, 0))
    maps = np.tensordot(columns, maps, axes=(1, 1)).swapaxes(0, 1)
    whole = maps[..., 4] > _WHOLE
    values = np.where(whole, maps[..., 0], np.nan)
    step = (width / len(columns), height / len(rows))
    x, y = ((np.arange(n) + 0.5) * s - 0.5 - c for n, s, c in zip(values.shape[::-1], step, frame.center, strict=True))
    side = max(depth.shape)
    cells = _smooth_cells(values, float(frame.shifts[len(frame.shifts) // 2]))
    vectors = maps[1:-1, 1:-1, 1:4][cells]
    return _View(
        depth=np.where(whole, values, 1.0),
        normals=np.ascontiguousarray(unit_vectors(vectors, axis=-1).T),
        cells=cells,
        x=x[1:-1] / side,
        y=y[1:-1] / side,
        step=(step[0] / side, step[1] / side),
        aspect=frame.aspect,
    )


def _areas(size: int, cells: int) -> Float[np.ndarray, "c n"]:
    """Weights of pixels in the means over equal parts of a line."""
    edges = np.arange(cells + 1) * (size / cells)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0.0) * (cells / size)


def _smooth_cells(depth: Float[np.ndarray, "h w"], shift: float) -> Bool[np.ndarray, "h-2 w-2"]:
    """Interior cells with four known neighbors, without the share whose disparity bends most: edges and creases."""
    disparity = 1.0 / (depth + shift)
    middle = disparity[1:-1, 1:-1]
    bends = np.maximum(
        np.abs(disparity[1:-1, 2:] + disparity[1:-1, :-2] - 2 * middle),
        np.abs(disparity[2:, 1:-1] + disparity[:-2, 1:-1] - 2 * middle),
    )
    bends = bends / middle
    whole = np.isfinite(bends)
    return whole & (bends <= np.quantile(bends[whole], 1 - _BENT)) if whole.any() else whole


@dataclass(frozen=True, kw_only=True)
class _Found:
    shift: float
    focal: float
    confidence: float
    fov_spread: float


def _search(views: dict[int, _View], frame: _Frame) -> _Found:
    """The best of a grid, refined in shrinking neighborhoods. The spread is that of the grid."""
    lowest, highest = (math.log(_focal_of(fov)) for fov in reversed(FOV_RANGE))
    count = _NUM_FOVS if len(frame.shifts) > 1 else _NUM_FOVS_ALONE
    log_focals = np.linspace(lowest, highest, count) if frame.focal is None else np.log([frame.focal])
    prior = _prior(log_focals) if frame.focal is None else np.zeros(1)
    costs = views[_COARSE].costs(frame.shifts, np.exp(log_focals))
    lowest_at = np.unravel_index(int(costs.argmin()), costs.shape)
    patches = views[_COARSE].num_patches(float(frame.shifts[lowest_at[0]]), math.exp(log_focals[lowest_at[1]]))
    energy = _energy(costs, patches) + prior
    shift_at, focal_at = np.unravel_index(int(energy.argmin()), energy.shape)
    shift, log_focal = float(frame.shifts[shift_at]), float(log_focals[focal_at])
    ratio = frame.shifts[1] / frame.shifts[0] if len(frame.shifts) > 1 else 1.0
    step = log_focals[1] - log_focals[0] if len(log_focals) > 1 else 0.0
    for side, rounds in _ROUNDS:
        for _ in range(rounds):
            shifts = shift * ratio**_AROUND if ratio > 1.0 else np.array([shift])
            focals = np.clip(log_focal + step * _AROUND, lowest, highest) if step else np.array([log_focal])
            near = _energy(views[side].costs(shifts, np.exp(focals)), patches)
            near = near + (_prior(focals) if step else 0.0)
            best = np.unravel_index(int(near.argmin()), near.shape)
            shift, log_focal = float(shifts[best[0]]), float(focals[best[1]])
            ratio, step = ratio**_SHRINK, step * _SHRINK
    weights = np.exp(energy.min() - energy)
    spread, confidence = 0.0, 1.0
    if len(log_focals) > 1:
        variance = _variance(log_focals, weights.sum(axis=0))
        spread = math.sqrt(variance)
        confidence = 1.0 - variance / _variance(log_focals, np.exp(-prior))
    if len(frame.shifts) > 1:
        logs = np.log(frame.shifts)
        confidence = min(confidence, 1.0 - _variance(logs, weights.sum(axis=1)) / _variance(logs, np.ones(len(logs))))
    focal = math.exp(log_focal)
    return _Found(shift=shift, focal=focal, confidence=max(0.0, confidence), fov_spread=_fov_spread(focal, spread))


def _energy(costs: Float[np.ndarray, "s f"], patches: float) -> Float[np.ndarray, "s f"]:
    """Minus the logarithm of the likelihood of errors whose size is unknown: sharp where angles are small.

    A patch counts as one error. Its normal has two, with which the fit was too sure of pictures (docs/experiments.md).
    """
    return patches * np.log(costs + _SMALLEST_ANGLE)


def _prior(log_focals: Float[np.ndarray, " f"]) -> Float[np.ndarray, " f"]:
    return 0.5 * np.square((log_focals - math.log(_focal_of(ASSUMED_FOV))) / _PRIOR_SPREAD)


def _variance(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]) -> float:
    mean = np.average(values, weights=weights)
    within = (values[1] - values[0]) ** 2 / 12  # a value of the grid stands for its surroundings
    return float(np.average(np.square(values - mean), weights=weights)) + within
