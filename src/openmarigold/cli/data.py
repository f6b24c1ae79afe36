# SPDX-License-Identifier: Apache-2.0
"""`openmarigold data`: which data sets there are; preparing, checking and seeing those for training."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from openmarigold.cli.terminal import EXIT_SOME_FAILED, progress_bar, say
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.printing import printable

if TYPE_CHECKING:
    from openmarigold.data.preparation import RawReader

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
    """List the benchmarks that `evaluate --benchmark NAME --data DIR` knows, and what `data prepare` reads."""


@dataclass(frozen=True, kw_only=True)
class _Preparation:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The data as downloaded."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder of the prepared data set, made if need be; an interrupted run of the same settings is continued."""
    list: Path | None = None
    """Text file with the frames to take, one a line, such as the published lists."""
    min_valid: float = 0.05
    """Leave out frames with a smaller share of pixels with usable depth."""
    min_brightness: float = 0.0
    """Leave out frames with a smaller mean of RGB, [0, 1]."""
    limit: int | None = None
    """Only the first so many frames."""
    shard_size: int = 256
    """Frames a shard. A shard is what an interrupted run does not do again."""
    workers: int = 0
    """Processes; 0 = one per CPU core. The result does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class PrepareHypersim(_Preparation):
    """Prepare Hypersim from its scene folders or zips (ai_VVV_NNN)."""

    split: Literal["train", "val", "test", "all"] = "train"
    """Of the data set's own split; with --list only a name for the result."""
    split_csv: Path | None = None
    """metadata_images_split_scene_v1.csv, if it is not in SOURCE."""
    scenes: tuple[str, ...] = ()
    """Only these scenes."""


@dataclass(frozen=True, kw_only=True)
class PrepareVirtualKitti2(_Preparation):
    """Prepare Virtual KITTI 2 from its tars or folders."""

    split: Literal["train", "val", "all"] = "train"
    """Scenes 02, 06, 18, 20 (train) or 01 (val), unless --scenes is given."""
    scenes: tuple[str, ...] = ()
    """Scene01, Scene02, Scene06, Scene18, Scene20."""
    variants: tuple[str, ...] = ("published",)
    """Names such as clone or fog, or a set: published, e2e-ft (of all scenes), all."""
    crop: Literal["kitti", "none"] = "kitti"
    """kitti: 352x1216, at the bottom, in the middle; none: as they are, JPEG files byte for byte."""


@dataclass(frozen=True, kw_only=True)
class PrepareFolder(_Preparation):
    """Prepare any folder of RGB and depth, described by a TOML file (docs/data.md)."""

    config: Path | None = None
    """The description; by default dataset.toml in SOURCE."""
    split: str = "train"
    """What the result is for."""


PrepareCommand: TypeAlias = (
    Annotated[PrepareHypersim, tyro.conf.subcommand("hypersim", prefix_name=False)]
    | Annotated[PrepareVirtualKitti2, tyro.conf.subcommand("vkitti2", prefix_name=False)]
    | Annotated[PrepareFolder, tyro.conf.subcommand("folder", prefix_name=False)]
)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Make a data set for training: check every frame, write indexed shards and a manifest.

    Exit status 1 if the source had defective frames: they are named in rejected.jsonl, and the result is whole
    without them.
    """

    what: tyro.conf.OmitArgPrefixes[PrepareCommand]


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


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Show what a prepared data set holds: samples and scenes of each kind, depth ranges, shares without depth."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the prepared data set."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data sets: which there are and where they come from; prepare, check and see training data."""

    command: tyro.conf.OmitArgPrefixes[
        Annotated[Where, tyro.conf.subcommand("where", prefix_name=False)]
        | Annotated[ListSets, tyro.conf.subcommand("list", prefix_name=False)]
        | Annotated[Prepare, tyro.conf.subcommand("prepare", prefix_name=False)]
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
        return _prepare(chosen.what)
    elif isinstance(chosen, Verify):
        return _verify(chosen)
    elif isinstance(chosen, Statistics):
        _print_statistics(chosen)
    else:
        _preview(chosen)
    return 0


def _prepare(command: PrepareHypersim | PrepareVirtualKitti2 | PrepareFolder) -> int:
    from openmarigold.data.preparation import FrameFilter, prepare
    from openmarigold.data.shard_writer import REJECTED_FILE

    reader, facts = _reader(command)
    with progress_bar("frames") as (progress, note):
        prepared = prepare(
            reader,
            command.dest,
            frame_filter=FrameFilter(min_valid=command.min_valid, min_brightness=command.min_brightness),
            limit=command.limit,
            shard_size=command.shard_size,
            workers=command.workers or os.cpu_count() or 1,
            facts={"command": _command_line(command), **facts},
            progress=progress,
            note=note,
        )
    counts = prepared.manifest["counts"]
    defective = sum(counts["defective"].values())
    reused = f" ({prepared.num_shards_kept} kept from before)" if prepared.num_shards_kept else ""
    say(
        f"{counts['samples']} samples of {len(counts['scenes'])} scenes in {len(prepared.manifest['shards'])} "
        f"shards{reused}, {sum(counts['left_out'].values())} left out, {defective} defective: {command.dest}"
    )
    if defective:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["defective"].items())
        say(f"{defective} defective frames ({reasons}); each in {command.dest / REJECTED_FILE}", error=True)
    return EXIT_SOME_FAILED if defective else 0


def _reader(command: PrepareHypersim | PrepareVirtualKitti2 | PrepareFolder) -> tuple[RawReader, dict[str, Any]]:
    """The reader of a command, and facts about the source for the manifest."""
    from openmarigold.data.preparation import read_list

    listed = None if command.list is None else read_list(command.list)
    if isinstance(command, PrepareHypersim):
        from openmarigold.data.readers import hypersim

        about = hypersim.ABOUT
        reader = hypersim.HypersimReader(
            command.source, split=command.split, split_csv=command.split_csv, listed=listed, scenes=command.scenes
        )
        return reader, {"license": about.license, "attribution": [about.attribution]}
    if isinstance(command, PrepareVirtualKitti2):
        from openmarigold.data.readers import vkitti2

        about = vkitti2.ABOUT
        return vkitti2.VirtualKitti2Reader(
            command.source,
            split=command.split,
            scenes=command.scenes,
            variants=command.variants,
            listed=listed,
            crop=command.crop == "kitti",
        ), {"license": about.license, "attribution": [about.attribution]}
    from openmarigold.data.readers.rgbd_folder import CONFIG_FILE, FolderReader, read_config

    config = read_config(command.config or command.source / CONFIG_FILE)
    facts = {"license": config.license, "attribution": [config.attribution] if config.attribution else []}
    return FolderReader(command.source, config, split=command.split, listed=listed), facts


def _command_line(command: PrepareHypersim | PrepareVirtualKitti2 | PrepareFolder) -> str:
    """The command with the given settings, without the destination and the number of processes."""
    names = {PrepareHypersim: "hypersim", PrepareVirtualKitti2: "vkitti2", PrepareFolder: "folder"}
    words = ["openmarigold", "data", "prepare", names[type(command)], str(command.source), "DEST"]
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if field.name in ("source", "dest", "workers") or value == field.default:
            continue
        words += [f"--{field.name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def _verify(command: Verify) -> int:
    from openmarigold.data.shards import ShardedDataset
    from openmarigold.data.verification import verify

    data = ShardedDataset(command.folder)
    with progress_bar("samples") as (progress, note):
        problems = verify(command.folder, workers=command.workers or os.cpu_count() or 1, progress=progress)
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
        say(f"{len(data)} samples in {len(data.manifest['shards'])} shards are what was written: {data.contents}")
    return EXIT_SOME_FAILED if problems else 0


def _preview(command: Preview) -> None:
    from openmarigold.data.preview import write_preview

    count = write_preview(command.folder, command.output, count=command.count)
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
    """Statistics for JSON; the map's name begins the keys about its values."""
    values = {key: _number(value) for key, value in dataclasses.asdict(row).items()}
    return {f"{name}_{key}" if key in ("quantiles", "range") else key: value for key, value in values.items()}


def _print_table(folder: Path, name: str, rows: list[Any]) -> None:
    from openmarigold.data.statistics import INVALID_LIMIT

    if not rows[-1].num_samples:
        say(f"no sample of {folder} has a {name} map")
        return
    wide = max(len(row.kind) for row in rows)
    over, values = f"over {100 * INVALID_LIMIT:.0f} %", f"{name} 5 / 50 / 95 %" + (" [m]" if name == "depth" else "")
    say(f"{'kind':{wide}s}  samples  scenes  no {name}  {over:>8s}   {values}   smallest to largest")
    for row in rows:
        quantiles = " / ".join(f"{value:.2f}" for value in row.quantiles)
        say(
            f"{row.kind:{wide}s} {row.num_samples:8d} {row.num_scenes:7d} {100 * row.invalid_share:7.1f} % "
            f"{100 * row.above_limit_share:7.1f} %  {quantiles:>24s}   "
            f"{row.range[0]:.2f} to {row.range[1]:.1f}"
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
    from rich.console import Console
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
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(training)


def _span(low: float, high: float, between: str = " to ") -> str:
    """A range of values; nothing where there is no limit."""
    return "" if low == float("-inf") else f"{low:g}{between}{high:g}"


def _raw_data_sets() -> dict[str, Any]:
    from openmarigold.data.readers import hypersim, vkitti2

    return {about.name: about for about in (hypersim.ABOUT, vkitti2.ABOUT)}
