# SPDX-License-Identifier: Apache-2.0
"""Scores of a depth estimator on a folder of photos with measured depth.

Protocol: per image, scale and shift by least squares over the valid pixels (in depth; in disparity for estimators of
disparity), clip to [0.001, 20] m (80 m outdoors), then the metrics; mean over the images of a place, then over the
places of a kind and over all places. Places, not images, have equal weight. Paper: §4.1 (alignment and metrics).

A benchmark is a folder with `manifest.json`, a list of `{name, kind, place}`, and for each name a folder with
`rgb.jpg`, `depth.png` (16-bit; 0 = invalid) and `meta.json` with `depth_scale`, the values per metre.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from openmarigold.alignment import align_depth, align_disparity
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.image import read_rgb
from openmarigold.metrics import depth_metrics
from openmarigold.predictor import Predictor

MIN_DEPTH = 1e-3
MAX_DEPTH = {"outdoor": 80.0}
MAX_DEPTH_INDOORS = 20.0
ALL_KINDS = "all"


@runtime_checkable
class DepthEstimator(Protocol):
    """Anything that can be evaluated: depth or disparity from a photo, up to scale and shift."""

    @property
    def space(self) -> Literal["depth", "disparity"]:
        """What the values are proportional to, so that the alignment is done in it."""
        ...

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"], /) -> Float[np.ndarray, "h w"]: ...


@dataclass(frozen=True)
class Estimator:
    """A `DepthEstimator` made of a function."""

    estimate: Callable[[np.ndarray], np.ndarray]
    space: Literal["depth", "disparity"] = "depth"

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"], /) -> Float[np.ndarray, "h w"]:
        return self.estimate(rgb)


def predictor_estimator(predictor: Predictor, **settings: Any) -> Estimator:
    """`predictor` with settings of its call, such as `ensemble_size`."""
    return Estimator(lambda rgb: predictor(rgb, **settings).depth)


def constant_estimator() -> Estimator:
    """The same depth everywhere: after the alignment, the image's mean depth. A baseline."""
    return Estimator(lambda rgb: np.ones(rgb.shape[:2]))


def image_row_estimator() -> Estimator:
    """Disparity grows with the row, as on a floor: knows where the bottom of a photo is, nothing else. A baseline."""
    return Estimator(
        lambda rgb: np.repeat(np.arange(len(rgb), dtype=float)[:, None], rgb.shape[1], axis=1), "disparity"
    )


BASELINES: dict[str, Callable[[], Estimator]] = {"constant": constant_estimator, "image row": image_row_estimator}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A photo and its measured depth [m]; True in `valid_mask` = use this pixel."""

    name: str
    kind: str
    place: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]
    valid_mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """Metrics of one image."""

    name: str
    kind: str
    place: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class KindScore:
    """Means over the places of a kind."""

    num_places: int
    num_images: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores per image, and per kind of place with `all` last."""

    images: Sequence[ImageScore]
    kinds: Mapping[str, KindScore]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: fractions and metres, not percent."""
        return {
            "kinds": {
                name: {"num_places": kind.num_places, "num_images": kind.num_images, **kind.metrics}
                for name, kind in self.kinds.items()
            },
            "images": [
                {"name": image.name, "kind": image.kind, "place": image.place, **image.metrics} for image in self.images
            ],
        }


def evaluate(
    benchmark_dir: Path,
    estimator: DepthEstimator,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """The estimator's scores on a benchmark folder; `progress(done, total)` is called after each image.

    Raises:
        DataError: the benchmark is missing, incomplete or damaged.
        InvalidValueError: the estimator returned another size than the photo's.
    """
    entries = read_manifest(benchmark_dir)
    images = []
    for done, entry in enumerate(entries, start=1):
        sample = read_sample(benchmark_dir, entry)
        images.append(score_image(sample, estimator(sample.rgb), space=estimator.space))
        if progress is not None:
            progress(done, len(entries))
    return Report(images=images, kinds=mean_over_places(images))


def score_image(
    sample: Sample, predicted: Float[np.ndarray, "h w"], *, space: Literal["depth", "disparity"]
) -> ImageScore:
    """Metrics of one prediction after alignment and clipping."""
    if predicted.shape != sample.depth.shape:
        raise InvalidValueError(
            f"{sample.name}: the estimate is {list(predicted.shape)} and the measured depth "
            f"{list(sample.depth.shape)}; both must have the photo's size"
        )
    align = {"depth": align_depth, "disparity": align_disparity}[space]
    aligned = align(predicted, sample.depth, sample.valid_mask)
    aligned = np.clip(aligned, MIN_DEPTH, MAX_DEPTH.get(sample.kind, MAX_DEPTH_INDOORS))
    metrics = depth_metrics(aligned, sample.depth, sample.valid_mask)
    return ImageScore(name=sample.name, kind=sample.kind, place=sample.place, metrics=metrics)


def mean_over_places(images: Sequence[ImageScore]) -> dict[str, KindScore]:
    """Means over the images of a place, then over the places: per kind in order of appearance, and over all."""
    by_place: dict[tuple[str, str], list[ImageScore]] = defaultdict(list)
    for image in images:
        by_place[image.kind, image.place].append(image)
    places = {key: _mean([image.metrics for image in group]) for key, group in by_place.items()}
    scores = {}
    for name in (*dict.fromkeys(kind for kind, _ in places), ALL_KINDS):
        chosen = [key for key in places if name in (ALL_KINDS, key[0])]
        scores[name] = KindScore(
            num_places=len(chosen),
            num_images=sum(len(by_place[key]) for key in chosen),
            metrics=_mean([places[key] for key in chosen]),
        )
    return scores


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def read_manifest(benchmark_dir: Path) -> list[dict[str, Any]]:
    """The benchmark's list of images.

    Raises:
        DataError: `manifest.json` is missing, damaged or empty.
    """
    path = benchmark_dir / "manifest.json"
    entries = _read_json(path)
    needed = {"name", "kind", "place"}
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(e, dict) and needed <= e.keys() for e in entries)
    ):
        raise DataError(f"{path} is not a list of objects with name, kind and place; get the benchmark again")
    return entries


def read_sample(benchmark_dir: Path, entry: Mapping[str, Any]) -> Sample:
    """One photo of the benchmark with its measured depth.

    Raises:
        DataError: a file is missing or damaged, sizes differ, or no pixel has a measured depth.
        ImageError: the photo cannot be read.
    """
    folder = benchmark_dir / entry["name"]
    meta = _read_json(folder / "meta.json")
    depth_path = folder / "depth.png"
    try:
        scale = float(meta["depth_scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'meta.json'} has no number depth_scale, the values per metre") from error
    try:
        with Image.open(depth_path) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{depth_path} is missing or damaged; get the benchmark again") from error
    rgb = read_rgb(folder / "rgb.jpg")
    if values.shape != rgb.shape[:2]:
        raise DataError(
            f"{depth_path} is {list(values.shape)} and its photo {list(rgb.shape[:2])}; sizes must be equal"
        )
    valid_mask = values != 0
    if not valid_mask.any():
        raise DataError(f"{depth_path} has no valid pixel; leave the image out of the manifest")
    return Sample(
        name=entry["name"],
        kind=entry["kind"],
        place=entry["place"],
        rgb=rgb,
        depth=values.astype(np.float64) / scale,
        valid_mask=valid_mask,
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); a benchmark is a folder with manifest.json and one folder "
            "an image"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON; get the benchmark again") from error
