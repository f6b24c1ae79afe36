# SPDX-License-Identifier: Apache-2.0
"""The recipes of the toy autoencoder and generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openmarigold.training.settings import (
    DataConfig,
    OptimizationConfig,
    RunConfig,
    TimestepConfig,
    require,
    require_each,
)


@dataclass(frozen=True, kw_only=True)
class AutoencoderModelConfig:
    """Shape of the autoencoder: diffusers' AutoencoderTiny, downsampling by 8."""

    latent_channels: int = 4
    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    def __post_init__(self) -> None:
        for name in ("encoder_blocks", "decoder_blocks"):
            require(len(getattr(self, name)) == 4, f"{name} needs four entries (three halvings)")
        require_each(self, lambda value: value >= 1, "at least 1", "latent_channels", "width")


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """What the autoencoder is asked for."""

    depth_share: float = 0.3
    """Share of samples with depth whose depth map, normalized and repeated to three channels, is the picture."""
    latent_noise_std: float = 0.0
    """Noise added to latents before decoding, so that small errors of the U-Net decode to small errors."""
    latent_regularization: float = 0.0
    """Weight that keeps each latent channel near mean 0 and standard deviation 1."""


@dataclass(frozen=True, kw_only=True)
class UNetModelConfig:
    """Shape of the U-Net: diffusers' UNet2DConditionModel, cross-attention from the second level down."""

    block_out_channels: tuple[int, ...] = (64, 128, 256)
    layers_per_block: int = 2
    head_dim: int = 64
    cross_attention_dim: int = 64
    attention_levels: int = 0
    """How many levels, from the lowest up, have attention; 0 = all but the first."""

    def __post_init__(self) -> None:
        widths = self.block_out_channels
        require(len(widths) >= 2, f"block_out_channels={list(widths)} needs two levels or more")
        for width in widths:  # group normalization has 32 groups
            require(
                width > 0 and width % 32 == 0, f"block_out_channels={list(widths)}: {width} is not a multiple of 32"
            )
        levels = self.attention_levels
        require(0 <= levels < len(widths), f"attention_levels={levels} must be 0 to {len(widths) - 1}")
        sizes = ("layers_per_block", "head_dim", "cross_attention_dim")
        require_each(self, lambda value: value >= 1, "at least 1", *sizes)


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Trains the autoencoder whose latent space everything else lives in."""

    kind: Literal["autoencoder"]
    data: DataConfig
    optimization: OptimizationConfig
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 2024

    def __post_init__(self) -> None:
        require(self.data.mixture == "sample", 'data.mixture must be "sample": an autoencoder is not trained by source')


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """Trains an empty-prompt image generator in the latent space of `autoencoder`."""

    kind: Literal["generator"]
    autoencoder: Path
    """Checkpoint folder whose vae/ is used, frozen."""
    data: DataConfig
    optimization: OptimizationConfig
    model: UNetModelConfig = field(default_factory=UNetModelConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 2024
