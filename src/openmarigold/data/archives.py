# SPDX-License-Identifier: Apache-2.0
"""Files by name from a folder, a tar or a zip, in any order and from any thread, without unpacking.

An archive may be sent to another process: what was found goes along, handles do not.
"""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from openmarigold.errors import DataError, one_line


@runtime_checkable
class Archive(Protocol):
    """A set of named files. Names use `/` and have no leading `./`."""

    @property
    def location(self) -> Path:
        """Where the files lie, for messages."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """Every file's name."""
        ...

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            DataError: there is no such file, or it cannot be read.
        """
        ...


def open_archive(path: Path) -> Archive:
    """The files of a folder (with those of the tars and zips that lie directly in it), of a tar or of a zip.

    Raises:
        DataError: the path does not exist, or is of another kind, compressed as a whole, or damaged.
    """
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder, a tar or a zip")
    return _open_file(path)


def missing(location: Path, name: str) -> DataError:
    """The error for a file that is not there."""
    return DataError(f"{location} holds no {name}; get it again, or leave it out of the list")


def _open_file(path: Path) -> Archive:
    try:
        if zipfile.is_zipfile(path):
            return _Zip(path)
        with path.open("rb") as file:
            start = file.read(6)
        if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\x00":
            raise DataError(f"{path} is compressed as a whole, so its files cannot be read one by one; decompress it")
        return _Tar(path)
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not a whole tar or zip file ({one_line(error)}); get it again") from error


class _Folder:
    def __init__(self, path: Path) -> None:
        self.location = path
        self._inner: dict[str, Archive] = {}
        names = set()
        for folder, folders, files in os.walk(path, followlinks=True):
            folders.sort()
            start = Path(folder).relative_to(path)
            names.update((start / file).as_posix() for file in files)
        for name in sorted(names):
            if "/" not in name and name.lower().endswith((".tar", ".zip")):
                inner = _open_file(path / name)
                self._inner |= dict.fromkeys(inner.names, inner)
        self.names = frozenset(names) | self._inner.keys()
        self._own = frozenset(names)

    def read(self, name: str) -> bytes:
        if name not in self._own:
            if name in self._inner:
                return self._inner[name].read(name)
            raise missing(self.location, name)
        try:
            return (self.location / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.location / name} cannot be read: {error.strerror}; check it") from error


class _Tar:
    def __init__(self, path: Path) -> None:
        self.location = path
        with tarfile.open(path, "r:") as archive:
            self._places: Mapping[str, tuple[int, int]] = {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in archive
                if member.isfile()
            }
        self.names = frozenset(self._places)
        # pread keeps no position, so threads share one handle. It lives as long as the archive is used.
        self._handle = path.open("rb")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handle = self.location.open("rb")

    def read(self, name: str) -> bytes:
        if name not in self._places:
            raise missing(self.location, name)
        offset, size = self._places[name]
        content = os.pread(self._handle.fileno(), size, offset)
        if len(content) != size:
            raise DataError(f"{self.location} ends within {name}; get it again")
        return content

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.close()


class _Zip:
    def __init__(self, path: Path) -> None:
        self.location = path
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
        try:
            with self._lock:
                return self._archive.read(self._members[name])
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.location}: {name} is damaged ({one_line(error)}); get it again") from error

    def __del__(self) -> None:
        if hasattr(self, "_archive"):
            self._archive.close()
