# SPDX-License-Identifier: Apache-2.0
"""A pinhole camera: from pixels and depth to points and back, and how it changes with its picture.

Axes are OpenCV's: x right, y down, z forward. Pixel centers lie at whole numbers, so that the middle of a picture of
width w is (w - 1) / 2. Depth is planar (z); the distance along the ray is depth times `ray_lengths`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Float32

from openmarigold.config import check_fov
from openmarigold.errors import InvalidValueError

ASSUMED_FOV = 55.0
"""Field of view along the longer side [deg] if nothing is known about the camera."""

CameraSource: TypeAlias = Literal["file", "focal_px", "fov", "exif", "estimated", "assumed"]
"""Where a camera comes from, the most reliable first: intrinsics of a file or a call; a given focal length or field of
view; the photo's metadata; a fit; an assumption."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """The intrinsics of one picture, in its pixels.

    Raises:
        InvalidValueError: a size below 1, or a focal length or center that is not a finite number, or not above 0.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    source: CameraSource = "file"
    note: str = ""
    """More about the source as text, such as the camera's model."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value, number = getattr(self, name), _finite(getattr(self, name))
            if isinstance(value, bool) or number is None or number % 1 or number < 1:
                raise InvalidValueError(
                    f"camera: {name}={value!r:.40} is not accepted; give the picture's size in pixels"
                )
            object.__setattr__(self, name, int(number))
        for name in ("fx", "fy", "cx", "cy"):
            value = _finite(getattr(self, name))
            if value is None or (name in ("fx", "fy") and value <= 0):
                accepted = "a focal length in pixels, above 0" if name in ("fx", "fy") else "a number of pixels"
                raise InvalidValueError(f"camera: {name}={getattr(self, name)!r:.40} is not accepted; give {accepted}")
            object.__setattr__(self, name, value)

    @classmethod
    def from_focal(
        cls, size: tuple[int, int], focal_px: float, *, source: CameraSource = "focal_px", note: str = ""
    ) -> Camera:
        """The camera of a picture of `size` (height, width) with a focal length [px] and its center in the middle."""
        height, width = size
        center = {"cx": (width - 1) / 2, "cy": (height - 1) / 2}
        return cls(fx=focal_px, fy=focal_px, width=width, height=height, source=source, note=note, **center)

    @classmethod
    def from_fov(cls, size: tuple[int, int], fov: float, *, source: CameraSource = "fov", note: str = "") -> Camera:
        """The camera of a picture of `size` (height, width) with a field of view [deg] along its longer side.

        Raises:
            InvalidValueError: a field of view outside 1 to 170.

        >>> round(Camera.from_fov((480, 640), 90.0).fx, 6)
        320.0
        """
        check_fov(fov)
        focal = max(size) / 2 / math.tan(math.radians(fov) / 2)
        return cls.from_focal(size, focal, source=source, note=note)

    @classmethod
    def assumed(cls, size: tuple[int, int]) -> Camera:
        """The camera used if the true one is not known: `ASSUMED_FOV`."""
        return cls.from_fov(size, ASSUMED_FOV, source="assumed")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Camera:
        """The inverse of `to_dict`; other keys are ignored.

        Raises:
            InvalidValueError: a key is missing, or a value is not accepted.
        """
        names = ("fx", "fy", "cx", "cy", "width", "height")
        if missing := [name for name in names if name not in record]:
            raise InvalidValueError(f"camera: {missing[0]} is missing; {', '.join(names)} are needed")
        source = record.get("source", "file")
        known: Any = next((name for name in get_args(CameraSource) if name == source), None)
        if known is None:
            accepted = ", ".join(get_args(CameraSource))
            raise InvalidValueError(f"camera: source={source!r:.40} is not known; use one of {accepted}")
        values: dict[str, Any] = {name: _finite(record[name]) for name in names}
        for name in names:
            if values[name] is None:
                raise InvalidValueError(f"camera: {name}={record[name]!r:.40} is not accepted; give a finite number")
            if name in ("width", "height") and values[name] == int(values[name]):
                values[name] = int(values[name])
        return cls(**values, source=known, note=str(record.get("note", "")))

    def to_dict(self) -> dict[str, Any]:
        """For JSON and provenance; states the source, and the field of view [deg] along the longer side."""
        known = {name: round(getattr(self, name), 4) for name in ("fx", "fy", "cx", "cy")}
        rest = {"width": self.width, "height": self.height, "fov": round(self.fov, 3), "source": self.source}
        return {**known, **rest, **({"note": self.note} if self.note else {})}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def fov(self) -> float:
        """Field of view along the longer side [deg]."""
        side, focal = (self.width, self.fx) if self.width >= self.height else (self.height, self.fy)
        return math.degrees(2 * math.atan(side / (2 * focal)))

    @property
    def is_assumed(self) -> bool:
        """Whether nothing was known."""
        return self.source == "assumed"

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """The intrinsic matrix K."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def resized(self, size: tuple[int, int]) -> Camera:
        """The camera of the picture, resized to `size` (height, width); the picture's outer edges stay in place."""
        x, y = size[1] / self.width, size[0] / self.height
        center = {"cx": (self.cx + 0.5) * x - 0.5, "cy": (self.cy + 0.5) * y - 0.5}
        return replace(self, fx=self.fx * x, fy=self.fy * y, height=size[0], width=size[1], **center)

    def cropped(self, *, top: int, left: int, size: tuple[int, int]) -> Camera:
        """The camera of a part of `size` (height, width); negative `top` and `left` mean padding."""
        return replace(self, cx=self.cx - left, cy=self.cy - top, height=size[0], width=size[1])

    def mirrored(self) -> Camera:
        """The camera of the picture that is mirrored left to right."""
        return replace(self, cx=self.width - 1 - self.cx)

    def turned(self, quarter_turns: int) -> Camera:
        """The camera of the picture, turned counterclockwise by quarter turns, as `numpy.rot90` does."""
        camera = self
        for _ in range(quarter_turns % 4):
            camera = replace(
                camera,
                fx=camera.fy,
                fy=camera.fx,
                cx=camera.cy,
                cy=camera.width - 1 - camera.cx,
                width=camera.height,
                height=camera.width,
            )
        return camera

    def rays(self, rows: slice = slice(None)) -> Float32[np.ndarray, "h w 3"]:
        """Points of depth 1 that the pixels see, for some or all rows."""
        x = ((np.arange(self.width) - self.cx) / self.fx).astype(np.float32)
        y = ((np.arange(self.height) - self.cy) / self.fy).astype(np.float32)[rows]
        out = np.empty((len(y), self.width, 3), dtype=np.float32)
        out[..., 0], out[..., 1], out[..., 2] = x[None], y[:, None], 1.0
        return out

    def ray_lengths(self) -> Float32[np.ndarray, "h w"]:
        """Distance along the ray divided by planar depth: 1 in the center and more elsewhere."""
        return np.sqrt(np.square(self.rays()).sum(axis=-1))

    def check_map(self, depth: Float[np.ndarray, "h w"]) -> None:
        """Raises InvalidValueError unless a depth map has the size of the picture."""
        if depth.shape != self.size:
            raise InvalidValueError(
                f"the depth map is {depth.shape[0]}x{depth.shape[1]} and the camera's picture {self.height}x"
                f"{self.width}; use camera.resized"
            )

    def unproject(self, depth: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 3"]:
        """The points that a map of planar depth shows, in its unit.

        Raises:
            InvalidValueError: the map has another size.
        """
        self.check_map(depth)
        return self.rays() * depth[..., None].astype(np.float32)

    def unproject_at(
        self, pixels: Float[np.ndarray, "n 2"], depth: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n 3"]:
        """The points at pixels (x, y) with these depths; pixels may have fractions."""
        x, y = (pixels[:, 0] - self.cx) / self.fx, (pixels[:, 1] - self.cy) / self.fy
        return np.stack([x * depth, y * depth, depth], axis=-1)

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """The pixels (x, y) that show points; NaN for those that are not in front of the camera."""
        z = np.where(points[:, 2] > 0, points[:, 2], np.nan)
        return np.stack([self.fx * points[:, 0] / z + self.cx, self.fy * points[:, 1] / z + self.cy], axis=-1)


def _finite(value: Any) -> float | None:
    """A finite number; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
