# SPDX-License-Identifier: Apache-2.0
"""Any Pillow image or array as RGB uint8 [h w 3]: upright, in sRGB, without alpha. Also linear light (IEC 61966-2-1).

A large image is converted in strips of rows directly into its result: memory holds only Pillow's 4 bytes per pixel and
the result's 3.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image, ImageColor

from openmarigold.errors import ImageError, InvalidValueError
from openmarigold.images.tiff import check_tiff_image, white_is_zero

Color: TypeAlias = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
EXIF_ORIENTATION = 0x0112
ROUNDING = 1e-3  # beyond [0, 1] of floats: a quarter of one level of 255, which changes no level

_STRIP_PIXELS = 2**17  # small enough for the cache of a core
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
# The color space of an ICC profile: its Pillow mode, and the modes of images that it may belong to.
_PROFILE_MODES = {
    "RGB": ("RGB", ("RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "1")),
    "GRAY": ("L", ("L", "LA", "1")),
    "CMYK": ("CMYK", ("CMYK",)),
}


def parse_color(name: str) -> Color:
    """Red, green and blue of a CSS name or of #rrggbb.

    >>> parse_color("white"), parse_color("#204080")
    ((255, 255, 255), (32, 64, 128))

    Raises:
        InvalidValueError: no such color.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except (AttributeError, TypeError, ValueError) as error:  # the first two: no text
        raise InvalidValueError(
            f"background={name!r} is not a color; use a name as in CSS (white, black, gray) or #rrggbb"
        ) from error


def image_to_rgb(image: Image.Image, *, background: Color = WHITE) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a loaded Pillow image of any mode: EXIF orientation and ICC profile applied, alpha over `background`.

    Raises:
        ImageError: gray levels of unknown range, or a kind of TIFF that Pillow decodes wrongly.
    """
    check_tiff_image(image)
    width, height = image.size
    orientation = exif_orientation(image)
    rgb = np.empty((height, width, 3) if orientation < 5 else (width, height, 3), dtype=np.uint8)
    stored = as_stored(rgb, orientation)
    convert = _converter(image, background)
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = convert(strip)
    return rgb


def keep_transparency(image: Image.Image) -> None:
    """Adapts the transparent color of a PNG image, not loaded yet, to its pixels, which Pillow scales to 8 bits.

    Two colors of 16 bits may become the same color of 8 bits, so images of 16 bits get an alpha channel.
    """
    tiles = getattr(image, "tile", None)
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not tiles:
        return
    raw = tiles[0][3] if isinstance(tiles[0][3], str) else tiles[0][3][0]
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif isinstance(key, tuple) and raw == "RGB;16B":
        file: Any = image.fp  # pyright: ignore[reportAttributeAccessIssue]
        position = file.tell()
        file.seek(0)
        low = Image.open(io.BytesIO(file.read()))
        file.seek(position)
        low.tile = [(*tile[:3], "RGB;16L") for tile in low.tile]  # pyright: ignore
        low.load()
        image.load()
        transparent = np.asarray(image) == np.array([value >> 8 for value in key], dtype=np.uint8)
        transparent &= np.asarray(low) == np.array([value & 255 for value in key], dtype=np.uint8)
        image.putalpha(Image.fromarray(np.where(transparent.all(axis=2), 0, 255).astype(np.uint8)))
        image.info.pop("transparency", None)


def array_to_rgb(
    array: np.ndarray, channels_first: bool = False, *, background: Color = WHITE
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an array [h w], [h w c] or [c h w] with 1, 3 or 4 channels; see `photo.as_rgb`.

    If the first and the last axis may both be channels, an array is read as [h w c]; with `channels_first` (tensors) it
    is refused.

    Raises:
        InvalidValueError: an array of another shape, type or range.
    """
    array = _channels_last(array, channels_first=channels_first)
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= -ROUNDING and high <= 1.0 + ROUNDING):  # also false for NaN
            advice = "divide by 255?" if low >= 0 and 2 < high <= 255 else "clip it, or scale it to that range"
            raise InvalidValueError(
                f"floating-point image has values {low:.9g} … {high:.9g}; [0, 1] is accepted, and {ROUNDING:g} beyond "
                f"it for rounding: {advice}"
            )
        array = np.rint(np.clip(array, 0, 1) * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        advice = ": convert it with astype(numpy.uint8) if its values are 0 … 255" if array.dtype.kind in "iu" else ""
        raise InvalidValueError(
            f"an image of type {array.dtype} is not accepted; use uint8, uint16 or float in [0, 1]{advice}"
        )
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255.0
        array = np.rint(array[..., :3] * alpha + np.array(background, dtype=np.float32) * (1.0 - alpha)).astype(
            np.uint8
        )
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.array(array)


def _channels_last(array: np.ndarray, *, channels_first: bool) -> np.ndarray:
    """The array as [h w c].

    Raises:
        InvalidValueError: the shape does not fit, or is ambiguous.
    """
    if array.ndim == 2 and array.size > 0:
        return array[..., None]
    if array.ndim == 3 and array.size > 0:
        first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if first and last and channels_first:
            raise InvalidValueError(
                f"a tensor of shape {array.shape} may be [h w c] or [c h w]; give it as a NumPy array, which is [h w c]"
            )
        if first or last:
            return array if last else np.moveaxis(array, 0, -1)
    hint = "; give the pictures of a batch one by one" if array.ndim == 4 else ""
    raise InvalidValueError(
        f"an image of shape {array.shape} is not [h w], [h w c] or [c h w] with c = 1, 3 or 4{hint}"
    )


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8, or 1 if the tag is absent or its block is damaged (the pixels may be fine)."""
    try:
        stated = int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - Pillow raises many kinds for damaged tags
        return 1
    return stated if 1 <= stated <= 8 else 1


def as_stored(rgb: Shaped[np.ndarray, "h w 3"], orientation: int) -> Shaped[np.ndarray, "hs ws 3"]:
    """View of an upright image whose rows and columns are those of the file."""
    stored = rgb if orientation < 5 else rgb.swapaxes(0, 1)
    rows_reversed = orientation in (3, 4, 6, 7)
    columns_reversed = orientation in (2, 3, 7, 8)
    return stored[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]


def _converter(image: Image.Image, background: Color) -> Callable[[Image.Image], UInt8[np.ndarray, "n w 3"]]:
    """A function that turns a strip of the image into RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_converter(image, background)
    to_srgb = _profile_transform(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:

        def over_background(strip: Image.Image) -> np.ndarray:
            strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            if to_srgb is not None:
                colors = to_srgb(strip)
                colors.putalpha(strip.getchannel("A"))
                strip = colors
            below = Image.new("RGBA", strip.size, (*background, 255))
            return np.asarray(Image.alpha_composite(below, strip).convert("RGB"))

        return over_background
    if to_srgb is not None:
        return lambda strip: np.asarray(to_srgb(strip))
    return lambda strip: np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _profile_transform(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """Conversion of a strip to sRGB by the image's ICC profile; None if there is none, or it is sRGB or unusable."""
    content = image.info.get("icc_profile")
    if not isinstance(content, bytes) or not content or b"sRGB IEC61966" in content:
        return None
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = profile.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]
        mode, accepted = _PROFILE_MODES[space]
        if image.mode not in accepted:
            return None
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError):
        return None  # a damaged profile must not make the photo unreadable

    def apply(strip: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(strip if strip.mode == mode else strip.convert(mode), transform)
        assert converted is not None, "it is only None in place"
        return converted

    return apply


def _deep_converter(image: Image.Image, background: Color) -> Callable[[Image.Image], UInt8[np.ndarray, "n w 3"]]:
    """A function that turns a strip of a gray image of more than 8 bits into RGB; Pillow would clip it at 255.

    Raises:
        ImageError: integers that may be 8 or 16 bits.
    """
    inverted = white_is_zero(image)
    key = image.info.get("transparency")  # in PNG, one gray level
    if image.mode == "I" and image.format is None:  # not from a file, so the range is unknown
        extrema = image.getextrema()
        if 1 < extrema[1] <= 255:  # pyright: ignore[reportOperatorIssue]
            raise ImageError(
                f"the image has mode I and values up to {extrema[1]}, which may be 8 or 16 bits; convert it to mode L "
                "(0 to 255) or I;16 (0 to 65535)"
            )

    def convert(strip: Image.Image) -> np.ndarray:
        pixels = _deep_pixels(strip)
        rgb = array_to_rgb(65535 - pixels if inverted else pixels)
        if isinstance(key, int):
            rgb[pixels == key] = background
        return rgb

    return convert


def _deep_pixels(image: Image.Image) -> Float[np.ndarray, "n w"] | np.ndarray:
    """uint16 or float array of a gray image with more than 8 bits; Pillow's own conversion would clip at 255."""
    pixels = np.asarray(image)
    low, high = (0.0, 1.0) if image.mode == "F" else (0, 65535)
    if not (pixels.min() >= low and pixels.max() <= high):  # also false for NaN
        raise ImageError(
            f"pixel values of mode {image.mode} lie outside {low} … {high}; save it with 8 or 16 bits, or linear light "
            "of any range as .exr"
        )
    return pixels if image.mode == "F" else pixels.astype(np.uint16)


def encode_srgb(light: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Values in sRGB, [0, 1], of linear light [0, 1].

    >>> round(float(encode_srgb(np.array(0.18))), 3)
    0.461
    """
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)


def decode_srgb(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Linear light, [0, 1], of values in sRGB [0, 1]."""
    return np.where(values <= 0.04045, values / 12.92, np.power((values + 0.055) / 1.055, 2.4))


def light_of_pixels(rgb: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Linear light, [0, 1], of the pixels of a photo in sRGB."""
    return _light_of_levels()[rgb]


@cache
def _light_of_levels() -> Float32[np.ndarray, " levels"]:
    return decode_srgb(np.arange(256) / 255).astype(np.float32)
