# SPDX-License-Identifier: Apache-2.0
"""How one image of a run is scored, and under which key its scores are kept.

Images are also units of work for engines: processes of this machine, or Ray's actors. Workers return scores; only the
program that started them writes files. So a run can continue on any engine.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Container, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmarigold.data.units import UnitEngine
from openmarigold.errors import InvalidValueError, OpenMarigoldError, OutputError
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmark_readers import Entry
from openmarigold.evaluation.estimators import MapEstimator, SavedPredictions, estimate_sample
from openmarigold.evaluation.report import version_of
from openmarigold.evaluation.scoring import Measured, Predicted, align_sample, choose_protocol, measure_sample
from openmarigold.evaluation.specs import EstimatorSpec
from openmarigold.modalities.protocol import BenchmarkSample, Maps, Protocol

MAX_BEYOND = 0.01
"""Share of an image's valid pixels beyond the range to which predictions are clipped; of more, the user is told."""


@dataclass(frozen=True)
class Scored:
    """An image's key and the hash of its files; its scores, or None where the key was known."""

    key: str
    input_hash: str
    found: Measured | None
    is_beyond: bool = False
    """Whether much of it lies beyond the range of its kind, and another kind has a larger range."""


class ImageRun:
    """How one image is scored, and seen again for the page; from any thread, the estimator sees one photo at a time."""

    def __init__(self, benchmark: Benchmark, spec: EstimatorSpec, protocol: Protocol) -> None:
        self.benchmark, self.spec, self.protocol = benchmark, spec, protocol
        self._entries = {entry.name: entry for entry in benchmark.entries}
        self.load_error: BaseException | None = None
        self._estimator: MapEstimator | SavedPredictions | None = None
        self._lock = threading.Lock()
        self._context = json.dumps(
            {
                "benchmark": benchmark.row.name,
                **({"given": dict(benchmark.row.given_facts)} if benchmark.row.reveal else {}),
                "protocol": protocol.name,
                "estimator": spec.name,
                "settings": dict(spec.settings),
                "version": version_of("openmarigold"),
            },
            sort_keys=True,
            default=str,
        )

    @classmethod
    def of(cls, benchmark: Benchmark, spec: EstimatorSpec, protocol: str | None) -> ImageRun:
        """The run by a protocol of a name; None: the benchmark's own, or the modality's default.

        Raises:
            InvalidValueError: there is none of that name, or it does not fit the estimator.
        """
        row = benchmark.row
        chosen = choose_protocol(row.modality, protocol or row.protocol, spec.invariance)
        return cls(benchmark, spec, chosen.with_seams() if spec.has_seams else chosen)

    def check_predictions(self) -> None:
        """Checks that no saved prediction would be scored for two images. Raises a DataError."""
        saved = self._saved_predictions()
        if saved is not None:
            saved.check_names(self._entries)

    def scored(self, entry: Entry, known: Container[str] = ()) -> Scored:
        """Scores of an image whose key is not `known`.

        Raises:
            OpenMarigoldError: it cannot be scored; with `load_error` no image can.
        """
        files = self.benchmark.files(entry)
        input_hash = self.benchmark.hash_of(files)
        row = self.benchmark.row
        parts = [self._context, entry.name, str(entry.kind), input_hash]
        if (limit := row.max_value_of(entry.kind)) != row.max_value:
            parts.append(f"{limit:g}")
        saved = self._saved_predictions()
        if saved is not None:
            parts.append(saved.hash_of(entry.name))
        key = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
        if key in known:
            return Scored(key, input_hash, None)
        sample = self.benchmark.sample(entry, files)
        predicted, space = self._predict(sample), self.spec.invariance
        found = measure_sample(sample, predicted, self.protocol, space, band=self.spec.band)
        return Scored(key, input_hash, found, self._is_beyond(sample))

    def _is_beyond(self, sample: BenchmarkSample) -> bool:
        limits = self.benchmark.row.max_value_by_kind
        if not self.protocol.clips or sample.max_value >= max(limits.values(), default=-np.inf):
            return False
        far = np.logical_or.reduce([values > sample.max_value for values in sample.maps.values()])
        valid = sample.valid_mask
        return bool(np.count_nonzero(far & valid) > MAX_BEYOND * np.count_nonzero(valid))

    def attempt(self, entry: Entry, known: Container[str] = ()) -> Scored | str:
        """The result of `scored`, or why the image cannot be scored. Raises errors that concern all images, such as a
        missing model.
        """
        try:
            return self.scored(entry, known)
        except OpenMarigoldError as error:
            if self.load_error or isinstance(error, OutputError):
                raise
            return str(error)

    def aligned(self, name: str) -> tuple[BenchmarkSample, Maps]:
        """An image and its aligned prediction."""
        sample = self.benchmark.sample(self._entries[name])
        return sample, align_sample(sample, self._predict(sample), self.protocol, self.spec.invariance)[0]

    def _saved_predictions(self) -> SavedPredictions | None:
        """The estimator, where it is saved predictions; a model is not loaded for this."""
        if "predictions" not in self.spec.settings:
            return None
        estimator = self._load()
        return estimator if isinstance(estimator, SavedPredictions) else None

    def _load(self) -> MapEstimator | SavedPredictions:
        with self._lock:
            if self.load_error is not None:  # other threads waited for the first attempt and need no second one
                raise self.load_error
            if self._estimator is None:
                try:
                    self._estimator = self.spec.load()
                except BaseException as error:
                    self.load_error = error
                    raise
            return self._estimator

    def _predict(self, sample: BenchmarkSample) -> Predicted:
        estimator = self._load()
        if isinstance(estimator, SavedPredictions):
            return estimator.read(sample.name)
        with self._lock:
            return estimate_sample(estimator, sample)


IMAGES_PER_UNIT = 16
"""Most images that must be scored again after a worker dies."""


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
        """The result of each image of the unit: scores, or the reason why there are none.

        Raises:
            CheckpointError: the model cannot be loaded.
            OutputError: a temporary file cannot be written.
        """
        run = self.load()
        return [run.attempt(entry, unit.known) for entry in run.benchmark.entries[unit.first : unit.end]]


def scored_elsewhere(
    benchmark: Benchmark, elsewhere: Elsewhere, protocol: str, known: Callable[[str], Sequence[str]]
) -> Generator[tuple[int, Scored | str], None, None]:
    """The result of each image, with its place; in any order.

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
