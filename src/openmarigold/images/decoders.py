# SPDX-License-Identifier: Apache-2.0
"""Pictures that Pillow does not decode, through libraries that do: OpenImageIO (extra `formats`) for unusual TIFF and
Radiance, LibRaw by rawpy (extra `raw`) for raw photos. Nothing is decoded by hand.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from openmarigold.errors import ImageError, needs_extra, one_line
from openmarigold.images.pixels import EXIF_ORIENTATION, ROUNDING, as_stored

CheckSize = Callable[[int, int], None]
TOO_LARGE = "has more pixels than can be read safely; make it smaller first"

_PHOTOMETRIC = "tiff:PhotometricInterpretation"


class TooManyPixelsError(ImageError):
    """A photo with more pixels than are accepted."""


def check_pixels(width: int, height: int, *, most: int | None = None) -> None:
    """Checks the size of a photo [px] before its pixels are read; also for formats that Pillow does not open.

    Raises:
        TooManyPixelsError: more pixels than `most`, or than twice Pillow's `MAX_IMAGE_PIXELS`, which Pillow refuses.
    """
    pixels = width * height
    if most is not None and pixels > most:
        raise TooManyPixelsError(
            f"has {width}x{height} pixels, {pixels / 1e6:.1f} megapixels; {most / 1e6:.1f} megapixels at most are "
            "accepted: make it smaller first"
        )
    if Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise TooManyPixelsError(TOO_LARGE)


def read_raw(path: Path, *, check_size: CheckSize) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a raw photo, developed by LibRaw: the camera's white balance, sRGB, upright.

    Raises:
        ImageError: no raw photo, a damaged one, or one of a camera that LibRaw does not know.
        MissingExtraError: without the extra `raw`.
    """
    with needs_extra("raw", "rawpy, which reads raw photos,"):
        import rawpy
    try:
        with path.open("rb") as file, rawpy.imread(file) as raw:
            check_size(raw.sizes.width, raw.sizes.height)
            return np.ascontiguousarray(raw.postprocess(use_camera_wb=True, output_bps=8))
    except rawpy.LibRawError as error:
        why = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise ImageError(
            f"is a raw photo that LibRaw cannot read ({why}); develop it with other software and save it as JPEG"
        ) from error


def read_tiff(path: Path, *, page: int, check_size: CheckSize) -> Image.Image:
    """A page of a TIFF file with any bit depth and sample type; its profile and orientation are not applied yet.

    Raises:
        ImageError: the file is damaged, or its samples cannot be a picture.
        MissingExtraError: without the extra `formats`.
    """
    with _opened(path) as file:
        if page and not file.seek_subimage(page, 0):
            raise ImageError(f"is damaged: {one_line(file.geterror())}")
        spec = file.spec()
        check_size(spec.width, spec.height)
        pixels = _pixels(file, page)
        alpha = spec.alpha_channel
        names = list(spec.channelnames)
        colors = [names.index(name) for name in "RGB"] if {"R", "G", "B"} <= set(names) else [0]
        if len(colors) == 1 and spec.nchannels - (alpha >= 0) > 1 and spec.get_int_attribute(_PHOTOMETRIC, 1) > 1:
            raise ImageError(f"has the channels {', '.join(names)}; save it as RGB or gray with 8 or 16 bits")
        # The file stores white as 0; OpenImageIO inverts only 8-bit samples.
        inverted = spec.get_int_attribute(_PHOTOMETRIC, 1) == 0 and pixels.dtype != np.uint8
        levels = _levels(pixels[..., colors], inverted=inverted)
        opaque = _levels(pixels[..., [alpha]]) if alpha >= 0 else None
        separate = bool(spec.get_int_attribute("tiff:UnassociatedAlpha", 0))
        image = _image(levels, opaque, multiplied=not separate)
        image.getexif()[EXIF_ORIENTATION] = spec.get_int_attribute("Orientation", 1)
        profile = spec.getattribute("ICCProfile")
        if profile is not None:
            image.info["icc_profile"] = np.asarray(profile, dtype=np.uint8).tobytes()
    return image


def read_radiance(path: Path, *, check_size: CheckSize) -> Float32[np.ndarray, "h w 3"]:
    """Linear light of a Radiance file, upright.

    Raises:
        ImageError: the file is damaged, or of the variant XYZ.
        MissingExtraError: without the extra `formats`.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if b"FORMAT=32-bit_rle_xyze" in head.split(b"\n\n")[0]:
        raise ImageError("is a Radiance file in XYZ; save it as RGB")
    with _opened(path) as file:
        spec = file.spec()
        check_size(spec.width, spec.height)
        linear = _pixels(file, 0)[..., :3]
        orientation = spec.get_int_attribute("Orientation", 1)
        size = linear.shape[:2] if orientation < 5 else linear.shape[1::-1]
        upright = np.empty((*size, 3), dtype=linear.dtype)
        as_stored(upright, orientation)[...] = linear
        return upright


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open file of OpenImageIO, which is closed at the end."""
    with needs_extra("formats", "OpenImageIO, which reads this kind of file,"):
        import OpenImageIO
    with _named_in_utf_8(path) as name:
        config = OpenImageIO.ImageSpec()
        config["oiio:UnassociatedAlpha"] = 1
        file = OpenImageIO.ImageInput.open(name, config)
        if file is None:
            raise ImageError(f"is damaged or of a kind that is not read: {one_line(OpenImageIO.geterror())}")
        try:
            yield file
        finally:
            file.close()


@contextlib.contextmanager
def _named_in_utf_8(path: Path) -> Iterator[str]:
    """A name of the file that OpenImageIO accepts: a link in a temporary folder if the file's name is not UTF-8."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, "picture")
            os.symlink(path.resolve(), link)
            yield link
        return
    yield name


def _pixels(file: Any, page: int) -> np.ndarray:
    """All channels [h w c] as stored."""
    import OpenImageIO

    pixels = file.read_image(page, 0, 0, file.spec().nchannels, OpenImageIO.UNKNOWN)
    if pixels is None:
        raise ImageError(f"is damaged: {one_line(file.geterror())}")
    return pixels


def _levels(pixels: np.ndarray, *, inverted: bool = False) -> UInt8[np.ndarray, "h w c"]:
    """Samples of any type as 0 … 255; white is the largest value of the type, for floats 1."""
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also for NaN
            raise ImageError(
                f"has float samples {low:g} … {high:g}; 0 … 1 is accepted: save linear light of any range as .exr"
            )
        top = 1.0
    else:
        if pixels.dtype.kind == "i" and pixels.min() < 0:
            raise ImageError("has negative samples, which no picture has; save it as RGB or gray with 8 or 16 bits")
        top = float(np.iinfo(pixels.dtype).max)  # OpenImageIO widens 12 bits to 16
    scaled = np.clip(pixels.astype(np.float64) * (255 / top), 0, 255)
    return np.rint(255 - scaled if inverted else scaled).astype(np.uint8)


def _image(levels: np.ndarray, opaque: np.ndarray | None, *, multiplied: bool) -> Image.Image:
    """A Pillow image of colors or grays and their alpha; `multiplied`: the colors are already multiplied by alpha."""
    if opaque is None:
        return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    if levels.shape[2] == 1 and not multiplied:
        return Image.merge("LA", [Image.fromarray(np.ascontiguousarray(plane[..., 0])) for plane in (levels, opaque)])
    colors = np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels
    size = levels.shape[1], levels.shape[0]
    rgba = np.concatenate([colors, opaque], axis=2).tobytes()
    return Image.frombytes("RGBa" if multiplied else "RGBA", size, rgba)
