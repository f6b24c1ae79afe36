# SPDX-License-Identifier: Apache-2.0
"""Many photos to many result files: a bad photo is reported and counted, and does not stop the others.

The manifest in the output folder records what is finished (see `manifest`), so a killed run can be continued.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from openmarigold import __version__
from openmarigold.checkpoints.checkpoint import (
    Checkpoint,
    TinyVae,
    loaded_variant,
    read_configured,
    read_tiny_vae,
    resolve_settings,
)
from openmarigold.checkpoints.hashes import checkpoint_sha256, tiny_vae_sha256
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError, OpenMarigoldError, OutputError
from openmarigold.files import as_path, concerns_every_file, file_sha256
from openmarigold.images.photo import parse_color, read_rgb
from openmarigold.predictor import Predictor
from openmarigold.results.inputs import about_left_out, about_passed_over, check_output_dir, list_photos, photo_location
from openmarigold.results.manifest import Manifest, file_size
from openmarigold.results.prediction import Prediction
from openmarigold.results.replacing import ResultFiles
from openmarigold.results.writers import check_output, result_paths, write_prediction

# Settings that do not shape the results: where the model lies and how it runs. The checkpoint counts by its hash.
_WITHOUT_EFFECT = frozenset(
    {
        "checkpoint",
        "revision",
        "local_files_only",
        "engine",
        "device",
        "compile",
        "batch_size",
        "tiny_vae",
        "tiny_vae_for",
        "modality",
        "ensemble_reduction",  # this and the next ones stand in the facts of a call, where they matter
        "fov",
        "recompose",
    }
)
MAX_PIXELS_ASIDE = 2**25  # of photos that are held while the next one is read
_PHOTO_ERRORS = (OpenMarigoldError, MemoryError, OSError)


@dataclass
class BatchResult:
    """What became of each photo, and the time it took."""

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
    num_predicted: int = 0
    engine: str | None = None
    """What ran the networks; None where no photo needed them."""
    load_s: float = 0.0
    """Time to load the checkpoint [s]."""
    predict_s: list[float] = field(default_factory=list)
    """Time spent on each predicted photo: reading, predicting, writing [s]. Those of neighbors overlap."""

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
) -> BatchResult:
    """Predicts photos and all photos in folders, in the given order and sorted by path within a folder.

    `inputs` is one path or several. Results of a folder keep its layout: `folder/a/b.jpg` becomes
    `output_dir/a/b_depth.npy`. Results that the manifest lists as done for the same photo and settings are kept unless
    `overwrite`; others are made again. Results of another photo (another place and other bytes) are replaced only with
    `overwrite`. Results of earlier predictions in a given folder are not photos, unless they are named themselves.
    Folders and settings are checked first; then the model is loaded for the first photo that can be read.

    Raises:
        OutputError: the output folder or its manifest cannot be written.
        InvalidValueError: no input, an empty path, the output folder is an input, or a setting that is not accepted.
        MissingExtraError: a format or color map without its extra.
        CheckpointError: the checkpoint cannot be used.
    """
    if not isinstance(inputs, Iterable) or isinstance(inputs, (str, bytes, os.PathLike)):
        inputs = [inputs]  # one path, or what `as_path` refuses
    inputs = [as_path(path, "an input") for path in inputs]
    output_dir = as_path(output_dir, "output_dir")
    if not inputs:
        raise InvalidValueError("no input given; name photos or folders of photos")
    run = _Run(config, output or OutputConfig(), output_dir, overwrite)
    check_output_dir(output_dir, inputs)
    run.check()
    photos, problems = list_photos(inputs, output_dir, run.outcome.left_out, run.outcome.passed_over)
    total = len(photos) + len(problems)
    if left_out := run.outcome.left_out:
        report(Event(path=left_out[0], done=0, total=total, note=about_left_out(left_out)))
    if passed_over := run.outcome.passed_over:
        report(Event(path=passed_over[0], done=0, total=total, note=about_passed_over(passed_over)))
    noted = False
    for done, (path, problem) in enumerate(problems, start=1):
        run.fail("", path, problem)
        report(Event(path=path, done=done, total=total, error=problem))
    for done, (path, (error, note)) in enumerate(run.predict_all(photos), start=len(problems) + 1):
        if note is not None:  # only the first is reported
            note = None if noted else f"{note} (of further files such notes stand in the manifest)"
            noted = True
        report(Event(path=path, done=done, total=total, error=error, note=note))
    return run.outcome


@dataclass(kw_only=True)
class _Job:
    """A photo on its way from reading over prediction to writing."""

    result: str
    photo: Path
    paths: list[Path]
    input_sha256: str | None = None
    rgb: UInt8[np.ndarray, "h w 3"] | None = None
    """None where the photo is done already or cannot be read."""
    num_pixels: int = 0
    """Of the photo as it is read, predicted and written."""
    prediction: Prediction | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Spent on this photo, without waiting for others [s]."""


class _Run:
    """What all photos of one call share: settings, manifest, and the model from the first photo on."""

    def __init__(self, config: PredictConfig, output: OutputConfig, output_dir: Path, overwrite: bool) -> None:
        self.config = config
        self.output = output
        self.output_dir = output_dir
        self.overwrite = overwrite
        self.outcome = BatchResult()
        self._predictor: Predictor | None = None

    def check(self) -> None:
        """Check the settings before any photo is read."""
        parse_color(self.config.background)
        _ = self.request
        check_output(self.output, self.checkpoint.predicts)

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest(self.output_dir, self.checkpoint.predicts.name)

    @cached_property
    def files(self) -> ResultFiles:
        return ResultFiles(self.manifest)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return read_configured(self.config)

    @cached_property
    def tiny_vae(self) -> TinyVae | None:
        return read_tiny_vae(self.config, self.checkpoint)

    @cached_property
    def request(self) -> dict[str, Any]:
        """Every setting that shapes the results; those left to the checkpoint have its defaults."""
        resolved = resolve_settings(self.config, self.checkpoint)
        names = [setting.name for setting in fields(resolved) if setting.name not in _WITHOUT_EFFECT]
        return {
            "checkpoint_sha256": checkpoint_sha256(self.checkpoint),
            "invariance": self.checkpoint.invariance,
            "processing_side": self.checkpoint.processing_side,
            **{name: getattr(resolved, name) for name in names},
            "variant": loaded_variant(self.checkpoint),
            "color_map": self.output.color_map,
            **self.checkpoint.predicts.output_facts(self.output),
            **self.checkpoint.facts_of_call(self.config),
            **self._tiny_vae_settings,
        }

    @cached_property
    def _tiny_vae_settings(self) -> dict[str, str]:
        """What a small autoencoder changes in the results, if there is one."""
        if self.tiny_vae is None:
            return {}
        return {"tiny_vae_sha256": tiny_vae_sha256(self.tiny_vae), "tiny_vae_for": self.tiny_vae.used_for}

    def predict_all(self, photos: Mapping[str, Path]) -> Iterator[tuple[Path, tuple[str | None, str | None]]]:
        """Yields each photo with its error and a note, if any, in order.

        While one photo is predicted, one thread reads the next and another writes the one before. Large photos wait
        for each other (`MAX_PIXELS_ASIDE`), so that memory holds only one. Counts and manifest lines keep the order of
        the photos.

        Raises:
            OpenMarigoldError: a fault that every photo meets: the model cannot be loaded, or the manifest not written.
        """
        self.manifest.standing("")  # reads what is there, before two threads ask
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            jobs = [_Job(result=result, photo=photo, paths=self._paths(result)) for result, photo in photos.items()]
            reading = [reader.submit(self._read, job) for job in jobs[:1]]
            writing: Future[tuple[str | None, str | None]] | None = None
            for index, job in enumerate(jobs):
                reading.pop().result()
                before = jobs[index - 1] if index else job
                if writing is not None and (writing.done() or job.num_pixels + before.num_pixels > MAX_PIXELS_ASIDE):
                    yield before.photo, writing.result()
                    writing = None
                following = jobs[index + 1 : index + 2]
                ahead = job.num_pixels <= MAX_PIXELS_ASIDE
                if ahead:
                    reading += [reader.submit(self._read, other) for other in following]
                self._predict(job)
                if writing is not None:  # one at a time: memory holds three photos at most
                    yield before.photo, writing.result()
                writing = writer.submit(self._finish, job)
                if not ahead:
                    yield job.photo, writing.result()
                    writing = None
                    reading += [reader.submit(self._read, other) for other in following]
            if writing is not None:
                yield jobs[-1].photo, writing.result()

    def _read(self, job: _Job) -> None:
        """Reads a photo unless it is done."""
        started = time.perf_counter()
        try:
            self.files.check_names(job.photo, job.paths)
            job.input_sha256 = file_sha256(job.photo) if job.photo.is_file() else None
            names = [path.name for path in job.paths]
            done = not self.overwrite and self.manifest.is_done(
                job.result, request=self.request, input_sha256=job.input_sha256, outputs=names
            )
            if not done:
                if not self.overwrite:
                    self.files.check_owner(job.result, job.photo, job.paths, job.input_sha256)
                job.rgb = read_rgb(job.photo, background=self.config.background, note=job.notes.append)
                job.num_pixels = job.rgb.shape[0] * job.rgb.shape[1]
        except _PHOTO_ERRORS as error:
            job.error = _one_line(job.photo, error)
        job.seconds += time.perf_counter() - started

    def _predict(self, job: _Job) -> None:
        if job.rgb is None:
            return
        predictor = self._load()
        started = time.perf_counter()
        try:
            job.prediction = predictor(job.rgb, **self.config.call_options)
        except _PHOTO_ERRORS as error:
            job.error = _one_line(job.photo, error)
        job.rgb = None
        job.seconds += time.perf_counter() - started

    def _finish(self, job: _Job) -> tuple[str | None, str | None]:
        """Write the results of a photo and its line in the manifest; return its error and note, if any."""
        result, photo = job.result, job.photo
        if job.error is None and job.prediction is None:
            self.outcome.skipped.append(photo)
            return None, None
        if job.prediction is None:
            assert job.error is not None
            return self.fail(result, photo, job.error, job.input_sha256), None
        with self.manifest.exclusive():
            started = time.perf_counter()
            try:
                if not self.overwrite:  # another run may have put another photo's results there meanwhile
                    self.files.check_owner(result, photo, job.paths, job.input_sha256)
            except OutputError as error:
                job.prediction = None
                return self.fail(result, photo, str(error), job.input_sha256), None
            try:
                record, outputs = self._write(job, job.prediction)
            except _PHOTO_ERRORS as error:
                if isinstance(error, OpenMarigoldError) and concerns_every_file(error, self.output_dir):
                    raise  # the next photo would fail too
                return self.fail(result, photo, _one_line(photo, error), job.input_sha256), None
            finally:
                job.prediction = None
            job.seconds += time.perf_counter() - started
            self._note_done(job, record, outputs)
        self.outcome.written.extend(job.paths)
        self.outcome.num_predicted += 1
        self.outcome.predict_s.append(job.seconds)
        return None, job.notes[0] if job.notes else None

    def _note_done(self, job: _Job, record: dict[str, Any], outputs: dict[str, int | None]) -> None:
        self.manifest.append(
            job.result,
            "done",
            input=str(job.photo),
            input_path=photo_location(job.photo),
            input_sha256=job.input_sha256,
            request=self.request,
            provenance=record,
            outputs=outputs,
            seconds=round(job.seconds, 3),
            **({"notes": job.notes} if job.notes else {}),
        )

    def fail(self, result: str, photo: Path, message: str, input_sha256: str | None = None) -> str:
        """Count a photo without results, and return the reason."""
        self.outcome.failed.append((photo, message))
        self.manifest.append(result, "failed", input=str(photo), input_sha256=input_sha256, error=message)
        return message

    def _load(self) -> Predictor:
        if self._predictor is None:
            started = time.perf_counter()
            self._predictor = Predictor.from_config(self.config, found=self.checkpoint, tiny_vae=self.tiny_vae)
            self.outcome.load_s = time.perf_counter() - started
            self.outcome.engine = self._predictor.engine.name
        return self._predictor

    def _write(self, job: _Job, prediction: Prediction) -> tuple[dict[str, Any], dict[str, int | None]]:
        """Write the results of a photo; return their provenance, and the valid files with their sizes."""
        result, photo, paths, input_sha256 = job.result, job.photo, job.paths, job.input_sha256
        record = {
            "software": f"openmarigold {__version__}",
            "quantity": self.checkpoint.modality_of_call(self.config).quantities[self.checkpoint.invariance],
            "input_sha256": input_sha256,
            "checkpoint": None,  # its name, in a place of its own
            **self.request,
            **prediction.settings,
        }
        folder = (self.output_dir / result).parent
        kept = self.files.make_room(result, photo, paths, input_sha256, request=self.request)
        if kept is None:
            self.outcome.renewed.append(photo)
        write_prediction(
            prediction.maps,
            prediction.uncertainties,
            modality=self.checkpoint.predicts,
            output_dir=folder,
            stem=Path(result).name,
            output=self.output,
            provenance=record,
            overwrite=True,
        )
        return record, {**(kept or {}), **{path.name: file_size(path) for path in paths}}

    def _paths(self, result: str) -> list[Path]:
        path = self.output_dir / result
        return result_paths(
            path.parent,
            path.name,
            uncertainty=self.config.ensemble_size > 1,
            output=self.output,
            modality=self.checkpoint.predicts,
            settings=self.request,
        )


def _one_line(photo: Path, error: Exception) -> str:
    """The error of a photo, with its name."""
    if isinstance(error, MemoryError):
        return f"{photo}: out of memory; try a smaller photo, processing_resolution or ensemble_size"
    if isinstance(error, OSError) and not isinstance(error, OpenMarigoldError):
        return f"{photo} cannot be read: {error.strerror or error}; check its permissions"
    return str(error) if str(photo) in str(error) else f"{photo}: {error}"
