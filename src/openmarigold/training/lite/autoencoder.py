# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "log_autoencoder": the latent space of log depth. Depth maps in, the same maps out, with their edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor, nn

from openmarigold.modalities.depth import DEPTH, LOG_HALF_RANGE
from openmarigold.networks.backbone import decode_from_latent, encode_to_latent, save_checkpoint
from openmarigold.training.lite.loss import distance
from openmarigold.training.lite.recipes import LogAutoencoderRecipe
from openmarigold.training.lite.samples import Samples, cut_depth, draw_views
from openmarigold.training.loss import Loss, latent_regularization, whole
from openmarigold.training.nano.autoencoder import make_autoencoder
from openmarigold.training.views import BatchSlice, Mixture


def as_picture(log_depth: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b 3 H W"]:
    """What the autoencoder sees of log depth: around the median, in [-1, 1], the far end where there is none."""
    median = log_depth.flatten(1).nanmedian(dim=1).values.nan_to_num().view(-1, 1, 1, 1)
    scaled = ((log_depth - median) / LOG_HALF_RANGE).clamp(-1.0, 1.0)
    farthest = scaled.nan_to_num(nan=-1.0).amax(dim=(2, 3), keepdim=True)
    return torch.where(scaled.isnan(), farthest, scaled).expand(-1, 3, -1, -1)


def keep_output_exact(vae: AutoencoderTiny) -> AutoencoderTiny:
    """Computes the decoder's last layer in float32 under autocast too, in place.

    In bfloat16 log depth would have steps of 1 %, and differences of neighbors would be noise.
    """
    last: Any = vae.decoder.layers[-1]
    plain = last.forward

    def forward(value: Tensor) -> Tensor:
        with torch.autocast(value.device.type, enabled=False):
            return plain(value.float())

    last.forward = forward
    return vae


class LogAutoencoderTask:
    """Errors of the decoded maps and of their differences, latents kept near unit scale."""

    def __init__(self, recipe: LogAutoencoderRecipe, *, data_dir: Path, accelerator: Accelerator) -> None:
        self._recipe = recipe
        self.mixture = Mixture(recipe.data, data_dir=data_dir, seed=recipe.seed, modality=DEPTH)
        self._samples = Samples(self.mixture, num_workers=recipe.run.num_workers)
        self.model: nn.Module = keep_output_exact(make_autoencoder(recipe.model, seed=recipe.seed))
        self._device = accelerator.device

    @property
    def inputs(self) -> dict[str, str]:
        return {"data": self.mixture.contents}

    def batch(self, share: BatchSlice, what: str = "log autoencoder") -> dict[str, np.ndarray]:
        recipe = self._recipe
        rng, chosen, rows = self.mixture.choose(what, share, recipe.optimization.batch_size)
        stored = self._samples.code.shape[1:3]
        drawn = draw_views(rng, len(chosen), stored=stored, data=recipe.data, views=recipe.views)
        shape = (len(chosen), recipe.model.latent_channels, drawn.size[0] // 8, drawn.size[1] // 8)
        noise = rng.standard_normal(shape, dtype=np.float32)
        arrays = {name: values[rows] for name, values in drawn.arrays.items()}
        return {"code": self._samples.code[chosen[rows]], "noise": noise[rows], "affine": arrays["affine"]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        config, noise = self._recipe.loss, batch["noise"]
        picture = as_picture(self._views(batch)).contiguous(memory_format=torch.channels_last)
        latent = encode_to_latent(model, picture)  # pyright: ignore[reportArgumentType]
        decoded = decode_from_latent(model, latent + config.latent_noise_std * noise).float()  # pyright: ignore
        target = picture[:, :1]
        everywhere = torch.ones_like(target, dtype=torch.bool)
        error = distance(decoded, target, everywhere, gradient_weight=config.gradient_weight)
        return whole(error.mean() + config.latent_regularization * latent_regularization(latent.float()))

    def _views(self, batch: dict[str, Tensor]) -> Float[Tensor, "b 1 H W"]:
        height, width = (8 * side for side in batch["noise"].shape[2:])
        return cut_depth(batch["code"], batch["affine"], size=(height, width))

    def save(self, directory: Path, *, final: bool = True) -> None:
        del final
        save_checkpoint(directory, vae=self.model, dtype=torch.float32)  # pyright: ignore[reportArgumentType]

    def validate(self, directory: Path) -> dict[str, float]:
        """Mean absolute error of log depth on views that training has not drawn."""
        del directory  # the weights that were just saved are the ones in memory
        count = min(16, self._recipe.optimization.batch_size)
        share = BatchSlice(step=0, micro_step=0, group_size=count, rows=slice(0, count))
        arrays = self.batch(share, what="log autoencoder validation")
        batch = {name: torch.from_numpy(value).to(self._device) for name, value in arrays.items()}
        with torch.no_grad():
            picture = as_picture(self._views(batch))
            decoded = decode_from_latent(self.model, encode_to_latent(self.model, picture))  # pyright: ignore
        return {"log_depth_mae": LOG_HALF_RANGE * float((decoded - picture[:, :1]).abs().mean())}
