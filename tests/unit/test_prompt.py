# SPDX-License-Identifier: Apache-2.0
"""The embedding of the empty prompt is made once, stored, and then needs neither text encoder nor its library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openmarigold.checkpoints.checkpoint import EMBEDDING_FILE, read_checkpoint
from openmarigold.checkpoints.empty_prompt import cached_embedding_path
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.errors import CheckpointError
from openmarigold.networks.prompt import load_empty_prompt_embedding, write_constant_text_encoder, write_embedding
from tiny import add_text_encoder, edit_json


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


@pytest.fixture
def published(tiny_checkpoint: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A checkpoint with a text encoder and no stored embedding, and what the encoder makes of ""."""
    directory = tmp_path / "published"
    shutil.copytree(tiny_checkpoint, directory)
    (directory / EMBEDDING_FILE).unlink()
    return directory, add_text_encoder(directory)


def test_it_is_computed_once_and_stored_in_the_folder(published: tuple[Path, torch.Tensor], user_cache: Path) -> None:
    directory, expected = published
    torch.testing.assert_close(load_empty_prompt_embedding(directory), expected)
    assert not user_cache.exists()
    shutil.rmtree(directory / "text_encoder")
    read_checkpoint(directory)
    torch.testing.assert_close(load_empty_prompt_embedding(directory), expected)


def test_it_goes_to_the_users_cache_where_the_folder_cannot_be_written(
    published: tuple[Path, torch.Tensor], user_cache: Path, tmp_path: Path
) -> None:
    directory, expected = published
    (directory / EMBEDDING_FILE).mkdir()  # as good as a read-only folder, which root could write
    torch.testing.assert_close(load_empty_prompt_embedding(directory), expected)
    (cached,) = user_cache.iterdir()
    assert cached == cached_embedding_path(directory)

    # Another copy of the same U-Net, without any text encoder: what the cache knows is enough.
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    for name in ("text_encoder", "tokenizer", EMBEDDING_FILE):
        shutil.rmtree(other / name)
    read_checkpoint(other)
    torch.testing.assert_close(load_empty_prompt_embedding(other), expected)

    cached.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=re.escape(f"{cached} cannot be read")):
        load_empty_prompt_embedding(other)
    torch.testing.assert_close(load_empty_prompt_embedding(directory), expected)  # computed again


def test_another_unet_has_another_place_in_the_cache(
    tiny_checkpoint: Path, kl_checkpoint: Path, user_cache: Path
) -> None:
    paths = [cached_embedding_path(path) for path in (tiny_checkpoint, kl_checkpoint)]
    assert paths[0] != paths[1]
    assert {path.parent for path in paths} == {user_cache}


def test_an_embedding_of_another_size_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copied"
    shutil.copytree(tiny_checkpoint, directory)
    write_embedding(torch.zeros(1, 2, 24), directory / EMBEDDING_FILE)
    with pytest.raises(CheckpointError, match=r"has shape \[1, 2, 24\]; this U-Net takes \[1, n, 16\]"):
        load_empty_prompt_embedding(directory)


def test_a_pickled_text_encoder_is_refused(published: tuple[Path, torch.Tensor]) -> None:
    directory, _ = published
    (directory / "text_encoder" / "model.safetensors").rename(directory / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which is never loaded"):
        read_checkpoint(directory)


def test_the_text_encoder_is_read_quietly_and_once(published: tuple[Path, torch.Tensor]) -> None:
    """The first load makes the embedding, in a child of a new process; the second must not import the encoder's class.

    The library's bars do not show, and its own setting stays as it was.
    """
    directory, _ = published
    code = (
        "import os, sys; from openmarigold import Predictor; import openmarigold.engines.torch\n"
        "is_second = os.fork()\n"
        "if is_second: os.wait()\n"
        f"Predictor.load({str(directory)!r}, device='cpu')\n"
        "print('transformers.models.clip.modeling_clip' in sys.modules)\n"
        "from transformers.utils.logging import is_progress_bar_enabled as of_transformers\n"
        "from huggingface_hub.utils import are_progress_bars_disabled as not_of_hub\n"
        "print(of_transformers(), not not_of_hub(), flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["True", "True", "True", "False", "True", "True"]
    assert done.stderr == ""


def test_constant_text_encoder_makes_the_same_embedding(tmp_path: Path) -> None:
    embedding = 3 * torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(3))
    write_constant_text_encoder(embedding, tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"cross_attention_dim": 16}')
    shutil.copyfile(
        tmp_path / "text_encoder" / "model.safetensors", tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    )
    torch.testing.assert_close(load_empty_prompt_embedding(tmp_path), embedding, rtol=0, atol=1e-6)


def sha256_of(directory: Path) -> str:
    return checkpoint_sha256(read_checkpoint(directory))


def test_storing_the_embedding_does_not_change_the_hash(published: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    directory, _ = published
    before = sha256_of(directory)
    load_empty_prompt_embedding(directory)
    assert (directory / EMBEDDING_FILE).is_file()
    assert sha256_of(directory) == before
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(directory / name)
    assert sha256_of(directory) == before, "nor does it to remove what is not needed any more"


def test_the_hash_is_of_the_embedding_that_is_used(published: tuple[Path, torch.Tensor], user_cache: Path) -> None:
    directory, expected = published
    of_encoder = sha256_of(directory)
    write_embedding(expected + 1, directory / EMBEDDING_FILE)
    of_other = sha256_of(directory)
    assert of_other != of_encoder, "it is used in the place of what the text encoder next to it would make"
    edit_json(directory / "text_encoder" / "config.json", note="not read")
    assert sha256_of(directory) == of_other

    # One that claims to be of the text encoder, with other values, is hashed itself.
    (directory / EMBEDDING_FILE).unlink()
    load_empty_prompt_embedding(directory)
    content = bytearray((directory / EMBEDDING_FILE).read_bytes())
    content[-1] ^= 1
    origin = sha256_of(directory)
    (directory / EMBEDDING_FILE).write_bytes(content)
    assert sha256_of(directory) not in (origin, of_encoder, of_other)

    # In the user's cache it counts as in the folder.
    (directory / EMBEDDING_FILE).unlink()
    cached = cached_embedding_path(directory)
    cached.parent.mkdir()
    write_embedding(expected - 1, cached)
    of_cached = sha256_of(directory)
    assert of_cached not in (origin, of_encoder, of_other)
    cached.write_bytes(b"damaged")
    assert sha256_of(directory) == origin, "a damaged one is not used"


def test_files_that_are_not_read_do_not_count(published: tuple[Path, torch.Tensor]) -> None:
    directory, _ = published
    before = sha256_of(directory)
    weights = (directory / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    for name in ("unet/diffusion_pytorch_model.fp16", "unet/old", "vae/diffusion_pytorch_model.non_ema", "notes"):
        (directory / f"{name}.safetensors").write_bytes(weights[:-1])
    (directory / "text_encoder" / "model.fp16.safetensors").write_bytes(b"")
    (directory / "vae_decoder").mkdir()
    (directory / "vae_decoder" / "config.json").write_text("{}")
    (directory / "unet" / "dangling.safetensors").symlink_to(directory / "nowhere")
    assert sha256_of(directory) == before
    edit_json(directory / "tokenizer" / "tokenizer_config.json", model_max_length=3)
    assert sha256_of(directory) != before
