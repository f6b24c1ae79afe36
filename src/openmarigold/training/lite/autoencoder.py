# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "log_autoencoder": the latent space of log depth or of normals. Maps in, the same maps out, edges too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor, nn

from openmarigold.data.remote import DataFolder
from openmarigold.errors import RecipeError
from openmarigold.modalities import find_modality
from openmarigold.networks.backbone import encode_to_latent, hash_of_weights, load_vae, save_checkpoint
from openmarigold.training.lite.recipes import LogAutoencoderRecipe
from openmarigold.training.lite.samples import Samples, draw_views
from openmarigold.training.lite.targets import target_of
from openmarigold.training.loss import Loss, latent_regularization, whole
from openmarigold.training.nano.autoencoder import make_autoencoder
from openmarigold.training.views import BatchSlice, Mixture


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


def scale_output(vae: AutoencoderTiny, factor: float) -> AutoencoderTiny:
    """The same autoencoder with decoded values multiplied by a factor, in place."""
    last: Any = vae.decoder.layers[-1]
    with torch.no_grad():  # a decoder gives 2 times its last layer's output, minus 1
        last.weight.mul_(factor)
        last.bias.copy_((last.bias - 0.5) * factor + 0.5)
    return vae


class LogAutoencoderTask:
    """Errors of the decoded maps and of their differences, latents kept near unit scale."""

    def __init__(self, recipe: LogAutoencoderRecipe, *, data_dir: DataFolder, accelerator: Accelerator) -> None:
        """Loads the data into memory.

        Raises:
            CheckpointError: `start` is damaged or missing.
            DataError: data is missing, damaged or of several shapes.
            RecipeError: `start` holds an autoencoder of another shape.
        """
        self._recipe, self._target = recipe, target_of(recipe.modality)
        modality = find_modality(recipe.modality)
        self.mixture = Mixture(recipe.data, data_dir=data_dir, seed=recipe.seed, modality=modality)
        self._samples = Samples(self.mixture, num_workers=recipe.run.num_workers, pack=self._target.pack)
        vae = make_autoencoder(recipe.model, seed=recipe.seed)
        if recipe.start:
            started = load_vae(Path(recipe.start) / "vae").state_dict()
            if {name: value.shape for name, value in started.items()} != {
                name: value.shape for name, value in vae.state_dict().items()
            }:
                raise RecipeError(f"{recipe.start}: its autoencoder has another shape than [model]; make them equal")
            vae.load_state_dict(started)
        self._start = hash_of_weights(vae) if recipe.start else ""
        self.model: nn.Module = keep_output_exact(vae)
        self._device = accelerator.device

    @property
    def inputs(self) -> dict[str, str]:
        return {"data": self.mixture.contents, **({"weights": self._start} if self._start else {})}

    def batch(self, share: BatchSlice, what: str = "log autoencoder") -> dict[str, np.ndarray]:
        recipe = self._recipe
        rng, chosen, rows = self.mixture.choose(what, share, recipe.optimization.batch_size)
        drawn = draw_views(rng, len(chosen), stored=self._samples.size, data=recipe.data, views=recipe.views)
        shape = (len(chosen), recipe.model.latent_channels, drawn.size[0] // 8, drawn.size[1] // 8)
        noise = rng.standard_normal(shape, dtype=np.float32)
        arrays = {name: values[rows] for name, values in drawn.arrays.items()}
        return {"code": self._samples.codes(chosen[rows]), "noise": noise[rows], "affine": arrays["affine"]}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        config, noise = self._recipe.loss, batch["noise"]
        picture = self._target.picture(self._views(batch)).contiguous(memory_format=torch.channels_last)
        latent = encode_to_latent(model, picture)  # pyright: ignore[reportArgumentType]
        decoded = self._target.decode(model, latent + config.latent_noise_std * noise)  # pyright: ignore
        everywhere = torch.ones_like(picture[:, :1], dtype=torch.bool)
        distance, wanted = self._target.compare.distance, self._target.wanted(picture)
        error = distance(decoded, wanted, everywhere, gradient_weight=config.gradient_weight)
        return whole(error.mean() + config.latent_regularization * latent_regularization(latent.float()))

    def _views(self, batch: dict[str, Tensor]) -> Float[Tensor, "b c H W"]:
        height, width = (8 * side for side in batch["noise"].shape[2:])
        return self._target.cut(batch["code"], batch["affine"], size=(height, width))

    def save(self, directory: Path, *, final: bool = True) -> None:
        del final
        save_checkpoint(directory, vae=self.model, dtype=torch.float32)  # pyright: ignore[reportArgumentType]

    def validate(self, directory: Path) -> dict[str, float]:
        """The error of decoded maps on views that training has not drawn."""
        del directory  # the weights that were just saved are the ones in memory
        count = min(16, self._recipe.optimization.batch_size)
        share = BatchSlice(step=0, micro_step=0, group_size=count, rows=slice(0, count))
        arrays = self.batch(share, what="log autoencoder validation")
        batch = {name: torch.from_numpy(value).to(self._device) for name, value in arrays.items()}
        with torch.no_grad():
            picture = self._target.picture(self._views(batch))
            decoded = self._target.decode(self.model, encode_to_latent(self.model, picture))  # pyright: ignore
        return self._target.score(decoded, self._target.wanted(picture))
