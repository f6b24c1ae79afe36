# SPDX-License-Identifier: Apache-2.0
"""Rows of a cache in files, exact to the bit: half-precision maps as 16-bit codes, deflated.

A file is a line of JSON (names and bytes of the rows, SHA-256 of all), then the rows, each by itself, so that one is
read without the others. Rows with maps are deflated; latents hardly shrink and are stored as they are. In a field of
half-precision numbers `[... h w]` the bits of each number are its code. Neighbors of a smooth map have near codes, so
that what is stored is what left + above - above left does not predict.

A `RowStore` is a folder of rows by name, which several runs share: each file holds some rows, in no order. Files appear
whole by a rename and never change. So runs and processes can add to a folder at the same time. A row that two of them
wrote is there twice, with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openmarigold.errors import DataError
from openmarigold.files import make_directory, write_atomically
from openmarigold.text_files import parse_json

SUFFIX = ".packed"
_STORE_SUFFIX = ".rows"
_LEVEL = 6
_LONGEST_HEADER = 2**22
_DAMAGE = (OSError, ValueError, KeyError, TypeError)


def write_packed(
    path: Path, rows: np.ndarray, fields: Sequence[str], *, ids: Sequence[str] = (), deflate: bool = True
) -> None:
    """Writes the rows of a structured array; `fields` are half-precision maps that are predicted, `ids` names of rows.

    Raises:
        OutputError: it cannot be written.
    """
    blobs = [zlib.compress(_pack(row, fields), _LEVEL) if deflate else row.tobytes() for row in rows]
    content = b"".join(blobs)
    head: dict[str, object] = {"ids": list(ids)} if ids else {}
    head |= {"sizes": [len(blob) for blob in blobs], "deflated": deflate}
    head |= {"sha256": hashlib.sha256(content).hexdigest()}
    line = json.dumps(head).encode() + b"\n"
    write_atomically(path, lambda partial: partial.write_bytes(line + content))


def read_ids(path: Path) -> list[str]:
    """Names of the rows of a file, from its first line alone.

    Raises:
        ValueError, OSError, KeyError, TypeError: it is damaged.
    """
    with path.open("rb") as file:
        ids = parse_json(file.readline(_LONGEST_HEADER))["ids"]
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise ValueError("its rows have no names")
    return ids


class PackedRows:
    """Random access to the rows of a file."""

    def __init__(self, path: Path, dtype: np.dtype, fields: Sequence[str], count: int) -> None:
        """Opens the file and checks all its bytes.

        Raises:
            ValueError, OSError: it is damaged or holds another number of rows.
        """
        self._path, self._dtype, self._fields = path, dtype, fields
        with path.open("rb") as file:
            line = file.readline(_LONGEST_HEADER)
            head = parse_json(line)
            if hashlib.file_digest(file, "sha256").hexdigest() != head["sha256"]:
                raise ValueError("its bytes are not those that were written")
        if len(head["sizes"]) != count:
            raise ValueError(f"{len(head['sizes'])} rows, not {count}")
        self._deflated = head.get("deflated", True)
        if not self._deflated and any(size != dtype.itemsize for size in head["sizes"]):
            raise ValueError(f"rows of {head['sizes'][0]} bytes, not {dtype.itemsize}")
        self._starts = len(line) + np.cumsum([0, *head["sizes"]])

    def __getitem__(self, row: int) -> np.void:
        start, stop = int(self._starts[row]), int(self._starts[row + 1])
        with self._path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start)
        if not self._deflated:
            return np.frombuffer(content, dtype=self._dtype)[0]
        return _unpack(zlib.decompress(content), self._dtype, self._fields)


def _pack(row: np.void, fields: Sequence[str]) -> bytes:
    copied = row.copy()
    for name in fields:
        codes = np.ascontiguousarray(copied[name]).view(np.uint16)
        # Differences wrap around, and so do sums.
        for axis in (-1, -2):
            codes = np.diff(codes, axis=axis, prepend=np.uint16(0))
        # Small errors of either sign become small codes, and all high bytes are stored together.
        signed = codes.view(np.int16)
        folded = ((signed << 1) ^ (signed >> 15)).view(np.uint16)
        planes = np.stack([folded >> 8, folded & 0xFF]).astype(np.uint8)
        copied[name] = np.frombuffer(planes.tobytes(), np.float16).reshape(copied[name].shape)
    return copied.tobytes()


def _unpack(content: bytes, dtype: np.dtype, fields: Sequence[str]) -> np.void:
    row = np.frombuffer(bytearray(content), dtype=dtype)[0].copy()
    for name in fields:
        shape = row[name].shape
        planes = np.frombuffer(row[name].tobytes(), np.uint8).reshape(2, *shape).astype(np.uint16)
        folded = (planes[0] << 8) | planes[1]
        codes = (folded >> 1) ^ (-(folded & 1).astype(np.int16)).view(np.uint16)
        for axis in (-2, -1):
            codes = np.cumsum(codes, axis=axis, dtype=np.uint16)
        row[name] = codes.view(np.float16)
    return row


class RowStore:
    """The rows of one folder."""

    def __init__(self, folder: Path, dtype: np.dtype, fields: Sequence[str], *, deflate: bool) -> None:
        """List the rows in the folder.

        Args:
            dtype: of a row.
            fields: half-precision maps of it, which are stored as codes where rows are deflated.
            deflate: whether new rows are deflated.

        Raises:
            DataError: a file is damaged.
        """
        self.folder, self._dtype, self._fields, self._deflate = folder, dtype, fields, deflate
        self._places: dict[str, tuple[Path, int]] = {}
        self._counts: dict[Path, int] = {}
        self._open: dict[Path, PackedRows] = {}
        self.scan()

    def scan(self) -> None:
        """List the rows that other processes have added.

        Raises:
            DataError: a file is damaged.
        """
        for path in sorted(self.folder.glob(f"*{_STORE_SUFFIX}")):
            if path in self._counts:
                continue
            try:
                ids = read_ids(path)
            except _DAMAGE as error:
                raise damaged(path) from error
            self._counts[path] = len(ids)
            for row, name in enumerate(ids):
                self._places.setdefault(name, (path, row))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def add(self, names: Sequence[str], rows: np.ndarray) -> Path:
        """Writes rows as a file of their own, and returns it.

        Raises:
            OutputError: it cannot be written.
        """
        make_directory(self.folder)
        path = self.folder / f"{hashlib.sha256(' '.join(names).encode()).hexdigest()[:32]}{_STORE_SUFFIX}"
        write_packed(path, rows, self._fields, ids=names, deflate=self._deflate)
        return path

    def __getitem__(self, name: str) -> np.void:
        """The row of a name. Raises DataError if its file is damaged."""
        path, row = self._places[name]
        if path not in self._open:
            try:
                self._open[path] = PackedRows(path, self._dtype, self._fields, self._counts[path])
            except _DAMAGE as error:
                raise damaged(path) from error
        return self._open[path][row]


def damaged(path: Path) -> DataError:
    """The error about a file of rows whose bytes changed."""
    return DataError(f"{path} is not what was kept there; remove it, and it will be encoded again")
