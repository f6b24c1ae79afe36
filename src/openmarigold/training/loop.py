# SPDX-License-Identifier: Apache-2.0
"""The one training loop: batch of step n → loss → optimizer step → state and checkpoint, resumable bit for bit."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from openmarigold.errors import InvalidValueError, NumericalError
from openmarigold.files import write_atomically
from openmarigold.training.recipe import OptimizationConfig, RunConfig
from openmarigold.training.state import check_recipe, latest_state, load_state, save_state

LOGGER = logging.getLogger(__name__)
LOG_PERIOD = 50  # steps between transfers of the losses from the device


@runtime_checkable
class Task(Protocol):
    """What differs between the kinds of recipe."""

    model: nn.Module

    @property
    def inputs(self) -> dict[str, str]:
        """What the training starts from (a name for the user) and its hash."""
        ...

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Arrays of training step `step`, a pure function of it; called from another thread."""
        ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Scalar loss of a batch on the device."""
        ...

    def save(self, directory: Path) -> None:
        """Writes `model` as a checkpoint that the next recipe or the predictor can load."""
        ...

    def validate(self, directory: Path) -> dict[str, float]:
        """Scores of the checkpoint in `directory`; an empty dict where there is nothing to measure."""
        ...


def learning_rate_factor(step: int, config: OptimizationConfig) -> float:
    """Learning rate of 0-based step `step` relative to `learning_rate`: linear warm-up, then decay.

    Unlike the published code, the first step is not wasted on a rate of 0. Paper: §4.1.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps))
    if config.decay == "exponential":
        return config.final_learning_rate_factor**progress
    floor = config.final_learning_rate_factor
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_accelerator(mixed_precision: str, device: str = "auto") -> Accelerator:
    """Accelerate's view of this machine; `device="cpu"` keeps off an accelerator that is there.

    Raises:
        InvalidValueError: a device other than "auto" and "cpu".
    """
    if device not in ("auto", "cpu"):
        raise InvalidValueError(f"device={device!r} is not accepted for training; use auto or cpu")
    # Accelerate keeps one state for a whole process, but each recipe has its own precision and device.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)


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
) -> Path | None:
    """Trains `task` to the end of its recipe and returns the checkpoint folder; None if stopped before the end.

    Writes to `output_dir`: `checkpoint/` (for use), `states/` (to resume), `metrics.jsonl` (one line a step),
    `validation.jsonl`, `recipe.json`.

    Args:
        resume: continue from the newest state; without it older states and logs are removed.
        stop_after_steps: stop early, with the state saved, when so many steps are done; a later run resumes.

    Raises:
        NumericalError: the loss is not finite.
        CheckpointError: a state that is damaged, or of another recipe, base checkpoint or data.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    states_dir = output_dir / "states"
    if not resume:
        shutil.rmtree(states_dir, ignore_errors=True)
    model = task.model.to(accelerator.device).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=optimization.learning_rate, weight_decay=optimization.weight_decay, foreach=True
    )
    average = _start_average(model) if optimization.ema_decay else {}
    step = 0
    state = latest_state(states_dir)
    if state is not None:
        check_recipe(state, recipe)
        step = load_state(state, inputs=task.inputs, model=model, average=average, optimizer=optimizer)
        LOGGER.info("resuming %s at step %d", output_dir, step)
    text = json.dumps(recipe, indent=2) + "\n"
    write_atomically(output_dir / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))
    # A validation belongs to the steps before it; the last one is made again by a run that has nothing else to do.
    _keep_lines(output_dir / "validation.jsonl", before=step + (0 < step < optimization.num_steps))
    log = _Log(output_dir / "metrics.jsonl", step)
    last = min(optimization.num_steps, stop_after_steps or optimization.num_steps)

    def save() -> None:
        log.flush()
        moving = {"model": model, "average": average, "optimizer": optimizer}
        save_state(states_dir, step=step, recipe=recipe, inputs=task.inputs, **moving)

    saved_at = time.monotonic()
    for arrays in _prefetch(task.batch, step, last):
        factor = learning_rate_factor(step, optimization)
        for group in optimizer.param_groups:
            group["lr"] = optimization.learning_rate * factor
        batch = {name: torch.from_numpy(value).to(accelerator.device) for name, value in arrays.items()}
        with accelerator.autocast():
            loss = task.loss(model, batch)
        accelerator.backward(loss)
        if optimization.gradient_clip:
            torch.nn.utils.clip_grad_norm_(parameters, optimization.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average:
            _update_average(average, model, step, optimization.ema_decay)
        log.add(step, loss.detach(), factor)
        step += 1
        if step % LOG_PERIOD == 0:
            log.flush()
            LOGGER.info("step %d of %d, loss %.4f", step, optimization.num_steps, log.recent)
        if time.monotonic() - saved_at > run.save_period_s:
            save()
            saved_at = time.monotonic()
        if run.validation_period and step % run.validation_period == 0 and step < optimization.num_steps:
            _publish(task, average, output_dir, step)
    save()
    if step < optimization.num_steps:
        LOGGER.info("stopped at step %d of %d, the state is saved", step, optimization.num_steps)
        return None
    return _publish(task, average, output_dir, step)


def _publish(task: Task, average: Mapping[str, Tensor], output_dir: Path, step: int) -> Path:
    """Writes and validates the checkpoint, with averaged weights where there are any; the model is left as it was."""
    directory = output_dir / "checkpoint"
    current = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
    task.model.load_state_dict({**current, **average})
    task.save(directory)
    scores = task.validate(directory)
    task.model.load_state_dict(current)
    if scores:
        line = json.dumps({"step": step, **scores})
        LOGGER.info("validation %s", line)
        with (output_dir / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return directory


def _prefetch(
    make: Callable[[int], dict[str, np.ndarray]], start: int, stop: int, depth: int = 3
) -> Iterator[dict[str, np.ndarray]]:
    # One thread is enough: decoding and resizing release the interpreter lock.
    with ThreadPoolExecutor(max_workers=1) as executor:
        pending = [executor.submit(make, step) for step in range(start, min(stop, start + depth))]
        for step in range(start, stop):
            current = pending.pop(0)
            if step + depth < stop:
                pending.append(executor.submit(make, step + depth))
            yield current.result()


def _start_average(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def _update_average(average: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    # The first steps count for more, so that the average does not remember the random start.
    weight = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
    current = [value.detach() for name, value in model.named_parameters() if name in average]
    torch._foreach_lerp_(list(average.values()), current, weight)


def _keep_lines(path: Path, *, before: int) -> None:
    """Leaves of a log only the lines of steps below `before`; those that follow are made again."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < before:
                    kept.append(line + "\n")
            except ValueError:  # a line that the interruption cut
                break
    write_atomically(path, lambda partial: partial.write_text("".join(kept), encoding="utf-8"))


class _Log:
    """metrics.jsonl with one line a step; lines of steps that a resumed run repeats are removed first."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._pending: list[tuple[int, Tensor, float]] = []
        self.recent = math.nan
        self._started = time.monotonic()
        _keep_lines(path, before=step)

    def add(self, step: int, loss: Tensor, factor: float) -> None:
        self._pending.append((step, loss, factor))

    def flush(self) -> None:
        if not self._pending:
            return
        lines, values = [], []
        for step, loss, factor in self._pending:
            value = float(loss)
            if not math.isfinite(value):
                raise NumericalError(
                    f"the loss of step {step} is {value}; lower optimization.learning_rate or set gradient_clip"
                )
            values.append(value)
            seconds = round(time.monotonic() - self._started, 1)
            lines.append(
                json.dumps({"step": step, "loss": value, "learning_rate_factor": factor, "elapsed_s": seconds}) + "\n"
            )
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self.recent = sum(values) / len(values)
        self._pending.clear()
