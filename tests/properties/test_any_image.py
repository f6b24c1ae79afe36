# SPDX-License-Identifier: Apache-2.0
"""Whatever the file: a depth map of its size in [0, 1], or one line that names it."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from openmarigold.errors import ImageError, OpenMarigoldError
from openmarigold.predictor import Predictor
from tiny import onnx_checkpoint, tiny_checkpoint  # noqa: F401 - fixtures

MODES = (
    *("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"),
    *("LA", "PA", "RGBX", "RGBa", "La", "I;16", "I;16L", "I;16B", "I;16N"),
)
SUFFIXES = ("png", "jpg", "webp", "tif", "gif", "bmp", "tga", "jp2", "ppm", "avif")
ORIENTATION = 0x0112
NUM_IMAGES = 220


def make_image(mode: str, height: int, width: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode in ("I", "F") or mode.startswith("I;16"):
        if mode == "F":
            return Image.fromarray(rng.uniform(-0.01 * (seed % 3 == 0), 1, (height, width)).astype(np.float32))
        if mode == "I":
            return Image.fromarray(rng.integers(-(seed % 2), 65536 + (seed % 3), (height, width), dtype=np.int32))
        levels = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        return Image.frombytes(mode, (width, height), levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    small = rng.integers(0, 256, (-(-height // 20), -(-width // 20), 4), dtype=np.uint8)
    rgba = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)
    if mode == "La":
        return rgba.convert("LA").convert("La")
    if mode in ("RGBA", "RGBa", "LA", "PA"):
        return rgba.convert(mode)
    return rgba.convert("RGB").convert(mode)


def written(image: Image.Image, suffix: str, orientation: int) -> bytes | None:
    """The image as a file; None where the format does not know its mode."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    formats = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    try:
        image.save(buffer, formats.get(suffix, suffix.upper()), exif=exif)
    except (OSError, ValueError, KeyError):
        return None
    return buffer.getvalue()


@pytest.fixture(scope="module")
def predictor(onnx_checkpoint: Path) -> Predictor:  # noqa: F811
    return Predictor.load(onnx_checkpoint)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:PIL")
def test_any_image_is_a_depth_map_or_one_of_our_errors(predictor: Predictor, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=NUM_IMAGES, suppress_health_check=list(HealthCheck))
    @given(
        mode=st.sampled_from(MODES),
        height=st.integers(1, 160),
        width=st.integers(1, 160),
        suffix=st.sampled_from(SUFFIXES),
        orientation=st.integers(1, 8),
        share=st.one_of(st.just(1.0), st.just(1.0), st.floats(0.0, 0.999)),
        seed=st.integers(0, 2**16),
    )
    def check(mode: str, height: int, width: int, suffix: str, orientation: int, share: float, seed: int) -> None:
        image = make_image(mode, height, width, seed)
        content = written(image, suffix, orientation)
        path = tmp_path / f"photo.{suffix}"
        if content is not None:
            path.write_bytes(content[: int(share * len(content))])
        try:
            prediction = predictor(image if content is None else path, processing_resolution=32, num_inference_steps=1)
        except OpenMarigoldError as error:
            assert isinstance(error, ImageError)
            assert "\n" not in str(error)
            assert content is None or str(path) in str(error)
            assert share < 1 or mode in ("I", "F"), f"a whole image was refused: {error}"
            outcomes["error"] += 1
            return
        sizes = {(height, width), (width, height)} if content is not None and orientation >= 5 else {(height, width)}
        assert prediction.depth.shape in sizes
        assert prediction.depth.dtype == np.float32
        assert prediction.depth.min() >= 0  # also false for NaN
        assert prediction.depth.max() <= 1
        outcomes["file" if content is not None else "image"] += 1

    check()
    assert outcomes.total() >= 200
    assert min(outcomes["file"], outcomes["image"], outcomes["error"]) >= 25, outcomes
