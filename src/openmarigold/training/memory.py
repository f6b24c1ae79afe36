# SPDX-License-Identifier: Apache-2.0
"""How much memory a training will take, before it takes it.

Weights, gradients and moments are exact. Activations are counted: the network runs once with tensors that have sizes
and no memory, and what the backward pass would keep is added up.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from openmarigold.errors import RecipeError
from openmarigold.networks.memory import available_memory
from openmarigold.printing import quoted_logger
from openmarigold.training.settings import OptimizationConfig

LOGGER = quoted_logger(__name__)
GIB = 2.0**30
LEAST_SHARE_THAT_MATTERS = 1 / 100  # of free memory
# What diffusers computes again in the backward pass with gradient checkpointing.
_RECOMPUTED = ("ResnetBlock2D", "BasicTransformerBlock", "UNetMidBlock2D", "UpDecoderBlock2D")
_MOMENT_BYTES = {"adam": 8, "adamw_8bit": 2}  # of a trained weight: two moments


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Memory of a training on one device [bytes].

    Attributes:
        weights: all weights of the trained network, including frozen ones.
        average: memory of the moving average.
        activations: what the backward pass needs, about; 0 where it is not known.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int

    @property
    def certain(self) -> int:
        """All that does not depend on an estimate."""
        return self.weights + self.gradients + self.moments + self.average

    @property
    def total(self) -> int:
        return self.certain + self.activations

    def __str__(self) -> str:
        parts = [("weights", self.weights), ("gradients", self.gradients), ("moments", self.moments)]
        parts += [("average", self.average)] if self.average else []
        parts += [("activations", self.activations)] if self.activations else []
        named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts)
        return f"memory: about {self.total / GIB:.2f} GiB ({named})"


def estimate_memory(
    network: nn.Module, config: OptimizationConfig, *, activations: int = 0, num_processes: int = 1
) -> MemoryEstimate:
    """The memory of training `network` on one of `num_processes` processes. Parameters that are frozen now count as
    frozen.
    """
    parameters = list(network.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    half = config.mixed_precision != "no"
    return MemoryEstimate(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        # Several processes exchange them in buffers of the same size (torch's DistributedDataParallel).
        gradients=4 * trained * (1 if num_processes == 1 else 2),
        moments=_MOMENT_BYTES[config.optimizer] * trained,
        average=4 * trained if config.ema_decay else 0,
        # Autocast keeps its copies of trained weights in 16 bits until the forward pass is over.
        activations=activations + (2 * trained if half and activations else 0),
    )


def check_fit(task: Any, config: OptimizationConfig, accelerator: Accelerator, *, num_samples: int) -> None:
    """Log the memory that the training of a task needs, and refuse a training that cannot fit. For sharded training the
    need is not known in advance.

    Args:
        num_samples: of a micro-batch.

    Raises:
        RecipeError: weights, gradients and moments alone do not fit.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        return
    counted = {"num_processes": accelerator.num_processes}
    free, estimate = free_memory(accelerator.device), estimate_memory(task.model, config, **counted)
    count = getattr(task, "activation_bytes", None)
    if count is not None and estimate.certain > free * LEAST_SHARE_THAT_MATTERS:  # counting takes a second
        estimate = estimate_memory(task.model, config, activations=count(num_samples), **counted)
    check_memory(estimate, accelerator.device, free=free)


def free_memory(device: torch.device) -> float:
    """Memory that this process may still take on a device [bytes]; infinite where that is not known."""
    if device.type == "cpu":  # which all processes of this machine share
        return available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return available_memory(str(device))


def check_memory(estimate: MemoryEstimate, device: torch.device, *, free: float) -> None:
    """Compares an estimate with what is free on a device, and warns where activations may not fit.

    Args:
        free: memory of the device [bytes]; on a CPU the network's weights lie in it already and are not counted again.

    Raises:
        RecipeError: weights, gradients and moments alone do not fit.
    """
    there = estimate.weights if device.type == "cpu" else 0
    LOGGER.info("%s; free on %s: %.1f GiB", estimate, device, (free + there) / GIB)
    ways = (
        "set lora.rank = 16 (a third of the memory), gradient_checkpointing = true, a smaller micro_batch_size or "
        'optimizer = "adamw_8bit"'
    )
    if estimate.certain - there > free:
        raise RecipeError(
            f"training needs {estimate.certain / GIB:.1f} GiB for weights, gradients and moments alone, and "
            f"{(free + there) / GIB:.1f} GiB are free on {device}; {ways}, or try it with run.check_memory = false"
        )
    if estimate.total - there > free:
        LOGGER.warning(
            "this may not fit: about %.1f GiB are needed, and %.1f GiB are free on %s; %s",
            *(estimate.total / GIB, (free + there) / GIB, device, ways),
        )


def activation_bytes(
    make: Callable[[], nn.Module], run: Callable[[Any], object], *, half: bool = False, recomputed: bool = False
) -> int:
    """What the backward pass of one forward pass would keep in memory [bytes], without the weights.

    Args:
        make: makes the network; called where tensors have no memory.
        run: runs it, with inputs that it makes.
        half: with autocast to 16 bits.
        recomputed: with diffusers' gradient checkpointing: of a block its inputs are kept, and one block at a time is
            computed again. The network itself must not do so.
    """
    kept: dict[int, tuple[Any, nn.Module | None]] = {}  # by storage, which is held so that its address stays its own
    inputs: Counter[nn.Module] = Counter()
    current: list[nn.Module | None] = [None]
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = make().train()
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept.setdefault(storage._cdata, (storage, current[0]))
            return tensor

        def enter(block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            current[0] = block
            tensors = [value for value in (*given, *named.values()) if isinstance(value, torch.Tensor)]
            inputs[block] = sum(value.numel() * value.element_size() for value in tensors)

        def leave(*_: object) -> None:
            current[0] = None

        for block in network.modules():
            if recomputed and type(block).__name__ in _RECOMPUTED:
                block.register_forward_pre_hook(enter, with_kwargs=True)
                block.register_forward_hook(leave)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
        ):
            run(network)
    sizes: Counter[nn.Module | None] = Counter()
    for storage, block in kept.values():
        sizes[block] += storage.nbytes()
    outside = sizes.pop(None, 0)
    return outside + sum(inputs.values()) + max(sizes.values(), default=0)
