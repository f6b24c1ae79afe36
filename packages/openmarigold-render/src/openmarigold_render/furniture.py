# SPDX-License-Identifier: Apache-2.0
"""Procedural furniture in usual sizes. Front toward -Y; what hangs on a wall has its back at the largest y."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from openmarigold_render import materials, objects
from openmarigold_render.primitives import box, cushion, cylinder, lathe, quad, sheet, tube
from openmarigold_render.prints import Prints
from openmarigold_render.scene import Material, Mesh, Real, RoomKind, merged, translation

Make = Callable[[np.random.Generator, Prints], Mesh]
Parts = list[tuple[Mesh, np.ndarray]]
_HERE = np.eye(4)


def _uniform(generator: np.random.Generator, low: Real, high: Real) -> float:
    return float(generator.uniform(low, high))


def _body(generator: np.random.Generator) -> Material:
    return materials.wood(generator) if generator.random() < 0.6 else materials.paint(generator)


def _legs(
    generator: np.random.Generator, width: Real, depth: Real, height: Real, material: Material, *, thick: Real
) -> Parts:
    """Four legs below a top: square, round, turned or splayed."""
    style = generator.integers(4)
    inset = thick * _uniform(generator, 0.6, 1.6)
    parts: Parts = []
    for x in (-1, 1):
        for y in (-1, 1):
            at = translation(x * (0.5 * width - inset), y * (0.5 * depth - inset), 0)
            if style == 0:
                leg = box("leg", (thick, thick, height), material, bevel=0.003)
            elif style == 1:
                leg = cylinder("leg", 0.3 * thick, height, material, top=0.55 * thick, segments=14)
            elif style == 2:
                r = 0.5 * thick
                ups = (0.0, 0.02, 0.08, 0.12, 0.3, 0.55, 0.7, 0.74, 0.78, 1.0)
                radii = (0.6, 0.7, 0.6, 0.95, 0.7, 1.0, 0.7, 1.05, 1.0, 1.0)
                profile = [(0.0, 0.0), *((r * s, height * t) for s, t in zip(radii, ups, strict=True)), (0.0, height)]
                leg = lathe("leg", profile, material, segments=14)
            else:
                lean = 0.5 * inset
                leg = tube(
                    "leg",
                    [(x * lean, y * lean, 0.0), (0.5 * x * lean, 0.5 * y * lean, 0.5 * height), (0, 0, height)],
                    (0.3 * thick, 0.4 * thick, 0.5 * thick),
                    material,
                    segments=12,
                )
            parts.append((leg, at))
    return parts


def _top(generator: np.random.Generator, width: Real, depth: Real, thick: Real, material: Material) -> Mesh:
    return box("top", (width, depth, thick), material, bevel=_uniform(generator, 0.001, min(0.01, 0.4 * thick)))


def table(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A dining, coffee or side table: four legs, a trestle or a column; rectangular or round."""
    low = generator.random() < 0.25
    height = _uniform(generator, 0.35, 0.52) if low else _uniform(generator, 0.68, 0.8)
    thick = _uniform(generator, 0.018, 0.05)
    top = materials.table_top(generator)
    body = (
        top
        if generator.random() < 0.45
        else _body(generator)
        if generator.random() < 0.6
        else materials.metal(generator)
    )
    if generator.random() < 0.25:
        radius = _uniform(generator, 0.3, 0.65)
        disc = lathe(
            "top",
            [(0, 0), (radius - 0.004, 0), (radius, 0.004), (radius, thick - 0.004), (radius - 0.004, thick)],
            top,
            segments=48,
        )
        angles = np.linspace(0.0, 2.0 * math.pi, 48, endpoint=False)
        parts: Parts = [(disc, translation(0, 0, height - thick))]
        parts.append((_disc(radius - 0.004, angles, top), translation(0, 0, height)))
        foot = 0.55 * radius
        profile = [
            (0, 0),
            (foot, 0),
            (foot, 0.02),
            (0.07, 0.05),
            (0.04, 0.1),
            (0.035, height - thick),
            (0, height - thick),
        ]
        parts.append((lathe("column", profile, body), _HERE))
        return merged("round table", parts)
    width = _uniform(generator, 0.6, 1.3) if low else _uniform(generator, 0.7, 2.2)
    depth = min(width, _uniform(generator, 0.45, 0.75) if low else _uniform(generator, 0.6, 1.0))
    parts = [(_top(generator, width, depth, thick, top), translation(0, 0, height - thick))]
    if generator.random() < 0.8:
        parts += _legs(generator, width, depth, height - thick, body, thick=_uniform(generator, 0.035, 0.085))
        if generator.random() < 0.6:
            apron = _uniform(generator, 0.05, 0.11)
            for y in (-1, 1):
                board = box("apron", (width - 0.16, 0.02, apron), body)
                parts.append((board, translation(0, y * (0.5 * depth - 0.07), height - thick - apron)))
            for x in (-1, 1):
                board = box("apron", (0.02, depth - 0.16, apron), body)
                parts.append((board, translation(x * (0.5 * width - 0.07), 0, height - thick - apron)))
    else:
        for x in (-1, 1):
            parts.append(
                (
                    box("trestle", (0.05, 0.75 * depth, height - thick), body, bevel=0.004),
                    translation(x * 0.36 * width, 0, 0),
                )
            )
        parts.append((box("beam", (0.72 * width, 0.04, 0.1), body), translation(0, 0, 0.25 * height)))
    return merged("table", parts)


def _disc(radius: Real, angles: np.ndarray, material: Material) -> Mesh:
    """A flat disc with plain meters as UVs, so that a pattern runs across it."""
    rim = np.stack((radius * np.cos(angles), radius * np.sin(angles), np.zeros(len(angles))), axis=1)
    vertices = np.concatenate((np.zeros((1, 3)), rim))
    after = np.roll(np.arange(1, len(rim) + 1), -1)
    faces = np.stack((np.zeros(len(rim), dtype=int), np.arange(1, len(rim) + 1), after), axis=1)
    return Mesh(
        name="disc",
        vertices=vertices.astype(np.float32),
        faces=faces.astype(np.int32),
        uvs=vertices[faces][..., :2].astype(np.float32),
        face_materials=np.zeros(len(faces), dtype=np.int32),
        materials=(material,),
    )


def desk(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A desk with a block of drawers on one side."""
    width, depth, height = _uniform(generator, 1.0, 1.8), _uniform(generator, 0.55, 0.8), _uniform(generator, 0.7, 0.77)
    thick = _uniform(generator, 0.02, 0.04)
    top = materials.table_top(generator)
    body = _body(generator)
    side = 1 if generator.random() < 0.5 else -1
    block = min(0.45, 0.35 * width)
    parts: Parts = [(_top(generator, width, depth, thick, top), translation(0, 0, height - thick))]
    chest = _fronted(
        generator, (block, depth - 0.06, height - thick), body, rows=int(generator.integers(2, 5)), columns=1
    )
    parts += [(mesh, translation(side * (0.5 * (width - block) - 0.01), 0.02, 0) @ at) for mesh, at in chest]
    panel = box("side", (0.025, depth - 0.06, height - thick), body)
    parts.append((panel, translation(-side * (0.5 * width - 0.03), 0.02, 0)))
    back = box("back", (width - block - 0.06, 0.02, 0.35), body)
    parts.append((back, translation(-side * 0.5 * block, 0.5 * depth - 0.05, height - thick - 0.35)))
    return merged("desk", parts)


def _fronted(
    generator: np.random.Generator,
    size: tuple[Real, Real, Real],
    body: Material,
    *,
    rows: int,
    columns: int,
    front: Material | None = None,
) -> Parts:
    """A closed block with a grid of doors or drawers and their handles on its front."""
    width, depth, height = size
    front = front or (body if generator.random() < 0.6 else _body(generator))
    handle = materials.metal(generator) if generator.random() < 0.7 else materials.wood(generator)
    thick = 0.018
    base = _uniform(generator, 0.0, 0.1)
    parts: Parts = [
        (box("body", (width, depth - thick, height - base), body, bevel=0.002), translation(0, 0.5 * thick, base)),
        (box("base", (width - 0.04, depth - 0.08, base + 0.001), body), translation(0, 0.03, 0)),
    ]
    style = generator.integers(3)
    gap = 0.004
    wide, high = width / columns, (height - base) / rows
    for column in range(columns):
        for row in range(rows):
            x = (column + 0.5) * wide - 0.5 * width
            z = base + row * high
            panel = box("front", (wide - gap, thick, high - gap), front, bevel=0.002)
            parts.append((panel, translation(x, -0.5 * depth + 0.5 * thick, z + 0.5 * gap)))
            drawer = wide > 0.9 * high
            if style == 0:
                knob = lathe(
                    "knob",
                    [(0, 0), (0.006, 0), (0.006, 0.015), (0.014, 0.018), (0.012, 0.028), (0, 0.03)],
                    handle,
                    segments=12,
                )
                turn = np.eye(4)
                turn[1, 1] = turn[2, 2] = 0.0
                turn[1, 2], turn[2, 1] = -1.0, 1.0
                side = 0.0 if drawer else (0.38 if column % 2 == 0 else -0.38) * wide
                parts.append((knob, translation(x + side, -0.5 * depth, z + (0.5 if drawer else 0.55) * high) @ turn))
            elif style == 1:
                long = min(0.16, 0.6 * (wide if drawer else high))
                bar = (long, 0.012, 0.012) if drawer else (0.012, 0.012, long)
                side = 0.0 if drawer else (0.4 if column % 2 == 0 else -0.4) * wide
                up = 0.7 * high if drawer else 0.5 * high - 0.5 * long
                parts.append(
                    (box("handle", bar, handle, bevel=0.002), translation(x + side, -0.5 * depth - 0.024, z + up))
                )
                for end in (-0.4, 0.4):
                    shift = (end * long, 0.0) if drawer else (0.0, (0.5 + end) * long)
                    foot = box("foot", (0.008, 0.022, 0.008), handle)
                    parts.append((foot, translation(x + side + shift[0], -0.5 * depth - 0.009, z + up + shift[1])))
    return parts


def cabinet(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A chest of drawers, sideboard or cupboard."""
    width, depth, height = (
        _uniform(generator, 0.4, 1.8),
        _uniform(generator, 0.35, 0.55),
        _uniform(generator, 0.45, 1.2),
    )
    columns = max(1, round(width / _uniform(generator, 0.4, 0.9)))
    rows = 1 if generator.random() < 0.4 else int(generator.integers(2, 6))
    parts = _fronted(generator, (width, depth, height), _body(generator), rows=rows, columns=columns)
    if generator.random() < 0.5:
        plate = _top(generator, width + 0.03, depth + 0.015, 0.022, materials.table_top(generator))
        parts.append((plate, translation(0, -0.0075, height)))
    return merged("cabinet", parts)


def wardrobe(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A wardrobe with two to four doors, one of them a mirror at times."""
    columns = int(generator.integers(1, 5))
    width, depth, height = (
        columns * _uniform(generator, 0.45, 0.6),
        _uniform(generator, 0.5, 0.65),
        _uniform(generator, 1.7, 2.3),
    )
    parts = _fronted(generator, (width, depth, height), _body(generator), rows=1, columns=columns)
    if generator.random() < 0.25:
        wide = width / columns
        x = (int(generator.integers(columns)) + 0.5) * wide - 0.5 * width
        glass = box("mirror", (0.8 * wide, 0.006, 0.75 * height), materials.mirror())
        parts.append((glass, translation(x, -0.5 * depth - 0.003, 0.15 * height)))
    return merged("wardrobe", parts)


def bookcase(generator: np.random.Generator, prints: Prints) -> Mesh:
    """Open shelves, empty or with rows of books."""
    columns = int(generator.integers(1, 4))
    bay = _uniform(generator, 0.4, 0.9)
    width, depth, height = columns * bay + 0.02, _uniform(generator, 0.22, 0.4), _uniform(generator, 0.7, 2.2)
    board = _uniform(generator, 0.016, 0.03)
    rows = max(2, round(height / _uniform(generator, 0.28, 0.42)))
    body = _body(generator)
    pitch = (height - board) / rows
    parts: Parts = []
    for row in range(rows + 1):
        parts.append(
            (box("shelf", (width - 0.004, depth - 0.001, board), body, bevel=0.001), translation(0, 0, row * pitch))
        )
    for column in range(columns + 1):
        x = -0.5 * width + 0.5 * board + column * (width - board) / columns
        parts.append((box("upright", (board, depth - 0.002, height - 0.002), body), translation(x, 0, 0.001)))
    if generator.random() < 0.75:
        parts.append(
            (box("back", (width - 0.01, 0.006, height - 0.01), body), translation(0, 0.5 * depth - 0.004, 0.005))
        )
    fullness = _uniform(generator, 0.0, 0.9)
    for row in range(rows):
        for column in range(columns):
            if generator.random() > fullness:
                continue
            left = -0.5 * width + board + column * (width - board) / columns
            _fill_with_books(
                generator,
                prints,
                parts,
                left,
                left + (width - board) / columns - board,
                row * pitch + board,
                pitch - board,
                depth,
            )
    return merged("bookcase", parts)


def _fill_with_books(
    generator: np.random.Generator,
    prints: Prints,
    parts: Parts,
    left: Real,
    right: Real,
    low: Real,
    space: Real,
    depth: Real,
) -> None:
    palette = [materials.paint(generator) for _ in range(4)]
    right = left + (right - left) * _uniform(generator, 0.3, 1.0)
    x = left + 0.004
    while True:
        thick, high, deep = _uniform(generator, 0.012, 0.05), space * _uniform(generator, 0.6, 0.92), 0.75 * depth
        if x + thick > right - 0.004:
            return
        cover = palette[int(generator.integers(4))]
        faces: Sequence[Material] = ()
        if generator.random() < 0.3:
            spine = materials.printed(prints.path("cover", generator))
            faces = (cover, cover, spine, cover, cover, cover)
        book = box("book", (thick, deep, high), cover, faces=faces)
        parts.append(
            (book, translation(x + 0.5 * thick, 0.5 * (depth - deep) - 0.012 - 0.05 * generator.random() * deep, low))
        )
        x += thick + 0.0008


def chair(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A chair with four legs and a back of slats or a panel, or a stool."""
    width, depth = _uniform(generator, 0.38, 0.5), _uniform(generator, 0.38, 0.5)
    seat_height = _uniform(generator, 0.42, 0.5)
    frame = _body(generator) if generator.random() < 0.75 else materials.metal(generator)
    soft = generator.random() < 0.5
    cover = materials.fabric(generator) if soft else frame
    parts = _legs(generator, width, depth, seat_height - 0.03, frame, thick=_uniform(generator, 0.025, 0.045))
    parts.append((box("seat", (width, depth, 0.03), frame, bevel=0.006), translation(0, 0, seat_height - 0.03)))
    if soft:
        pad = cushion("pad", (width - 0.02, depth - 0.02, _uniform(generator, 0.03, 0.07)), cover, softness=0.3)
        parts.append((pad, translation(0, 0, seat_height - 0.004)))
    if generator.random() < 0.12:
        return merged("stool", parts)
    rise = _uniform(generator, 0.35, 0.6)
    lean = _uniform(generator, 0.02, 0.09)
    y = 0.5 * depth - 0.025
    for x in (-1, 1):
        at = x * (0.5 * width - 0.025)
        post = tube(
            "post",
            [
                (at, y, seat_height - 0.03),
                (at, y + 0.4 * lean, seat_height + 0.5 * rise),
                (at, y + lean, seat_height + rise),
            ],
            0.015,
            frame,
            segments=10,
        )
        parts.append((post, _HERE))
    style = generator.integers(3)
    if style == 0:
        panel = cushion("back", (width - 0.02, 0.05, 0.6 * rise), cover, softness=0.25)
        parts.append((panel, translation(0, y + 0.7 * lean, seat_height + 0.38 * rise)))
    elif style == 1:
        for step in np.linspace(0.35, 0.93, int(generator.integers(2, 6))):
            slat = box("slat", (width - 0.05, 0.016, 0.05), frame, bevel=0.003)
            parts.append((slat, translation(0, y + step * lean, seat_height + step * rise - 0.03)))
    else:
        rail = box("rail", (width - 0.03, 0.022, 0.06), frame, bevel=0.004)
        parts.append((rail, translation(0, y + lean, seat_height + rise - 0.06)))
        for x in np.linspace(-0.5, 0.5, int(generator.integers(4, 8)))[1:-1]:
            at = float(x * (width - 0.05))
            bar = [
                (at, y, seat_height - 0.01),
                (at, y + 0.45 * lean, seat_height + 0.5 * rise),
                (at, y + lean, seat_height + rise - 0.03),
            ]
            parts.append((tube("bar", bar, 0.008, frame, segments=8), _HERE))
    if generator.random() < 0.2:
        for x in (-1, 1):
            at = x * (0.5 * width + 0.01)
            arm = [
                (at, y + 0.02, seat_height + 0.2),
                (at, 0, seat_height + 0.21),
                (at, -0.5 * depth + 0.04, seat_height + 0.19),
                (at, -0.5 * depth + 0.04, seat_height - 0.02),
            ]
            parts.append((tube("arm", arm, 0.014, frame), _HERE))
    return merged("chair", parts)


def office_chair(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A swivel chair on five castors."""
    plastic = Material(
        name="plastic", base_color=materials.color(generator, saturation=(0.0, 0.2), value=(0.02, 0.3)), roughness=0.5
    )
    cover = materials.fabric(generator)
    seat = _uniform(generator, 0.43, 0.5)
    parts: Parts = [(cylinder("column", 0.028, seat - 0.08, plastic), translation(0, 0, 0.06))]
    for arm in range(5):
        angle = 0.4 + 2.0 * math.pi * arm / 5
        end = (0.28 * math.cos(angle), 0.28 * math.sin(angle), 0.07)
        parts.append(
            (
                tube("foot", [(0, 0, 0.11), (0.5 * end[0], 0.5 * end[1], 0.095), end], (0.03, 0.025, 0.018), plastic),
                _HERE,
            )
        )
        wheel = cushion("castor", (0.055, 0.055, 0.06), plastic, softness=0.6)
        parts.append((wheel, translation(end[0], end[1], 0)))
    parts.append((cushion("seat", (0.48, 0.47, 0.09), cover, softness=0.3), translation(0, 0, seat - 0.04)))
    high = _uniform(generator, 0.4, 0.65)
    parts.append((cushion("back", (0.45, 0.08, high), cover, softness=0.3), translation(0, 0.24, seat + 0.1)))
    parts.append((tube("stay", [(0, 0.1, seat - 0.02), (0, 0.27, seat), (0, 0.285, seat + 0.3)], 0.02, plastic), _HERE))
    return merged("office chair", parts)


def sofa(generator: np.random.Generator, prints: Prints) -> Mesh:
    """An armchair or a sofa for two or three, with cushions."""
    seats = int(generator.choice((1, 1, 2, 3)))
    place_width = _uniform(generator, 0.55, 0.7)
    arm = _uniform(generator, 0.1, 0.22)
    width, depth = seats * place_width + 2 * arm, _uniform(generator, 0.75, 0.95)
    seat, back = _uniform(generator, 0.36, 0.46), _uniform(generator, 0.7, 0.95)
    cover = (
        materials.fabric(generator)
        if generator.random() < 0.75
        else Material(
            name="leather",
            base_color=materials.color(generator, saturation=(0.1, 0.7), value=(0.03, 0.5)),
            roughness=0.4,
        )
    )
    feet = materials.wood(generator)
    rise = _uniform(generator, 0.03, 0.14)
    parts = _legs(generator, width - 0.06, depth - 0.06, rise + 0.02, feet, thick=0.05)
    base = cushion("base", (width - 0.02, depth - 0.02, seat - 0.14 - rise), cover, softness=0.12)
    parts.append((base, translation(0, 0, rise)))
    soft = _uniform(generator, 0.18, 0.35)
    for number in range(seats):
        x = (number - 0.5 * (seats - 1)) * place_width
        pad = cushion("seat", (place_width - 0.006, depth - 0.24, 0.17), cover, softness=soft)
        parts.append((pad, translation(x, -0.11, seat - 0.15)))
        rest = cushion("back", (place_width - 0.006, 0.2, back - seat + 0.05), cover, softness=soft)
        parts.append((rest, translation(x, 0.5 * depth - 0.2, seat - 0.03)))
    parts.append(
        (
            cushion("rear", (width - 0.02, 0.14, back - rise - 0.03), cover, softness=0.15),
            translation(0, 0.5 * depth - 0.07, rise),
        )
    )
    arm_height = _uniform(generator, 0.1, 0.22)
    for x in (-1, 1):
        side = cushion(
            "arm", (arm, depth - 0.02, seat + arm_height - rise), cover, softness=_uniform(generator, 0.12, 0.3)
        )
        parts.append((side, translation(x * 0.5 * (width - arm), 0, rise)))
    for _ in range(int(generator.integers(0, 3))):
        pillow = cushion("pillow", (0.4, 0.14, 0.38), materials.fabric(generator), softness=0.45)
        parts.append(
            (
                pillow,
                translation(_uniform(generator, -0.3, 0.3) * seats * place_width, 0.5 * depth - 0.36, seat + 0.005),
            )
        )
    return merged("sofa", parts)


def bed(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A bed with mattress, blanket and pillows; the head at the back."""
    double = generator.random() < 0.5
    width, depth = (
        (_uniform(generator, 1.4, 1.85) if double else _uniform(generator, 0.85, 1.2)),
        _uniform(generator, 1.95, 2.15),
    )
    frame = _body(generator)
    sheet_cloth, blanket = materials.fabric(generator), materials.fabric(generator)
    low = _uniform(generator, 0.2, 0.35)
    parts: Parts = [(box("frame", (width, depth, low - 0.08), frame, bevel=0.008), translation(0, 0, 0.08))]
    parts += _legs(generator, width, depth, 0.09, frame, thick=0.06)
    head = _uniform(generator, 0.6, 1.15)
    parts.append((box("head", (width + 0.02, 0.05, head), frame, bevel=0.01), translation(0, 0.5 * depth + 0.025, 0)))
    parts.append(
        (
            cushion("mattress", (width - 0.04, depth - 0.03, 0.22), sheet_cloth, softness=0.12),
            translation(0, 0, low - 0.02),
        )
    )
    top = low + 0.18
    rows, columns = 24, 20
    long = depth * _uniform(generator, 0.55, 0.8)
    x = np.linspace(-0.5 * width - 0.015, 0.5 * width + 0.015, columns)
    y = np.linspace(-0.5 * depth - 0.015, -0.5 * depth + long, rows)
    waves = (
        0.012
        * np.sin(x[None] * _uniform(generator, 6, 16) + 2 * y[:, None] + 3)
        * np.sin(y[:, None] * _uniform(generator, 5, 14))
    )
    edge = np.minimum(1.0, np.minimum(x - x[0], x[-1] - x)[None] / 0.05) * np.minimum(1.0, (y - y[0])[:, None] / 0.05)
    height = top + 0.035 + waves - 0.22 * (1 - edge)
    points = np.stack((*np.meshgrid(x, y), height), axis=-1)
    parts.append((sheet("blanket", points, blanket), _HERE))
    for number in range(2 if double else 1):
        at = (number - 0.5) * 0.5 * width if double else 0.0
        pillow = cushion(
            "pillow", (min(0.7, 0.45 * width if double else 0.8 * width), 0.42, 0.15), sheet_cloth, softness=0.4
        )
        parts.append((pillow, translation(at, 0.5 * depth - 0.28, top + 0.005)))
    return merged("bed", parts)


def worktop(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A kitchen unit: doors below a worktop, with a sink or a hob at times."""
    columns = int(generator.integers(1, 5))
    width, depth, height = (
        columns * _uniform(generator, 0.45, 0.6),
        _uniform(generator, 0.56, 0.64),
        _uniform(generator, 0.84, 0.92),
    )
    thick = 0.035
    parts = _fronted(
        generator,
        (width, depth, height - thick),
        _body(generator),
        rows=int(generator.choice((1, 1, 3))),
        columns=columns,
    )
    top = materials.table_top(generator)
    parts.append((_top(generator, width + 0.01, depth + 0.02, thick, top), translation(0, -0.01, height - thick)))
    draw = generator.random()
    steel = materials.metal(generator)
    if draw < 0.35:  # a sink set on the top
        dish = [(0.0, 0.004), (0.13, 0.004), (0.145, 0.012), (0.16, 0.012), (0.165, 0.0)]
        parts.append((lathe("sink", dish[::-1], steel, squash=0.85), translation(0, 0, height)))
        tap = [
            (0, 0.2, height),
            (0, 0.2, height + 0.22),
            (0, 0.15, height + 0.29),
            (0, 0.08, height + 0.29),
            (0, 0.05, height + 0.23),
        ]
        parts.append((tube("tap", tap, 0.012, steel), _HERE))
    elif draw < 0.7:
        plate = Material(name="hob", base_color=(0.02, 0.02, 0.022), roughness=0.1)
        parts.append((box("hob", (min(0.58, 0.95 * width), 0.5, 0.006), plate, bevel=0.002), translation(0, 0, height)))
        ring = materials.metal(generator)
        for x in (-0.13, 0.13):
            for y in (-0.12, 0.12):
                parts.append((cylinder("ring", 0.08, 0.004, ring), translation(x, y, height + 0.006)))
    return merged("kitchen unit", parts)


def appliance(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A refrigerator, an oven, a washing machine or a dishwasher."""
    coat = materials.paint(generator, saturation=(0.0, 0.3)) if generator.random() < 0.7 else materials.metal(generator)
    dark = Material(name="door glass", base_color=(0.02, 0.02, 0.025), roughness=0.1)
    steel = materials.metal(generator)
    kind = generator.integers(3)
    if kind == 0:
        size = (_uniform(generator, 0.55, 0.7), _uniform(generator, 0.6, 0.7), _uniform(generator, 1.2, 2.0))
        return merged("refrigerator", _fronted(generator, size, coat, rows=2, columns=1, front=coat))
    width, depth, height = 0.6, 0.6, 0.85
    parts: Parts = [(box("body", (width, depth, height), coat, bevel=0.006), _HERE)]
    panel = box("panel", (0.56, 0.006, 0.1), materials.paint(generator, saturation=(0.0, 0.1)))
    parts.append((panel, translation(0, -0.5 * depth - 0.003, height - 0.12)))
    front = np.eye(4)
    front[1, 1] = front[2, 2] = 0.0
    front[1, 2], front[2, 1] = -1.0, 1.0
    for x in np.linspace(-0.22, 0.22, int(generator.integers(3, 7))):
        parts.append(
            (cylinder("knob", 0.018, 0.02, steel), translation(float(x), -0.5 * depth - 0.006, height - 0.07) @ front)
        )
    if kind == 1:
        parts.append((box("window", (0.46, 0.01, 0.36), dark, bevel=0.003), translation(0, -0.5 * depth - 0.005, 0.22)))
        parts.append((box("bar", (0.5, 0.015, 0.015), steel), translation(0, -0.5 * depth - 0.045, 0.64)))
        for x in (-0.22, 0.22):
            parts.append((box("foot", (0.012, 0.045, 0.012), steel), translation(x, -0.5 * depth - 0.022, 0.6415)))
    else:
        parts.append(
            (
                lathe("rim", [(0.0, 0.0), (0.2, 0.0), (0.2, 0.02), (0.15, 0.03), (0.15, 0.012), (0.0, 0.01)], steel),
                translation(0, -0.5 * depth, 0.4) @ front,
            )
        )
        parts.append((cylinder("window", 0.148, 0.018, dark), translation(0, -0.5 * depth, 0.4) @ front))
    return merged("appliance", parts)


def basin(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A washbasin on a column or a cabinet."""
    glaze = materials.ceramic(generator)
    steel = materials.metal(generator)
    height = _uniform(generator, 0.8, 0.9)
    radius = _uniform(generator, 0.22, 0.3)
    dish = [
        (0.0, 0.0),
        (0.5 * radius, 0.0),
        (0.9 * radius, 0.1),
        (radius, 0.16),
        (radius, 0.17),
        (0.92 * radius, 0.17),
        (0.8 * radius, 0.08),
        (0.4 * radius, 0.03),
        (0.0, 0.03),
    ]
    parts: Parts = [(lathe("basin", dish, glaze, squash=0.8), translation(0, 0, height - 0.17))]
    if generator.random() < 0.5:
        parts.append(
            (
                lathe("column", [(0, 0), (0.12, 0), (0.07, 0.15), (0.07, height - 0.15), (0, height - 0.15)], glaze),
                _HERE,
            )
        )
    else:
        parts += _fronted(generator, (2.0 * radius, 1.6 * radius, height - 0.165), _body(generator), rows=1, columns=2)
    back = 0.8 * radius
    tap = [
        (0, back - 0.035, height - 0.03),
        (0, back - 0.035, height + 0.12),
        (0, back - 0.1, height + 0.14),
        (0, back - 0.13, height + 0.09),
    ]
    parts.append((tube("tap", tap, 0.013, steel), _HERE))
    return merged("basin", parts)


def toilet(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A toilet with its cistern."""
    glaze = Material(name="ceramic", base_color=materials.varied(generator, (0.75, 0.75, 0.72), 0.08), roughness=0.12)
    pan = [(0.0, 0.0), (0.11, 0.0), (0.1, 0.12), (0.16, 0.3), (0.185, 0.38), (0.185, 0.4), (0.0, 0.4)]
    turn = np.eye(4)
    turn[:2, :2] = ((0.0, -1.0), (1.0, 0.0))
    lid = lathe("lid", [(0.0, 0.0), (0.19, 0.0), (0.19, 0.02), (0.0, 0.026)], glaze, squash=0.8)
    return merged(
        "toilet",
        [
            (lathe("pan", pan, glaze, squash=0.8), translation(0, -0.12, 0) @ turn),
            (lid, translation(0, -0.12, 0.4) @ turn),
            (box("cistern", (0.38, 0.17, 0.4), glaze, bevel=0.02), translation(0, 0.2, 0.38)),
            (box("foot", (0.2, 0.26, 0.38), glaze, bevel=0.03), translation(0, 0.14, 0)),
        ],
    )


def tub(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A bath tub."""
    glaze = materials.ceramic(generator)
    length, width, height = _uniform(generator, 1.5, 1.8), _uniform(generator, 0.7, 0.8), _uniform(generator, 0.5, 0.6)
    rim = 0.06
    parts: Parts = []
    for x in (-1, 1):
        parts.append((box("end", (rim, width, height), glaze, bevel=0.01), translation(x * 0.5 * (length - rim), 0, 0)))
    for y in (-1, 1):
        parts.append(
            (
                box("side", (length - 0.01, rim, height - 0.002), glaze, bevel=0.01),
                translation(0, y * 0.5 * (width - rim), 0),
            )
        )
    parts.append((box("floor", (length - rim, width - rim, 0.14), glaze), _HERE))
    steel = materials.metal(generator)
    x = 0.5 * length - 0.03
    parts.append(
        (
            tube(
                "tap",
                [(x, 0, height), (x, 0, height + 0.12), (x - 0.08, 0, height + 0.13), (x - 0.1, 0, height + 0.08)],
                0.014,
                steel,
            ),
            _HERE,
        )
    )
    return merged("bath tub", parts)


def floor_lamp(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A lamp on a tall foot."""
    height = _uniform(generator, 1.35, 1.8)
    steel = materials.metal(generator)
    shade = Material(
        name="shade",
        base_color=materials.color(generator, saturation=(0.0, 0.3), value=(0.5, 0.8)),
        roughness=0.9,
        emission=_uniform(generator, 0.3, 3.0),
    )
    low, high = _uniform(generator, 0.15, 0.24), _uniform(generator, 0.1, 0.18)
    start = height - _uniform(generator, 0.2, 0.32)
    return merged(
        "floor lamp",
        [
            (
                lathe(
                    "foot",
                    [(0, 0), (0.14, 0), (0.14, 0.015), (0.012, 0.03), (0.012, start + 0.1), (0, start + 0.1)],
                    steel,
                ),
                _HERE,
            ),
            (
                lathe(
                    "shade",
                    [(low, start), (high, height), (high - 0.003, height), (low - 0.003, start), (low, start)],
                    shade,
                ),
                _HERE,
            ),
        ],
    )


def large_plant(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A plant in a tub on the floor."""
    return objects.plant(generator, prints, height=_uniform(generator, 0.6, 1.7))


def large_box(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A carton, chest or loudspeaker."""
    size = (_uniform(generator, 0.25, 0.7), _uniform(generator, 0.25, 0.5), _uniform(generator, 0.2, 0.7))
    card = Material(name="card", base_color=materials.varied(generator, (0.38, 0.26, 0.15)), roughness=0.9)
    if generator.random() < 0.4:
        return box("chest", size, _body(generator), bevel=0.006)
    label = materials.printed(prints.path("label", generator), roughness=0.8)
    return box(
        "carton",
        size,
        card,
        bevel=0.003,
        faces=(card, card, label if generator.random() < 0.5 else card, card, card, card),
    )


def picture(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A framed picture or a poster."""
    width = _uniform(generator, 0.2, 0.9)
    height = width * _uniform(generator, 0.65, 1.5)
    rim = _uniform(generator, 0.0, 0.05)
    kind = "picture" if generator.random() < 0.6 else "poster"
    image = materials.printed(prints.path(kind, generator), roughness=_uniform(generator, 0.2, 0.8))
    return _framed("picture", width, height, rim, image, _body(generator))


def wall_mirror(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A mirror in a frame."""
    width = _uniform(generator, 0.35, 0.9)
    return _framed(
        "mirror",
        width,
        width * _uniform(generator, 0.8, 1.8),
        _uniform(generator, 0.01, 0.06),
        materials.mirror(),
        _body(generator),
    )


def _framed(name: str, width: Real, height: Real, rim: Real, image: Material, frame: Material) -> Mesh:
    thick = 0.02
    x = 0.5 * width
    corners = (
        (-x, -0.5 * thick + 0.004, 0),
        (x, -0.5 * thick + 0.004, 0),
        (x, -0.5 * thick + 0.004, height),
        (-x, -0.5 * thick + 0.004, height),
    )
    parts: Parts = [
        (quad("image", corners, image, uv=((0, 0), (1, 0), (1, 1), (0, 1))), translation(0, 0, rim)),
        (box("back", (width, thick - 0.006, height), frame), translation(0, 0.003, rim)),
    ]
    if rim > 0.006:
        for z in (0.0, rim + height):
            parts.append((box("rim", (width + 2 * rim, thick, rim), frame, bevel=0.003), translation(0, 0, z)))
        for side in (-1, 1):
            parts.append(
                (
                    box("rim", (rim, thick, height + 0.002), frame, bevel=0.003),
                    translation(side * (x + 0.5 * rim), 0, rim - 0.001),
                )
            )
    return merged(name, parts)


def wall_shelf(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A board on brackets."""
    width, depth = _uniform(generator, 0.4, 1.2), _uniform(generator, 0.15, 0.28)
    body = _body(generator)
    steel = materials.metal(generator)
    parts: Parts = [(box("board", (width, depth, 0.022), body, bevel=0.002), translation(0, 0, 0.12))]
    for x in (-0.35, 0.35):
        parts.append((box("bracket", (0.015, 0.015, 0.12), steel), translation(x * width, 0.5 * depth - 0.008, 0.0)))
        parts.append((box("bracket", (0.015, 0.9 * depth, 0.012), steel), translation(x * width, 0.04 * depth, 0.109)))
    return merged("shelf", parts)


def wall_cabinet(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A hanging cupboard."""
    columns = int(generator.integers(1, 4))
    size = (columns * _uniform(generator, 0.4, 0.6), _uniform(generator, 0.25, 0.38), _uniform(generator, 0.4, 0.8))
    return merged("hanging cupboard", _fronted(generator, size, _body(generator), rows=1, columns=columns))


def clock(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A round clock."""
    radius = _uniform(generator, 0.1, 0.2)
    rim = _body(generator)
    face = Material(name="face", base_color=(0.75, 0.74, 0.7), roughness=0.5)
    hand = Material(name="hand", base_color=(0.03, 0.03, 0.03))
    turn = np.eye(4)
    turn[1, 1] = turn[2, 2] = 0.0
    turn[1, 2], turn[2, 1] = -1.0, 1.0
    lift = translation(0, 0, radius)
    parts: Parts = [
        (
            lathe(
                "rim",
                [(0, 0), (radius, 0), (radius, 0.035), (0.9 * radius, 0.04), (0.88 * radius, 0.03), (0, 0.03)],
                rim,
            ),
            lift @ turn,
        ),
        (cylinder("face", 0.87 * radius, 0.0305, face, segments=40), lift @ turn),
    ]
    for long in (0.5, 0.75):
        angle = generator.uniform(0, 6.3)
        tip = (long * radius * math.cos(angle), -0.034, radius + long * radius * math.sin(angle))
        middle = (0.5 * tip[0], -0.034, 0.5 * (radius + tip[2]))
        parts.append((tube("hand", [(0, -0.034, radius), middle, tip], 0.003, hand, segments=6), _HERE))
    return merged("clock", parts)


def radiator(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A radiator of upright ribs, feet on the floor."""
    ribs = int(generator.integers(6, 18))
    coat = materials.paint(generator, saturation=(0.0, 0.15))
    height = _uniform(generator, 0.45, 0.75)
    pitch = 0.06
    parts: Parts = []
    for rib in range(ribs):
        parts.append(
            (
                cushion("rib", (0.05, 0.1, height), coat, softness=0.2, segments=6),
                translation((rib - 0.5 * (ribs - 1)) * pitch, 0, 0.1),
            )
        )
    for z in (0.16, height + 0.03):
        end = 0.5 * ribs * pitch
        parts.append((tube("pipe", [(-end, 0, z), (0, 0, z), (end, 0, z)], 0.018, coat), _HERE))
    for side in (-1, 1):
        parts.append((cylinder("foot", 0.015, 0.14, coat), translation(side * (0.5 * (ribs - 1)) * pitch, 0, 0)))
    return merged("radiator", parts)


def pendant(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A ceiling lamp: a shade on a cord, a disc, or a globe."""
    shade = Material(
        name="shade",
        base_color=materials.color(generator, saturation=(0.0, 0.5), value=(0.4, 0.8)),
        roughness=0.8,
        emission=_uniform(generator, 0.5, 4.0),
    )
    cord_material = Material(name="cord", base_color=(0.05, 0.05, 0.05))
    kind = generator.integers(3)
    if kind == 0:
        radius = _uniform(generator, 0.15, 0.3)
        return lathe(
            "ceiling disc", [(0.0, 0.0), (0.7 * radius, 0.005), (radius, 0.05), (radius, 0.09), (0.0, 0.09)], shade
        )
    drop = _uniform(generator, 0.25, 0.8)
    size = _uniform(generator, 0.1, 0.25)
    cord = tube(
        "cord", [(0, 0, size), (0, 0, 0.5 * (size + drop)), (0, 0, size + drop)], 0.004, cord_material, segments=6
    )
    if kind == 1:
        profile = [
            (1.3 * size, 0.0),
            (0.35 * size, 0.9 * size),
            (0.0, size),
            (0.0, 0.985 * size),
            (0.33 * size, 0.88 * size),
            (1.28 * size, 0.0),
            (1.3 * size, 0.0),
        ]
    else:
        t = np.linspace(-0.5 * math.pi, 0.5 * math.pi, 13)
        profile = [(float(0.5 * size * math.cos(a)), float(0.5 * size * (1 + math.sin(a)))) for a in t]
    return merged("pendant lamp", [(lathe("shade", profile, shade), _HERE), (cord, _HERE)])


def door(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A closed door in its frame, 8 cm deep."""
    width, height = _uniform(generator, 0.75, 0.95), _uniform(generator, 1.95, 2.1)
    leaf = _body(generator)
    frame = leaf if generator.random() < 0.6 else materials.paint(generator)
    steel = materials.metal(generator)
    rim = _uniform(generator, 0.05, 0.1)
    parts: Parts = [(box("leaf", (width, 0.04, height), leaf, bevel=0.002), translation(0, 0.02, 0))]
    for side in (-1, 1):
        parts.append(
            (box("jamb", (rim, 0.08, height + rim), frame, bevel=0.003), translation(side * 0.5 * (width + rim), 0, 0))
        )
    parts.append((box("lintel", (width + 0.002, 0.08, rim), frame, bevel=0.003), translation(0, 0, height)))
    rows = int(generator.integers(0, 4))
    for row in range(rows):
        space = (height - 0.3) / rows
        for column in (-1, 1):
            panel = box("panel", (0.34 * width, 0.012, space - 0.12), leaf, bevel=0.005)
            parts.append((panel, translation(column * 0.22 * width, -0.004, 0.18 + row * space)))
    x = (0.5 * width - 0.07) * (1 if generator.random() < 0.5 else -1)
    lever = [(x, -0.002, 1.03), (x, -0.05, 1.03), (0.8 * x, -0.055, 1.03), (0.65 * x, -0.055, 1.03)]
    parts.append((tube("lever", lever, 0.009, steel, segments=8), _HERE))
    return merged("door", parts)


def window(generator: np.random.Generator, prints: Prints) -> Mesh:
    """A window frame with bars; its panes are open."""
    width, height = 1.2, 1.3
    frame = materials.paint(generator, saturation=(0.0, 0.3)) if generator.random() < 0.7 else materials.wood(generator)
    rim, deep = _uniform(generator, 0.04, 0.07), 0.06
    parts: Parts = []
    for side in (-1, 1):
        parts.append(
            (box("jamb", (rim, deep, height), frame, bevel=0.003), translation(side * 0.5 * (width - rim), 0, 0))
        )
    for z in (0.0, height - rim):
        parts.append((box("rail", (width - 2 * rim + 0.002, deep, rim), frame, bevel=0.003), translation(0, 0, z)))
    for column in range(1, int(generator.integers(1, 4))):
        bar = box("bar", (0.035, 0.04, height - 2 * rim), frame, bevel=0.002)
        parts.append((bar, translation((column / 3 - 0.5 if generator.random() < 0.3 else 0.0) * width, 0, rim)))
    for row in range(1, int(generator.integers(1, 4))):
        parts.append((box("bar", (width - 2 * rim, 0.03, 0.025), frame), translation(0, 0, height * row / 3)))
    return merged("window", parts)


# Group → (share, rooms in which it is usual, function). No rooms: everywhere.
FURNITURE: Mapping[str, tuple[tuple[Real, tuple[RoomKind, ...], Make], ...]] = {
    "table": ((3.0, (), table), (1.0, ("office", "bed"), desk)),
    "chair": ((3.0, (), chair), (1.0, ("office",), office_chair)),
    "seat": ((1.0, (), sofa),),
    "bed": ((1.0, (), bed),),
    "storage": (
        (2.0, (), cabinet),
        (1.5, ("living", "office", "bed"), bookcase),
        (1.0, ("bed",), wardrobe),
        (0.7, ("kitchen",), worktop),
    ),
    "appliance": (
        (2.0, ("kitchen",), worktop),
        (2.0, ("kitchen", "bath"), appliance),
        (1.0, ("bath",), basin),
        (1.0, ("bath",), toilet),
        (1.0, ("bath",), tub),
    ),
    "decor": (
        (1.5, (), large_plant),
        (1.0, ("living", "bed", "office"), floor_lamp),
        (1.0, (), large_box),
        (0.7, (), radiator),
    ),
    "wall": (
        (3.0, (), picture),
        (0.6, ("bath", "bed", "living"), wall_mirror),
        (1.0, (), wall_shelf),
        (0.6, ("kitchen", "bath"), wall_cabinet),
        (0.5, (), clock),
    ),
    "ceiling": ((1.0, (), pendant),),
    "door": ((1.0, (), door),),
    "window": ((1.0, (), window),),
}
