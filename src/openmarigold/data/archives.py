# SPDX-License-Identifier: Apache-2.0
"""Files by name from a folder, a tar or a zip, in any order and from any thread, without unpacking.

An archive can be pickled for another process, without its open files. Damage affects only the files that it touches.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from openmarigold.data.remote import DataFolder
from openmarigold.data.tar_index import read_tar_index
from openmarigold.errors import DataError, one_line

LARGEST_FILE = 256 << 20
"""Bytes of one file, unpacked. The largest files of the known data sets have a third of it."""
_MOST_NAMES = 16  # of one folder, through links; each is walked


@runtime_checkable
class Archive(Protocol):
    """A set of named files. Names use `/` and have no leading `./`."""

    @property
    def location(self) -> DataFolder:
        """Where the files lie, for messages."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """Every file's name."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about the whole set."""
        ...

    @property
    def damage(self) -> Mapping[str, str]:
        """Why archives or folders could not be read, by name."""
        ...

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        ...

    def file_of(self, name: str) -> DataFolder:
        """The file on disk that holds a file of the set."""
        ...


def open_archive(path: Path) -> Archive:
    """The files of a folder (and of the tars and zips directly in it), of a tar or of a zip.

    Raises:
        DataError: the path does not exist, or is of another kind, compressed as a whole, or damaged.
    """
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder, a tar or a zip")
    return _open_file(path)


def missing(location: DataFolder, name: str) -> DataError:
    """The error for a file that is not there."""
    return DataError(f"{location} holds no {name}; get it again, or leave it out of the list")


def first_named(line: str, names: Container[str]) -> str:
    """The file that a line of a list begins with: the longest beginning, up to a space, that is among `names`.

    Without a match it is the first word.

    >>> first_named("living room/0.jpg living room/0.png", {"living room/0.jpg"})
    'living room/0.jpg'
    """
    end = len(line)
    while end > 0:
        if (beginning := line[:end].rstrip()) in names:
            return beginning
        end = max(line.rfind(space, 0, end) for space in " \t")
    return line.split()[0]


def read_file(path: Path) -> bytes:
    """The content of a file on disk, within `LARGEST_FILE`.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        DataError: it is not a regular file (a pipe would never end), or larger.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a folder, pipe or device; a file is needed")
    _check_size(status.st_size, str(path))
    return path.read_bytes()


def _check_size(size: int, what: str) -> None:
    if size > LARGEST_FILE:
        raise DataError(
            f"{what} has {size / 2**20:.0f} MiB; one file may have {LARGEST_FILE >> 20} MiB: split it or leave it out"
        )


def _open_file(path: Path) -> Archive:
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a regular file; give a folder, a tar or a zip")
        if zipfile.is_zipfile(path):
            return _Zip(path)
        with path.open("rb") as file:
            start = file.read(6)
        if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\x00":
            raise DataError(f"{path} is compressed as a whole, so its files cannot be read one by one; decompress it")
        return TarArchive(path)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a whole tar or zip file ({one_line(error)}); get it again") from error


class _Folder:
    def __init__(self, path: Path) -> None:
        self.location = path
        self.notes: tuple[str, ...] = ()
        self.damage: dict[str, str] = {}
        self._inner: dict[str, Archive] = {}
        own = self._walk()
        for name in sorted(own):
            if "/" not in name and name.lower().endswith((".tar", ".zip")):
                try:
                    inner = _open_file(path / name)
                except DataError as error:  # the others may be whole
                    self.damage[name] = str(error)
                    continue
                self.damage |= inner.damage
                self._inner |= dict.fromkeys(inner.names, inner)
        self.names = own | self._inner.keys()
        self._own = own

    def _walk(self) -> frozenset[str]:
        """Names of all files. Links to folders are followed, except into their own parents."""
        names: set[str] = set()
        notes: list[str] = []
        above = {os.fspath(self.location): frozenset({_identity(os.fspath(self.location))})}
        times: Counter[tuple[int, int]] = Counter()

        def unreadable(error: OSError) -> None:
            self.damage[str(error.filename)] = f"cannot be read: {error.strerror or error}; check its permissions"

        for folder, folders, files in os.walk(self.location, onerror=unreadable, followlinks=True):
            start = Path(folder).relative_to(self.location)
            names.update((start / file).as_posix() for file in files)
            followed, outer = [], above.pop(folder)
            for name in sorted(folders):
                path = os.path.join(folder, name)
                identity = _identity(path)
                times[identity] += 1
                if identity in outer:
                    notes.append(f"{path} is a link to a folder that it lies in; it is not followed")
                elif times[identity] > _MOST_NAMES:
                    notes.append(f"{path} is one of more than {_MOST_NAMES} names of a folder; it is not followed")
                else:
                    above[path] = outer | {identity}
                    followed.append(name)
            folders[:] = followed
        self.notes = tuple(notes)
        return frozenset(names)

    def read(self, name: str) -> bytes:
        if name not in self._own:
            if name in self._inner:
                return self._inner[name].read(name)
            raise missing(self.location, name)
        try:
            return read_file(self.location / name)
        except OSError as error:
            raise DataError(f"{self.location / name} cannot be read: {error.strerror}; check it") from error

    def file_of(self, name: str) -> Path:
        return self.location / name if name in self._own else Path(f"{self._inner[name].location}")


def _identity(path: str) -> tuple[int, int]:
    """Device and inode of a folder: the same for all its names."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


class TarArchive:
    """An uncompressed tar.

    Attributes:
        places: offset and size of each whole file, by name, in the order of the tar.
        defects: files that cannot be read, and why, as the end of a sentence.
    """

    def __init__(self, path: Path) -> None:
        """Reads all headers. Raises what `read_tar_index` raises."""
        self.location = path
        self.notes: tuple[str, ...] = ()
        content = read_tar_index(path)
        self.places, self.defects = content.places, content.defects
        self.damage = {path.name: f"{path} {content.damage}; get it again"} if content.damage else {}
        self.names = frozenset(self.places) | self.defects.keys()
        self._file = path.open("rb")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = self.location.open("rb")

    def read(self, name: str) -> bytes:
        if name in self.defects:
            raise DataError(f"{self.location}: {name} {self.defects[name]}; get it again")
        if name not in self.places:
            raise missing(self.location, name)
        offset, size = self.places[name]
        _check_size(size, f"{self.location}: {name}")
        if self._file.closed:
            self._file = self.location.open("rb")
        content = os.pread(self._file.fileno(), size, offset)  # which keeps no position, so threads share one file
        if len(content) != size:
            raise DataError(f"{self.location} ends within {name}; get it again")
        return content

    def file_of(self, name: str) -> DataFolder:
        return self.location

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if hasattr(self, "_file"):
            self._file.close()

    __del__ = close


class _Zip:
    def __init__(self, path: Path) -> None:
        self.location = path
        self.notes: tuple[str, ...] = ()
        self.damage: dict[str, str] = {}
        self._open()
        self._members = {
            info.filename.removeprefix("./"): info for info in self._archive.infolist() if not info.is_dir()
        }
        self.names = frozenset(self._members)

    def _open(self) -> None:
        self._archive = zipfile.ZipFile(self.location)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_archive", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, name: str) -> bytes:
        if name not in self._members:
            raise missing(self.location, name)
        member = self._members[name]
        _check_size(member.file_size, f"{self.location}: {name}, unpacked,")
        try:
            # Never unpack more than the zip announces. One byte more is requested, so that the end is reached and the
            # checksum compared.
            with self._lock, self._archive.open(member) as file:
                return file.read(member.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.location}: {name} is damaged ({one_line(error)}); get it again") from error

    def file_of(self, name: str) -> DataFolder:
        return self.location

    def __del__(self) -> None:
        if hasattr(self, "_archive"):
            self._archive.close()
