# SPDX-License-Identifier: Apache-2.0
"""The distribution of a step's samples over micro-batches and processes, and micro-batches prepared ahead.

The recipe alone decides which samples make up a micro-batch, and that the loss of a step is the mean over those of its
micro-batches. Processes take micro-batches in turns. Without accumulation (`micro_batch_size` 0) the whole step is one
micro-batch, and each process takes a part of it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmarigold.errors import RecipeError
from openmarigold.training.settings import OptimizationConfig
from openmarigold.training.task import Task
from openmarigold.training.views import BatchSlice


@dataclass(frozen=True)
class BatchPlan:
    """The distribution of a step's samples over processes and micro-steps.

    Attributes:
        micro_batch_size: samples that a process takes at once.
        is_shared: whether that is a part of the step's only micro-batch, so that the loss is a mean over all processes.
    """

    batch_size: int
    micro_batch_size: int
    is_shared: bool
    num_processes: int
    process_index: int

    @property
    def drawn_together(self) -> int:
        """Samples of one micro-batch, over all processes that share it."""
        return self.micro_batch_size * (self.num_processes if self.is_shared else 1)

    @property
    def num_micro_steps(self) -> int:
        """Micro-batches that each process accumulates in a step."""
        return self.batch_size // (self.micro_batch_size * self.num_processes)

    @property
    def described(self) -> str:
        """The plan in words."""
        return (
            f"batch: {self.batch_size} = {self.micro_batch_size} a process x {self.num_processes} processes x "
            f"{self.num_micro_steps} accumulated"
        )

    def slice_of(self, step: int, micro_step: int) -> BatchSlice:
        """This process's part of a micro-step."""
        size, process = self.micro_batch_size, self.process_index
        if self.is_shared:
            return BatchSlice(
                step=step,
                micro_step=micro_step,
                group_size=self.drawn_together,
                rows=slice(process * size, (process + 1) * size),
            )
        number = micro_step * self.num_processes + process
        return BatchSlice(step=step, micro_step=number, group_size=size, rows=slice(0, size))


def plan_batches(optimization: OptimizationConfig, *, num_processes: int, process_index: int = 0) -> BatchPlan:
    """The plan for so many processes.

    Raises:
        RecipeError: batch_size is not a multiple of micro-batch times processes.
    """
    batch_size, micro = optimization.batch_size, optimization.micro_batch_size
    if micro == 0:
        micro = max(1, batch_size // num_processes)
    if batch_size % (micro * num_processes):
        raise RecipeError(
            f"optimization.batch_size={batch_size} is not a multiple of {micro} samples of a micro-batch times "
            f"{num_processes} processes; change batch_size, micro_batch_size or the number of processes"
        )
    return BatchPlan(batch_size, micro, optimization.micro_batch_size == 0, num_processes, process_index)


class Batches:
    """Micro-batches in order, prepared some ahead by threads and moved to the device."""

    def __init__(
        self, task: Task, plan: BatchPlan, *, start: int, stop: int, num_workers: int, device: torch.device
    ) -> None:
        self._task, self._plan, self._device = task, plan, device
        self._coming = ((step, micro) for step in range(start, stop) for micro in range(plan.num_micro_steps))
        self._executor = ThreadPoolExecutor(max_workers=num_workers)
        self._pending: list[Any] = []
        self._ahead = num_workers + 2
        self._waited = 0.0

    def __enter__(self) -> Batches:
        self._refill()
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _refill(self) -> None:
        while len(self._pending) < self._ahead and (place := next(self._coming, None)) is not None:
            self._pending.append(self._executor.submit(self._task.batch, self._plan.slice_of(*place)))

    def next(self) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """The next micro-batch on the device, and as it was prepared."""
        started = time.monotonic()
        arrays: dict[str, np.ndarray] = self._pending.pop(0).result()
        self._waited += time.monotonic() - started
        self._refill()
        return {name: self._moved(torch.from_numpy(value)) for name, value in arrays.items()}, arrays

    def _moved(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def take_waited(self) -> float:
        """Seconds without a batch since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited
