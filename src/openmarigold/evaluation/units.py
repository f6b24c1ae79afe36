# SPDX-License-Identifier: Apache-2.0
"""Images of a benchmark as units of work for engines: processes of this machine, or Ray's actors.

Workers give scores back; the program that started them alone writes, so that a run goes on wherever it is continued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from openmarigold.data.units import UnitEngine
from openmarigold.errors import InvalidValueError
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmark_readers import Entry
from openmarigold.evaluation.image_run import ImageRun, Scored
from openmarigold.evaluation.specs import EstimatorSpec

IMAGES_PER_UNIT = 16
"""What a worker that dies has to do again, at most."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Workers in other processes that score images.

    Attributes:
        engine: where they are.
        opened: gives the benchmark and the estimator. It is pickled and called in every worker.
        images_per_unit: images that a worker takes at once.
    """

    engine: UnitEngine
    opened: Callable[[], tuple[Benchmark, EstimatorSpec]]
    images_per_unit: int = IMAGES_PER_UNIT


@dataclass(frozen=True)
class ImageUnit:
    """Some images of a benchmark, in its order; `known` are the keys of scores that they have already."""

    first: int
    end: int
    known: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"the scores of images {self.first + 1} to {self.end}"


class ScoreWorker:
    """Scores images. It can be pickled: benchmark and model are opened where the first ones are scored."""

    def __init__(
        self, opened: Callable[[], tuple[Benchmark, EstimatorSpec]], protocol: str | None, names_sha256: str
    ) -> None:
        """`names_sha256` is the hash of the images' names (`hash_of_names`), which must be the same everywhere."""
        self.opened, self.protocol, self.names_sha256 = opened, protocol, names_sha256
        self._run: ImageRun | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": None}

    def load(self) -> ImageRun:
        """The benchmark, opened, and how its images are scored; the model is loaded with the first image.

        Raises:
            DataError: the benchmark cannot be read here.
            InvalidValueError: it has other images here.
        """
        if self._run is None:
            benchmark, spec = self.opened()
            if hash_of_names(benchmark.entries) != self.names_sha256:
                raise InvalidValueError(
                    f"{benchmark.archive.location} holds other images for a worker than for the program that started "
                    "it; give a folder that all machines share"
                )
            self._run = ImageRun.of(benchmark, spec, self.protocol)
        return self._run

    def make(self, unit: ImageUnit, *, again: bool = False) -> list[Scored | str]:
        """What became of each image of the unit: scores, or why there are none.

        Raises:
            CheckpointError: the model cannot be loaded.
            OutputError: a temporary file cannot be written.
        """
        run = self.load()
        return [run.attempt(entry, unit.known) for entry in run.benchmark.entries[unit.first : unit.end]]


def scored_elsewhere(
    benchmark: Benchmark, elsewhere: Elsewhere, protocol: str, known: Callable[[str], Sequence[str]]
) -> Generator[tuple[int, Scored | str], None, None]:
    """What became of each image, by its place, in any order.

    Args:
        benchmark: whose images are scored.
        elsewhere: who scores them.
        protocol: its name.
        known: the keys of scores that an image has from earlier runs, by its name.

    Raises:
        OutputError: workers ended by themselves, again and again.
        CheckpointError: the model cannot be loaded.
    """
    entries, step = benchmark.entries, elsewhere.images_per_unit
    units = [
        ImageUnit(
            first,
            min(first + step, len(entries)),
            frozenset(key for entry in entries[first : first + step] for key in known(entry.name)),
        )
        for first in range(0, len(entries), step)
    ]
    worker = ScoreWorker(elsewhere.opened, protocol, hash_of_names(entries))
    for unit, made in elsewhere.engine(worker, units, again=False):
        yield from enumerate(made, start=unit.first)


def hash_of_names(entries: Sequence[Entry]) -> str:
    """SHA-256 over the names of images in their order."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
