# SPDX-License-Identifier: Apache-2.0
"""Logs of a training run: `metrics.jsonl`, lines of progress, and boards (TensorBoard, Weights & Biases).

Nothing leaves the machine unless asked.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from openmarigold.errors import DataError, NumericalError, OutputError, needs_extra, one_line
from openmarigold.files import append_text, make_directory, write_atomically
from openmarigold.printing import format_time
from openmarigold.text_files import DamagedTextError, parse_json
from openmarigold.training.settings import RunConfig
from openmarigold.training.trainer import StepResult


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
    """The boards that a recipe asks for. They continue from `step`; entries that an interrupted run wrote after it are
    removed.

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

    It gets only curves, pictures of --photos and the recipe: no code, no state of the repository, no console output, no
    measurements of the machine.
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
    """The id of the run at Weights & Biases. The output folder keeps it, so that a resumed run continues under the same
    id.
    """
    path = folder / "wandb" / "id"
    if anew or not path.is_file():
        make_directory(path.parent)
        text = secrets.token_hex(8)
        write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path.read_text(encoding="utf-8")


MOST_EMPTY_STEPS = 10  # steps in a row without valid pixels, after which the run ends with an error
LOG_PERIOD_STEPS = 50  # between transfers of the losses from the device,
LOG_PERIOD_S = 30.0  # or less where steps take long
NUM_BINS = 10
"""Number of equal parts of the schedule, from little to much noise, for which the loss is logged."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        loss: mean over the steps since the last report.
        wait_share: share of the time in which the device waited for data.
        remaining_s: time to the last step at the present rate [s].
        peak_memory: largest memory in use, of the device or (CPU) of the process [bytes].
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    steps_per_s: float
    samples_per_s: float
    wait_share: float
    remaining_s: float
    peak_memory: int

    def __str__(self) -> str:
        return (
            f"step {self.step} of {self.num_steps}, loss {self.loss:.4f}, lr {self.learning_rate:.2e}, "
            f"{self.steps_per_s:.2f} it/s, {self.samples_per_s:.1f} samples/s, {100 * self.wait_share:.0f} % waiting "
            f"for data, {self.peak_memory / 2**30:.1f} GiB, {format_time(self.remaining_s)} to go"
        )


class Monitor:
    """One line a step in metrics.jsonl; lines of steps that a resumed run repeats are removed first."""

    def __init__(
        self,
        output_dir: Path,
        *,
        step: int,
        num_steps: int,
        batch_size: int,
        num_train_timesteps: int,
        boards: Sequence[Board] = (),
        device: torch.device,
        watch: Callable[[Progress], object],
    ) -> None:
        self._path = output_dir / "metrics.jsonl"
        self._num_steps, self._batch_size, self._num_train_timesteps = num_steps, batch_size, num_train_timesteps
        self._device, self._watch = device, watch
        self._pending: list[tuple[int, StepResult]] = []
        self._started = self._reported = time.monotonic()
        self._waited = 0.0
        self._empty = 0
        keep_lines(self._path, before=step)
        self._boards = boards

    def add(self, step: int, result: StepResult, *, waited_s: float) -> None:
        """Keep a step's result on its device until the next `flush`, which waits for the device and so is rare.

        Args:
            waited_s: time in which there was no batch [s].
        """
        self._waited += waited_s
        self._pending.append((step, result))
        if len(self._pending) >= LOG_PERIOD_STEPS or time.monotonic() - self._reported > LOG_PERIOD_S:
            self.flush()

    def flush(self) -> None:
        """Writes the lines of the steps since the last call.

        Raises:
            NumericalError: a loss is not finite.
            DataError: many steps in a row had no valid pixel.
        """
        if not self._pending:
            return
        now = time.monotonic()
        window = now - self._reported
        rows: list[dict[str, Any]] = []
        for step, entry in self._pending:
            value = float(entry.loss)
            if not math.isfinite(value):
                raise NumericalError(
                    f"the loss of step {step} is {value}; lower optimization.learning_rate or set gradient_clip"
                )
            row: dict[str, Any] = {
                "step": step,
                "loss": value,
                "learning_rate": entry.learning_rate,
                "elapsed_s": round(now - self._started, 1),
            }
            if entry.timesteps is not None and entry.per_sample is not None:
                row["loss_by_timestep"] = self._binned(entry.timesteps, entry.per_sample.float().cpu().numpy())
            rows.append(row)
        for _, entry in self._pending:
            self._empty = 0 if float(entry.num_valid) else self._empty + 1
        if self._empty >= MOST_EMPTY_STEPS:
            raise DataError(
                f"none of the last {self._empty} steps had a sample with valid pixels; check the unit of the data's "
                "maps, data.min_depth and data.max_depth"
            )
        steps_per_s = len(rows) / window if window > 0 else math.inf
        last_step, last = self._pending[-1]
        progress = Progress(
            step=last_step + 1,
            num_steps=self._num_steps,
            loss=sum(row["loss"] for row in rows) / len(rows),
            learning_rate=last.learning_rate,
            steps_per_s=steps_per_s,
            samples_per_s=steps_per_s * self._batch_size,
            wait_share=min(1.0, self._waited / window) if window > 0 else 0.0,
            remaining_s=(self._num_steps - last_step - 1) / steps_per_s,
            peak_memory=peak_memory(self._device),
        )
        rows[-1] |= {
            "samples_per_s": round(progress.samples_per_s, 3),
            "wait_share": round(progress.wait_share, 4),
            "peak_memory": progress.peak_memory,
        }
        append_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._to_boards(rows, progress)
        self._pending.clear()
        self._reported, self._waited = now, 0.0
        self._watch(progress)

    def validated(self, step: int, scores: Mapping[str, float], pictures: Mapping[str, np.ndarray]) -> None:
        """Show a validation on the boards; its time does not count as training time."""
        for board in self._boards:
            board.scalars({f"validation/{name}": value for name, value in scores.items()}, step)
            board.pictures({f"pictures/{name}": picture for name, picture in pictures.items()}, step)
        self._reported = time.monotonic()

    def close(self) -> None:
        """Ends the files of the boards."""
        for board in self._boards:
            board.close()

    def _binned(self, timesteps: np.ndarray, per_sample: np.ndarray) -> list[float | None]:
        number = timesteps * NUM_BINS // self._num_train_timesteps
        known = np.isfinite(per_sample)
        chosen = [per_sample[known & (number == which)] for which in range(NUM_BINS)]
        return [float(values.mean()) if values.size else None for values in chosen]

    def _to_boards(self, rows: list[dict[str, Any]], progress: Progress) -> None:
        for board in self._boards:
            for row in rows:
                parts = enumerate(row.get("loss_by_timestep", []))
                values = {f"loss_by_timestep/{number}": value for number, value in parts if value is not None}
                named = {f"train/{name}": row[name] for name in ("loss", "learning_rate")}
                board.scalars({**named, **values}, row["step"])
            speeds = ("samples_per_s", "wait_share", "peak_memory")
            board.scalars({f"speed/{name}": getattr(progress, name) for name in speeds}, progress.step)


def peak_memory(device: torch.device) -> int:
    """Largest memory in use so far, of a GPU or else of this process [bytes]."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_lines(path: Path, *, before: int) -> None:
    """Remove the lines of step `before` and later from a log; these steps are made again."""
    kept = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                if parse_json(line)["step"] < before:
                    kept.append(line + b"\n")
            except (DamagedTextError, KeyError, TypeError, IndexError):  # cut by an interruption, or not ours
                continue
    write_atomically(path, lambda partial: partial.write_bytes(b"".join(kept)))
