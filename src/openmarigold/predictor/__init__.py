# SPDX-License-Identifier: Apache-2.0
"""From a photo to its maps: the numbered steps of inference. Paper: §3.4 and fig. 3."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, overload

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from openmarigold.camera import Camera
from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import TinyVae, read_configured, read_tiny_vae, resolve_settings
from openmarigold.config import CallConfig, CallOptions, ModelConfig, ModelOptions
from openmarigold.engines import Engine, Latent, open_engine
from openmarigold.errors import InvalidValueError
from openmarigold.images.photo import processing_size, read_photo, unpad
from openmarigold.modalities import Modality
from openmarigold.modalities.modality import Maps
from openmarigold.predictor.cameras import CameraEstimator, cameras_of_list, choose_camera, warn_of_no_relief
from openmarigold.predictor.coarse import denoised_twice
from openmarigold.predictor.intervals import Intervals, bounds_of
from openmarigold.predictor.sampling import (
    Consensus,
    FiniteChecks,
    Guide,
    PreparedPhoto,
    latent_shape,
    merge_members,
    prepared,
    rays_of,
    stated_settings,
)
from openmarigold.predictor.tiles import at_photos_size, check_tiles, crops_of
from openmarigold.printing import quoted_logger
from openmarigold.results.prediction import Prediction

if TYPE_CHECKING:  # imported on first use
    from openmarigold.predictor.stream import StreamedFrame
    from openmarigold.temporal.settings import StreamConfig

ImageInput: TypeAlias = Image | np.ndarray | str | Path
_log = quoted_logger(__name__)


class Predictor:
    """A loaded model: call it with photos, get their maps.

    Several threads may call it at the same time; the results are the same bytes. Pickling stores the settings only:
    the process that unpickles it reads the weights again.

    >>> predictor = Predictor.load()  # doctest: +SKIP
    >>> predictor("photo.jpg").depth.shape  # doctest: +SKIP
    (480, 640)
    """

    def __init__(self, engine: Engine, checkpoint: Checkpoint, *, tiny_vae: TinyVae | None = None) -> None:
        """A predictor from its parts; `load` is the usual way."""
        self.engine = engine
        self.checkpoint = checkpoint
        self.tiny_vae = tiny_vae
        self._warned = False
        self._estimator = CameraEstimator()
        self._intervals = Intervals()
        self._opening: dict[str, Any] | None = None  # arguments of `open_engine`; None: a given engine

    @classmethod
    def load(cls, checkpoint: Path | str | None = None, **options: Unpack[ModelOptions]) -> Predictor:
        """The predictor for a checkpoint folder or hub id; None is the model that comes with the package.

        Args:
            checkpoint: folder, or id on the hub such as prs-eth/marigold-depth-v1-1.
            options: engine, device, dtype and the other settings of `ModelConfig`; `modality` may be one name.

        Raises:
            CheckpointError: the checkpoint is missing, incomplete, damaged, of another kind or cannot be downloaded.
            InvalidValueError: the device is not available, or the engine cannot run this checkpoint in this precision.
            MissingExtraError: the engine is not installed, or a hub id without the extra `torch`.
        """
        modality = options.pop("modality", None) or ()
        if not isinstance(modality, (str, tuple, list)):
            raise InvalidValueError(f"modality={modality!r} is not accepted; give a name, such as depth")
        config = ModelConfig(checkpoint=checkpoint, **options)  # pyright: ignore[reportArgumentType]
        return cls.from_config(replace(config, modality=(modality,) if isinstance(modality, str) else tuple(modality)))

    from_pretrained = load

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        *,
        found: Checkpoint | None = None,
        tiny_vae: TinyVae | None = None,
        at_once: int = 1,
    ) -> Predictor:
        """The predictor for the settings of a model. Raises as `load`.

        Args:
            config: the settings.
            found: its checkpoint, if it was read before: a branch on the hub may change between two reads.
            tiny_vae: its small autoencoder, if it was read before.
            at_once: about how many threads will call it at the same time; see `open_engine`.
        """
        found = found or read_configured(config)
        tiny_vae = tiny_vae or read_tiny_vae(config, found)
        settings: dict[str, Any] = {"dtype": config.dtype, "compile": config.compile, "at_once": at_once}
        opened, its_vae = found, tiny_vae
        if config.dtype == "int8" and not found.quantization:
            from openmarigold.predictor.quantized import in_int8

            opened, its_vae = in_int8(found, config, tiny_vae), None
        engine = open_engine(opened, engine=config.engine, device=config.device, tiny_vae=its_vae, **settings)
        predictor = cls(engine, found, tiny_vae=tiny_vae)
        predictor._estimator = CameraEstimator(local_files_only=config.local_files_only)
        predictor._opening = {
            "checkpoint": replace(opened, directory=opened.directory.absolute()),  # found from any working folder
            "tiny_vae": its_vae and replace(its_vae, directory=its_vae.directory.absolute()),
            # Not "auto": a copy in another process must run the same engine.
            "engine": engine.name,
            "device": engine.device,
            **settings,
        }
        return predictor

    @property
    def modality(self) -> Modality:
        """The modality that the checkpoint predicts."""
        return self.checkpoint.predicts

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and spawned processes: the settings; the weights are read again from their files.

        Raises:
            InvalidValueError: the engine was made in memory, so no files can restore it.
        """
        if self._opening is None:
            raise InvalidValueError(
                f"the predictor of {self.checkpoint.name} was made from an engine in memory and cannot be pickled; "
                "save the checkpoint to a folder and use Predictor.load"
            )
        return {name: value for name, value in vars(self).items() if name != "engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.engine = open_engine(**state["_opening"])

    @overload
    def __call__(
        self,
        rgb: Sequence[ImageInput],
        *,
        camera: Camera | Sequence[Camera | None] | None = None,
        latents: None = None,
        guide: Guide | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Prediction]: ...
    @overload
    def __call__(
        self,
        rgb: Any,
        *,
        camera: Camera | None = None,
        latents: Float[np.ndarray, "n C h w"] | None = None,
        guide: Guide | None = None,
        **options: Unpack[CallOptions],
    ) -> Prediction: ...
    def __call__(
        self,
        rgb: Any,
        *,
        camera: Camera | Sequence[Camera | None] | None = None,
        latents: Float[np.ndarray, "n C h w"] | None = None,
        guide: Guide | None = None,
        **options: Unpack[CallOptions],
    ) -> Any:
        """The prediction for one photo, or for each photo of a list, tuple or batch; photos may differ in size.

        Args:
            rgb: PIL image, path, the bytes of a file, or array or tensor: `[h w]`, `[h w c]` or `[c h w]`, uint8,
                uint16, or float in [0, 1]; a `Photo`; a list or tuple of them, or a batch `[n c h w]` or `[n h w c]`.
            camera: camera of the upright photo; for a list, one for all or one (or None) for each. None: see
                docs/camera.md.
            latents: starting noise instead of the seed's, one per member, for a single photo.
            guide: called with the noisy latents before each step; may change them, and may return the U-Net's output.
                The networks then see the photo once, at `one_pass_resolution` unless processing_resolution is given.
            options: the settings of `CallConfig`, such as ensemble_size.

        Returns:
            One `Prediction`; for a list, tuple or batch a list of them.

        Raises:
            InvalidValueError: a setting that is not accepted.
            ImageError: a photo that cannot be read.
            NumericalError: the networks returned values that are not finite.
        """
        config = CallConfig(**options)
        if guide is not None and not callable(guide):
            raise InvalidValueError(f"guide is {guide!r:.60}; give a function that is called before each step, or None")
        if guide is not None and config.processing_resolution is None:
            config = replace(config, processing_resolution=self.checkpoint.one_pass_resolution)
        config = self.resolve(config)
        is_steered = guide is not None or latents is not None
        check_tiles(config, is_steered=is_steered)
        self._intervals.chosen(config, self, is_steered=is_steered)
        photos = _photos_of(rgb)
        if photos is None:
            (known,) = cameras_of_list(camera, 1)
            photo = self._prepare(rgb, config, latents, known, one_pass=guide is not None)
            (prediction,) = self._predict([photo], config, guide)
            return prediction
        if latents is not None:
            raise InvalidValueError("latents was given with a list of photos; give it with one photo at a time")
        predictions: dict[int, Prediction] = {}
        cameras = cameras_of_list(camera, len(photos))
        for group in self._groups(photos, config, cameras, one_pass=guide is not None):
            predictions |= zip(group, self._predict(list(group.values()), config, guide), strict=True)
        return [predictions[place] for place in range(len(photos))]

    def stream(
        self, frames: Iterable[Any], *, stream: StreamConfig | None = None, **options: Unpack[CallOptions]
    ) -> Iterator[StreamedFrame]:
        """The steady frames of a clip: one gauge for each shot, smoothed along motion, in constant memory.

        Args:
            frames: images of one size, each in a form that a call accepts for one photo.
            stream: how the clip is made steady.
            options: the settings of `CallConfig`; `num_inference_steps` is 1 by default.

        Raises:
            InvalidValueError: a setting that is not accepted, or a frame of another size.
            ImageError: a frame that cannot be read.
            NumericalError: the networks returned values that are not finite.
            MissingExtraError: optical flow without the extra `video`.
        """
        from openmarigold.predictor.stream import Stream
        from openmarigold.temporal.settings import StreamConfig

        for done in Stream(self, stream or StreamConfig(), CallConfig(**options)).follow(frames):
            yield from done

    def resolve(self, config: CallConfig) -> CallConfig:
        """`config` with the checkpoint's defaults in place of None.

        Raises:
            InvalidValueError: a setting that does not apply to this checkpoint.
        """
        resolved = resolve_settings(config, self.checkpoint)
        if config.estimate_camera and self.modality.relief is None:
            warn_of_no_relief(self.modality.title)
        if config.timestep_spacing is None and resolved.timestep_spacing == "leading" and not self._warned:
            self._warned = True
            _log.warning(
                "checkpoint %s asks for leading timesteps, which start below pure noise and give poor maps in few "
                "steps; timestep_spacing trailing fixes it, leading keeps it without this warning",
                self.checkpoint.name,
            )
        return resolved

    def latent_shape(self, size: tuple[int, int], config: CallConfig) -> tuple[int, int, int]:
        """Shape `C h w` of a member's latents in `latents` of a call, for a photo of `size` (height, width)."""
        resolution = resolve_settings(config, self.checkpoint).processing_resolution
        assert resolution is not None
        seen = processing_size(*size, processing_resolution=resolution, side=self.checkpoint.processing_side)
        return latent_shape(seen, self)

    def try_out(self) -> None:
        """Predict a small ramp, to find damaged networks before the first photo.

        Raises:
            NumericalError: the networks returned values that are not finite.
        """
        ramp = np.linspace(0, 255, 64 * 64).astype(np.uint8).reshape(64, 64)
        self(ramp, processing_resolution=64)

    def _groups(
        self, rgb: Iterable[Any], config: CallConfig, cameras: Sequence[Camera | None], *, one_pass: bool
    ) -> Iterator[dict[int, PreparedPhoto]]:
        """Yields groups of photos, by their place in the list; a group has one image shape and fits into a batch."""
        waiting: defaultdict[tuple[int, ...], dict[int, PreparedPhoto]] = defaultdict(dict)
        for place, one in enumerate(rgb):
            photo = self._prepare(one, config, None, cameras[place], one_pass=one_pass)
            shape = photo.shape
            waiting[shape][place] = photo
            # With a tolerance the number of members is not known in advance.
            together = 1 if config.ensemble_tolerance is not None else self._batch_limit(photo.image.shape, config)
            if len(waiting[shape]) >= together:
                yield waiting.pop(shape)
            elif sum(map(len, waiting.values())) >= 2 * together:  # many shapes: memory cannot hold them all
                yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
        yield from waiting.values()

    def _prepare(
        self,
        one: Any,
        config: CallConfig,
        latents: np.ndarray | None,
        camera: Camera | None,
        *,
        one_pass: bool = False,
    ) -> PreparedPhoto:
        # 1. and 2. The networks' input, the camera, and the source of the random numbers.
        read = read_photo(one, background=config.background)
        camera = choose_camera(read, config, camera)
        return prepared(read, camera, config, self, latents=latents, one_pass=one_pass)

    def _predict(
        self, photos: Sequence[PreparedPhoto], config: CallConfig, guide: Guide | None = None
    ) -> list[Prediction]:
        """The predictions for photos whose images have the same shape."""
        found = self._consensus(photos, config, guide)
        # 6. Their maps, at the photo's size, with the details of tiles if these are requested.
        return [self._finish(*pair, config, is_guided=guide is not None) for pair in zip(photos, found, strict=True)]

    def _consensus(
        self, photos: Sequence[PreparedPhoto], config: CallConfig, guide: Guide | None = None
    ) -> Iterator[Consensus]:
        """Yields the consensus of each photo's members, at the processing size; the images have the same shape."""
        # 3. Their latents, computed once for all members and steps.
        checks = FiniteChecks(checkpoint=self.checkpoint.name, dtype=self.engine.dtype)
        passes = [photos, [photo.coarse for photo in photos if photo.coarse is not None]]
        encoder = "image encoder" if self.checkpoint.image_encoder else "VAE encoder"
        seen: list[list[Latent]] = []
        for number in range(len(photos[0].image)):  # the photos, then their mirror images
            seen.append([])
            for sizes in filter(None, passes):
                condition = self.engine.encode(np.stack([photo.image[number] for photo in sizes]))
                if self.checkpoint.condition_on:
                    condition = self.engine.joined(condition, rays_of(sizes, mirrored=bool(number)))
                seen[-1].append(condition)
                checks.add(self.engine.is_finite(condition), encoder)

        # 4. Their members, photo after photo; a batch may hold members of several photos.
        members = self._members(seen, photos, config, checks, guide)

        # 5. One consensus of the members of each. Paper: §3.4.
        for _ in photos:
            yield merge_members(
                islice(members, config.ensemble_size), self.modality, self.checkpoint.invariance, config
            )

    def _crops(
        self, photo: PreparedPhoto, config: CallConfig, boxes: Sequence[tuple[slice, slice]]
    ) -> Iterator[tuple[int, Consensus]]:
        """Yields number and consensus of each part (rows, columns) of a photo; parts are predicted as single photos."""
        own = replace(config, fov=None, focal_px=None, camera_file=None)  # the cameras are given
        crops, cameras = crops_of(photo, boxes)
        for group in self._groups(crops, own, cameras, one_pass=True):
            yield from zip(group, self._consensus(list(group.values()), own), strict=True)

    def _members(
        self,
        seen: Sequence[Sequence[Latent]],
        photos: Sequence[PreparedPhoto],
        config: CallConfig,
        checks: FiniteChecks,
        guide: Guide | None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields each member's maps `[c h w]` at the processing size, and its latents; member m sees `seen[m % n]`."""
        pairs = [(row, member) for row in range(len(photos)) for member in range(config.ensemble_size)]
        while pairs:
            # Computed again each time: an engine learns from the first batch how much memory an image takes.
            limit = self._batch_limit(photos[0].image.shape, config)
            batch, pairs = pairs[:limit], pairs[limit:]
            found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
            for number, conditions in enumerate(seen):
                part = [pair for pair in batch if pair[1] % len(seen) == number]
                if not part:
                    continue
                latent = denoised_twice(
                    conditions,
                    photos,
                    part,
                    engine=self.engine,
                    schedule=self.checkpoint.schedule,
                    config=config,
                    guide=guide,
                    mirrored=bool(number),
                )
                # A value that is not finite stays so in later steps: one check at the end is enough.
                checks.add(self.engine.is_finite(latent), "U-Net")
                decoded = self.engine.decode(latent)
                checks.add(bool(np.isfinite(decoded).all()), "VAE decoder")  # `decode` waits for a GPU
                latents = self.engine.from_engine(latent)
                for pair, member, its_latent in zip(part, decoded, latents, strict=True):
                    photo = photos[pair[0]]
                    seen_by = photo.camera.resized(photo.processing_size)
                    modality = self.checkpoint.modality_for(seen_by.mirrored() if number else seen_by)
                    stack = modality.from_decoded(unpad(member, photo.processing_size))
                    found[pair] = (modality.mirrored(stack) if number else stack), its_latent
            for pair in batch:
                yield found.pop(pair)

    def _batch_limit(self, shape: Sequence[int], config: CallConfig) -> int:
        """The number of images `[.. H W]` in a batch: requested, else fitting; at most what changes no result."""
        limit = config.batch_size or self.engine.fitting_batch_size(*shape[-2:])
        return min(limit, self.engine.max_batch_size or limit)

    def _finish(self, photo: PreparedPhoto, found: Consensus, config: CallConfig, *, is_guided: bool) -> Prediction:
        modality, invariance = self.modality, self.checkpoint.invariance
        known: dict[str, Any] = {"modality": modality, "invariance": invariance, "config": config}
        camera, found_facts = self._estimator.of_photo(photo, found.stack, device=self.engine.device, **known)
        predict = None if is_guided else partial(self._crops, photo, config)
        side = self.checkpoint.processing_side
        stack, uncertainty, tile_facts = at_photos_size(found, photo, predict, side=side, **known)
        uncertainties: dict[str, np.ndarray] = {}
        if uncertainty is not None:
            planes = uncertainty.astype(np.float32, copy=False)
            uncertainties = dict(zip(modality.uncertainties, planes, strict=True))
        maps: Maps = modality.split(modality.finish(stack).astype(np.float32, copy=False))
        facts: Mapping[str, Any] = {}
        if modality.complete:
            maps, facts = modality.complete(maps, uncertainties, photo.photo.rgb, config)
        bounds, interval_facts = bounds_of(self._intervals.chosen(config, self), found, maps, photo, config)
        return Prediction(
            maps=dict(maps),
            uncertainties=uncertainties,
            bounds=bounds,
            latent=found.latent,
            settings={
                **stated_settings(photo, config, self, num_members=len(found.latent)),
                **tile_facts,
                **facts,
                **found_facts,
                **interval_facts,
                "camera": camera.to_dict(),
            },
            modality=modality.name,
            space=modality.space,
            camera=camera,
            rgb=photo.photo.rgb,
        )


def _photos_of(rgb: Any) -> Sequence[Any] | None:
    """The photos of a list, tuple or batch; None for a single photo."""
    if isinstance(rgb, (list, tuple)):
        return rgb
    return list(rgb) if getattr(rgb, "ndim", None) == 4 else None
