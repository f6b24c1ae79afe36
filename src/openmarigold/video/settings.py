# SPDX-License-Identifier: Apache-2.0
"""The settings of a clip's reading and writing; the command line is generated from them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from openmarigold.config import Green, NormalFrame, check_choice, check_whole, is_number
from openmarigold.errors import InvalidValueError

Product = Literal["colored", "sidebyside", "ffv1", "npy", "exr", "png"]
PipeForm = Literal["matroska", "raw"]

_LARGEST_SIDE = 16384


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Which frames of a clip are taken, and which files are written.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    format: tuple[Product, ...] = ("colored", "sidebyside")
    """Files to write, one or more: colored (MP4), sidebyside (MP4 with the clip, its sound and the colors), ffv1
    (lossless 16 bits in Matroska), and a file for each frame: npy, exr (extra `exr`), png (16 bits)."""
    color_map: str = "Spectral"
    """Colors: Spectral (near is red), or any color map of matplotlib (extra `plots`)."""
    start: float | None = None
    """First moment that is taken [s], from the clip's beginning."""
    end: float | None = None
    """End of the part that is taken [s], from the clip's beginning."""
    every: int = 1
    """Take every n-th frame."""
    fps: float | None = None
    """Take at most this many frames per second. None: all."""
    crf: int = 18
    """Quality of H.264: 0 is lossless, 18 looks nearly the same, 51 is the worst."""
    input_rate: float | None = None
    """Frames per second of pictures in a folder, and of raw frames. None: 25."""
    raw_size: str | None = None
    """Width x height of raw frames from a pipe, such as 640x480."""
    raw_format: str = "rgb24"
    """Pixel format of raw frames from a pipe, by FFmpeg's name, such as yuv420p."""
    pipe: PipeForm = "matroska"
    """Format on stdout if OUT is -: matroska, or raw frames (rgb24; for ffv1 gray16le)."""
    segment: int = 64
    """Frames per segment; an interrupted run continues after the last complete segment."""
    normal_frame: NormalFrame = "rub"
    """Axes of written normals: rub, lub or opencv, as in `predict`."""
    green: Green = "gl"
    """Green of pictures of normals: gl (up) or dx (down)."""

    def __post_init__(self) -> None:
        if not self.format or not set(self.format) <= set(get_args(Product)):
            given = ", ".join(map(repr, self.format)) or "nothing"
            raise InvalidValueError(f"format: {given} is not known; give one or more of {', '.join(get_args(Product))}")
        check_choice("pipe", self.pipe, get_args(PipeForm))
        check_choice("normal_frame", self.normal_frame, get_args(NormalFrame))
        check_choice("green", self.green, get_args(Green))
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 <= value < math.inf):
                raise InvalidValueError(f"{name}={value!r} is not accepted; give seconds, 0 or above")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise InvalidValueError(f"end={self.end!r} is not after the start, {self.start or 0}; give a later moment")
        for name in ("fps", "input_rate"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value <= 1000):
                raise InvalidValueError(f"{name}={value!r} is not accepted; give frames a second, above 0 up to 1000")
        for name, low, high in (("every", 1, 10**9), ("segment", 1, 10**6), ("crf", 0, 51)):
            check_whole(name, getattr(self, name), least=low, most=high)
        if self.every > 1 and self.fps is not None:
            raise InvalidValueError("every and fps both choose frames; give one of them")
        if self.raw_size is not None:
            _ = self.raw_width_height

    @property
    def raw_width_height(self) -> tuple[int, int]:
        """Width and height of raw frames [px].

        Raises:
            InvalidValueError: `raw_size` is not a size.
        """
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(self.raw_size))
        if match is None or not all(1 <= int(side) <= _LARGEST_SIDE for side in match.groups()):
            raise InvalidValueError(
                f"raw_size={self.raw_size!r} is not accepted; give width x height in pixels, such as 640x480"
            )
        return int(match[1]), int(match[2])
