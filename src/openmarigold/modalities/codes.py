# SPDX-License-Identifier: Apache-2.0
"""Maps as 16-bit codes of a stated range: 0 stands for its lower end, 65535 for its upper one."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, UInt16

from openmarigold.modalities.modality import MapKind

LARGEST_CODE = 65535
Range = tuple[float, float]


def code_range(values: Float[np.ndarray, "h w *c"], kind: MapKind, bounds: Range | None) -> Range:
    """The values that codes 0 and 65535 stand for, so that no value of a frame is cut.

    Both are multiples of a power of two about as large as the bounds are apart, so that most frames share one range.

    >>> kind = MapKind(name="d", channels=1, range=(0.0, 1.0), unit="", space="linear", exr_channels=("Y",))
    >>> code_range(np.array([[0.1, 1.3]]), kind, (0.05, 0.95))
    (0.0, 2.0)
    """
    known = values[np.isfinite(values)]
    smallest, largest = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if bounds is None and all(map(math.isfinite, kind.range)):
        low, high = kind.range
        if low <= smallest and largest <= high:
            return low, high
    else:
        low, high = bounds or (min(0.0, smallest), largest)
    step = 2.0 ** math.ceil(math.log2(max(high - low, 1e-9)))
    low, high = min(low, smallest), max(high, largest)
    return math.floor(low / step) * step, max(math.ceil(high / step), math.floor(low / step) + 1) * step


def to_codes(values: Float[np.ndarray, "h w *c"], bounds: Range) -> UInt16[np.ndarray, "h w *c"]:
    """Values as whole numbers from 0 to 65535, rounded; what is not a number is 0."""
    low, high = bounds
    shares = (np.nan_to_num(values, nan=low, posinf=high, neginf=low).astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(shares, 0.0, 1.0) * LARGEST_CODE).astype(np.uint16)
