# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of a prepared data set: RGB next to its maps, and facts about each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError, InvalidValueError, OutputError
from openmarigold.files import write_atomically
from openmarigold.modalities.colors import colorize
from openmarigold.modalities.depth import depth_range

_WIDTH = 288
_GAP = 6
_TEXT_HEIGHT = 30
_MOST_JPEG_ROWS = 65500  # of libjpeg
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


def write_preview(folder: Path, output: Path, *, count: int = 24, columns: int = 2, overwrite: bool = False) -> int:
    """Writes a picture of `count` samples, evenly spread over the data set; returns how many there were.

    A map of one channel, such as depth, is colored from its 2 % (red) to its 98 % quantile (violet) in the range that
    training uses; unknown pixels are black. Other maps show their first three channels, scaled from smallest to largest
    value.

    Raises:
        DataError: no prepared data set, one without samples, or a damaged sample.
        InvalidValueError: an output that is neither .jpg nor .png, a count below 1, or more rows than a JPEG has.
        OutputError: the picture cannot be written, or it exists and `overwrite` is False.
    """
    kind = _FORMATS.get(output.suffix.lower())
    if kind is None:
        raise InvalidValueError(f"output={output} must end in .jpg or .png")
    if count < 1:
        raise InvalidValueError(f"count={count} must be at least 1")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; choose another name, or overwrite it (--overwrite)")
    data = ShardedDataset(folder)
    if not len(data):
        raise DataError(
            f"{folder} holds no samples, so there is nothing to show; its manifest.json says what was left out"
        )
    count = min(count, len(data))
    cells = [_cell(data, round(number)) for number in np.linspace(0, len(data) - 1, count)]
    data.close()
    sheet = _sheet(cells, min(columns, count), (1 + len(data.encodings)) * _WIDTH)
    if kind == "JPEG" and sheet.height > _MOST_JPEG_ROWS:
        raise InvalidValueError(
            f"a JPEG has at most {_MOST_JPEG_ROWS} rows, and {count} samples need {sheet.height}; give fewer, "
            "or an output that ends in .png"
        )
    write_atomically(output, lambda temporary: sheet.save(temporary, kind, quality=90))
    return count


def _sheet(cells: list[Image.Image], columns: int, width: int) -> Image.Image:
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, sum(heights) + _GAP), "white")
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_GAP + column * (width + _GAP), top))
        top += height
    return sheet


def _cell(data: ShardedDataset, index: int) -> Image.Image:
    sample = data.read(index)
    height = max(1, round(_WIDTH * sample.rgb.shape[0] / sample.rgb.shape[1]))
    cell = Image.new("RGB", ((1 + len(data.encodings)) * _WIDTH, height + _TEXT_HEIGHT), "white")
    cell.paste(Image.fromarray(sample.rgb).resize((_WIDTH, height)), (0, 0))
    second = f"{sample.kind}, {data.scenes[index]}, {sample.rgb.shape[1]}x{sample.rgb.shape[0]}"
    for number, values in enumerate(sample.maps.values(), start=1):
        # Nearest, so that no depth between two surfaces is invented.
        picture = Image.fromarray(_colored(values, data.valid_range) if values.ndim == 2 else _stretched(values))
        cell.paste(picture.resize((_WIDTH, height), Image.Resampling.NEAREST), (number * _WIDTH, 0))
        second += f"; {_range_text(values, data.valid_range)}" if values.ndim == 2 else ""
    draw = ImageDraw.Draw(cell)
    font = ImageFont.load_default()
    for line, text in enumerate((data.keys[index], second)):
        draw.text((2, height + 2 + 14 * line), text, fill="black", font=font)
    return cell


def _colored(depth: Float32[np.ndarray, "h w"], limits: tuple[float, float]) -> UInt8[np.ndarray, "h w 3"]:
    try:
        near, far = depth_range(depth, (depth > limits[0]) & (depth < limits[1]))
    except DataError:  # constant, or nothing in the range
        near, far = 0.0, float(depth.max()) or 1.0
    return colorize(np.where(depth > 0, (depth - near) / (far - near), np.nan).astype(np.float32))


def _stretched(values: Float32[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    shown = values[:, :, [0, 1, 2] if values.shape[2] > 2 else [0, 0, 0]]
    low, high = float(shown.min()), float(shown.max())
    return np.rint(255 * (shown - low) / (high - low or 1.0)).astype(np.uint8)


def _range_text(depth: Float32[np.ndarray, "h w"], limits: tuple[float, float]) -> str:
    usable = depth[(depth > limits[0]) & (depth < limits[1])]
    beyond = float((depth >= limits[1]).mean())
    spread = f"{usable.min():.2f} to {usable.max():.2f} m" if usable.size else "no usable depth"
    return f"{spread}, {100 * float((depth == 0).mean()):.1f} % none" + (
        f", {100 * beyond:.1f} % beyond {limits[1]:g} m" if beyond else ""
    )
