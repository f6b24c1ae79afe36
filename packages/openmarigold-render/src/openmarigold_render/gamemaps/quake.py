# SPDX-License-Identifier: Apache-2.0
"""Maps (BSP, version 78) and models (MD2) of UFO: Alien Invasion as arrays, in meters.

Both formats descend from Quake II. Triangles are wound counter-clockwise seen from outside, as everywhere here; the
files have it the other way round.

Source: the format notes of Quake II's published tools (bspfile, MD2); version 78 differs in the size of its vertices'
and faces' companions only, which are not read.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from openmarigold_render.core import DataError

UNITS_PER_METER = 32.0
BSP_VERSION = 78
_MD2_VERSION = 8

# Flags of surfaces, those that matter here.
TRANSLUCENT = 0x10 | 0x20
NO_DRAW = 0x80
ALPHA_TEST = 1 << 25

_ENTITIES, _PLANES, _VERTICES, _TEXTURE_INFO, _FACES, _EDGES, _FACE_EDGES = 0, 1, 2, 5, 6, 11, 12
_NUM_LUMPS = 17
_PLANE = np.dtype([("normal", "<f4", 3), ("distance", "<f4"), ("type", "<i4")])
_SURFACE = np.dtype([("vectors", "<f4", (2, 4)), ("flags", "<u4"), ("value", "<u4"), ("texture", "S32")])
_FACE = np.dtype(
    [("plane", "<u2"), ("side", "<i2"), ("first", "<i4"), ("count", "<i2"), ("surface", "<i2"), ("light", "<i4", 2)]
)


@dataclass(frozen=True)
class QuakeMap:
    """The visible triangles of a map, with every floor and every door.

    Attributes:
        vertices: [m].
        texels: texture coordinates of each corner [texels of the original texture], V down.
        surface: of each triangle, an index into `textures` and `flags`.
        textures: names without folder `textures/` and extension, in lower case.
        entities: keys and values of lights, models and the like; positions in them are in the map's own units.
    """

    vertices: Float32[np.ndarray, "n 3"]
    triangles: Int32[np.ndarray, "t 3"]
    texels: Float32[np.ndarray, "t 3 2"]
    surface: Int32[np.ndarray, " t"]
    textures: tuple[str, ...]
    flags: tuple[int, ...]
    entities: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class QuakeModel:
    """The first frame of a model.

    Attributes:
        vertices: [m].
        uv: texture coordinates of each corner, V up.
        skins: names of texture files; a leading dot stands for the model's own folder.
    """

    vertices: Float32[np.ndarray, "n 3"]
    triangles: Int32[np.ndarray, "t 3"]
    uv: Float32[np.ndarray, "t 3 2"]
    skins: tuple[str, ...]


def read_bsp(data: bytes, name: str) -> QuakeMap:
    """The visible surfaces of a map.

    Args:
        name: the file, for messages.

    Raises:
        DataError: it is not a map of this version, it is cut off, or an index points to nothing.
    """
    header = 8 + 8 * _NUM_LUMPS
    if len(data) < header or data[:4] != b"IBSP":
        raise DataError(f"{name} is not a BSP map; it is damaged or of another game, so leave it out")
    version = struct.unpack_from("<i", data, 4)[0]
    if version != BSP_VERSION:
        raise DataError(f"{name} is a BSP map of version {version}; version {BSP_VERSION} is read, so leave it out")
    vertices = _lump(data, name, _VERTICES, np.dtype(("<f4", 3)))
    planes = _lump(data, name, _PLANES, _PLANE)
    surfaces = _lump(data, name, _TEXTURE_INFO, _SURFACE)
    faces = _lump(data, name, _FACES, _FACE)
    edges = _lump(data, name, _EDGES, np.dtype(("<u2", 2))).astype(np.int64)
    face_edges = _lump(data, name, _FACE_EDGES, np.dtype("<i4")).astype(np.int64)
    entities = _read_entities(_lump(data, name, _ENTITIES, np.dtype("u1")).tobytes(), name)
    _check_indices(name, vertices, planes, surfaces, faces, edges, face_edges)

    names = [_text(title).lower() for title in surfaces["texture"]]
    seen = np.array([not _is_invisible(*pair) for pair in zip(names, surfaces["flags"].tolist(), strict=True)], bool)
    faces = faces[seen[faces["surface"]] & (faces["count"] >= 3)] if len(surfaces) else faces
    if not len(faces):
        raise DataError(f"{name} has no visible surface; leave it out")
    corners, owner = _fans(faces["first"].astype(np.int64), faces["count"].astype(np.int64))
    # A negative number: the edge is walked backward, from its second vertex.
    ring = np.where(face_edges >= 0, edges[np.abs(face_edges), 0], edges[np.abs(face_edges), 1])
    triangles = ring[corners]

    normals = planes["normal"][faces["plane"]] * np.where(faces["side"] != 0, -1.0, 1.0)[:, None]
    points = vertices[triangles].astype(np.float64)
    turns = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    reverse = np.einsum("tc,tc->t", turns, normals[owner]) < 0
    triangles[reverse] = triangles[reverse][:, ::-1]

    vectors = surfaces["vectors"][faces["surface"][owner]].astype(np.float64)
    texels = np.einsum("tkc,tac->tka", vertices[triangles], vectors[..., :3]) + vectors[:, None, :, 3]
    used, triangles = np.unique(triangles, return_inverse=True)
    return QuakeMap(
        vertices=(vertices[used] / UNITS_PER_METER).astype(np.float32),
        triangles=triangles.reshape(-1, 3).astype(np.int32),
        texels=texels.astype(np.float32),
        surface=faces["surface"][owner].astype(np.int32),
        textures=tuple(names),
        flags=tuple(surfaces["flags"].tolist()),
        entities=entities,
    )


def read_md2(data: bytes, name: str) -> QuakeModel:
    """The first frame of an MD2 model.

    Raises:
        DataError: it is not an MD2 model, it is cut off, or an index points to nothing.
    """
    if len(data) < 68 or data[:4] != b"IDP2":
        raise DataError(f"{name} is not an MD2 model; leave it out")
    _, version, width, height, _, *counts = struct.unpack_from("<17i", data)
    num_skins, num_vertices, num_uv, num_triangles, _, _, skins_at, uv_at, triangles_at, frames_at, _, _ = counts
    if version != _MD2_VERSION or width <= 0 or height <= 0 or min(num_vertices, num_uv, num_triangles) <= 0:
        raise DataError(f"{name} is an MD2 model of version {version} without vertices or skin size; leave it out")
    skins = _take(data, name, skins_at, num_skins, np.dtype("S64"))
    uv = _take(data, name, uv_at, num_uv, np.dtype(("<i2", 2))) / np.array([width, height], np.float64)
    corners = _take(data, name, triangles_at, num_triangles, np.dtype(("<u2", 6))).astype(np.int64)
    scale, shift = _take(data, name, frames_at, 2, np.dtype(("<f4", 3))).astype(np.float64)
    packed = _take(data, name, frames_at + 40, num_vertices, np.dtype(("u1", 4)))
    if corners[:, :3].max() >= num_vertices or corners[:, 3:].max() >= num_uv:
        raise DataError(f"{name}: a triangle points to a vertex that is not there; the model is damaged, leave it out")
    vertices = (packed[:, :3] * scale + shift) / UNITS_PER_METER
    if not np.isfinite(vertices).all():
        raise DataError(f"{name}: its vertices are not finite; the model is damaged, leave it out")
    uv = np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=-1)
    return QuakeModel(
        vertices=vertices.astype(np.float32),
        triangles=np.ascontiguousarray(corners[:, 2::-1], dtype=np.int32),
        uv=uv[corners[:, :2:-1]].astype(np.float32),
        skins=tuple(_text(skin) for skin in skins),
    )


def vector_of(entity: dict[str, str], key: str, count: int) -> tuple[float, ...] | None:
    """`count` numbers of an entity's value; None if the key is missing or holds something else."""
    words = entity.get(key, "").split()
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        return None
    return values if len(values) == count and all(np.isfinite(values)) else None


def _lump(data: bytes, name: str, number: int, dtype: np.dtype) -> np.ndarray:
    offset, length = struct.unpack_from("<ii", data, 8 + 8 * number)
    if length < 0 or length % dtype.itemsize:
        raise DataError(f"{name}: its part {number} is not a whole number of records; the map is damaged, leave it out")
    return _take(data, name, offset, length // dtype.itemsize, dtype)


def _take(data: bytes, name: str, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
    if offset < 0 or count < 0 or offset + count * dtype.itemsize > len(data):
        raise DataError(f"{name} ends too early ({len(data)} bytes); it is cut off, so get it again or leave it out")
    return np.frombuffer(data, dtype, count, offset)


def _check_indices(
    name: str,
    vertices: np.ndarray,
    planes: np.ndarray,
    surfaces: np.ndarray,
    faces: np.ndarray,
    edges: np.ndarray,
    face_edges: np.ndarray,
) -> None:
    sound = (
        np.isfinite(vertices).all()
        and (faces["first"] >= 0).all()
        and (faces["count"] >= 0).all()
        and (faces["first"].astype(np.int64) + faces["count"] <= len(face_edges)).all()
        and (faces["surface"] >= 0).all()
        and (faces["surface"] < len(surfaces)).all()
        and (faces["plane"] < len(planes)).all()
        and (np.abs(face_edges) < len(edges)).all()
        and (edges < len(vertices)).all()
    )
    if not sound:
        raise DataError(
            f"{name}: a face points to an edge or vertex that is not there; the map is damaged, leave it out"
        )


def _fans(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Faces are convex. Rows of three places in the list of face edges, and the face that each row belongs to.
    owner = np.repeat(np.arange(len(first)), count - 2)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(count - 2) - (count - 2), count - 2)
    start = first[owner]
    return np.stack([start, start + step + 1, start + step + 2], axis=-1), owner


def _is_invisible(texture: str, flags: int) -> bool:
    # tex_common: clips, hints, origins and caulk that only the map editor shows.
    return bool(flags & NO_DRAW) or "nodraw" in texture or texture.startswith("tex_common/") or "invis" in texture


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("latin-1")


def _read_entities(data: bytes, name: str) -> tuple[dict[str, str], ...]:
    text = data.split(b"\0")[0].decode("latin-1")
    if text.count("{") != text.count("}"):
        raise DataError(f"{name}: its list of entities is cut off; the map is damaged, leave it out")
    return tuple(dict(re.findall(r'"([^"]*)"\s+"([^"]*)"', block)) for block in re.findall(r"\{([^{}]*)\}", text))
