# SPDX-License-Identifier: Apache-2.0
"""`openmarigold data`: what data sets there are, where they come from, and what to put where."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Where:
    """Say where a benchmark's files come from and what to put where; `assets`: those of `data render`.

    Nothing is downloaded.
    """

    name: tyro.conf.Positional[str]
    """Name of the benchmark, as `data list` shows them, or `assets`."""
    data: Path = Path("DATA")
    """Folder of the benchmarks, as it will be given to `evaluate` and `reproduce`, or of the assets."""


@dataclass(frozen=True, kw_only=True)
class ListSets:
    """List the benchmarks that `evaluate --benchmark NAME --data DIR` knows."""


@dataclass(frozen=True, kw_only=True)
class Render:
    """Render synthetic pictures with exact depth: path-traced rooms, tabletops and streets (extra `render`).

    The same command with the same seed gives the same data, whatever the number of workers; interrupted, it goes on
    where it was.
    """

    source: tyro.conf.Positional[Literal["rooms", "tabletops", "streets", "mix"]]
    """What to render; mix: all three."""
    count: int = 1000
    """Number of pictures."""
    seed: int = 0
    """Another seed gives other scenes."""
    output: Path = Path("rendered")
    """Folder for the shards; empty, or one that the same command left unfinished."""
    split: Literal["train", "val", "test"] = "train"
    """Name of the split. Splits share no scene, with the same seed too."""
    assets: Path | None = None
    """Folder with assets (`data where assets`). None: procedural shapes alone."""
    preset: Literal["preview", "train"] = "train"
    """preview: 256x192 and 2 samples; train: 384x288 and 4 samples."""
    resolution: tuple[int, int] | None = None
    """Width and height [px]. None: the preset's."""
    samples: int | None = None
    """Paths traced for each pixel. None: the preset's."""
    fov: tuple[float, float] = (45.0, 85.0)
    """Smallest and largest horizontal field of view [degrees]."""
    exposure: float = 0.0
    """Lighter (above 0) or darker than measured [stops], -4 to 4."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where Cycles renders."""
    workers: int | None = None
    """Processes. None: one for each core; on a GPU, one."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data sets: which there are, and where they come from."""

    command: tyro.conf.OmitArgPrefixes[
        Annotated[Where, tyro.conf.subcommand("where", prefix_name=False)]
        | Annotated[ListSets, tyro.conf.subcommand("list", prefix_name=False)]
        | Annotated[Render, tyro.conf.subcommand("render", prefix_name=False)]
    ]


def run_data(command: Data) -> int:
    """Prints, and returns the exit status."""
    if isinstance(command.command, Where):
        _print_where(command.command)
    elif isinstance(command.command, Render):
        _render(command.command)
    else:
        _print_list()
    return 0


def _render(command: Render) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from openmarigold.rendering.render import PRESETS, RenderConfig, available_cores, render_dataset

    options = dict(PRESETS[command.preset])
    if command.resolution is not None:
        options["width"], options["height"] = command.resolution
    if command.samples is not None:
        options["samples"] = command.samples
    config = RenderConfig(
        source=command.source,
        count=command.count,
        seed=command.seed,
        split=command.split,
        assets=command.assets,
        fov=command.fov,
        exposure=command.exposure,
        device=command.device,
        **options,
    )
    workers = command.workers if command.workers is not None else 1 if command.device == "gpu" else available_cores()
    columns = (TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("render", total=config.count)
        manifest = render_dataset(
            config, command.output, workers=workers, progress=lambda done, _: bar.update(task, completed=done)
        )
    counts = manifest["counts"]
    print(f"{counts['samples']} pictures of {len(counts['scenes'])} scenes in {command.output}")
    for what in ("kinds", "left_out", "defective"):
        listed = ", ".join(f"{name} {count}" for name, count in counts[what].items())
        print(f"{what.replace('_', ' ')}: {listed or 'none'}")
    if manifest["seconds_per_frame"] is not None:
        print(f"seconds per picture and worker: {manifest['seconds_per_frame']:.2f}")


def _print_where(command: Where) -> None:
    if command.name == "assets":
        from openmarigold.rendering.assets import where

        print(where(command.data))
        return
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
