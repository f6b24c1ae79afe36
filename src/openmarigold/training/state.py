# SPDX-License-Identifier: Apache-2.0
"""The state of a run: everything that the next step depends on, in a folder `step-N` that is always whole.

A new folder appears in one rename before the older one goes, so whenever a run is killed a whole one is there.
`state.json` says which recipe, inputs (hashes of the base checkpoint and the data) and step it is,
`tensors.safetensors` holds weights, their moving average and the optimizer's moments. No loader or generator state:
batches are functions of the step (docs/architecture.md).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from openmarigold.backbone import save_tensors
from openmarigold.errors import CheckpointError, one_line
from openmarigold.files import atomic_directory


def latest_state(states_dir: Path) -> Path | None:
    """The newest whole state below `states_dir`; None if there is none."""
    found = sorted(states_dir.glob("step-*"))
    return found[-1] if found else None


def save_state(
    states_dir: Path,
    *,
    step: int,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, str],
    model: nn.Module,
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes the state after `step` finished steps, then removes older ones. A state that is there is kept."""
    current = states_dir / f"step-{step:08d}"
    if current.is_dir():
        return
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    described = {"step": step, "recipe": recipe, "inputs": inputs}
    with atomic_directory(current) as folder:
        save_tensors(tensors, folder / "tensors.safetensors")
        (folder / "state.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    for other in states_dir.iterdir():  # older states, and what a killed run left half-written
        if other != current:
            shutil.rmtree(other, ignore_errors=True)


def check_recipe(state: Path, recipe: Mapping[str, Any]) -> None:
    """Passes if the state belongs to the recipe, before anything is built.

    Raises:
        CheckpointError: the state is damaged or belongs to another recipe.
    """
    changed = _differences(_described(state)["recipe"], recipe)
    if changed:
        raise CheckpointError(
            f"{state} was trained with another recipe ({', '.join(changed)} changed); "
            "restore the recipe, choose another --output-dir, or train with --no-resume to start anew"
        )


def load_state(
    state: Path,
    *,
    inputs: Mapping[str, str],
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restores a saved state into the arguments and returns the number of finished steps.

    Raises:
        CheckpointError: the state is damaged, or its base checkpoint or data have changed since.
    """
    described = _described(state)
    changed = [name for name, value in inputs.items() if described["inputs"].get(name) != value]
    if changed:
        raise CheckpointError(
            f"{state} was trained from something else ({', '.join(changed)} changed since); "
            "restore it, choose another --output-dir, or train with --no-resume to start anew"
        )
    try:
        tensors = load_file(state / "tensors.safetensors")
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups[group][rest] = value
        model.load_state_dict(groups["model"])
        for name, value in groups["average"].items():
            average[name].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except Exception as error:
        raise _damaged(state, error) from error
    return int(described["step"])


def _described(state: Path) -> dict[str, Any]:
    try:
        described = json.loads((state / "state.json").read_text(encoding="utf-8"))
        return {
            "step": int(described["step"]),
            "recipe": dict(described["recipe"]),
            "inputs": dict(described["inputs"]),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(state, error) from error


def _damaged(state: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{state} cannot be resumed ({one_line(error)}); train with --no-resume to start anew")


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    # When to save and what to recommend to users may change; everything else changes what is learnt.
    found = []
    for key in sorted(saved.keys() | current.keys()):
        old, new = saved.get(key), current.get(key)
        if not prefix and key in ("run", "checkpoint"):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            nested = _differences(old, new, f"{prefix}{key}.")
            # Draws go by the order of the sources, which equality of tables does not see.
            reordered = key == "sources" and not nested and list(old) != list(new)
            found += [f"{prefix}{key}"] if reordered else nested
        elif old != new:
            found.append(f"{prefix}{key}")
    return found
