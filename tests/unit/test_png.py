# SPDX-License-Identifier: Apache-2.0
"""PNG files hold the levels that were written, in 8 and 16 bits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import png
import pytest
from PIL import Image

from openmarigold.images.png import read_png, save_png


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_levels_are_those_that_were_written(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    with (tmp_path / "a.png").open("wb") as file:
        save_png(file, levels, {"Comment": "none"})
    found = read_png((tmp_path / "a.png").read_bytes())
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, levels)


@pytest.mark.parametrize("shape", [(1, 1), (23, 50), (7, 90), (40, 30, 3)])
def test_blocks_of_rows_make_one_picture(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a row is larger than a block, and for pixels that are not contiguous; read by two other programs."""
    monkeypatch.setattr("openmarigold.images.png._BLOCK_BYTES", 170)
    levels = np.random.default_rng(1).integers(0, 2**16, shape, dtype=np.uint16)[::-1, ::-1]
    file = io.BytesIO()
    save_png(file, levels, {"Title": "caf\xe9", "Comment": "two"})
    width, height, rows, facts = png.Reader(bytes=file.getvalue()).read()  # checks the sum of each chunk
    assert (height, width, facts["bitdepth"]) == (*shape[:2], 16)
    np.testing.assert_array_equal(np.vstack([np.asarray(row) for row in rows]), levels.reshape(shape[0], -1))
    with Image.open(file) as image:
        assert image.text == {"Title": "caf\xe9", "Comment": "two"}


def test_other_pictures_are_refused() -> None:
    for mode in ("RGBA", "P", "1", "LA"):
        file = io.BytesIO()
        Image.new(mode, (4, 3)).save(file, "PNG")
        with pytest.raises(ValueError, match=f"Pillow mode {mode}, neither grays nor colors without alpha"):
            read_png(file.getvalue())
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "JPEG")
    with pytest.raises(OSError, match="cannot identify"):
        read_png(file.getvalue())
