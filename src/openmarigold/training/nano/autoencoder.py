# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "autoencoder": the latent space. Pictures and normalized depth maps in, the same pictures out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from openmarigold.data.augmentation import random_appearance
from openmarigold.data.remote import DataFolder
from openmarigold.errors import DataError
from openmarigold.modalities.depth import DEPTH
from openmarigold.networks.backbone import decode_to_image, encode_to_latent, load_vae, save_checkpoint
from openmarigold.seeding import generator_for
from openmarigold.training.loss import Loss, latent_regularization, whole
from openmarigold.training.nano.recipes import AutoencoderModelConfig, AutoencoderRecipe
from openmarigold.training.views import BatchSlice, Mixture


def make_autoencoder(config: AutoencoderModelConfig, *, seed: int) -> AutoencoderTiny:
    """An autoencoder with random weights, in channels-last layout."""
    torch.manual_seed(seed)  # diffusers initializes from the global generator
    autoencoder = AutoencoderTiny(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=(config.width,) * 4,
        decoder_block_out_channels=(config.width,) * 4,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
        scaling_factor=1.0,
    )
    return autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class AutoencoderTask:
    """Mean absolute and mean squared error of the reconstruction, latents kept near unit scale."""

    def __init__(self, recipe: AutoencoderRecipe, *, data_dir: DataFolder) -> None:
        self._recipe = recipe
        self.mixture = Mixture(recipe.data, data_dir=data_dir, seed=recipe.seed, modality=DEPTH)
        self.model: nn.Module = make_autoencoder(recipe.model, seed=recipe.seed)

    @property
    def inputs(self) -> dict[str, str]:
        return {"data": self.mixture.contents}

    def batch(self, share: BatchSlice) -> dict[str, np.ndarray]:
        size, batch_size = self._recipe.data.size, self._recipe.optimization.batch_size
        offset = share.micro_step * share.group_size
        rows = slice(offset + share.rows.start, offset + share.rows.stop)
        images = [self._image(share.step * batch_size + i) for i in range(rows.start, rows.stop)]
        channels = self._recipe.model.latent_channels
        shape = (batch_size, channels, size[0] // 8, size[1] // 8)
        noise = generator_for(self._recipe.seed, "latent noise", share.step).standard_normal(shape, dtype=np.float32)
        return {"image": np.stack(images), "noise": noise[rows]}

    def _image(self, index: int) -> np.ndarray:
        rng = generator_for(self._recipe.seed, "autoencoder", index)
        view, valid_mask = self.mixture.random_sample(rng)
        if valid_mask is not None and rng.random() < self._recipe.loss.depth_share:
            try:
                return DEPTH.to_target(view.maps, valid_mask, "far").pictures[0]
            except DataError:  # sky only: train on the color instead
                pass
        rgb = random_appearance(view.rgb, rng, strength=self._recipe.data.appearance)
        return np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / 127.5 - 1.0

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        config = self._recipe.loss
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        latent = encode_to_latent(model, image)  # pyright: ignore[reportArgumentType]
        noisy = latent + config.latent_noise_std * batch["noise"]
        decoded = decode_to_image(model, noisy).float()  # pyright: ignore[reportArgumentType]
        error = functional.l1_loss(decoded, image) + functional.mse_loss(decoded, image)
        return whole(error + config.latent_regularization * latent_regularization(latent.float()))

    def save(self, directory: Path, *, final: bool = True) -> None:
        del final
        save_checkpoint(directory, vae=self.model)  # pyright: ignore[reportArgumentType]

    def validate(self, directory: Path) -> dict[str, float]:
        """Mean absolute errors ([-1, 1]) of pictures and depth maps on views that training has not drawn."""
        vae = load_vae(directory / "vae").to(next(self.model.parameters()).device)  # pyright: ignore
        errors: dict[str, list[float]] = {"rgb": [], "depth": []}
        latents = []
        for index in range(64):
            view, valid_mask = self.mixture.random_sample(
                generator_for(self._recipe.seed, "autoencoder validation", index)
            )
            images = {"rgb": view.rgb.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0}
            if valid_mask is not None:
                try:
                    images["depth"] = DEPTH.to_target(view.maps, valid_mask, "far").pictures[0]
                except DataError:
                    continue
            for name, image in images.items():
                with torch.no_grad():
                    tensor = torch.from_numpy(image)[None].to(vae.device)
                    latent = encode_to_latent(vae, tensor)
                    decoded = decode_to_image(vae, latent).clamp(-1, 1)
                errors[name].append(float((decoded - tensor).abs().mean()))
                if name == "rgb":
                    latents.append(latent.flatten())
        scores = {f"{name}_mae": float(np.mean(values)) for name, values in errors.items() if values}
        return {**scores, "latent_std": float(torch.cat(latents).std())}
