# SPDX-License-Identifier: Apache-2.0
"""A Stable Diffusion in one file to a checkpoint folder, once, by diffusers' own renaming; no network is used."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmarigold.checkpoints.single_file import CLIP, OPEN_CLIP, SingleFile, read_single_file
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, one_line
from openmarigold.files import remembered_sha256, user_cache_dir
from openmarigold.networks.backbone import AutoencoderKL, UNet2DConditionModel, save_checkpoint, write_json
from openmarigold.networks.tensors import read_tensors
from openmarigold.printing import quoted_logger

_log = quoted_logger(__name__)


def unpack_single_file(path: Path) -> Path:
    """The folder in the user's cache that holds a file's networks in diffusers layout, made where it is not there.

    Raises:
        CheckpointError: not safetensors, damaged, or not Stable Diffusion 1 or 2.
        OutputError: the cache cannot be written.
    """
    found = read_single_file(path)
    folder = user_cache_dir() / "bases" / remembered_sha256(path)[:32] / found.prediction_type
    if (folder / "model_index.json").is_file():
        return folder
    _log.info(
        "%s is a Stable Diffusion %d that predicts %s (set timesteps.prediction_type if that is wrong); unpacking it "
        "to %s",
        *(path, found.version, found.prediction_type, folder),
    )
    try:
        unet, vae, embedding = _networks(found)
    except Exception as error:  # diffusers and transformers raise many kinds
        raise CheckpointError(f"{path} cannot be unpacked ({one_line(error)}); get the checkpoint again") from error
    save_checkpoint(
        folder,
        vae=vae,
        unet=unet,
        empty_prompt_embedding=embedding,
        schedule=NoiseSchedule(prediction_type=found.prediction_type, rescale_betas_zero_snr=False),
        index={"_class_name": "StableDiffusionPipeline"},
        dtype=torch.float16 if found.half else torch.float32,
    )
    return folder


def _networks(found: SingleFile) -> tuple[UNet2DConditionModel, AutoencoderKL, Tensor]:
    with tempfile.TemporaryDirectory() as name:
        for part, config, class_name in (
            ("unet", found.unet, "UNet2DConditionModel"),
            ("vae", found.vae, "AutoencoderKL"),
            ("text_encoder", found.text_encoder, "CLIPTextModel"),
        ):
            (Path(name) / part).mkdir()
            write_json(Path(name) / part / "config.json", {"_class_name": class_name, **config})
        given: Any = {"config": name, "local_files_only": True}
        unet: Any = UNet2DConditionModel.from_single_file(str(found.path), subfolder="unet", **given)
        vae: Any = AutoencoderKL.from_single_file(str(found.path), subfolder="vae", **given)
        return unet, vae, _empty_prompt(found, name)


@torch.no_grad()
def _empty_prompt(found: SingleFile, configs: str) -> Tensor:
    """The embedding of "": of the tokens begin and end, [1 2 d]."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel

    prefix = CLIP if found.version == 1 else OPEN_CLIP
    left_out = f"{OPEN_CLIP}transformer.resblocks.{found.text_encoder['num_hidden_layers']}."  # the last, not used
    kept = ("model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",)  # tells the versions
    weights = {
        key: value
        for key, value in read_tensors(found.path)
        if key in kept or (key.startswith(prefix) and not key.startswith(left_out))
    }
    model: Any = create_diffusers_clip_model_from_ldm(
        CLIPTextModel, weights, subfolder="text_encoder", config=configs, local_files_only=True
    )
    model = model.float().eval()
    tokens = torch.tensor([[found.text_encoder["bos_token_id"], found.text_encoder["eos_token_id"]]])
    return model(tokens)[0].float()
