# SPDX-License-Identifier: Apache-2.0
"""`openmarigold data`: what data sets there are, where they come from, and what to put where."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Where:
    """Say where a benchmark's files come from and what to put where. Nothing is downloaded."""

    name: tyro.conf.Positional[str]
    """Name of the benchmark, as `data list` shows them."""
    data: Path = Path("DATA")
    """Folder of the benchmarks, as it will be given to `evaluate` and `reproduce`."""


@dataclass(frozen=True, kw_only=True)
class ListSets:
    """List the benchmarks that `evaluate --benchmark NAME --data DIR` knows."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data sets: which there are, and where they come from."""

    command: tyro.conf.OmitArgPrefixes[
        Annotated[Where, tyro.conf.subcommand("where", prefix_name=False)]
        | Annotated[ListSets, tyro.conf.subcommand("list", prefix_name=False)]
    ]


def run_data(command: Data) -> int:
    """Prints, and returns the exit status."""
    if isinstance(command.command, Where):
        _print_where(command.command)
    else:
        _print_list()
    return 0


def _print_where(command: Where) -> None:
    from openmarigold.data.benchmarks import find_row

    row = find_row(command.name)
    print(f"{row.name}: {row.title}" + (f", {row.expected_count} images" if row.expected_count else ""))
    print(f"depth: {row.unit}; range {row.min_depth:g} to {row.max_depth:g} m\n")
    print(row.files.replace("{root}", str(command.data)))
    if row.expected_count:
        print(f"\nThen: openmarigold evaluate --benchmark {row.name} --data {command.data}")


def _print_list() -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from openmarigold.data.benchmarks import BENCHMARKS

    table = Table()
    for heading in ("name", "what", "images", "depth files", "range m"):
        table.add_column(heading, justify="right" if heading == "images" else "left")
    for row in BENCHMARKS.values():
        count = "" if row.expected_count is None else str(row.expected_count)
        table.add_row(row.name, row.title, count, escape(row.unit), f"{row.min_depth:g}–{row.max_depth:g}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
