# SPDX-License-Identifier: Apache-2.0
"""The protocol between the training loop and each kind of recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from openmarigold.training.loss import Loss
from openmarigold.training.views import BatchSlice, Mixture


@runtime_checkable
class Task(Protocol):
    """The parts of training that differ between kinds of recipe.

    A task may also have `parameter_groups()`, where not all parameters have the recipe's learning rate: groups as
    torch's optimizers take them, each with a `factor` of the rate. Where frozen weights follow from `inputs`, a task
    may have `only_trained = True`: states then hold the trained ones alone.
    """

    model: nn.Module
    mixture: Mixture

    @property
    def inputs(self) -> dict[str, str]:
        """Inputs of the training: a name for the user, and a hash, of each."""
        ...

    def batch(self, share: BatchSlice) -> dict[str, np.ndarray]:
        """Arrays of this process's part of a micro-batch, a pure function of it; called from other threads."""
        ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        """Errors of a batch on the device."""
        ...

    def save(self, directory: Path, *, final: bool = True) -> None:
        """Writes `model` as a checkpoint that the next recipe or the predictor can load."""
        ...

    def validate(self, directory: Path) -> dict[str, float]:
        """Scores of the checkpoint in `directory`; an empty dict where there is nothing to measure."""
        ...
