# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: hashes of photos and checkpoints, and the record that each result file carries.

The record is one JSON object: in PNG a text chunk, in npz an entry, in OpenEXR a header attribute, each named
`openmarigold`. A .npy file has no place for it; the manifest beside it says the same. Records hold no time of day, so
that the same photo and settings give the same bytes again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openmarigold.checkpoint import (
    Checkpoint,
    TinyVae,
    cached_embedding_path,
    network_files,
    stored_embedding_path,
    text_encoder_files,
)
from openmarigold.errors import CheckpointError, ImageError, InvalidValueError, OpenMarigoldError, OutputError
from openmarigold.exr import read_exr_header
from openmarigold.files import as_path, file_sha256, user_cache_dir, write_atomically
from openmarigold.manifest import Manifest
from openmarigold.quiet import quiet
from openmarigold.text_files import DamagedTextError, parse_json
from openmarigold.weight_files import check_safetensors_file, readable, safetensors_metadata, weight_files

RECORD_NAME = "openmarigold"

CACHE_FROM_BYTES = 2**28  # hashing this much takes about a third of a second; less is not worth a cache entry

_HEAD_BYTES = 2**14
# How a record begins in PNG (a text chunk) and in OpenEXR (a header attribute), by the first bytes of the file.
_RECORD_MARKS = {
    b"\x89PNG": b"tEXt" + RECORD_NAME.encode() + b"\0",
    b"v/1\x01": RECORD_NAME.encode() + b"\0string\0",
}


def checkpoint_sha256(checkpoint: Checkpoint) -> str:
    """One SHA-256 over the files of a checkpoint that loading it reads, in hexadecimal digits.

    That is: weights and configurations of the networks, in the variant that is read, the scheduler, and the embedding
    of the empty prompt (`embedding_sha256`). Not model_index.json, whose defaults stand in the record as settings.
    Hashed are the lines `<path> <SHA-256 of the file>`, sorted, so that neither the folder's place nor its name counts.
    Files from 256 MiB are hashed once and remembered in the user's cache folder by path, size and time of change.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    with readable():
        lines = _hash_lines(network_files(checkpoint), checkpoint.directory)
        if checkpoint.weights == "safetensors":  # converted U-Nets hold it
            lines.append(f"empty prompt {embedding_sha256(checkpoint)}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def embedding_sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of the embedding of the empty prompt that loading uses: of what it comes from, else of its file.

    An embedding that a text encoder of the checkpoint made when it was first loaded states the hash of that text
    encoder. So the hash is the same before and after, without the text encoder, and on machines that round differently.
    One that was put there by others, or changed, is hashed itself.

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
            check_safetensors_file(path)
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
    """What a stored embedding states of the text encoder that made it; `values` are the tensor's bytes."""
    return {"text_encoder_sha256": origin, "values_sha256": hashlib.sha256(values).hexdigest()}


def _stated_origin(path: Path) -> str | None:
    """The hash of the text encoder that made a stored embedding; None where it is not stated, or of other values."""
    stated = safetensors_metadata(path)
    origin = stated.get("text_encoder_sha256")
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return origin if origin and origin_metadata(origin, file.read()).items() <= stated.items() else None


def _hash_lines(files: Iterable[Path], directory: Path) -> list[str]:
    return [f"{path.relative_to(directory).as_posix()} {_remembered_sha256(path)}\n" for path in files]


def files_sha256(paths: Iterable[Path]) -> str:
    """One SHA-256 over the names and contents of files, in hexadecimal digits; large ones are hashed once."""
    lines = sorted(f"{path.name} {_remembered_sha256(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tiny_vae_sha256(tiny_vae: TinyVae) -> str:
    """SHA-256 over a small autoencoder's configuration and weights, in hexadecimal digits."""
    files = weight_files(tiny_vae.directory, variant=tiny_vae.variant)[1]
    return files_sha256([tiny_vae.directory / "config.json", *files])


def to_json(record: Mapping[str, Any]) -> str:
    """The record as ASCII text on one line, keys in the given order."""
    return json.dumps(record, ensure_ascii=True, default=str)


def read_provenance(path: Path | str) -> dict[str, Any]:
    """The record of a result file; of a .npy file, and of others without one, what the manifest beside it says.

    Raises:
        ImageError: the file is missing or damaged.
        InvalidValueError: there is no record.
        MissingExtraError: an .exr file without the extra `exr`.
    """
    path = as_path(path, "the result file")
    if not path.is_file():
        raise ImageError(f"{path} does not exist or is no file; check the name")
    text = _embedded_text(path)
    if text is None:
        record = _from_manifest(path)
        if record is None:
            raise InvalidValueError(
                f"{path} carries no provenance, and no manifest beside it names it; only results of `openmarigold "
                "predict` do"
            )
        return record
    try:
        record = parse_json(text)
    except DamagedTextError as error:
        raise InvalidValueError(f"{path}: its provenance is not valid JSON; predict the photo again") from error
    if not isinstance(record, dict):
        raise InvalidValueError(f"{path}: its provenance is no JSON object; predict the photo again")
    return record


def stated_input(path: Path) -> str | None:
    """SHA-256 of the photo that a result file, or the manifest of its folder, states; None where neither does."""
    try:
        stated = read_provenance(path).get("input_sha256")
    except OpenMarigoldError:
        return None
    return stated if isinstance(stated, str) else None


def is_result(path: Path) -> bool:
    """Whether a picture is a result file of ours: a PNG or EXR file that carries a record.

    Only its beginning is looked at, where records are written.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    mark = next((mark for magic, mark in _RECORD_MARKS.items() if head.startswith(magic)), None)
    return mark is not None and mark in head


def _remembered_sha256(path: Path) -> str:
    status = path.stat()
    if status.st_size < CACHE_FROM_BYTES:
        return file_sha256(path)
    resolved = str(path.resolve())
    known = {"path": resolved, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    entry = user_cache_dir() / "sha256" / f"{hashlib.sha256(resolved.encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, AttributeError):  # no entry, or not one of ours
        remembered = parse_json(entry.read_bytes())
        digest = remembered.pop("sha256", None)
        if remembered == known and isinstance(digest, str):
            return digest
    digest = file_sha256(path)
    with suppress(OSError, OutputError):  # a cache that cannot be written costs only time
        entry.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**known, "sha256": digest})
        write_atomically(entry, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return digest


def _embedded_text(path: Path) -> str | None:
    """The record's text in a PNG, npz or EXR file; None for other files and for those without one."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".png":
            with quiet(), Image.open(path) as image:  # Pillow warns of results of 100 megapixels
                # Texts before the pixels are read at once, others only with the pixels.
                return image.info.get(RECORD_NAME) or getattr(image, "text", {}).get(RECORD_NAME)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as entries:
                return str(entries[RECORD_NAME]) if RECORD_NAME in entries else None
    except (OSError, ValueError, SyntaxError, EOFError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is damaged or cannot be read; predict the photo again") from error
    return read_exr_header(path).get(RECORD_NAME) if suffix == ".exr" else None


def _from_manifest(path: Path) -> dict[str, Any] | None:
    """The record of a result in the manifest of its folder or of one above, where results keep their layout."""
    path = path.resolve()
    for folder in path.parents:
        manifest = Manifest(folder)
        if manifest.path.is_file():
            return manifest.provenance_of(path)
    return None
