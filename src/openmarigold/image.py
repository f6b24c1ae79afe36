# SPDX-License-Identifier: Apache-2.0
"""Reading photos, resizing and padding.

Every photo becomes RGB uint8 [h w 3], upright, in sRGB, without alpha; the network's size is then reached by
`processing_size`, `rgb_to_planes` and `pad_to_multiple`, and left again by `unpad` and `resize`. A large photo is
resized in strips of rows with the same bytes as at once, so that no float copy of it is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from openmarigold.errors import ImageError, InvalidValueError, MissingExtraError
from openmarigold.files import as_path
from openmarigold.hdr import is_linear_light, read_tone_mapped
from openmarigold.pixels import array_to_rgb, image_to_rgb, parse_colour
from openmarigold.quiet import quiet

# What is looked for in folders; any file that is named is tried.
IMAGE_SUFFIXES = frozenset({".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".webp"}) | {
    *(".bmp", ".exr", ".hdr", ".pbm", ".pgm", ".ppm", ".tga", ".tif", ".tiff")
}
# Pillow knows more, among them formats that start another program (EPS).
_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TGA"})
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MAX_ASPECT = 8  # of photos whose size is given by the shorter side; a strip must not need a lot of memory
MAX_PROCESSING_PIXELS = 2**24  # the networks hold about a kilobyte a pixel

_STRIP_PIXELS = 2**20

_logger = logging.getLogger(__name__)


def read_rgb(
    path: Path | str, *, background: str = "white", note: Callable[[str], object] = _logger.info
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a photo: upright (EXIF orientation applied), in sRGB (ICC profile applied), alpha over `background`.

    16 bits are rescaled to 8, linear light (.exr, .hdr) is tone-mapped, and of several frames the first is taken, which
    `note` is told.

    Raises:
        ImageError: missing, empty, truncated, too large or not an image; the message is one line.
        InvalidValueError: a background that is no colour.
        MissingExtraError: .exr or .heic without their extras.
    """
    path = as_path(path, "the photo")
    colour = parse_colour(background)
    head = b""
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image file")
        if not path.exists():
            raise ImageError(f"{path} does not exist; check the name")
        if not path.is_file():
            raise ImageError(f"{path} is not a regular file")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes); copy it again")
        with path.open("rb") as file:
            head = file.read(64)
        if is_linear_light(head):
            return read_tone_mapped(path, background=colour, check_size=_check_size)
        # Pillow warns above 89 megapixels, which medium-format photos have (it refuses above 179), and of damaged
        # metadata, which the pixels may not share; libtiff talks to stderr.
        with quiet(), _open(path, head) as image:
            if image.format is not None and image.format not in _FORMATS:  # None: made from HEIF
                raise ImageError(f"{path} is of format {image.format}; {_accepted()}")
            image.load()
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # phones keep a preview or a second view in MPO
                note(f"{path} has {frames} frames or pages; the first is used")
            return image_to_rgb(image, background=colour)
    except MissingExtraError as error:
        raise ImageError(f"{path}: {error}") from error
    except ImageError as error:
        if str(path) in str(error):
            raise
        raise ImageError(f"{path}{'' if str(error).startswith(('is ', 'has ')) else ':'} {error}") from error
    except UnidentifiedImageError as error:
        if head[:4] in _TIFF_MAGIC:
            raise ImageError(
                f"{path} is a TIFF file that is damaged or of a kind that is not read, such as three float channels: "
                "save it with 8 or 16 bits, or as .exr"
            ) from error
        raise ImageError(f"{path} is not an image that can be read; {_accepted()}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} {_TOO_LARGE}") from error
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory; make it smaller first") from error
    except Exception as error:
        # Pillow's decoders raise whatever damaged bytes lead to: OSError, SyntaxError, ValueError, struct.error …
        raise ImageError(f"{path} is damaged or cannot be read: {_one_line(error)}") from error


def as_rgb(image: Image.Image | np.ndarray | str | Path, *, background: str = "white") -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a path, a Pillow image, or an array [h w] or [h w c] with 1, 3 or 4 channels (RGB order, alpha last).

    Arrays are uint8, uint16 (full range 65535) or floating point in [0, 1]. Alpha is composited on `background`.

    Raises:
        ImageError: a path or Pillow image that cannot be read.
        InvalidValueError: an array of another shape, type or range, or a background that is no colour.
    """
    if isinstance(image, (str, Path)):
        return read_rgb(image, background=background)
    colour = parse_colour(background)
    if isinstance(image, Image.Image):
        try:
            image.load()
            return image_to_rgb(image, background=colour)
        except ImageError:
            raise
        except Exception as error:  # a lazily opened file is decoded only now; see read_rgb
            raise ImageError(f"the image cannot be read: {_one_line(error)}") from error
    return array_to_rgb(np.asarray(image), background=colour)


def rgb_to_planes(rgb: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "3 ho wo"]:
    """The photo in [-1, 1], resized with anti-aliasing to `size` (height, width): what the networks see.

    Equals `resize` of the whole: its filter works along rows first, each row on its own, so that strips change no byte.
    (For photos a hundred times as high as wide Pillow takes columns first, which changes the last bit.)
    """
    height, width = rgb.shape[:2]
    rows = max(1, _STRIP_PIXELS // width)
    narrowed = np.empty((3, height, size[1]), dtype=np.float32)
    for top in range(0, height, rows):
        strip = rgb[top : top + rows].transpose(2, 0, 1)
        planes = np.ascontiguousarray(strip, dtype=np.float32) / np.float32(255) * 2 - 1
        narrowed[:, top : top + rows] = resize(planes, (planes.shape[1], size[1]), antialias=True)
    return narrowed if size[0] == height else resize(narrowed, size, antialias=True)


def resize(
    array: Float32[np.ndarray, "*lead h w"], size: tuple[int, int], *, antialias: bool
) -> Float32[np.ndarray, "*lead ho wo"]:
    """The last two axes resized to `size` (height, width) by bilinear interpolation between pixel centres.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=...)`: with `antialias` the
    filter widens when shrinking, so that no pixel is skipped; without it two neighbours are used at any ratio.

    Raises:
        InvalidValueError: a side smaller than 1.
    """
    height, width = size
    if height < 1 or width < 1:
        raise InvalidValueError(f"size {height}x{width} is not at least 1x1")
    if array.shape[-2:] == (height, width):
        return array.copy()
    planes = array.reshape(-1, *array.shape[-2:])
    if antialias:
        # Pillow's triangle filter on float pixels is the same filter as torch's, and fast.
        resized = [
            np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.BILINEAR))
            for plane in planes
        ]
        out = np.stack(resized)
    else:
        out = _interpolate(_interpolate(planes, width, axis=2), height, axis=1)
    return np.ascontiguousarray(out.reshape(*array.shape[:-2], height, width))


def processing_size(
    height: int, width: int, *, processing_resolution: int, side: Literal["longer", "shorter"] = "longer"
) -> tuple[int, int]:
    """Size (height, width) whose longer (or shorter) side is `processing_resolution` [px]; 0 keeps the native size.

    The other side is rounded down, as in diffusers, but never below 8: a sliver keeps one latent cell. With "shorter"
    the longer side stays within eight times the resolution, whatever the photo's shape.

    Raises:
        InvalidValueError: a size that is too large for the networks.

    >>> processing_size(480, 640, processing_resolution=768)
    (576, 768)
    >>> processing_size(375, 1242, processing_resolution=96, side="shorter")
    (96, 317)
    """
    size = height, width
    if processing_resolution != 0:
        longer, shorter = max(height, width), min(height, width)
        measured = longer if side == "longer" else max(shorter, -(-longer // MAX_ASPECT))
        size = max(8, height * processing_resolution // measured), max(8, width * processing_resolution // measured)
    if size[0] * size[1] > MAX_PROCESSING_PIXELS:
        raise InvalidValueError(
            f"processing_resolution={processing_resolution} with a photo of {width}x{height} would need more memory "
            f"than is safe (the limit is {MAX_PROCESSING_PIXELS} pixels); give a smaller size in pixels"
        )
    return size


def pad_to_multiple(array: Shaped[np.ndarray, "*lead h w"], *, multiple: int = 8) -> Shaped[np.ndarray, "*lead hp wp"]:
    """Array whose last two axes are multiples of `multiple`, the last row and column repeated to the bottom and right.

    Repeating keeps the padding from looking like an edge; zeros would.
    """
    height, width = array.shape[-2:]
    padding = [(0, 0)] * (array.ndim - 2) + [(0, -height % multiple), (0, -width % multiple)]
    return np.pad(array, padding, mode="edge")


def unpad(array: Shaped[np.ndarray, "*lead hp wp"], size: tuple[int, int]) -> Shaped[np.ndarray, "*lead h w"]:
    """The top left `size` (height, width) of the last two axes; inverse of `pad_to_multiple`."""
    return array[..., : size[0], : size[1]]


def _interpolate(planes: Float32[np.ndarray, "n h w"], length: int, *, axis: int) -> Float32[np.ndarray, "n ho wo"]:
    """One axis resized with two taps per output pixel, whatever the ratio; along rows in strips."""
    source = planes.shape[axis]
    # float32 like torch, so that both pick the same weights: at 4000 px they differ from exact ones by 1e-4.
    centre = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(source / length) - np.float32(0.5)
    centre = np.clip(centre, np.float32(0.0), np.float32(source - 1))
    left = centre.astype(np.intp)
    right = np.minimum(left + 1, source - 1)
    weight = np.expand_dims(centre - left.astype(np.float32), axis=1 if axis == 1 else 0)
    if axis == 2:
        return _between(planes.take(left, axis=2), planes.take(right, axis=2), weight)
    out = np.empty((planes.shape[0], length, planes.shape[2]), dtype=np.float32)
    rows = max(1, _STRIP_PIXELS // out[:, 0].size)
    for top in range(0, length, rows):
        strip = slice(top, top + rows)
        out[:, strip] = _between(planes.take(left[strip], axis=1), planes.take(right[strip], axis=1), weight[strip])
    return out


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`first + weight * (second - first)` in their own memory."""
    second -= first
    second *= weight
    first += second
    return first


_TOO_LARGE = "has more pixels than can be read safely; make it smaller first"


def _check_size(width: int, height: int) -> None:
    """Refuses what Pillow refuses, for the formats that it does not open.

    Raises:
        ImageError: more than twice Pillow's `MAX_IMAGE_PIXELS`.
    """
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise ImageError(_TOO_LARGE)


def _open(path: Path, head: bytes) -> Any:
    """The file as a Pillow image, not yet decoded; HEIF through its own package."""
    # Many files of the family carry the brand mif1; those that are AVIF say so in their list of brands.
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS or b"avif" in head:
        try:
            return Image.open(path)
        except UnidentifiedImageError:
            # Pillow loads its plugins with the first photos, and passes over those that another thread just loads.
            Image.init()
            return Image.open(path)
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow-heif", "heif") from error
    file = pillow_heif.open_heif(path, convert_hdr_to_8bit=True)
    _check_size(*file.size)
    return file.to_pillow()


def _accepted() -> str:
    return f"accepted are {', '.join(sorted(IMAGE_SUFFIXES))}"


def _one_line(error: BaseException) -> str:
    """The error's text on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
