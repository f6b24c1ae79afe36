# SPDX-License-Identifier: Apache-2.0
"""The state of a run: everything that the next step depends on, in a folder `step-N` that is always whole.

A new folder appears by one rename before older ones are removed. So a whole one exists even if the run is killed or the
disk is full. `state.json` holds recipe, inputs (hashes of the base checkpoint and the data) and step;
`tensors.safetensors` weights, their moving average and the optimizer's moments; `SHA256SUMS` the hashes of both. There
is no state of loaders or generators: batches are functions of the step (docs/architecture.md).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from openmarigold.checkpoints.integrity import check_sums, write_sums
from openmarigold.errors import CheckpointError, OutputError, RecipeError, one_line
from openmarigold.files import atomic_directory
from openmarigold.networks.memory import available_memory
from openmarigold.networks.tensors import save_tensors
from openmarigold.printing import quoted_logger
from openmarigold.text_files import parse_json, with_current_keys
from openmarigold.training.recipe import parse_recipe, to_table
from openmarigold.training.resuming import end_of_decay, with_earlier_behavior

LOGGER = quoted_logger(__name__)
ORDER, ORDER_BY_RECIPE = "order of the samples", "by micro-batches of the recipe"
"""An input of a run; in earlier versions the order depended on the number of processes."""
_SEPARATOR = "/"  # names of weights have dots


def latest_state(states_dir: Path) -> Path | None:
    """The newest state below `states_dir`; None if there is none."""
    found = sorted(states_dir.glob("step-*"))
    return found[-1] if found else None


def set_damaged_aside(states_dir: Path) -> None:
    """Makes the newest intact state the latest one, by renaming newer ones whose bytes are not those that were written.

    The next state that is written replaces damaged ones. If no state is intact, all stay.

    Raises:
        CheckpointError: no state is intact.
        OutputError: a damaged one cannot be renamed.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    for state in sorted(states_dir.glob("step-*"), reverse=True):
        try:
            check_sums(state)
        except CheckpointError as error:
            damaged.append((state, error))
            continue
        for other, error in damaged:
            LOGGER.warning("%s is damaged (%s); continuing from %s", other, one_line(error), state.name)
            try:
                other.rename(other.with_name(f"damaged-{other.name}"))
            except OSError as problem:
                raise OutputError(f"cannot rename {other}: {problem.strerror}; remove it") from problem
        return
    if damaged:
        state, error = damaged[0]
        raise _damaged(state, error) from error


@dataclass(frozen=True)
class State:
    """The content to write after `step` finished steps; empty on all processes but the main one."""

    step: int
    described: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.tensors.values())


def collect_state(
    step: int,
    *,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, str],
    model: nn.Module,
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    only_trained: bool = False,
    scaler: Mapping[str, float] | None = None,
) -> State:
    """The state after `step` finished steps, in main memory; every process must call it.

    With `only_trained` frozen weights are left out. `scaler` is the state of the loss's scale in fp16.

    On a CPU tensors are the ones in use, not copies: write them, or copy them, before the next step.
    """
    weights, moments = get_state_dict(model, optimizer, options=_options(only_trained))
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    groups = moments.get("param_groups", [])
    for name, tree in (("model", weights), ("average", _gathered(average)), ("optimizer", moments.get("state", {}))):
        for path, value in _leaves(tree, name):
            if isinstance(value, Tensor):
                tensors[path] = value.detach().cpu()
            else:
                scalars[path] = value
    described = {"step": step, "recipe": recipe, "inputs": inputs, "param_groups": groups, "scalars": scalars}
    described |= {} if scaler is None else {"scaler": dict(scaler)}
    return State(step, described, tensors)


class StateWriter:
    """Writes states one after another, from a thread where memory allows a copy, and removes older ones."""

    def __init__(self, states_dir: Path, *, keep: int) -> None:
        self._states_dir, self._keep = states_dir, keep
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] | None = None
        self.seconds = 0.0
        """Time that the last state took to write [s]."""

    def submit(self, state: State) -> None:
        """Starts to write `state`, after the one before is done. One that is there already is kept.

        Raises:
            OutputError: this or the one before could not be written; what was there before it still is.
        """
        self.wait()
        current = self._states_dir / f"step-{state.step:08d}"
        if current.is_dir():
            return
        if state.num_bytes * 1.2 > available_memory():
            self._write(state, current)
            return
        copied = State(state.step, state.described, {name: value.clone() for name, value in state.tensors.items()})
        self._pending = self._executor.submit(self._write, copied, current)

    def check(self) -> None:
        """Raise the error of the background thread, if there is one."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the current state is written. Raises `OutputError` if that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, state: State, current: Path) -> None:
        started = time.monotonic()
        with atomic_directory(current) as folder:
            save_tensors(state.tensors, folder / "tensors.safetensors")
            (folder / "state.json").write_text(json.dumps(state.described, indent=2), encoding="utf-8")
            write_sums(folder)
        kept = sorted(self._states_dir.glob("step-*"))[-self._keep :]
        for other in self._states_dir.iterdir():  # older states, and what a killed run left half-written
            if other not in kept:
                shutil.rmtree(other, ignore_errors=True)
        self.seconds = time.monotonic() - started


def saved_recipe(state: Path) -> dict[str, Any]:
    """The resolved recipe that a state was saved with. Raises `CheckpointError` if the state is damaged."""
    return _described(state)["recipe"]


def saved_scaler(state: Path) -> dict[str, Any]:
    """The state of the loss's scale in fp16; empty of other runs. Raises `CheckpointError` if the state is damaged."""
    return _described(state)["scaler"]


def check_recipe(state: Path, recipe: Mapping[str, Any]) -> None:
    """Passes if the state belongs to the recipe, before anything is built.

    Raises:
        CheckpointError: the state is damaged or belongs to another recipe.
    """
    saved = with_earlier_behavior(_described(state)["recipe"])
    with contextlib.suppress(RecipeError):  # what an earlier version did not know has its default
        saved = to_table(parse_recipe(saved, where=str(state)))
    if "optimization" in saved and "optimization" in recipe:  # which may have more steps now
        end = end_of_decay(saved["optimization"], recipe["optimization"]["num_steps"])
        saved = {**saved, "optimization": {**saved["optimization"], "decay_steps": end}}
    changed = _differences(saved, recipe)
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
    only_trained: bool = False,
) -> int:
    """Restores a saved state into the arguments and returns the number of finished steps.

    Raises:
        CheckpointError: the state is damaged, or its base checkpoint or data have changed since.
    """
    described = _described(state)
    check_inputs(state, inputs)
    kept = described["inputs"]
    if ORDER not in kept and kept.get("processes", "1") != "1":
        LOGGER.warning(
            "the run had %s processes of an earlier version, which changed the order of its samples; from here on they "
            "come in the order of one process",
            kept["processes"],
        )
    try:
        tensors: dict[str, Any] = {**load_file(state / "tensors.safetensors"), **described["scalars"]}
        trees: dict[str, dict[str, Any]] = {"model": {}, "average": {}, "optimizer": {}}
        for path, value in tensors.items():
            *branches, leaf = path.split(_SEPARATOR)
            tree: dict[str, Any] = trees
            for branch in branches:
                tree = tree.setdefault(branch, {})
            tree[leaf] = value
        moments = {"state": trees["optimizer"], "param_groups": described["param_groups"]}
        weights = trees["model"]
        if only_trained and weights.keys() != {name for name, value in model.named_parameters() if value.requires_grad}:
            raise ValueError("the trained weights are others")
        options = _options(only_trained)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)
        _lay_out_like_weights(optimizer)
        if trees["average"].keys() != average.keys():
            raise ValueError("the moving average has other weights")
        for name, value in trees["average"].items():
            _copy_into(average[name], value)
    except Exception as error:
        raise _damaged(state, error) from error
    return int(described["step"])


def check_inputs(state: Path, inputs: Mapping[str, str]) -> None:
    """Passes if what a run is made of is what a state was made of, as far as both know it.

    Raises:
        CheckpointError: the state is damaged, or something changed.
    """
    kept = _described(state)["inputs"]  # those of earlier versions are fewer
    changed = [name for name, value in inputs.items() if name != "processes" and kept.get(name, value) != value]
    if changed:
        raise CheckpointError(
            f"{state} was trained from something else ({', '.join(changed)} changed since); "
            "restore it, choose another --output-dir, or train with --no-resume to start anew"
        )


def _options(only_trained: bool) -> StateDictOptions:
    return StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=only_trained, strict=not only_trained
    )


def _leaves(tree: Any, path: str) -> list[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        return [(path, tree)]
    return [leaf for name, branch in tree.items() for leaf in _leaves(branch, f"{path}{_SEPARATOR}{name}")]


def _gathered(average: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole tensors of a moving average that is spread over processes."""
    return {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in average.items()}


def _copy_into(target: Any, value: Tensor) -> None:
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def _lay_out_like_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their weights, because the fused kernel reads both in the order of memory."""
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                moments[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _described(state: Path) -> dict[str, Any]:
    try:
        described = with_current_keys(parse_json((state / "state.json").read_bytes()))
        return {
            "step": int(described["step"]),
            "recipe": dict(described["recipe"]),
            "inputs": dict(described["inputs"]),
            "param_groups": list(described["param_groups"]),
            "scalars": dict(described["scalars"]),
            "scaler": dict(described.get("scaler", {})),
        }
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(state, error) from error


def _damaged(state: Path, error: Exception) -> CheckpointError:
    others = sorted(path.name for path in state.parent.glob("step-*") if path != state)
    older = f"; remove it to continue from {others[-1]}, or" if others else ";"
    return CheckpointError(f"{state} cannot be resumed ({one_line(error)}){older} train with --no-resume to start anew")


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    # When to save, what to look at and what to recommend to users may change; all else changes what is learned.
    found = []
    for key in sorted(saved.keys() | current.keys()):
        old, new = saved.get(key), current.get(key)
        if not prefix and key in ("run", "checkpoint", "validation"):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            nested = _differences(old, new, f"{prefix}{key}.")
            # Random draws depend on the order of the sources, which the comparison of tables ignores.
            reordered = key == "sources" and not nested and list(old) != list(new)
            found += [f"{prefix}{key}"] if reordered else nested
        elif old != new and f"{prefix}{key}" not in (
            "data.cache",
            "optimization.compile",
            "optimization.num_steps",  # which may only grow: `resuming.resolved`
            "optimization.gradient_checkpointing",
        ):
            found.append(f"{prefix}{key}")
    return found
