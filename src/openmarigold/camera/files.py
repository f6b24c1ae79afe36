# SPDX-License-Identifier: Apache-2.0
"""Cameras from files of other tools: JSON, plain text, .npy, ROS camera_info, COLMAP cameras.txt, KITTI calibrations.

All become pixels of the upright photo with pixel centers at whole numbers (`openmarigold.camera`). COLMAP puts centers
at halves, so 0.5 is subtracted. Values of a normalized matrix (as of MoGe) are fractions of the picture's sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError, one_line
from openmarigold.files import as_path
from openmarigold.text_files import DamagedTextError, parse_json

_MOST_BYTES = 2**20
_NORMALIZED_BELOW = 10.0  # focal lengths; in pixels, a picture of 30 pixels or more would see 110 degrees and more
_SAME_ASPECT = 0.01
_FOV_RANGE = (1.0, 170.0)
_MATRIX_KEYS = ("K", "k", "camera_matrix", "intrinsics", "intrinsic", "intrinsic_matrix", "matrix")
_SIZE_KEYS = (("height", "width"), ("image_height", "image_width"), ("h", "w"))
# Parameters of COLMAP's models: focal lengths, center, distortion.
_COLMAP = {
    "SIMPLE_PINHOLE": (1, 0),
    "PINHOLE": (2, 0),
    "SIMPLE_RADIAL": (1, 1),
    "RADIAL": (1, 2),
    "OPENCV": (2, 4),
    "FULL_OPENCV": (2, 8),
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ACCEPTED = (
    "a camera as JSON (fx, fy, cx, cy), a 3x3 matrix (JSON, .txt, .npy), ROS camera_info (.yaml), COLMAP's cameras.txt "
    "or a KITTI calibration"
)


@dataclass(frozen=True, kw_only=True)
class Intrinsics:
    """The intrinsics in a file, before they are fitted to a photo."""

    fx: float
    fy: float
    cx: float | None = None
    """None: the middle."""
    cy: float | None = None
    size: tuple[int, int] | None = None
    """Height and width of their picture; None: not stated, so the photo's size is used."""
    normalized: bool = False
    """Fractions of the width (fx, cx) and the height (fy, cy), from the outer edges."""
    center_offset: float = 0.0
    """Coordinate that the file's format gives to the center of the first pixel."""
    notes: tuple[str, ...] = ()

    def for_photo(self, size: tuple[int, int]) -> Camera:
        """The camera of an upright photo of `size` (height, width).

        Raises:
            InvalidValueError: another shape than the file's, a center outside, or a field of view outside 1 to 170.
        """
        height, width = self.size or size
        notes = list(self.notes)
        fx, fy, cx, cy = self.fx, self.fy, self.cx, self.cy
        if self.normalized:
            fx, fy = fx * width, fy * height
            cx, cy = None if cx is None else cx * width - 0.5, None if cy is None else cy * height - 0.5
            notes.append("normalized values, times the sides of the picture")
        else:
            cx, cy = (None if value is None else value - self.center_offset for value in (cx, cy))
        cx, cy = (width - 1) / 2 if cx is None else cx, (height - 1) / 2 if cy is None else cy
        _check(fx, fy, cx, cy, (height, width), known=self.size is not None)
        camera = Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height, note="; ".join(notes))
        return fit_to_photo(camera, size)


def fit_to_photo(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera for the upright photo of `size` (height, width), scaled if its picture has another size.

    Raises:
        InvalidValueError: its picture has another shape (aspect ratio).

    >>> camera = fit_to_photo(Camera.from_focal((480, 640), 500.0), (240, 320))
    >>> camera.fx, camera.note
    (250.0, 'scaled from 640x480')
    """
    if camera.size == size:
        return camera
    ratios = size[0] / camera.height, size[1] / camera.width
    if abs(ratios[0] - ratios[1]) > max(_SAME_ASPECT, 1 / min(*size, *camera.size)) * max(ratios):
        turned = "; the photo is turned upright, so turn the camera too" if camera.size == size[::-1] else ""
        raise InvalidValueError(
            f"the camera is of a picture of {camera.width}x{camera.height}, and the photo has another shape, "
            f"{size[1]}x{size[0]}{turned or '; give the camera of this photo'}"
        )
    note = "; ".join(part for part in (camera.note, f"scaled from {camera.width}x{camera.height}") if part)
    return replace(camera.resized(size), note=note)


def read_camera(path: Path | str, size: tuple[int, int]) -> Camera:
    """The camera that a file states, for an upright photo of `size` (height, width).

    Raises:
        InvalidValueError: as `read_intrinsics` and `Intrinsics.for_photo`; the message begins with the path.
    """
    path = as_path(path, "the camera file")
    try:
        return read_intrinsics(path, size).for_photo(size)
    except InvalidValueError as error:
        if str(path) in str(error):
            raise
        raise InvalidValueError(f"{path}: {error}") from error


def read_intrinsics(path: Path | str, size: tuple[int, int] | None = None) -> Intrinsics:
    """The intrinsics in a file; `size` (height, width) chooses among several cameras.

    Raises:
        InvalidValueError: the file is missing, of no known kind, or its values are not those of a camera.
    """
    path = as_path(path, "the camera file")
    try:
        if not path.is_file():
            raise InvalidValueError(f"{path} does not exist or is not a file; give {_ACCEPTED}")
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidValueError(f"{path} is too large for a camera ({_MOST_BYTES} bytes); give {_ACCEPTED}")
        if path.suffix.lower() == ".npy":
            return _of_values(np.load(path, mmap_mode="r", allow_pickle=False).tolist())
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("{", "["):
            return _of_json(parse_json(text))
        return _of_text(text, size)
    except DamagedTextError as error:
        raise InvalidValueError(f"{path} is not valid JSON: {error}") from error
    except InvalidValueError as error:
        raise InvalidValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except (OSError, ValueError, EOFError) as error:
        raise InvalidValueError(f"{path} cannot be read as a camera ({one_line(error)}); give {_ACCEPTED}") from error


def _of_json(content: Any) -> Intrinsics:
    if isinstance(content, list):
        return _of_values(content)
    if not isinstance(content, Mapping):
        raise InvalidValueError(f"is not a camera; give {_ACCEPTED}")
    if isinstance(content.get("camera"), Mapping):  # our own provenance
        content = content["camera"]
    size = _size_of(content)
    if "fx" in content:
        values = [content.get(name, default) for name, default in (("fx", None), ("fy", content["fx"]))]
        center = [content.get(name) for name in ("cx", "cy")]
        if (center[0] is None) != (center[1] is None):
            raise InvalidValueError("one of cx and cy is missing; give both, or none for the middle")
        numbers = _numbers([*values, *(value for value in center if value is not None)])
        return _checked(*numbers, size=size)
    for key in _MATRIX_KEYS:
        if key in content:
            stored = content[key]
            stored = stored.get("data", stored) if isinstance(stored, Mapping) else stored
            if key == "intrinsic_matrix" and isinstance(stored, list) and len(stored) == 9:  # Open3D: column by column
                stored = np.reshape(_numbers(stored), (3, 3)).T.tolist()
            return replace(_of_values(stored, size), size=size)
    raise InvalidValueError(f"has neither fx nor {', '.join(_MATRIX_KEYS[:3])}; give {_ACCEPTED}")


def _of_values(values: Any, size: tuple[int, int] | None = None) -> Intrinsics:
    """Intrinsics of a 3x3, 3x4 or 4x4 matrix, in rows or flat, or of fx, fy, cx, cy."""
    flat = _numbers(_flattened(values))
    if len(flat) == 4:
        return _checked(*flat, size=size)
    shapes = {9: (3, 3), 12: (3, 4), 16: (4, 4)}
    if len(flat) not in shapes:
        raise InvalidValueError(f"has {len(flat)} numbers; a matrix of 3x3 (or fx, fy, cx, cy) is needed")
    matrix = np.reshape(flat, shapes[len(flat)])[:3, :3]
    if np.allclose(matrix[:2, 2], 0) and not np.allclose(matrix[2, :2], 0):
        raise InvalidValueError("the matrix is transposed: cx and cy are in its last row; give them in the last column")
    if not np.allclose(matrix[2], (0, 0, 1)) or matrix[1, 0] != 0:
        raise InvalidValueError("is not a camera matrix; give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
    (fx, skew, cx), (_, fy, cy) = matrix[:2].tolist()
    return _checked(fx, fy, cx, cy, size=size, notes=(f"skew {skew:g} is ignored",) if skew else ())


def _of_text(text: str, size: tuple[int, int] | None) -> Intrinsics:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if cameras := list(_colmap_lines(lines)):
        return _of_colmap(cameras, size)
    if re.search(r"^\s*camera_matrix\s*:", text, re.MULTILINE):
        return _of_ros(text)
    calibration = dict(line.split(":", 1) for line in lines if re.match(r"[PKRTS]\w*\s*:", line))
    if calibration:
        return _of_kitti({name.strip(): value for name, value in calibration.items()})
    words = re.split(r"[\s,;]+", " ".join(lines).replace("[", " ").replace("]", " ").strip())
    if not all(re.fullmatch(_NUMBER, word) for word in words):
        raise InvalidValueError(f"is of no known kind; give {_ACCEPTED}")
    return _of_values([float(word) for word in words])


def _colmap_lines(lines: Sequence[str]) -> Iterator[list[str]]:
    for line in lines:
        words = line.split()
        if len(words) > 4 and words[0].isdigit() and re.fullmatch(r"[A-Z][A-Z_0-9]+", words[1]):
            yield words


def _of_colmap(cameras: Sequence[Sequence[str]], size: tuple[int, int] | None) -> Intrinsics:
    found = [_colmap_camera(words) for words in cameras if len(cameras) == 1 or _colmap_size(words) == size]
    if not found and size is None:
        return _colmap_camera(cameras[0])
    if not found or len({(one.fx, one.fy, one.cx, one.cy) for one in found}) > 1:
        shown = "" if size is None else f" of {size[1]}x{size[0]}"
        raise InvalidValueError(
            f"has {len(cameras)} cameras, of which {len(found) or 'none'} are{shown or ' chosen'}; keep the line of "
            "this photo's camera"
        )
    return found[0]


def _colmap_size(words: Sequence[str]) -> tuple[int, int]:
    width, height = _numbers(words[2:4])
    return int(height), int(width)


def _colmap_camera(words: Sequence[str]) -> Intrinsics:
    if words[1] not in _COLMAP:
        accepted = ", ".join(_COLMAP)
        raise InvalidValueError(
            f"COLMAP's model {words[1]} is not a pinhole; undistort the photos first, or use {accepted}"
        )
    num_focal, num_distortion = _COLMAP[words[1]]
    values = _numbers(words[4:])
    if len(values) != num_focal + 2 + num_distortion:
        raise InvalidValueError(
            f"COLMAP's model {words[1]} has {num_focal + 2 + num_distortion} parameters, not {len(values)}"
        )
    fx, fy = values[0], values[num_focal - 1]
    cx, cy = values[num_focal : num_focal + 2]
    notes = _about_distortion(values[num_focal + 2 :])
    return replace(_checked(fx, fy, cx, cy, size=_colmap_size(words), notes=notes), center_offset=0.5, normalized=False)


def _of_ros(text: str) -> Intrinsics:
    """Reads the few keys of camera_info that matter, without a YAML parser."""
    matrix = _ros_data(text, "camera_matrix")
    if len(matrix) != 9:
        raise InvalidValueError(f"camera_matrix has {len(matrix)} numbers under data; 9 are needed")
    model = re.search(r"^\s*distortion_model\s*:\s*[\"']?(\w+)", text, re.MULTILINE)
    if model and model[1] in ("equidistant", "fisheye"):
        raise InvalidValueError(f"distortion_model {model[1]} is not a pinhole; undistort the photos first")
    sides = [re.search(rf"^\s*image_{name}\s*:\s*(\d+)", text, re.MULTILINE) for name in ("height", "width")]
    size = (int(sides[0][1]), int(sides[1][1])) if sides[0] and sides[1] else None
    found = _of_values(matrix, size)
    return replace(found, notes=(*found.notes, *_about_distortion(_ros_data(text, "distortion_coefficients"))))


def _ros_data(text: str, key: str) -> list[float]:
    """Numbers of `data:` below a key, in brackets or as a list of lines."""
    block = re.search(rf"^{key}\s*:[^\n]*\n((?:[ \t-][^\n]*\n|\n)*)", f"{text}\n", re.MULTILINE)
    data = re.search(r"data\s*:\s*(?:\[([^\]]*)\]|((?:\s*-\s+[^\n]+)+))", block[1]) if block else None
    if data is None:
        return []
    words = re.split(r"[\s,]+", (data[1] or re.sub(r"(?m)^\s*-\s+", " ", data[2] or "")).strip())
    return _numbers([word for word in words if word])


def _of_kitti(calibration: Mapping[str, str]) -> Intrinsics:
    """The left color camera's rectified projection, else the first that there is."""
    names = [name for name in ("P2", "P_rect_02", "K_02") if name in calibration]
    names += [name for name in calibration if re.fullmatch(r"P\d?|P_rect_\d+|K(_\d+)?", name)]
    if not names:
        raise InvalidValueError("has no line P2, P_rect_02 or K; give a KITTI calibration of a camera")
    values = _numbers(calibration[names[0]].split())
    stated = calibration.get(names[0].replace("P_rect", "S_rect").replace("K_", "S_"), "").split()
    size = None
    if len(stated) == 2 and names[0][1:2] == "_":
        width, height = _numbers(stated)
        size = int(height), int(width)
    found = _of_values(values, size)
    distortion = _numbers(calibration.get(names[0].replace("K_", "D_"), "").split()) if names[0][0] == "K" else []
    return replace(found, notes=(f"{names[0]} of the calibration", *found.notes, *_about_distortion(distortion)))


def _about_distortion(coefficients: Sequence[float]) -> tuple[str, ...]:
    used = [f"{value:g}" for value in coefficients if value != 0]
    return (f"distortion {', '.join(used)} is ignored",) if used else ()


def _checked(
    fx: float,
    fy: float,
    cx: float | None = None,
    cy: float | None = None,
    *,
    size: tuple[int, int] | None = None,
    notes: tuple[str, ...] = (),
) -> Intrinsics:
    """Intrinsics in pixels, or normalized if the numbers are too small for pixels."""
    for name, value in (("fx", fx), ("fy", fy)):
        if not value > 0:
            raise InvalidValueError(f"{name} is {value:g}; a focal length is above 0")
    small = max(fx, fy) < _NORMALIZED_BELOW
    inside = all(value is None or 0 < value < 1 for value in (cx, cy))
    return Intrinsics(fx=fx, fy=fy, cx=cx, cy=cy, size=size, notes=notes, normalized=small and inside)


def _check(fx: float, fy: float, cx: float, cy: float, size: tuple[int, int], *, known: bool) -> None:
    height, width = size
    if not (-0.5 <= cx <= width - 0.5 and -0.5 <= cy <= height - 0.5):
        whose = "the picture that the file states" if known else "the photo"
        advice = "" if known else "; if the file is of another size, state it (width and height)"
        raise InvalidValueError(f"the center ({cx:g}, {cy:g}) lies outside of {whose}, {width}x{height}{advice}")
    for name, side, focal in (("fx", width, fx), ("fy", height, fy)):
        check_field_of_view(name, side, focal, smallest=_FOV_RANGE[0] if side == max(size) else 0.0)
    if not known:
        _check_guessed_size(cx, cy, size)


def check_field_of_view(name: str, side: int, focal: float, *, smallest: float = _FOV_RANGE[0]) -> None:
    """Checks a focal length [px] for a side of a picture [px].

    Raises:
        InvalidValueError: the field of view is not one of a pinhole camera.
    """
    fov = math.degrees(2 * math.atan(side / (2 * focal)))
    if not smallest <= fov <= _FOV_RANGE[1]:
        raise InvalidValueError(
            f"{name} is {focal:g}, a field of view of {fov:.4g} degrees for {side} pixels; {_FOV_RANGE[0]:g} to "
            f"{_FOV_RANGE[1]:g} are accepted"
        )


def _check_guessed_size(cx: float, cy: float, size: tuple[int, int]) -> None:
    """Refuses a center that fits a much smaller or larger picture of this shape."""
    along_x, along_y = (cx + 0.5) / (size[1] / 2), (cy + 0.5) / (size[0] / 2)
    if abs(along_x - along_y) <= 0.1 * max(along_x, along_y) and not 0.7 <= along_x <= 1.4:
        raise InvalidValueError(
            f"the center ({cx:g}, {cy:g}) is that of a picture of about {2 * cx + 1:.0f}x{2 * cy + 1:.0f}, and the "
            f"photo has {size[1]}x{size[0]}; state the file's size in it (width and height)"
        )


def _size_of(content: Mapping[str, Any]) -> tuple[int, int] | None:
    for names in _SIZE_KEYS:
        if all(name in content for name in names):
            sides = _numbers([content[name] for name in names])
            if not all(side >= 1 and side == int(side) for side in sides):
                raise InvalidValueError(f"{names[1]} and {names[0]} are {sides[1]:g} and {sides[0]:g}; give pixels")
            return int(sides[0]), int(sides[1])
    for one, other in (pair[::step] for pair in _SIZE_KEYS[:2] for step in (1, -1)):  # "w" may be of a rotation
        if one in content:
            raise InvalidValueError(f"{one} is given without {other}; give both, or none for the photo's size")
    return None


def _flattened(values: Any) -> list[Any]:
    if isinstance(values, list):
        return [one for value in values for one in _flattened(value)]
    return [values]


def _numbers(values: Sequence[Any]) -> list[float]:
    numbers = []
    for value in values:
        try:
            if isinstance(value, bool):
                raise ValueError
            numbers.append(float(value))
        except (TypeError, ValueError) as error:
            raise InvalidValueError(f"{value!r:.40} is not a number") from error
        if not math.isfinite(numbers[-1]):
            raise InvalidValueError(f"{numbers[-1]} is not a finite number")
    return numbers
