# SPDX-License-Identifier: Apache-2.0
"""The bodies of requests: forms with files, and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from openmarigold.config import FileFormat
from openmarigold.errors import InvalidValueError
from openmarigold.serving.formats import JSON, MEDIA_TYPES, ZIP
from openmarigold.serving.jobs import photos_of_zip
from openmarigold.serving.requests import photo_of_json
from openmarigold.text_files import DamagedTextError, parse_json

_MAX_FIELDS = 100
_MAX_FILES = 10_000


@dataclass(frozen=True, kw_only=True)
class Body:
    """The content of a request: photos, clips and settings."""

    photos: list[tuple[str, bytes]] = field(default_factory=list)
    """The names and bytes of photos."""
    clips: list[tuple[str, bytes]] = field(default_factory=list)
    """The same of clips."""
    given: dict[str, Any] = field(default_factory=dict)
    """The settings that it states."""
    is_json: bool = False
    """Whether the values have JSON types; the values of a form are texts."""


async def body_of(request: Request) -> Body:
    """The content of a request: photos, clips and settings.

    Raises:
        HTTPException: another content type (415).
        InvalidValueError: a body that does not hold what it should.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        try:
            body = parse_json(await request.body())
        except DamagedTextError as error:
            raise InvalidValueError(f"the body is not JSON that can be used: {error}") from None
        if not isinstance(body, dict):
            raise InvalidValueError("the body is not a JSON object; give photo (in base64) and settings")
        given = {name: value for name, value in body.items() if name != "photo"}
        return Body(photos=[("", photo_of_json(body))], given=given, is_json=True)
    if content_type != "multipart/form-data":
        raise HTTPException(415, "the content type is not accepted; send multipart/form-data or application/json")
    found = Body()
    try:
        form = request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=1_000_000)
        async with form as fields:
            for name, value in fields.multi_items():
                if not isinstance(value, UploadFile):
                    if name in found.given:
                        raise InvalidValueError(f"{name:.80} is stated twice; give it once")
                    found.given[name] = value
                elif name in ("photo", "clip"):
                    files = found.photos if name == "photo" else found.clips
                    files.append((value.filename or "", await value.read()))
                else:
                    raise InvalidValueError(f"the file {name!r:.80} is not expected; send the photo in the field photo")
    except (KeyError, ValueError) as error:
        if isinstance(error, InvalidValueError):
            raise
        raise InvalidValueError("the body is not valid multipart/form-data") from None
    return found


def is_true(value: object) -> bool:
    """What the field `record` states. Raises InvalidValueError for anything but true and false."""
    if isinstance(value, bool):
        return value
    if str(value).lower() not in ("", "true", "false"):
        raise InvalidValueError(f"record={value!r:.40} is not accepted; give true or false")
    return str(value).lower() == "true"


def formats_of(given: dict[str, Any], media: str) -> tuple[FileFormat, ...]:
    """The formats of the files: one of a media type; of an archive what `format` states, with commas between."""
    stated = given.pop("format", None)
    usual = ["npy"] if media == JSON else ["npy", "png"]
    words = usual if stated is None else stated.split(",") if isinstance(stated, str) else stated
    known = get_args(FileFormat)
    if not isinstance(words, list) or not words or not all(word in known for word in words):
        raise InvalidValueError(f"format={stated!r:.80} is not known; give one or more of {', '.join(known)}")
    if media in MEDIA_TYPES:
        if stated is not None and words != [MEDIA_TYPES[media]]:
            raise InvalidValueError(
                f"format={stated!r:.80} is not what Accept chooses, {media}; send Accept: {ZIP}, or that of one format"
            )
        return (MEDIA_TYPES[media],)
    return tuple(dict.fromkeys(words))  # pyright: ignore[reportReturnType] - known, as was checked


def is_zip(content: bytes) -> bool:
    """Whether a file is a zip archive, by its first bytes."""
    return content[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def unpacked(uploads: list[tuple[str, bytes]], max_bytes: int) -> list[tuple[str, bytes]]:
    """Photos, and those in archives of at most four times `max_bytes` together. Raises what `photos_of_zip` raises."""
    photos: list[tuple[str, bytes]] = []
    for name, content in uploads:
        if is_zip(content):
            photos += photos_of_zip(content, 4 * max_bytes)
        else:
            photos.append((name, content))
    return photos
