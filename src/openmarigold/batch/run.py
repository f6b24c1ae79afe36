# SPDX-License-Identifier: Apache-2.0
"""A batch: workers of this machine or of Ray make the missing shards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmarigold import __version__
from openmarigold.addresses import OutputFolder, fingerprint, located
from openmarigold.batch.settings import BatchConfig
from openmarigold.batch.shard_files import STATS_END, ShardStats, is_changed, names_of_maps, read_stats
from openmarigold.batch.sources import Shard, shards_of
from openmarigold.batch.worker import ShardWorker
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.data.units import UnitEngine, local_engine
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.modalities.codes import LARGEST_CODE
from openmarigold.predictor.model_run import ModelRun
from openmarigold.text_files import DamagedTextError, parse_json

FORMAT = "openmarigold-batch-1"
PLAN = "_batch.json"
_AT_ONCE = 16  # requests to the store of finished shards and inputs


@dataclass
class BatchOutcome:
    """What became of the shards of this part."""

    shards: int = 0
    """In all."""
    done_before: int = 0
    photos: int = 0
    """In all shards of this part that are finished."""
    failures: int = 0
    """Photos without maps."""
    failed_by_class: Counter[str] = field(default_factory=Counter)
    predicted: int = 0
    """Photos of the shards that were made now."""
    engine: str | None = None

    def add(self, stats: ShardStats, *, is_new: bool) -> None:
        """Counts a finished shard."""
        self.photos += stats.count
        self.failures += stats.failures
        self.failed_by_class.update(stats.failed_by_class)
        if is_new:
            self.predicted += stats.count
            self.engine = stats.engine
        else:
            self.done_before += 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "failed_by_class": dict(self.failed_by_class)}


@dataclass(frozen=True)
class BatchEvent:
    """Progress: a shard is done, of so many of this part; `note` is for people."""

    done: int
    total: int
    note: str | None = None


def batch_files(
    given: str,
    output: str,
    *,
    config: PredictConfig,
    batch: BatchConfig | None = None,
    engine: UnitEngine | None = None,
    report: Callable[[BatchEvent], object] = lambda event: None,
) -> BatchOutcome:
    """Predicts all photos of an input into shards; those that are finished are kept.

    Args:
        given: folder, photo, pattern, list file, tars or Parquet files, on this machine or at any address of fsspec.
        output: folder of the shards, likewise. It belongs to one input and one set of settings.
        config: the model and its call.
        batch: how photos become shards.
        engine: where shards are made; None: processes of this machine, `batch.workers` of them.
        report: called after each shard.

    Raises:
        InvalidValueError: a setting that is not accepted, or a folder that holds the shards of something else.
        DataError: the input cannot be read.
        OutputError: the folder cannot be written, or workers end by themselves, for example without enough memory.
        CheckpointError: the model cannot be used.
        MissingExtraError: without the extra `batch`.
    """
    batch = batch or BatchConfig()
    if len(config.modality) > 1:
        raise InvalidValueError(
            "a batch predicts one modality; give one, and another output folder for each further one"
        )
    given, output = located(given, "the input"), located(output, "the output folder")
    folder = OutputFolder(output)
    model = ModelRun(config, OutputConfig(format=("png",)), Path())
    model.check()
    shards = shards_of(given, batch, output)
    folder.prepare()
    present = set(folder.names())
    _check_plan(folder, present, _plan(shards, batch, model))
    turn, parts = batch.turn
    mine = [shard for shard in shards if shard.number % parts == turn]
    outcome = BatchOutcome(shards=len(mine))
    to_do, to_do_again = _open_shards(mine, folder, present, batch, outcome)
    worker = ShardWorker(config, batch, folder.address)
    make = engine or local_engine(batch.workers)
    done = outcome.done_before
    for again, chosen in ((False, to_do), (True, to_do_again)):
        for shard, stats in make(worker, chosen, again=again) if chosen else ():
            done += 1
            outcome.add(stats, is_new=True)
            failed = f", {stats.failures} failed" if stats.failures else ""
            report(BatchEvent(done, len(mine), f"shard {shard.stem}: {stats.count} photos{failed}"))
    return outcome


def _open_shards(
    shards: Sequence[Shard], folder: OutputFolder, present: set[str], batch: BatchConfig, outcome: BatchOutcome
) -> tuple[list[Shard], list[Shard]]:
    """Missing shards, and shards with photos that must be done again; the others are counted.

    Raises:
        InvalidValueError: a shard was made of another file than the one that is there now, without `batch.retry`.
    """
    missing = [shard for shard in shards if f"{shard.stem}{STATS_END}" not in present]
    finished = [shard for shard in shards if f"{shard.stem}{STATS_END}" in present]
    files = list(dict.fromkeys(shard.source.file for shard in finished if shard.source.file is not None))
    again = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        now = dict(zip(files, pool.map(fingerprint, files), strict=True))
        known = pool.map(lambda shard: read_stats(folder, shard.stem), finished)
    for shard, stats in zip(finished, known, strict=True):
        is_other = shard.source.file is not None and is_changed(stats, now[shard.source.file])
        if is_other and not batch.retry:
            raise InvalidValueError(
                f"{shard.source.file} has changed since {folder.address}/{shard.stem} was made of it; do its changed "
                "photos again with --retry, or choose another folder"
            )
        if batch.retry and (stats.failures or is_other):
            again.append(shard)
        else:
            outcome.add(stats, is_new=False)
    return missing, again


def _plan(shards: Sequence[Shard], batch: BatchConfig, model: ModelRun) -> dict[str, Any]:
    """What the shards of a folder depend on."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(repr(shard).encode())
    return {
        "format": FORMAT,
        "software": f"openmarigold {__version__}",
        "shards": len(shards),
        "inputs_sha256": digest.hexdigest(),
        "files": batch.format,
        "modality": model.writes.name,
        "maps": names_of_maps(model.checkpoint, model.config),
        "encoding": f"16-bit PNG, value = lo + code / {LARGEST_CODE} * (hi - lo); lo and hi of each map in its record",
        "settings": {name: value for name, value in model.request.items() if name != "color_map"},
    }


def _check_plan(folder: OutputFolder, present: set[str], plan: dict[str, Any]) -> None:
    """Writes the plan, or compares it with the one that is there.

    Raises:
        InvalidValueError: the folder belongs to something else.
    """
    text = json.dumps(plan, indent=1, default=str)
    if PLAN not in present:
        folder.write(PLAN, lambda path: path.write_text(text, encoding="utf-8"))
        return
    try:
        found = parse_json(folder.read(PLAN))
    except DamagedTextError as error:
        raise OutputError(f"{folder.address}/{PLAN} is damaged; choose another folder") from error
    wanted = parse_json(text)
    differing = [name for name in wanted if name != "software" and found.get(name) != wanted[name]]
    if differing:
        told = ", ".join("the input files" if name == "inputs_sha256" else name for name in differing)
        raise InvalidValueError(
            f"{folder.address} holds shards that differ in {told}; choose another folder, or give the same input and "
            "settings"
        )
