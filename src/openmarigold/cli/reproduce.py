# SPDX-License-Identifier: Apache-2.0
"""`openmarigold reproduce`: run the papers' tables, and print our numbers next to the published ones."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openmarigold.cli.terminal import (
    EXIT_SOME_FAILED,
    print_json,
    print_table,
    progress_bar,
    say,
    scored_of_expected,
    share_without_number,
)
from openmarigold.config import Dtype, EngineName, PredictConfig
from openmarigold.printing import format_time

if TYPE_CHECKING:
    from openmarigold.evaluation.published import Cell, PaperTable
    from openmarigold.evaluation.reproduce import CellResult, Progress

TableName = Literal[
    "table1", "v1-1", "journal", "few-steps", "ensemble", "steps", "noise", "data-mix", "normals", "normals-v1-1"
]
Ensembling = Literal["own", "published"]
PERIOD_S = 30.0
"""Time between two lines of progress if stderr is not a terminal."""
_PARTS = 1000  # steps of the progress bar


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Run a table of the paper and print our numbers next to the published ones.

    Steps, ensemble size, resolution and seed are pinned to the paper's. A run resumes where it was interrupted.
    """

    table: tyro.conf.Positional[TableName]
    """In this order: Table 1; Marigold v1-1 with the settings of its scripts; the journal paper's rows of v1-0 and
    v1-1; E2E-FT's comparison of few steps; the curves of ensemble size and steps; the ablations of training noise and
    data; E2E-FT's comparison of normals, and normals with the settings of Marigold's scripts."""
    data: Path
    """Folder of the benchmarks (`openmarigold data where NAME`)."""
    checkpoint: tuple[str, ...]
    """Checkpoint folder; for tables of several models LABEL=DIR, one or more of the table's rows."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the reports, with a subfolder for each cell."""
    benchmarks: tuple[str, ...] = ()
    """Only these benchmarks."""
    allow_partial: tyro.conf.FlagCreatePairsOff[bool] = False
    """Score the other images if some are missing or damaged; such cells are marked."""
    num_workers: int = 1
    """Images that are read and scored at the same time; the result does not depend on it."""
    ensembling: Ensembling = "own"
    """How members are merged: own (this package's method) or published (the published solver; slow, extra
    `metric`)."""
    engine: EngineName = PredictConfig.engine
    """Engine for the networks: onnx, openvino, torch, or auto, the fastest."""
    dtype: Dtype = PredictConfig.dtype
    """Precision of the networks: float32, as published, bfloat16 or float16 (GPUs only)."""
    device: str = PredictConfig.device
    """Where the networks run: auto, cpu, cuda, cuda:1 or mps."""
    batch_size: int | None = PredictConfig.batch_size
    """Maximum number of ensemble members in a batch on a GPU. None: as many as fit."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the cells as JSON."""


def run_reproduce(command: Reproduce) -> int:
    """Runs the cells, prints them, and returns the exit status."""
    from openmarigold.evaluation.reproduce import find_table, parse_checkpoints, reproduce

    table = find_table(command.table)
    checkpoints = parse_checkpoints(table, command.checkpoint)
    with _shown_progress(command.table) as (advance, note):
        results = reproduce(
            table,
            data_dir=command.data,
            checkpoints=checkpoints,
            output_dir=command.output_dir,
            benchmarks=command.benchmarks,
            config=PredictConfig(
                engine=command.engine, dtype=command.dtype, device=command.device, batch_size=command.batch_size
            ),
            ensembling=command.ensembling,
            num_workers=command.num_workers,
            allow_partial=command.allow_partial,
            progress=advance,
            note=note,
        )
    if command.json:
        print_json([result.to_dict() for result in results])
    else:
        _print_table(table, results)
    return EXIT_SOME_FAILED if any(result.reason is not None for result in results) else 0


@contextlib.contextmanager
def _shown_progress(label: str) -> Iterator[tuple[Callable[[Progress], None], Callable[[str], None]]]:
    """Yields (advance, note): a bar on a terminal; elsewhere a line every `PERIOD_S`, and for the first and last image
    of each cell.
    """
    with progress_bar(label) as (advance, note):
        last = 0.0

        def show(now: Progress) -> None:
            nonlocal last
            advance(round(_PARTS * now.share), _PARTS)
            if sys.stderr.isatty():
                return
            due = time.monotonic() - last >= PERIOD_S
            if due or now.done in (1, now.total):
                last = time.monotonic()
                left = "" if now.remaining_s is None else f", about {format_time(now.remaining_s)} left in all"
                note(f"cell {now.number} of {now.num_cells}: {now.cell}, {now.done} of {now.total} images{left}")

        yield show, note


def _print_table(paper: PaperTable, results: Sequence[CellResult]) -> None:
    from rich.table import Table

    pair = " / ".join(score.heading for score in paper.scores)
    marks = {
        "~ read off a figure's axis": any(result.cell.read_off for result in results),
        "* as quoted by others": any(result.cell.second_hand for result in results),
    }
    caption = "; ".join(text for text, is_used in marks.items() if is_used) or None
    table = Table(title=f"{paper.title}\n{pair}, protocol {paper.protocol}", caption=caption)
    table.add_column("row")
    table.add_column("benchmark")
    for heading in ("published", "ours", "difference"):
        table.add_column(heading, justify="right")
    table.add_column("images", justify="right")
    table.add_column("pixels without\na number", justify="right")
    for result in results:
        table.add_row(
            result.cell.row,
            result.cell.benchmark,
            _published(result.cell),
            "quoted only" if result.cell.model is None else _pair(result.ours or (None, None), ".1f", "not run"),
            _pair(result.difference, "+.1f", ""),
            _images(result),
            "" if result.report is None else share_without_number(result.report),
        )
    print_table(table, width=110)
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.reason is not None:
            reasons.setdefault(result.reason, []).append(f"{result.cell.row} on {result.cell.benchmark}")
    for reason, cells in reasons.items():
        say(f"not run: {'; '.join(cells)}: {reason}")


def _published(cell: Cell) -> str:
    known = cell.published[0] is not None
    mark = "~" if cell.read_off and known else ""
    return mark + _pair(cell.published, ".1f", "–") + ("*" if cell.second_hand and known else "")


def _pair(pair: tuple[float | None, float | None], digits: str, absent: str) -> str:
    numbers = [format(number, digits) for number in pair if number is not None]
    return " / ".join(numbers) or absent


def _images(result: CellResult) -> str:
    return "" if result.report is None else scored_of_expected(result.report)
