# SPDX-License-Identifier: Apache-2.0
"""`openmarigold train`: a recipe to a checkpoint."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from openmarigold.errors import MissingExtraError


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model as a recipe says (extra `train`)."""

    recipe: Path
    """Recipe file (TOML)."""
    data_dir: Path
    """Folder of the training data that the recipe names."""
    output_dir: Path
    """Folder of checkpoints, state and logs."""
    benchmark: Path | None = None
    """Benchmark folder for the scores during training."""
    device: str = "auto"
    """Where to train: auto (an accelerator where there is one) or cpu."""
    resume: bool = True
    """Continue from the state in the output folder, if there is one."""
    stop_after_steps: int | None = None
    """Stop early, with the state saved, when so many steps are done."""


def run_train(command: Train) -> int:
    """Trains and returns the exit status."""
    try:
        from openmarigold.training import train
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("openmarigold"):
            raise
        raise MissingExtraError(error.name, "train") from error

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    directory = train(
        command.recipe,
        data_dir=command.data_dir,
        output_dir=command.output_dir,
        benchmark_dir=command.benchmark,
        device=command.device,
        resume=command.resume,
        stop_after_steps=command.stop_after_steps,
    )
    print("stopped before the end of the recipe" if directory is None else f"checkpoint -> {directory}")
    return 0
