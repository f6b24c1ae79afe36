# SPDX-License-Identifier: Apache-2.0
"""OpenEXR files through the package OpenEXR (extra `exr`): channels as arrays, and a header of texts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from openmarigold.errors import ImageError, MissingExtraError, OutputError, one_line
from openmarigold.quiet import unprinted

MAGIC = b"\x76\x2f\x31\x01"


def require_exr() -> None:
    """Checks that the package is there.

    Raises:
        MissingExtraError: it is not.
    """
    _openexr()


def exr_size(path: Path) -> tuple[int, int]:
    """Size (height, width) that the header announces, without reading a pixel.

    Raises:
        ImageError: not an OpenEXR file, or a damaged one.
        MissingExtraError: without the extra `exr`.
    """
    window = _header(path)["dataWindow"]
    (left, top), (right, bottom) = (np.asarray(corner, dtype=np.int64) for corner in window)
    return int(bottom - top + 1), int(right - left + 1)


def read_exr(path: Path) -> dict[str, Shaped[np.ndarray, "h w"]]:
    """Channels of an OpenEXR file's first part by name, as stored: float16, float32 or uint32.

    Raises:
        ImageError: the file is damaged or of another kind, or a channel has fewer pixels than the image.
        MissingExtraError: without the extra `exr`.
    """
    openexr = _openexr()
    try:
        with unprinted(), _named(path) as name, openexr.File(name, separate_channels=True) as file:
            channels = {key: np.array(channel.pixels) for key, channel in file.channels().items()}
    except Exception as error:  # the binding raises RuntimeError, TypeError, ValueError … for damaged files
        raise ImageError(f"{path} is damaged or no OpenEXR file; write it again") from error
    if len({pixels.shape for pixels in channels.values()}) > 1 or any(pixels.ndim != 2 for pixels in channels.values()):
        raise ImageError(f"{path} has channels of different sizes; save it without subsampling")
    return channels


def read_exr_header(path: Path) -> dict[str, str]:
    """The texts in the header of an OpenEXR file, by name.

    Raises:
        ImageError: the file is damaged or of another kind.
        MissingExtraError: without the extra `exr`.
    """
    return {name: value for name, value in _header(path).items() if isinstance(value, str)}


def write_exr(path: Path, channels: Mapping[str, Float[np.ndarray, "h w"]], header: Mapping[str, str]) -> None:
    """Writes float32 channels, losslessly compressed, and texts for the header; the same input gives the same bytes.

    Raises:
        OutputError: the file cannot be written.
        MissingExtraError: without the extra `exr`.
    """
    openexr = _openexr()
    attributes = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage, **header}
    pixels = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in channels.items()}
    try:
        with openexr.File(attributes, pixels) as file:
            file.write(str(path))
    except Exception as error:  # the binding's errors share no base
        raise OutputError(f"cannot write {path}: {one_line(error)}; check the folder and free space") from error


def _header(path: Path) -> dict[str, Any]:
    openexr = _openexr()
    try:
        with unprinted(), _named(path) as name, openexr.File(name, header_only=True) as file:
            return dict(file.header())
    except Exception as error:  # see read_exr
        raise ImageError(f"{path} is damaged or no OpenEXR file; write it again") from error


@contextlib.contextmanager
def _named(path: Path) -> Iterator[str]:
    """The name that OpenEXR is given, which stands in the line that it writes to stderr about a damaged file.

    A name with control characters, or of no encoding, is replaced by an open file's number.
    """
    if str(path).isprintable() or not os.path.isdir("/dev/fd"):
        yield str(path)
        return
    with path.open("rb") as file:
        yield f"/dev/fd/{file.fileno()}"


def _openexr() -> Any:
    try:
        import OpenEXR
    except ModuleNotFoundError as error:
        raise MissingExtraError("OpenEXR", "exr") from error
    return OpenEXR
