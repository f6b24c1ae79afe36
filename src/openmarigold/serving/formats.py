# SPDX-License-Identifier: Apache-2.0
"""Which file answers a request: media types, and the Accept header (RFC 9110, 12.5.1)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import get_args

from openmarigold.config import FileFormat

PNG, JSON, ZIP = "image/png", "application/json", "application/zip"
MEDIA_TYPES: Mapping[str, FileFormat] = MappingProxyType(
    {
        PNG: "png",
        "application/x-npy": "npy",
        "application/x-npz": "npz",
        "image/x-exr": "exr",
        "model/gltf-binary": "glb",
        "model/ply": "ply",
    }
)
"""Formats by the media type that a file is sent as; the first one if a request asks for none."""
STEM = "photo"
"""The beginning of the names of result files."""
UPLOAD = "the photo"
"""The name of a photo in messages; the server does not use the file's own name."""
RECORD_FILE = f"{STEM}.json"
"""The last file of an archive whose request states `record`."""
ACCEPTED = (*MEDIA_TYPES, JSON, ZIP)
_TYPE_OF = {name: media for media, name in MEDIA_TYPES.items()}
assert set(_TYPE_OF) == set(get_args(FileFormat))


def negotiated(accept: str | None) -> str | None:
    """The first of `ACCEPTED` with the highest weight in an Accept header; None if the header accepts none.

    >>> negotiated("application/x-npy;q=0.5, image/*")
    'image/png'
    """
    wanted = _parsed(accept or "*/*")
    best, best_quality = None, 0.0
    for media in ACCEPTED:
        matching = [entry for entry in wanted if _matches(entry[0], media)]
        if not matching:
            continue
        quality = max(matching, key=lambda entry: entry[0].count("*") * -1)[1]  # the most specific one decides
        if quality > best_quality:
            best, best_quality = media, quality
    return best


def _parsed(accept: str) -> list[tuple[str, float]]:
    found = []
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if name:
            found.append((name, quality if 0.0 <= quality <= 1.0 else 0.0))
    return found


def _matches(wanted: str, media: str) -> bool:
    return wanted in ("*/*", media) or (wanted.endswith("/*") and media.startswith(wanted[:-1]))


def media_type_of(name: str) -> str:
    """The media type of a result file."""
    return _TYPE_OF[name.rpartition(".")[2]]


def chosen_file(names: Sequence[str], file: str | None) -> str | None:
    """The file whose name ends in `file`, among the files of one format; the first one if `file` is not given.

    None: there is none.
    """
    if file is None:
        return names[0] if names else None
    return next((name for name in names if name == file or name.endswith(f"_{file}")), None)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive without times, so that the same files give the same bytes; maps do not shrink further."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
