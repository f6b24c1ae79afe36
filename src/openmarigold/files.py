# SPDX-License-Identifier: Apache-2.0
"""Atomic writing: a file or folder with its final name is always whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape as glob_escape
from pathlib import Path

from openmarigold.errors import OutputError

_MAX_NAME_BYTES = 255  # of a file name, on the usual file systems
_ROOM_BYTES = 40  # what a temporary name adds: dots, the ids of process and thread, and "partial"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path in the same folder, then renames the file to `path`.

    Raises:
        OutputError: the folder does not exist or cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{_short_name(path)}.{os.getpid()}-{threading.get_native_id()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; check the folder and free space") from error
    finally:
        with suppress(OSError):  # the error above says what is wrong with the path
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed while writing this file have left of it."""
    for leftover in path.parent.glob(f".{glob_escape(_short_name(path))}.*.partial"):
        leftover.unlink(missing_ok=True)


def _short_name(path: Path) -> str:
    """The file's name or, where a temporary name would be too long with it, a hash of it."""
    name = os.fsencode(path.name)
    return path.name if len(name) + _ROOM_BYTES <= _MAX_NAME_BYTES else hashlib.sha256(name).hexdigest()


def make_directory(path: Path) -> None:
    """Makes a folder and its parents, where they are not there yet.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error


def append_text(path: Path, text: str) -> None:
    """Adds `text` to the end of a file.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; check the folder and free space") from error


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path`, replacing what was there, if the block succeeds."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    retired = temporary.with_suffix(".old")
    try:
        yield temporary
        if path.exists():
            os.replace(path, retired)
        try:
            os.replace(temporary, path)
        except OSError:
            if retired.exists():
                os.replace(retired, path)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; check the folder and free space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
