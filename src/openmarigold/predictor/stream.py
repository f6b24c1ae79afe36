# SPDX-License-Identifier: Apache-2.0
"""A clip to steady maps, frame by frame, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from openmarigold.config import CallConfig
from openmarigold.errors import InvalidValueError
from openmarigold.gauges import fit_gauge
from openmarigold.images.photo import read_photo
from openmarigold.results.prediction import Prediction
from openmarigold.temporal.settings import StreamConfig

if TYPE_CHECKING:
    from openmarigold.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class StreamedFrame:
    """One frame of a clip, in the gauge of its shot."""

    number: int
    """From 0."""
    prediction: Prediction
    """Its maps in the gauge of its shot; depth may leave [0, 1] there."""
    scale: float
    """From the frame's own map to the gauge of its shot, in the modality's gauge space; 1 where nothing is fitted."""
    shift: float
    """As `scale`; 0 where nothing is fitted."""
    shot: int
    """From 0, one more at each cut."""
    is_cut: bool
    """First frame of a shot, but for frame 0."""
    bounds: tuple[float, float] | None
    """Range of values to display, in that gauge; widens slowly. None: the maps have a range of their own."""
    inliers: float
    """Share of the compared samples that the fit describes, 0 to 1; 1 for the first frame of a shot."""


class Stream:
    """Makes the frames of one clip steady, one after another.

    >>> stream = Stream(predictor, StreamConfig(), CallConfig())  # doctest: +SKIP
    >>> for streamed in stream.push(frame): ...  # doctest: +SKIP
    """

    def __init__(self, predictor: Predictor, config: StreamConfig, call: CallConfig) -> None:
        self._predictor, self.config = predictor, config
        self.call = replace(call, num_inference_steps=call.num_inference_steps or 1)
        self._number = 0
        self._previous: np.ndarray | None = None

    def follow(self, frames: Iterable[Any]) -> Iterator[list[StreamedFrame]]:
        """For each frame what `push` gives, and at the end what `finish` gives; predicts ahead where that changes no
        byte. `state` between two of them is that after the frame.
        """
        for frame in frames:
            yield self.push(frame)
        yield self.finish()

    def push(self, frame: Any) -> list[StreamedFrame]:
        """Takes the next frame; returns the frames that are done, none while it looks ahead.

        Args:
            frame: uint8 `[h w 3]`, or whatever a `Predictor` takes.

        Raises:
            InvalidValueError: the frame has another size than those before.
            ImageError, NumericalError: as a call of the predictor.
        """
        photo = read_photo(frame, background=self.call.background)
        options = {name: getattr(self.call, name) for name in CallConfig.__dataclass_fields__}
        prediction = self._predictor(photo, **options)
        modality = self._predictor.modality
        gauge = modality.gauge(self._predictor.checkpoint.invariance)
        stack = modality.stack(prediction.maps)
        scale, shift, inliers = 1.0, 0.0, 1.0
        if gauge is not None:
            values = gauge.to_space(stack)
            if self._previous is not None:
                if self._previous.shape != values.shape:
                    raise InvalidValueError(f"frame {self._number} is {values.shape}, not {self._previous.shape}")
                fit = fit_gauge(values.ravel(), self._previous.ravel(), with_scale=gauge.with_scale)
                if fit is not None:
                    scale, shift, inliers = fit.scale, fit.shift, fit.inliers
                    values = fit.apply(values)
            self._previous = values
            stack = gauge.from_space(values).astype(np.float32, copy=False)
        streamed = StreamedFrame(
            number=self._number,
            prediction=replace(prediction, maps=modality.split(stack)),
            scale=scale,
            shift=shift,
            shot=0,
            is_cut=False,
            bounds=None if gauge is None else (float(stack.min()), float(stack.max())),
            inliers=inliers,
        )
        self._number += 1
        return [streamed]

    def finish(self) -> list[StreamedFrame]:
        """The frames that still wait for later ones."""
        return []

    def state(self) -> dict[str, np.ndarray]:
        """Everything that is needed to go on with the same bytes."""
        state = {"number": np.array(self._number)}
        return state if self._previous is None else {**state, "previous": self._previous}

    @classmethod
    def restored(
        cls, predictor: Predictor, config: StreamConfig, call: CallConfig, state: Mapping[str, np.ndarray]
    ) -> Stream:
        """The stream that `state` is of, with the predictor and settings that it had."""
        stream = cls(predictor, config, call)
        stream._number = int(state["number"])
        stream._previous = state.get("previous")
        return stream
