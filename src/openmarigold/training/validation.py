# SPDX-License-Identifier: Apache-2.0
"""Scores and pictures of a model in training, by the same `Predictor` and protocols that users call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from openmarigold.errors import DataError, RecipeError
from openmarigold.evaluation import predictor_estimator, score_benchmark
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmarks import open_benchmark, open_folder_benchmark
from openmarigold.files import write_atomically
from openmarigold.images.photo import read_rgb
from openmarigold.modalities.modality import Modality
from openmarigold.predictor import Predictor
from openmarigold.training.recipe import ValidationConfig

PICTURE_HEIGHT = 240
COLOR_MAP = "Spectral"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class ValidationPaths:
    """Folders of benchmarks and photos; None leaves one out."""

    benchmark_dir: Path | None = None
    """A benchmark folder in the generic layout."""
    benchmark_data_dir: Path | None = None
    """Folder of the named benchmarks of the recipe."""
    photos_dir: Path | None = None
    """Photos whose predicted maps are written as pictures."""


class Validation:
    """Scores checkpoints at fixed seeds on fixed images, and shows the maps of fixed photos."""

    def __init__(self, config: ValidationConfig, paths: ValidationPaths, *, device: str, modality: Modality) -> None:
        """Open the benchmarks and list the photos, so that a wrong folder is found before the first step.

        Raises:
            DataError: a benchmark is missing, damaged or incomplete, or the folder holds no photos.
            RecipeError: named benchmarks without the folder of their data.
        """
        self._config, self._device, self._modality = config, device, modality
        self._benchmarks: dict[str, Benchmark] = {}
        if paths.benchmark_dir is not None:
            self._benchmarks[""] = open_folder_benchmark(paths.benchmark_dir, modality)
        if config.benchmarks and paths.benchmark_data_dir is None:
            raise RecipeError(
                f"validation.benchmarks names {', '.join(config.benchmarks)}; give the folder of their data with "
                "--benchmark-data"
            )
        for name in config.benchmarks:
            assert paths.benchmark_data_dir is not None
            self._benchmarks[name] = open_benchmark(name, paths.benchmark_data_dir)
            if (measured := self._benchmarks[name].row.modality.name) != modality.name:
                raise RecipeError(
                    f"validation.benchmarks: {name} measures {measured}, not {modality.name}; leave it out"
                )
        self._photos: list[Path] = []
        if paths.photos_dir is not None:
            if paths.photos_dir.is_dir():
                self._photos = sorted(p for p in paths.photos_dir.iterdir() if p.suffix.lower() in SUFFIXES)
            if not self._photos:
                raise DataError(f"{paths.photos_dir} holds no photos ({', '.join(SUFFIXES)}); give another --photos")

    def scores(self, checkpoint: Path) -> dict[str, float]:
        """Metrics of a checkpoint: `<kind>_<metric>` of the folder, `<name>_<metric>` of a named benchmark."""
        found: dict[str, float] = {}
        if not self._benchmarks:
            return found
        config = self._config
        estimator = predictor_estimator(
            Predictor.load(checkpoint, engine="torch", device=self._device),
            seed=config.seed,
            num_inference_steps=config.num_inference_steps,
            processing_resolution=config.processing_resolution,
        )
        for name, benchmark in self._benchmarks.items():
            entries = benchmark.entries
            if name and 0 < config.num_images < len(entries):
                chosen = np.linspace(0, len(entries) - 1, config.num_images).round().astype(int)
                entries = [entries[number] for number in chosen]
            kinds = score_benchmark(benchmark, estimator, entries=entries).kinds
            for kind, score in kinds.items():
                label = name if name and kind == "all" else "_".join(part for part in (name, kind) if part)
                found |= {f"{label}_{metric}": score.metrics[metric] for metric in self._modality.headline_metrics}
        return found

    def pictures(self, checkpoint: Path, folder: Path) -> dict[str, np.ndarray]:
        """Writes each photo next to its maps to `folder`, and returns these pictures (uint8 [h w 3]) by name."""
        found: dict[str, np.ndarray] = {}
        if not self._photos:
            return found
        predictor = Predictor.load(checkpoint, engine="torch", device=self._device)
        folder.mkdir(parents=True, exist_ok=True)
        for photo in self._photos:
            rgb = read_rgb(photo)
            prediction = predictor(rgb, seed=self._config.seed, num_inference_steps=self._config.num_inference_steps)
            maps = {kind.name: prediction.maps[kind.name] for kind in self._modality.maps}
            pair = np.concatenate([rgb, self._modality.picture(maps, COLOR_MAP)], axis=1)
            width = max(1, round(pair.shape[1] * PICTURE_HEIGHT / pair.shape[0]))
            picture = Image.fromarray(pair).resize((width, PICTURE_HEIGHT), Image.Resampling.LANCZOS)
            path = folder / f"{photo.stem}.jpg"
            write_atomically(path, lambda temporary, picture=picture: picture.save(temporary, "JPEG", quality=90))
            found[photo.stem] = np.asarray(picture)
        return found
