# SPDX-License-Identifier: Apache-2.0
"""Streets, yards and parks: procedural ones out of houses, roads, gardens and trees, and maps of a game.

A procedural street runs along y with its middle at x = 0 and rows of houses on both sides; yards and parks are laid out
around the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from openmarigold_render import houses, materials, outdoors
from openmarigold_render.scene import Camera, Catalog, Lens, Material, Mesh, Scene, Setting, ViewRules
from openmarigold_render.solids import Builder
from openmarigold_render.terrain import (
    Ground,
    backdrop,
    camera,
    landscape,
    paint_tint,
    plant_tree,
    small_tint,
    weather,
)

RULES = ViewRules(
    min_hits=0.58,
    min_depth=0.5,
    median_depth=(2.5, 90.0),
    min_log_spread=0.5,
    max_plane=0.5,
    min_planes=14,
    near=(1.5, 0.2),
    min_distance=2.5,
)
_CURB = 0.12

Layout = Literal["town", "suburb", "country", "yard", "park", "car park"]


def street(generator: np.random.Generator, catalog: Catalog | None = None, *, layout: Layout | None = None) -> Setting:
    """A procedural street, road, yard, car park or park.

    Args:
        catalog: where cars, trees, people and textures come from; procedural ones where it has none.
        layout: the kind of place; None draws one.
    """
    names = list(_LAYOUTS)
    shares = np.array([share for share, _ in _LAYOUTS.values()])
    name = layout or names[int(generator.choice(len(names), p=shares / shares.sum()))]
    ground = Ground(generator, outdoors.OutdoorCatalog(catalog))
    stands = _LAYOUTS[name][1](ground)
    sky, lights = weather(generator)
    scene = Scene(instances=tuple(ground.instances), lights=lights, sky=sky)
    return Setting(
        kind="streets",
        scene=scene,
        propose=lambda chooser, lens: _propose(chooser, lens, stands, ground),
        rules=RULES,
        facts={"layout": name},
    )


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A place for cameras [m], and where they look from there.

    Attributes:
        share: how often it is chosen.
        x, y, height: ranges of the position.
        headings: directions to choose from [rad], 0 along x, pi/2 along y.
        spread: standard deviation about them [rad].
    """

    share: float
    x: tuple[float, float]
    y: tuple[float, float]
    headings: tuple[float, ...]
    spread: float
    height: tuple[float, float] = (1.3, 2.0)


def _span(one: float, other: float) -> tuple[float, float]:
    """Two numbers, the smaller one first."""
    return (one, other) if one <= other else (other, one)


def _strip(builder: Builder, x: tuple[float, float], y: tuple[float, float], z: float, surface: Material) -> None:
    # In pieces, so that texture coordinates stay exact far out.
    for low in np.arange(y[0], y[1], 40.0):
        high = min(float(low) + 40.0, y[1])
        builder.polygon(((x[0], low, z), (x[1], low, z), (x[1], high, z), (x[0], high, z)), surface)


@dataclass(frozen=True, kw_only=True)
class _Road:
    half: float
    pavement: float
    start: float = -45.0
    end: float = 190.0
    crossing: float | None = None
    """Where another road crosses [m along y]; None: nowhere."""

    @property
    def edge(self) -> float:
        """Where the pavement ends, from the middle [m]."""
        return self.half + self.pavement


def _road(ground: Ground, *, half: float, pavement: float, may_cross: bool = True) -> _Road:
    """Carriageway, lane marks, curbs and pavements along y; in half the streets another road crosses."""
    generator = ground.generator
    crossing = float(generator.uniform(15.0, 70.0)) if may_cross and generator.random() < 0.5 else None
    road = _Road(half=half, pavement=pavement, crossing=crossing)
    builder = Builder()
    asphalt, stone, walk = ground.surface("asphalt"), materials.stone(generator, gloss=(0.6, 0.9)), None
    white = Material(name="marking", base_color=(0.6, 0.6, 0.57), roughness=0.7)
    _strip(builder, (-half, half), (road.start, road.end), 0.0, asphalt)
    gaps = [] if crossing is None else [(crossing - half - pavement, crossing + half + pavement)]
    if crossing is not None:
        for side in (-1.0, 1.0):
            x = sorted((side * half, side * 160.0))
            builder.polygon(
                (
                    (x[0], crossing - half, 0.0),
                    (x[1], crossing - half, 0.0),
                    (x[1], crossing + half, 0.0),
                    (x[0], crossing + half, 0.0),
                ),
                asphalt,
            )
    if pavement > 0:
        walk = ground.surface("pavement")
        for side in (-1.0, 1.0):
            low, high = sorted((side * half, side * road.edge))
            for start, end in _without(road.start, road.end, gaps):
                inner = sorted((side * half, side * (half + 0.15)))
                builder.box((inner[0], start, -0.05), (inner[1], end, _CURB), stone)
                outer = (min(low, high) if side < 0 else half + 0.15, -half - 0.15 if side < 0 else high)
                _strip(builder, outer, (start, end), _CURB - 0.005, walk)
    if half > 2.4 and generator.random() < 0.75:
        dash, gap = float(generator.uniform(1.5, 4.0)), float(generator.uniform(2.0, 6.0))
        for start in np.arange(road.start, road.end, dash + gap):
            if not any(low < start + dash and start < high for low, high in gaps):
                _strip(builder, (-0.07, 0.07), (float(start), float(start) + dash), 0.008, white)
        if generator.random() < 0.4:
            for side in (-1.0, 1.0):
                for start, end in _without(road.start, road.end, gaps):
                    _strip(
                        builder, (side * (half - 0.3) - 0.06, side * (half - 0.3) + 0.06), (start, end), 0.008, white
                    )
    if crossing is not None and generator.random() < 0.6:  # zebra stripes before the crossing
        at = crossing - half - pavement - 0.5
        for x in np.arange(-half + 0.4, half - 0.3, 1.0):
            _strip(builder, (float(x), float(x) + 0.5), (at - 3.0, at), 0.008, white)
    ground.add(builder.mesh("road"), 0.0, 0.0)
    return road


def _without(start: float, end: float, gaps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    pieces, position = [], start
    for low, high in sorted(gaps):
        pieces.append((position, low))
        position = high
    return [*pieces, (position, end)]


def _row(
    ground: Ground, road: _Road, side: float, style: houses.HouseStyle, setback: float, gap: tuple[float, float]
) -> None:
    """Houses along one side of the road, their fronts to it."""
    generator = ground.generator
    kinds = [houses.house(generator, style, ground.catalog) for _ in range(5)]
    fronts = 0.5 * math.pi if side > 0 else -0.5 * math.pi  # -Y turned to face the road
    y = road.start + float(generator.uniform(0.0, 6.0))
    while y < road.end:
        mesh = kinds[int(generator.integers(len(kinds)))]
        wide = float(mesh.size[0])
        if road.crossing is not None and y < road.crossing + road.edge and y + wide > road.crossing - road.edge:
            y = road.crossing + road.edge
            continue
        x = side * (road.edge + setback - float(mesh.bounds[0][1]))
        ground.stand(mesh, x, y + 0.5 * wide, _CURB if road.pavement else 0.0, -fronts, margin=-0.02)
        y += wide + float(generator.uniform(*gap))


def _parked(ground: Ground, road: _Road, side: float, share: float) -> None:
    """Cars along the curb."""
    generator = ground.generator
    cars = ground.kinds("vehicle", 6, max_size=(2.6, 6.5, 2.9))
    y = road.start + 5.0
    while cars and y < road.end - 5.0:
        item = cars[int(generator.integers(len(cars)))]
        length = item.size[1]
        y += 0.5 * length
        clear = road.crossing is None or abs(y - road.crossing) > road.edge + 9.0
        if clear and generator.random() < share:
            x = side * (road.half - 0.5 * item.size[0] - float(generator.uniform(0.1, 0.35)))
            angle = (0.0 if side < 0 else math.pi) + float(generator.normal(0.0, 0.015))
            ground.stand(item.load(), x, y, 0.0, angle, paint_tint(generator), margin=0.05)
        y += 0.5 * length + float(generator.uniform(0.5, 1.6))


def _driving(ground: Ground, road: _Road, count: int) -> None:
    """Cars on their lanes."""
    generator = ground.generator
    for _ in range(count):
        item = ground.draw("vehicle", max_size=(3.1, 15.0, 4.2))
        if item is None:
            continue
        side = float(generator.choice((-1.0, 1.0)))
        y = float(generator.uniform(8.0, road.end - 20.0))
        lane = side * min(0.5 * road.half, 1.9)
        tint = paint_tint(generator)
        ground.stand(item.load(), lane, y, 0.0, 0.0 if side < 0 else math.pi, tint, margin=0.4)


def _along(
    ground: Ground, road: _Road, x: float, items: Sequence[Mesh], pitch: tuple[float, float], angle: float
) -> None:
    """The same things at regular distances along the pavement."""
    generator = ground.generator
    z = _CURB if road.pavement else 0.0
    spacing = float(generator.uniform(*pitch))
    for y in np.arange(road.start + float(generator.uniform(0.0, spacing)), road.end, spacing):
        if road.crossing is None or abs(float(y) - road.crossing) > road.edge + 1.0:
            mesh = items[int(generator.integers(len(items)))]
            ground.stand(mesh, x, float(y), z, angle)


def _people(ground: Ground, x: tuple[float, float], y: tuple[float, float], z: float, count: int) -> None:
    generator = ground.generator
    for _ in range(count):
        item = ground.draw("character")
        if item is not None:
            at = (float(generator.uniform(*x)), float(generator.uniform(*y)))
            ground.stand(item.load(), *at, z, float(generator.uniform(0.0, 2.0 * math.pi)), margin=0.15)


def _things(
    ground: Ground, x: tuple[float, float], y: tuple[float, float], z: float, count: int, *, largest: float = 4.0
) -> None:
    """Benches, bins, posts and what else stands about; now and then a bicycle."""
    generator = ground.generator
    for _ in range(count):
        item = ground.draw("cycle" if generator.random() < 0.2 else "street", max_size=(largest, largest, 8.0))
        if item is not None:
            at = (float(generator.uniform(*x)), float(generator.uniform(*y)))
            angle = float(generator.integers(4)) * 0.5 * math.pi + float(generator.normal(0.0, 0.1))
            ground.stand(item.load(), *at, z, angle, small_tint(generator))


def _fenced(ground: Ground, road: _Road, side: float, x: float) -> None:
    """A fence, a wall or a hedge along the front gardens, with gaps for gates."""
    generator = ground.generator
    length = 2.4
    piece = (
        outdoors.hedge(generator, length=length)
        if generator.random() < 0.4
        else outdoors.fence(generator, length=length)
    )
    for y in np.arange(road.start, road.end, length):
        clear = road.crossing is None or abs(float(y) - road.crossing) > road.edge + length
        if clear and generator.random() > 0.12:
            ground.stand(piece, side * x, float(y), 0.0, 0.5 * math.pi, margin=-0.15)


def _town(ground: Ground) -> list[Stand]:
    """Terraces or blocks at the pavement's edge, parked cars, street trees."""
    generator = ground.generator
    road = _road(ground, half=float(generator.uniform(2.8, 7.0)), pavement=float(generator.uniform(1.6, 4.5)))
    landscape(ground, road.edge + 30.0, use="ground")
    style = houses.TERRACE if generator.random() < 0.6 else houses.BLOCK
    setback = 0.02 if style is houses.TERRACE or generator.random() < 0.5 else float(generator.uniform(2.0, 7.0))
    for side in (-1.0, 1.0):
        gap = (0.0, 0.0) if style is houses.TERRACE and generator.random() < 0.7 else (0.0, 9.0)
        _row(ground, road, side, style, setback, gap)
        if generator.random() < 0.75:
            _parked(ground, road, side, float(generator.uniform(0.2, 0.9)))
    if road.half > 4.5:
        _driving(ground, road, int(generator.integers(0, 6)))
    _pavement_things(ground, road)
    backdrop(ground, road.edge + 40.0, 240.0, 60, inside=lambda x, y: False)
    return _street_stands(road)


def _pavement_things(ground: Ground, road: _Road) -> None:
    generator = ground.generator
    for side in (-1.0, 1.0):
        face = 0.5 * math.pi if side < 0 else -0.5 * math.pi  # the arm over the road
        if generator.random() < 0.8:
            item = [outdoors.lamp_post(generator)]
            _along(ground, road, side * (road.half + 0.45), item, (16.0, 34.0), face)
        if generator.random() < 0.5 and road.pavement > 1.9:
            trees = [one.load() for one in ground.kinds("tree", 2, max_size=(7.0, 7.0, 14.0))]
            if trees:
                _along(ground, road, side * (road.half + 0.9), trees, (7.0, 16.0), 0.0)
        if generator.random() < 0.4:
            _along(ground, road, side * (road.half + 0.3), [outdoors.bollard(generator)], (1.5, 4.0), 0.0)
        walk = _span(side * (road.half + 0.5), side * (road.edge - 0.3))
        for y in (-10.0, 12.0, 40.0):
            _things(ground, walk, (y, y + 25.0), _CURB, int(generator.integers(0, 4)), largest=1.9)
            _people(ground, walk, (y, y + 25.0), _CURB, int(generator.integers(0, 3)))


def _street_stands(road: _Road) -> list[Stand]:
    ahead, back, left, right = 0.5 * math.pi, -0.5 * math.pi, math.pi, 0.0
    lane = min(0.5 * road.half, 1.8)
    y = (-25.0, 60.0)
    stands = [
        Stand(share=3.0, x=(lane - 0.4, lane + 0.4), y=y, headings=(ahead,), spread=0.12, height=(1.3, 2.3)),
        Stand(share=1.0, x=(-lane - 0.4, -lane + 0.4), y=y, headings=(ahead, back), spread=0.2, height=(1.3, 2.3)),
    ]
    if road.pavement > 0:
        for side in (-1.0, 1.0):
            low, high = sorted((side * (road.half + 0.4), side * (road.edge - 0.5)))
            across = left if side > 0 else right
            stands += [
                Stand(share=1.0, x=(low, high), y=y, headings=(ahead, back), spread=0.35),
                Stand(share=1.2, x=(low, high), y=y, headings=(across, across - 0.6, across + 0.6), spread=0.35),
            ]
    return stands


def _suburb(ground: Ground) -> list[Stand]:
    """Houses in gardens behind fences and hedges."""
    generator = ground.generator
    walk = float(generator.uniform(1.2, 2.2)) if generator.random() < 0.75 else 0.0
    road = _road(ground, half=float(generator.uniform(2.3, 4.0)), pavement=walk)
    landscape(ground, road.edge + 35.0)
    setback = float(generator.uniform(3.5, 11.0))
    for side in (-1.0, 1.0):
        _row(ground, road, side, houses.DETACHED, setback, (2.5, 11.0))
        if generator.random() < 0.7:
            _fenced(ground, road, side, road.edge + 0.35)
        _garden(ground, road, side, setback)
        if generator.random() < 0.6:
            _parked(ground, road, side, float(generator.uniform(0.1, 0.5)))
        if walk and generator.random() < 0.7:
            _along(
                ground,
                road,
                side * (road.half + 0.4),
                [outdoors.lamp_post(generator)],
                (20.0, 38.0),
                -side * 0.5 * math.pi,
            )
    if generator.random() < 0.5:
        _poles(ground, road.edge + 1.0, road)
    if walk:
        _things(ground, (road.half + 0.4, road.edge - 0.2), (-10.0, 60.0), _CURB, int(generator.integers(0, 7)))
        _people(ground, (-road.edge + 0.2, -road.half - 0.3), (-10.0, 50.0), _CURB, int(generator.integers(0, 4)))
    _driving(ground, road, int(generator.integers(0, 3)))
    backdrop(ground, road.edge + setback + 16.0, 220.0, 110, inside=lambda x, y: False)
    gardens = [
        Stand(
            share=0.8,
            x=(
                min(side * (road.edge + 1.0), side * (road.edge + setback - 0.8)),
                max(side * (road.edge + 1.0), side * (road.edge + setback - 0.8)),
            ),
            y=(-20.0, 60.0),
            headings=(0.0, 1.57, 3.14, 4.71),
            spread=0.6,
        )
        for side in (-1.0, 1.0)
    ]
    return [*_street_stands(road), *gardens]


def _garden(ground: Ground, road: _Road, side: float, setback: float) -> None:
    generator = ground.generator
    trees = ground.kinds("tree", 4, max_size=(8.0, 8.0, 12.0))
    for _ in range(int(generator.integers(10, 34))):
        x = side * (road.edge + float(generator.uniform(1.0, setback + 14.0)))
        y = float(generator.uniform(road.start, road.end))
        clear = road.crossing is None or abs(y - road.crossing) > road.edge + 1.0
        if trees and clear:
            plant_tree(ground, trees, x, y)
    if setback > 5.5:
        cars = ground.kinds("vehicle", 2, max_size=(2.2, 5.2, 2.4))
        for y in generator.uniform(-20.0, 90.0, size=6).tolist():
            if cars and (road.crossing is None or abs(y - road.crossing) > road.edge + 4.0):
                item = cars[int(generator.integers(len(cars)))]
                x = side * (road.edge + 0.5 * setback)
                ground.stand(item.load(), x, y, 0.0, 0.5 * math.pi, paint_tint(generator), margin=0.15)
    _things(ground, _span(side * (road.edge + 1.0), side * (road.edge + setback)), (-20.0, 80.0), 0.0, 6)


def _poles(ground: Ground, x: float, road: _Road) -> None:
    """Poles with wires along the road."""
    generator = ground.generator
    pole = outdoors.utility_pole(generator)
    side = float(generator.choice((-1.0, 1.0)))
    spacing, height = float(generator.uniform(22.0, 40.0)), float(pole.size[2]) - 0.32
    spots = [
        y
        for y in np.arange(road.start, road.end, spacing).tolist()
        if road.crossing is None or abs(y - road.crossing) > road.edge
    ]
    for y in spots:
        ground.stand(pole, side * x, y, 0.0)
    for first, second in pairwise(spots):
        for offset in (-0.9, 0.9):
            start, end = np.array((side * x + offset, first, height)), np.array((side * x + offset, second, height))
            ground.add(outdoors.wires(start, end, float(generator.uniform(0.4, 1.2))), 0.0, 0.0)


def _country(ground: Ground) -> list[Stand]:
    """A road through fields, meadows and woods, with a farm or two."""
    generator = ground.generator
    road = _road(ground, half=float(generator.uniform(1.8, 3.6)), pavement=0.0, may_cross=False)
    landscape(ground, road.half + 12.0)
    if generator.random() < 0.6:
        _poles(ground, road.half + float(generator.uniform(1.5, 5.0)), road)
    for side in (-1.0, 1.0):
        if generator.random() < 0.55:
            _fenced(ground, road, side, road.half + float(generator.uniform(1.0, 4.0)))
        if generator.random() < 0.4:
            trees = ground.kinds("tree", 2)
            if trees:
                spacing = float(generator.uniform(6.0, 18.0))
                for y in np.arange(road.start, road.end, spacing).tolist():
                    plant_tree(ground, trees, side * (road.half + 2.2), y)
    for _ in range(int(generator.integers(1, 5))):
        mesh = houses.house(generator, houses.FARM, ground.catalog)
        side = float(generator.choice((-1.0, 1.0)))
        x, y = side * (road.half + float(generator.uniform(9.0, 30.0))), float(generator.uniform(0.0, 120.0))
        ground.stand(mesh, x, y, -0.05, float(generator.normal(-side * 0.5 * math.pi, 0.3)), margin=1.0)
    backdrop(ground, road.half + 6.0, 160.0, 240, inside=lambda x, y: abs(x) < 14.0 and generator.random() < 0.5)
    _driving(ground, road, int(generator.integers(0, 3)))
    _things(ground, (road.half + 1.0, road.half + 8.0), (-10.0, 50.0), 0.0, int(generator.integers(0, 5)))
    meadow = Stand(
        share=1.0, x=(road.half + 1.0, road.half + 7.0), y=(-20.0, 60.0), headings=(1.57, 2.4, 0.8), spread=0.5
    )
    return [*_street_stands(road), meadow]


def _yard(ground: Ground) -> list[Stand]:
    """A court or a square with buildings on three or four sides."""
    generator = ground.generator
    half_x, half_y = float(generator.uniform(7.0, 24.0)), float(generator.uniform(9.0, 30.0))
    builder = Builder()
    paving = ground.surface("pavement" if generator.random() < 0.65 else "asphalt")
    edge = 60.0
    _strip(builder, (-edge, edge), (-edge, edge), 0.0, paving)
    ground.add(builder.mesh("paving"), 0.0, 0.0)
    landscape(ground, 70.0)
    styles = (houses.TERRACE, houses.BLOCK, houses.HALL, houses.DETACHED)
    style = styles[int(generator.choice(4, p=(0.4, 0.25, 0.15, 0.2)))]
    open_side = int(generator.integers(5))  # 4: all sides are closed
    for side in range(4):
        if side == open_side:
            continue
        across, reach = (half_y, half_x) if side % 2 == 0 else (half_x, half_y)
        position = -reach
        while position < reach:
            mesh = houses.house(generator, style, ground.catalog)
            wide, front = float(mesh.size[0]), float(mesh.bounds[0][1])
            along, out = position + 0.5 * wide, across - front
            x, y, angle = (
                (along, out, 0.0),
                (out, along, -0.5 * math.pi),
                (along, -out, math.pi),
                (-out, along, 0.5 * math.pi),
            )[side]
            ground.stand(mesh, x, y, 0.0, angle, margin=-0.02)
            gap = float(generator.uniform(1.0, 5.0)) if style in (houses.DETACHED, houses.HALL) else 0.0
            position += wide + gap
    _furnish_yard(ground, half_x, half_y)
    backdrop(ground, half_x + 40.0, 200.0, 60, inside=lambda x, y: False)
    turns = tuple(np.linspace(0.0, 2.0 * math.pi, 8, endpoint=False).tolist())
    return [
        Stand(
            share=1.0, x=(-0.85 * half_x, 0.85 * half_x), y=(-0.85 * half_y, 0.85 * half_y), headings=turns, spread=0.4
        )
    ]


def _furnish_yard(ground: Ground, half_x: float, half_y: float) -> None:
    generator = ground.generator
    inner_x, inner_y = (-0.8 * half_x, 0.8 * half_x), (-0.8 * half_y, 0.8 * half_y)
    if generator.random() < 0.5:  # a bed of lawn in the middle
        wide, long = float(generator.uniform(0.3, 0.6)) * half_x, float(generator.uniform(0.3, 0.6)) * half_y
        bed = Builder()
        stone = materials.stone(generator, gloss=(0.6, 0.9))
        bed.box(
            (-wide, -long, 0.0), (wide, long, float(generator.uniform(0.08, 0.45))), stone, top=ground.surface("lawn")
        )
        mesh = bed.mesh("bed")
        ground.add(mesh, 0.0, 0.0)
        trees = ground.kinds("tree", 2, max_size=(7.0, 7.0, 12.0))
        for _ in range(int(generator.integers(1, 6)) if trees else 0):
            x, y = float(generator.uniform(-0.8 * wide, 0.8 * wide)), float(generator.uniform(-0.8 * long, 0.8 * long))
            plant_tree(ground, trees, x, y, z=float(mesh.size[2]))
        ground.take((-wide, -long, wide, long))
    for _ in range(int(generator.integers(0, 9))):
        item = ground.draw("vehicle", max_size=(2.6, 6.5, 3.0))
        if item is not None:
            at = (float(generator.uniform(*inner_x)), float(generator.uniform(*inner_y)))
            angle = float(generator.integers(4)) * 0.5 * math.pi + float(generator.normal(0.0, 0.08))
            ground.stand(item.load(), *at, 0.0, angle, paint_tint(generator), margin=0.4)
    trees = ground.kinds("tree", 2, max_size=(7.0, 7.0, 12.0))
    for _ in range(int(generator.integers(0, 8)) if trees else 0):
        plant_tree(ground, trees, float(generator.uniform(*inner_x)), float(generator.uniform(*inner_y)))
    _things(ground, inner_x, inner_y, 0.0, int(generator.integers(4, 18)))
    _people(ground, inner_x, inner_y, 0.0, int(generator.integers(0, 5)))


def _park(ground: Ground) -> list[Stand]:
    """Lawns with trees, bushes, paths and benches; houses behind."""
    generator = ground.generator
    landscape(ground, float(generator.uniform(35.0, 80.0)))
    builder = Builder()
    path = ground.surface("ground" if generator.random() < 0.6 else "pavement")
    width = float(generator.uniform(1.2, 3.5))
    bend, phase = float(generator.uniform(0.0, 6.0)), float(generator.uniform(0.0, 6.28))
    line = np.arange(-40.0, 130.0, 2.0)
    middle = bend * np.sin(line / 17.0 + phase) - bend * math.sin(phase)
    for first in range(len(line) - 1):
        (y0, y1), (x0, x1) = line[first : first + 2], middle[first : first + 2]
        corners = (
            (x0 - width / 2, y0, 0.01),
            (x0 + width / 2, y0, 0.01),
            (x1 + width / 2, y1, 0.01),
            (x1 - width / 2, y1, 0.01),
        )
        builder.polygon(corners, path)
        ground.take((float(min(x0, x1)) - width / 2, float(y0), float(max(x0, x1)) + width / 2, float(y1)))
    ground.add(builder.mesh("path"), 0.0, 0.0)
    trees = ground.kinds("tree", 6)
    for _ in range(int(generator.integers(20, 90)) if trees else 0):
        plant_tree(ground, trees, float(generator.uniform(-60.0, 60.0)), float(generator.uniform(-35.0, 110.0)))
    for side in (-1.0, 1.0):
        _things(
            ground,
            _span(side * (0.5 * width + 0.4), side * (0.5 * width + 3.0 + bend)),
            (-15.0, 60.0),
            0.0,
            7,
        )
    _people(ground, (-15.0, 15.0), (-10.0, 50.0), 0.0, int(generator.integers(0, 6)))
    if generator.random() < 0.5:
        patch = [outdoors.grass_patch(generator) for _ in range(2)]
        for _ in range(260):
            x, y = generator.normal(0.0, 9.0, size=2).tolist()
            ground.add(patch[int(generator.integers(2))], x, y, 0.0, float(generator.uniform(0.0, 6.28)))
    style = houses.BLOCK if generator.random() < 0.3 else houses.DETACHED
    for _ in range(int(generator.integers(0, 9))):
        mesh = houses.house(generator, style, ground.catalog)
        x, y = float(generator.uniform(-90.0, 90.0)), float(generator.uniform(40.0, 150.0))
        ground.stand(mesh, x, y, -0.05, float(generator.normal(0.0, 0.5)), margin=1.0)
    backdrop(ground, 0.0, 220.0, 150, inside=lambda x, y: abs(x) < 60.0 and y < 110.0)
    turns = tuple(np.linspace(0.0, 2.0 * math.pi, 8, endpoint=False).tolist())
    return [
        Stand(share=1.0, x=(-0.4 * width, 0.4 * width), y=(-5.0, 5.0), headings=(1.57, -1.57), spread=0.3),
        Stand(share=2.0, x=(-22.0, 22.0), y=(-15.0, 60.0), headings=turns, spread=0.4),
    ]


def _car_park(ground: Ground) -> list[Stand]:
    """Rows of marked bays before a hall or blocks."""
    generator = ground.generator
    landscape(ground, 90.0)
    builder = Builder()
    white = Material(name="marking", base_color=(0.6, 0.6, 0.57), roughness=0.7)
    _strip(builder, (-40.0, 40.0), (-30.0, 70.0), 0.0, ground.surface("asphalt"))
    share, bay = float(generator.uniform(0.15, 0.8)), 2.6
    rows = np.arange(-20.0, 62.0, float(generator.uniform(15.0, 18.0)))
    for y in rows.tolist():
        for x in np.arange(-33.0, 33.0, bay).tolist():
            builder.box((x - 0.05, y - 5.0, 0.0), (x + 0.05, y + 5.0, 0.008), white)
    ground.add(builder.mesh("car park"), 0.0, 0.0)
    cars = ground.kinds("vehicle", 8, max_size=(2.2, 5.4, 2.7))
    for y in rows.tolist():
        for x in np.arange(-33.0, 33.0, bay).tolist():
            for half in (-2.5, 2.5):
                if cars and generator.random() < share:
                    item = cars[int(generator.integers(len(cars)))]
                    angle = float(generator.choice((0.0, math.pi))) + float(generator.normal(0.0, 0.03))
                    jitter = float(generator.normal(0.0, 0.1))
                    tint = paint_tint(generator)
                    ground.stand(item.load(), x + 0.5 * bay + jitter, y + half, 0.0, angle, tint, margin=0.03)
    lamp = outdoors.lamp_post(generator)
    for y in rows.tolist():
        for x in (-20.8, 0.0, 20.8):
            ground.stand(lamp, x, y + 6.0, 0.0)
    style = houses.HALL if generator.random() < 0.6 else houses.BLOCK
    for position in (-30.0, 10.0):
        for x, y, angle in (
            (position + 12.0, 92.0, 0.0),
            (-60.0, position + 20.0, 0.5 * math.pi),
            (60.0, position + 20.0, -0.5 * math.pi),
        ):
            if generator.random() < 0.7:
                ground.stand(houses.house(generator, style, ground.catalog), x, y, 0.0, angle, margin=0.2)
    trees = ground.kinds("tree", 3, max_size=(8.0, 8.0, 14.0))
    for _ in range(14 if trees else 0):
        plant_tree(ground, trees, float(generator.choice((-38.5, 38.5))), float(generator.uniform(-30.0, 70.0)))
    _people(ground, (-30.0, 30.0), (-25.0, 50.0), 0.0, int(generator.integers(0, 5)))
    _things(ground, (-39.0, 39.0), (-28.0, 68.0), 0.0, int(generator.integers(0, 8)))
    backdrop(ground, 75.0, 240.0, 90, inside=lambda x, y: False)
    turns = tuple(np.linspace(0.0, 2.0 * math.pi, 8, endpoint=False).tolist())
    return [Stand(share=1.0, x=(-34.0, 34.0), y=(-26.0, 55.0), headings=(0.5 * math.pi, *turns), spread=0.3)]


_LAYOUTS: Mapping[Layout, tuple[float, Callable[[Ground], list[Stand]]]] = {
    "town": (0.27, _town),
    "suburb": (0.23, _suburb),
    "country": (0.14, _country),
    "yard": (0.16, _yard),
    "park": (0.13, _park),
    "car park": (0.07, _car_park),
}


def _propose(generator: np.random.Generator, lens: Lens, stands: Sequence[Stand], ground: Ground) -> Camera | None:
    shares = np.array([one.share for one in stands])
    stand = stands[int(generator.choice(len(stands), p=shares / shares.sum()))]
    x, y = float(generator.uniform(*stand.x)), float(generator.uniform(*stand.y))
    if not ground.is_free((x - 0.5, y - 0.5, x + 0.5, y + 0.5)):
        return None
    height = float(generator.uniform(*stand.height))
    if generator.random() < 0.1:
        height = float(generator.uniform(0.5, 4.0))
    heading = stand.headings[int(generator.integers(len(stand.headings)))] + float(generator.normal(0.0, stand.spread))
    return camera(generator, lens, np.array((x, y, height)), heading)
