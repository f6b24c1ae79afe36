# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates of a U-Net (LoRA, Hu et al. 2021): trained, merged into its weights, or kept in files of their own.

A layer's weight becomes W + s B A with A [r, in], B [out, r] and s = alpha / r; only A and B are trained. Layers that
the method widens (`conv_in`, and `conv_out` for several targets) are trained in full. Their change has a rank of at
most their smaller side, so that it is an exact low-rank update, too, and one file holds everything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from openmarigold.errors import InvalidValueError, needs_extra
from openmarigold.networks.tensors import save_tensors

ADAPTER_DIR = "adapter"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
_NAME = "marigold"  # name of the adapter, because a network may have several


class LowRank(NamedTuple):
    """The update B A of a layer's weight: A [r, ...] of its inputs, B [out, r] or [out, r, 1, 1]."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def product(self) -> Tensor:
        """B A in the shape of the weight."""
        return (self.b.flatten(1) @ self.a.flatten(1)).reshape(self.b.shape[0], *self.a.shape[1:])


class LoraUNet:
    """A U-Net whose weights are frozen but for low-rank updates and the layers `in_full`."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        in_full: Sequence[str],
        seed: int,
    ) -> None:
        """Changes `unet` in place; it computes what it did, until it is trained.

        Args:
            rank: r of every update.
            alpha: scale of the updates, times r.
            targets: ends of the names of the layers that are updated, such as "to_q".
            in_full: names of layers whose weight (not the bias) is trained as it is.
            seed: of the matrices A, which start at random; B starts at 0.

        Raises:
            InvalidValueError: a target that no linear or convolutional layer has, or only layers that are trained in
                full.
            MissingExtraError: peft is not installed.
        """
        with needs_extra("train"):
            from peft import LoraConfig, inject_adapter_in_model
        names = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        chosen = [name for name in names if name not in in_full and _ends_with(name, targets)]
        unknown = [target for target in targets if not any(_ends_with(name, [target]) for name in names)]
        if unknown:
            raise InvalidValueError(
                f"lora.targets names {', '.join(unknown)}, which no layer of this U-Net ends with; such as "
                f"{', '.join(sorted({name.rsplit('.')[-1] for name in names})[:12])}"
            )
        if not chosen:
            raise InvalidValueError(
                f"lora.targets names only what is trained in full anyway ({', '.join(in_full)}); name other layers, "
                "such as to_q"
            )
        unet.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen), unet, _NAME)  # pyright: ignore
        self.unet, self.scale, self._updated = unet, alpha / rank, chosen
        generator = torch.Generator().manual_seed(seed)
        for name in chosen:
            a, b = self._matrices(name)
            with torch.no_grad():
                bound = 1.0 / math.sqrt(a[0].numel())
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
                b.zero_()
        self._start = {name: self._layer(name).weight.detach().clone() for name in in_full}
        for name in in_full:
            self._layer(name).weight.requires_grad_(True)

    def halve_base(self, dtype: torch.dtype) -> None:
        """Keeps what is frozen in a type of 16 bits; `merged` then needs the weights as they were."""
        for parameter in self.unet.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)

    def groups(self, *, full_factor: float) -> list[dict[str, Any]]:
        """Groups of parameters for an optimizer; layers in full have this factor of the learning rate."""
        full = [self._layer(name).weight for name in self._start]
        known = {id(parameter) for parameter in full}
        low_rank = [p for p in self.unet.parameters() if p.requires_grad and id(p) not in known]
        return [{"params": low_rank}, {"params": full, "factor": full_factor}]

    def updates(self) -> Iterator[tuple[str, LowRank]]:
        """Each changed layer with its update as it is now, float32, the scale in B. No layer is left out."""
        with torch.no_grad():
            for name in self._updated:
                a, b = self._matrices(name)
                yield name, LowRank(a.float().cpu(), b.float().cpu() * self.scale)
            for name, start in self._start.items():
                yield name, as_low_rank((self._layer(name).weight.detach() - start.to(self._layer(name).weight)).cpu())

    def merged(self, base: Mapping[str, Tensor] | None = None) -> UNet2DConditionModel:
        """A U-Net of the plain layers with the updates in their weights, in main memory.

        Args:
            base: the weights before training, by their plain names, which are changed; None: those that are in use.
        """
        if base is None:
            found = {name: value for name, value in self.unet.state_dict().items() if ".lora_" not in name}
            base = {name.replace(".base_layer.", "."): value.detach().cpu() for name, value in found.items()}
            base = {**base, **{f"{name}.weight": start.cpu() for name, start in self._start.items()}}
        weights = dict(base)
        for name, update in self.updates():
            weights[f"{name}.weight"] = weights[f"{name}.weight"].float() + update.product()
        with torch.device("meta"):
            plain: Any = UNet2DConditionModel.from_config(self.unet.config)
        plain.load_state_dict(weights, strict=True, assign=True)
        return plain

    def save(self, folder: Path, *, base: str) -> None:
        """Writes the updates to a new folder, for diffusers (`load_lora_adapter`, `load_lora_weights`) and for PEFT.

        Args:
            base: what they belong to, for the reader.
        """
        save_updates(dict(self.updates()), folder, base=base)

    def _layer(self, name: str) -> Any:
        return self.unet.get_submodule(name)

    def _matrices(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        layer = self._layer(name)
        return layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight


def as_low_rank(change: Tensor) -> LowRank:
    """The exact update of a layer's weight ([out, in] or [out, in, h, w]): one of the two matrices is the identity.

    >>> as_low_rank(torch.ones(3, 2)).rank
    2
    """
    outputs, inputs = change.shape[0], change[0].numel()
    tail = (1, 1) if change.ndim == 4 else ()
    if outputs <= inputs:
        return LowRank(change.clone(), torch.eye(outputs).reshape(outputs, outputs, *tail))
    a = torch.eye(inputs).reshape(inputs, *change.shape[1:])
    return LowRank(a, change.reshape(outputs, inputs, *tail).clone())


def save_updates(updates: Mapping[str, LowRank], folder: Path, *, base: str) -> None:
    """Writes updates by the names of their layers; raises what the system does where a file cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {name: update.rank for name, update in updates.items()}
    usual = max(ranks.values(), key=list(ranks.values()).count)
    others = {f"^{name}": rank for name, rank in ranks.items() if rank != usual}
    # The scale is in B, so that alpha is the rank everywhere.
    settings = {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
    }
    matrices = {"lora_A.weight": 0, "lora_B.weight": 1}
    stated = json.dumps({f"unet.{key}": value for key, value in settings.items()}, sort_keys=True)
    for prefix, path, facts in (
        ("unet.", folder / DIFFUSERS_FILE, {"lora_adapter_metadata": stated}),
        ("base_model.model.", folder / PEFT_FILES[0], {}),
    ):
        tensors = {
            f"{prefix}{name}.{matrix}": update[number]
            for name, update in updates.items()
            for matrix, number in matrices.items()
        }
        save_tensors(tensors, path, metadata=facts)
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True, "bias": "none", **settings}
    (folder / PEFT_FILES[1]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _ends_with(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)
