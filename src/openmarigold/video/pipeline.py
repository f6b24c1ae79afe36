# SPDX-License-Identifier: Apache-2.0
"""Reads, predicts and writes at the same time, in a thread each; the order of frames never changes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from openmarigold.video.clip import Clip, ClipFrame
from openmarigold.video.sinks import Sink
from openmarigold.video.work import Progress

_HELD = 2  # frames between two threads
_LOOK_S = 0.1
_PATIENCE_S = 5.0  # to wait for a thread at the end of a run
_END = object()


@runtime_checkable
class FrameStream(Protocol):
    """Predicts frames in order; `predictor.stream.Stream`."""

    def follow(self, frames: Iterable[Any]) -> Iterator[list[Any]]:
        """Yields for each frame the frames that are ready after it, and at the end the remaining ones."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """The state to resume after the last yield."""
        ...


def run_pipeline(
    clip: Clip, stream: FrameStream, sink: Sink, *, progress: Progress, segment: int, advance: Callable[[int], object]
) -> Progress:
    """Predicts all frames of a clip, from `progress` on, and writes them; returns the new progress.

    `advance` is called with the number of predicted frames. The stream is used in the calling thread.

    Raises:
        ImageError: the clip cannot be read at all.
        OutputError: a file cannot be written; finished segments stay.
    """
    emitted = begun = progress.emitted
    pushed = given = progress.pushed
    waiting: dict[int, ClipFrame] = {}

    def pictures(frames: Iterable[ClipFrame]) -> Iterator[np.ndarray]:
        nonlocal given
        for frame in frames:
            waiting[frame.number] = frame
            if frame.number >= progress.pushed:  # the stream saw the others in the interrupted run
                given += 1
                yield frame.rgb

    stop = threading.Event()
    with _Writer() as writer, _Reader(clip, emitted, stop) as frames:
        for index, ready in enumerate(stream.follow(pictures(frames))):
            for item in ready:
                frame = waiting.pop(item.number)
                writer.put(lambda frame=frame, item=item: sink.write(frame, item))
                emitted += 1
                advance(emitted)
            if progress.pushed + index >= given:  # after the last frame: the remaining ones
                continue
            pushed += 1
            if emitted - begun >= segment:
                now, state = Progress(pushed=pushed, emitted=emitted), copied(stream.state())
                writer.put(lambda now=now, state=state: sink.end_segment(now, state))
                begun = emitted
        end = Progress(pushed=pushed, emitted=emitted, is_complete=True, problem=clip.problem)
        if emitted:
            writer.put(lambda: sink.end_segment(end, None))
    return end


def copied(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A copy of a state, which the stream does not change."""
    return {name: np.array(values) for name, values in state.items()}


class _Reader:
    """Reads frames in a thread."""

    def __init__(self, clip: Clip, first: int, stop: threading.Event) -> None:
        self._clip, self._first, self._stop = clip, first, stop
        self._frames: queue.Queue[Any] = queue.Queue(_HELD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Iterator[ClipFrame]:
        self._thread.start()
        return self._items()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_PATIENCE_S)  # one that waits for a pipe ends with the process

    def _items(self) -> Iterator[ClipFrame]:
        while (item := self._frames.get()) is not _END:
            yield item
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for frame in self._clip.frames(self._first):
                if not _put(self._frames, frame, self._stop):
                    return
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        _put(self._frames, _END, self._stop)


class _Writer:
    """Runs calls in a thread, in order."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Any] = queue.Queue(_HELD)
        self._error: BaseException | None = None
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, error_type: object, error: object, trace: object) -> None:
        """Runs the waiting calls, also after an error: they may end a segment."""
        patience = None if error is None else _PATIENCE_S
        _put(self._calls, _END, self._failed, patience_s=patience)
        self._thread.join(timeout=patience)
        if self._error is not None and error is None:
            raise self._error

    def put(self, call: Callable[[], object]) -> None:
        """Waits until the queue has a free place. Raises the error of an earlier call."""
        if not _put(self._calls, call, self._failed) and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (call := self._calls.get()) is not _END:
            try:
                call()
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                self._error = error
                self._failed.set()
                return


def _put(items: queue.Queue[Any], item: object, stop: threading.Event, *, patience_s: float | None = None) -> bool:
    """Puts an item into a queue; False if `stop` was set or `patience_s` ended before."""
    until = None if patience_s is None else time.monotonic() + patience_s
    while not stop.is_set() and (until is None or time.monotonic() < until):
        try:
            items.put(item, timeout=_LOOK_S)
            return True
        except queue.Full:
            continue
    return False
