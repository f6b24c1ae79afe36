# SPDX-License-Identifier: Apache-2.0
"""PNG files with texts: by Pillow, and in 16 bits a color, which Pillow does not write, by pypng."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# A quarter of the time of Pillow's 6, for a sixth more bytes: writing must keep up with predicting.
_COMPRESSION = 1


def save_png(file: BinaryIO, pixels: Shaped[np.ndarray, "h w *c"], texts: Mapping[str, str]) -> None:
    """Writes a picture, uint8 or uint16, `[h w]` or `[h w 3]`, with texts (ASCII) that stand before the pixels."""
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        _save_deep_colors(file, pixels, texts)
        return
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info, compress_level=_COMPRESSION)


def _save_deep_colors(file: BinaryIO, pixels: Shaped[np.ndarray, "h w 3"], texts: Mapping[str, str]) -> None:
    import png  # pypng: only here, so that depth does not wait for it

    height, width = pixels.shape[:2]
    settings: dict[str, Any] = {"greyscale": False, "bitdepth": 16, "compression": _COMPRESSION}
    writer = png.Writer(width=width, height=height, **settings)
    whole = io.BytesIO()
    big_endian = pixels.dtype.newbyteorder(">")
    writer.write_packed(whole, (row.astype(big_endian).tobytes() for row in pixels))
    whole.seek(0)
    header, *rest = png.Reader(file=whole).chunks()
    words = [(b"tEXt", name.encode("latin-1") + b"\0" + text.encode("latin-1")) for name, text in texts.items()]
    png.write_chunks(file, [header, *words, *rest])
