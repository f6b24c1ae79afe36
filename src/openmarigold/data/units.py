# SPDX-License-Identifier: Apache-2.0
"""Units of work, in this process or in a pool of processes; `batch.ray_engine` has the engine for clusters.

A unit is a shard of a batch, some images of a benchmark, or a shard of training data.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from openmarigold.errors import OpenMarigoldError, OutputError

_MOST_DEATHS = 3
"""Limit of workers that died while they did the same unit."""
_POLL_S = 0.2
_SPAWN = multiprocessing.get_context("spawn")  # the same on every system, and safe with threads


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
        """Load what every unit needs and takes long, such as a model; called at most once in each worker."""
        ...

    def make(self, unit: Any, /, *, again: bool = False) -> Any:
        """Does one unit whole. `again`: the unit was done before, and a part of it must be done once more."""
        ...


@runtime_checkable
class UnitEngine(Protocol):
    """Where units are done: `in_this_process`, `ProcessEngine` or `batch.ray_engine.RayEngine`."""

    def __call__(self, worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        """Do units, in any order; yield each finished unit with the result of `make`."""
        ...


def local_engine(workers: int) -> UnitEngine:
    """The engine for so many processes of this machine; 1: this one."""
    return ProcessEngine(workers=workers) if workers > 1 else in_this_process


def in_this_process(worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
    """Does units one after another. Raises what the worker raises."""
    for unit in units:
        yield unit, worker.make(unit, again=again)


@dataclass(frozen=True, kw_only=True)
class ProcessEngine:
    """A pool of processes. If a worker dies, another worker does its unit again."""

    workers: int
    watch: Callable[[], None] | None = None
    """Called several times a second, in the program that started the workers."""
    stop: Any = None
    """An event by which units end early and tidily, also where a worker dies; None: an early end kills the workers."""

    def __call__(self, worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        """Does units, in any order; one may have a `label`, which messages name.

        Raises:
            OutputError: one unit ended several workers; otherwise what the worker raises.
            BrokenProcessPool: with `stop`, a worker died.
        """
        waiting = list(reversed(range(len(units))))
        deaths: Counter[int] = Counter()
        while waiting:
            pool = ProcessPoolExecutor(self.workers, mp_context=_SPAWN, initializer=_begin, initargs=(worker,))
            running: dict[Future[Any], int] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        future = pool.submit(_make, units[waiting[-1]], again)  # raises where a worker has died
                        running[future] = waiting.pop()
                    done, _ = wait(running, timeout=self.watch and _POLL_S, return_when=FIRST_COMPLETED)
                    if self.watch is not None:
                        self.watch()
                    for future in done:
                        place = running[future]
                        result = future.result()
                        del running[future]
                        yield units[place], result
            except BrokenProcessPool as error:
                if self.stop is not None:
                    raise
                lost = list(running.values())
                deaths.update(lost)
                waiting += lost
                worst = max(lost, key=lambda place: deaths[place], default=None)
                if worst is not None and deaths[worst] >= _MOST_DEATHS:
                    raise OutputError(
                        f"workers ended by themselves {_MOST_DEATHS} times while making "
                        f"{getattr(units[worst], 'label', worst)}, perhaps because memory ran out; try fewer workers, "
                        "or a smaller processing_resolution"
                    ) from error
            finally:
                self._end(pool)

    def _end(self, pool: ProcessPoolExecutor) -> None:
        if self.stop is None:
            for process in list((pool._processes or {}).values()):
                process.terminate()
        else:
            self.stop.set()
        pool.shutdown(wait=self.stop is not None, cancel_futures=True)


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
    done = 0
    if engine is not None:
        for _, ticks in engine(_TaskWorker(task), units, again=False) if units else ():
            done += ticks
            progress(done)
    elif workers == 1 or len(units) < 2:

        def tick() -> None:
            nonlocal done
            done += 1
            progress(done)

        for unit in units:
            task.run(unit, tick)
    else:
        counter, stop = _SPAWN.Value("q", 0), _SPAWN.Event()
        pool = ProcessEngine(workers=min(workers, len(units)), watch=lambda: progress(counter.value), stop=stop)
        try:
            for _ in pool(_TaskWorker(task, counter, stop), units, again=False):
                pass
        except BrokenProcessPool as error:
            raise OpenMarigoldError(
                "a worker process was ended from outside, perhaps because memory ran out; finished shards are kept: "
                "run the same command again, with fewer --workers"
            ) from error


@dataclass(frozen=True)
class _TaskWorker:
    """A task as a worker, which counts ticks for all processes together where there is a counter."""

    task: UnitTask
    counter: Any = None
    stop: Any = None

    def load(self) -> None: ...

    def make(self, unit: Any, *, again: bool = False) -> int:
        """How many frames the unit had."""
        ticks = 0

        def tick() -> None:
            nonlocal ticks
            ticks += 1
            if self.counter is not None:
                with self.counter.get_lock():
                    self.counter.value += 1
            if self.stop is not None and self.stop.is_set():
                raise _StoppedError

        self.task.run(unit, tick)
        return ticks


class _StoppedError(Exception):
    pass


_worker: UnitWorker | None = None


def _begin(worker: UnitWorker) -> None:
    """Set up a new process: it ignores interrupts, because the first process handles them, and it ends with that
    process.
    """
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
