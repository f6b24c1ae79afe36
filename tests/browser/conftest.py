# SPDX-License-Identifier: Apache-2.0
"""One server process and one Chromium for the tests of the page.

OPENMARIGOLD_BROWSER=required makes a missing browser or page an error. OPENMARIGOLD_SCREENSHOTS names a folder that
keeps screenshots.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from openmarigold.serving.page import PAGE_DIR

ROOT = Path(__file__).parents[2]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# 3-D is drawn by SwiftShader; the camera is a moving test picture.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)


def missing(reason: str) -> NoReturn:
    if os.environ.get("OPENMARIGOLD_BROWSER") == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def program() -> str:
    """Path of Chromium, where all is there that these tests need."""
    if not (PAGE_DIR / "index.html").is_file():
        missing("the page is not built; run `make page`")
    program = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if program is None:
        missing("no Chromium is installed")
    if importlib.util.find_spec("playwright") is None:
        missing("playwright is not installed")
    return program


@pytest.fixture(scope="module")  # not of the session: while it lasts no other test of the process can run an event loop
def chromium(program: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(program: str) -> Iterator[str]:
    """The address of a server of the embedded models."""
    del program  # without it there is nothing to serve for
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("OPENMARIGOLD_TOKEN", None)
    command = [sys.executable, "-m", "openmarigold", "serve", "--port", "0", "--modality", "depth", "normals"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    assert process.stderr is not None
    reader = None
    try:
        line = process.stderr.readline()
        assert '"listening"' in line, line
        reader = threading.Thread(target=process.stderr.read, daemon=True)  # so that its log does not fill the pipe
        reader.start()
        address = json.loads(line)["address"]
        for _ in range(600):
            with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{address}/readyz"):
                break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)
        if reader is not None:
            reader.join(timeout=60)
        process.stderr.close()


class Visit:
    """A browser window on the page, which keeps what went wrong in it."""

    def __init__(self, context: Any, address: str, screenshots: Path | None) -> None:
        self.page = context.new_page()
        self.address, self.screenshots = address, screenshots
        self.requested: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def open(self, fragment: str = "") -> None:
        self.page.goto(f"{self.address}/{fragment}")
        self.page.wait_for_selector("html[data-ready]")

    def predict(self, photo: Path) -> None:
        """Gives a photo to the page and waits for the answer."""
        self.page.set_input_files("#file", str(photo))
        self.page.wait_for_function(
            "name => document.querySelector('#status').textContent.includes(`${name} in `)", arg=photo.name
        )

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.settled()

    def settled(self) -> None:
        """Waits until nothing is on its way."""
        self.page.wait_for_function("() => !document.documentElement.classList.contains('busy')")

    def wait_for_space(self) -> None:
        self.page.wait_for_selector("#space[data-ready]")
        self.page.wait_for_timeout(300)  # the last frames of a movement

    def shot(self, name: str) -> None:
        if self.screenshots is not None:
            self.screenshots.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(self.screenshots / f"{name}.png"))


def map_pixels(page: Any) -> np.ndarray:
    """What is painted over the photo, uint8 [h w 3]."""
    data = page.evaluate("document.querySelector('#map').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))


@pytest.fixture
def visit(chromium: Any, server: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A window; the options of its context are the parameters of the fixture."""
    options = {"viewport": {"width": 1280, "height": 800}, "accept_downloads": True, **getattr(request, "param", {})}
    context = chromium.new_context(**options)
    context.set_default_timeout(60_000)
    folder = os.environ.get("OPENMARIGOLD_SCREENSHOTS")
    one = Visit(context, server, Path(folder) if folder else None)
    yield one
    context.close()
    assert one.errors == [], "the page reported errors"
    assert all(url.startswith((server, "blob:", "data:")) for url in one.requested), "the page asked another host"
