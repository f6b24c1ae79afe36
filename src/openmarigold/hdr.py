# SPDX-License-Identifier: Apache-2.0
"""Pictures in linear light, OpenEXR and Radiance: read, and tone-mapped to what a camera would have shown.

Radiance: G. Ward, "Real pixels", Graphics Gems II, 1991; the format of its run lengths is that of RADIANCE's filefmts.
Tone mapping: Reinhard et al., "Photographic tone reproduction for digital images", SIGGRAPH 2002, eqs. 1, 2 and 4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from openmarigold.errors import ImageError
from openmarigold.exr import MAGIC, exr_size, read_exr

RADIANCE_MAGIC = (b"#?RADIANCE", b"#?RGBE")

_KEY = 0.18  # brightness of the middle grey that the log-average becomes; eq. 2
_WHITE_QUANTILE = 0.99  # pixels above become white; eq. 4
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_STRIP_PIXELS = 2**20
_SAMPLES = 2**20  # pixels that set the exposure
_RESOLUTION = re.compile(rb"([+-])([XY]) (\d{1,9}) ([+-])([XY]) (\d{1,9})\n")


def is_linear_light(head: bytes) -> bool:
    """Whether a file that begins like this is read here."""
    return head.startswith((MAGIC, *RADIANCE_MAGIC))


def read_tone_mapped(
    path: Path, *, background: tuple[int, int, int], check_size: Callable[[int, int], None]
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an OpenEXR or Radiance file; `check_size(width, height)` may refuse it before its pixels are read.

    Raises:
        ImageError: the file is damaged, or has no channels of a picture.
        MissingExtraError: OpenEXR without the extra `exr`.
    """
    with path.open("rb") as file:
        is_exr = file.read(len(MAGIC)) == MAGIC
    if not is_exr:
        return tone_map(_read_radiance(path.read_bytes(), check_size))
    height, width = exr_size(path)
    check_size(width, height)
    colours, alpha = _picture(read_exr(path))
    rgb = tone_map(colours)
    if alpha is None:
        return rgb
    # Colours of OpenEXR are multiplied with their alpha already.
    behind = np.array(background, dtype=np.float32) * (1 - np.clip(np.nan_to_num(alpha), 0, 1))[..., None]
    return np.minimum(np.rint(rgb + behind), 255).astype(np.uint8)


def tone_map(linear: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Picture in sRGB of linear light in any unit: the same picture whatever factor the light is multiplied with.

    Negative and undefined values are black, infinite ones white.
    """
    height, width, _ = linear.shape
    step = max(1, int(np.sqrt(height * width / _SAMPLES)))
    luminance = _cleaned(linear[::step, ::step]) @ _LUMINANCE
    lit = luminance[luminance > 0].astype(np.float64)
    if lit.size == 0:
        return np.zeros(linear.shape, dtype=np.uint8)
    exposure = _KEY / np.exp(np.log(lit).mean())
    white = max(float(np.quantile(lit, _WHITE_QUANTILE)) * exposure, 1.0)
    rgb = np.empty(linear.shape, dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        exposed = np.minimum(_cleaned(linear[top : top + rows]).astype(np.float64) * exposure, 1e9)
        luminance = (exposed @ _LUMINANCE.astype(np.float64))[..., None]
        shown = exposed * (1 + luminance / white**2) / (1 + luminance)
        rgb[top : top + rows] = np.rint(255 * _encode_srgb(np.clip(shown, 0, 1)))
    return rgb


def _cleaned(linear: np.ndarray) -> np.ndarray:
    largest = float(np.finfo(np.float32).max) / 4
    return np.clip(np.nan_to_num(linear, nan=0.0, posinf=largest, neginf=0.0), 0.0, largest)


def _encode_srgb(light: np.ndarray) -> np.ndarray:
    """Values in sRGB, [0, 1], of linear light [0, 1]. IEC 61966-2-1."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)


def _picture(channels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours [h w 3] and alpha of a file's main layer, else of its first layer with colours, else its luminance."""
    layers = ["", *sorted({name[: name.rindex(".") + 1] for name in channels if "." in name})]
    for layer in layers:
        for names in (("R", "G", "B"), ("r", "g", "b"), ("Y", "Y", "Y")):
            if all(layer + name in channels for name in names):
                colours = np.stack([channels[layer + name].astype(np.float32) for name in names], axis=-1)
                return colours, channels.get(layer + "A", channels.get(layer + "a"))
    raise ImageError(f"has the channels {', '.join(sorted(channels))}; a picture has R, G and B, or Y")


def _read_radiance(content: bytes, check_size: Callable[[int, int], None]) -> Float32[np.ndarray, "h w 3"]:
    """Linear light of a Radiance file, upright."""
    header_end = content.find(b"\n\n") + 2
    resolution = _RESOLUTION.match(content, header_end) if header_end >= 2 else None
    if resolution is None or resolution[2] == resolution[5]:
        raise ImageError("is damaged: its Radiance header has no line with its size")
    if b"FORMAT=32-bit_rle_xyze" in content[:header_end]:
        raise ImageError("is a Radiance file in XYZ; save it as RGB")
    lines, columns = int(resolution[3]), int(resolution[6])
    check_size(columns, lines)
    rgbe = _decode_runs(memoryview(content)[resolution.end() :], lines, columns)
    exponents = np.where(rgbe[..., 3:] > 0, rgbe[..., 3:].astype(np.int32) - 136, -1000)
    linear = np.ldexp(rgbe[..., :3].astype(np.float32), exponents).astype(np.float32)
    for axis, (sign, name) in enumerate(((resolution[1], resolution[2]), (resolution[4], resolution[5]))):
        if (name, sign) in ((b"Y", b"+"), (b"X", b"-")):  # Y counts upwards, X to the right
            linear = np.flip(linear, axis)
    return np.ascontiguousarray(linear.swapaxes(0, 1) if resolution[2] == b"X" else linear)


def _decode_runs(data: memoryview, lines: int, columns: int) -> UInt8[np.ndarray, "n w 4"]:
    """Mantissas and exponents, from scanlines with run lengths for each of the four components, or without any."""
    damaged = ImageError("is damaged: its pixels end early or do not fit its size")
    if lines < 1 or columns < 1 or len(data) < lines * 4:
        raise damaged
    rgbe = np.empty((lines, columns, 4), dtype=np.uint8)
    position = 0
    for line in rgbe:
        if not (8 <= columns < 32768 and bytes(data[position : position + 2]) == b"\2\2"):
            flat = np.frombuffer(data[position : position + 4 * columns], dtype=np.uint8)
            if flat.size < 4 * columns:
                raise damaged
            line[:] = flat.reshape(columns, 4)
            position += 4 * columns
            continue
        position += 4
        for component in range(4):
            column = 0
            while column < columns:
                if position + 1 >= len(data):
                    raise damaged
                count = data[position]
                repeated = count > 128
                count -= 128 * repeated
                values = np.frombuffer(data[position + 1 : position + 1 + (1 if repeated else count)], dtype=np.uint8)
                if count == 0 or column + count > columns or values.size == 0:
                    raise damaged
                if not repeated and values.size < count:
                    raise damaged
                line[column : column + count, component] = values
                column += count
                position += 1 + values.size
    return rgbe
