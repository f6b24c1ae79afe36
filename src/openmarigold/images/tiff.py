# SPDX-License-Identifier: Apache-2.0
"""The kind of a TIFF file, by its tags: raw photo or picture, the page of the picture, and its decoder.

Pillow opens more kinds than it decodes correctly (it fails on 12 bits, signed samples, 16 bits in planes, white as
zero). So it decodes only listed kinds; all others go to OpenImageIO or are refused. TIFF 6.0; DNG 1.7, chapter 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import TiffImagePlugin

from openmarigold.errors import ImageError
from openmarigold.images.kinds import RAW_SUFFIXES

Decoder = Literal["pillow", "openimageio", "raw"]

_KIND, _OLD_KIND, _BITS, _COMPRESSION, _PHOTOMETRIC, _CHANNELS = 254, 255, 258, 259, 262, 277
_PLANAR, _SUB_PAGES, _INK_SET, _EXTRA, _FORMAT, _DNG_VERSION = 284, 330, 332, 338, 339, 50706
_REDUCED, _MASK = 1, 4  # bits of _KIND
_RAW_PHOTOMETRIC = (32803, 34892)  # color filter array, linear raw
_RAW_COMPRESSION = (32767, 32769, 32770, 32867, 34713, 65000, 65535)  # of Sony, Epson, Samsung, Kodak, Nikon, Pentax
_MAX_PAGES = 64  # that are examined
_MAX_CHANNELS = 32
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_PHOTOMETRIC_NAMES = {4: "a transparency mask", 9: "ICC Lab", 10: "ITU Lab", 32844: "LogL", 32845: "LogLuv"}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
# Bits of samples that OpenImageIO decodes correctly.
_WIDTHS = {_UNSIGNED: {*range(1, 17), 32}, _SIGNED: {8, 16, 32}, _FLOAT: {16, 32, 64}}

Tags = Mapping[int, Any]


@dataclass(frozen=True)
class TiffPicture:
    """The page of a TIFF file that is its picture, and the decoder for it."""

    decoder: Decoder
    page: int = 0
    note: str | None = None


def examine_tiff(path: Path) -> TiffPicture:
    """The page of a TIFF file that is its picture, and the decoder for it.

    Raises:
        ImageError: it holds previews only, or samples that are not a picture.
    """
    with path.open("rb") as file:
        pages, whole = _read_pages(file)
        if not pages:
            return TiffPicture("pillow")  # which reports the error
        if path.suffix.lower() in RAW_SUFFIXES or any(map(_is_raw, _with_sub_pages(file, pages))):
            return TiffPicture("raw")
    full = [index for index, tags in enumerate(pages) if not _is_preview(tags)]
    if not full and any(_SUB_PAGES in tags for tags in pages):
        raise ImageError("holds only a preview on its pages; the picture is on a sub-page, which is not read")
    page = full[0] if full else 0
    notes = []
    if not full:
        notes.append("its only pages are marked as previews; the first is used")
    elif len(full) > 1 or not whole:
        more = "" if whole else " that can be read; the later ones are damaged"
        notes.append(f"has {len(pages)} frames or pages{more}; the first is used")
    if page > 0:
        notes.append(f"page {page + 1} is used, since those before are previews or masks")
    return TiffPicture(_decoder(pages[page]), page, "; ".join(notes) or None)


def check_tiff_image(image: Any) -> None:
    """Refuses an opened Pillow image of a TIFF file that Pillow does not decode correctly; others pass.

    Raises:
        ImageError: this kind of TIFF is read by path only, or not at all.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.format != "TIFF":
        return
    if _is_raw(tags) or _DNG_VERSION in tags:
        raise ImageError("is the preview of a raw photo; give the path of its file instead of a Pillow image")
    if _decoder(tags) != "pillow":
        raise ImageError(
            f"is of a kind of TIFF that Pillow reads wrongly ({_described(tags)}); give the path of its file instead "
            "of a Pillow image"
        )


def white_is_zero(image: Any) -> bool:
    """Whether white is 0 in a TIFF image; Pillow does not invert its levels of more than 8 bits."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _read_pages(file: BinaryIO) -> tuple[list[Tags], bool]:
    """Tags of the pages in order, and whether the chain of pages is complete."""
    pages: list[Tags] = []
    file.seek(0)
    header = file.read(8)
    header += file.read(8) if header[2:3] == b"+" or header[3:4] == b"+" else b""
    try:
        place = TiffImagePlugin.ImageFileDirectory_v2(header).next
        seen: set[int] = set()
        while place and place not in seen and len(pages) < _MAX_PAGES:
            seen.add(place)
            tags = _tags_at(file, header, place)
            if 256 not in tags or 257 not in tags:
                return pages, False
            pages.append(tags)
            place = tags.next
    except Exception:  # noqa: BLE001 - damaged tags raise struct.error, SyntaxError, OSError, TypeError …
        return pages, False
    return pages, True


def _tags_at(file: BinaryIO, header: bytes, place: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file.seek(place)
    tags.load(file)
    return tags


def _with_sub_pages(file: BinaryIO, pages: list[Tags]) -> Iterator[Tags]:
    """The pages, and those that lie within them."""
    file.seek(0)
    header = file.read(16)
    for tags in pages:
        yield tags
        try:
            places = tags.get(_SUB_PAGES, ())
            for place in (places,) if isinstance(places, int) else tuple(places)[:_MAX_PAGES]:
                yield _tags_at(file, header, int(place))
        except Exception:  # noqa: BLE001 - see _read_pages
            continue


def _is_raw(tags: Tags) -> bool:
    raw = tags.get(_PHOTOMETRIC) in _RAW_PHOTOMETRIC or tags.get(_COMPRESSION) in _RAW_COMPRESSION
    return raw or _DNG_VERSION in tags


def _is_preview(tags: Tags) -> bool:
    """Whether a page is a smaller copy of another, or a mask for it."""
    return bool(_number(tags, _KIND, 0) & (_REDUCED | _MASK)) or tags.get(_OLD_KIND) == 2


def _decoder(tags: Tags) -> Decoder:
    """The decoder that reads a page correctly.

    Raises:
        ImageError: no decoder reads it correctly.
    """
    photometric = _number(tags, _PHOTOMETRIC, _BLACK_IS_ZERO)
    types = set(_numbers(tags, _FORMAT, _UNSIGNED))
    bits = set(_numbers(tags, _BITS, 1))
    if _number(tags, _CHANNELS, 1) > _MAX_CHANNELS:
        raise ImageError(f"is damaged, or no picture: it has {_number(tags, _CHANNELS, 1)} channels")
    if photometric in _PHOTOMETRIC_NAMES or photometric > _LAB:
        raise ImageError(f"holds {_PHOTOMETRIC_NAMES.get(photometric, f'a picture of kind {photometric}')}; {_ADVICE}")
    if len(types) > 1 or not types <= {_UNSIGNED, _SIGNED, _FLOAT} or len(bits) > 1 or not bits <= _WIDTHS[min(types)]:
        raise ImageError(f"holds samples of unusual kinds ({_described(tags)}); {_ADVICE}")
    if photometric == _CMYK and _number(tags, _INK_SET, 1) != 1:
        raise ImageError(f"holds inks that are not cyan, magenta, yellow and black; {_ADVICE}")
    return "pillow" if _pillow_decodes(tags, photometric, bits.pop(), types.pop()) else "openimageio"


def _pillow_decodes(tags: Tags, photometric: int, bits: int, sample_format: int) -> bool:
    """Whether Pillow gives the right picture; every other combination is in tests/unit/test_tiff.py."""
    channels = _number(tags, _CHANNELS, 1)
    in_planes = _number(tags, _PLANAR, 1) == 2 and channels > 1
    if sample_format == _FLOAT:
        return photometric == _BLACK_IS_ZERO and bits == 32 and channels == 1
    if sample_format != _UNSIGNED:
        return False
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        if channels == 1:
            little = getattr(tags, "prefix", b"II") == b"II"
            return bits in (1, 2, 4, 8) or (bits == 16 and (little or photometric == _BLACK_IS_ZERO))
        return photometric == _BLACK_IS_ZERO and channels == 2 and bits == 8 and not in_planes
    if photometric == _PALETTE:
        return bits in (1, 2, 4, 8) and channels == 1
    if photometric == _RGB:
        return (
            channels in (3, 4) and (bits == 8 or (bits == 16 and not in_planes)) and not (channels == 4 and in_planes)
        )
    if photometric == _CMYK:
        return channels == 4 and (bits == 8 or (bits == 16 and not in_planes))
    return photometric in (_YCBCR, _LAB) and bits == 8 and channels == 3


_ADVICE = "save it as RGB or gray with 8 or 16 bits"


def _described(tags: Tags) -> str:
    """The tags that decide, as text."""
    names = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOAT: "float"}
    name = names.get(_numbers(tags, _FORMAT, _UNSIGNED)[0], "unknown")
    bits = "/".join(str(value) for value in dict.fromkeys(_numbers(tags, _BITS, 1)))
    planes = ", in planes" if _number(tags, _PLANAR, 1) == 2 else ""
    return f"{_number(tags, _CHANNELS, 1)} channels of {bits} bits, {name}{planes}"


def _numbers(tags: Tags, tag: int, default: int) -> tuple[int, ...]:
    """Values of a tag, at least one; a damaged one counts as absent."""
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    return values if values and all(isinstance(one, int) for one in values) else (default,)


def _number(tags: Tags, tag: int, default: int) -> int:
    return _numbers(tags, tag, default)[0]
