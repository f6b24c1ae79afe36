# SPDX-License-Identifier: Apache-2.0
"""Which pixels of two photos show the same thing: by optical flow, or the same pixels where nothing changed.

Flow: Kroeger et al. 2016, "Fast optical flow using dense inverse search" (OpenCV); seen from both sides: Sundaram et
al. 2010, "Dense point trajectories by GPU-accelerated large displacement optical flow".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from openmarigold.temporal.flow import opencv, searched
from openmarigold.temporal.looks import Look, box_mean
from openmarigold.temporal.settings import Correspondence

_ALIKE = 20.0  # levels of a look's features that two views of one thing may differ by
_STEEP = 12.0  # levels a pixel: a step in the photo, where another sub-pixel shift changes much
_STILL = 0.15  # [px of a look] of motion, nearly everywhere: the camera stands
_STEADY = 0.5  # [px]: what a standing camera does not see move
_DOUBTFUL = 0.5  # share of the textured pixels that are found again
_SMALLEST = 24  # [px]: below, flow has no patches to look for


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """Where the pixels of one look lie in another."""

    flow: Float32[np.ndarray, "h w 2"] | None
    """To the right and down [px of the look]; None: the same pixels."""
    visible: Bool[np.ndarray, "h w"]
    """Pixels that the other look shows too."""
    share: float
    """Share of the textured pixels that are visible in the other look, 0 to 1."""

    def sampled(self, other: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """A picture on the other look's pixels, seen from this one's."""
        return other if self.flow is None else warped(other, self.flow)

    def then(self, following: Match) -> Match:
        """From this look to one that the other is matched with."""
        if self.flow is None:
            return Match(flow=following.flow, visible=self.visible & following.visible, share=following.share)
        flow = self.flow if following.flow is None else composed(self.flow, following.flow)
        seen = warped(following.visible.astype(np.float32), self.flow) > 0.99
        return Match(flow=flow, visible=self.visible & seen, share=min(self.share, following.share))


def is_followed(look: Look, how: Correspondence) -> bool:
    """Whether what a look shows is followed by its flow; else the same pixels are compared."""
    return how == "flow" and min(look.features.shape) >= _SMALLEST


def match_looks(one: Look, other: Look, how: Correspondence) -> tuple[Match, Match]:
    """The match from one look to another of the same size, and the one back.

    Raises:
        MissingExtraError: flow without the extra `video`.
    """
    if not is_followed(one, how):
        same = _unchanged(one.features, other.features)
        return _match(None, same, one), _match(None, same, other)
    pair = _both_ways(one, other, None)
    if pair[0].share < _DOUBTFUL:  # a fast pan, or a cut
        shift = np.broadcast_to(_whole_shift(one, other), (*one.features.shape, 2))
        again = _both_ways(one, other, shift)
        pair = again if again[0].share > pair[0].share else pair
    return pair


def match_again(one: Look, other: Look, guess: Float32[np.ndarray, "h w 2"] | None) -> Match:
    """The match near a guess of its flow, checked by what the pixels look like."""
    if guess is None:
        return _match(None, _unchanged(one.features, other.features), one)
    flow = _dense_flow(one.features, other.features, guess=guess)
    return _match(flow, _alike(one, other, flow), one)


def warped(
    picture: Float32[np.ndarray, "h w *channels"], flow: Float32[np.ndarray, "h w 2"]
) -> Float32[np.ndarray, "h w *channels"]:
    """`picture` at each pixel plus its flow, bilinear; beyond the edge the edge is repeated."""
    return opencv().remap(picture, _grid(*flow.shape[:2]) + flow, None, 1, borderMode=1)


def enlarged(
    small: Float32[np.ndarray, "h w *channels"], look: Look, size: tuple[int, int]
) -> Float32[np.ndarray, "H W *channels"]:
    """A picture on a look's pixels at its photo's size, bilinear."""
    height, width = look.features.shape
    whole = opencv().resize(small, (width * look.factor, height * look.factor))
    return whole[: size[0], : size[1]]


def composed(first: Float32[np.ndarray, "h w 2"], second: Float32[np.ndarray, "h w 2"]) -> Float32[np.ndarray, "h w 2"]:
    """The flow that follows the first and then the second."""
    return first + warped(second, first)


def check_correspondence(how: Correspondence) -> None:
    """Raises MissingExtraError where flow is asked for without the extra `video`."""
    if how == "flow":
        opencv()


def _match(flow: np.ndarray | None, visible: np.ndarray, one: Look) -> Match:
    counted = visible if one.is_blind else visible[one.textured]
    return Match(flow=flow, visible=visible, share=float(counted.mean()))


def _unchanged(one: UInt8[np.ndarray, "h w"], other: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where the blurred photos are alike and neither is steep."""
    blurred = [box_mean(features.astype(np.float32), 1) for features in (one, other)]
    steep = (
        [np.hypot(*np.gradient(picture)) for picture in blurred] if min(one.shape) > 1 else [np.zeros(one.shape)] * 2
    )
    limit = _ALIKE / 2
    return (np.abs(blurred[0] - blurred[1]) < limit) & (np.maximum(*steep) < 2 * _STEEP)


def _both_ways(one: Look, other: Look, guess: Float32[np.ndarray, "h w 2"] | None) -> tuple[Match, Match]:
    there = _dense_flow(one.features, other.features, guess=guess)
    back = _dense_flow(other.features, one.features, guess=None if guess is None else -guess)
    return _checked(one, other, there, back), _checked(other, one, back, there)


def _whole_shift(one: Look, other: Look) -> Float32[np.ndarray, "2"]:
    """By how much the whole picture moved, by the phases of its frequencies."""
    cv2 = opencv()
    height, width = one.features.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    pictures = [look.features.astype(np.float32) - np.float32(128) for look in (one, other)]
    shift, _ = cv2.phaseCorrelate(*pictures, window)
    return np.array(shift, dtype=np.float32)


def _checked(one: Look, other: Look, there: np.ndarray, back: np.ndarray) -> Match:
    returned = composed(there, back)
    far = (there**2).sum(axis=-1)
    visible = ((returned**2).sum(axis=-1) < 0.25 + 0.01 * far) & _alike(one, other, there)
    seen = visible & one.textured
    if seen.any() and np.quantile(far[seen], 0.8) < _STILL**2:
        there = np.where((far < _STEADY**2)[..., None], np.float32(0), there)
    return _match(there, visible, one)


def _alike(one: Look, other: Look, flow: np.ndarray) -> Bool[np.ndarray, "h w"]:
    """Inside the other look, and of the same features there, blurred a little."""
    height, width = one.features.shape
    places = _grid(height, width) + flow
    x, y = places[..., 0], places[..., 1]
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    off = one.features.astype(np.float32) - warped(other.features.astype(np.float32), flow)
    return inside & (np.abs(opencv().blur(off, (3, 3))) < _ALIKE)


def _dense_flow(
    one: UInt8[np.ndarray, "h w"], other: UInt8[np.ndarray, "h w"], *, guess: Float32[np.ndarray, "h w 2"] | None = None
) -> Float32[np.ndarray, "h w 2"]:
    cv2 = opencv()  # the same bytes with any number of threads
    preset = cv2.DISOPTICAL_FLOW_PRESET_FAST if guess is None else cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST
    return searched(cv2.DISOpticalFlow_create(preset), one, other, guess)


@lru_cache(maxsize=4)
def _grid(height: int, width: int) -> Float32[np.ndarray, "h w 2"]:
    """Column and row of each pixel."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([columns, rows], axis=-1)
