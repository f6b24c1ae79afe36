# SPDX-License-Identifier: Apache-2.0
"""Maps in .npy, .exr and .png files of any tool: predictions to score, and measured maps of several channels."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from openmarigold.data.arrays import load_npy
from openmarigold.errors import DataError, ImageError, one_line
from openmarigold.files import as_path
from openmarigold.images.exr import read_exr
from openmarigold.images.png import read_png
from openmarigold.modalities.modality import MapKind

SAVED_SUFFIXES = (".npy", ".exr", ".png")
_EXR_MAGIC, _NPY_MAGIC = b"\x76\x2f\x31\x01", b"\x93NUMPY"
# Names that other tools use for three channels, the most likely first.
_EXR_TRIPLES = (("R", "G", "B"), ("X", "Y", "Z"))


def read_map(path: Path | str, kind: MapKind) -> np.ndarray:
    """A map from .npy, .exr (channels by name, or the only one) or .png, whose black and white are the map's range.

    Of one channel a .png has 16 bits, of three 8 or 16. An array of several channels may have them first, as Marigold's
    own scripts write them.

    Raises:
        DataError: it is missing or damaged, or does not have the channels of the map.
        MissingExtraError: an EXR file without OpenEXR.
    """
    path = as_path(path, "the map")
    if path.suffix == ".exr":
        values = read_exr_map(path, kind)
    else:
        try:
            if path.suffix == ".npy":
                values = np.load(path, allow_pickle=False)
            else:
                values = _in_range(read_png(path.read_bytes()), kind)
        except Exception as error:
            # Pillow and NumPy raise many kinds for damaged bytes.
            raise DataError(f"{path} is missing or damaged ({one_line(error)}); write it again") from error
    values = np.squeeze(np.asarray(values))
    channels = () if kind.channels == 1 else (kind.channels,)
    if values.ndim == 3 and channels == values.shape[:1] and channels != values.shape[2:]:
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 2 + len(channels) or values.shape[2:] != channels or values.dtype.kind not in "fiu":
        shape = ", ".join(["h", "w", *map(str, channels)])
        raise DataError(
            f"{path} holds {values.dtype} of shape {list(values.shape)}; a map [{shape}] of numbers is needed"
        )
    return values.astype(np.float32 if values.dtype.kind != "f" or values.dtype.itemsize < 4 else values.dtype)


def map_of_bytes(content: bytes, kind: MapKind) -> np.ndarray:
    """A map of several channels, float64 `[h w c]`, from the content of a .npy, .exr or .png file; black is 0.

    Raises:
        ValueError, OSError, SyntaxError: it is damaged, or does not have the channels of the map.
        MissingExtraError: an EXR file without OpenEXR.
    """
    if content[:6] == _NPY_MAGIC:
        values = load_npy(content)
    elif content[:4] == _EXR_MAGIC:
        try:
            values = exr_map_of_bytes(content, kind)
        except DataError as error:  # it names a file of ours
            raise ValueError(f"no EXR file with the channels {', '.join(kind.exr_channels)}") from error
    else:
        levels = read_png(content)
        values = _in_range(levels, kind)
        if levels.ndim == 3:
            values[~levels.any(axis=2)] = 0.0
    if values.ndim != 3 or values.shape[2] != kind.channels or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{values.dtype} of shape {list(values.shape)}; numbers of shape [h, w, {kind.channels}] are needed"
        )
    return values.astype(np.float64)


def exr_map_of_bytes(content: bytes, kind: MapKind) -> np.ndarray:
    """`read_exr_map` of a file's content."""
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:  # OpenEXR reads files only
        file.write(content)
        file.flush()
        return read_exr_map(Path(file.name), kind)


def read_exr_map(path: Path, kind: MapKind) -> np.ndarray:
    """The channels of a map in an EXR file, by the names that it and other tools use.

    Raises:
        DataError: it is damaged, or channels are missing.
        MissingExtraError: without OpenEXR.
    """
    try:
        channels: Mapping[str, np.ndarray] = read_exr(path)
    except ImageError as error:
        raise DataError(str(error)) from error
    if kind.channels > 1:
        triples = _EXR_TRIPLES if kind.channels == 3 else ()
        names = next((names for names in (kind.exr_channels, *triples) if set(names) <= channels.keys()), None)
        if names is None:
            raise DataError(f"{path} has channels {', '.join(channels)}; {', '.join(kind.exr_channels)} are needed")
        return np.stack([channels[name] for name in names], axis=-1)
    names = kind.exr_aliases or kind.exr_channels
    name = next((name for name in names if name in channels), next(iter(channels), ""))
    if name not in names and len(channels) != 1:
        raise DataError(f"{path} has channels {', '.join(channels)}; one of {', '.join(names)} is needed")
    return channels[name]


def _in_range(levels: np.ndarray, kind: MapKind) -> np.ndarray:
    """Levels of a picture in the map's range."""
    if kind.channels == 1 and (levels.ndim > 2 or levels.dtype != np.uint16):
        raise ValueError(f"{levels.dtype} of shape {list(levels.shape)}, not 16-bit grays")
    low, high = kind.range
    return low + (high - low) * (levels.astype(np.float32) / np.float32(np.iinfo(levels.dtype).max))
