# SPDX-License-Identifier: Apache-2.0
"""A hub of our own on this machine: the few answers that huggingface_hub asks for, and the faults of the real one."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from openmarigold.checkpoints.weight_files import warn_of_half

HUB_ID = "tiny/marigold"
COMMIT = "a" * 40
WEIGHTS = "diffusion_pytorch_model.safetensors"
HALF_WEIGHTS = "diffusion_pytorch_model.fp16.safetensors"


class Hub:
    """Serves folders as repositories and notes which files are fetched.

    Attributes:
        folder: of the repository `tiny/marigold`.
        repositories: id -> folder.
        fetched: names of the files that were fetched.
        resolved: how often a branch was resolved to its commit.
        ranges: of the requests for a part of a file, where the part begins.
        refusal: (status, X-Error-Code) of every answer, if any.
        drop_after: the connection ends after so many bytes of a weight file.
        flip: weight files come with one changed byte.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories = {HUB_ID: folder}
        self.fetched: list[str] = []
        self.resolved = 0
        self.ranges: list[int] = []
        self.refusal: tuple[int, str] | None = None
        self.drop_after: int | None = None
        self.flip = False
        self.short = 0  # bytes that weights lack at their end
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        parts = path.strip("/").removeprefix("api/models/").split("/")
        folder = self.repositories.get("/".join(parts[:2]))
        if self.refusal is not None:
            self._send(request, b"{}", {"X-Error-Code": self.refusal[1]}, status=self.refusal[0])
        elif folder is None:
            self._send(request, b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)
        elif parts[2:] == ["revision", "main"]:
            self.resolved += 1
            self._send(request, json.dumps({"id": "/".join(parts[:2]), "sha": COMMIT}).encode())
        elif parts[2] == "tree":
            self._send(request, json.dumps([_entry(folder, file) for file in _files(folder)]).encode())
        elif parts[2:4] == ["resolve", COMMIT]:
            self._send_file(request, folder, "/".join(parts[4:]))
        else:
            self._send(request, b"{}", {"X-Error-Code": "RevisionNotFound"}, status=404)

    def _send_file(self, request: http.server.BaseHTTPRequestHandler, folder: Path, name: str) -> None:
        content = (folder / name).read_bytes()
        stated = _entry(folder, folder / name)
        tag = stated["lfs"]["oid"] if "lfs" in stated else stated["oid"]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        if request.command == "GET":
            self.fetched.append(name)
        if self.flip and "lfs" in stated:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.short and "lfs" in stated:
            content = content[: -self.short]
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start and start >= len(content):
            self._send(request, b"", {"Content-Range": f"bytes */{len(content)}"}, status=416)
            return
        if start:
            self.ranges.append(start)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        drop_after = self.drop_after if "lfs" in stated else None
        self._send(request, content[start:], headers, status=206 if start else 200, drop_after=drop_after)

    def _send(
        self,
        request: http.server.BaseHTTPRequestHandler,
        content: bytes,
        headers: dict[str, str] | None = None,
        *,
        status: int = 200,
        drop_after: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content[:drop_after])
        if drop_after is not None and drop_after < len(content) and request.command == "GET":
            request.wfile.flush()
            with suppress(OSError):
                request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def _entry(folder: Path, file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": file.relative_to(folder).as_posix(), "size": len(content), "oid": oid}
    if file.suffix in (".safetensors", ".bin"):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
    return entry


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository in the published layout; all its weights count as large."""
    constants = pytest.importorskip("huggingface_hub.constants")
    folder = tmp_path / "repository"
    shutil.copytree(tiny_checkpoint, folder)
    for name in ("unet", "vae"):
        shutil.copyfile(folder / name / WEIGHTS, folder / name / HALF_WEIGHTS)
        (folder / name / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "picture.png").write_bytes(b"not needed")
    server = Hub(folder)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("openmarigold.checkpoints.hub._LARGE_BYTES", 1)
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "user-cache"))
    warn_of_half.cache_clear()  # it warns once a process, and other tests use repositories of this name
    yield server
    server.server.shutdown()
    server.server.server_close()
