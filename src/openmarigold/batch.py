# SPDX-License-Identifier: Apache-2.0
"""Many photos to many result files: one bad photo is reported and counted, and never stops the others.

The manifest in the output folder says what is finished (see `manifest`); a run that was killed goes on from there.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from openmarigold import __version__
from openmarigold.checkpoint import Checkpoint, loaded_variant, read_checkpoint, read_tiny_vae, resolve_settings
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError, OpenMarigoldError, OutputError
from openmarigold.export import check_output, result_paths, write_prediction
from openmarigold.image import parse_colour, read_rgb
from openmarigold.kinds import RAW_SUFFIXES, image_suffixes, looks_like_picture, url_in
from openmarigold.manifest import Manifest, file_size
from openmarigold.predictor import DepthPrediction, Predictor
from openmarigold.provenance import checkpoint_sha256, file_sha256, is_result, tiny_vae_sha256

# Settings that say where the model lies and how it is run, but not what comes out: the checkpoint counts by its hash.
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
    }
)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})  # the next photo would fare no better
_NAMED = 5  # files in one note
_PHOTO_ERRORS = (OpenMarigoldError, MemoryError, OSError)
_QUANTITIES = {
    "affine": "affine depth in [0, 1], near 0; true depth is about scale * depth + shift",
    "scale": "depth in [0, 1] up to scale; true depth is about scale * depth",
    "absolute": "depth in [0, 1]; true depth is a fixed multiple that the checkpoint's authors state",
}


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
    """Photos without results, each with one line that says why."""
    left_out: list[Path] = field(default_factory=list)
    """Pictures in the given folders that are results of earlier predictions, and no photos."""
    passed_over: list[Path] = field(default_factory=list)
    """Files in the given folders that look like pictures and were not taken: of kinds that are not read, or raw photos
    next to a picture of the same name."""
    num_predicted: int = 0
    engine: str | None = None
    """What ran the networks; None where no photo needed them."""
    load_s: float = 0.0
    """Time to load the checkpoint [s]."""
    predict_s: list[float] = field(default_factory=list)
    """Time spent on each predicted photo: reading, predicting, writing [s]. Those of neighbours overlap."""

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
    """Progress: `done` of `total` photos are done or failed, the last one with `error`; a `note` is worth saying."""

    path: Path
    done: int
    total: int
    error: str | None = None
    note: str | None = None


def predict_files(
    inputs: Iterable[Path],
    *,
    output_dir: Path,
    config: PredictConfig,
    output: OutputConfig | None = None,
    overwrite: bool = False,
    report: Callable[[Event], object] = lambda event: None,
) -> BatchResult:
    """Predicts photos and all photos in folders, in the given order and sorted by path within a folder.

    Results of a folder keep its layout: `folder/a/b.jpg` becomes `output_dir/a/b_depth.npy`. Results that the manifest
    of the output folder calls done for the same photo and settings are kept unless `overwrite`; others are made anew.
    Results of earlier predictions that lie in a given folder are no photos; one that is named itself is taken. The
    model is loaded for the first photo that can be read, after everything that can be wrong with folders and settings
    has been found.

    Raises:
        OutputError: the output folder or its manifest cannot be written.
        InvalidValueError: no input, the output folder is an input, or a setting that is not accepted.
        MissingExtraError: a format or colour map without its extra.
        CheckpointError: the checkpoint cannot be used.
    """
    inputs = [Path(path) for path in inputs]
    if not inputs:
        raise InvalidValueError("no input given; name photos or folders of photos")
    run = _Run(config, output or OutputConfig(), output_dir, overwrite)
    _check_output_dir(output_dir, inputs)
    run.check()
    photos, problems = _list_photos(inputs, output_dir, run.outcome)
    total = len(photos) + len(problems)
    if left_out := run.outcome.left_out:
        report(Event(path=left_out[0], done=0, total=total, note=_about_left_out(left_out)))
    if passed_over := run.outcome.passed_over:
        report(Event(path=passed_over[0], done=0, total=total, note=_about_passed_over(passed_over)))
    noted = False
    for done, (path, problem) in enumerate(problems, start=1):
        run.fail("", path, problem)
        report(Event(path=path, done=done, total=total, error=problem))
    for done, (path, (error, note)) in enumerate(run.predict_all(photos), start=len(problems) + 1):
        if note is not None:  # one is enough
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
    prediction: DepthPrediction | None = None
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
        self.manifest = Manifest(output_dir)
        self.outcome = BatchResult()
        self._predictor: Predictor | None = None

    def check(self) -> None:
        """Finds out what is wrong with the settings before any photo is read."""
        parse_colour(self.config.background)
        check_output(self.output)
        _ = self.request

    @cached_property
    def checkpoint(self) -> Checkpoint:
        config = self.config
        return read_checkpoint(
            config.checkpoint,
            variant=config.variant,
            revision=config.revision,
            local_files_only=config.local_files_only,
        )

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
            "colour_map": self.output.colour_map,
            **self._tiny_vae,
        }

    @cached_property
    def _tiny_vae(self) -> dict[str, str]:
        """What a small autoencoder changes in the results, if there is one."""
        tiny_vae = read_tiny_vae(self.config, self.checkpoint)
        if tiny_vae is None:
            return {}
        return {"tiny_vae_sha256": tiny_vae_sha256(tiny_vae), "tiny_vae_for": tiny_vae.used_for}

    def predict_all(self, photos: Mapping[str, Path]) -> Iterator[tuple[Path, tuple[str | None, str | None]]]:
        """Yields each photo with its error and a note, if any, in order.

        While one photo is predicted, the next is read and the one before is written, each in a thread of its own. All
        that is counted and noted in the manifest is so in the order of the photos.

        Raises:
            OpenMarigoldError: what is wrong for every photo: the model cannot be loaded, or the manifest not written.
        """
        self.manifest.standing("")  # reads what is there, before two threads ask
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            jobs = [_Job(result=result, photo=photo, paths=self._paths(result)) for result, photo in photos.items()]
            reading = reader.submit(self._read, jobs[0]) if jobs else None
            writing: Future[tuple[str | None, str | None]] | None = None
            for index, job in enumerate(jobs):
                assert reading is not None
                reading.result()
                if index + 1 < len(jobs):
                    reading = reader.submit(self._read, jobs[index + 1])
                self._predict(job)
                if writing is not None:  # one at a time: memory holds three photos at most
                    yield jobs[index - 1].photo, writing.result()
                writing = writer.submit(self._finish, job)
            if writing is not None:
                yield jobs[-1].photo, writing.result()

    def _read(self, job: _Job) -> None:
        """Reads a photo unless it is done."""
        started = time.perf_counter()
        try:
            self._check_names(job.photo, job.paths)
            job.input_sha256 = file_sha256(job.photo) if job.photo.is_file() else None
            names = [path.name for path in job.paths]
            done = not self.overwrite and self.manifest.is_done(
                job.result, request=self.request, input_sha256=job.input_sha256, outputs=names
            )
            if not done:
                job.rgb = read_rgb(job.photo, background=self.config.background, note=job.notes.append)
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
        """Writes the results of a photo and says in the manifest what became of it; its error and a note, if any."""
        result, photo = job.result, job.photo
        if job.error is None and job.prediction is None:
            self.outcome.skipped.append(photo)
            return None, None
        if job.prediction is None:
            assert job.error is not None
            return self.fail(result, photo, job.error, job.input_sha256), None
        started = time.perf_counter()
        try:
            record, outputs = self._write(job, job.prediction)
        except _PHOTO_ERRORS as error:
            if getattr(error.__cause__, "errno", None) in _NO_ROOM:
                raise
            return self.fail(result, photo, _one_line(photo, error), job.input_sha256), None
        job.prediction = None
        job.seconds += time.perf_counter() - started
        self.manifest.append(
            result,
            "done",
            input=str(photo),
            input_sha256=job.input_sha256,
            request=self.request,
            provenance=record,
            outputs=outputs,
            seconds=round(job.seconds, 3),
            **({"notes": job.notes} if job.notes else {}),
        )
        self.outcome.written.extend(job.paths)
        self.outcome.num_predicted += 1
        self.outcome.predict_s.append(job.seconds)
        return None, job.notes[0] if job.notes else None

    def fail(self, result: str, photo: Path, message: str, input_sha256: str | None = None) -> str:
        """Counts a photo without results, and returns why it has none."""
        self.outcome.failed.append((photo, message))
        self.manifest.append(result, "failed", input=str(photo), input_sha256=input_sha256, error=message)
        return message

    def _check_names(self, photo: Path, paths: Sequence[Path]) -> None:
        """Finds out whether the file system takes the names of the results.

        Raises:
            OutputError: they are too long.
        """
        longest = max((path.name for path in paths), key=lambda name: len(os.fsencode(name)))
        try:
            (self.output_dir / longest).lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                return  # what else there is shows when files are written, with the right words
            raise OutputError(
                f"{photo}: its result {longest} would have a name of {len(os.fsencode(longest))} bytes, which is too "
                "long for the file system; give the photo a shorter name"
            ) from error

    def _load(self) -> Predictor:
        if self._predictor is None:
            started = time.perf_counter()
            self._predictor = Predictor.from_config(self.config)
            self.outcome.load_s = time.perf_counter() - started
            self.outcome.engine = self._predictor.engine.name
        return self._predictor

    def _write(self, job: _Job, prediction: DepthPrediction) -> tuple[dict[str, Any], dict[str, int | None]]:
        """Writes the results of a photo; returns their provenance, and every file that is valid now with its size."""
        result, photo, paths, input_sha256 = job.result, job.photo, job.paths, job.input_sha256
        record = {
            "software": f"openmarigold {__version__}",
            "quantity": _QUANTITIES[self.checkpoint.invariance],
            "input_sha256": input_sha256,
            "checkpoint": None,  # its name, in a place of its own
            **self.request,
            **prediction.settings,
        }
        folder = (self.output_dir / result).parent
        kept = self._make_room(result, photo, paths, input_sha256)
        write_prediction(
            prediction.depth,
            prediction.uncertainty,
            output_dir=folder,
            stem=Path(result).name,
            output=self.output,
            provenance=record,
            overwrite=True,
        )
        return record, {**kept, **{path.name: file_size(path) for path in paths}}

    def _make_room(
        self, result: str, photo: Path, paths: Sequence[Path], input_sha256: str | None
    ) -> dict[str, int | None]:
        """Files of an earlier run that stay valid beside new ones, with their sizes.

        If they are of another photo or of other settings, they are removed: a kill between two new files must not leave
        files of two kinds that look like one set. What was planned is noted first, for the run after such a kill.
        """
        last = self.manifest.standing(result) or {}
        new = {path.name for path in paths}
        if last.get("status") == "done":
            if last.get("request") == self.request and last.get("input_sha256") == input_sha256:
                return {name: size for name, size in last["outputs"].items() if name not in new}
            self.outcome.renewed.append(photo)
        names = sorted({*self._names_of_earlier_runs(result), *new})
        self.manifest.append(result, "started", input=str(photo), replaces=names)
        try:
            for name in names:
                ((self.output_dir / result).parent / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot replace {error.filename}: {error.strerror}; check its permissions") from error
        return {}

    def _names_of_earlier_runs(self, result: str) -> list[str]:
        """Files that the line which holds for a result calls done or about to be replaced."""
        last = self.manifest.standing(result) or {}
        return sorted({*last.get("outputs", ()), *last.get("replaces", ())})

    def _paths(self, result: str) -> list[Path]:
        path = self.output_dir / result
        return result_paths(path.parent, path.name, uncertainty=self.config.ensemble_size > 1, output=self.output)


def _one_line(photo: Path, error: Exception) -> str:
    """What went wrong with a photo, by its name."""
    if isinstance(error, MemoryError):
        return f"{photo}: out of memory; try a smaller photo, processing_resolution or ensemble_size"
    if isinstance(error, OSError) and not isinstance(error, OpenMarigoldError):
        return f"{photo} cannot be read: {error.strerror or error}; check its permissions"
    return str(error) if str(photo) in str(error) else f"{photo}: {error}"


def _check_output_dir(output_dir: Path, inputs: Sequence[Path]) -> None:
    """Makes the folder and tries to write to it, so that a long run does not end without results."""
    real = os.path.realpath(output_dir)
    if any(os.path.isdir(path) and os.path.realpath(path) == real for path in inputs):
        raise InvalidValueError(
            f"output folder {output_dir} is also an input, so results would be read as photos; choose another"
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to output folder {output_dir}: {error.strerror}; choose a folder that can be written"
        ) from error


def _list_photos(
    inputs: Sequence[Path], output_dir: Path, outcome: BatchResult
) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Photos in order, each once, by their results' path without suffixes; and inputs with the reason why not.

    Results of earlier predictions that folders hold are added to `left_out` of the outcome, other pictures that are not
    taken to its `passed_over`.
    """
    left_out = outcome.left_out
    photos: dict[str, Path] = {}
    seen: set[str] = set()
    problems: list[tuple[Path, str]] = []
    for path in inputs:
        base, found = path.parent, [path]
        if os.path.isdir(path):
            before = len(problems), len(left_out)
            base, found = path, sorted(_photos_in(path, output_dir, problems, outcome))
            if not found and len(problems) == before[0]:
                other = ", only results of earlier predictions" if len(left_out) > before[1] else ""
                accepted = ", ".join(sorted(image_suffixes()))
                problems.append((path, f"{path} holds no photo{other}; looked for are {accepted}"))
        for photo in found:
            if problem := _why_not_there(photo):
                problems.append((photo, problem))
                continue
            real = os.path.realpath(photo)
            if real in seen:
                continue
            result = (photo.relative_to(base).parent / photo.stem).as_posix()
            other = photos.setdefault(result, photo)
            if other is not photo:
                problems.append((photo, f"{photo} has the same result names as {other}; rename one of them"))
                continue
            seen.add(real)
    return photos, problems


def _photos_in(
    folder: Path, output_dir: Path, problems: list[tuple[Path, str]], outcome: BatchResult
) -> Iterator[Path]:
    """Photos in a folder and in those within, but not in hidden ones, links to folders and the output folder.

    Cameras write a JPEG next to a raw photo: the JPEG is taken.
    """

    def unreadable(error: OSError) -> None:
        path = Path(error.filename)
        problems.append((path, f"{path} cannot be read: {error.strerror}; check its permissions"))

    output = os.path.realpath(output_dir)
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent) / name) != output
        )
        paths = [Path(parent) / name for name in sorted(files) if not name.startswith(".")]
        pictures = [path for path in paths if path.suffix.lower() in image_suffixes()]
        developed = {path.stem for path in pictures if path.suffix.lower() not in RAW_SUFFIXES}
        for path in paths:
            if path.suffix.lower() not in image_suffixes():
                if _may_be_picture(path):
                    outcome.passed_over.append(path)
            elif path.suffix.lower() in RAW_SUFFIXES and path.stem in developed:
                outcome.passed_over.append(path)
            elif _is_result(path):
                outcome.left_out.append(path)
            else:
                yield path


def _is_result(path: Path) -> bool:
    try:
        return path.is_file() and is_result(path)
    except OSError:  # reading it as a photo will say what is wrong
        return False


def _may_be_picture(path: Path) -> bool:
    try:
        return path.is_file() and looks_like_picture(path)
    except OSError:  # nobody has asked for it
        return False


def _why_not_there(path: Path) -> str | None:
    """Why there is nothing to read at a path; None where there is something."""
    try:
        path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return f"{path} is a link to {os.readlink(path)}, which does not exist; mend or remove the link"
        if url := url_in(path):
            return f"{url} is a URL; download the picture first, and give the path of the file"
        return f"{path} does not exist; check the name"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"{path} is a link that leads back to itself; mend or remove the link"
        advice = "its name" if error.errno == errno.ENAMETOOLONG else "its name and the permissions of its folder"
        return f"{path} cannot be read: {error.strerror}; check {advice}"
    return None


def _about_left_out(paths: Sequence[Path]) -> str:
    """What is said of results in the given folders."""
    if len(paths) == 1:
        return f"{paths[0]} is the result of an earlier prediction and is left out; name the file to predict it"
    return (
        f"{len(paths)} pictures, such as {paths[0]}, are results of earlier predictions and are left out; name a file "
        "to predict it"
    )


def _about_passed_over(paths: Sequence[Path]) -> str:
    """What is said of files in the given folders that look like pictures and are not taken."""
    advice = "of kinds that are not looked for, or raw photos next to a picture of the same name; name a file to try it"
    if len(paths) == 1:
        return f"{paths[0]} looks like a picture and is passed over: {advice}"
    named = ", ".join(str(path) for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more (with --json, all are listed)" if len(paths) > _NAMED else ""
    return f"{len(paths)} files look like pictures and are passed over: {named}{more}: {advice}"
