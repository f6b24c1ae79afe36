# SPDX-License-Identifier: Apache-2.0
"""The sampler: its inputs for one photo (image, noise of the members), the check for finite values, the consensus of
the members at the networks' size, and the settings that a prediction states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8

from openmarigold.camera import Camera
from openmarigold.camera.conditions import ray_channels
from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.config import LATENT_FACTOR, CallConfig
from openmarigold.diffusion import NoiseSchedule, member_noise
from openmarigold.engines import Engine, Latent
from openmarigold.errors import InvalidValueError, NumericalError, one_line
from openmarigold.images.exif import Photo
from openmarigold.images.photo import pad_to_multiple, processing_size, rgb_to_planes
from openmarigold.modalities import Modality
from openmarigold.modalities.modality import Merged


@dataclass(frozen=True, kw_only=True)
class Step:
    """The state of the sampler when it calls a `Guide`."""

    number: int
    """0 before the first step."""
    num_steps: int
    timestep: int
    rgb_latent: Latent
    """`[b K h w]`, or one for the whole batch."""
    members: tuple[int, ...] = ()
    """The number of the ensemble's member in each row."""
    mirrored: bool = False
    """Whether these members see the photo mirrored left to right."""


Guide: TypeAlias = Callable[[Latent, Step], "Latent | tuple[Latent, Latent]"]
"""Called before each denoising step with the noisy latents `[b C·t h w]` in the engine's array type; returns the
latents to continue with, of the same shape. A guide that has run the U-Net may return a pair, latents and the U-Net's
output: the sampler then uses both for its step and does not run the U-Net."""


@runtime_checkable
class Parts(Protocol):
    """The parts of a predictor."""

    checkpoint: Checkpoint
    engine: Engine
    tiny_vae: TinyVae | None


@dataclass(kw_only=True)
class FiniteChecks:
    """Checks that the networks gave finite values for the photos of one call."""

    checkpoint: str
    dtype: str
    answers: list[tuple[Any, str]] = field(default_factory=list)

    def add(self, finite: Any, stage: str) -> None:
        """Raise NumericalError unless `finite`; an answer that a GPU still computes is checked with the next one."""
        self.answers.append((finite, stage))
        if not isinstance(finite, bool):
            return
        answers, self.answers = self.answers, []
        broken = next((name for answer, name in answers if not answer), None)
        if broken is None:
            return
        if self.dtype == "float32":
            cure = "its weights may be damaged: look at it with `openmarigold checkpoint verify`"
        else:
            cure = f"{self.dtype} may be too narrow for it: use dtype " + (
                "bfloat16 or float32" if self.dtype == "float16" else "float32"
            )
        raise NumericalError(f"the {broken} of checkpoint {self.checkpoint} gave values that are not finite; {cure}")


class MemberNoise:
    """Random latents of a photo's members: at each step they depend on seed, photo and member only."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        rgb: UInt8[np.ndarray, "H W 3"],
        seed: int,
        zeros: bool,
        scale: float = 1.0,
        latents: Float[np.ndarray, "n C h w"] | None,
    ) -> None:
        self._rgb, self._seed = rgb, seed
        self._shape, self._zeros, self._scale, self._latents = shape, zeros, scale, latents

    @cached_property
    def _image_key(self) -> int:
        """A hash of the photo, computed on first use: members that start from zeros do not need it."""
        digest = hashlib.sha256(repr(self._rgb.shape).encode())
        digest.update(np.ascontiguousarray(self._rgb).data)
        return int.from_bytes(digest.digest()[:8], "little")

    @property
    def is_given(self) -> bool:
        return self._latents is not None

    def __call__(self, member: int, *, step: int = 0) -> Float[np.ndarray, "C h w"]:
        """Start latent of a member, or the fresh noise after `step` denoising steps."""
        if step == 0 and self._latents is not None:
            return self._latents[member]
        if step == 0 and self._zeros:
            return np.zeros(self._shape, dtype=np.float32)
        noise = member_noise(self._shape, seed=self._seed, image_key=self._image_key, member=member, step=step)
        return noise * np.float32(self._scale) if step == 0 and self._scale != 1 else noise


@dataclass(frozen=True, kw_only=True)
class PreparedPhoto:
    """The data kept for a photo until its prediction is done."""

    photo: Photo
    camera: Camera
    processing_size: tuple[int, int]
    """Height and width [px] of `image` without padding."""
    image: Float32[np.ndarray, "n 3 H W"]
    """The photo, and its mirror image if members see that too."""
    noise: MemberNoise
    coarse: PreparedPhoto | None = None
    """The same photo at the checkpoint's coarse resolution; None without a coarse pass."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shapes of the images, which photos of one batch have in common."""
        return self.image.shape + (() if self.coarse is None else self.coarse.image.shape)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.camera.size


def prepared(
    photo: Photo,
    camera: Camera,
    config: CallConfig,
    parts: Parts,
    *,
    latents: np.ndarray | None = None,
    one_pass: bool = False,
) -> PreparedPhoto:
    """The inputs of the sampler for a photo, with those of its coarse pass unless `one_pass`.

    Raises:
        InvalidValueError: the latents have another shape, or the photo is too large.
    """
    resolution, found = config.processing_resolution, parts.checkpoint
    assert resolution is not None

    # 1. The photo in [-1, 1], at the size that the networks see, padded to whole latent cells.
    size = processing_size(*camera.size, processing_resolution=resolution, side=found.processing_side)
    planes = rgb_to_planes(photo.rgb, size)
    seen = np.stack([planes, planes[..., ::-1]]) if config.ensemble_mirror else planes[None]
    image = pad_to_multiple(seen, multiple=LATENT_FACTOR)

    # 2. Where the random numbers come from: seed, photo, member and step, or the given latents.
    shape = latent_shape(size, parts)
    noise = MemberNoise(
        shape,
        rgb=photo.rgb,
        seed=config.seed,
        zeros=config.start_noise == "zeros",
        scale=found.noise_scale(config),
        latents=None if latents is None else checked_latents(latents, shape, config),
    )
    coarse: PreparedPhoto | None = None
    if found.coarse_resolution is not None and not one_pass:
        below = found.coarse_resolution
        if processing_size(*camera.size, processing_resolution=below, side=found.processing_side)[0] < size[0]:
            coarse = prepared(photo, camera, replace(config, processing_resolution=below), parts, one_pass=True)
    return PreparedPhoto(photo=photo, camera=camera, processing_size=size, image=image, noise=noise, coarse=coarse)


def latent_shape(size: tuple[int, int], parts: Parts) -> tuple[int, int, int]:
    """Shape `C h w` of a member's latents for a photo that the networks see at a size (height, width)."""
    channels = parts.engine.latent_channels * parts.checkpoint.modality.num_targets
    return (channels, -(-size[0] // LATENT_FACTOR), -(-size[1] // LATENT_FACTOR))


def rays_of(photos: Sequence[PreparedPhoto], *, mirrored: bool) -> Float32[np.ndarray, "b 3 h w"]:
    """The rays of the photos, or of their mirror images, on the latent grid: a condition of some checkpoints."""
    channels = []
    for photo in photos:
        camera = photo.camera.resized(photo.processing_size)
        padded = photo.image.shape[2], photo.image.shape[3]
        channels.append(ray_channels(camera.mirrored() if mirrored else camera, padded))
    return np.stack(channels)


def checked_guidance(guided: Any, latent: Latent) -> tuple[Latent, Latent | None]:
    """The latents that a guide returned, and the U-Net's output if the guide returned that too.

    Raises:
        InvalidValueError: type, shape or precision differ from those of `latent`.
    """
    if isinstance(guided, tuple) and len(guided) == 2:
        return _checked(guided[0], latent), _checked(guided[1], latent)
    return _checked(guided, latent), None


def _checked(guided: Any, latent: Latent) -> Latent:
    found = [type(guided).__name__, list(getattr(guided, "shape", [])), str(getattr(guided, "dtype", ""))]
    wanted = [type(latent).__name__, list(latent.shape), str(latent.dtype)]
    if found != wanted:
        raise InvalidValueError(
            f"the guide returned {' '.join(map(str, found))}; {' '.join(map(str, wanted))} is needed"
        )
    return guided.detach() if getattr(guided, "requires_grad", False) else guided


def checked_latents(latents: Any, shape: tuple[int, int, int], config: CallConfig) -> Float[np.ndarray, "n C h w"]:
    """The given starting noise (an array, or what NumPy makes one of) as float32, with latents of `shape` a member.

    Raises:
        InvalidValueError: it has another shape, or holds what is not a finite number.
    """
    expected = (config.ensemble_size, *shape)
    try:
        latents = np.asarray(latents, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a tensor with gradients
        raise InvalidValueError(f"latents must be an array of numbers ({one_line(error)})") from error
    if latents.shape != expected:
        raise InvalidValueError(
            f"latents has shape {list(latents.shape)}; for this photo, checkpoint and ensemble_size it is "
            f"{list(expected)}"
        )
    if not np.isfinite(latents).all():
        raise InvalidValueError("latents holds values that are not finite; give Gaussian noise")
    return latents


def denoised(
    rgb_latents: Latent,
    photos: Sequence[PreparedPhoto],
    batch: Sequence[tuple[int, int]],
    *,
    engine: Engine,
    schedule: NoiseSchedule,
    config: CallConfig,
    guide: Guide | None,
    mirrored: bool,
) -> Latent:
    """Target latents `[b C·t h w]` of a batch of members, each given by its photo's row and its number."""

    def noise(step: int) -> Latent:
        return engine.to_engine(np.stack([photos[row].noise(member, step=step) for row, member in batch]))

    steps, spacing = config.num_inference_steps, config.timestep_spacing
    assert steps is not None and config.final_step is not None
    if spacing not in (None, schedule.timestep_spacing):
        schedule = replace(schedule, timestep_spacing=spacing)
    # One photo's latent serves all its members, without copies.
    rgb_latent = rgb_latents if len(photos) == 1 else rgb_latents[[row for row, _ in batch]]
    latent = noise(0)
    for index, timestep in enumerate(schedule.timesteps(steps)):
        prediction: Latent | None = None
        if guide is not None:
            step = Step(
                number=index,
                num_steps=steps,
                timestep=timestep,
                rgb_latent=rgb_latent,
                members=tuple(member for _, member in batch),
                mirrored=mirrored,
            )
            latent, prediction = checked_guidance(guide(latent, step), latent)
        if prediction is None:
            prediction = engine.denoise(rgb_latent, latent, timestep=timestep)
        latent = schedule.step(
            latent,
            prediction,
            timestep=timestep,
            num_inference_steps=steps,
            final_step=config.final_step,
            noise=noise(index + 1) if schedule.adds_noise(timestep, steps) else None,
        )
    return latent


def stated_settings(photo: PreparedPhoto, config: CallConfig, parts: Parts, *, num_members: int) -> dict[str, Any]:
    """The resolved settings of a prediction that was made of `num_members` members."""
    names = ("num_inference_steps", "ensemble_size", "processing_resolution", "seed", "timestep_spacing")
    tiny_vae, found = parts.tiny_vae, parts.checkpoint
    derived = {} if found.derived is None else found.modality_for(photo.camera).quantities
    panorama = photo.photo.metadata.panorama
    return {
        "checkpoint": found.name,
        "invariance": found.invariance,
        **({"quantity": derived[found.invariance]} if derived else {}),  # it states the assumptions
        **{name: getattr(config, name) for name in names},
        "num_members": num_members,
        **found.facts_of_call(config),
        "start_noise": "given" if photo.noise.is_given else config.start_noise,
        "final_step": config.final_step,
        "engine": parts.engine.name,
        "device": parts.engine.device,
        "dtype": parts.engine.dtype,
        **({} if tiny_vae is None else {"tiny_vae": tiny_vae.name, "tiny_vae_for": tiny_vae.used_for}),
        **({} if photo.coarse is None else {"coarse_resolution": found.coarse_resolution}),
        **({} if panorama is None else {"panorama": panorama}),
    }


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """The merged maps of one photo, at the networks' size."""

    stack: Float[np.ndarray, "c h w"]
    uncertainty: Float[np.ndarray, "u h w"] | None
    """None for a single member."""
    latent: Float32[np.ndarray, "n C hl wl"]
    """The denoised latents of the members."""


def merge_members(
    found: Iterable[tuple[np.ndarray, np.ndarray]], modality: Modality, invariance: str, config: CallConfig
) -> Consensus:
    """The consensus of members, each a stack `[c h w]` and its latents; a tolerance may stop before the last one."""
    reduction = config.ensemble_reduction or modality.reductions[0]
    members: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    merged: Merged | None = None
    for member, latent in found:
        members.append(member)
        latents.append(latent)
        # The check runs after every member, so that the batch size does not decide where to stop.
        if config.ensemble_tolerance is not None and len(members) > 1:
            previous, merged = merged, modality.merge(np.stack(members), invariance, reduction)
            if previous and np.abs(merged.stack - previous.stack).mean() < config.ensemble_tolerance:
                break
    if len(members) > 1:
        merged = merged or modality.merge(np.stack(members), invariance, reduction)
    stack, uncertainty = (merged.stack, merged.uncertainty) if merged else (members[0], None)
    return Consensus(stack=stack, uncertainty=uncertainty, latent=np.stack(latents))
