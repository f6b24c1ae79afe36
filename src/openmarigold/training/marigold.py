# SPDX-License-Identifier: Apache-2.0
"""Recipe kind "depth": Marigold's fine-tuning protocol, for any modality. Paper: §3.3, figure 2.

Only the U-Net is trained. It sees the image latent and the noisy latents of the targets, and learns to denoise them.
The frozen autoencoder encodes a target, such as the normalized depth map, like an image. The second objective,
"end_to_end", makes one step from the last timestep, decodes it, and compares pixels (Garcia et al. 2024).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from openmarigold.checkpoints.single_file import is_single_file
from openmarigold.data.remote import DataFolder
from openmarigold.diffusion import to_clean_and_noise
from openmarigold.errors import RecipeError
from openmarigold.modalities import find_modality
from openmarigold.networks.adapters import ADAPTER_DIR, LoraUNet
from openmarigold.networks.backbone import decode_targets, latent_channels, save_checkpoint
from openmarigold.seeding import generator_for
from openmarigold.training.base import NUM_CONDITION_LATENTS, load_base, load_base_unet, locate_base
from openmarigold.training.latents import Latents
from openmarigold.training.loss import PIXEL_LOSSES, Loss, masked_latent_loss
from openmarigold.training.memory import activation_bytes
from openmarigold.training.model_card import make_card, public_name
from openmarigold.training.noise import draw_noise, draw_timesteps, noisy_latent_and_target
from openmarigold.training.recipe import MarigoldRecipe
from openmarigold.training.validation import Validation, ValidationPaths
from openmarigold.training.views import BatchSlice, Mixture, View

LOSS_TIMESTEPS = 4  # of the validation loss: the middles of as many equal parts of the schedule
LOSS_NAME = "held_out_loss"


class MarigoldTask:
    """Denoising of target latents next to image latents with a masked loss, or one step to the pixels."""

    def __init__(
        self,
        recipe: MarigoldRecipe,
        *,
        data_dir: DataFolder,
        cache_dir: Path | None,
        accelerator: Accelerator,
        validation: ValidationPaths | None = None,
        check_inputs: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        """Loads the base and the data, and encodes what is missing in the cache (`cache_dir` None: none is kept).

        Raises:
            CheckpointError: the base is damaged or incomplete, or `check_inputs` refuses the data.
            DataError: data or a benchmark is missing or damaged.
            RecipeError: base, data and recipe do not fit together.
        """
        self._recipe = recipe
        self._end_to_end = recipe.objective.kind == "end_to_end"
        self._modality = find_modality(recipe.modality)
        self.mixture = Mixture(recipe.data, data_dir=data_dir, seed=recipe.seed, modality=self._modality)
        self.validation = Validation(
            recipe.validation,
            validation or ValidationPaths(),
            device=str(accelerator.device),
            modality=self._modality,
            held_out=self.mixture.held_out,
            data_dir=data_dir,
            limits=self.mixture.limits,
        )
        self._held_out: list[dict[str, Tensor]] | None = None
        if is_single_file(recipe.base):
            with accelerator.local_main_process_first():  # which unpacks it, once
                locate_base(recipe)
        self._base = load_base(recipe)
        self._vae: Any = self._base.vae.requires_grad_(False)
        self._vae.to(memory_format=torch.channels_last)
        self.model: nn.Module = self._base.unet
        self._schedule = self._base.schedule
        self._embedding = self._base.embedding.to(accelerator.device)
        self._lora = self._start_lora(accelerator) if recipe.lora.rank else None
        if recipe.optimization.gradient_checkpointing:
            self._base.unet.enable_gradient_checkpointing()
            if self._end_to_end and self._vae._supports_gradient_checkpointing:
                self._vae.enable_gradient_checkpointing()
                self._vae.train()  # training mode does not change its layers, but gradient checkpointing needs it
        self.latents = Latents(
            self.mixture,
            vae=self._vae,
            cache_dir=cache_dir,
            accelerator=accelerator,
            target_form="maps" if self._end_to_end else "latents",
            num_workers=recipe.run.num_workers,
            check_inputs=check_inputs,
        )

    def _start_lora(self, accelerator: Accelerator) -> LoraUNet:
        config, modality = self._recipe.lora, self._modality
        if accelerator.distributed_type == DistributedType.FSDP:
            raise RecipeError(
                "lora.rank is not for FSDP: low-rank updates need no sharding; leave out recipes/fsdp.yaml"
            )
        lora = LoraUNet(
            self._base.unet,
            rank=config.rank,
            alpha=config.alpha or float(config.rank),
            targets=config.targets,
            in_full=("conv_in", "conv_out") if modality.num_targets > 1 else ("conv_in",),
            seed=int(generator_for(self._recipe.seed, "low-rank updates").integers(2**62)),
        )
        if config.half_base:
            lora.halve_base(self._half)
        return lora

    @property
    def _half(self) -> torch.dtype:
        """The type of 16 bits of the recipe's mixed precision."""
        return torch.float16 if self._recipe.optimization.mixed_precision == "fp16" else torch.bfloat16

    @property
    def only_trained(self) -> bool:
        """Whether a state needs the trained weights alone: the frozen ones are those of the base."""
        return self._lora is not None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters, with factors of the learning rate."""
        if self._lora is not None:
            return self._lora.groups(full_factor=self._recipe.lora.full_learning_rate_factor)
        return [{"params": [parameter for parameter in self.model.parameters() if parameter.requires_grad]}]

    @property
    def inputs(self) -> dict[str, str]:
        embedding = hashlib.sha256(self._base.embedding.float().cpu().contiguous().numpy().tobytes()).hexdigest()
        return {
            "base": self._base.sha256,
            "empty prompt": embedding,
            "autoencoder or data": self.latents.fingerprint,
        }

    def activation_bytes(self, num_samples: int) -> int:
        """About what the backward pass of so many samples, of the largest view, keeps in memory [bytes]."""
        config, channels = self._recipe.optimization, latent_channels(self._vae)
        sizes = [self.mixture.size_of(number) for number in range(len(self.mixture.sources))]
        height, width = (side // 8 for side in max(sizes, key=lambda size: size[0] * size[1]))
        unet, vae, targets = self._base.unet.config, self._vae, self._modality.num_targets
        embedding = tuple(self._embedding.shape[1:])

        def run(network: Any) -> None:
            sample = torch.zeros(num_samples, (NUM_CONDITION_LATENTS + targets) * channels, height, width)
            timesteps = torch.zeros(num_samples, dtype=torch.long)
            network(sample, timesteps, encoder_hidden_states=torch.zeros(num_samples, *embedding))

        counted = {"half": config.mixed_precision != "no", "recomputed": config.gradient_checkpointing}
        found = activation_bytes(lambda: UNet2DConditionModel.from_config(unet), run, **counted)  # pyright: ignore
        if self._end_to_end:
            latents = (num_samples * targets, channels, height, width)
            found += activation_bytes(
                lambda: type(vae).from_config(vae.config),
                lambda decoder: decoder.decode(torch.zeros(latents, requires_grad=True)),
                **counted,
            )
        return found

    def batch(self, share: BatchSlice) -> dict[str, np.ndarray]:
        rng, chosen, rows = self.mixture.choose(self._recipe.kind, share, self._recipe.optimization.batch_size)
        batch = self.latents.batch(chosen[rows])
        height, width = self.mixture.size_of(self.mixture.source_of(int(chosen[0])))
        channels, size = latent_channels(self._vae), (height // 8, width // 8)
        if self._recipe.data.latent_noise:
            std = rng.uniform(0.0, self._recipe.data.latent_noise, size=(len(chosen), 1, 1, 1)).astype(np.float32)
            rgb_noise = rng.standard_normal((len(chosen), channels, *size), dtype=np.float32)
            batch["rgb_noise"] = (std * rgb_noise)[rows]
        shape = (len(chosen), self._modality.num_targets * channels, *size)
        if self._end_to_end:
            return {**batch, "start": self._draw_start(rng, shape)[rows]}
        timesteps, noise = self._draw_noise(rng, shape)
        return {**batch, "noise": noise[rows], "timesteps": timesteps[rows]}

    def _draw_start(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        zeros = self._recipe.objective.start_noise == "zeros"
        return np.zeros(shape, dtype=np.float32) if zeros else rng.standard_normal(shape, dtype=np.float32)

    def _draw_noise(self, rng: np.random.Generator, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        number = self._schedule.num_train_timesteps
        timesteps = draw_timesteps(rng, shape[0], config=self._recipe.timesteps, num_train_timesteps=number)
        return timesteps, self._noise(rng, shape, timesteps)

    def _noise(self, rng: np.random.Generator, shape: tuple[int, int, int, int], timesteps: np.ndarray) -> np.ndarray:
        number = self._schedule.num_train_timesteps
        return draw_noise(rng, shape, timesteps, config=self._recipe.noise, num_train_timesteps=number)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        batch = self.latents.encoded(batch)
        if "rgb_noise" in batch:
            batch["rgb_latent"] = batch["rgb_latent"] + batch["rgb_noise"]
        return self._end_to_end_loss(model, batch) if self._end_to_end else self._denoising_loss(model, batch)

    def _denoising_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        noisy, wanted = noisy_latent_and_target(
            batch["target_latent"], batch["noise"], batch["timesteps"], self._schedule
        )
        predicted = self._denoise(model, batch["rgb_latent"], noisy, batch["timesteps"])
        return masked_latent_loss(predicted, wanted, batch["valid_mask"])

    def _end_to_end_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        start, last = batch["start"], self._schedule.num_train_timesteps - 1
        timesteps = torch.full((len(start),), last, device=start.device)
        predicted = self._denoise(model, batch["rgb_latent"], start, timesteps)
        clean, _ = to_clean_and_noise(
            start, predicted, *self._schedule.coefficients(last), prediction_type=self._schedule.prediction_type
        )
        modality = self._modality
        decoded = decode_targets(self._vae, clean, num_targets=modality.num_targets, channels=modality.decoded_channels)
        decoded, target = decoded.flatten(1, 2).float().clamp(-1.0, 1.0), batch["target"].flatten(1, 2)
        weight = None
        if self._recipe.objective.error != "absolute":
            low, high = batch["bounds"].view(-1, 2, 1, 1, 1).unbind(dim=1)
            weight = ((high - low) / 2.0).expand_as(target)  # what one unit of the target stands for
            if self._recipe.objective.error == "relative":
                weight = weight / (low + (target + 1.0) * weight)
        return PIXEL_LOSSES[modality.pixel_loss](decoded, target, ~target.isnan(), weight)

    def _denoise(self, model: nn.Module, rgb_latent: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        context = self._embedding.expand(len(noisy), -1, -1)
        sample = torch.cat([rgb_latent, noisy], dim=1)
        return model(sample, timesteps, encoder_hidden_states=context).sample.float()

    def save(self, directory: Path, *, final: bool = True) -> None:
        """Writes the checkpoint; the `final` one is complete, with a text encoder for other programs.

        Low-rank updates are merged into it; they are also saved alone, in its folder `adapter/`. Where `final_step` is
        "clean", the scheduler says so (`set_alpha_to_one`), so that diffusers gives the same maps.
        """
        assert isinstance(self.model, UNet2DConditionModel)
        defaults, unet, lora = self._recipe.checkpoint, self.model, self._lora
        if lora is not None:
            base = load_base_unet(self._base, self._recipe).state_dict() if self._recipe.lora.half_base else None
            unet = lora.merged(base)
        save_checkpoint(
            directory,
            vae=self._vae,
            unet=unet,
            empty_prompt_embedding=self._embedding,
            schedule=replace(self._schedule, set_alpha_to_one=True)
            if defaults.final_step == "clean"
            else self._schedule,
            index={
                "_class_name": self._modality.pipeline_classes[0],
                "name": defaults.name,
                "prediction_type": self._modality.prediction_type,
                **self._modality.index_facts,
                "default_denoising_steps": defaults.num_inference_steps,
                "default_processing_resolution": defaults.processing_resolution,
                "default_final_step": defaults.final_step,
                "processing_side": defaults.processing_side,
                "start_noise": self._recipe.objective.start_noise,
            },
            dtype=torch.float16 if defaults.half_precision else torch.float32,
            text_encoder_of=self._base.directory if final else None,
            also=None
            if lora is None
            else lambda folder: lora.save(folder / ADAPTER_DIR, base=public_name(self._recipe.base)),
        )

    def card(self, step: int, scores: dict[str, float]) -> str:
        """The model card of the checkpoint of a step, whose validation gave `scores`."""
        sets = self.validation.described
        return make_card(
            self._recipe,
            self.mixture,
            base_dir=self._base.directory,
            step=step,
            scores=scores,
            validated=sets,
            inputs=self.inputs | {"the data's bytes": self.mixture.sha256},
        )

    @property
    def validation_loss(self) -> tuple[str, bool] | None:
        """The name of the validation loss, and that lower is better; None where no sample is for it."""
        return (LOSS_NAME, False) if self.validation.loss_samples() else None

    def validate(self, directory: Path) -> dict[str, float]:
        """Zero-shot scores on the benchmarks and held-out scenes, and the loss of the latter at fixed draws."""
        return {**self.validation.scores(directory), **self._held_out_loss()}

    def _held_out_loss(self) -> dict[str, float]:
        """The mean loss over `LOSS_TIMESTEPS` timesteps of plain views, whose noise is always the same."""
        if self._held_out is None:
            self._held_out = [self._fixed_batch(number, view) for number, view in self._validation_views()]
        if not self._held_out:
            return {}
        was_training, device = self.model.training, self._embedding.device
        self.model.to(device).eval()  # FSDP gathers whole weights in main memory
        half_base = self._recipe.lora.half_base  # whose frozen weights do not go with float32 inputs
        try:
            with torch.no_grad(), torch.autocast(device.type, dtype=self._half, enabled=half_base):
                losses = [self.loss(self.model, batch) for batch in self._held_out]
        finally:
            self.model.train(was_training)
        total, count = (sum(float(value) for value in values) for values in list(zip(*losses, strict=True))[:2])
        return {LOSS_NAME: total / count} if count else {}

    def _validation_views(self) -> Iterator[tuple[int, View]]:
        for number, (source, index) in enumerate(self.validation.loss_samples()):
            view = self.mixture.plain_view(source, index)
            if view.target is not None:
                yield number, view

    def _fixed_batch(self, number: int, view: View) -> dict[str, Tensor]:
        """A view at each of the fixed timesteps, encoded; one from the start for the objective "end_to_end"."""
        count = 1 if self._end_to_end else LOSS_TIMESTEPS
        batch = {name: torch.from_numpy(value) for name, value in self.latents.uncached([view] * count).items()}
        device = self._embedding.device
        batch = self.latents.encoded({name: value.to(device) for name, value in batch.items()})
        channels = latent_channels(self._vae)
        height, width = batch["rgb_latent"].shape[2:]
        shape = (count, self._modality.num_targets * channels, height, width)
        rng = generator_for(self._recipe.seed, "validation", number)
        if self._end_to_end:
            return {**batch, "start": torch.from_numpy(self._draw_start(rng, shape)).to(device)}
        timesteps = (np.arange(count) * 2 + 1) * self._schedule.num_train_timesteps // (2 * count)
        noise = self._noise(rng, shape, timesteps)
        return {
            **batch,
            "noise": torch.from_numpy(noise).to(device),
            "timesteps": torch.from_numpy(timesteps).to(device),
        }
