# SPDX-License-Identifier: Apache-2.0
"""Optical flow between two photos: at full size as an evaluation without measured flow needs it, or any grays."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from openmarigold.errors import needs_extra

_LOWEST = 32  # [px]: OpenCV's search writes beyond its arrays where a picture is lower and wider than 80


def opencv() -> Any:
    """The module cv2, whose stubs lack some of it.

    Raises:
        MissingExtraError: without the extra `video`.
    """
    with needs_extra("video", "opencv-python-headless"):
        import cv2
    return cv2


def estimate_flow(
    first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"]
) -> Float32[np.ndarray, "h w 2"]:
    """Where each pixel goes, minus where it is: x and y [px]. Dense inverse search (Kroeger et al. 2016).

    Raises:
        MissingExtraError: without the extra `video`.
    """
    cv2 = opencv()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grays = [cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) for photo in (first, second)]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # more of them divide the picture into strips that do not see each other
    try:
        flow = searched(search, grays[0], grays[1], None)
    finally:
        cv2.setNumThreads(threads)
    return np.asarray(flow, dtype=np.float32)


def searched(
    search: Any,
    one: UInt8[np.ndarray, "h w"],
    other: UInt8[np.ndarray, "h w"],
    guess: Float32[np.ndarray, "h w 2"] | None,
) -> Float32[np.ndarray, "h w 2"]:
    """What an OpenCV search finds; the last row of low pictures is repeated, without which it ends the process."""
    height = one.shape[0]
    if height >= _LOWEST:
        return search.calc(one, other, None if guess is None else guess.copy())
    below = (0, _LOWEST - height), (0, 0)
    grays = [np.pad(picture, below, mode="edge") for picture in (one, other)]
    padded = None if guess is None else np.pad(guess, (*below, (0, 0)), mode="edge")
    return np.ascontiguousarray(search.calc(*grays, padded)[:height])
