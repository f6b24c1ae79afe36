# SPDX-License-Identifier: Apache-2.0
"""Many photos to many result files: one bad photo is reported and counted, and never stops the others."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmarigold.checkpoint import read_checkpoint
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError, OpenMarigoldError, OutputError
from openmarigold.export import result_paths, write_prediction
from openmarigold.image import IMAGE_SUFFIXES, read_rgb
from openmarigold.predictor import Predictor


@dataclass
class BatchResult:
    """What became of each photo, and the time it took."""

    written: list[Path] = field(default_factory=list)
    """Result files."""
    skipped: list[Path] = field(default_factory=list)
    """Photos whose results were there already."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Photos without results, each with one line that says why."""
    num_predicted: int = 0
    load_s: float = 0.0
    """Time to load the checkpoint [s]."""
    predict_s: list[float] = field(default_factory=list)
    """Time for each predicted photo, from reading to written files [s]."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "written": [str(path) for path in self.written],
            "skipped": [str(path) for path in self.skipped],
            "failed": [{"path": str(path), "error": message} for path, message in self.failed],
            "num_predicted": self.num_predicted,
            "load_s": round(self.load_s, 3),
            "predict_s": [round(seconds, 3) for seconds in self.predict_s],
        }


@dataclass(frozen=True, kw_only=True)
class Event:
    """Progress: one more of `total` photos is done, or failed with `error`."""

    path: Path
    done: int
    total: int
    error: str | None = None


def predict_files(
    inputs: Iterable[Path],
    *,
    output_dir: Path,
    config: PredictConfig,
    overwrite: bool = False,
    report: Callable[[Event], object] = lambda event: None,
) -> BatchResult:
    """Predicts photos, and the photos in folders (not in folders within), in the given order and sorted by name.

    Results that are there already and complete for these settings are kept unless `overwrite`; incomplete ones, as an
    interrupted run or a smaller ensemble leaves them, are made anew. The model is loaded for the first photo that
    can be read, after everything that can be wrong with folders and settings has been found.

    Raises:
        OutputError: the output folder cannot be written.
        InvalidValueError: no input, or the output folder is among the input folders.
        CheckpointError: the checkpoint cannot be used.
    """
    inputs = [Path(path) for path in inputs]
    if not inputs:
        raise InvalidValueError("no input given; name photos or folders of photos")
    _check_output_dir(output_dir, inputs)
    read_checkpoint(
        config.checkpoint,
        variant=config.variant,
        revision=config.revision,
        local_files_only=config.local_files_only,
    )

    result = BatchResult()
    photos, problems = _list_photos(inputs, output_dir)
    total = len(photos) + len(problems)
    done = 0

    def finish(path: Path, error: str | None = None) -> None:
        nonlocal done
        done += 1
        if error is not None:
            result.failed.append((path, error))
        report(Event(path=path, done=done, total=total, error=error))

    for path, problem in problems:
        finish(path, problem)
    predictor: Predictor | None = None
    for photo in photos:
        paths = result_paths(output_dir, photo.stem, uncertainty=config.ensemble_size > 1)
        if not overwrite and all(path.is_file() for path in paths):
            result.skipped.append(photo)
            finish(photo)
            continue
        started = time.perf_counter()
        try:
            rgb = read_rgb(photo)
        except OpenMarigoldError as error:
            finish(photo, str(error))
            continue
        except MemoryError:
            finish(photo, f"{photo} does not fit into memory; make it smaller first")
            continue
        if predictor is None:
            loading = time.perf_counter()
            predictor = Predictor.from_config(config)
            result.load_s = time.perf_counter() - loading
            started += result.load_s
        try:
            prediction = predictor(rgb, **config.call_options)
            # What is there of an earlier run is incomplete or was asked to be replaced.
            written = write_prediction(
                prediction.depth, prediction.uncertainty, output_dir=output_dir, stem=photo.stem, overwrite=True
            )
            _remove_stale(output_dir, photo.stem, written)
        except OpenMarigoldError as error:
            message = str(error)
            finish(photo, message if str(photo) in message else f"{photo}: {message}")
            continue
        except MemoryError:
            finish(photo, f"{photo}: out of memory; try a smaller processing_resolution or ensemble_size")
            continue
        result.written.extend(written)
        result.num_predicted += 1
        result.predict_s.append(time.perf_counter() - started)
        finish(photo)
    return result


def _check_output_dir(output_dir: Path, inputs: Sequence[Path]) -> None:
    """Makes the folder and tries to write to it, so that a long run does not end without results."""
    resolved = output_dir.resolve()
    if any(path.is_dir() and path.resolve() == resolved for path in inputs):
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


def _list_photos(inputs: Sequence[Path], output_dir: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Photos in order, each once, and inputs that cannot be predicted with the reason."""
    photos: dict[Path, Path] = {}
    stems: dict[str, Path] = {}
    problems = []
    for path in inputs:
        try:
            found = _photos_in(path) if path.is_dir() else [path]
        except OSError as error:
            problems.append((path, f"{path} cannot be read: {error.strerror}; check its permissions"))
            continue
        if not found:
            accepted = ", ".join(sorted(IMAGE_SUFFIXES))
            problems.append((path, f"{path} holds no photo; accepted are {accepted}, not in folders within"))
        for photo in found:
            resolved = photo.resolve()
            if resolved in photos:
                continue
            if not photo.exists():
                problems.append((photo, f"{photo} does not exist; check the name"))
                continue
            other = stems.setdefault(photo.stem, photo)
            if other is not photo:
                problems.append((photo, f"{photo} has the same result names as {other}; rename one of them"))
                continue
            photos[resolved] = photo
    return list(photos.values()), problems


def _photos_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _remove_stale(output_dir: Path, stem: str, written: Sequence[Path]) -> None:
    """Removes an uncertainty map that belongs to an earlier prediction of more members."""
    for path in result_paths(output_dir, stem, uncertainty=True):
        if path not in written:
            path.unlink(missing_ok=True)
