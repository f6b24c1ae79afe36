# SPDX-License-Identifier: Apache-2.0
"""The random draws of a step: timesteps and annealed multi-resolution noise; and the U-Net's input and target.

Paper: §3.1, §3.3 ("Annealed multi-resolution noise").
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from openmarigold.diffusion import NoiseSchedule, add_noise, target
from openmarigold.training.settings import NoiseConfig, TimestepConfig

MAX_LEVELS = 10


def draw_timesteps(
    rng: np.random.Generator, batch_size: int, *, config: TimestepConfig, num_train_timesteps: int
) -> np.ndarray:
    """One timestep a sample: uniform, or the last one with probability `config.last_share`."""
    timesteps = rng.integers(0, num_train_timesteps, size=batch_size)
    return np.where(rng.random(batch_size) < config.last_share, num_train_timesteps - 1, timesteps)


def draw_noise(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    timesteps: np.ndarray,
    *,
    config: NoiseConfig,
    num_train_timesteps: int,
) -> np.ndarray:
    """Multi-resolution noise [b C h w], its strength annealed by each sample's timestep where `config` says so."""
    share = timesteps / num_train_timesteps if config.annealed else np.ones(shape[0])
    noise = multi_resolution_noise(
        shape,
        strength=torch.from_numpy((config.strength * share).astype(np.float32)),
        generator=torch.Generator().manual_seed(int(rng.integers(2**62))),
        normalization=config.normalization,
    )
    return noise.numpy()


def noisy_latent_and_target(
    clean: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule
) -> tuple[Tensor, Tensor]:
    """The U-Net's noisy input and its target, for one timestep a sample. Paper: §3.1."""
    signal, amount = schedule.coefficients(timesteps.cpu().numpy())
    signal_weight = torch.from_numpy(signal).to(clean).view(-1, 1, 1, 1)
    noise_weight = torch.from_numpy(amount).to(clean).view(-1, 1, 1, 1)
    noisy = add_noise(clean, noise, signal_weight, noise_weight)
    wanted = target(clean, noise, signal_weight, noise_weight, prediction_type=schedule.prediction_type)
    return noisy, wanted


def multi_resolution_noise(
    shape: tuple[int, int, int, int],
    *,
    strength: Float[Tensor, " b"],
    generator: torch.Generator,
    normalization: Literal["sample", "batch"],
) -> Float[Tensor, "b C h w"]:
    """Gaussian noise plus coarser and coarser Gaussian noise, scaled back to unit standard deviation.

    Level i is drawn on a grid that is r**i times smaller than the level before (r uniform in [2, 4), one draw a level
    for the whole batch), upsampled and weighted with strength**i. Level 0 has full size and weight 1, so noise of
    strength 0 is still Gaussian.

    Args:
        strength: one value a sample, [0, 1]; annealed noise gives `0.9 * timestep / num_train_timesteps`.
        normalization: "batch" divides by one standard deviation over the whole tensor, as the published code does, so
            samples of different timesteps change each other's scale; "sample" gives each its own.
    """
    batch, channels, height, width = shape
    noise = torch.randn(shape, generator=generator)
    level_height, level_width = height, width
    for level in range(MAX_LEVELS):
        ratio = 2.0 + 2.0 * torch.rand((), generator=generator).item()
        level_height = max(1, int(level_height / ratio**level))
        level_width = max(1, int(level_width / ratio**level))
        coarse = torch.randn((batch, channels, level_height, level_width), generator=generator)
        upsampled = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        noise = noise + upsampled * (strength**level).view(-1, 1, 1, 1)
        if level_height == 1 or level_width == 1:
            break
    if normalization == "batch":
        return noise / noise.std()
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)
