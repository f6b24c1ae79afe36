# SPDX-License-Identifier: Apache-2.0
"""The server process: checks, the token, uvicorn, the end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import Any

from openmarigold import workers
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError, OutputError, needs_extra
from openmarigold.serving.connection import TOKEN_VARIABLE, token_of_file
from openmarigold.serving.settings import ServeConfig

_SHORTEST_TOKEN = 16
_TIME_TO_ANSWER_S = 5  # after late requests are refused


def read_token(config: ServeConfig) -> str | None:
    """The token that requests must carry; None where the server is for this machine alone and has none.

    Raises:
        InvalidValueError: it is missing where it is needed, too short, or its file cannot be read.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if config.token_file is not None:
        token = token_of_file(config.token_file)
    if not token:
        if not config.is_local:
            raise InvalidValueError(
                f"host {config.host} can be reached from other machines, so a token is needed; put one into a file and "
                f"give --token-file, or into the variable {TOKEN_VARIABLE}"
            )
        return None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidValueError(
            f"the token is not accepted; give {_SHORTEST_TOKEN} ASCII characters or more, without spaces, such as "
            "`openssl rand -hex 16` prints"
        )
    return token


def serve(config: PredictConfig, limits: ServeConfig, *, ready: Callable[[str], object] = lambda address: None) -> None:
    """Serves until it is interrupted; requests that have begun are finished within `drain_time`.

    Args:
        config: the model, and the defaults of requests.
        limits: address and bounds.
        ready: called with the server's address once it listens.

    Raises:
        CheckpointError, InvalidValueError, MissingExtraError: the model or a setting cannot be used.
        OutputError: the address cannot be listened on.
    """
    with needs_extra("web"):
        import uvicorn

        from openmarigold.serving.app import create_app
        from openmarigold.serving.guard import log
        from openmarigold.serving.service import Service
    token = read_token(limits)
    listener = _listen(limits)
    port = listener.getsockname()[1]
    service = Service(config, replace(limits, port=port))
    with listener:
        service.check()
        settings = uvicorn.Config(
            create_app(service, limits, token),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(limits.drain_time)) + _TIME_TO_ANSWER_S,
            timeout_keep_alive=15,
            h11_max_incomplete_event_size=2**16,
        )
        host = f"[{limits.host}]" if ":" in limits.host else limits.host
        ready(f"http://{host}:{port}")
        log("listening", address=f"http://{host}:{port}")
        with suppress(KeyboardInterrupt):  # which uvicorn raises again when everything is finished
            server = uvicorn.Server(settings)
            _drain_on_signal(server, service, limits.drain_time)
            server.run(sockets=[listener])
        log("stopped")
    if service.is_alive and workers.is_claimed():
        # A network that still runs, or is loaded, would be torn down under its thread, which ends in an abort.
        os._exit(0)


def _drain_on_signal(server: Any, service: Any, drain_time: float) -> None:
    """Makes a signal start the drain, so that late requests still get an answer over their open connections."""
    handle = server.handle_exit

    def handle_exit(number: int, frame: Any) -> None:
        Thread(target=service.stop, args=(drain_time,), name="stop", daemon=True).start()
        handle(number, frame)

    server.handle_exit = handle_exit


def _listen(limits: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in limits.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((limits.host, limits.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise OutputError(
            f"cannot listen on {limits.host}:{limits.port}: {error.strerror or error}; choose another --port or --host"
        ) from error
    return listener
