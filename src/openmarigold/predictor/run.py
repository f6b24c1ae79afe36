# SPDX-License-Identifier: Apache-2.0
"""Many photos to many result files: a bad photo is reported and counted, and does not stop the others.

The manifest in the output folder records what is finished (see `manifest`), so a killed run can be continued.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError, OpenMarigoldError, OutputError, ServerError
from openmarigold.files import as_path, concerns_every_file, file_sha256
from openmarigold.images.exif import Photo, read_metadata
from openmarigold.images.photo import parse_color, read_rgb
from openmarigold.predictor.maker import Finisher, Maker, PhotoReader, divide_cores, stopping
from openmarigold.predictor.model_run import ModelRun
from openmarigold.results.inputs import (
    about_left_out,
    about_passed_over,
    check_output_dir,
    list_photos,
    listed,
    photo_location,
)

MAX_PIXELS_ASIDE = 40_000_000  # of photos held while the next one is read: three of 12 megapixels
_PHOTO_ERRORS = (OpenMarigoldError, MemoryError, OSError)


@dataclass
class BatchResult:
    """The outcome of each photo, and the time it took."""

    written: list[Path] = field(default_factory=list)
    """Result files."""
    skipped: list[Path] = field(default_factory=list)
    """Photos whose results were there already, made from the same photo with the same settings."""
    renewed: list[Path] = field(default_factory=list)
    """Photos that were predicted again because their results were of another photo or of other settings."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Photos without results, each with the reason on one line."""
    left_out: list[Path] = field(default_factory=list)
    """Results of earlier predictions in the given folders, which are not predicted again."""
    passed_over: list[Path] = field(default_factory=list)
    """Files in the given folders that look like pictures and were skipped: of kinds that are not read, or raw photos
    next to a picture of the same name."""
    results: list[str] = field(default_factory=list)
    """Names of the results that this run made or found done: paths in the output folder, without suffixes."""
    num_predicted: int = 0
    engine: str | None = None
    """Name of the engine that ran the networks; None if no photo needed them."""
    load_s: float = 0.0
    """Time to load the checkpoint [s]."""
    predict_s: list[float] = field(default_factory=list)
    """Time spent on each predicted photo: reading, predicting, writing [s]. Neighboring photos overlap in time."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "written": [str(path) for path in self.written],
            "skipped": [str(path) for path in self.skipped],
            "renewed": [str(path) for path in self.renewed],
            "failed": [{"path": str(path), "error": message} for path, message in self.failed],
            "left_out": [str(path) for path in self.left_out],
            "passed_over": [str(path) for path in self.passed_over],
            "num_predicted": self.num_predicted,
            "engine": self.engine,
            "load_s": round(self.load_s, 3),
            "predict_s": [round(seconds, 3) for seconds in self.predict_s],
        }


@dataclass(frozen=True, kw_only=True)
class Event:
    """Progress: `done` of `total` photos are done or failed; `error` and `note` belong to the last one."""

    path: Path
    done: int
    total: int
    error: str | None = None
    note: str | None = None


def predict_files(
    inputs: Iterable[Path | str] | Path | str,
    *,
    output_dir: Path | str,
    config: PredictConfig,
    output: OutputConfig | None = None,
    overwrite: bool = False,
    report: Callable[[Event], object] = lambda event: None,
    finisher: Finisher | None = None,
) -> BatchResult:
    """Predicts photos and all photos in folders, in the given order and sorted by path within a folder.

    `inputs` is one path or several. Results of a folder keep its layout: `folder/a/b.jpg` becomes
    `output_dir/a/b_depth.npy`. Results that the manifest lists as done for the same photo and settings are kept unless
    `overwrite`; others are made again. Results of another photo (another place and other bytes) are replaced only with
    `overwrite`. Results of earlier predictions in a given folder are not inputs, unless they are named themselves.
    With a `finisher`, its predictions are written instead of the model's.
    Folders and settings are checked first; then the model is loaded for the first photo that can be read.

    Raises:
        OutputError: the output folder or its manifest cannot be written.
        InvalidValueError: no input, an empty path, the output folder is an input, or a setting that is not accepted.
        MissingExtraError: a format or color map without its extra.
        CheckpointError: the checkpoint cannot be used.
    """
    inputs = listed(inputs)
    output_dir = as_path(output_dir, "output_dir")
    names = list(dict.fromkeys(config.modality))
    configs = [replace(config, modality=(name,)) for name in names] or [config]
    models = [ModelRun(one, output or OutputConfig(), output_dir, finisher) for one in configs]
    check_output_dir(output_dir, inputs)
    parse_color(config.background)
    _check_models(models)
    return make_results(
        inputs,
        output_dir=output_dir,
        makers=models,
        read=_pixels_reader(config.background),
        overwrite=overwrite,
        report=report,
    )


def make_results(
    inputs: Sequence[Path],
    *,
    output_dir: Path,
    makers: Sequence[Maker],
    read: PhotoReader,
    ahead: int = 1,
    overwrite: bool = False,
    report: Callable[[Event], object] = lambda event: None,
) -> BatchResult:
    """`predict_files` with any makers. The caller has checked the makers and the output folder.

    Args:
        inputs: photos, and folders of photos.
        output_dir: where `makers` write.
        makers: one for each modality.
        read: called in one thread, for each photo in order.
        ahead: maximum number of photos that are read before the current one is predicted.
        overwrite: repeat finished results, and replace results of other photos.
        report: called with the progress.
    """
    run = _Run(makers, read, output_dir, overwrite, ahead)
    photos, problems = list_photos(inputs, output_dir, run.outcome.left_out, run.outcome.passed_over)
    total = len(photos) + len(problems)
    if left_out := run.outcome.left_out:
        report(Event(path=left_out[0], done=0, total=total, note=about_left_out(left_out)))
    if passed_over := run.outcome.passed_over:
        report(Event(path=passed_over[0], done=0, total=total, note=about_passed_over(passed_over)))
    noted = False
    for done, (path, problem) in enumerate(problems, start=1):
        run.fail(path, problem)
        report(Event(path=path, done=done, total=total, error=problem))
    for done, (path, (error, note)) in enumerate(run.predict_all(photos), start=len(problems) + 1):
        if note is not None:  # only the first is reported
            note = None if noted else f"{note} (such notes on further files are in the manifest)"
            noted = True
        report(Event(path=path, done=done, total=total, error=error, note=note))
    return run.outcome


@dataclass(kw_only=True)
class _Part:
    """One model's part in the job of a photo."""

    model: Maker
    paths: list[Path]
    request: Mapping[str, Any] = field(default_factory=dict)
    """Every setting that affects the results, of all photos and of this one."""
    is_wanted: bool = True
    """False if it is done already."""
    prediction: Any = None
    error: str | None = None


@dataclass(kw_only=True)
class _Job:
    """A photo to read, predict and write."""

    result: str
    photo: Path
    parts: list[_Part]
    input_sha256: str | None = None
    pixels: Any = None
    """The reader's result; None if the photo is done already or cannot be read."""
    num_pixels: int = 0
    """Number of pixels of the photo as it is read, predicted and written."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Spent on this photo, without waiting for others [s]."""

    @property
    def open_parts(self) -> list[_Part]:
        """The parts that are still to be done."""
        return [part for part in self.parts if part.is_wanted and part.error is None]


class _Run:
    """The data that all photos of one call share: settings, models and the outcome."""

    def __init__(
        self, makers: Sequence[Maker], read: PhotoReader, output_dir: Path, overwrite: bool, ahead: int = 1
    ) -> None:
        self.read = read
        self.output_dir = output_dir
        self.overwrite = overwrite
        self.ahead = ahead
        self.outcome = BatchResult()
        self.models = list(makers)
        self.is_over = False
        """Whether a fault has ended the run."""

    def predict_all(self, photos: Mapping[str, Path]) -> Iterator[tuple[Path, tuple[str | None, str | None]]]:
        """Yields each photo with its error and a note, if any, in order.

        While photos are predicted (`Maker.share_cores`), one thread reads the next and another writes those before.
        Large photos wait for each other (`MAX_PIXELS_ASIDE`), so that memory holds only one. Counts and manifest lines
        keep the order of the photos.

        Raises:
            OpenMarigoldError: a fault that affects every photo: the model or the manifest cannot be used.
        """
        for model in self.models:
            model.manifest.standing("")  # reads the manifest, before two threads use it
        at_once = divide_cores(self.models, len(photos))
        pools = ThreadPoolExecutor(1), ThreadPoolExecutor(at_once), ThreadPoolExecutor(1)
        with pools[0] as reader, pools[1] as others, pools[2] as writer, stopping(self.models):
            jobs = [self._job(result, photo) for result, photo in photos.items()]
            reading: list[Future[None]] = []
            writing: deque[tuple[_Job, Future[tuple[str | None, str | None]]]] = deque()

            def read_to(end: int) -> None:
                reading.extend(reader.submit(self._read, job) for job in jobs[len(reading) : end])

            read_to(1)

            def is_full(next_one: _Job) -> bool:
                pixels = sum(job.num_pixels for job, _ in writing) + next_one.num_pixels
                return len(writing) > at_once or pixels > MAX_PIXELS_ASIDE

            for index, job in enumerate(jobs):
                reading[index].result()
                while writing and (writing[0][1].done() or is_full(job)):
                    before, written = writing.popleft()
                    yield before.photo, written.result()
                is_aside = job.num_pixels <= MAX_PIXELS_ASIDE
                if is_aside:
                    read_to(index + 1 + self.ahead)
                self._load(job)
                predicted = others.submit(self._predict, job) if at_once > 1 else None
                if predicted is None:  # in this thread, where an interrupt ends it
                    self._predict(job)
                written = writer.submit(self._finish, job, predicted)
                if is_aside:
                    writing.append((job, written))
                else:
                    yield job.photo, written.result()
                    read_to(index + 2)
            for job, written in writing:
                yield job.photo, written.result()

    def _job(self, result: str, photo: Path) -> _Job:
        parts = [_Part(model=model, paths=model.paths(result)) for model in self.models]
        return _Job(result=result, photo=photo, parts=parts)

    def _read(self, job: _Job) -> None:
        """Reads a photo unless it is done."""
        started = time.perf_counter()
        for part in job.parts:
            try:
                part.model.files.check_names(job.photo, part.paths)
                part.request = part.model.request_of(job.photo, job.result)
                if job.input_sha256 is None and job.photo.is_file():
                    job.input_sha256 = file_sha256(job.photo)
                if not self.overwrite:
                    part.is_wanted = not part.model.is_done(job.result, job.input_sha256, part.paths, part.request)
                    if part.is_wanted:
                        part.model.files.check_owner(job.result, job.photo, part.paths, job.input_sha256)
            except _PHOTO_ERRORS as error:
                part.error = _one_line(job.photo, error)
        if wanted := job.open_parts:
            try:
                makers = [part.model for part in wanted]
                job.pixels, job.num_pixels = self.read(job.photo, makers, job.notes.append)
            except _PHOTO_ERRORS as error:
                for part in wanted:
                    part.error = _one_line(job.photo, error)
        job.seconds += time.perf_counter() - started

    def _load(self, job: _Job) -> None:
        """Loads the models that a photo needs."""
        if job.pixels is None:
            return
        for part in job.open_parts:
            part.model.prepare(self.models)
            self.outcome.load_s = sum(model.load_s for model in self.models)
            self.outcome.engine = part.model.engine

    def _predict(self, job: _Job) -> None:
        if job.pixels is None:
            return
        for part in job.open_parts:
            started = time.perf_counter()
            try:
                part.prediction, notes = part.model.predict(job.pixels, job.photo, job.result)
                job.notes += [note for note in notes if note not in job.notes]
            except ServerError:
                raise  # the next photo would fail too
            except _PHOTO_ERRORS as error:
                part.error = _one_line(job.photo, error)
            job.seconds += time.perf_counter() - started
        job.pixels = None

    def _finish(self, job: _Job, predicted: Future[None] | None) -> tuple[str | None, str | None]:
        """Write the results of a photo and its lines in the manifest; return its error and note, if any.

        `predicted`: what to wait for, if another thread predicts. After a fault has ended the run, this does nothing.
        """
        if self.is_over:
            return None, None
        try:
            if predicted is not None:
                predicted.result()
            renewed = [self._finish_part(job, part) for part in job.parts]
        except BaseException:
            self.is_over = True
            raise
        errors = [part.error for part in job.parts if part.error is not None]
        if errors:
            self.outcome.failed.append((job.photo, errors[0]))
        if any(renewed):
            self.outcome.renewed.append(job.photo)
        if not errors:
            self.outcome.results.append(job.result)
        if not errors and not any(part.is_wanted for part in job.parts):
            self.outcome.skipped.append(job.photo)
            return None, None
        if errors:
            return errors[0], None
        self.outcome.num_predicted += 1
        self.outcome.predict_s.append(job.seconds)
        return None, job.notes[0] if job.notes else None

    def _finish_part(self, job: _Job, part: _Part) -> bool:
        """Write the results of one model and its line in the manifest; return whether they replace others."""
        prediction, part.prediction = part.prediction, None
        if prediction is None:
            if part.error is not None:
                self._note_failed(part, job)
            return False
        model = part.model
        with model.manifest.exclusive():
            started = time.perf_counter()
            try:
                if not self.overwrite:  # another run may have put another photo's results there meanwhile
                    model.files.check_owner(job.result, job.photo, part.paths, job.input_sha256)
            except OutputError as error:
                part.error = str(error)
                self._note_failed(part, job)
                return False
            try:
                record, outputs, renewed = model.write(
                    prediction, job.result, job.photo, part.paths, job.input_sha256, part.request
                )
            except _PHOTO_ERRORS as error:
                if isinstance(error, OpenMarigoldError) and concerns_every_file(error, self.output_dir):
                    raise  # the next photo would fail too
                part.error = _one_line(job.photo, error)
                self._note_failed(part, job)
                return False
            finally:
                del prediction
            job.seconds += time.perf_counter() - started
            self._note_done(job, part, record, outputs)
        self.outcome.written.extend(part.paths)
        return renewed

    def _note_done(self, job: _Job, part: _Part, record: dict[str, Any], outputs: dict[str, int | None]) -> None:
        part.model.manifest.append(
            job.result,
            "done",
            input=str(job.photo),
            input_path=photo_location(job.photo),
            input_sha256=job.input_sha256,
            request=part.request,
            provenance=record,
            outputs=outputs,
            seconds=round(job.seconds, 3),
            **({"notes": job.notes} if job.notes else {}),
        )

    def _note_failed(self, part: _Part, job: _Job) -> None:
        part.model.manifest.append(
            job.result, "failed", input=str(job.photo), input_sha256=job.input_sha256, error=part.error
        )

    def fail(self, photo: Path, message: str) -> None:
        """Count a photo that cannot be an input, and note the reason."""
        self.outcome.failed.append((photo, message))
        self.models[0].manifest.append("", "failed", input=str(photo), input_sha256=None, error=message)


def _check_models(models: Sequence[ModelRun]) -> None:
    """Check the settings before any photo is read."""
    for model in models:
        model.check()
    # Networks predict one modality; some checkpoints do not state which.
    own = {model.checkpoint.modality.name for model in models if model.checkpoint.derived is None}
    places = {model.checkpoint.directory for model in models if model.checkpoint.derived is None}
    if len(own) > len(places):
        name = models[0].checkpoint.name
        raise InvalidValueError(
            f"modality {', '.join(sorted(own))}: {name} predicts one of these, and its files do not name it; give one"
        )


def _pixels_reader(background: str) -> PhotoReader:
    """Reads photos for models of this process."""

    def read(path: Path, makers: Sequence[Maker], note: Callable[[str], object]) -> tuple[Any, int]:
        rgb = read_rgb(path, background=background, note=note)
        photo = Photo(rgb=rgb, metadata=read_metadata(path))
        for text in photo.metadata.notes:
            note(f"{path} {text}")
        return photo, rgb.shape[0] * rgb.shape[1]

    return read


def _one_line(photo: Path, error: Exception) -> str:
    """The error of a photo, with its name."""
    if isinstance(error, MemoryError):
        return f"{photo}: out of memory; try a smaller photo, processing_resolution or ensemble_size"
    if isinstance(error, OSError) and not isinstance(error, OpenMarigoldError):
        return f"{photo} cannot be read: {error.strerror or error}; check its permissions"
    return str(error) if str(photo) in str(error) else f"{photo}: {error}"
