# SPDX-License-Identifier: Apache-2.0
"""PNG files: with texts, and with 16 bits a color, which Pillow does not write and halves when it reads."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# A quarter of the time of Pillow's 6, for a sixth more bytes: writing must keep up with predicting.
_COMPRESSION = 1
_File: TypeAlias = BinaryIO | io.BytesIO
_HEADER_BYTES = 33  # signature and IHDR


def save_png(file: _File, pixels: Shaped[np.ndarray, "h w *c"], texts: Mapping[str, str]) -> None:
    """Writes a picture, uint8 or uint16, `[h w]` or `[h w 3]`, with texts (ASCII) that stand before the pixels."""
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        _save_deep_colors(file, pixels, texts)
        return
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info, compress_level=_COMPRESSION)


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
    # Pillow keeps the upper byte of each level; as numbers whose bytes have the other order it keeps the lower one.
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.tile = [(*tile[:3], "RGB;16L") for tile in image.tile]  # pyright: ignore
        return upper.astype(np.uint16) << 8 | np.array(image)


def _save_deep_colors(file: _File, pixels: Shaped[np.ndarray, "h w 3"], texts: Mapping[str, str]) -> None:
    import png  # pypng: only here, so that depth does not wait for it

    height, width = pixels.shape[:2]
    settings: dict[str, Any] = {"greyscale": False, "bitdepth": 16, "compression": _COMPRESSION}
    writer = png.Writer(width=width, height=height, **settings)
    words = [(b"tEXt", name.encode("latin-1") + b"\0" + text.encode("latin-1")) for name, text in texts.items()]
    big_endian = pixels.dtype.newbyteorder(">")
    rows = (row.astype(big_endian).tobytes() for row in pixels)
    writer.write_packed(_Inserting(file, lambda: [png.write_chunk(file, *word) for word in words]), rows)


class _Inserting:
    """A file that something else is written to after the header of a PNG: compressed pixels need no copy."""

    def __init__(self, file: BinaryIO, insert: Callable[[], object]) -> None:
        self.file, self.insert, self.place = file, insert, 0

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.place += len(content)
        if self.place == _HEADER_BYTES:
            self.insert()
