# SPDX-License-Identifier: Apache-2.0
"""Reading photos, resizing and padding.

Every photo becomes RGB uint8 [h w 3], upright, without alpha; the network's size is then reached by `processing_size`,
`resize` and `pad_to_multiple`, and left again by `unpad` and `resize`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from openmarigold.errors import ImageError, InvalidValueError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})

MAX_ASPECT = 8  # of photos whose size is given by the shorter side; a strip must not need a lot of memory

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "PA")


def read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a photo, upright (EXIF orientation applied), alpha composited on white, 16 bits rescaled to 8.

    Raises:
        ImageError: missing, empty, truncated, too large or not an image; the message is one line.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not an image file")
        if not path.exists():
            raise ImageError(f"{path} does not exist; check the name")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes); copy it again")
        with warnings.catch_warnings():
            # Pillow warns above 89 megapixels, which medium-format photos have; it refuses above 179.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _to_rgb(image)
    except ImageError as error:
        raise error if str(path) in str(error) else ImageError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        accepted = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ImageError(f"{path} is not an image that can be read; accepted are {accepted}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has more pixels than can be read safely; make it smaller first") from error
    except Exception as error:
        # Pillow's decoders raise whatever damaged bytes lead to: OSError, SyntaxError, ValueError, struct.error …
        raise ImageError(f"{path} is damaged or cannot be read: {_one_line(error)}") from error


def as_rgb(image: Image.Image | np.ndarray | str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a path, a Pillow image, or an array [h w] or [h w c] with 1, 3 or 4 channels (RGB order, alpha last).

    Arrays are uint8, uint16 (full range 65535) or floating point in [0, 1]. Alpha is composited on white.

    Raises:
        ImageError: a path or Pillow image that cannot be read.
        InvalidValueError: an array of another shape, type or range.
    """
    if isinstance(image, (str, Path)):
        return read_rgb(Path(image))
    if isinstance(image, Image.Image):
        try:
            return _to_rgb(image)
        except ImageError:
            raise
        except Exception as error:  # a lazily opened file is decoded only now; see read_rgb
            raise ImageError(f"the image cannot be read: {_one_line(error)}") from error
    return _array_to_rgb(np.asarray(image))


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

    >>> processing_size(480, 640, processing_resolution=768)
    (576, 768)
    >>> processing_size(375, 1242, processing_resolution=96, side="shorter")
    (96, 317)
    """
    if processing_resolution == 0:
        return height, width
    longer, shorter = max(height, width), min(height, width)
    measured = longer if side == "longer" else max(shorter, -(-longer // MAX_ASPECT))
    return max(8, height * processing_resolution // measured), max(8, width * processing_resolution // measured)


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


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a Pillow image of any mode."""
    upright = _UPRIGHT.get(_orientation(image))
    if upright is not None:
        image = image.transpose(upright)
    if image.mode.startswith("I") or image.mode == "F":
        return _array_to_rgb(_deep_pixels(image))
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8, or 1 where the tag is absent or its block is damaged (the pixels may be fine)."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - Pillow raises many kinds for damaged tags
        return 1


def _deep_pixels(image: Image.Image) -> np.ndarray:
    """uint16 or float array of a grey image with more than 8 bits; Pillow's own conversion would clip at 255."""
    pixels = np.asarray(image)
    if image.mode == "F":
        low, high = 0.0, 1.0
    else:
        low, high = 0, 65535
    if not (pixels.min() >= low and pixels.max() <= high):  # also false for NaN
        raise ImageError(f"pixel values of mode {image.mode} lie outside {low} … {high}; save it with 8 or 16 bits")
    return pixels if image.mode == "F" else pixels.astype(np.uint16)


def _array_to_rgb(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an array [h w] or [h w c]; see `as_rgb`."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        hint = "; move the channels to the last axis" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InvalidValueError(f"an image of shape {array.shape} is not [h w] or [h w c] with c = 1, 3 or 4{hint}")
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0.0 and array.max() <= 1.0):  # also false for NaN
            raise InvalidValueError(
                f"floating-point image has values {array.min():g} … {array.max():g}; [0, 1] is accepted: divide by 255?"
            )
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InvalidValueError(f"an image of type {array.dtype} is not accepted; use uint8, uint16 or float in [0, 1]")
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255.0
        array = np.rint(array[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.array(array)


def _interpolate(planes: Float32[np.ndarray, "n h w"], length: int, *, axis: int) -> Float32[np.ndarray, "n ho wo"]:
    """One axis resized with two taps per output pixel, whatever the ratio."""
    source = planes.shape[axis]
    # float32 like torch, so that both pick the same weights: at 4000 px they differ from exact ones by 1e-4.
    centre = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(source / length) - np.float32(0.5)
    centre = np.clip(centre, np.float32(0.0), np.float32(source - 1))
    left = centre.astype(np.intp)
    right = np.minimum(left + 1, source - 1)
    weight = np.expand_dims(centre - left.astype(np.float32), axis=1 if axis == 1 else 0)
    out, step = planes.take(left, axis=axis), planes.take(right, axis=axis)
    step -= out
    step *= weight
    out += step
    return out


def _one_line(error: BaseException) -> str:
    """The error's text on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
