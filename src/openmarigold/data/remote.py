# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets at any address of fsspec, through a bounded cache of samples on this machine.

A sample's files lie next to each other in their shard, so a sample is one request for a range of bytes. It is kept as
one file. When the next sample would exceed the bound, the samples that were not used for longest are removed first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from openmarigold import addresses
from openmarigold.errors import DataError, InvalidValueError, needs_extra
from openmarigold.files import as_path, make_directory, one_at_a_time, user_cache_dir
from openmarigold.printing import quoted_logger

DEFAULT_CACHE_GB = 50.0
_LEDGER = "bytes.txt"
_ENDING = ".part"
_FOLDER = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{62}\.part(ial)?")
_KEPT = 7 / 8
"""Samples are removed until they take this share of the bound, so that removals are rare."""
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.5
_log = quoted_logger(__name__)


@dataclass(frozen=True)
class SampleCache:
    """Ranges of remote files, kept in a folder that several processes may share; it can be pickled.

    Attributes:
        folder: where they are kept; other files in it stay, and do not count.
        max_bytes: limit for all samples together; 0: nothing is kept.
    """

    folder: Path
    max_bytes: int

    def read(self, address: str, version: str, start: int, size: int) -> bytes:
        """`size` bytes of a remote file from `start` on; fewer if the file ends earlier.

        Args:
            address: of the file.
            version: changes with the content of the file, such as a hash of it.
            start: offset of the first byte.
            size: number of bytes.

        Raises:
            DataError: the file cannot be read, after several attempts.
        """
        path = self._path(address, version, start, size)
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if len(content) == size:
                os.utime(path)
                return content
        content = _fetched(address, start, size)
        if len(content) == size <= self.max_bytes:
            try:
                self._keep(path, content)
            except OSError as error:  # a cache that cannot be written costs only time
                _warn_once(f"{self.folder} cannot be written ({error.strerror or error}); samples are not kept")
        return content

    def forget(self, address: str, version: str, start: int, size: int) -> bool:
        """Remove a range that turned out to be damaged; return whether it was kept."""
        try:
            self._path(address, version, start, size).unlink()
        except OSError:
            return False
        return True

    def _path(self, address: str, version: str, start: int, size: int) -> Path:
        name = hashlib.sha256(f"{address}\n{version}\n{start} {size}".encode(errors="surrogateescape")).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}{_ENDING}"

    def _keep(self, path: Path, content: bytes) -> None:
        """Write a file. A lock lets only one process write at a time, so that the bound holds for all processes
        together.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        ledger = self.folder / _LEDGER
        with one_at_a_time(self.folder / "lock"):
            if path.is_file() and path.stat().st_size == len(content):  # another process was faster
                return
            held = _counted(ledger)
            if held is None or held + len(content) > self.max_bytes:
                held = self._make_room(len(content))
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".partial")
            ledger.write_text("")  # no sum is stored until it is right again, in case the process is killed here
            temporary.write_bytes(content)
            os.replace(temporary, path)
            ledger.write_text(str(held + len(content)))

    def _make_room(self, size: int) -> int:
        """Remove the files that were not used for longest, and leftovers of killed processes; return the bytes that
        remain.
        """
        found: list[tuple[float, int, str]] = []
        for folder in os.scandir(self.folder):
            for file in os.scandir(folder.path) if _FOLDER.fullmatch(folder.name) and folder.is_dir() else ():
                if not _FILE.fullmatch(file.name):  # somebody else's
                    continue
                with contextlib.suppress(FileNotFoundError):  # `forget` takes no lock
                    if file.name.endswith(_ENDING):
                        status = file.stat()
                        found.append((status.st_mtime, status.st_size, file.path))
                    else:
                        os.unlink(file.path)
        held = sum(size for _, size, _ in found)
        room = held if held + size <= self.max_bytes else int(min(_KEPT * self.max_bytes, self.max_bytes - size))
        for _, length, path in sorted(found):
            if held <= room:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            held -= length
        return held


def _counted(ledger: Path) -> int | None:
    """The number of bytes in the cache; None if a process was killed while it wrote, or the cache is empty."""
    try:
        return int(ledger.read_text())
    except (OSError, ValueError):
        return None


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s", text)


def _fetched(address: str, start: int, size: int) -> bytes:
    """A range of a remote file. Networks fail now and then, so it is tried several times."""
    for attempt in range(_ATTEMPTS):
        try:
            return addresses.read_range(address, start, size)
        except DataError as error:
            if attempt + 1 == _ATTEMPTS or isinstance(error.__cause__, ImportError) or error.__cause__ is None:
                raise
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
    raise AssertionError


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at an address of fsspec, with the cache that its samples go through. `folder / name` is one within."""

    address: str
    cache: SampleCache

    def __truediv__(self, name: str) -> RemoteFolder:
        return replace(self, address=f"{self.address.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.address

    def read_bytes(self) -> bytes:
        """The content of the file of this address.

        Raises:
            FileNotFoundError: there is none.
            DataError: it cannot be read.
        """
        if not self.is_file():
            raise FileNotFoundError(self.address)
        return addresses.read_bytes(self.address)

    def is_file(self) -> bool:
        """Whether there is a file of this address.

        Raises:
            DataError: that cannot be found out.
        """
        return addresses.is_file(self.address)

    def folders_with(self, name: str) -> list[str]:
        """The folders one or two levels below that have a file of a name, by their names from here, sorted.

        Raises:
            DataError: they cannot be listed.
        """
        found = []
        for depth in (1, 2):
            pattern = "/".join([self.address.rstrip("/"), *["*"] * depth, name])
            found += ["/".join(address.split("/")[-1 - depth : -1]) for address in addresses.matches(pattern)]
        return sorted(found)


DataFolder: TypeAlias = Path | RemoteFolder
"""A folder of data sets: a path, or a folder behind an address."""


def data_folder(given: str | Path | RemoteFolder, *, cache_dir: Path | None, cache_gb: float) -> DataFolder:
    """The folder of data sets that a path or an address names.

    Args:
        given: a path of this machine, or an address such as s3://bucket/data.
        cache_dir: where samples of an address are kept; None: in the user's cache folder.
        cache_gb: how much of them, at most [GB]; 0: nothing.

    Raises:
        InvalidValueError: no path, or a size that is not accepted.
        OutputError: the cache folder cannot be made.
        MissingExtraError: an address without fsspec.
    """
    if isinstance(given, RemoteFolder):
        return given
    if not cache_gb >= 0:
        raise InvalidValueError(f"sample_cache_gb={cache_gb} is not accepted; give 0 or more")
    if not isinstance(given, str) or not addresses.is_remote(given):
        return as_path(given, "data_dir")
    if not addresses.is_remote(path := addresses.located(given, "data_dir")):  # file://
        return Path(path)
    with needs_extra("batch"):
        import fsspec  # noqa: F401 - before anything is read
    folder = cache_dir or user_cache_dir() / "samples"
    if cache_gb:
        make_directory(folder)
    return RemoteFolder(given, SampleCache(folder, int(cache_gb * 1e9)))
