# SPDX-License-Identifier: Apache-2.0
"""Procedural shapes as meshes, with UVs in meters: what furniture and rooms are built of.

Solids stand on z = 0 with the center of their footprint at the origin, and u runs along their longest horizontal side,
so that grain follows a board.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from openmarigold_render.scene import Material, Mesh, Real, Vector


def quad(
    name: str,
    corners: Sequence[Sequence[Real]] | Float[np.ndarray, "4 3"],
    material: Material,
    *,
    uv: Sequence[tuple[Real, Real]] | None = None,
) -> Mesh:
    """A flat four-sided surface, its corners counter-clockwise from its outer side; u runs along its first edge.

    `uv` gives the corners' texture coordinates; otherwise they are meters.
    """
    points = np.asarray(corners, dtype=np.float64)
    if uv is None:
        along = points[1] - points[0]
        along /= np.linalg.norm(along)
        normal = np.cross(points[1] - points[0], points[3] - points[0])
        up = np.cross(normal / np.linalg.norm(normal), along)
        coordinates = np.stack(((points - points[0]) @ along, (points - points[0]) @ up), axis=1)
    else:
        coordinates = np.asarray(uv, dtype=np.float64)
    faces = np.array(((0, 1, 2), (0, 2, 3)))
    return _mesh(name, points, faces, coordinates[faces], material)


def box(name: str, size: Vector, material: Material, *, bevel: Real = 0.0, faces: Sequence[Material] = ()) -> Mesh:
    """A box, its edges cut off by `bevel` [m].

    `faces` names other materials for the sides -X, +X, -Y, +Y, bottom and top, their UVs then from 0 to 1.
    """
    half = 0.5 * np.asarray(size, dtype=np.float64)
    cut = min(bevel, 0.45 * float(half.min()))
    labeled = bool(faces)
    materials = tuple(faces) if labeled else (material,)
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
    # Each corner of the box becomes three vertices, one on each of the sides that meet there.
    points = np.empty((3, 8, 3))
    for axis in range(3):
        points[axis] = signs * (half - cut)
        points[axis, :, axis] = signs[:, axis] * half[axis]
    corner = {tuple(sign): number for number, sign in enumerate(signs.astype(int).tolist())}
    triangles: list[tuple[int, int, int]] = []
    places: list[int] = []

    def add(polygon: list[int], outward: np.ndarray, place: int) -> None:
        at = points.reshape(-1, 3)
        normal = np.cross(at[polygon[1]] - at[polygon[0]], at[polygon[2]] - at[polygon[0]])
        ordered = polygon if normal @ outward > 0 else polygon[::-1]
        for second in range(1, len(ordered) - 1):
            triangles.append((ordered[0], ordered[second], ordered[second + 1]))
            places.append(place)

    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        for side, sign in enumerate((-1, 1)):
            ring = []
            for first, second in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                key = [0, 0, 0]
                key[axis], key[others[0]], key[others[1]] = sign, first, second
                ring.append(8 * axis + corner[tuple(key)])
            add(ring, sign * np.eye(3)[axis], 2 * axis + side if labeled else 0)
    if cut > 0:
        for axis in range(3):  # the edges along this axis
            one, two = [other for other in range(3) if other != axis]
            for first in (-1, 1):
                for second in (-1, 1):
                    low, high = [0, 0, 0], [0, 0, 0]
                    low[axis], high[axis] = -1, 1
                    low[one] = high[one] = first
                    low[two] = high[two] = second
                    a, b = corner[tuple(low)], corner[tuple(high)]
                    outward = first * np.eye(3)[one] + second * np.eye(3)[two]
                    add([8 * one + a, 8 * one + b, 8 * two + b, 8 * two + a], outward, 2 * one if labeled else 0)
        for number, sign in enumerate(signs):
            add([number, 8 + number, 16 + number], sign, 4 if labeled else 0)
    vertices = points.reshape(-1, 3) + np.array((0.0, 0.0, half[2]))
    corners = np.asarray(triangles)
    uvs = _box_uvs(vertices[corners], half, labeled=labeled)
    mesh = _mesh(name, vertices, corners, uvs, materials[0])
    return Mesh(
        name=name,
        vertices=mesh.vertices,
        faces=mesh.faces,
        uvs=mesh.uvs,
        face_materials=np.asarray(places, dtype=np.int32),
        materials=materials,
    )


def lathe(
    name: str,
    profile: Sequence[tuple[Real, Real]],
    material: Material,
    *,
    segments: int = 28,
    squash: Real = 1.0,
) -> Mesh:
    """A surface of revolution about Z from (radius, height) pairs [m] that run up the outside (and down the inside).

    `squash` scales its y. A sharp edge is a pair given twice.
    """
    outline = np.asarray(profile, dtype=np.float64)
    angles = np.linspace(0.0, 2.0 * math.pi, segments + 1)
    ring = np.stack((np.cos(angles), squash * np.sin(angles)), axis=1)
    points = np.empty((len(outline), segments + 1, 3))
    points[..., :2] = outline[:, None, :1] * ring[None]
    points[..., 2] = outline[:, None, 1]
    steps = np.hypot(*np.diff(outline, axis=0).T)
    length = np.concatenate(((0.0,), np.cumsum(steps)))
    radius = max(float(outline[:, 0].max()), 1e-6)
    coordinates = np.stack(np.broadcast_arrays(angles[None] * radius, length[:, None]), axis=-1)
    return _sheet(name, points, coordinates, material, smooth=True)


def sheet(
    name: str,
    points: Float[np.ndarray, "rows columns 3"],
    material: Material,
    *,
    uv_scale: Real | None = None,
    smooth: bool = True,
) -> Mesh:
    """A grid of points as a surface; its outer side is where columns run right and rows run up.

    UVs are meters along the first row and column, or from 0 to `uv_scale`.
    """
    rows, columns = points.shape[:2]
    if uv_scale is None:
        u = np.concatenate(((0.0,), np.cumsum(np.linalg.norm(np.diff(points[0], axis=0), axis=1))))
        v = np.concatenate(((0.0,), np.cumsum(np.linalg.norm(np.diff(points[:, 0], axis=0), axis=1))))
    else:
        u, v = np.linspace(0.0, uv_scale, columns), np.linspace(0.0, uv_scale, rows)
    return _sheet(name, points, np.stack(np.meshgrid(u, v), axis=-1), material, smooth=smooth)


def tube(
    name: str,
    path: Sequence[Vector] | Float[np.ndarray, "n 3"],
    radius: Real | Sequence[Real],
    material: Material,
    *,
    segments: int = 10,
) -> Mesh:
    """A round bar along a path [m], closed at its ends; one radius, or one for each point."""
    line = np.asarray(path, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(line))
    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    side = np.cross(tangent[0], (0.0, 0.0, 1.0) if abs(tangent[0][2]) < 0.9 else (1.0, 0.0, 0.0))
    sides = []
    for direction in tangent:  # carried along without turning about the path
        side = side - (side @ direction) * direction
        side /= np.linalg.norm(side)
        sides.append(side)
    first = np.asarray(sides)
    second = np.cross(tangent, first)
    angles = np.linspace(0.0, 2.0 * math.pi, segments + 1)
    around = np.cos(angles)[None, :, None] * first[:, None] + np.sin(angles)[None, :, None] * second[:, None]
    points = line[:, None] + radii[:, None, None] * around
    capped = np.concatenate(
        (np.broadcast_to(line[:1, None], points[:1].shape), points, np.broadcast_to(line[-1:, None], points[:1].shape))
    )
    steps = np.linalg.norm(np.diff(capped[:, 0], axis=0), axis=1)
    length = np.concatenate(((0.0,), np.cumsum(steps)))
    coordinates = np.stack(np.broadcast_arrays(length[:, None], angles[None] * radii.max()), axis=-1)
    return _sheet(name, capped, coordinates, material, smooth=True)


def cushion(name: str, size: Vector, material: Material, *, softness: Real = 0.35, segments: int = 12) -> Mesh:
    """A box with round edges and slightly bulging sides; `softness` 0 is a box, 1 an ellipsoid."""
    half = 0.5 * np.asarray(size, dtype=np.float64)
    exponent = max(0.08, softness)
    latitude = np.linspace(-0.5 * math.pi, 0.5 * math.pi, segments + 1)
    longitude = np.linspace(-math.pi, math.pi, 2 * segments + 1)

    def power(values: np.ndarray) -> np.ndarray:
        return np.sign(values) * np.abs(values) ** exponent

    ring = np.stack((power(np.cos(longitude)), power(np.sin(longitude))), axis=-1)
    points = np.empty((len(latitude), len(longitude), 3))
    points[..., 0] = half[0] * power(np.cos(latitude))[:, None] * ring[None, :, 0]
    points[..., 1] = half[1] * power(np.cos(latitude))[:, None] * ring[None, :, 1]
    points[..., 2] = half[2] * (1.0 + power(np.sin(latitude))[:, None])
    u = np.broadcast_to(longitude / math.pi * (half[0] + half[1]), points.shape[:2])
    v = np.broadcast_to(latitude[:, None] / math.pi * 2.0 * (half[2] + half[1]), points.shape[:2])
    return _sheet(name, points, np.stack((u, v), axis=-1), material, smooth=True)


def cylinder(
    name: str, radius: Real, height: Real, material: Material, *, segments: int = 28, top: Real | None = None
) -> Mesh:
    """A closed cylinder, or a frustum with radius `top` above [m]."""
    upper = radius if top is None else top
    return lathe(
        name,
        ((0.0, 0.0), (radius, 0.0), (radius, 0.0), (upper, height), (upper, height), (0.0, height)),
        material,
        segments=segments,
    )


def _sheet(name: str, points: np.ndarray, coordinates: np.ndarray, material: Material, *, smooth: bool) -> Mesh:
    rows, columns = points.shape[:2]
    at = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = at[:-1, :-1].ravel(), at[:-1, 1:].ravel(), at[1:, 1:].ravel(), at[1:, :-1].ravel()
    faces = np.concatenate((np.stack((a, b, c), axis=1), np.stack((a, c, d), axis=1)))
    flat = points.reshape(-1, 3)
    area = np.linalg.norm(
        np.cross(flat[faces[:, 1]] - flat[faces[:, 0]], flat[faces[:, 2]] - flat[faces[:, 0]]), axis=1
    )
    faces = faces[area > 1e-12]
    uvs = coordinates.reshape(-1, 2)[faces]
    # Points that coincide (the seam, the poles, sharp edges) become one vertex, for shading across the seam.
    rounded = np.round(flat, 7)
    unique, place = np.unique(rounded, axis=0, return_inverse=True)
    return _mesh(name, unique, place.reshape(-1)[faces], uvs, material, smooth=smooth)


def _box_uvs(
    corners: Float[np.ndarray, "m 3 3"], half: Float[np.ndarray, " 3"], *, labeled: bool
) -> Float[np.ndarray, "m 3 2"]:
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axis = np.argmax(np.abs(normal), axis=1)
    low = np.array((-half[0], -half[1], 0.0))
    at = corners - low
    uvs = np.empty((len(corners), 3, 2))
    size = 2.0 * half
    for number in range(3):
        here = axis == number
        across, up = ((1, 2), (0, 2), (0, 1))[number]
        chosen = at[here]
        if labeled:
            u, v = chosen[..., across] / size[across], chosen[..., up] / size[up]
            positive = normal[here, number] > 0
            mirrored = ~positive if number == 0 else positive if number == 1 else np.zeros_like(positive)
            uvs[here] = np.stack((np.where(mirrored[:, None], 1.0 - u, u), v), axis=-1)
        elif size[across] >= size[up]:
            uvs[here] = np.stack((chosen[..., across], chosen[..., up]), axis=-1)
        else:
            uvs[here] = np.stack((chosen[..., up], chosen[..., across]), axis=-1)
    return uvs


def _mesh(
    name: str,
    vertices: np.ndarray,
    faces: Int[np.ndarray, "m 3"],
    uvs: Float[np.ndarray, "m 3 2"],
    material: Material,
    *,
    smooth: bool = False,
) -> Mesh:
    return Mesh(
        name=name,
        vertices=vertices.astype(np.float32),
        faces=faces.astype(np.int32),
        uvs=uvs.astype(np.float32),
        face_materials=np.zeros(len(faces), dtype=np.int32),
        materials=(material,),
        smooth=smooth,
    )
