# SPDX-License-Identifier: Apache-2.0
"""What a scene is: meshes with materials, their instances, lights, sky and cameras, as frozen NumPy data.

Meters, Z up, right-handed; angles in radians; colors linear RGB. Furniture and objects stand with the center of their
footprint at the origin, their lowest point at z = 0 and their front toward -Y. Cameras look along their own +Z, with
+X to the right and +Y down, so that planar depth is their z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

Real = float | int
Color = tuple[Real, Real, Real]
Vector = tuple[Real, Real, Real]

SMOOTH_ANGLE = 0.7
"""Edges of smooth meshes that are sharper stay sharp [rad]."""

PatternKind = Literal["wood", "planks", "tiles", "bricks", "fabric", "carpet", "stone", "plaster", "stripes", "checks"]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A procedural texture in place of an image; its colors replace the material's base color."""

    kind: PatternKind
    colors: tuple[Color, ...]
    """Two colors or more: ground and figure; tiles and bricks take the first for the joints."""
    scale: float
    """Size of the figure [m]: length of a plank, edge of a tile, width of a stripe, grain of the noise."""
    contrast: float = 1.0
    """Contrast of the figure, [0, 1]."""
    seed: int = 0
    """Moves the figure."""
    relief: float = 0.0
    """Height of the figure as shading alone, [0, 1]; the geometry stays flat."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """One surface. Where there is a texture or a pattern, `base_color` is not used."""

    name: str
    base_color: Color = (0.6, 0.6, 0.6)
    texture: Path | None = None
    """Image file in sRGB; with `cutout`, its alpha channel says where the surface is."""
    cutout: bool = False
    """The surface ends where the texture's alpha is below 0.5: leaves, fences, grids."""
    texture_size: float = 1.0
    """Texture coordinates are divided by it: the image's edge [m] where they are meters."""
    pattern: Pattern | None = None
    texture_gain: Color = (1.0, 1.0, 1.0)
    """The texture's colors are multiplied by it."""
    saturation: float = 1.0
    """Saturation of the texture, as a factor."""
    roughness: float = 0.6
    metallic: float = 0.0
    transmission: float = 0.0
    """Glass: 1 lets the light through, bent by the index of refraction. Its depth is that of its surface."""
    emission: float = 0.0
    """Light of the surface itself, times its color [W/m²/sr]: screens, lamp shades."""
    tinted: bool = False
    """Takes the tint of the instance."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with a material each. Clear panes have no triangles: what is behind them has the depth.

    Triangles are wound counter-clockwise seen from outside. Meshes are compared and cached by identity.
    """

    name: str
    vertices: Float[np.ndarray, "n 3"]
    """float32 [m]"""
    faces: Int[np.ndarray, "m 3"]
    """int32, rows of `vertices`"""
    uvs: Float[np.ndarray, "m 3 2"] | None
    """float32, for each corner of each face; v upward. Procedural shapes have meters, imported ones texture units."""
    face_materials: Int[np.ndarray, " m"]
    """int32, places in `materials`"""
    materials: tuple[Material, ...]
    smooth: bool = False
    """Shaded with normals interpolated across edges of less than 40 degrees."""
    source: str | None = None
    """Name of the asset it was read from; None: procedural."""

    @property
    def bounds(self) -> Float[np.ndarray, "2 3"]:
        """Smallest and largest coordinates [m]."""
        return np.stack((self.vertices.min(axis=0), self.vertices.max(axis=0)))

    @property
    def size(self) -> Float[np.ndarray, " 3"]:
        """Width, depth and height [m]."""
        low, high = self.bounds
        return high - low


@dataclass(frozen=True, kw_only=True)
class Tint:
    """Change of color of one instance's tinted materials."""

    hue: float = 0.0
    """Turn of the hue, [-0.5, 0.5], 1 = the whole circle."""
    saturation: float = 1.0
    value: float = 1.0


@dataclass(frozen=True, eq=False)
class Instance:
    """A mesh in its place. Its object id is its place in `Scene.instances`, from 1 on."""

    mesh: Mesh
    transform: Float[np.ndarray, "4 4"]
    """float64, mesh to world: a turn, a shift and, at most, a scale along the axes"""
    name: str
    tint: Tint | None = None


@dataclass(frozen=True, kw_only=True)
class Light:
    """A light that no camera ray sees; what shines visibly is a surface with emission."""

    kind: Literal["point", "area", "sun"]
    position: Vector = (0.0, 0.0, 0.0)
    direction: Vector = (0.0, 0.0, -1.0)
    """Where an area light faces and where sunlight goes."""
    power: float
    """[W]; sun: [W/m²]"""
    color: Color = (1.0, 1.0, 1.0)
    size: tuple[float, float] = (0.1, 0.1)
    """Point: radius [m] first. Area: width and height [m]. Sun: angular diameter [rad] first."""


@dataclass(frozen=True, kw_only=True)
class Sky:
    """Color of whatever a ray meets beyond all surfaces. Its depth is invalid."""

    zenith: Color = (0.25, 0.45, 0.85)
    horizon: Color = (0.75, 0.82, 0.9)
    strength: float = 1.0
    clouds: float = 0.0
    """Share of the sky under cloud, [0, 1]."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with square pixels and its principal point in the middle of the picture."""

    transform: Float[np.ndarray, "4 4"]
    """float64, camera to world: a turn and a shift; the camera looks along its +Z, +X right, +Y down"""
    width: int
    height: int
    focal_px: float

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """fx, fy, cx, cy [px], the first pixel's center at 0.5."""
        return np.array(((self.focal_px, 0.0, self.width / 2), (0.0, self.focal_px, self.height / 2), (0.0, 0.0, 1.0)))

    @property
    def position(self) -> Float[np.ndarray, " 3"]:
        return self.transform[:3, 3]

    @property
    def direction(self) -> Float[np.ndarray, " 3"]:
        """Unit vector of the optical axis in the world."""
        return self.transform[:3, 2]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """Everything but the cameras."""

    instances: tuple[Instance, ...]
    lights: tuple[Light, ...]
    sky: Sky

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the assets in it, sorted."""
        return tuple(sorted({one.mesh.source for one in self.instances if one.mesh.source is not None}))


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Format and range of the cameras of a run."""

    width: int
    height: int
    fov: tuple[float, float] = (math.radians(45.0), math.radians(85.0))
    """Smallest and largest horizontal field of view [rad]."""

    def focal_px(self, fov: float) -> float:
        """Focal length [px] for a horizontal field of view [rad]."""
        return 0.5 * self.width / math.tan(0.5 * fov)


@dataclass(frozen=True, kw_only=True)
class ViewRules:
    """Which views of a scene are worth rendering, measured by casting rays (`cameras.rejection`)."""

    min_hits: float
    """Share of rays that meet a surface."""
    min_depth: float
    """Nearest surface [m]."""
    median_depth: tuple[float, float]
    """Range of the median [m]."""
    min_log_spread: float
    """Standard deviation of log depth."""
    max_plane: float
    """Largest share of rays on one plane."""
    min_planes: int
    """Number of different planes."""
    near: tuple[float, float]
    """A depth [m], and the largest share of rays that may be nearer."""
    min_distance: float
    """To another accepted view that looks the same way [m]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """A scene with what its sampler knows about good views of it."""

    kind: str
    """rooms, tabletops, streets or thin"""
    scene: Scene
    propose: Callable[[np.random.Generator, Lens], Camera | None]
    """A camera worth testing; None where this try found no place for one."""
    rules: ViewRules
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the sampler chose, for the sample's record: JSON values."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Item:
    """A piece that a catalog offers."""

    name: str
    group: str
    size: Vector
    """Width (x), depth (y) and height (z) [m]."""
    load: Callable[[], Mesh]
    """The mesh, of this size; the same object at each call. Raises `DataError` where the asset is broken."""
    elevation: float = 0.0
    """Height of the lowest point above the floor at which it usually hangs [m]."""
    lamp_height: float | None = None
    """Where it shines, above its lowest point [m]; None: no lamp."""


# What samplers ask a catalog for.
GROUPS: Mapping[str, str] = {
    "table": "dining tables, desks, coffee tables, counters: flat tops at 0.3 to 1.1 m",
    "chair": "chairs and stools",
    "seat": "sofas and armchairs",
    "bed": "beds",
    "storage": "cabinets, shelves, wardrobes, drawers: against a wall",
    "appliance": "kitchen and bath: sinks, ovens, refrigerators, tubs, toilets",
    "decor": "whatever else stands on a floor: plants, floor lamps, instruments, boxes",
    "wall": "hangs on a wall, its back at the largest y: shelves, clocks, mirrors, pictures, lamps",
    "ceiling": "ceiling lamps; their top is at the ceiling",
    "object": "small things on tables, shelves and floors: height 0.015 to 0.5 m, footprint below 0.5 m",
    "door": "doors with their frames, their back at the largest y",
    "window": "windows with their frames, panes left out",
    "character": "people and animals",
    "tree": "trees and large bushes",
    "vehicle": "cars, vans",
    "cycle": "bicycles, motorbikes, scooters",
    "street": "what stands in streets and yards: benches, bins, posts, hydrants, lamps, signs",
}

RoomKind = Literal["living", "bed", "kitchen", "bath", "office", "mixed"]
ROOM_KINDS: tuple[RoomKind, ...] = ("living", "bed", "kitchen", "bath", "office", "mixed")


@runtime_checkable
class Catalog(Protocol):
    """Where samplers take things from: procedural shapes, or assets read from files."""

    def draw(
        self,
        group: str,
        generator: np.random.Generator,
        *,
        room: RoomKind | None = None,
        max_size: Vector | None = None,
    ) -> Item | None:
        """One piece of a group of `GROUPS`, usual in such a room, and not larger than `max_size`; None: has none."""
        ...

    def texture(self, use: str, generator: np.random.Generator) -> Path | None:
        """An image file for a use: wall, floor, picture, rug, ground, facade; None: has none."""
        ...


def translation(x: Real, y: Real, z: Real) -> Float[np.ndarray, "4 4"]:
    """A shift [m].

    >>> translation(1, 2, 3)[:3, 3].tolist()
    [1.0, 2.0, 3.0]
    """
    matrix = np.eye(4)
    matrix[:3, 3] = (x, y, z)
    return matrix


def turn_z(angle: Real) -> Float[np.ndarray, "4 4"]:
    """A turn about the vertical [rad], counter-clockwise from above."""
    matrix = np.eye(4)
    matrix[:2, :2] = ((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))
    return matrix


def place(x: Real, y: Real, z: Real, angle: Real = 0.0) -> Float[np.ndarray, "4 4"]:
    """A turn about the vertical [rad] at the origin, then a shift [m]."""
    return translation(x, y, z) @ turn_z(angle)


def transform_points(matrix: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Points after an affine map."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def look_at(
    position: Sequence[Real] | np.ndarray, target: Sequence[Real] | np.ndarray, *, roll: float = 0.0
) -> Float[np.ndarray, "4 4"]:
    """Camera to world for a camera that looks from `position` to `target`; `roll` turns it clockwise [rad].

    >>> look_at((0, 0, 0), (0, 1, 0))[:3, :3].round(6).tolist()  # columns: right, down, forward
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]
    """
    position = np.asarray(position, dtype=np.float64)
    forward = np.asarray(target, dtype=np.float64) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    length = np.linalg.norm(right)
    right = right / length if length > 1e-9 else np.array((1.0, 0.0, 0.0))
    down = np.cross(forward, right)
    cosine, sine = math.cos(roll), math.sin(roll)
    matrix = np.eye(4)
    matrix[:3, 0] = cosine * right + sine * down
    matrix[:3, 1] = cosine * down - sine * right
    matrix[:3, 2] = forward
    matrix[:3, 3] = position
    return matrix


def rescaled(mesh: Mesh, size: Vector) -> Mesh:
    """The mesh stretched to a size [m], the center of its footprint at the origin and its lowest point at z = 0."""
    low, high = mesh.bounds
    extent = np.maximum(high - low, 1e-6)
    middle = np.array((0.5 * (low[0] + high[0]), 0.5 * (low[1] + high[1]), low[2]))
    vertices = (mesh.vertices - middle) * (np.asarray(size) / extent)
    return replace(mesh, vertices=vertices.astype(np.float32))


def merged(name: str, parts: Sequence[tuple[Mesh, Float[np.ndarray, "4 4"]]]) -> Mesh:
    """Several meshes in their places as one, with one list of materials. Without UVs anywhere if a part has none."""
    vertices, faces, uvs, face_materials = [], [], [], []
    materials: list[Material] = []
    offset = 0
    for mesh, transform in parts:
        vertices.append(transform_points(transform, mesh.vertices.astype(np.float64)))
        corners = mesh.faces if np.linalg.det(transform[:3, :3]) > 0 else mesh.faces[:, ::-1]
        faces.append(corners + offset)
        offset += len(mesh.vertices)
        if mesh.uvs is not None:
            uvs.append(mesh.uvs if corners is mesh.faces else mesh.uvs[:, ::-1])
        places = np.zeros(max(len(mesh.materials), 1), dtype=np.int32)
        for number, material in enumerate(mesh.materials):
            if material not in materials:
                materials.append(material)
            places[number] = materials.index(material)
        face_materials.append(places[mesh.face_materials])
    return Mesh(
        name=name,
        vertices=np.concatenate(vertices).astype(np.float32),
        faces=np.concatenate(faces).astype(np.int32),
        uvs=np.concatenate(uvs).astype(np.float32) if len(uvs) == len(parts) else None,
        face_materials=np.concatenate(face_materials).astype(np.int32),
        materials=tuple(materials),
        smooth=any(mesh.smooth for mesh, _ in parts),
        source=next((mesh.source for mesh, _ in parts if mesh.source is not None), None),
    )


def split_at_edges(mesh: Mesh, angle: float) -> Mesh:
    """The mesh with vertices of their own on both sides of edges that are sharper than `angle` [rad], or open.

    Normals averaged at its vertices then shade it smoothly between such edges.
    """
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    # Half edges by their two vertices; equal ones next to each other are the two sides of an edge.
    face, place_in_face = np.divmod(np.arange(3 * len(mesh.faces)), 3)
    start, end = mesh.faces[face, place_in_face], mesh.faces[face, (place_in_face + 1) % 3]
    low, high = np.minimum(start, end), np.maximum(start, end)
    order = np.lexsort((high, low))
    first, second = order[:-1], order[1:]
    is_edge = (low[first] == low[second]) & (high[first] == high[second])
    is_smooth = np.einsum("nc,nc->n", normals[face[first]], normals[face[second]]) > math.cos(angle)
    first, second = first[is_edge & is_smooth], second[is_edge & is_smooth]
    turned = start[first] != start[second]  # faces that are wound alike run along their edge in opposite directions

    def following(corner: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return 3 * face[corner] + (place_in_face[corner] + 1) % 3

    pairs = np.concatenate(
        (
            np.stack((first, np.where(turned, following(second), second)), axis=1),
            np.stack((following(first), np.where(turned, second, following(second))), axis=1),
        )
    )
    label = np.arange(3 * len(mesh.faces))
    while True:  # each group of corners takes its smallest number
        least = label.copy()
        np.minimum.at(least, pairs[:, 0], label[pairs[:, 1]])
        np.minimum.at(least, pairs[:, 1], label[pairs[:, 0]])
        least = least[least]
        if np.array_equal(least, label):
            break
        label = least
    kept, renumbered = np.unique(label, return_inverse=True)
    return replace(
        mesh,
        vertices=mesh.vertices[mesh.faces.reshape(-1)[kept]],
        faces=renumbered.reshape(-1, 3).astype(np.int32),
    )
