# SPDX-License-Identifier: Apache-2.0
"""Any Pillow image or array to RGB uint8 [h w 3]: upright, in sRGB, without alpha.

A large image is converted in strips of rows straight into its result, so that beside Pillow's own 4 bytes a pixel only
the result's 3 bytes a pixel are held.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageColor

from openmarigold.errors import ImageError, InvalidValueError

Colour: TypeAlias = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)

_STRIP_PIXELS = 2**20
_EXIF_ORIENTATION = 0x0112
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
# The space of an ICC profile: the mode that it describes, and the modes of images that are given in it.
_PROFILE_MODES = {
    "RGB": ("RGB", ("RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "1")),
    "GRAY": ("L", ("L", "LA", "1")),
    "CMYK": ("CMYK", ("CMYK",)),
}


def parse_colour(name: str) -> Colour:
    """Red, green and blue of a CSS name or of #rrggbb.

    >>> parse_colour("white"), parse_colour("#204080")
    ((255, 255, 255), (32, 64, 128))

    Raises:
        InvalidValueError: no such colour.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise InvalidValueError(
            f"background={name!r} is not a colour; use a name as in CSS (white, black, grey) or #rrggbb"
        ) from error


def image_to_rgb(image: Image.Image, *, background: Colour = WHITE) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a loaded Pillow image of any mode: EXIF orientation and ICC profile applied, alpha over `background`.

    Raises:
        ImageError: grey levels of unknown range.
    """
    width, height = image.size
    orientation = _orientation(image)
    rgb = np.empty((height, width, 3) if orientation < 5 else (width, height, 3), dtype=np.uint8)
    stored = _as_stored(rgb, orientation)
    convert = _converter(image, background)
    rows = max(1, _STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = convert(strip)
    return rgb


def array_to_rgb(array: np.ndarray, *, background: Colour = WHITE) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an array [h w] or [h w c] with 1, 3 or 4 channels; see `image.as_rgb`.

    Raises:
        InvalidValueError: an array of another shape, type or range.
    """
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
        array = np.rint(array[..., :3] * alpha + np.array(background, dtype=np.float32) * (1.0 - alpha)).astype(
            np.uint8
        )
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.array(array)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 … 8, or 1 where the tag is absent or its block is damaged (the pixels may be fine)."""
    try:
        orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - Pillow raises many kinds for damaged tags
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _as_stored(rgb: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "hs ws 3"]:
    """View of an upright image whose rows and columns are those of the file."""
    stored = rgb if orientation < 5 else rgb.swapaxes(0, 1)
    rows_reversed = orientation in (3, 4, 6, 7)
    columns_reversed = orientation in (2, 3, 7, 8)
    return stored[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]


def _converter(image: Image.Image, background: Colour) -> Callable[[Image.Image], UInt8[np.ndarray, "n w 3"]]:
    """What turns a strip of the image into RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return lambda strip: array_to_rgb(_deep_pixels(strip))
    to_srgb = _profile_transform(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:

        def over_background(strip: Image.Image) -> np.ndarray:
            strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            if to_srgb is not None:
                colours = to_srgb(strip)
                colours.putalpha(strip.getchannel("A"))
                strip = colours
            below = Image.new("RGBA", strip.size, (*background, 255))
            return np.asarray(Image.alpha_composite(below, strip).convert("RGB"))

        return over_background
    if to_srgb is not None:
        return lambda strip: np.asarray(to_srgb(strip))
    return lambda strip: np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _profile_transform(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """What turns a strip into sRGB by the image's ICC profile; None without one, or where it is sRGB or of no use."""
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
        return None  # a damaged profile must not cost the photo

    def apply(strip: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(strip if strip.mode == mode else strip.convert(mode), transform)
        assert converted is not None, "it is only None in place"
        return converted

    return apply


def _deep_pixels(image: Image.Image) -> Float[np.ndarray, "n w"] | np.ndarray:
    """uint16 or float array of a grey image with more than 8 bits; Pillow's own conversion would clip at 255."""
    pixels = np.asarray(image)
    if image.mode == "F":
        low, high = 0.0, 1.0
    else:
        low, high = 0, 65535
    if not (pixels.min() >= low and pixels.max() <= high):  # also false for NaN
        raise ImageError(
            f"pixel values of mode {image.mode} lie outside {low} … {high}; save it with 8 or 16 bits, or linear light "
            "of any range as .exr"
        )
    return pixels if image.mode == "F" else pixels.astype(np.uint16)
