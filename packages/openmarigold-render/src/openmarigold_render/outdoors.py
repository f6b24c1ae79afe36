# SPDX-License-Identifier: Apache-2.0
"""Procedural things of streets and gardens: trees, hedges, cars, lamp posts, signs, fences, bins.

Each stands with the center of its footprint at the origin, its foot at z = 0 and its front toward -Y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from openmarigold_render import materials
from openmarigold_render.primitives import cushion, cylinder, lathe, tube
from openmarigold_render.scene import (
    Catalog,
    Color,
    Item,
    Material,
    Mesh,
    Pattern,
    RoomKind,
    Vector,
    merged,
    place,
    translation,
)
from openmarigold_render.solids import Builder, leaves

_GREENS: tuple[Color, ...] = ((0.05, 0.12, 0.02), (0.09, 0.16, 0.03), (0.12, 0.17, 0.05), (0.03, 0.08, 0.03))
_AUTUMN: tuple[Color, ...] = ((0.35, 0.12, 0.02), (0.40, 0.25, 0.03), (0.22, 0.06, 0.02))


class OutdoorCatalog:
    """Procedural things for streets in front of another catalog, which serves the groups that are not made here."""

    def __init__(self, inner: Catalog | None = None) -> None:
        self._inner = inner

    def draw(
        self,
        group: str,
        generator: np.random.Generator,
        *,
        room: RoomKind | None = None,
        max_size: Vector | None = None,
    ) -> Item | None:
        """One of the inner catalog's pieces, or a new procedural one."""
        found = None
        is_made = group in MAKERS and generator.random() < _MADE_SHARE.get(group, 0.3)
        if self._inner is not None and not is_made:
            found = self._inner.draw(group, generator, room=room, max_size=max_size)
        makers = MAKERS.get(group)
        if found is None and makers:
            mesh = makers[int(generator.integers(len(makers)))](generator)
            size = mesh.size.tolist()
            if max_size is None or all(has <= most for has, most in zip(size, max_size, strict=True)):
                found = Item(name=mesh.name, group=group, size=(size[0], size[1], size[2]), load=lambda: mesh)
        return found

    def texture(self, use: str, generator: np.random.Generator) -> Path | None:
        return None if self._inner is None else self._inner.texture(use, generator)


def bark(generator: np.random.Generator) -> Material:
    """Bark of a tree."""
    first = materials.varied(generator, (0.09, 0.06, 0.04), 0.4)
    pattern = Pattern(
        kind="stone",
        colors=(first, materials.varied(generator, first, 0.5)),
        scale=0.03,
        seed=_seed(generator),
        relief=0.8,
    )
    return Material(name="bark", pattern=pattern, roughness=0.95)


def foliage(generator: np.random.Generator) -> list[Material]:
    """Three close greens; one tree in twelve is in its autumn colors."""
    palette = _AUTUMN if generator.random() < 0.08 else _GREENS
    base = palette[int(generator.integers(len(palette)))]
    return [Material(name="leaf", base_color=materials.varied(generator, base, 0.3), roughness=0.6) for _ in range(3)]


def broadleaf(generator: np.random.Generator) -> Mesh:
    """A tree with a crown of round clusters of leaves."""
    height = float(generator.uniform(4.0, 13.0))
    stem = height * float(generator.uniform(0.2, 0.4))
    spread = height * float(generator.uniform(0.22, 0.42))
    wood = bark(generator)
    girth = 0.018 * height + 0.04
    lean = generator.normal(0.0, 0.03 * height, size=2)
    top = np.array((*lean, 0.8 * height))
    trunk = np.array([(0.0, 0.0, 0.0), (*(0.3 * lean), stem), (*(0.6 * lean), 0.6 * height), (*lean, 0.8 * height)])
    parts = [(tube("trunk", trunk, (1.3 * girth, girth, 0.6 * girth, 0.15 * girth), wood, segments=9), np.eye(4))]
    centers, radii = [], []
    for number in range(int(generator.integers(7, 13))):
        angle = 2.399963 * number + float(generator.uniform(-0.4, 0.4))
        share = (number + 0.5) / 11.0
        start = trunk[1] + min(share, 0.9) * (top - trunk[1])
        reach = spread * float(generator.uniform(0.5, 1.0)) * math.sqrt(max(1.0 - share**2, 0.1))
        rise = float(generator.uniform(0.05, 0.25)) * height
        end = start + np.array((reach * math.cos(angle), reach * math.sin(angle), rise))
        middle = 0.5 * (start + end) - (0.0, 0.0, 0.04 * height)
        parts.append(
            (tube("branch", np.stack((start, middle, end)), (0.4 * girth, 0.25 * girth, 0.05), wood), np.eye(4))
        )
        centers.append(end)
        radii.append(spread * float(generator.uniform(0.38, 0.62)))
    density = float(generator.uniform(0.6, 1.0))
    points = [
        _shell(generator, center, radius, int(density * 520)) for center, radius in zip(centers, radii, strict=True)
    ]
    size = 0.035 * height
    parts.append((leaves(generator, np.concatenate(points), (0.6 * size, 1.3 * size), foliage(generator)), np.eye(4)))
    return _grounded(merged("broadleaf tree", parts))


def conifer(generator: np.random.Generator) -> Mesh:
    """A fir: whorls of drooping boughs."""
    height = float(generator.uniform(4.0, 14.0))
    spread = height * float(generator.uniform(0.14, 0.24))
    wood = bark(generator)
    trunk = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.5 * height), (0.0, 0.0, height))
    parts = [(tube("trunk", trunk, (0.02 * height, 0.012 * height, 0.01), wood, segments=8), np.eye(4))]
    clear = float(generator.uniform(0.03, 0.2)) * height
    points = []
    for level in np.linspace(clear, 0.98 * height, int(2.2 * height) + 6):
        reach = spread * (1.0 - (level - clear) / (height - clear)) ** 0.9 + 0.05
        for angle in generator.uniform(0.0, 2.0 * math.pi, size=int(4 + 12 * reach)):
            along = np.sqrt(generator.uniform(0.02, 1.0, size=int(12 + 26 * reach)))[:, None] * reach
            droop = 0.35 * along + generator.normal(0.0, 0.05, size=along.shape)
            bough = along * (math.cos(angle), math.sin(angle), 0.0) + (0.0, 0.0, float(level)) - droop * (0.0, 0.0, 1.0)
            points.append(bough + generator.normal(0.0, 0.06 * reach, size=bough.shape))
    green = materials.varied(generator, (0.025, 0.06, 0.025), 0.35)
    needles = [
        Material(name="needles", base_color=materials.varied(generator, green, 0.2), roughness=0.7) for _ in range(3)
    ]
    size = 0.12 + 0.012 * height
    parts.append(
        (leaves(generator, np.concatenate(points), (0.7 * size, 1.6 * size), needles, flatness=0.5), np.eye(4))
    )
    return _grounded(merged("conifer", parts))


def bush(generator: np.random.Generator) -> Mesh:
    """A round bush."""
    radius = float(generator.uniform(0.4, 1.3))
    clumps = [
        _shell(generator, np.array((*generator.normal(0.0, 0.45 * radius, 2), 0.6 * radius)), 0.6 * radius, 260)
        for _ in range(5)
    ]
    points = np.concatenate(clumps)
    points[:, 2] = np.abs(points[:, 2])
    return _grounded(merged("bush", [(leaves(generator, points, (0.06, 0.16), foliage(generator)), np.eye(4))]))


def hedge(generator: np.random.Generator, *, length: float = 2.5) -> Mesh:
    """A piece of a clipped hedge, lengthwise along x; pieces in a row close up."""
    thick, height = float(generator.uniform(0.5, 0.9)), float(generator.uniform(0.8, 2.0))
    core = Builder()
    green = foliage(generator)
    dark = Material(name="hedge", base_color=(0.015, 0.03, 0.015), roughness=0.9)
    half = 0.5 * thick - 0.05
    core.box((-0.5 * length, -half, 0.0), (0.5 * length, half, height - 0.06), dark)
    count = int(420 * length * (2.0 * height + thick))
    points = generator.uniform((-0.5 * length, -0.5, 0.0), (0.5 * length, 0.5, 1.0), size=(count, 3))
    on_top = generator.random(count) < thick / (2.0 * height + thick)
    side = np.where(generator.random(count) < 0.5, -0.5, 0.5)
    points[:, 1] = np.where(on_top, points[:, 1], side) * thick
    points[:, 2] = np.where(on_top, height, points[:, 2] * height)
    points += generator.normal(0.0, 0.035, size=points.shape)
    points[:, 2] = np.maximum(points[:, 2], 0.02)
    return merged(
        "hedge", [(core.mesh("core"), np.eye(4)), (leaves(generator, points, (0.05, 0.11), green), np.eye(4))]
    )


def grass_patch(generator: np.random.Generator, *, size: float = 1.2) -> Mesh:
    """Blades of grass around the origin, thinning out beyond `size` meters, to be strewn over a lawn."""
    count = int(700 * size * size)
    height = float(generator.uniform(0.05, 0.16))
    foot = np.concatenate((generator.normal(0.0, 0.4 * size, size=(count, 2)), np.zeros((count, 1))), axis=1)
    turn = generator.uniform(0.0, 2.0 * math.pi, size=count)
    across = 0.008 * np.stack((np.cos(turn), np.sin(turn), np.zeros(count)), axis=1)
    tip = generator.normal(0.0, 0.45 * height, size=(count, 3))
    tip[:, 2] = height * generator.uniform(0.5, 1.2, size=count)
    vertices = np.stack((foot - across, foot + across, foot + tip), axis=1).reshape(-1, 3)
    greens = [materials.varied(generator, (0.10, 0.17, 0.03), 0.25) for _ in range(3)]
    return Mesh(
        name="grass",
        vertices=vertices.astype(np.float32),
        faces=np.arange(3 * count, dtype=np.int32).reshape(-1, 3),
        uvs=np.zeros((count, 3, 2), np.float32),
        face_materials=generator.integers(3, size=count).astype(np.int32),
        materials=tuple(Material(name="blade", base_color=green, roughness=0.6) for green in greens),
    )


def car(generator: np.random.Generator) -> Mesh:
    """A car or a van: a rounded body, a glazed cabin with pillars, wheels in their arches, lamps and plates."""
    is_van = generator.random() < 0.2
    length = float(generator.uniform(4.6, 5.8) if is_van else generator.uniform(3.5, 4.8))
    width = float(generator.uniform(1.65, 2.0))
    height = float(generator.uniform(1.9, 2.5) if is_van else generator.uniform(1.35, 1.65))
    belt = 0.42 * height if is_van else 0.58 * height
    paint = Material(
        name="car paint",
        base_color=materials.color(
            generator, saturation=(0.0, 0.12) if generator.random() < 0.65 else (0.5, 0.95), value=(0.02, 0.75)
        ),
        roughness=0.16,
    )
    pane = Material(name="car pane", base_color=(0.02, 0.025, 0.03), roughness=0.04)
    rubber = Material(name="tyre", base_color=(0.02, 0.02, 0.02), roughness=0.9)
    rim = Material(name="rim", base_color=(0.5, 0.5, 0.52), metallic=1.0, roughness=0.3)
    dark = Material(name="trim", base_color=(0.025, 0.025, 0.025), roughness=0.6)
    clearance, radius = 0.18, 0.15 * (1.0 if is_van else 1.05) + 0.16
    body = cushion("body", (width, length, belt - clearance), paint, softness=0.22, segments=18)
    parts = [(body, translation(0.0, 0.0, clearance))]
    parts.append((_cabin(generator, width, length, belt, height, is_van=is_van, paint=paint, pane=pane), np.eye(4)))
    tire = lathe("tyre", ((0.0, 0.0), (radius, 0.0), (radius, 0.0), (radius, 0.2), (0.6 * radius, 0.205)), rubber)
    hub = lathe("rim", ((0.62 * radius, 0.0), (0.55 * radius, 0.01), (0.1 * radius, 0.005), (0.0, 0.01)), rim)
    for side in (-1.0, 1.0):
        for end in (-0.31, 0.31):
            upright = place(side * (0.5 * width - 0.19), end * length, radius) @ _about_y(side * 0.5 * math.pi)
            parts.append((tire, upright))
            parts.append((hub, upright @ translation(0.0, 0.0, 0.207)))
    details = Builder()
    front, back, low = -0.5 * length, 0.5 * length, clearance + 0.18
    for side in (-1.0, 1.0):
        x0, x1 = sorted((side * 0.42 * width, side * 0.25 * width))
        lamp = Material(name="headlamp", base_color=(0.7, 0.7, 0.68), roughness=0.1)
        rear = Material(name="rear lamp", base_color=(0.35, 0.01, 0.01), roughness=0.15)
        details.box((x0, front - 0.01, belt - 0.3), (x1, front + 0.25, belt - 0.17), lamp)
        details.box((x0, back - 0.25, belt - 0.32), (x1, back + 0.01, belt - 0.14), rear)
    plate = Material(name="plate", base_color=(0.6, 0.6, 0.55), roughness=0.4)
    details.box((-0.26, front - 0.02, low), (0.26, front + 0.2, low + 0.11), plate)
    details.box((-0.26, back - 0.2, low), (0.26, back + 0.02, low + 0.11), plate)
    details.box((-0.46 * width, front - 0.015, clearance), (0.46 * width, front + 0.4, clearance + 0.13), dark)
    details.box((-0.46 * width, back - 0.4, clearance), (0.46 * width, back + 0.015, clearance + 0.13), dark)
    parts.append((details.mesh("details"), np.eye(4)))
    return _grounded(merged("van" if is_van else "car", parts))


def _cabin(
    generator: np.random.Generator,
    width: float,
    length: float,
    belt: float,
    height: float,
    *,
    is_van: bool,
    paint: Material,
    pane: Material,
) -> Mesh:
    """A frustum on the body: panes all round between pillars, a painted roof."""
    front = (-0.46 if is_van else float(generator.uniform(-0.24, -0.16))) * length
    back = (0.47 if is_van else float(generator.uniform(0.28, 0.46))) * length
    rake = 0.16 * length if not is_van else 0.10 * length
    tail = 0.02 * length if is_van else float(generator.uniform(0.03, 0.12)) * length
    low, high = 0.46 * width, 0.38 * width
    bottom = [
        (-low, front, belt - 0.05),
        (low, front, belt - 0.05),
        (low, back, belt - 0.05),
        (-low, back, belt - 0.05),
    ]
    top = [
        (-high, front + rake, height),
        (high, front + rake, height),
        (high, back - tail, height),
        (-high, back - tail, height),
    ]
    builder = Builder()
    skin = paint
    lower, upper = np.asarray(bottom), np.asarray(top)
    for first in range(4):
        second = (first + 1) % 4
        ring = np.stack((lower[first], lower[second], upper[second], upper[first]))
        builder.polygon(ring, skin)
        normal = np.cross(ring[1] - ring[0], ring[3] - ring[0])
        normal /= np.linalg.norm(normal)
        is_blind = is_van and first in (1, 3)  # vans have panes at the driver's side alone
        posts = (0.06, 0.5, 0.94) if first in (1, 3) and not is_van else (0.06, 0.94)
        if is_blind:
            posts = (0.70, 0.95) if first == 3 else (0.05, 0.30)
        for left, right in pairwise(posts):
            gap = 0.015
            glazing = [
                _between(ring, left + gap, 0.12),
                _between(ring, right - gap, 0.12),
                _between(ring, right - gap, 0.88),
                _between(ring, left + gap, 0.88),
            ]
            builder.polygon(np.asarray(glazing) + 0.006 * normal, pane)
    builder.polygon(upper, skin)
    return builder.mesh("cabin")


def _between(ring: np.ndarray, u: float, v: float) -> np.ndarray:
    return (1 - v) * ((1 - u) * ring[0] + u * ring[1]) + v * ((1 - u) * ring[3] + u * ring[2])


def lamp_post(generator: np.random.Generator) -> Mesh:
    """A street lamp, straight or with an arm over the road."""
    height = float(generator.uniform(3.5, 8.5))
    metal = materials.metal(generator)
    glow = Material(name="lamp", base_color=(0.8, 0.8, 0.75), roughness=0.3)
    parts = [(cylinder("post", 0.08, height, metal, segments=12, top=0.045), np.eye(4))]
    if height > 5.0:
        reach = float(generator.uniform(0.8, 2.2))
        arm = ((0.0, 0.0, height - 0.05), (0.0, -0.4 * reach, height + 0.25), (0.0, -reach, height + 0.3))
        parts.append((tube("arm", arm, 0.035, metal, segments=8), np.eye(4)))
        parts.append((cushion("head", (0.25, 0.6, 0.14), metal), translation(0.0, -reach - 0.2, height + 0.22)))
        parts.append((cushion("lamp", (0.2, 0.5, 0.05), glow), translation(0.0, -reach - 0.2, height + 0.19)))
    else:
        parts.append((cushion("lamp", (0.4, 0.4, 0.45), glow, softness=0.8), translation(0.0, 0.0, height)))
        parts.append((cylinder("cap", 0.26, 0.06, metal, top=0.1), translation(0.0, 0.0, height + 0.43)))
    return merged("lamp post", parts)


def sign(generator: np.random.Generator) -> Mesh:
    """A traffic sign on a post: a disc, a triangle or a board."""
    height = float(generator.uniform(2.1, 2.9))
    metal = Material(name="galvanised", base_color=(0.35, 0.35, 0.36), metallic=0.8, roughness=0.5)
    colors = ((0.5, 0.02, 0.02), (0.02, 0.08, 0.4), (0.7, 0.7, 0.7), (0.6, 0.45, 0.02), (0.02, 0.25, 0.08))
    face = Material(name="sign", base_color=colors[int(generator.integers(5))], roughness=0.35)
    inner = Material(name="sign figure", base_color=(0.7, 0.7, 0.68), roughness=0.35)
    parts = [(cylinder("post", 0.035, height, metal, segments=10), np.eye(4))]
    kind = int(generator.integers(3))
    upright = translation(0.0, -0.045, height - 0.35) @ _about_x(0.5 * math.pi)
    if kind < 2:
        corners = 32 if kind == 0 else 3
        turned = upright @ place(0.0, 0.0, 0.0, 0.5 * math.pi)
        parts.append((cylinder("plate", 0.33, 0.02, face, segments=corners), turned))
        parts.append((cylinder("figure", 0.22, 0.024, inner, segments=corners), turned))
    else:
        wide, high = float(generator.uniform(0.4, 1.6)), float(generator.uniform(0.3, 0.8))
        board = Builder()
        board.box((-0.5 * wide, -0.03, height - high), (0.5 * wide, 0.0, height), face)
        board.box((-0.4 * wide, -0.035, height - 0.75 * high), (0.4 * wide, 0.0, height - 0.55 * high), inner)
        parts.append((board.mesh("board"), translation(0.0, -0.04, 0.0)))
    return merged("sign", parts)


def utility_pole(generator: np.random.Generator) -> Mesh:
    """A pole for wires, with a cross arm along x."""
    height = float(generator.uniform(6.5, 9.5))
    wood = materials.wood(generator, gloss=(0.8, 0.95))
    builder = Builder()
    builder.box((-1.0, -0.06, height - 0.6), (1.0, 0.06, height - 0.45), wood)
    parts = [(cylinder("pole", 0.14, height, wood, segments=12, top=0.1), np.eye(4)), (builder.mesh("arm"), np.eye(4))]
    porcelain = Material(name="insulator", base_color=(0.5, 0.5, 0.48), roughness=0.2)
    for x in (-0.9, 0.9):
        parts.append((cylinder("insulator", 0.05, 0.14, porcelain, segments=8), translation(x, 0.0, height - 0.45)))
    return merged("utility pole", parts)


def wires(start: np.ndarray, end: np.ndarray, sag: float) -> Mesh:
    """A wire that hangs between two points [m]."""
    share = np.linspace(0.0, 1.0, 14)[:, None]
    line = start + share * (end - start) - (4.0 * sag * share * (1.0 - share)) * (0.0, 0.0, 1.0)
    black = Material(name="wire", base_color=(0.02, 0.02, 0.02), roughness=0.7)
    return tube("wire", line, 0.012, black, segments=4)


def fence(generator: np.random.Generator, *, length: float = 2.4) -> Mesh:
    """A piece of a fence or a garden wall, lengthwise along x; pieces in a row close up."""
    kind = ("pickets", "rails", "bars", "boards", "wall")[int(generator.integers(5))]
    height = float(generator.uniform(0.8, 1.9))
    builder = Builder()
    half = 0.5 * length
    if kind == "wall":
        stone = materials.bricks(generator) if generator.random() < 0.6 else materials.plaster(generator)
        cap = materials.stone(generator, gloss=(0.6, 0.9))
        builder.box((-half, -0.12, 0.0), (half, 0.12, height), stone)
        builder.box((-half, -0.16, height), (half, 0.16, height + 0.07), cap)
        return builder.mesh("garden wall")
    is_iron = kind == "bars"
    skin = materials.metal(generator) if is_iron else materials.wood(generator, gloss=(0.5, 0.9))
    if not is_iron and generator.random() < 0.4:
        skin = materials.paint(generator, saturation=(0.0, 0.3))
    post = 0.03 if is_iron else 0.05
    builder.box((-half - post, -post, 0.0), (-half + post, post, height + 0.08), skin)
    levels = (0.25, 0.85) if kind != "rails" else (0.3, 0.6, 0.95)
    for level in levels:
        rail = 0.015 if is_iron else 0.035
        builder.box((-half, 0.0, level * height - rail), (half, 0.03, level * height + rail), skin)
    pitch, wide = {"pickets": (0.14, 0.08), "bars": (0.11, 0.016), "boards": (0.16, 0.155), "rails": (0.0, 0.0)}[kind]
    if pitch:
        for x in np.arange(-half + 0.5 * pitch, half, pitch):
            top = height * (1.0 + 0.02 * math.sin(20.0 * float(x)))
            builder.box((float(x) - 0.5 * wide, -0.022, 0.06), (float(x) + 0.5 * wide, 0.0, top), skin)
    return builder.mesh("fence")


def bench(generator: np.random.Generator) -> Mesh:
    """A park bench with slats."""
    wide = float(generator.uniform(1.4, 2.0))
    wood, iron = materials.wood(generator), materials.metal(generator)
    builder = Builder()
    for number in range(4):
        y = -0.2 + 0.12 * number
        builder.box((-0.5 * wide, y, 0.43), (0.5 * wide, y + 0.09, 0.46), wood)
    for number in range(3):
        z = 0.55 + 0.12 * number
        builder.box((-0.5 * wide, 0.26 + 0.03 * number, z), (0.5 * wide, 0.29 + 0.03 * number, z + 0.09), wood)
    for x in (-0.4 * wide, 0.4 * wide):
        builder.box((x - 0.03, -0.2, 0.0), (x + 0.03, -0.14, 0.43), iron)
        builder.box((x - 0.03, 0.2, 0.0), (x + 0.03, 0.26, 0.43), iron)
        builder.box((x - 0.03, -0.2, 0.38), (x + 0.03, 0.32, 0.43), iron)
        builder.box((x - 0.03, 0.29, 0.43), (x + 0.03, 0.36, 0.9), iron)
    return builder.mesh("bench")


def bin_(generator: np.random.Generator) -> Mesh:
    """A dustbin on wheels, or a round waste basket."""
    skin = materials.paint(generator)
    if generator.random() < 0.4:
        return cylinder("waste basket", 0.22, float(generator.uniform(0.6, 0.95)), skin, top=0.27)
    lid = materials.paint(generator)
    builder = Builder()
    builder.box((-0.26, -0.28, 0.06), (0.26, 0.28, 0.98), skin)
    builder.box((-0.29, -0.33, 0.98), (0.29, 0.33, 1.05), lid)
    builder.box((-0.24, 0.2, 0.0), (-0.18, 0.36, 0.18), Material(name="wheel", base_color=(0.02, 0.02, 0.02)))
    builder.box((0.18, 0.2, 0.0), (0.24, 0.36, 0.18), Material(name="wheel", base_color=(0.02, 0.02, 0.02)))
    return builder.mesh("dustbin")


def bollard(generator: np.random.Generator) -> Mesh:
    """A bollard with a reflecting ring."""
    height, radius = float(generator.uniform(0.6, 1.1)), float(generator.uniform(0.05, 0.12))
    post = cylinder("bollard", radius, height, materials.metal(generator), segments=14)
    ring = cylinder("ring", radius + 0.004, 0.08, Material(name="ring", base_color=(0.7, 0.7, 0.7)), segments=14)
    return merged("bollard", [(post, np.eye(4)), (ring, translation(0.0, 0.0, 0.8 * height))])


def bicycle_stand(generator: np.random.Generator) -> Mesh:
    """Hoops to lock bicycles to."""
    metal = materials.metal(generator)
    angles = np.linspace(0.0, math.pi, 9)
    arch = np.stack((0.35 * np.cos(angles), np.zeros(9), 0.55 + 0.3 * np.sin(angles)), axis=1)
    path = np.concatenate((((0.35, 0.0, 0.0),), arch, ((-0.35, 0.0, 0.0),)))
    hoop = tube("hoop", path, 0.025, metal, segments=8)
    count = int(generator.integers(2, 6))
    return merged("bicycle stand", [(hoop, translation(0.0, 0.9 * (n - 0.5 * (count - 1)), 0.0)) for n in range(count)])


def figure(generator: np.random.Generator) -> Mesh:
    """A person as a simple figure of rounded parts."""
    tall = float(generator.uniform(1.5, 1.9))
    skin = Material(name="skin", base_color=materials.varied(generator, (0.4, 0.24, 0.16), 0.4), roughness=0.6)
    shirt, trousers = materials.fabric(generator), materials.fabric(generator)
    stride = float(generator.uniform(0.0, 0.25))
    parts = []
    for side in (-1.0, 1.0):
        foot = (side * 0.11, -side * stride, 0.04)
        leg = (foot, (side * 0.10, -0.5 * side * stride, 0.26 * tall), (side * 0.08, 0.0, 0.5 * tall))
        parts.append((tube("leg", leg, (0.05, 0.065, 0.09), trousers, segments=10), np.eye(4)))
        arm = (
            (side * 0.2, 0.0, 0.8 * tall),
            (side * 0.25, side * 0.5 * stride, 0.62 * tall),
            (side * 0.23, side * stride - 0.05, 0.48 * tall),
        )
        parts.append((tube("arm", arm, (0.055, 0.05, 0.04), shirt, segments=8), np.eye(4)))
        shoe = cushion("shoe", (0.1, 0.27, 0.09), Material(name="shoe", base_color=(0.03, 0.03, 0.03)))
        parts.append((shoe, translation(foot[0], foot[1] - 0.05, 0.0)))
    parts.append((cushion("torso", (0.4, 0.24, 0.36 * tall), shirt, softness=0.6), translation(0.0, 0.0, 0.47 * tall)))
    parts.append((cushion("head", (0.16, 0.2, 0.14 * tall), skin, softness=0.9), translation(0.0, 0.0, 0.86 * tall)))
    hair = Material(name="hair", base_color=materials.varied(generator, (0.06, 0.04, 0.03), 0.6), roughness=0.7)
    parts.append((cushion("hair", (0.18, 0.2, 0.08 * tall), hair, softness=0.9), translation(0.0, 0.02, 0.93 * tall)))
    return _grounded(merged("figure", parts))


# In place of pieces of the inner catalog, of which there are few or heavy ones.
_MADE_SHARE: Mapping[str, float] = {"tree": 0.6, "vehicle": 0.15, "cycle": 0.1, "street": 0.4, "character": 0.0}

MAKERS: Mapping[str, tuple[Callable[[np.random.Generator], Mesh], ...]] = {
    "tree": (broadleaf, broadleaf, conifer, bush),
    "vehicle": (car,),
    "cycle": (bicycle_stand,),
    "street": (lamp_post, sign, bench, bin_, bollard, bicycle_stand),
    "character": (figure,),
}


def _shell(generator: np.random.Generator, center: np.ndarray, radius: float, count: int) -> np.ndarray:
    # Most leaves are near the outside of their cluster.
    direction = generator.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    share = generator.uniform(0.35, 1.0, size=(count, 1)) ** 0.5
    return center + radius * share * direction * (1.0, 1.0, 0.75)


def _grounded(mesh: Mesh) -> Mesh:
    low, high = mesh.bounds
    shift = translation(-0.5 * float(low[0] + high[0]), -0.5 * float(low[1] + high[1]), -float(low[2]))
    return merged(mesh.name, [(mesh, shift)])


def _about_x(angle: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[1:3, 1:3] = ((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))
    return matrix


def _about_y(angle: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 0], matrix[0, 2], matrix[2, 0], matrix[2, 2] = (
        math.cos(angle),
        math.sin(angle),
        -math.sin(angle),
        math.cos(angle),
    )
    return matrix


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(1 << 20))
