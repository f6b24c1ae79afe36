# SPDX-License-Identifier: Apache-2.0
"""Training by recipe: the fine-tune of a modality, the toy autoencoder and generator (docs/training.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from openmarigold.data.remote import DEFAULT_CACHE_GB, DataFolder, RemoteFolder, data_folder
from openmarigold.errors import InvalidValueError, needs_extra
from openmarigold.files import as_path
from openmarigold.printing import quoted_logger
from openmarigold.training.recipe import (
    AutoencoderRecipe,
    GeneratorRecipe,
    LiteRecipe,
    LogAutoencoderRecipe,
    MarigoldRecipe,
    Recipe,
    keeps_latents,
    read_recipe,
    to_table,
)
from openmarigold.training.resuming import resolved

LOGGER = quoted_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingPaths:
    """Where a run reads and writes.

    Attributes:
        data_dir: folder that holds the recipe's sources (`photos/`, `synthetic/`, `hypersim/`, ...), or its address.
        output_dir: where the run lives.
        cache_dir: where latents are kept; None: `output_dir / "latents"`. Runs may share one.
        benchmark_dir: benchmark folder for zero-shot validation; None: none.
        benchmark_data_dir: folder of the benchmarks that the recipe names.
        photos_dir: photos whose predicted maps are written at each validation; None: none.
        sample_cache_dir: where samples of an address are kept; None: in the user's cache folder.
        sample_cache_gb: how much of them, at most [GB].
    """

    data_dir: Path | str | RemoteFolder
    output_dir: Path
    cache_dir: Path | None = None
    benchmark_dir: Path | None = None
    benchmark_data_dir: Path | None = None
    photos_dir: Path | None = None
    sample_cache_dir: Path | None = None
    sample_cache_gb: float = DEFAULT_CACHE_GB

    def __post_init__(self) -> None:
        for setting in fields(self):
            if (
                setting.name not in ("data_dir", "sample_cache_gb")
                and (value := getattr(self, setting.name)) is not None
            ):
                object.__setattr__(self, setting.name, as_path(value, setting.name))

    def open_data(self) -> DataFolder:
        """The folder of the sources. Raises what `data.remote.data_folder` raises."""
        return data_folder(self.data_dir, cache_dir=self.sample_cache_dir, cache_gb=self.sample_cache_gb)


def train(
    recipe_path: Path | str,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    resume: bool = True,
    stop_after_steps: int | None = None,
    watch: Callable[[Any], object] | None = None,
    **paths: Any,
) -> Path | None:
    """Train by a recipe; return the checkpoint folder, or None if stopped before the end.

    Args:
        recipe_path: TOML file, see `openmarigold.training.recipe`, or the recipe.json of a run.
        overrides: `section.key=value` each, in the place of what the recipe holds.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        resume: continue an interrupted run in the output folder; False starts anew.
        stop_after_steps: number of steps after which the run saves its state and stops early.
        watch: called with a `monitor.Progress` now and then; None logs it.
        paths: as `TrainingPaths`.

    Raises:
        RecipeError: an unknown, missing, wrong or contradictory key.
        InvalidValueError: a device or count that is not accepted.
        DataError: missing or damaged data.
        CheckpointError: a base checkpoint, a state or a cache that cannot be used.
        MissingExtraError: torch, diffusers or accelerate is not installed.
        OutputError: something cannot be written.
        LostProcessError: another process of the run ended.
    """
    places = TrainingPaths(**paths)
    recipe = read_recipe(as_path(recipe_path, "recipe_path"), overrides=overrides)
    if stop_after_steps is not None and stop_after_steps < 1:
        raise InvalidValueError(f"stop_after_steps={stop_after_steps} is not accepted; give 1 or above")
    loop, state, plan_batches = _import_parts()
    _warn_of_unused(recipe, places)
    accelerator = loop.make_accelerator(recipe.optimization.mixed_precision, device)
    # These checks come first: encoding latents takes long, and the recipe may not fit the state.
    found = _last_state(state, places.output_dir / "states", accelerator) if resume else None
    saved = None if found is None else state.saved_recipe(found)
    recipe = resolved(recipe, saved, has_benchmark=places.benchmark_dir is not None)
    table = to_table(recipe)
    if found is not None:
        state.check_recipe(found, table)
    plan_batches(recipe.optimization, num_processes=accelerator.num_processes)  # before latents are encoded for nothing
    cache_dir = (places.cache_dir or places.output_dir / "latents") if keeps_latents(recipe) else None
    check_inputs = None if found is None else partial(state.check_inputs, found)
    with loop.lost_processes(accelerator, places.output_dir):
        return loop.run_training(
            make_task(recipe, places, cache_dir=cache_dir, accelerator=accelerator, check_inputs=check_inputs),
            recipe=table,
            optimization=recipe.optimization,
            run=recipe.run,
            output_dir=places.output_dir,
            accelerator=accelerator,
            resume=resume,
            stop_after_steps=stop_after_steps,
            watch=watch,
        )


def _last_state(state: Any, states_dir: Path, accelerator: Any) -> Any:
    """The newest whole state; damaged ones are set aside."""
    if accelerator.is_main_process:
        state.set_damaged_aside(states_dir)
    accelerator.wait_for_everyone()
    return state.latest_state(states_dir)


def dry_run(recipe_path: Path | str, *, overrides: Sequence[str] = (), device: str = "auto", **paths: Any) -> Any:
    """Check recipe, base, data and benchmarks, make one step, and return what a full run will need.

    Nothing is written, and no state is read. The result is a `dry_runs.DryRun`; print it. The arguments are those of
    `train`, and so are the errors.
    """
    places = TrainingPaths(**paths)
    recipe = read_recipe(as_path(recipe_path, "recipe_path"), overrides=overrides)
    loop, _, _ = _import_parts()
    from openmarigold.training.dry_runs import make_dry_run

    _warn_of_unused(recipe, places)
    recipe = resolved(recipe, has_benchmark=places.benchmark_dir is not None)
    accelerator = loop.make_accelerator(recipe.optimization.mixed_precision, device)
    task = make_task(recipe, places, cache_dir=None, accelerator=accelerator)
    return make_dry_run(task, recipe, output_dir=places.output_dir, accelerator=accelerator)


def make_task(
    recipe: Recipe,
    places: TrainingPaths,
    *,
    cache_dir: Path | None,
    accelerator: Any,
    check_inputs: Callable[[Mapping[str, str]], None] | None = None,
) -> Any:
    """The `task.Task` of a recipe, its networks and data loaded. Raises what `train` raises.

    `check_inputs` gets hashes of what latents are made of, before any are, and raises where they do not fit.
    """
    data_dir = places.open_data()
    if isinstance(recipe, AutoencoderRecipe):
        from openmarigold.training.nano.autoencoder import AutoencoderTask

        return AutoencoderTask(recipe, data_dir=data_dir)
    if isinstance(recipe, LogAutoencoderRecipe):
        from openmarigold.training.lite.autoencoder import LogAutoencoderTask

        return LogAutoencoderTask(recipe, data_dir=data_dir, accelerator=accelerator)
    if isinstance(recipe, LiteRecipe):
        from openmarigold.training.lite.denoising import DenoisingLiteTask
        from openmarigold.training.lite.task import LiteTask

        task = DenoisingLiteTask if recipe.loss.objective == "denoising" else LiteTask
        return task(recipe, data_dir=data_dir, accelerator=accelerator)
    if isinstance(recipe, GeneratorRecipe):
        from openmarigold.training.nano.generator import GeneratorTask

        return GeneratorTask(
            recipe, data_dir=data_dir, cache_dir=cache_dir, accelerator=accelerator, check_inputs=check_inputs
        )
    from openmarigold.training.marigold import MarigoldTask
    from openmarigold.training.validation import ValidationPaths

    validation = ValidationPaths(
        benchmark_dir=places.benchmark_dir,
        benchmark_data_dir=places.benchmark_data_dir,
        photos_dir=places.photos_dir,
    )
    return MarigoldTask(
        recipe,
        data_dir=data_dir,
        cache_dir=cache_dir,
        accelerator=accelerator,
        validation=validation,
        check_inputs=check_inputs,
    )


def _import_parts() -> tuple[Any, Any, Any]:
    with needs_extra("train"):
        from openmarigold.training import loop, state
        from openmarigold.training.batches import plan_batches
    return loop, state, plan_batches


def _warn_of_unused(recipe: Recipe, places: TrainingPaths) -> None:
    if isinstance(recipe, MarigoldRecipe):
        return
    for name in ("benchmark_dir", "benchmark_data_dir", "photos_dir"):
        if getattr(places, name) is not None:
            LOGGER.warning("%s is not used: a recipe of kind %s predicts nothing", name, recipe.kind)
