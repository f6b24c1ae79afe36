# SPDX-License-Identifier: Apache-2.0
"""`openmarigold data prepare`, `data normals`, `data label` and `data paste`: make data sets for training."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from openmarigold.cli.engines import num_workers, ray_engine
from openmarigold.cli.terminal import EXIT_SOME_FAILED, progress_bar, say
from openmarigold.config import DTYPES

if TYPE_CHECKING:
    from openmarigold.data.preparation import FrameFilter, Prepared, RawReader


@dataclass(frozen=True, kw_only=True)
class _Preparation:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The data as downloaded."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder of the prepared data set, created if missing; an interrupted run with the same settings continues."""
    list: Path | None = None
    """Text file with the frames to take, one per line, such as the published lists."""
    min_valid: float = 0.05
    """Leave out frames with a smaller share of pixels with usable depth (normals, albedo)."""
    min_brightness: float = 0.0
    """Leave out frames with a smaller mean of RGB, [0, 1]."""
    max_invalid: float | None = None
    """Leave out frames with a larger share of pixels without any depth. None: 0.03 for the training split of Hypersim's
    depth without --list, as published, else no limit. The next two do the same with 0.5 and 10."""
    min_depth_range: float | None = None
    """Leave out frames whose depth spans less [m]."""
    min_rgb_range: int | None = None
    """Leave out frames whose RGB spans less, of 255."""
    limit: int | None = None
    """Take only this many frames, the first ones."""
    shard_size: int = 256
    """Frames per shard. A continued run keeps complete shards."""
    workers: int = 0
    """Processes; 0 = one per CPU core. The result does not depend on it."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Make the shards on a Ray cluster, --workers actors at most (extra `ray`): its address, auto, or local."""


@dataclass(frozen=True, kw_only=True)
class PrepareHypersim(_Preparation):
    """Prepare Hypersim from its scene folders or zips (ai_VVV_NNN)."""

    modality: Literal["depth", "normals", "lighting"] = "depth"
    """What the maps are for: depth, surface normals, or lighting (albedo, shading and residual in linear light)."""
    split: Literal["train", "val", "test", "all"] = "train"
    """Part of the data set's official split; with --list only a name for the result."""
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
    """kitti: 352x1216 at the bottom center; none: full frames, JPEG files byte for byte."""


@dataclass(frozen=True, kw_only=True)
class PrepareInteriorVerse(_Preparation):
    """Prepare InteriorVerse (albedo, roughness, metallicity) from its folder or tar, scenes_85."""

    split: str = "train"
    """Name of the result's split; --list takes the frames of a published split."""
    scenes: tuple[str, ...] = ()
    """Only these scenes."""


@dataclass(frozen=True, kw_only=True)
class PrepareFolder(_Preparation):
    """Prepare any folder of RGB and depth, described by a TOML file (docs/data.md)."""

    config: Path | None = None
    """The description; by default dataset.toml in SOURCE."""
    split: str = "train"
    """Name of the result's split."""


PrepareCommand: TypeAlias = (
    Annotated[PrepareHypersim, tyro.conf.subcommand("hypersim", prefix_name=False)]
    | Annotated[PrepareVirtualKitti2, tyro.conf.subcommand("vkitti2", prefix_name=False)]
    | Annotated[PrepareInteriorVerse, tyro.conf.subcommand("interiorverse", prefix_name=False)]
    | Annotated[PrepareFolder, tyro.conf.subcommand("folder", prefix_name=False)]
)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Make a data set for training: check every frame, write indexed shards and a manifest.

    Exit status 1 if the source had defective frames: rejected.jsonl names them, and the result is complete without
    them.
    """

    what: tyro.conf.OmitArgPrefixes[PrepareCommand]


@dataclass(frozen=True, kw_only=True)
class Normals:
    """Add surface normals to a prepared data set, computed from its depth and intrinsics.

    An interrupted run with the same settings continues. The source is not changed.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder of a prepared data set with depth."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder of the new data set, created if missing."""
    fov: float | None = None
    """Field of view along the longer side [deg] to assume for samples without intrinsics."""
    support: int = 5
    """Side of the windows [px] for fitting planes, since depth is stored in steps; 7 for steps of a centimeter; 0:
    differences of neighbors, for float32 depth."""
    min_valid: float = 0.05
    """Leave out samples with a smaller share of pixels with a normal."""
    workers: int = 0
    """Processes; 0 = one per CPU core. The result does not depend on it."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Make the shards on a Ray cluster, as in `data prepare`."""


def run_prepare(command: _Preparation) -> int:
    """Prints, and returns the exit status."""
    from openmarigold.data.preparation import PUBLISHED_COUNT, prepare

    reader, facts = _reader(command)
    workers = num_workers(command.workers)
    with progress_bar("frames") as (progress, note):
        prepared = prepare(
            reader,
            command.dest,
            frame_filter=_filter(command),
            limit=command.limit,
            shard_size=command.shard_size,
            workers=workers,
            engine=ray_engine(command.ray, workers=workers),
            facts={"command": _command_line(command), **facts},
            progress=progress,
            note=note,
        )
    status, left_out = say_prepared(prepared, command.dest, frames="frames"), prepared.manifest["counts"]["left_out"]
    if isinstance(command, PrepareHypersim) and _is_published(command) and left_out:
        say("left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()))
        if not command.scenes and command.limit is None:
            say(f"for comparison: the authors chose {PUBLISHED_COUNT:,} of about 59,000 frames by this filter")
    return status


def say_prepared(prepared: Prepared, folder: Path, *, frames: str) -> int:
    """Prints the counts of a prepared set, with its defects, and returns the exit status."""
    from openmarigold.data.shard_writer import REJECTED_FILE

    counts = prepared.manifest["counts"]
    defective = sum(counts["defective"].values())
    reused = f" ({prepared.num_shards_kept} kept from before)" if prepared.num_shards_kept else ""
    say(
        f"{counts['samples']} samples of {len(counts['scenes'])} scenes in {len(prepared.manifest['shards'])} "
        f"shards{reused}, {sum(counts['left_out'].values())} left out, {defective} defective: {folder}"
    )
    if defective:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["defective"].items())
        say(f"{defective} defective {frames} ({reasons}); each in {folder / REJECTED_FILE}", error=True)
    if not counts["samples"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["left_out"].items()) or "all are defective"
        say(f"the set holds no sample ({reasons}); training cannot use it: choose other settings", error=True)
    return EXIT_SOME_FAILED if defective or not counts["samples"] else 0


def _is_published(command: _Preparation) -> bool:
    """Whether the authors' filter is the default."""
    return (
        isinstance(command, PrepareHypersim)
        and (command.modality, command.split) == (PrepareHypersim.modality, PrepareHypersim.split)
        and command.list is None
    )


def _filter(command: _Preparation) -> FrameFilter:
    from openmarigold.data.preparation import PUBLISHED_FILTER, FrameFilter

    default = PUBLISHED_FILTER if _is_published(command) else FrameFilter()
    names = ("max_invalid", "min_depth_range", "min_rgb_range")
    given = {name: value for name in names if (value := getattr(command, name)) is not None}
    kept = {name: getattr(default, name) for name in names if name not in given}
    return FrameFilter(min_valid=command.min_valid, min_brightness=command.min_brightness, **kept, **given)


def run_normals(command: Normals) -> None:
    """Prints what was made."""
    from openmarigold.data.normals import add_normals

    words = ["openmarigold", "data", "normals", str(command.source), "DEST", *changed_options(command)]
    workers = num_workers(command.workers)
    with progress_bar("samples") as (progress, _):
        prepared = add_normals(
            command.source,
            command.dest,
            fov=command.fov,
            support=command.support,
            min_valid=command.min_valid,
            workers=workers,
            engine=ray_engine(command.ray, workers=workers),
            facts={"command": shlex.join(words)},
            progress=progress,
        )
    _say_made(prepared, command.dest)


def run_paste(command: Paste) -> None:
    """Prints what was made."""
    from openmarigold.data.pasting import paste

    words = ["openmarigold", "data", "paste", str(command.pictures), "DEST", *changed_options(command)]
    workers = num_workers(command.workers)
    with progress_bar("samples") as (progress, _):
        prepared = paste(
            command.pictures,
            command.renders,
            command.dest,
            count=command.count,
            seed=command.seed,
            shard_size=command.shard_size,
            workers=workers,
            engine=ray_engine(command.ray, workers=workers),
            facts={"command": shlex.join(words)},
            progress=progress,
        )
    _say_made(prepared, command.dest)


def _say_made(prepared: Prepared, dest: Path) -> None:
    counts = prepared.manifest["counts"]
    reused = f" ({prepared.num_shards_kept} kept from before)" if prepared.num_shards_kept else ""
    say(
        f"{counts['samples']} samples in {len(prepared.manifest['shards'])} shards{reused}, "
        f"{sum(counts['left_out'].values())} left out: {dest}"
    )


def _reader(command: _Preparation) -> tuple[RawReader, dict[str, Any]]:
    """The reader of a command, and facts about the source for the manifest."""
    from openmarigold.data.preparation import read_list
    from openmarigold.data.readers import hypersim, hypersim_maps, interiorverse, vkitti2
    from openmarigold.data.readers.rgbd_folder import CONFIG_FILE, FolderReader, read_config

    source, listed = command.source, None if command.list is None else read_list(command.list)
    if isinstance(command, PrepareHypersim):
        maps = (hypersim.DEPTH_MAPS, hypersim_maps.NORMALS_MAPS, hypersim_maps.LIGHTING_MAPS)
        about = hypersim.ABOUT
        reader: RawReader = hypersim.HypersimReader(
            source,
            split=command.split,
            split_csv=command.split_csv,
            listed=listed,
            scenes=command.scenes,
            maps={one.modality: one for one in maps}[command.modality],
        )
    elif isinstance(command, PrepareVirtualKitti2):
        about = vkitti2.ABOUT
        reader = vkitti2.VirtualKitti2Reader(
            source,
            split=command.split,
            scenes=command.scenes,
            variants=command.variants,
            listed=listed,
            crop=command.crop == "kitti",
        )
    elif isinstance(command, PrepareInteriorVerse):
        about = interiorverse.ABOUT
        reader = interiorverse.InteriorVerseReader(source, split=command.split, scenes=command.scenes, listed=listed)
    else:
        assert isinstance(command, PrepareFolder)
        about = read_config(command.config or source / CONFIG_FILE)
        reader = FolderReader(source, about, split=command.split, listed=listed)
    return reader, {"license": about.license, "attribution": [about.attribution] if about.attribution else []}


def _command_line(command: _Preparation) -> str:
    """The command with the given settings, without the destination and the number of processes."""
    names = {
        PrepareHypersim: "hypersim",
        PrepareVirtualKitti2: "vkitti2",
        PrepareInteriorVerse: "interiorverse",
        PrepareFolder: "folder",
    }
    words = ["openmarigold", "data", "prepare", names[type(command)], str(command.source), "DEST"]
    return shlex.join([*words, *changed_options(command)])


def changed_options(command: Any) -> list[str]:
    """The settings that are not the defaults, as words of a command line."""
    words: list[str] = []
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if field.name in ("source", "pictures", "dest", "workers", "ray") or value == field.default:
            continue
        words += [f"--{field.name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


@dataclass(frozen=True, kw_only=True)
class Label:
    """Make a training set from photos: a model's ensemble labels the pixels on which its members agree.

    The other pixels stay unknown. Depth is up to a scale for each photo. An interrupted run with the same settings
    continues. Exit status 1 if no sample was made or photos were defective: rejected.jsonl names them.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Folder, tar or zip of photos; a folder may hold tars and zips."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder of the data set, created if missing."""
    checkpoint: str | None = None
    """The teacher: folder or hub id of a model of depth up to scale, or in meters. None: the embedded model."""
    engine: str = "auto"
    """Engine for the teacher: onnx, openvino, torch, or auto."""
    dtype: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(DTYPES) + "}")] = "float32"
    """Precision of its networks."""
    ensemble_size: int = 4
    """Number of its predictions for each photo, 2 or more."""
    processing_resolution: int | None = None
    """Resolution at which it sees a photo [px], as in `predict`; more shows finer things. None: as the checkpoint
    says."""
    max_uncertainty: float = 0.1
    """Leave pixels unknown where members deviate from their median by more than this share of the depth."""
    min_valid: float = 0.5
    """Leave out photos with a smaller share of known pixels."""
    size: tuple[int, int] = (288, 384)
    """Height, then width of the samples [px]: the middle of each photo, in this shape. All sources of a recipe need the
    same size."""
    license: str = ""
    """Terms of the photos, for the manifest."""
    limit: int | None = None
    """Take only this many photos, the first ones."""
    shard_size: int = 256
    """Photos per shard. A continued run keeps complete shards."""
    workers: int = 1
    """Processes, each with a separate model that uses all cores; 0 = one per CPU core."""


@dataclass(frozen=True, kw_only=True)
class Paste:
    """Make a training set of pictures with things of renders in front of them, such as fences, lamps and branches.

    The depth of a thing is that of the render, moved in front of what it covers. An interrupted run with the same
    settings continues.
    """

    pictures: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Folder of a prepared data set with depth, such as photos that `data label` labeled."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder of the new data set, created if missing."""
    renders: tuple[Path, ...]
    """Folders of prepared data sets of renders, each drawn equally often."""
    count: int = 6000
    """Number of samples."""
    seed: int = 2024
    """Seed of all choices."""
    shard_size: int = 256
    """Samples per shard. A continued run keeps complete shards."""
    workers: int = 0
    """Processes; 0 = one per CPU core. The result does not depend on it."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Make the shards on a Ray cluster, as in `data prepare`."""


def run_label(command: Label) -> int:
    """Prints what was made, and returns the exit status."""
    from openmarigold.batch.labels import FACTS, LabelReader
    from openmarigold.config import PredictConfig
    from openmarigold.data.preparation import FrameFilter, prepare

    config = PredictConfig(
        checkpoint=command.checkpoint,
        engine=command.engine,  # pyright: ignore[reportArgumentType] - it is checked
        dtype=command.dtype,  # pyright: ignore[reportArgumentType]
        ensemble_size=command.ensemble_size,
        processing_resolution=command.processing_resolution,
    )
    reader = LabelReader(command.source, config, size=command.size, max_uncertainty=command.max_uncertainty)
    words = ["openmarigold", "data", "label", str(command.source), "DEST", *changed_options(command)]
    with progress_bar("photos") as (progress, note):
        prepared = prepare(
            reader,
            command.dest,
            frame_filter=FrameFilter(min_valid=command.min_valid),
            limit=command.limit,
            shard_size=command.shard_size,
            workers=num_workers(command.workers),
            facts={"command": shlex.join(words), "license": command.license, **FACTS},
            progress=progress,
            note=note,
        )
    return say_prepared(prepared, command.dest, frames="photos")
