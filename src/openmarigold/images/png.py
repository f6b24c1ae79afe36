# SPDX-License-Identifier: Apache-2.0
"""PNG files, fast, with texts and 16 bits per color; Pillow does not write these, and reads only 8 of the bits."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image

_LEVEL = 1
"""Level of ISA-L's deflate: a sixth of the time of Pillow with zlib-ng's 1, for smaller files (docs/speed.md)."""
_BLOCK_BYTES = 2**20
"""Bytes of pixels that are compressed at a time; ISA-L's choices, and so the bytes of files, depend on it a little."""
_STRIP_BYTES = 2**17
"""Bytes of pixels that are filtered at a time, few enough to stay in the cache of a core."""
_GRAY, _COLORS = 0, 2
_UP = 2
_File: TypeAlias = BinaryIO | io.BytesIO


def save_png(file: _File, pixels: Shaped[np.ndarray, "h w *c"], texts: Mapping[str, str]) -> None:
    """Writes a picture, uint8 or uint16, `[h w]` or `[h w 3]`, with texts (Latin-1) before the pixels.

    Each row is stored as its difference from the one above it (the PNG specification's filter "Up").
    """
    import png  # pypng
    from isal import isal_zlib

    height, width = pixels.shape[:2]
    bits = 8 * pixels.dtype.itemsize
    kind = _GRAY if pixels.ndim == 2 else _COLORS
    file.write(png.signature)
    png.write_chunk(file, b"IHDR", struct.pack(">2I5B", width, height, bits, kind, 0, 0, 0))
    for name, text in texts.items():
        png.write_chunk(file, b"tEXt", name.encode("latin-1") + b"\0" + text.encode("latin-1"))
    compressor = isal_zlib.compressobj(_LEVEL)
    row_bytes = pixels[:1].nbytes
    rows = min(height, max(1, _BLOCK_BYTES // max(1, row_bytes)))
    strip_rows = max(1, _STRIP_BYTES // max(1, row_bytes))
    filtered = np.empty((rows, 1 + row_bytes), np.uint8)
    filtered[:, 0] = _UP
    above = np.zeros(row_bytes, np.uint8)
    for begin in range(0, height, rows):
        block = pixels[begin : begin + rows]
        for top in range(0, len(block), strip_rows):
            strip = block[top : top + strip_rows]
            levels = strip.astype(strip.dtype.newbyteorder(">"), order="C", copy=False).view(np.uint8)
            levels = levels.reshape(len(strip), -1)
            differences = filtered[top : top + len(strip), 1:]
            np.subtract(levels[:1], above, out=differences[:1])
            np.subtract(levels[1:], levels[:-1], out=differences[1:])
            above = levels[-1]
        if part := compressor.compress(filtered[: len(block)]):
            png.write_chunk(file, b"IDAT", part)
    png.write_chunk(file, b"IDAT", compressor.flush())
    png.write_chunk(file, b"IEND")


def read_png(content: bytes) -> UInt8[np.ndarray, "h w *c"] | UInt16[np.ndarray, "h w *c"]:
    """The levels of a PNG of grays or colors as they are stored: uint8 or uint16, `[h w]` or `[h w 3]`.

    Raises:
        ValueError: a picture of another kind, such as one with a palette or with alpha.
        OSError, SyntaxError: not a picture, or a damaged one.
    """
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        mode, tiles = image.mode, image.tile
        if mode in ("L", "RGB"):
            upper = np.array(image)
        elif mode in ("I", "I;16"):
            return np.array(image).astype(np.uint16)
        else:
            raise ValueError(f"Pillow mode {mode}, neither grays nor colors without alpha")
    if any(tile[3] != "RGB;16B" for tile in tiles):
        return upper
    # Pillow keeps the upper byte of each level; read in the other byte order, it keeps the lower one.
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.tile = [(*tile[:3], "RGB;16L") for tile in image.tile]  # pyright: ignore
        return upper.astype(np.uint16) << 8 | np.array(image)
