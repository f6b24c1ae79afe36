# SPDX-License-Identifier: Apache-2.0
"""What files of points and meshes state about themselves, and how they are saved.

Files have the axes of the frame "rub" (`openmarigold.geometry`): x right, y up, z backward, which is what glTF asks for
and in which viewers of PLY show a scene upright. One fact for both formats: OpenCV's axes, negated in y and z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.files import as_path, remove_leftovers, write_atomically

METERS = "meters"
RELATIVE = "relative"
"""The unit of lengths that are known up to one factor."""
AXES = "x right, y up, z backward; the camera is at 0 and looks along -z; negate y and z for OpenCV"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where points come from, for their files."""

    unit: str = RELATIVE
    """Unit of lengths: `METERS` or `RELATIVE`."""
    camera: Camera | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    """Provenance: settings, checkpoint, what was assumed."""

    @property
    def statement(self) -> dict[str, Any]:
        """The record, with unit, axes and camera, as plain JSON; numbers that are not finite become null."""
        camera = {} if self.camera is None else {"camera": self.camera.to_dict()}
        statement = {**self.record, "length_unit": self.unit, "axes": AXES, **camera}
        return {name: _plain(value) for name, value in statement.items()}


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def upright(vectors: Float[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """Vectors of OpenCV's axes in those of files, or the other way round: a half turn about x."""
    return np.asarray(vectors * np.array([1, -1, -1]), dtype="<f4")


def save_space(
    path: Path | str, writers: Mapping[str, Callable[[Path], object]], count: int, *, overwrite: bool
) -> Path:
    """Writes a file atomically with the writer of its suffix.

    Raises:
        InvalidValueError: a suffix without a writer, or nothing to write.
        OutputError: the file exists and `overwrite` is off, or it cannot be written.
    """
    path = as_path(path, "the file of points")
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise InvalidValueError(f"{path.name} has the suffix {path.suffix!r}; give {' or '.join(writers)}")
    check_not_empty(count)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; allow overwriting or choose another name")
    remove_leftovers(path)
    write_atomically(path, writer)
    return path


def check_not_empty(count: int) -> None:
    """Raises InvalidValueError where there is nothing to write: glTF has no empty mesh."""
    if not count:
        raise InvalidValueError(
            "there are no points to write: all depth is unknown, or left out by max_depth, drop_far or drop_uncertain, "
            "or the picture is too narrow for a mesh"
        )
