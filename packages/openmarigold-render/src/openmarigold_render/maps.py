# SPDX-License-Identifier: Apache-2.0
"""The maps of a picture besides its colors: depth and normals from cast rays, intrinsic images from Cycles' passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Int

from openmarigold_render.core import InvalidValueError, MapEncoding
from openmarigold_render.rays import Hits, camera_rays
from openmarigold_render.scene import SMOOTH_ANGLE, Camera, Instance, Mesh, split_at_edges

MapName = Literal["depth", "normals", "albedo", "shading", "residual"]
DEPTH = MapEncoding(kind="log", near=0.05, far=400.0, levels=16383)  # one step is 0.055 %
_HALF = MapEncoding(kind="float16")
ENCODINGS: dict[MapName, MapEncoding] = {
    "depth": DEPTH,
    "normals": _HALF,
    "albedo": _HALF,
    "shading": _HALF,
    "residual": _HALF,
}
"""How each map is stored, in their order. All but depth are `[h w 3]`; a residual may be negative."""
INTRINSIC: tuple[MapName, ...] = ("albedo", "shading", "residual")
DEFAULT: tuple[MapName, ...] = ("depth", "normals")

_BRIGHTEST = 3e4  # a path may meet a lamp's very center; float16 ends at 65504
_SHORTEST = 1e-20


def check_maps(names: Sequence[str]) -> tuple[MapName, ...]:
    """The maps in their order.

    Raises:
        InvalidValueError: an unknown one, or depth is not among them.
    """
    unknown = [name for name in names if name not in ENCODINGS]
    if unknown or "depth" not in names:
        what = f"{unknown[0]!r} is not known" if unknown else "depth is missing"
        raise InvalidValueError(f"maps={','.join(names)}: {what}; give depth and any of {', '.join(get_args(MapName))}")
    return tuple(name for name in ENCODINGS if name in names)


@dataclass(frozen=True, kw_only=True)
class Light:
    """A picture in linear light, and how it splits: color = albedo * shading + residual."""

    color: Float[np.ndarray, "h w 3"]
    albedo: Float[np.ndarray, "h w 3"]
    """Share of light that surfaces scatter, less what their gloss sends back, [0, 1]; 0 for metal, glass and sky."""
    shading: Float[np.ndarray, "h w 3"]
    """Light that diffuse surfaces would send on if they were white, from 0 up."""

    def maps(self) -> dict[MapName, Float[np.ndarray, "h w 3"]]:
        """Albedo, shading and residual; what is brighter than they can hold is cut."""
        albedo = np.clip(self.albedo, 0.0, 1.0)
        shading = np.clip(self.shading, 0.0, _BRIGHTEST)
        residual = np.clip(self.color, 0.0, _BRIGHTEST) - albedo * shading
        return {
            name: part.astype(np.float32) for name, part in zip(INTRINSIC, (albedo, shading, residual), strict=True)
        }


def normals_picture(instances: Sequence[Instance], hits: Hits, camera: Camera) -> Float[np.ndarray, "h w 3"]:
    """Unit normals at the centers of the pixels, x right, y up, z backward; (0, 0, 0) where no surface is.

    They are those that shade the picture, without its relief (bump maps): the triangle's, and on smooth meshes the one
    that is interpolated from its corners. Both are turned to the camera's side; an interpolated one that still looks
    away from the camera, as some do at silhouettes, gives way to the triangle's.
    """
    directions = camera_rays(camera, camera.width, camera.height)
    normals = np.where(hits.hit[:, None], hits.normal, 0.0)
    normals *= np.where((normals * directions).sum(axis=1) > 0, -1.0, 1.0)[:, None]
    for number in np.unique(hits.instance[hits.hit]).tolist():
        instance = instances[number]
        if not instance.mesh.smooth:
            continue
        here = np.flatnonzero(hits.instance == number)
        smooth = _interpolated(instance, hits.face[here], hits.place[here])
        smooth *= np.where((smooth * normals[here]).sum(axis=1) < 0, -1.0, 1.0)[:, None]
        sound = ((smooth * directions[here]).sum(axis=1) < 0) & (np.square(smooth).sum(axis=1) > 0.5)
        normals[here[sound]] = smooth[sound]
    in_camera = normals @ camera.transform[:3, :3] * (1.0, -1.0, -1.0)
    return in_camera.astype(np.float32).reshape(camera.height, camera.width, 3)


def _interpolated(
    instance: Instance, faces: Int[np.ndarray, " n"], place: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 3"]:
    """Unit normals in the world at places on a smooth mesh; 0 where they cancel out."""
    mesh = _CORNERS.get(instance.mesh)
    if mesh is None:
        mesh = _CORNERS[instance.mesh] = _corner_normals(instance.mesh)
    weights = np.stack((1.0 - place.sum(axis=1), place[:, 0], place[:, 1]), axis=1)
    normals = np.einsum("nc,nck->nk", weights, mesh[faces])
    return _unit(normals @ np.linalg.inv(instance.transform[:3, :3]))


_CORNERS: WeakKeyDictionary[Mesh, Float[np.ndarray, "m 3 3"]] = WeakKeyDictionary()


def _corner_normals(mesh: Mesh) -> Float[np.ndarray, "m 3 3"]:
    """Unit normals at the corners of each face: means over the faces that meet there, weighted by their angles."""
    mesh = split_at_edges(mesh, SMOOTH_ANGLE)
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    flat = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    ahead, back = (_unit(np.roll(corners, turn, axis=1) - corners) for turn in (-1, 1))
    angles = np.arccos(np.clip((ahead * back).sum(axis=-1), -1.0, 1.0))
    sums = np.zeros((len(mesh.vertices), 3))
    np.add.at(sums, mesh.faces.ravel(), (flat[:, None] * angles[..., None]).reshape(-1, 3))
    return _unit(sums)[mesh.faces]


def _unit(vectors: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SHORTEST)
