# SPDX-License-Identifier: Apache-2.0
"""How a prepared data set stores maps: 16-bit codes in PNG files, or numbers in NumPy files."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt16
from PIL import Image

from openmarigold.errors import DataError

_MAX_CODE = 65535
_SETTINGS = {"linear": ("meters_per_unit",), "log": ("near", "far", "levels"), "float32": (), "float16": ()}


@dataclass(frozen=True, kw_only=True)
class MapEncoding:
    """How a map is stored. In maps of one channel, 0 means "unknown" in every encoding.

    linear: 16-bit PNG, z = code * meters_per_unit. log: 16-bit PNG, z = near * (far / near) ** (code / levels).
    float32, float16: NumPy file, the values themselves, of any number of channels.
    """

    kind: Literal["linear", "log", "float32", "float16"]
    meters_per_unit: float = 0.001
    near: float = 0.1
    far: float = 100.0
    levels: int = 4095

    def __post_init__(self) -> None:
        if self.kind not in _SETTINGS:
            raise DataError(f"map encoding {self.kind!r} is not known; use {', '.join(_SETTINGS)}")
        if not (self.meters_per_unit > 0 and 0 < self.near < self.far and 0 < self.levels <= _MAX_CODE):
            raise DataError(
                f"{self} is not a map encoding; meters_per_unit must be above 0, 0 < near < far, levels to {_MAX_CODE}"
            )

    @property
    def suffix(self) -> str:
        """Suffix of the files that hold such maps."""
        return "png" if self.kind in ("linear", "log") else "npy"

    def record(self) -> dict[str, Any]:
        """The entry in the manifest: the kind and its settings."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in _SETTINGS[self.kind]}}

    def encode(self, values: Float32[np.ndarray, "h w"] | Float32[np.ndarray, "h w c"]) -> bytes:
        """The file's bytes.

        Raises:
            DataError: a value that is not finite or, in a map of one channel, negative; or one outside what the
                encoding can hold.
        """
        # Sums of finite float32 do not overflow float64, and one pass finds NaN and both infinities.
        if not np.isfinite(values.sum(dtype=np.float64)) or (values.ndim == 2 and values.min(initial=0) < 0):
            raise DataError("a map to be written is negative or not finite; mark such pixels with 0")
        if self.suffix == "png":
            return png_bytes(self.codes(values))
        with np.errstate(over="ignore"):  # infinity is refused below
            stored = np.ascontiguousarray(values, dtype="<f4" if self.kind == "float32" else "<f2")
        if not np.isfinite(stored).all():
            raise DataError(f"a map with values to {np.abs(values).max():g} does not fit float16; store float32")
        buffer = io.BytesIO()
        np.save(buffer, stored)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Float32[np.ndarray, "h w"] | Float32[np.ndarray, "h w c"]:
        """The map in a file.

        Raises:
            ValueError, OSError: it is damaged.
        """
        if data[:6] == b"\x93NUMPY":
            return np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32, copy=False)
        with Image.open(io.BytesIO(data)) as image:
            return self.meters(np.asarray(image).astype(np.uint16))

    def within(self, depth: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """The depth moved into what can be stored, 1 % inside of the ends for rounding; 0, which is unknown, stays."""
        if self.suffix == "npy":
            return depth
        low, high = (self.near, self.far) if self.kind == "log" else np.array([1, _MAX_CODE]) * self.meters_per_unit
        return np.where(depth > 0, depth.clip(1.01 * low, 0.99 * high), 0).astype(np.float32)

    def codes(self, values: Float32[np.ndarray, "h w"] | Float32[np.ndarray, "h w c"]) -> UInt16[np.ndarray, "h w"]:
        """The 16-bit codes of a map of one channel, each the nearest one.

        Raises:
            DataError: a value that needs a code below 1 or above the largest, or several channels.
        """
        if values.ndim != 2:
            raise DataError(f"{self.kind} 16-bit codes hold maps of one channel; store float16 or float32")
        valid = values > 0
        z = np.where(valid, values, 1.0).astype(np.float64)
        if self.kind == "linear":
            code, top = np.rint(z / self.meters_per_unit), _MAX_CODE
        else:
            code, top = np.rint(np.log(z / self.near) / np.log(self.far / self.near) * self.levels), self.levels
        if bool((valid & ((code < 1) | (code > top))).any()):
            low, high = self.meters(np.array([[1, top]], dtype=np.uint16))[0]
            raise DataError(
                f"depth from {values[valid].min():g} to {values[valid].max():g} m does not fit {self.kind} 16-bit "
                f"codes ({low:g} to {high:g} m); clip it, mark it as invalid, or store float32"
            )
        return np.where(valid, code, 0).astype(np.uint16)

    def meters(self, codes: UInt16[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Values of codes."""
        table = _meters_of_codes(self)
        if int(codes.max(initial=0)) >= len(table):
            raise ValueError(f"code {codes.max()} where {len(table) - 1} is the largest")
        return table[codes]


@functools.lru_cache(maxsize=8)
def _meters_of_codes(encoding: MapEncoding) -> Float32[np.ndarray, " codes"]:
    # There are few codes, so a table of them all costs less than a power per pixel.
    if encoding.kind == "linear":
        table = np.arange(_MAX_CODE + 1) * encoding.meters_per_unit
    else:
        shares = np.arange(encoding.levels + 1) / encoding.levels
        table = encoding.near * (encoding.far / encoding.near) ** shares
        table[0] = 0.0
    return table.astype(np.float32)


def png_bytes(pixels: Shaped[np.ndarray, "h w *c"]) -> bytes:
    """Pixels as a PNG file."""
    buffer = io.BytesIO()
    # Level 6, the default, takes three times as long for a few per cent.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
