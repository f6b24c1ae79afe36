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

from openmarigold.errors import ImageError, OutputError, needs_extra, one_line
from openmarigold.images.quiet import unprinted


def require_exr() -> None:
    """Checks that the package is installed.

    Raises:
        MissingExtraError: it is not.
    """
    _openexr()


def exr_size(path: Path) -> tuple[int, int]:
    """Size (height, width) that the header states; no pixels are read.

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
    channels = _channels(path)
    if any(pixels.dtype == object for pixels in channels.values()):
        raise ImageError(f"{path} is a deep OpenEXR file; flatten it first")
    if len({pixels.shape for pixels in channels.values()}) > 1 or any(pixels.ndim != 2 for pixels in channels.values()):
        raise ImageError(f"{path} has channels of different sizes; save it without subsampling")
    return channels


def read_exr_picture(path: Path) -> tuple[dict[str, Shaped[np.ndarray, "h w"]], bool]:
    """The channels of a picture, and whether deep samples were merged; unlike in `read_exr`, sizes may differ.

    Raises:
        ImageError: the file is damaged or of another kind.
        MissingExtraError: without the extra `exr`.
    """
    channels = _channels(path)
    deep = any(pixels.dtype == object for pixels in channels.values())
    if any(pixels.ndim != 2 or pixels.size == 0 for pixels in channels.values()):
        raise ImageError(f"{path} has channels without rows and columns; write it again")
    return (_merged(channels) if deep else channels), deep


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
            file.write(_name(path))
    except Exception as error:  # the binding's errors share no base
        raise OutputError(f"cannot write {path}: {one_line(error)}; check the folder and free space") from error


def _name(path: Path) -> str | bytes:
    """The path in a form that the binding accepts: bytes if it is not UTF-8."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return name


def _channels(path: Path) -> dict[str, np.ndarray]:
    """Channels of the first part as stored; in deep files each pixel is an array of samples."""
    with _opened(path, separate_channels=True) as file:
        return {key: channel.pixels.copy() for key, channel in file.channels().items()}


def _merged(channels: Mapping[str, np.ndarray]) -> dict[str, Float[np.ndarray, "h w"]]:
    """Each pixel's samples, composited from front to back; samples without alpha are opaque.

    OpenEXR: "Interpreting OpenEXR deep pixels", for samples without extent.
    """
    first = next(iter(channels.values()))
    counts = np.array([0 if samples is None else len(samples) for samples in first.flat])
    pixel = np.repeat(np.arange(counts.size), counts)
    flat = {
        name: np.concatenate([np.zeros(0, np.float32), *(one for one in samples.flat if one is not None)])
        for name, samples in channels.items()
    }
    order = np.lexsort((flat.get("Z", np.zeros(pixel.size)), pixel))
    starts = np.cumsum(counts) - counts
    visible = np.ones(counts.size)
    merged = {name: np.zeros(counts.size) for name in flat if name not in ("Z", "ZBack", "A")}
    for layer in range(int(counts.max(initial=0))):
        here = np.flatnonzero(counts > layer)
        samples = order[starts[here] + layer]
        for name, values in merged.items():
            values[here] += visible[here] * flat[name][samples]
        visible[here] *= 1 - np.clip(flat["A"][samples], 0, 1) if "A" in flat else 0.0
    merged["A"] = 1 - visible
    return {name: values.reshape(first.shape).astype(np.float32) for name, values in merged.items()}


def _header(path: Path) -> dict[str, Any]:
    with _opened(path, header_only=True) as file:
        return dict(file.header())


@contextlib.contextmanager
def _opened(path: Path, **how: bool) -> Iterator[Any]:
    openexr = _openexr()
    try:
        with unprinted(), _named(path) as name, openexr.File(name, **how) as file:
            yield file
    except Exception as error:  # the binding raises RuntimeError, TypeError, ValueError … for damaged files
        raise ImageError(f"{path} is damaged or no OpenEXR file; write it again") from error


@contextlib.contextmanager
def _named(path: Path) -> Iterator[str]:
    """The name to give to OpenEXR, which prints it to stderr if the file is damaged.

    A name with control characters or without a valid encoding is replaced by an open file's number.
    """
    if str(path).isprintable() or not os.path.isdir("/dev/fd"):
        yield str(path)
        return
    with path.open("rb") as file:
        yield f"/dev/fd/{file.fileno()}"


def _openexr() -> Any:
    with needs_extra("exr"):
        import OpenEXR
    return OpenEXR
