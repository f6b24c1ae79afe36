# SPDX-License-Identifier: Apache-2.0
"""Training by recipe: the autoencoder, the image generator and the depth fine-tune (docs/training.md)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from openmarigold.errors import InvalidValueError, MissingExtraError
from openmarigold.training.recipe import AutoencoderRecipe, DepthRecipe, GeneratorRecipe, read_recipe, to_table

LOGGER = logging.getLogger(__name__)


def train(
    recipe_path: Path,
    *,
    data_dir: Path,
    output_dir: Path,
    benchmark_dir: Path | None = None,
    device: str = "auto",
    resume: bool = True,
    stop_after_steps: int | None = None,
) -> Path | None:
    """Trains what the recipe says and returns the checkpoint folder, or None if stopped before the end.

    Args:
        recipe_path: TOML file, see `openmarigold.training.recipe`.
        data_dir: folder that holds the recipe's sources (`photos/`, `synthetic/`).
        output_dir: where the run lives; an interrupted run there is resumed unless `resume` is False.
        benchmark_dir: benchmark folder for zero-shot validation of a depth model; None = no validation.
        device: "auto" or "cpu".
        stop_after_steps: stop early with the state saved.

    Raises:
        RecipeError: an unknown, missing or wrong key.
        InvalidValueError: a device or count that is not accepted.
        DataError: missing or damaged data.
        CheckpointError: a base checkpoint or a state that cannot be used.
        MissingExtraError: torch, diffusers or accelerate is not installed.
    """
    recipe = read_recipe(recipe_path)
    try:
        from openmarigold.training.loop import make_accelerator, run_training
        from openmarigold.training.state import check_recipe, latest_state
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train") from error
    if stop_after_steps is not None and stop_after_steps < 1:
        raise InvalidValueError(f"stop_after_steps={stop_after_steps} is not accepted; give 1 or above")
    if benchmark_dir is not None and not isinstance(recipe, DepthRecipe):
        LOGGER.warning("the benchmark is not used: a recipe of kind %s makes no depth", recipe.kind)
    table = to_table(recipe)
    state = latest_state(output_dir / "states") if resume else None
    if state is not None:
        check_recipe(state, table)  # before latents are encoded for a recipe that does not fit
    accelerator = make_accelerator(recipe.optimization.mixed_precision, device)
    if isinstance(recipe, AutoencoderRecipe):
        from openmarigold.training.autoencoder import AutoencoderTask

        task: Any = AutoencoderTask(recipe, data_dir=data_dir)
    elif isinstance(recipe, GeneratorRecipe):
        from openmarigold.training.generator import GeneratorTask

        task = GeneratorTask(recipe, data_dir=data_dir, cache_dir=output_dir / "latents", accelerator=accelerator)
    else:
        from openmarigold.training.depth import DepthTask

        task = DepthTask(
            recipe,
            data_dir=data_dir,
            cache_dir=output_dir / "latents",
            benchmark_dir=benchmark_dir,
            accelerator=accelerator,
        )
    return run_training(
        task,
        recipe=table,
        optimization=recipe.optimization,
        run=recipe.run,
        output_dir=output_dir,
        accelerator=accelerator,
        resume=resume,
        stop_after_steps=stop_after_steps,
    )
