# SPDX-License-Identifier: Apache-2.0
"""`openmarigold-render`: pictures, camera walks, the assets that they may show, and the authors of these assets.

Results are printed to stdout, progress and errors to stderr. Exit status: 0 done, 2 an error, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tyro

from openmarigold_render.core import OpenMarigoldError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Render pictures with exact depth: path-traced rooms, tabletops, streets and thin things.

    The same command with the same seed gives the same data, with any number of workers. An interrupted command
    continues where it stopped.
    """

    source: tyro.conf.Positional[Literal["rooms", "tabletops", "streets", "thin", "mix"]]
    """What to render; thin: fences, stems, lamps on cords, animals; mix: rooms, tabletops and streets."""
    count: int = 1000
    """Number of pictures."""
    seed: int = 0
    """Another seed gives other scenes."""
    output: Path = Path("rendered")
    """Folder for the shards; empty, or one that the same command left unfinished."""
    split: Literal["train", "val", "test"] = "train"
    """Name of the split. Splits share no scene, with the same seed too."""
    assets: Path | None = None
    """Folder with assets (`openmarigold-render assets`). None: procedural shapes alone."""
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
    maps: str = "depth,normals"
    """With commas: depth, and any of normals, albedo, shading, residual. The last three, in linear light, make up the
    color (albedo * shading + residual)."""
    workers: int | None = None
    """Processes. None: one for each core; on a GPU, one."""


@dataclass(frozen=True, kw_only=True)
class Walks:
    """Render camera walks with exact depth and poses: a folder for each, with frames and sequence.json.

    The same command with the same seed gives the same frames, with any number of workers. An interrupted command
    continues where it stopped.
    """

    source: tyro.conf.Positional[Literal["rooms", "tabletops", "streets", "thin", "mix"]]
    """Where to walk; thin: along fences and among lamps on cords; mix: in rooms, on tabletops, in streets."""
    scenes: int = 5
    """Number of walks, each in a scene of its own."""
    frames: int = 100
    """Frames of each walk."""
    fps: float = 15.0
    """Frames per second: more of them move less from frame to frame."""
    seed: int = 0
    """Another seed gives other scenes."""
    output: Path = Path("walks")
    """Folder for the walks; empty, or one that the same command left unfinished."""
    assets: Path | None = None
    """Folder with assets (`openmarigold-render assets`). None: procedural shapes alone."""
    preset: Literal["preview", "train"] = "train"
    """preview: 256x192 and 2 samples; train: 384x288 and 4 samples."""
    resolution: tuple[int, int] | None = None
    """Width and height [px]. None: the preset's."""
    samples: int | None = None
    """Paths traced for each pixel. None: the preset's."""
    fov: tuple[float, float] = (45.0, 85.0)
    """Smallest and largest horizontal field of view [degrees]; a walk keeps its own."""
    exposure: float = 0.0
    """Lighter (above 0) or darker than measured [stops], -4 to 4."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where Cycles renders."""
    workers: int | None = None
    """Processes, each with walks of its own. None: one for each core; on a GPU, one."""


@dataclass(frozen=True, kw_only=True)
class AssetPackages:
    """Print where free furniture, maps and textures come from, how to unpack them, and their licenses.

    Nothing is downloaded.
    """

    folder: Path = Path("ASSETS")
    """Folder for the assets, as it will be given to `pictures --assets`."""


@dataclass(frozen=True, kw_only=True)
class AttributionPage:
    """Write a page that names the authors and licenses of all assets in a rendered data set."""

    manifest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MANIFEST")]
    """The data set's manifest.json."""
    page: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PAGE")]
    """The Markdown file to write."""


Command: TypeAlias = (
    Annotated[Pictures, tyro.conf.subcommand("pictures")]
    | Annotated[Walks, tyro.conf.subcommand("path")]
    | Annotated[AssetPackages, tyro.conf.subcommand("assets")]
    | Annotated[AttributionPage, tyro.conf.subcommand("attribution")]
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Exit status of a command line."""
    if list(argv) == ["--version"]:
        from openmarigold_render import __version__

        print(f"openmarigold-render {__version__}")
        return 0
    command = tyro.cli(Command, args=list(argv), prog="openmarigold-render")
    try:
        _RUN[type(command)](command)
        sys.stdout.flush()
    except OpenMarigoldError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:  # the reader of stdout has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'input or output'}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _pictures(command: Pictures) -> None:
    from openmarigold_render.render import RenderConfig, render_dataset

    config = RenderConfig(
        source=command.source,
        count=command.count,
        seed=command.seed,
        split=command.split,
        assets=command.assets,
        fov=command.fov,
        exposure=command.exposure,
        device=command.device,
        maps=tuple(command.maps.replace(" ", "").split(",")),  # pyright: ignore[reportArgumentType] - checked there
        **_preset(command),
    )
    with _bar("pictures") as show:
        manifest = render_dataset(config, command.output, workers=_workers(command), progress=show)
    _print_summary(manifest, command.output)


def _walks(command: Walks) -> None:
    from openmarigold_render.sequences import PathConfig, render_walks

    config = PathConfig(
        source=command.source,
        scenes=command.scenes,
        frames=command.frames,
        fps=command.fps,
        seed=command.seed,
        assets=command.assets,
        fov=command.fov,
        exposure=command.exposure,
        device=command.device,
        **_preset(command),
    )
    with _bar("frames") as show:
        manifest = render_walks(config, command.output, workers=_workers(command), progress=show)
    print(f"{len(manifest['walks'])} walks of {config.frames} frames in {command.output}")
    _print_times(manifest, "frame")


def _preset(command: Pictures | Walks) -> dict[str, Any]:
    """Width, height and samples."""
    from openmarigold_render.render import PRESETS

    options = dict(PRESETS[command.preset])
    if command.resolution is not None:
        options["width"], options["height"] = command.resolution
    if command.samples is not None:
        options["samples"] = command.samples
    return options


def _workers(command: Pictures | Walks) -> int:
    from openmarigold_render.processes import available_cores

    return command.workers if command.workers is not None else 1 if command.device == "gpu" else available_cores()


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, and what is called with how much is done and wanted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("render", total=None)
        yield lambda done, wanted: bar.update(task, completed=done, total=wanted)


def _print_summary(manifest: dict[str, Any], output_dir: Path) -> None:
    counts = manifest["counts"]
    print(f"{counts['samples']} pictures of {len(counts['scenes'])} scenes in {output_dir}")
    for what in ("kinds", "left_out", "defective"):
        listed = ", ".join(f"{name} {count}" for name, count in counts[what].items())
        print(f"{what.replace('_', ' ')}: {listed or 'none'}")
    _print_times(manifest, "picture")


def _print_times(manifest: dict[str, Any], what: str) -> None:
    if manifest["seconds_per_frame"] is not None:
        print(f"seconds per {what} and worker: {manifest['seconds_per_frame']:.2f}")
    if manifest["cpu_seconds_per_frame"] is not None:
        print(f"processor seconds per {what}: {manifest['cpu_seconds_per_frame']:.2f}")


def _assets(command: AssetPackages) -> None:
    from openmarigold_render.assets import where

    print(where(command.folder))


def _attribution(command: AttributionPage) -> None:
    from openmarigold_render.attribution import write_attribution_page

    count = write_attribution_page(command.manifest, command.page)
    print(f"{count} assets: {command.page}")


_RUN: dict[type, Callable[[Any], None]] = {
    Pictures: _pictures,
    Walks: _walks,
    AssetPackages: _assets,
    AttributionPage: _attribution,
}
