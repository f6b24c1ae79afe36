# SPDX-License-Identifier: Apache-2.0
"""The places of a tar's files, even with damaged or false headers: sizes below 0 or beyond the end, sparse files.

Python's tarfile trusts such sizes (a negative one makes it read the same headers forever). It ends silently at a
damaged header, and reads as many bytes for a long name as a header asks for.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from openmarigold.errors import one_line

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_READ = 1 << 20  # far above any real header, even with a long name or pax records
_MAGIC = slice(257, 262)


@dataclass
class TarIndex:
    """Files of a tar.

    Attributes:
        places: offset and size of each file, by name without a leading "./".
        defects: files that cannot be read, and why, as the end of a sentence.
        damage: of the tar as a whole, as the end of a sentence; empty where it is whole.
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    defects: dict[str, str] = field(default_factory=dict)
    damage: str = ""


def read_tar_index(path: Path) -> TarIndex:
    """The files of an uncompressed tar. After a damaged header, reading continues at the next whole one.

    Raises:
        tarfile.ReadError: no whole header was found.
        OSError: the file cannot be read.
    """
    index = TarIndex()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start: int | None = 0
        while start is not None:
            damaged_at, problem = _scan(file, start, size, index)
            if damaged_at is None:
                break
            if not (index.places or index.defects):
                raise tarfile.ReadError(problem)
            index.damage = index.damage or f"is damaged at byte {damaged_at} ({problem})"
            start = _next_header(file, max(start, damaged_at) + _BLOCK, size)
    return index


def _scan(file: IO[bytes], start: int, size: int, index: TarIndex) -> tuple[int | None, str]:
    """Adds files from byte `start` on; returns where damage begins, or None at the end, and what it is."""
    file.seek(start)
    archive = None
    try:
        archive = tarfile.TarFile(fileobj=cast("IO[bytes]", _HeaderFile(file)), errors="surrogateescape")
        while member := archive.next():
            name = member.name.removeprefix("./")
            is_inside = 0 <= member.size <= size - member.offset_data
            if member.isfile():
                for earlier in (index.places, index.defects):  # if two files have one name, the later one counts
                    earlier.pop(name, None)
                if member.issparse():
                    index.defects[name] = "is stored as a sparse file, which is not read"
                elif not is_inside:
                    index.defects[name] = f"has {member.size} bytes by its header, the tar ends within it"
                else:
                    index.places[name] = (member.offset_data, member.size)
            if member.isfile() and not member.issparse() and not is_inside:
                return member.offset_data - _BLOCK, f"a file of {member.size} bytes, which are not there"
            if archive.offset <= member.offset:
                return member.offset, f"an entry of {member.size} bytes"
        end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return start if archive is None else max(start, archive.offset), one_line(error)
    file.seek(end)
    block = file.read(_BLOCK)
    return (end, "no header") if any(block) else (None, "")


def _next_header(file: IO[bytes], start: int, size: int) -> int | None:
    """Offset of the next whole header."""
    file.seek(start)
    for offset in range(start, size - _BLOCK + 1, _BLOCK):
        block = file.read(_BLOCK)
        if block[_MAGIC] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
                return offset
            except (tarfile.TarError, ValueError):
                continue
    return None


class _HeaderFile:
    """A file from which tarfile reads headers; it refuses long reads and impossible places."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.name: Any = None
        self.mode = "rb"

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        if not 0 <= position < 2**63:
            raise tarfile.ReadError(f"a header at byte {position}")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()
