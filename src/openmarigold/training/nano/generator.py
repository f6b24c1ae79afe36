# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "generator": an image generator for the empty prompt, in the autoencoder's latent space.

It replaces the paper's Stable Diffusion 2: it is the base of the depth fine-tune.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from openmarigold.data.remote import DataFolder
from openmarigold.diffusion import NoiseSchedule
from openmarigold.modalities.depth import DEPTH
from openmarigold.networks.backbone import Vae, latent_channels, load_vae, save_checkpoint
from openmarigold.seeding import generator_for
from openmarigold.training.latents import Latents
from openmarigold.training.loss import Loss, masked_latent_loss
from openmarigold.training.nano.recipes import GeneratorRecipe, UNetModelConfig
from openmarigold.training.noise import draw_timesteps, noisy_latent_and_target
from openmarigold.training.views import BatchSlice, Mixture

NUM_PROMPT_TOKENS = 2  # as many as the empty prompt has in Stable Diffusion 2: begin and end of text
VALIDATION_STEPS = 16


def make_unet(config: UNetModelConfig, *, channels: int, condition_channels: int = 0) -> UNet2DConditionModel:
    """A U-Net of the class that Stable Diffusion uses: no attention at full resolution, cross-attention below.

    `condition_channels` are inputs before the `channels` of the noisy latents.
    """
    widths = config.block_out_channels
    depth = len(widths)
    attending = config.attention_levels or depth - 1
    plain = depth - attending
    return UNet2DConditionModel(
        in_channels=condition_channels + channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * attending,
        up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",) * plain,
        cross_attention_dim=config.cross_attention_dim,
        # Despite its name this is the number of heads, of each level.
        attention_head_dim=tuple(max(1, width // config.head_dim) for width in widths),  # pyright: ignore
        use_linear_projection=True,
    )


def make_prompt(config: UNetModelConfig, *, seed: int) -> Float[Tensor, "1 n d"]:
    """The empty prompt of a U-Net: a random constant."""
    shape = (1, NUM_PROMPT_TOKENS, config.cross_attention_dim)
    return torch.from_numpy(generator_for(seed, "empty prompt").standard_normal(shape, dtype=np.float32))


class GeneratorTask:
    """Unconditional latent diffusion: the empty prompt is one random constant that is stored with the checkpoint."""

    def __init__(
        self,
        recipe: GeneratorRecipe,
        *,
        data_dir: DataFolder,
        cache_dir: Path | None,
        accelerator: Accelerator,
        check_inputs: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        self._recipe = recipe
        self._vae: Vae = load_vae(recipe.autoencoder / "vae")
        self.mixture = Mixture(recipe.data, data_dir=data_dir, seed=recipe.seed, modality=DEPTH)
        self.latents = Latents(
            self.mixture,
            vae=self._vae,
            cache_dir=cache_dir,
            accelerator=accelerator,
            target_form="none",
            num_workers=recipe.run.num_workers,
            check_inputs=check_inputs,
        )
        self._schedule = NoiseSchedule(rescale_betas_zero_snr=recipe.timesteps.zero_terminal_snr)
        torch.manual_seed(recipe.seed)  # diffusers initializes from the global generator
        unet = make_unet(recipe.model, channels=latent_channels(self._vae))
        self.model: nn.Module = unet
        self._embedding = make_prompt(recipe.model, seed=recipe.seed).to(accelerator.device)

    @property
    def inputs(self) -> dict[str, str]:
        return {"autoencoder or data": self.latents.fingerprint}

    def batch(self, share: BatchSlice, what: str = "generator") -> dict[str, np.ndarray]:
        rng, chosen, rows = self.mixture.choose(what, share, self._recipe.optimization.batch_size)
        timesteps = draw_timesteps(
            rng,
            len(chosen),
            config=self._recipe.timesteps,
            num_train_timesteps=self._schedule.num_train_timesteps,
        )
        latents = self.latents.batch(chosen[rows])
        height, width = self.mixture.size_of(self.mixture.source_of(int(chosen[0])))
        shape = (len(chosen), latent_channels(self._vae), height // 8, width // 8)
        noise = rng.standard_normal(shape, dtype=np.float32)
        return {**latents, "noise": noise[rows], "timesteps": timesteps[rows]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        batch = self.latents.encoded(batch)
        clean, timesteps = batch["rgb_latent"], batch["timesteps"]
        noisy, wanted = noisy_latent_and_target(clean, batch["noise"], timesteps, self._schedule)
        context = self._embedding.expand(len(noisy), -1, -1)
        predicted = model(noisy, timesteps, encoder_hidden_states=context).sample.float()
        return masked_latent_loss(predicted, wanted, torch.ones_like(wanted[:, :1], dtype=torch.bool))

    def save(self, directory: Path, *, final: bool = True) -> None:
        del final
        assert isinstance(self.model, UNet2DConditionModel)
        save_checkpoint(
            directory,
            vae=self._vae,
            unet=self.model,
            empty_prompt_embedding=self._embedding,
            schedule=self._schedule,
            index={"_class_name": "OpenMarigoldGenerator"},
        )

    def validate(self, directory: Path) -> dict[str, float]:
        """Denoising loss of the averaged weights on draws that training does not use."""
        del directory  # the weights that were just saved are the ones in memory
        device, batch_size = self._embedding.device, self._recipe.optimization.batch_size
        losses = []
        for step in range(VALIDATION_STEPS):
            share = BatchSlice(step=step, micro_step=0, group_size=batch_size, rows=slice(0, batch_size))
            arrays = self.batch(share, what="generator validation")
            with torch.no_grad():
                batch = {name: torch.from_numpy(value).to(device) for name, value in arrays.items()}
                losses.append(float(self.loss(self.model, batch).mean))
        return {"loss": float(np.mean(losses))}
