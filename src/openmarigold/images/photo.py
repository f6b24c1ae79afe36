# SPDX-License-Identifier: Apache-2.0
"""Reading photos, resizing and padding.

Every photo becomes RGB uint8 [h w 3], upright, in sRGB, without alpha. `processing_size`, `rgb_to_planes` and
`pad_to_multiple` then bring it to the networks' size; `unpad` and `resize` bring maps back. A large photo is resized in
strips of rows, with the same bytes as in one piece, so that no float copy of the whole is made.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from openmarigold.errors import ImageError, InvalidValueError, MissingExtraError, OutputError, needs_extra, one_line
from openmarigold.files import as_path
from openmarigold.images.decoders import TOO_LARGE, CheckSize, TooManyPixelsError, check_pixels, read_raw, read_tiff
from openmarigold.images.exif import Photo, read_metadata
from openmarigold.images.hdr import is_linear_light, read_tone_mapped
from openmarigold.images.kinds import (
    HEAD_BYTES,
    JPEG_MAGIC,
    PILLOW_FORMATS,
    PNG_MAGIC,
    RAW_SUFFIXES,
    TIFF_MAGIC,
    begins_like_picture,
    is_heif,
    is_raw,
    url_in,
)
from openmarigold.images.pixels import Color, array_to_rgb, image_to_rgb, keep_transparency, parse_color
from openmarigold.images.quiet import quiet
from openmarigold.images.tiff import TiffPicture, examine_tiff
from openmarigold.printing import quoted_logger

MAX_ASPECT = 8  # for photos sized by the shorter side: a very long photo must not need a lot of memory
MAX_PROCESSING_PIXELS = 2**24  # the networks need about a kilobyte per pixel

_STRIP_PIXELS = 2**20

_logger = quoted_logger(__name__)


def read_rgb(
    path: Path | str,
    *,
    background: str = "white",
    note: Callable[[str], object] = _logger.info,
    max_pixels: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a photo: upright (EXIF orientation applied), in sRGB (ICC profile applied), alpha over `background`.

    16 bits are rescaled to 8, linear light (.exr, .hdr) is tone-mapped, and raw photos are developed. Of several frames
    the first is taken; `note` is called with a line about it.

    Raises:
        TooManyPixelsError: an ImageError; more than `max_pixels`, or than is safe. It is raised before decoding.
        ImageError: missing, empty, truncated, too large or not an image, or an extra is missing; the message is one
            line.
        InvalidValueError: a background that is not a color.
    """
    path = as_path(path, "the photo")
    color = parse_color(background)
    head = b""
    try:
        head = read_head(path)
        # Pillow warns above 89 megapixels, which medium-format photos have (it refuses above 179), and about damaged
        # metadata, although the pixels may be fine; libtiff prints to stderr.
        with quiet():
            rgb = _decode(path, head, color, note, partial(check_pixels, most=max_pixels))
        if (brightest := int(rgb.max())) < _NEARLY_BLACK:
            note(
                f"{path} is nearly black (up to {brightest} of 255); 10 or 12 bits stored in 16 must be stretched first"
            )
        return rgb
    except MissingExtraError as error:
        raise ImageError(f"{path}: {error}") from error
    except ImageError as error:
        if str(path) in str(error) or url_in(path):
            raise
        raise type(error)(f"{path}{'' if str(error).startswith(_VERBS) else ':'} {error}") from error
    except UnidentifiedImageError as error:
        if begins_like_picture(head):
            raise ImageError(f"{path} begins like a picture but is damaged, or of a kind that is not read") from error
        raise ImageError(f"{path} is not an image that can be read; {_accepted()}") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"{path} {TOO_LARGE}") from error
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory; make it smaller first") from error
    except Exception as error:
        # Pillow's decoders raise many kinds for damaged bytes: OSError, SyntaxError, ValueError, struct.error …
        raise ImageError(f"{path} is damaged or cannot be read: {one_line(error)}") from error


def as_rgb(image: Any, *, background: str = "white") -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a picture in any form: a path; the bytes of a file, or an open one; a Pillow image; an array or tensor.

    Arrays are [h w], [h w c] or [c h w] with 1, 3 or 4 channels (RGB order, alpha last): uint8, uint16 (full range
    65535) or floating point in [0, 1] (0.001 beyond it counts as rounding). Alpha is composited on `background`.

    Raises:
        ImageError: a path, file or Pillow image that cannot be read.
        OutputError: no disk space for the temporary file that the bytes of a picture need.
        InvalidValueError: an array of another shape, type or range, or a background that is not a color.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_rgb(as_path(image, "the photo"), background=background)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _read_content(bytes(image), background)
    color = parse_color(background)
    if isinstance(image, Image.Image):
        try:
            keep_transparency(image)
            image.load()
            return image_to_rgb(image, background=color)
        except ImageError as error:
            told = str(error)
            raise ImageError(f"the image {told}" if told.startswith(_VERBS) else told) from error
        except Exception as error:  # a lazily opened file is decoded only now; see read_rgb
            raise ImageError(f"the image cannot be read: {one_line(error)}") from error
    if callable(getattr(image, "read", None)):
        return _read_content(_content_of(image), background)
    return array_to_rgb(*_as_array(image), background=color)


def read_photo(image: Any, *, background: str = "white") -> Photo:
    """A picture in any form that `as_rgb` accepts, with its metadata; a `Photo` is returned as it is.

    Raises as `as_rgb`.
    """
    if isinstance(image, Photo):
        return image
    if callable(getattr(image, "read", None)):
        image = _content_of(image)
    metadata = read_metadata(image)  # first: reading the pixels may close a Pillow image's file
    for note in metadata.notes:
        _logger.info(f"{image if isinstance(image, (str, os.PathLike)) else 'the photo'} {note}")
    return Photo(rgb=as_rgb(image, background=background), metadata=metadata)


def rgb_to_planes(rgb: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "3 ho wo"]:
    """The photo in [-1, 1], resized with anti-aliasing to `size` (height, width): what the networks see.

    Equals `resize` of the whole: its filter works along each row first, so strips do not change a byte. (For photos
    a hundred times higher than wide, Pillow filters columns first, which changes the last bit.)
    """
    height, width = rgb.shape[:2]
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        planes = _planes(rgb)
        return planes if size == (height, width) else resize(planes, size, antialias=True)
    narrowed = np.empty((3, height, size[1]), dtype=np.float32)
    for top in range(0, height, rows):
        planes = _planes(rgb[top : top + rows])
        narrowed[:, top : top + rows] = resize(planes, (planes.shape[1], size[1]), antialias=True)
    return narrowed if size[0] == height else resize(narrowed, size, antialias=True)


def _planes(rgb: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "3 h w"]:
    """Pixels in [-1, 1]; in place, as new arrays take longer than the arithmetic."""
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32)
    planes /= np.float32(255)
    planes *= 2
    planes -= 1
    return planes


def resize(
    array: Float32[np.ndarray, "*lead h w"], size: tuple[int, int], *, antialias: bool
) -> Float32[np.ndarray, "*lead ho wo"]:
    """The last two axes resized to `size` (height, width) by bilinear interpolation between pixel centers.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=...)`: with `antialias` the
    filter widens when shrinking, so that no pixel is skipped; without it two neighbors are used at any ratio.

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
    the longer side stays within eight times the resolution.

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
    """The array with its last two axes padded to multiples of `multiple`, at the bottom and right; itself if they are.

    The last row and column are repeated, since zeros would look like an edge.
    """
    height, width = array.shape[-2:]
    if height % multiple == 0 and width % multiple == 0:
        return array
    padding = [(0, 0)] * (array.ndim - 2) + [(0, -height % multiple), (0, -width % multiple)]
    return np.pad(array, padding, mode="edge")


def unpad(array: Shaped[np.ndarray, "*lead hp wp"], size: tuple[int, int]) -> Shaped[np.ndarray, "*lead h w"]:
    """The top left `size` (height, width) of the last two axes; inverse of `pad_to_multiple`."""
    return array[..., : size[0], : size[1]]


def _interpolate(planes: Float32[np.ndarray, "n h w"], length: int, *, axis: int) -> Float32[np.ndarray, "n ho wo"]:
    """One axis resized with two taps per output pixel at any ratio."""
    source = planes.shape[axis]
    # float32 like torch, so that both pick the same weights: at 4000 px they differ from exact ones by 1e-4.
    center = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(source / length) - np.float32(0.5)
    center = np.clip(center, np.float32(0.0), np.float32(source - 1))
    left = center.astype(np.intp)
    right = np.minimum(left + 1, source - 1)
    weight = center - left.astype(np.float32)
    if axis == 2:
        between = planes.take(right, axis=2)
        first = planes.take(left, axis=2)
        between -= first
        between *= weight
        between += first
        return between
    out = np.empty((planes.shape[0], length, planes.shape[2]), dtype=np.float32)
    starts = [0, *(np.flatnonzero(np.diff(left)) + 1), length]
    for start, end in pairwise(starts):  # rows between the same two of the source
        first = planes[:, left[start], None]
        rows = out[:, start:end]
        np.multiply(planes[:, right[start], None] - first, weight[start:end, None], out=rows)
        rows += first
    return out


def read_head(path: Path) -> bytes:
    """The first bytes of a photo's file.

    Raises:
        ImageError: there is no such file, or it is empty.
    """
    if (url := url_in(path)) and not path.exists():
        raise ImageError(f"{url} is a URL; download the picture first, and give the path of the file")
    if path.is_dir():
        raise ImageError(f"{path} is a folder, not an image file")
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the name")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); copy it again")
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _decode(
    path: Path, head: bytes, color: Color, note: Callable[[str], object], check_size: CheckSize
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a file, by the decoder for its kind."""
    if is_linear_light(head):
        return read_tone_mapped(path, background=color, check_size=check_size, note=note)
    tiff = examine_tiff(path) if head[:4] in TIFF_MAGIC else None
    renamed = head.startswith((JPEG_MAGIC, PNG_MAGIC, *TIFF_MAGIC))  # though it has a raw photo's suffix
    is_raw_file = is_raw(head) or (path.suffix.lower() in RAW_SUFFIXES and not renamed)
    if is_raw_file or (tiff is not None and tiff.decoder == "raw"):
        return read_raw(path, check_size=check_size)
    if tiff is not None and tiff.note is not None:
        note(f"{path} {tiff.note}")
    if tiff is not None and tiff.decoder == "openimageio":
        return image_to_rgb(read_tiff(path, page=tiff.page, check_size=check_size), background=color)
    with _open(path, head, check_size) as image:
        check_size(*image.size)
        if image.format is not None and image.format not in PILLOW_FORMATS:  # None: made from HEIF
            raise ImageError(f"{path} is of format {image.format}; {_accepted()}")
        return _decode_by_pillow(image, path, tiff, color, note)


def _decode_by_pillow(
    image: Any, path: Path, tiff: TiffPicture | None, color: Color, note: Callable[[str], object]
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an opened file that Pillow decodes."""
    if tiff is not None:
        if tiff.page > 0:
            image.seek(tiff.page)
        image.load()
        return image_to_rgb(image, background=color)
    keep_transparency(image)
    try:
        image.load()
    except OSError:
        whole = _without_end_marker(path) if image.format == "JPEG" else None
        if whole is None:
            raise
        note(f"{path} lacks the marker at its end; all its pixels are there and are used")
        image = whole
    rgb = image_to_rgb(image, background=color)
    if image.format != "MPO":  # phones keep a preview or a second view in MPO
        try:
            frames = getattr(image, "n_frames", 1)
        except Exception:  # noqa: BLE001 - as in read_rgb; the first frame is read
            note(f"{path} has several frames or pages, the later ones damaged; the first is used")
            frames = 1
        if frames > 1:
            note(f"{path} has {frames} frames or pages; the first is used")
    return rgb


def _without_end_marker(path: Path) -> Image.Image | None:
    """The image of a JPEG that lacks only its end marker; None if pixels are missing too.

    Three different fillers take the place of the missing bytes: complete pixels do not depend on them.
    """
    content = path.read_bytes().rstrip(b"\xff")
    whole: list[Image.Image] = []
    for filler in (b"", b"\x5a" * 64, b"\xa5" * 64):
        image = Image.open(io.BytesIO(content + filler + b"\xff\xd9"))
        image.load()
        if whole and image.tobytes() != whole[0].tobytes():
            return None
        whole = whole or [image]
    return whole[0]


def _open(path: Path, head: bytes, check_size: CheckSize) -> Any:
    """The file as a Pillow image, not yet decoded; HEIF through its own package."""
    if not is_heif(head):
        try:
            return Image.open(path)
        except UnidentifiedImageError:
            # Pillow loads its plugins with the first photos, and skips those that another thread is loading.
            Image.init()
            return Image.open(path)
    with needs_extra("heif", "pillow-heif"):
        import pillow_heif
    with path.open("rb") as stream:
        file = pillow_heif.open_heif(stream, convert_hdr_to_8bit=True)
        check_size(*file.size)
        return file.to_pillow()


def _content_of(file: Any) -> bytes:
    """The bytes of an open file.

    Raises:
        InvalidValueError: it is opened as text, or gives no bytes.
    """
    try:
        content = file.read()
    except (UnicodeDecodeError, io.UnsupportedOperation) as error:
        raise InvalidValueError("an open file that gives no bytes is not accepted; open it with 'rb'") from error
    except ValueError as error:  # it is closed
        raise InvalidValueError(f"an open file cannot be read ({one_line(error)}); give one that is open") from error
    if not isinstance(content, bytes):
        raise InvalidValueError(f"an open file that gives {type(content).__name__} is not accepted; open it with 'rb'")
    return content


def _read_content(content: bytes, background: str) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of the bytes of a picture's file, by way of a temporary file: some decoders take nothing else."""
    with contextlib.ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "the given bytes"
            path.write_bytes(content)
        except OSError as error:
            told = error.strerror or error
            raise OutputError(f"cannot write a temporary file: {told}; free space for it, or set TMPDIR") from error
        try:
            return read_rgb(path, background=background)
        except ImageError as error:
            raise ImageError(str(error).replace(str(path), path.name)) from error


def _as_array(image: Any) -> tuple[np.ndarray, bool]:
    """The NumPy array of an array or tensor, and whether its library puts channels first, as torch does.

    Raises:
        InvalidValueError: it is something else, or does not hold plain numbers.
    """
    if callable(getattr(image, "detach", None)):  # torch, which is not imported here
        try:
            tensor = image.detach().cpu()
        except NotImplementedError as error:  # of torch's device "meta", which holds no numbers
            raise InvalidValueError(f"the tensor holds no numbers: {one_line(error)}") from error
        try:
            with quiet():
                try:
                    return tensor.numpy(), True
                except TypeError:  # bfloat16, which NumPy does not have
                    return tensor.float().numpy(), True
        except (TypeError, RuntimeError) as error:  # sparse, nested, quantized, conjugated lazily
            raise InvalidValueError(f"a dense tensor of plain numbers is accepted: {one_line(error)}") from error
    try:
        array = np.asarray(image)
    except Exception as error:  # arrays of other libraries, on devices or of types that NumPy does not have
        raise InvalidValueError(
            f"{_ACCEPTED_KINDS}; {type(image).__name__} cannot be made one: {one_line(error)}"
        ) from error
    if array.dtype.kind not in "biufc":
        raise InvalidValueError(f"{_ACCEPTED_KINDS}; {type(image).__name__} is given")
    return array, False


_ACCEPTED_KINDS = "a path, the bytes of a picture's file, a Pillow image, an array or a tensor is accepted"
_NEARLY_BLACK = 17  # 12 bits that are stored as 16
_VERBS = ("is ", "has ", "holds ", "its ")  # the first words of messages after the file's name


def _accepted() -> str:
    formats = "JPEG, PNG, WebP, TIFF, AVIF, HEIC, BMP, GIF, JPEG 2000, PPM, TGA, OpenEXR, Radiance"
    return f"accepted are {formats} and raw photos"
