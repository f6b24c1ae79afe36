# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint folder says: its kind, its defaults, its noise schedule, and whether it is whole.

Reads JSON, file sizes and headers only; no weights are loaded and torch is not needed. A checkpoint is a folder in
diffusers layout, see docs/architecture.md, or the id of such a folder on the Hugging Face hub.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from openmarigold.checkpoints import hub, hub_checkpoint
from openmarigold.checkpoints.known import Known, check_kind, modality_of
from openmarigold.checkpoints.network_configs import (
    MAX_LATENT_CHANNELS,
    MAX_PROCESSING_RESOLUTION,
    check_network_config,
    say_where_links_lead,
)
from openmarigold.checkpoints.weight_files import (
    EMBEDDING_FILE,
    GRAPH_FILES,
    NETWORK_FILES,
    TEXT_ENCODER_STEM,
    check_not_a_pointer,
    check_safetensors_file,
    converted_files,
    fingerprint,
    has_graphs,
    read_json,
    readable,
    safetensors_metadata,
    weight_files,
)
from openmarigold.config import (
    MAX_INFERENCE_STEPS,
    CallConfig,
    ConvertedFormat,
    FinalStep,
    Invariance,
    ModelConfig,
    StartNoise,
    TimestepSpacing,
    TinyVaeUse,
    check_final_step,
    check_processing_resolution,
    check_start_noise,
)
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, InvalidValueError, one_line
from openmarigold.files import user_cache_dir
from openmarigold.modalities import Modality
from openmarigold.printing import quoted_logger

EMBEDDED_DIR = Path(__file__).parents[1] / "weights" / "marigold-nano"
TITLES = {"onnx": "ONNX", "openvino": "OpenVINO"}
FALLBACK_PROCESSING_RESOLUTION = 768
FALLBACK_INFERENCE_STEPS = {"trailing": 4, "leading": 10, "lcm": 1}
# (scale_invariant, shift_invariant) of model_index.json
INVARIANCE_OF: dict[tuple[bool, bool], Invariance] = {
    (True, True): "affine",
    (True, False): "scale",
    (False, False): "absolute",
}

_log = quoted_logger(__name__)


_CACHED_EMBEDDING = "empty-prompt-"  # how the names of the embeddings in the user's cache begin


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint folder and its defaults."""

    directory: Path
    name: str
    weights: Literal["onnx", "openvino", "safetensors"]
    variant: str | None
    """Which files of the networks are to be read: None the plain ones (else those named fp16), "fp16" those named so.
    `loaded_variant` says what that comes to."""
    schedule: NoiseSchedule
    modality: Modality
    """What it predicts."""
    latent_channels: int
    invariance: Invariance
    """What the depth is known up to: its own scale and shift ("affine"), its own scale ("scale"), or nothing."""
    default_num_inference_steps: int
    default_processing_resolution: int
    default_final_step: FinalStep
    default_start_noise: StartNoise
    processing_side: Literal["longer", "shorter"]
    """The side of the photo that a processing resolution gives: the longer one in published checkpoints."""
    index: Mapping[str, Any] = field(repr=False)
    """All of model_index.json."""
    graphs: bool = False
    """Whether ONNX networks lie beside the safetensors weights and read these, so that both engines have the same."""


@dataclass(frozen=True, kw_only=True)
class TinyVae:
    """A small autoencoder with a checkpoint's latent space, and what it is used for in the place of its own."""

    directory: Path
    name: str
    variant: str | None
    used_for: TinyVaeUse

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks that it replaces."""
        return {"encode": ("vae_encoder",), "decode": ("vae_decoder",), "both": ("vae_encoder", "vae_decoder")}[
            self.used_for
        ]


_Config = TypeVar("_Config", bound=CallConfig)


def resolve_settings(config: _Config, defaults: Checkpoint) -> _Config:
    """`config` with the checkpoint's defaults in place of None.

    Raises:
        InvalidValueError: a setting that this checkpoint has no use for.
    """
    lcm = defaults.schedule.sampler == "lcm"
    for name in ("final_step", "timestep_spacing"):
        if lcm and getattr(config, name) is not None:
            raise InvalidValueError(
                f"{name} is a setting of DDIM, and {defaults.name} is an LCM checkpoint; leave it out"
            )
    start_noise = config.start_noise or defaults.default_start_noise
    if start_noise == "zeros" and config.ensemble_size > 1:
        raise InvalidValueError(
            f"ensemble_size={config.ensemble_size} gains nothing with {defaults.name}: it starts from zeros, so that "
            "all members are equal; use 1 (or start_noise gaussian)"
        )
    spacing, resolution = config.timestep_spacing, config.processing_resolution
    num_inference_steps = config.num_inference_steps or defaults.default_num_inference_steps
    defaults.schedule.timesteps(num_inference_steps)  # too many for it?
    return replace(
        config,
        num_inference_steps=num_inference_steps,
        processing_resolution=defaults.default_processing_resolution if resolution is None else resolution,
        final_step="clean" if lcm else config.final_step or defaults.default_final_step,
        timestep_spacing=cast(TimestepSpacing, defaults.schedule.timestep_spacing) if not (spacing or lcm) else spacing,
        start_noise=start_noise,
    )


def read_checkpoint(
    checkpoint: Path | str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """The checkpoint in a folder or of a hub id; None is the model that comes with the package.

    Args:
        checkpoint: folder, or `owner/name` on the hub where there is no such folder.
        variant: "fp16" reads the files named so; None the plain ones, and those named fp16 where there are no others.
        revision: branch, tag or commit of a hub repository.
        local_files_only: take a hub repository as it was downloaded before.

    Raises:
        CheckpointError: a file is missing, empty, truncated or not understood, or the checkpoint predicts something
            other than depth, or a hub repository cannot be had.
        MissingExtraError: a hub id without the extra `torch`.
    """
    try:
        with readable():
            hub_id = None if checkpoint is None else hub.as_hub_id(Path(checkpoint))
            if hub_id is not None:
                repository = hub_checkpoint.open_checkpoint(
                    hub_id, revision=revision, local_files_only=local_files_only
                )
                return read_repository(repository, variant=variant)
            directory, name = _locate(checkpoint, revision=revision, local_files_only=local_files_only)
            return _read(directory, name, variant=variant)
    except (TypeError, KeyError, IndexError, RecursionError) as error:  # JSON of another shape than anybody writes
        raise CheckpointError(
            f"{checkpoint} cannot be understood ({one_line(error)}); get the checkpoint again"
        ) from error


def read_tiny_vae(config: ModelConfig, checkpoint: Checkpoint) -> TinyVae | None:
    """The small autoencoder that the settings name, a folder or a hub id; None where they name none.

    Raises:
        CheckpointError: it is missing, damaged, of another class or latent space, or cannot be downloaded.
        MissingExtraError: a hub id without the extra `torch`.
    """
    if config.tiny_vae is None:
        return None
    given = Path(config.tiny_vae)
    hub_id = hub.as_hub_id(given)
    directory = given
    if hub_id is not None:
        directory = hub_checkpoint.fetch_network(hub_id, local_files_only=config.local_files_only)
    elif not given.is_dir():
        raise CheckpointError(
            f"tiny_vae {given} is not a folder; give one with config.json and safetensors weights of an "
            "AutoencoderTiny, or its hub id owner/name, such as madebyollin/taesd"
        )
    elif (given / "vae" / "config.json").is_file() and not (given / "config.json").is_file():
        directory = given / "vae"  # a whole checkpoint, or one of `train autoencoder`
    path = directory / "config.json"
    content = read_json(path)
    if content.get("_class_name") != "AutoencoderTiny":
        raise CheckpointError(f"{path}: _class_name is {content.get('_class_name')!r}; accepted is 'AutoencoderTiny'")
    channels = content.get("latent_channels", 4)
    if channels != checkpoint.latent_channels:
        raise CheckpointError(
            f"{path}: {channels} latent channels do not fit checkpoint {checkpoint.name}, which has "
            f"{checkpoint.latent_channels}; give an autoencoder with the same latent space"
        )
    variant, files = weight_files(directory)
    for file in files:
        check_safetensors_file(file)
    name = hub_id or directory.resolve().name
    return TinyVae(directory=directory, name=name, variant=variant, used_for=config.tiny_vae_for)


def read_repository(repository: hub.Repository, *, variant: str | None = None) -> Checkpoint:
    """The checkpoint of a repository, as `hub_checkpoint.open_checkpoint` gives it, downloaded where need be.

    Raises:
        CheckpointError: a file cannot be had or is damaged.
    """

    def is_embedding_known(folder: Path | None) -> bool:
        if folder is None:
            return any(user_cache_dir().glob(f"{_CACHED_EMBEDDING}*"))
        return cached_embedding_path(folder, variant=variant).is_file()

    directory = hub_checkpoint.fetch_checkpoint(repository, variant=variant, is_embedding_known=is_embedding_known)
    try:
        return _read(directory, repository.hub_id, variant=variant)
    except CheckpointError as error:
        again = f"openmarigold checkpoint verify {repository.hub_id} --fetch-again"
        raise CheckpointError(str(error).replace("get the checkpoint again", f"get it again: {again}")) from error


def read_outline(repository: hub.Repository, *, variant: str | None = None) -> Checkpoint:
    """The checkpoint of a repository as its small files describe it; its weights need not be there.

    Raises:
        CheckpointError: one of the small files is damaged.
    """
    with readable():
        return _read(repository.folder, repository.hub_id, variant=variant, outline=repository)


def _read(directory: Path, name: str, *, variant: str | None, outline: hub.Repository | None = None) -> Checkpoint:
    index_path = directory / "model_index.json"
    index = read_json(index_path)
    scheduler_path, unet_path = directory / "scheduler" / "scheduler_config.json", directory / "unet" / "config.json"
    scheduler_config, unet_config = read_json(scheduler_path), read_json(unet_path) if unet_path.is_file() else None
    known = check_kind(index, index_path, name=name, scheduler=scheduler_config, unet=unet_config)
    modality = modality_of(index, known)
    invariance = _invariance(index, index_path)
    try:
        schedule = NoiseSchedule.from_config(scheduler_config)
    except CheckpointError as error:
        raise CheckpointError(f"{scheduler_path}: {error}") from error
    if known is not None and known.timestep_spacing is not None:
        schedule = replace(schedule, timestep_spacing=known.timestep_spacing)

    weights = _kind_of_weights(directory if outline is None else outline.files)
    if outline is not None and weights == "safetensors":
        configs = {part: read_json(directory / part / "config.json") for part in ("vae", "unet")}
        channels = _channels_of(directory, configs, modality)
    elif weights != "safetensors" and outline is not None:
        channels = _integer(index, "latent_channels", None, least=1)
    elif weights != "safetensors":
        if variant is not None:
            raise CheckpointError(
                f"{directory} holds {TITLES[weights]} networks, which have no variant {variant!r}; leave it out"
            )
        channels = _check_converted(directory, index, weights)
    else:
        channels = _check_safetensors(directory, variant, modality)
    defaults = _defaults(index, index_path, schedule, known)
    checkpoint = Checkpoint(
        directory=directory,
        name=str(index.get("name") or name),
        weights=weights,
        variant=variant,
        schedule=schedule,
        modality=modality,
        latent_channels=channels,
        invariance=invariance,
        index=index,
        **defaults,
        graphs=weights == "safetensors" and has_graphs(directory, variant),
    )
    if outline is None:  # else its weights need not be there, and its links are the hub's own
        files = [index_path, directory / EMBEDDING_FILE, *network_files(checkpoint)]
        if weights == "safetensors" and not stored_embedding_path(directory, variant=variant).is_file():
            files += text_encoder_files(directory, variant)
        say_where_links_lead(directory, files)
    return checkpoint


def _defaults(index: Mapping[str, Any], path: Path, schedule: NoiseSchedule, known: Known | None) -> dict[str, Any]:
    """What model_index.json at `path` recommends, by the names of `Checkpoint`; where it is silent, what is known."""
    try:
        fallback = (known.num_inference_steps if known is not None else None) or FALLBACK_INFERENCE_STEPS[
            "lcm" if schedule.sampler == "lcm" else schedule.timestep_spacing
        ]
        steps = _integer(index, "default_denoising_steps", fallback)
        if not 1 <= steps <= MAX_INFERENCE_STEPS:
            raise InvalidValueError(f"default_denoising_steps is {steps}; 1 to {MAX_INFERENCE_STEPS} is needed")
        try:
            schedule.timesteps(steps)
        except InvalidValueError as error:
            raise InvalidValueError(f"default_denoising_steps is {steps}: {error}") from error
        resolution = _integer(index, "default_processing_resolution", FALLBACK_PROCESSING_RESOLUTION)
        final_step = index.get("default_final_step") or "reference"
        start_noise = index.get("start_noise") or _start_noise(known, index, schedule, steps)
        check_processing_resolution(resolution)
        if resolution > MAX_PROCESSING_RESOLUTION:
            raise InvalidValueError(
                f"default_processing_resolution is {resolution}; at most {MAX_PROCESSING_RESOLUTION} is accepted"
            )
        check_final_step(final_step)
        check_start_noise(start_noise)
        processing_side = index.get("processing_side") or "longer"
        if processing_side not in ("longer", "shorter"):
            raise InvalidValueError(f"processing_side={processing_side!r} is not known; use longer or shorter")
    except InvalidValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return {
        "default_num_inference_steps": steps,
        "default_processing_resolution": resolution,
        "default_final_step": final_step,
        "default_start_noise": start_noise,
        "processing_side": processing_side,
    }


def network_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that give the networks and the scheduler when the checkpoint is loaded, and no others in its folder.

    Raises:
        CheckpointError: one is missing.
    """
    directory = checkpoint.directory
    files = [directory / "scheduler" / "scheduler_config.json"]
    if checkpoint.weights != "safetensors":
        return files + converted_files(directory, checkpoint.weights)
    for folder in (directory / name for name in ("unet", "vae")):
        files += [folder / "config.json", *weight_files(folder, variant=checkpoint.variant)[1]]
    return files + [directory / file for file in GRAPH_FILES.values() if checkpoint.graphs]


def text_encoder_files(directory: Path, variant: str | None = None) -> list[Path]:
    """The files that give the text encoder (of the variant, where it is there) and its tokenizer; none without both.

    Raises:
        CheckpointError: no weights.
    """
    folder, tokenizer = directory / "text_encoder", directory / "tokenizer"
    if not (folder.is_dir() and tokenizer.is_dir()):
        return []
    weights = text_encoder_weights(folder, variant)[1]
    return [folder / "config.json", *weights, *sorted((*tokenizer.glob("*.json"), *tokenizer.glob("*.txt")))]


def text_encoder_weights(folder: Path, variant: str | None) -> tuple[str | None, list[Path]]:
    """(variant, files) of a text encoder's weights: of the given variant where it is there, else of any.

    Raises:
        CheckpointError: there are none.
    """
    with suppress(CheckpointError):
        return weight_files(folder, stem=TEXT_ENCODER_STEM, variant=variant)
    return weight_files(folder, stem=TEXT_ENCODER_STEM)


def loaded_variant(checkpoint: Checkpoint) -> str | None:
    """Which weight files are read, whatever was asked for: "fp16" those named so, None the plain ones.

    Where U-Net and VAE differ, both are named.
    """
    if checkpoint.weights != "safetensors":
        return None
    variants = {
        name: weight_files(checkpoint.directory / name, variant=checkpoint.variant)[0] for name in ("unet", "vae")
    }
    if len(set(variants.values())) == 1:
        return variants["unet"]
    return ", ".join(f"{name} {variant or 'plain'}" for name, variant in variants.items())


def cached_embedding_path(directory: Path, *, variant: str | None = None) -> Path:
    """Where the user cache has, or would have, the empty-prompt embedding of the checkpoint in `directory`.

    The name is a fingerprint of the U-Net's weight files. So it is found without a text encoder, which may never have
    been downloaded.
    """
    digest = fingerprint(weight_files(directory / "unet", variant=variant)[1])
    return user_cache_dir() / f"{_CACHED_EMBEDDING}{digest[:32]}{f'-{variant}' if variant else ''}.safetensors"


def stored_embedding_path(directory: Path, *, variant: str | None = None) -> Path:
    """Where a checkpoint folder has, or would have, the empty-prompt embedding of a variant.

    One that a text encoder has made belongs to the variant of that text encoder. One that came with the folder serves
    all variants, and so does any other where the folder has no text encoder to make another.
    """
    plain = directory / EMBEDDING_FILE
    if variant is None:
        return plain
    named = directory / f"empty_prompt_embedding.{variant}.safetensors"
    if named.is_file() or not plain.is_file():
        return named
    check_safetensors_file(plain)
    made_here = "text_encoder_sha256" in safetensors_metadata(plain)
    return named if made_here and text_encoder_files(directory, variant) else plain


def _locate(checkpoint: Path | str | None, *, revision: str | None, local_files_only: bool) -> tuple[Path, str]:
    """Folder and name of a checkpoint argument that is not a hub id."""
    given = tuple(name for name, value in (("revision", revision), ("local_files_only", local_files_only)) if value)
    if checkpoint is None:
        _warn_of_unused(given, "the embedded model")
        if not (EMBEDDED_DIR / "model_index.json").is_file():
            raise CheckpointError("the embedded model is missing from this installation; install openmarigold again")
        return EMBEDDED_DIR, EMBEDDED_DIR.name
    directory = Path(checkpoint)
    if not directory.is_dir():
        raise CheckpointError(
            f"checkpoint {directory} is not a folder; give a downloaded folder with model_index.json, the id "
            "owner/name of one on the Hugging Face hub, or none for the embedded model"
        )
    _warn_of_unused(given, f"the folder {directory}")
    return directory, directory.resolve().name


@cache  # once, however often a checkpoint is read
def _warn_of_unused(settings: tuple[str, ...], what: str) -> None:
    if settings:
        _log.warning(
            "%s belong%s to checkpoints on the hub and %s not used: the checkpoint is %s",
            " and ".join(settings),
            *(("s", "is") if len(settings) == 1 else ("", "are")),
            what,
        )


def _invariance(index: Mapping[str, Any], path: Path) -> Invariance:
    for key in ("scale_invariant", "shift_invariant"):
        if not isinstance(index.get(key), (bool, type(None))):
            raise CheckpointError(f"{path}: {key} is {index[key]!r}; true or false is needed")
    invariances = [index.get(key) is not False for key in ("scale_invariant", "shift_invariant")]
    if (invariances[0], invariances[1]) not in INVARIANCE_OF:
        raise CheckpointError(
            f"{path}: scale_invariant is false and shift_invariant true, which is not supported; depth is affine (both "
            "true), known up to its scale (scale_invariant only), or absolute (both false)"
        )
    return INVARIANCE_OF[invariances[0], invariances[1]]


def _start_noise(known: Known | None, index: Mapping[str, Any], schedule: NoiseSchedule, steps: int) -> StartNoise:
    """What a checkpoint that does not say so (`start_noise`) was trained to start from: a known fact, else inferred.

    Checkpoints fine-tuned end to end (E2E-FT) start from zeros, and their files do not tell. Among published ones they
    are those that ask for one trailing DDIM step without zero terminal SNR: v1-0 is leading and asks for ten, v1-1 has
    zero terminal SNR and asks for four, LCM has its own scheduler. What this package trains states
    `default_final_step` and starts from noise.
    """
    if known is not None and known.start_noise is not None:
        return known.start_noise
    end_to_end = (
        schedule.sampler == "ddim"
        and schedule.timestep_spacing == "trailing"
        and not schedule.rescale_betas_zero_snr
        and steps == 1
        and index.get("default_denoising_steps") == 1
        and "default_final_step" not in index
    )
    return "zeros" if end_to_end else "gaussian"


def _kind_of_weights(place: Path | Mapping[str, object]) -> Literal["onnx", "openvino", "safetensors"]:
    """The kind of the networks in a folder, or in a list of files."""
    for kind, files in NETWORK_FILES.items():
        if any((place / file).exists() if isinstance(place, Path) else file in place for file in files.values()):
            return kind
    return "safetensors"


def _check_converted(directory: Path, index: Mapping[str, Any], kind: ConvertedFormat) -> int:
    for path in converted_files(directory, kind):
        if not path.is_file():
            expected = ", ".join(NETWORK_FILES[kind].values())
            also = ", each with model.bin beside it" if kind == "openvino" else ""
            raise CheckpointError(f"{path} is missing; an {TITLES[kind]} checkpoint holds {expected}{also}")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty; get the checkpoint again")
        check_not_a_pointer(path)
    try:
        channels = _integer(index, "latent_channels", None, least=1)
        if channels > MAX_LATENT_CHANNELS:
            raise InvalidValueError(f"latent_channels is {channels}; at most {MAX_LATENT_CHANNELS} is accepted")
        return channels
    except InvalidValueError as error:
        raise CheckpointError(f"{directory / 'model_index.json'}: {error}") from error


def _check_safetensors(directory: Path, variant: str | None, modality: Modality) -> int:
    """The latent's channels, after all files have been looked at."""
    configs = {}
    for name in ("vae", "unet"):
        folder = directory / name
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder} is missing; a checkpoint holds unet/ and vae/ with config.json and weights"
            )
        configs[name] = read_json(folder / "config.json")
        check_network_config(configs[name], folder / "config.json")
        for path in weight_files(folder, variant=variant)[1]:
            check_safetensors_file(path)
    embedding = stored_embedding_path(directory, variant=variant)
    if embedding.is_file():
        check_safetensors_file(embedding)
    elif (directory / "text_encoder").is_dir() and (directory / "tokenizer").is_dir():
        for path in text_encoder_weights(directory / "text_encoder", variant)[1]:
            check_safetensors_file(path)
    elif not cached_embedding_path(directory, variant=variant).is_file():
        raise CheckpointError(
            f"{embedding} is missing, and so are text_encoder/ and tokenizer/; one of the two is needed"
        )
    return _channels_of(directory, configs, modality)


def _channels_of(directory: Path, configs: Mapping[str, Mapping[str, Any]], modality: Modality) -> int:
    """The latent's channels, which VAE and U-Net must agree on."""
    vae_path = directory / "vae" / "config.json"
    factor = configs["vae"].get("scaling_factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise CheckpointError(f"{vae_path}: scaling_factor is {factor!r}; a number above 0 is needed")
    channels, *found = (
        _channels(configs[network], directory / network / "config.json", key)
        for network, key in (("vae", "latent_channels"), ("unet", "in_channels"), ("unet", "out_channels"))
    )
    wanted = [channels * (1 + modality.num_targets), channels * modality.num_targets]
    if found != wanted:
        raise CheckpointError(
            f"{directory / 'unet' / 'config.json'}: {found[0]} input and {found[1]} output channels do not fit a VAE "
            f"of {channels} latent channels; a checkpoint for {modality.title} has {wanted[0]} and {wanted[1]}"
        )
    return channels


def _channels(config: Mapping[str, Any], path: Path, key: str) -> int:
    try:
        return _integer(config, key, 4, least=1)  # 4 is what diffusers assumes
    except InvalidValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _integer(index: Mapping[str, Any], key: str, fallback: int | None, *, least: int = 0) -> int:
    value = index.get(key)
    value = fallback if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidValueError(f"{key} is {value!r}; a whole number from {least} on is needed")
    return value
