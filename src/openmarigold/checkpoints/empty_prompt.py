# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint's embedding of the empty prompt is: in its folder, in the user's cache, or in its text encoder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from openmarigold.checkpoints.safetensors_header import read_header
from openmarigold.checkpoints.weight_files import TEXT_ENCODER_STEM, embedding_file, fingerprint, weight_files
from openmarigold.errors import CheckpointError
from openmarigold.files import user_cache_dir

_CACHED = "empty-prompt-"  # prefix of the embeddings' names in the user's cache


def has_text_encoder(directory: Path) -> bool:
    """Whether a checkpoint folder holds a text encoder and its tokenizer."""
    return (directory / "text_encoder").is_dir() and (directory / "tokenizer").is_dir()


def text_encoder_files(directory: Path, variant: str | None = None) -> list[Path]:
    """The files of the text encoder (of the variant, if there is one) and of its tokenizer; empty unless both exist.

    Raises:
        CheckpointError: the text encoder has no weights.
    """
    if not has_text_encoder(directory):
        return []
    folder, tokenizer = directory / "text_encoder", directory / "tokenizer"
    weights = text_encoder_weights(folder, variant)
    return [folder / "config.json", *weights, *sorted((*tokenizer.glob("*.json"), *tokenizer.glob("*.txt")))]


def text_encoder_weights(folder: Path, variant: str | None = None) -> list[Path]:
    """The files of a text encoder's weights: of the given variant if it exists, else of any.

    Raises:
        CheckpointError: there are none.
    """
    with suppress(CheckpointError):
        return weight_files(folder, stem=TEXT_ENCODER_STEM, variant=variant)[1]
    return weight_files(folder, stem=TEXT_ENCODER_STEM)[1]


def cached_embedding_path(directory: Path, *, variant: str | None = None) -> Path:
    """The path in the user's cache of the empty-prompt embedding of the checkpoint in `directory`; the file may not
    exist yet.

    The name is a fingerprint of the U-Net's weight files. So it is found without a text encoder, which may never have
    been downloaded.
    """
    digest = fingerprint(weight_files(directory / "unet", variant=variant)[1])
    return user_cache_dir() / f"{_CACHED}{digest[:32]}{f'-{variant}' if variant else ''}.safetensors"


def is_any_embedding_cached() -> bool:
    """Whether the user's cache holds an embedding of some checkpoint."""
    return any(user_cache_dir().glob(f"{_CACHED}*"))


def stored_embedding_path(directory: Path, *, variant: str | None = None) -> Path:
    """The path of the empty-prompt embedding of a variant in a checkpoint folder; the file may not exist yet.

    An embedding that a text encoder made belongs to the variant of that text encoder. An embedding that came with the
    folder serves all variants. If the folder has no text encoder, any embedding in it serves all variants.
    """
    plain, named = directory / embedding_file(), directory / embedding_file(variant)
    if named.is_file() or not plain.is_file():
        return named
    made_here = "text_encoder_sha256" in read_header(plain).metadata
    return named if made_here and text_encoder_files(directory, variant) else plain
