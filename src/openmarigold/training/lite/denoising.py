# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "lite" with the paper's objective: the noisy latent of a map at any timestep, and errors of the answer.

Paper: §3.1 (objective), §3.3 (annealed multi-resolution noise).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional

from openmarigold.networks.backbone import encode_to_latent
from openmarigold.training.lite.task import LiteTask
from openmarigold.training.loss import Loss, masked_latent_loss
from openmarigold.training.noise import draw_noise, draw_timesteps, noisy_latent_and_target


class DenoisingLiteTask(LiteTask):
    """Image encoder and U-Net learn to remove noise from the latents of maps."""

    inference: Mapping[str, Any] = MappingProxyType({"default_denoising_steps": 4, "start_noise": "gaussian"})

    def draw_starts(self, rng: np.random.Generator, shape: tuple[int, int, int, int, int]) -> dict[str, np.ndarray]:
        """A timestep and the noise of each sample, [b] and [b C h w]."""
        count, _, channels, height, width = shape
        number = self._schedule.num_train_timesteps
        timesteps = draw_timesteps(rng, count, config=self._recipe.timesteps, num_train_timesteps=number)
        noise = draw_noise(
            rng,
            (count, channels, height, width),
            timesteps,
            config=self._recipe.noise,
            num_train_timesteps=number,
        )
        return {"noise": noise, "timesteps": timesteps}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        """Squared errors of the U-Net's output in those cells of the latent whose pixels all count.

        Pixels without a value count if the missing value means that they are far, such as sky. They are encoded as far.
        """
        image, target = self.views(batch)
        counts = ~target.isnan().any(dim=1, keepdim=True) | (batch["far_weight"] > 0).view(-1, 1, 1, 1)
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            picture = self._target.picture(target).contiguous(memory_format=torch.channels_last)
            clean = encode_to_latent(self._vae, picture)
        noisy, wanted = noisy_latent_and_target(clean, batch["noise"], batch["timesteps"], self._schedule)
        rows = torch.arange(len(image), device=image.device)
        predicted = model(image, noisy, rows, batch.get("rays"), batch["timesteps"])
        return masked_latent_loss(predicted, wanted, _cells(counts, clean.shape[-1]))


def _cells(counts: Bool[Tensor, "b 1 H W"], width: int) -> Bool[Tensor, "b 1 h w"]:
    """Cells of a latent of this width in which all pixels count."""
    side = counts.shape[-1] // width
    return functional.max_pool2d((~counts).float(), side) == 0
