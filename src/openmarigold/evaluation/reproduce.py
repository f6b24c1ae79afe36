# SPDX-License-Identifier: Apache-2.0
"""The papers' tables, run: our numbers and the published ones, with every setting pinned to the paper's."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.config import PredictConfig
from openmarigold.ensembling.published import find_solver
from openmarigold.errors import DataError, InvalidValueError, MissingExtraError
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmarks import find_row, open_benchmark
from openmarigold.evaluation.published import TABLES, Cell, PaperTable
from openmarigold.evaluation.report import Report
from openmarigold.evaluation.runner import evaluate_benchmark
from openmarigold.evaluation.specs import predictor_spec
from openmarigold.files import as_path

Ensembling = Literal["own", "published"]
_WINDOW = 50  # images whose time tells how long the others will take


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a table is.

    Attributes:
        cell: row and benchmark of the cell that runs.
        number: of that cell, from 1, of the `num_cells` that can run.
        done: images of the cell, of `total`.
        share: of all work that is done, [0, 1].
        remaining_s: about how long the rest takes [s]; None where it is not known yet.
    """

    cell: str
    number: int
    num_cells: int
    done: int
    total: int
    share: float
    remaining_s: float | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A cell with our report, or the reason why there is none; a peer's cell has neither."""

    table: PaperTable
    cell: Cell
    report: Report | None = None
    reason: str | None = None

    @property
    def ours(self) -> tuple[float, float] | None:
        """Our pair, as it is shown: AbsRel and delta1 [%], for example."""
        if self.report is None:
            return None
        metrics = self.report.kinds["all"].metrics
        first, second = (score.shown(metrics[score.name]) for score in self.table.scores)
        return first, second

    @property
    def difference(self) -> tuple[float | None, float | None]:
        """Ours minus the published pair [points]."""
        if self.ours is None:
            return None, None
        first, second = (None if b is None else a - b for a, b in zip(self.ours, self.cell.published, strict=True))
        return first, second

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in percent, or the unit of the score."""
        first, second = (score.name for score in self.table.scores)

        def named(pair: tuple[float | None, float | None]) -> dict[str, float | None]:
            return {first: pair[0], second: pair[1]}

        return {
            "row": self.cell.row,
            "benchmark": self.cell.benchmark,
            "num_inference_steps": self.cell.num_inference_steps if self.cell.model is not None else None,
            "ensemble_size": self.cell.ensemble_size if self.cell.model is not None else None,
            "protocol": self.table.protocol,
            "published": {**named(self.cell.published), "read_off": self.cell.read_off},
            "ours": None if self.ours is None else named(self.ours),
            "difference": named(self.difference),
            "settings": None if self.report is None else _deviating(self.report),
            "share_scored": None if self.report is None else self.report.share_scored,
            "complete": None if self.report is None else len(self.report.images) == self.report.expected,
            "not_run": self.reason,
        }


def parse_checkpoints(table: PaperTable, given: Sequence[str]) -> dict[str, Path]:
    """Checkpoint folders by label, from `DIR` for a table of one model and `LABEL=DIR` for one of several.

    Raises:
        InvalidValueError: no checkpoint, or a label that the table does not have.
        CheckpointError: a checkpoint cannot be used.
    """
    labels = table.models
    if labels == [""]:
        if len(given) != 1:
            raise InvalidValueError(f"{table.name} needs one --checkpoint DIR; {len(given)} were given")
        checkpoints = {"": Path(given[0])}
    else:
        checkpoints = {}
        for item in given:
            label, equals, directory = item.partition("=")
            if not equals or label not in labels:
                raise InvalidValueError(
                    f"--checkpoint {item} is not LABEL=DIR; the labels of {table.name} are {', '.join(labels)}"
                )
            checkpoints[label] = Path(directory)
        if not checkpoints:
            raise InvalidValueError(
                f"{table.name} needs --checkpoint LABEL=DIR for at least one of {', '.join(labels)}"
            )
    for directory in checkpoints.values():
        read_checkpoint(directory)
    return checkpoints


def reproduce(
    table: PaperTable,
    *,
    data_dir: Path | str,
    checkpoints: Mapping[str, Path],
    output_dir: Path | str,
    benchmarks: Sequence[str] = (),
    config: PredictConfig | None = None,
    ensembling: Ensembling = "own",
    num_workers: int = 1,
    allow_partial: bool = False,
    progress: Callable[[Progress], object] = lambda progress: None,
    note: Callable[[str], object] = lambda line: None,
) -> list[CellResult]:
    """Results of a table's cells, each run in a folder of its own below `output_dir`, so that it can be resumed.

    Cells whose data or checkpoint is missing have the reason in the place of a report. `benchmarks` limits the cells;
    of `config` only engine, device, dtype and batch size are used. With `ensembling` "published" members are merged as
    by the published code (extra `metric`).

    Raises:
        DataError: an unknown benchmark.
        InvalidValueError: published ensembling for a table whose members this package merges as published anyway.
        MissingExtraError: published ensembling without scipy.
        OutputError: the output folder cannot be written.
    """
    for name in benchmarks:
        find_row(name)
    if ensembling == "published":
        _check_published_ensembling(table)
    config, output_dir = config or PredictConfig(), as_path(output_dir, "output_dir")
    cells = [cell for cell in table.cells if not benchmarks or cell.benchmark in benchmarks]
    opened = {
        name: _opened(name, data_dir, allow_partial)
        for name in dict.fromkeys(cell.benchmark for cell in cells if cell.model in checkpoints)
    }
    runnable = [cell for cell in cells if isinstance(_benchmark_of(cell, checkpoints, opened), Benchmark)]
    clock = _Clock(runnable, opened, progress)
    results = []
    for cell in cells:
        benchmark, report = _benchmark_of(cell, checkpoints, opened), None
        reason = benchmark if isinstance(benchmark, str) else None
        if isinstance(benchmark, Benchmark):
            settings = _settings(table, cell, checkpoints[cell.model or ""], config, ensembling)
            try:
                report = evaluate_benchmark(
                    benchmark,
                    predictor_spec(settings),
                    protocol=table.protocol,
                    output_dir=output_dir / table.name / _folder_name(cell, settings),
                    num_workers=num_workers,
                    allow_partial=allow_partial,
                    progress=clock.of(cell),
                    note=note,
                )
            except (DataError, MissingExtraError) as error:
                reason = str(error)
        results.append(CellResult(table=table, cell=cell, report=report, reason=reason))
    return results


def _check_published_ensembling(table: PaperTable) -> None:
    """Raise an error before the first prediction if members cannot be merged as published."""
    if table.published_reduction is None:
        raise InvalidValueError(f"members of {table.name} are merged as published anyway; leave --ensembling out")
    find_solver()


def _opened(name: str, data_dir: Path | str, allow_partial: bool) -> Benchmark | str:
    """A benchmark, or why it cannot be used."""
    try:
        return open_benchmark(name, data_dir, allow_partial=allow_partial)
    except (DataError, MissingExtraError) as error:
        return str(error)


def _benchmark_of(
    cell: Cell, checkpoints: Mapping[str, Path], opened: Mapping[str, Benchmark | str]
) -> Benchmark | str | None:
    """The benchmark of a cell, or why the cell cannot be run; None of a peer's cell."""
    if cell.model is None:
        return None
    return opened[cell.benchmark] if cell.model in checkpoints else f"no --checkpoint {cell.model}=DIR"


def _folder_name(cell: Cell, settings: PredictConfig) -> str:
    """The folder of a cell's report. Settings that differ from the published ones have their own folders."""
    model = "" if cell.model is None else cell.model.replace(":", "to")
    others = (settings.ensemble_reduction, None if settings.dtype == PredictConfig.dtype else settings.dtype)
    name = "-".join(filter(None, (cell.benchmark, model)))
    return "-".join(filter(None, (f"{name}-{cell.num_inference_steps}x{cell.ensemble_size}", *others)))


class _Clock:
    """How far a table is, and about how long the rest takes.

    The unit of work is a pass of a network: an image is encoded once, each member takes its steps and is decoded.
    Images that an earlier run has scored take no time, so the pace is that of the last images.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        opened: Mapping[str, Benchmark | str],
        progress: Callable[[Progress], object],
    ) -> None:
        self._cells, self._progress = list(cells), progress
        self._images = [len(getattr(opened[cell.benchmark], "entries", ())) for cell in cells]
        self._works = [1 + cell.ensemble_size * (cell.num_inference_steps + 1) for cell in cells]
        self._recent: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)], maxlen=_WINDOW + 1)

    def of(self, cell: Cell) -> Callable[[int, int], None]:
        """The function that the run of a cell calls after each image."""
        number = self._cells.index(cell)
        before = sum(images * work for images, work in zip(self._images[:number], self._works[:number], strict=True))
        everything = sum(images * work for images, work in zip(self._images, self._works, strict=True))

        def advance(done: int, total: int) -> None:
            finished = before + done * self._works[number]
            self._recent.append((time.monotonic(), float(finished)))
            (first_s, first), (last_s, last) = self._recent[0], self._recent[-1]
            pace = (last_s - first_s) / (last - first) if last > first else None
            self._progress(
                Progress(
                    cell=f"{cell.row} on {cell.benchmark}",
                    number=number + 1,
                    num_cells=len(self._cells),
                    done=done,
                    total=total,
                    share=finished / everything,
                    remaining_s=None if pace is None else (everything - finished) * pace,
                )
            )

        return advance


def _settings(
    table: PaperTable, cell: Cell, checkpoint: Path, config: PredictConfig, ensembling: Ensembling
) -> PredictConfig:
    """The paper's settings of a cell."""
    published = ensembling == "published" and cell.ensemble_size > 1
    return PredictConfig(
        checkpoint=checkpoint,
        num_inference_steps=cell.num_inference_steps,
        ensemble_size=cell.ensemble_size,
        ensemble_reduction=table.published_reduction if published else None,
        processing_resolution=find_row(cell.benchmark).processing_resolution,
        seed=cell.seed,
        final_step=table.final_step,
        timestep_spacing=cell.timestep_spacing,
        modality=(table.modality.name,),
        engine=config.engine,
        device=config.device,
        dtype=config.dtype,
        batch_size=config.batch_size,
    )


def _deviating(report: Report) -> dict[str, Any]:
    """Settings of a report that a reader wants to know besides the published ones."""
    return {
        name: report.settings[name] for name in ("engine", "dtype", "ensemble_reduction") if name in report.settings
    }


def find_table(name: str) -> PaperTable:
    """A table of the paper by name.

    Raises:
        InvalidValueError: there is none.
    """
    if name not in TABLES:
        raise InvalidValueError(f"table {name!r} is not known; use one of {', '.join(TABLES)}")
    return TABLES[name]
