# SPDX-License-Identifier: Apache-2.0
"""Procedural houses: walls with windows and doors set into them, roofs, chimneys, balconies, shop fronts.

A house stands with the center of its footprint at the origin, its foot at z = 0 and its front toward -Y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openmarigold_render import materials
from openmarigold_render.scene import Catalog, Material, Mesh, Pattern
from openmarigold_render.solids import Builder, Opening, facing


@dataclass(frozen=True, kw_only=True)
class HouseStyle:
    """What houses of one street have in common.

    Attributes:
        width, depth: ranges [m].
        stories: smallest and largest number.
        roofs: kinds to choose from: gable, cross gable (toward the street), hip, flat.
        shops: share of houses with a shop front.
        balconies: share of houses with balconies.
        blind_sides: whether the sides have no windows, as in a terrace.
    """

    width: tuple[float, float]
    depth: tuple[float, float]
    stories: tuple[int, int]
    roofs: tuple[str, ...]
    shops: float = 0.0
    balconies: float = 0.0
    blind_sides: bool = False


DETACHED = HouseStyle(width=(7.0, 14.0), depth=(7.0, 12.0), stories=(1, 2), roofs=("gable", "cross gable", "hip"))
TERRACE = HouseStyle(
    width=(5.0, 12.0),
    depth=(8.0, 12.0),
    stories=(2, 5),
    roofs=("gable", "gable", "flat"),
    shops=0.35,
    balconies=0.2,
    blind_sides=True,
)
BLOCK = HouseStyle(width=(14.0, 34.0), depth=(10.0, 16.0), stories=(4, 9), roofs=("flat",), shops=0.2, balconies=0.5)
HALL = HouseStyle(width=(18.0, 45.0), depth=(14.0, 30.0), stories=(2, 3), roofs=("flat", "gable"))
FARM = HouseStyle(width=(9.0, 20.0), depth=(7.0, 11.0), stories=(1, 2), roofs=("gable", "hip"))


def house(generator: np.random.Generator, style: HouseStyle, catalog: Catalog | None = None) -> Mesh:
    """A new house of a style; its surfaces are the catalog's textures or patterns."""
    plan = _Plan(generator, style, catalog)
    builder = Builder()
    _walls(builder, plan)
    _roof(builder, plan)
    return builder.mesh("house")


class _Plan:
    """The choices of one house."""

    def __init__(self, generator: np.random.Generator, style: HouseStyle, catalog: Catalog | None) -> None:
        self.generator = generator
        self.style = style
        self.width = float(generator.uniform(*style.width))
        self.depth = float(generator.uniform(*style.depth))
        self.stories = int(generator.integers(style.stories[0], style.stories[1] + 1))
        self.story = float(generator.uniform(2.6, 3.3))
        self.plinth = float(generator.uniform(0.1, 0.6))
        self.height = self.plinth + self.stories * self.story
        self.roof = style.roofs[int(generator.integers(len(style.roofs)))]
        self.wall = facade(generator, catalog)
        self.base = facade(generator, catalog) if generator.random() < 0.3 else self.wall
        self.tiles = roofing(generator, catalog)
        self.frame = materials.paint(generator, saturation=(0.0, 0.3))
        self.door = materials.paint(generator) if generator.random() < 0.6 else materials.wood(generator)
        self.metal = materials.metal(generator)
        self.trim = materials.stone(generator, gloss=(0.5, 0.9))
        self.panes = [one for one in _panes(generator)]
        self.reveal = float(generator.uniform(0.06, 0.25))
        self.window = (float(generator.uniform(0.8, 1.8)), float(generator.uniform(1.0, 1.7)))
        self.sill = float(generator.uniform(0.75, 1.0))
        self.gap = float(generator.uniform(0.7, 2.2))
        self.bars = int(generator.integers(1, 4))
        self.has_shutters = generator.random() < 0.2
        self.has_sills = generator.random() < 0.6
        self.is_shop = generator.random() < style.shops
        self.has_balconies = generator.random() < style.balconies


def facade(generator: np.random.Generator, catalog: Catalog | None) -> Material:
    """A material for the outside of a house."""
    path = catalog.texture("facade", generator) if catalog is not None and generator.random() < 0.45 else None
    if path is not None:
        image = materials.image_surface(path, generator, roughness=(0.7, 0.95))
        return replace(image, texture_size=float(generator.uniform(1.5, 3.5)))
    draw = generator.random()
    if draw < 0.35:
        return materials.bricks(generator)
    if draw < 0.85:
        return materials.plaster(generator, saturation=(0.0, 0.18 if generator.random() < 0.75 else 0.5))
    return materials.planks(generator) if draw < 0.93 else materials.stone(generator, gloss=(0.6, 0.95))


def roofing(generator: np.random.Generator, catalog: Catalog | None) -> Material:
    """Roof tiles, slates or sheet metal."""
    path = catalog.texture("roof", generator) if catalog is not None and generator.random() < 0.5 else None
    if path is not None:
        image = materials.image_surface(path, generator, roughness=(0.6, 0.9))
        return replace(image, texture_size=float(generator.uniform(1.2, 2.5)))
    clay = ((0.30, 0.10, 0.06), (0.12, 0.12, 0.13), (0.20, 0.13, 0.09), (0.35, 0.20, 0.12))[int(generator.integers(4))]
    first = materials.varied(generator, clay, 0.25)
    pattern = Pattern(
        kind="bricks",
        colors=(materials.varied(generator, (0.05, 0.05, 0.05)), first, materials.varied(generator, first, 0.2)),
        scale=float(generator.uniform(0.25, 0.5)),
        seed=int(generator.integers(1 << 20)),
        relief=0.6,
    )
    return Material(name="roof", pattern=pattern, roughness=0.8)


def _panes(generator: np.random.Generator) -> list[Material]:
    # Seen from the street panes are dark and shine; some have a light curtain behind them.
    dark = materials.color(generator, saturation=(0.0, 0.4), value=(0.02, 0.08))
    made = [Material(name="pane", base_color=dark, roughness=0.04) for _ in range(2)]
    for _ in range(2):
        curtain = materials.color(generator, saturation=(0.0, 0.25), value=(0.15, 0.6))
        made.append(Material(name="curtained pane", base_color=curtain, roughness=0.1))
    return made


def _walls(builder: Builder, plan: _Plan) -> None:
    x, y = 0.5 * plan.width, 0.5 * plan.depth
    corners = ((-x, -y, 0.0), (x, -y, 0.0), (x, y, 0.0), (-x, y, 0.0))
    for side in range(4):
        start, end = corners[side], corners[(side + 1) % 4]
        length = plan.width if side % 2 == 0 else plan.depth
        windows, doors = [], []
        if side % 2 == 0 or not plan.style.blind_sides:
            windows, doors = _openings(plan, length, is_front=side == 0)
        along, outward = builder.wall(start, end, plan.height, [*windows, *doors], plan.wall, reveal=plan.reveal)
        foot = np.asarray(start)
        for one in windows:
            _window(builder, plan, foot, along, outward, one)
        for one in doors:
            _door(builder, plan, foot, along, outward, one)
        if side == 0 and plan.is_shop:
            _shop_sign(builder, plan, foot, along, outward, length)
        if plan.has_balconies and side in (0, 2):
            _balconies(builder, plan, foot, along, outward, windows)
    if plan.plinth > 0.25:
        edge = 0.03
        builder.box((-x - edge, -y - edge, 0.0), (x + edge, y + edge, 0.8 * plan.plinth - 0.05), plan.trim)


def _openings(plan: _Plan, length: float, *, is_front: bool) -> tuple[list[Opening], list[Opening]]:
    generator = plan.generator
    wide, high = plan.window
    high = min(high, plan.story - plan.sill - 0.3)
    columns = max(1, int((length - 0.6) / (wide + plan.gap)))
    pitch = length / columns
    wide = min(wide, pitch - 0.35)
    if wide < 0.4 or high < 0.4:
        return [], []
    lefts = [(column + 0.5) * pitch - 0.5 * wide for column in range(columns)]
    door_column = int(generator.integers(columns)) if is_front else -1
    windows, doors = [], []
    for story in range(plan.stories):
        floor = plan.plinth + story * plan.story
        is_shop = is_front and story == 0 and plan.is_shop
        for column, left in enumerate(lefts):
            if story == 0 and column == door_column:
                width = min(1.1, pitch - 0.3)
                middle = (column + 0.5) * pitch
                top = floor + min(2.2, plan.story - 0.2)
                doors.append(Opening(left=middle - 0.5 * width, right=middle + 0.5 * width, bottom=0.0, top=top))
            elif is_shop:
                middle, width = (column + 0.5) * pitch, pitch - 0.3
                bottom, top = floor + 0.25, floor + plan.story - 0.6
                windows.append(Opening(left=middle - 0.5 * width, right=middle + 0.5 * width, bottom=bottom, top=top))
            elif is_front or generator.random() < 0.75:
                bottom = floor + plan.sill
                windows.append(Opening(left=left, right=left + wide, bottom=bottom, top=bottom + high))
    return windows, doors


def _window(
    builder: Builder, plan: _Plan, foot: np.ndarray, along: np.ndarray, outward: np.ndarray, one: Opening
) -> None:
    pane = plan.panes[int(plan.generator.integers(len(plan.panes)))]
    builder.panel(foot, along, outward, one, (plan.reveal, plan.reveal), pane)
    thick = 0.06
    front = max(plan.reveal - 0.04, 0.0)

    def bar(left: float, right: float, bottom: float, top: float) -> None:
        strip = Opening(left=left, right=right, bottom=bottom, top=top)
        builder.panel(foot, along, outward, strip, (front, plan.reveal), plan.frame)

    bar(one.left, one.right, one.bottom, one.bottom + thick)
    bar(one.left, one.right, one.top - thick, one.top)
    bar(one.left, one.left + thick, one.bottom + thick, one.top - thick)
    bar(one.right - thick, one.right, one.bottom + thick, one.top - thick)
    for number in range(1, plan.bars):
        middle = one.left + (one.right - one.left) * number / plan.bars
        bar(middle - 0.5 * thick, middle + 0.5 * thick, one.bottom + thick, one.top - thick)
    if plan.has_sills:
        sill = Opening(left=one.left - 0.08, right=one.right + 0.08, bottom=one.bottom - 0.07, top=one.bottom)
        builder.panel(foot, along, outward, sill, (-0.07, 0.0), plan.trim)
    if plan.has_shutters and one.right - one.left < 1.5:
        half = 0.5 * (one.right - one.left)
        for left in (one.left - half, one.right):
            shutter = Opening(left=left + 0.02, right=left + half - 0.02, bottom=one.bottom, top=one.top)
            builder.panel(foot, along, outward, shutter, (-0.05, 0.0), plan.door)


def _door(
    builder: Builder, plan: _Plan, foot: np.ndarray, along: np.ndarray, outward: np.ndarray, one: Opening
) -> None:
    builder.panel(foot, along, outward, one, (plan.reveal, plan.reveal), plan.door)
    wide = one.right - one.left
    light = Opening(left=one.left + 0.25 * wide, right=one.right - 0.25 * wide, bottom=one.top - 0.7, top=one.top - 0.2)
    builder.panel(foot, along, outward, light, (plan.reveal - 0.01, plan.reveal), plan.panes[0])
    knob = Opening(left=one.right - 0.14, right=one.right - 0.09, bottom=plan.plinth + 0.95, top=plan.plinth + 1.1)
    builder.panel(foot, along, outward, knob, (plan.reveal - 0.05, plan.reveal), plan.metal)
    if plan.plinth > 0.15:  # a step
        step = Opening(left=one.left - 0.2, right=one.right + 0.2, bottom=0.0, top=plan.plinth)
        builder.panel(foot, along, outward, step, (-0.5, plan.reveal - 0.02), plan.trim)
    if plan.generator.random() < 0.4:
        roof = Opening(left=one.left - 0.3, right=one.right + 0.3, bottom=one.top + 0.1, top=one.top + 0.2)
        builder.panel(foot, along, outward, roof, (-0.9, 0.0), plan.trim)


def _shop_sign(
    builder: Builder, plan: _Plan, foot: np.ndarray, along: np.ndarray, outward: np.ndarray, length: float
) -> None:
    bottom = plan.plinth + plan.story - 0.52
    board = Opening(left=0.2, right=length - 0.2, bottom=bottom, top=bottom + 0.45)
    builder.panel(foot, along, outward, board, (-0.08, 0.0), plan.door)
    if plan.generator.random() < 0.5:  # an awning
        cloth = materials.fabric(plan.generator)
        left, right = foot + 0.3 * along, foot + (length - 0.3) * along
        up, far = np.array((0.0, 0.0, bottom - 0.05)), 1.2 * outward - np.array((0.0, 0.0, 0.45))
        corners = np.stack((left + up + far, right + up + far, right + up, left + up))
        builder.slab(corners, 0.02, cloth, cloth)


def _balconies(
    builder: Builder,
    plan: _Plan,
    foot: np.ndarray,
    along: np.ndarray,
    outward: np.ndarray,
    windows: Sequence[Opening],
) -> None:
    reach = float(plan.generator.uniform(0.9, 1.5))
    is_closed = plan.generator.random() < 0.4
    for one in windows:
        if one.bottom < plan.plinth + plan.story or plan.generator.random() < 0.4:
            continue
        floor = one.bottom - plan.sill
        left, right = one.left - 0.3, one.right + 0.3
        plate = Opening(left=left, right=right, bottom=floor - 0.15, top=floor)
        builder.panel(foot, along, outward, plate, (-reach, 0.0), plan.trim)
        rail = Opening(left=left, right=right, bottom=floor + 0.95, top=floor + 1.0)
        builder.panel(foot, along, outward, rail, (-reach, -reach + 0.04), plan.metal)
        if is_closed:
            closed = Opening(left=left, right=right, bottom=floor, top=floor + 0.95)
            builder.panel(foot, along, outward, closed, (-reach + 0.01, -reach + 0.03), plan.frame)
        else:
            for middle in np.arange(left + 0.02, right, 0.13):
                post = Opening(left=float(middle), right=float(middle) + 0.02, bottom=floor, top=floor + 0.95)
                builder.panel(foot, along, outward, post, (-reach, -reach + 0.02), plan.metal)
        for edge in (left, right - 0.04):
            side = Opening(left=edge, right=edge + 0.04, bottom=floor, top=floor + 1.0)
            builder.panel(
                foot, along, outward, side, (-reach, 0.0) if is_closed else (-reach, -reach + 0.04), plan.metal
            )


def _roof(builder: Builder, plan: _Plan) -> None:
    kinds: dict[str, Callable[[Builder, _Plan], None]] = {
        "flat": _flat_roof,
        "gable": _gable_roof,
        "cross gable": _cross_gable_roof,
        "hip": _hip_roof,
    }
    kinds[plan.roof](builder, plan)
    if plan.roof != "flat" and plan.generator.random() < 0.6:
        x = float(plan.generator.uniform(-0.35, 0.35)) * plan.width
        y = float(plan.generator.uniform(-0.2, 0.2)) * plan.depth
        top = plan.height + 0.5 * min(plan.depth, plan.width) * 0.8 + 0.9
        builder.box((x - 0.3, y - 0.3, plan.height - 0.2), (x + 0.3, y + 0.3, top), plan.base, top=plan.trim)


def _flat_roof(builder: Builder, plan: _Plan) -> None:
    x, y, z, edge = 0.5 * plan.width, 0.5 * plan.depth, plan.height, 0.25
    rise = float(plan.generator.uniform(0.2, 0.9))
    out = float(plan.generator.uniform(0.0, 0.2))
    builder.box((-x - out, -y - out, z), (x + out, -y + edge, z + rise), plan.wall, top=plan.trim)
    builder.box((-x - out, y - edge, z), (x + out, y + out, z + rise), plan.wall, top=plan.trim)
    builder.box((-x - out, -y + edge, z), (-x + edge, y - edge, z + rise), plan.wall, top=plan.trim)
    builder.box((x - edge, -y + edge, z), (x + out, y - edge, z + rise), plan.wall, top=plan.trim)
    builder.polygon(((-x, -y, z), (x, -y, z), (x, y, z), (-x, y, z)), plan.trim)
    for _ in range(int(plan.generator.integers(0, 3))):  # what stands on flat roofs
        wide, tall = plan.generator.uniform(0.8, 2.5, size=2).tolist()
        at_x = float(plan.generator.uniform(-0.3, 0.3)) * plan.width
        builder.box((at_x - 0.5 * wide, -0.5 * wide, z), (at_x + 0.5 * wide, 0.5 * wide, z + tall), plan.metal)


def _gable_roof(builder: Builder, plan: _Plan) -> None:
    _gable(builder, plan, 0.5 * plan.width, 0.5 * plan.depth, turned=False)


def _cross_gable_roof(builder: Builder, plan: _Plan) -> None:
    _gable(builder, plan, 0.5 * plan.depth, 0.5 * plan.width, turned=True)


def _gable(builder: Builder, plan: _Plan, half_ridge: float, half_span: float, *, turned: bool) -> None:
    pitch = float(np.tan(plan.generator.uniform(0.5, 0.85)))
    over = 0.0 if plan.style.blind_sides else float(plan.generator.uniform(0.15, 0.6))
    eave = float(plan.generator.uniform(0.15, 0.6))
    z, rise = plan.height, half_span * pitch

    def at(along: float, across: float, height: float) -> tuple[float, float, float]:
        return (across, along, height) if turned else (along, across, height)

    low = z - eave * pitch
    for sign in (-1.0, 1.0):
        slope = (
            at(-half_ridge - over, sign * (half_span + eave), low),
            at(half_ridge + over, sign * (half_span + eave), low),
            at(half_ridge + over, 0.0, z + rise),
            at(-half_ridge - over, 0.0, z + rise),
        )
        corners = facing(slope, (0.0, 0.0, 1.0)) + np.array((0.0, 0.0, 0.14))
        builder.slab(corners, 0.14, plan.tiles, plan.frame)
        end = sign * half_ridge
        gable = (at(end, -half_span, z), at(end, half_span, z), at(end, 0.0, z + rise))
        builder.polygon(facing(gable, at(sign, 0.0, 0.0)), plan.wall)


def _hip_roof(builder: Builder, plan: _Plan) -> None:
    pitch = float(np.tan(plan.generator.uniform(0.4, 0.7)))
    eave = float(plan.generator.uniform(0.2, 0.6))
    x, y = 0.5 * plan.width + eave, 0.5 * plan.depth + eave
    low = plan.height - eave * pitch + 0.1
    if x >= y:
        high = low + y * pitch
        ridge = ((-(x - y), 0.0, high), (x - y, 0.0, high))
        sides = (
            ((-x, -y, low), (x, -y, low), ridge[1], ridge[0]),
            ((x, y, low), (-x, y, low), ridge[0], ridge[1]),
            ((x, -y, low), (x, y, low), ridge[1]),
            ((-x, y, low), (-x, -y, low), ridge[0]),
        )
    else:
        high = low + x * pitch
        ridge = ((0.0, -(y - x), high), (0.0, y - x, high))
        sides = (
            ((x, -y, low), (x, y, low), ridge[1], ridge[0]),
            ((-x, y, low), (-x, -y, low), ridge[0], ridge[1]),
            ((-x, -y, low), (x, -y, low), ridge[0]),
            ((x, y, low), (-x, y, low), ridge[1]),
        )
    for side in sides:
        builder.polygon(facing(side, (0.0, 0.0, 1.0)), plan.tiles)
    builder.box((-x, -y, low - 0.14), (x, y, low), plan.frame)
