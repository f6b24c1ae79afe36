# SPDX-License-Identifier: Apache-2.0
"""Small procedural things for tables, shelves and floors, in their usual sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from openmarigold_render import materials
from openmarigold_render.primitives import box, cushion, cylinder, lathe, quad, sheet, tube
from openmarigold_render.prints import Prints
from openmarigold_render.scene import Material, Mesh, Real, merged, place, translation, turn_z

Make = Callable[[np.random.Generator, Prints], Mesh]
_HERE = np.eye(4)


def _uniform(generator: np.random.Generator, low: Real, high: Real) -> float:
    return float(generator.uniform(low, high))


def _shell(outline: Sequence[tuple[Real, Real]], wall: Real, floor: Real) -> list[tuple[Real, Real]]:
    """A vessel's profile: up its outside and down its inside."""
    inner = [(max(radius - wall, 0.0), max(height, floor)) for radius, height in reversed(outline)]
    return [(0.0, outline[0][1]), (outline[0][0], outline[0][1]), *outline, *inner, (0.0, floor)]


def package(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A carton with printed sides: cereals, sugar, tea, tools; upright or lying."""
    width, depth, height = sorted(np.exp(generator.uniform(np.log(0.03), np.log(0.3), size=3)).tolist())
    size = (depth, width, height) if generator.random() < 0.65 else (height, depth, width)
    front = materials.printed(prints.path("label", generator), roughness=_uniform(generator, 0.2, 0.6))
    side = front if generator.random() < 0.4 else materials.printed(prints.path("label", generator))
    plain = materials.paint(generator)
    faces = (side, side, front, front, plain, side if generator.random() < 0.5 else plain)
    return box("package", size, front, bevel=_uniform(generator, 0.0005, 0.002), faces=faces)


def crate(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A plain box of card, wood or plastic, with or without a lid."""
    width, depth = generator.uniform(0.1, 0.4, size=2)
    height = _uniform(generator, 0.06, 0.3)
    material = materials.wood(generator) if generator.random() < 0.4 else materials.paint(generator)
    if generator.random() < 0.5:
        return box("box", (width, depth, height), material, bevel=0.003)
    wall = _uniform(generator, 0.004, 0.012)
    parts = [
        (box("bottom", (width, depth, wall), material), _HERE),
        (box("side", (width, wall, height), material, bevel=0.001), place(0, 0.5 * (depth - wall), 0)),
        (box("side", (width, wall, height), material, bevel=0.001), place(0, -0.5 * (depth - wall), 0)),
        (box("side", (wall, depth - 2 * wall, height), material), place(0.5 * (width - wall), 0, 0)),
        (box("side", (wall, depth - 2 * wall, height), material), place(-0.5 * (width - wall), 0, 0)),
    ]
    return merged("crate", parts)


def _book(generator: np.random.Generator, prints: Prints, size: tuple[Real, Real, Real]) -> Mesh:
    """A lying book: covers and a block of pages."""
    width, depth, height = size
    if generator.random() < 0.6:
        cover = materials.printed(prints.path("cover", generator), roughness=_uniform(generator, 0.2, 0.7))
    else:
        cover = materials.paint(generator)
    back = materials.paint(generator) if generator.random() < 0.5 else cover
    pages = Material(name="pages", base_color=(0.72, 0.68, 0.58), roughness=0.9)
    sheets = 0.0025
    faces = (back, back, back, back, back, cover)
    return merged(
        "book",
        [
            (box("cover", (width, depth, sheets), back), _HERE),
            (box("pages", (width - 0.008, depth - 0.01, height - 2 * sheets), pages), translation(0.003, 0, sheets)),
            (box("spine", (0.003, depth, height), back), translation(-0.5 * width + 0.0015, 0, 0)),
            (box("cover", (width, depth, sheets), cover, faces=faces), translation(0, 0, height - sheets)),
        ],
    )


def books(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A lying book, or a stack of them slightly turned, the largest mostly below."""
    count = 1 if generator.random() < 0.45 else int(generator.integers(2, 7))
    parts, top = [], 0.0
    widest = _uniform(generator, 0.12, 0.24)
    turn = 0.0
    for _ in range(count):
        size = (widest, widest * _uniform(generator, 1.2, 1.45), _uniform(generator, 0.008, 0.045))
        parts.append((_book(generator, prints, size), place(0, 0, top, turn)))
        top += size[2]
        widest *= _uniform(generator, 0.88, 1.0)
        turn = float(generator.normal(0.0, 0.15))
    return merged("books", parts)


def standing_books(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A row of upright books, spines to the front."""
    parts: list[tuple[Mesh, np.ndarray]] = []
    left = 0.0
    for _ in range(int(generator.integers(3, 10))):
        height, depth, thick = (
            _uniform(generator, 0.17, 0.29),
            _uniform(generator, 0.12, 0.2),
            _uniform(generator, 0.01, 0.045),
        )
        cover = materials.paint(generator)
        if generator.random() < 0.5:
            spine = materials.printed(prints.path("cover", generator))
            mesh = box(
                "book", (thick, depth, height), cover, bevel=0.001, faces=(cover, cover, spine, cover, cover, cover)
            )
        else:
            mesh = box("book", (thick, depth, height), cover, bevel=0.001)
        parts.append((mesh, translation(left + 0.5 * thick, 0.5 * (depth - 0.16), 0)))
        left += thick + 0.0005
    return merged("row of books", [(mesh, translation(-0.5 * left, 0, 0) @ at) for mesh, at in parts])


def can(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A tin, jar or tube with a label around it."""
    radius, height = _uniform(generator, 0.025, 0.055), _uniform(generator, 0.05, 0.2)
    label = materials.printed(prints.path("label", generator), roughness=_uniform(generator, 0.15, 0.5))
    lid = materials.metal(generator) if generator.random() < 0.6 else materials.paint(generator)
    angles = np.linspace(0.0, 2.0 * math.pi, 29)
    rim = 0.003
    around = np.stack(
        [
            np.stack((radius * np.cos(angles), radius * np.sin(angles), np.full(29, z)), axis=1)
            for z in (rim, height - rim)
        ]
    )
    body = sheet("label", around, label, uv_scale=1.0)
    cap = [(0.0, 0.0), (radius, 0.0), (radius + 0.0015, 0.002), (radius + 0.0015, 0.004), (radius, rim)]
    top = [
        (radius, height - rim),
        (radius + 0.0015, height - 0.002),
        (radius, height),
        (radius - 0.003, height),
        (radius - 0.003, height - 0.003),
        (0.0, height - 0.003),
    ]
    return merged("can", [(body, _HERE), (lathe("foot", cap, lid), _HERE), (lathe("lid", top, lid), _HERE)])


def bottle(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A bottle of glass or plastic: water, wine, soap, mustard."""
    radius, height = _uniform(generator, 0.025, 0.05), _uniform(generator, 0.13, 0.34)
    neck = radius * _uniform(generator, 0.25, 0.55)
    shoulder, throat = height * _uniform(generator, 0.5, 0.72), height * _uniform(generator, 0.76, 0.88)
    bulge = radius * _uniform(generator, 0.8, 1.05)
    profile = [(0.0, 0.0), (0.92 * radius, 0.0), (radius, 0.008), (bulge, 0.5 * shoulder), (radius, shoulder)]
    for step in np.linspace(0.15, 1.0, 6):
        blend = 0.5 - 0.5 * math.cos(math.pi * step)
        profile.append((radius + (neck - radius) * blend, shoulder + (throat - shoulder) * step))
    profile += [(neck, height - 0.02), (neck, height), (0.0, height)]
    body = (
        materials.glass(generator) if generator.random() < 0.4 else materials.paint(generator, saturation=(0.2, 0.95))
    )
    squash = 1.0 if generator.random() < 0.75 else _uniform(generator, 0.5, 0.8)
    parts = [(lathe("bottle", profile, body, squash=squash), _HERE)]
    cap = materials.paint(generator, saturation=(0.0, 0.95))
    parts.append((cylinder("cap", neck * 1.15, 0.025, cap), translation(0, 0, height - 0.02)))
    if generator.random() < 0.65:
        label = materials.printed(prints.path("label", generator))
        low, high = 0.15 * shoulder, 0.85 * shoulder
        angles = np.linspace(-2.2, 2.2, 25) - 0.5 * math.pi
        reach = max(radius, bulge) + 0.0008
        rows = [
            np.stack((reach * np.cos(angles), squash * reach * np.sin(angles), np.full(25, z)), axis=1)
            for z in (low, high)
        ]
        parts.append((sheet("label", np.stack(rows), label, uv_scale=1.0), _HERE))
    return merged("bottle", parts)


def mug(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A mug or cup with its handle, some on a saucer."""
    radius, height = _uniform(generator, 0.032, 0.048), _uniform(generator, 0.06, 0.115)
    foot = radius * _uniform(generator, 0.65, 1.0)
    wall = 0.0035
    glaze = materials.ceramic(generator)
    outline = [(foot, 0.0), (foot, 0.0), (0.5 * (foot + radius) + 0.002, 0.45 * height), (radius, height)]
    angles = np.linspace(-0.5 * math.pi, 0.5 * math.pi, 13)
    reach = height * _uniform(generator, 0.28, 0.36)
    handle = np.stack(
        (radius - 0.004 + 0.85 * reach * np.cos(angles), np.zeros(13), 0.52 * height + reach * np.sin(angles)), 1
    )
    parts = [
        (lathe("cup", _shell(outline, wall, 0.005), glaze), _HERE),
        (tube("handle", handle, _uniform(generator, 0.0035, 0.0055), glaze), _HERE),
    ]
    if generator.random() < 0.5:
        drink = Material(
            name="drink",
            base_color=((0.06, 0.025, 0.01), (0.35, 0.2, 0.1), (0.3, 0.08, 0.02))[int(generator.integers(3))],
            roughness=0.1,
        )
        at = height * _uniform(generator, 0.6, 0.9)
        inner = foot + (radius - foot) * at / height - 0.003
        parts.append((lathe("drink", [(inner, at), (0.0, at)], drink), _HERE))
    if generator.random() < 0.25:
        lift = 0.006
        dish = _shell(
            [(0.5 * radius, 0.0), (0.5 * radius, 0.0), (1.2 * radius, 0.005), (1.7 * radius, 0.014)], 0.0025, 0.004
        )
        parts = [(mesh, translation(0, 0, lift)) for mesh, _ in parts] + [(lathe("saucer", dish, glaze), _HERE)]
    return merged("mug", parts)


def bowl(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A bowl, some with fruit."""
    radius = _uniform(generator, 0.06, 0.16)
    height = radius * _uniform(generator, 0.35, 0.85)
    foot = radius * _uniform(generator, 0.35, 0.6)
    steps = np.linspace(0.0, 1.0, 8)
    outline = [
        (
            foot + (radius - foot) * math.sin(0.5 * math.pi * t),
            height * (1 - math.cos(0.5 * math.pi * t)) * 0.8 + 0.2 * height * t,
        )
        for t in steps
    ]
    glaze = materials.ceramic(generator) if generator.random() < 0.7 else materials.wood(generator)
    parts = [(lathe("bowl", _shell([(foot, 0.0), *outline], 0.004, 0.006), glaze), _HERE)]
    if generator.random() < 0.3:
        for number in range(int(generator.integers(3, 6))):
            size = min(0.038, 0.32 * radius)
            angle = 2.0 * math.pi * number / 5
            reach = 0.42 * radius if number else 0.0
            fruit = _fruit_ball(generator, size)
            parts.append((fruit, translation(reach * math.cos(angle), reach * math.sin(angle), 0.007 + 0.18 * height)))
    return merged("bowl", parts)


def plate(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A plate or a stack of plates."""
    radius = _uniform(generator, 0.07, 0.15)
    glaze = materials.ceramic(generator)
    outline = [(0.6 * radius, 0.0), (0.6 * radius, 0.0), (0.66 * radius, 0.003), (radius, 0.02)]
    dish = lathe("plate", _shell(outline, 0.003, 0.004), glaze, segments=40)
    count = 1 if generator.random() < 0.7 else int(generator.integers(2, 6))
    return merged("plate", [(dish, translation(0, 0, 0.0065 * number)) for number in range(count)])


def tumbler(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A drinking glass, some with a stem."""
    radius, height = _uniform(generator, 0.028, 0.045), _uniform(generator, 0.07, 0.16)
    clear = (
        materials.glass(generator) if generator.random() < 0.75 else materials.paint(generator, saturation=(0.3, 0.95))
    )
    if generator.random() < 0.7:
        foot = radius * _uniform(generator, 0.7, 1.0)
        return lathe("tumbler", _shell([(foot, 0.0), (foot, 0.0), (radius, height)], 0.002, 0.006), clear)
    stem = 0.45 * height
    steps = np.linspace(0.15, 1.0, 7)
    cup = [(radius * math.sin(0.5 * math.pi * min(1.0, 0.2 + t)), stem + (height - stem) * (t - 0.1)) for t in steps]
    inner = [(max(r - 0.0015, 0.0), z) for r, z in reversed(cup)]
    profile = [
        (0.0, 0.0),
        (0.9 * radius, 0.0),
        (0.9 * radius, 0.002),
        (0.004, 0.006),
        (0.0035, stem),
        *cup,
        *inner,
        (0.0, stem + 0.006),
    ]
    return lathe("stemmed glass", profile, clear)


def jug(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A jug, pitcher, teapot or pan with a handle."""
    radius, height = _uniform(generator, 0.05, 0.085), _uniform(generator, 0.12, 0.26)
    top = radius * _uniform(generator, 0.6, 1.05)
    material = (materials.ceramic, materials.metal, materials.paint)[int(generator.integers(3))](generator)
    steps = np.linspace(0.0, 1.0, 9)
    belly = _uniform(generator, 0.0, 0.25)
    outline = [(radius + (top - radius) * t + belly * radius * math.sin(math.pi * t), height * t) for t in steps]
    outline[0] = (0.9 * radius, 0.0)
    angles = np.linspace(-0.45 * math.pi, 0.45 * math.pi, 11)
    reach = 0.36 * height
    path = np.stack(
        (0.9 * radius + 0.75 * reach * np.cos(angles), np.zeros(11), 0.55 * height + reach * np.sin(angles)), 1
    )
    parts = [
        (lathe("jug", _shell([(0.9 * radius, 0.0), *outline], 0.004, 0.006), material), _HERE),
        (tube("handle", path, _uniform(generator, 0.005, 0.009), material), _HERE),
    ]
    if generator.random() < 0.45:
        spout = np.array(
            [(-0.85 * radius, 0, 0.45 * height), (-1.25 * radius, 0, 0.7 * height), (-1.5 * radius, 0, 0.95 * height)]
        )
        parts.append((tube("spout", spout, (0.016, 0.011, 0.008), material), _HERE))
    return merged("jug", parts)


def vase(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A vase, some with twigs."""
    height = _uniform(generator, 0.1, 0.36)
    points = np.clip(generator.uniform(0.18, 0.5, size=4) * height, 0.02, 0.12)
    heights = np.linspace(0.0, 1.0, 13)
    radii = np.interp(heights, np.linspace(0, 1, 4), points)
    radii = np.convolve(np.pad(radii, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    outline = [(float(radius), float(height * t)) for radius, t in zip(radii, heights, strict=True)]
    material = materials.ceramic(generator) if generator.random() < 0.75 else materials.glass(generator)
    parts = [(lathe("vase", _shell([outline[0], *outline], 0.004, 0.006), material), _HERE)]
    if generator.random() < 0.45:
        parts += _twigs(generator, base=0.5 * height, reach=float(radii[-1]), length=_uniform(generator, 0.15, 0.35))
    return merged("vase", parts)


def _twigs(generator: np.random.Generator, *, base: Real, reach: Real, length: Real) -> list[tuple[Mesh, np.ndarray]]:
    bark = Material(name="bark", base_color=materials.varied(generator, (0.15, 0.1, 0.05)), roughness=0.9)
    leaf = Material(name="leaf", base_color=materials.varied(generator, (0.1, 0.25, 0.06), 0.4), roughness=0.6)
    parts: list[tuple[Mesh, np.ndarray]] = []
    for _ in range(int(generator.integers(3, 7))):
        angle = generator.uniform(0, 2 * math.pi)
        lean = generator.uniform(0.1, 0.5)
        steps = np.linspace(0.0, 1.0, 6)
        out = np.minimum(0.6 * reach * steps * 2, 0.6 * reach) + np.maximum(0.0, steps - 0.4) * lean * length
        path = np.stack((out * math.cos(angle), out * math.sin(angle), base + (length + base) * steps * 0.9), axis=1)
        parts.append((tube("twig", path, 0.002, bark, segments=5), _HERE))
        for spot in path[3:]:
            for _ in range(3):
                parts.append((_leaf(generator, leaf, 0.05), translation(*spot) @ _lean(generator)))
    return parts


def _lean(generator: np.random.Generator) -> np.ndarray:
    """A turn to any side with an upward lean."""
    pitch = generator.uniform(-0.3, 1.1)
    tilt = np.eye(4)
    tilt[0, 0] = tilt[2, 2] = math.cos(pitch)
    tilt[0, 2], tilt[2, 0] = -math.sin(pitch), math.sin(pitch)
    return turn_z(generator.uniform(0, 2 * math.pi)) @ tilt


def _leaf(generator: np.random.Generator, material: Material, length: Real) -> Mesh:
    """A bent strip along +X, seen from both sides."""
    length *= _uniform(generator, 0.7, 1.3)
    t = np.linspace(0.0, 1.0, 6)
    half = 0.28 * length * np.sin(math.pi * np.clip(t, 0.02, 0.98)) ** 0.8
    drop = -0.35 * length * t**2
    lower = np.stack((length * t, -half, drop), axis=1)
    upper = np.stack((length * t, half, drop), axis=1)
    return sheet("leaf", np.stack((lower, upper)), material)


def plant(generator: np.random.Generator, prints: Prints, *, height: Real | None = None) -> Mesh:
    """A plant in a pot."""
    height = _uniform(generator, 0.15, 0.42) if height is None else height
    pot_height = min(0.35 * height, 0.3)
    radius = 0.45 * pot_height + 0.02
    clay = (materials.ceramic, materials.paint, materials.stone)[int(generator.integers(3))](generator)
    soil = Material(name="soil", base_color=(0.05, 0.035, 0.025), roughness=0.95)
    outline = [(0.75 * radius, 0.0), (0.75 * radius, 0.0), (radius, pot_height)]
    parts = [
        (lathe("pot", _shell(outline, 0.006, 0.01), clay), _HERE),
        (lathe("soil", [(0.97 * radius - 0.006, 0.9 * pot_height), (0.0, 0.92 * pot_height)], soil), _HERE),
    ]
    leaf = Material(name="leaf", base_color=materials.varied(generator, (0.08, 0.22, 0.05), 0.4), roughness=0.5)
    stem = Material(name="stem", base_color=materials.varied(generator, (0.12, 0.18, 0.05), 0.3), roughness=0.7)
    size = height - pot_height
    if generator.random() < 0.5:  # long leaves from the ground
        for _ in range(int(generator.integers(9, 22))):
            blade = _leaf(generator, leaf, 0.8 * size)
            parts.append(
                (blade, translation(0, 0, 0.9 * pot_height) @ turn_z(generator.uniform(0, 6.3)) @ _rise(generator))
            )
    else:
        for _ in range(int(generator.integers(3, 8))):
            angle, lean = generator.uniform(0, 6.3), generator.uniform(0.0, 0.4)
            t = np.linspace(0.0, 1.0, 5)
            out = lean * size * t**1.5 + 0.3 * radius
            path = np.stack((out * math.cos(angle), out * math.sin(angle), 0.9 * pot_height + 0.85 * size * t), axis=1)
            parts.append((tube("stem", path, 0.003 + 0.004 * height, stem, segments=5), _HERE))
            for spot in path[1:]:
                for _ in range(int(generator.integers(3, 6))):
                    parts.append((_leaf(generator, leaf, 0.04 + 0.22 * size), translation(*spot) @ _lean(generator)))
    return merged("plant", parts)


def _rise(generator: np.random.Generator) -> np.ndarray:
    pitch = generator.uniform(0.5, 1.4)
    tilt = np.eye(4)
    tilt[0, 0] = tilt[2, 2] = math.cos(pitch)
    tilt[0, 2], tilt[2, 0] = -math.sin(pitch), math.sin(pitch)
    return tilt


def _fruit_ball(generator: np.random.Generator, radius: Real) -> Mesh:
    base = ((0.6, 0.08, 0.05), (0.75, 0.3, 0.04), (0.3, 0.5, 0.08), (0.75, 0.6, 0.1))[int(generator.integers(4))]
    skin = Material(
        name="fruit", base_color=materials.varied(generator, base), roughness=_uniform(generator, 0.25, 0.6)
    )
    t = np.linspace(-0.5 * math.pi, 0.5 * math.pi, 13)
    dent = 1.0 - 0.12 * np.exp(-((t - 0.5 * math.pi) ** 2) / 0.08)
    profile = [
        (float(radius * math.cos(a)), float(radius * (0.95 + 0.95 * math.sin(a) * d)))
        for a, d in zip(t, dent, strict=True)
    ]
    return lathe("fruit", profile, skin, segments=20)


def fruit(generator: np.random.Generator, prints: Prints) -> Mesh:
    """An apple, an orange, a lemon, or a banana."""
    if generator.random() < 0.7:
        return _fruit_ball(generator, _uniform(generator, 0.025, 0.045))
    skin = Material(name="banana", base_color=materials.varied(generator, (0.75, 0.55, 0.06)), roughness=0.5)
    angles = np.linspace(-0.6, 0.6, 11)
    bend = _uniform(generator, 0.11, 0.15)
    radii = 0.017 * np.sin(np.linspace(0.25, math.pi - 0.2, 11)) ** 0.5
    path = np.stack((bend * np.sin(angles), bend * np.cos(angles) - bend, np.full(11, 0.017)), axis=1)
    return tube("banana", path, radii.tolist(), skin, segments=12)


def paper(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A sheet or a pile of printed paper, a magazine, an envelope."""
    width = _uniform(generator, 0.1, 0.22)
    size = (width, width * 1.414, 0.016 if generator.random() < 0.2 else 0.0155)
    kind = "text" if generator.random() < 0.65 else "cover"
    page = materials.printed(prints.path(kind, generator), roughness=0.8)
    edge = Material(name="pages", base_color=(0.7, 0.7, 0.68), roughness=0.9)
    thick = float(np.exp(generator.uniform(np.log(0.001), np.log(0.016))))
    return box("paper", (size[0], size[1], thick), edge, faces=(edge, edge, edge, edge, edge, page))


def device(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A telephone, a tablet or a remote control."""
    case = Material(
        name="case", base_color=materials.color(generator, saturation=(0.0, 0.2), value=(0.02, 0.5)), roughness=0.3
    )
    long = _uniform(generator, 0.12, 0.26)
    wide = long * _uniform(generator, 0.28, 0.7)
    thick = _uniform(generator, 0.008, 0.022)
    body = box("device", (wide, long, thick), case, bevel=0.002)
    if generator.random() < 0.5:
        glossy = Material(name="glass front", base_color=(0.02, 0.02, 0.025), roughness=0.08)
        face = (
            glossy
            if generator.random() < 0.4
            else materials.printed(prints.path("screen", generator), roughness=0.1, emission=0.5)
        )
        front = _flat(0.92 * wide, 0.9 * long, face)
        return merged("device", [(body, _HERE), (front, translation(0, 0, thick + 0.0004))])
    parts = [(body, _HERE)]
    for row in range(int(generator.integers(3, 9))):
        for column in (-0.28, 0.0, 0.28):
            key = materials.paint(generator)
            size = 0.12 * wide
            parts.append(
                (
                    box("key", (size, 0.6 * size, 0.003), key),
                    translation(column * wide, (0.42 - 0.1 * row) * long, thick),
                )
            )
    return merged("remote", parts)


def _flat(width: Real, depth: Real, material: Material) -> Mesh:
    x, y = 0.5 * width, 0.5 * depth
    corners = ((-x, -y, 0), (x, -y, 0), (x, y, 0), (-x, y, 0))
    return quad("flat", corners, material, uv=((0, 0), (1, 0), (1, 1), (0, 1)))


def laptop(generator: np.random.Generator, prints: Prints) -> Mesh:
    """An open laptop or a screen on its foot."""
    case = Material(
        name="case", base_color=materials.color(generator, saturation=(0.0, 0.1), value=(0.03, 0.6)), roughness=0.35
    )
    dark = Material(name="keys", base_color=(0.02, 0.02, 0.022), roughness=0.6)
    width = _uniform(generator, 0.3, 0.38)
    depth = 0.68 * width
    image = materials.printed(prints.path("screen", generator), roughness=0.2, emission=_uniform(generator, 0.2, 1.5))
    base = box("base", (width, depth, 0.016), case, bevel=0.003)
    parts = [(base, _HERE)]
    for row in range(5):
        for column in range(12):
            at = translation((column - 5.5) * 0.07 * width, 0.38 * depth - 0.022 * (row + 1) - 0.01, 0.016)
            parts.append((box("key", (0.06 * width, 0.017, 0.002), dark), at))
    parts.append((box("pad", (0.3 * width, 0.25 * depth, 0.0008), dark), translation(0, -0.3 * depth, 0.016)))
    lean = _uniform(generator, 0.05, 0.6)
    lid = np.eye(4)
    lid[1, 1] = lid[2, 2] = math.cos(lean)
    lid[1, 2], lid[2, 1] = math.sin(lean), -math.sin(lean)
    hinge = translation(0, 0.5 * depth - 0.004, 0.014) @ lid
    parts.append((box("lid", (width, 0.007, depth), case, bevel=0.002), hinge))
    x, z = 0.47 * width, depth
    corners = ((-x, -0.0042, 0.05 * z), (x, -0.0042, 0.05 * z), (x, -0.0042, 0.96 * z), (-x, -0.0042, 0.96 * z))
    parts.append((quad("screen", corners, image, uv=((0, 0), (1, 0), (1, 1), (0, 1))), hinge))
    return merged("laptop", parts)


def monitor(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A screen on a foot."""
    case = Material(name="case", base_color=(0.03, 0.03, 0.03), roughness=0.4)
    width = _uniform(generator, 0.36, 0.5)
    height = 0.6 * width
    rise = _uniform(generator, 0.08, 0.12)
    on = generator.random() < 0.6
    image = (
        materials.printed(prints.path("screen", generator), roughness=0.3, emission=_uniform(generator, 0.3, 2.0))
        if on
        else Material(name="dark screen", base_color=(0.015, 0.015, 0.018), roughness=0.15)
    )
    x = 0.48 * width
    low, high = rise + 0.03 * height, rise + 0.97 * height
    corners = ((-x, -0.0162, low), (x, -0.0162, low), (x, -0.0162, high), (-x, -0.0162, high))
    return merged(
        "monitor",
        [
            (box("foot", (0.45 * width, 0.18, 0.012), case, bevel=0.003), _HERE),
            (box("neck", (0.05, 0.02, rise + 0.1), case), translation(0, 0.03, 0.0)),
            (box("screen", (width, 0.032, height), case, bevel=0.004), translation(0, 0, rise)),
            (quad("image", corners, image, uv=((0, 0), (1, 0), (1, 1), (0, 1))), _HERE),
        ],
    )


def keyboard(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A keyboard."""
    case = materials.paint(generator, saturation=(0.0, 0.1))
    key = Material(
        name="key", base_color=materials.color(generator, saturation=(0.0, 0.1), value=(0.02, 0.7)), roughness=0.6
    )
    columns = int(generator.integers(13, 18))
    width, depth = 0.0195 * columns + 0.015, 0.13
    parts = [(box("keyboard", (width, depth, 0.016), case, bevel=0.003), _HERE)]
    for row in range(5):
        for column in range(columns):
            if row == 0 and 3 < column < 9:
                continue
            at = translation((column - 0.5 * (columns - 1)) * 0.0195, (row - 2) * 0.0215, 0.015)
            parts.append((box("key", (0.0165, 0.0175, 0.006), key), at))
    parts.append(
        (box("space", (0.095, 0.0175, 0.006), key), translation((6 - 0.5 * (columns - 1)) * 0.0195, -0.043, 0.015))
    )
    return merged("keyboard", parts)


def tool(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A lying tool: a handle of plastic or wood and a head or blade of metal; scissors, drills, hammers, spoons."""
    grip = materials.paint(generator, saturation=(0.4, 0.95)) if generator.random() < 0.6 else materials.wood(generator)
    steel = materials.metal(generator)
    length = _uniform(generator, 0.08, 0.2)
    radius = _uniform(generator, 0.007, 0.018)
    handle = np.array([(-length * t, 0.0, radius) for t in np.linspace(0.0, 1.0, 7)])
    thickness = radius * (0.8 + 0.2 * np.sin(np.linspace(0, 3.1, 7)))
    parts = [(tube("grip", handle, thickness.tolist(), grip, segments=12), _HERE)]
    kind = generator.integers(4)
    if kind == 0:  # screwdriver, chisel, pen
        parts.append(
            (
                tube("blade", [(0, 0, radius), (0.5 * length, 0, radius), (length, 0, radius)], 0.35 * radius, steel),
                _HERE,
            )
        )
    elif kind == 1:  # hammer
        head = _uniform(generator, 0.06, 0.12)
        path = [(0.012, -0.5 * head, radius), (0.012, 0.0, radius), (0.012, 0.5 * head, radius)]
        parts.append((tube("head", path, radius, steel), _HERE))
    elif kind == 2:  # knife, brush, spatula
        blade = box("blade", (length, 2.2 * radius, 0.002), steel)
        parts.append((blade, translation(0.5 * length, 0, radius)))
    else:  # drill
        tall = _uniform(generator, 0.04, 0.06)
        body = tube(
            "body",
            [(-0.03, 0, tall), (0.05, 0, tall), (0.12, 0, tall)],
            (0.9 * tall, 0.9 * tall, 0.5 * tall),
            grip,
            segments=14,
        )
        chuck = tube(
            "chuck", [(0.12, 0, tall), (0.15, 0, tall), (0.19, 0, tall)], (0.4 * tall, 0.3 * tall, 0.05 * tall), steel
        )
        battery = box("battery", (0.07, 0.05, 0.04), materials.paint(generator), bevel=0.004)
        path = [(0.0, 0, tall), (-0.02, 0.06, tall), (-0.03, 0.12, tall)]
        return merged(
            "drill",
            [
                (body, _HERE),
                (chuck, _HERE),
                (tube("grip", path, 0.018, grip), _HERE),
                (battery, translation(-0.03, 0.14, tall - 0.02)),
                (box("foot", (0.05, 0.04, tall - 0.02), grip), translation(-0.03, 0.14, 0.0)),
            ],
        )
    return merged("tool", parts)


def table_lamp(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A lamp with a shade that glows."""
    height = _uniform(generator, 0.3, 0.5)
    foot = materials.ceramic(generator) if generator.random() < 0.5 else materials.metal(generator)
    shade = Material(
        name="shade",
        base_color=materials.color(generator, saturation=(0.0, 0.4), value=(0.5, 0.8)),
        roughness=0.9,
        emission=_uniform(generator, 0.3, 2.0),
    )
    low, high = _uniform(generator, 0.09, 0.16), _uniform(generator, 0.05, 0.09)
    start = 0.6 * height
    profile = [(low, start), (high, height), (high - 0.002, height), (low - 0.002, start), (low, start)]
    return merged(
        "lamp",
        [
            (
                lathe(
                    "foot",
                    [
                        (0.0, 0.0),
                        (0.07, 0.0),
                        (0.07, 0.012),
                        (0.02, 0.03),
                        (0.03, 0.3 * start),
                        (0.008, 0.8 * start),
                        (0.008, start + 0.06),
                        (0.0, start + 0.06),
                    ],
                    foot,
                ),
                _HERE,
            ),
            (lathe("shade", profile, shade), _HERE),
        ],
    )


def candle(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A candle, on a stick or alone."""
    radius = _uniform(generator, 0.01, 0.04)
    height = _uniform(generator, 0.05, 0.2)
    wax = Material(
        name="wax", base_color=materials.color(generator, saturation=(0.0, 0.5), value=(0.4, 0.85)), roughness=0.5
    )
    wick = Material(name="wick", base_color=(0.03, 0.03, 0.03))
    parts = [
        (cylinder("wax", radius, height, wax), _HERE),
        (cylinder("wick", 0.001, 0.01, wick), translation(0, 0, height)),
    ]
    if radius < 0.018:
        stick = materials.metal(generator)
        lift = _uniform(generator, 0.05, 0.2)
        profile = [
            (0.0, 0.0),
            (0.05, 0.0),
            (0.05, 0.006),
            (0.008, 0.02),
            (0.008, lift - 0.01),
            (radius + 0.008, lift),
            (0.0, lift),
        ]
        parts = [(mesh, translation(0, 0, lift) @ at) for mesh, at in parts] + [(lathe("stick", profile, stick), _HERE)]
    return merged("candle", parts)


def toy(generator: np.random.Generator, prints: Prints) -> Mesh:
    """Blocks and balls on top of each other: toys, ornaments."""
    parts, top = [], 0.0
    size = _uniform(generator, 0.04, 0.12)
    for _ in range(int(generator.integers(1, 5))):
        material = (
            materials.paint(generator, saturation=(0.4, 0.95))
            if generator.random() < 0.7
            else materials.wood(generator)
        )
        kind = generator.integers(4)
        if kind == 0:
            mesh = box(
                "block",
                (size, size * _uniform(generator, 0.5, 1.0), size * _uniform(generator, 0.4, 1.0)),
                material,
                bevel=0.003,
            )
        elif kind == 1:
            mesh = cylinder(
                "drum",
                0.5 * size,
                size * _uniform(generator, 0.3, 1.0),
                material,
                top=0.5 * size * _uniform(generator, 0.5, 1.0),
            )
        elif kind == 2:
            mesh = cushion("pebble", (size, size * _uniform(generator, 0.7, 1.0), 0.7 * size), material, softness=0.7)
        else:
            t = np.linspace(-0.5 * math.pi, 0.5 * math.pi, 13)
            mesh = lathe(
                "ball", [(float(0.5 * size * math.cos(a)), float(0.5 * size * (1 + math.sin(a)))) for a in t], material
            )
        parts.append((mesh, place(0, 0, top - (0.006 if top else 0.0), generator.uniform(0, 6.3))))
        top += float(mesh.size[2]) - (0.006 if top else 0.0)
        size *= _uniform(generator, 0.55, 0.9)
    return merged("toy", parts)


def soft_thing(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A folded towel, a bag, a pillow."""
    size = (_uniform(generator, 0.15, 0.4), _uniform(generator, 0.12, 0.3), _uniform(generator, 0.03, 0.14))
    return cushion("cloth", size, materials.fabric(generator), softness=_uniform(generator, 0.2, 0.45))


def basket(generator: np.random.Generator, prints: Prints) -> Mesh:
    """An open pot, basket or bin."""
    radius, height = _uniform(generator, 0.05, 0.15), _uniform(generator, 0.08, 0.3)
    foot = radius * _uniform(generator, 0.7, 1.0)
    material = (materials.fabric, materials.paint, materials.metal, materials.wood)[int(generator.integers(4))](
        generator
    )
    parts = [(lathe("basket", _shell([(foot, 0.0), (foot, 0.0), (radius, height)], 0.004, 0.006), material), _HERE)]
    if radius < 0.07:  # pens
        for _ in range(int(generator.integers(0, 7))):
            angle = generator.uniform(0, 6.3)
            lean = 0.75 * foot
            low = (-lean * math.cos(angle), -lean * math.sin(angle), 0.01)
            tip = (lean * math.cos(angle), lean * math.sin(angle), height + _uniform(generator, 0.02, 0.08))
            middle = (0.0, 0.0, 0.5 * (low[2] + tip[2]))
            parts.append(
                (tube("pen", [low, middle, tip], 0.0035, materials.paint(generator, saturation=(0.3, 0.95))), _HERE)
            )
    return merged("pot", parts)


# (share among small things, function)
OBJECTS: Mapping[str, tuple[Real, Make]] = {
    "package": (3.0, package),
    "books": (2.0, books),
    "standing books": (1.0, standing_books),
    "bottle": (2.0, bottle),
    "can": (1.5, can),
    "mug": (1.5, mug),
    "bowl": (1.2, bowl),
    "plate": (0.8, plate),
    "tumbler": (0.8, tumbler),
    "jug": (0.8, jug),
    "vase": (0.8, vase),
    "plant": (0.8, plant),
    "fruit": (0.8, fruit),
    "paper": (1.0, paper),
    "device": (0.8, device),
    "laptop": (0.4, laptop),
    "monitor": (0.25, monitor),
    "keyboard": (0.4, keyboard),
    "tool": (1.2, tool),
    "lamp": (0.4, table_lamp),
    "candle": (0.4, candle),
    "toy": (1.2, toy),
    "cloth": (0.6, soft_thing),
    "pot": (0.8, basket),
    "crate": (0.6, crate),
}
