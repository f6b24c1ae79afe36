# SPDX-License-Identifier: Apache-2.0
"""`openmarigold checkpoint info|verify|save|average|export|push`: describe, check, copy and average checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from openmarigold.cli.terminal import EXIT_ERROR, print_json, say
from openmarigold.config import ConvertedFormat, ExportDtype, FloatDtype, ModelConfig, PredictConfig, TinyVaeUse
from openmarigold.errors import InvalidValueError, needs_extra

if TYPE_CHECKING:
    from openmarigold.checkpoints.checkpoint import Checkpoint
    from openmarigold.checkpoints.hub import Repository


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint to work on."""

    checkpoint: tyro.conf.Positional[Path | None] = None
    """Checkpoint folder, or its id on the Hugging Face hub. None: the embedded model."""
    variant: str | None = None
    """Weight files to read, such as fp16. None: the plain ones, else fp16."""
    revision: str | None = None
    """Branch, tag or commit of a checkpoint on the hub."""
    local_files_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """Use a hub checkpoint that was downloaded before, without the network."""


@dataclass(frozen=True, kw_only=True)
class SourceToCopy(Source):
    """The checkpoint to copy."""

    modality: Literal["depth", "normals"] | None = None
    """What it predicts, for checkpoints of E2E-FT's training script, whose files do not state it. None: depth."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show kind, scheduler, defaults, parameters, size, license and SHA-256; weights of the hub are not downloaded."""

    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all of it, with the hash of each file, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check structure, hashes and weights, and predict a small picture. Exit status 2 if something is wrong."""

    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    sha256: str | None = None
    """Expected SHA-256, as shown by `checkpoint info`."""
    fetch_again: tyro.conf.FlagCreatePairsOff[bool] = False
    """First delete damaged files of a hub checkpoint from the cache and download them again."""


@dataclass(frozen=True, kw_only=True)
class Save:
    """Write a complete folder in diffusers layout for `MarigoldDepthPipeline.from_pretrained` (extra `torch`).

    diffusers cannot run a checkpoint with an image encoder: only this package can use such a copy.
    """

    source: tyro.conf.OmitArgPrefixes[SourceToCopy] = field(default_factory=SourceToCopy)
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder to write; new or empty."""
    dtype: FloatDtype = "float32"
    """How the networks' weights are stored."""


@dataclass(frozen=True, kw_only=True)
class Average:
    """Write the mean of the weights of checkpoints that were trained from one start (extra `torch`).

    The mean of a model and of the same one after fine-tuning keeps more of what it knew. Autoencoder and defaults are
    those of the first checkpoint. Measure it and calibrate it anew.
    """

    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """Two or more checkpoints of one form: folders, or ids on the Hugging Face hub."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder to write; new or empty."""
    shares: tuple[float, ...] = ()
    """Share of each, from 0 up, with the sum 1. Nothing: equal ones."""
    dtype: FloatDtype = "float32"
    """How the networks' weights are stored."""


@dataclass(frozen=True, kw_only=True)
class ExportCheckpoint:
    """Write a folder of ONNX or OpenVINO networks that predicts without torch (extra `export` or `openvino`)."""

    source: tyro.conf.OmitArgPrefixes[SourceToCopy] = field(default_factory=SourceToCopy)
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder to write; it may hold an older export, which is replaced."""
    format: ConvertedFormat = "onnx"
    """Kind of files: onnx, or openvino (the fastest on a CPU)."""
    dtype: ExportDtype = "float16"
    """How weights are stored: float16 (half the size; arithmetic stays float32), float32 (exact), or int8
    (computed in int8; openvino needs the extra `quantize`)."""
    photos: tuple[Path, ...] = ()
    """For int8: photos or folders like those to predict. Nothing: six that come with the package."""
    shared_weights: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep the safetensors weights as they are, and let the ONNX networks read these (onnx only)."""
    tiny_vae: str | None = None
    """Small autoencoder that replaces the checkpoint's: folder or hub id."""
    tiny_vae_for: TinyVaeUse = "decode"
    """What tiny-vae is used for: decode, encode or both."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload a checkpoint folder with its model card to a repository on the Hugging Face hub (extra `torch`).

    Needs a token with write access: `hf auth login`, or HF_TOKEN.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint folder, such as RUN/checkpoint. Read its README.md first."""
    to: str
    """Repository, owner/name; created if missing."""
    public: tyro.conf.FlagCreatePairsOff[bool] = False
    """Make a new repository public; by default it is private."""
    revision: str | None = None
    """Branch. None: the main one."""
    message: str = ""
    """Message of the commit."""


@dataclass(frozen=True, kw_only=True)
class CheckpointCommand:
    """Look at a checkpoint, verify it, save a complete copy, average several, export to other engines, or upload."""

    action: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Info, tyro.conf.subcommand("info")]
            | Annotated[Verify, tyro.conf.subcommand("verify")]
            | Annotated[Save, tyro.conf.subcommand("save")]
            | Annotated[Average, tyro.conf.subcommand("average")]
            | Annotated[ExportCheckpoint, tyro.conf.subcommand("export")]
            | Annotated[Push, tyro.conf.subcommand("push")]
        ]
    ]


def run_checkpoint(command: CheckpointCommand) -> int:
    """Runs the action and returns the exit status."""
    if isinstance(command.action, Push):
        return _push(command.action)
    if isinstance(command.action, Average):
        return _average(command.action)
    action, source = command.action, command.action.source
    repository = _repository(source, fetch_again=isinstance(action, Verify) and action.fetch_again)
    if isinstance(action, Info):
        return _info(action, repository)
    found = _read(source, repository)
    if isinstance(action, Save):
        return _save(action, found)
    return _export(action, found) if isinstance(action, ExportCheckpoint) else _verify(action, found, repository)


def _push(action: Push) -> int:
    from openmarigold.checkpoints.hub_upload import push

    given = {"public": action.public, "revision": action.revision, "message": action.message}
    say(f"{action.checkpoint} -> {push(action.checkpoint, action.to, **given)}")
    return 0


def _read(source: Source, repository: Repository | None) -> Checkpoint:
    from openmarigold.checkpoints.checkpoint import read_checkpoint, read_repository

    settings = dict(vars(source))
    wanted = settings.pop("modality", None)
    if repository is not None:
        found = read_repository(repository, variant=source.variant, wanted=wanted)
    else:
        found = read_checkpoint(**settings, wanted=wanted)
    if wanted not in (None, found.modality.name):
        raise InvalidValueError(f"modality {wanted}: {found.name} predicts {found.modality.title}; leave modality out")
    return found


def _repository(source: Source, *, fetch_again: bool) -> Repository | None:
    """The repository of a hub id, with its small files downloaded; None for a folder and the embedded model."""
    from openmarigold.checkpoints.hub import as_hub_id
    from openmarigold.checkpoints.hub_checkpoint import open_checkpoint

    hub_id = None if source.checkpoint is None else as_hub_id(source.checkpoint)
    if hub_id is not None:
        return open_checkpoint(
            hub_id, revision=source.revision, local_files_only=source.local_files_only, fetch_again=fetch_again
        )
    if fetch_again:
        raise InvalidValueError(
            "fetch_again is for checkpoints of the hub, and this one is a folder: copy it from its source again"
        )
    return None


def _info(action: Info, repository: Repository | None) -> int:
    from openmarigold.checkpoints.checkpoint import read_outline
    from openmarigold.checkpoints.hub_checkpoint import needed_files
    from openmarigold.checkpoints.integrity import describe, describe_outline

    source = action.source
    names = [] if repository is None else needed_files(repository, source.variant)
    if repository is not None and repository.missing(names):
        content = describe_outline(read_outline(repository, variant=source.variant), repository, names)
    else:
        content = describe(_read(source, repository))
    if action.json:
        print_json(content)
        return 0
    for label, text in _lines(content):
        say(f"{label:<12}{text}")
    return 0


def _lines(content: dict[str, Any]) -> list[tuple[str, str]]:
    scheduler, defaults = dict(content["scheduler"]), content["defaults"]
    details = ", ".join(f"{key} {_plain(value)}" for key, value in scheduler.items() if key != "class")
    parameters = content["parameters"]
    weights = f"{content['weights']} {content['variant'] or ''}".strip()
    to_download = content.get("bytes_to_download")
    unknown = "not stated" if to_download is None else "known after the download"
    counts = unknown if parameters is None else ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    condition = f", {content['condition_channels']} of the image encoder" if "condition_channels" in content else ""
    condition += f" and the photo's {content['condition_on']}" if "condition_on" in content else ""
    weights += _int8_layers(content.get("quantization") or {})
    size = f"{content['bytes']:,} bytes in {len(content['files'])} files"
    return [
        ("name", content["name"]),
        ("folder", content["directory"]),
        ("kind", f"{content['kind']}, {weights} weights, {content['latent_channels']} latent channels{condition}"),
        ("scheduler", f"{scheduler['class']}: {details}"),
        ("defaults", ", ".join(f"{key} {_plain(value)}" for key, value in defaults.items())),
        ("parameters", counts),
        ("size", size if to_download is None else f"{size}, of which {to_download:,} are not downloaded yet"),
        ("license", content["license"] or "not stated"),
        ("SHA-256", content["sha256"] or unknown),
    ]


def _int8_layers(quantization: dict[str, Any]) -> str:
    networks = quantization.get("networks")
    if not isinstance(networks, dict):
        return ""
    counts = [
        f"{name} {report.get('int8_layers')} of {report.get('int8_layers', 0) + len(report.get('kept_layers', ()))}"
        for name, report in networks.items()
    ]
    return f" in int8 ({', '.join(counts)} layers)"


def _plain(value: object) -> object:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _verify(action: Verify, found: Checkpoint, repository: Repository | None) -> int:
    from openmarigold.checkpoints.hashes import checkpoint_sha256
    from openmarigold.checkpoints.integrity import verify
    from openmarigold.predictor import Predictor

    say(f"ok      {found.name}: all files are there and fit together")
    checks = list(verify(found))
    if action.sha256 is not None:
        whole = checkpoint_sha256(found)
        problem = [] if whole == action.sha256.lower() else [f"the checkpoint has SHA-256 {whole}, not {action.sha256}"]
        checks.append(("the SHA-256 is the given one", problem))
    again = "get the checkpoint again"
    if repository is not None:
        again = f"get it again: openmarigold checkpoint verify {repository.hub_id} --fetch-again"
    failed = False
    for name, problems in checks:
        failed |= bool(problems)
        for line in problems or [name]:
            say(f"{'WRONG' if problems else 'ok':<8}{line.replace('get the checkpoint again', again)}")
    if not failed:
        Predictor.from_config(ModelConfig(device="cpu"), found=found).try_out()
        say("ok      a small picture was predicted")
    return EXIT_ERROR if failed else 0


def _save(action: Save, found: Checkpoint) -> int:
    with needs_extra("torch"):
        from openmarigold.networks.backbone import save_complete_checkpoint
    save_complete_checkpoint(found, action.output_dir, dtype=action.dtype)
    say(f"checkpoint -> {action.output_dir}")
    return 0


def _average(action: Average) -> int:
    from openmarigold.checkpoints.checkpoint import read_checkpoint

    with needs_extra("torch"):
        from openmarigold.networks.averaging import average_checkpoints
    sources = [read_checkpoint(folder) for folder in action.checkpoints]
    average_checkpoints(sources, action.output_dir, shares=action.shares, dtype=action.dtype)
    say(f"mean of {len(sources)} checkpoints -> {action.output_dir}")
    return 0


def _export(action: ExportCheckpoint, found: Checkpoint) -> int:
    from openmarigold.checkpoints.checkpoint import TITLES
    from openmarigold.checkpoints.configured import read_tiny_vae

    with needs_extra("export"):
        from openmarigold.networks.conversion import export_checkpoint, export_shared
    if action.photos and action.dtype != "int8":
        raise InvalidValueError(f"photos are for dtype int8, not {action.dtype}; leave them out")
    if action.shared_weights:
        if action.format != "onnx" or action.tiny_vae is not None or action.dtype != "float16":
            raise InvalidValueError(
                "shared-weights is for ONNX networks of the checkpoint's own weights, as they are stored; leave out "
                "tiny-vae, format and dtype"
            )
        export_shared(found, action.output_dir)
        say(f"checkpoint with ONNX networks -> {action.output_dir}")
        return 0
    wanted = PredictConfig(
        tiny_vae=action.tiny_vae,
        tiny_vae_for=action.tiny_vae_for,
        local_files_only=action.source.local_files_only,
    )
    tiny_vae = read_tiny_vae(wanted, found)
    if action.dtype == "int8":
        from openmarigold.predictor.quantized import export_int8
        from openmarigold.results.inputs import list_photos

        photos, problems = list_photos(action.photos, action.output_dir, [], [])
        if problems:
            raise InvalidValueError(problems[0][1])
        export_int8(found, action.output_dir, format=action.format, photos=list(photos.values()), tiny_vae=tiny_vae)
    else:
        export_checkpoint(found, action.output_dir, format=action.format, dtype=action.dtype, tiny_vae=tiny_vae)
    say(f"{TITLES[action.format]} checkpoint -> {action.output_dir}")
    return 0
