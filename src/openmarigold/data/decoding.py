# SPDX-License-Identifier: Apache-2.0
"""Files of raw data sets, decoded: what is damaged or of another kind makes a frame defective."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt16
from PIL import Image

from openmarigold.data.archives import LARGEST_FILE, Archive
from openmarigold.errors import DataError, ImageError, OutputError, one_line
from openmarigold.images.exr import exr_size, read_exr


class FrameDefectError(Exception):
    """A frame that does not become a sample, and why."""

    def __init__(self, reason: str, detail: str, *, is_error: bool = True) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.is_error = is_error


def decode_image(data: bytes, what: str) -> Image.Image:
    """A decoded Pillow image.

    Raises:
        FrameDefectError: damaged or cut.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
        raise damaged(what, error) from error
    return image


def decode_codes(data: bytes, what: str) -> UInt16[np.ndarray, "h w"]:
    """Codes of a 16-bit gray image.

    Raises:
        FrameDefectError: damaged, cut, in color, or of 8 bits: such a file is a picture of depth, without a unit.
    """
    image = decode_image(data, what)
    if image.mode == "L":
        raise FrameDefectError("wrong format", f"{what} has 8 bits; depth is stored in 16-bit grays")
    if not image.mode.startswith("I"):
        raise FrameDefectError("wrong format", f"{what} has Pillow mode {image.mode}, not 16-bit grays")
    codes = np.asarray(image)
    if codes.min(initial=0) < 0 or codes.max(initial=0) > 65535:
        raise FrameDefectError("wrong format", f"{what} has values outside 16 bits")
    return codes.astype(np.uint16)


def decode_exr(data: bytes, what: str) -> dict[str, np.ndarray]:
    """The channels of an OpenEXR file, by name.

    Raises:
        FrameDefectError: damaged, cut, or with more pixels than a file may have.
        OutputError: not enough space for a temporary file, which the library needs.
        MissingExtraError: without the extra `exr`.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))) / "depth.exr"
            path.write_bytes(data)  # closed before it is read, as Windows wants it
        except OSError as error:
            raise OutputError(f"cannot write a temporary file: {error.strerror or error}; free some space") from error
        try:
            height, width = exr_size(path)
            if height * width * 4 > LARGEST_FILE:
                raise FrameDefectError("wrong format", f"{what}: the header announces {height}x{width} pixels")
            return read_exr(path)
        except ImageError as error:
            raise FrameDefectError("damaged", f"{what} is damaged or not an OpenEXR file") from error


def read_member(archive: Archive | None, name: str) -> bytes:
    """The content of a file of a reader's archive, which `list_frames` has opened.

    Raises:
        FrameDefectError: missing or damaged.
    """
    assert archive is not None
    try:
        return archive.read(name)
    except DataError as error:
        raise damaged(name, error) from error


def damaged(what: str, error: BaseException) -> FrameDefectError:
    """The defect for a decoder's error."""
    text = one_line(error)
    is_cut = isinstance(error, EOFError) or any(sign in text.lower() for sign in ("truncated", "ends within", " eof"))
    return FrameDefectError("truncated" if is_cut else "damaged", f"{what}: {text}")


def check_size(pixels: np.ndarray, size: tuple[int, int], what: str) -> None:
    """Raises FrameDefectError unless height and width are `size`."""
    if pixels.shape[:2] != size:
        raise FrameDefectError("wrong size", f"{what} is {size_text(pixels)}, not {size[0]}x{size[1]}")


def plane_depth(
    distance: Float32[np.ndarray, "h w"], *, fx: float, fy: float, cx: float, cy: float
) -> Float32[np.ndarray, "h w"]:
    """Planar depth of distances along the rays; the center of the first pixel lies at (0.5, 0.5)."""
    height, width = distance.shape
    x = (np.arange(width) + 0.5 - cx) / fx
    y = (np.arange(height) + 0.5 - cy) / fy
    ray = np.sqrt(x**2 + (y**2 + 1.0)[:, None])
    return (distance / ray).astype(np.float32)


def size_text(pixels: np.ndarray) -> str:
    """Height and width of a picture, for messages."""
    return "x".join(map(str, pixels.shape[:2]))
