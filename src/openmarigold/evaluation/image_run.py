# SPDX-License-Identifier: Apache-2.0
"""How one image of a run is scored, and under which key its scores are kept."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Container
from dataclasses import dataclass

from openmarigold.errors import OpenMarigoldError, OutputError
from openmarigold.evaluation.benchmark import Benchmark, hash_of_files
from openmarigold.evaluation.benchmark_readers import Entry
from openmarigold.evaluation.estimators import MapEstimator, SavedPredictions, estimate_sample
from openmarigold.evaluation.machine import version_of
from openmarigold.evaluation.scoring import Measured, Predicted, align_sample, choose_protocol, measure_sample
from openmarigold.evaluation.specs import EstimatorSpec
from openmarigold.modalities.protocol import BenchmarkSample, Maps, Protocol


@dataclass(frozen=True)
class Scored:
    """An image's key and the hash of its files; its scores, or None where the key was known."""

    key: str
    input_hash: str
    found: Measured | None


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

    def scored(self, entry: Entry, known: Container[str] = ()) -> Scored:
        """Scores of an image whose key is not `known`.

        Raises:
            OpenMarigoldError: it cannot be scored; with `load_error` no image can.
        """
        files = self.benchmark.files(entry)
        input_hash = hash_of_files(files)
        parts = [self._context, entry.name, str(entry.kind), input_hash]  # the kind sets the range
        saved = self._saved_predictions()
        if saved is not None:
            parts.append(saved.hash_of(entry.name))
        key = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
        if key in known:
            return Scored(key, input_hash, None)
        sample = self.benchmark.sample(entry, files)
        predicted, space = self._predict(sample), self.spec.invariance
        found = measure_sample(sample, predicted, self.protocol, space, band=self.spec.band)
        return Scored(key, input_hash, found)

    def attempt(self, entry: Entry, known: Container[str] = ()) -> Scored | str:
        """`scored`, or why the image cannot be scored. Raises what concerns all images, such as a missing model."""
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
            if self.load_error is not None:  # the threads that waited for the first attempt need no other
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
