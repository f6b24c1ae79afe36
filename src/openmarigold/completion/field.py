# SPDX-License-Identifier: Apache-2.0
"""A smooth, edge-aware field of the global fit's residuals: log(measured / fitted depth).

A model's error is smooth within a surface and jumps between surfaces. So the field is a Gaussian process over three
coordinates: the pixel's column and row, and the logarithm of its fitted depth. Two pixels that are near each other in
the picture but far in depth share little. The field returns to 0, the global fit, where no point is near (shrinkage).
The noise is the one with the smallest left-out error on the points themselves, in closed form (Rasmussen and Williams
2006, eq. 5.12). Points that contradict their neighbors get more noise and so less weight.

The cost grows with the cube of the number of points. If there are many, only `MOST_CENTERS` points define the field,
and a normalized convolution over the nearest points adds the remaining residuals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from openmarigold.completion.evidence import RelativeDepth, SparsePoints
from openmarigold.completion.fits import Fit
from openmarigold.completion.leave_out import pixel_indices
from openmarigold.errors import needs_extra
from openmarigold.seeding import generator_for

MOST_CENTERS = 800
"""Points of a Gaussian process."""

Places = Float64[np.ndarray, "n 3"]
"""Column, row (as shares of the longer side) and log of fitted depth."""

_LENGTHS = (0.4, 0.8)
"""Lengths in the picture and in log depth at which the covariance has fallen to about a half."""
_NOISES = (0.05, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Shares of noise in the variance of a residual to try. With little noise the field follows every point."""
_ROUNDS = 2  # updates of the weights for each noise, starting with the weights of the noise before
_TOLERATED = 2.0  # robust sigmas of a left-out residual, up to which a point keeps its weight
_LARGEST = 0.25  # cap on left-out residuals in the choice of noise, so that wrong points do not decide it
_SMALLEST_WEIGHT = 1e-5
_CONTRADICTS = 0.2  # weight below which a point is reported
_AGREES = 0.03  # difference in log depth up to which a point is never reported
_CHUNK = 16384
_STEPS = 80  # between the nodes of the map, along the longer side
_LEVELS = 8  # nodes in a length of log depth
_NEIGHBORS = 16
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class _Process:
    """A Gaussian process fitted to residuals."""

    centers: Places
    weights: Float64[np.ndarray, " n"]
    lengths: tuple[float, float]

    def __call__(self, places: Places) -> Float64[np.ndarray, " m"]:
        out = np.empty(len(places))
        for start in range(0, len(places), _CHUNK):
            some = slice(start, start + _CHUNK)
            out[some] = _kernel(places[some], self.centers, self.lengths) @ self.weights
        return out


@dataclass(frozen=True, eq=False)
class _Detail:
    """The errors of the process at the points, spread by a normalized convolution over the nearest points."""

    places: Places
    residuals: Float64[np.ndarray, " n"]
    radius: float
    length: float

    def __call__(self, places: Places) -> Float64[np.ndarray, " m"]:
        with needs_extra("metric"):
            from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]
        out = np.empty(len(places))
        tree = cKDTree(self.places[:, :2])
        for start in range(0, len(places), _CHUNK):
            some = places[start : start + _CHUNK]
            distance, index = tree.query(some[:, :2], k=min(_NEIGHBORS, len(self.residuals)))
            apart = (some[:, 2, None] - self.places[index, 2]) / self.length
            weight = np.exp(-0.5 * np.square(apart)) / np.square(1.0 + np.square(distance / self.radius))
            out[start : start + _CHUNK] = (weight * self.residuals[index]).sum(axis=1) / (weight.sum(axis=1) + 0.1)
        return out


@dataclass(frozen=True, eq=False)
class ResidualField:
    """A global fit times the exponential of a field."""

    relative: RelativeDepth
    fit: Fit
    outliers: Bool[np.ndarray, " n"]
    process: _Process
    detail: _Detail | None
    limit: float
    """Largest absolute value of the field."""

    def at(self, pixels: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
        """Depth [m] at pixels (x, y)."""
        places, fitted = _places(self.relative, self.fit, pixels)
        return fitted * np.exp(self._clipped(self.process(places), places))

    def map(self) -> Float64[np.ndarray, "h w"]:
        """Depth [m] of the picture; the field is linear between nodes, which are closer than its lengths."""
        fitted = self.fit(self.relative.depth)
        logs = np.log(np.where(np.isfinite(fitted), fitted, self.fit.floor))  # unknown pixels stay unknown below
        field = _on_nodes(self.process, logs)
        if self.detail is None:
            return fitted * np.exp(np.clip(field, -self.limit, self.limit))
        places = _all_places(logs)
        return fitted * np.exp(self._clipped(field.ravel(), places)).reshape(fitted.shape)

    def _clipped(self, field: Float64[np.ndarray, " n"], places: Places) -> Float64[np.ndarray, " n"]:
        whole = field if self.detail is None else field + self.detail(places)
        return np.clip(whole, -self.limit, self.limit)


def fit_field(relative: RelativeDepth, points: SparsePoints, fit: Fit) -> ResidualField:
    """The field of the residuals of `fit` at the points.

    Raises:
        MissingExtraError: more than `MOST_CENTERS` points without scipy (extra `metric`).
    """
    places, fitted = _places(relative, fit, points.pixels)
    residuals = np.log(points.depth / fitted)
    chosen = _chosen(len(points))
    process, weights = _best_process(places[chosen], residuals[chosen])
    left = residuals - process(places)
    limit = max(float(np.abs(residuals[chosen][weights > _CONTRADICTS]).max(initial=0.0)), _TINY)
    if len(chosen) == len(points):
        outliers = (weights <= _CONTRADICTS) & (np.abs(left) > _AGREES)
        return ResidualField(relative, fit, outliers, process, None, limit)
    sigma = max(1.4826 * float(np.median(np.abs(left))), _TINY)
    outliers = np.abs(left) > max(4 * sigma, _AGREES)
    kept = ~outliers
    radius = 0.7 * float(np.sqrt(np.prod(relative.depth.shape) / kept.sum())) / max(relative.depth.shape)
    detail = _Detail(places[kept], left[kept], radius, process.lengths[1] / 2)
    return ResidualField(relative, fit, outliers, process, detail, limit)


def _chosen(count: int) -> np.ndarray:
    if count <= MOST_CENTERS:
        return np.arange(count)
    return np.sort(generator_for(0, "completion-centers", count).permutation(count)[:MOST_CENTERS])


def _places(
    relative: RelativeDepth, fit: Fit, pixels: Float64[np.ndarray, "n 2"]
) -> tuple[Places, Float64[np.ndarray, " n"]]:
    height, width = relative.depth.shape
    fitted = fit(relative.depth[pixel_indices(pixels, relative.depth.shape)])
    return np.column_stack([pixels / max(height, width), np.log(fitted)]), fitted


def _all_places(logs: Float64[np.ndarray, "h w"]) -> Places:
    rows, columns = np.indices(logs.shape, dtype=np.float64)
    longer = max(logs.shape)
    return np.column_stack([columns.ravel() / longer, rows.ravel() / longer, logs.ravel()])


def _kernel(a: Places, b: Float64[np.ndarray, "m 3"], lengths: tuple[float, float]) -> Float64[np.ndarray, "n m"]:
    """Matérn's covariance of smoothness 3/2: the field is smooth, but may change quickly."""
    scale = np.sqrt(3.0) / np.array([lengths[0], lengths[0], lengths[1]])
    a, b = a * scale, b * scale
    square = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None] - 2.0 * (a @ b.T)
    distance = np.sqrt(np.maximum(square, 0.0, out=square), out=square)
    out = np.exp(-distance)
    out *= np.add(distance, 1.0, out=distance)
    return out


def _best_process(places: Places, residuals: Float64[np.ndarray, " n"]) -> tuple[_Process, np.ndarray]:
    """The process with the smallest left-out error, and the weights of the points."""
    best: tuple[float, _Process, np.ndarray] | None = None
    covariance = _kernel(places, places, _LENGTHS)
    weights = np.ones(len(residuals))
    for noise in _NOISES:
        coefficients, weights, error = _solved(covariance, residuals, noise, weights)
        if best is None or error < best[0]:
            best = error, _Process(places, coefficients, _LENGTHS), weights
    assert best is not None
    return best[1], best[2]


def _solved(
    covariance: Float64[np.ndarray, "n n"],
    residuals: Float64[np.ndarray, " n"],
    noise: float,
    weights: Float64[np.ndarray, " n"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"], float]:
    """Coefficients of the kernels, new weights of the points, and the mean of the capped left-out errors."""
    coefficients, left_out = np.zeros(len(residuals)), residuals
    for _ in range(_ROUNDS):
        inverse = np.linalg.inv(covariance + np.diag(noise / weights))
        coefficients = inverse @ residuals
        precision = np.diag(inverse)
        left_out = coefficients / precision
        # The variance of a left-out residual, without the part that its low weight adds.
        expected = np.sqrt(np.maximum(1.0 / precision - noise / weights + noise, _TINY))
        ratio = np.abs(left_out) / expected
        sigma = 1.4826 * float(np.median(ratio))
        if sigma <= _TINY:
            break
        weights = np.maximum(np.minimum(1.0, _TOLERATED * sigma / np.maximum(ratio, _TINY)) ** 4, _SMALLEST_WEIGHT)
    return coefficients, weights, float(np.minimum(np.abs(left_out), _LARGEST).mean())


def _on_nodes(process: _Process, logs: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """The process at every pixel, linear between nodes in picture and log depth; only nodes near pixels are used."""
    height, width = logs.shape
    longer, spacing = max(height, width), process.lengths[1] / _LEVELS
    low = float(logs.min())
    step = max(1, round(longer / _STEPS))
    rows, columns = -(-height // step) + 1, -(-width // step) + 1
    levels = int((float(logs.max()) - low) / spacing) + 2
    level = (logs - low) / spacing
    below = level.astype(np.int64)
    wanted = np.zeros((rows, columns, levels), dtype=bool)
    corners = list(_corners(height, width, step, below, (rows, columns, levels)))
    for index, _, _ in corners:
        wanted.ravel()[index.ravel()] = True
    nodes = np.flatnonzero(wanted)
    row, column, layer = np.unravel_index(nodes, wanted.shape)
    places = np.column_stack([column * (step / longer), row * (step / longer), low + layer * spacing])
    values = np.zeros(wanted.size)
    values[nodes] = process(places)
    upper = level - below
    out = np.zeros((height, width))
    for index, share, is_upper in corners:
        out += values[index] * share * (upper if is_upper else 1.0 - upper)
    return out


def _corners(
    height: int, width: int, step: int, below: np.ndarray, shape: tuple[int, int, int]
) -> Iterator[tuple[np.ndarray, Float64[np.ndarray, "h w"], bool]]:
    """The eight nodes around every pixel: flat index, weight by row and column, whether it is farther in depth."""
    y, x = np.arange(height) / step, np.arange(width) / step
    top, left = y.astype(np.int64), x.astype(np.int64)
    down, right = y - top, x - left
    for dy in (0, 1):
        for dx in (0, 1):
            share = (down if dy else 1.0 - down)[:, None] * (right if dx else 1.0 - right)[None]
            flat = ((top + dy)[:, None] * shape[1] + (left + dx)[None]) * shape[2]
            for dz in (0, 1):
                yield flat + below + dz, share, bool(dz)
