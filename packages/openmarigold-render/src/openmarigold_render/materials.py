# SPDX-License-Identifier: Apache-2.0
"""Random materials by use. Colors stay between 0.015 and 0.85: pure black and white are found nowhere."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold_render.scene import Color, Material, Pattern

_DARKEST, _LIGHTEST = 0.015, 0.85
# Linear colors of timber: ground and grain.
_WOODS: tuple[tuple[Color, Color], ...] = (
    ((0.52, 0.36, 0.21), (0.33, 0.20, 0.10)),  # oak
    ((0.30, 0.16, 0.07), (0.17, 0.08, 0.03)),  # walnut
    ((0.62, 0.47, 0.30), (0.46, 0.31, 0.17)),  # beech, pine
    ((0.10, 0.05, 0.03), (0.05, 0.025, 0.015)),  # wenge
    ((0.32, 0.11, 0.06), (0.17, 0.05, 0.03)),  # mahogany
    ((0.42, 0.36, 0.30), (0.26, 0.22, 0.18)),  # weathered
    ((0.66, 0.57, 0.44), (0.52, 0.42, 0.30)),  # maple, birch
    ((0.24, 0.20, 0.17), (0.15, 0.12, 0.10)),  # smoked oak
)


def color(
    generator: np.random.Generator,
    *,
    saturation: tuple[float, float] = (0.0, 0.8),
    value: tuple[float, float] = (0.05, 0.8),
) -> Color:
    """A random color, linear, of a range of saturation and value."""
    rgb = colorsys.hsv_to_rgb(generator.random(), generator.uniform(*saturation), generator.uniform(*value))
    red, green, blue = (min(max(channel, _DARKEST), _LIGHTEST) for channel in rgb)
    return red, green, blue


def varied(generator: np.random.Generator, base: Color, spread: float = 0.15) -> Color:
    """A color near another one."""
    gain = np.exp(generator.normal(0.0, spread)) * np.exp(generator.normal(0.0, 0.25 * spread, size=3))
    red, green, blue = np.clip(np.asarray(base) * gain, _DARKEST, _LIGHTEST).tolist()
    return red, green, blue


def wood(generator: np.random.Generator, *, gloss: tuple[float, float] = (0.25, 0.7)) -> Material:
    """Timber with visible grain, or painted in one stroke of ten."""
    ground, grain = _WOODS[int(generator.integers(len(_WOODS)))]
    ground = varied(generator, ground, 0.25)
    if generator.random() < 0.1:
        ground = color(generator, saturation=(0.1, 0.8), value=(0.1, 0.7))
        grain = varied(generator, ground, 0.1)
    pattern = Pattern(
        kind="wood",
        colors=(ground, varied(generator, grain, 0.2)),
        scale=float(np.exp(generator.uniform(np.log(0.006), np.log(0.03)))),
        contrast=float(generator.uniform(0.35, 1.0)),
        seed=_seed(generator),
        relief=float(generator.choice((0.0, 0.1))),
    )
    return Material(name="wood", pattern=pattern, roughness=float(generator.uniform(*gloss)))


def paint(generator: np.random.Generator, *, saturation: tuple[float, float] = (0.0, 0.7)) -> Material:
    """Lacquer or plastic of one color; half of it grayish or white."""
    if generator.random() < 0.45:
        saturation = (0.0, 0.12)
    value = (0.3, 0.8) if generator.random() < 0.7 else (0.02, 0.3)
    surface = color(generator, saturation=saturation, value=value)
    return Material(name="paint", base_color=surface, roughness=float(generator.uniform(0.15, 0.8)))


def metal(generator: np.random.Generator) -> Material:
    """Steel, chrome, aluminum, brass or black iron."""
    base = ((0.55, 0.55, 0.56), (0.7, 0.7, 0.7), (0.75, 0.55, 0.25), (0.16, 0.16, 0.17))[int(generator.integers(4))]
    return Material(
        name="metal", base_color=varied(generator, base), metallic=1.0, roughness=float(generator.uniform(0.12, 0.55))
    )


def ceramic(generator: np.random.Generator) -> Material:
    """Glazed, mostly pale."""
    pale = generator.random() < 0.6
    surface = color(generator, saturation=(0.0, 0.1) if pale else (0.2, 0.9), value=(0.6, 0.8) if pale else (0.1, 0.7))
    return Material(name="ceramic", base_color=surface, roughness=float(generator.uniform(0.08, 0.4)))


def glass(generator: np.random.Generator) -> Material:
    """Clear or colored."""
    surface = (
        (0.85, 0.85, 0.85) if generator.random() < 0.7 else color(generator, saturation=(0.3, 0.9), value=(0.4, 0.8))
    )
    return Material(name="glass", base_color=surface, roughness=0.03, transmission=1.0)


def mirror() -> Material:
    """A mirror: its depth is that of its surface."""
    return Material(name="mirror", base_color=(0.85, 0.85, 0.85), metallic=1.0, roughness=0.02)


def fabric(generator: np.random.Generator) -> Material:
    """Woven, plain, striped or checked cloth."""
    first = color(generator, saturation=(0.05, 0.7), value=(0.06, 0.75))
    second = varied(generator, first, 0.35) if generator.random() < 0.65 else color(generator)
    draw = generator.random()
    if draw < 0.6:
        kind, scale, contrast = "fabric", generator.uniform(0.001, 0.004), generator.uniform(0.3, 0.9)
    elif draw < 0.75:
        kind, scale, contrast = "stripes", generator.uniform(0.008, 0.08), generator.uniform(0.2, 1.0)
    elif draw < 0.87:
        kind, scale, contrast = "checks", generator.uniform(0.01, 0.08), generator.uniform(0.2, 1.0)
    else:
        kind, scale, contrast = "carpet", generator.uniform(0.003, 0.02), generator.uniform(0.3, 1.0)
    pattern = Pattern(
        kind=kind, colors=(first, second), scale=float(scale), contrast=float(contrast), seed=_seed(generator)
    )
    return Material(name="fabric", pattern=pattern, roughness=0.9)


def stone(generator: np.random.Generator, *, gloss: tuple[float, float] = (0.12, 0.5)) -> Material:
    """Granite, marble, terrazzo or concrete."""
    first = color(generator, saturation=(0.0, 0.25), value=(0.06, 0.7))
    second = varied(generator, first, 0.6)
    pattern = Pattern(
        kind="stone",
        colors=(first, second),
        scale=float(np.exp(generator.uniform(np.log(0.004), np.log(0.15)))),
        contrast=float(generator.uniform(0.3, 1.0)),
        seed=_seed(generator),
    )
    return Material(name="stone", pattern=pattern, roughness=float(generator.uniform(*gloss)))


def tiles(generator: np.random.Generator, *, size: tuple[float, float] = (0.1, 0.6)) -> Material:
    """Tiles with joints."""
    first = color(generator, saturation=(0.0, 0.5), value=(0.1, 0.75))
    second = varied(generator, first, 0.08 if generator.random() < 0.7 else 0.8)
    joint = color(generator, saturation=(0.0, 0.1), value=(0.1, 0.6))
    pattern = Pattern(
        kind="tiles",
        colors=(joint, first, second),
        scale=float(np.exp(generator.uniform(*np.log(size)))),
        contrast=float(generator.uniform(0.1, 0.7)),
        seed=_seed(generator),
        relief=0.25,
    )
    return Material(name="tiles", pattern=pattern, roughness=float(generator.uniform(0.1, 0.6)))


def planks(generator: np.random.Generator) -> Material:
    """Floorboards or parquet."""
    ground, grain = _WOODS[int(generator.integers(len(_WOODS)))]
    first = varied(generator, ground, 0.2)
    pattern = Pattern(
        kind="planks",
        colors=(varied(generator, grain, 0.2), first, varied(generator, first, 0.15)),
        scale=float(generator.uniform(0.5, 1.8)),
        contrast=float(generator.uniform(0.3, 1.0)),
        seed=_seed(generator),
        relief=0.15,
    )
    return Material(name="planks", pattern=pattern, roughness=float(generator.uniform(0.2, 0.7)))


def carpet(generator: np.random.Generator) -> Material:
    """Fitted carpet."""
    first = color(generator, saturation=(0.0, 0.6), value=(0.05, 0.55))
    pattern = Pattern(
        kind="carpet",
        colors=(first, varied(generator, first, 0.5)),
        scale=float(np.exp(generator.uniform(np.log(0.002), np.log(0.02)))),
        contrast=float(generator.uniform(0.3, 1.0)),
        seed=_seed(generator),
    )
    return Material(name="carpet", pattern=pattern, roughness=0.95)


def bricks(generator: np.random.Generator) -> Material:
    """Brickwork, bare or painted."""
    first = ((0.35, 0.13, 0.08), (0.5, 0.38, 0.25), (0.6, 0.58, 0.55))[int(generator.integers(3))]
    first = varied(generator, first, 0.2)
    pattern = Pattern(
        kind="bricks",
        colors=(color(generator, saturation=(0.0, 0.1), value=(0.2, 0.6)), first, varied(generator, first, 0.25)),
        scale=float(generator.uniform(0.18, 0.4)),
        contrast=float(generator.uniform(0.3, 1.0)),
        seed=_seed(generator),
        relief=0.5,
    )
    return Material(name="bricks", pattern=pattern, roughness=0.9)


def plaster(generator: np.random.Generator, *, saturation: tuple[float, float] = (0.0, 0.25)) -> Material:
    """Wall paint with faint stains."""
    first = color(generator, saturation=saturation, value=(0.3, 0.85))
    pattern = Pattern(
        kind="plaster",
        colors=(first, varied(generator, first, 0.12)),
        scale=float(generator.uniform(0.003, 0.05)),
        contrast=float(generator.uniform(0.2, 1.0)),
        seed=_seed(generator),
        relief=float(generator.choice((0.0, 0.15))),
    )
    return Material(name="plaster", pattern=pattern, roughness=float(generator.uniform(0.6, 0.95)))


def wallpaper(generator: np.random.Generator) -> Material:
    """Stripes of two close colors."""
    first = color(generator, saturation=(0.05, 0.5), value=(0.25, 0.8))
    pattern = Pattern(
        kind="stripes",
        colors=(first, varied(generator, first, 0.2)),
        scale=float(generator.uniform(0.02, 0.2)),
        contrast=float(generator.uniform(0.3, 1.0)),
        seed=_seed(generator),
    )
    return Material(name="wallpaper", pattern=pattern, roughness=0.8)


def printed(path: Path, *, roughness: float = 0.5, emission: float = 0.0) -> Material:
    """An image stretched over the surface."""
    return Material(name=path.stem, texture=path, roughness=roughness, emission=emission)


def image_surface(
    path: Path, generator: np.random.Generator, *, roughness: tuple[float, float] = (0.4, 0.95)
) -> Material:
    """A tiling image in random tones."""
    gain = np.exp(generator.normal(0.0, 0.12)) * np.exp(generator.normal(0.0, 0.06, size=3))
    red, green, blue = np.round(gain, 3).tolist()
    return Material(
        name=path.stem,
        texture=path,
        texture_size=round(float(np.exp(generator.uniform(np.log(0.7), np.log(2.2)))), 3),
        texture_gain=(red, green, blue),
        saturation=round(float(generator.uniform(0.4, 1.05)), 3),
        roughness=float(generator.uniform(*roughness)),
    )


def wall(generator: np.random.Generator) -> Material:
    """A material for walls."""
    return _one_of(
        generator,
        (
            (0.42, plaster, {}),
            (0.18, plaster, {"saturation": (0.25, 0.8)}),
            (0.12, bricks, {}),
            (0.08, tiles, {"size": (0.08, 0.4)}),
            (0.10, wallpaper, {}),
            (0.06, stone, {"gloss": (0.5, 0.9)}),
            (0.04, planks, {}),
        ),
    )


def floor(generator: np.random.Generator) -> Material:
    """A material for floors."""
    return _one_of(
        generator,
        ((0.42, planks, {}), (0.24, tiles, {}), (0.22, carpet, {}), (0.12, stone, {})),
    )


def table_top(generator: np.random.Generator) -> Material:
    """A material for table tops, most often wood."""
    return _one_of(
        generator,
        (
            (0.50, wood, {}),
            (0.12, planks, {}),
            (0.12, paint, {}),
            (0.10, stone, {}),
            (0.08, fabric, {}),
            (0.04, tiles, {"size": (0.02, 0.15)}),
            (0.04, metal, {}),
        ),
    )


def _one_of(
    generator: np.random.Generator, choices: Sequence[tuple[float, Callable[..., Material], dict[str, Any]]]
) -> Material:
    shares = np.array([share for share, _, _ in choices])
    _, make, options = choices[int(generator.choice(len(choices), p=shares / shares.sum()))]
    return make(generator, **options)


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(1 << 20))
