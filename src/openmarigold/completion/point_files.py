# SPDX-License-Identifier: Apache-2.0
"""Files of sparse points: tables, maps and point clouds. Sizes are checked before memory is taken."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from openmarigold.data.archives import LARGEST_FILE, read_file
from openmarigold.data.arrays import load_npy
from openmarigold.errors import DataError, ImageError, InvalidValueError, one_line
from openmarigold.images.exr import read_exr
from openmarigold.images.png import read_png
from openmarigold.modalities.metric import steps_of_content
from openmarigold.results.provenance import RECORD_NAME
from openmarigold.text_files import DamagedTextError, parse_json

_MOST_ROWS = 5_000_000
_NAMES = (
    ("x", "u", "col", "column", "pixel_x", "px"),
    ("y", "v", "row", "pixel_y", "py"),
    ("depth", "z", "d", "depth_m", "meters", "depth [m]"),
)
_USUAL_SCALES = "1000 (ScanNet, RealSense), 256 (KITTI, VOID), 5000 (TUM), 4000 (Matterport) or 100 (Virtual KITTI)"
_EXR_CHANNELS = ("Z", "depth", "depth.Z", "Depth", "Y", "R")
_PLY_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_LONGEST_HEADER = 1 << 16
_FEWEST_COLUMNS = 8  # of a map
_OF_DAMAGE = (
    *(ValueError, LookupError, ArithmeticError, OSError, EOFError, SyntaxError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Pixels with depth, as a file states them."""

    pixels: Float64[np.ndarray, "n 2"]
    depth: Float64[np.ndarray, " n"]
    map_size: tuple[int, int] | None = None
    """Height and width of the map that they come from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cloud:
    """Points in space."""

    places: Float64[np.ndarray, "n 3"]
    needs_transform: bool = False


def read(path: Path, *, depth_scale: float | None = None) -> Table | Cloud:
    """The content of a file of points, read by its suffix.

    Raises:
        DataError: it is missing, damaged, too large, or not of a known kind.
        InvalidValueError: a PNG whose scale is not known.
        MissingExtraError: an EXR file without the extra `exr`.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: points are read from {', '.join(READERS)} and folders of COLMAP")
    content = _content(path)
    try:
        return _png(path, content, depth_scale) if reader is _png else reader(path, content)
    except MemoryError as error:
        raise DataError(f"{path} needs more memory than there is; give fewer points") from error
    except (DataError, InvalidValueError):
        raise
    except _OF_DAMAGE as error:
        what = _CONTENTS.get(reader, "table")
        raise DataError(f"{path} is damaged or no {what} ({one_line(error)}); write it again") from error


def read_transform(path: Path) -> Float64[np.ndarray, "3 4"]:
    """The matrix of a text file: 12 or 16 numbers, or KITTI's lines `Tr:`, `Tr_velo_to_cam:`, or `R:` and `T:`.

    Raises:
        DataError: the file is missing, or it holds no such matrix.
    """
    text = _text(path, _content(path))
    named = {
        match[1].lower(): match[2].split()
        for match in re.finditer(r"(?m)^\s*([A-Za-z]\w*)\s*:\s*([-+.\deE \t\r]*)$", text)
    }
    try:
        if named:
            numbers = next((named[name] for name in named if name.startswith("tr")), None)
            if numbers is None and {"r", "t"} <= named.keys():
                rotation = np.array(named["r"], dtype=np.float64).reshape(3, 3)
                numbers = np.column_stack([rotation, np.array(named["t"], dtype=np.float64)]).ravel()
            values = np.array(numbers, dtype=np.float64)
        else:
            values = np.array(text.replace(",", " ").split(), dtype=np.float64)
        matrix = values.reshape(-1, 4)
        rotation = matrix[:3, :3]
        if len(matrix) not in (3, 4) or not np.isfinite(matrix).all():
            raise ValueError
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} holds no 3x4 or 4x4 matrix of numbers; write one row a line") from error
    if abs(abs(np.linalg.det(rotation)) - 1.0) > 0.05:
        raise DataError(f"{path}: the left 3x3 part of its matrix is not a rotation; give one to the camera's axes")
    return matrix[:3]


def _content(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a file of points") from error


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{path} is not text; a table of points has lines of x, y and depth")
    return text


def _rows(path: Path, content: bytes) -> tuple[list[str], Float64[np.ndarray, "n c"]]:
    """Names of the columns, if a header states them, and the numbers."""
    remark = ""  # the last one before the numbers
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(_text(path, content).splitlines(), start=1):
        if line.lstrip().startswith("#"):
            remark = remark if lines else line
        elif line.strip():
            lines.append((number, line))
    if not lines:
        return [], np.empty((0, 3))
    if len(lines) > _MOST_ROWS:
        raise DataError(f"{path} has {len(lines)} lines, more than {_MOST_ROWS}; give fewer points")
    first = lines[0][1]
    separator = next((mark for mark in (";", "\t", ",") if mark in first), None)
    comma_is_point = separator in (";", "\t")
    cells = _cells(first, separator, comma_is_point)
    if any(_number(cell) is None for cell in cells):
        names = _names(cells)
        lines = lines[1:]
    else:
        names = _names_in_remark(remark, separator, len(cells))
    width = len(cells)
    table = np.empty((len(lines), width))
    for row, (number, line) in enumerate(lines):
        cells = _cells(line, separator, comma_is_point)
        if len(cells) != width:
            raise DataError(f"{path}, line {number}: {len(cells)} columns, and {width} in the first line")
        for column, cell in enumerate(cells):
            value = _number(cell)
            if value is None:
                raise DataError(f"{path}, line {number}: {cell[:40]!r} is not a number")
            table[row, column] = value
    return names, table


def _names(cells: Sequence[str]) -> list[str]:
    return [cell.strip("\"' ").lower() for cell in cells]


def _names_in_remark(remark: str, separator: str | None, width: int) -> list[str]:
    """Names of the columns in a header behind `#`, as NumPy's savetxt writes it; none where it is another remark."""
    text = remark.strip().lstrip("#").strip()
    for cells in (_cells(text, separator, False), re.split(r"[;,\s]+", text)):
        names = _names(cells)
        if len(names) == width and all(any(name in names for name in accepted) for accepted in _NAMES):
            return names
    return []


def _cells(line: str, separator: str | None, comma_is_point: bool) -> list[str]:
    cells = [cell.strip() for cell in (line.split(separator) if separator else line.split())]
    return [cell.replace(",", ".") for cell in cells] if comma_is_point else cells


def _number(cell: str) -> float | None:
    if not cell:
        return np.nan  # an empty cell is an unknown value
    try:
        return float(cell)
    except ValueError:
        return None


def _table(path: Path, content: bytes) -> Table:
    names, rows = _rows(path, content)
    if rows.shape[1] < 3:
        raise DataError(f"{path} has {rows.shape[1]} columns; x, y and depth are needed")
    columns = [0, 1, 2]
    if names:
        found = [next((names.index(name) for name in accepted if name in names), None) for accepted in _NAMES]
        if None in found:
            wanted = ", ".join(" or ".join(accepted[:2]) for accepted in _NAMES)
            raise DataError(f"{path}: the header is {', '.join(names)[:80]}; columns {wanted} are needed")
        columns = [column for column in found if column is not None]
    return Table(pixels=rows[:, columns[:2]], depth=rows[:, columns[2]])


def _xyz(path: Path, content: bytes) -> Cloud:
    _, rows = _rows(path, content)
    if rows.shape[1] < 3:
        raise DataError(f"{path} has {rows.shape[1]} columns; x, y and z are needed")
    return Cloud(places=rows[:, :3])


def _npy(path: Path, content: bytes) -> Table:
    return _of_array(path, load_npy(content))


def _npz(path: Path, content: bytes) -> Table:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        name = next((name for name in ("depth.npy", "points.npy") if name in names), None)
        name = name or (names[0] if len(names) == 1 else None)
        if name is None:
            raise DataError(f"{path} holds {', '.join(names)[:80] or 'no arrays'}; name the one to read depth")
        if archive.getinfo(name).file_size > LARGEST_FILE:
            raise DataError(f"{path}: {name} has more than {LARGEST_FILE >> 20} MB; give fewer points")
        return _of_array(path, load_npy(archive.read(name)))


def _of_array(path: Path, values: np.ndarray) -> Table:
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2:
        raise DataError(f"{path} has shape {list(values.shape)}; points are [n 3] of x, y, depth, or a map [h w]")
    if values.shape[1] == 3:
        rows = values.astype(np.float64)
        return Table(pixels=rows[:, :2], depth=rows[:, 2])
    if values.shape[1] < _FEWEST_COLUMNS:
        raise DataError(
            f"{path} has shape {list(values.shape)}; points are [n 3] of x, y, depth (more columns: as a table), or "
            "a map [h w]"
        )
    return _of_map(values)


def _of_map(values: np.ndarray) -> Table:
    """Pixels of a map that have a value; 0 and NaN mean none."""
    with np.errstate(invalid="ignore"):
        rows, columns = np.nonzero((values != 0) & ~np.isnan(values.astype(np.float64, copy=False)))
    pixels = np.stack([columns, rows], axis=-1).astype(np.float64)
    size = int(values.shape[0]), int(values.shape[1])
    return Table(pixels=pixels, depth=values[rows, columns].astype(np.float64), map_size=size)


def _png(path: Path, content: bytes, depth_scale: float | None) -> Table:
    levels = read_png(content)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        stated = image.info.get("depth_scale") or _steps_of_result(image.info.get(RECORD_NAME))
    if levels.dtype != np.uint16 or levels.ndim != 2:
        raise DataError(f"{path} has {8 * levels.dtype.itemsize} bits and {levels.ndim} axes; depth has 16 bits, gray")
    try:
        scale = depth_scale if depth_scale is not None else float(stated)  # pyright: ignore[reportArgumentType]
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise InvalidValueError(
            f"{path} does not state how many levels a meter has; give depth_scale, usually {_USUAL_SCALES}"
        ) from error
    found = _of_map(levels)
    return Table(pixels=found.pixels, depth=found.depth / scale, map_size=found.map_size)


def _steps_of_result(record: object) -> int | None:
    """Steps per meter that the record of our own metric depth states."""
    try:
        content = parse_json(record) if isinstance(record, str) else None
    except DamagedTextError:
        return None
    return steps_of_content(content.get("content")) if isinstance(content, dict) else None


def _exr(path: Path, content: bytes) -> Table:
    del content  # the binding reads the file itself
    try:
        channels = read_exr(path)
    except ImageError as error:
        raise DataError(str(error)) from error
    name = next((name for name in _EXR_CHANNELS if name in channels), None)
    if name is None:
        raise DataError(f"{path} has the channels {', '.join(channels)[:80]}; depth is in Z, depth or Y")
    return _of_map(channels[name])


def _velodyne(path: Path, content: bytes) -> Cloud:
    if len(content) % 16:
        raise DataError(f"{path} has {len(content)} bytes; KITTI's LiDAR has 16 a point (float32 x, y, z, reflectance)")
    values = np.frombuffer(content, dtype="<f4").reshape(-1, 4)
    return Cloud(places=values[:, :3].astype(np.float64), needs_transform=True)


def _ply(path: Path, content: bytes) -> Cloud:
    return Cloud(places=_ply_places(content))


def _ply_places(content: bytes) -> Float64[np.ndarray, "n 3"]:
    """Vertices of a PLY file, which must come first in it."""
    match = re.search(rb"\bend_header\r?\n", content[:_LONGEST_HEADER])
    if not content.startswith(b"ply") or match is None:
        raise ValueError("no header")
    lines = [line.split() for line in content[: match.start()].decode("latin-1").splitlines()]
    encoding = next((line[1] for line in lines if line and line[0] == "format"), None)
    if encoding is None:
        raise ValueError("its header states no format")
    elements = [index for index, line in enumerate(lines) if line and line[0] == "element"]
    if not elements or lines[elements[0]][1] != "vertex":
        raise ValueError("its first element is not vertex")
    count = int(lines[elements[0]][2])
    end = elements[1] if len(elements) > 1 else len(lines)
    properties = [line for line in lines[elements[0] + 1 : end] if line and line[0] == "property"]
    names = [line[2] for line in properties]
    columns = [names.index(name) for name in "xyz"]
    body = content[match.end() :]
    if encoding == "ascii":
        lines_of_body = (line.split() for line in body.decode("latin-1").splitlines())
        rows = list(islice(filter(None, lines_of_body), max(0, count)))
        if len(rows) < count:
            raise ValueError(f"{count} vertices announced, {len(rows)} there")
        return np.array([[float(row[column]) for column in columns] for row in rows]).reshape(-1, 3)
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}[encoding]
    row_type = np.dtype([(f"{index}", order + _PLY_TYPES[line[1]]) for index, line in enumerate(properties)])
    if count < 0 or count * row_type.itemsize > len(body):
        raise ValueError(f"{count} vertices announced, {len(body) // row_type.itemsize} there")
    table = np.frombuffer(body, dtype=row_type, count=count)
    return np.stack([table[f"{column}"].astype(np.float64) for column in columns], axis=-1)


READERS: dict[str, Callable[..., Any]] = {
    ".csv": _table,
    ".txt": _table,
    ".tsv": _table,
    ".npy": _npy,
    ".npz": _npz,
    ".png": _png,
    ".exr": _exr,
    ".ply": _ply,
    ".xyz": _xyz,
    ".bin": _velodyne,
}
"""Readers by suffix. If a folder has several files for a photo, the first suffix in this order is taken."""
_CONTENTS = {_npy: "array", _npz: "archive of arrays", _png: "depth map", _ply: "PLY file of points"}
