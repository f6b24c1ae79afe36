# SPDX-License-Identifier: Apache-2.0
"""Intervals of depth and of normals: definitions of errors, signals for half widths, and the regions with their own
coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt16

from openmarigold.alignment import fit_scale_median, fit_scale_shift
from openmarigold.geometry import angles_between, unit_vectors
from openmarigold.metrics import near_edges
from openmarigold.modalities.modality import Band, Maps, Picture

_SMALLEST_DEPTH = 1e-6
_WIDEST = 60.0
"""Largest half width, as a logarithm. Its factor is far larger than any range of depth, and finite in float32."""
_EDGE, _SURROUNDINGS = 1, 16  # pixels of the networks' size (docs/experiments.md)
_LEVELS = 65535
_TURN = 20.0  # degrees between neighbors beyond which measured normals have an edge


def largest_change(values: Float[np.ndarray, "h w"], radius: int) -> Float[np.ndarray, "h w"]:
    """The largest minus the smallest value of the `2 radius + 1` pixels square around each pixel."""
    highest, lowest = values, values
    for axis in (0, 1):
        highest, lowest = _extreme(highest, radius, axis, np.maximum), _extreme(lowest, radius, axis, np.minimum)
    return highest - lowest


def _extreme(
    values: Float[np.ndarray, "h w"], radius: int, axis: int, choose: Callable[..., np.ndarray]
) -> Float[np.ndarray, "h w"]:
    """The extreme of each window of `2 radius + 1` along an axis, from windows that double."""
    values = np.moveaxis(values, axis, 0)
    found = np.pad(values, [(radius, radius), (0, 0)], mode="edge")
    width, wanted = 1, 2 * radius + 1
    while width < wanted:
        step = min(width, wanted - width)
        found = choose(found[:-step], found[step:])
        width += step
    return np.moveaxis(found, 0, axis)


def _log(depth: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.log(np.maximum(depth, _SMALLEST_DEPTH))


def _ones(stack: np.ndarray, uncertainty: np.ndarray | None) -> np.ndarray:
    return np.ones(stack.shape[1:], dtype=np.float32)


def _first(uncertainty: np.ndarray | None) -> np.ndarray:
    assert uncertainty is not None
    return uncertainty[0]


def _depth_signals(
    to_space: Callable[[np.ndarray], np.ndarray], spread: Callable[..., np.ndarray]
) -> dict[str, Callable[..., np.ndarray]]:
    return {
        "constant": _ones,
        "edges": lambda stack, uncertainty: largest_change(to_space(stack[0]), _EDGE),
        "surroundings": lambda stack, uncertainty: largest_change(to_space(stack[0]), _SURROUNDINGS),
        "spread": spread,
    }


def _third(number: int) -> Callable[[Maps, np.ndarray], np.ndarray]:
    """The first, second or last third of the valid pixels by their depth."""

    def is_in(maps: Maps, valid_mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        near, far = np.quantile(maps["depth"][valid_mask], (1 / 3, 2 / 3))
        return np.digitize(maps["depth"], (near, far), right=True) == number

    return is_in


DEPTH_STRATA: Mapping[str, Callable[[Maps, np.ndarray], np.ndarray]] = {
    "edges": lambda maps, valid_mask: near_edges(maps["depth"], valid_mask),
    "flat": lambda maps, valid_mask: ~near_edges(maps["depth"], valid_mask),
    "near": _third(0),
    "middle": _third(1),
    "far": _third(2),
}
"""Within a pixel of jumps of more than a tenth, and elsewhere; thirds of the valid pixels by their depth."""


def _log_error(maps: Maps, truth: Maps, mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    scale = fit_scale_median(maps["depth"], truth["depth"], mask)
    if scale <= 0:
        return np.full(mask.shape, np.inf)
    true_log = np.log(np.where(mask, truth["depth"], 1.0))
    return np.where(mask, np.abs(true_log - _log(maps["depth"].astype(np.float64)) - np.log(scale)), np.inf)


def _linear_error(maps: Maps, truth: Maps, mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    scale, shift = fit_scale_shift(maps["depth"], truth["depth"], mask)
    if scale <= 0:
        return np.full(mask.shape, np.inf)
    return np.where(mask, np.abs((truth["depth"] - shift) / scale - maps["depth"]), np.inf)


_DEPTH_NAMES = ("depth_lo", "depth_hi")


def _two(low: np.ndarray, high: np.ndarray) -> Maps:
    return {name: values.astype(np.float32) for name, values in zip(_DEPTH_NAMES, (low, high), strict=True)}


def _around(depth: np.ndarray, half: np.ndarray) -> Maps:
    return _two(depth * np.exp(-half), depth * np.exp(half))


UP_TO_SCALE = Band(
    summary="log depth, after one factor per picture, the median of measured / predicted (protocol scale-median)",
    unit="natural logarithm of depth",
    names=_DEPTH_NAMES,
    error=_log_error,
    signals=_depth_signals(
        _log, lambda stack, uncertainty: _first(uncertainty) / np.maximum(stack[0], _SMALLEST_DEPTH)
    ),
    of_ensemble=frozenset({"spread"}),
    bounds=lambda maps, half: _around(maps["depth"], np.minimum(half, _WIDEST)),
    half_width=lambda maps, bounds: (
        np.log(np.maximum(bounds["depth_hi"].astype(np.float64), _SMALLEST_DEPTH))
        - _log(maps["depth"].astype(np.float64))
    ),
    strata=DEPTH_STRATA,
)
"""An interval around depth up to scale is a factor."""

AFFINE = Band(
    summary="depth, after scale and shift per picture by least squares (protocol marigold, without its clip)",
    unit="shares of the predicted range",
    names=_DEPTH_NAMES,
    error=_linear_error,
    signals=_depth_signals(np.asarray, lambda stack, uncertainty: _first(uncertainty)),
    of_ensemble=frozenset({"spread"}),
    bounds=lambda maps, half: _two(maps["depth"] - half, maps["depth"] + half),
    half_width=lambda maps, bounds: bounds["depth_hi"].astype(np.float64) - maps["depth"],
    strata=DEPTH_STRATA,
)
"""An interval around affine depth is a distance in units of the prediction; a bound may leave [0, 1]."""

DEPTH_BANDS: Mapping[str, Band] = {"affine": AFFINE, "scale": UP_TO_SCALE}


def _levels_per_unit(values: Float[np.ndarray, "h w"]) -> float:
    """Levels per unit of a 16-bit picture: 65535, divided by the least power of 2, from 1 on, that holds all values."""
    highest = float(np.nanmax(values, initial=1.0))
    return _LEVELS / 2.0 ** np.ceil(np.log2(highest))


def _bound_picture(values: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    return np.rint(np.clip(values.astype(np.float64) * _levels_per_unit(values), 0, _LEVELS)).astype(np.uint16)


def _picture_of(name: str) -> Picture:
    return Picture(
        suffix=f"_{name}.png",
        content=lambda maps: f"{name} x {_levels_per_unit(maps[name]):.10g}, not below 0",
        make=lambda maps, output: _bound_picture(maps[name]),
        of_interval=True,
    )


DEPTH_PICTURES = tuple(_picture_of(name) for name in _DEPTH_NAMES)
"""16 bits of each bound."""


def _angle_error(maps: Maps, truth: Maps, mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    first, second = (unit_vectors(values["normals"].astype(np.float64), axis=-1) for values in (maps, truth))
    return np.where(mask, angles_between(first, second, axis=-1), np.inf)


def _turn(normals: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """The largest angle [deg] between a normal and those of the next pixels in its row and column."""
    found = np.zeros(normals.shape[:2], dtype=normals.dtype)
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        angle = angles_between(normals[first], normals[second], axis=-1)
        for side in (first, second):
            found[side] = np.maximum(found[side], angle)
    return found


def _turns(maps: Maps, valid_mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return _turn(unit_vectors(maps["normals"].astype(np.float64), axis=-1)) > _TURN


NORMALS_BAND = Band(
    summary="the angle between predicted and measured normals, without a fit",
    unit="degrees",
    names=("normals_within",),
    error=_angle_error,
    signals={
        "constant": _ones,
        "edges": lambda stack, uncertainty: _turn(unit_vectors(np.moveaxis(stack, 0, -1), axis=-1)),
        "spread": lambda stack, uncertainty: _first(uncertainty),
    },
    of_ensemble=frozenset({"spread"}),
    bounds=lambda maps, half: {"normals_within": np.minimum(half, 180.0).astype(np.float32)},
    half_width=lambda maps, bounds: bounds["normals_within"].astype(np.float64),
    strata={"edges": _turns, "flat": lambda maps, valid_mask: ~_turns(maps, valid_mask)},
)
"""An interval around a normal is a cone: the largest angle [deg] to the measured normal. Edges are turns of more than
20 degrees."""
