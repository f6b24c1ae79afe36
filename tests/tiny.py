# SPDX-License-Identifier: Apache-2.0
"""Fixtures: tiny checkpoints with random weights, real classes, built in about a second each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.diffusion import NoiseSchedule
from openmarigold.modalities import DEPTH, Modality
from openmarigold.networks.backbone import save_checkpoint
from openmarigold.networks.conversion import export_checkpoint
from openmarigold.networks.tensors import save_tensors

INDEX = {
    "_class_name": "MarigoldDepthPipeline",
    "prediction_type": "depth",
    "scale_invariant": True,
    "shift_invariant": True,
    "default_denoising_steps": 2,
    "default_processing_resolution": 64,
}


def make_vae(kind: str) -> AutoencoderKL | AutoencoderTiny:
    """Eight pixels a latent cell; 4 channels with `AutoencoderKL`, 8 with `AutoencoderTiny`."""
    if kind == "kl":
        return AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        )
    return AutoencoderTiny(
        latent_channels=8,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=1.0,
    )


def make_unet(
    latent_channels: int, *, in_channels: int | None = None, out_channels: int | None = None
) -> UNet2DConditionModel:
    """Two down-samplings: latents that are not divisible by 4 take the less traveled path."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels or 2 * latent_channels,
        out_channels=out_channels or latent_channels,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    )


def make_checkpoint(directory: Path, kind: str, *, modality: Modality = DEPTH, **index: Any) -> Path:
    """Writes a checkpoint whose weights are exact in half precision, as ONNX files store them.

    `index` goes into model_index.json.
    """
    with torch.random.fork_rng():
        torch.manual_seed(11)
        vae = make_vae(kind)
        channels, targets = int(vae.config["latent_channels"]), modality.num_targets
        unet = make_unet(channels, in_channels=(1 + targets) * channels, out_channels=targets * channels)
        embedding = torch.randn(1, 2, 16)
        with torch.no_grad():
            # Fresh decoders give nearly constant maps, which would prove little.
            last, gain = (vae.decoder.conv_out, 1.2) if kind == "kl" else (vae.decoder.layers[-1], 20.0)
            last.weight.mul_(gain)
    save_checkpoint(
        directory,
        vae=vae,
        unet=unet,
        empty_prompt_embedding=embedding.half().float(),
        schedule=NoiseSchedule(),
        index={
            **INDEX,
            "_class_name": modality.pipeline_classes[0],
            "prediction_type": modality.prediction_type,
            **modality.index_facts,
            **index,
        },
        dtype=torch.float16,
    )
    return directory


def add_text_encoder(directory: Path, *, width: int = 16) -> torch.Tensor:
    """Writes text_encoder/ and tokenizer/ as published checkpoints have them; returns the embedding of ""."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(12)
        config = CLIPTextConfig(
            vocab_size=2,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        model = CLIPTextModel(config).eval()
    config.save_pretrained(directory / "text_encoder")
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in model.state_dict().items()}
    save_tensors(state, directory / "text_encoder" / "model.safetensors")
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    (directory / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(directory / "tokenizer", model_max_length=77).save_pretrained(directory / "tokenizer")
    edit_json(
        directory / "model_index.json",
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
    )
    with torch.no_grad():
        return model(torch.tensor([[0, 1]]))[0]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def varied(source: Path, directory: Path, *, scheduler: dict[str, Any] | None = None, **index: Any) -> Path:
    """A copy of a checkpoint with other settings in its scheduler and its model_index.json."""
    shutil.copytree(source, directory)
    edit_json(directory / "scheduler" / "scheduler_config.json", **(scheduler or {}))
    edit_json(directory / "model_index.json", **index)
    return directory


def make_photo(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Smooth colors with some noise, uint8 [h w 3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, (3, 1, 1))
    smooth = 0.5 + 0.3 * np.sin(rows / 9 + phases) * np.cos(columns / 13 - phases)
    noisy = smooth + rng.normal(0, 0.05, smooth.shape)
    return np.ascontiguousarray((255 * np.clip(noisy, 0, 1)).astype(np.uint8).transpose(1, 2, 0))


@pytest.fixture(scope="session")
def kl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kl") / "tiny-kl", "kl")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny-8", "tiny")


@pytest.fixture(scope="session")
def kl_onnx_checkpoint(kl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kl-onnx") / "tiny-kl-onnx"
    export_checkpoint(read_checkpoint(kl_checkpoint), directory, format="onnx")
    return directory


@pytest.fixture(scope="session")
def onnx_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("onnx") / "tiny-8-onnx"
    export_checkpoint(read_checkpoint(tiny_checkpoint), directory, format="onnx")
    return directory


@pytest.fixture
def photo_dir(tmp_path: Path) -> Path:
    """Five photos of different sizes, named a.png to e.png."""
    directory = tmp_path / "photos"
    directory.mkdir()
    for index, (height, width) in enumerate([(48, 64), (64, 48), (50, 70), (33, 90), (64, 64)]):
        Image.fromarray(make_photo(height, width, seed=index)).save(directory / f"{'abcde'[index]}.png")
    return directory
