# SPDX-License-Identifier: Apache-2.0
"""Known measurements of a photo: depth at pixels, a length between two pixels, the camera's height."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from openmarigold.config import check_choice
from openmarigold.errors import InvalidValueError
from openmarigold.files import as_path

Unit: TypeAlias = Literal["m", "cm", "mm", "in", "ft"]
METERS: Mapping[str, float] = MappingProxyType({"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048})
"""Meters of each unit."""
Measured: TypeAlias = Literal["planar", "ray"]
MethodName: TypeAlias = Literal["auto", "fit", "field", "guided"]

FARTHEST_USUAL = 200.0
"""[m]. Without a unit, lengths beyond it are refused, because they look like millimeters or centimeters."""

_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_DEPTH = re.compile(rf"{_NUMBER},{_NUMBER}={_NUMBER}")
_LENGTH = re.compile(rf"{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}={_NUMBER}")


@dataclass(frozen=True, kw_only=True)
class KnownConfig:
    """The known measurements, as settings; the command line of `metric` is generated from them.

    Raises:
        InvalidValueError: nothing is known, several kinds that do not go together, or a value that is not accepted.
    """

    known_depth: tuple[str, ...] = ()
    """Depth at a pixel, one or more: X,Y=D, from the upper left corner of the upright photo, such as 320,240=2.5."""
    known_length: tuple[str, ...] = ()
    """Length between two pixels, one or more: X1,Y1,X2,Y2=L, such as the width of a door."""
    camera_height: float | None = None
    """Height of the camera above the ground, which the photo must show in its lower part."""
    points: Path | None = None
    """Measured points: CSV or text (x,y,depth), npy, depth PNG, PLY, LiDAR .bin, COLMAP folder; or a folder with one
    such file for each photo, with the photo's name."""
    metric_map: Path | None = None
    """Metric depth of another tool: npy, EXR, 16-bit PNG; or a folder of such files, with the photos' names."""
    unit: Unit | None = None
    """Unit of all known values but PNGs, which have a depth scale. None: meters; values that look like millimeters are
    refused."""
    measured: Measured = "planar"
    """Kind of known depths and points: planar (along the optical axis) or ray (distance from the camera)."""
    depth_scale: float | None = None
    """Steps per meter of PNG files of points or depth, such as 1000 for millimeters or 256 for KITTI."""
    transform: Path | None = None
    """File with the 3x4 or 4x4 matrix from the axes of a point cloud (PLY, .bin) to the camera's; KITTI's calibration
    files too. None: the cloud is in the camera's axes, x right, y down, z forward."""
    remove_see_through: bool = False
    """Leave out points that a nearer surface hides from the camera, as from a LiDAR next to the camera."""
    method: MethodName = "auto"
    """How points become a map: fit (scale and shift), field (fit and a smooth correction), guided (points guide the
    denoising; extra torch) or auto (fit or field, whichever has the smaller error at points left out)."""

    def __post_init__(self) -> None:
        for name in ("points", "metric_map", "transform"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, as_path(getattr(self, name), name))
        for name, accepted in (
            ("unit", (None, *get_args(Unit))),
            ("measured", get_args(Measured)),
            ("method", get_args(MethodName)),
        ):
            check_choice(name, getattr(self, name), accepted)
        for name in ("camera_height", "depth_scale"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise InvalidValueError(f"{name}={value!r} is not accepted; give a number above 0")
        _ = self.depths, self.lengths
        if self.camera_height is not None:
            self._check_unit("camera_height", self.camera_height, f"{self.camera_height:g}")
        self._check_sources()

    def _check_sources(self) -> None:
        sources = {
            "known_depth, points or metric_map": any((self.known_depth, self.points, self.metric_map)),
            "known_length": bool(self.known_length),
            "camera_height": self.camera_height is not None,
        }
        given = [name for name, there in sources.items() if there]
        if not given:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in _SOURCES)
            raise InvalidValueError(f"nothing is known in meters; give one of {names}")
        if len(given) > 1:
            raise InvalidValueError(f"{' and '.join(given)} were given; they may contradict each other: give one kind")
        if self.method != "auto" and not any((self.known_depth, self.points, self.metric_map)):
            raise InvalidValueError(
                f"method={self.method!r} is for points; {given[0]} gives a scale alone: leave it out"
            )

    @property
    def has_other_than_pngs(self) -> bool:
        """Whether something else is known than in PNG files, which `unit` does not concern."""
        files = [path for path in (self.points, self.metric_map) if path is not None]
        values = self.known_depth, self.known_length, self.camera_height
        return any(values) or any(path.suffix.lower() != ".png" for path in files)

    @property
    def depths(self) -> list[tuple[float, float, float]]:
        """x, y [px] and depth [m]."""
        return [self._parsed(text, _DEPTH, "known_depth", "X,Y=D, such as 320,240=2.5") for text in self.known_depth]

    @property
    def lengths(self) -> list[tuple[float, float, float, float, float]]:
        """x, y [px] of both ends, and the length [m]."""
        example = "X1,Y1,X2,Y2=L, such as 100,50,100,400=2.0"
        found = [self._parsed(text, _LENGTH, "known_length", example) for text in self.known_length]
        for text, (x1, y1, x2, y2, _) in zip(self.known_length, found, strict=True):
            if (x1, y1) == (x2, y2):
                raise InvalidValueError(f"known_length={text!r}: both ends are the same pixel; give two")
        return found

    @property
    def height_m(self) -> float | None:
        """The camera's height [m]."""
        return None if self.camera_height is None else self.camera_height * METERS[self.unit or "m"]

    def _parsed(self, text: str, pattern: re.Pattern[str], name: str, accepted: str) -> Any:
        match = pattern.fullmatch(text)
        if match is None:
            raise InvalidValueError(f"{name}={text!r} is not accepted; give {accepted}")
        *place, value = map(float, match.groups())
        if not 0 < value < math.inf:
            raise InvalidValueError(f"{name}={text!r}: {value:g} is not accepted; give a number above 0")
        self._check_unit(name, value, repr(text))
        return (*place, value * METERS[self.unit or "m"])

    def _check_unit(self, name: str, value: float, given: str) -> None:
        if self.unit is None and value > FARTHEST_USUAL:
            raise InvalidValueError(
                f"{name}={given}: {value:g} m looks like millimeters or centimeters; give the unit (mm, cm), or m if "
                "it is meters"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings that results state: all but files, which count by their hashes."""
        names = (setting.name for setting in fields(self) if setting.name not in ("points", "metric_map", "transform"))
        return {
            name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in ((name, getattr(self, name)) for name in names)
            if value not in (None, (), [], False)
        }


def check_no_second_scale(unit: Unit | None, what: str) -> None:
    """Checks that `what`, a PNG or its scale, which give meters, comes without another unit.

    Raises:
        InvalidValueError: it does not.
    """
    if unit not in (None, "m"):
        raise InvalidValueError(
            f"{what} and unit={unit!r}: levels of a PNG become meters by depth_scale alone; leave the unit out, and "
            f"give depth_scale, such as {1 / METERS[unit]:.4g} for levels of 1 {unit}"
        )


_SOURCES = ("known_depth", "known_length", "camera_height", "points", "metric_map")
