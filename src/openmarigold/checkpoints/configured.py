# SPDX-License-Identifier: Apache-2.0
"""Checkpoints chosen by settings: which checkpoint, which modality, which autoencoder and which defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from openmarigold.checkpoints import hub, hub_checkpoint
from openmarigold.checkpoints.checkpoint import EMBEDDED_DIRS, Checkpoint, read_checkpoint
from openmarigold.checkpoints.safetensors_header import read_header
from openmarigold.checkpoints.weight_files import read_json, weight_files
from openmarigold.config import CallConfig, ModelConfig, TimestepSpacing, TinyVaeUse
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.modalities import only_modality
from openmarigold.printing import quoted_logger

_log = quoted_logger(__name__)
_Config = TypeVar("_Config", bound=CallConfig)


@dataclass(frozen=True, kw_only=True)
class TinyVae:
    """A small autoencoder with a checkpoint's latent space, and what it replaces."""

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


def read_configured(config: ModelConfig) -> Checkpoint:
    """The checkpoint that the settings name, for the modality that they ask for. Raises as `read_checkpoint`.

    Raises:
        InvalidValueError: several modalities, or one that the checkpoint can neither predict nor derive.
    """
    wanted = only_modality(config.modality)
    found = read_checkpoint(
        EMBEDDED_DIRS.get(wanted.name) if config.checkpoint is None and wanted else config.checkpoint,
        variant=config.variant,
        revision=config.revision,
        local_files_only=config.local_files_only,
        wanted=wanted and wanted.name,
    )
    if wanted is None or wanted.name == found.modality.name:
        return found
    if found.modality.name not in wanted.derivations:
        which = "the embedded model" if config.checkpoint is None else str(config.checkpoint)
        raise InvalidValueError(
            f"modality={wanted.name!r}: {which} predicts {found.modality.title}, from which {wanted.title} cannot be "
            f"computed; give a checkpoint for {wanted.title}"
        )
    return replace(found, derived=wanted)


def read_tiny_vae(config: ModelConfig, checkpoint: Checkpoint) -> TinyVae | None:
    """The small autoencoder that the settings name, a folder or a hub id; None if they name none.

    Raises:
        CheckpointError: it is missing, damaged, of another class or latent space, or cannot be downloaded.
        InvalidValueError: it is asked to encode, but the checkpoint has an image encoder for that.
        MissingExtraError: a hub id without the extra `torch`.
    """
    if config.tiny_vae is None:
        return None
    if checkpoint.image_encoder and config.tiny_vae_for != "decode":
        raise InvalidValueError(
            f"tiny_vae_for={config.tiny_vae_for!r} does not fit {checkpoint.name}, whose image encoder replaces the "
            "VAE's encoder; use decode"
        )
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
        read_header(file)
    name = hub_id or directory.resolve().name
    return TinyVae(directory=directory, name=name, variant=variant, used_for=config.tiny_vae_for)


def resolve_settings(config: _Config, defaults: Checkpoint) -> _Config:
    """`config` with the checkpoint's defaults in place of None.

    Raises:
        InvalidValueError: a setting that does not apply to this checkpoint.
    """
    lcm = defaults.schedule.sampler == "lcm"
    for name in ("final_step", "timestep_spacing"):
        if lcm and getattr(config, name) is not None:
            raise InvalidValueError(
                f"{name} is a setting of DDIM, and {defaults.name} is an LCM checkpoint; leave it out"
            )
    of_checkpoint = defaults.default_ensemble_start_noise if config.ensemble_size > 1 else defaults.default_start_noise
    start_noise = config.start_noise or of_checkpoint
    mirror = defaults.mirrors(config)
    if start_noise == "zeros" and config.ensemble_size > 1 + mirror:
        raise InvalidValueError(
            f"ensemble_size={config.ensemble_size} gains nothing with {defaults.name}: it starts from zeros, so that "
            f"{'all members that see the same photo' if mirror else 'all members'} are equal; use {1 + mirror} (or "
            "start_noise gaussian)"
        )
    if config.ensemble_reduction not in (None, *defaults.predicts.reductions):
        raise InvalidValueError(
            f"ensemble_reduction={config.ensemble_reduction!r} does not fit {defaults.predicts.title}; use one of "
            f"{', '.join(defaults.predicts.reductions)}"
        )
    if config.recompose and defaults.predicts.complete is None:
        _warn_of_no_photo(defaults.predicts.title)
    spacing, resolution = config.timestep_spacing, config.processing_resolution
    resolution = defaults.default_processing_resolution if resolution is None else resolution
    if config.tiles and resolution == 0:
        raise InvalidValueError(
            "tiles=True has no effect with processing_resolution=0: the networks see the whole photo at its own size; "
            "leave one of them out"
        )
    num_inference_steps = config.num_inference_steps or defaults.default_num_inference_steps
    defaults.schedule.timesteps(num_inference_steps)  # raises an error if there are too many
    return replace(
        config,
        num_inference_steps=num_inference_steps,
        processing_resolution=resolution,
        final_step="clean" if lcm else config.final_step or defaults.default_final_step,
        timestep_spacing=cast(TimestepSpacing, defaults.schedule.timestep_spacing) if not (spacing or lcm) else spacing,
        start_noise=start_noise,
        ensemble_mirror=mirror,
    )


@cache  # once, not with every call
def _warn_of_no_photo(title: str) -> None:
    _log.warning("recompose has no effect on %s: a photo cannot be made from these alone", title)
