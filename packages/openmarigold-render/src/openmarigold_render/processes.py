# SPDX-License-Identifier: Apache-2.0
"""Work in processes of their own, one a core: Blender has one scene a process."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from openmarigold_render.core import DataError

JOBS_OF_A_PROCESS = 32
"""Jobs after which processes are replaced: what Blender and the caches of a process hold grows with its scenes."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_processes(
    start: Callable[[Any], None],
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    each_second: Callable[[], None] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Jobs and their results as they are finished. Processes are replaced after `JOBS_OF_A_PROCESS` jobs on average.

    Args:
        start: called once in each process, with a queue of ranks for `settle`.
        work: called with a job in one of the processes; must be importable there.
        jobs: what is to be done.
        workers: number of processes.
        each_second: called here about once a second while it waits.

    Raises:
        DataError: a process ended without a result.
    """
    for first in range(0, len(jobs), workers * JOBS_OF_A_PROCESS):
        some = jobs[first : first + workers * JOBS_OF_A_PROCESS]
        yield from _in_new_processes(start, work, some, workers=workers, each_second=each_second)


def _in_new_processes(
    start: Callable[[Any], None],
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    each_second: Callable[[], None] | None,
) -> Iterator[tuple[Job, Result]]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    ranks = context.Queue()
    for rank in range(workers):
        ranks.put(rank)
    executor = ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)), mp_context=context, initializer=start, initargs=(ranks,)
    )
    try:
        waiting = {executor.submit(work, job): job for job in jobs}
        while waiting:
            timeout = None if each_second is None else 1.0
            finished, _ = wait(waiting, timeout=timeout, return_when=FIRST_COMPLETED)
            if each_second is not None:
                each_second()
            for future in finished:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a rendering process ended unexpectedly (out of memory?); run the same command again, which continues "
            "from what is whole"
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def settle(ranks: Any) -> None:
    """Give this process its own core, and discard what Blender prints."""
    rank = ranks.get()
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    sys.stdout.flush()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
