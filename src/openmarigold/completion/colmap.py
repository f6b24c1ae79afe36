# SPDX-License-Identifier: Apache-2.0
"""The points of a COLMAP model that one image observes, with their depth in that image.

Format: COLMAP's documentation, "Output Format". Its pixel centers lie at halves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from jaxtyping import Float64

from openmarigold.completion.evidence import SAME_ASPECT, SparsePoints
from openmarigold.data.archives import read_file
from openmarigold.errors import DataError, one_line

_NUM_PARAMETERS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12)  # by number of the camera's model
_Content = TypeVar("_Content")
_NO_POINT = 2**64 - 1
_LONGEST_NAME = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class _Observed:
    """One image of a model."""

    name: str
    rotation: Float64[np.ndarray, "3 3"]
    translation: Float64[np.ndarray, "3"]
    camera: int
    pixels: Float64[np.ndarray, "n 2"]
    points: np.ndarray


def observed_points(folder: Path, *, image: str | None, size: tuple[int, int]) -> SparsePoints:
    """The points that an image observes, in pixels of a photo of `size` (height, width).

    Args:
        folder: with cameras, images and points3D, as .bin or .txt.
        image: the image's name in the model, or its end, such as the file's name; None: the only one.
        size: of the photo; COLMAP's pixels are scaled to it.

    Raises:
        DataError: the model is missing or damaged, or has no such image, or the image observes no points.
    """
    suffix = next((end for end in (".bin", ".txt") if (folder / f"images{end}").is_file()), None)
    if suffix is None:
        raise DataError(
            f"{folder} has no images.bin or images.txt; give the folder of a COLMAP model, such as sparse/0"
        )
    binary = suffix == ".bin"
    found = _read(folder / f"images{suffix}", lambda content: _find(content, binary, image, folder))
    sizes = _read(folder / f"cameras{suffix}", _binary_cameras if binary else _text_cameras)
    places = _read(folder / f"points3D{suffix}", _binary_points if binary else _text_points)
    if found.camera not in sizes:
        raise DataError(f"{folder}: the camera {found.camera} of {found.name} is missing in cameras{suffix}")
    seen = [
        (pixel, places[point])
        for pixel, point in zip(found.pixels, found.points.tolist(), strict=True)
        if point in places
    ]
    if not seen:
        raise DataError(f"{folder}: {found.name} observes no points of the model; give an image that was registered")
    pixels = np.array([pixel for pixel, _ in seen])
    depth = np.array([place for _, place in seen]) @ found.rotation[2] + found.translation[2]
    width, height = sizes[found.camera]
    if abs(np.log(size[1] * height / (size[0] * width))) > SAME_ASPECT:
        raise DataError(
            f"{folder}: the model's image {found.name} is {width}x{height} and the photo {size[1]}x{size[0]} (width x "
            "height); both must have one shape. COLMAP does not turn photos by their EXIF orientation: save them "
            "upright before it runs"
        )
    pixels = pixels * (size[1] / width, size[0] / height) - 0.5
    notes = ["depths are in COLMAP's own unit, which is meters only if the model was scaled to meters"]
    if (height, width) != size:
        notes.append(f"the model's image is {width}x{height} and the photo {size[1]}x{size[0]}; pixels were scaled")
    return SparsePoints(pixels=pixels, depth=depth, source=f"COLMAP, {found.name}", notes=tuple(notes))


def _read(path: Path, parse: Callable[[bytes], _Content]) -> _Content:
    try:
        return parse(read_file(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); a COLMAP model has it") from error
    except (ValueError, IndexError, KeyError, struct.error, OverflowError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged or cut ({one_line(error)}); export the model again") from error


def _find(content: bytes, binary: bool, image: str | None, folder: Path) -> _Observed:
    images = list(_binary_images(content) if binary else _text_images(content))
    if image is None and len(images) == 1:
        return images[0]
    named = [one for one in images if image is not None and _same_name(one.name, image)]
    if len(named) == 1:
        return named[0]
    some = ", ".join(one.name for one in images[:5]) or "none"
    what = f"{len(named)} images are called {image}" if image is not None else f"it holds {len(images)} images"
    raise DataError(f"{folder}: {what}; give the name of one of them: {some}{' …' if len(images) > 5 else ''}")


def _same_name(name: str, wanted: str) -> bool:
    parts, end = PurePosixPath(name).parts, PurePosixPath(wanted).parts
    return bool(end) and bool(parts) and (parts[-len(end) :] == end or end[-len(parts) :] == parts)


def _rotation(quaternion: np.ndarray) -> Float64[np.ndarray, "3 3"]:
    length = np.linalg.norm(quaternion)
    if not np.isfinite(length) or length <= 0:
        raise ValueError("a rotation of length 0")
    w, x, y, z = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _lines(content: bytes) -> list[str]:
    return [line for line in content.decode("utf-8").split("\n") if not line.startswith("#")]


def _text_images(content: bytes) -> Iterator[_Observed]:
    lines = _lines(content)
    while lines and not lines[-1].strip() and len(lines) % 2:
        lines.pop()
    for head, body in zip(lines[0::2], lines[1::2], strict=False):
        if not head.strip():
            continue
        words = head.split(maxsplit=9)
        values = np.array(words[1:8], dtype=np.float64)
        rows = np.array(body.split(), dtype=np.float64).reshape(-1, 3)
        points = np.array([int(word) for word in body.split()[2::3]], dtype=np.int64)
        yield _Observed(
            name=words[9].strip(),
            rotation=_rotation(values[:4]),
            translation=values[4:],
            camera=int(words[8]),
            pixels=rows[:, :2],
            points=points,
        )


def _text_cameras(content: bytes) -> dict[int, tuple[int, int]]:
    rows = [line.split() for line in _lines(content) if line.strip()]
    return {int(row[0]): _size(int(row[2]), int(row[3])) for row in rows}


def _text_points(content: bytes) -> dict[int, Float64[np.ndarray, "3"]]:
    rows = [line.split(maxsplit=4) for line in _lines(content) if line.strip()]
    if any(len(row) < 4 for row in rows):
        raise ValueError("a point without three coordinates")
    return {int(row[0]): np.array(row[1:4], dtype=np.float64) for row in rows}


def _size(width: int, height: int) -> tuple[int, int]:
    if not (0 < width < 1 << 20 and 0 < height < 1 << 20):
        raise ValueError(f"a camera of {width}x{height}")
    return width, height


def _binary_images(content: bytes) -> Iterator[_Observed]:
    (count,), place = struct.unpack_from("<Q", content), 8
    for _ in range(count):
        head = struct.unpack_from("<I7dI", content, place)
        place += struct.calcsize("<I7dI")
        end = content.index(b"\0", place, place + _LONGEST_NAME)
        name = content[place:end].decode("utf-8")
        (num,) = struct.unpack_from("<Q", content, end + 1)
        place = end + 9
        if num * 24 > len(content) - place:
            raise ValueError(f"{num} observations announced, {(len(content) - place) // 24} there")
        rows = np.frombuffer(content, dtype=[("xy", "<f8", 2), ("point", "<u8")], count=num, offset=place)
        place += 24 * num
        points = np.where(rows["point"] == _NO_POINT, -1, rows["point"].astype(np.int64))
        yield _Observed(
            name=name,
            rotation=_rotation(np.array(head[1:5])),
            translation=np.array(head[5:8]),
            camera=head[8],
            pixels=rows["xy"].astype(np.float64),
            points=points,
        )


def _binary_cameras(content: bytes) -> dict[int, tuple[int, int]]:
    (count,), place = struct.unpack_from("<Q", content), 8
    sizes = {}
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<IiQQ", content, place)
        if not 0 <= model < len(_NUM_PARAMETERS):
            raise DataError(
                f"cameras.bin has a camera of model {model}, which is not known; export the model as text (colmap "
                "model_converter --output_type TXT)"
            )
        sizes[number] = _size(width, height)
        place += 24 + 8 * _NUM_PARAMETERS[model]
    return sizes


def _binary_points(content: bytes) -> dict[int, Float64[np.ndarray, "3"]]:
    (count,), place = struct.unpack_from("<Q", content), 8
    places = {}
    for _ in range(count):
        number, x, y, z = struct.unpack_from("<Q3d", content, place)
        (track,) = struct.unpack_from("<Q", content, place + 43)
        places[number] = np.array([x, y, z])
        place += 51 + 8 * track
        if place > len(content):
            raise ValueError("the file ends within a point")
    return places
