# SPDX-License-Identifier: Apache-2.0
"""Tiny scenes and a painter without Blender."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openmarigold_render.blender import Quality
from openmarigold_render.maps import Light
from openmarigold_render.primitives import box, quad
from openmarigold_render.rays import Caster, camera_rays
from openmarigold_render.scene import Camera, Instance, Material, Scene, Sky, look_at, place

GRAY = Material(name="gray")


class FlatPainter:
    """Colors each triangle by its normal and its object; needs no Blender."""

    def __init__(self, quality: Quality, folder: Path) -> None:
        self._caster = Caster()

    def load(self, scene: Scene) -> None:
        self._caster = Caster(scene.instances)

    def render(self, camera: Camera, *, seed: int) -> np.ndarray:
        hits = self._caster.cast(camera.position[None], camera_rays(camera, camera.width, camera.height))
        shade = 0.4 + 0.3 * hits.normal @ np.array((0.3, 0.2, 0.9))
        shade *= 0.5 + (hits.instance * 7919 % 101) / 101
        noise = np.random.default_rng(seed).uniform(0.95, 1.05, size=(camera.height, camera.width, 1))
        picture = np.repeat(np.where(hits.hit, shade, 0.2).reshape(camera.height, camera.width, 1), 3, axis=2)
        return (picture * noise).astype(np.float32)

    def render_light(self, camera: Camera, *, seed: int) -> Light:
        """Half of the light is shading of a gray albedo, but for a spot that is brighter than float16 can hold."""
        color = self.render(camera, seed=seed)
        spot = color.copy()
        spot[0, 0] = 1e9
        return Light(color=spot, albedo=np.full_like(color, 0.25), shading=2.0 * color)


def floor(size: float = 20.0) -> Instance:
    """A square floor at z = 0."""
    half = 0.5 * size
    corners = ((-half, -half, 0.0), (half, -half, 0.0), (half, half, 0.0), (-half, half, 0.0))
    return Instance(quad("floor", corners, GRAY), np.eye(4), "floor")


def block(x: float, y: float, size: tuple[float, float, float], *, z: float = 0.0, angle: float = 0.0) -> Instance:
    """A box that stands somewhere."""
    return Instance(box("block", size, GRAY), place(x, y, z, angle), "block")


def scene_of(*instances: Instance) -> Scene:
    """A scene with a sky and no lamps."""
    return Scene(instances=instances, lights=(), sky=Sky(strength=1.0))


def camera_at(
    position: tuple[float, float, float],
    target: tuple[float, float, float],
    *,
    focal_px: float = 90.0,
    roll: float = 0.0,
) -> Camera:
    """A camera of 96 x 72 pixels."""
    return Camera(look_at(position, target, roll=roll), 96, 72, focal_px)
