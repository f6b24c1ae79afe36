# SPDX-License-Identifier: Apache-2.0
"""Shards made by the actors of Ray Data: on this machine, or on a cluster."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from openmarigold.batch.shard_files import ShardStats
from openmarigold.batch.sources import Shard
from openmarigold.batch.worker import ShardWorker
from openmarigold.errors import OpenMarigoldError, OutputError, needs_extra, one_line

_CPUS = 0.9
"""Of an actor. Ray Data needs a part of a core for itself: as many actors of 1 as there are cores wait forever."""


class ShardActor:
    """A class for `Dataset.map_batches`: loads the model when it is made, and makes the shards of its batches."""

    def __init__(self, worker: ShardWorker, again: bool) -> None:
        """`again` as in `ShardWorker.make`."""
        self.worker, self.again = worker, again
        worker.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The column `shard` holds pickled shards of this program; `stats` their statistics, pickled."""
        made = [pickle.dumps(self.worker.make(pickle.loads(shard), again=self.again)) for shard in batch["shard"]]
        return {"number": batch["number"], "stats": made}


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Where a batch makes its shards: see `run.batch_files`."""

    address: str = "auto"
    """Of the cluster; "auto": the one that is running; "local": a new one on this machine, which ends with the run."""
    workers: int = 1
    """Actors, at most; Ray adds them while shards wait."""
    gpus_per_worker: float = 0.0
    """Shares of a GPU, such as 1 or 0.5."""

    def __call__(
        self, worker: ShardWorker, shards: Sequence[Shard], *, again: bool
    ) -> Iterator[tuple[Shard, ShardStats]]:
        """Makes shards; an actor that dies is replaced, and its shard is made again.

        Raises:
            OutputError: the cluster cannot be reached, or gives up; otherwise as `ShardWorker.make`.
            MissingExtraError: without the extra `ray`.
        """
        with needs_extra("ray"):
            ray, data, errors = (import_module(name) for name in ("ray", "ray.data", "ray.exceptions"))
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        starts = not ray.is_initialized()
        try:
            if starts:
                ray.init(
                    address=None if self.address == "local" else self.address,
                    log_to_driver=False,
                    configure_logging=False,
                    include_dashboard=False if self.address == "local" else None,
                )
            data.DataContext.get_current().enable_progress_bars = False
            data.DataContext.get_current().print_on_execution_start = False
            rows = [{"number": number, "shard": pickle.dumps(shard)} for number, shard in enumerate(shards)]
            made = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                ShardActor,
                fn_constructor_args=(worker, again),
                batch_size=1,
                compute=data.ActorPoolStrategy(min_size=1, max_size=self.workers, max_tasks_in_flight_per_actor=2),
                num_cpus=_CPUS,
                num_gpus=self.gpus_per_worker or None,
            )
            for row in made.iter_rows():
                yield shards[row["number"]], pickle.loads(row["stats"])
        except OpenMarigoldError:
            raise
        except (errors.RayError, ConnectionError, RuntimeError, ValueError) as error:
            raise _told(error) from error
        finally:
            if starts:
                ray.shutdown()


def _told(error: BaseException) -> OpenMarigoldError:
    """Our own error of an actor, where one is the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OpenMarigoldError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return OutputError(
        f"Ray did not finish: {one_line(error)}; finished shards are kept, the next run makes the others"
    )
