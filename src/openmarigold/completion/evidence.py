# SPDX-License-Identifier: Apache-2.0
"""Types: known values in meters, the model's values, and the result of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError

FitSpace: TypeAlias = Literal["depth", "log", "disparity"]
"""Space in which a fit is affine: meters = scale * d + shift; log(meters) = scale * log(d) + shift; 1 / meters =
scale / d + shift."""
SAME_ASPECT = 0.005
"""How far the logarithms of two pictures' aspect ratios may be apart for one to be the other in another size."""


@dataclass(frozen=True, kw_only=True)
class SparsePoints:
    """Measured depth at some pixels of a photo."""

    pixels: Float64[np.ndarray, "n 2"]
    """x and y, pixel centers at whole numbers; they may lie between pixels."""
    depth: Float64[np.ndarray, " n"]
    """Planar [m], above 0."""
    source: str = "given"
    """Where they come from, for provenance."""
    notes: tuple[str, ...] = ()
    """Notes on points that were left out or converted, one line each."""

    def __len__(self) -> int:
        return len(self.depth)

    def check_inside(self, size: tuple[int, int]) -> None:
        """Raises InvalidValueError for no points, and for points outside of a picture of `size` (height, width)."""
        if not len(self):
            raise InvalidValueError("there are no points; give at least one pixel with its depth in meters")
        height, width = size
        x, y = self.pixels.T
        outside = (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5)
        if outside.any():
            raise InvalidValueError(
                f"{int(outside.sum())} of {len(self)} points lie outside of the picture of {width}x{height}; leave "
                "them out, or scale them to its size"
            )


def joined(parts: Sequence[SparsePoints]) -> SparsePoints:
    """All points of one or more parts, in their order."""
    return SparsePoints(
        pixels=np.concatenate([part.pixels for part in parts]),
        depth=np.concatenate([part.depth for part in parts]),
        source=", ".join(part.source for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )


@dataclass(frozen=True, kw_only=True)
class RelativeDepth:
    """A model's depth of a photo."""

    depth: Float[np.ndarray, "h w"]
    """Planar, near small; up to scale, or up to scale and shift."""
    invariance: Literal["affine", "scale", "absolute"]
    camera: Camera
    rgb: UInt8[np.ndarray, "h w 3"] | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOutErrors:
    """Errors at points that a fit did not see, each point left out in one of several folds."""

    median_m: float
    mean_m: float
    """Robust against outliers among the points: see `leave_out.py`."""
    relative_90: float
    """90 % of the errors, divided by depth, are at most this."""
    num_points: int
    num_outliers: int
    """Points that contradict the others."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """Metric depth of a photo."""

    depth: Float32[np.ndarray, "h w"]
    """Planar [m], above 0; NaN where nothing is known."""
    method: str
    """Name of the method, such as "fit", "field" or "guided"."""
    scale: float
    shift: float
    """Shift of the global fit, in `space`; `scale` is its scale there."""
    space: FitSpace
    errors: LeftOutErrors | None = None
    """None if there are too few points to leave any out."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """More facts for provenance, as plain types."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one line each."""
