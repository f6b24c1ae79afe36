# SPDX-License-Identifier: Apache-2.0
"""Metric depth of many photos: `predict_files` with a finisher that uses known measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from openmarigold.camera import Camera
from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.completion.evidence import SparsePoints, joined
from openmarigold.completion.guided_settings import GUIDED, settings_of, with_gradients
from openmarigold.completion.known import KnownConfig
from openmarigold.completion.meters import KnownDepth, relative_depth, thinned, to_meters
from openmarigold.completion.point_files import READERS
from openmarigold.completion.points import PointOptions, camera_ray_lengths, read_points
from openmarigold.config import Invariance, OutputConfig, PredictConfig
from openmarigold.errors import DataError, InvalidValueError, OpenMarigoldError
from openmarigold.files import file_sha256
from openmarigold.modalities import Modality
from openmarigold.modalities.metric import METRIC
from openmarigold.predictor import Predictor
from openmarigold.predictor.run import BatchResult, Event, predict_files
from openmarigold.results.prediction import Prediction


def metric_files(
    inputs: Iterable[Path | str] | Path | str,
    *,
    output_dir: Path | str,
    known: KnownConfig,
    config: PredictConfig | None = None,
    output: OutputConfig | None = None,
    overwrite: bool = False,
    report: Callable[[Event], object] = lambda event: None,
) -> BatchResult:
    """Metric depth of photos and all photos in folders: `predict_files`, with results in meters.

    A photo whose points are missing or do not fix a scale is reported and counted, and does not stop the others. Files
    of points count by their hashes: photos with changed files are predicted again.

    Raises:
        OutputError, InvalidValueError, MissingExtraError, CheckpointError: see `predict_files`.
    """
    config = config or PredictConfig()
    if config.interval is not None:
        raise InvalidValueError(
            f"interval={config.interval:g} is calibrated for depth up to scale, not for meters, whose scale adds an "
            "error; leave it out (each result states the error at points left out), or use predict"
        )
    if known.method == GUIDED:
        config = with_gradients(config)
    finisher = MetersFromKnown(known, config)
    given: dict[str, Any] = {"output": output, "overwrite": overwrite, "report": report}
    return predict_files(inputs, output_dir=output_dir, config=config, finisher=finisher, **given)


class MetersFromKnown:
    """A `Finisher` that turns predictions of depth into meters."""

    modality: Modality = METRIC
    invariance: Invariance = "absolute"

    def __init__(self, known: KnownConfig, config: PredictConfig) -> None:
        self.known = known
        self._guided = settings_of(config)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"known": self.known.to_dict()}

    def check(self, checkpoint: Checkpoint) -> None:
        if checkpoint.predicts.relief is None:
            raise InvalidValueError(
                f"{checkpoint.name} predicts {checkpoint.predicts.title}, and meters need depth; give another "
                "checkpoint"
            )
        for name in ("points", "metric_map", "transform"):
            path: Path | None = getattr(self.known, name)
            if path is not None and not path.exists():
                raise InvalidValueError(f"{name}: {path} does not exist; check the name")

    def facts_of(self, photo: Path, result: str) -> Mapping[str, Any]:
        try:
            files = self._files(photo, result)
            files["transform"] = self.known.transform
            return {f"{name}_sha256": _sha256(path) for name, path in files.items() if path is not None}
        except OSError as error:
            if isinstance(error, OpenMarigoldError) or error.filename is None:
                raise
            raise DataError(f"{error.filename} cannot be read: {error.strerror}; check its permissions") from error

    def finish(self, prediction: Prediction, photo: Path, result: str, predictor: Predictor) -> Prediction:
        camera = relative_depth(prediction).camera
        points, metric_map = self._files(photo, result).values()
        read = [] if points is None else [self._read(points, camera, photo)]
        read += [] if metric_map is None else [thinned(self._read(metric_map, camera, photo))]
        return to_meters(
            prediction,
            known_depth=[self._planar(x, y, depth, camera) for x, y, depth in self.known.depths],
            known_length=self.known.lengths,
            camera_height=self.known.height_m,
            points=joined(read) if read else None,
            method=self.known.method,
            predictor=predictor,
            guided=self._guided,
        )

    def _files(self, photo: Path, result: str) -> dict[str, Path | None]:
        """The photo's files of points and of metric depth."""
        return {
            "points": _file_for(self.known.points, photo, result),
            "metric_map": _file_for(self.known.metric_map, photo, result, ends=("", f"_{METRIC.maps[0].file_name}")),
        }

    def _read(self, path: Path, camera: Camera, photo: Path) -> SparsePoints:
        known = self.known
        concerns_others = path.suffix.lower() == ".png" and known.has_other_than_pngs
        options = PointOptions(
            unit=None if concerns_others else known.unit,
            depth_scale=known.depth_scale,
            image=photo.name,
            transform=known.transform,
            along_ray=known.measured == "ray",
            remove_see_through=known.remove_see_through,
        )
        return read_points(path, camera=camera, options=options)

    def _planar(self, x: float, y: float, depth: float, camera: Camera) -> KnownDepth:
        if self.known.measured == "ray":
            depth /= float(camera_ray_lengths(camera, np.array([[x, y]]))[0])
        return x, y, depth


def _file_for(given: Path | None, photo: Path, result: str, *, ends: Sequence[str] = ("",)) -> Path | None:
    """The file of a photo: the given file, or the one with the photo's name, and one of the ends, in the given folder.

    Raises:
        DataError: the folder has none.
    """
    if given is None or not given.is_dir() or _is_model(given):
        return given
    stems = dict.fromkeys((result, PurePosixPath(result).name, photo.stem))
    for name in (f"{stem}{end}" for end in ends for stem in stems):
        for suffix in READERS:
            for path in (given / f"{name}{suffix}", given / f"{name}{suffix.upper()}"):
                if path.is_file():
                    return path
    raise DataError(
        f"{photo}: {given} holds no file of its points, {photo.stem}{{{','.join(READERS)}}}; add it, or leave "
        "the photo out"
    )


def _is_model(folder: Path) -> bool:
    """Whether a folder is a COLMAP model, which serves all photos."""
    return any((folder / f"points3D{suffix}").is_file() for suffix in (".bin", ".txt"))


def _sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, those of its files, joined by "+"."""
    if path.is_file():
        return file_sha256(path)
    return "+".join(file_sha256(file) for file in sorted(path.iterdir()) if file.is_file())
