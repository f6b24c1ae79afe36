# SPDX-License-Identifier: Apache-2.0
"""Casting rays on a scene's triangles with Embree (package embreex): for placing things and for depth.

Depth is cast here, through the pixels' centers, and not taken from the path tracer: one ray a pixel without a filter
has hard edges and is exact to float32, while a path tracer spreads its rays over each pixel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from openmarigold_render.errors import MissingPackageError
from openmarigold_render.scene import Camera, Instance, transform_points

MAX_CUTOUT_LAYERS = 24
_BEYOND = 1e-4


@dataclass(frozen=True, eq=False)
class Hits:
    """What rays met first; rows of rays that met nothing have `hit` False and distance infinite."""

    hit: Bool[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    """In lengths of the ray's direction: [m] if that is a unit vector, planar depth if its z in the camera is 1."""
    instance: Int[np.ndarray, " n"]
    """Place in the list of instances, -1 without a hit."""
    face: Int[np.ndarray, " n"]
    normal: Float[np.ndarray, "n 3"]
    """Unit normal of the triangle, on its outer side."""
    place: Float[np.ndarray, "n 2"]
    """Weights of the triangle's second and third corner."""


class Caster:
    """Casts rays on instances. Things can be added; nothing can be taken away."""

    def __init__(self, instances: Sequence[Instance] = ()) -> None:
        self._instances: list[Instance] = []
        self._triangles: list[tuple[np.ndarray, np.ndarray]] = []
        self._with_cutouts = False
        self._built: Any = None
        self.add(instances)

    def add(self, instances: Sequence[Instance]) -> None:
        """Appends instances; the next cast builds the acceleration structure anew."""
        for instance in instances:
            vertices = transform_points(instance.transform, instance.mesh.vertices.astype(np.float64))
            faces = np.ascontiguousarray(instance.mesh.faces, dtype=np.int32)
            self._triangles.append((vertices.astype(np.float32), faces))
            self._instances.append(instance)
            self._with_cutouts |= any(material.cutout for material in instance.mesh.materials)
        self._built = None

    def _embree(self) -> Any:
        if self._built is None:
            scene, triangle_mesh = _new_embree_scene()
            for vertices, faces in self._triangles:
                triangle_mesh(scene, vertices, faces)
            self._built = scene
        return self._built

    def cast(self, origins: Float[np.ndarray, "#n 3"], directions: Float[np.ndarray, "#n 3"]) -> Hits:
        """First surfaces along rays; a ray continues through the holes of a texture.

        Raises:
            MissingPackageError: without embreex.
        """
        origins, directions = np.broadcast_arrays(origins, directions)
        origins = np.array(origins, dtype=np.float32)
        directions = np.ascontiguousarray(directions, dtype=np.float32)
        count = len(origins)
        distance = np.full(count, np.inf, dtype=np.float64)
        instance = np.full(count, -1, dtype=np.int64)
        face = np.full(count, -1, dtype=np.int64)
        normal = np.zeros((count, 3))
        place = np.zeros((count, 2))
        if not self._instances or not count:
            return Hits(instance >= 0, distance, instance, face, normal, place)
        embree = self._embree()
        traveled = np.zeros(count)
        rays = np.arange(count)
        for layer in itertools.count():
            found = embree.run(origins[rays], directions[rays], query="INTERSECT", output=True)
            met = found["geomID"] >= 0
            hole = np.zeros(len(rays), dtype=bool)
            if self._with_cutouts and layer < MAX_CUTOUT_LAYERS:
                hole[met] = self._holes(found["geomID"][met], found["primID"][met], found["u"][met], found["v"][met])
            ends = met & ~hole
            done = rays[ends]
            distance[done] = traveled[done] + found["tfar"][ends]
            instance[done] = found["geomID"][ends]
            face[done] = found["primID"][ends]
            place[done] = np.stack((found["u"][ends], found["v"][ends]), axis=1)
            outward = found["Ng"][ends].astype(np.float64)
            normal[done] = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-30)
            if not hole.any():
                break
            step = found["tfar"][hole] + _BEYOND / np.linalg.norm(directions[rays[hole]], axis=1)
            rays = rays[hole]
            traveled[rays] += step
            origins[rays] += directions[rays] * step[:, None]
        return Hits(instance >= 0, distance, instance, face, normal, place)

    def _holes(
        self,
        instance: Int[np.ndarray, " n"],
        face: Int[np.ndarray, " n"],
        u: Float[np.ndarray, " n"],
        v: Float[np.ndarray, " n"],
    ) -> Bool[np.ndarray, " n"]:
        holes = np.zeros(len(instance), dtype=bool)
        for number in np.unique(instance):
            mesh = self._instances[number].mesh
            if mesh.uvs is None:
                continue
            of_instance = np.flatnonzero(instance == number)
            place = mesh.face_materials[face[of_instance]]
            for material in np.unique(place):
                surface = mesh.materials[material]
                if not surface.cutout or surface.texture is None:
                    continue
                here = of_instance[place == material]
                corners = mesh.uvs[face[here]]
                weights = np.stack((1 - u[here] - v[here], u[here], v[here]), axis=1)
                coordinates = np.einsum("nc,nck->nk", weights, corners) / surface.texture_size
                holes[here] = ~_is_solid(surface.texture, coordinates)
        return holes


def camera_rays(camera: Camera, columns: int, rows: int) -> Float[np.ndarray, "n 3"]:
    """Directions in the world through the centers of a grid over the picture, row by row; their z in the camera is 1.

    With the picture's own width and height these are the pixels' centers.
    """
    x = ((np.arange(columns) + 0.5) / columns - 0.5) * camera.width / camera.focal_px
    y = ((np.arange(rows) + 0.5) / rows - 0.5) * camera.height / camera.focal_px
    grid = np.stack((*np.meshgrid(x, y), np.ones((rows, columns))), axis=-1).reshape(-1, 3)
    return grid @ camera.transform[:3, :3].T


def picture_hits(caster: Caster, camera: Camera) -> Hits:
    """What the rays through the centers of the pixels meet, row by row."""
    return caster.cast(camera.position[None], camera_rays(camera, camera.width, camera.height))


def depth_picture(hits: Hits, camera: Camera) -> Float[np.ndarray, "h w"]:
    """Planar depth [m] of such hits, 0 where no surface is."""
    return np.where(hits.hit, hits.distance, 0.0).astype(np.float32).reshape(camera.height, camera.width)


def cast_picture(caster: Caster, camera: Camera) -> tuple[Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Planar depth [m], 0 where no surface is, and object ids, 0 for none, through the centers of the pixels."""
    hits = picture_hits(caster, camera)
    depth = depth_picture(hits, camera)
    return depth, (hits.instance + 1).astype(np.int32).reshape(depth.shape)


@lru_cache(maxsize=64)
def _solid_texels(path: Path) -> Bool[np.ndarray, "h w"]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"))[..., 3] >= 128


def _is_solid(path: Path, uv: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    solid = _solid_texels(path)
    height, width = solid.shape
    column = np.floor(uv[:, 0] * width).astype(np.int64) % width
    row = np.floor((1.0 - uv[:, 1]) * height).astype(np.int64) % height
    return solid[row, column]


def require_embree() -> None:
    """Checks that embreex is there.

    Raises:
        MissingPackageError: it is not.
    """
    _new_embree_scene()


def _new_embree_scene() -> tuple[Any, Any]:
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise MissingPackageError("embreex") from error
    return EmbreeScene(), TriangleMesh
