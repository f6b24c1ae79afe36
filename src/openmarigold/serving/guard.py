# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware for every request: its id, its log line, access checks and the bounds of its body."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException

from openmarigold.serving.service import Service
from openmarigold.serving.settings import ServeConfig

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1", "testserver"})


class BodyError(HTTPException):
    """A body that is too large or too slow. The connection is closed after it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message, {"connection": "close"})


class Metrics:
    """The values of /metrics, in their own registry."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("openmarigold_requests", "Requests.", ("route", "status"), registry=self.registry)
        self.seconds = Histogram("openmarigold_request_seconds", "Time to answer.", ("route",), registry=self.registry)
        waiting = Gauge("openmarigold_queue_waiting", "Requests that wait.", registry=self.registry)
        waiting.set_function(lambda: service.num_waiting)
        running = Gauge("openmarigold_queue_running", "Requests that are worked on.", registry=self.registry)
        running.set_function(lambda: service.num_running)


class Guard:
    """Wraps an ASGI application. Errors are JSON: {"error", "status", "request_id"}."""

    def __init__(self, app: Any, limits: ServeConfig, token: str | None, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._token = token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started, state = time.perf_counter(), {"status": 0, "bytes": 0}

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *_own_headers(request_id)]}
            elif message["type"] == "http.response.body":
                state["bytes"] += len(message.get("body", b""))
            await send(message)

        refusal = self._refusal(scope, headers)
        try:
            if refusal is not None:
                await respond(sent, *refusal, request_id)
                return
            try:
                await self.app(scope, self._bounded(receive, headers), sent)
            except BodyError as error:
                if not state["status"]:
                    await respond(sent, error.status_code, error.detail, request_id, error.headers)
        finally:
            self._note(scope, state, time.perf_counter() - started, request_id)

    def _refusal(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        """Why a request is refused, with the HTTP status; None if it is accepted."""
        host = headers.get("host", "")
        names = {*_LOCAL_NAMES, self.limits.host}
        if self.limits.is_local and self._token is None and _name_of(host) not in names:
            # A page of another site may have made its own name point here.
            return 421, f"the host {host!r:.80} is not this server; use localhost"
        origin = headers.get("origin")
        if origin is not None and origin != "null" and _host_of(origin) != host:
            return 403, "requests of other sites' pages are not answered"
        if origin == "null" and scope["method"] not in ("GET", "HEAD"):
            return 403, "requests of pages without an origin are not answered"
        if (
            self._token is not None
            and scope["path"] not in _OPEN_PATHS
            and scope["path"].startswith(("/v1", "/metrics"))
        ):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token.encode()):
                return 401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limits.max_bytes:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"the body is larger than {self.limits.max_megabytes:g} MB; make the photo smaller, or send fewer"

    def _bounded(self, receive: Receive, headers: dict[str, str]) -> Receive:
        """`receive` with bounds on the bytes and on the time of the body."""
        if "content-length" not in headers and "transfer-encoding" not in headers:
            return receive
        ends = time.monotonic() + self.limits.body_time_limit
        arrived, complete = 0, False

        async def bounded() -> Message:
            nonlocal arrived, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(ends - time.monotonic(), 0.001))
            except TimeoutError:
                limit = self.limits.body_time_limit
                raise BodyError(408, f"the body did not arrive within {limit:g} s; send it faster") from None
            arrived += len(message.get("body", b""))
            if arrived > self.limits.max_bytes:
                raise BodyError(413, self._too_large())
            complete = message["type"] == "http.request" and not message.get("more_body", False)
            return message

        return bounded

    def _note(self, scope: MutableMapping[str, Any], state: dict[str, int], seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, state["status"]).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        log(
            "request",
            id=request_id,
            method=scope["method"],
            path=scope["path"][:200],
            status=state["status"],
            seconds=round(seconds, 4),
            bytes=state["bytes"],
        )


def log(event: str, **facts: Any) -> None:
    """One JSON line on stderr."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
    print(json.dumps(line), file=sys.stderr, flush=True)


async def respond(
    send: Send, status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> None:
    """An error as JSON."""
    body = json.dumps({"error": message, "status": status, "request_id": request_id}).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    if status == 401:
        fields["www-authenticate"] = "Bearer"
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _own_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


def _host_of(origin: str) -> str | None:
    """The host of an Origin header, with the port; None if it is not a URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name_of(host: str) -> str:
    """A Host header without the port."""
    return host if host.endswith("]") or ":" not in host else host.rpartition(":")[0]
