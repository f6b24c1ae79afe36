# SPDX-License-Identifier: Apache-2.0
"""Where units of work are done on this machine: in this process, or in several. `ray_engine` has the one for clusters.

A unit is a shard of a batch, some images of a benchmark, or a shard of training data.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from openmarigold.data.units import UnitEngine, UnitWorker
from openmarigold.errors import OpenMarigoldError, OutputError

_MOST_DEATHS = 3
"""Of workers that were doing one unit."""


def local_engine(workers: int) -> UnitEngine:
    """The engine for so many processes of this machine; 1: this one."""
    return ProcessEngine(workers=workers) if workers > 1 else in_this_process


def in_this_process(worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
    """Does units one after another. Raises what the worker raises."""
    for unit in units:
        yield unit, worker.make(unit, again=again)


@dataclass(frozen=True, kw_only=True)
class ProcessEngine:
    """A pool of processes. What a worker that dies was doing is done again by another."""

    workers: int

    def __call__(self, worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        """Does units, in any order; one may have a `label`, which messages name.

        Raises:
            OutputError: one unit ended several workers; otherwise what the worker raises.
        """
        waiting = list(reversed(range(len(units))))
        deaths: Counter[int] = Counter()
        while waiting:
            pool = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(worker,),
            )
            running: dict[Future[Any], int] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        future = pool.submit(_make, units[waiting[-1]], again)  # raises where a worker has died
                        running[future] = waiting.pop()
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        place = running[future]
                        result = future.result()
                        del running[future]
                        yield units[place], result
            except BrokenProcessPool as error:
                lost = list(running.values())
                deaths.update(lost)
                waiting += lost
                worst = max(lost, key=lambda place: deaths[place], default=None)
                if worst is not None and deaths[worst] >= _MOST_DEATHS:
                    raise OutputError(
                        f"workers ended by themselves {_MOST_DEATHS} times while making "
                        f"{getattr(units[worst], 'label', worst)}, perhaps for want of memory; try fewer workers, or a "
                        "smaller processing_resolution"
                    ) from error
            finally:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)


_worker: UnitWorker | None = None


def _begin(worker: UnitWorker) -> None:
    """In a new process: an interrupt is for the first process, which ends this one; it does not outlive that."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = worker


def _end_with_parent() -> None:
    """Ends this process when the first one was killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _make(unit: Any, again: bool) -> Any:
    if _worker is None:
        raise OpenMarigoldError("the worker has not begun")
    return _worker.make(unit, again=again)
