# SPDX-License-Identifier: Apache-2.0
"""A checkpoint: its kind, its defaults, its noise schedule, and whether all its files are there and whole.

Only JSON, file sizes and headers are read. No weights are loaded, and torch is not needed. A checkpoint is a folder in
diffusers layout (docs/architecture.md), or the id of such a folder on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from openmarigold.camera import Camera
from openmarigold.camera.conditions import CONDITIONS
from openmarigold.checkpoints import hub, hub_checkpoint
from openmarigold.checkpoints.channels import channels_of_networks, condition_on, converted_channels, has_image_encoder
from openmarigold.checkpoints.defaults import invariance, recommended
from openmarigold.checkpoints.empty_prompt import (
    cached_embedding_path,
    has_text_encoder,
    stored_embedding_path,
    text_encoder_files,
    text_encoder_weights,
)
from openmarigold.checkpoints.known import check_family, modality_of, recognized
from openmarigold.checkpoints.network_configs import say_where_links_lead
from openmarigold.checkpoints.safetensors_header import check_not_a_pointer, read_header
from openmarigold.checkpoints.weight_files import (
    EMBEDDING_FILE,
    ENCODER_OF,
    GRAPH_FILES,
    NETWORK_FILES,
    QUANTIZATION,
    WEIGHTS_DIR,
    converted_files,
    graph_file,
    has_graphs,
    networks_of,
    part_folder,
    parts_of,
    read_json,
    readable,
    weight_files,
)
from openmarigold.config import CallConfig, ConvertedFormat, FinalStep, Invariance, StartNoise
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, one_line
from openmarigold.modalities import Modality, find_modality, modality_of_index
from openmarigold.printing import quoted_logger

EMBEDDED_DIR = WEIGHTS_DIR / "marigold-lite"
EMBEDDED_DIRS = {"depth": EMBEDDED_DIR, "normals": WEIGHTS_DIR / "marigold-lite-normals"}
"""The models that come with the package, by what they predict."""
TITLES = {"onnx": "ONNX", "openvino": "OpenVINO"}

_log = quoted_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint folder and its defaults."""

    directory: Path
    name: str
    weights: Literal["onnx", "openvino", "safetensors"]
    variant: str | None
    """The requested weight files: None for the plain ones (else those named fp16), "fp16" for those named fp16.
    `loaded_variant` gives those that are read."""
    schedule: NoiseSchedule
    modality: Modality
    """The modality that it predicts."""
    latent_channels: int
    condition_channels: int
    """Channels of the U-Net's condition: those of the VAE's latent or of the image encoder's output, and those of
    `condition_on`."""
    invariance: Invariance
    """What is unknown about the depth: scale and shift ("affine"), the scale ("scale"), or nothing ("absolute")."""
    default_num_inference_steps: int
    default_processing_resolution: int
    coarse_resolution: int | None
    """Resolution of a coarse pass [px]: if a photo is processed at a higher one, the coarse part of its latents comes
    from that pass; None: one pass."""
    default_final_step: FinalStep
    default_start_noise: StartNoise
    default_ensemble_start_noise: StartNoise
    """The noise that the members of an ensemble start from."""
    default_ensemble_mirror: bool
    """Whether every second member of an ensemble sees the photo mirrored."""
    ensemble_noise_scale: float
    """Standard deviation of the noise that the members of an ensemble start from."""
    processing_side: Literal["longer", "shorter"]
    """The side of the photo that the processing resolution sets: the longer one in published checkpoints."""
    index: Mapping[str, Any] = field(repr=False)
    """All of model_index.json."""
    graphs: bool = False
    """Whether ONNX networks lie next to the safetensors weights and read them."""
    image_encoder: bool = False
    """Whether an image encoder makes the condition, instead of the VAE's encoder."""
    condition_on: str = ""
    """A further part of the condition, one of `CONDITIONS`: "rays" of the photo's camera; "": none."""
    derived: Modality | None = None
    """The modality that the caller asked for, if it is computed from the networks' predictions."""

    @property
    def predicts(self) -> Modality:
        """The modality of predictions: the networks' own, or the one that is derived from it."""
        return self.derived or self.modality

    def modality_for(self, camera: Camera) -> Modality:
        """The modality whose codec turns decoded latents of a picture of this camera into predictions."""
        if self.derived is None:
            return self.modality
        return self.derived.derivations[self.modality.name](self.modality, self.invariance, camera)

    @property
    def image_channels(self) -> int:
        """Channels of the condition that come from the image, which are the outputs of the first network."""
        return self.condition_channels - CONDITIONS.get(self.condition_on, 0)

    def mirrors(self, config: CallConfig) -> bool:
        """Whether every second member sees the photo mirrored."""
        asked = config.ensemble_mirror
        return config.ensemble_size > 1 and (self.default_ensemble_mirror if asked is None else asked)

    def noise_scale(self, config: CallConfig) -> float:
        """Standard deviation of the noise that members start from, if they start from noise."""
        gaussian = (config.start_noise or self.default_ensemble_start_noise) == "gaussian"
        return self.ensemble_noise_scale if config.ensemble_size > 1 and gaussian else 1.0

    def facts_of_call(self, config: CallConfig) -> dict[str, Any]:
        """Facts for results: how maps are merged, derived and completed. Empty if all settings are the defaults."""
        reduction = config.ensemble_reduction
        usual = reduction in (None, self.predicts.reductions[0])
        merged = {} if usual else {"ensemble_reduction": reduction}
        merged |= {"ensemble_mirror": True} if self.mirrors(config) else {}
        merged |= {"ensemble_noise_scale": self.noise_scale(config)} if self.noise_scale(config) < 1 else {}
        merged |= {"condition_on": self.condition_on} if self.condition_on else {}
        merged |= {"recompose": True} if config.recompose and self.predicts.complete else {}
        merged |= {} if config.tiles is None else {"tiles": config.tiles}
        return merged if self.derived is None else {**merged, "derived_from": self.modality.name}

    @property
    def facts_of_index(self) -> dict[str, Any]:
        """Facts for results that model_index.json alone states, which is not part of the hash; empty for usual ones."""
        usual = self.modality.space == find_modality(self.modality.name).space
        facts: dict[str, Any] = {} if usual else {"space": self.modality.space}
        return facts | ({"coarse_resolution": self.coarse_resolution} if self.coarse_resolution else {})

    @property
    def one_pass_resolution(self) -> int:
        """The processing resolution of calls that take one pass only: clips, and calls with a guide."""
        return self.coarse_resolution or self.default_processing_resolution

    @property
    def quantization(self) -> Mapping[str, Any]:
        """How its networks were quantized to int8, from model_index.json; empty if they were not."""
        return self.index.get(QUANTIZATION) or {}

    @property
    def full_index(self) -> dict[str, Any]:
        """Content of model_index.json for a copy, which has another name.

        What is known of this checkpoint by its name, or was asked for, stands in it too.
        """
        known = {
            **self.modality.index_facts,
            "prediction_type": self.modality.prediction_type,
            "default_denoising_steps": self.default_num_inference_steps,
            "default_processing_resolution": self.default_processing_resolution,
            "start_noise": self.default_start_noise,
        }
        left_out = (ENCODER_OF, "requires_safety_checker")  # another folder's, and an image generator's
        index = {key: value for key, value in self.index.items() if value is not None and key not in left_out}
        claimed = modality_of_index(index)
        if claimed is None or claimed.name != self.modality.name:
            index |= {
                "_class_name": self.modality.pipeline_classes[0],
                "prediction_type": self.modality.prediction_type,
            }
        return index | {key: value for key, value in known.items() if key not in index}

    @property
    def networks(self) -> tuple[str, str, str]:
        """Names of the networks that encode, denoise and decode."""
        return networks_of(image_encoder=self.image_encoder)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the folders with safetensors weights."""
        return parts_of(image_encoder=self.image_encoder)


def read_checkpoint(
    checkpoint: Path | str | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    wanted: str | None = None,
) -> Checkpoint:
    """The checkpoint in a folder or of a hub id; None is the model that comes with the package.

    Args:
        checkpoint: folder, or `owner/name` on the hub if no such folder exists.
        variant: "fp16" for the files named fp16; None for the plain ones, else those named fp16.
        revision: branch, tag or commit of a hub repository.
        local_files_only: use an earlier download of the hub repository, without the network.
        wanted: name of the modality that it predicts; used for checkpoints whose files do not state it.

    Raises:
        CheckpointError: a file is missing, empty, truncated or not understood, or no modality describes what the
            checkpoint predicts, or a hub repository is not available.
        MissingExtraError: a hub id without the extra `torch`.
    """
    try:
        with readable():
            hub_id = None if checkpoint is None else hub.as_hub_id(Path(checkpoint))
            if hub_id is not None:
                repository = hub_checkpoint.open_checkpoint(
                    hub_id, revision=revision, local_files_only=local_files_only
                )
                return read_repository(repository, variant=variant, wanted=wanted)
            directory, name = _locate(checkpoint, revision=revision, local_files_only=local_files_only)
            return _read(directory, name, variant=variant, wanted=wanted)
    except (TypeError, KeyError, IndexError, RecursionError) as error:  # JSON of an unexpected shape
        raise CheckpointError(
            f"{checkpoint} cannot be understood ({one_line(error)}); get the checkpoint again"
        ) from error


def read_repository(repository: hub.Repository, *, variant: str | None = None, wanted: str | None = None) -> Checkpoint:
    """The checkpoint of a repository from `hub_checkpoint.open_checkpoint`; missing files are downloaded.

    Raises:
        CheckpointError: a file cannot be downloaded or is damaged.
    """
    directory = hub_checkpoint.fetch_checkpoint(repository, variant=variant)
    try:
        return _read(directory, repository.hub_id, variant=variant, wanted=wanted)
    except CheckpointError as error:
        again = f"openmarigold checkpoint verify {repository.hub_id} --fetch-again"
        raise CheckpointError(str(error).replace("get the checkpoint again", f"get it again: {again}")) from error


def read_outline(repository: hub.Repository, *, variant: str | None = None) -> Checkpoint:
    """The checkpoint of a repository, described by its small files; its weights need not be there.

    Raises:
        CheckpointError: one of the small files is damaged.
    """
    with readable():
        return _read(repository.folder, repository.hub_id, variant=variant, outline=repository)


def _read(
    directory: Path, name: str, *, variant: str | None, outline: hub.Repository | None = None, wanted: str | None = None
) -> Checkpoint:
    index_path = directory / "model_index.json"
    index = read_json(index_path)
    scheduler_path, unet_path = directory / "scheduler" / "scheduler_config.json", directory / "unet" / "config.json"
    scheduler_config, unet_config = read_json(scheduler_path), read_json(unet_path) if unet_path.is_file() else None
    known = check_family(index, index_path, name=name, scheduler=scheduler_config, unet=unet_config, wanted=wanted)
    image_encoder = has_image_encoder(index, index_path)
    extra = condition_on(index, index_path)
    networks = networks_of(image_encoder=image_encoder)
    try:
        schedule = NoiseSchedule.from_config(scheduler_config)
    except CheckpointError as error:
        raise CheckpointError(f"{scheduler_path}: {error}") from error
    known = known or recognized(index, schedule)
    modality = modality_of(index, index_path, known)
    if known is not None and known.timestep_spacing is not None:
        schedule = replace(schedule, timestep_spacing=known.timestep_spacing)

    weights = _format_of_weights(directory if outline is None else outline.files, networks)
    if weights == "safetensors":
        latent, condition = channels_of_networks(directory, modality, image_encoder=image_encoder, condition_on=extra)
    else:
        latent, condition = converted_channels(index, index_path, image_encoder=image_encoder)
    if outline is not None:  # its weights need not be here
        graphs = all(GRAPH_FILES[name] in outline.files for name in networks)
    elif weights == "safetensors":
        _check_safetensors(directory, variant, parts_of(image_encoder=image_encoder))
        graphs = has_graphs(directory, variant, networks)
    else:
        _check_converted(directory, weights, variant, networks)
        graphs = False
    checkpoint = Checkpoint(
        directory=directory,
        name=str(index.get("name") or name),
        weights=weights,
        variant=variant,
        schedule=schedule,
        modality=modality,
        latent_channels=latent,
        condition_channels=condition,
        invariance=invariance(index, index_path, modality.quantities),
        index=index,
        graphs=graphs,
        image_encoder=image_encoder,
        condition_on=extra,
        **recommended(index, index_path, schedule, known),
    )
    if outline is None:  # the links of an outline belong to the hub's cache
        files = [index_path, directory / EMBEDDING_FILE, *network_files(checkpoint)]
        if weights == "safetensors" and not stored_embedding_path(directory, variant=variant).is_file():
            files += text_encoder_files(directory, variant)
        say_where_links_lead(directory, [path for path in files if path.is_relative_to(directory)])
    return checkpoint


def network_files(checkpoint: Checkpoint) -> list[Path]:
    """The files of the networks and the scheduler that loading reads.

    Raises:
        CheckpointError: one is missing.
    """
    directory = checkpoint.directory
    files = [directory / "scheduler" / "scheduler_config.json"]
    if checkpoint.weights != "safetensors":
        return files + converted_files(directory, checkpoint.weights, checkpoint.networks)
    for folder in (part_folder(directory, name) for name in checkpoint.parts):
        files += [folder / "config.json", *weight_files(folder, variant=checkpoint.variant)[1]]
    return files + [graph_file(directory, name) for name in checkpoint.networks if checkpoint.graphs]


def loaded_variant(checkpoint: Checkpoint) -> str | None:
    """The variant of the weight files that are read: "fp16", or None for plain ones.

    If the networks differ, all are named.
    """
    if checkpoint.weights != "safetensors":
        return None
    variants = {
        name: weight_files(part_folder(checkpoint.directory, name), variant=checkpoint.variant)[0]
        for name in checkpoint.parts
    }
    if len(set(variants.values())) == 1:
        return variants["unet"]
    return ", ".join(f"{name} {variant or 'plain'}" for name, variant in variants.items())


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
    return directory, hub.id_of_cached(directory) or directory.resolve().name


@cache  # once, not with every read
def _warn_of_unused(settings: tuple[str, ...], what: str) -> None:
    if settings:
        _log.warning(
            "%s belong%s to checkpoints on the hub and %s not used: the checkpoint is %s",
            " and ".join(settings),
            *(("s", "is") if len(settings) == 1 else ("", "are")),
            what,
        )


def _format_of_weights(
    place: Path | Mapping[str, object], networks: Iterable[str]
) -> Literal["onnx", "openvino", "safetensors"]:
    """The format of the networks in a folder, or in a list of files."""
    for network_format, files in NETWORK_FILES.items():
        wanted = [files[name] for name in networks]
        if any((place / file).exists() if isinstance(place, Path) else file in place for file in wanted):
            return network_format
    return "safetensors"


def _check_converted(
    directory: Path, network_format: ConvertedFormat, variant: str | None, networks: tuple[str, ...]
) -> None:
    """Passes if a folder holds all files of converted networks.

    Raises:
        CheckpointError: one is missing, empty or damaged, or a variant is requested.
    """
    if variant is not None:
        raise CheckpointError(
            f"{directory} holds {TITLES[network_format]} networks, which have no variant {variant!r}; leave it out"
        )
    for path in converted_files(directory, network_format, networks):
        if not path.is_file():
            expected = ", ".join(NETWORK_FILES[network_format][name] for name in networks)
            also = ", each with model.bin next to it" if network_format == "openvino" else ""
            raise CheckpointError(f"{path} is missing; an {TITLES[network_format]} checkpoint holds {expected}{also}")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty; get the checkpoint again")
        check_not_a_pointer(path)


def _check_safetensors(directory: Path, variant: str | None, parts: Iterable[str]) -> None:
    """Passes if the weights of a folder, and the source of the empty-prompt embedding, are there and whole.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    files = [file for name in parts for file in weight_files(part_folder(directory, name), variant=variant)[1]]
    embedding = stored_embedding_path(directory, variant=variant)
    if embedding.is_file():
        files.append(embedding)
    elif has_text_encoder(directory):
        files += text_encoder_weights(directory / "text_encoder", variant)
    elif not cached_embedding_path(directory, variant=variant).is_file():
        raise CheckpointError(
            f"{embedding} is missing, and so are text_encoder/ and tokenizer/; one of the two is needed"
        )
    for file in files:
        read_header(file)
