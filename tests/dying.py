# SPDX-License-Identifier: Apache-2.0
"""Workers that die in the middle of a unit, for tests of engines; other processes import this module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from openmarigold.batch.shard_files import Entry
from openmarigold.batch.sources import Shard
from openmarigold.batch.worker import ShardWorker
from openmarigold.config import PredictConfig
from openmarigold.data.preparation import RawFrame, RawSample
from openmarigold.data.readers.hypersim import HypersimReader
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.image_run import ImageUnit, Scored, ScoreWorker
from openmarigold.evaluation.specs import EstimatorSpec, predictor_spec


class DyingWorker(ShardWorker):
    """Kills its process while it makes the shard `number`: the first time, or every time."""

    number = 1
    always = False

    def _entries(self, shard: Shard, kept: dict[str, Entry], *, compares: bool) -> Iterator[tuple[Entry, float]]:
        marker = Path(self.folder.address) / "died"
        for place, entry in enumerate(super()._entries(shard, kept, compares=compares)):
            if shard.number == self.number and place == 1 and (self.always or not marker.exists()):
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield entry


class DoomedWorker(DyingWorker):
    """Never makes its shard."""

    always = True


def die_once(marker: Path) -> None:
    """Kills this process, the first time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def opened(folder: Path, config: PredictConfig) -> tuple[Benchmark, EstimatorSpec]:
    """What workers open: a benchmark folder and a model."""
    return open_folder_benchmark(folder), predictor_spec(config, at_once=2)


class DyingScoreWorker(ScoreWorker):
    """Kills its process before it scores the second unit, the first time."""

    marker = Path()

    def make(self, unit: ImageUnit, *, again: bool = False) -> list[Scored | str]:
        if unit.first > 0:
            die_once(self.marker)
        return super().make(unit, again=again)


class DyingIdleWorker:
    """Ends its process in unit 1, the first time, once the file `go` is there; gives units back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> None: ...

    def make(self, unit: int, *, again: bool = False) -> int:
        if unit == 1 and not (self.folder / "died").exists():
            while not (self.folder / "go").exists():
                time.sleep(0.01)
            die_once(self.folder / "died")
        return unit


class DyingOnceReader(HypersimReader):
    """Kills its process while it reads the third frame of a shard, the first time."""

    marker = Path()

    def read(self, frame: RawFrame) -> RawSample:
        if frame.fields["frame"] == 2:
            die_once(self.marker)
        return super().read(frame)
