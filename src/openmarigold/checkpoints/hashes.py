# SPDX-License-Identifier: Apache-2.0
"""Hashes of checkpoints, over the files that loading reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from openmarigold.checkpoints.checkpoint import Checkpoint, network_files
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.checkpoints.empty_prompt import cached_embedding_path, stored_embedding_path, text_encoder_files
from openmarigold.checkpoints.safetensors_header import read_header
from openmarigold.checkpoints.weight_files import readable, weight_files
from openmarigold.errors import CheckpointError
from openmarigold.files import file_sha256, files_sha256, remembered_sha256


def checkpoint_sha256(checkpoint: Checkpoint) -> str:
    """One SHA-256 over the files that are read to load a checkpoint, in hexadecimal digits.

    These are: weights and configurations of the networks, in the variant that is read, the scheduler, and the embedding
    of the empty prompt (`embedding_sha256`). model_index.json is not hashed: results record its defaults as settings.
    The hash is over the sorted lines `<path> <SHA-256 of the file>`. So it does not depend on the folder's place or
    name, nor on the embedded model whose image encoder is shared. Files from 256 MiB are hashed once and remembered in
    the user's cache folder by path, size and time of change.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    with readable():
        lines = _hash_lines(network_files(checkpoint), checkpoint.directory)
        if checkpoint.weights == "safetensors":  # converted U-Nets hold it
            lines.append(f"empty prompt {embedding_sha256(checkpoint)}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def embedding_sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of the empty-prompt embedding that loading uses: the hash of its source, else of its file.

    An embedding that a text encoder of the checkpoint made when it was first loaded states the hash of that text
    encoder. So the hash is the same before and after, without the text encoder, and on machines that round differently.
    If somebody else stored or changed the embedding, its own bytes are hashed.

    Raises:
        CheckpointError: there is none, and no text encoder to make it.
    """
    directory = checkpoint.directory
    variant = checkpoint.variant
    stored = stored_embedding_path(directory, variant=variant)
    cached = cached_embedding_path(directory, variant=variant)
    path = stored if stored.is_file() else cached
    if path.is_file():
        try:
            return _stated_origin(path) or file_sha256(path)
        except CheckpointError:
            if path == stored or not text_encoder_files(directory):
                raise
    return text_encoder_sha256(directory, variant)


def text_encoder_sha256(directory: Path, variant: str | None = None) -> str:
    """SHA-256 of the files of a checkpoint's text encoder and tokenizer, by the rule of `checkpoint_sha256`."""
    lines = _hash_lines(text_encoder_files(directory, variant), directory)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def origin_metadata(origin: str, values: bytes) -> dict[str, str]:
    """Metadata of a stored embedding about the text encoder that made it; `values` are the tensor's bytes."""
    return {"text_encoder_sha256": origin, "values_sha256": hashlib.sha256(values).hexdigest()}


def _stated_origin(path: Path) -> str | None:
    """The hash of the text encoder that made a stored embedding; None if it is not stated, or the values changed."""
    header = read_header(path)
    origin = header.metadata.get("text_encoder_sha256")
    with path.open("rb") as file:
        file.seek(header.data_start)
        return origin if origin and origin_metadata(origin, file.read()).items() <= header.metadata.items() else None


def _hash_lines(files: Iterable[Path], directory: Path) -> list[str]:
    homes = {path: directory if path.is_relative_to(directory) else path.parents[1] for path in files}
    return [f"{path.relative_to(home).as_posix()} {remembered_sha256(path)}\n" for path, home in homes.items()]


def tiny_vae_sha256(tiny_vae: TinyVae) -> str:
    """SHA-256 over a small autoencoder's configuration and weights, in hexadecimal digits."""
    files = weight_files(tiny_vae.directory, variant=tiny_vae.variant)[1]
    return files_sha256([tiny_vae.directory / "config.json", *files])
