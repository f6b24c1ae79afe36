# SPDX-License-Identifier: Apache-2.0
"""The interface of a clip: its facts, and its frames one by one with exact times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from openmarigold.video.settings import VideoConfig

DEFAULT_RATE = 25  # frames per second of pictures and raw frames, as in FFmpeg
_FINEST_RATE = 10**6  # denominator of a rate that was given as a decimal


@dataclass(frozen=True, kw_only=True)
class ClipFrame:
    """One frame of a clip."""

    number: int
    """From 0, among the frames that are taken."""
    pts: int
    """Its time in units of the clip's `time_base`, as the clip states it."""
    time: Fraction
    """From the clip's beginning [s]."""
    rgb: UInt8[np.ndarray, "h w 3"]
    """Upright, sRGB."""
    pixel_aspect: Fraction = Fraction(1)
    """Width of an upright pixel divided by its height."""


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """Facts about a clip that are known before its first frame."""

    name: str
    """For messages and records."""
    time_base: Fraction
    """Unit of timestamps [s]."""
    rate: Fraction
    """Frames a second, on average."""
    origin: int = 0
    """Timestamp of the clip's beginning, in units of `time_base`."""
    num_frames: int | None
    """About how many frames are taken; None if it is not known in advance."""
    pixel_aspect: Fraction = Fraction(1)
    """Width of a stored pixel divided by its height."""
    sound: bool = False
    """Whether there is sound that can be read again."""
    stated: Mapping[str, Any]
    """Codec, pixel format and the like, for records."""


@runtime_checkable
class Clip(Protocol):
    """A clip that was opened."""

    facts: ClipFacts
    problem: str | None
    """After the last frame: why the clip ended early; None if it did not."""

    def frames(self, first: int = 0) -> Iterator[ClipFrame]:
        """Yields the frames that are taken, from number `first` on; those before are not converted.

        Raises:
            ImageError: nothing can be read. Later damage ends the frames and is stated in `problem`.
        """
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


Note = Callable[[str], object]
Watch = Callable[[int], object]


class Choice:
    """Decides which frames are taken, by their times, one after the other."""

    def __init__(self, config: VideoConfig) -> None:
        self._start = exact(config.start or 0)
        self._end = None if config.end is None else exact(config.end)
        self._every = config.every
        self._fps = None if config.fps is None else exact(config.fps)
        self._seen = 0
        self._slot = -1

    def is_over(self, time: Fraction) -> bool:
        """Whether no frame of this time or a later one is taken."""
        return self._end is not None and time >= self._end

    def takes(self, time: Fraction) -> bool:
        """Whether the next frame, of this time [s], is taken."""
        if time < self._start:
            return False
        self._seen += 1
        if self._fps is None:
            return (self._seen - 1) % self._every == 0
        slot = int((time - self._start) * self._fps)
        if slot <= self._slot:
            return False
        self._slot = slot
        return True


def about_how_many(config: VideoConfig, *, duration: float | None, rate: Fraction) -> int | None:
    """About how many frames of a clip of this duration [s] are taken."""
    if duration is None:
        return None
    end = duration if config.end is None else min(duration, config.end)
    seconds = max(0.0, end - (config.start or 0.0))
    a_second = float(rate) / config.every if config.fps is None else min(float(rate), config.fps)
    return max(1, round(seconds * a_second))


def exact(value: float | int) -> Fraction:
    """The exact fraction of a decimal number, such as 2997/100 for 29.97."""
    return Fraction(value).limit_denominator(_FINEST_RATE)
