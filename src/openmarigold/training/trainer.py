# SPDX-License-Identifier: Apache-2.0
"""The network in training, its optimizer and its moving average: one optimizer step, and the state between two."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from openmarigold.errors import MissingExtraError, NumericalError, RecipeError
from openmarigold.training.batches import Batches, BatchPlan
from openmarigold.training.loss import Loss
from openmarigold.training.settings import OptimizationConfig
from openmarigold.training.state import ORDER, ORDER_BY_RECIPE, State, collect_state, load_state, saved_scaler
from openmarigold.training.task import Task


def learning_rate_factor(step: int, config: OptimizationConfig) -> float:
    """Learning rate of 0-based step `step` relative to `learning_rate`: linear warm-up, then decay, then its floor.

    The published code wastes the first step on a rate of 0, and so does `warmup_from_zero`. Paper: §4.1.
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps if config.warmup_from_zero else (step + 1) / (config.warmup_steps + 1)
    end = config.decay_steps or config.num_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, end - config.warmup_steps))
    if config.decay == "exponential":
        return config.final_learning_rate_factor**progress
    floor = config.final_learning_rate_factor
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(
    parameters: list[nn.Parameter] | list[dict[str, Any]], config: OptimizationConfig
) -> torch.optim.Optimizer:
    """Adam, with weight decay AdamW; its moments in 32 or 8 bits. Groups of parameters may have a `factor` of the rate.

    Raises:
        MissingExtraError: 8 bits without bitsandbytes.
    """
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adam":
        return torch.optim.AdamW(parameters, fused=config.fused, foreach=not config.fused, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "eight-bit") from error
    return AdamW8bit(parameters, **settings)


def optimizer_of(task: Task, config: OptimizationConfig) -> torch.optim.Optimizer:
    """The optimizer of what a task trains. Raises what `make_optimizer` raises."""
    groups = getattr(task, "parameter_groups", None)
    if groups is not None:
        return make_optimizer(groups(), config)
    return make_optimizer([parameter for parameter in task.model.parameters() if parameter.requires_grad], config)


class TrainingModule(nn.Module):
    """The trained network with its loss, as one forward pass for libraries that spread modules over processes."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.network = task.model
        self._loss = task.loss

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        return self._loss(self.network, batch)


@dataclass(frozen=True)
class StepResult:
    """The result of a step, still on its device.

    Attributes:
        loss: mean over the micro-batches of the mean over all processes' errors.
        num_valid: errors that were counted.
        timesteps, per_sample: of this process's samples; None where the task has none.
    """

    loss: Tensor
    num_valid: Tensor
    learning_rate: float
    timesteps: np.ndarray | None
    per_sample: Tensor | None


class Trainer:
    """Updates the weights of `task.model`, on one process or many."""

    def __init__(self, task: Task, config: OptimizationConfig, plan: BatchPlan, accelerator: Accelerator) -> None:
        """Puts the network on its device and makes the optimizer.

        Raises:
            MissingExtraError: an optimizer whose package is not installed.
            RecipeError: fp16 with FSDP.
        """
        if accelerator.scaler is not None and accelerator.distributed_type == DistributedType.FSDP:
            raise RecipeError('mixed_precision = "fp16" is not for FSDP; use "bf16"')
        self._task, self._config, self._plan, self._accelerator = task, config, plan, accelerator
        torch.backends.cudnn.benchmark = config.cudnn_benchmark
        self._network = task.model.to(accelerator.device).train()
        if config.compile:
            self._network.compile()
        self._module: nn.Module = TrainingModule(task)
        optimizer: Any = optimizer_of(task, config)
        if self._is_distributed:
            self._module, optimizer = accelerator.prepare(self._module, optimizer)
        self._stepper = optimizer
        self._optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._scaler = accelerator.scaler  # of the loss, in fp16
        self._average = _start_average(self._network) if config.ema_decay else {}
        self._only_trained: bool = getattr(task, "only_trained", False)
        processes = str(accelerator.num_processes)
        self._inputs = {
            **task.inputs,
            "the data's bytes": task.mixture.sha256,
            "processes": processes,
            ORDER: ORDER_BY_RECIPE,
        }

    @property
    def _is_distributed(self) -> bool:
        return self._accelerator.distributed_type != DistributedType.NO

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._network.parameters() if parameter.requires_grad]

    def take_step(self, step: int, batches: Batches) -> StepResult:
        """Step number `step`, with the next micro-batches."""
        config, accelerator = self._config, self._accelerator
        rate = config.learning_rate * learning_rate_factor(step, config)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        losses, counts, timesteps, per_sample = [], [], [], []
        for micro_step in range(self._plan.num_micro_steps):
            batch, arrays = batches.next()
            with self._accumulating(more=micro_step + 1 < self._plan.num_micro_steps):
                with accelerator.autocast():
                    loss: Loss = Loss(*self._module(batch))
                total, count = self._over_micro_batch(loss)
                # Gradients are averaged over processes; the mean of a micro-batch that they share is over all samples.
                share = loss.total / count.clamp(min=1.0)
                share = share * accelerator.num_processes if self._plan.is_shared else share
                accelerator.backward(share / self._plan.num_micro_steps)
            losses.append(total / count.clamp(min=1.0))
            counts.append(count)
            if "timesteps" in arrays and loss.per_sample is not None:
                timesteps.append(arrays["timesteps"])
                per_sample.append(loss.per_sample)
        self._move_weights()
        if self._average:
            _update_average(self._average, self._network, step, config.ema_decay)
        mean, num_valid = self._over_all(torch.stack(losses).mean(), torch.stack(counts).sum())
        return StepResult(
            loss=mean,
            num_valid=num_valid,
            learning_rate=rate,
            timesteps=np.concatenate(timesteps) if timesteps else None,
            per_sample=torch.cat(per_sample) if per_sample else None,
        )

    def _move_weights(self) -> None:
        """One step of the optimizer; in fp16 one whose gradients overflow moves nothing and halves the scale."""
        clip, scaler = self._config.gradient_clip, self._scaler
        if scaler is None:
            if clip:
                self._accelerator.clip_grad_norm_(self._parameters(), clip)
            self._stepper.step()
        else:
            if clip:
                scaler.unscale_(self._optimizer)
                torch.nn.utils.clip_grad_norm_(self._parameters(), clip)
            scaler.step(self._optimizer)
            scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _accumulating(self, *, more: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged between processes with a step's last micro-batch only."""
        if more and self._is_distributed:
            return self._accelerator.no_sync(self._module)
        return contextlib.nullcontext()

    def _over_all(self, mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and number of errors of a step over the micro-batches of all processes."""
        if self._accelerator.num_processes == 1 or self._plan.is_shared:
            return mean, count
        both: Any = self._accelerator.reduce(torch.stack([mean.float(), count.float()]), reduction="sum")
        return both[0] / self._accelerator.num_processes, both[1]

    def _over_micro_batch(self, loss: Loss) -> tuple[Tensor, Tensor]:
        """Sum and count of the errors of a micro-batch, on all processes that share it, without gradients."""
        total, count = loss.total.detach(), loss.count.detach()
        if self._accelerator.num_processes == 1 or not self._plan.is_shared:
            return total, count
        both: Any = self._accelerator.reduce(torch.stack([total.float(), count.float()]), reduction="sum")
        return both[0], both[1]

    def state(self, step: int, recipe: Mapping[str, Any]) -> State:
        """The state after `step` finished steps, as `collect_state` gives it; every process must call it.

        Raises:
            NumericalError: the state became non-finite in the last step; it must not replace a good one.
        """
        state = collect_state(
            step,
            recipe=recipe,
            inputs=self._inputs,
            model=self._network,
            average=self._average,
            optimizer=self._optimizer,
            only_trained=self._only_trained,
            scaler=None if self._scaler is None else self._scaler.state_dict(),
        )
        broken = [name for name, v in state.tensors.items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise NumericalError(
                f"after step {step} {len(broken)} tensors are not finite ({broken[0]}), and are not saved; lower "
                "optimization.learning_rate or set gradient_clip"
            )
        return state

    def restore(self, state: Path) -> int:
        """Loads a saved state and returns the number of finished steps. Raises what `load_state` raises."""
        if self._scaler is not None and (kept := saved_scaler(state)):
            self._scaler.load_state_dict(kept)
        return load_state(
            state,
            inputs=self._inputs,
            model=self._network,
            average=self._average,
            optimizer=self._optimizer,
            only_trained=self._only_trained,
        )

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Within it, `task.model` holds whole weights, the averaged ones where there are any."""
        network: Any = self._network
        if self._accelerator.distributed_type == DistributedType.FSDP:
            weights = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            for name, value in self._average.items():
                sharded: Any = value
                weights[name] = sharded.full_tensor().cpu()
            self._task.model = type(network).from_config(network.config)
            if weights:
                self._task.model.load_state_dict(weights)
            try:
                yield
            finally:
                self._task.model = network
            return
        current = {name: value.detach().clone() for name, value in network.named_parameters() if name in self._average}
        network.load_state_dict(self._average, strict=False)
        try:
            yield
        finally:
            network.load_state_dict(current, strict=False)


def _start_average(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def _update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    # The first steps count for more, so that the average does not remember the random start.
    weight = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
    current = [value.detach() for name, value in model.named_parameters() if name in average]
    torch._foreach_lerp_(list(average.values()), current, weight)
