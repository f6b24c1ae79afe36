# SPDX-License-Identifier: Apache-2.0
"""What can be evaluated: models that see a photo, and maps that some tool has saved."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from openmarigold.errors import DataError
from openmarigold.evaluation.map_files import SAVED_SUFFIXES, read_map
from openmarigold.evaluation.scoring import Predicted, choose_space
from openmarigold.files import as_path
from openmarigold.modalities import DEPTH
from openmarigold.modalities.modality import MapKind, Modality
from openmarigold.modalities.protocol import BenchmarkSample, Maps, PredictionSpace
from openmarigold.predictor import Predictor
from openmarigold.predictor.tiles import seam_lines
from openmarigold.results.manifest import Manifest


@runtime_checkable
class MapEstimator(Protocol):
    """Anything that can be evaluated: maps of the photo's size, and what they are known up to."""

    @property
    def invariance(self) -> PredictionSpace: ...

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"], /) -> Predicted: ...


@runtime_checkable
class GivenEstimator(MapEstimator, Protocol):
    """A `MapEstimator` that also sees what a benchmark gives besides the photo: see `BenchmarkSample.given`."""

    def estimate_given(self, rgb: UInt8[np.ndarray, "h w 3"], given: Maps, /) -> Predicted: ...


def estimate_sample(estimator: MapEstimator, sample: BenchmarkSample) -> Predicted:
    """The estimator's maps of a sample, from the photo and, where it takes it, what is given."""
    if isinstance(estimator, GivenEstimator):
        return estimator.estimate_given(sample.rgb, sample.given)
    return estimator(sample.rgb)


class TiledMaps(dict[str, np.ndarray]):
    """Maps by name, and the lines where their tiles begin and end (`metrics.seam_energy`)."""

    def __init__(self, maps: Maps, lines: Sequence[tuple[int, int]]) -> None:
        super().__init__(maps)
        self.lines = tuple(lines)


@dataclass(frozen=True)
class Estimator:
    """A `MapEstimator` made of a function that gives maps by name, or the array of a modality with one map."""

    estimate: Callable[[np.ndarray], Predicted]
    invariance: PredictionSpace = DEPTH.spaces[0]
    modality: Modality = DEPTH
    has_seams: bool = False
    """Whether it gives `TiledMaps`, whose seams are scored."""

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"], /) -> Predicted:
        return self.estimate(rgb)


def predictor_estimator(predictor: Predictor, **settings: Any) -> Estimator:
    """`predictor` with settings of its call, such as `ensemble_size`."""
    invariance = predictor.modality.prediction_space(predictor.checkpoint.invariance)

    def estimate(rgb: np.ndarray) -> Predicted:
        prediction = predictor(rgb, **settings)
        tiles = prediction.settings.get("tiles")
        maps = {**prediction.maps, **prediction.bounds}
        return TiledMaps(maps, seam_lines(tiles, rgb.shape[:2]) if tiles else ())

    return Estimator(estimate, invariance, predictor.modality, has_seams=bool(settings.get("tiles")))


def baseline_estimators(modality: Modality = DEPTH) -> dict[str, Estimator]:
    """Estimators that do not look at the photo, by name."""
    return {
        name: Estimator(baseline.estimate, baseline.space, modality) for name, baseline in modality.baselines.items()
    }


class SavedPredictions:
    """Maps in a folder, found by the names of a benchmark's images.

    For the map `depth` of the image `scene/rgb_0001`, with suffix .npy, .exr or .png, the first there is of:
    `scene/rgb_0001`, `scene/rgb_0001_depth` (what `openmarigold predict` writes), `scene/pred_0001` (what Marigold's
    own scripts write), `scene/rgb_0001/rgb_depth`, `scene/rgb_0001/depth`, and the first two flat, as `scene_rgb_0001`.
    Names without the map's are for modalities of one map.
    """

    def __init__(
        self, directory: Path | str, invariance: PredictionSpace | None = None, modality: Modality = DEPTH
    ) -> None:
        """Checks the folder; without `invariance`, the maps are of the modality's first space.

        Raises:
            DataError: the folder does not exist.
            InvalidValueError: an invariance that the modality does not have.
        """
        directory = as_path(directory, "the folder of predictions")
        if not directory.is_dir():
            raise DataError(f"{directory} is not a folder; give the folder that holds the predictions")
        self.directory, self.modality = directory, modality
        self.invariance = choose_space(modality, invariance)

    def find(self, name: str) -> dict[str, Path]:
        """The files for an image, by map.

        Raises:
            DataError: a map has none.
        """
        return {kind.name: self._find(name, kind) for kind in self.modality.maps}

    def read(self, name: str) -> Maps:
        """The maps of an image.

        Raises:
            DataError: one is missing or damaged, does not have the channels of the map, or states another space.
            MissingExtraError: an EXR file without OpenEXR.
        """
        found = self.find(name)
        for path in found.values():
            stated = self.modality.stated_space(self._records.get(path) or {}, path.suffix)
            if stated not in (None, self.invariance):
                accepted = f"give invariance {stated}" if stated in self.modality.spaces else "predict them again"
                raise DataError(f"{path}: the manifest says that it holds {stated}, not {self.invariance}; {accepted}")
            if path.suffix == ".png" and self.invariance not in self.modality.picture_spaces:
                raise DataError(
                    f"{path}: a PNG has no unit and no zero; give {self.invariance} predictions as npy or exr"
                )
        return {kind.name: read_map(found[kind.name], kind) for kind in self.modality.maps}

    def hash_of(self, name: str) -> str:
        """SHA-256 of an image's files.

        Raises:
            DataError: one is missing or cannot be read.
        """
        digest = hashlib.sha256()
        for path in self.find(name).values():
            try:
                digest.update(path.read_bytes())
            except OSError as error:
                raise _unreadable(path, error) from error
        return digest.hexdigest()

    def check_names(self, names: Iterable[str]) -> None:
        """Checks that no file would serve two images.

        Raises:
            DataError: one would; such as `pred_1.npy` for both `1` and `rgb_1`.
        """
        owners: dict[Path, str] = {}
        for name in names:
            try:
                found = self.find(name)
            except DataError:  # of this image alone, which fails when it is scored
                continue
            for path in found.values():
                if (owner := owners.setdefault(path, name)) != name:
                    raise DataError(
                        f"{path} is the prediction of {owner} and of {name}; give each image a file of its own name, "
                        f"such as {name}.npy"
                    )

    @cached_property
    def _records(self) -> dict[Path, dict[str, Any]]:
        """Provenance of the files in the manifest of `predict`, if there is one."""
        records = {}
        for line in Manifest(self.directory).lines():
            folder = (self.directory / line["result"]).parent
            if isinstance(line.get("provenance"), dict):
                records |= {folder / name: line["provenance"] for name in line.get("outputs", ())}
        return records

    def _find(self, name: str, kind: MapKind) -> Path:
        for stem in _stems(name, kind, is_alone=len(self.modality.maps) == 1):
            for suffix in SAVED_SUFFIXES:
                path = self.directory / f"{stem}{suffix}"
                if _is_file(path):
                    return path
        what = name if len(self.modality.maps) == 1 else f"{name}_{kind.file_name}"
        raise DataError(f"{self.directory} holds no prediction {what} ({', '.join(SAVED_SUFFIXES)}); predict it")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # of a flat name, whose parts fit as folders
            return False
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}; check its permissions")


def _stems(name: str, kind: MapKind, *, is_alone: bool) -> Iterator[str]:
    """Names, without suffix, that the map of an image may have; the likeliest first."""
    path = PurePosixPath(name)
    flat = name.replace("/", "_")
    if is_alone:
        yield name
    yield f"{name}_{kind.file_name}"
    if is_alone:
        yield str(path.with_name(f"pred_{path.name.removeprefix('rgb_')}"))
    yield f"{name}/rgb_{kind.file_name}"
    yield f"{name}/{kind.name}"
    if is_alone:
        yield flat
    yield f"{flat}_{kind.file_name}"
