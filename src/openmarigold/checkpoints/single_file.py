# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 1 and 2 in one safetensors file, as published: reads the networks' shapes without torch.

Everything follows from names and shapes of the tensors, so that no configuration is downloaded. They do not show what
the U-Net predicts; `prediction_type` takes that from the version and the file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.safetensors_header import StoredTensor, read_header
from openmarigold.errors import CheckpointError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
_HEAD = 64  # channels of an attention head, in the second version's U-Net and in both text encoders


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """The networks in a file.

    Attributes:
        version: 1 or 2 of Stable Diffusion.
        unet, vae, text_encoder: the configurations of diffusers' and transformers' classes.
        half: whether weights are stored in 16 bits.
    """

    path: Path
    version: int
    prediction_type: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    half: bool


def is_single_file(base: str) -> bool:
    """Whether a base is a file, and not a folder or an id."""
    return Path(base).is_file()


def read_single_file(path: Path) -> SingleFile:
    """The shapes of the networks in a file.

    Raises:
        CheckpointError: not safetensors, damaged, or not Stable Diffusion 1 or 2.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file; a .ckpt or .bin is a pickle, which may run code: get the same "
            "checkpoint as .safetensors"
        )
    tensors = read_header(path).tensors
    try:
        unet, version = _unet(tensors)
        text = _text_encoder(tensors, version)
        vae = _vae(tensors)
    except (KeyError, IndexError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else "its tensors have other shapes"
        raise CheckpointError(
            f"{path} is not a Stable Diffusion 1 or 2 in one file ({reason}); give a checkpoint in diffusers "
            "layout, or a file such as v1-5-pruned.safetensors"
        ) from error
    half = tensors[f"{UNET}input_blocks.0.0.weight"].dtype != "F32"
    return SingleFile(
        path=path,
        version=version,
        prediction_type=prediction_type(path, version),
        unet=unet,
        vae=vae,
        text_encoder=text,
        half=half,
    )


def prediction_type(path: Path, version: int) -> str:
    """Prediction type of the U-Net in a file: epsilon for the first version and the second's 512 px bases, else v.

    >>> prediction_type(Path("v2-1_512-ema-pruned.safetensors"), 2)
    'epsilon'
    """
    is_base = version == 1 or "512" in path.name or "base" in path.name.lower()
    return "epsilon" if is_base else "v_prediction"


def _unet(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Any], int]:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[UNET + name].shape)

    blocks = {name.split(".")[1] for name in _below(tensors, UNET) if name.startswith("input_blocks.")}
    levels = 1 + sum(f"{UNET}input_blocks.{number}.0.op.weight" in tensors for number in blocks)
    layers = len(blocks) // levels - 1
    first = [1 + level * (layers + 1) for level in range(levels)]
    widths = [shape(f"input_blocks.{number}.0.out_layers.3.weight")[0] for number in first]
    attends = [f"{UNET}input_blocks.{number}.1.norm.weight" in tensors for number in first]
    inner = f"input_blocks.{first[attends.index(True)]}.1."
    linear = len(shape(f"{inner}proj_in.weight")) == 2
    config = {
        "in_channels": shape("input_blocks.0.0.weight")[1],
        "out_channels": shape("out.2.weight")[0],
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attends)],
        "layers_per_block": layers,
        "cross_attention_dim": shape(f"{inner}transformer_blocks.0.attn2.to_k.weight")[1],
        # Despite its name, this is the number of heads.
        "attention_head_dim": [max(1, width // _HEAD) for width in widths] if linear else 8,
        "use_linear_projection": linear,
    }
    return config, 2 if f"{OPEN_CLIP}token_embedding.weight" in tensors else 1


def _vae(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    names = list(_below(tensors, f"{VAE}encoder.down."))
    levels = len({name.split(".")[0] for name in names})
    widths = [tensors[f"{VAE}encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": len({name.split(".")[2] for name in names if name.startswith("0.block.")}),
        "latent_channels": tensors[f"{VAE}post_quant_conv.weight"].shape[0],
        "scaling_factor": 0.18215,
    }


def _text_encoder(tensors: Mapping[str, StoredTensor], version: int) -> dict[str, Any]:
    if version == 1:
        prefix, token, layers, first = CLIP, "embeddings.token_embedding.weight", "encoder.layers.", "mlp.fc1.weight"
    else:
        prefix, token, layers, first = OPEN_CLIP, "token_embedding.weight", "transformer.resblocks.", "mlp.c_fc.weight"
    words, width = tensors[prefix + token].shape
    count = len({name.split(".")[0] for name in _below(tensors, prefix + layers)})
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": tensors[f"{prefix}{layers}0.{first}"].shape[0],
        # The second version uses the output of the second-to-last layer.
        "num_hidden_layers": count if version == 1 else count - 1,
        "num_attention_heads": max(1, width // _HEAD),
        "hidden_act": "quick_gelu" if version == 1 else "gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }


def _below(tensors: Mapping[str, StoredTensor], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
