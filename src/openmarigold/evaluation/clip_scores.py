# SPDX-License-Identifier: Apache-2.0
"""Scores of one clip: its predictions, aligned in one of the named ways, compared with measured depth and each other.

Predictions and measured depth are read frame by frame, so memory holds a few frames and the pixels of a fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from openmarigold.alignment import fit_scale_median
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.clips import Clip, ClipFrame
from openmarigold.evaluation.scoring import align_sample
from openmarigold.metrics import abs_rel, delta
from openmarigold.modalities.protocol import PIXELS_SCORED, BenchmarkSample, PredictionSpace, Protocol, Score
from openmarigold.temporal.flow import estimate_flow
from openmarigold.temporal.metrics import (
    Flicker,
    drift,
    final_drift,
    mean_tae,
    projection_error,
    projection_error_as_published,
    scale_jitter,
    seen_in_both,
    static_pixels,
    true_flow,
    warp_error,
)

Alignment: TypeAlias = Literal["clip", "frame", "first"]
ALIGNMENTS: tuple[Alignment, ...] = get_args(Alignment)
FlowSource: TypeAlias = Literal["truth", "estimated"]
MAX_FIT_PIXELS = 8_000_000
"""Most pixels in the fit of a clip. If a clip has more, only every n-th one is used."""

ALIGNED_SCORES = (
    Score(name="abs_rel", label="AbsRel", unit="%", table_digits=2),
    Score(name="delta1", label="delta1", unit="%", table_digits=2, higher_is_better=True),
    Score(name="tae", label="TAE", unit="%", table_digits=3),
    Score(name="tae_published", label="TAE as published", unit="%", table_digits=3),
    Score(name="opw", label="OPW", unit="m", table_digits=4),
    Score(name="flicker", label="flicker of static pixels", unit="%", table_digits=3),
)
"""Scores that each alignment has."""
CLIP_SCORES = (
    Score(name="scale_jitter", label="scale jitter", unit="%", table_digits=3),
    Score(name="drift", label="drift, last tenth to first", unit="%", table_digits=2),
    Score(name="final_drift", label="drift, last frame to first", unit="%", table_digits=2),
    Score(name="tae_truth", label="TAE of measured depth", unit="%", table_digits=3),
    Score(name="opw_truth", label="OPW of measured depth", unit="m", table_digits=4),
    Score(name="share_static", label="static pixels", unit="%", table_digits=1),
    Score(name="pixels_scored", label="pixels scored", unit="%", table_digits=1, higher_is_better=True),
)
"""Scores of a clip, whatever the alignment."""


def scores_of(alignments: Sequence[Alignment]) -> dict[str, Score]:
    """All scores by their key in reports, such as "clip/tae"."""
    aligned = {f"{how}/{score.name}": score for how in alignments for score in ALIGNED_SCORES}
    return {**aligned, **{score.name: score for score in CLIP_SCORES}}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A frame and the next: how the camera moved, and which pixels are the same."""

    first: ClipFrame
    second: ClipFrame
    to_second: Float64[np.ndarray, "4 4"] | None
    flow: Float32[np.ndarray, "h w 2"] | None
    seen: Bool[np.ndarray, "h w"]
    static: Bool[np.ndarray, "h w"]


def pair_frames(clip: Clip, number: int, first: ClipFrame, second: ClipFrame, source: FlowSource) -> Pair:
    """Frames `number` and the next. With measured flow, a pair without poses has no flow."""
    known = first.pose is not None and second.pose is not None
    to_second = np.linalg.inv(second.pose) @ first.pose if known else None  # pyright: ignore
    there: np.ndarray | None = None
    back: np.ndarray | None = None
    if source == "estimated":
        there, back = estimate_flow(first.rgb, second.rgb), estimate_flow(second.rgb, first.rgb)
    elif to_second is not None:
        back = true_flow(
            second.depth, second.valid_mask, camera=second.camera, first_to_second=np.linalg.inv(to_second)
        )
        if clip.flow is None:
            there = true_flow(first.depth, first.valid_mask, camera=first.camera, first_to_second=to_second)
        else:
            there = clip.flow(number)
    seen = static = np.zeros(first.depth.shape, dtype=bool)
    if there is not None and back is not None:
        seen = seen_in_both(there, back) & first.valid_mask
        static = static_pixels(first.rgb, second.rgb, there) & first.valid_mask & second.valid_mask
    else:
        there = None
    return Pair(first=first, second=second, to_second=to_second, flow=there, seen=seen, static=static)


@dataclass
class _Tally:
    """Sums over the frames of a clip for one alignment."""

    abs_rel: list[float] = field(default_factory=list)
    delta1: list[float] = field(default_factory=list)
    tae: list[float] = field(default_factory=list)
    tae_published: list[float] = field(default_factory=list)
    opw: list[float] = field(default_factory=list)
    flicker: Flicker = field(default_factory=Flicker)

    def add_frame(self, depth: Float[np.ndarray, "h w"], frame: ClipFrame) -> None:
        usable = frame.valid_mask & np.isfinite(depth)
        if usable.any():
            self.abs_rel.append(abs_rel(depth, frame.depth, usable))
            self.delta1.append(delta(depth, frame.depth, usable))

    def add_pair(self, first: Float[np.ndarray, "h w"], second: Float[np.ndarray, "h w"], pair: Pair) -> None:
        usable = pair.first.valid_mask & np.isfinite(first), pair.second.valid_mask & np.isfinite(second)
        if pair.to_second is not None:
            back = np.linalg.inv(pair.to_second)
            for one, other, valid, camera, motion in (
                (first, second, usable, pair.first.camera, pair.to_second),
                (second, first, usable[::-1], pair.second.camera, back),
            ):
                self.tae.append(
                    projection_error(
                        one,
                        other,
                        first_valid=valid[0],
                        second_valid=valid[1],
                        camera=camera,
                        first_to_second=motion,
                    )
                )
                self.tae_published.append(
                    projection_error_as_published(
                        one, other, second_valid=valid[1], camera=camera, first_to_second=motion
                    )
                )
        if pair.flow is not None:
            masked = np.where(usable[1], second, np.nan)
            self.opw.append(warp_error(first, masked, flow=pair.flow, seen=pair.seen & usable[0]))
        self.flicker.add(first, second, pair.static & usable[0] & usable[1])

    def scores(self) -> dict[str, float]:
        return {
            "abs_rel": _mean(self.abs_rel),
            "delta1": _mean(self.delta1),
            "tae": mean_tae(self.tae) / 100,
            "tae_published": mean_tae(self.tae_published) / 100,
            "opw": _mean(self.opw),
            "flicker": self.flicker.value,
        }


def score_clip(
    clip: Clip,
    numbers: Sequence[int],
    predictions: Sequence[Float32[np.ndarray, "h w"]] | np.ndarray,
    *,
    protocol: Protocol,
    space: PredictionSpace,
    alignments: Sequence[Alignment] = ALIGNMENTS,
    flow: FlowSource = "truth",
    progress: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """All scores of a clip by the keys of `scores_of`, as ratios; NaN where nothing could be compared.

    Args:
        clip: what was measured.
        numbers: of the frames that count, in their order.
        predictions: a map for each of these frames, of its size.
        protocol: how predictions are aligned to depth; one of a modality's.
        space: what they are known up to.
        alignments: which pixels a fit sees.
        flow: truth follows from depth and poses (or is the data set's), estimated from the photos.
        progress: called after each frame.

    Raises:
        DataError: fewer than two frames, a frame that cannot be read, or no valid pixel for a fit.
        InvalidValueError: predictions that do not fit.
    """
    if len(numbers) < 2 or len(numbers) != len(predictions):
        raise DataError(f"{clip.name}: {len(numbers)} frames and {len(predictions)} predictions; give two or more")
    # The scale of each frame is that of the clip's own alignment.
    wanted: tuple[Alignment, ...] = tuple(dict.fromkeys(("clip", *alignments)))
    aligned = {how: _aligned(clip, numbers, predictions, protocol, space, how) for how in wanted}
    tallies = _Tallies(wanted)
    before: ClipFrame | None = None
    depths: dict[str, np.ndarray] = {}
    for number in numbers:
        frame, previous = clip.read(number), depths
        depths = {how: next(maps) for how, maps in aligned.items()}
        tallies.add_frame(depths, frame)
        if before is not None:
            tallies.add_pair(previous, depths, pair_frames(clip, number - 1, before, frame, flow))
        before = frame
        progress()
    return tallies.scores(alignments)


class _Tallies:
    """The tallies of a clip, one for each alignment, and what its measured depth itself would score."""

    def __init__(self, alignments: Sequence[Alignment]) -> None:
        self._of = {how: _Tally() for how in alignments}
        self._truth = _Tally()
        self._scales: list[float] = []
        self._scored: list[float] = []

    def add_frame(self, depths: Mapping[str, Float[np.ndarray, "h w"]], frame: ClipFrame) -> None:
        """One more frame, by alignment."""
        usable = frame.valid_mask & np.isfinite(depths["clip"])
        if frame.valid_mask.any():
            self._scored.append(np.count_nonzero(usable) / np.count_nonzero(frame.valid_mask))
        if usable.any():
            self._scales.append(fit_scale_median(depths["clip"], frame.depth, usable))
        for how, tally in self._of.items():
            tally.add_frame(depths[how], frame)

    def add_pair(
        self,
        previous: Mapping[str, Float[np.ndarray, "h w"]],
        depths: Mapping[str, Float[np.ndarray, "h w"]],
        pair: Pair,
    ) -> None:
        """Two frames in a row, by alignment."""
        for how, tally in self._of.items():
            tally.add_pair(previous[how], depths[how], pair)
        self._truth.add_pair(pair.first.depth, pair.second.depth, pair)

    def scores(self, alignments: Sequence[Alignment]) -> dict[str, float]:
        """By the keys of `scores_of`."""
        found = {f"{how}/{name}": value for how in alignments for name, value in self._of[how].scores().items()}
        return {
            **found,
            "scale_jitter": scale_jitter(self._scales),
            "drift": drift(self._scales),
            "final_drift": final_drift(self._scales),
            "tae_truth": mean_tae(self._truth.tae) / 100,
            "opw_truth": _mean(self._truth.opw),
            "share_static": self._truth.flicker.share_static,
            PIXELS_SCORED.name: _mean(self._scored),
        }


def _aligned(
    clip: Clip,
    numbers: Sequence[int],
    predictions: Sequence[np.ndarray] | np.ndarray,
    protocol: Protocol,
    space: PredictionSpace,
    how: Alignment,
) -> Iterator[Float[np.ndarray, "h w"]]:
    """Aligned depth [m] of each frame; what a protocol fits to some pixels, it applies to all."""
    fitted = (np.zeros(0, np.float32), np.zeros(0, np.float32))
    if how != "frame":
        of_fit = range(len(numbers)) if how == "clip" else range(1)
        fitted = _fit_pixels(clip, numbers, predictions, of_fit)
        if not fitted[0].size:
            if how == "clip":
                raise DataError(f"{clip.name}: the clip has no measured pixel")
            raise DataError(
                f"{clip.name}: the first frame has no measured pixel, and the alignment first needs some; leave it out "
                "of the alignments, or begin with a later frame"
            )
    places = iter(range(len(numbers)))
    chunk: list[np.ndarray] = []
    for place in places:
        prediction = np.asarray(predictions[place])
        if how == "frame":
            yield _one_frame(clip, clip.read(numbers[place]), prediction, protocol, space)
            continue
        chunk.append(prediction)
        if place == len(numbers) - 1 or sum(map(np.size, chunk)) + prediction.size > MAX_FIT_PIXELS:
            yield from _applied(clip, fitted, chunk, protocol, space)
            chunk = []


def _one_frame(
    clip: Clip, frame: ClipFrame, prediction: np.ndarray, protocol: Protocol, space: PredictionSpace
) -> Float[np.ndarray, "h w"]:
    if not frame.valid_mask.any():
        return np.full(frame.depth.shape, np.nan)
    sample = _sample(clip, frame.depth, frame.valid_mask)
    return align_sample(sample, {"depth": prediction}, protocol, space)[0]["depth"]


def _fit_pixels(
    clip: Clip, numbers: Sequence[int], predictions: Sequence[np.ndarray] | np.ndarray, places: range
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Predicted and measured values of the pixels that a fit sees."""
    step = -(-sum(np.size(predictions[place]) for place in places) // MAX_FIT_PIXELS)
    found, measured = [], []
    for place in places:
        frame = clip.read(numbers[place])
        if np.shape(predictions[place]) != frame.depth.shape:
            raise InvalidValueError(
                f"{clip.name}, frame {frame.name}: the prediction is {list(np.shape(predictions[place]))} and the "
                f"measured depth {list(frame.depth.shape)}; both must have the photo's size"
            )
        valid = frame.valid_mask.ravel()[::step]
        found.append(np.ravel(predictions[place])[::step][valid].astype(np.float32))
        measured.append(frame.depth.ravel()[::step][valid])
    return np.concatenate(found), np.concatenate(measured)


def _applied(
    clip: Clip,
    fitted: tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]],
    chunk: Sequence[np.ndarray],
    protocol: Protocol,
    space: PredictionSpace,
) -> Iterator[Float[np.ndarray, "h w"]]:
    """The frames of a chunk, aligned by a fit to other pixels: one row of all, of which those of the fit count."""
    count = fitted[0].size
    predicted = np.concatenate([fitted[0], *(np.ravel(one) for one in chunk)])
    measured = np.zeros(predicted.size)
    measured[:count] = fitted[1]
    sample = _sample(clip, measured[None], (np.arange(predicted.size) < count)[None])
    depth = align_sample(sample, {"depth": predicted[None]}, protocol, space)[0]["depth"][0]
    for one in chunk:
        yield depth[count : count + one.size].reshape(one.shape)
        count += one.size


def _sample(clip: Clip, depth: np.ndarray, valid: Bool[np.ndarray, "h w"]) -> BenchmarkSample:
    return BenchmarkSample(
        name=clip.name,
        kind=clip.layout,
        place=clip.name,
        rgb=np.broadcast_to(np.uint8(0), (*valid.shape, 3)),
        maps={"depth": depth.astype(np.float64)},
        valid_mask=valid,
        min_value=clip.min_depth,
        max_value=clip.max_depth,
        full_size=(valid.shape[0], valid.shape[1]),
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def finite_only(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no NaN."""
    return {name: float(value) if np.isfinite(value) else None for name, value in metrics.items()}
