# SPDX-License-Identifier: Apache-2.0
"""A cloud of points from a depth map: in Python in OpenCV's axes, in files upright."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, UInt8

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError
from openmarigold.reconstruction.glb import write_glb
from openmarigold.reconstruction.grid import PixelChoice, SurfaceGrid, surface_grid, triangles_of
from openmarigold.reconstruction.ply import write_ply
from openmarigold.reconstruction.saving import Origin, save_space

_BLOCK_TRIANGLES = 2**18
_NO_SUM = 1e-6  # length of a sum of unit vectors that has no direction


@dataclass(frozen=True, kw_only=True, repr=False)
class PointCloud:
    """Points that a depth map shows, row by row of their pixels.

    Axes are OpenCV's: x right, y down, z forward, the camera at 0. Files have y up and z backward (`save`).
    """

    points: Float32[np.ndarray, "n 3"]
    pixels: Int32[np.ndarray, "n 2"]
    """Their places (x, y) in the picture."""
    normals: Float32[np.ndarray, "n 3"]
    """Unit vectors on the camera's side of the surface; where a point has no neighbors, towards the camera."""
    colors: UInt8[np.ndarray, "n 3"] | None = None
    """sRGB; None without a photo."""
    origin: Origin = field(default_factory=Origin)

    def __len__(self) -> int:
        return len(self.points)

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Writes the points, x right, y up, z backward, with unit and provenance; returns the path.

        Args:
            path: its suffix decides: .ply (binary; positions, normals, colors) or .glb (glTF 2.0; positions, colors).
            overwrite: replace a file of this name.

        Raises:
            InvalidValueError: another suffix, or no points.
            OutputError: the file exists and `overwrite` is off, or it cannot be written.
        """
        return save_space(path, {".ply": self.write_ply, ".glb": self.write_glb}, len(self), overwrite=overwrite)

    def write_ply(self, path: Path) -> None:
        """The content of `save` for .ply, written in place."""
        write_ply(path, self.points, normals=self.normals, colors=self.colors, origin=self.origin)

    def write_glb(self, path: Path) -> None:
        """The content of `save` for .glb, written in place."""
        write_glb(path, self.points, colors=self.colors, origin=self.origin)

    def __repr__(self) -> str:
        return f"PointCloud({len(self)} points, {self.origin.unit})"


def points_from_depth(
    depth: Float[np.ndarray, "h w"],
    camera: Camera,
    *,
    rgb: UInt8[np.ndarray, "_ _ 3"] | None = None,
    uncertainty: Float[np.ndarray, "_ _"] | None = None,
    choice: PixelChoice | None = None,
    origin: Mapping[str, Any] | None = None,
) -> PointCloud:
    """The points of a map of planar depth, in its unit.

    Args:
        depth: above 0; NaN, infinity and 0 stand for unknown.
        camera: of the picture.
        rgb: the picture.
        uncertainty: of the depth, for `choice.drop_uncertain`.
        choice: which pixels; None: all, but those between two surfaces.
        origin: unit and provenance (`Origin`).

    Raises:
        InvalidValueError: maps, camera and picture of different sizes, or `drop_uncertain` without uncertainty.
    """
    check_picture(rgb, camera)
    grid = surface_grid(depth, camera, choice or PixelChoice(), uncertainty)
    vertices, pixels, numbers = vertices_of(grid, camera, grid.kept)
    triangles = numbers[triangles_of(grid)]
    colors = None if rgb is None else rgb[pixels[:, 1], pixels[:, 0]]
    return PointCloud(
        points=vertices,
        pixels=pixels,
        normals=vertex_normals(vertices, triangles),
        colors=colors,
        origin=Origin(camera=camera, **(origin or {})),
    )


def check_picture(rgb: UInt8[np.ndarray, "_ _ 3"] | None, camera: Camera) -> None:
    """Raises InvalidValueError unless the picture has the camera's size."""
    if rgb is not None and rgb.shape[:2] != camera.size:
        raise InvalidValueError(
            f"the picture is {rgb.shape[0]}x{rgb.shape[1]} and the camera's {camera.height}x{camera.width}; they must "
            "be of one size"
        )


def vertices_of(
    grid: SurfaceGrid, camera: Camera, wanted: np.ndarray
) -> tuple[Float32[np.ndarray, "n 3"], Int32[np.ndarray, "n 2"], Int64[np.ndarray, " cells"]]:
    """Points and pixels of the wanted places of a grid, and the number of each place among them (-1 for others)."""
    row, column = np.nonzero(wanted)
    x, y = grid.columns[column], grid.rows[row]
    depth = grid.depth[row, column]
    vertices = camera.unproject_at(np.stack([x, y], axis=-1).astype(np.float64), depth).astype(np.float32)
    numbers = np.full(wanted.size, -1, dtype=np.int64)
    numbers[wanted.ravel()] = np.arange(len(vertices))
    return vertices, np.stack([x, y], axis=-1).astype(np.int32), numbers


def vertex_normals(
    vertices: Float32[np.ndarray, "n 3"], triangles: Int64[np.ndarray, "t 3"]
) -> Float32[np.ndarray, "n 3"]:
    """Mean direction of the triangles around each vertex; of a vertex without triangles, towards the camera."""
    sums = np.zeros((3, len(vertices)))
    for start in range(0, len(triangles), _BLOCK_TRIANGLES):
        block = triangles[start : start + _BLOCK_TRIANGLES]
        first, second, third = (vertices[block[:, number]].astype(np.float64) for number in range(3))
        faces = _unit_vectors(np.cross(second - first, third - first))
        for total, part in zip(sums, faces.T, strict=True):
            total += np.bincount(block.ravel(), weights=np.repeat(part, 3), minlength=len(vertices))
    alone = np.abs(sums).max(axis=0, initial=0.0) < _NO_SUM
    sums[:, alone] = -vertices[alone].T
    return _unit_vectors(sums.T).astype(np.float32)


def _unit_vectors(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Vectors of any length above 0, divided by it: lengths of triangles have no smallest one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
