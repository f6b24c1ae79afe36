# SPDX-License-Identifier: Apache-2.0
"""From a photo to its affine-invariant depth: the numbered steps of inference. Paper: §3.4 and fig. 3."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL.Image import Image

from openmarigold.checkpoints.checkpoint import Checkpoint, TinyVae, read_checkpoint, read_tiny_vae, resolve_settings
from openmarigold.config import (
    LATENT_FACTOR,
    CompileMode,
    Dtype,
    EngineName,
    FinalStep,
    Invariance,
    PredictConfig,
    StartNoise,
    TimestepSpacing,
    TinyVaeUse,
)
from openmarigold.diffusion import NoiseSchedule, member_noise
from openmarigold.engines import Engine, Latent, open_engine
from openmarigold.ensembling import ensemble
from openmarigold.errors import InvalidValueError, NumericalError
from openmarigold.files import as_path
from openmarigold.images.photo import as_rgb, pad_to_multiple, processing_size, resize, rgb_to_planes, unpad
from openmarigold.modalities.depth import to_affine
from openmarigold.printing import quoted_logger

ImageInput: TypeAlias = Image | np.ndarray | str | Path
_log = quoted_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class DepthPrediction:
    """Depth of one photo, at the photo's size."""

    depth: Float[np.ndarray, "h w"]
    """Depth in [0, 1], nearer is smaller. True depth, as the checkpoint's invariance says: "affine" (every
    published one): `scale * depth + shift`, near plane 0, far plane 1; "scale": `scale * depth`; "absolute": a fixed
    multiple of `depth` that the checkpoint's authors state."""
    uncertainty: Float[np.ndarray, "h w"] | None
    """Median absolute deviation over the aligned members, in units of `depth`; None for a single member."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The resolved settings: checkpoint, invariance, num_inference_steps, ensemble_size, num_members (of which the
    depth was made; fewer than ensemble_size where ensemble_tolerance stopped), processing_resolution, seed,
    timestep_spacing, start_noise, final_step, engine, device, dtype; tiny_vae and tiny_vae_for where one was used."""


class Predictor:
    """A loaded model: call it with photos, get their depth.

    Several threads may call one at the same time, with the same bytes as alone. A pickled one holds its settings and
    reads the weights again where it is unpickled, such as in a spawned process.

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
        default_start_noise: StartNoise = "gaussian",
        invariance: Invariance = "affine",
        processing_side: Literal["longer", "shorter"] = "longer",
        tiny_vae: TinyVae | None = None,
    ) -> None:
        self.engine = engine
        self.tiny_vae = tiny_vae
        self.schedule = schedule
        self.name = name
        self.default_num_inference_steps = default_num_inference_steps
        self.default_processing_resolution = default_processing_resolution
        self.default_final_step: FinalStep = default_final_step
        self.default_start_noise: StartNoise = default_start_noise
        self.invariance: Invariance = invariance
        self.processing_side: Literal["longer", "shorter"] = processing_side
        self._warned = False
        self._opening: dict[str, Any] | None = None  # what `open_engine` takes, where it opened the engine

    @classmethod
    def load(
        cls,
        checkpoint: Path | str | None = None,
        *,
        engine: EngineName = PredictConfig.engine,
        device: str = PredictConfig.device,
        dtype: Dtype = PredictConfig.dtype,
        tiny_vae: Path | str | None = PredictConfig.tiny_vae,
        tiny_vae_for: TinyVaeUse = PredictConfig.tiny_vae_for,
        compile: CompileMode = PredictConfig.compile,
        variant: str | None = PredictConfig.variant,
        revision: str | None = PredictConfig.revision,
        local_files_only: bool = PredictConfig.local_files_only,
    ) -> Predictor:
        """The predictor for a checkpoint folder or hub id; None is the model that comes with the package.

        Raises:
            CheckpointError: the checkpoint is missing, incomplete, damaged, of another kind or cannot be downloaded.
            InvalidValueError: the device is not available, or the engine cannot run this checkpoint in this precision.
            MissingExtraError: the engine is not installed, or a hub id without the extra `torch`.
        """
        return cls.from_config(
            PredictConfig(
                checkpoint=None if checkpoint is None else as_path(checkpoint, "checkpoint"),
                engine=engine,
                device=device,
                dtype=dtype,
                tiny_vae=None if tiny_vae is None else str(tiny_vae),
                tiny_vae_for=tiny_vae_for,
                compile=compile,
                variant=variant,
                revision=revision,
                local_files_only=local_files_only,
            )
        )

    @classmethod
    def from_config(
        cls, config: PredictConfig, *, found: Checkpoint | None = None, tiny_vae: TinyVae | None = None
    ) -> Predictor:
        """`load` with the checkpoint, engine, device and precision of `config`.

        Args:
            config: the settings.
            found: its checkpoint where it has been read before: a branch on the hub may stand elsewhere a second later.
            tiny_vae: likewise its small autoencoder.
        """
        found = found or read_checkpoint(
            config.checkpoint,
            variant=config.variant,
            revision=config.revision,
            local_files_only=config.local_files_only,
        )
        return cls.from_checkpoint(
            found,
            engine=config.engine,
            device=config.device,
            dtype=config.dtype,
            tiny_vae=tiny_vae or read_tiny_vae(config, found),
            compile=config.compile,
        )

    @classmethod
    def from_checkpoint(
        cls,
        found: Checkpoint,
        *,
        engine: EngineName = PredictConfig.engine,
        device: str = PredictConfig.device,
        dtype: Dtype = PredictConfig.dtype,
        tiny_vae: TinyVae | None = None,
        compile: CompileMode = PredictConfig.compile,
    ) -> Predictor:
        """The predictor for a checkpoint that has been read. Raises what `load` raises."""
        opened = open_engine(found, engine=engine, device=device, dtype=dtype, tiny_vae=tiny_vae, compile=compile)
        predictor = cls(
            opened,
            schedule=found.schedule,
            name=found.name,
            default_num_inference_steps=found.default_num_inference_steps,
            default_processing_resolution=found.default_processing_resolution,
            default_final_step=found.default_final_step,
            default_start_noise=found.default_start_noise,
            invariance=found.invariance,
            processing_side=found.processing_side,
            tiny_vae=tiny_vae,
        )
        predictor._opening = {
            # Found from any working folder.
            "checkpoint": replace(found, directory=found.directory.absolute()),
            "tiny_vae": tiny_vae and replace(tiny_vae, directory=tiny_vae.directory.absolute()),
            # Not "auto": a copy in another process runs what runs here.
            "engine": opened.name,
            "device": opened.device,
            "dtype": dtype,
            "compile": compile,
        }
        return predictor

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and spawned processes: the settings; the weights are read again from their files.

        Raises:
            InvalidValueError: the engine was made in memory, and no files say how to make it again.
        """
        if self._opening is None:
            raise InvalidValueError(
                f"the predictor of {self.name} was made from an engine in memory and cannot be pickled; save the "
                "checkpoint to a folder and use Predictor.load"
            )
        return {name: value for name, value in vars(self).items() if name != "engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.engine = open_engine(**state["_opening"])

    @overload
    def __call__(
        self,
        rgb: ImageInput,
        *,
        num_inference_steps: int | None = ...,
        ensemble_size: int = ...,
        processing_resolution: int | None = ...,
        seed: int = ...,
        batch_size: int | None = ...,
        final_step: FinalStep | None = ...,
        timestep_spacing: TimestepSpacing | None = ...,
        start_noise: StartNoise | None = ...,
        ensemble_tolerance: float | None = ...,
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
        batch_size: int | None = ...,
        final_step: FinalStep | None = ...,
        timestep_spacing: TimestepSpacing | None = ...,
        start_noise: StartNoise | None = ...,
        ensemble_tolerance: float | None = ...,
    ) -> list[DepthPrediction]: ...
    def __call__(
        self,
        rgb: ImageInput | Sequence[ImageInput],
        *,
        num_inference_steps: int | None = PredictConfig.num_inference_steps,
        ensemble_size: int = PredictConfig.ensemble_size,
        processing_resolution: int | None = PredictConfig.processing_resolution,
        seed: int = PredictConfig.seed,
        batch_size: int | None = PredictConfig.batch_size,
        final_step: FinalStep | None = PredictConfig.final_step,
        timestep_spacing: TimestepSpacing | None = PredictConfig.timestep_spacing,
        start_noise: StartNoise | None = PredictConfig.start_noise,
        ensemble_tolerance: float | None = PredictConfig.ensemble_tolerance,
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
            batch_size: images that go through a network at once on a GPU, at most: members, and photos of a list that
                have one size there. None is as many as fit into its memory. On a CPU they go one after another, so that
                bytes never change.
            final_step: "reference" or "clean", see `diffusion`; None is the checkpoint's default.
            timestep_spacing: "trailing" or "leading" for DDIM; None is the checkpoint's own.
            start_noise: "gaussian", or "zeros" for checkpoints fine-tuned end to end; None is the checkpoint's own.
            ensemble_tolerance: stop adding members when one more changes the merged depth by less than this (mean
                absolute change, from the third member on); None uses all of `ensemble_size`.
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
            timestep_spacing=timestep_spacing,
            start_noise=start_noise,
            ensemble_tolerance=ensemble_tolerance,
        )
        config = self.resolve(given)
        if not isinstance(rgb, (list, tuple)):
            (prediction,) = self._predict([self._prepare(cast(ImageInput, rgb), config, latents)], config)
            return prediction
        if latents is not None:
            raise InvalidValueError("latents was given with a list of photos; give it with one photo at a time")
        predictions: dict[int, DepthPrediction] = {}
        for group in self._groups(rgb, config):
            predictions |= zip(group, self._predict(list(group.values()), config), strict=True)
        return [predictions[place] for place in range(len(rgb))]

    def resolve(self, config: PredictConfig) -> PredictConfig:
        """`config` with the checkpoint's defaults in place of None.

        Raises:
            InvalidValueError: a setting that this checkpoint has no use for.
        """
        resolved = resolve_settings(config, self)
        if config.timestep_spacing is None:
            self._warn_of_leading(resolved.timestep_spacing)
        return resolved

    def try_out(self) -> None:
        """Predicts a small ramp, so that damaged networks show before the first photo.

        Raises:
            NumericalError: the networks returned values that are not finite.
        """
        ramp = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64)
        self(ramp, processing_resolution=64)

    def _warn_of_leading(self, spacing: str | None) -> None:
        if spacing == "leading" and not self._warned:
            self._warned = True
            _log.warning(
                "checkpoint %s asks for leading timesteps, which start below pure noise and give poor depth in few "
                "steps; timestep_spacing trailing mends it, leading keeps it without this warning",
                self.name,
            )

    def _groups(self, rgb: Iterable[ImageInput], config: PredictConfig) -> Iterator[dict[int, _Photo]]:
        """Photos by their place in the list, in groups whose images have one shape: where there are enough, a batch."""
        waiting: defaultdict[tuple[int, ...], dict[int, _Photo]] = defaultdict(dict)
        for place, one in enumerate(rgb):
            photo = self._prepare(one, config, None)
            shape = photo.image.shape
            waiting[shape][place] = photo
            # With a tolerance nobody knows how many members there will be.
            together = 1 if config.ensemble_tolerance is not None else self._batch_limit(shape, config)
            if len(waiting[shape]) >= together:
                yield waiting.pop(shape)
            elif sum(map(len, waiting.values())) >= 2 * together:  # of many shapes: memory does not hold them all
                yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
        yield from waiting.values()

    def _prepare(self, one: ImageInput, config: PredictConfig, latents: np.ndarray | None) -> _Photo:
        resolution = config.processing_resolution
        assert resolution is not None

        # 1. The photo in [-1, 1], at the size that the networks see, padded to whole latent cells.
        rgb = as_rgb(one)
        height, width = rgb.shape[:2]
        size = processing_size(height, width, processing_resolution=resolution, side=self.processing_side)
        image = pad_to_multiple(rgb_to_planes(rgb, size), multiple=LATENT_FACTOR)[None]

        # 2. Where the random numbers come from: seed, photo, member and step, or the given latents.
        shape = (self.engine.latent_channels, image.shape[2] // LATENT_FACTOR, image.shape[3] // LATENT_FACTOR)
        if latents is not None:
            latents = _checked_latents(latents, shape, config)
        noise = _Noise(shape, rgb=rgb, seed=config.seed, zeros=config.start_noise == "zeros", latents=latents)
        return _Photo(size=(height, width), processing_size=size, image=image, noise=noise)

    def _predict(self, photos: Sequence[_Photo], config: PredictConfig) -> list[DepthPrediction]:
        """The depth of photos whose images have the same shape."""
        # 3. Their latents, computed once whatever the number of members and steps.
        checks = _FiniteChecks(checkpoint=self.name, dtype=self.engine.dtype)
        images = [photo.image for photo in photos]
        rgb_latents = self.engine.encode(images[0] if len(images) == 1 else np.concatenate(images))
        checks.add(self.engine.is_finite(rgb_latents), "VAE encoder")

        # 4. Their members, photo after photo, in batches that neighbors fill.
        members = self._members(rgb_latents, photos, config, checks)

        # 5. and 6. One depth from the members of each, at the photo's size. Paper: §3.4.
        return [self._merge(photo, islice(members, config.ensemble_size), config) for photo in photos]

    def _members(
        self, rgb_latents: Latent, photos: Sequence[_Photo], config: PredictConfig, checks: _FiniteChecks
    ) -> Iterator[np.ndarray]:
        """Affine depth `[h w]` at the processing size of every member, computed as they are asked for."""
        pairs = [(row, member) for row in range(len(photos)) for member in range(config.ensemble_size)]
        while pairs:
            # Asked anew each time: an engine learns from the first batch how much memory an image takes.
            limit = self._batch_limit(photos[0].image.shape, config)
            batch, pairs = pairs[:limit], pairs[limit:]
            latent = self._denoise(rgb_latents, photos, batch, config)
            # What is not finite stays so from step to step: one look at the end.
            checks.add(self.engine.is_finite(latent), "U-Net")
            decoded = self.engine.decode(latent)
            checks.add(bool(np.isfinite(decoded).all()), "VAE decoder")  # has waited for a GPU, if any
            for (row, _), norm_depth in zip(batch, decoded, strict=True):
                yield to_affine(unpad(norm_depth, photos[row].processing_size))

    def _batch_limit(self, shape: Sequence[int], config: PredictConfig) -> int:
        """Images `[.. H W]` that go together: as asked for or as fit, and do not change a result by going together."""
        limit = config.batch_size or self.engine.fitting_batch_size(*shape[-2:])
        return min(limit, self.engine.max_batch_size or limit)

    def _denoise(
        self, rgb_latents: Latent, photos: Sequence[_Photo], batch: Sequence[tuple[int, int]], config: PredictConfig
    ) -> Latent:
        """Depth latents of a batch of members, each given by its photo's row and its number."""

        def noise(step: int) -> Latent:
            return self.engine.to_engine(np.stack([photos[row].noise(member, step=step) for row, member in batch]))

        steps, spacing = config.num_inference_steps, config.timestep_spacing
        assert steps is not None and config.final_step is not None
        schedule = self.schedule
        if spacing not in (None, schedule.timestep_spacing):
            schedule = replace(schedule, timestep_spacing=spacing)
        # One photo's latent serves all its members, without copies.
        rgb_latent = rgb_latents if len(photos) == 1 else rgb_latents[[row for row, _ in batch]]
        latent = noise(0)
        for index, timestep in enumerate(schedule.timesteps(steps), start=1):
            prediction = self.engine.denoise(rgb_latent, latent, timestep=timestep)
            latent = schedule.step(
                latent,
                prediction,
                timestep=timestep,
                num_inference_steps=steps,
                final_step=config.final_step,
                noise=noise(index) if schedule.adds_noise(timestep, steps) else None,
            )
        return latent

    def _merge(self, photo: _Photo, affine: Iterable[np.ndarray], config: PredictConfig) -> DepthPrediction:
        members: list[np.ndarray] = []
        merged = None
        for member in affine:
            members.append(member)
            # Every number of members is looked at, so that the batch size does not decide where to stop.
            if config.ensemble_tolerance is not None and len(members) > 1:
                previous, merged = merged, ensemble(np.stack(members), invariance=self.invariance)
                if previous and np.abs(merged.depth - previous.depth).mean() < config.ensemble_tolerance:
                    break
        if len(members) > 1:
            merged = merged or ensemble(np.stack(members), invariance=self.invariance)
        depth, uncertainty = (merged.depth, merged.uncertainty) if merged else (members[0], None)
        if photo.processing_size != photo.size:
            depth = resize(depth, photo.size, antialias=False)
            uncertainty = None if uncertainty is None else resize(uncertainty, photo.size, antialias=False)
        return DepthPrediction(
            depth=np.clip(depth, 0, 1, out=depth).astype(np.float32, copy=False),
            uncertainty=None if uncertainty is None else uncertainty.astype(np.float32, copy=False),
            settings=self._settings(photo, config, num_members=len(members)),
        )

    def _settings(self, photo: _Photo, config: PredictConfig, *, num_members: int) -> dict[str, Any]:
        names = ("num_inference_steps", "ensemble_size", "processing_resolution", "seed", "timestep_spacing")
        tiny_vae = self.tiny_vae
        return {
            "checkpoint": self.name,
            "invariance": self.invariance,
            **{name: getattr(config, name) for name in names},
            "num_members": num_members,
            "start_noise": "given" if photo.noise.is_given else config.start_noise,
            "final_step": config.final_step,
            "engine": self.engine.name,
            "device": self.engine.device,
            "dtype": self.engine.dtype,
            **({} if tiny_vae is None else {"tiny_vae": tiny_vae.name, "tiny_vae_for": tiny_vae.used_for}),
        }


@dataclass(kw_only=True)
class _FiniteChecks:
    """Whether the networks gave finite values for the photos of one call."""

    checkpoint: str
    dtype: str
    answers: list[tuple[Any, str]] = field(default_factory=list)

    def add(self, finite: Any, stage: str) -> None:
        """Raises NumericalError unless `finite`; what only a GPU knows yet is asked for with the next known answer."""
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


class _Noise:
    """Random latents of a photo's members: at each step a function of seed, photo and member, and of nothing else."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        rgb: UInt8[np.ndarray, "H W 3"],
        seed: int,
        zeros: bool,
        latents: Float[np.ndarray, "n C h w"] | None,
    ) -> None:
        digest = hashlib.sha256(repr(rgb.shape).encode())
        digest.update(np.ascontiguousarray(rgb).data)
        self._keys = {"seed": seed, "image_key": int.from_bytes(digest.digest()[:8], "little")}
        self._shape, self._zeros, self._latents = shape, zeros, latents

    @property
    def is_given(self) -> bool:
        return self._latents is not None

    def __call__(self, member: int, *, step: int = 0) -> Float[np.ndarray, "C h w"]:
        """Start latent of a member, or the fresh noise after `step` denoising steps."""
        if step == 0 and self._latents is not None:
            return self._latents[member]
        if step == 0 and self._zeros:
            return np.zeros(self._shape, dtype=np.float32)
        return member_noise(self._shape, **self._keys, member=member, step=step)


@dataclass(frozen=True, kw_only=True)
class _Photo:
    """What is kept of a photo until its depth is done; the photo itself is not."""

    size: tuple[int, int]
    processing_size: tuple[int, int]
    """Without the padding of `image`."""
    image: Float32[np.ndarray, "1 3 H W"]
    noise: _Noise


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
