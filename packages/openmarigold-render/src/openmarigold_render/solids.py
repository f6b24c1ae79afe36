# SPDX-License-Identifier: Apache-2.0
"""Building blocks of outdoor scenes: many flat surfaces gathered into one mesh, walls with openings, roofs, leaves.

Unlike `primitives`, which makes one shape a call, a `Builder` gathers a house's thousands of quads at little cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from openmarigold_render.scene import Material, Mesh, Vector

_UP = np.array((0.0, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A hole in a wall [m]: along it, and above its foot."""

    left: float
    right: float
    bottom: float
    top: float


@dataclass
class Builder:
    """Gathers flat polygons. Texture coordinates are meters and run on from one to the next along a direction."""

    _polygons: dict[int, list[tuple[np.ndarray, int]]] = field(default_factory=dict)  # by number of corners
    _materials: list[Material] = field(default_factory=list)

    def polygon(self, points: Sequence[Any] | np.ndarray, surface: Material) -> None:
        """A flat convex polygon, counter-clockwise from its outer side; u runs along its first edge."""
        at = np.asarray(points, dtype=np.float64)
        self._polygons.setdefault(len(at), []).append((at, self._place(surface)))

    def box(self, low: Vector, high: Vector, surface: Material, *, top: Material | None = None) -> None:
        """A box along the axes between two corners; `top` covers its top with something else."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        self.polygon(((x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)), surface)
        self.polygon(((x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)), surface)
        self.polygon(((x1, y1, z0), (x0, y1, z0), (x0, y1, z1), (x1, y1, z1)), surface)
        self.polygon(((x0, y1, z0), (x0, y0, z0), (x0, y0, z1), (x0, y1, z1)), surface)
        self.polygon(((x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)), top or surface)
        self.polygon(((x0, y1, z0), (x1, y1, z0), (x1, y0, z0), (x0, y0, z0)), surface)

    def slab(self, corners: Float[np.ndarray, "4 3"], thickness: float, surface: Material, edge: Material) -> None:
        """A plate whose upper side has these corners, counter-clockwise from above."""
        lower = corners - thickness * _UP
        self.polygon(corners, surface)
        self.polygon(lower[::-1], edge)
        for first in range(4):
            second = (first + 1) % 4
            self.polygon((lower[first], lower[second], corners[second], corners[first]), edge)

    def wall(
        self,
        start: Sequence[float] | np.ndarray,
        end: Sequence[float] | np.ndarray,
        height: float,
        openings: Sequence[Opening],
        surface: Material,
        *,
        reveal: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """A wall over a line on the ground with holes in it, and their reveals; its outer side is on the line's right.

        Returns the unit vectors along the wall and out of it.
        """
        foot = np.asarray(start, dtype=np.float64)
        along = np.asarray(end, dtype=np.float64) - foot
        length = float(np.linalg.norm(along))
        along = along / length
        outward = np.cross(along, _UP)

        def at(u: float, v: float, depth: float = 0.0) -> np.ndarray:
            return foot + u * along + v * _UP - depth * outward

        levels = sorted({0.0, height, *(edge for one in openings for edge in (one.bottom, one.top))})
        for low, high in pairwise(levels):
            middle = 0.5 * (low + high)
            holes = sorted((one.left, one.right) for one in openings if one.bottom < middle < one.top)
            position = 0.0
            for left, right in [*holes, (length, length)]:
                if left - position > 1e-6:
                    self.polygon((at(position, low), at(left, low), at(left, high), at(position, high)), surface)
                position = max(position, right)
        for one in openings:
            rim = [(one.left, one.bottom), (one.right, one.bottom), (one.right, one.top), (one.left, one.top)]
            for first in range(4):
                a, b = rim[first], rim[(first + 1) % 4]
                self.polygon((at(*a), at(*a, reveal), at(*b, reveal), at(*b)), surface)
        return along, outward

    def panel(
        self,
        foot: np.ndarray,
        along: np.ndarray,
        outward: np.ndarray,
        opening: Opening,
        depth: tuple[float, float],
        surface: Material,
    ) -> None:
        """A plate in a wall's own coordinates, `depth` from and to behind the wall's face, before it if < 0 [m]."""
        corners = [
            (opening.left, opening.bottom),
            (opening.right, opening.bottom),
            (opening.right, opening.top),
            (opening.left, opening.top),
        ]
        front = [foot + u * along + v * _UP - depth[0] * outward for u, v in corners]
        back = [foot + u * along + v * _UP - depth[1] * outward for u, v in corners]
        self.polygon(front, surface)
        if depth[1] > depth[0]:
            for first in range(4):
                second = (first + 1) % 4
                self.polygon((back[first], back[second], front[second], front[first]), surface)

    def mesh(self, name: str) -> Mesh:
        """All that was gathered; polygons without an area are left out."""
        corners, uvs, places = [], [], []
        for count, gathered in sorted(self._polygons.items()):
            points = np.stack([at for at, _ in gathered])
            normal = np.cross(points[:, 1] - points[:, 0], points[:, -1] - points[:, 0])
            along = points[:, 1] - points[:, 0]
            sound = np.linalg.norm(normal, axis=1) > 1e-10
            points, normal, along = points[sound], normal[sound], along[sound]
            along /= np.linalg.norm(along, axis=1, keepdims=True)
            up = np.cross(normal / np.linalg.norm(normal, axis=1, keepdims=True), along)
            uv = np.stack([np.einsum("pkc,pc->pk", points, axis) for axis in (along, up)], axis=-1)
            fan = np.array([(0, second, second + 1) for second in range(1, count - 1)])
            corners.append(points[:, fan].reshape(-1, 3, 3))
            uvs.append(uv[:, fan].reshape(-1, 3, 2))
            places.append(np.repeat(np.array([place for _, place in gathered])[sound], count - 2))
        vertices = np.concatenate(corners).reshape(-1, 3)
        return Mesh(
            name=name,
            vertices=vertices.astype(np.float32),
            faces=np.arange(len(vertices), dtype=np.int32).reshape(-1, 3),
            uvs=np.concatenate(uvs).astype(np.float32),
            face_materials=np.concatenate(places).astype(np.int32),
            materials=tuple(self._materials),
        )

    def _place(self, material: Material) -> int:
        if material not in self._materials:
            self._materials.append(material)
        return self._materials.index(material)


def facing(points: Sequence[Sequence[float]], direction: Vector) -> np.ndarray:
    """The corners of a flat polygon in the order in which its outer side is toward a direction."""
    at = np.asarray(points, dtype=np.float64)
    normal = np.cross(at[1] - at[0], at[-1] - at[0])
    return at if normal @ np.asarray(direction) > 0 else at[::-1]


def leaves(
    generator: np.random.Generator,
    centers: Float[np.ndarray, "n 3"],
    size: tuple[float, float],
    materials: Sequence[Material],
    *,
    flatness: float = 0.0,
) -> Mesh:
    """One leaf, of four triangles' worth in two, at each point, turned at random; `flatness` 1 lays them level."""
    count = len(centers)
    normal = generator.normal(size=(count, 3)) * (1.0, 1.0, 1.0 - 0.6 * flatness)
    normal[:, 2] += 3.0 * flatness
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    side = np.cross(normal, generator.normal(size=(count, 3)))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(normal, side)
    long = generator.uniform(*size, size=(count, 1))
    tips = np.stack(
        (
            centers - 0.5 * long * other,
            centers + 0.32 * long * side + 0.06 * long * normal,
            centers + 0.5 * long * other,
            centers - 0.32 * long * side + 0.06 * long * normal,
        ),
        axis=1,
    )
    vertices = tips.reshape(-1, 3)
    first = 4 * np.arange(count)[:, None]
    faces = np.concatenate((first + np.array((0, 1, 2)), first + np.array((0, 2, 3))))
    place = generator.integers(len(materials), size=count)
    return Mesh(
        name="leaves",
        vertices=vertices.astype(np.float32),
        faces=faces.astype(np.int32),
        uvs=np.zeros((len(faces), 3, 2), np.float32),
        face_materials=np.concatenate((place, place)).astype(np.int32),
        materials=tuple(materials),
    )
