# SPDX-License-Identifier: Apache-2.0
"""Paths from users, hashes of files, the cache folder, and atomic writing: what has its final name is whole."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from openmarigold.errors import InvalidValueError, OpenMarigoldError, OutputError, one_line
from openmarigold.printing import quoted_logger
from openmarigold.text_files import parse_json

REMEMBERED_FROM_BYTES = 2**28  # hashing this much takes a third of a second; less is not worth a cache entry
_MAX_NAME_BYTES = 255  # of a file name, on the usual file systems
_ROOM_BYTES = 40  # what a temporary name adds: dots, the ids of process and thread, and "partial"
_PROBE_BYTES = 2**20
_BLOCK_BYTES = 2**20
_LEFT_S = 3600.0

# Errors of a single name, which the next file may not meet: too long, not allowed, something else in its place.
_OF_ONE_NAME = frozenset(
    {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY}
)
_OF_PERMISSION = frozenset({errno.EACCES, errno.EPERM})

_NO_HOME = "the home folder is not known"
_log = quoted_logger(__name__)


def as_path(value: Any, what: str) -> Path:
    """A path that was given as text or as a path object; `what` names it in errors.

    Raises:
        InvalidValueError: empty text, a NUL character, or something that is not a path.
    """
    if not isinstance(value, (str, os.PathLike)) or not isinstance(text := os.fspath(value), str):
        raise InvalidValueError(f"{what} is {value!r} of type {type(value).__name__}; give a path as text or Path")
    if not text:
        raise InvalidValueError(f"{what} is empty; give a path, or . for the current folder")
    if "\0" in text:
        raise InvalidValueError(f"{what} is {text!r}; a path cannot hold a NUL character")
    return Path(value)


def wait_for_lock(descriptor: int) -> None:
    """Waits for the lock of an open file, then holds it. It ends when the file is closed or the process is killed.

    Without such locks (Windows, some network disks), it does not wait.
    """
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Takes the lock of an open file or folder; False if it is already held. True on systems without such locks."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Within it no other run writes a folder, made if need be. The lock is the folder's own and ends with the process.

    Raises:
        OutputError: another run writes it, or it cannot be made.
    """
    make_directory(folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        yield
        return
    try:
        if not try_lock(descriptor):
            raise OutputError(f"another run is writing {folder}; wait for it, or choose another folder")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Within it is one process or thread at a time, by the lock of a file, which is made where it can be."""
    with ExitStack() as stack:
        with suppress(OSError):
            wait_for_lock(stack.enter_context(path.open("a")).fileno())
        yield


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def files_sha256(paths: Iterable[Path]) -> str:
    """One SHA-256 over the names and contents of files, in hexadecimal digits; large ones are hashed once."""
    lines = sorted(f"{path.name} {remembered_sha256(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file; large ones are hashed once and remembered by path, size and time of change.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    if status.st_size < REMEMBERED_FROM_BYTES:
        return file_sha256(path)
    resolved = str(path.resolve())
    known = {"path": resolved, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    entry = user_cache_dir() / "sha256" / f"{hashlib.sha256(resolved.encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, AttributeError):  # no entry, or not one of ours
        remembered = parse_json(entry.read_bytes())
        digest = remembered.pop("sha256", None)
        if remembered == known and isinstance(digest, str):
            return digest
    digest = file_sha256(path)
    with suppress(OSError, OutputError):  # a cache that cannot be written costs only time
        entry.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**known, "sha256": digest})
        write_atomically(entry, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return digest


def user_cache_dir() -> Path:
    r"""The folder of caches: hashes, embeddings and converted networks of checkpoints.

    `OPENMARIGOLD_CACHE_DIR`, or the platform's place: `~/.cache/openmarigold` (or `XDG_CACHE_HOME`) on Linux,
    `~/Library/Caches/openmarigold` on macOS, `%LOCALAPPDATA%\openmarigold\Cache` on Windows. Where the home folder is
    not known or a cache cannot be made in it, a temporary folder that goes with the process.
    """
    chosen = os.environ.get("OPENMARIGOLD_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        place = Path(platformdirs.user_cache_dir("openmarigold", appauthor=False))
    except RuntimeError:  # the home folder is unknown
        return _temporary_folder(_NO_HOME)
    if not place.is_absolute():  # releases of platformdirs that keep "~", which would become a folder of that name
        return _temporary_folder(_NO_HOME)
    return place if _can_be_kept_in(place) else _temporary_folder(f"{place} cannot be made")


def _can_be_kept_in(place: Path) -> bool:
    """Whether a folder is there (perhaps filled by somebody else, and only to be read) or can be made."""
    try:
        folder = place
        while not folder.is_dir():
            folder = folder.parent
        return folder == place or os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


@cache  # one folder and one warning for each reason
def _temporary_folder(reason: str) -> Path:
    folder = tempfile.mkdtemp(prefix="openmarigold-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _log.warning("%s: caches are temporary; set OPENMARIGOLD_CACHE_DIR to a folder to keep ours", reason)
    return Path(folder)


@contextmanager
def some_home() -> Iterator[None]:
    """Gives libraries that look for the home folder when they are imported a temporary one where it is not known."""
    if os.path.isabs(os.path.expanduser("~")):
        yield
        return
    os.environ["HOME"] = str(_temporary_folder(_NO_HOME))
    try:
        yield
    finally:
        del os.environ["HOME"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path in the same folder, then renames the file to `path`.

    Raises:
        OutputError: the folder does not exist or cannot be written, or the disk is full. Its cause is the file system's
            own error, also where `write` reports another one or none.
    """
    temporary = path.with_name(f".{_short_name(path)}.{os.getpid()}-{threading.get_native_id()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    except Exception as error:  # encoders raise errors of their own kinds when the disk is full
        cause = error if isinstance(error, OSError) and error.errno is not None else _reason(temporary)
        if cause is None and not isinstance(error, OSError):
            raise
        if isinstance(error, OutputError) and cause in (None, error):  # said already, of a file that this is made of
            raise
        cause = cause or error.__cause__ or error
        text = getattr(cause, "strerror", None) or one_line(cause)
        raise OutputError(f"cannot write {path}: {text}; check the folder and free space") from cause
    finally:
        with suppress(OSError):  # the error above is the one to report
            temporary.unlink(missing_ok=True)


def _reason(temporary: Path) -> OSError | None:
    """The error that the file system gives when more is written to a file whose writing has failed; None for none."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error
    return None


def concerns_every_file(error: OpenMarigoldError, folder: Path) -> bool:
    """Whether writing failed for a reason that the next file of `folder` meets too, such as a full disk."""
    if not isinstance(error, OutputError):
        return False
    number = getattr(error.__cause__, "errno", None)
    if number in _OF_PERMISSION:  # of this file or a folder within, or of the whole
        try:
            try_to_write(folder)
        except OSError:
            return True
        return False
    return number not in _OF_ONE_NAME


def try_to_write(folder: Path) -> None:
    """Makes a nameless file in a folder.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")


def remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed while writing this file have left of it."""
    Leftovers().remove(path)


class Leftovers:
    """What processes that were killed while writing have left in folders. Each folder is searched once."""

    def __init__(self) -> None:
        self._found: dict[Path, list[Path]] = {}

    def remove(self, path: Path) -> None:
        """Removes what is left of a file."""
        with suppress(OSError):  # writing the file will report the error
            if path.parent not in self._found:
                self._found[path.parent] = list(path.parent.glob(".*.partial"))
            for leftover in self._found[path.parent]:
                if leftover.name.startswith(f".{_short_name(path)}."):
                    leftover.unlink(missing_ok=True)


def _short_name(path: Path) -> str:
    """The file's name or, where a temporary name would be too long with it, a hash of it."""
    name = os.fsencode(path.name)
    return path.name if len(name) + _ROOM_BYTES <= _MAX_NAME_BYTES else hashlib.sha256(name).hexdigest()


@contextmanager
def writing(path: Path, advice: str = "check the folder and free space") -> Iterator[None]:
    """Names the path that could not be written, and advises what to do.

    Raises:
        OutputError: in the place of an `OSError`; one that is raised inside passes, since it names its own file.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def make_directory(path: Path) -> None:
    """Makes a folder and its parents, where they are not there yet.

    Raises:
        OutputError: it cannot be made.
    """
    with writing(path, "choose another folder"):
        path.mkdir(parents=True, exist_ok=True)


def append_text(path: Path, text: str) -> None:
    """Adds `text` to the end of a file.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def check_can_be_replaced(path: Path) -> None:
    """Passes unless a folder is one that the system cannot rename, or should not.

    Raises:
        OutputError: it is the working folder, or the place where a disk is mounted.
    """
    folder = path.resolve()
    if folder == Path.cwd():
        raise OutputError("the output folder is the working folder, which cannot be replaced; give another one")
    if folder.is_dir() and os.path.ismount(folder):
        raise OutputError(f"{path} is a mount point, which cannot be replaced; give a folder inside it")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path`, replacing what was there, if the block succeeds.

    If `path` is a link, what it leads to is replaced. What processes that were killed in here left more than an hour
    ago is removed, on systems with locks of files.
    """
    with writing(path, "choose another folder"), ExitStack() as held:
        path = path.resolve() if path.is_symlink() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftover_folders(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        temporary.chmod(0o755)
        with suppress(OSError):  # Windows opens no folders
            descriptor = os.open(temporary, os.O_RDONLY)
            held.callback(os.close, descriptor)
            wait_for_lock(descriptor)  # of another process that looks at it
        held = held.pop_all()
    retired = temporary.with_suffix(".old")
    try:
        with held, writing(path):
            yield temporary
            if path.exists():
                os.replace(path, retired)
            try:
                os.replace(temporary, path)
            except OSError:
                if retired.exists():
                    os.replace(retired, path)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def _remove_leftover_folders(path: Path) -> None:
    """Removes the temporary folders of processes that were killed in `atomic_directory` of this path.

    A process that was killed after it had moved the former folder away has lost nothing: it is moved back.
    """
    pattern = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]+\.(partial|old)")
    with suppress(OSError):  # what cannot be removed stays
        found = [folder for folder in path.parent.iterdir() if pattern.fullmatch(folder.name)]
        for folder in sorted(found):  # ".old" before ".partial"
            if not (_is_left(folder) and _is_left(folder.with_suffix(".partial"))):
                continue
            if folder.suffix == ".old" and not path.exists():
                os.replace(folder, path)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whether no process holds a temporary folder, in which nothing has changed for an hour.

    The time is for folders between making and locking, and for processes on other machines, whose locks may be unknown.
    """
    try:
        import fcntl

        times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
        if time.time() - max(times) < _LEFT_S:
            return False
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return not folder.exists()
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    finally:
        os.close(descriptor)
    return True
