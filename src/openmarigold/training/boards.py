# SPDX-License-Identifier: Apache-2.0
"""Boards that show a run while it goes: TensorBoard, Weights & Biases. Nothing leaves the machine unless asked."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from openmarigold.errors import OutputError, needs_extra, one_line
from openmarigold.files import make_directory, write_atomically
from openmarigold.training.settings import RunConfig


@runtime_checkable
class Board(Protocol):
    """A place for curves and pictures."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""
        ...

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Shows pictures, uint8 [h w 3]."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


def open_boards(output_dir: Path, run: RunConfig, recipe: Mapping[str, Any], *, step: int) -> list[Board]:
    """The boards that a recipe asks for; they go on from `step`, without what an interrupted run wrote after it.

    Raises:
        MissingExtraError: the package of one is not installed.
        OutputError: Weights & Biases cannot be reached, or has no key.
    """
    boards: list[Board] = []
    if run.tensorboard:
        boards.append(TensorBoard(output_dir / "tensorboard", step=step))
    if run.wandb != "off":
        boards.append(WeightsAndBiases(output_dir, run, recipe, step=step))
    return boards


class TensorBoard:
    """Event files."""

    def __init__(self, folder: Path, *, step: int) -> None:
        with needs_extra("train", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb: files in `wandb/` of the output folder, and with "online" its server, too.

    Curves, pictures of --photos and the recipe are all that it gets: no code, no state of the repository, no console
    output, no measurements of the machine.
    """

    def __init__(self, output_dir: Path, run: RunConfig, recipe: Mapping[str, Any], *, step: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before it is imported
        with needs_extra("wandb"):
            import wandb  # pyright: ignore[reportMissingImports]
        folder = output_dir.resolve()
        settings = wandb.Settings(
            disable_code=True,
            disable_git=True,
            save_code=False,
            console="off",
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        try:
            self._run = wandb.init(
                project=run.wandb_project,
                name=folder.name,
                id=_id_of(folder, anew=step == 0),
                resume="allow",
                dir=str(folder),
                mode=run.wandb,
                config=dict(recipe),
                settings=settings,
            )
        except Exception as error:  # of many kinds: no key, no network, a server's answer
            raise OutputError(
                f"Weights & Biases does not start ({one_line(error)}); run `wandb login`, or set run.wandb = "
                '"offline" or "off"'
            ) from error
        self._image = wandb.Image

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        # Their steps only go forward: those that a resumed run makes again are left out there.
        self._run.log(dict(values), step=step)

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        if pictures:
            self._run.log({name: self._image(picture) for name, picture in pictures.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


def _id_of(folder: Path, *, anew: bool) -> str:
    """The name that a run has there, kept in its folder, so that it goes on as the same one when it is resumed."""
    path = folder / "wandb" / "id"
    if anew or not path.is_file():
        make_directory(path.parent)
        text = secrets.token_hex(8)
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path.read_text(encoding="utf-8")
