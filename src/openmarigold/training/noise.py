# SPDX-License-Identifier: Apache-2.0
"""Annealed multi-resolution noise. Paper: §3.3, "Annealed multi-resolution noise"."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

MAX_LEVELS = 10


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
