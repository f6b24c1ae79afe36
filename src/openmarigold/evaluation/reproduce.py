# SPDX-License-Identifier: Apache-2.0
"""The papers' tables, run: our numbers and the published ones, with every setting pinned to the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, InvalidValueError, MissingExtraError
from openmarigold.evaluation.benchmarks import find_row, open_benchmark
from openmarigold.evaluation.published import TABLES, Cell, PaperTable
from openmarigold.evaluation.report import Report
from openmarigold.evaluation.runner import evaluate_benchmark
from openmarigold.evaluation.specs import predictor_spec
from openmarigold.files import as_path


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
    num_workers: int = 1,
    allow_partial: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
    note: Callable[[str], object] = lambda line: None,
) -> list[CellResult]:
    """Results of a table's cells, each run in a folder of its own below `output_dir`, so that it can be resumed.

    Cells whose data or checkpoint is missing have the reason in the place of a report. `benchmarks` limits the cells;
    of `config` only the device and the batch size are used.

    Raises:
        DataError: an unknown benchmark.
        OutputError: the output folder cannot be written.
    """
    for name in benchmarks:
        find_row(name)
    config, output_dir = config or PredictConfig(), as_path(output_dir, "output_dir")
    results = []
    for cell in table.cells:
        if benchmarks and cell.benchmark not in benchmarks:
            continue
        if cell.model is None:
            results.append(CellResult(table=table, cell=cell))
            continue
        if cell.model not in checkpoints:
            results.append(CellResult(table=table, cell=cell, reason=f"no --checkpoint {cell.model}=DIR"))
            continue
        name = "-".join(filter(None, (cell.benchmark, cell.model.replace(":", "to"))))
        try:
            report = evaluate_benchmark(
                open_benchmark(cell.benchmark, data_dir, allow_partial=allow_partial),
                predictor_spec(_settings(table, cell, checkpoints[cell.model], config)),
                protocol=table.protocol,
                output_dir=output_dir / table.name / f"{name}-{cell.num_inference_steps}x{cell.ensemble_size}",
                num_workers=num_workers,
                allow_partial=allow_partial,
                progress=progress,
                note=note,
            )
        except (DataError, MissingExtraError) as error:
            results.append(CellResult(table=table, cell=cell, reason=str(error)))
            continue
        results.append(CellResult(table=table, cell=cell, report=report))
    return results


def _settings(table: PaperTable, cell: Cell, checkpoint: Path, config: PredictConfig) -> PredictConfig:
    """The paper's settings of a cell."""
    return PredictConfig(
        checkpoint=checkpoint,
        num_inference_steps=cell.num_inference_steps,
        ensemble_size=cell.ensemble_size,
        processing_resolution=find_row(cell.benchmark).processing_resolution,
        seed=cell.seed,
        final_step=table.final_step,
        modality=(table.modality.name,),
        device=config.device,
        batch_size=config.batch_size,
    )


def find_table(name: str) -> PaperTable:
    """A table of the paper by name.

    Raises:
        InvalidValueError: there is none.
    """
    if name not in TABLES:
        raise InvalidValueError(f"table {name!r} is not known; use one of {', '.join(TABLES)}")
    return TABLES[name]
