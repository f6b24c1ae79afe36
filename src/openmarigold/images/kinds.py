# SPDX-License-Identifier: Apache-2.0
"""Kinds of picture files: a file's content decides how it is read, its suffix whether it is read from a folder."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from PIL import Image

# Pillow knows more, among them formats that start another program (EPS).
PILLOW_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TGA"})
_NOT_PICTURES = frozenset({"BUFR", "FITS", "GRIB", "HDF5", "MPEG", "PDF"})  # Pillow counts them among its formats

HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
RADIANCE_SUFFIXES = frozenset({".hdr", ".rgbe"})
RAW_SUFFIXES = frozenset({".3fr", ".arw", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".eip", ".erf", ".fff"}) | {
    *(".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".ori", ".pef", ".raf", ".raw"),
    *(".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
}
_OTHER_SUFFIXES = frozenset({".ai", ".djvu", ".dpx", ".jls", ".jxl", ".jxr", ".kra", ".ora", ".psb", ".svg", ".xcf"})

JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
EXR_MAGIC = b"\x76\x2f\x31\x01"
RADIANCE_MAGIC = (b"#?RADIANCE", b"#?RGBE")
# Raw photos that do not begin as TIFF does (Canon's old and new files, Fujifilm, Olympus, Panasonic, Sigma, Minolta).
_RAW_MAGIC = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
_PICTURE_MAGIC = (
    *(JPEG_MAGIC, PNG_MAGIC, b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"8BPS"),
    *(b"\0\0\0\x0cJXL ", b"\xff\x0a", EXR_MAGIC, *RADIANCE_MAGIC, *TIFF_MAGIC, *_RAW_MAGIC),
)
HEAD_BYTES = 64  # of a file, enough to tell its kind

# One slash or two after the scheme: `Path` removes one of them.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that are read from folders: those that the decoders open. A named file is always tried."""
    return _of_pillow(PILLOW_FORMATS) | HEIF_SUFFIXES | RADIANCE_SUFFIXES | RAW_SUFFIXES | {".exr"}


def looks_like_picture(path: Path) -> bool:
    """Whether a file that is not read from folders may still be a picture, by its suffix or its content.

    Raises:
        OSError: the file cannot be read.
    """
    others = _of_pillow(frozenset(Image.OPEN) - _NOT_PICTURES) | _OTHER_SUFFIXES
    if path.suffix.lower() in others:
        return True
    with path.open("rb") as file:
        return begins_like_picture(file.read(HEAD_BYTES))


def begins_like_picture(head: bytes) -> bool:
    """Whether a file that begins like this is, or was, a picture."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(_PICTURE_MAGIC) or webp or is_heif(head) or is_raw(head) or head[4:10] == b"ftypav"


def is_heif(head: bytes) -> bool:
    """Whether a file that begins like this is HEIF but not AVIF, whose files carry the brand mif1 too."""
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and b"avif" not in head


def is_radiance(head: bytes) -> bool:
    """Whether a file that begins like this is a Radiance picture."""
    return head.startswith(RADIANCE_MAGIC)


def is_raw(head: bytes) -> bool:
    """Whether a file that begins like this is a raw photo; those that are TIFF files show it in their tags only."""
    return head.startswith(_RAW_MAGIC) or head[6:14] == b"HEAPCCDR" or head[4:12] == b"ftypcrx " or head[8:10] == b"CR"


def url_in(path: str | Path) -> str | None:
    """The URL that was given instead of a path; None if it is a path.

    >>> url_in("https://example.com/a.jpg"), url_in("photos/a.jpg")
    ('https://example.com/a.jpg', None)
    """
    text = str(path)
    match = _URL.match(text)
    return f"{match[1]}://{text[match.end() :]}" if match else None


def _of_pillow(formats: frozenset[str]) -> frozenset[str]:
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)
