# SPDX-License-Identifier: Apache-2.0
"""Averages over time, along motion, only where two frames differ by no more than noise; and the range of values that
pictures of a shot show: fixed by its first frames, then it only widens, slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from openmarigold.temporal.looks import Look
from openmarigold.temporal.matching import Match, enlarged, warped

_NORMAL = 1.4826
_SURE, _LOST = 1.5, 3.0  # deviations up to which a pixel is averaged in full, and from which not at all
_FEWEST = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothed:
    """A frame's values, averaged."""

    values: Float32[np.ndarray, "c H W"]
    gain: Float32[np.ndarray, "h w"]
    """On the look's pixels: the share of the newest frame, which is also the variance left, by that of one frame."""


class Smoother:
    """A Kalman filter of one line for each pixel of a look, which moves with what it shows."""

    def __init__(self, smoothing: float) -> None:
        self.on = smoothing > 0
        # So that the gain comes to rest at 1 - smoothing: g = (g + q) / (1 + g + q).
        self.growth = np.float32((1 - smoothing) ** 2 / smoothing) if self.on else np.float32(np.inf)

    def first(self, values: Float32[np.ndarray, "c H W"], look: Look) -> Smoothed:
        """A frame that nothing is known before."""
        return Smoothed(values=values, gain=np.ones(look.features.shape, dtype=np.float32))

    def next(self, values: Float32[np.ndarray, "c H W"], look: Look, before: Smoothed, match: Match) -> Smoothed:
        """A frame, averaged with those before.

        Args:
            values: its own, in the gauge of the shot.
            look: of its photo.
            before: the previous frame, averaged.
            match: from this frame to the previous one.
        """
        if not self.on:
            return self.first(values, look)
        moved = moved_values(before.values, look, match)
        step = values - moved
        like = likeness(step, look, match)
        if like is None:
            return self.first(values, look)
        variance = match.sampled(before.gain) + self.growth
        gain = variance / (1 + variance)
        kept = like * at_full_size(1 - gain, look, match, values.shape[1:])
        step *= kept
        return Smoothed(values=values - step, gain=1 - (1 - gain) * look.points(like[None])[0])

    def with_later(
        self, now: Smoothed, look: Look, later: Sequence[tuple[Float32[np.ndarray, "c H W"], Match]]
    ) -> Float32[np.ndarray, "c H W"]:
        """A frame, averaged with those before, and with the own values of later ones.

        Args:
            now: the frame, averaged with those before.
            look: of its photo.
            later: values of later frames, the next one first, and the match from this frame to each.
        """
        if not self.on or not later:
            return now.values
        weight = at_full_size(1 / now.gain, look, later[0][1], now.values.shape[1:])
        total, weights = np.zeros_like(now.values), weight.copy()
        for ahead, (values, match) in enumerate(later, start=1):
            step = moved_values(values, look, match) - now.values
            like = likeness(step, look, match)
            if like is None:
                continue
            like *= np.float32(1 / (1 + ahead * self.growth))
            step *= like
            total += step
            weights += like
        return now.values + total / weights


def moved_values(other: Float32[np.ndarray, "c H W"], look: Look, match: Match) -> Float32[np.ndarray, "c H W"]:
    """Another frame's values, seen from this one."""
    if match.flow is None or not match.flow.any():
        return other
    flow = enlarged(match.flow, look, other.shape[1:]) * np.float32(look.factor)
    return np.stack([warped(np.ascontiguousarray(plane), flow) for plane in other])


def at_full_size(
    small: Float32[np.ndarray, "h w"], look: Look, match: Match, size: tuple[int, int]
) -> Float32[np.ndarray, "H W"]:
    """A picture on a look's pixels at the photo's size; by OpenCV, which is faster, where it must be there anyway."""
    return look.enlarged(small, size) if match.flow is None else enlarged(small, look, size)


def likeness(step: Float32[np.ndarray, "c H W"], look: Look, match: Match) -> Float32[np.ndarray, "H W"] | None:
    """How far each pixel of two frames shows the same, 0 to 1, from their difference; None where too little does."""
    seen = np.abs(look.points(step))[:, match.visible]
    if seen.shape[1] < _FEWEST:
        return None
    off = np.zeros(step.shape[1:], dtype=np.float32)
    for plane, some in zip(step, seen, strict=True):
        deviation = np.float32(_NORMAL * np.median(some) + 1e-6 + 1e-6 * abs(some).max())
        off = np.maximum(off, np.abs(plane) / deviation)
    like = np.clip((np.float32(_LOST) - off) / np.float32(_LOST - _SURE), 0, 1)
    like *= at_full_size(match.visible.astype(np.float32), look, match, step.shape[1:])
    return like


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
