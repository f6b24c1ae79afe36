# SPDX-License-Identifier: Apache-2.0
"""Scenes of thin things: paths along fences that one looks through, and rooms with lamps on cords and with animals.

What is thinner than a cell of a model's latents is learned from many examples only; other scenes have few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from openmarigold_render import barriers, houses, outdoors
from openmarigold_render.placement import Box, standing
from openmarigold_render.rooms import ROOM_RULES, RoomBuilder, finished
from openmarigold_render.scene import (
    ROOM_KINDS,
    Camera,
    Catalog,
    Instance,
    Item,
    Lens,
    Real,
    Scene,
    Setting,
    Vector,
    ViewRules,
    look_at,
    place,
)
from openmarigold_render.shell import lamp_light
from openmarigold_render.solids import Builder
from openmarigold_render.terrain import Ground, backdrop, camera, landscape, plant_tree, weather

PATH_RULES = ViewRules(
    min_hits=0.55,
    min_depth=0.3,
    median_depth=(1.0, 60.0),
    min_log_spread=0.35,
    max_plane=0.55,
    min_planes=14,
    near=(0.8, 0.3),
    min_distance=1.2,
)
INDOOR_RULES = replace(ROOM_RULES, min_depth=0.25, min_distance=0.6)
_PATH_SHARE = 0.65


def sample_thin(generator: np.random.Generator, catalog: Catalog, outdoor_catalog: Catalog | None = None) -> Setting:
    """A path along fences, or a room with lamps on cords and an animal.

    Args:
        catalog: where furniture comes from.
        outdoor_catalog: where trees, people and textures of the ground come from; procedural ones where it has none.
    """
    if generator.random() < _PATH_SHARE:
        return fenced_path(generator, outdoor_catalog)
    return hung_room(generator, catalog)


def fenced_path(generator: np.random.Generator, catalog: Catalog | None = None) -> Setting:
    """A path along y between fences, with rocks, stems, bushes and houses behind them."""
    ground = Ground(generator, outdoors.OutdoorCatalog(catalog))
    landscape(ground, float(generator.uniform(25.0, 70.0)), use="lawn" if generator.random() < 0.6 else "ground")
    half = float(generator.uniform(0.5, 1.8))
    _path(ground, half)
    edges = []
    for side in (-1.0, 1.0):
        away = half + float(generator.uniform(0.1, 1.3))
        if generator.random() < (0.95 if side > 0 else 0.5):
            _fence_row(ground, side, away)
            edges.append((side, away))
        _behind(ground, side, away)
    for _ in range(int(generator.integers(0, 4))):
        _beside(ground, half)
    backdrop(ground, 12.0, 160.0, 90, inside=lambda x, y: abs(x) < 16.0 and y < 60.0)
    sky, lights = weather(generator)
    scene = Scene(instances=tuple(ground.instances), lights=lights, sky=sky)
    return Setting(
        kind="thin",
        scene=scene,
        propose=lambda chooser, lens: _path_view(chooser, lens, half, edges, ground),
        rules=PATH_RULES,
        facts={"place": "path", "fences": len(edges)},
    )


def _path(ground: Ground, half: float) -> None:
    builder = Builder()
    cover = ground.surface("ground" if ground.generator.random() < 0.6 else "pavement")
    for start in np.arange(-24.0, 100.0, 4.0).tolist():
        low, high = (-half, start, 0.01), (half, start + 4.0, 0.01)
        builder.polygon((low, (high[0], start, 0.01), high, (-half, high[1], 0.01)), cover)
    ground.add(builder.mesh("path"), 0.0, 0.0)
    ground.take((-half, -24.0, half, 100.0))


def _fence_row(ground: Ground, side: float, away: float) -> None:
    """One kind of fence along the path, about parallel to it, now and then with a gap."""
    generator = ground.generator
    length = float(generator.uniform(1.6, 2.6))
    piece = barriers.any_fence(generator, length)
    turn, gap = float(generator.normal(0.0, 0.03)), 0.08 if generator.random() < 0.4 else 0.0
    for number in range(22):
        y = (number - 6) * length
        if number < 4 or generator.random() >= gap:
            x = side * away + math.sin(turn) * y
            ground.add(piece, x, y * math.cos(turn), 0.0, 0.5 * math.pi - turn)
    x = sorted((side * (away - 0.15), side * (away + 0.15)))
    ground.take((x[0], -6.0 * length, x[1], 16.0 * length))


def _behind(ground: Ground, side: float, away: float) -> None:
    """Rocks, bushes, grass, stems, walls or houses on one side of the path."""
    generator = ground.generator

    def spot(nearest: float, farthest: float) -> tuple[float, float]:
        return side * (away + float(generator.uniform(nearest, farthest))), float(generator.uniform(-6.0, 30.0))

    if generator.random() < 0.5:
        rocks = [barriers.rock(generator, float(generator.uniform(0.3, 2.6))) for _ in range(4)]
        for _ in range(int(generator.integers(8, 45))):
            x, y = spot(0.3, 6.0)
            mesh = rocks[int(generator.integers(4))]
            low, high = mesh.bounds
            reach = 0.5 * float(max(high[0] - low[0], high[1] - low[1]))
            if abs(x) - reach > away:
                ground.add(mesh, x, y, 0.0, float(generator.uniform(0.0, 6.28)))
    if generator.random() < 0.45:
        patches = [outdoors.grass_patch(generator) for _ in range(2)]
        for _ in range(70):
            x, y = spot(-0.2, 4.0)
            ground.add(patches[int(generator.integers(2))], x, y, 0.0, float(generator.uniform(0.0, 6.28)))
    stems = [barriers.sapling(generator) for _ in range(3)]
    for _ in range(int(generator.integers(0, 16))):
        ground.stand(stems[int(generator.integers(3))], *spot(0.3, 7.0), 0.0, float(generator.uniform(0.0, 6.28)))
    draw = generator.random()
    if draw < 0.25:
        piece = outdoors.hedge(generator, length=2.5)
        for y in np.arange(-10.0, 45.0, 2.5).tolist():
            ground.stand(piece, side * (away + 2.2), y, 0.0, 0.5 * math.pi, margin=-0.15)
    elif draw < 0.55:
        style = (houses.DETACHED, houses.FARM, houses.TERRACE)[int(generator.integers(3))]
        for y in (-4.0, 14.0, 32.0):
            mesh = houses.house(generator, style, ground.catalog)
            x = side * (away + float(generator.uniform(1.5, 9.0)) - float(mesh.bounds[0][1]))
            ground.stand(mesh, x, y, 0.0, -side * 0.5 * math.pi, margin=0.1)
    trees = ground.kinds("tree", 4, max_size=(8.0, 8.0, 12.0))
    for _ in range(int(generator.integers(4, 26)) if trees else 0):
        plant_tree(ground, trees, *spot(0.6, 14.0))


def _beside(ground: Ground, half: float) -> None:
    """An animal, a person, a bicycle, a bench or a post on or next to the path."""
    generator = ground.generator
    at = float(generator.uniform(-half, half)), float(generator.uniform(1.0, 12.0))
    draw = generator.random()
    if draw < 0.4:
        mesh = barriers.animal(generator)
    else:
        item = ground.draw(("character", "cycle", "street")[int(3.0 * (draw - 0.4) / 0.6)], max_size=(2.0, 2.0, 5.0))
        if item is None:
            return
        mesh = item.load()
    ground.add(mesh, *at, 0.01, float(generator.uniform(0.0, 2.0 * math.pi)))


def _path_view(
    generator: np.random.Generator, lens: Lens, half: float, edges: Sequence[tuple[float, float]], ground: Ground
) -> Camera | None:
    """From the path along it or at a fence; now and then from behind a fence."""
    x, y = float(generator.uniform(-0.8 * half, 0.8 * half)), float(generator.uniform(-6.0, 12.0))
    heading = (0.5 if generator.random() < 0.8 else -0.5) * math.pi + float(generator.normal(0.0, 0.2))
    if edges and generator.random() < 0.7:
        side, away = edges[int(generator.integers(len(edges)))]
        ahead = float(generator.uniform(0.15, 1.35))  # from along the path to nearly straight at the fence
        if generator.random() < 0.2:
            x = side * (away + float(generator.uniform(0.5, 2.5)))
            if not ground.is_free((x - 0.4, y - 0.4, x + 0.4, y + 0.4)):
                return None
            side = -side
        heading = 0.5 * math.pi - side * ahead
    height = float(generator.uniform(0.5, 1.8))
    return camera(generator, lens, np.array((x, y, height)), heading)


def hung_room(generator: np.random.Generator, catalog: Catalog) -> Setting:
    """A furnished room with lamps on long cords, an animal on the floor, and stems or a railing now and then."""
    kind = ROOM_KINDS[int(generator.integers(len(ROOM_KINDS)))]
    day = bool(generator.random() < 0.65)
    size = (float(generator.uniform(2.8, 6.5)), float(generator.uniform(2.8, 6.5)), float(generator.uniform(2.3, 3.3)))
    room = RoomBuilder(generator, catalog, size=size, kind=kind, day=day)
    room.build_shell(doorway=0.25, windows=0.7 if day else 0.3)
    focuses: list[Vector] = []
    focuses += _stand_animal(room) if room.chance(0.6) else []
    room.furnish(density=room.uniform(0.3, 0.85))
    focuses += _hang_lamps(room)
    focuses += _rail(room) if room.chance(0.25) else []
    room.strew(clutter=room.uniform(0.1, 0.7))
    room.light()
    focuses += [(piece.box.x, piece.box.y, room.uniform(0.3, 1.0)) for piece in room.pieces[:2]]

    def propose(generator: np.random.Generator, lens: Lens) -> Camera:
        return _indoor_view(generator, lens, size, focuses or [(0.5 * size[0], 0.5 * size[1], 1.2)])

    return Setting(
        kind="thin",
        scene=finished(room),
        propose=propose,
        rules=INDOOR_RULES,
        facts={"place": "room", "room": kind, "day": day, "size": [round(edge, 2) for edge in size]},
    )


def _stand_animal(room: RoomBuilder) -> list[Vector]:
    mesh = barriers.animal(room.generator)
    width, depth, height = mesh.size.tolist()
    item = Item(name="animal", group="character", size=(width, depth, height), load=lambda: mesh)
    for _ in range(6):
        x, y = room.uniform(0.4, room.width - 0.4), room.uniform(0.4, room.depth - 0.4)
        if room.stand(item, standing(item, x, y, room.uniform(0.0, 2.0 * math.pi))):
            return [(x, y, 0.5 * height)]
    return []


def _hang_lamps(room: RoomBuilder) -> list[Vector]:
    """One to three rows or groups of equal lamps; returns their middles."""
    found: list[Vector] = []
    for _ in range(int(room.generator.integers(1, 4))):
        low = room.uniform(1.25, min(2.0, room.height - 0.5))
        mesh = barriers.hanging_lamp(room.generator, room.height - low)
        radius = 0.5 * float(max(mesh.size[0], mesh.size[1]))
        x, y = room.uniform(0.4, room.width - 0.4), room.uniform(0.4, room.depth - 0.4)
        angle, step = room.uniform(0.0, math.pi), 2.0 * radius + room.uniform(0.08, 0.6)
        for number in range(int(room.generator.integers(1, 5))):
            at_x, at_y = x + number * step * math.cos(angle), y + number * step * math.sin(angle)
            drop = room.uniform(0.0, 0.25) if number % 2 else 0.0
            body = Box(at_x, at_y, radius, radius, 0.0, low + drop, room.height + drop)
            if not body.inside(room.width, room.depth) or not room.occupied.is_free(body):
                continue
            room.occupied.take(body)
            room.instances.append(Instance(mesh, place(at_x, at_y, low + drop), "hanging lamp"))
            if mesh.materials[0].emission:
                room.lights.append(lamp_light((at_x, at_y, low + drop - 0.04), room.generator, room.uniform(2.0, 20.0)))
            found.append((at_x, at_y, low + drop + 0.1))
    return found


def _rail(room: RoomBuilder) -> list[Vector]:
    """A railing or a screen of laths that stands free in the room."""
    generator = room.generator
    length = room.uniform(1.0, 2.2)
    mesh = (barriers.railing if room.chance(0.6) else barriers.lath_fence)(generator, length)
    width, depth, height = mesh.size.tolist()
    item = Item(name=mesh.name, group="decor", size=(width, depth, height), load=lambda: mesh)
    for _ in range(6):
        x, y = room.uniform(0.2, 0.8) * room.width, room.uniform(0.2, 0.8) * room.depth
        angle = 0.5 * math.pi * int(generator.integers(2)) + float(generator.normal(0.0, 0.1))
        if room.stand(item, standing(item, x, y, angle)):
            return [(x, y, 0.6 * height)]
    return []


def _indoor_view(generator: np.random.Generator, lens: Lens, size: Vector, focuses: Sequence[Vector]) -> Camera:
    width, depth, height = size
    target = np.array(focuses[int(generator.integers(len(focuses)))], dtype=np.float64)
    target += generator.normal(0.0, 0.25, size=3) * (1.0, 1.0, 0.6)
    distance, angle = float(generator.uniform(0.8, 4.0)), float(generator.uniform(0.0, 2.0 * math.pi))
    low = 0.35 if target[2] < 0.8 else 0.8
    position: tuple[Real, Real, Real] = (
        float(np.clip(target[0] + distance * math.cos(angle), 0.15, width - 0.15)),
        float(np.clip(target[1] + distance * math.sin(angle), 0.15, depth - 0.15)),
        float(np.clip(generator.normal(1.3, 0.3), low, height - 0.25)),
    )
    if np.linalg.norm(target - position) < 0.5:
        target = np.array((0.5 * width, 0.5 * depth, 1.0))
    if np.linalg.norm(target - position) < 0.3:
        target[0] += 0.6
    pose = look_at(position, target, roll=float(generator.normal(0.0, 0.04)))
    return Camera(pose, lens.width, lens.height, lens.focal_px(float(generator.uniform(*lens.fov))))
