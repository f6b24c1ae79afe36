# SPDX-License-Identifier: Apache-2.0
"""Resumable download of one large file of the hub: received bytes stay when a run ends, and the next run continues.

The calling thread fetches the file, so that an interrupt stops it at once. Its SHA-256 is compared with the hub's.
huggingface_hub itself starts each file from the beginning and compares only its size.

Errors of huggingface_hub and of the HTTP library underneath become one line: the cause, and what to do. They are
distinguished by HTTP status and class name, because the library's errors differ between releases.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from openmarigold.checkpoints.known import KNOWN
from openmarigold.errors import CheckpointError, one_line
from openmarigold.files import file_sha256
from openmarigold.printing import quoted_logger

_BLOCK_BYTES = 1 << 16
_MAX_STALLS = 5  # tries in a row without new bytes
_MAX_WAIT_S = 8.0
_TIMED_OUT, _NO_SUCH_RANGE = 408, 416  # HTTP statuses; the second means that a file is shorter than stated
_PROGRESS_EVERY_S, _PROGRESS_SHARE = 2.0, 0.1

_log = quoted_logger(__name__)


def fetch_blob(library: Any, url: str, blob: Path, *, size: int, sha256: str, lock: Path, title: str) -> None:
    """Fetch a file of `size` bytes to `blob`; continue where an earlier run ended.

    Args:
        library: huggingface_hub, whose settings and headers are used.
        url: of the file.
        blob: path of the complete file; `partial_path` of it holds the bytes received so far.
        size: as the hub states it [bytes].
        sha256: as the hub states it.
        lock: the lock file that huggingface_hub takes for this file: another process may fetch the same.
        title: name of the file in errors.

    Raises:
        CheckpointError: the download fails, or its bytes differ from the hub's hash.
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
                        "states; the received bytes were removed: check the proxy or mirror, and try again later"
                    ) from problem
                if _status(problem) is not None:
                    raise problem
                raise CheckpointError(
                    f"the download of {title} stopped at {in_units(size_of(partial))} of {in_units(size)} "
                    f"({one_line(problem)}); the received bytes are kept: run the command again to continue from "
                    "there"
                ) from problem
            time.sleep(min(2.0 ** (stalls - 1), _MAX_WAIT_S) if stalls else 0.0)
        if file_sha256(partial) != sha256:
            partial.unlink()
            raise CheckpointError(
                f"{title} came with other bytes than {library.constants.ENDPOINT} states, and was removed; run the "
                "command again, and check the proxy or mirror if this repeats"
            )
        os.replace(partial, blob)


def partial_path(blob: Path) -> Path:
    """The path of a partly downloaded file."""
    return blob.with_name(f"{blob.name}.openmarigold.incomplete")


def size_of(path: Path) -> int:
    """Size of a file [bytes], 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def git_hash_of(path: Path) -> str:
    """The Git hash of a small file, which is its name in the hub's cache."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def in_units(size: int) -> str:
    """A number of bytes as text with a unit.

    >>> in_units(3_840_000_000), in_units(1_500_000), in_units(70)
    ('3.84 GB', '1.5 MB', '70 bytes')
    """
    for unit, factor, digits in (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 10**3, 0)):
        if size >= factor:
            return f"{size / factor:.{digits}f} {unit}"
    return f"{size} bytes"


def _try(library: Any, url: str, partial: Path, progress: Callable[[int], None]) -> Exception:
    """Append received bytes to a file until the connection ends; return why it ended, or that it closed early.

    Raises:
        OSError: the disk cannot be written.
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
    """Whether another try cannot help: the hub answered with an error that is not temporary."""
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


_TOKEN = "HF_TOKEN (a token from https://huggingface.co/settings/tokens)"
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_CONNECTION = re.compile(r"Connect|Timeout|NetworkError|ReadError|ProtocolError|SSL|gaierror|ChunkedEncoding")


def explained(error: Exception, hub_id: str, *, endpoint: str, cache: str, revision: str | None) -> CheckpointError:
    """An error for the user that replaces one of huggingface_hub."""
    reasons = (_reason(link, hub_id, endpoint=endpoint, cache=cache, revision=revision) for link in _chain(error))
    reason = next((text for text in reasons if text), None)
    return CheckpointError(reason or f"{hub_id} cannot be downloaded from {endpoint} ({one_line(error)})")


def not_downloaded(hub_id: str, *, offline: str, missing: str | None = None) -> CheckpointError:
    """The error without the network for a checkpoint that was not downloaded, or only in part."""
    what = "was not downloaded before" if missing is None else f"was downloaded in part only: {missing} is missing"
    return CheckpointError(
        f"checkpoint {hub_id} is not a folder here, and as a hub repository it {what} ({offline}); give a downloaded "
        "folder, run once with the network, or leave --checkpoint out for the embedded model"
    )


def is_absent(error: Exception) -> bool:
    """Whether the hub answered that the revision or file does not exist, so that a kept copy cannot replace it."""
    names = {error_type.__name__ for error_type in type(error).__mro__}
    return bool(names & {"RevisionNotFoundError", "RemoteEntryNotFoundError"})


def _reason(error: BaseException, hub_id: str, *, endpoint: str, cache: str, revision: str | None) -> str | None:
    """The message for one error of a chain; None if the error is not known."""
    names = {error_type.__name__ for error_type in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "RevisionNotFoundError" in names:
        return f"{hub_id} has no revision {revision!r}; leave --revision out for the newest"
    if "GatedRepoError" in names:
        token = "the token in use has no access" if status == 403 else "no token with access was sent"
        return (
            f"{hub_id} is gated, and {token}; accept its terms at {endpoint}/{hub_id} with your account, then set "
            f"{_TOKEN} or run `hf auth login`"
        )
    if "DisabledRepoError" in names:
        return f"the hub has disabled {hub_id}, see {endpoint}/{hub_id}; {_other_source(hub_id)}"
    if "RepositoryNotFoundError" in names:
        return (
            f"checkpoint {hub_id} is not a folder here, and {endpoint} shows no repository of this name (misspelled, "
            f"renamed or private); check the name, set {_TOKEN} for a private one, or {_other_source(hub_id)}"
        )
    if isinstance(status, int) and status >= 400:
        return _reason_of_status(status, error, hub_id, endpoint)
    if "ProxyError" in names or "socksio" in str(error) or "proxy URL" in str(error):
        return f"the proxy on the way to {endpoint} fails ({one_line(error)}); {_proxy(endpoint)}"
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE | _FULL and not _NO_CONNECTION.search(str(names)):
        if error.errno in _FULL:
            return f"the disk of {cache} is full; free some space, or set HF_HOME to a folder with more"
        return (
            f"{cache}, where downloads such as {hub_id} are kept, cannot be written ({error.strerror}); set HF_HOME to "
            "a folder that can be written"
        )
    if any(map(_NO_CONNECTION.search, names)):
        if "CERTIFICATE" in str(error):
            return (
                f"the certificate of {endpoint} is not trusted here ({one_line(error)}); if a proxy opens connections, "
                "set SSL_CERT_FILE to its certificate"
            )
        proxy = f", or {_proxy(endpoint)}" if _proxy_variable(endpoint) else ""
        return (
            f"{hub_id} was not downloaded before, and {endpoint} cannot be reached ({one_line(error)}); check the "
            f"connection{proxy}, or {_other_source(hub_id)}"
        )
    if "FileMetadataError" in names:
        return f"{endpoint} does not answer as a hub does; check HF_ENDPOINT and the proxy settings"
    return None


def _reason_of_status(status: int, error: BaseException, hub_id: str, endpoint: str) -> str:
    if status == 401:
        return (
            f"{endpoint} does not accept the token sent for {hub_id} (status 401); renew {_TOKEN}, or unset it and "
            "run `hf auth logout` for a public checkpoint"
        )
    if status == 403:
        return f"{endpoint} refuses {hub_id} (status 403); check what your token may read, see {endpoint}/{hub_id}"
    if status == 404:
        return f"{endpoint} has no such file of {hub_id} (status 404); check --revision and HF_ENDPOINT"
    if status == 407:
        return f"the proxy on the way to {endpoint} asks for a password (status 407); {_proxy(endpoint)}"
    if status == 429:
        headers = getattr(getattr(error, "response", None), "headers", {})
        after = headers.get("Retry-After")
        wait = f"{after} seconds" if after else "some minutes"
        return (
            f"{endpoint} limits the requests of this address (status 429), so that {hub_id} cannot be downloaded now; "
            f"wait {wait}, or set {_TOKEN}, which allows more requests"
        )
    if status >= 500:
        return (
            f"{endpoint} has a fault or is overloaded (status {status}), so that {hub_id} cannot be downloaded now; "
            f"try again later, or {_other_source(hub_id)}"
        )
    return f"{endpoint} refuses {hub_id} with status {status} ({one_line(error)}); check HF_ENDPOINT"


def _other_source(hub_id: str) -> str:
    known = KNOWN.get(hub_id)
    mirror = f"its mirror {known.same_weights}" if known and known.same_weights else "a mirror (HF_ENDPOINT)"
    return f"use a downloaded folder, {mirror}, or leave --checkpoint out for the embedded model"


def _proxy(endpoint: str) -> str:
    name = _proxy_variable(endpoint)
    if name is None:
        return "check HTTPS_PROXY and NO_PROXY"
    address = urlsplit(os.environ.get(name, ""))
    without_password = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
    return f"check the proxy of {name} ({without_password}), or add the hub to NO_PROXY"


def _proxy_variable(endpoint: str) -> str | None:
    """Name of the environment variable that sets the proxy for the endpoint; None if there is none."""
    parts = urlsplit(endpoint)
    if proxy_bypass(parts.hostname or ""):
        return None
    names = [name for scheme in (parts.scheme, "all") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())]
    return next((name for name in names if os.environ.get(name)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, the deepest first, because the deepest one is the most precise."""
    links = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    # The hub's answer is more precise than the HTTP library's error that it wraps.
    yield from sorted(links, key=lambda link: not hasattr(link, "response"))
