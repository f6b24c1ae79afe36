# SPDX-License-Identifier: Apache-2.0
"""`openmarigold data`: list data sets; prepare, check and view training data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from openmarigold.cli.engines import num_workers
from openmarigold.cli.prepare import (
    Label,
    Normals,
    Paste,
    Prepare,
    run_label,
    run_normals,
    run_paste,
    run_prepare,
)
from openmarigold.cli.terminal import EXIT_SOME_FAILED, print_table, progress_bar, say
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.printing import printable

_MOVED = {
    ("data", "render"): "openmarigold-render pictures",
    ("data", "where", "assets"): "openmarigold-render assets",
}


@dataclass(frozen=True, kw_only=True)
class Where:
    """Show where a data set's files come from and where to put them.

    Nothing is downloaded.
    """

    name: tyro.conf.Positional[str]
    """Name of the benchmark or training set, as `data list` shows them."""
    data: Path = Path("DATA")
    """Folder of the data, as it will be given to `evaluate`, `reproduce` and `data prepare`."""


@dataclass(frozen=True, kw_only=True)
class ListSets:
    """List the benchmarks that `evaluate --benchmark NAME --data DIR` knows, and the sets that `data prepare` reads."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a prepared data set: every shard against its hash, every sample decoded. Exit status 1 if any is bad."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the prepared data set."""
    workers: int = 0
    """Threads; 0 = one per CPU core."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Write a contact sheet of a prepared data set: RGB next to colored depth, with names and shares."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the prepared data set."""
    output: Path
    """The picture, .jpg or .png."""
    count: int = 24
    """Number of samples, evenly spread over the data set."""
    overwrite: bool = False
    """Replace the picture if it exists."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Show statistics of a prepared data set: samples and scenes of each kind, depth ranges, shares without depth."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the prepared data set."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """List data sets and where they come from; prepare, check and view training data."""

    command: tyro.conf.OmitArgPrefixes[
        Annotated[Where, tyro.conf.subcommand("where", prefix_name=False)]
        | Annotated[ListSets, tyro.conf.subcommand("list", prefix_name=False)]
        | Annotated[Prepare, tyro.conf.subcommand("prepare", prefix_name=False)]
        | Annotated[Normals, tyro.conf.subcommand("normals", prefix_name=False)]
        | Annotated[Label, tyro.conf.subcommand("label", prefix_name=False)]
        | Annotated[Paste, tyro.conf.subcommand("paste", prefix_name=False)]
        | Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
        | Annotated[Preview, tyro.conf.subcommand("preview", prefix_name=False)]
        | Annotated[Statistics, tyro.conf.subcommand("statistics", prefix_name=False)]
    ]


def check_moved(argv: Sequence[str]) -> None:
    """Raises `InvalidValueError` for a command that is now in the package openmarigold-render."""
    for before, now in _MOVED.items():
        if list(argv[: len(before)]) == list(before):
            raise InvalidValueError(
                f"`openmarigold {' '.join(before)}` is now `{now}`, a command of another package: "
                "pip install openmarigold-render (Python 3.11)"
            )


def run_data(command: Data) -> int:
    """Prints, and returns the exit status."""
    chosen = command.command
    if isinstance(chosen, Where):
        _print_where(chosen)
    elif isinstance(chosen, ListSets):
        _print_list()
    elif isinstance(chosen, Prepare):
        return run_prepare(chosen.what)
    elif isinstance(chosen, Normals):
        run_normals(chosen)
    elif isinstance(chosen, Label):
        return run_label(chosen)
    elif isinstance(chosen, Paste):
        run_paste(chosen)
    elif isinstance(chosen, Verify):
        return _verify(chosen)
    elif isinstance(chosen, Statistics):
        _print_statistics(chosen)
    else:
        _preview(chosen)
    return 0


def _verify(command: Verify) -> int:
    from openmarigold.data.shards import ShardedDataset
    from openmarigold.data.verification import verify

    data = ShardedDataset(command.folder)
    with progress_bar("samples") as (progress, note):
        problems = verify(command.folder, workers=num_workers(command.workers), progress=progress)
        if not command.json:
            for problem in problems:
                note(str(problem))
    bad = {problem.shard for problem in problems}
    if command.json:
        found = [dataclasses.asdict(problem) for problem in problems]
        print(json.dumps({"samples": len(data), "contents": data.contents, "problems": found}))
    elif problems:
        say(f"{len(problems)} problems in {len(bad)} files; delete the damaged shards and prepare the data again")
    else:
        say(f"{len(data)} samples in {len(data.manifest['shards'])} shards are intact: {data.contents}")
    return EXIT_SOME_FAILED if problems else 0


def _preview(command: Preview) -> None:
    from openmarigold.data.preview import write_preview

    count = write_preview(command.folder, command.output, count=command.count, overwrite=command.overwrite)
    say(f"{count} samples: {command.output}")


def _print_statistics(command: Statistics) -> None:
    from openmarigold.data.shards import ShardedDataset
    from openmarigold.data.statistics import dataset_statistics

    found = {}
    for name in ShardedDataset(command.folder).encodings:
        with progress_bar("samples") as (progress, _):
            found[name] = dataset_statistics(command.folder, map_name=name, progress=progress)
    if command.json:
        tables = [
            {"kinds": {row.kind: _row(name, row) for row in rows[:-1]}, "all": _row(name, rows[-1])}
            for name, rows in found.items()
        ]
        print(json.dumps(tables[0] if len(tables) == 1 else dict(zip(found, tables, strict=True))))
        return
    for name, rows in found.items():
        _print_table(command.folder, name, rows)


def _row(name: str, row: Any) -> dict[str, Any]:
    """Statistics for JSON; keys about the map's values begin with its name."""
    values = {key: _number(value) for key, value in dataclasses.asdict(row).items()}
    return {
        f"{name}_{key}" if key in ("quantiles", "far_quantiles", "range") else key: value
        for key, value in values.items()
    }


def _print_table(folder: Path, name: str, rows: list[Any]) -> None:
    from openmarigold.data.statistics import INVALID_LIMIT

    if not rows[-1].num_samples:
        say(f"no sample of {folder} has a {name} map")
        return
    wide = max(len(row.kind) for row in rows)
    over, values = f"over {100 * INVALID_LIMIT:.0f} %", f"{name} 2 / 50 / 98 %" + (" [m]" if name == "depth" else "")
    far = "98 % in 50 / 80 / 95 % of samples"
    say(
        f"{'kind':{wide}s}  samples  scenes  no {name}  {over:>8s}   {values}   smallest to largest   {far}   "
        "beyond usual"
    )
    for row in rows:
        quantiles, far = (
            " / ".join(f"{value:.2f}" for value in values) for values in (row.quantiles, row.far_quantiles)
        )
        beyond = f"{100 * row.beyond_usual_share:.1f} %" if row.beyond_usual_share == row.beyond_usual_share else "-"
        say(
            f"{row.kind:{wide}s} {row.num_samples:8d} {row.num_scenes:7d} {100 * row.invalid_share:7.1f} % "
            f"{100 * row.above_limit_share:7.1f} %  {quantiles:>24s}   "
            f"{row.range[0]:.2f} to {row.range[1]:.1f}   {far}   {beyond}"
        )


def _number(value: Any) -> Any:
    """A value for JSON: None in place of NaN."""
    if isinstance(value, tuple):
        return [_number(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def _print_where(command: Where) -> None:
    from openmarigold.evaluation.benchmarks import BENCHMARKS

    raw = _raw_data_sets()
    if command.name in raw:
        about = raw[command.name]
        say(f"{about.name}: {about.title}, {about.num_images} images")
        print(f"size: {about.size}\nlicense: {about.license}\n")
        print(about.where.replace("{root}", printable(command.data)) + "\n")
        say(f"Then: openmarigold data prepare {about.name} {command.data / about.name} PREPARED/{about.name}")
        return
    if command.name not in BENCHMARKS:
        raise DataError(f"unknown data set {command.name!r}; use one of {', '.join([*BENCHMARKS, *raw])}")
    row = BENCHMARKS[command.name]
    say(f"{row.name}: {row.title}" + (f", {row.expected_count} images" if row.expected_count else ""))
    span = _span(row.min_value, row.max_value)
    print(f"{row.modality.title}: {row.unit}" + (f"; range {span} m\n" if span else "\n"))
    print(row.files.replace("{root}", printable(command.data)))
    if row.expected_count:
        print()
        say(f"Then: openmarigold evaluate --benchmark {row.name} --data {command.data}")


def _print_list() -> None:
    from rich.markup import escape
    from rich.table import Table

    from openmarigold.evaluation.benchmarks import BENCHMARKS

    table = Table(title="benchmarks: evaluate, reproduce", title_justify="left")
    for heading in ("name", "what", "images", "files", "range m"):
        table.add_column(heading, justify="right" if heading == "images" else "left")
    for row in BENCHMARKS.values():
        count = "" if row.expected_count is None else str(row.expected_count)
        span = _span(row.min_value, row.max_value, "–")
        table.add_row(row.name, row.title, count, escape(f"{row.modality.title}: {row.unit}"), span)
    training = Table(title="training sets: data prepare", title_justify="left")
    for heading in ("name", "what", "images", "license", "size"):
        training.add_column(heading)
    for about in _raw_data_sets().values():
        training.add_row(about.name, about.title, about.num_images, about.license, about.size)
    print_table(table, width=120)
    print_table(training, width=120)


def _span(low: float, high: float, between: str = " to ") -> str:
    """A range of values; an empty text if it has no limit."""
    return "" if low == float("-inf") else f"{low:g}{between}{high:g}"


def _raw_data_sets() -> dict[str, Any]:
    from openmarigold.data.readers import hypersim, interiorverse, vkitti2

    return {about.name: about for about in (hypersim.ABOUT, vkitti2.ABOUT, interiorverse.ABOUT)}
