# SPDX-License-Identifier: Apache-2.0
"""Training views: which sample, which part of it; a function of the given generator alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from openmarigold.data.augmentation import random_view
from openmarigold.data.sources import Sample, Source
from openmarigold.errors import RecipeError
from openmarigold.training.recipe import DataConfig


class Mixture:
    """Draws views from several sources with given shares."""

    def __init__(self, config: DataConfig, *, data_dir: Path) -> None:
        self._config = config
        self.sources = [Source(name, data_dir) for name in config.sources]
        shares = np.array(list(config.sources.values()))
        kinds = {kind for source in self.sources for kind in source.kinds}
        for name in ("max_depth", "kind_weights"):
            unknown = sorted(getattr(config, name).keys() - kinds)
            if unknown:
                raise RecipeError(
                    f"data.{name}: there is no kind {unknown[0]!r}; the data has {', '.join(sorted(kinds))}"
                )
        self._cumulative = np.cumsum(shares / shares.sum())

    @property
    def contents(self) -> str:
        """Changes when the data is made again or another source comes first."""
        return " ".join(f"{source.name}:{source.contents}" for source in self.sources)

    def view(self, rng: np.random.Generator) -> Sample:
        """A view of a random sample of a random source."""
        chosen = min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(self.sources) - 1)
        source = self.sources[chosen]
        return self.vary(source.read(int(rng.integers(len(source)))), rng)

    def vary(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A random view of `sample`, with depths beyond the recipe's limit for its kind set to 0."""
        config = self._config
        limit = config.max_depth.get(sample.kind)
        if sample.depth is not None and limit is not None:
            sample = dataclasses.replace(sample, depth=np.where(sample.depth < limit, sample.depth, np.float32(0)))
        return random_view(
            sample, rng, size=config.size, min_scale=config.min_scale, aspect_jitter=config.aspect_jitter
        )
