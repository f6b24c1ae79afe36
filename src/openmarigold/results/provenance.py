# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: the record that each result file carries.

The record is one JSON object: in PNG a text chunk, in npz an entry, in OpenEXR a header attribute, each named
`openmarigold`; in PLY comments that begin so, in GLB an extra of the asset. A .npy file cannot hold it; the manifest
next to it does. Records hold no time of day, so that the same photo and settings give the same bytes again.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openmarigold.errors import ImageError, InvalidValueError, OpenMarigoldError
from openmarigold.files import as_path
from openmarigold.images.exr import read_exr_header
from openmarigold.images.kinds import EXR_MAGIC, PNG_MAGIC
from openmarigold.images.quiet import quiet
from openmarigold.results.manifest import Manifest
from openmarigold.text_files import DamagedTextError, parse_json, with_current_keys

RECORD_NAME = "openmarigold"

_HEAD_BYTES = 2**14
# How a record begins in PNG (a text chunk) and in OpenEXR (a header attribute), by the first bytes of the file.
_RECORD_MARKS = {
    PNG_MAGIC: b"tEXt" + RECORD_NAME.encode() + b"\0",
    EXR_MAGIC: RECORD_NAME.encode() + b"\0string\0",
}


def to_json(record: Mapping[str, Any]) -> str:
    """The record as ASCII text on one line, keys in the given order."""
    return json.dumps(record, ensure_ascii=True, default=str)


def read_provenance(path: Path | str) -> dict[str, Any]:
    """The record of a result file; of a .npy file, and of others without one, that of the manifest next to it.

    Raises:
        ImageError: the file is missing or damaged.
        InvalidValueError: the file has no record.
        MissingExtraError: an .exr file without the extra `exr`.
    """
    path = as_path(path, "the result file")
    if not path.is_file():
        raise ImageError(f"{path} does not exist or is not a file; check the name")
    text = _embedded_text(path)
    if text is None:
        record = _from_manifest(path)
        if record is None:
            raise InvalidValueError(
                f"{path} carries no provenance, and no manifest next to it names it; only results of `openmarigold "
                "predict` do"
            )
        return record
    try:
        record = with_current_keys(parse_json(text))
    except DamagedTextError as error:
        raise InvalidValueError(f"{path}: its provenance is not valid JSON; predict the photo again") from error
    if not isinstance(record, dict):
        raise InvalidValueError(f"{path}: its provenance is not a JSON object; predict the photo again")
    return record


def stated_input(path: Path) -> str | None:
    """SHA-256 of the photo that a result file, or the manifest of its folder, states; None if neither states it."""
    try:
        stated = read_provenance(path).get("input_sha256")
    except OpenMarigoldError:
        return None
    return stated if isinstance(stated, str) else None


def is_result(path: Path) -> bool:
    """Whether a picture is a result file of ours: a PNG or EXR file that carries a record.

    Only the beginning of the file is read, because records are written there.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return begins_like_result(file.read(_HEAD_BYTES))


def begins_like_result(content: bytes) -> bool:
    """Whether a file with this content, or this beginning, is a result picture. The rule is that of `is_result`."""
    head = content[:_HEAD_BYTES]
    mark = next((mark for magic, mark in _RECORD_MARKS.items() if head.startswith(magic)), None)
    return mark is not None and mark in head


def _embedded_text(path: Path) -> str | None:
    """The record's text in a PNG, npz, EXR, PLY or GLB file; None for other files and for those without one."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".png":
            with quiet(), Image.open(path) as image:  # Pillow warns of results of 100 megapixels
                # Texts before the pixels are read at once, others only with the pixels.
                return image.info.get(RECORD_NAME) or getattr(image, "text", {}).get(RECORD_NAME)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as entries:
                return str(entries[RECORD_NAME]) if RECORD_NAME in entries else None
        if suffix == ".ply":
            from openmarigold.reconstruction.ply import read_ply_record

            return read_ply_record(path)
        if suffix == ".glb":
            return _record_of_glb(path)
    except (OSError, ValueError, SyntaxError, EOFError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is damaged or cannot be read; predict the photo again") from error
    return read_exr_header(path).get(RECORD_NAME) if suffix == ".exr" else None


def _record_of_glb(path: Path) -> str | None:
    from openmarigold.reconstruction.glb import read_glb_json

    found: Any = read_glb_json(path)
    for key in ("asset", "extras", RECORD_NAME):
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else to_json(found)


def _from_manifest(path: Path) -> dict[str, Any] | None:
    """The record of a result in the manifest of its folder or of one above, where results keep their layout."""
    path = path.resolve()
    for folder in path.parents:
        manifest = Manifest(folder)
        if manifest.path.is_file():
            return manifest.provenance_of(path)
    return None
