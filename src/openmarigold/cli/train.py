# SPDX-License-Identifier: Apache-2.0
"""`openmarigold train`: train a checkpoint by a recipe."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from openmarigold.cli.terminal import progress_bar, say
from openmarigold.errors import InvalidValueError, needs_extra


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model by a recipe (extra `train`). For several processes or GPUs start it with `accelerate launch`."""

    recipe: Path | None = None
    """Recipe file (TOML), or the recipe.json of a run."""
    data_dir: str
    """Folder of the training data: one folder for each source that the recipe names. Prepared sets may lie at an
    address of fsspec, such as s3://bucket/data (extra `batch`)."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder of checkpoints, state and logs."""
    init: Path | None = None
    """Only write a recipe to this file, for all prepared sets in --data-dir."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Replaces a value of the recipe, such as optimization.num_steps=2000; may be repeated."""
    cache_dir: Path | None = None
    """Folder of the encoded views, which runs may share. None: latents/ in the output folder."""
    sample_cache_dir: Path | None = None
    """Folder of samples kept from an address, which processes and runs may share. None: the user's cache."""
    sample_cache_gb: float = 50.0
    """Maximum size of the samples kept from an address [GB]; the least recently used ones are removed first."""
    benchmark: Path | None = None
    """Benchmark folder for the scores during training."""
    benchmark_data: Path | None = None
    """Folder of the benchmarks that the recipe's [validation] names (`openmarigold data where NAME`)."""
    photos: Path | None = None
    """Photos whose predicted depth is written to pictures/ at each validation."""
    device: str = "auto"
    """Where to train: auto (an accelerator if there is one), cpu, cuda, cuda:N or mps."""
    dtype: Literal["float32", "bfloat16", "float16", "bf16", "fp16"] | None = None
    """Precision of most operations, instead of the recipe's optimization.mixed_precision; fp16 needs a GPU."""
    resume: bool = True
    """Continue from the state in the output folder, if there is one."""
    stop_after_steps: int | None = None
    """Save the state and stop after this many steps of the recipe."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check recipe, base and data, make one step, and show what a full run will need. Nothing is written."""


def run_train(command: Train) -> int:
    """Trains and returns the exit status."""
    with needs_extra("train"):
        from openmarigold.training import dry_run, train

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command = _with_precision(command)
    if command.init is not None:
        return _init(command, command.init)
    if command.recipe is None or command.output_dir is None:
        absent = "--recipe" if command.recipe is None else "--output-dir"
        raise InvalidValueError(
            f"{absent} is missing; give a recipe and an output folder, or write a recipe for your data with "
            "--init my.toml"
        )
    paths = {
        "data_dir": command.data_dir,
        "output_dir": command.output_dir,
        "cache_dir": command.cache_dir,
        "benchmark_dir": command.benchmark,
        "benchmark_data_dir": command.benchmark_data,
        "photos_dir": command.photos,
        "sample_cache_dir": command.sample_cache_dir,
        "sample_cache_gb": command.sample_cache_gb,
    }
    if command.dry_run:
        for line in str(dry_run(command.recipe, overrides=command.set, device=command.device, **paths)).splitlines():
            say(line)
        return 0
    with progress_bar("training") as (advance, note):

        def watch(progress: Any) -> None:
            advance(progress.step, progress.num_steps)
            note(str(progress))

        directory = train(
            command.recipe,
            overrides=command.set,
            device=command.device,
            resume=command.resume,
            stop_after_steps=command.stop_after_steps,
            watch=watch,
            **paths,
        )
    if os.environ.get("RANK", "0") == "0":  # the main process of `accelerate launch`
        say("stopped before the end of the recipe" if directory is None else f"checkpoint -> {directory}")
    return 0


def _with_precision(command: Train) -> Train:
    """The command with its --dtype as a value of the recipe."""
    if command.dtype is None:
        return command
    name = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}.get(command.dtype, command.dtype)
    return replace(command, set=(*command.set, f"optimization.mixed_precision={name}"))


def _init(command: Train, path: Path) -> int:
    from openmarigold.data.remote import data_folder
    from openmarigold.training.starting import write_recipe

    folder = data_folder(command.data_dir, cache_dir=command.sample_cache_dir, cache_gb=command.sample_cache_gb)
    table = write_recipe(folder, path, command.set)
    data, optimization = table["data"], table["optimization"]
    say(
        f"{', '.join(data['sources'])}: views of {', '.join(f'{h}x{w}' for h, w in data['buckets'])}, "
        f"{optimization['num_steps']} steps of {optimization['batch_size']}, from {table['base']}"
    )
    say(
        f"Then: openmarigold train --recipe {path} --data-dir {command.data_dir} --output-dir runs/{path.stem} "
        "--dry-run"
    )
    return 0
