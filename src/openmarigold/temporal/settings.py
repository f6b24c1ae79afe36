# SPDX-License-Identifier: Apache-2.0
"""The settings of a stream of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from openmarigold.config import check_choice, is_integer, is_number
from openmarigold.errors import InvalidValueError

Correspondence = Literal["flow", "pixels"]
MAX_LOOK_AHEAD = 64
"""Frames; each is held at full size."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """What makes a clip steady.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    previous_latent: float | None = None
    """Share of the previous frame's latent in the start noise, from 0 to below 1; what is above 0 lets each frame wait
    for the one before. None: 0 for checkpoints that start from zeros, else 0.1."""
    correspondence: Correspondence = "flow"
    """How frames are compared: flow (optical flow, extra `video`) or pixels (the same pixels where the photo did not
    change; for a camera that stands still)."""
    look_ahead: int = 0
    """Frames after a frame that it is smoothed with, 0 to 64. It comes out so many frames late."""
    smoothing: float = 0.8
    """Share of the noise that is averaged over time where nothing changed, from 0 (nothing) to below 1."""
    detect_cuts: bool = True
    """Find cuts, each of which starts a new gauge; without, a clip is one shot."""

    def __post_init__(self) -> None:
        check_choice("correspondence", self.correspondence, get_args(Correspondence))
        if self.previous_latent is not None:
            _check_share("previous_latent", self.previous_latent, "0.1")
        _check_share("smoothing", self.smoothing, "0.8")
        if not is_integer(self.look_ahead) or not 0 <= self.look_ahead <= MAX_LOOK_AHEAD:
            raise InvalidValueError(
                f"look_ahead={self.look_ahead!r} is not accepted; give a number of frames, 0 to {MAX_LOOK_AHEAD}"
            )


def _check_share(name: str, value: Any, usual: str) -> None:
    if not is_number(value) or not 0 <= value < 1:
        raise InvalidValueError(f"{name}={value!r} is not accepted; give a share from 0 to below 1, such as {usual}")
