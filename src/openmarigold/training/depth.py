# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "depth": Marigold's fine-tuning protocol. Paper: §3.3, figure 2.

Only the U-Net is trained. It sees the image latent beside the noisy latent of the normalised depth map, which the
frozen autoencoder encodes like an image, and learns to denoise it. The second objective, "end_to_end", goes one step
from the last timestep through the frozen decoder and compares depth maps (Garcia et al. 2024).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from openmarigold.backbone import (
    Vae,
    decode_from_latent,
    hash_of_weights,
    latent_channels,
    load_empty_prompt_embedding,
    load_unet,
    load_vae,
    save_checkpoint,
    widen_conv_in,
)
from openmarigold.diffusion import NoiseSchedule, to_clean_and_noise
from openmarigold.errors import RecipeError
from openmarigold.evaluation import evaluate, predictor_estimator, read_manifest
from openmarigold.predictor import Predictor
from openmarigold.seeding import generator_for
from openmarigold.training.generator import draw_timesteps, noisy_latent_and_target
from openmarigold.training.latents import LatentCache
from openmarigold.training.loss import affine_invariant_loss, masked_latent_loss
from openmarigold.training.noise import multi_resolution_noise
from openmarigold.training.recipe import DepthRecipe


class DepthTask:
    """Denoising of depth latents beside image latents with a masked loss, or one step to a depth map."""

    def __init__(
        self,
        recipe: DepthRecipe,
        *,
        data_dir: Path,
        cache_dir: Path,
        benchmark_dir: Path | None,
        accelerator: Accelerator,
    ) -> None:
        self._recipe, self._benchmark_dir = recipe, benchmark_dir
        self._end_to_end = recipe.objective.kind == "end_to_end"
        if benchmark_dir is not None:
            read_manifest(benchmark_dir)  # a wrong folder is said now, not after the last step
        self._vae: Vae = load_vae(recipe.generator / "vae").requires_grad_(False)
        self._vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        unet = load_unet(recipe.generator / "unet")
        channels = latent_channels(self._vae)
        if unet.config["in_channels"] == channels:
            widen_conv_in(unet)
        elif unet.config["in_channels"] != 2 * channels:
            raise RecipeError(
                f"{recipe.generator}: the U-Net takes {unet.config['in_channels']} channels; it must take {channels} "
                f"(an image generator) or {2 * channels} (a depth model) to match the autoencoder"
            )
        self.model: nn.Module = unet
        self._base = hash_of_weights(unet)
        self._embedding = load_empty_prompt_embedding(recipe.generator).to(accelerator.device)
        self._schedule = NoiseSchedule(rescale_betas_zero_snr=recipe.timesteps.zero_terminal_snr)
        self._latents = LatentCache(
            recipe.data,
            vae=self._vae,
            seed=recipe.seed,
            data_dir=data_dir,
            cache_dir=cache_dir,
            accelerator=accelerator,
            depth_form="maps" if self._end_to_end else "latents",
        )

    @property
    def inputs(self) -> dict[str, str]:
        return {"generator": self._base, "autoencoder or data": self._latents.fingerprint}

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = generator_for(self._recipe.seed, "depth", step)
        latents = self._latents.draw(rng, self._recipe.optimization.batch_size)
        rgb_latent = self._with_noise(rng, latents.rgb)
        if self._end_to_end:
            assert latents.norm_depth is not None and latents.depth_range is not None
            zeros = self._recipe.objective.start_noise == "zeros"
            start = np.zeros_like(latents.rgb) if zeros else rng.standard_normal(latents.rgb.shape, dtype=np.float32)
            maps = {"norm_depth": latents.norm_depth, "depth_range": latents.depth_range}
            return {"rgb_latent": rgb_latent, "start": start, **maps}
        assert latents.depth is not None and latents.valid_mask is not None
        timesteps, noise = self._draw_noise(rng, latents.depth.shape)
        return {
            "rgb_latent": rgb_latent,
            "depth_latent": latents.depth,
            "valid_mask": latents.valid_mask,
            "noise": noise,
            "timesteps": timesteps,
        }

    def _with_noise(self, rng: np.random.Generator, rgb_latent: np.ndarray) -> np.ndarray:
        largest = self._recipe.data.latent_noise
        if not largest:
            return rgb_latent
        std = rng.uniform(0.0, largest, size=(len(rgb_latent), 1, 1, 1)).astype(np.float32)
        return rgb_latent + std * rng.standard_normal(rgb_latent.shape, dtype=np.float32)

    def _draw_noise(self, rng: np.random.Generator, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        config, num_train_timesteps = self._recipe.noise, self._schedule.num_train_timesteps
        timesteps = draw_timesteps(
            rng, shape[0], config=self._recipe.timesteps, num_train_timesteps=num_train_timesteps
        )
        share = timesteps / num_train_timesteps if config.annealed else np.ones(shape[0])
        noise = multi_resolution_noise(
            shape,
            strength=torch.from_numpy((config.strength * share).astype(np.float32)),
            generator=torch.Generator().manual_seed(int(rng.integers(2**62))),
            normalisation=config.normalisation,
        )
        return timesteps, noise.numpy()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self._end_to_end_loss(model, batch) if self._end_to_end else self._denoising_loss(model, batch)

    def _denoising_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        noisy, wanted = noisy_latent_and_target(
            batch["depth_latent"], batch["noise"], batch["timesteps"], self._schedule
        )
        predicted = self._denoise(model, batch["rgb_latent"], noisy, batch["timesteps"])
        return masked_latent_loss(predicted, wanted, batch["valid_mask"])

    def _end_to_end_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        start, last = batch["start"], self._schedule.num_train_timesteps - 1
        timesteps = torch.full((len(start),), last, device=start.device)
        predicted = self._denoise(model, batch["rgb_latent"], start, timesteps)
        clean, _ = to_clean_and_noise(
            start, predicted, *self._schedule.coefficients(last), prediction_type=self._schedule.prediction_type
        )
        decoded = decode_from_latent(self._vae, clean).float().clamp(-1.0, 1.0)
        norm_depth, weight = batch["norm_depth"], None
        if self._recipe.objective.error == "relative":
            near, far = batch["depth_range"].view(-1, 2, 1, 1, 1).unbind(dim=1)
            half_range = (far - near) / 2.0  # what one unit of norm_depth stands for
            weight = half_range / (near + (norm_depth + 1.0) * half_range)
        return affine_invariant_loss(decoded, norm_depth, ~norm_depth.isnan(), weight)

    def _denoise(self, model: nn.Module, rgb_latent: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        context = self._embedding.expand(len(noisy), -1, -1)
        sample = torch.cat([rgb_latent, noisy], dim=1)
        return model(sample, timesteps, encoder_hidden_states=context).sample.float()

    def save(self, directory: Path) -> None:
        assert isinstance(self.model, UNet2DConditionModel)
        defaults = self._recipe.checkpoint
        save_checkpoint(
            directory,
            vae=self._vae,
            unet=self.model,
            empty_prompt_embedding=self._embedding,
            schedule=self._schedule,
            index={
                "_class_name": "MarigoldDepthPipeline",
                "name": defaults.name,
                "prediction_type": "depth",
                "scale_invariant": True,
                "shift_invariant": True,
                "default_denoising_steps": defaults.num_inference_steps,
                "default_processing_resolution": defaults.processing_resolution,
                "default_final_step": defaults.final_step,
                "processing_side": defaults.processing_side,
                "start_noise": self._recipe.objective.start_noise,
            },
            dtype=torch.float16 if defaults.half_precision else torch.float32,
        )

    def validate(self, directory: Path) -> dict[str, float]:
        """Zero-shot AbsRel and delta1 on the benchmark, through the same predictor and protocol that users have."""
        if self._benchmark_dir is None:
            return {}
        predictor = Predictor.load(directory, engine="torch", device=self._embedding.device.type)
        scores = evaluate(self._benchmark_dir, predictor_estimator(predictor)).kinds
        return {
            f"{kind}_{name}": score.metrics[name] for kind, score in scores.items() for name in ("abs_rel", "delta1")
        }
