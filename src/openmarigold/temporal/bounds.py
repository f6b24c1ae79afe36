# SPDX-License-Identifier: Apache-2.0
"""The range of values that pictures of a shot show: fixed by its first frames, then it only widens, slowly."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

_FIRST = 8  # frames that set it
_QUANTILES = (0.005, 0.995)
_ROOM = 0.03  # of the range, on both sides
_PACE = 0.02  # of what is missing, in each later frame


class DisplayBounds:
    """The bounds of one shot after another."""

    def __init__(self) -> None:
        self.low, self.high, self.frames = 0.0, 0.0, 0

    def widened(self, values: Float[np.ndarray, "h w"], *, new_shot: bool) -> tuple[float, float]:
        """The bounds with one more frame, of which `values` are some; those of a new shot where one begins."""
        known = values[np.isfinite(values)]
        if new_shot:
            self.low, self.high, self.frames = 0.0, 0.0, 0
        if known.size:
            low, high = (float(edge) for edge in np.quantile(known, _QUANTILES))
            room = _ROOM * (high - low)
            low, high = low - room, high + room
            if not self.frames:
                self.low, self.high = low, high
            pace = 1.0 if self.frames < _FIRST else _PACE
            self.low += pace * min(low - self.low, 0.0)
            self.high += pace * max(high - self.high, 0.0)
            self.frames += 1
        return self.low, self.high

    def state(self) -> np.ndarray:
        """As `restore` takes it."""
        return np.array([self.low, self.high, self.frames], dtype=np.float64)

    def restore(self, state: np.ndarray) -> None:
        self.low, self.high, self.frames = float(state[0]), float(state[1]), int(state[2])
