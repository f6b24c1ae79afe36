# SPDX-License-Identifier: Apache-2.0
"""Photos for batches, and the records of what a batch made of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import parquet

from openmarigold.config import PredictConfig

CONFIG = PredictConfig(processing_resolution=32)  # little work
NUM_PHOTOS = 5


def photo(number: int, size: tuple[int, int] = (40, 32)) -> bytes:
    """A picture of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_photos(folder: Path) -> Path:
    """`NUM_PHOTOS` photos of different widths, and two files that are none for a batch."""
    for number in range(NUM_PHOTOS):
        (folder / f"p{number}.png").write_bytes(photo(number, (40 + number, 32)))
    (folder / ".hidden.png").write_bytes(photo(9))
    (folder / "notes.md").write_text("not a photo")
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]
