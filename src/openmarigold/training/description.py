# SPDX-License-Identifier: Apache-2.0
"""What a run is about to do, in lines: device, batch, share of each source, validation, and the resolved recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from openmarigold.training.batches import BatchPlan
from openmarigold.training.views import Mixture


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
