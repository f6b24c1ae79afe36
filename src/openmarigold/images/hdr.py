# SPDX-License-Identifier: Apache-2.0
"""Pictures in linear light (OpenEXR and Radiance), read and tone-mapped to look like a camera's photo.

Tone mapping: Reinhard et al., "Photographic tone reproduction for digital images", SIGGRAPH 2002, eqs. 1, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from openmarigold.errors import ImageError
from openmarigold.images.decoders import read_radiance
from openmarigold.images.exr import exr_size, read_exr_picture
from openmarigold.images.kinds import EXR_MAGIC, HEAD_BYTES, is_radiance
from openmarigold.images.pixels import encode_srgb

_KEY = 0.18  # middle gray, to which the log-average is mapped; eq. 2
_WHITE_QUANTILE = 0.99  # pixels above become white; eq. 4
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
_STRIP_PIXELS = 2**20
_SAMPLES = 2**20  # pixels that set the exposure


def is_linear_light(head: bytes) -> bool:
    """Whether a file that begins like this is OpenEXR or Radiance."""
    return head.startswith(EXR_MAGIC) or is_radiance(head)


def read_tone_mapped(
    path: Path,
    *,
    background: tuple[int, int, int],
    check_size: Callable[[int, int], None],
    note: Callable[[str], object],
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of an OpenEXR or Radiance file; `check_size(width, height)` may refuse it before its pixels are read.

    Raises:
        ImageError: the file is damaged, or without the channels of a picture.
        MissingExtraError: OpenEXR without the extra `exr`, Radiance without the extra `formats`.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if is_radiance(head):
        return tone_map(read_radiance(path, check_size=check_size))
    height, width = exr_size(path)
    check_size(width, height)
    channels, deep = read_exr_picture(path)
    if deep:
        note(f"{path} is a deep OpenEXR file; its samples are laid over each other by their depth")
    colors, alpha = _picture(channels)
    rgb = tone_map(colors)
    if alpha is None:
        return rgb
    # Colors of OpenEXR are multiplied with their alpha already.
    behind = np.array(background, dtype=np.float32) * (1 - np.clip(np.nan_to_num(alpha), 0, 1))[..., None]
    return np.minimum(np.rint(rgb + behind), 255).astype(np.uint8)


def tone_map(linear: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Linear light in any unit as an sRGB picture; a constant factor on the light does not change the picture.

    Negative and undefined values are black, infinite ones white.
    """
    height, width, _ = linear.shape
    step = max(1, int(np.sqrt(height * width / _SAMPLES)))
    luminance = _cleaned(linear[::step, ::step]) @ _LUMINANCE
    lit = luminance[luminance > 0].astype(np.float64)
    if lit.size == 0:
        return np.zeros(linear.shape, dtype=np.uint8)
    exposure = _KEY / np.exp(np.log(lit).mean())
    white = max(float(np.quantile(lit, _WHITE_QUANTILE)) * exposure, 1.0)
    rgb = np.empty(linear.shape, dtype=np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        exposed = np.minimum(_cleaned(linear[top : top + rows]).astype(np.float64) * exposure, 1e9)
        luminance = (exposed @ _LUMINANCE.astype(np.float64))[..., None]
        shown = exposed * (1 + luminance / white**2) / (1 + luminance)
        rgb[top : top + rows] = np.rint(255 * encode_srgb(np.clip(shown, 0, 1)))
    return rgb


def _cleaned(linear: np.ndarray) -> np.ndarray:
    largest = float(np.finfo(np.float32).max) / 4
    return np.clip(np.nan_to_num(linear, nan=0.0, posinf=largest, neginf=0.0), 0.0, largest)


def _picture(channels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """Colors [h w 3] and alpha of a file's main layer, else of its first layer with colors, else its luminance.

    Raises:
        ImageError: no such channels, or some of them with fewer pixels than others.
    """
    layers = ["", *sorted({name[: name.rindex(".") + 1] for name in channels if "." in name})]
    for layer in layers:
        for names in (("R", "G", "B"), ("r", "g", "b"), ("Y", "RY", "BY"), ("Y", "Y", "Y")):
            if all(layer + name in channels for name in names):
                planes = [channels[layer + name].astype(np.float32) for name in names]
                alpha = channels.get(layer + "A", channels.get(layer + "a"))
                colors = _of_chroma(*planes) if "RY" in names else planes
                if len({plane.shape for plane in (*colors, *([] if alpha is None else [alpha]))}) > 1:
                    raise ImageError("has colors of different sizes; save it without subsampling")
                return np.stack(colors, axis=-1), alpha
    raise ImageError(f"has the channels {', '.join(sorted(channels))}; a picture has R, G and B, or Y")


def _of_chroma(luminance: np.ndarray, red: np.ndarray, blue: np.ndarray) -> list[np.ndarray]:
    """Red, green and blue of luminance and its two chroma channels, which may have half its size.

    OpenEXR: "Technical introduction", luminance/chroma images: RY = (R - Y) / Y, BY = (B - Y) / Y.
    """
    height, width = luminance.shape
    ratios = []
    for chroma in (red, blue):
        rows, columns = -(-height // chroma.shape[0]), -(-width // chroma.shape[1])
        ratios.append(chroma.repeat(rows, axis=0).repeat(columns, axis=1)[:height, :width] + 1)
    red, blue = (luminance * ratio for ratio in ratios)
    green = (luminance - _LUMINANCE[0] * red - _LUMINANCE[2] * blue) / _LUMINANCE[1]
    return [red, green, blue]
