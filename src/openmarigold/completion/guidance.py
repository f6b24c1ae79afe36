# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of guided denoising: maps to meters, losses at points and their derivatives, steps of Adam.

Derivatives are written by hand: only the networks need automatic differentiation. Viola et al. 2024, "Marigold-DC".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

Values: TypeAlias = Float64[np.ndarray, " n"]
Loss: TypeAlias = Literal["squared", "robust"]
LOSSES: tuple[Loss, ...] = ("squared", "robust")

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_SMALLEST = 1e-6
_WIDTHS = (1.0, 2.0, 4.0)
_WEIGHT = 2.5  # of a blur, times its width in cells


@dataclass
class Adam:
    """Kingma & Ba 2015, algorithm 1, by plain arithmetic: for NumPy arrays and for tensors."""

    rate: float
    first: Any = 0.0
    second: Any = 0.0
    steps: int = field(default=0)

    def __call__(self, value: Any, gradient: Any) -> Any:
        """The value after one more step."""
        self.steps += 1
        self.first = _BETAS[0] * self.first + (1.0 - _BETAS[0]) * gradient
        self.second = _BETAS[1] * self.second + (1.0 - _BETAS[1]) * gradient * gradient
        first = self.first / (1.0 - _BETAS[0] ** self.steps)
        second = self.second / (1.0 - _BETAS[1] ** self.steps)
        return value - self.rate * first / (second**0.5 + _EPSILON)


@dataclass
class AffineFit:
    """meters = s² · span · d + h² · low: for depth in [0, 1] up to scale and shift, never below 0."""

    low: float
    span: float
    parameters: Float64[np.ndarray, " k"] = field(default_factory=lambda: np.ones(2))
    """s and h."""

    def __call__(self, depth: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        s, h = map(float, self.parameters)
        return s * s * self.span * depth + h * h * self.low

    def derivatives(self, depth: Values) -> tuple[Values, Float64[np.ndarray, "k n"]]:
        s, h = self.parameters
        by_s, by_h = 2 * s * self.span * depth, np.full(depth.shape, 2 * h * self.low)
        return np.full(depth.shape, s * s * self.span), np.stack([by_s, by_h])


@dataclass
class PowerFit:
    """meters = unit · exp(b) · d^g: for depth up to scale. g is 1 if `with_exponent` is off."""

    unit: float
    parameters: Float64[np.ndarray, " k"] = field(default_factory=lambda: np.array([0.0, 1.0]))
    """b and g."""
    with_exponent: bool = False

    def __call__(self, depth: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        b, g = map(float, self.parameters)
        return self.unit * float(np.exp(b)) * np.maximum(depth, _SMALLEST) ** g

    def derivatives(self, depth: Values) -> tuple[Values, Float64[np.ndarray, "k n"]]:
        meters, safe = self(depth), np.maximum(depth, _SMALLEST)
        by_exponent = meters * np.log(safe) if self.with_exponent else np.zeros(depth.shape)
        return meters * self.parameters[1] / safe, np.stack([meters, by_exponent])


GuidedFit: TypeAlias = AffineFit | PowerFit
"""Turns relative depth into meters, with parameters to optimize; `derivatives` are those of meters with respect to
relative depth and to each parameter."""


def loss_at_points(meters: Values, known: Values, loss: Loss) -> tuple[float, Values]:
    """The loss of a map at measured points, and its gradient.

    "squared": the mean absolute error plus the mean squared error [m, m²], as published. "robust": the mean of
    |log(meters / known)|, so that near and far points count alike, and a wrong point pulls no more than others.
    """
    if loss == "squared":
        error = meters - known
        return float(np.abs(error).mean() + np.square(error).mean()), (np.sign(error) + 2 * error) / len(error)
    safe = np.maximum(meters, _SMALLEST)
    error = np.log(safe / known)
    return float(np.abs(error).mean()), np.sign(error) / safe / len(error)


class Smoothing:
    """Adds blurred copies of several widths to a gradient on the latent grid, so that wide structures move first.

    Few points give little information about the area between them. A latent that follows each point by itself leaves
    the rest unchanged. The map is linear, symmetric and positive, so a step against the result still goes downhill.
    """

    def __init__(self, grid: tuple[int, int], num_points: int, share: float) -> None:
        """The widths are multiples of `share` times the distance between evenly spread points.

        Args:
            grid: height and width of the latent.
            num_points: number of points in the picture.
            share: see above; 0 means no smoothing.
        """
        spacing = math.sqrt(grid[0] * grid[1] / num_points)
        self._blurs = []
        for multiple in _WIDTHS if share else ():
            width = share * multiple * spacing
            rows, columns = (_gaussian(length, width) for length in grid)
            self._blurs.append((_WEIGHT * width * rows, columns))

    def __call__(self, gradient: Float32[np.ndarray, "b C h w"]) -> Float32[np.ndarray, "b C h w"]:
        """The smoothed gradient, of the same shape."""
        blurred = [rows @ gradient @ columns for rows, columns in self._blurs]
        return np.add.reduce([gradient, *blurred]).astype(np.float32)


def _gaussian(length: int, width: float) -> Float64[np.ndarray, "n n"]:
    """The symmetric matrix of a blur; its rows sum to 1 far from the ends."""
    apart = np.arange(length)[:, None] - np.arange(length)
    return np.exp(-0.5 * (apart / width) ** 2) / max(1.0, width * math.sqrt(2 * math.pi))


def neighbors(
    pixels: Float64[np.ndarray, "n 2"], size: tuple[int, int], grid: tuple[int, int]
) -> tuple[Int64[np.ndarray, "n 4"], Float64[np.ndarray, "n 4"]]:
    """The four pixels of a map around each point of a picture, as indices into the flat map, and their weights.

    At whole pixels this equals bilinear resizing without anti-aliasing (`images.photo.resize`); in between it continues
    the same way.

    Args:
        pixels: x and y in the picture.
        size: height and width of the picture.
        grid: height and width of the map.
    """
    places, weights = [], []
    for axis, column in ((0, 1), (1, 0)):
        at = np.clip((pixels[:, column] + 0.5) * grid[axis] / size[axis] - 0.5, 0, grid[axis] - 1)
        low = np.floor(at).astype(np.int64)
        places.append((low, np.minimum(low + 1, grid[axis] - 1)))
        weights.append((1 - (at - low), at - low))
    (rows, columns), (row_weights, column_weights) = places, weights
    index = [rows[i] * grid[1] + columns[j] for i in (0, 1) for j in (0, 1)]
    weight = [row_weights[i] * column_weights[j] for i in (0, 1) for j in (0, 1)]
    return np.stack(index, axis=1), np.stack(weight, axis=1)
