# SPDX-License-Identifier: Apache-2.0
"""HTTP to a server of `openmarigold serve`, with the standard library: retries, waiting when it is busy, errors."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from openmarigold.errors import ImageError, InvalidValueError, OpenMarigoldError, ServerError, one_line
from openmarigold.text_files import DamagedTextError, parse_json

TOKEN_VARIABLE = "OPENMARIGOLD_TOKEN"
"""The variable that holds the token, for the server and for its clients."""

_TRIES = 4
_FIRST_PAUSE_S = 0.5  # doubled with every try
_CONNECT_S, _ANSWER_S = 10.0, 600.0
_LONGEST_WAIT_S = 60.0  # of one pause that the server asks for
_LONGEST_MESSAGE = 1500  # as of the server
_PHOTO_STATUSES = (413, 422, 504)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """By name in small letters."""
    content: bytes

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the server asks for a new try; None if the answer does not state it."""
        text = self.headers.get("retry-after", "")
        return min(float(text), _LONGEST_WAIT_S) if text.isdigit() else None

    @property
    def message(self) -> str:
        """The message of an error, on one line."""
        text = (self._object() or {}).get("error")
        return " ".join(text.split())[:_LONGEST_MESSAGE] if isinstance(text, str) and text else f"status {self.status}"

    def json(self) -> dict[str, Any]:
        """The JSON object of an answer.

        Raises:
            ServerError: there is none.
        """
        found = self._object()
        if found is None:
            raise ServerError("the answer is not that of `openmarigold serve`; check the URL")
        return found

    def _object(self) -> dict[str, Any] | None:
        try:
            found = parse_json(self.content)
        except DamagedTextError:
            return None
        return found if isinstance(found, dict) else None


def token_of_file(path: Path) -> str:
    """The token that a file holds.

    Raises:
        InvalidValueError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"the token file {path} cannot be read: {error}") from error


def client_token(token: str | None = None, token_file: Path | None = None) -> str | None:
    """The token for requests: the given one, that of a file, that of `OPENMARIGOLD_TOKEN`, or None.

    Raises:
        InvalidValueError: the file cannot be read, or a header cannot hold the token.
    """
    if token is None and token_file is not None:
        token = token_of_file(token_file)
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise InvalidValueError("the token is not accepted; give the one that the server has, in ASCII characters")
    return token


class Connection:
    """Connections to one server, one for each thread.

    Args:
        url: such as http://localhost:8765; https and a path before /v1 work behind a proxy.
        token: the server's token; None: send none.
        patience: longest wait for a busy server, for one request [s].

    Raises:
        InvalidValueError: a URL that is not accepted.
    """

    def __init__(self, url: str, token: str | None = None, *, patience: float = 600.0) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
            (parts.hostname or "").encode("idna")  # which a connection would do
            if re.search(r"[\s\x00-\x1f\x7f]", url):
                raise ValueError(url)
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise InvalidValueError(f"server={url!r:.200} is not accepted; give a URL such as http://localhost:8765")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host, self._port, self._is_safe = parts.hostname, port, parts.scheme == "https"
        self._path = quote(parts.path.rstrip("/"), safe="/%~:@!$&'()*+,;=")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._patience = patience
        self._own = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._closed = threading.Event()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Reply:
        """The answer to a GET. Raises what `request` raises."""
        return self.request("GET", f"{path}?{urlencode(query)}" if query else path)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """The answer with status 200. Waits while the server is busy; repeats a failed request a few times.

        Raises:
            InvalidValueError: a setting that is not accepted (400).
            ImageError: this photo is refused, or the server fails on it (413, 422, 504, 500).
            ServerError: it cannot be reached, or refuses any photo.
        """
        waited, failures = 0.0, 0
        while True:
            problem, reply = "", None
            try:
                reply = self._once(method, path, body, headers or {})
            except (OSError, http.client.HTTPException) as error:
                problem = _why(error)
            if self._closed.is_set():
                raise ServerError(f"{self.url}: the client was closed")
            if reply is not None and 200 <= reply.status < 300:
                return reply
            if reply is not None and reply.status in (429, 503) and reply.retry_after is not None:
                pause = max(reply.retry_after, 0.1)
                if waited + pause > self._patience:
                    raise ServerError(f"{self.url} was busy for {self._patience:g} s: {reply.message}")
                waited += pause
            elif reply is None or reply.status in (500, 502, 503):
                failures += 1
                if failures >= _TRIES:
                    raise self._given_up(problem, reply)
                pause = _FIRST_PAUSE_S * 2 ** (failures - 1)
            else:
                raise self._refusal(reply)
            self._closed.wait(pause)

    def close(self) -> None:
        """Ends all requests; running ones raise ServerError."""
        self._closed.set()
        for connection in list(self._open):
            with suppress(OSError):
                if connection.sock is not None:
                    connection.sock.shutdown(2)
            connection.close()

    def __del__(self) -> None:
        for connection in list(getattr(self, "_open", ())):
            connection.close()

    def _given_up(self, problem: str, reply: Reply | None) -> OpenMarigoldError:
        """The error after the last try: an error of the photo if the server still answers."""
        if reply is not None and reply.status != 500:
            return ServerError(f"{self.url} fails, after {_TRIES} tries: {reply.message}")
        try:
            is_alive = self._once("GET", "/healthz", None, {}).status == 200
        except (OSError, http.client.HTTPException):
            is_alive = False
        if not is_alive:
            return ServerError(
                f"{self.url} does not answer, after {_TRIES} tries: {problem or 'status 500'}; check that "
                "`openmarigold serve` runs there, and run this again: what is finished is kept"
            )
        return ImageError(f"the server fails on it, in {_TRIES} tries: {problem if reply is None else reply.message}")

    def _refusal(self, reply: Reply) -> OpenMarigoldError:
        if reply.status == 400:
            return InvalidValueError(reply.message)
        if reply.status in _PHOTO_STATUSES:
            return ImageError(reply.message)
        if 300 <= reply.status < 400:
            return ServerError(
                f"{self.url} sends on to {one_line(reply.headers.get('location', ''))[:200]}; give that URL"
            )
        return ServerError(f"{self.url}: {reply.message}{'; check the URL' if reply.status in (404, 405) else ''}")

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        connection, is_used = self._connection()
        try:
            return self._exchange(connection, method, path, body, headers)
        except (ConnectionError, http.client.RemoteDisconnected):
            if not is_used:
                raise  # otherwise the server may have closed an idle connection
        connection, _ = self._connection()
        return self._exchange(connection, method, path, body, headers)

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it was used before."""
        connection = getattr(self._own, "connection", None)
        if connection is not None and connection.sock is not None:
            return connection, True
        protocol = http.client.HTTPSConnection if self._is_safe else http.client.HTTPConnection
        connection = protocol(self._host, self._port, timeout=_CONNECT_S)
        connection.connect()
        connection.sock.settimeout(_ANSWER_S)
        self._own.connection = connection
        self._open.add(connection)
        return connection, False

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> Reply:
        try:
            try:
                connection.request(method, self._path + path, body=body, headers={**self._headers, **headers})
            except (BrokenPipeError, ConnectionResetError):
                if body is None:
                    raise  # else the answer may be there already: a body that is too large is not read to its end
            answer = connection.getresponse()
            content = answer.read()
        except BaseException:
            connection.close()
            self._open.discard(connection)
            raise
        if answer.will_close:
            self._open.discard(connection)
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(status=answer.status, headers=names, content=content)


def form(fields: Mapping[str, str], photo: bytes, file_name: str) -> tuple[bytes, str]:
    """A body of multipart/form-data with text fields and a file in the field `photo`, and its content type."""
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="photo"; filename="{file_name}"\r\n'
    parts += [head.encode(), b"content-type: application/octet-stream\r\n\r\n", photo, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def as_fields(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the text of fields; None is left out."""
    return {name: _text(value) for name, value in settings.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(one) for one in value)
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", None) or (error.reason or str(error)).replace("_", " ").lower()
        return one_line(f"https fails ({reason})")
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
