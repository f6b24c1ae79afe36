# SPDX-License-Identifier: Apache-2.0
"""Parts of rooms: walls with openings, floors, windows and doorways, curtains, and the view outside."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from openmarigold_render import materials
from openmarigold_render.primitives import box, quad, sheet
from openmarigold_render.scene import (
    Catalog,
    Instance,
    Light,
    Material,
    Mesh,
    Real,
    Sky,
    Vector,
    merged,
    place,
    rescaled,
    translation,
    turn_z,
)

SIDES = 4


@dataclass(frozen=True)
class Opening:
    """A hole in a wall, in the wall's own coordinates [m]: from `left` to `right`, from `bottom` to `top`."""

    left: Real
    right: Real
    bottom: Real
    top: Real

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.top - self.bottom


@dataclass(frozen=True)
class Frame:
    """A wall's coordinates: x along it to the right seen from inside, y outward, z up."""

    transform: np.ndarray
    length: Real
    angle: Real
    """Rotation of a piece with its back to the wall [rad]."""

    def point(self, x: Real, y: Real, z: Real) -> Vector:
        """A point of the wall in the world."""
        at = self.transform[:3, :3] @ (x, y, z) + self.transform[:3, 3]
        return float(at[0]), float(at[1]), float(at[2])

    @property
    def outward(self) -> np.ndarray:
        return self.transform[:3, 1]


def wall_frame(side: int, width: Real, depth: Real) -> Frame:
    """Wall 0 to 3 of the room [0, width] x [0, depth]: at the largest y, the largest x, y = 0, x = 0."""
    corner = ((0.0, depth), (width, depth), (width, 0.0), (0.0, 0.0))[side]
    angle = -0.5 * math.pi * side
    return Frame(translation(*corner, 0.0) @ turn_z(angle), (width, depth)[side % 2], angle)


def wall_mesh(length: Real, height: Real, openings: Sequence[Opening], material: Material) -> Mesh:
    """A wall's inner face around its openings, at y = 0, facing -Y."""
    edges = sorted({0.0, length, *(edge for hole in openings for edge in (hole.left, hole.right))})
    pieces = []
    for left, right in itertools.pairwise(edges):
        middle = 0.5 * (left + right)
        free = [0.0]
        for hole in sorted((one for one in openings if one.left < middle < one.right), key=lambda one: one.bottom):
            free += [hole.bottom, hole.top]
        free.append(height)
        for low, high in zip(free[::2], free[1::2], strict=True):
            if high - low > 1e-4:
                pieces.append((left, right, low, high))
    parts = []
    for left, right, low, high in pieces:
        corners = ((left, 0, low), (right, 0, low), (right, 0, high), (left, 0, high))
        uv = [(x, z) for x, _, z in corners]
        parts.append((quad("wall", corners, material, uv=uv), np.eye(4)))
    return merged("wall", parts)


def reveal_mesh(hole: Opening, deep: Real, material: Material) -> Mesh:
    """The four inner sides of an opening, from y = 0 to `deep`; no sill where it reaches the floor."""
    left, right, low, high = hole.left, hole.right, hole.bottom, hole.top
    sides = [
        ((left, 0, low), (left, deep, low), (left, deep, high), (left, 0, high)),
        ((right, deep, low), (right, 0, low), (right, 0, high), (right, deep, high)),
        ((left, 0, high), (left, deep, high), (right, deep, high), (right, 0, high)),
    ]
    if low > 0.0:  # at the floor it would lie in the threshold, and each would shade the other black
        sides.append(((left, deep, low), (left, 0, low), (right, 0, low), (right, deep, low)))
    faced = []
    center = np.array((0.5 * (left + right), 0.5 * deep, 0.5 * (low + high)))
    for corners in sides:
        points = np.asarray(corners, dtype=np.float64)
        normal = np.cross(points[1] - points[0], points[2] - points[0])
        faced.append(
            (quad("reveal", points if normal @ (center - points[0]) > 0 else points[::-1], material), np.eye(4))
        )
    return merged("reveal", faced)


def floor_mesh(width: Real, depth: Real, material: Material, *, up: bool = True) -> Mesh:
    """A floor, or with `up` False a ceiling, over [0, width] x [0, depth] at z = 0."""
    corners = ((0, 0, 0), (width, 0, 0), (width, depth, 0), (0, depth, 0))
    return quad("floor" if up else "ceiling", corners if up else corners[::-1], material)


def skirting(frame: Frame, openings: Sequence[Opening], high: Real, material: Material) -> list[Instance]:
    """Boards along the foot of a wall, not across doorways."""
    edges = [0.0]
    for hole in sorted((one for one in openings if one.bottom < high), key=lambda one: one.left):
        edges += [hole.left - 0.05, hole.right + 0.05]
    edges.append(frame.length)
    found = []
    for left, right in zip(edges[::2], edges[1::2], strict=True):
        if right - left > 0.1:
            board = box("skirting", (right - left, 0.014, high), material, bevel=0.003)
            at = frame.transform @ translation(0.5 * (left + right), -0.0071, 0.0)
            found.append(Instance(board, at, "skirting"))
    return found


def curtains(frame: Frame, hole: Opening, generator: np.random.Generator, ceiling: Real) -> list[Instance]:
    """Two sheets with folds before a window, and their rail."""
    cloth = materials.fabric(generator)
    depth, waves = generator.uniform(0.015, 0.035), generator.uniform(25.0, 60.0)
    top = min(ceiling - 0.02, hole.top + generator.uniform(0.05, 0.25))
    bottom = 0.02 if generator.random() < 0.6 else max(0.02, hole.bottom - 0.1)
    reach = generator.uniform(0.15, 0.45) * hole.width
    found = []
    for left, right in ((hole.left - 0.18, hole.left - 0.18 + reach), (hole.right + 0.18 - reach, hole.right + 0.18)):
        left, right = max(left, 0.02), min(right, frame.length - 0.02)
        columns = max(8, int(60 * (right - left)))
        x = np.linspace(left, right, columns)
        y = -0.07 + depth * np.sin(waves * (x - left) + generator.uniform(0, 6.3))
        points = np.stack(
            [
                np.stack((x, y * gather - 0.07 * (1 - gather), np.full(columns, z)), axis=1)
                for z, gather in ((bottom, 1.0), (0.5 * (bottom + top), 0.9), (top, 0.7))
            ]
        )
        found.append(Instance(sheet("curtain", points, cloth), frame.transform, "curtain"))
    wide = min(hole.right + 0.25, frame.length) - max(hole.left - 0.25, 0.0)
    rail = box("rail", (wide, 0.02, 0.02), materials.metal(generator))
    middle = 0.5 * (min(hole.right + 0.25, frame.length) + max(hole.left - 0.25, 0.0))
    found.append(Instance(rail, frame.transform @ translation(middle, -0.07, top), "curtain rail"))
    return found


def window_pieces(
    frame: Frame, hole: Opening, catalog: Catalog, generator: np.random.Generator, *, deep: Real
) -> list[Instance]:
    """A window of the catalog in the opening, and its sill."""
    found = []
    item = catalog.draw("window", generator)
    if item is not None:
        pane = rescaled(item.load(), (hole.width, min(0.08, max(0.03, item.size[1])), hole.height))
        at = translation(0.5 * (hole.left + hole.right), deep - 0.05, hole.bottom)
        found.append(Instance(pane, frame.transform @ at, "window"))
    if hole.bottom > 0.3:
        sill = box("sill", (hole.width + 0.06, 0.05, 0.025), materials.stone(generator), bevel=0.003)
        at = translation(0.5 * (hole.left + hole.right), -0.0255, hole.bottom - 0.026)
        found.append(Instance(sill, frame.transform @ at, "window sill"))
    return found


def daylight(frame: Frame, hole: Opening, strength: Real, generator: np.random.Generator) -> Light:
    """Skylight through a window: an area light just outside; the sky alone is too noisy at few samples."""
    inward = -frame.outward
    return Light(
        kind="area",
        position=frame.point(0.5 * (hole.left + hole.right), 0.35, 0.5 * (hole.bottom + hole.top)),
        direction=(float(inward[0]), float(inward[1]), -0.25),
        power=hole.width * hole.height * strength * float(generator.uniform(6.0, 16.0)),
        color=(1.0, float(generator.uniform(0.92, 1.0)), float(generator.uniform(0.85, 1.1))),
        size=(hole.width, hole.height),
    )


def sunlight(frame: Frame, hole: Opening, target: Vector, generator: np.random.Generator) -> Light:
    """The sun through a window onto a point in the room."""
    start = np.asarray(frame.point(0.5 * (hole.left + hole.right), 0.0, 0.5 * (hole.bottom + hole.top)))
    direction = np.asarray(target) - start
    direction[2] = min(direction[2], -0.25 * float(np.hypot(direction[0], direction[1])))
    unit = direction / np.linalg.norm(direction)
    return Light(
        kind="sun",
        direction=(float(unit[0]), float(unit[1]), float(unit[2])),
        power=float(generator.uniform(1.5, 8.0)),
        color=(1.0, float(generator.uniform(0.8, 0.98)), float(generator.uniform(0.6, 0.95))),
        size=(float(generator.uniform(0.01, 0.05)), 0.0),
    )


def outside(
    views: Sequence[tuple[Frame, Opening]], level: Real, catalog: Catalog, generator: np.random.Generator
) -> list[Instance]:
    """Ground, buildings and trees before the windows, so that what is seen through them has depth."""
    ground = materials.carpet(generator) if generator.random() < 0.5 else materials.stone(generator, gloss=(0.8, 0.95))
    corners = ((-150, -150, level), (150, -150, level), (150, 150, level), (-150, 150, level))
    found = [Instance(quad("ground", corners, ground), np.eye(4), "ground")]
    makers: tuple[Callable[[np.random.Generator], Material], ...] = (
        materials.bricks,
        materials.plaster,
        materials.stone,
        materials.planks,
    )
    for frame, hole in views:
        for _ in range(int(generator.integers(1, 5))):
            away = float(generator.uniform(7.0, 60.0))
            along = 0.5 * (hole.left + hole.right) + float(generator.uniform(-0.6, 0.6)) * away
            x, y, _ = frame.point(along, away, 0.0)
            tree = catalog.draw("tree", generator) if generator.random() < 0.4 else None
            if tree is not None:
                found.append(Instance(tree.load(), place(x, y, level, generator.uniform(0, 6.3)), "tree"))
                continue
            size = (generator.uniform(2, 12), generator.uniform(2, 8), generator.uniform(2, 9) - level)
            facade = makers[int(generator.integers(len(makers)))](generator)
            found.append(
                Instance(box("building", size, facade), place(x, y, level, generator.uniform(0, 6.3)), "building")
            )
    return found


def room_sky(generator: np.random.Generator, *, day: bool) -> Sky:
    """Sky as seen from rooms."""
    strength = generator.uniform(0.6, 2.5) if day else generator.uniform(0.02, 0.15)
    return Sky(
        zenith=(0.25, 0.42, 0.8) if generator.random() < 0.65 else (0.55, 0.6, 0.66),
        horizon=(0.75, 0.82, 0.9),
        strength=float(strength),
        clouds=float(generator.uniform(0.0, 0.8)),
        seed=int(generator.integers(1000)),
    )


def lamp_light(position: Vector, generator: np.random.Generator, power: Real, *, radius: Real = 0.08) -> Light:
    """A lamp's light, warm to white."""
    warm = float(generator.uniform(0.0, 1.0))
    return Light(
        kind="point",
        position=position,
        power=power,
        color=(1.0, 0.62 + 0.38 * warm, 0.3 + 0.7 * warm),
        size=(radius, radius),
    )
