# SPDX-License-Identifier: Apache-2.0
"""Furnished rooms by type, in a room [0, width] x [0, depth] x [0, height]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from openmarigold_render import materials
from openmarigold_render.placement import Box, Occupied, find_spot, placed, random_tint, scatter, standing
from openmarigold_render.primitives import sheet
from openmarigold_render.rays import Caster
from openmarigold_render.scene import (
    ROOM_KINDS,
    Camera,
    Catalog,
    Instance,
    Item,
    Lens,
    Light,
    Material,
    Mesh,
    Real,
    RoomKind,
    Scene,
    Setting,
    Vector,
    ViewRules,
    look_at,
    place,
    rescaled,
    translation,
)
from openmarigold_render.shell import (
    SIDES,
    Frame,
    Opening,
    curtains,
    daylight,
    floor_mesh,
    lamp_light,
    outside,
    reveal_mesh,
    room_sky,
    skirting,
    sunlight,
    wall_frame,
    wall_mesh,
    window_pieces,
)

ROOM_RULES = ViewRules(
    min_hits=0.6,
    min_depth=0.28,
    median_depth=(0.9, 12.0),
    min_log_spread=0.24,
    max_plane=0.42,
    min_planes=12,
    near=(0.6, 0.25),
    min_distance=0.8,
)

_WALL_GROUPS: dict[RoomKind, tuple[tuple[str, Real], ...]] = {
    "living": (("storage", 3.0), ("seat", 2.0), ("decor", 2.0)),
    "bed": (("storage", 3.0), ("seat", 0.4), ("decor", 1.5)),
    "kitchen": (("appliance", 4.0), ("storage", 2.0), ("decor", 0.5)),
    "bath": (("appliance", 4.0), ("storage", 1.0), ("decor", 1.0)),
    "office": (("storage", 3.0), ("table", 1.5), ("decor", 1.5)),
    "mixed": (("storage", 2.0), ("seat", 1.0), ("appliance", 1.0), ("decor", 2.0)),
}
_TABLES: dict[RoomKind, tuple[int, int]] = {
    "living": (1, 2), "bed": (0, 1), "kitchen": (1, 1), "bath": (0, 0), "office": (1, 3), "mixed": (1, 2),
}  # fmt: skip
_CARRIERS = ("table", "storage", "appliance", "wall")


@dataclass(frozen=True)
class _Piece:
    item: Item
    box: Box
    number: int
    """Place in the list of instances."""


class RoomBuilder:
    """A room under construction: shell, furniture, things, lights, in this order."""

    def __init__(
        self, generator: np.random.Generator, catalog: Catalog, *, size: Vector, kind: RoomKind, day: bool
    ) -> None:
        self.generator = generator
        self.catalog = catalog
        self.width, self.depth, self.height = size
        self.kind: RoomKind = kind
        self.day = day
        self.sky = room_sky(generator, day=day)
        self.occupied = Occupied()
        self.instances: list[Instance] = []
        self.lights: list[Light] = []
        self.pieces: list[_Piece] = []
        self.windows: list[tuple[Frame, Opening]] = []
        self._openings: list[list[Opening]] = [[] for _ in range(SIDES)]
        self._hung: list[list[Opening]] = [[] for _ in range(SIDES)]

    def chance(self, share: Real) -> bool:
        return bool(self.generator.random() < share)

    def uniform(self, low: Real, high: Real) -> float:
        """A random number between the two; `low` if `high` is not larger."""
        return float(self.generator.uniform(low, max(low, high)))

    # Shell

    def build_shell(self, *, doorway: Real = 0.35, windows: Real | None = None) -> None:
        """Walls with windows, doors and, with a chance of `doorway`, a second room behind one of them."""
        share = windows if windows is not None else 0.5 if self.day else 0.25
        annex_side = int(self.generator.integers(SIDES)) if self.chance(doorway) else None
        common = self._surface("wall", materials.wall)
        odd = int(self.generator.integers(SIDES)) if self.chance(0.25) else None
        floor = self._surface("floor", materials.floor)
        ceiling = materials.plaster(self.generator, saturation=(0.0, 0.05))
        self._add(floor_mesh(self.width, self.depth, floor), np.eye(4), "floor")
        self._add(floor_mesh(self.width, self.depth, ceiling, up=False), translation(0, 0, self.height), "ceiling")
        board = materials.paint(self.generator) if self.chance(0.5) else materials.wood(self.generator)
        board_height = self.uniform(0.05, 0.14) if self.chance(0.75) else 0.0
        for side in range(SIDES):
            frame = wall_frame(side, self.width, self.depth)
            if side == annex_side:
                self._cut_doorway(side, frame)
            elif self.chance(share):
                self._cut_windows(side, frame)
            material = self._surface("wall", materials.wall) if side == odd else common
            holes = self._openings[side]
            self._add(wall_mesh(frame.length, self.height, holes, material), frame.transform, "wall")
            deep = self.uniform(0.08, 0.3)
            for hole in holes:
                is_window = side != annex_side
                thick = deep if is_window else 0.12
                trim = materials.plaster(self.generator, saturation=(0.0, 0.1))
                self._add(reveal_mesh(hole, thick, trim), frame.transform, "reveal")
                if is_window:
                    self._fit_window(side, frame, hole, deep)
                else:
                    self._build_annex(frame, hole, common, floor, ceiling)
            self._place_door(side, frame)
            if board_height:
                solid = [*holes, *(one for one in self._hung[side] if one.bottom < 0.1)]
                self.instances += skirting(frame, solid, board_height, board)
        if self.windows:
            level = float(self.generator.choice((-0.12, -3.0, -6.0, -14.0)))
            self.instances += outside(self.windows, level, self.catalog, self.generator)

    def _surface(self, use: str, make: Callable[[np.random.Generator], Material]) -> Material:
        path = self.catalog.texture(use, self.generator) if self.chance(0.3) else None
        return make(self.generator) if path is None else materials.image_surface(path, self.generator)

    def _add(self, mesh: Mesh, transform: np.ndarray, name: str) -> None:
        self.instances.append(Instance(mesh, transform, name))

    def _cut_windows(self, side: int, frame: Frame) -> None:
        sill = float(self.generator.choice((0.05, 0.5, 0.8, 0.9, 1.0)))
        top = min(self.height - 0.15, sill + self.uniform(0.9, 2.0))
        if top - sill < 0.6:
            return
        count = 1 if frame.length < 3.5 or self.chance(0.5) else 2
        bay = frame.length / count
        for number in range(count):
            width = min(self.uniform(0.7, 2.6), bay - 0.7)
            if width < 0.5:
                continue
            left = number * bay + self.uniform(0.3, bay - width - 0.3)
            self._openings[side].append(Opening(left, left + width, sill, top))

    def _cut_doorway(self, side: int, frame: Frame) -> None:
        width = self.uniform(0.85, min(2.0, frame.length - 1.0))
        left = self.uniform(0.3, frame.length - width - 0.3)
        hole = Opening(left, left + width, 0.0, min(self.height - 0.1, self.uniform(2.0, 2.3)))
        self._openings[side].append(hole)
        x, y, _ = frame.point(left + 0.5 * width, -0.45, 0.0)
        self.occupied.take(Box(x, y, 0.5 * width, 0.45, frame.angle, 0.0, 2.0))

    def _fit_window(self, side: int, frame: Frame, hole: Opening, deep: Real) -> None:
        self.windows.append((frame, hole))
        self.instances += window_pieces(frame, hole, self.catalog, self.generator, deep=deep)
        if self.chance(0.5):
            self.instances += curtains(frame, hole, self.generator, self.height)
            x, y, _ = frame.point(0.5 * (hole.left + hole.right), -0.08, 0.0)
            self.occupied.take(Box(x, y, 0.5 * hole.width + 0.2, 0.12, frame.angle, 0.0, self.height))
        else:  # whatever stands here stays below the sill
            x, y, _ = frame.point(0.5 * (hole.left + hole.right), -0.15, 0.0)
            self.occupied.take(Box(x, y, 0.5 * hole.width, 0.15, frame.angle, hole.bottom, hole.top))
        self._hung[side].append(Opening(hole.left - 0.3, hole.right + 0.3, hole.bottom - 0.1, hole.top + 0.3))

    def _build_annex(self, frame: Frame, hole: Opening, wall: Material, floor: Material, ceiling: Material) -> None:
        """A furnished room behind a doorway, seen through it."""
        width, deep = max(hole.width + 1.2, self.uniform(2.0, 4.5)), self.uniform(1.8, 4.5)
        shift = self.uniform(0.3, width - hole.width - 0.3)
        if self.chance(0.5):
            wall = materials.wall(self.generator)
        if self.chance(0.35):
            floor = materials.floor(self.generator)
        to_world = frame.transform @ translation(hole.left - shift, 0.12, 0.0)
        opening = Opening(shift, shift + hole.width, 0.0, hole.top)
        back = np.diag((-1.0, -1.0, 1.0, 1.0))
        back[:2, 3] = (width, 0.0)
        mirrored = Opening(width - opening.right, width - opening.left, 0.0, opening.top)
        self._add(wall_mesh(width, self.height, [mirrored], wall), to_world @ back, "wall")
        for side in (0, 1, 3):
            inner = wall_frame(side, width, deep)
            self._add(wall_mesh(inner.length, self.height, [], wall), to_world @ inner.transform, "wall")
        self._add(floor_mesh(width, deep, floor), to_world, "floor")
        self._add(floor_mesh(width, deep, ceiling, up=False), to_world @ translation(0, 0, self.height), "ceiling")
        threshold = floor_mesh(hole.width, 0.12, materials.wood(self.generator))
        self._add(threshold, frame.transform @ translation(hole.left, 0.0, 0.0), "threshold")
        taken = Occupied()
        inner = wall_frame(0, width, deep)
        for _ in range(int(self.generator.integers(1, 5))):
            group = str(self.generator.choice(("storage", "decor", "seat", "appliance", "chair")))
            item = self.catalog.draw(group, self.generator, room=self.kind, max_size=(width - 0.2, 0.8, 2.0))
            if item is None:
                continue
            x = self.uniform(0.5 * item.size[0] + 0.02, width - 0.5 * item.size[0] - 0.02)
            spot = standing(item, x, deep - 0.5 * item.size[1] - 0.03, 0.0)
            if spot.inside(width, deep) and taken.is_free(spot, margin=0.01):
                taken.take(spot)
                at = to_world @ place(spot.x, spot.y, 0.0)
                self.instances.append(Instance(item.load(), at, item.name, random_tint(self.generator)))
        x, y, z = (to_world @ (0.5 * width, 0.5 * deep, self.height - 0.4, 1.0))[:3].tolist()
        self.lights.append(lamp_light((x, y, z), self.generator, self.uniform(10.0, 70.0)))

    def _place_door(self, side: int, frame: Frame) -> None:
        item = self.catalog.draw("door", self.generator) if self.chance(0.3) else None
        if item is None:
            return
        width, deep, height = item.size
        deep = min(deep, 0.08)
        if frame.length < width + 0.4 or height > self.height - 0.05:
            return
        x = self.uniform(0.5 * width + 0.1, frame.length - 0.5 * width - 0.1)
        spot = Opening(x - 0.5 * width, x + 0.5 * width, 0.0, height)
        if not self._is_bare(side, spot):
            return
        self._hung[side].append(spot)
        leaf = rescaled(item.load(), (width, deep, height))
        self._add(leaf, frame.transform @ translation(x, -0.5 * deep - 0.001, 0.0), "door")
        wx, wy, _ = frame.point(x, -0.4, 0.0)
        self.occupied.take(Box(wx, wy, 0.5 * width, 0.4, frame.angle, 0.0, 2.0))

    def _is_bare(self, side: int, spot: Opening) -> bool:
        return not any(
            spot.left < one.right + 0.03
            and one.left < spot.right + 0.03
            and spot.bottom < one.top
            and one.bottom < spot.top
            for one in (*self._openings[side], *self._hung[side])
        )

    # Furniture

    def stand(self, item: Item, spot: Box) -> bool:
        """Puts a piece into its box if that is free and in the room."""
        if (
            not spot.inside(self.width, self.depth)
            or spot.high > self.height - 0.02
            or not self.occupied.is_free(spot, margin=0.01)
        ):
            return False
        self.occupied.take(spot)
        self.pieces.append(_Piece(item, spot, len(self.instances)))
        self.instances.append(placed(item, spot, self.generator))
        return True

    def furnish(self, density: Real) -> None:
        """Tables with chairs, a bed where there should be one, pieces along the walls, some in the open, on walls and
        at the ceiling.
        """
        low, high = _TABLES[self.kind]
        for _ in range(int(self.generator.integers(low, high + 1))):
            self.place_table()
        if self.kind == "bed" or (self.kind == "mixed" and self.chance(0.4)):
            self._stand_at_wall("bed")
        for side in self.generator.permutation(SIDES):
            self._line_wall(int(side), density)
        open_floor = self.uniform(0.05, 0.3) * self.width * self.depth * 0.4
        for _ in range(round(open_floor)):
            group = str(self.generator.choice(("decor", "chair", "seat", "decor")))
            self._stand_anywhere(group)
        if self.chance(0.2):
            self._stand_anywhere("character")
        self._hang_on_walls(int(self.generator.integers(2, 11)))
        if self.chance(0.45):
            self._lay_rugs(int(self.generator.integers(1, 3)))

    def place_table(self, item: Item | None = None, *, centered: bool = False) -> _Piece | None:
        """A table anywhere, with chairs around it."""
        item = item or self.catalog.draw("table", self.generator, room=self.kind)
        if item is None:
            return None
        for _ in range(12):
            angle = 0.5 * math.pi * int(self.generator.integers(4))
            if self.chance(0.25):
                angle += float(self.generator.normal(0.0, 0.3))
            reach = 0.25 if centered else 0.5
            x = self.width * (0.5 + self.uniform(-reach, reach))
            y = self.depth * (0.5 + self.uniform(-reach, reach))
            if self.stand(item, standing(item, x, y, angle)):
                piece = self.pieces[-1]
                if self.chance(0.75) and item.size[2] > 0.6:
                    self._seat_around(piece)
                return piece
        return None

    def _seat_around(self, table: _Piece) -> None:
        model = self.catalog.draw("chair", self.generator, room=self.kind)
        if model is None:
            return
        width, depth, _ = model.size
        for side in range(SIDES):
            along = table.item.size[side % 2]
            half = 0.5 * table.item.size[1 - side % 2]
            count = int(along // (width + 0.1))
            for number in range(min(count, 3)):
                if not self.chance(0.6):
                    continue
                # A chair's front may stand under the top; its box is kept clear of the table, whose legs are unknown.
                away = half + 0.5 * depth + self.uniform(0.02, 0.25)
                step = (number + 0.5 - 0.5 * min(count, 3)) * (width + 0.12) + float(self.generator.normal(0, 0.03))
                direction = table.box.angle + 0.5 * math.pi * side
                x = table.box.x + step * math.cos(direction) - away * math.sin(direction)
                y = table.box.y + step * math.sin(direction) + away * math.cos(direction)
                turn = direction + float(self.generator.normal(0.0, 0.2))
                self.stand(model, standing(model, x, y, turn))

    def _stand_at_wall(self, group: str) -> None:
        item = self.catalog.draw(group, self.generator, room=self.kind)
        if item is None:
            return
        for side in self.generator.permutation(SIDES).tolist():
            frame = wall_frame(side, self.width, self.depth)
            if frame.length <= item.size[0] + 0.1:
                continue
            x = self.uniform(0.5 * item.size[0] + 0.03, frame.length - 0.5 * item.size[0] - 0.03)
            if self._back_to_wall(item, frame, x):
                return

    def _back_to_wall(self, item: Item, frame: Frame, x: Real) -> bool:
        wx, wy, _ = frame.point(x, -0.5 * item.size[1] - self.uniform(0.02, 0.06), 0.0)
        return self.stand(item, standing(item, wx, wy, frame.angle))

    def _line_wall(self, side: int, density: Real) -> None:
        frame = wall_frame(side, self.width, self.depth)
        groups = _WALL_GROUPS[self.kind]
        shares = np.array([share for _, share in groups])
        at = self.uniform(0.03, 0.4)
        while at < frame.length - 0.3:
            if not self.chance(density):
                at += self.uniform(0.3, 1.0)
                continue
            group = groups[int(self.generator.choice(len(groups), p=shares / shares.sum()))][0]
            space = (frame.length - at - 0.03, 1.1, self.height - 0.05)
            item = self.catalog.draw(group, self.generator, room=self.kind, max_size=space)
            if item is None or not self._back_to_wall(item, frame, at + 0.5 * item.size[0]):
                at += self.uniform(0.2, 0.5)
                continue
            at += item.size[0] + self.uniform(0.0, 0.3)

    def _stand_anywhere(self, group: str) -> None:
        item = self.catalog.draw(group, self.generator, room=self.kind, max_size=(1.6, 1.6, 2.0))
        if item is None:
            return
        for _ in range(6):
            x, y = self.uniform(0.0, self.width), self.uniform(0.0, self.depth)
            if self.stand(item, standing(item, x, y, self.uniform(0.0, 2 * math.pi))):
                return

    def _hang_on_walls(self, count: int) -> None:
        for _ in range(count):
            side = int(self.generator.integers(SIDES))
            frame = wall_frame(side, self.width, self.depth)
            item = self.catalog.draw(
                "wall", self.generator, room=self.kind, max_size=(frame.length - 0.1, 0.6, self.height - 0.5)
            )
            if item is None:
                continue
            x = self.uniform(0.5 * item.size[0] + 0.05, frame.length - 0.5 * item.size[0] - 0.05)
            bottom = float(np.clip(item.elevation, 0.2, max(0.2, self.height - item.size[2] - 0.1)))
            spot = Opening(x - 0.5 * item.size[0], x + 0.5 * item.size[0], bottom, bottom + item.size[2])
            wx, wy, _ = frame.point(x, -0.5 * item.size[1] - 0.002, 0.0)
            body = standing(item, wx, wy, frame.angle, low=bottom)
            if self._is_bare(side, spot) and self.occupied.is_free(body):
                self._hung[side].append(spot)
                self.occupied.take(body)
                self.pieces.append(_Piece(item, body, len(self.instances)))
                self.instances.append(placed(item, body, self.generator))

    def _lay_rugs(self, count: int) -> None:
        path = self.catalog.texture("rug", self.generator) if self.chance(0.6) else None
        for number in range(count):
            size = (self.uniform(0.8, 2.4), self.uniform(0.6, 1.7))
            x, y = self.uniform(0.5, self.width - 0.5), self.uniform(0.5, self.depth - 0.5)
            spot = Box(x, y, 0.5 * size[0], 0.5 * size[1], self.uniform(-0.2, 0.2), 0.0, 0.005)
            if not spot.inside(self.width, self.depth):
                continue
            cloth = materials.fabric(self.generator) if path is None else materials.printed(path, roughness=0.95)
            grid = np.stack(
                (
                    *np.meshgrid(np.linspace(-0.5, 0.5, 4) * size[0], np.linspace(-0.5, 0.5, 4) * size[1]),
                    np.zeros((4, 4)),
                ),
                axis=-1,
            )
            rug = sheet("rug", grid, cloth, uv_scale=None if path is None else 1.0)
            self._add(rug, place(spot.x, spot.y, 0.003 + 0.002 * number, spot.angle), "rug")

    # Things

    def strew(self, *, clutter: Real) -> None:
        """Put small things on tables, shelves and floor; rays find the free places."""
        caster = Caster(self.instances)
        taken = Occupied()
        found: list[Instance] = []
        for piece in self.pieces:
            if piece.item.group not in _CARRIERS:
                continue
            count = self._count_for(piece, clutter)
            for _ in range(count):
                item = self._thing(piece)
                if item is None:
                    continue
                top = piece.box.high + 0.3
                inner = piece.item.name == "bookcase" or (piece.item.group == "storage" and self.chance(0.4))
                height = self.uniform(piece.box.low + 0.1, piece.box.high) if inner else top
                spot = find_spot(
                    caster, item, piece.box, taken, self.generator, from_height=height, support=piece.number, tries=3
                )
                if spot is not None and spot.low > 0.15:
                    taken.take(spot)
                    found.append(placed(item, spot, self.generator))
                    self._shine(item, spot)
        floor = Box(0.5 * self.width, 0.5 * self.depth, 0.5 * self.width, 0.5 * self.depth, 0.0, 0.0, 0.1)
        things = [self.catalog.draw("object", self.generator) for _ in range(int(self.generator.integers(0, 6)))]
        found += scatter(
            [one for one in things if one is not None], caster, floor, taken, self.generator, from_height=1.2, support=0
        )
        self.instances += found

    def _count_for(self, piece: _Piece, clutter: Real) -> int:
        area = piece.item.size[0] * piece.item.size[1]
        most = {"table": 18.0, "storage": 12.0, "appliance": 8.0, "wall": 12.0}[piece.item.group] * area * clutter
        if piece.item.group == "storage" and piece.item.size[2] > 1.5:
            most *= 2.0
        return min(24, int(self.generator.poisson(most)))

    def _thing(self, piece: _Piece) -> Item | None:
        width, depth, _ = piece.item.size
        return self.catalog.draw("object", self.generator, room=self.kind, max_size=(0.8 * width, 0.95 * depth, 0.6))

    # Light

    def light(self) -> None:
        """Ceiling lamps, standing lamps, daylight and sun; always one lamp or window at least."""
        count = int(self.generator.integers(0, 3)) if self.day and self.windows else int(self.generator.integers(1, 4))
        area = self.width * self.depth
        for number in range(count):
            self._ceiling_lamp(self.uniform(25.0, 120.0) * (area / 16.0) ** 0.6 / math.sqrt(number + 1.0))
        for piece in self.pieces:
            self._shine(piece.item, piece.box)
        for frame, hole in self.windows:
            if self.day:
                self.lights.append(daylight(frame, hole, self.sky.strength, self.generator))
        if self.day and self.windows and self.chance(0.5):
            frame, hole = self.windows[int(self.generator.integers(len(self.windows)))]
            target = (self.uniform(0.2, 0.8) * self.width, self.uniform(0.2, 0.8) * self.depth, 0.0)
            self.lights.append(sunlight(frame, hole, target, self.generator))

    def add_lamp(self, position: Vector, power: Real, *, radius: Real) -> None:
        """One more lamp without a body [m, W]."""
        self.lights.append(lamp_light(position, self.generator, power, radius=radius))

    def _shine(self, item: Item, spot: Box) -> None:
        if item.lamp_height is not None and item.group != "ceiling":
            at = (spot.x, spot.y, spot.low + item.lamp_height)
            self.lights.append(lamp_light(at, self.generator, self.uniform(4.0, 25.0), radius=0.05))

    def _ceiling_lamp(self, power: Real) -> None:
        x, y = self.uniform(0.2, 0.8) * self.width, self.uniform(0.2, 0.8) * self.depth
        item = (
            self.catalog.draw("ceiling", self.generator, max_size=(1.2, 1.2, self.height - 1.7))
            if self.chance(0.6)
            else None
        )
        if item is None:
            size = self.uniform(0.15, 1.3)
            self.lights.append(
                Light(
                    kind="area",
                    position=(x, y, self.height - 0.03),
                    power=power,
                    size=(size, size),
                    color=(1.0, self.uniform(0.75, 1.0), self.uniform(0.5, 1.0)),
                )
            )
            return
        body = standing(item, x, y, 0.0, low=self.height - item.size[2] - 0.002)
        if not self.occupied.is_free(body):
            return
        self.occupied.take(body)
        self.instances.append(placed(item, body, self.generator))
        below = body.low + (item.lamp_height if item.lamp_height is not None else -0.03)
        self.lights.append(lamp_light((x, y, below - 0.04), self.generator, power, radius=self.uniform(0.04, 0.15)))


def sample_room(generator: np.random.Generator, catalog: Catalog) -> Setting:
    """A furnished room with views of it from where people hold cameras."""
    kind = ROOM_KINDS[int(generator.integers(len(ROOM_KINDS)))]
    day = bool(generator.random() < 0.62)
    hall = generator.random() < 0.12 and kind not in ("bath", "bed")
    size = (
        (float(generator.uniform(6, 10)), float(generator.uniform(6, 11)), float(generator.uniform(2.6, 4.2)))
        if hall
        else (
            float(generator.uniform(2.4, 6.0)),
            float(generator.uniform(2.6, 6.8)),
            float(generator.uniform(2.25, 3.1)),
        )
    )
    room = RoomBuilder(generator, catalog, size=size, kind=kind, day=day)
    room.build_shell()
    room.furnish(density=float(generator.uniform(0.55, 0.97)))
    room.strew(clutter=float(generator.uniform(0.2, 1.0)))
    room.light()
    focuses = [(piece.box.x, piece.box.y) for piece in room.pieces] or [(0.5 * size[0], 0.5 * size[1])]

    def propose(generator: np.random.Generator, lens: Lens) -> Camera:
        return _view(generator, lens, size, focuses)

    return Setting(
        kind="rooms",
        scene=finished(room),
        propose=propose,
        rules=ROOM_RULES,
        facts={"room": kind, "day": day, "size": [round(edge, 2) for edge in size]},
    )


def finished(room: RoomBuilder) -> Scene:
    """The scene of a room that is done."""
    return Scene(instances=tuple(room.instances), lights=tuple(room.lights), sky=room_sky(room.generator, day=room.day))


def _view(generator: np.random.Generator, lens: Lens, size: Vector, focuses: Sequence[tuple[Real, Real]]) -> Camera:
    width, depth, height = size
    x, y = generator.uniform(0.15, width - 0.15), generator.uniform(0.15, depth - 0.15)
    z = float(np.clip(generator.normal(1.35, 0.35), 0.35, height - 0.25))
    target = np.array((*focuses[int(generator.integers(len(focuses)))], generator.uniform(0.2, 1.5)))
    target[:2] += generator.normal(0.0, 0.3, size=2)
    while np.linalg.norm(target - (x, y, z)) < 0.3:
        target[:2] += generator.normal(0.0, 0.5, size=2)
    pose = look_at((x, y, z), target, roll=float(generator.normal(0.0, 0.04)))
    fov = float(generator.uniform(*lens.fov))
    return Camera(pose, lens.width, lens.height, lens.focal_px(fov))
