# SPDX-License-Identifier: Apache-2.0
"""The one training loop: micro-batches of step n → losses → optimizer step → state and checkpoint.

One process or many (accelerate), resumable bit for bit on the same device.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from openmarigold.errors import InvalidValueError, MissingExtraError, NumericalError, RecipeError
from openmarigold.files import append_text, make_directory, write_atomically
from openmarigold.training.loss import Loss
from openmarigold.training.monitor import Monitor, keep_lines
from openmarigold.training.recipe import OptimizationConfig, RunConfig
from openmarigold.training.state import State, StateWriter, check_recipe, collect_state, latest_state, load_state
from openmarigold.training.views import Mixture, Share

LOGGER = logging.getLogger(__name__)
LOG_PERIOD_STEPS = 50  # between transfers of the losses from the device,
LOG_PERIOD_S = 30.0  # or less where steps take long
MOST_TIME_FOR_STATES = 1 / 20
NUM_TRAIN_TIMESTEPS = 1000


@runtime_checkable
class Task(Protocol):
    """What differs between the kinds of recipe."""

    model: nn.Module
    mixture: Mixture

    @property
    def inputs(self) -> dict[str, str]:
        """What the training starts from (a name for the user) and its hash."""
        ...

    def batch(self, share: Share) -> dict[str, np.ndarray]:
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


class TrainingModule(nn.Module):
    """The trained network with its loss, so that whatever spreads modules over processes sees one forward pass."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.network = task.model
        self._loss = task.loss

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        return self._loss(self.network, batch)


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of a step are spread over processes and micro-steps."""

    batch_size: int
    micro_batch_size: int
    num_processes: int
    process_index: int

    @property
    def group_size(self) -> int:
        """Samples that all processes take at once."""
        return self.micro_batch_size * self.num_processes

    @property
    def num_micro_steps(self) -> int:
        """Micro-batches that each process accumulates in a step."""
        return self.batch_size // self.group_size

    def share(self, step: int, micro_step: int) -> Share:
        """This process's part of a micro-step."""
        start = self.process_index * self.micro_batch_size
        rows = slice(start, start + self.micro_batch_size)
        return Share(step=step, micro_step=micro_step, group_size=self.group_size, rows=rows)


def plan_batches(optimization: OptimizationConfig, *, num_processes: int, process_index: int = 0) -> BatchPlan:
    """The plan for so many processes.

    Raises:
        RecipeError: batch_size is no multiple of micro-batch times processes.
    """
    batch_size, micro = optimization.batch_size, optimization.micro_batch_size
    if micro == 0:
        micro = max(1, batch_size // num_processes)
    if batch_size % (micro * num_processes):
        raise RecipeError(
            f"optimization.batch_size={batch_size} is no multiple of {micro} samples of a micro-batch times "
            f"{num_processes} processes; change batch_size, micro_batch_size or the number of processes"
        )
    return BatchPlan(batch_size, micro, num_processes, process_index)


def learning_rate_factor(step: int, config: OptimizationConfig) -> float:
    """Learning rate of 0-based step `step` relative to `learning_rate`: linear warm-up, then decay, then its floor.

    Unlike the published code, the first step is not wasted on a rate of 0. Paper: §4.1.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    end = config.decay_steps or config.num_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, end - config.warmup_steps))
    if config.decay == "exponential":
        return config.final_learning_rate_factor**progress
    floor = config.final_learning_rate_factor
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_accelerator(mixed_precision: str, device: str = "auto") -> Accelerator:
    """Accelerate's view of this machine and of the processes; `device="cpu"` keeps off an accelerator that is there.

    Raises:
        InvalidValueError: a device other than "auto" and "cpu".
    """
    if device not in ("auto", "cpu"):
        raise InvalidValueError(f"device={device!r} is not accepted for training; use auto or cpu")
    # Accelerate keeps one state for a whole process, but each recipe has its own precision and device.
    AcceleratorState._reset_state(reset_partial_state=True)
    # The others wait while the main process validates.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision, kwargs_handlers=[patience])


def make_optimizer(parameters: list[nn.Parameter], config: OptimizationConfig) -> torch.optim.Optimizer:
    """Adam, with weight decay AdamW; its moments in 32 or 8 bits.

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


def run_training(
    task: Task,
    *,
    recipe: Mapping[str, Any],
    optimization: OptimizationConfig,
    run: RunConfig,
    output_dir: Path,
    accelerator: Accelerator,
    resume: bool,
    stop_after_steps: int | None = None,
    watch: Any = None,
) -> Path | None:
    """Trains `task` to the end of its recipe and returns the checkpoint folder; None if stopped before the end.

    Writes to `output_dir`: `checkpoint/` (for use), `states/` (to resume), `metrics.jsonl` (one line a step),
    `validation.jsonl`, `recipe.json`, and as the recipe says `pictures/` and `tensorboard/`. Of several processes the
    main one writes.

    Args:
        resume: continue from the newest state; without it older states and logs are removed.
        stop_after_steps: stop early, with the state saved, when so many steps are done; a later run resumes.
        watch: called with a `monitor.Progress` now and then.

    Raises:
        NumericalError: the loss is not finite.
        CheckpointError: a state that is damaged, or of another recipe, base checkpoint or data.
        DataError: a source smaller than a micro-batch, or a damaged sample.
        OutputError: something cannot be written; what was saved before still is.
        RecipeError: the batch cannot be spread over the processes.
    """
    plan = plan_batches(optimization, num_processes=accelerator.num_processes, process_index=accelerator.process_index)
    task.mixture.check_batch(plan.group_size)
    main = accelerator.is_main_process
    states_dir = output_dir / "states"
    if main:
        make_directory(output_dir)
        for left in output_dir.glob(".checkpoint.*"):  # what a kill left of a checkpoint that was being written
            shutil.rmtree(left, ignore_errors=True)
        if not resume:
            shutil.rmtree(states_dir, ignore_errors=True)
    accelerator.wait_for_everyone()

    network = task.model.to(accelerator.device).train()
    if optimization.compile:
        network.compile()
    module: nn.Module = TrainingModule(task)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer: Any = make_optimizer(parameters, optimization)
    if accelerator.distributed_type != DistributedType.NO:
        module, optimizer = accelerator.prepare(module, optimizer)
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    plain_optimizer = getattr(optimizer, "optimizer", optimizer)
    average = _start_average(network) if optimization.ema_decay else {}
    inputs = {**task.inputs, "processes": str(accelerator.num_processes)}
    moving: dict[str, Any] = {"model": network, "average": average, "optimizer": plain_optimizer}
    step = 0
    state = latest_state(states_dir)
    if state is not None:
        check_recipe(state, recipe)
        step = load_state(state, inputs=inputs, **moving)
        LOGGER.info("resuming %s at step %d", output_dir, step)
    last = min(optimization.num_steps, stop_after_steps or optimization.num_steps)
    monitor = _open_monitor(output_dir, step, optimization, run, accelerator, watch) if main else None
    if main:
        text = json.dumps(recipe, indent=2) + "\n"
        write_atomically(output_dir / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))
        # A validation belongs to the steps before it; the last one is made again by a run that has nothing else to do.
        keep_lines(output_dir / "validation.jsonl", before=step + (0 < step < optimization.num_steps))
    writer = StateWriter(states_dir, keep=run.keep_states)

    def save() -> None:
        if monitor is not None:
            monitor.flush()  # which refuses losses that are not finite
        collected = collect_state(step, recipe=recipe, inputs=inputs, **moving)
        if main:
            _check_finite(collected)
            writer.submit(collected)

    saved_at = logged_at = time.monotonic()
    batches = _Batches(task, plan, start=step, stop=last, num_workers=run.num_workers, device=accelerator.device)
    with batches:
        while step < last:
            rate = optimization.learning_rate * learning_rate_factor(step, optimization)
            for group in plain_optimizer.param_groups:
                group["lr"] = rate
            losses, counts, timesteps, per_sample = [], [], [], []
            for micro_step in range(plan.num_micro_steps):
                batch, arrays = batches.next()
                with _accumulating(accelerator, module, more=micro_step + 1 < plan.num_micro_steps):
                    with accelerator.autocast():
                        loss: Loss = Loss(*module(batch))
                    total, count = _over_all(accelerator, loss)
                    # Gradients are averaged over processes, and the mean is to be over all their samples.
                    share = loss.total / count.clamp(min=1.0) * accelerator.num_processes
                    accelerator.backward(share / plan.num_micro_steps)
                losses.append(total / count.clamp(min=1.0))
                counts.append(count)
                if "timesteps" in arrays and loss.per_sample is not None:
                    timesteps.append(arrays["timesteps"])
                    per_sample.append(loss.per_sample)
            if optimization.gradient_clip:
                accelerator.clip_grad_norm_(parameters, optimization.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                _update_average(average, network, step, optimization.ema_decay)
            if monitor is not None:
                monitor.waited(batches.take_waited())
                monitor.add(
                    step,
                    loss=torch.stack(losses).mean(),
                    num_valid=torch.stack(counts).sum(),
                    learning_rate=rate,
                    timesteps=np.concatenate(timesteps) if timesteps else None,
                    per_sample=torch.cat(per_sample) if per_sample else None,
                )
            step += 1
            now = time.monotonic()
            if monitor is not None and (step % LOG_PERIOD_STEPS == 0 or now - logged_at > LOG_PERIOD_S):
                monitor.flush()
                logged_at = now
            writer.check()
            period = max(run.save_period_s, writer.seconds / MOST_TIME_FOR_STATES) if run.save_period_s else 0.0
            if step < last and _agreed(accelerator, now - saved_at > period):
                save()
                saved_at = time.monotonic()
            if run.validation_period and step % run.validation_period == 0 and step < optimization.num_steps:
                _publish(task, average, output_dir, step, accelerator, monitor, final=False)
    save()
    writer.wait()
    directory = None
    if step < optimization.num_steps:
        LOGGER.info("stopped at step %d of %d, the state is saved", step, optimization.num_steps)
    else:
        directory = _publish(task, average, output_dir, step, accelerator, monitor, final=True)
    if monitor is not None:
        monitor.close()
    accelerator.wait_for_everyone()
    return directory


def _check_finite(state: State) -> None:
    """Refuses weights that the last step has spoilt, before they take the place of good ones."""
    spoilt = [name for name, value in state.tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if spoilt:
        raise NumericalError(
            f"after step {state.step} {len(spoilt)} tensors are not finite ({spoilt[0]}), and are not saved; lower "
            "optimization.learning_rate or set gradient_clip"
        )


def _open_monitor(
    output_dir: Path, step: int, optimization: OptimizationConfig, run: RunConfig, accelerator: Accelerator, watch: Any
) -> Monitor:
    return Monitor(
        output_dir,
        step=step,
        num_steps=optimization.num_steps,
        batch_size=optimization.batch_size,
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        tensorboard=run.tensorboard,
        device=accelerator.device,
        watch=watch or (lambda progress: LOGGER.info("%s", progress)),
    )


def _accumulating(accelerator: Accelerator, module: nn.Module, *, more: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are exchanged between processes with a step's last micro-batch only."""
    distributed = accelerator.distributed_type != DistributedType.NO
    return accelerator.no_sync(module) if more and distributed else contextlib.nullcontext()


def _over_all(accelerator: Accelerator, loss: Loss) -> tuple[Tensor, Tensor]:
    """Sum and count of the errors of all processes, without gradients."""
    total, count = loss.total.detach(), loss.count.detach()
    if accelerator.num_processes == 1:
        return total, count
    both: Any = accelerator.reduce(torch.stack([total.float(), count.float()]), reduction="sum")
    return both[0], both[1]


def _agreed(accelerator: Accelerator, wanted: bool) -> bool:
    """What the main process wants: clocks differ, and saving takes all processes."""
    if accelerator.num_processes == 1:
        return wanted
    flag = torch.tensor([float(wanted and accelerator.is_main_process)], device=accelerator.device)
    summed: Any = accelerator.reduce(flag, reduction="sum")
    return bool(summed.item())


def _publish(
    task: Task,
    average: Mapping[str, Tensor],
    output_dir: Path,
    step: int,
    accelerator: Accelerator,
    monitor: Monitor | None,
    *,
    final: bool,
) -> Path:
    """Writes and validates the checkpoint, with averaged weights where there are any; the model is left as it was."""
    directory = output_dir / "checkpoint"
    with _whole_weights(task, average, accelerator):
        if monitor is not None:
            monitor.flush()
            task.save(directory, final=final)
            scores = task.validate(directory)
            show = getattr(task, "pictures", None)
            shown = show(directory, output_dir / "pictures" / f"step-{step:08d}") if show is not None else {}
            if scores:
                line = json.dumps({"step": step, **scores})
                LOGGER.info("validation %s", line)
                append_text(output_dir / "validation.jsonl", line + "\n")
            monitor.validated(step, scores, shown)
    accelerator.wait_for_everyone()
    return directory


@contextlib.contextmanager
def _whole_weights(task: Task, average: Mapping[str, Tensor], accelerator: Accelerator) -> Iterator[None]:
    """Within it, `task.model` holds whole weights, the averaged ones where there are any."""
    network: Any = task.model
    if accelerator.distributed_type == DistributedType.FSDP:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(network, options=options)
        for name, value in average.items():
            whole: Any = value
            weights[name] = whole.full_tensor().cpu()
        task.model = type(network).from_config(network.config)
        if weights:
            task.model.load_state_dict(weights)
    elif average:
        current = {name: value.detach().clone() for name, value in network.named_parameters() if name in average}
        network.load_state_dict(dict(average), strict=False)
    try:
        yield
    finally:
        if accelerator.distributed_type == DistributedType.FSDP:
            task.model = network
        elif average:
            network.load_state_dict(current, strict=False)


class _Batches:
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

    def __enter__(self) -> _Batches:
        self._refill()
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _refill(self) -> None:
        while len(self._pending) < self._ahead and (place := next(self._coming, None)) is not None:
            self._pending.append(self._executor.submit(self._task.batch, self._plan.share(*place)))

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


def _start_average(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def _update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    # The first steps count for more, so that the average does not remember the random start.
    weight = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
    current = [value.detach() for name, value in model.named_parameters() if name in average]
    torch._foreach_lerp_(list(average.values()), current, weight)
