# SPDX-License-Identifier: Apache-2.0
"""One large file of the hub, resumable: what has arrived stays when a run ends, and the next goes on from there.

It is fetched in the calling thread, so that an interrupt ends it at once, and its SHA-256 is compared with the one that
the hub states. huggingface_hub by itself begins each file anew and compares its size only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openmarigold.errors import CheckpointError, one_line
from openmarigold.files import file_sha256
from openmarigold.printing import quoted_logger

_BLOCK_BYTES = 1 << 16
_MAX_STALLS = 5  # tries in a row that bring nothing
_MAX_WAIT_S = 8.0
_TIMED_OUT, _NO_SUCH_RANGE = 408, 416  # HTTP statuses; the second where a file is shorter than stated
_PROGRESS_EVERY_S, _PROGRESS_SHARE = 2.0, 0.1

_log = quoted_logger(__name__)


def fetch_blob(library: Any, url: str, blob: Path, *, size: int, sha256: str, lock: Path, title: str) -> None:
    """Fetches a file of `size` bytes to `blob`, from where an earlier run has ended.

    Args:
        library: huggingface_hub, whose settings and headers are used.
        url: of the file.
        blob: where it is to be; `partial_path` of it holds what has arrived.
        size: as the hub states it [bytes].
        sha256: as the hub states it.
        lock: the lock file that huggingface_hub takes for this file: another process may fetch the same.
        title: what errors call it.

    Raises:
        CheckpointError: it does not come, or other bytes do than the hub states.
        OSError: the disk is full or cannot be written.
    """
    from huggingface_hub.utils import WeakFileLock

    partial = partial_path(blob)
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if size_of(partial) > size:
            partial.unlink()
        progress, stalls = _progress(title, size), 0
        while (before := size_of(partial)) < size:
            problem = _try(library, url, partial, progress)
            stalls = 0 if size_of(partial) > before else stalls + 1
            if size_of(partial) < size and (stalls > _MAX_STALLS or _is_final(problem)):
                if _status(problem) == _NO_SUCH_RANGE:
                    partial.unlink(missing_ok=True)
                    raise CheckpointError(
                        f"{title} has fewer bytes at {library.constants.ENDPOINT} than the {in_units(size)} that it "
                        "states; what came was removed: check the proxy or mirror, and run the command again later"
                    ) from problem
                if _status(problem) is not None:
                    raise problem
                raise CheckpointError(
                    f"the download of {title} stopped at {in_units(size_of(partial))} of {in_units(size)} "
                    f"({one_line(problem)}); what has arrived is kept: run the command again to go on from there"
                ) from problem
            time.sleep(min(2.0 ** (stalls - 1), _MAX_WAIT_S) if stalls else 0.0)
        if file_sha256(partial) != sha256:
            partial.unlink()
            raise CheckpointError(
                f"{title} came with other bytes than {library.constants.ENDPOINT} states, and was removed; run the "
                "command again, and check the proxy or mirror if it stays so"
            )
        os.replace(partial, blob)


def partial_path(blob: Path) -> Path:
    """Where the part of a file is that has arrived."""
    return blob.with_name(f"{blob.name}.openmarigold.incomplete")


def size_of(path: Path) -> int:
    """Size of a file [bytes], 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def git_hash_of(path: Path) -> str:
    """The hash that Git, and so the hub's cache, names a small file by."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def in_units(size: int) -> str:
    """A number of bytes for people.

    >>> in_units(3_840_000_000), in_units(1_500_000), in_units(70)
    ('3.84 GB', '1.5 MB', '70 bytes')
    """
    for unit, factor, digits in (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 10**3, 0)):
        if size >= factor:
            return f"{size / factor:.{digits}f} {unit}"
    return f"{size} bytes"


def _try(library: Any, url: str, partial: Path, progress: Callable[[int], None]) -> Exception:
    """Adds to a file what comes until the connection ends; why it ended, or a remark that it closed early.

    Raises:
        OSError: of the disk.
    """
    try:
        _continue(library, url, partial, progress)
    except Exception as error:  # the HTTP library, and its errors with it, depends on the release of huggingface_hub
        if isinstance(error, OSError) and error.errno is not None and not hasattr(error, "request"):
            raise
        return error
    return ConnectionError("the connection was closed early")


def _continue(library: Any, url: str, partial: Path, progress: Callable[[int], None]) -> None:
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    start = size_of(partial)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _stream(library, url, headers) as (response, blocks):
        hf_raise_for_status(response)
        if start and response.status_code != 206:
            _log.warning("%s does not resume downloads: this file starts again", library.constants.ENDPOINT)
            start = 0
        with partial.open("ab" if start else "wb") as file:
            for block in blocks:
                file.write(block)
                start += len(block)
                progress(start)


@contextlib.contextmanager
def _stream(library: Any, url: str, headers: dict[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Yields (response, its body in blocks); huggingface_hub has a client of httpx from 1.0 on, of requests before."""
    session: Any = library.utils.get_session()
    timeout = float(library.constants.HF_HUB_DOWNLOAD_TIMEOUT)
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response, response.iter_raw()
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response, response.iter_content(_BLOCK_BYTES)


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: the hub has answered, and it is none of its passing faults."""
    status = _status(error)
    return status is not None and 400 <= status < 500 and status != _TIMED_OUT


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _progress(title: str, size: int) -> Callable[[int], None]:
    """A function that logs the progress of a download on a terminal, at most ten times a file."""
    if not sys.stderr.isatty() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        return lambda done: None
    last_share, last_time = 0.0, time.monotonic()

    def report(done: int) -> None:
        nonlocal last_share, last_time
        now = time.monotonic()
        if done / size - last_share >= _PROGRESS_SHARE and now - last_time >= _PROGRESS_EVERY_S:
            last_share, last_time = done / size, now
            _log.warning("  %s: %s of %s (%.0f %%)", title, in_units(done), in_units(size), 100 * done / size)

    return report
