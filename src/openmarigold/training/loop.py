# SPDX-License-Identifier: Apache-2.0
"""The one training loop: micro-batches of step n → losses → optimizer step → state and checkpoint.

One process or many (accelerate), resumable bit for bit on the same device.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from openmarigold.checkpoints.hub_upload import CARD
from openmarigold.errors import InvalidValueError, LostProcessError, RecipeError, one_line
from openmarigold.files import append_text, make_directory, write_atomically
from openmarigold.printing import quoted_logger
from openmarigold.training.batches import Batches, BatchPlan, plan_batches
from openmarigold.training.dry_runs import describe_run, launched_alone
from openmarigold.training.keeping import (
    BEST_DIR,
    LAST_DIR,
    NUMBERED_DIR,
    best_step,
    forget_checkpoints,
    is_finished,
    keep_checkpoint,
    kept_checkpoints,
    mark_finished,
    scores_of,
    validations_since_best,
)
from openmarigold.training.memory import check_fit
from openmarigold.training.monitor import Board, Monitor, keep_lines, open_boards
from openmarigold.training.settings import OptimizationConfig, RunConfig
from openmarigold.training.state import StateWriter, check_recipe, latest_state
from openmarigold.training.task import Task
from openmarigold.training.trainer import Trainer

LOGGER = quoted_logger(__name__)
MOST_TIME_FOR_STATES = 1 / 20
NUM_TRAIN_TIMESTEPS = 1000
# Parts of what gloo and NCCL report where another process is gone.
_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "gloo", "NCCL", "recvBytes", "sendBytes")


def make_accelerator(mixed_precision: str, device: str = "auto") -> Accelerator:
    """Accelerate's view of this machine and of the processes.

    Args:
        device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        InvalidValueError: another device, one that is not there, or a precision that it does not have.
    """
    _check_device(device, mixed_precision)
    # Accelerate keeps one state for a whole process, but each recipe has its own precision and device.
    AcceleratorState._reset_state(reset_partial_state=True)
    # The others wait while the main process validates.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))
    with _accelerate_uses(device):
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision, kwargs_handlers=[patience])
    if accelerator.distributed_type == DistributedType.MULTI_CPU and _wants_fsdp():
        # Accelerate spreads weights over GPUs only and drops the wish on CPUs, where torch does it as well.
        plugin = FullyShardedDataParallelPlugin()
        if mixed_precision != "no":
            plugin.set_mixed_precision(mixed_precision)
        accelerator.state.fsdp_plugin = plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # each access of `state` copies it
        accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def _wants_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _check_device(device: str, mixed_precision: str) -> None:
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise InvalidValueError(f"device={device!r} is not accepted; use auto, cpu, cuda, cuda:N or mps")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= count:
        raise InvalidValueError(f"device={device!r} is not there: torch finds {count} CUDA devices; use auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InvalidValueError("device='mps' is not there: this machine has no Metal; use auto or cpu")
    if number and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidValueError(
            f"device={device!r} is for one process, and `accelerate launch` gives each its own GPU; leave --device out "
            "and choose GPUs with --gpu_ids"
        )
    without_gpu = kind == "cpu" or (kind == "auto" and not count and not torch.backends.mps.is_available())
    if mixed_precision == "fp16" and without_gpu:
        raise InvalidValueError("fp16 needs a GPU; on a CPU use bf16 (--dtype bf16) or float32")


@contextlib.contextmanager
def _accelerate_uses(device: str) -> Iterator[None]:
    """Tell accelerate which accelerator to use; otherwise it takes the first one."""
    if device in ("auto", "cpu", "cuda"):
        yield
        return
    before = os.environ.get("ACCELERATE_TORCH_DEVICE")
    os.environ["ACCELERATE_TORCH_DEVICE"] = device
    try:
        yield
    finally:
        del os.environ["ACCELERATE_TORCH_DEVICE"]
        if before is not None:
            os.environ["ACCELERATE_TORCH_DEVICE"] = before


@contextlib.contextmanager
def lost_processes(accelerator: Accelerator, output_dir: Path) -> Iterator[None]:
    """Turns the errors of a broken connection to another process into a `LostProcessError`."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        text = one_line(error)
        if accelerator.num_processes == 1 or not any(sign in text for sign in _LOST):
            raise
        raise LostProcessError(
            f"process {accelerator.process_index} of {accelerator.num_processes}: another process of this run ended "
            f"({text[:160]}), so this one ends too; its own message has the reason, or it was killed. The same "
            f"command continues from the newest state in {output_dir / 'states'}"
        ) from error


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

    Writes to `output_dir`: `checkpoint/` (the last one), `checkpoint-best/` where validation has a score,
    `checkpoints/` if requested, `states/` (to resume), `metrics.jsonl` (one line a step), `validation.jsonl`,
    `recipe.json`, and if requested `pictures/`, `tensorboard/` and `wandb/`. Only the main process writes. A finished
    run (`finished.json`) stays as it is.

    Args:
        resume: continue from the newest state; without it older states and logs are removed, once nothing but the
            first step is left to go wrong.
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
    task.mixture.check_batch(plan.drawn_together)
    main, states_dir = accelerator.is_main_process, output_dir / "states"
    if main:
        _prepare_folder(output_dir)
        _say_what_follows(task, recipe, plan, accelerator)
    if run.check_memory:
        check_fit(task, optimization, accelerator, num_samples=plan.micro_batch_size)
    _check_patience(task, run)
    accelerator.wait_for_everyone()
    trainer = Trainer(task, optimization, plan, accelerator)
    step, state = 0, latest_state(states_dir) if resume else None
    if state is not None:
        check_recipe(state, recipe)
        step = trainer.restore(state)
        if _agreed(accelerator, is_finished(output_dir, _facts(task, step, recipe))):
            LOGGER.info("%s is finished at step %d; nothing is left to do", output_dir, step)
            return output_dir / LAST_DIR
        LOGGER.info("resuming %s at step %d", output_dir, step)
    monitor = None
    if main:
        boards = open_boards(output_dir, run, recipe, step=step)
        if not resume:
            _forget(output_dir, states_dir)
        monitor = _open_monitor(output_dir, step, recipe, optimization, boards, accelerator, watch)
    writer = StateWriter(states_dir, keep=run.keep_states)
    session = _Session(task, trainer, recipe, optimization, run, output_dir, accelerator, monitor, writer)
    return session.go(plan, step, min(optimization.num_steps, stop_after_steps or optimization.num_steps))


def _forget(output_dir: Path, states_dir: Path) -> None:
    """Removes what an earlier run left."""
    forget_checkpoints(output_dir)
    shutil.rmtree(states_dir, ignore_errors=True)


def _say_what_follows(task: Task, recipe: Mapping[str, Any], plan: BatchPlan, accelerator: Accelerator) -> None:
    if launched_alone(plan.num_processes):
        LOGGER.warning(
            "`accelerate launch` started one process, so this run uses one device; for several give it "
            "--num_processes N and, on GPUs, --multi_gpu, or on CPUs --cpu"
        )
    for line in describe_run(task, recipe, plan, accelerator):
        LOGGER.info("%s", line)


@dataclass(frozen=True)
class _Session:
    """A run with everything open."""

    task: Task
    trainer: Trainer
    recipe: Mapping[str, Any]
    optimization: OptimizationConfig
    run: RunConfig
    output_dir: Path
    accelerator: Accelerator
    monitor: Monitor | None
    """The main process's monitor; None in the other processes."""
    writer: StateWriter

    @property
    def validation(self) -> Any:
        """Scores and pictures of the task's checkpoints; None where it has none."""
        return getattr(self.task, "validation", None)

    def go(self, plan: BatchPlan, step: int, last: int) -> Path | None:
        """Trains from `step` to `last`, and writes what `run_training` does; returns what that returns."""
        num_steps, device = self.optimization.num_steps, self.accelerator.device
        if 0 < step < num_steps:
            self.publish_again(step)
        ended = self.is_out_of_patience()
        if not ended:
            span = {"start": step, "stop": last}
            with Batches(self.task, plan, **span, num_workers=self.run.num_workers, device=device) as batches:
                step, ended = self.take_steps(batches, step, last)
        self.save(step)
        self.writer.wait()
        if not (finished := step >= num_steps or ended):
            LOGGER.info("stopped at step %d of %d, the state is saved", step, num_steps)
        directory = self.publish(step, final=True, validate=not ended) if finished else None
        if self.monitor is not None:
            self.monitor.close()
        self.accelerator.wait_for_everyone()
        return directory

    def take_steps(self, batches: Batches, step: int, last: int) -> tuple[int, bool]:
        """Trains from `step` to `last`, and saves and validates on the way.

        Returns:
            The number of finished steps, and whether the recipe's patience ended the run there.
        """
        saved_at, ended = time.monotonic(), False
        while step < last:
            result = self.trainer.take_step(step, batches)
            if self.monitor is not None:
                self.monitor.add(step, result, waited_s=batches.take_waited())
            step += 1
            self.writer.check()
            period = self.run.save_period_s
            period = max(period, self.writer.seconds / MOST_TIME_FOR_STATES) if period else 0.0
            validate, number = self.due(step)
            is_due = (validate or number) and step < self.optimization.num_steps
            if is_due or (step < last and _agreed(self.accelerator, time.monotonic() - saved_at > period)):
                self.save(step)
                saved_at = time.monotonic()
            if is_due:
                self.writer.wait()  # an error in a validation must not cost the steps before it
                self.publish(step, final=False, validate=validate)
                if validate and (ended := self.is_out_of_patience()):
                    break
        return step, ended

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether a validation, and a numbered checkpoint, belong to a step."""
        periods = (self.run.validation_period, self.run.checkpoint_period)
        validate, number = (bool(period) and step % period == 0 for period in periods)
        return validate, number

    def publish_again(self, step: int) -> None:
        """Validates and keeps the checkpoint of a step at which the run was interrupted before this was done."""
        validate, number = self.due(step)
        validate = validate and not scores_of(self.output_dir / "validation.jsonl", step)
        number = number and not (self.output_dir / NUMBERED_DIR / f"step-{step:08d}").is_dir()
        validate, number = (_agreed(self.accelerator, wanted) for wanted in (validate, number))
        if validate or number:
            self.publish(step, final=False, validate=validate)

    def is_out_of_patience(self) -> bool:
        """Whether the recipe ends the run by now, because its last validations were no better than one before."""
        if not self.run.patience:
            return False
        measured = _measured_by_patience(self.task, self.run)
        assert measured is not None
        name, higher_is_better = measured
        log = self.output_dir / "validation.jsonl"
        count = validations_since_best(log, name, higher_is_better=higher_is_better)
        if not _agreed(self.accelerator, count >= self.run.patience):
            return False
        if self.accelerator.is_main_process:
            best = best_step(log, name, higher_is_better=higher_is_better)
            LOGGER.info("ending early: %d validations in a row were no better by %s than step %s", count, name, best)
        return True

    def save(self, step: int) -> None:
        """Starts to write the state after `step` steps."""
        if self.monitor is not None:
            self.monitor.flush()  # it refuses losses that are not finite
        collected = self.trainer.state(step, self.recipe)
        if self.accelerator.is_main_process:
            self.writer.submit(collected)

    def publish(self, step: int, *, final: bool, validate: bool = True) -> Path:
        """Writes and validates the checkpoint, with averaged weights where there are any; the model stays as it was."""
        directory = self.output_dir / LAST_DIR
        with self.trainer.whole_weights():
            if self.monitor is not None:
                self.monitor.flush()
                mark_finished(self.output_dir, None)
                self.task.save(directory, final=final)
                scores = self.task.validate(directory) if validate else {}
                folder, shown = self.output_dir / "pictures" / f"step-{step:08d}", {}
                if validate and self.validation is not None:
                    shown = self.validation.pictures(directory, folder)
                line = {"step": step, **scores}
                self._write_card(directory, step, scores)
                self._keep(directory, line, final=final)
                if scores:  # last, because a step with a line is complete
                    LOGGER.info("validation %s", json.dumps(line))
                    append_text(self.output_dir / "validation.jsonl", json.dumps(line) + "\n")
                self.monitor.validated(step, scores, shown)
                if final:
                    mark_finished(self.output_dir, _facts(self.task, step, self.recipe))
        self.accelerator.wait_for_everyone()
        return directory

    def _write_card(self, directory: Path, step: int, scores: Mapping[str, float]) -> None:
        """Writes the model card, where a task has one; a step that was scored before keeps these scores."""
        make: Any = getattr(self.task, "card", None)
        if make is not None:
            text = make(step, dict(scores) or scores_of(self.output_dir / "validation.jsonl", step))
            write_atomically(directory / CARD, lambda partial: partial.write_text(text, encoding="utf-8"))

    def _keep(self, directory: Path, line: Mapping[str, Any], *, final: bool) -> None:
        """Keeps the checkpoint of a step, given as its line of scores, where it is the best or numbered.

        The last one makes all complete.
        """
        step = line["step"]
        if final:
            for kept in kept_checkpoints(self.output_dir):
                keep_checkpoint(directory, kept, trained_of=kept)
        if self.run.checkpoint_period and step % self.run.checkpoint_period == 0:
            keep_checkpoint(directory, self.output_dir / NUMBERED_DIR / f"step-{step:08d}")
        if self.validation is not None and self.validation.main_score is not None:
            name, higher_is_better = self.validation.main_score
            log = self.output_dir / "validation.jsonl"
            best = best_step(log, name, higher_is_better=higher_is_better, newest=line)
            if best == step:
                keep_checkpoint(directory, self.output_dir / BEST_DIR)
            if final and best is not None:
                LOGGER.info("the best checkpoint by %s is that of step %d: %s", name, best, BEST_DIR)


def _measured_by_patience(task: Task, run: RunConfig) -> tuple[str, bool] | None:
    """Name of what `run.patience` looks at, and whether higher is better; None where a task does not measure it."""
    if run.patience_of == "loss":
        return getattr(task, "validation_loss", None)
    validation = getattr(task, "validation", None)
    return None if validation is None else validation.main_score


def _check_patience(task: Task, run: RunConfig) -> None:
    if run.patience and _measured_by_patience(task, run) is None:
        raise RecipeError(
            f"run.patience needs a validation {run.patience_of}, and this run has none; hold out scenes "
            "(data.held_out), give --benchmark, or set run.patience = 0"
        )


def _facts(task: Task, step: int, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the last checkpoint, its card, scores and pictures follow from."""
    validation = getattr(task, "validation", None)
    validated = [] if validation is None else [*validation.described, *validation.photos]
    return {"step": step, "recipe": recipe, "validated": validated}


def _prepare_folder(output_dir: Path) -> None:
    make_directory(output_dir)
    for left in (
        *output_dir.glob(".checkpoint*"),
        *output_dir.glob(f"{NUMBERED_DIR}/.step-*"),
    ):  # a partly written checkpoint of a killed run
        shutil.rmtree(left, ignore_errors=True)


def _open_monitor(
    output_dir: Path,
    step: int,
    recipe: Mapping[str, Any],
    optimization: OptimizationConfig,
    boards: list[Board],
    accelerator: Accelerator,
    watch: Any,
) -> Monitor:
    """Writes the recipe and opens the logs, next to `boards`, without the lines of steps that are made again."""
    monitor = Monitor(
        output_dir,
        step=step,
        num_steps=optimization.num_steps,
        batch_size=optimization.batch_size,
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        boards=boards,
        device=accelerator.device,
        watch=watch or (lambda progress: LOGGER.info("%s", progress)),
    )
    text = json.dumps(recipe, indent=2) + "\n"
    write_atomically(output_dir / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))
    # A validation belongs to the steps before it; the last one is made again by a run that has nothing else to do.
    keep_lines(output_dir / "validation.jsonl", before=step + (0 < step < optimization.num_steps))
    return monitor


def _agreed(accelerator: Accelerator, wanted: bool) -> bool:
    """The main process's decision, for all processes: their clocks differ, and saving needs all of them."""
    if accelerator.num_processes == 1:
        return wanted
    flag = torch.tensor([float(wanted and accelerator.is_main_process)], device=accelerator.device)
    summed: Any = accelerator.reduce(flag, reduction="sum")
    return bool(summed.item())
