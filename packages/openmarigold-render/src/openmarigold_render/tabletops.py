# SPDX-License-Identifier: Apache-2.0
"""Close views of things on a table, a shelf or the floor, from 0.3 to 1.5 m and often steeply from above."""

from __future__ import annotations

import math

import numpy as np

from openmarigold_render.placement import Box, Occupied, find_spot, placed
from openmarigold_render.rays import Caster
from openmarigold_render.rooms import RoomBuilder, finished
from openmarigold_render.scene import (
    ROOM_KINDS,
    Camera,
    Catalog,
    Item,
    Lens,
    Real,
    Setting,
    Vector,
    ViewRules,
    look_at,
)

TABLETOP_RULES = ViewRules(
    min_hits=0.9,
    min_depth=0.13,
    median_depth=(0.25, 2.0),
    min_log_spread=0.05,
    max_plane=0.93,
    min_planes=3,
    near=(0.18, 0.1),
    min_distance=0.25,
)

_CARRIERS = (("table", 0.68), ("storage", 0.10), ("floor", 0.10), ("shelf", 0.12))
_SHELF_NAMES = ("bookcase",)


def sample_tabletop(generator: np.random.Generator, catalog: Catalog) -> Setting:
    """Things on a surface in a room; the room is only background."""
    kind = ROOM_KINDS[int(generator.integers(len(ROOM_KINDS)))]
    day = bool(generator.random() < 0.6)
    size = (float(generator.uniform(2.6, 5.0)), float(generator.uniform(2.6, 5.0)), float(generator.uniform(2.3, 3.0)))
    room = RoomBuilder(generator, catalog, size=size, kind=kind, day=day)
    room.build_shell(doorway=0.15, windows=0.4 if day else 0.15)
    carrier = str(generator.choice([name for name, _ in _CARRIERS], p=[share for _, share in _CARRIERS]))
    support, area, top = _stage(room, carrier)
    if support:
        room.furnish(density=float(generator.uniform(0.1, 0.6)))
    else:
        room.furnish(density=float(generator.uniform(0.3, 0.8)))
    count = _count(generator)
    places = _set_out(room, area, support, top, count, inner=carrier == "shelf")
    room.light()
    _light_above(room, area, top)
    focus = places or [(area.x, area.y, area.high)]

    def propose(generator: np.random.Generator, lens: Lens) -> Camera:
        return _view(generator, lens, focus, area, from_front=carrier == "shelf")

    return Setting(
        kind="tabletops",
        scene=finished(room),
        propose=propose,
        rules=TABLETOP_RULES,
        facts={"room": kind, "day": day, "carrier": carrier, "things": len(places)},
    )


def _stage(room: RoomBuilder, carrier: str) -> tuple[int, Box, Real]:
    """What carries the things: its place among the instances, its footprint, and the height to look down from."""
    piece = None
    if carrier == "table":
        piece = room.place_table(centered=True)
    elif carrier != "floor":
        item = _carrier_item(room, shelf=carrier == "shelf")
        piece = None if item is None else room.place_table(item, centered=True)
    if piece is None:
        reach = min(0.7, 0.3 * room.width, 0.3 * room.depth)
        area = Box(0.5 * room.width, 0.5 * room.depth, reach, reach, 0.0, -0.01, 0.0)
        room.occupied.take(Box(area.x, area.y, reach, reach, 0.0, 0.0, 0.6))
        return 0, area, 0.7
    return piece.number, piece.box, piece.box.high + 0.3


def _carrier_item(room: RoomBuilder, *, shelf: bool) -> Item | None:
    for _ in range(8):
        item = room.catalog.draw("storage", room.generator)
        if item is not None and (item.name in _SHELF_NAMES) == shelf and (shelf or item.size[2] < 1.1):
            return item
    return None


def _count(generator: np.random.Generator) -> int:
    draw = generator.random()
    if draw < 0.3:
        return int(generator.integers(1, 5))
    return int(generator.integers(5, 12)) if draw < 0.75 else int(generator.integers(12, 26))


def _set_out(
    room: RoomBuilder, area: Box, support: int, top: Real, count: int, *, inner: bool
) -> list[tuple[Real, Real, Real]]:
    """Sets things out on the stage, close together or spread; returns their middles."""
    generator = room.generator
    caster = Caster(room.instances)
    taken = Occupied()
    spread = float(generator.uniform(0.35, 1.0))
    places, added = [], []
    for _ in range(count):
        item = room.catalog.draw("object", generator, room=room.kind, max_size=(0.45, 0.45, 0.5))
        if item is None:
            continue
        height = room.uniform(area.low + 0.1, area.high) if inner else top
        spot = find_spot(
            caster, item, area, taken, generator, from_height=height, support=support,
            spread=1.0 if inner else spread, tries=8,
        )  # fmt: skip
        if spot is not None:
            taken.take(spot)
            added.append(placed(item, spot, generator))
            places.append((spot.x, spot.y, 0.5 * (spot.low + spot.high)))
    room.instances += added
    return places


def _light_above(room: RoomBuilder, area: Box, top: Real) -> None:
    """A lamp of its own for the stage, in half of the scenes."""
    if not room.chance(0.5):
        return
    angle = room.uniform(0.0, 2.0 * math.pi)
    away = room.uniform(0.1, 1.0)
    x = float(np.clip(area.x + away * math.cos(angle), 0.15, room.width - 0.15))
    y = float(np.clip(area.y + away * math.sin(angle), 0.15, room.depth - 0.15))
    z = min(room.height - 0.2, top + room.uniform(0.4, 1.4))
    room.add_lamp((x, y, z), room.uniform(8.0, 45.0), radius=room.uniform(0.02, 0.3))


def _view(
    generator: np.random.Generator,
    lens: Lens,
    places: list[tuple[Real, Real, Real]],
    area: Box,
    *,
    from_front: bool,
) -> Camera:
    target = np.array(places[int(generator.integers(len(places)))])
    target += generator.normal(0.0, 0.07, size=3) * (1.0, 1.0, 0.5)
    distance = float(np.exp(generator.uniform(np.log(0.32), np.log(1.5))))
    if from_front:
        azimuth = area.angle - 0.5 * math.pi + float(generator.normal(0.0, 0.45))
        elevation = float(generator.normal(0.15, 0.25))
    else:
        azimuth = float(generator.uniform(0.0, 2.0 * math.pi))
        elevation = math.radians(float(generator.uniform(12.0, 86.0)))
    reach = distance * math.cos(elevation)
    position: Vector = (
        float(target[0] + reach * math.cos(azimuth)),
        float(target[1] + reach * math.sin(azimuth)),
        float(target[2] + distance * math.sin(elevation)),
    )
    pose = look_at(position, target, roll=float(generator.normal(0.0, 0.08)))
    fov = float(generator.uniform(lens.fov[0], max(lens.fov[0], lens.fov[1] - math.radians(10.0))))
    return Camera(pose, lens.width, lens.height, lens.focal_px(fov))
