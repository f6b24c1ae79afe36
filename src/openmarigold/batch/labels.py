# SPDX-License-Identifier: Apache-2.0
"""Photos labeled by a model itself: its ensemble's depth where the members agree, as data for training (self-training).

A `LabelReader` is a raw data set of `data.preparation`, which writes its samples and resumes after an interruption.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.config import PredictConfig
from openmarigold.data.archives import Archive, open_archive
from openmarigold.data.decoding import FrameDefectError, read_member
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import Listing, RawFrame, RawSample, damaged_archives
from openmarigold.data.readers.rgbd_folder import with_unique_keys
from openmarigold.errors import CheckpointError, DataError, ImageError, InvalidValueError, MissingExtraError, one_line
from openmarigold.images.kinds import image_suffixes
from openmarigold.images.photo import read_photo
from openmarigold.modalities import find_modality
from openmarigold.predictor import Predictor
from openmarigold.results.prediction import Prediction
from openmarigold.results.provenance import begins_like_result

KIND = "photos"
_RANGE = 200.0  # times the median depth, or a part of it: e**10.6 from end to end
_ENCODING = MapEncoding(kind="log", near=1 / _RANGE, far=_RANGE, levels=16383)  # a step is 0.06 %
_JPEG_QUALITY = 95


@dataclass(eq=False)
class LabelReader:
    """Photos of a folder, tar or zip, with the depth that a model predicts of them.

    Depth is up to a scale of each photo: its median is 1. A pixel is unknown (0) where the members of the ensemble
    deviate by more than `max_uncertainty`, or where it is over 200 times nearer or farther than the median. The whole
    photo is predicted; then the largest part of the shape of `size` in its middle is taken.

    Attributes:
        source: the photos.
        config: model and call; the ensemble has at least two members.
        size: height and width of the samples [px].
        max_uncertainty: largest deviation of the members from their median, as a share of the depth.

    Raises:
        InvalidValueError: a setting that is not accepted.
    """

    source: Path
    config: PredictConfig
    _: KW_ONLY
    size: tuple[int, int] = (288, 384)
    max_uncertainty: float = 0.1
    split: str = "train"
    _archive: Archive | None = field(default=None, init=False, repr=False)
    _predictor: Predictor | None = field(default=None, init=False, repr=False)

    modality = "depth"
    name = "labels"
    valid_range = (0.0, float("inf"))

    def __post_init__(self) -> None:
        self.encodings = {"depth": _ENCODING}
        if min(self.size) < 16:
            raise InvalidValueError(f"size={list(self.size)} must be height and width, at least 16 px each")
        if not 0 < self.max_uncertainty < float("inf"):
            raise InvalidValueError(f"max_uncertainty={self.max_uncertainty} must be a number above 0, such as 0.1")
        if self.config.ensemble_size < 2:
            raise InvalidValueError(
                f"ensemble_size={self.config.ensemble_size}: one member does not say where it is unsure; give 2 or more"
            )

    def __getstate__(self) -> dict[str, Any]:
        """The reader for another process, which loads the model itself."""
        return {**vars(self), "_predictor": None}

    @property
    def predictor(self) -> Predictor:
        """The model, loaded when it is first asked for.

        Raises:
            InvalidValueError: it does not predict depth up to scale or in meters.
        """
        if self._predictor is None:
            predictor = Predictor.from_config(self.config.model)
            predicts, invariance = predictor.modality, predictor.checkpoint.invariance
            wanted = [kind.name for kind in find_modality(self.modality).maps]
            if [kind.name for kind in predicts.maps] != wanted or invariance == "affine":
                raise InvalidValueError(
                    f"{predictor.checkpoint.name} predicts {predicts.title} ({invariance}); labels need depth up to a "
                    "scale, whose zero is zero"
                )
            self._predictor = predictor
        return self._predictor

    def settings(self) -> dict[str, Any]:
        """The model by the hash of its weights, and how it is called."""
        call = {name: value for name, value in asdict(self.config.call).items() if value is not None}
        return {
            "checkpoint": checkpoint_sha256(self.predictor.checkpoint),
            "engine": self.predictor.engine.name,
            "dtype": self.config.dtype,
            **call,
            "size": list(self.size),
            "max_uncertainty": self.max_uncertainty,
        }

    def list_frames(self) -> Listing:
        self._archive = archive = open_archive(self.source)
        suffixes = image_suffixes()
        names = [
            name
            for name in sorted(archive.names)
            if PurePosixPath(name).suffix.lower() in suffixes and not _is_hidden(name)
        ]
        if not names:
            raise DataError(f"{self.source} holds no photo; give a folder, tar or zip of photos")
        frames = [_frame(name) for name in names]
        notes = [*archive.notes, *archive.damage.values()]
        rejected = damaged_archives(archive)
        return Listing(frames=with_unique_keys(frames), rejected=rejected, notes=notes, archive=archive)

    def read(self, frame: RawFrame) -> RawSample:
        content = read_member(self._archive, frame.name)
        if begins_like_result(content):
            raise FrameDefectError("result", f"{frame.name} is a result of this program, no photo", is_error=False)
        try:
            rgb = read_photo(content).rgb
        except ImageError as error:
            raise FrameDefectError("damaged", str(error).replace("the given bytes", frame.name, 1)) from error
        depth = self._confident(self._predict(rgb, frame.name))
        box = _middle(rgb.shape[:2], self.size)
        picture = io.BytesIO()
        height, width = self.size
        cut = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC, box=box)
        cut.save(picture, "JPEG", quality=_JPEG_QUALITY)
        # Nearest: a mean over an edge would invent surfaces.
        values = np.asarray(Image.fromarray(depth).resize((width, height), Image.Resampling.NEAREST, box=box))
        if not values.any():  # the threshold caused it; the photo has no defect
            detail = f"the members deviate by more than {self.max_uncertainty:g} of the depth everywhere"
            raise FrameDefectError("too little depth", detail, is_error=False)
        return picture.getvalue(), {"depth": np.array(values, dtype=np.float32)}, {"source": frame.name}

    def _predict(self, rgb: UInt8[np.ndarray, "h w 3"], name: str) -> Prediction:
        """What the model gives.

        Raises:
            CheckpointError: the model cannot be loaded, as in a worker that has no memory left for it.
            FrameDefectError: it fails on this photo.
        """
        try:
            predictor = self.predictor
        except MissingExtraError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"the model cannot be loaded ({one_line(error)}); finished shards are kept: run the same again, with "
                "fewer workers if memory ran out"
            ) from error
        try:
            return predictor(rgb, **self.config.call_options)
        except MissingExtraError:
            raise
        except Exception as error:  # engines raise many kinds, for example if a large photo does not fit in memory
            raise FrameDefectError("not predicted", f"{name}: {one_line(error)}") from error

    def _confident(self, found: Prediction) -> Float32[np.ndarray, "h w"]:
        """Depth with a median of 1, 0 where it is unknown."""
        depth, deviation = found.depth, found.uncertainty
        assert deviation is not None
        median = max(float(np.median(depth)), float(np.finfo(np.float32).tiny))
        relative = depth / np.float32(median)
        known = (relative > 1 / _RANGE) & (relative < _RANGE) & (deviation <= self.max_uncertainty * depth)
        return np.where(known, relative, np.float32(0))


def _is_hidden(name: str) -> bool:
    """Whether a file or a folder above it is hidden, as previews of file managers and macOS's ._ files are."""
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _frame(name: str) -> RawFrame:
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", str(PurePosixPath(name).with_suffix("")))
    return RawFrame(name=name, key=key, kind=KIND, scene=key, files={"rgb": name})


def _middle(given: tuple[int, ...], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest part of the shape of `size` in the middle of a picture."""
    height, width = given
    scale = min(height / size[0], width / size[1])
    half_height, half_width = scale * size[0] / 2, scale * size[1] / 2
    return (width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height)


FACTS: Mapping[str, Any] = {"unknown_is_far": False}
"""The meaning of a pixel without depth, for the manifest: the model was unsure there. It is not sky."""
