# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets: a folder of indexed, uncompressed tar shards with a manifest (docs/data.md, "The shard format").

A shard is the unit of work: written once, by one process, under its final name only when whole, its index after it. So
a killed run leaves whole shards, which the next one skips. Reading needs no scan: `index.npy` says where every file
of every sample lies.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16
from PIL import Image

from openmarigold.errors import DataError, one_line
from openmarigold.text_files import parse_json, with_current_keys

FORMAT = "openmarigold-shards-1"
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.npy"
PLAN_FILE = "plan.json"

MEMBERS = ("rgb", "depth", "json")
# What a damaged manifest or index may lead to.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    EOFError,
    MemoryError,
    BadZipFile,
)
_MAX_CODE = 65535


@dataclass(frozen=True)
class Sample:
    """One picture, with its depth where the source has it.

    Attributes:
        rgb: color image.
        depth: planar depth [m], 0 where there is none; None for a source of photos.
        kind: what it shows, in the source's own words ("rooms", "tabletop", "street").
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"] | None
    kind: str


@dataclass(frozen=True, kw_only=True)
class DepthEncoding:
    """How a data set stores planar depth z [m]; code 0 is "no depth" in all of them.

    linear: 16-bit PNG, z = code * meters_per_unit. log: 16-bit PNG, z = near * (far / near) ** (code / levels).
    float32: NumPy file, z itself.
    """

    kind: Literal["linear", "log", "float32"]
    meters_per_unit: float = 0.001
    near: float = 0.1
    far: float = 100.0
    levels: int = 4095

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "log", "float32"):
            raise DataError(f"depth encoding {self.kind!r} is not known; use linear, log or float32")
        if not (self.meters_per_unit > 0 and 0 < self.near < self.far and 0 < self.levels <= _MAX_CODE):
            raise DataError(
                f"{self} is no depth encoding; meters_per_unit must be positive, 0 < near < far, "
                f"levels 1 to {_MAX_CODE}"
            )

    @property
    def suffix(self) -> str:
        """Of the member that holds the depth."""
        return "depth.npy" if self.kind == "float32" else "depth.png"

    def record(self) -> dict[str, Any]:
        """What the manifest says: the kind and the settings that it has."""
        names = {"linear": ("meters_per_unit",), "log": ("near", "far", "levels"), "float32": ()}[self.kind]
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    def encode(self, depth: Float32[np.ndarray, "h w"]) -> bytes:
        """The member's bytes.

        Raises:
            DataError: a value that is negative, not finite, or outside what the encoding can hold.
        """
        # Sums of finite float32 do not overflow float64, and one pass finds NaN and both infinities.
        if not np.isfinite(depth.sum(dtype=np.float64)) or depth.min(initial=0) < 0:
            raise DataError("depth to be written is negative or not finite; mark such pixels with 0")
        if self.kind == "float32":
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(depth, dtype="<f4"))
            return buffer.getvalue()
        return png_bytes(self.codes(depth))

    def codes(self, depth: Float32[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
        """The 16-bit codes of a depth map, each the nearest one.

        Raises:
            DataError: a value that needs a code below 1 or above the largest.
        """
        valid = depth > 0
        z = np.where(valid, depth, 1.0).astype(np.float64)
        if self.kind == "linear":
            code, top = np.rint(z / self.meters_per_unit), _MAX_CODE
        else:
            code, top = np.rint(np.log(z / self.near) / np.log(self.far / self.near) * self.levels), self.levels
        if bool((valid & ((code < 1) | (code > top))).any()):
            low, high = self.meters(np.array([[1, top]], dtype=np.uint16))[0]
            raise DataError(
                f"depth from {depth[valid].min():g} to {depth[valid].max():g} m does not fit {self.kind} 16-bit codes "
                f"({low:g} to {high:g} m); clip it, mark it as invalid, or store float32"
            )
        return np.where(valid, code, 0).astype(np.uint16)

    def meters(self, codes: UInt16[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Depth of codes."""
        table = _meters_of_codes(self)
        if int(codes.max(initial=0)) >= len(table):
            raise ValueError(f"code {codes.max()} where {len(table) - 1} is the largest")
        return table[codes]


@functools.lru_cache(maxsize=8)
def _meters_of_codes(encoding: DepthEncoding) -> Float32[np.ndarray, " codes"]:
    # There are few codes, so a table of them all costs less than a power per pixel.
    if encoding.kind == "linear":
        table = np.arange(_MAX_CODE + 1) * encoding.meters_per_unit
    else:
        shares = np.arange(encoding.levels + 1) / encoding.levels
        table = encoding.near * (encoding.far / encoding.near) ** shares
        table[0] = 0.0
    return table.astype(np.float32)


class ShardedDataset:
    """Random access to the samples of a prepared data set, from any thread and process; opening reads no shard."""

    def __init__(self, folder: Path) -> None:
        """Opens the data set in `folder`.

        Attributes set: `name`, `keys`, `kinds`, `scenes` (lists, in the order of the shards), `sizes` (height and width
        of each sample), `contents` (one hash over all samples), `valid_range` (depth [m] that training may use,
        exclusive), `shard_numbers`, `manifest`.

        Raises:
            DataError: no prepared data set, or one whose manifest or index is damaged.
        """
        self.folder = folder
        self.manifest = _read_manifest(folder)
        try:
            self.name = str(self.manifest["name"])
            self.contents = str(self.manifest["contents"])
            self._shards = [str(shard["name"]) for shard in self.manifest["shards"]]
            if any(Path(name).name != name for name in self._shards):
                raise ValueError("a shard outside the folder")
            kinds, scenes = (list(self.manifest["counts"][name]) for name in ("kinds", "scenes"))
            depth = dict(self.manifest["depth"])
            self.encoding = DepthEncoding(**depth)
            self._table = np.load(folder / INDEX_FILE, allow_pickle=False)
            self.keys: list[str] = self._table["key"].astype(str).tolist()
            self.kinds: list[str] = [kinds[code] for code in self._table["kind"].tolist()]
            self.scenes: list[str] = [scenes[code] for code in self._table["scene"].tolist()]
            self.shard_numbers: Int64[np.ndarray, " n"] = self._table["shard"].astype(np.int64)
            low, high = self.manifest.get("valid_range") or (0.0, None)
            self.valid_range = (float(low), float("inf") if high is None else float(high))
            self.sizes: Int64[np.ndarray, "n 2"] = self._table["size"].astype(np.int64)
            if len(self.keys) != self.manifest["counts"]["samples"]:
                raise ValueError(f"{len(self.keys)} samples, the manifest says {self.manifest['counts']['samples']}")
            if int(self.shard_numbers.max(initial=0)) >= max(1, len(self._shards)):
                raise ValueError("a sample of a shard that the manifest does not name")
        except (*_DAMAGE, BadZipFile) as error:
            raise DataError(
                f"{folder}: {MANIFEST_FILE} or {INDEX_FILE} is missing or damaged ({one_line(error)}); "
                "run the preparation again, which keeps whole shards"
            ) from error
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}  # another process opens its own

    def read(self, index: int) -> Sample:
        """Decoded sample number `index`.

        Raises:
            DataError: the sample is damaged.
        """
        rgb, depth = self._decoded(index, "rgb", decode_rgb), None
        if self._table["depth"]["bytes"][index]:
            depth = self._decoded(index, "depth", self._decode_depth)
        height, width = self.sizes[index].tolist()
        if rgb.shape[:2] != (height, width) or (depth is not None and depth.shape != (height, width)):
            raise self._damaged(index, f"its size is not the {height}x{width} of the index")
        return Sample(rgb=rgb, depth=depth, kind=self.kinds[index])

    def info(self, index: int) -> dict[str, Any]:
        """What the sample's .json says: source, intrinsics where known, statistics.

        Raises:
            DataError: the sample is damaged.
        """
        return self._decoded(index, "json", parse_json)

    def member(self, index: int, role: Literal["rgb", "depth", "json"]) -> bytes:
        """Bytes of one of the sample's files, checked against the index.

        Raises:
            DataError: they are not what was written.
        """
        place = self._table[role][index]
        number, size = int(self._table["shard"][index]), int(place["bytes"])
        try:
            data = os.pread(self._handle(number), size, int(place["offset"]))
        except OSError as error:
            raise self._damaged(index, f"{error.strerror}") from error
        if len(data) != size:
            raise self._damaged(index, f"the shard ends within its {role}")
        if zlib.crc32(data) != int(place["crc32"]):
            raise self._damaged(index, f"the checksum of its {role} is another")
        return data

    def places(self, index: int) -> dict[str, tuple[int, int, int]]:
        """Offset in the shard, bytes and CRC-32 of each of the sample's files, by role."""
        rows = {role: tuple(self._table[role][index].tolist()) for role in MEMBERS}
        return {role: place for role, place in rows.items() if place[1]}

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        for number in list(self._handles):
            os.close(self._handles.pop(number))

    def _decoded(self, index: int, role: Literal["rgb", "depth", "json"], decode: Callable[[bytes], Any]) -> Any:
        data = self.member(index, role)
        try:
            return decode(data)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise self._damaged(index, f"{role}: {one_line(error)}") from error

    def _decode_depth(self, data: bytes) -> Float32[np.ndarray, "h w"]:
        if data[:6] == b"\x93NUMPY":
            return np.load(io.BytesIO(data), allow_pickle=False)
        with Image.open(io.BytesIO(data)) as image:
            return self.encoding.meters(np.asarray(image).astype(np.uint16))

    def _handle(self, number: int) -> int:
        # pread keeps no position, so threads and forked processes share handles.
        if number not in self._handles:
            handle = os.open(self.folder / self._shards[number], os.O_RDONLY)
            if self._handles.setdefault(number, handle) != handle:
                os.close(handle)  # another thread was faster
        return self._handles[number]

    def _damaged(self, index: int, what: str) -> DataError:
        shard = self.folder / self._shards[int(self._table["shard"][index])]
        return DataError(
            f"{shard}: sample {self.keys[index]} is damaged ({what}); see all damage with `openmarigold data verify "
            f"{self.folder}`, then delete the shard and prepare the data again, or copy it again"
        )


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a prepared data set."""
    return (folder / MANIFEST_FILE).is_file()


def contents_sha256(encoding: Mapping[str, Any], shards: Iterable[Mapping[str, Any]]) -> str:
    """One hash over all samples: over how depth is stored (the manifest's `depth`), and each shard's name and hash."""
    lines = [json.dumps(encoding, sort_keys=True)]
    lines += [f"{shard.get('shard') or shard['name']} {shard['sha256']}" for shard in shards]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")).hexdigest()


PLACE = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not is_prepared(folder):
        unfinished = (folder / PLAN_FILE).is_file()
        what = "its preparation is not finished; run it again" if unfinished else "give the folder of `data prepare`"
        raise DataError(f"{folder} holds no {MANIFEST_FILE}; {what}")
    manifest = read_json(folder / MANIFEST_FILE)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder / MANIFEST_FILE} has format {manifest.get('format')!r}, not {FORMAT!r}; prepare the data again"
        )
    return manifest


def decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The colors of an encoded picture."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def png_bytes(pixels: np.ndarray) -> bytes:
    """Pixels as a PNG file."""
    buffer = io.BytesIO()
    # Level 6, the default, takes three times as long for a few per cent.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a data set.

    Raises:
        DataError: it is missing, damaged or something else.
    """
    try:
        content = with_current_keys(parse_json(path.read_bytes()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); delete it and prepare the data again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; delete it and prepare the data again")
    return content
