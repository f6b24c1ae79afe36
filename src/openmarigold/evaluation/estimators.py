# SPDX-License-Identifier: Apache-2.0
"""What can be evaluated: models that see a photo, and maps that some tool has saved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from openmarigold.errors import DataError, ImageError, one_line
from openmarigold.files import as_path
from openmarigold.images.exr import read_exr
from openmarigold.predictor import Predictor

Invariance: TypeAlias = Literal["affine_depth", "scale", "metric", "disparity"]
"""What an estimate is known up to: depth up to scale and shift; depth up to scale; depth [m]; disparity up to both."""

# What a checkpoint's depth is known up to, in the words of the protocols. An absolute one has no unit of its own.
INVARIANCES: Mapping[str, Invariance] = {"affine": "affine_depth", "scale": "scale", "absolute": "scale"}


@runtime_checkable
class DepthEstimator(Protocol):
    """Anything that can be evaluated: a map of the photo's size, and what it is known up to."""

    @property
    def invariance(self) -> Invariance: ...

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"], /) -> Float[np.ndarray, "h w"]: ...


@dataclass(frozen=True)
class Estimator:
    """A `DepthEstimator` made of a function."""

    estimate: Callable[[np.ndarray], np.ndarray]
    invariance: Invariance = "affine_depth"

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"], /) -> Float[np.ndarray, "h w"]:
        return self.estimate(rgb)


def predictor_estimator(predictor: Predictor, **settings: Any) -> Estimator:
    """`predictor` with settings of its call, such as `ensemble_size`."""
    return Estimator(lambda rgb: predictor(rgb, **settings).depth, INVARIANCES[predictor.invariance])


def constant_estimator() -> Estimator:
    """The same depth everywhere: after the alignment, the image's mean depth. A baseline."""
    return Estimator(lambda rgb: np.ones(rgb.shape[:2]))


def image_row_estimator() -> Estimator:
    """Disparity grows with the row, as on a floor: knows where the bottom of a photo is, nothing else. A baseline."""
    return Estimator(
        lambda rgb: np.repeat(np.arange(len(rgb), dtype=float)[:, None], rgb.shape[1], axis=1), "disparity"
    )


BASELINES: dict[str, Callable[[], Estimator]] = {"constant": constant_estimator, "image row": image_row_estimator}

SAVED_SUFFIXES = (".npy", ".exr", ".png")
EXR_CHANNELS = ("Z", "depth", "depth.Z", "Depth", "Y", "R")


class SavedPredictions:
    """Maps in a folder, found by the names of a benchmark's images.

    For the image `scene/rgb_0001`, with suffix .npy, .exr or 16-bit .png, the first there is of: `scene/rgb_0001`,
    `scene/rgb_0001_depth` (what `openmarigold predict` writes), `scene/pred_0001` (what Marigold's own scripts write),
    `scene/rgb_0001/depth`, `scene/rgb_0001/rgb_depth`, and the first two flat, as `scene_rgb_0001`.
    """

    def __init__(self, directory: Path | str, invariance: Invariance = "affine_depth") -> None:
        """Checks the folder.

        Raises:
            DataError: there is no such folder.
        """
        directory = as_path(directory, "the folder of predictions")
        if not directory.is_dir():
            raise DataError(f"{directory} is not a folder; give the folder that holds the predictions")
        self.directory, self.invariance = directory, invariance

    def find(self, name: str) -> Path:
        """The file for an image.

        Raises:
            DataError: there is none.
        """
        for stem in _stems(name):
            for suffix in SAVED_SUFFIXES:
                path = self.directory / f"{stem}{suffix}"
                if path.is_file():
                    return path
        raise DataError(f"{self.directory} holds no prediction {name} ({', '.join(SAVED_SUFFIXES)}); predict it")

    def read(self, name: str) -> Float[np.ndarray, "h w"]:
        """The map of an image.

        Raises:
            DataError: there is none, or it is damaged or has no single channel of depth.
            MissingExtraError: an EXR file without OpenEXR.
        """
        path = self.find(name)
        if path.suffix == ".png" and self.invariance in ("metric", "scale"):
            raise DataError(f"{path}: a PNG says no unit and no zero; give {self.invariance} predictions as npy or exr")
        return read_map(path)

    def hash_of(self, name: str) -> str:
        """SHA-256 of an image's file."""
        return hashlib.sha256(self.find(name).read_bytes()).hexdigest()


def _stems(name: str) -> Iterable[str]:
    path = PurePosixPath(name)
    flat = name.replace("/", "_")
    published = path.with_name(f"pred_{path.name.removeprefix('rgb_')}")
    return (
        name,
        f"{name}_depth",
        str(published),
        f"{name}/rgb_depth",
        f"{name}/depth",
        flat,
        f"{flat}_depth",
    )


def read_map(path: Path | str) -> Float[np.ndarray, "h w"]:
    """A map from .npy, .exr (channel Z or the only one) or 16-bit .png (as [0, 1]).

    Raises:
        DataError: it is missing, damaged or has no single channel of depth.
        MissingExtraError: an EXR file without OpenEXR.
    """
    path = as_path(path, "the map")
    if path.suffix == ".exr":
        try:
            channels = read_exr(path)
        except ImageError as error:
            raise DataError(str(error)) from error
        name = next((name for name in EXR_CHANNELS if name in channels), next(iter(channels), ""))
        if name not in EXR_CHANNELS and len(channels) != 1:
            raise DataError(f"{path} has channels {', '.join(channels)}; one of {', '.join(EXR_CHANNELS)} is needed")
        values = channels[name]
    else:
        try:
            values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _read_gray16(path)
        except Exception as error:
            # Pillow and NumPy raise whatever damaged bytes lead to.
            raise DataError(f"{path} is missing or damaged ({one_line(error)}); write it again") from error
    values = np.squeeze(np.asarray(values))
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {values.dtype} of shape {list(values.shape)}; a map [h, w] of numbers is needed")
    return values.astype(np.float32 if values.dtype.kind != "f" or values.dtype.itemsize < 4 else values.dtype)


def _read_gray16(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"Pillow mode {image.mode}, not 16-bit grays")
        return np.asarray(image).astype(np.float32) / np.float32(65535)
