# SPDX-License-Identifier: Apache-2.0
"""Before a run: `train --dry-run` with early checks and the needs in time, memory and disk; and the lines that describe
a run: device, batch, share of each source, validation, and the resolved recipe.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from openmarigold.errors import NumericalError
from openmarigold.printing import format_time
from openmarigold.training.batches import BatchPlan, plan_batches
from openmarigold.training.loss import Loss
from openmarigold.training.memory import check_fit
from openmarigold.training.monitor import peak_memory
from openmarigold.training.recipe import Recipe, keeps_latents
from openmarigold.training.trainer import TrainingModule, optimizer_of
from openmarigold.training.views import Mixture

_NUM_SAMPLES = 2  # of each source that are looked at
_GIB = 2.0**30
_LONG_STEP_S = 20.0


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The result of a dry run; `str` gives it as text.

    Attributes:
        sources: name, number of samples and views, size of the views.
        loss: of one step.
        step_s: that step [s], with reading and encoding where there is no cache.
        peak_memory: of the device or process [bytes].
        cache_bytes: latents on disk, and `encode_s`, the time to make them [s]; 0 without a cache.
        state_bytes: a saved state on disk.
        free_bytes: left where the run will be written.
        validation_sets: what is scored, and how much of it; `validation_s`, the time for all of it [s], by one image of
            each, and `num_validations`, how often the run does it.
    """

    sources: tuple[tuple[str, int, int, tuple[int, int]], ...]
    plan: BatchPlan
    num_steps: int
    num_parameters: int
    loss: float
    step_s: float
    peak_memory: int
    cache_bytes: int
    encode_s: float
    state_bytes: int
    keep_states: int
    free_bytes: int
    validation_sets: tuple[str, ...] = ()
    validation_s: float = 0.0
    num_validations: int = 0

    def __str__(self) -> str:
        lines = [
            f"source {name}: {samples} samples, {views} views of {height}x{width}"
            for name, samples, views, (height, width) in self.sources
        ]
        lines += [
            self.plan.described,
            f"trained weights: {self.num_parameters / 1e6:.1f} million",
            f"one step: loss {self.loss:.4f}, {self.step_s:.2f} s, peak memory {self.peak_memory / _GIB:.2f} GiB",
            f"all {self.num_steps} steps: about {format_time(self.step_s * self.num_steps)}, without validation",
        ]
        if self.validation_sets:
            lines.append(
                f"validation: {', '.join(self.validation_sets)}; about {format_time(self.validation_s)} each time, "
                f"{self.num_validations} times"
            )
        else:
            lines.append("validation: none; name scenes with data.held_out, or give --benchmark")
        if self.cache_bytes:
            lines.append(
                f"latents: {self.cache_bytes / _GIB:.2f} GiB on disk, about {format_time(self.encode_s)} to encode; "
                "after that steps do not encode"
            )
        # A new state is complete before the oldest is removed.
        needed = self.state_bytes * (self.keep_states + 1) + self.cache_bytes
        lines.append(
            f"disk: {self.state_bytes / _GIB:.2f} GiB a state, {needed / _GIB:.2f} GiB for states and latents at most, "
            f"{self.free_bytes / _GIB:.1f} GiB free; checkpoints are not counted"
        )
        if needed > self.free_bytes:
            lines.append("WARNING: the disk is too small for that")
        return "\n".join(lines)


def make_dry_run(task: Any, recipe: Recipe, *, output_dir: Path, accelerator: Accelerator) -> DryRun:
    """Reads some samples of each source and makes one optimizer step; nothing is written.

    Args:
        task: built without a cache, so that the step encodes its views itself.

    Raises:
        DataError: a source is too small, or a sample is damaged.
        NumericalError: the loss is not finite.
        RecipeError: the batch cannot be spread over the processes, or the training does not fit into memory.
    """
    optimization, mixture = recipe.optimization, task.mixture
    plan = plan_batches(optimization, num_processes=accelerator.num_processes, process_index=accelerator.process_index)
    mixture.check_batch(plan.drawn_together)
    if recipe.run.check_memory:
        check_fit(task, optimization, accelerator, num_samples=plan.micro_batch_size)
    variants = recipe.data.num_variants
    sources = []
    for number, source in enumerate(mixture.sources):
        for sample in range(0, len(source), max(1, len(source) // _NUM_SAMPLES)):
            source.read(sample)
        sources.append((source.name, len(source), len(source) * variants, mixture.size_of(number)))
    network = task.model.to(accelerator.device).train()
    module: Any = TrainingModule(task)
    optimizer = optimizer_of(task, optimization)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    encodes = keeps_latents(recipe)
    loss, view_s, step_s = 0.0, 0.0, 0.0
    for attempt in range(2):  # the first warms up, unless it takes so long that this does not matter
        loss, view_s, step_s = _time_step(task, plan, module, optimizer, accelerator, encodes=encodes)
        if attempt == 0 and step_s > _LONG_STEP_S:
            break
    kept = parameters if getattr(task, "only_trained", False) else network.state_dict().values()
    weights = sum(value.numel() * value.element_size() for value in kept)
    moments = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    sets, validation_s = _time_validation(task)
    period, num_steps = recipe.run.validation_period, optimization.num_steps
    place = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    return DryRun(
        sources=tuple(sources),
        plan=plan,
        num_steps=optimization.num_steps,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        loss=loss,
        step_s=step_s,
        peak_memory=peak_memory(accelerator.device),
        cache_bytes=task.latents.bytes_of_cache if encodes else 0,
        encode_s=view_s * int(mixture.starts[-1]) / accelerator.num_processes if encodes else 0.0,
        state_bytes=weights * (2 if optimization.ema_decay else 1) + moments,
        keep_states=recipe.run.keep_states,
        free_bytes=shutil.disk_usage(place).free,
        validation_sets=tuple(sets),
        validation_s=validation_s,
        num_validations=1 + ((num_steps - 1) // period if period else 0),
    )


def _time_validation(task: Any) -> tuple[list[str], float]:
    """The sets that a task scores, and about how long that takes [s]. Its checkpoint is in a temporary folder
    meanwhile.
    """
    validation = getattr(task, "validation", None)
    if validation is None or not validation.described:
        return [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        task.save(checkpoint, final=False)
        return validation.described, validation.estimated_s(checkpoint)


def _time_step(
    task: Any,
    plan: BatchPlan,
    module: Any,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    encodes: bool,
) -> tuple[float, float, float]:
    """Loss of one step, seconds to read and encode one view, and seconds of the rest of the step.

    If the full run has no cache, `encodes` is False, and reading and encoding count as part of the step.
    """
    loss, prepared_s = 0.0, 0.0
    started = time.monotonic()
    for micro_step in range(plan.num_micro_steps):
        before = time.monotonic()
        arrays = task.batch(plan.slice_of(0, micro_step))
        batch = {name: torch.from_numpy(value).to(accelerator.device) for name, value in arrays.items()}
        if encodes:
            batch = task.latents.encoded(batch)
            batch["rgb_latent"].sum().item()  # waits for the device
            prepared_s += time.monotonic() - before
        with accelerator.autocast():
            found: Loss = Loss(*module(batch))
        accelerator.backward(found.mean / plan.num_micro_steps)
        loss += found.mean.item() / plan.num_micro_steps
    if not math.isfinite(loss):
        raise NumericalError(f"the loss of the first step is {loss}; check the base checkpoint and [noise]")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    views = plan.micro_batch_size * plan.num_micro_steps
    return loss, prepared_s / views, time.monotonic() - started - prepared_s


def describe_run(task: Any, recipe: Mapping[str, Any], plan: BatchPlan, accelerator: Accelerator) -> list[str]:
    """Lines about a run, before its first step."""
    precision = {"no": "float32"}.get(accelerator.mixed_precision, f"{accelerator.mixed_precision} (weights float32)")
    device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    processes = _counted(plan.num_processes, "process", "processes")
    lines = [
        f"device {device}, {processes}, precision {precision}"
        + (", weights spread over them (FSDP)" if accelerator.distributed_type == DistributedType.FSDP else ""),
        plan.described,
        *describe_sources(task.mixture),
    ]
    validation = getattr(task, "validation", None)
    if validation is not None:
        sets = ", ".join(validation.described)
        lines.append(f"validation: {sets or 'none; hold out scenes (data.held_out) or give --benchmark'}")
    for section, values in recipe.items():
        lines.append(f"recipe: {section} = {json.dumps(values)}")
    return lines


def describe_sources(mixture: Mixture) -> list[str]:
    """A line for each source: its share of the samples, how many there are, and how much of them views show."""
    lines = []
    for number, (source, share) in enumerate(zip(mixture.sources, mixture.shares, strict=True)):
        height, width = mixture.size_of(number)
        line = (
            f"source {source.name}: {100 * share:.1f} % of the samples, {len(source)} pictures, views {height}x{width}"
        )
        if source.has_sizes:
            shown = [min(1.0, w / h * height / width, h / w * width / height) for h, w in source.sizes.tolist()]
            line += f" of {100 * min(shown):.0f} to {100 * max(shown):.0f} % of each" if min(shown) < 0.995 else ""
        lines.append(line)
        for kind in sorted(set(source.kinds)):
            low, high = mixture.limits(kind, source)
            if high < float("inf"):
                title = mixture.modality.title
                lines.append(f"  {kind}: {title} from {low:g} to {high:g} counts (data.max_depth, data.valid_range)")
    for source in mixture.held_out:
        if len(source):
            scenes = ", ".join(source.scenes[:4]) + (", ..." if len(source.scenes) > 4 else "")
            lines.append(f"held out of {source.name}: {len(source)} pictures of {scenes}")
    return lines


def launched_alone(num_processes: int) -> bool:
    """Whether `accelerate launch` started this process, and no other one."""
    return num_processes == 1 and any(
        name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND")
    )


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
