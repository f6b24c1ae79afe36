# SPDX-License-Identifier: Apache-2.0
"""The camera facts in a photo's metadata: the focal length (EXIF), and whether it is a panorama (XMP).

Only headers are read, no pixels. Metadata are not trusted: a value that no camera has is ignored with a note.

A focal length in terms of 35 mm film is converted by the diagonal, as camera makers do: a phone of 4032x3024 pixels of
1.4 µm with a focal length of 4.25 mm states 26 mm; the diagonal gives 26.1, the width 27.1. Also, turning a photo does
not change its diagonal. Source: Exif 3.0, tags 0x920A, 0xA20E and 0xA405; GPano.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from openmarigold.camera import Camera
from openmarigold.images.kinds import HEAD_BYTES, PNG_MAGIC, TIFF_MAGIC, is_heif
from openmarigold.images.quiet import quiet

FILM_DIAGONAL = math.hypot(36.0, 24.0)
"""Diagonal of a frame of 35 mm film [mm]."""

_EXIF_PART = 0x8769
_FOCAL, _FOCAL_35MM, _ZOOM = 0x920A, 0xA405, 0xA404
_PLANE_X, _PLANE_Y, _PLANE_UNIT = 0xA20E, 0xA20F, 0xA210
_WIDTH, _HEIGHT, _RENDERED = 0xA002, 0xA003, 0xA401
_XMP_TAG = 700
_MILLIMETERS = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # per unit of a resolution
_STITCHED = 6  # of _RENDERED: a panorama of a phone
_SENSOR_WIDTHS = (2.0, 70.0)  # [mm], from endoscopes to medium format
_FOCAL_LENGTHS = (0.5, 5000.0)  # [mm]
_FOV_RANGE = (1.0, 170.0)
_SAME_SHAPE = 0.01  # difference of two ratios of sides
_MOST_CHUNKS = 100_000
_MOST_BYTES = 2**24  # of EXIF or XMP in a PNG chunk
_PROJECTION = re.compile(rb"GPano:ProjectionType\s*(?:=\s*[\"']|>)\s*([A-Za-z]{1,40})")


@dataclass(frozen=True, kw_only=True)
class PhotoMetadata:
    """The camera facts in a photo's metadata."""

    focal_by_diagonal: float | None = None
    """Focal length, divided by the diagonal of the picture as it was taken."""
    taken: tuple[int, int] | None = None
    """The sides of the picture as it was taken [px], the longer one first; None if they are not stated."""
    panorama: str | None = None
    """None for a photo of a pinhole camera. "equirectangular", "cylindrical" or another projection of GPano; "stitched"
    if only that is known."""
    source: str = ""
    """Where the focal length comes from, in words."""
    notes: tuple[str, ...] = ()
    """One text for each ignored fact; a message puts it after the photo's name."""

    def camera(self, size: tuple[int, int]) -> Camera | None:
        """The camera of the upright photo of `size` (height, width); None if the metadata state nothing usable.

        If the photo's shape differs from the picture as it was taken, it counts as the largest crop from its middle.
        """
        if self.focal_by_diagonal is None or self.panorama is not None:
            return None
        long, short = max(size), min(size)
        diagonal, note = math.hypot(*size), self.source
        if self.taken is not None and not _same_shape(self.taken, (long, short)):
            diagonal = math.hypot(*self.taken) * max(long / self.taken[0], short / self.taken[1])
            note += f"; cut from {self.taken[0]}x{self.taken[1]}, taken to be from its middle"
        focal = self.focal_by_diagonal * diagonal
        fov = math.degrees(2 * math.atan(long / (2 * focal)))
        if not _FOV_RANGE[0] <= fov <= _FOV_RANGE[1]:
            return None
        return Camera.from_focal(size, focal, source="exif", note=note)


NOTHING = PhotoMetadata()
"""Metadata of an array, or of a file without any."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo: its pixels and its metadata."""

    rgb: UInt8[np.ndarray, "h w 3"]
    """Upright, sRGB."""
    metadata: PhotoMetadata = field(default=NOTHING)


def read_metadata(image: Any) -> PhotoMetadata:
    """The EXIF facts of a path, the bytes of a file, an open file (from its position), or a Pillow image.

    An array or tensor has none. Damaged metadata give a note; whether a file is damaged shows when its pixels are read.
    """
    try:
        with quiet():
            if isinstance(image, Image.Image):
                return _stated(_exif_of_image(image), _xmp_of_image(image))
            if isinstance(image, (bytes, bytearray, memoryview)):
                return _of_file(io.BytesIO(bytes(image)))
            if isinstance(image, (str, os.PathLike)):
                with Path(image).open("rb") as file:
                    return _of_file(file)
            if callable(getattr(image, "read", None)) and callable(getattr(image, "seek", None)):
                place = image.tell()
                content = image.read()
                image.seek(place)
                return _of_file(io.BytesIO(content))
    except Exception:  # noqa: BLE001 - damaged metadata raise many kinds; the pixels may be fine
        return PhotoMetadata(notes=("has damaged metadata; its focal length is not known",))
    return NOTHING


def _of_file(file: Any) -> PhotoMetadata:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if head[:4] in TIFF_MAGIC:  # raw photos too, which Pillow does not open
        exif = Image.Exif()
        exif.load_from_fp(file)
        return _stated(exif, exif.get(_XMP_TAG))
    if head.startswith(PNG_MAGIC):
        content, xmp = _png_chunks(file)
        return _stated(_parsed(content), xmp)
    if is_heif(head):
        return _of_heif(file)
    try:
        opened = Image.open(file)
    except UnidentifiedImageError:
        Image.init()  # see photo.py
        try:
            opened = Image.open(file)
        except UnidentifiedImageError:
            return NOTHING  # OpenEXR, Radiance, raw photos of other kinds
    with opened:
        return _stated(_parsed(opened.info.get("exif")), _xmp_of_image(opened))


def _of_heif(file: Any) -> PhotoMetadata:
    try:
        import pillow_heif
    except ImportError:
        return NOTHING
    info: Mapping[str, Any] = pillow_heif.open_heif(file).info
    return _stated(_parsed(info.get("exif")), info.get("xmp"))


def _png_chunks(file: Any) -> tuple[bytes | None, bytes | None]:
    """EXIF and XMP of a PNG file. They may follow the pixels; Pillow would have to decode these first."""
    exif, xmp = None, None
    file.seek(len(PNG_MAGIC))
    for _ in range(_MOST_CHUNKS):
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            break
        length = int.from_bytes(start[:4], "big")
        if start[4:] in (b"eXIf", b"iTXt") and length <= _MOST_BYTES:
            content = file.read(length)
            exif = content if start[4:] == b"eXIf" else exif
            xmp = content if content.startswith(b"XML:com.adobe.xmp\0") else xmp
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)
    return exif, xmp


def _exif_of_image(image: Image.Image) -> Image.Exif:
    """EXIF data of an opened Pillow image. The image may not be decoded yet, and this function must not decode it."""
    stored = image.info.get("exif")
    if stored is None and image.format == "TIFF":
        return image.getexif()
    return _parsed(stored)


def _xmp_of_image(image: Image.Image) -> Any:
    for name in ("xmp", "XML:com.adobe.xmp"):
        if image.info.get(name):
            return image.info[name]
    segments = getattr(image, "applist", [])  # of JPEG
    if image.format == "TIFF":
        return image.getexif().get(_XMP_TAG)
    return next((content for _, content in segments if content.startswith(b"http://ns.adobe.com/xap/1.0/")), None)


def _parsed(content: Any) -> Image.Exif:
    exif = Image.Exif()
    if isinstance(content, bytes) and content:
        exif.load(content if content.startswith(b"Exif\0\0") else b"Exif\0\0" + content)
    return exif


def _stated(exif: Image.Exif, xmp: Any) -> PhotoMetadata:
    """The facts that the tags state."""
    tags: dict[int, Any] = {**dict(exif), **(dict(exif.get_ifd(_EXIF_PART)) if _EXIF_PART in exif else {})}
    notes: list[str] = []
    taken = _taken(tags)
    panorama = _projection(xmp) or ("stitched" if _number(tags.get(_RENDERED)) == _STITCHED else None)
    focal, source = _from_35mm(tags, notes)
    if focal is None:
        focal, source = _from_sensor(tags, taken)
    if focal is not None and panorama is not None:
        notes.append(f"is a panorama ({panorama}); its focal length in EXIF is ignored")
        focal, source = None, ""
    return PhotoMetadata(focal_by_diagonal=focal, taken=taken, panorama=panorama, source=source, notes=tuple(notes))


def _from_35mm(tags: Mapping[int, Any], notes: list[str]) -> tuple[float | None, str]:
    """The focal length divided by the diagonal, from that in terms of 35 mm film; and its source, as text."""
    if (stored := tags.get(_FOCAL_35MM)) is None:
        return None, ""
    value = _number(stored)
    if value == 0:  # "unknown", by the standard
        return None, ""
    if value is None or not _is_plausible(value / FILM_DIAGONAL):
        shown = f"{value:g} mm" if value is not None else "no number"
        notes.append(f"states a focal length of {shown} in terms of 35 mm film, which no camera has; it is ignored")
        return None, ""
    return value / FILM_DIAGONAL, f"{value:g} mm in terms of 35 mm film, by the diagonal"


def _from_sensor(tags: Mapping[int, Any], taken: tuple[int, int] | None) -> tuple[float | None, str]:
    """The focal length divided by the diagonal, from its length [mm] and the sensor's pixels per unit; else None.

    Needs the sides of the picture as it was taken, a plausible sensor size, and square pixels.
    """
    focal, along_x, along_y = (_number(tags.get(tag)) for tag in (_FOCAL, _PLANE_X, _PLANE_Y))
    unit = _MILLIMETERS.get(int(_number(tags.get(_PLANE_UNIT, 2)) or 0))
    if focal is None or not along_x or unit is None or taken is None:
        return None, ""
    pixel = unit / along_x  # [mm]
    square = along_y is None or abs(along_y - along_x) <= 0.02 * along_x
    width = taken[0] * pixel
    if not (square and _SENSOR_WIDTHS[0] <= width <= _SENSOR_WIDTHS[1]):
        return None, ""
    if not _FOCAL_LENGTHS[0] <= focal <= _FOCAL_LENGTHS[1]:
        return None, ""
    zoom = _number(tags.get(_ZOOM)) or 1.0
    value = focal / pixel * (zoom if 1 <= zoom <= 100 else 1.0) / math.hypot(*taken)
    if not _is_plausible(value):
        return None, ""
    return value, f"{focal:g} mm, sensor {width:.2f} mm wide"


def _taken(tags: Mapping[int, Any]) -> tuple[int, int] | None:
    sides = [_number(tags.get(tag)) for tag in (_WIDTH, _HEIGHT)]
    whole = [int(side) for side in sides if side is not None and 1 <= side <= 10**6]
    return (max(whole), min(whole)) if len(whole) == 2 else None


def _projection(xmp: Any) -> str | None:
    content = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    if isinstance(content, tuple):  # TIFF's bytes may be stored as numbers
        content = bytes(content)
    found = _PROJECTION.search(content) if isinstance(content, bytes) else None
    name = found[1].decode().lower() if found else None
    return None if name == "rectilinear" else name


def _is_plausible(focal_by_diagonal: float) -> bool:
    """Whether a pinhole camera can have this field of view along the diagonal."""
    return _FOV_RANGE[0] <= math.degrees(2 * math.atan(1 / (2 * focal_by_diagonal))) <= _FOV_RANGE[1]


def _same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two pictures have the same aspect ratio, up to rounding."""
    one, other = first[0] / first[1], second[0] / second[1]
    rounding = 1 / min(*first, *second)
    return abs(one - other) <= max(_SAME_SHAPE, 2 * rounding) * one


def _number(value: Any) -> float | None:
    """A finite number that is not negative; None for anything else, such as texts and fractions with denominator 0."""
    only: Any = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    if isinstance(only, (str, bytes, bool)) or only is None:
        return None
    try:
        number = float(only)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
