# SPDX-License-Identifier: Apache-2.0
"""Units of work done by the actors of Ray Data: on this machine, or on a cluster."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from openmarigold.data.units import UnitWorker
from openmarigold.errors import OpenMarigoldError, OutputError, needs_extra, one_line

_CPUS = 0.9
"""Cores of an actor. Ray Data needs a part of one for itself: as many actors of 1 as there are cores wait forever."""


class UnitActor:
    """A class for `Dataset.map_batches`: loads the worker when it is made, and does the units of its batches."""

    def __init__(self, worker: UnitWorker, again: bool) -> None:
        """`again` as in `UnitWorker.make`."""
        self.worker, self.again = worker, again
        worker.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The column `unit` holds pickled units of this program; `made` what became of them, pickled."""
        made = [pickle.dumps(self.worker.make(pickle.loads(unit), again=self.again)) for unit in batch["unit"]]
        return {"number": batch["number"], "made": made}


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Where a batch makes its shards (`run.batch_files`), and where images and training data are worked on."""

    address: str = "auto"
    """Address of the cluster; "auto": the running one; "local": a new one on this machine, which ends with the run."""
    workers: int = 1
    """Actors, at most; Ray adds them while units wait."""
    gpus_per_worker: float = 0.0
    """Shares of a GPU, such as 1 or 0.5."""

    def __call__(self, worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        """Does units, in any order; an actor that dies is replaced, and its unit is done again.

        Raises:
            OutputError: the cluster cannot be reached, or fails. Errors of the worker are raised as they are.
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
            rows = [{"number": number, "unit": pickle.dumps(unit)} for number, unit in enumerate(units)]
            made = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                UnitActor,
                fn_constructor_args=(worker, again),
                batch_size=1,
                compute=data.ActorPoolStrategy(min_size=1, max_size=self.workers, max_tasks_in_flight_per_actor=2),
                num_cpus=_CPUS,
                num_gpus=self.gpus_per_worker or None,
            )
            for row in made.iter_rows():
                yield units[row["number"]], pickle.loads(row["made"])
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
    return OutputError(f"Ray did not finish: {one_line(error)}; what is finished is kept, the next run does the rest")
