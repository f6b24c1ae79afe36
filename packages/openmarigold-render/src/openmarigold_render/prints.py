# SPDX-License-Identifier: Apache-2.0
"""Printed things drawn from a seed: labels of packages, book covers, posters, pictures, sheets of text, screens."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from openmarigold_render.core import generator_for, write_atomically
from openmarigold_render.scene import Real

PrintKind = Literal["label", "cover", "poster", "picture", "text", "screen", "rug"]
PRINT_KINDS: tuple[PrintKind, ...] = get_args(PrintKind)
NUM_PRINTS = 160
_EDGE = 256

_SYLLABLES = (
    *("ba", "co", "di", "fe", "gu", "la", "mi", "no", "pa", "ri", "so", "ta", "ve", "zu", "chi", "ster"),
    *("lon", "mar", "den", "kel", "pro", "qui", "tra", "vis", "wel", "yor"),
)


class Prints:
    """Image files of prints in a folder, drawn when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, kind: PrintKind, generator: np.random.Generator) -> Path:
        """One of the prints of a kind; its pixels depend on its name alone."""
        number = int(generator.integers(NUM_PRINTS))
        path = self._folder / f"{kind}-{number:03d}.png"
        if not path.exists():
            picture = draw_print(kind, number)
            write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
        return path


def draw_print(kind: PrintKind, number: int) -> Image.Image:
    """Print `number` of a kind, 256 x 256 pixels."""
    generator = generator_for(number, f"print {kind}")
    return {
        "label": _label,
        "cover": _cover,
        "poster": _cover,
        "picture": _picture,
        "text": _text_sheet,
        "screen": _screen,
        "rug": _rug,
    }[kind](generator)


def _color(
    generator: np.random.Generator, *, saturation: tuple[Real, Real], value: tuple[Real, Real]
) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(
        generator.random(), generator.uniform(*saturation), generator.uniform(*value)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def _word(generator: np.random.Generator) -> str:
    word = "".join(generator.choice(_SYLLABLES, size=int(generator.integers(1, 4))))
    return word.upper() if generator.random() < 0.5 else word.capitalize()


def _write(
    draw: ImageDraw.ImageDraw, generator: np.random.Generator, at: tuple[Real, Real], size: Real, fill: object
) -> None:
    draw.text(at, _word(generator), font=ImageFont.load_default(size=max(6.0, size)), fill=fill)  # pyright: ignore


def _shapes(draw: ImageDraw.ImageDraw, generator: np.random.Generator, count: int) -> None:
    for _ in range(count):
        left, top = generator.uniform(-40, 230, size=2)
        width, height = generator.uniform(20, 170, size=2)
        fill = _color(generator, saturation=(0.0, 1.0), value=(0.1, 1.0))
        kind = generator.integers(4)
        if kind == 0:
            draw.rectangle((left, top, left + width, top + height), fill=fill)
        elif kind == 1:
            draw.ellipse((left, top, left + width, top + height), fill=fill)
        elif kind == 2:
            draw.polygon([tuple(generator.uniform(0, 256, size=2)) for _ in range(3)], fill=fill)
        else:
            draw.line((left, top, left + width, top + height), fill=fill, width=int(generator.integers(2, 14)))


def _label(generator: np.random.Generator) -> Image.Image:
    ground = _color(generator, saturation=(0.0, 1.0), value=(0.25, 1.0))
    picture = Image.new("RGB", (_EDGE, _EDGE), ground)
    draw = ImageDraw.Draw(picture)
    ink = (250, 250, 245) if sum(ground) < 380 else (25, 20, 30)
    for _ in range(int(generator.integers(0, 3))):
        top = generator.uniform(0, 220)
        fill = _color(generator, saturation=(0.2, 1.0), value=(0.2, 1.0))
        draw.rectangle((0, top, _EDGE, top + generator.uniform(10, 70)), fill=fill)
    _shapes(draw, generator, int(generator.integers(0, 4)))
    _write(draw, generator, (generator.uniform(5, 60), generator.uniform(5, 120)), generator.uniform(32, 72), ink)
    for line in range(int(generator.integers(2, 9))):
        _write(draw, generator, (generator.uniform(5, 140), 130 + 14 * line), generator.uniform(8, 16), ink)
    if generator.random() < 0.4:
        _bars(draw, generator, (180, 200, 246, 246))
    return picture


def _bars(draw: ImageDraw.ImageDraw, generator: np.random.Generator, frame: tuple[int, int, int, int]) -> None:
    draw.rectangle(frame, fill=(250, 250, 250))
    column = frame[0] + 4
    while column < frame[2] - 4:
        width = int(generator.integers(1, 4))
        draw.rectangle((column, frame[1] + 4, column + width - 1, frame[3] - 4), fill=(15, 15, 15))
        column += width + int(generator.integers(1, 4))


def _cover(generator: np.random.Generator) -> Image.Image:
    ground = _color(generator, saturation=(0.1, 0.9), value=(0.15, 0.95))
    picture = Image.new("RGB", (_EDGE, _EDGE), ground)
    if generator.random() < 0.35:
        picture = _picture(generator)
    draw = ImageDraw.Draw(picture)
    _shapes(draw, generator, int(generator.integers(0, 6)))
    ink = _color(generator, saturation=(0.0, 0.6), value=(0.75, 1.0) if sum(ground) < 380 else (0.0, 0.3))
    for line in range(int(generator.integers(1, 4))):
        _write(draw, generator, (generator.uniform(8, 50), 20 + 56 * line), generator.uniform(24, 58), ink)
    _write(draw, generator, (generator.uniform(8, 120), 225), generator.uniform(12, 24), ink)
    return picture


def _picture(generator: np.random.Generator) -> Image.Image:
    """Soft fields of color under brush strokes: a painting seen from afar."""
    tones = [_color(generator, saturation=(0.05, 0.6), value=(0.15, 0.95)) for _ in range(3)]
    low = np.array([tones[int(generator.integers(3))] for _ in range(30)], dtype=np.uint8)
    picture = Image.fromarray(low.reshape(5, 6, 3)).resize((_EDGE, _EDGE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    palette = [*tones, *(_color(generator, saturation=(0.1, 0.7), value=(0.1, 1.0)) for _ in range(3))]
    for _ in range(int(generator.integers(20, 160))):
        x, y = generator.uniform(0, _EDGE, size=2)
        angle = generator.normal(0.0, 0.6)
        length = generator.uniform(6, 60)
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        draw.line((x, y, *end), fill=palette[int(generator.integers(6))], width=int(generator.integers(1, 12)))
    return picture.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.0, 2.0))))


def _text_sheet(generator: np.random.Generator) -> Image.Image:
    shade = int(generator.integers(215, 252))
    picture = Image.new("RGB", (_EDGE, _EDGE), (shade, shade, shade - int(generator.integers(0, 25))))
    draw = ImageDraw.Draw(picture)
    ink = (40, 40, 50)
    top = 14.0
    if generator.random() < 0.6:
        _write(draw, generator, (18, top), 22, ink)
        top += 34
    while top < 235:
        if generator.random() < 0.1:
            box = (20, top, 20 + generator.uniform(60, 200), top + generator.uniform(20, 60))
            draw.rectangle(box, fill=_color(generator, saturation=(0.0, 0.8), value=(0.3, 1.0)))
            top = box[3] + 6
            continue
        left = 18.0
        end = 238 if generator.random() < 0.85 else generator.uniform(60, 200)
        while left < end:
            length = generator.uniform(6, 34)
            draw.rectangle((left, top, min(left + length, end), top + 3), fill=ink)
            left += length + 5
        top += 8
    return picture


def _screen(generator: np.random.Generator) -> Image.Image:
    dark = generator.random() < 0.5
    picture = Image.new("RGB", (_EDGE, _EDGE), (22, 24, 30) if dark else (238, 240, 244))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(generator.integers(2, 6))):
        left, top = generator.uniform(0, 180, size=2)
        right, bottom = left + generator.uniform(50, 150), top + generator.uniform(40, 120)
        draw.rectangle((left, top, right, bottom), fill=_color(generator, saturation=(0.0, 0.7), value=(0.15, 1.0)))
        for row in np.arange(top + 6, bottom - 4, 8):
            ink = (200, 205, 215) if dark else (60, 60, 70)
            draw.rectangle(
                (left + 5, row, left + 5 + generator.uniform(10, max(11, right - left - 10)), row + 2), fill=ink
            )
    draw.rectangle((0, 0, _EDGE, 10), fill=_color(generator, saturation=(0.1, 0.8), value=(0.2, 0.9)))
    return picture


def _rug(generator: np.random.Generator) -> Image.Image:
    """A pattern with two axes of symmetry and a border."""
    palette = [_color(generator, saturation=(0.1, 0.8), value=(0.15, 0.9)) for _ in range(5)]
    quarter = Image.new("RGB", (_EDGE // 2, _EDGE // 2), palette[0])
    draw = ImageDraw.Draw(quarter)
    for _ in range(int(generator.integers(6, 40))):
        x, y = generator.uniform(0, 128, size=2)
        size = generator.uniform(3, 26)
        fill = palette[int(generator.integers(1, 5))]
        if generator.random() < 0.5:
            draw.polygon(((x - size, y), (x, y - size), (x + size, y), (x, y + size)), fill=fill)
        else:
            draw.rectangle((x - size, y - 0.3 * size, x + size, y + 0.3 * size), fill=fill)
    for inset in range(int(generator.integers(1, 4))):
        at = 4 + 7 * inset
        draw.line((at, 128, at, at, 128, at), fill=palette[int(generator.integers(1, 5))], width=4)
    cell = np.asarray(quarter)
    half = np.concatenate((cell, cell[:, ::-1]), axis=1)
    whole = np.concatenate((half, half[::-1])).astype(np.float64)
    whole *= generator.uniform(0.88, 1.08, size=(_EDGE, _EDGE, 1))
    return Image.fromarray(np.clip(whole, 0, 255).astype(np.uint8))
