# SPDX-License-Identifier: Apache-2.0
"""Thin things that one looks through, and what is seen behind them: fences of canes, laths, ropes and wires, railings,
young trees, lamps on cords; rocks and animals.

Fences lie along x, centered, their foot at z = 0; pieces in a row close up. Other things stand with the center of
their footprint at the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from openmarigold_render import materials, outdoors
from openmarigold_render.primitives import cushion, lathe, sheet, tube
from openmarigold_render.scene import Material, Mesh, Real, Vector, merged, translation
from openmarigold_render.solids import Builder

_HERE = np.eye(4)
Part = tuple[Mesh, Float[np.ndarray, "4 4"]]


def _uniform(generator: np.random.Generator, low: Real, high: Real) -> float:
    return float(generator.uniform(low, high))


def _bar(start: Vector, end: Vector, radius: float, skin: Material, *, segments: int = 7) -> Part:
    return tube("bar", np.array((start, end)), radius, skin, segments=segments), _HERE


def _cane(generator: np.random.Generator) -> Material:
    """Bamboo or a peeled pole: fresh, dry or gray."""
    kinds = ((0.42, 0.34, 0.18), (0.3, 0.26, 0.2), (0.16, 0.2, 0.07), (0.5, 0.42, 0.28), (0.14, 0.1, 0.07))
    base = materials.varied(generator, kinds[int(generator.integers(len(kinds)))], 0.25)
    return Material(name="cane", base_color=base, roughness=_uniform(generator, 0.35, 0.9))


def cane_fence(generator: np.random.Generator, length: float) -> Mesh:
    """Canes or poles, upright before and behind some that lie across, tied with dark cord."""
    skin, cord = _cane(generator), Material(name="cord", base_color=(0.02, 0.02, 0.02), roughness=0.9)
    height, radius = _uniform(generator, 0.45, 1.5), _uniform(generator, 0.012, 0.035)
    pitch = _uniform(generator, 0.1, 0.5)
    levels = [height * (number + 0.7) / 3.0 for number in range(3)]
    levels = levels[3 - int(generator.integers(1, 4)) :]
    parts = [_bar((-0.5 * length, 0, z), (0.5 * length, 0, z), 0.9 * radius, skin) for z in levels]
    for number, x in enumerate(np.arange(-0.5 * length + 0.5 * pitch, 0.5 * length, pitch).tolist()):
        y = 1.9 * radius * (1.0 if number % 2 else -1.0)
        top = height * _uniform(generator, 0.97, 1.03)
        lean = float(generator.normal(0.0, 0.01))
        parts.append(_bar((x, y, 0.0), (x + lean, y, top), radius, skin))
        parts += [_bar((x, 0.5 * y, z - 0.025), (x, 0.5 * y, z + 0.025), 2.1 * radius, cord) for z in levels]
    return merged("cane fence", parts)


def lath_fence(generator: np.random.Generator, length: float) -> Mesh:
    """A trellis of crossed laths in a frame."""
    skin = materials.wood(generator, gloss=(0.5, 0.9)) if generator.random() < 0.6 else materials.paint(generator)
    height, wide = _uniform(generator, 0.7, 1.9), _uniform(generator, 0.008, 0.02)
    pitch, half = _uniform(generator, 0.1, 0.3), 0.5 * length
    builder = Builder()
    for z in (0.08, height):
        builder.box((-half, -0.025, z - 0.03), (half, 0.025, z + 0.03), skin)
    builder.box((-half - 0.035, -0.035, 0.0), (-half + 0.035, 0.035, height + 0.06), skin)
    parts: list[Part] = [(builder.mesh("frame"), _HERE)]
    for sign in (-1.0, 1.0):
        for foot in np.arange(-half - height, half + height, pitch).tolist():
            ends = sorted((foot, foot + sign * height))
            low, high = max(ends[0], -half), min(ends[1], half)
            if high - low > 0.05:
                at = [abs(x - foot) for x in (low, high)]
                parts.append(_bar((low, 0.012 * sign, at[0]), (high, 0.012 * sign, at[1]), wide, skin, segments=4))
    return merged("lath fence", parts)


def rope_fence(generator: np.random.Generator, length: float) -> Mesh:
    """A post, and one to three ropes, chains or wires that hang to the next one."""
    height, radius = _uniform(generator, 0.4, 1.2), _uniform(generator, 0.025, 0.07)
    post = materials.metal(generator) if generator.random() < 0.4 else _cane(generator)
    gray = _uniform(generator, 0.05, 0.5)
    rope = Material(name="rope", base_color=(gray, 0.9 * gray, 0.7 * gray), roughness=0.9)
    thick, sag = _uniform(generator, 0.004, 0.02), _uniform(generator, 0.0, 0.18)
    share = np.linspace(0.0, 1.0, 9)
    parts = [_bar((-0.5 * length, 0, 0), (-0.5 * length, 0, height), radius, post, segments=10)]
    for number in range(int(generator.integers(1, 4))):
        z = height * (0.92 - 0.3 * number)
        line = np.stack((length * (share - 0.5), 0.0 * share, z - 4.0 * sag * share * (1.0 - share)), axis=1)
        parts.append((tube("rope", line, thick, rope, segments=5), _HERE))
    return merged("rope fence", parts)


def railing(generator: np.random.Generator, length: float) -> Mesh:
    """A handrail on posts, filled with upright bars, level bars or nothing."""
    metal, height = materials.metal(generator), _uniform(generator, 0.8, 1.15)
    rail, bar = _uniform(generator, 0.018, 0.035), _uniform(generator, 0.004, 0.012)
    half = 0.5 * length
    parts = [
        _bar((-half, 0, height), (half, 0, height), rail, metal, segments=10),
        _bar((-half, 0, 0), (-half, 0, height), 0.9 * rail, metal, segments=10),
    ]
    filling = int(generator.integers(3))
    if filling == 0:
        parts += [_bar((-half, 0, z), (half, 0, z), bar, metal) for z in (0.08, height - 0.1)]
        for x in np.arange(-half + 0.06, half, _uniform(generator, 0.09, 0.16)).tolist():
            parts.append(_bar((x, 0, 0.08), (x, 0, height - 0.1), bar, metal, segments=5))
    elif filling == 1:
        for z in np.arange(0.12, height - 0.08, _uniform(generator, 0.1, 0.25)).tolist():
            parts.append(_bar((-half, 0, z), (half, 0, z), bar, metal, segments=5))
    return merged("railing", parts)


def stick_fence(generator: np.random.Generator, length: float) -> Mesh:
    """Rough branches stuck into the ground, crossed or next to each other."""
    parts = []
    skin, pitch = outdoors.bark(generator), _uniform(generator, 0.06, 0.3)
    height, lean = _uniform(generator, 0.5, 1.5), _uniform(generator, 0.02, 0.3)
    for x in np.arange(-0.5 * length, 0.5 * length, pitch).tolist():
        top, slant = height * _uniform(generator, 0.75, 1.1), float(generator.normal(0.0, lean))
        y = float(generator.normal(0.0, 0.02))
        line = np.array(((x, y, 0.0), (x + 0.4 * slant, y + 0.02, 0.5 * top), (x + slant, y, top)))
        foot = _uniform(generator, 0.008, 0.03)
        parts.append((tube("stick", line, (foot, 0.8 * foot, 0.5 * foot), skin, segments=6), _HERE))
    return merged("stick fence", parts)


def _made_fence(generator: np.random.Generator, length: float) -> Mesh:
    return outdoors.fence(generator, length=length)


FENCES: Mapping[str, tuple[float, Callable[[np.random.Generator, float], Mesh]]] = {
    "canes": (0.3, cane_fence),
    "laths": (0.14, lath_fence),
    "ropes": (0.14, rope_fence),
    "railing": (0.16, railing),
    "sticks": (0.1, stick_fence),
    "pickets, rails, bars, boards or a wall": (0.16, _made_fence),
}
"""Kinds of fences with their shares."""


def any_fence(generator: np.random.Generator, length: float) -> Mesh:
    """A piece of a fence of any kind, `length` meters along x."""
    kinds = list(FENCES.values())
    shares = np.array([share for share, _ in kinds])
    return kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))][1](generator, length)


def sapling(generator: np.random.Generator) -> Mesh:
    """A young tree: a thin stem with some bare branches, and leaves on some of them."""
    height, foot = _uniform(generator, 1.6, 4.5), _uniform(generator, 0.012, 0.05)
    skin = outdoors.bark(generator)
    bend = generator.normal(0.0, 0.12, size=2)
    share = np.linspace(0.0, 1.0, 7)
    line = np.stack((bend[0] * share**2, bend[1] * share**2, height * share), axis=1)
    parts: list[Part] = [(tube("stem", line, (foot * (1.0 - 0.75 * share)).tolist(), skin, segments=7), _HERE)]
    for _ in range(int(generator.integers(2, 12))):
        start = line[int(generator.integers(2, 6))]
        angle, reach = _uniform(generator, 0.0, 2.0 * math.pi), _uniform(generator, 0.25, 1.0)
        end = start + reach * np.array((math.cos(angle), math.sin(angle), _uniform(generator, 0.2, 1.0)))
        middle = 0.5 * (start + end) - (0.0, 0.0, 0.08 * reach)
        radius = foot * _uniform(generator, 0.2, 0.5)
        parts.append(
            (tube("branch", np.stack((start, middle, end)), (radius, 0.7 * radius, 0.3 * radius), skin), _HERE)
        )
    stem = merged("sapling", parts)
    if generator.random() < 0.4:
        return stem
    crown = outdoors.bush(generator)
    size = _uniform(generator, 0.35, 0.8) / float(crown.size.max())
    crown = replace(crown, vertices=(crown.vertices * size * (1.0, 1.0, 1.4)).astype(np.float32))
    return merged("sapling", [(stem, _HERE), (crown, translation(float(bend[0]), float(bend[1]), 0.75 * height))])


def rock(generator: np.random.Generator, size: float) -> Mesh:
    """A rough stone, its longest edge about `size` meters, its foot in the ground."""
    latitude, longitude = np.linspace(-0.5 * math.pi, 0.5 * math.pi, 15), np.linspace(-math.pi, math.pi, 29)
    across = np.cos(latitude)[:, None]
    points = np.stack(
        np.broadcast_arrays(across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)[:, None]), axis=-1
    )
    swell = np.ones(points.shape[:2])
    for frequency in (1.5, 3.0, 6.0, 11.0):
        axes, phase = generator.normal(size=(3, 3)) * frequency * 0.6, generator.uniform(0.0, 6.28, size=3)
        swell += 0.55 / (1.0 + frequency) * np.sin(points @ axes.T + phase).mean(axis=-1) * 1.6
    swell[:, -1] = swell[:, 0]
    stretch = np.array((1.0, _uniform(generator, 0.5, 1.0), _uniform(generator, 0.4, 0.9)))
    points = 0.5 * size * points * swell[..., None] * stretch
    points[..., 2] += 0.32 * size * stretch[2]
    stone = materials.stone(generator, gloss=(0.6, 0.95))
    mesh = sheet("rock", points, stone)
    return replace(mesh, smooth=bool(generator.random() < 0.6))


def hanging_lamp(generator: np.random.Generator, drop: float) -> Mesh:
    """A lamp whose cord ends `drop` meters above its lowest point: a cone, a drum, a globe, a bell or a bottle."""
    size, tall = _uniform(generator, 0.05, 0.2), _uniform(generator, 0.8, 3.2)
    high = min(size * tall, 0.45, 0.7 * drop)
    outlines: tuple[tuple[tuple[float, float], ...], ...] = (
        ((1.0, 0.0), (0.15, 0.9), (0.06, 1.0)),
        ((1.0, 0.0), (1.0, 0.9), (0.1, 1.0)),
        tuple(
            (max(0.04, math.sin(angle)), 0.5 - 0.5 * math.cos(angle)) for angle in np.linspace(0.3, 3.1, 12).tolist()
        ),
        ((1.0, 0.0), (0.9, 0.25), (0.45, 0.55), (0.25, 0.9), (0.08, 1.0)),
        ((0.75, 0.0), (1.0, 0.2), (0.8, 0.5), (0.22, 0.75), (0.2, 1.0)),
    )
    outline = outlines[int(generator.integers(len(outlines)))]
    base = materials.color(generator, saturation=(0.0, 0.6), value=(0.02, 0.8))
    glow = _uniform(generator, 0.3, 4.0) if generator.random() < 0.5 else 0.0
    coat = Material(name="shade", base_color=base, roughness=_uniform(generator, 0.1, 0.8), emission=glow)
    skin = materials.metal(generator) if generator.random() < 0.3 else coat
    profile = [(0.0, 0.01 * high), *((size * r, high * z) for r, z in outline), (0.0, high)]
    cord = Material(name="cord", base_color=(0.03, 0.03, 0.03), roughness=0.8)
    line = np.array(((0, 0, high - 0.002), (0, 0, 0.5 * (high + drop)), (0, 0, drop)))
    shade = lathe("shade", profile, skin, segments=24)
    return merged("hanging lamp", [(shade, _HERE), (tube("cord", line, 0.004, cord, segments=5), _HERE)])


def animal(generator: np.random.Generator) -> Mesh:
    """A dog or cat of rounded parts that stands, sits or lies; its head toward -Y."""
    scale = _uniform(generator, 0.35, 1.0)
    coats = ((0.45, 0.28, 0.13), (0.12, 0.08, 0.05), (0.02, 0.02, 0.02), (0.6, 0.52, 0.42), (0.3, 0.3, 0.3))
    first, second = (
        Material(name="fur", base_color=materials.varied(generator, coats[int(draw)], 0.3), roughness=0.9)
        for draw in generator.integers(len(coats), size=2)
    )
    pose = ("stands", "sits", "lies")[int(generator.integers(3))]
    long, thick, leg = 0.62 * scale, 0.23 * scale, (0.36 * scale if pose != "lies" else 0.02)
    lift = {"stands": 0.0, "sits": 0.55, "lies": 0.0}[pose]
    spine = np.array(((0, 0.5 * long, leg), (0, 0.0, leg + 0.5 * lift * long), (0, -0.45 * long, leg + lift * long)))
    spine[:, 2] += 0.5 * thick if pose != "sits" else 0.3 * thick - 0.45 * leg
    parts: list[Part] = [(tube("body", spine, (0.42 * thick, 0.5 * thick, 0.46 * thick), first, segments=14), _HERE)]
    for y in (spine[0], spine[2]):
        ball = cushion("end", (0.95 * thick, 0.95 * thick, 0.95 * thick), first, softness=0.95)
        parts.append((ball, translation(0.0, float(y[1]), float(y[2]) - 0.47 * thick)))
    for side in (-0.32 * thick, 0.32 * thick):
        for at, reach in ((spine[0], 0.05), (spine[2], -0.03)):
            foot = np.array((side, float(at[1]) + reach * scale - (0.2 * scale if pose == "lies" else 0.0), 0.02))
            parts.append((tube("leg", np.array((foot, (side, *at[1:]))), 0.14 * thick, second), _HERE))
    turn = float(generator.normal(0.0, 0.5))
    head = spine[2] + scale * np.array((0.16 * math.sin(turn), -0.16 * math.cos(turn), 0.1 if pose == "lies" else 0.2))
    parts.append((tube("neck", np.stack((spine[2], head)), (0.36 * thick, 0.3 * thick), first, segments=12), _HERE))
    skull = cushion("head", (0.2 * scale, 0.2 * scale, 0.17 * scale), first, softness=0.9)
    parts.append((skull, translation(float(head[0]), float(head[1]), float(head[2]) - 0.085 * scale)))
    nose = head + scale * np.array((0.16 * math.sin(turn), -0.16 * math.cos(turn), -0.03))
    parts.append((tube("muzzle", np.stack((head, nose)), (0.075 * scale, 0.045 * scale), second, segments=10), _HERE))
    for side in (-0.07, 0.07):
        start = head + scale * np.array((side * math.cos(turn), side * math.sin(turn), 0.06))
        tip = start + scale * np.array((0.4 * side, 0.0, 0.09 if generator.random() < 0.6 else -0.1))
        parts.append((tube("ear", np.stack((start, tip)), (0.035 * scale, 0.012 * scale), second, segments=7), _HERE))
    tail = spine[0] + scale * np.array(((0, 0, 0), (0.05, 0.18, 0.05), (0.1, 0.3, _uniform(generator, -0.02, 0.25))))
    parts.append((tube("tail", tail, (0.03 * scale, 0.025 * scale, 0.012 * scale), first, segments=7), _HERE))
    whole = merged("animal", parts)
    return merged("animal", [(whole, translation(0.0, 0.0, -float(whole.bounds[0][2])))])
