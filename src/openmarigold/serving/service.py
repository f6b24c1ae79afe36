# SPDX-License-Identifier: Apache-2.0
"""The models of a server and their bounded queue. This module does not use HTTP."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import ImageError, InvalidValueError, OpenMarigoldError, one_line
from openmarigold.images.decoders import TooManyPixelsError
from openmarigold.images.exif import Photo, read_metadata
from openmarigold.images.photo import read_rgb
from openmarigold.predictor.model_run import ModelRun, notes_on
from openmarigold.printing import quoted_logger
from openmarigold.results.prediction import Prediction
from openmarigold.results.provenance import to_json
from openmarigold.serving.formats import STEM, UPLOAD
from openmarigold.serving.requests import PredictRequest, check_resolved
from openmarigold.serving.settings import ServeConfig
from openmarigold.text_files import parse_json

_log = quoted_logger(__name__)
_TIME_TO_CLEAN_S = 5.0
_FIRST_GUESS_S = 1.0  # a photo's time, before one is measured


class QueueFullError(OpenMarigoldError):
    """As many requests wait as may."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


class StoppingError(OpenMarigoldError):
    """The server ends."""


class LoadingError(OpenMarigoldError):
    """The models are not loaded yet."""


class NoModelError(OpenMarigoldError):
    """The models cannot be loaded."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result for a photo."""

    files: Mapping[str, bytes]
    """By name, in the order of `results.writers.result_paths`."""
    record: Mapping[str, Any]
    """The provenance that they carry."""
    prediction: Prediction
    notes: list[str]
    """Warnings about the photo, in sentences that begin with "the photo"."""
    seconds: float
    """From the photo's bytes to the files' bytes."""


@dataclass(kw_only=True, eq=False)
class _Item:
    request: PredictRequest
    future: Future[Answer] = field(default_factory=Future)


class Service:
    """Predicts photos from a bounded queue, in threads of its own. `start` loads the models."""

    def __init__(self, config: PredictConfig, limits: ServeConfig) -> None:
        self.limits = limits
        names = list(dict.fromkeys(config.modality))
        configs = [replace(config, modality=(name,)) for name in names] or [config]
        self._folder: Path | None = None  # for files on their way
        self._bases = [ModelRun(one, OutputConfig(format=("npy",)), Path()) for one in configs]  # these write nothing
        self._waiting: deque[_Item] = deque()
        self._at_work: list[_Item] = []
        self._changed = threading.Condition()
        self._stopping = self._is_stopped = False
        self._threads: list[threading.Thread] = []
        self._seconds = _FIRST_GUESS_S
        self.models: dict[str, ModelRun] = {}
        """By name of the modality, once they are loaded."""
        self.is_ready = False
        self.load_error: OpenMarigoldError | None = None

    def check(self) -> None:
        """Checks settings and checkpoints, before the server listens. Raises what `predict_files` raises first."""
        for base in self._bases:
            base.check()

    def start(self) -> None:
        """Starts to load the models, and to work on what waits; nothing if `stop` was called before."""
        with self._changed:
            if self._stopping:
                return
            self._folder = Path(tempfile.mkdtemp(prefix="openmarigold-"))
            self._threads = [threading.Thread(target=self._load_and_work, name="predict-0", daemon=True)]
            self._threads[0].start()

    def _load_and_work(self) -> None:
        try:
            for base in self._bases:
                predictor = base.load(self._bases)
                predictor.try_out()
                _ = base.request  # hashes the checkpoint
                self.models[predictor.modality.name] = base
        except Exception as error:
            told = str(error) if isinstance(error, OpenMarigoldError) else one_line(error)
            self.load_error = NoModelError(f"the model cannot be loaded: {told}")
            _log.error("%s", self.load_error)
            self._fail_all(self.load_error)
            if isinstance(error, OpenMarigoldError):
                return
            raise
        self.is_ready = True
        more = [
            threading.Thread(target=self._work, name=f"predict-{number}", daemon=True)
            for number in range(1, self.limits.threads)
        ]
        self._threads += more
        for thread in more:
            thread.start()
        self._work()

    def _fail_all(self, error: OpenMarigoldError) -> None:
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        for item in waiting:
            item.future.set_exception(error)

    @property
    def num_waiting(self) -> int:
        """Requests that no thread has begun."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that threads work on."""
        return len(self._at_work)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    @property
    def is_alive(self) -> bool:
        """Whether a thread still loads a model, or predicts."""
        return any(thread.is_alive() for thread in self._threads)

    def submit(self, request: PredictRequest, *, bounded: bool = True) -> Future[Answer]:
        """Puts a request into the queue. `cancel()` of what it returns takes it out again, unless it has begun.

        Args:
            request: what is asked for.
            bounded: False ignores the bound of the queue, for callers that have a bound of their own.

        Raises:
            QueueFullError: the queue is full.
            StoppingError: the server ends.
            NoModelError: the model could not be loaded.
        """
        with self._changed:
            if self._stopping:
                raise StoppingError("the server is stopping; try another one, or later")
            if self.load_error is not None:
                raise self.load_error
            self._waiting = deque(item for item in self._waiting if not item.future.cancelled())
            if bounded and len(self._waiting) >= self.limits.max_queue:
                ahead = (len(self._waiting) + len(self._at_work)) * self._seconds / self.limits.threads
                raise QueueFullError(max(1, math.ceil(ahead)))
            item = _Item(request=request)
            self._waiting.append(item)
            self._changed.notify()
        return item.future

    def stop(self, drain_time: float) -> bool:
        """Ends: what has come in is finished within `drain_time` [s], the rest is cancelled. Whether all was done."""
        with self._changed:
            if self._stopping:  # by a signal, before the end of the application
                self._changed.wait_for(lambda: self._is_stopped, timeout=drain_time + _TIME_TO_CLEAN_S)
                return not self._at_work
            self._stopping = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._waiting and not self._at_work, timeout=drain_time)
            for item in self._waiting:
                item.future.cancel()
            self._waiting.clear()
            for item in self._at_work:
                _settle(
                    item.future, error=StoppingError("the server has stopped before this was done; try another one")
                )
        if done:
            for thread in self._threads:
                thread.join(timeout=1.0)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        return done

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                items = self._take()
                self._at_work += items
            try:
                self._answer(items)
            finally:
                with self._changed:
                    self._at_work = [item for item in self._at_work if item not in items]
                    self._changed.notify_all()

    def _take(self) -> list[_Item]:
        """The next request. On a GPU, waiting requests with the same settings join its batch."""
        first = self._waiting.popleft()
        taken = [first] if first.future.set_running_or_notify_cancel() else []
        device = next(iter(self.models.values())).load().engine.device
        if not taken or device == "cpu":
            return taken
        kept: deque[_Item] = deque()
        for item in self._waiting:
            same = (item.request.call, item.request.modality) == (first.request.call, first.request.modality)
            if not same:
                kept.append(item)
            elif item.future.set_running_or_notify_cancel():
                taken.append(item)
        self._waiting = kept
        return taken

    def _answer(self, items: list[_Item]) -> None:
        """Sets the results of requests with the same settings; a bad photo does not make the others fail."""
        started = time.perf_counter()
        photos: list[tuple[_Item, Photo, list[str]]] = []
        for item in items:
            try:
                run = self._checked_run(item.request)
                photos.append((item, *self._read(item.request, run.config.background)))
            except BaseException as error:  # noqa: BLE001 - the waiting caller gets it
                _settle(item.future, error=_told(error))
        try:
            predictions = self._predict([item.request for item, *_ in photos], [photo for _, photo, _ in photos])
        except BaseException as error:  # noqa: BLE001 - as above
            for item, *_ in photos:
                _settle(item.future, error=_told(error))
            return
        for (item, _, notes), prediction in zip(photos, predictions, strict=True):
            try:
                answer = self._written(item.request, prediction, notes, started)
                self._seconds = 0.8 * self._seconds + 0.2 * answer.seconds
                _settle(item.future, answer)
            except BaseException as error:  # noqa: BLE001 - as above
                _settle(item.future, error=_told(error))

    def _read(self, request: PredictRequest, background: str) -> tuple[Photo, list[str]]:
        """The photo, and notes on it. Some decoders take nothing but files, and some kinds are told by the suffix."""
        notes: list[str] = []
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / f"{STEM}{request.suffix}"
            path.write_bytes(request.photo)
            try:
                rgb = read_rgb(path, background=background, note=notes.append, max_pixels=self.limits.max_pixels)
                metadata = read_metadata(path)
            except ImageError as error:
                raise type(error)(str(error).replace(str(path), UPLOAD)) from error
            notes += [f"{path} {note}" for note in metadata.notes]
        return Photo(rgb=rgb, metadata=metadata), [note.replace(str(path), UPLOAD) for note in notes]

    def model(self, modality: str | None) -> ModelRun:
        """The loaded model of a modality; of the first one where none is named.

        Raises:
            InvalidValueError: it is not offered.
            LoadingError, NoModelError: it is not loaded yet, or cannot be.
        """
        if self.load_error is not None:
            raise self.load_error
        if not self.is_ready:
            raise LoadingError("the server is loading its models; try again in a moment")
        if modality is None:
            return next(iter(self.models.values()))
        if modality not in self.models:
            raise InvalidValueError(f"modality={modality!r} is not offered; this server has {', '.join(self.models)}")
        return self.models[modality]

    def _predict(self, requests: list[PredictRequest], photos: list[Any]) -> list[Prediction]:
        if not photos:
            return []
        base = self.model(requests[0].modality)
        config = requests[0].config(base.config)
        return base.load()(photos, **config.call_options)

    def _run_of(self, request: PredictRequest, folder: Path) -> ModelRun:
        base = self.model(request.modality)
        return base.sibling(request.config(base.config), request.output, folder)

    def _checked_run(self, request: PredictRequest) -> ModelRun:
        """The run for a request, after checks of its settings and of the server's limits."""
        run = self._run_of(request, Path())
        run.check()
        check_resolved(request.call, run.request, self.limits)
        return run

    def _written(self, request: PredictRequest, prediction: Prediction, notes: list[str], started: float) -> Answer:
        """The files that `openmarigold predict` would write."""
        notes = [*notes, *(note for note in notes_on(prediction, UPLOAD) if note not in notes)]
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            run = self._run_of(request, Path(folder))
            paths = run.paths(STEM)
            sha256 = hashlib.sha256(request.photo).hexdigest()
            record, _, _ = run.write(prediction, STEM, Path(STEM), paths, sha256, run.request)
            files = {path.name: path.read_bytes() for path in paths}
        seconds = time.perf_counter() - started
        return Answer(files=files, record=record, prediction=prediction, notes=notes, seconds=seconds)

    def facts(self, request: PredictRequest) -> dict[str, Any]:
        """Facts about the answer to a request, whatever the photo: names of files, and what shapes them.

        Raises:
            InvalidValueError, MissingExtraError: what the photo itself would meet.
            LoadingError: the models are not loaded yet.
        """
        run = self._checked_run(request)
        return {
            **about_model(run),
            "uncertainties": list(run.writes.uncertainties) if run.config.ensemble_size > 1 else [],
            "files": [path.name.removeprefix(STEM) for path in run.paths(STEM)],
            "request": parse_json(to_json(run.request)),
        }

    def describe(self, answer: Answer) -> dict[str, Any]:
        """An answer as JSON: what the maps are, without their values."""
        prediction = answer.prediction
        maps = {**prediction.maps, **prediction.uncertainties, **prediction.bounds}
        camera = prediction.camera
        return {
            "modality": prediction.modality,
            "space": prediction.space,
            "maps": {
                name: {"shape": list(values.shape), "min": _extreme(np.fmin, values), "max": _extreme(np.fmax, values)}
                for name, values in maps.items()
            },
            "record": parse_json(to_json(answer.record)),
            "settings": parse_json(to_json(prediction.settings)),
            "camera": None if camera is None else asdict(camera),
            "notes": answer.notes,
            "seconds": round(answer.seconds, 4),
        }


def about_model(run: ModelRun) -> dict[str, Any]:
    """What a model predicts."""
    return {
        "modality": run.writes.name,
        "checkpoint": run.checkpoint.name,
        "invariance": run.checkpoint.invariance,
        "maps": [kind.name for kind in run.writes.maps],
    }


def _settle(future: Future[Answer], answer: Answer | None = None, *, error: BaseException | None = None) -> None:
    """Ends the waiting, unless the server's stop has already ended it."""
    with suppress(InvalidStateError):
        if error is not None:
            future.set_exception(error)
        elif answer is not None:
            future.set_result(answer)


def _told(error: BaseException) -> BaseException:
    """The error for the waiting caller, in the words of `predict`."""
    if isinstance(error, MemoryError):
        return TooManyPixelsError(
            f"{UPLOAD}: out of memory; try a smaller photo, processing_resolution or ensemble_size"
        )
    return error


def _extreme(chosen: np.ufunc, values: np.ndarray) -> float | None:
    """The smallest or largest value that is a finite number; JSON holds no other."""
    found = float(chosen.reduce(values, axis=None))
    return found if math.isfinite(found) else None
