# SPDX-License-Identifier: Apache-2.0
"""Units of work, each of which becomes a shard, in this process, in several, or by an engine (Ray)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from openmarigold.errors import OpenMarigoldError

_POLL_S = 0.2


@runtime_checkable
class UnitTask(Protocol):
    """What is done with each unit; pickled for other processes, so it holds no open files."""

    def run(self, unit: Any, tick: Callable[[], None]) -> None:
        """Does one unit whole, and calls `tick` after each of its frames; `tick` raises to end it early."""
        ...


@runtime_checkable
class UnitWorker(Protocol):
    """What an engine's workers do. It is pickled for them, so it holds no open files and no loaded model."""

    def load(self) -> object:
        """What takes long and is needed for every unit, such as a model; called once in each worker, or not at all."""
        ...

    def make(self, unit: Any, /, *, again: bool = False) -> Any:
        """Does one unit whole. `again`: it was done before, and something of it is to be done once more."""
        ...


@runtime_checkable
class UnitEngine(Protocol):
    """Where units are done: `batch.engines` and `batch.ray_engine`."""

    def __call__(self, worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        """Does units, in any order; each is yielded with what `make` gave once it is finished."""
        ...


@dataclass(frozen=True)
class _TaskWorker:
    task: UnitTask

    def load(self) -> None: ...

    def make(self, unit: Any, *, again: bool = False) -> int:
        """How many frames the unit had."""
        ticks: list[None] = []
        self.task.run(unit, lambda: ticks.append(None))
        return len(ticks)


def run_units(
    task: UnitTask,
    units: Sequence[Any],
    *,
    workers: int,
    progress: Callable[[int], None],
    engine: UnitEngine | None = None,
) -> None:
    """Run `task` on each unit, here or in up to `workers` other processes; `progress` gets the ticks so far.

    Args:
        engine: does the units instead, so that `progress` comes after whole units.

    Raises:
        OpenMarigoldError: a process was ended from outside, or what a task raises.
    """
    if engine is not None:
        done = 0
        for _, ticks in engine(_TaskWorker(task), units, again=False) if units else ():
            done += ticks
            progress(done)
        return
    run = _run_here if workers == 1 or len(units) < 2 else _run_in_processes
    run(task, units, min(workers, len(units)), progress)


def _run_here(task: UnitTask, units: Sequence[Any], workers: int, progress: Callable[[int], None]) -> None:
    done = itertools.count(1)
    for unit in units:
        task.run(unit, lambda: progress(next(done)))


def _run_in_processes(task: UnitTask, units: Sequence[Any], workers: int, progress: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("spawn")  # the same on every system, and safe with threads
    counter, stop = context.Value("q", 0), context.Event()
    executor = ProcessPoolExecutor(workers, context, _start_worker, (task, counter, stop, os.getpid()))
    try:
        pending: set[Future[None]] = {executor.submit(_run_unit, unit) for unit in units}
        while pending:
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            progress(counter.value)
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        raise OpenMarigoldError(
            "a worker process was ended from outside, perhaps because memory ran out; finished shards are kept: run "
            "the same command again, with fewer --workers"
        ) from error
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


class _StoppedError(Exception):
    pass


_worker: tuple[UnitTask, Any, Any] | None = None


def _start_worker(task: UnitTask, counter: Any, stop: Any, parent: int) -> None:
    global _worker
    _worker = (task, counter, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and sets `stop`
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A killed parent cannot stop its workers.
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


def _run_unit(unit: Any) -> None:
    assert _worker is not None
    task, counter, stop = _worker

    def tick() -> None:
        with counter.get_lock():
            counter.value += 1
        if stop.is_set():
            raise _StoppedError

    task.run(unit, tick)
