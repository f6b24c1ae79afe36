# SPDX-License-Identifier: Apache-2.0
"""Maps as pictures: color maps, and grays for uncertainty."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from openmarigold.errors import InvalidValueError, MissingExtraError
from openmarigold.images.pixels import encode_srgb
from openmarigold.privacy import matplotlib_without_folder

# ColorBrewer's "Spectral" in 11 classes, from red (near) to violet (far).
_SPECTRAL = (
    (158, 1, 66),
    (213, 62, 79),
    (244, 109, 67),
    (253, 174, 97),
    (254, 224, 139),
    (255, 255, 191),
    (230, 245, 152),
    (171, 221, 164),
    (102, 194, 165),
    (50, 136, 189),
    (94, 79, 162),
)
_LEVELS_PER_CLASS = 256
_STRIP_PIXELS = 2**15
"""Size of the parts of maps that are converted at a time, so that intermediate results stay in the cache of a core."""


def color_table(name: str = "Spectral") -> UInt8[np.ndarray, "n 3"]:
    """Colors of a map by name from near (first) to far (last), and black for what is not a number as last row.

    Spectral is built in; any other name is asked of matplotlib.

    Raises:
        InvalidValueError: no such map.
        MissingExtraError: another map than Spectral without the extra `plots`.
    """
    if name == "Spectral":
        positions = np.linspace(0, len(_SPECTRAL) - 1, (len(_SPECTRAL) - 1) * _LEVELS_PER_CLASS + 1)
        channels = np.array(_SPECTRAL, dtype=np.float64).T
        table = np.stack([np.interp(positions, np.arange(len(_SPECTRAL)), channel) for channel in channels], axis=-1)
        table = np.rint(table)
    else:
        table = np.rint(255.0 * _matplotlib_colors(name))
    return np.concatenate([table, np.zeros((1, 3))]).astype(np.uint8)


def colorize(
    affine_depth: Float[np.ndarray, "h w"],
    *,
    color_map: str = "Spectral",
    to_share: Callable[[np.ndarray, np.ndarray], object] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Picture of an affine depth in a color map: in Spectral 0 (near) is red, 1 (far) violet.

    Values outside [0, 1] take the end colors; pixels that are not a number become black.

    Args:
        affine_depth: what is shown.
        color_map: its name.
        to_share: where another map than affine depth is shown: called with rows of it, writes float32 for which the
            above holds into its second argument.

    Raises:
        InvalidValueError, MissingExtraError: see `color_table`.
    """
    table = color_table(color_map)
    picture = np.empty((*affine_depth.shape, 3), dtype=np.uint8)
    rows = strip_rows(affine_depth.shape[1])
    levels = np.empty((rows, affine_depth.shape[1]), dtype=affine_depth.dtype if to_share is None else np.float32)
    places = np.empty(levels.shape, dtype=np.intp)
    for top in range(0, len(picture), rows):
        strip = affine_depth[top : top + rows]
        level, place = levels[: len(strip)], places[: len(strip)]
        if to_share is not None:
            to_share(strip, level)
            strip = level
        np.clip(strip, 0.0, 1.0, out=level)
        level *= len(table) - 2
        np.rint(level, out=level)
        unknown = np.isnan(level)
        level[unknown] = 0
        place[:] = level
        place[unknown] = len(table) - 1  # not by way of the level: half precision has no such number
        table.take(place, axis=0, out=picture[top : top + rows], mode="clip")  # three times as fast as table[place]
    return picture


def strip_rows(width: int) -> int:
    """Rows of a map of this width that are converted at a time."""
    return max(1, _STRIP_PIXELS // max(1, width))


def to_levels(
    values: Float[np.ndarray, "h w *c"], *, dtype: type[np.unsignedinteger], white: float = 1.0, encode: bool = False
) -> Shaped[np.ndarray, "h w *c"]:
    """Values from 0 to `white` as whole numbers of all the range of `dtype`, rounded; others become the nearest of it.

    With `encode`, values are linear light, and the numbers are sRGB.
    """
    top_level = np.float32(np.iinfo(dtype).max)
    levels = np.empty(values.shape, dtype=dtype)
    rows = strip_rows(values.shape[1])
    for top in range(0, len(levels), rows):
        strip = np.clip(values[top : top + rows] / np.float32(white), 0.0, 1.0)
        levels[top : top + rows] = np.rint((encode_srgb(strip) if encode else strip) * top_level)
    return levels


def uncertainty_picture(uncertainty: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Gray picture of an uncertainty map: 0 is black, the largest 2 % are white; one that is 0 everywhere is black."""
    white = float(np.quantile(uncertainty[:: max(1, uncertainty.shape[0] // 1000)], 0.98)) or float(uncertainty.max())
    picture = np.zeros(uncertainty.shape, dtype=np.uint8)
    if white > 0:
        for row, values in zip(picture, uncertainty, strict=True):
            row[:] = np.rint(255 * np.clip(values / white, 0, 1))
    return picture


def _matplotlib_colors(name: str) -> Float[np.ndarray, "n 3"]:
    try:
        with matplotlib_without_folder():
            import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    if not isinstance(name, str):
        raise InvalidValueError(f"color_map={name!r:.60} is not a text; give the name of a color map, such as Spectral")
    if name not in matplotlib.colormaps:
        near = difflib.get_close_matches(name, ["Spectral", *matplotlib.colormaps], n=3, cutoff=0.5)
        hint = ", ".join(near) or "Spectral, viridis or another map of matplotlib"
        raise InvalidValueError(f"color_map={name!r} is not known; try {hint}")
    colors = matplotlib.colormaps[name]
    return np.asarray(colors(np.arange(colors.N)), dtype=np.float64)[:, :3]
