# SPDX-License-Identifier: Apache-2.0
"""Files wherever fsspec reaches: this machine's paths, memory://, s3://, gs://, http:// and others."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from openmarigold.errors import DataError, OpenMarigoldError, OutputError, needs_extra, one_line
from openmarigold.files import as_path, make_directory, remove_leftovers, write_atomically

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+(::|://)")
_LOCAL = re.compile(r"(file|local)://")
_WILD = re.compile(r"[*?\[]")
_END_BYTES = 65536
_ATTEMPTS = 3
"""At a file whose temporary one another run on the same folder removes."""


def is_remote(address: str) -> bool:
    """Whether an address names a protocol, and is not a path of this machine.

    Names with "::" are paths if such a file exists, or if no protocol has the name before it.
    """
    found = _REMOTE.match(address)
    if found is None or "://" in address:
        return found is not None
    if os.path.lexists(address):
        return False
    with needs_extra("batch"):
        from fsspec import available_protocols
    return found[0].removesuffix("::") in available_protocols()


def located(address: str, what: str) -> str:
    """An address that is remote, or an absolute path of this machine (of `file://` too); `what` names it in errors.

    Raises:
        InvalidValueError: empty text, or a NUL character.
    """
    as_path(address, what)
    if _LOCAL.match(address):
        return _system(address)[1]
    return address if is_remote(address) else os.path.abspath(address)


def has_wildcard(address: str) -> bool:
    """Whether an address has `*`, `?` or `[`."""
    return _WILD.search(address) is not None


def fixed_part(pattern: str) -> str:
    """The folder of a pattern above its first wildcard."""
    found = _WILD.search(pattern)
    return pattern[: found.start() if found else None].rpartition("/")[0]


def read_bytes(address: str) -> bytes:
    """The content of a file.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    if not is_remote(address):
        with _reading(address):
            return Path(address).read_bytes()
    with _reading_from(address) as (system, path):
        return system.cat_file(path)


def read_range(address: str, start: int, size: int) -> bytes:
    """`size` bytes of a remote file from `start` on; fewer where it ends before.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    with _reading_from(address) as (system, path):
        return system.cat_file(path, start=start, end=start + size)


def is_file(address: str) -> bool:
    """Whether there is a file.

    Raises:
        DataError: it cannot be read.
    """
    with _reading_from(address) as (system, path):
        return system.isfile(path)


def fingerprint(address: str) -> str | None:
    """Size of a file, and a hash of its first and last 64 KiB: it differs if one of these does.

    Over HTTP, where a part may cost the whole file, it is the size and what the server states as `ETag`. None: the file
    is missing, or cannot be read.
    """
    try:
        with _reading_from(address) as (system, path):
            facts = system.info(path)
            if facts.get("size") is None:
                return None
            size, ends = int(facts["size"]), [(0, _END_BYTES)]
            if address.startswith(("http://", "https://")):
                return f"{size} bytes, {facts.get('ETag', '')}"
            if size > _END_BYTES:
                ends.append((max(_END_BYTES, size - _END_BYTES), size))
            digest = hashlib.sha256(b"".join(system.cat_file(path, start=start, end=end) for start, end in ends))
    except DataError:
        return None
    return f"{size} bytes, {digest.hexdigest()[:32]}"


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """The file on this machine: itself, or a copy that is removed afterwards.

    Raises:
        DataError: it is missing, or cannot be read.
    """
    if not is_remote(address):
        with _reading(address):
            Path(address).open("rb").close()
        yield Path(address)
        return
    with tempfile.TemporaryDirectory(prefix="openmarigold-") as folder:
        copy = Path(folder) / PurePosixPath(address).name
        with _reading_from(address) as (system, path):
            system.get_file(path, str(copy))
        yield copy


def list_files(address: str) -> list[str]:
    """All files in a folder and in those within, sorted, without those whose names begin with a dot.

    Raises:
        DataError: it cannot be read.
    """
    with _reading_from(address) as (system, path):
        root = path.rstrip("/") + "/"
        found = [name for name in system.find(path) if not _is_hidden(name.removeprefix(root))]
        return sorted(_unstripped(system, address, name) for name in found)


def matches(pattern: str) -> list[str]:
    """The files that a pattern with `*`, `?` or `[...]` names, sorted; hidden ones where it names a dot.

    Raises:
        DataError: it cannot be read.
    """
    with _reading_from(pattern) as (system, path):
        root = fixed_part(path) + "/"
        shows_hidden = "/." in path.removeprefix(root[:-1])
        return sorted(
            _unstripped(system, pattern, name)
            for name, facts in system.glob(path, detail=True).items()
            if facts["type"] == "file" and (shows_hidden or not _is_hidden(name.removeprefix(root)))
        )


def is_folder(address: str) -> bool:
    """Whether there is a folder.

    Raises:
        DataError: it cannot be read.
    """
    with _reading_from(address) as (system, path):
        return system.isdir(path)


def check_file(address: str) -> None:
    """Raises a DataError if no readable file exists."""
    with _reading_from(address) as (system, path):
        system.info(path)


@dataclass(frozen=True)
class OutputFolder:
    """Where shards are written: whole files only."""

    address: str

    def names(self) -> list[str]:
        """The files in it; none where there is no folder.

        Raises:
            OutputError: it cannot be read.
        """
        with _writing(self.address):
            system, path = _system(self.address)
            try:
                found = system.ls(path, detail=False, refresh=True)
            except FileNotFoundError:
                return []
            return [PurePosixPath(name).name for name in found]

    def prepare(self) -> None:
        """Makes it.

        Raises:
            OutputError: it cannot be made.
        """
        with _writing(self.address):
            if is_remote(self.address):
                system, path = _system(self.address)
                system.makedirs(path, exist_ok=True)
            else:
                make_directory(Path(self.address))

    def read(self, name: str) -> bytes:
        """The content of one of its files.

        Raises:
            DataError: it is missing, or cannot be read.
        """
        return read_bytes(self._of(name))

    def open_copy(self, name: str) -> Any:
        """One of its files on this machine, as `local_copy` has it."""
        return local_copy(self._of(name))

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Makes or replaces a file by what `write` puts at a path; it appears whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with _writing(self._of(name)):
            if not is_remote(self.address):
                _write_here(Path(self._of(name)), write)
                return
            with tempfile.TemporaryDirectory(prefix="openmarigold-") as folder:
                local = Path(folder) / name
                write(local)
                system, path = _system(self._of(name))
                with local.open("rb") as source, system.open(path, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 22)

    @property
    def temporary(self) -> str | None:
        """Where large temporary files belong: here, or, of a remote folder, where the system has them."""
        return None if is_remote(self.address) else self.address

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns errors of writing in it into an OutputError."""
        with _writing(self.address):
            yield

    def remove(self, name: str) -> None:
        """Removes a file.

        Raises:
            OutputError: it is there still.
        """
        with _writing(self._of(name)):
            system, path = _system(self._of(name))
            system.rm_file(path)

    def _of(self, name: str) -> str:
        return f"{self.address.rstrip('/')}/{name}"


def _write_here(path: Path, write: Callable[[Path], object]) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        remove_leftovers(path)
        try:
            return write_atomically(path, write)
        except OutputError as error:
            if attempt == _ATTEMPTS or not isinstance(error.__cause__, FileNotFoundError) or not path.parent.is_dir():
                raise


def _system(address: str) -> tuple[Any, str]:
    with needs_extra("batch"):
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem
    if not is_remote(address):  # url_to_fs takes "::" in a name for a chain of protocols
        return LocalFileSystem(), address
    return url_to_fs(address)


def _unstripped(system: Any, address: str, name: str) -> str:
    return system.unstrip_protocol(name) if is_remote(address) else name


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


@contextmanager
def _reading(address: str) -> Iterator[None]:
    try:
        yield
    except OpenMarigoldError:
        raise
    except FileNotFoundError:
        raise DataError(f"{address} does not exist; check the name") from None
    except ImportError as error:
        raise DataError(f"{address} cannot be read: {one_line(error)}") from error
    except Exception as error:  # each protocol has errors of its own
        raise DataError(f"{address} cannot be read: {_reason(error)}; check the name and your access") from error


@contextmanager
def _reading_from(address: str) -> Iterator[tuple[Any, str]]:
    """Yields the file system of an address and the path there."""
    with _reading(address):
        yield _system(address)


@contextmanager
def _writing(address: str) -> Iterator[None]:
    try:
        yield
    except OpenMarigoldError:
        raise
    except ImportError as error:
        raise OutputError(f"{address} cannot be written: {one_line(error)}") from error
    except Exception as error:
        raise OutputError(f"{address} cannot be written: {_reason(error)}; choose another folder") from error


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
