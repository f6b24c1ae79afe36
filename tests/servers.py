# SPDX-License-Identifier: Apache-2.0
"""Servers of `openmarigold serve` for tests: in memory, and listening on loopback. All share one loaded model."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from openmarigold.config import PredictConfig
from openmarigold.predictor.model_run import ModelRun
from openmarigold.serving.app import create_app
from openmarigold.serving.server import _listen
from openmarigold.serving.service import Service
from openmarigold.serving.settings import ServeConfig

SIDE = 64
"""The processing resolution of these servers [px]."""


@cache
def _model() -> ModelRun:
    return Service(PredictConfig(processing_resolution=SIDE), ServeConfig())._bases[0]


def with_model(service: Service) -> Service:
    """Gives it the model that all share, which is loaded by the first one that starts."""
    service._bases = [_model()]
    return service


def picture(width: int = 72, height: int = 56, *, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def post(client: TestClient, photo: bytes | None = None, accept: str = "*/*", **data: Any) -> Any:
    files = {"photo": ("cat.png", photo or picture())}
    return client.post("/v1/predict", files=files, data=data, headers={"accept": accept})


def until(condition: Callable[[], Any]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@contextmanager
def running(token: str | None = None, **limits: Any) -> Iterator[TestClient]:
    """A server in memory."""
    config = ServeConfig(**limits)
    service = with_model(Service(PredictConfig(), config))
    with TestClient(create_app(service, config, token), base_url="http://localhost") as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


@contextmanager
def listening(token: str | None = None, **limits: Any) -> Iterator[str]:
    """The URL of a server on loopback."""
    config = ServeConfig(port=0, **limits)
    service = with_model(Service(PredictConfig(), config))
    with _listen(config) as listener:
        settings = uvicorn.Config(create_app(service, config, token), log_config=None, access_log=False)
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: service.is_ready)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
