# SPDX-License-Identifier: Apache-2.0
"""`openmarigold batch`: predict very many photos into shards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from openmarigold.batch.settings import BatchConfig
from openmarigold.cli.engines import OnRay, ray_engine
from openmarigold.cli.terminal import EXIT_SOME_FAILED, print_json, progress_bar, say
from openmarigold.config import PredictConfig


@dataclass(frozen=True, kw_only=True)
class Batch(OnRay):
    """Predict very many photos into shards (extra `batch`). `--help-all` lists the rare settings too.

    Writes NNNNN.tar (maps as 16-bit PNG), NNNNN.parquet (a record of each photo), NNNNN_stats.json. A shard with
    statistics is complete; the same command makes the others. Exit status: 0 all done, 1 some photos failed, 2 an
    error, 130 interrupted.
    """

    GROUPS: ClassVar[Mapping[str, type]] = {"config": PredictConfig, "batch": BatchConfig}
    COMMON: ClassVar[frozenset[str]] = frozenset({"shard_size", "workers", "part", "retry", "format"})

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IN", help_behavior_hint="")]
    """Folder, pattern such as "tars/{000..123}.tar", list file (.txt), tar or Parquet file; a path or an address."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT", help_behavior_hint="")]
    """Folder of the shards, a path or an address."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """TOML file with settings; flags override it."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a summary as JSON."""
    batch: tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[BatchConfig]] = field(default_factory=BatchConfig)
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_batch(command: Batch) -> int:
    """Predicts, prints a summary, and returns the exit status."""
    from openmarigold.batch.run import BatchEvent, batch_files

    engine = ray_engine(command.ray, workers=command.batch.workers, gpus_per_worker=command.gpus_per_worker)
    started = time.perf_counter()
    with progress_bar("shards") as (advance, note):

        def report(event: BatchEvent) -> None:
            if event.note is not None:
                note(event.note)
            advance(event.done, event.total)

        outcome = batch_files(
            command.source,
            command.output,
            config=command.config,
            batch=command.batch,
            engine=engine,
            report=report,
        )
    total_s = time.perf_counter() - started
    if command.json:
        print_json({**outcome.to_dict(), "total_s": round(total_s, 3)})
    else:
        rate = f", {outcome.predicted / total_s:.1f} photos a second" if outcome.predicted else ""
        say(
            f"{outcome.shards} shards ({outcome.done_before} done before), {outcome.photos} photos, {outcome.failures} "
            f"failed, in {total_s:.2f} s{rate} -> {command.output}"
        )
    return EXIT_SOME_FAILED if outcome.failures else 0
