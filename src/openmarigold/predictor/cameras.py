# SPDX-License-Identifier: Apache-2.0
"""The camera of a photo: given, read from a file or the photo's metadata, estimated, or assumed (docs/camera.md)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from openmarigold.camera import Camera
from openmarigold.checkpoints.configured import read_configured
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.config import CallConfig, ModelConfig
from openmarigold.errors import InvalidValueError
from openmarigold.files import file_sha256
from openmarigold.images.exif import Photo
from openmarigold.images.photo import processing_size, resize, rgb_to_planes
from openmarigold.modalities import NORMALS, Modality
from openmarigold.predictor.sampling import PreparedPhoto
from openmarigold.printing import quoted_logger

if TYPE_CHECKING:
    from openmarigold.predictor import Predictor

ESTIMATION_SIDE = 512
"""Maximum longer side [px] at which depth and normals are compared."""

_log = quoted_logger(__name__)


def choose_camera(photo: Photo, config: CallConfig, given: Camera | None = None) -> Camera:
    """The camera of a photo, in its pixels: the first of these that is known.

    1. `given`; the file of the setting camera_file; focal_px; fov. Of these only one may be given.
    2. The camera in the photo's metadata.
    3. `Camera.assumed`.

    Raises:
        InvalidValueError: more than one is given, the file cannot be read, or it is not a camera of this photo.
    """
    height, width = size = photo.rgb.shape[0], photo.rgb.shape[1]
    if given is None and config.camera_file is None and config.focal_px is None:  # the usual case needs no more imports
        if config.fov is not None:
            return Camera.from_fov((height, width), config.fov)
        return photo.metadata.camera((height, width)) or Camera.assumed((height, width))
    from openmarigold.camera.files import check_field_of_view, fit_to_photo, read_camera

    if given is not None:
        stated = next((name for name in ("fov", "focal_px", "camera_file") if getattr(config, name) is not None), None)
        if stated is not None:
            raise InvalidValueError(f"camera and {stated} state the same thing; give one of them")
        return fit_to_photo(given, size)
    if config.camera_file is not None:
        return read_camera(config.camera_file, size)
    assert config.focal_px is not None
    check_field_of_view("focal_px", max(size), config.focal_px)
    return Camera.from_focal((height, width), config.focal_px)


def camera_facts(config: CallConfig) -> dict[str, Any]:
    """The given settings of the camera that affect results; for files their hashes.

    Raises:
        InvalidValueError: the camera's file cannot be read.
        CheckpointError: the checkpoint of normals cannot be used.
    """
    facts: dict[str, Any] = {
        name: getattr(config, name) for name in ("fov", "focal_px") if getattr(config, name) is not None
    }
    if config.camera_file is not None:
        from openmarigold.camera.files import read_intrinsics

        read_intrinsics(config.camera_file)  # raises an error that names the problem
        facts["camera_file_sha256"] = file_sha256(config.camera_file)  # pyright: ignore[reportArgumentType] - a path
    if config.estimate_camera:
        offline = isinstance(config, ModelConfig) and config.local_files_only
        found = read_configured(_normals_model(config, local_files_only=offline))
        facts |= {"estimate_camera": True, "normals_checkpoint_sha256": checkpoint_sha256(found)}
    return facts


def cameras_of_list(given: Camera | Sequence[Camera | None] | None, count: int) -> list[Camera | None]:
    """One camera, or None, for each of `count` photos.

    Raises:
        InvalidValueError: the number of cameras is not `count`, or something else than a `Camera` was given.
    """
    if given is None or isinstance(given, Camera):
        return [given] * count
    known: list[Any] = [given] if isinstance(given, Mapping) or not isinstance(given, Iterable) else list(given)
    if other := [one for one in known if one is not None and not isinstance(one, Camera)]:
        raise InvalidValueError(
            f"camera={other[0]!r} is not accepted; give a Camera: Camera.from_dict makes one from a record, "
            "Camera.from_fov from an angle"
        )
    if len(known) != count:
        raise InvalidValueError(f"{len(known)} cameras were given for {count} photos; give one each, or one for all")
    return known


class CameraEstimator:
    """Estimates cameras from depth and normals; loads the model of normals when it is first needed."""

    def __init__(self, *, local_files_only: bool = False) -> None:
        """`local_files_only`: never ask the hub for the model of normals."""
        self._local_files_only = local_files_only
        self._models: dict[str, Predictor] = {}
        self._loading = threading.Lock()

    def of_photo(
        self,
        photo: PreparedPhoto,
        stack: Float[np.ndarray, "c h w"],
        *,
        modality: Modality,
        invariance: str,
        config: CallConfig,
        device: str,
    ) -> tuple[Camera, Mapping[str, Any]]:
        """The photo's camera, estimated from its maps if that is requested, and facts about it for provenance."""
        if not config.estimate_camera or modality.relief is None or photo.photo.metadata.panorama is not None:
            return photo.camera, {}
        return self.estimate(
            modality.relief(modality.split(modality.finish(stack.copy()))),
            photo.photo.rgb,
            camera=photo.camera,
            invariance=invariance,
            config=config,
            device=device,
        )

    def estimate(
        self,
        relief: Float[np.ndarray, "h w"],
        rgb: UInt8[np.ndarray, "H W 3"],
        *,
        camera: Camera,
        invariance: str,
        config: CallConfig,
        device: str,
    ) -> tuple[Camera, dict[str, Any]]:
        """The camera of a photo, and facts for provenance: camera_confidence and, for affine depth, shift.

        Nothing is estimated if camera and shift are known. If depth and normals do not determine one of them, it stays
        assumed, and the facts state this.

        Args:
            relief: depth up to the invariance, of the photo at any size.
            rgb: the photo.
            camera: the photo's camera; an assumed one is replaced.
            invariance: of the depth: "affine", "scale" or "absolute".
            config: names the model of normals.
            device: device of that model.
        """
        if invariance != "affine" and not camera.is_assumed:
            return camera, {}
        from openmarigold.reconstruction.recovery import recover

        height, width = rgb.shape[:2]
        size = processing_size(height, width, processing_resolution=min(ESTIMATION_SIDE, max(height, width)))
        small = np.rint((rgb_to_planes(rgb, size).transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        normals = self._model(config, device)(np.ascontiguousarray(small), seed=config.seed).maps[NORMALS.maps[0].name]
        depth = resize(relief.astype(np.float32, copy=False), size, antialias=True)
        found = recover(
            depth,
            normals,
            invariance="affine" if invariance == "affine" else "scale",
            camera=None if camera.is_assumed else camera.resized(size),
        )
        facts: dict[str, Any] = {"camera_confidence": round(float(found.confidence), 4)}
        if invariance == "affine":
            facts["shift"] = round(float(found.shift), 6)
            facts["shift_source"] = "estimated" if found.is_reliable else "assumed"
        if not camera.is_assumed:
            return camera, facts
        if found.camera.source != "estimated":
            return replace(camera, note=f"not estimated: {found.note}"), facts
        note = f"from depth and normals, field of view +-{found.fov_spread:.1f} degrees"
        return Camera.from_fov((height, width), found.camera.fov, source="estimated", note=note), facts

    def _model(self, config: CallConfig, device: str) -> Predictor:
        from openmarigold.predictor import Predictor

        with self._loading:
            name = str(config.normals_checkpoint)
            if name not in self._models:
                own = "auto" if config.normals_checkpoint is None else device  # the embedded one runs on a CPU
                model = _normals_model(config, local_files_only=self._local_files_only)
                self._models[name] = Predictor.from_config(replace(model, device=own))
            return self._models[name]

    def __reduce__(self) -> tuple[Any, ...]:  # a copy loads the models again
        return partial(CameraEstimator, local_files_only=self._local_files_only), ()


def _normals_model(config: CallConfig, *, local_files_only: bool) -> ModelConfig:
    return ModelConfig(
        checkpoint=config.normals_checkpoint, modality=(NORMALS.name,), local_files_only=local_files_only
    )


@cache  # once, not for each photo
def warn_of_no_relief(title: str) -> None:
    """Logs that a camera is not estimated, because no depth is predicted."""
    _log.warning("estimate_camera has no effect on %s: it needs predicted depth", title)
