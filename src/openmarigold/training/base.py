# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that a fine-tune starts from: Stable Diffusion, an image generator of ours, or a Marigold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from openmarigold.checkpoints import hub, hub_checkpoint
from openmarigold.checkpoints.single_file import is_single_file
from openmarigold.diffusion import PREDICTION_TYPES, NoiseSchedule
from openmarigold.errors import CheckpointError, InvalidValueError, RecipeError, one_line
from openmarigold.modalities import find_modality
from openmarigold.networks.backbone import (
    Vae,
    hash_of_weights,
    latent_channels,
    load_empty_prompt_embedding,
    load_unet,
    load_vae,
    widen_conv_in,
    widen_conv_out,
)
from openmarigold.networks.single_file import unpack_single_file
from openmarigold.text_files import parse_json
from openmarigold.training.recipe import MarigoldRecipe

NUM_CONDITION_LATENTS = 1  # what the U-Net sees of the photo; how many targets there are is the modality's
_PARTS = ("unet", "vae", "scheduler")
# What diffusers' schedulers assume for keys that their file leaves out.
_SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Base:
    """A base checkpoint with its networks loaded.

    Attributes:
        directory: its folder, downloaded if necessary.
        unet: with inputs for [rgb_latent, noisy target latents]; widened if it did not have them.
        schedule: the base's noise with the recipe's changes, as training and the finished checkpoint use it.
        sha256: of the U-Net as it was read.
    """

    directory: Path
    variant: str | None
    unet: UNet2DConditionModel
    vae: Vae
    embedding: Float[Tensor, "1 n d"]
    schedule: NoiseSchedule
    sha256: str


def load_base(recipe: MarigoldRecipe) -> Base:
    """The base checkpoint of a recipe, ready for training.

    Raises:
        CheckpointError: a part is missing or damaged, or the download from the hub fails.
        RecipeError: U-Net and autoencoder do not belong together, or the recipe asks for an impossible schedule.
    """
    variant = recipe.base_variant or None
    directory = locate_base(recipe)
    for part in _PARTS:
        if not (directory / part).is_dir():
            raise CheckpointError(
                f"{recipe.base} holds no {part}/; the base must be a whole checkpoint in diffusers layout, with "
                f"{'/, '.join(_PARTS)}/ and text_encoder/ or the empty-prompt embedding"
            )
    schedule = _schedule(directory, recipe)  # cheap, before gigabytes are read
    vae = load_vae(directory / "vae", variant=variant)
    unet = load_unet(directory / "unet", variant=variant)
    embedding = load_empty_prompt_embedding(directory, variant=variant)
    sha256 = hash_of_weights(unet)
    _widen(unet, vae, recipe)
    return Base(directory, variant, unet, vae, embedding, schedule, sha256)


def load_base_unet(base: Base, recipe: MarigoldRecipe) -> UNet2DConditionModel:
    """The U-Net of a base once more, as it was before training. Raises what `load_base` raises."""
    unet = load_unet(base.directory / "unet", variant=base.variant)
    _widen(unet, base.vae, recipe)
    return unet


def _widen(unet: UNet2DConditionModel, vae: Vae, recipe: MarigoldRecipe) -> None:
    """Widen an image generator's U-Net to the channels of the modality; a model of that modality has them already."""
    modality = find_modality(recipe.modality)
    channels, found = latent_channels(vae), (unet.config["in_channels"], unet.config["out_channels"])
    needed = ((NUM_CONDITION_LATENTS + modality.num_targets) * channels, modality.num_targets * channels)
    if found not in ((channels, channels), needed):
        raise RecipeError(
            f"{recipe.base}: the U-Net turns {found[0]} channels into {found[1]}, and the autoencoder's latents have "
            f"{channels}; needed are {channels} to {channels} (an image generator) or {needed[0]} to {needed[1]} (a "
            f"{modality.name} model)"
        )
    if found != needed:
        widen_conv_in(unet, num_latents=NUM_CONDITION_LATENTS + modality.num_targets)
        widen_conv_out(unet, num_latents=modality.num_targets)


def locate_base(recipe: MarigoldRecipe) -> Path:
    """Folder of the base checkpoint; a single file is unpacked and a hub id downloaded where that is not done yet.

    Raises:
        CheckpointError: the folder does not exist, and it cannot be downloaded from the hub.
    """
    folder = Path(recipe.base)
    if folder.is_dir():
        return folder
    if is_single_file(recipe.base):
        return unpack_single_file(folder)
    hub_id = hub.as_hub_id(folder)
    if hub_id is None:
        raise CheckpointError(
            f"the base checkpoint {recipe.base} is not a folder; the recipe's `base` is a folder or a .safetensors "
            "file (relative to where the command runs), or an id on the hub, owner/name"
        )
    return hub_checkpoint.fetch_base(hub_id, variant=recipe.base_variant or None, revision=recipe.base_revision or None)


def _schedule(directory: Path, recipe: MarigoldRecipe) -> NoiseSchedule:
    """The base's noise schedule. The sampler in its file is ignored: training uses betas and prediction type only."""
    path = directory / "scheduler" / "scheduler_config.json"
    try:
        config: Any = parse_json(path.read_bytes())
        values = {name: config.get(name, default) for name, default in _SCHEDULER_DEFAULTS.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}); get the checkpoint again") from error
    wanted = recipe.timesteps
    if wanted.prediction_type != "base":
        values["prediction_type"] = wanted.prediction_type
    if values["prediction_type"] not in PREDICTION_TYPES:
        raise CheckpointError(
            f"{path}: prediction_type={values['prediction_type']!r} is not one of {', '.join(PREDICTION_TYPES)}"
        )
    if values["prediction_type"] == "epsilon" and wanted.zero_terminal_snr:
        raise RecipeError(
            f"{recipe.base} predicts epsilon, which is undefined at zero terminal SNR; set timesteps.prediction_type = "
            '"v_prediction" (it is learned anew) or timesteps.zero_terminal_snr = false'
        )
    try:
        schedule = NoiseSchedule(**values, rescale_betas_zero_snr=False)
    except (InvalidValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return replace(schedule, rescale_betas_zero_snr=wanted.zero_terminal_snr, timestep_spacing=wanted.spacing)
