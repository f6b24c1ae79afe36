# SPDX-License-Identifier: Apache-2.0
"""The ground of outdoor scenes: what stands where, the land to the horizon, the weather, level cameras.

Each thing on the ground has its own rectangle, so that things do not intersect and no camera is inside a thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from openmarigold_render import houses, materials
from openmarigold_render.primitives import sheet
from openmarigold_render.scene import (
    Camera,
    Catalog,
    Instance,
    Item,
    Lens,
    Light,
    Material,
    Mesh,
    Pattern,
    Sky,
    Tint,
    Vector,
    look_at,
    place,
)

MAX_TRIANGLES = 1_800_000  # of all instances: rays are cast on every one of them
_HEAD = 2.0  # what hangs higher does not stand in the way [m]
_HORIZON = 700.0  # half the edge of the ground [m]


def weather(generator: np.random.Generator) -> tuple[Sky, tuple[Light, ...]]:
    """A sky, and the sun where it is clear."""
    is_clear = generator.random() < 0.65
    elevation = float(generator.uniform(0.2, 1.2))
    strength = float(generator.uniform(0.4, 0.85))
    clouds = float(generator.uniform(0.1, 0.7)) if generator.random() < 0.75 else 0.0
    seed = int(generator.integers(1 << 20))
    if not is_clear:
        gray = float(generator.uniform(0.55, 0.85))
        zenith, horizon = (0.8 * gray, 0.83 * gray, 0.88 * gray), (gray, gray, 1.02 * gray)
        return Sky(zenith=zenith, horizon=horizon, strength=1.2 * strength, clouds=clouds, seed=seed), ()
    low = max(0.0, 1.0 - elevation / 0.5)
    horizon = (0.75 + 0.15 * low, 0.82 - 0.12 * low, 0.9 - 0.35 * low)
    zenith = (float(generator.uniform(0.12, 0.3)), float(generator.uniform(0.3, 0.5)), 0.85)
    azimuth = float(generator.uniform(0.0, 2.0 * math.pi))
    level = math.cos(elevation)
    sun = Light(
        kind="sun",
        direction=(level * math.cos(azimuth), level * math.sin(azimuth), -math.sin(elevation)),
        power=float(generator.uniform(2.5, 6.5)),
        color=(1.0, 0.95 - 0.25 * low, 0.88 - 0.45 * low),
        size=(float(generator.uniform(0.01, 0.04)), 0.0),
    )
    return Sky(zenith=zenith, horizon=horizon, strength=strength, clouds=clouds, seed=seed), (sun,)


@dataclass
class Ground:
    """A scene under construction: what stands where."""

    generator: np.random.Generator
    catalog: Catalog
    instances: list[Instance] = field(default_factory=list)
    _taken: list[tuple[float, float, float, float]] = field(default_factory=list)  # rectangles: x0, y0, x1, y1
    _houses: list[tuple[float, float, float, float]] = field(default_factory=list)
    _outlines: dict[int, tuple[Mesh, np.ndarray, np.ndarray]] = field(default_factory=dict)
    _triangles: int = 0

    def add(self, mesh: Mesh, x: float, y: float, z: float = 0.0, angle: float = 0.0, tint: Tint | None = None) -> bool:
        """Put a mesh somewhere, even if the place is taken; False if the scene has too many triangles already."""
        if self._triangles + len(mesh.faces) > MAX_TRIANGLES:
            return False
        self._triangles += len(mesh.faces)
        name = f"{mesh.name} {len(self.instances)}"
        self.instances.append(Instance(mesh, place(x, y, z, angle), name, tint))
        return True

    def stand(
        self,
        mesh: Mesh,
        x: float,
        y: float,
        z: float = 0.0,
        angle: float = 0.0,
        tint: Tint | None = None,
        *,
        margin: float = 0.1,
    ) -> bool:
        """Puts a mesh where it touches nothing; False where the place is taken.

        What is higher than a person, such as a tree's crown, may reach over other things, but not into houses.

        Args:
            margin: distance to keep [m].
        """
        low, whole = self._outline(mesh)
        rectangle = _turned(low, x, y, angle, margin)
        crown = _turned(0.75 * whole, x, y, angle, 0.0)
        if not self.is_free(rectangle) or _meets(crown, self._houses) or not self.add(mesh, x, y, z, angle, tint):
            return False
        self._taken.append(rectangle)
        if mesh.name == "house":
            self._houses.append(rectangle)
        return True

    def _outline(self, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
        # Of the part that stands below the height of a head, and of the whole: smallest and largest x and y.
        if id(mesh) not in self._outlines:
            below = mesh.vertices[mesh.vertices[:, 2] < _HEAD, :2]
            bounds = mesh.bounds[:, :2]
            low = np.stack((below.min(0), below.max(0))) if len(below) else bounds
            self._outlines[id(mesh)] = mesh, low.astype(np.float64), bounds.astype(np.float64)
        return self._outlines[id(mesh)][1:]

    def take(self, rectangle: tuple[float, float, float, float]) -> None:
        """Keep a rectangle free of things."""
        self._taken.append(rectangle)

    def is_free(self, rectangle: tuple[float, float, float, float]) -> bool:
        """Whether nothing stands in a rectangle [m]."""
        return not _meets(rectangle, self._taken)

    def keep(self, instance: Instance) -> None:
        """Takes an instance as it is, without a place on the ground of its own."""
        self._triangles += len(instance.mesh.faces)
        self.instances.append(instance)

    def draw(self, group: str, *, max_size: Vector | None = None) -> Item | None:
        return self.catalog.draw(group, self.generator, max_size=max_size)

    def kinds(self, group: str, count: int, *, max_size: Vector | None = None, heaviest: int = 25_000) -> list[Item]:
        """Some pieces of a group to choose from again and again; heavy ones would leave no space for others."""
        drawn = (self.draw(group, max_size=max_size) for _ in range(3 * count))
        light = [item for item in drawn if item is not None and len(item.load().faces) <= heaviest]
        return light[:count]

    def surface(self, use: str) -> Material:
        """What the ground is covered with: asphalt, pavement, lawn, or ground for everything else."""
        path = self.catalog.texture(use, self.generator) if self.generator.random() < 0.7 else None
        if path is not None:
            span = float(self.generator.uniform(2.0, 4.5))
            return replace(materials.image_surface(path, self.generator, roughness=(0.75, 0.97)), texture_size=span)
        return _PATTERNS[use](self.generator)


def _turned(
    bounds: Float[np.ndarray, "2 2"], x: float, y: float, angle: float, margin: float
) -> tuple[float, float, float, float]:
    """The rectangle along the axes around a turned one [m]."""
    corners = np.array([(bounds[i, 0], bounds[j, 1]) for i in (0, 1) for j in (0, 1)])
    turned = corners @ np.array(((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle)))) + (x, y)
    (x0, y0), (x1, y1) = turned.min(0).tolist(), turned.max(0).tolist()
    return x0 - margin, y0 - margin, x1 + margin, y1 + margin


def _meets(rectangle: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> bool:
    x0, y0, x1, y1 = rectangle
    return any(x0 < b1 and b0 < x1 and y0 < d1 and d0 < y1 for b0, d0, b1, d1 in others)


def _asphalt(generator: np.random.Generator) -> Material:
    gray = float(generator.uniform(0.03, 0.16))
    first = materials.varied(generator, (gray, gray, 1.03 * gray), 0.1)
    second = materials.varied(generator, first, 0.5)
    scale = float(generator.uniform(0.008, 0.06))
    pattern = Pattern(
        kind="stone", colors=(first, second), scale=scale, contrast=0.7, seed=_seed(generator), relief=0.2
    )
    return Material(name="asphalt", pattern=pattern, roughness=float(generator.uniform(0.5, 0.9)))


def _pavement(generator: np.random.Generator) -> Material:
    if generator.random() < 0.3:
        return _asphalt(generator)
    if generator.random() < 0.3:
        return materials.bricks(generator)
    return materials.tiles(generator, size=(0.15, 0.8))


def _lawn(generator: np.random.Generator) -> Material:
    green = materials.varied(generator, ((0.07, 0.12, 0.02), (0.12, 0.14, 0.04))[int(generator.integers(2))], 0.25)
    second = materials.varied(generator, green, 0.5)
    scale = float(generator.uniform(0.02, 0.08))
    pattern = Pattern(kind="carpet", colors=(green, second), scale=scale, seed=_seed(generator), relief=0.5)
    return Material(name="lawn", pattern=pattern, roughness=0.95)


def _soil(generator: np.random.Generator) -> Material:
    kinds = ((0.2, 0.13, 0.07), (0.35, 0.28, 0.18), (0.25, 0.24, 0.22), (0.3, 0.2, 0.12))
    first = materials.varied(generator, kinds[int(generator.integers(4))], 0.2)
    scale = float(generator.uniform(0.02, 0.1))
    colors = (first, materials.varied(generator, first, 0.5))
    pattern = Pattern(kind="stone", colors=colors, scale=scale, seed=_seed(generator), relief=0.5)
    return Material(name="soil", pattern=pattern, roughness=0.95)


_PATTERNS: Mapping[str, Callable[[np.random.Generator], Material]] = {
    "asphalt": _asphalt,
    "pavement": _pavement,
    "lawn": _lawn,
    "ground": _soil,
}


def landscape(ground: Ground, flat: float, *, use: str = "lawn") -> None:
    """Ground to the horizon: flat within `flat` meters of the origin's axis, then plain or hills."""
    generator = ground.generator
    surface = ground.surface(use if generator.random() < 0.75 else "ground")
    height = float(
        generator.choice((0.0, generator.uniform(4.0, 20.0), generator.uniform(20.0, 90.0)), p=(0.35, 0.4, 0.25))
    )
    steps = np.concatenate((np.linspace(0.0, 150.0, 26), np.linspace(160.0, _HORIZON, 28)))
    axis = np.concatenate((-steps[:0:-1], steps))
    x, y = np.meshgrid(axis, axis)
    away = np.clip((np.hypot(x, np.maximum(np.abs(y - 60.0) - 80.0, 0.0)) - flat) / 220.0, 0.0, 1.0)
    z = height * away**1.5 * (0.35 + _noise(generator, x, y))
    points = np.stack((x, y, z - 0.03), axis=-1)
    mesh = sheet("landscape", points, surface)
    ground.add(replace(mesh, uvs=mesh.vertices[mesh.faces][..., :2]), 0.0, 0.0)


def _noise(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = np.zeros_like(x)
    for octave in range(4):
        length = 320.0 / 2**octave
        angle, *phase = generator.uniform(0.0, 2.0 * math.pi, size=3).tolist()
        u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        total += 0.5**octave * np.sin(2 * math.pi * u / length + phase[0]) * np.sin(2 * math.pi * v / length + phase[1])
    return 0.5 + 0.5 * total


def backdrop(ground: Ground, near: float, far: float, count: int, *, inside: Callable[[float, float], bool]) -> None:
    """Trees, and now and then a house, in the distance."""
    generator = ground.generator
    trees = ground.kinds("tree", 3)
    homes = [houses.house(generator, houses.FARM, ground.catalog) for _ in range(2)]
    for _ in range(count):
        x, y = float(generator.uniform(-far, far)), float(generator.uniform(-0.4 * far, far + 60.0))
        if abs(x) < near or inside(x, y):
            continue
        if generator.random() < 0.12:
            ground.stand(homes[int(generator.integers(2))], x, y, -0.5, float(generator.uniform(0.0, 6.28)), margin=1.0)
        elif trees:
            plant_tree(ground, trees, x, y, z=-0.3)


def plant_tree(ground: Ground, trees: Sequence[Item], x: float, y: float, z: float = 0.0) -> bool:
    """Puts one of some trees somewhere, turned and tinted at random; False where the place is taken."""
    generator = ground.generator
    item = trees[int(generator.integers(len(trees)))]
    return ground.stand(
        item.load(),
        x,
        y,
        z,
        float(generator.uniform(0.0, 2.0 * math.pi)),
        _leaf_tint(generator),
    )


def _leaf_tint(generator: np.random.Generator) -> Tint:
    return Tint(
        hue=float(generator.normal(0.0, 0.012)),
        saturation=float(generator.uniform(0.75, 1.1)),
        value=float(generator.uniform(0.7, 1.2)),
    )


def paint_tint(generator: np.random.Generator) -> Tint:
    """Another paint: any hue, mostly pale."""
    return Tint(
        hue=float(generator.uniform(-0.5, 0.5)),
        saturation=float(generator.uniform(0.0, 1.0)),
        value=float(generator.uniform(0.4, 1.25)),
    )


def tint_of(generator: np.random.Generator, group: str) -> Tint | None:
    """A tint as things of a group have it; None for people."""
    if group == "vehicle":
        return paint_tint(generator)
    if group == "tree":
        return _leaf_tint(generator)
    return None if group == "character" else small_tint(generator)


def small_tint(generator: np.random.Generator) -> Tint:
    """A slightly other color."""
    return Tint(hue=float(generator.normal(0.0, 0.01)), value=float(generator.uniform(0.7, 1.2)))


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(1 << 20))


def camera(generator: np.random.Generator, lens: Lens, position: Float[np.ndarray, " 3"], heading: float) -> Camera:
    """A camera held about level that looks in a direction [rad] over the ground."""
    pitch, roll = float(generator.normal(-0.03, 0.1)), float(generator.normal(0.0, 0.03))
    forward = np.array((math.cos(heading) * math.cos(pitch), math.sin(heading) * math.cos(pitch), math.sin(pitch)))
    fov = float(generator.uniform(*lens.fov))
    return Camera(look_at(position, position + forward, roll=roll), lens.width, lens.height, lens.focal_px(fov))
