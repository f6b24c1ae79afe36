# SPDX-License-Identifier: Apache-2.0
"""Scores and pictures of a model in training, by the same `Predictor` and protocols that users call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from openmarigold.data.remote import DataFolder
from openmarigold.data.sources import Source
from openmarigold.errors import DataError, ImageError, RecipeError
from openmarigold.evaluation import Estimator, baseline_estimators, predictor_estimator, score_benchmark
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmark_readers import Entry
from openmarigold.evaluation.benchmarks import open_benchmark, open_folder_benchmark
from openmarigold.files import write_atomically
from openmarigold.images.photo import read_rgb
from openmarigold.modalities.modality import Modality
from openmarigold.predictor import Predictor
from openmarigold.training.recipe import ValidationConfig

PICTURE_HEIGHT = 240
COLOR_MAP = "Spectral"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


MOST_HELD_OUT = 100  # images of each source, where the recipe does not say
MOST_LOSS_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class ValidationPaths:
    """Folders of benchmarks and photos; None leaves one out."""

    benchmark_dir: Path | None = None
    """A benchmark folder in the generic layout."""
    benchmark_data_dir: Path | None = None
    """Folder of the named benchmarks of the recipe."""
    photos_dir: Path | None = None
    """Photos whose predicted maps are written as pictures."""


class _Set(NamedTuple):
    """Images that are scored together."""

    name: str
    benchmark: Benchmark
    entries: list[Entry]


class Validation:
    """Scores checkpoints at fixed seeds on fixed images, and shows the maps of fixed photos."""

    def __init__(
        self,
        config: ValidationConfig,
        paths: ValidationPaths,
        *,
        device: str,
        modality: Modality,
        held_out: Sequence[Source] = (),
        data_dir: DataFolder | None = None,
        limits: Callable[[str, Source], tuple[float, float]] | None = None,
    ) -> None:
        """Open the benchmarks and decode each photo once, so that what is wrong is found before the first step.

        Args:
            held_out: scenes of the training sources that are not trained on; empty ones do not count.
            data_dir: folder of the prepared sets that the recipe names.
            limits: values that count in pictures of a kind, if they differ from those of their set.

        Raises:
            DataError: a benchmark is missing, damaged or incomplete, or the folder holds no photos.
            ImageError: a photo cannot be read.
            RecipeError: named benchmarks without the folder of their data.
        """
        self._config, self._device, self._modality, self._limits = config, device, modality, limits
        self._sets: list[_Set] = []
        self._held_out: list[Source] = []
        if paths.benchmark_dir is not None:
            self._add("", open_folder_benchmark(paths.benchmark_dir, modality), 0)
        for source in held_out:
            if len(source):
                self._add_source(f"held_out_{source.name}", source, config.num_images or MOST_HELD_OUT)
        for name, count in config.sources.items():
            assert data_dir is not None
            self._add_source(name, Source(name, data_dir), count)
        if config.benchmarks and paths.benchmark_data_dir is None:
            raise RecipeError(
                f"validation.benchmarks names {', '.join(config.benchmarks)}; give the folder of their data with "
                "--benchmark-data, or validate on scenes of your own with --set validation.benchmarks=[]"
            )
        for name in config.benchmarks:
            assert paths.benchmark_data_dir is not None
            benchmark = open_benchmark(name, paths.benchmark_data_dir)
            if (measured := benchmark.row.modality.name) != modality.name:
                raise RecipeError(
                    f"validation.benchmarks: {name} measures {measured}, not {modality.name}; leave it out"
                )
            self._add(name, benchmark, config.num_images)
        self._photos: list[Path] = []
        if paths.photos_dir is not None:
            if paths.photos_dir.is_dir():
                self._photos = sorted(p for p in paths.photos_dir.iterdir() if p.suffix.lower() in SUFFIXES)
            if not self._photos:
                raise DataError(f"{paths.photos_dir} holds no photos ({', '.join(SUFFIXES)}); give another --photos")
        for photo in self._photos:
            _read_photo(photo)

    def _add(self, name: str, benchmark: Benchmark, count: int, keys: frozenset[str] | None = None) -> None:
        entries = [entry for entry in benchmark.entries if keys is None or entry.name in keys]
        self._sets.append(_Set(name, benchmark, [entries[number] for number in _spread(len(entries), count)]))

    def _add_source(self, name: str, source: Source, count: int) -> None:
        """Add a prepared set. If `source` is only a part of the set, only its samples count."""
        benchmark = open_folder_benchmark(source.folder, self._modality)
        if self._limits is not None:
            farthest = {kind: self._limits(kind, source)[1] for kind in set(source.kinds)}
            benchmark.row = replace(benchmark.row, max_value_by_kind=farthest)
        self._add(name, benchmark, count, frozenset(source.keys))
        self._held_out.append(source)

    @property
    def main_score(self) -> tuple[str, bool] | None:
        """Name of the score that chooses the best checkpoint, the first of the first set; whether higher is better."""
        if not self._sets:
            return None
        metric = self._modality.headline_metrics[0]
        scores = [score for protocol in self._modality.protocols.values() for score in protocol.scores]
        higher = any(score.name == metric and score.higher_is_better for score in scores)
        return _label(self._sets[0].name, "all", metric), higher

    @property
    def described(self) -> list[str]:
        """Name and number of images of each set."""
        return [f"{one.name or 'the folder'}: {len(one.entries)} images" for one in self._sets]

    @property
    def photos(self) -> list[str]:
        """Names of the photos whose maps are shown."""
        return [photo.name for photo in self._photos]

    def loss_samples(self) -> list[tuple[Source, int]]:
        """Samples of held-out scenes for the validation loss, evenly spread."""
        samples = [(source, index) for source in self._held_out for index in range(len(source))]
        return [samples[number] for number in _spread(len(samples), MOST_LOSS_SAMPLES)]

    def scores(self, checkpoint: Path) -> dict[str, float]:
        """Metrics of a checkpoint: `<kind>_<metric>` of the folder, `<name>_<metric>` of other sets."""
        if not self._sets:
            return {}
        found: dict[str, float] = {}
        estimator = self._estimator(checkpoint)
        for one in self._sets:
            kinds = score_benchmark(one.benchmark, estimator, entries=one.entries).kinds
            for kind, score in kinds.items():
                if one.name and len(kinds) == 2 and kind != "all":
                    continue  # the only kind, so the same numbers again
                for metric in self._modality.headline_metrics:
                    found[_label(one.name, kind, metric)] = score.metrics[metric]
        return {**found, **self._of_baseline}

    @cached_property
    def _of_baseline(self) -> dict[str, float]:
        """The main score of a baseline that does not look at the photo; a model has to be better."""
        baselines, main = baseline_estimators(self._modality), self.main_score
        if not baselines or main is None:
            return {}
        name, baseline = next(iter(baselines.items()))
        metric = self._modality.headline_metrics[0]
        report = score_benchmark(self._sets[0].benchmark, baseline, entries=self._sets[0].entries)
        return {f"{main[0]}_of_{name}": report.kinds["all"].metrics[metric]}

    def estimated_s(self, checkpoint: Path) -> float:
        """About how long `scores` takes [s], by one image of each set."""
        if not self._sets:
            return 0.0
        estimator, seconds = self._estimator(checkpoint), 0.0
        for one in self._sets:
            started = time.monotonic()
            score_benchmark(one.benchmark, estimator, entries=one.entries[:1])
            seconds += (time.monotonic() - started) * len(one.entries)
        return seconds

    def _settings(self) -> dict[str, Any]:
        config = self._config
        return {
            "seed": config.seed,
            "num_inference_steps": config.num_inference_steps,
            "timestep_spacing": config.spacing,
        }

    def _estimator(self, checkpoint: Path) -> Estimator:
        return predictor_estimator(
            Predictor.load(checkpoint, engine="torch", device=self._device),
            **self._settings(),
            ensemble_size=self._config.ensemble_size,
            processing_resolution=self._config.processing_resolution,
        )

    def pictures(self, checkpoint: Path, folder: Path) -> dict[str, np.ndarray]:
        """Writes each photo next to its maps to `folder`, and returns these pictures (uint8 [h w 3]) by name."""
        found: dict[str, np.ndarray] = {}
        if not self._photos:
            return found
        predictor = Predictor.load(checkpoint, engine="torch", device=self._device)
        folder.mkdir(parents=True, exist_ok=True)
        for photo in self._photos:
            rgb = _read_photo(photo)
            prediction = predictor(rgb, **self._settings())
            maps = {kind.name: prediction.maps[kind.name] for kind in self._modality.maps}
            pair = np.concatenate([rgb, self._modality.picture(maps, COLOR_MAP)], axis=1)
            width = max(1, round(pair.shape[1] * PICTURE_HEIGHT / pair.shape[0]))
            picture = Image.fromarray(pair).resize((width, PICTURE_HEIGHT), Image.Resampling.LANCZOS)
            path = folder / f"{photo.stem}.jpg"
            write_atomically(path, lambda temporary, picture=picture: picture.save(temporary, "JPEG", quality=90))
            found[photo.stem] = np.asarray(picture)
        return found


def _read_photo(path: Path) -> np.ndarray:
    try:
        return read_rgb(path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}; remove it from the folder of --photos, or replace it") from error


def _label(name: str, kind: str, metric: str) -> str:
    label = name if name and kind == "all" else "_".join(part for part in (name, kind) if part)
    return f"{label}_{metric}"


def _spread(total: int, count: int) -> list[int]:
    """`count` of so many numbers, evenly spread; all of them where count is 0 or more than there are."""
    if not 0 < count < total:
        return list(range(total))
    return np.linspace(0, total - 1, count).round().astype(int).tolist()
