# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: a source is a row of `SOURCES` (tar shards and a decode function), nothing more."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from openmarigold.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One picture, with its depth where the source has it.

    Attributes:
        rgb: colour image.
        depth: planar depth [m], 0 where there is none; None for a source of photos.
        kind: what it shows, in the source's own words ("rooms", "tabletop", "street").
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"] | None
    kind: str


@dataclass(frozen=True)
class SourceRow:
    """How a source is stored: shards in a folder, and the function from a sample's files (by suffix) to rgb and depth.

    A sample's kind is the first part of its name: `rooms-040110-03` shows rooms.
    """

    folder: str
    shards: str
    suffixes: tuple[str, ...]
    decode: Callable[[Mapping[str, bytes]], tuple[np.ndarray, np.ndarray | None]]


def _decode_photo(files: Mapping[str, bytes]) -> tuple[np.ndarray, None]:
    return _decode_rgb(files[".jpg"]), None


def _decode_log_depth_pair(files: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
    # 12-bit logarithmic code: 0 = no depth, else 0.1 m * 1000 ** (code / 4095).
    code = np.asarray(Image.open(io.BytesIO(files[".depth.png"])), dtype=np.float32)
    depth = np.where(code > 0, 0.1 * 1000.0 ** (code / 4095.0), 0.0).astype(np.float32)
    return _decode_rgb(files[".rgb.jpg"]), depth


def _decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


_PAIR = (".rgb.jpg", ".depth.png")
SOURCES: dict[str, SourceRow] = {
    "photos": SourceRow("photos", "photos-*.tar", (".jpg",), _decode_photo),
    "synthetic": SourceRow("synthetic", "train-*.tar", _PAIR, _decode_log_depth_pair),
    "synthetic-val": SourceRow("synthetic", "val-*.tar", _PAIR, _decode_log_depth_pair),
}


class Source:
    """Random access to the samples of one source, in the order of their names."""

    def __init__(self, name: str, data_dir: Path) -> None:
        """Indexes the shards of source `name` below `data_dir`; reads no samples yet.

        Raises:
            DataError: an unknown name, no shards, or a shard that is not a whole tar file.
        """
        if name not in SOURCES:
            raise DataError(f"unknown data source {name!r}; use one of {', '.join(SOURCES)}")
        self.name = name
        self._row = SOURCES[name]
        folder = data_dir / self._row.folder
        self._shards = sorted(folder.glob(self._row.shards))
        if not self._shards:
            raise DataError(
                f"no {self._row.shards} in {folder}; --data-dir must be the folder that holds {self._row.folder}/"
            )
        entries: dict[str, dict[str, tuple[int, int, int]]] = {}
        for number, shard in enumerate(self._shards):
            for key, suffix, offset, size in _members(shard, self._row.suffixes):
                entries.setdefault(key, {})[suffix] = (number, offset, size)
        complete = {key: parts for key, parts in entries.items() if len(parts) == len(self._row.suffixes)}
        if not complete:
            raise DataError(f"{folder} holds no sample with all of {', '.join(self._row.suffixes)}")
        self.keys = sorted(complete)
        self.kinds = [key.split("-", maxsplit=1)[0] for key in self.keys]
        self._entries = [complete[key] for key in self.keys]
        # Names and sizes: changes when the data is made again, without reading it all.
        sizes = [[key, [size for _, _, size in complete[key].values()]] for key in self.keys]
        self.contents = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> Sample:
        """Decoded sample number `index`.

        Raises:
            DataError: a file of the sample is damaged.
        """
        files = {suffix: self._bytes(*place) for suffix, place in self._entries[index].items()}
        try:
            rgb, depth = self._row.decode(files)
        except (OSError, ValueError) as error:
            raise DataError(f"sample {self.keys[index]} of source {self.name} is damaged: {error}") from error
        return Sample(rgb=rgb, depth=depth, kind=self.kinds[index])

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        # pread keeps no position, so threads share one handle.
        if shard not in self._handles:
            self._handles[shard] = os.open(self._shards[shard], os.O_RDONLY)
        return os.pread(self._handles[shard], size, offset)

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def _members(shard: Path, suffixes: tuple[str, ...]) -> list[tuple[str, str, int, int]]:
    found = []
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                for suffix in suffixes:
                    if member.isfile() and member.name.endswith(suffix):
                        found.append((member.name[: -len(suffix)], suffix, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard} is not a whole tar file ({error}); get it again") from error
    return found
