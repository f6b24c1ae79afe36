# SPDX-License-Identifier: Apache-2.0
"""Networks in the shapes of Stable Diffusion 2, with random weights, for the scripts next to this one."""

from __future__ import annotations

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


def make_unet(in_channels: int) -> UNet2DConditionModel:
    """4 channels go in, or 8 where the first layer is widened."""
    return UNet2DConditionModel(
        sample_size=96,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),  # pyright: ignore[reportArgumentType]
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def make_vae() -> AutoencoderKL:
    """The autoencoder."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=768,
    )
