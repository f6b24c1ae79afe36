# SPDX-License-Identifier: Apache-2.0
"""PNG files hold the levels that were written, in 8 and 16 bits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
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
