# SPDX-License-Identifier: Apache-2.0
"""Timestamps that increase, for clips whose own timestamps restart, such as concatenated MPEG-TS files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

FEW_FRAMES = 4  # timestamps that go back by more restart; by less, frames are only out of order


def step_of(rate: Fraction, time_base: Fraction) -> int:
    """The usual time between two frames, in units of `time_base` [s], at `rate` frames a second.

    >>> step_of(Fraction(25), Fraction(1, 90000))
    3600
    """
    return max(1, round(1 / (rate * time_base)))


def with_next(items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each item with the one after it, which is None after the last.

    >>> list(with_next("ab"))
    [('a', 'b'), ('b', None)]
    """
    return pairwise(chain(items, (None,)))


class IncreasingTimes:
    """The timestamps of a stream's frames, in the order in which they are shown, so that each is above the last."""

    def __init__(self, step: int) -> None:
        """`step` is the usual time between two frames, in units of the timestamps."""
        self._step = step
        self._shift = 0
        self.last: int | None = None
        """The timestamp of the last frame."""
        self.is_disordered = False
        """Whether the last frame came out of order: it got the next moment."""
        self.num_restarts = 0
        """How often the stated timestamps restarted: such a frame follows the one before by one step."""
        self.went_back = 0
        """By how much they went back, in total."""

    def next(self, stated: int | None, *, following: int | None = None, origin: int = 0) -> int:
        """The timestamp of the next frame.

        Args:
            stated: its own, None if it states none.
            following: that of the frame after it. It tells one bad timestamp from timestamps that restart.
            origin: the timestamp of a first frame that states none.
        """
        self.is_disordered = False
        if stated is None:
            time = origin if self.last is None else self.last + self._step
        else:
            time = stated + self._shift
            if self.last is not None and time <= self.last:
                time = self._after(self.last, time, following)
        self.last = time
        return time

    def _after(self, last: int, time: int, following: int | None) -> int:
        is_single = following is not None and following + self._shift > last
        if is_single or last - time <= FEW_FRAMES * self._step:
            self.is_disordered = True
            return last + 1
        self.num_restarts += 1
        self.went_back += last - time
        self._shift += last + self._step - time
        return last + self._step


def shifts_of(packets: Iterable[Any], *, step: int) -> list[int]:
    """The shifts that `IncreasingTimes` finds in a stream of pictures, from its packets alone.

    Args:
        packets: of one stream, in the order of the file, which need not be the order in which they are shown.
        step: the usual time between two frames, in units of the timestamps.
    """
    shifts: list[int] = []
    last_decoded: int | None = None
    last_shown = 0
    for packet, following in with_next(packet for packet in packets if packet.size and packet.pts is not None):
        decoded = _decoding_time(packet)
        if last_decoded is not None and last_decoded - decoded > FEW_FRAMES * step:
            if following is not None and _decoding_time(following) > last_decoded:  # one bad timestamp
                continue
            shifts.append(last_shown + step - packet.pts)
        shown = packet.pts + (shifts[-1] if shifts else 0)
        last_shown = shown if last_decoded is None else max(last_shown, shown)
        last_decoded = decoded
    return shifts


def _decoding_time(packet: Any) -> int:
    return packet.pts if packet.dts is None else packet.dts


def nearest_shift(shifts: Iterable[Fraction], own: Fraction) -> Fraction:
    """The shift [s] of the pictures that a jump of the sound belongs to; `own`, which leaves no gap, without one."""
    near = [shift for shift in shifts if abs(shift - own) < 1]
    return min(near, key=lambda shift: abs(shift - own), default=own)
