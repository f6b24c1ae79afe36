# SPDX-License-Identifier: Apache-2.0
"""Steady maps of a clip, frame by frame, in constant memory.

Each frame is predicted by itself, fitted to the gauge of its shot (`temporal.anchors`), and averaged with the frames
that show the same things (`temporal.smoothing`).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from openmarigold.config import CallConfig
from openmarigold.diffusion import member_noise
from openmarigold.errors import InvalidValueError, OpenMarigoldError
from openmarigold.gauges import GaugeFit
from openmarigold.images.exif import Photo
from openmarigold.images.photo import read_photo
from openmarigold.predictor.stream_state import (
    STATE_VERSION,
    Pending,
    StreamedFrame,
    arrays_of,
    joined,
    pending_of,
    under,
)
from openmarigold.results.prediction import Prediction
from openmarigold.temporal.anchors import Anchor, Anchors
from openmarigold.temporal.looks import DOUBTFUL, SAME_SCENE, Look, cut_in_photos, histogram_distance, look_at
from openmarigold.temporal.matching import Match, check_correspondence, match_looks
from openmarigold.temporal.settings import StreamConfig
from openmarigold.temporal.smoothing import DisplayBounds, Smoothed, Smoother

if TYPE_CHECKING:
    from openmarigold.predictor import Predictor

__all__ = ["Stream", "StreamedFrame"]

_AHEAD = 2  # frames that are predicted while an earlier one is waited for
_USUAL_SHARE = 0.1
_CLIP_KEY = 0  # replaces a photo's hash, so that all frames of a clip have the same noise


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fitted:
    """A frame in the gauge of its shot."""

    values: Float32[np.ndarray, "c H W"]
    anchor: Anchor
    scale: float
    shift: float
    inliers: float
    is_new: bool
    """Whether it sets a new gauge: the first frame of a shot, or the first one that shows something."""
    is_cut: bool


def share_of_previous(config: StreamConfig, call: CallConfig) -> float:
    """Share of the previous frame's latent in the start noise; `call` is resolved (`Predictor.resolve`)."""
    if config.previous_latent is None:
        return 0.0 if call.start_noise == "zeros" else _USUAL_SHARE
    return float(config.previous_latent)


def frames_at_once(config: StreamConfig, call: CallConfig) -> int:
    """Frames that `Stream.follow` predicts at the same time; `call` is resolved (`Predictor.resolve`)."""
    return 1 if share_of_previous(config, call) else _AHEAD + 1


class Stream:
    """Makes the frames of one clip steady, one after another.

    >>> stream = Stream(predictor, StreamConfig(), CallConfig())  # doctest: +SKIP
    >>> for streamed in stream.push(frame): ...  # doctest: +SKIP
    """

    def __init__(self, predictor: Predictor, config: StreamConfig, call: CallConfig) -> None:
        """A stream before its first frame.

        Raises:
            InvalidValueError: a setting that does not apply to this checkpoint.
            MissingExtraError: optical flow without the extra `video`.
        """
        check_correspondence(config.correspondence)
        if call.interval is not None:
            raise InvalidValueError(
                f"interval={call.interval:g} is calibrated for single photos, not for frames of a clip; leave it out"
            )
        self._predictor, self.config = predictor, config
        resolution = call.processing_resolution
        self.call = replace(
            call,
            num_inference_steps=call.num_inference_steps or 1,
            processing_resolution=predictor.checkpoint.one_pass_resolution if resolution is None else resolution,
        )
        self._resolved = predictor.resolve(self.call)
        self.previous_latent = share_of_previous(config, self._resolved)
        zeros = self._resolved.start_noise == "zeros"
        if zeros and self.previous_latent:
            raise InvalidValueError(
                f"previous_latent={config.previous_latent!r} has no effect with {predictor.checkpoint.name}, which "
                "starts from zeros; use 0 (or start_noise gaussian)"
            )
        if call.tiles and not zeros:
            raise InvalidValueError(
                f"tiles=True was given for a clip with {predictor.checkpoint.name}, which starts from noise: frames of "
                "a clip start from the same noise, and tiles have their own; leave tiles out, or use start_noise zeros"
            )
        modality = predictor.modality
        self._gauge = modality.gauge(predictor.checkpoint.invariance)
        self._has_bounds = [kind.channels for kind in modality.maps] == [1]
        with_scale = self._gauge is not None and self._gauge.with_scale
        self._anchors = Anchors(config.correspondence, with_scale=with_scale)
        self._smoother = Smoother(config.smoothing)
        self._bounds = DisplayBounds()
        self._number, self._shot = 0, 0
        self._size: tuple[int, int] | None = None
        self._last_fit = (1.0, 0.0)
        self._smoothed: Smoothed | None = None  # the last frame that showed something, as `Anchors.previous`
        self._latent: np.ndarray | None = None
        self._pending: deque[Pending] = deque()

    def follow(self, frames: Iterable[Any]) -> Iterator[list[StreamedFrame]]:
        """Yields the result of `push` for each frame, and at the end that of `finish`.

        The bytes are the same, in less time: frames that do not depend on the one before are predicted at the same
        time. Between two results, `state` belongs to the frames whose results came out.

        Raises as `push`, after it has yielded the frames before the one that cannot be read. Frames that then still
        wait for later ones come from `finish`.
        """
        if self.previous_latent:
            for frame in frames:
                yield self.push(frame)
            yield self.finish()
            return
        waiting: deque[tuple[Photo, Any]] = deque()
        failure: OpenMarigoldError | None = None
        with ThreadPoolExecutor(frames_at_once(self.config, self._resolved), thread_name_prefix="stream") as pool:
            try:
                for photo in self._photos(frames):
                    if isinstance(photo, OpenMarigoldError):
                        failure = photo
                        break
                    waiting.append((photo, pool.submit(self._predict, photo, None)))
                    if len(waiting) > _AHEAD:
                        ready, prediction = waiting.popleft()
                        yield self._take(ready, prediction.result())
                while waiting:
                    ready, prediction = waiting.popleft()
                    yield self._take(ready, prediction.result())
            finally:
                for _, prediction in waiting:
                    prediction.cancel()
        if failure is not None:
            raise failure
        yield self.finish()

    def push(self, frame: Any) -> list[StreamedFrame]:
        """Takes the next frame; returns the frames that are done, none while it looks ahead.

        Args:
            frame: uint8 `[h w 3]`, or whatever a `Predictor` takes.

        Raises:
            InvalidValueError: the frame has another size than those before.
            ImageError, NumericalError: as a call of the predictor.
        """
        return self._take(self._read(frame, self._number), None)

    def finish(self) -> list[StreamedFrame]:
        """The frames that still wait for later ones."""
        return [self._done() for _ in range(len(self._pending))]

    def _photos(self, frames: Iterable[Any]) -> Iterator[Photo | OpenMarigoldError]:
        """The frames; instead of the first one that cannot be read, its error."""
        try:
            for number, frame in enumerate(frames, start=self._number):
                yield self._read(frame, number)
        except OpenMarigoldError as error:
            yield error

    def _read(self, frame: Any, number: int) -> Photo:
        photo = read_photo(frame, background=self.call.background)
        size = photo.rgb.shape[0], photo.rgb.shape[1]
        if self._size is None:
            self._size = size
        elif size != self._size:
            (height, width), (was_height, was_width) = size, self._size
            raise InvalidValueError(
                f"frame {number} is {width}x{height}, and the frames before are {was_width}x{was_height}; all frames "
                "of a clip have one size: resize them, or start another stream"
            )
        return photo

    def _take(self, photo: Photo, prediction: Prediction | None) -> list[StreamedFrame]:
        look = look_at(photo.rgb)
        there = back = None
        cut = "no"
        before = self._anchors.previous  # the last frame that showed something; else the first one
        if before is not None and before.look.is_blind and not look.is_blind:
            before = None  # a black beginning has no gauge
        if before is not None:
            there, back = match_looks(look, before.look, self.config.correspondence)
            if self.config.detect_cuts and not look.is_blind:
                cut = cut_in_photos(there.share, histogram_distance(look, before.look))
        if prediction is None:
            prediction = self._predict(photo, self._latent if cut == "no" else None)
        self._latent = prediction.latent if self.previous_latent else None

        fitted = self._fitted(prediction, look, there, cut)
        if fitted.is_new or self._smoothed is None or there is None:
            there = back = None
            self._shot += fitted.is_cut
            smoothed = self._smoother.first(fitted.values, look)
        else:
            smoothed = self._smoother.next(fitted.values, look, self._smoothed, there)
        self._pending.append(
            Pending(
                frame=self._streamed(prediction, fitted, look),
                own=fitted.values,
                smoothed=smoothed,
                anchor=fitted.anchor,
                before=None if fitted.is_new or before is None else before.number,
                from_before=back,
            )
        )
        if fitted.is_new or not look.is_blind:
            self._smoothed = smoothed
            self._anchors.add(look, fitted.anchor.values, fitted.anchor.known, number=self._number)
        self._number += 1
        return [self._done()] if len(self._pending) > self.config.look_ahead else []

    def _fitted(self, prediction: Prediction, look: Look, match: Match | None, cut: str) -> _Fitted:
        """The frame's values in the gauge of its shot, or in a new gauge if it starts a shot."""
        modality, gauge = self._predictor.modality, self._gauge
        stack = modality.stack(prediction.maps)
        values = stack if gauge is None else gauge.to_space(stack)
        points = np.ascontiguousarray(look.points(values)[0])
        low, high = modality.maps[0].range
        raw = look.points(stack)[0]
        known = np.isfinite(points) & (raw != low) & (raw != high)  # a value at an end of the range was clipped
        scale, shift, inliers = 1.0, 0.0, 1.0
        is_new = match is None or cut == "yes"
        if gauge is not None and not is_new:
            assert match is not None
            fit: GaugeFit | None = self._anchors.fit(look, points, known, match, number=self._number)
            if cut == "maybe" and (fit is None or fit.correlation < SAME_SCENE):
                is_new = True
            elif fit is None:  # nothing to compare, as in a black frame
                (scale, shift), inliers = self._last_fit, 0.0
            else:
                scale, shift, inliers = fit.scale, fit.shift, fit.inliers
            if not is_new and (scale, shift) != (1.0, 0.0):
                values = values * np.float32(scale) + np.float32(shift)
                points = points * np.float32(scale) + np.float32(shift)
        elif cut == "maybe" and match is not None and match.share < DOUBTFUL / 2:
            is_new = True  # there is no fit that could decide
        if is_new:
            self._anchors.clear()
        self._last_fit = (scale, shift)
        anchor = Anchor(look=look, values=points, known=known, number=self._number)
        return _Fitted(
            values=values,
            anchor=anchor,
            scale=scale,
            shift=shift,
            inliers=inliers,
            is_new=is_new,
            is_cut=is_new and match is not None,
        )

    def _streamed(self, prediction: Prediction, fitted: _Fitted, look: Look) -> StreamedFrame:
        """The frame without its final maps."""
        bounds = None
        if self._has_bounds:
            shown = fitted.anchor.values
            shown = shown if self._gauge is None else self._gauge.from_space(shown)
            bounds = self._bounds.widened(shown, new_shot=fitted.is_new)
        uncertainties = prediction.uncertainties
        if self._gauge is not None:
            factor = fitted.scale if self._gauge.space == "linear" else np.exp(fitted.shift)
            uncertainties = {name: values * np.float32(factor) for name, values in uncertainties.items()}
        return StreamedFrame(
            number=self._number,
            prediction=replace(prediction, maps={}, uncertainties=uncertainties),
            scale=fitted.scale,
            shift=fitted.shift,
            shot=self._shot,
            is_cut=fitted.is_cut,
            bounds=bounds,
            inliers=fitted.inliers,
        )

    def _done(self) -> StreamedFrame:
        """The oldest waiting frame, with the information of later frames."""
        now = self._pending.popleft()
        later: list[tuple[np.ndarray, Match]] = []
        match: Match | None = None
        end = now.frame.number
        for after in self._pending:
            if after.before is None:
                break  # a cut
            if after.before != end or after.from_before is None:
                continue
            match = after.from_before if match is None else match.then(after.from_before)
            later.append((after.own, match))
            end = after.frame.number
        values = self._smoother.with_later(now.smoothed, now.anchor.look, later)
        modality = self._predictor.modality
        stack = modality.finish(values.copy()) if self._gauge is None else self._gauge.from_space(values)
        maps = modality.split(stack.astype(np.float32, copy=False))
        return replace(now.frame, prediction=replace(now.frame.prediction, maps=maps))

    def _predict(self, photo: Photo, latent: Float32[np.ndarray, "n C h w"] | None) -> Prediction:
        options: dict[str, Any] = {field.name: getattr(self.call, field.name) for field in fields(CallConfig)}
        return self._predictor(photo, latents=self._start(photo, latent), **options)

    def _start(
        self, photo: Photo, latent: Float32[np.ndarray, "n C h w"] | None
    ) -> Float32[np.ndarray, "m C h w"] | None:
        """The noise that the frame's members start from: the clip's, with a share of the previous latent."""
        if self._resolved.start_noise == "zeros":
            return None
        size = photo.rgb.shape[0], photo.rgb.shape[1]
        shape = self._predictor.latent_shape(size, self._resolved)
        noise = np.stack(
            [
                member_noise(shape, seed=self.call.seed, image_key=_CLIP_KEY, member=member)
                for member in range(self.call.ensemble_size)
            ]
        )
        if latent is not None:
            share = np.float32(self.previous_latent)
            for member, previous in enumerate(latent):  # fewer if a tolerance stopped early
                level = np.sqrt(np.mean(previous.astype(np.float64) ** 2))
                if level > 0:  # the sum has variance 1, since the noise is independent
                    noise[member] = np.sqrt(1 - share * share) * noise[member] + share * (previous / np.float32(level))
        return noise * np.float32(self._predictor.checkpoint.noise_scale(self._resolved))

    def state(self) -> dict[str, np.ndarray]:
        """The state to resume with the same bytes, as plain arrays. A caller must not change them."""
        size = (0, 0) if self._size is None else self._size
        arrays = {
            "made_by": np.frombuffer(self._made_by().encode(), dtype=np.uint8),
            "counts": np.array([self._number, self._shot, *size], dtype=np.int64),
            "last_fit": np.array(self._last_fit, dtype=np.float64),
            "bounds": self._bounds.state(),
        }
        if self._latent is not None:
            arrays["latent"] = self._latent
        parts = {"anchors": self._anchors.state()}
        if self._smoothed is not None:
            parts["smoothed"] = {"values": self._smoothed.values, "gain": self._smoothed.gain}
        for place, pending in enumerate(self._pending):
            parts[f"pending{place}"] = arrays_of(pending)
        return {**arrays, **joined(parts)}

    def _made_by(self) -> str:
        """The checkpoint and settings that a state can be continued with, as JSON."""
        checkpoint = self._predictor.checkpoint
        facts = {"state": STATE_VERSION, "checkpoint": checkpoint.name, "modality": self._predictor.modality.name}
        settings = {"invariance": checkpoint.invariance, "stream": asdict(self.config), "call": asdict(self._resolved)}
        return json.dumps({**facts, **settings}, sort_keys=True, default=str)

    @classmethod
    def restored(
        cls, predictor: Predictor, config: StreamConfig, call: CallConfig, state: Mapping[str, np.ndarray]
    ) -> Stream:
        """The stream that `state` was taken from; predictor and settings must be the same.

        Raises:
            InvalidValueError: the state is of another version, checkpoint or setting, or is not a state.
        """
        stream = cls(predictor, config, call)
        made_by, wanted = state.get("made_by"), stream._made_by()
        if made_by is None or made_by.tobytes() != wanted.encode():
            found = "an unknown source" if made_by is None else made_by.tobytes().decode(errors="replace")
            raise InvalidValueError(
                f"the state of a stream was made by {found:.2000}, and this stream is {wanted}; give the same "
                "settings, or start a new stream"
            )
        stream._number, stream._shot, height, width = (int(count) for count in state["counts"])
        stream._size = (height, width) if height else None
        stream._last_fit = (float(state["last_fit"][0]), float(state["last_fit"][1]))
        stream._bounds.restore(state["bounds"])
        stream._latent = state.get("latent")
        stream._anchors.restore(under(state, "anchors"))
        if "smoothed/values" in state:
            stream._smoothed = Smoothed(values=state["smoothed/values"], gain=state["smoothed/gain"])
        place = 0
        while f"pending{place}/facts" in state:
            stream._pending.append(pending_of(under(state, f"pending{place}")))
            place += 1
        return stream
