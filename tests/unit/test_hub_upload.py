# SPDX-License-Identifier: Apache-2.0
"""A checkpoint to a hub of our own on this machine: only what is asked for, private, with its model card."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openmarigold.checkpoints.hub_upload import push
from openmarigold.cli import run
from openmarigold.errors import CheckpointError, InvalidValueError, OutputError

COMMIT = "b" * 40


class Inbox:
    """Takes what huggingface_hub uploads, as the hub does with small files."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.summary = ""
        self.refusal = 0
        inbox = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = inbox.answer(self.path.partition("?")[0], content)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                inbox.asked.append(f"GET {self.path}")
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, content: bytes) -> tuple[int, dict[str, Any]]:
        self.asked.append(f"POST {path}")
        if self.refusal:
            return self.refusal, {"error": "no"}
        if path == "/api/repos/create":
            self.created.append(json.loads(content))
            return 200, {"url": f"{self.url}/me/mine", "name": "me/mine"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/models/me/mine/preupload/main":
            names = [file["path"] for file in json.loads(content)["files"]]
            return 200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        if path == "/api/models/me/mine/commit/main":
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "header":
                    self.summary = line["value"]["summary"]
                else:
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.url}/me/mine/commit/{COMMIT}"
            return 200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}
        return 404, {"error": path}


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    constants = pytest.importorskip("huggingface_hub.constants")
    server = Inbox()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "run" / "checkpoint"
    (checkpoint / "unet").mkdir(parents=True)
    (checkpoint / "model_index.json").write_text("{}")
    (checkpoint / "unet" / "config.json").write_text('{"a": 1}')
    (checkpoint / "README.md").write_text("---\ntags: [marigold]\n---\n# mine\n")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    return checkpoint


def is_private(created: dict[str, Any]) -> bool:
    """As this release of huggingface_hub says it, or as earlier ones do."""
    return created.get("visibility") == "private" or created.get("private") is True


def test_a_checkpoint_is_uploaded_with_its_card(inbox: Inbox, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["checkpoint", "push", str(folder), "--to", "me/mine", "--message", "The first"]) == 0
    stored = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert inbox.files == stored and "README.md" in stored
    assert inbox.summary == "The first"
    (created,) = inbox.created
    assert created["name"] == "mine" and created["organization"] == "me" and is_private(created)
    assert f"{inbox.url}/me/mine/commit/{COMMIT}" in capsys.readouterr().out
    push(folder, "me/mine", public=True)
    assert not is_private(inbox.created[-1])


def test_what_is_not_uploaded(inbox: Inbox, folder: Path) -> None:
    with pytest.raises(InvalidValueError, match="mine is not a name on the hub; give owner/name"):
        push(folder, "mine")
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json; give a checkpoint folder"):
        push(folder.parent, "me/mine")
    (folder / "README.md").rename(folder / "card")
    with pytest.raises(CheckpointError, match=r"has no model card \(README\.md\); `openmarigold train` writes one"):
        push(folder, "me/mine")
    assert not inbox.asked, "nothing was sent"


def test_a_hub_that_refuses_is_explained(inbox: Inbox, folder: Path) -> None:
    inbox.refusal = 403
    with pytest.raises(OutputError, match=r"me/mine cannot be uploaded: .*status 403.*; a token with write access is"):
        push(folder, "me/mine")
