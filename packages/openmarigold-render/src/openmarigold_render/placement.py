# SPDX-License-Identifier: Apache-2.0
"""Putting things where they can stand: oriented boxes that must not overlap, and spots found by casting rays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from openmarigold_render.rays import Caster
from openmarigold_render.scene import Instance, Item, Real, Tint, place

FLAT_NORMAL = 0.97
_CONTACT = 0.004
_LIFT = 0.0005


@dataclass(frozen=True)
class Box:
    """An upright box, turned about the vertical: center, half sizes, angle [rad], and where it begins and ends in z."""

    x: Real
    y: Real
    half_x: Real
    half_y: Real
    angle: Real
    low: Real
    high: Real

    def corners(self, scale: Real = 1.0) -> Float[np.ndarray, "4 2"]:
        """Corners of the footprint, counter-clockwise, its half sizes scaled."""
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        along = np.array(((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)))
        local = along * (scale * self.half_x, scale * self.half_y)
        return local @ np.array(((cosine, sine), (-sine, cosine))) + (self.x, self.y)

    def overlaps(self, other: Box, *, margin: Real = 0.0) -> bool:
        """Whether the two share space, or come nearer than `margin` sideways [m]."""
        if self.low >= other.high or other.low >= self.high:
            return False
        ours, theirs = self.corners(), other.corners()
        for angle in (self.angle, self.angle + 0.5 * math.pi, other.angle, other.angle + 0.5 * math.pi):
            axis = np.array((math.cos(angle), math.sin(angle)))
            a, b = ours @ axis, theirs @ axis
            if a.max() + margin <= b.min() or b.max() + margin <= a.min():
                return False
        return True

    def inside(self, width: Real, depth: Real) -> bool:
        """Whether the footprint lies in [0, width] x [0, depth]."""
        corners = self.corners()
        return bool((corners >= 0).all() and (corners <= (width, depth)).all())


class Occupied:
    """Boxes that are taken."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []

    def is_free(self, box: Box, *, margin: Real = 0.0) -> bool:
        return not any(box.overlaps(other, margin=margin) for other in self.boxes)

    def take(self, box: Box) -> None:
        self.boxes.append(box)


def standing(item: Item, x: Real, y: Real, angle: Real, *, low: Real = 0.0) -> Box:
    """The box of an item that stands at a height [m]."""
    width, depth, height = item.size
    return Box(x, y, 0.5 * width, 0.5 * depth, angle, low, low + height)


def placed(item: Item, box: Box, generator: np.random.Generator) -> Instance:
    """The item in its box, in a tint of its own."""
    return Instance(item.load(), place(box.x, box.y, box.low, box.angle), item.name, random_tint(generator))


def random_tint(generator: np.random.Generator) -> Tint:
    """A small change of color, so that no two pieces of one model look alike."""
    return Tint(
        hue=round(float(generator.uniform(-0.03, 0.03)), 4),
        saturation=round(float(generator.uniform(0.75, 1.15)), 4),
        value=round(float(generator.uniform(0.65, 1.25)), 4),
    )


def find_spot(
    caster: Caster,
    item: Item,
    area: Box,
    occupied: Occupied,
    generator: np.random.Generator,
    *,
    from_height: Real,
    support: int | None = None,
    spread: Real = 1.0,
    tries: int = 6,
) -> Box | None:
    """A place on a real, level surface for an item, with nothing in its way; None after `tries` random tries.

    Args:
        caster: holds all instances, except for those in `occupied`.
        item: what to place.
        area: footprint in which to look.
        occupied: boxes placed since `caster` was built.
        generator: draws places and angles.
        from_height: height from which to look down [m].
        support: place of the instance that must carry the item; None: any.
        spread: share of the area, about its center, that is used.
    """
    for _ in range(tries):
        across, along = generator.uniform(-spread, spread, size=2)
        cosine, sine = math.cos(area.angle), math.sin(area.angle)
        x = area.x + cosine * across * area.half_x - sine * along * area.half_y
        y = area.y + sine * across * area.half_x + cosine * along * area.half_y
        angle = area.angle + (
            float(generator.normal(0.0, 0.25))
            if generator.random() < 0.5
            else float(generator.uniform(0.0, 2 * math.pi))
        )
        box = standing(item, x, y, angle, low=from_height)
        level = _level_under(caster, box, support)
        if level is None:
            continue
        box = standing(item, x, y, angle, low=level + _LIFT)
        if occupied.is_free(box, margin=_CONTACT) and has_room(caster, box):
            return box
    return None


def _level_under(caster: Caster, box: Box, support: int | None) -> float | None:
    """Height of the surface below the whole footprint, if it is level, and belongs to `support`."""
    points = np.concatenate((((box.x, box.y),), box.corners(0.95), box.corners(0.5)))
    origins = np.concatenate((points, np.full((len(points), 1), box.low)), axis=1)
    hits = caster.cast(origins, np.array(((0.0, 0.0, -1.0),)))
    if not hits.hit.all() or (support is not None and (hits.instance != support).any()):
        return None
    if (hits.normal[:, 2] < FLAT_NORMAL).any():
        return None
    heights = box.low - hits.distance
    if heights.max() - heights.min() > _CONTACT:
        return None
    return float(heights.max())


def has_room(caster: Caster, box: Box) -> bool:
    """Whether no surface cuts through a box: rays around its sides, across it and up through it meet nothing."""
    origins, ends = [], []
    corners = box.corners()
    around = np.concatenate((corners, 0.5 * (corners + np.roll(corners, -1, axis=0))))
    for height in (box.low + 0.004, 0.5 * (box.low + box.high), box.high):
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            origins.append((*start, height))
            ends.append((*end, height))
        for point in around:
            origins.append((box.x, box.y, height))
            ends.append((*point, height))
    for point in (*around, (box.x, box.y)):
        origins.append((*point, box.low + 0.002))
        ends.append((*point, box.high + 0.005))
    starts, stops = np.asarray(origins), np.asarray(ends)
    return not bool((caster.cast(starts, stops - starts).distance <= 1.0).any())


def scatter(
    items: Sequence[Item],
    caster: Caster,
    area: Box,
    occupied: Occupied,
    generator: np.random.Generator,
    *,
    from_height: Real,
    support: int | None = None,
    spread: Real = 1.0,
) -> list[Instance]:
    """The items for which a place was found, in their places."""
    found = []
    for item in items:
        box = find_spot(
            caster, item, area, occupied, generator, from_height=from_height, support=support, spread=spread
        )
        if box is not None:
            occupied.take(box)
            found.append(placed(item, box, generator))
    return found
