# SPDX-License-Identifier: Apache-2.0
"""From a photo to its affine-invariant depth: the numbered steps of inference. Paper: §3.4 and fig. 3."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np
from jaxtyping import Float, UInt8
from PIL.Image import Image

from openmarigold.checkpoint import read_checkpoint
from openmarigold.config import LATENT_FACTOR, FinalStep, PredictConfig
from openmarigold.depth import to_affine
from openmarigold.diffusion import NoiseSchedule, member_noise
from openmarigold.engines import Engine, Latent, open_engine
from openmarigold.ensembling import ensemble
from openmarigold.errors import InvalidValueError, NumericalError
from openmarigold.image import as_rgb, pad_to_multiple, processing_size, resize, rgb_to_planes, unpad

ImageInput: TypeAlias = Image | np.ndarray | str | Path


@dataclass(frozen=True, kw_only=True)
class DepthPrediction:
    """Depth of one photo, at the photo's size."""

    depth: Float[np.ndarray, "h w"]
    """Affine depth, [0, 1], near 0, far 1; true depth is about `scale * depth + shift`."""
    uncertainty: Float[np.ndarray, "h w"] | None
    """Median absolute deviation over the aligned members, in units of `depth`; None for a single member."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The resolved settings: checkpoint, num_inference_steps, ensemble_size, processing_resolution, seed, final_step,
    device."""


class Predictor:
    """A loaded model: call it with photos, get their depth.

    >>> predictor = Predictor.load()  # doctest: +SKIP
    >>> predictor("photo.jpg").depth.shape  # doctest: +SKIP
    (480, 640)
    """

    def __init__(
        self,
        engine: Engine,
        *,
        schedule: NoiseSchedule,
        name: str,
        default_num_inference_steps: int,
        default_processing_resolution: int,
        default_final_step: FinalStep = "reference",
        processing_side: Literal["longer", "shorter"] = "longer",
    ) -> None:
        self.engine = engine
        self.schedule = schedule
        self.name = name
        self.default_num_inference_steps = default_num_inference_steps
        self.default_processing_resolution = default_processing_resolution
        self.default_final_step: FinalStep = default_final_step
        self.processing_side: Literal["longer", "shorter"] = processing_side

    @classmethod
    def load(cls, checkpoint: Path | str | None = None, *, device: str = PredictConfig.device) -> Predictor:
        """The predictor for a checkpoint folder; None is the model that comes with the package.

        Raises:
            CheckpointError: the folder is missing, incomplete, damaged or of another kind.
            InvalidValueError: the device is not available.
            MissingExtraError: safetensors weights without the extra `torch`.
        """
        PredictConfig(device=device)
        found = read_checkpoint(None if checkpoint is None else Path(checkpoint))
        return cls(
            open_engine(found, device=device),
            schedule=found.schedule,
            name=found.name,
            default_num_inference_steps=found.default_num_inference_steps,
            default_processing_resolution=found.default_processing_resolution,
            default_final_step=found.default_final_step,
            processing_side=found.processing_side,
        )

    @overload
    def __call__(
        self,
        rgb: ImageInput,
        *,
        num_inference_steps: int | None = ...,
        ensemble_size: int = ...,
        processing_resolution: int | None = ...,
        seed: int = ...,
        batch_size: int = ...,
        final_step: FinalStep | None = ...,
        latents: Float[np.ndarray, "n C h w"] | None = ...,
    ) -> DepthPrediction: ...
    @overload
    def __call__(
        self,
        rgb: Sequence[ImageInput],
        *,
        num_inference_steps: int | None = ...,
        ensemble_size: int = ...,
        processing_resolution: int | None = ...,
        seed: int = ...,
        batch_size: int = ...,
        final_step: FinalStep | None = ...,
    ) -> list[DepthPrediction]: ...
    def __call__(
        self,
        rgb: ImageInput | Sequence[ImageInput],
        *,
        num_inference_steps: int | None = PredictConfig.num_inference_steps,
        ensemble_size: int = PredictConfig.ensemble_size,
        processing_resolution: int | None = PredictConfig.processing_resolution,
        seed: int = PredictConfig.seed,
        batch_size: int = PredictConfig.batch_size,
        final_step: FinalStep | None = PredictConfig.final_step,
        latents: Float[np.ndarray, "n C h w"] | None = None,
    ) -> DepthPrediction | list[DepthPrediction]:
        """The depth of one photo, or of each photo in a list or tuple; photos may differ in size.

        Args:
            rgb: PIL image, path, or array `[h w]` or `[h w c]`: uint8, uint16, or float in [0, 1].
            num_inference_steps: denoising steps; None is the checkpoint's default.
            ensemble_size: members from different noise, aligned and merged. Paper: §3.4.
            processing_resolution: longer side (shorter, where the checkpoint says so) that the networks see [px]; 0 is
                the photo's own size, None the checkpoint's default.
            seed: with the photo's content and the member's number it determines the noise.
            batch_size: members denoised at once, on a GPU; on a CPU one after another, so that bytes never change.
            final_step: "reference" or "clean", see `diffusion`; None is the checkpoint's default.
            latents: starting noise instead of the seed's, one per member, for a single photo.

        Raises:
            InvalidValueError: a setting that is not accepted.
            ImageError: a photo that cannot be read.
            NumericalError: the networks returned values that are not finite.
        """
        given = PredictConfig(
            num_inference_steps=num_inference_steps,
            ensemble_size=ensemble_size,
            processing_resolution=processing_resolution,
            seed=seed,
            batch_size=batch_size,
            final_step=final_step,
        )
        config = self.resolve(given)
        if not isinstance(rgb, (list, tuple)):
            return self._predict(as_rgb(cast(ImageInput, rgb)), config, latents)
        if latents is not None:
            raise InvalidValueError("latents was given with a list of photos; give it with one photo at a time")
        return [self._predict(as_rgb(one), config, None) for one in rgb]

    def resolve(self, config: PredictConfig) -> PredictConfig:
        """`config` with the checkpoint's defaults in place of None."""
        resolution = config.processing_resolution
        return replace(
            config,
            num_inference_steps=config.num_inference_steps or self.default_num_inference_steps,
            processing_resolution=self.default_processing_resolution if resolution is None else resolution,
            final_step=config.final_step or self.default_final_step,
        )

    def _predict(
        self, rgb: UInt8[np.ndarray, "h w 3"], config: PredictConfig, latents: np.ndarray | None
    ) -> DepthPrediction:
        resolution, steps, final_step = config.processing_resolution, config.num_inference_steps, config.final_step
        assert resolution is not None and steps is not None and final_step is not None

        # 1. The photo in [-1, 1], at the size that the networks see, padded to whole latent cells.
        height, width = rgb.shape[:2]
        size = processing_size(height, width, processing_resolution=resolution, side=self.processing_side)
        image = pad_to_multiple(rgb_to_planes(rgb, size), multiple=LATENT_FACTOR)[None]

        # 2. Its latent, computed once whatever the number of members and steps.
        rgb_latent = self.engine.encode(image)

        # 3. One starting noise a member.
        shape = (self.engine.latent_channels, image.shape[2] // LATENT_FACTOR, image.shape[3] // LATENT_FACTOR)
        noise = _starting_noise(rgb, shape, config) if latents is None else _checked_latents(latents, shape, config)

        # 4. Denoising and decoding, as many members at once as the engine does without changing a result.
        count = min(config.batch_size, self.engine.max_batch_size or config.batch_size)
        batches = [noise[start : start + count] for start in range(0, len(noise), count)]
        decoded = np.concatenate(
            [self.engine.decode(self._denoise(rgb_latent, batch, steps, final_step)) for batch in batches]
        )
        if not np.isfinite(decoded).all():
            raise NumericalError(
                f"checkpoint {self.name} gave values that are not finite; its weights may be damaged or too large for "
                "the device's precision"
            )
        members = unpad(to_affine(decoded), size)

        # 5. One depth from many members. Paper: §3.4.
        depth, uncertainty = members[0], None
        if len(members) > 1:
            merged = ensemble(members)
            depth, uncertainty = merged.depth, merged.uncertainty

        # 6. Back to the photo's size.
        if size != (height, width):
            depth = resize(depth, (height, width), antialias=False)
            uncertainty = None if uncertainty is None else resize(uncertainty, (height, width), antialias=False)
        return DepthPrediction(
            depth=np.clip(depth, 0, 1, out=depth).astype(np.float32, copy=False),
            uncertainty=None if uncertainty is None else uncertainty.astype(np.float32, copy=False),
            settings={
                "checkpoint": self.name,
                "num_inference_steps": steps,
                "ensemble_size": config.ensemble_size,
                "processing_resolution": resolution,
                "seed": config.seed,
                "final_step": final_step,
                "device": self.engine.device,
            },
        )

    def _denoise(
        self, rgb_latent: Latent, noise: Float[np.ndarray, "b C h w"], steps: int, final_step: FinalStep
    ) -> Latent:
        latent = self.engine.to_engine(noise)
        for timestep in self.schedule.timesteps(steps):
            prediction = self.engine.denoise(rgb_latent, latent, timestep=timestep)
            latent = self.schedule.ddim_step(
                latent, prediction, timestep=timestep, num_inference_steps=steps, final_step=final_step
            )
        return latent


def _starting_noise(
    rgb: UInt8[np.ndarray, "H W 3"], shape: tuple[int, int, int], config: PredictConfig
) -> Float[np.ndarray, "n C h w"]:
    """Standard normal noise that depends on the seed, the photo's content and the member, and on nothing else."""
    digest = hashlib.sha256(repr(rgb.shape).encode())
    digest.update(np.ascontiguousarray(rgb).data)
    key = int.from_bytes(digest.digest()[:8], "little")
    members = range(config.ensemble_size)
    return np.stack([member_noise(shape, seed=config.seed, image_key=key, member=member) for member in members])


def _checked_latents(
    latents: np.ndarray, shape: tuple[int, int, int], config: PredictConfig
) -> Float[np.ndarray, "n C h w"]:
    expected = (config.ensemble_size, *shape)
    if latents.shape != expected:
        raise InvalidValueError(
            f"latents has shape {list(latents.shape)}; for this photo, checkpoint and ensemble_size it is "
            f"{list(expected)}"
        )
    return latents.astype(np.float32, copy=False)
