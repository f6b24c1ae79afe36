# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets: a folder of indexed, uncompressed tar shards with a manifest (docs/data.md, "The shard format").

A shard is the unit of work. One process writes it once; it gets its final name when it is whole, and its index follows.
So a killed run leaves whole shards, which the next run skips. Reading needs no scan: `index.npy` holds the place of
every file of every sample.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.remote import DataFolder, RemoteFolder
from openmarigold.errors import DataError, one_line
from openmarigold.text_files import parse_json, with_current_keys

FORMAT = "openmarigold-shards-1"
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.npy"
PLAN_FILE = "plan.json"

# Errors that a damaged manifest or index may cause.
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


@dataclass(frozen=True)
class Sample:
    """One picture and its maps.

    Attributes:
        maps: float32 by name, `[h w]` of one channel, `[h w c]` of more; `depth` is planar [m], 0 where there is none.
            Empty for a photo.
        kind: what it shows, in the source's own words ("rooms", "tabletop", "street").
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    maps: Mapping[str, np.ndarray]
    kind: str


class ShardedDataset:
    """Random access to the samples of a prepared data set, from any thread and process; opening reads no shard."""

    def __init__(self, folder: DataFolder) -> None:
        """Opens the data set in `folder`, of this machine or at an address.

        Attributes set: `name`, `keys`, `kinds`, `scenes` (lists, in the order of the shards), `sizes` (height and width
        of each sample), `contents` (one hash over all samples), `encodings` (of its maps, by name), `valid_range`
        (values that training may use, exclusive; depth in meters), `unknown_is_far` (of pixels without depth),
        `shard_numbers`, `manifest`.

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
            "".join([*kinds, *scenes]).encode(errors="surrogateescape")  # names that no file can have are refused
            self.encodings = {name: MapEncoding(**record) for name, record in self.manifest["maps"].items()}
            self._roles = roles(self.encodings)
            table = folder / INDEX_FILE
            table = io.BytesIO(table.read_bytes()) if isinstance(table, RemoteFolder) else table
            self._table = np.load(table, allow_pickle=False)
            self.keys: list[str] = self._table["key"].astype(str).tolist()
            self.kinds: list[str] = [kinds[code] for code in self._table["kind"].tolist()]
            self.scenes: list[str] = [scenes[code] for code in self._table["scene"].tolist()]
            self.shard_numbers: Int64[np.ndarray, " n"] = self._table["shard"].astype(np.int64)
            low, high = self.manifest.get("valid_range") or (0.0, None)
            self.unknown_is_far = bool(self.manifest.get("unknown_is_far", True))
            self.valid_range = (float(low), float("inf") if high is None else float(high))
            self.sizes: Int64[np.ndarray, "n 2"] = self._table["size"].astype(np.int64)
            if len(self.keys) != self.manifest["counts"]["samples"]:
                raise ValueError(f"{len(self.keys)} samples, the manifest has {self.manifest['counts']['samples']}")
            if int(self.shard_numbers.max(initial=0)) >= max(1, len(self._shards)):
                raise ValueError("a sample of a shard that the manifest does not name")
        except _DAMAGE as error:
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
        held = self._held(index)
        rgb = self._decoded(index, "rgb", decode_rgb, held)
        maps = {
            name: self._decoded(index, name, encoding.decode, held)
            for name, encoding in self.encodings.items()
            if self._table[name]["bytes"][index]
        }
        height, width = self.sizes[index].tolist()
        if any(pixels.shape[:2] != (height, width) for pixels in (rgb, *maps.values())):
            raise self._damaged(index, f"its size is not the {height}x{width} of the index")
        return Sample(rgb=rgb, maps=maps, kind=self.kinds[index])

    def identity(self, index: int, maps: Iterable[str]) -> tuple[str, ...]:
        """An identifier of sample number `index`. It changes only with the key or the bytes of the picture or of
        `maps`.
        """
        files = {name: self._table[name][index].tolist()[1:] for name in ("rgb", *maps)}
        return (self.keys[index], *(f"{name} {self.encodings.get(name)} {found}" for name, found in files.items()))

    def info(self, index: int) -> dict[str, Any]:
        """The content of the sample's .json: source, intrinsics where known, statistics.

        Raises:
            DataError: the sample is damaged.
        """
        return self._decoded(index, "json", parse_json)

    def camera(self, index: int) -> Camera | None:
        """The camera of sample number `index`; None where its .json states no intrinsics.

        Raises:
            DataError: the sample is damaged, or its intrinsics are not numbers.
        """
        found = self.info(index).get("intrinsics")
        if not found:
            return None
        height, width = self.sizes[index].tolist()
        try:
            fx, fy, x, y = (float(found[name]) for name in ("fx", "fy", "cx", "cy"))
            # There the first pixel's corner lies at (0, 0), and a camera's origin is that pixel's center.
            return Camera(fx=fx, fy=fy, cx=x - 0.5, cy=y - 0.5, width=width, height=height)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.keys[index]}: its intrinsics are not fx, fy, cx and cy [px]; prepare it again"
            ) from error

    def member(self, index: int, role: str) -> bytes:
        """Bytes of one of the sample's files ("rgb", "json" or the name of a map), checked against the index.

        Raises:
            DataError: they are not what was written.
        """
        return self._member(index, role, self._held(index))

    def places(self, index: int) -> dict[str, tuple[int, int, int]]:
        """Offset in the shard, bytes and CRC-32 of each of the sample's files, by role."""
        rows = {role: tuple(self._table[role][index].tolist()) for role in self._roles}
        return {role: place for role, place in rows.items() if place[1]}

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        for number in list(self._handles):
            os.close(self._handles.pop(number))

    def _member(self, index: int, role: str, held: tuple[int, bytes] | None) -> bytes:
        place = self._table[role][index]
        offset, size = int(place["offset"]), int(place["bytes"])
        if held is None:
            try:
                data = os.pread(self._handle(int(self._table["shard"][index])), size, offset)
            except OSError as error:
                raise self._damaged(index, f"{error.strerror}") from error
        else:
            start, content = held
            data = content[offset - start : offset - start + size]
        if len(data) != size:
            raise self._damaged(index, f"the shard ends within its {role}")
        if zlib.crc32(data) != int(place["crc32"]):
            raise self._damaged(index, f"the checksum of its {role} is another")
        return data

    def _held(self, index: int) -> tuple[int, bytes] | None:
        """For a set at an address: the sample's offset in its shard, and its bytes; else None."""
        if not isinstance(self.folder, RemoteFolder):
            return None
        places = self.places(index).values()
        start, end = min(offset for offset, _, _ in places), max(offset + size for offset, size, _ in places)
        number = int(self._table["shard"][index])
        version = str(self.manifest["shards"][number]["sha256"])
        wanted = (str(self.folder / self._shards[number]), version, start, end - start)
        content = self.folder.cache.read(*wanted)
        is_whole = all(zlib.crc32(content[o - start : o - start + size]) == crc for o, size, crc in places)
        if not is_whole and self.folder.cache.forget(*wanted):
            content = self.folder.cache.read(*wanted)
        return start, content

    def _decoded(
        self, index: int, role: str, decode: Callable[[bytes], Any], held: tuple[int, bytes] | None = None
    ) -> Any:
        data = self._member(index, role, held or self._held(index))
        try:
            return decode(data)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise self._damaged(index, f"{role}: {one_line(error)}") from error

    def _handle(self, number: int) -> int:
        # pread keeps no position, so threads and forked processes share handles.
        if number not in self._handles:
            assert isinstance(self.folder, Path)
            handle = os.open(self.folder / self._shards[number], os.O_RDONLY)
            if self._handles.setdefault(number, handle) != handle:
                os.close(handle)  # another thread was faster
        return self._handles[number]

    def _damaged(self, index: int, what: str) -> DataError:
        shard = self.folder / self._shards[int(self._table["shard"][index])]
        advice = (
            "copy the shard there again, from a folder in which `openmarigold data verify` finds nothing"
            if isinstance(self.folder, RemoteFolder)
            else f"see all damage with `openmarigold data verify {self.folder}`, then delete the shard and prepare the "
            "data again, or copy it again"
        )
        return DataError(f"{shard}: sample {self.keys[index]} is damaged ({what}); {advice}")


def is_prepared(folder: DataFolder) -> bool:
    """Whether `folder` holds a prepared data set."""
    return (folder / MANIFEST_FILE).is_file()


def roles(maps: Iterable[str]) -> tuple[str, ...]:
    """Roles of a sample's files, in order: colors, maps, facts."""
    return ("rgb", *maps, "json")


def contents_sha256(maps: Mapping[str, Any], shards: Iterable[Mapping[str, Any]]) -> str:
    """One hash over all samples: over how maps are stored (the manifest's `maps`), and each shard's name and hash."""
    # The name of a set's only map does not count: such sets had one before maps had names.
    encodings = next(iter(maps.values())) if len(maps) == 1 else maps
    lines = [json.dumps(encodings, sort_keys=True).replace("meters_per_unit", "metres_per_unit")]  # as in version 0.1
    lines += [f"{shard.get('shard') or shard['name']} {shard['sha256']}" for shard in shards]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")).hexdigest()


PLACE = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])


def _read_manifest(folder: DataFolder) -> dict[str, Any]:
    if not is_prepared(folder):
        unfinished = (folder / PLAN_FILE).is_file()
        what = "its preparation is not finished; run it again" if unfinished else "give the folder of `data prepare`"
        raise DataError(f"{folder} holds no {MANIFEST_FILE}; {what}")
    manifest = read_json(folder / MANIFEST_FILE)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder / MANIFEST_FILE} has format {manifest.get('format')!r}, not {FORMAT!r}; prepare the data again"
        )
    return with_maps(manifest)


def with_maps(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest or plan with the key `maps`; those of version 0.1 have `depth`, the encoding of their only map."""
    found = dict(manifest)
    if "maps" not in found and "depth" in found:
        found["maps"] = {"depth": found.pop("depth")}
    return found


def decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The colors of an encoded picture."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def read_json(path: DataFolder) -> dict[str, Any]:
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
    if isinstance(content, list) and str(path).endswith(MANIFEST_FILE):
        raise DataError(
            f"{path} is a benchmark's list of images, not the manifest of a prepared set; give the folder that "
            "`openmarigold data prepare` wrote"
        )
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; delete it and prepare the data again")
    return content
