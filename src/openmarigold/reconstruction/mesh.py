# SPDX-License-Identifier: Apache-2.0
"""A mesh from a depth map: one surface that is open where it has edges, with the photo on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

from openmarigold.camera import Camera
from openmarigold.reconstruction.glb import write_glb
from openmarigold.reconstruction.grid import PixelChoice, surface_grid, triangles_of
from openmarigold.reconstruction.ply import write_ply
from openmarigold.reconstruction.points import check_picture, vertex_normals, vertices_of
from openmarigold.reconstruction.saving import Origin, save_space


@dataclass(frozen=True, kw_only=True, repr=False)
class Mesh:
    """Triangles that a depth map shows. Axes are OpenCV's, as of `PointCloud`; files have y up and z backward."""

    vertices: Float32[np.ndarray, "n 3"]
    triangles: Int32[np.ndarray, "t 3"]
    """Numbers of vertices; counterclockwise as the camera sees them, so that their front faces it."""
    normals: Float32[np.ndarray, "n 3"]
    """Unit vectors of the vertices, on the camera's side."""
    uv: Float32[np.ndarray, "n 2"]
    """Places of the vertices in the texture, [0, 1], from its top left corner."""
    pixels: Int32[np.ndarray, "n 2"]
    """Places (x, y) of the vertices in the picture."""
    texture: UInt8[np.ndarray, "h w 3"] | None = None
    """The photo, sRGB."""
    origin: Origin = field(default_factory=Origin)

    def __len__(self) -> int:
        return len(self.triangles)

    @property
    def colors(self) -> UInt8[np.ndarray, "n 3"] | None:
        """Colors of the vertices, sRGB; None without a photo."""
        return None if self.texture is None else self.texture[self.pixels[:, 1], self.pixels[:, 0]]

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Writes the mesh, x right, y up, z backward, with unit and provenance; returns the path.

        Args:
            path: its suffix decides: .glb (glTF 2.0 with the photo as texture) or .ply (binary, colors of vertices).
            overwrite: replace a file of this name.

        Raises:
            InvalidValueError: another suffix, or no triangles.
            OutputError: the file exists and `overwrite` is off, or it cannot be written.
        """
        writers = {".ply": self.write_ply, ".glb": self.write_glb}
        return save_space(path, writers, len(self), overwrite=overwrite)

    def write_ply(self, path: Path) -> None:
        """The content of `save` for .ply, written in place."""
        origin = self.origin
        write_ply(
            path, self.vertices, normals=self.normals, colors=self.colors, triangles=self.triangles, origin=origin
        )

    def write_glb(self, path: Path) -> None:
        """The content of `save` for .glb, written in place."""
        write_glb(
            path,
            self.vertices,
            triangles=self.triangles,
            normals=self.normals,
            uv=self.uv,
            texture=self.texture,
            origin=self.origin,
        )

    def __repr__(self) -> str:
        return f"Mesh({len(self.vertices)} vertices, {len(self.triangles)} triangles, {self.origin.unit})"


def mesh_from_depth(
    depth: Float[np.ndarray, "h w"],
    camera: Camera,
    *,
    rgb: UInt8[np.ndarray, "_ _ 3"] | None = None,
    uncertainty: Float[np.ndarray, "_ _"] | None = None,
    choice: PixelChoice | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Mesh:
    """The surface that a map of planar depth shows, in its unit; arguments as of `points_from_depth`.

    `choice.max_points` is the budget of vertices. A vertex that no triangle has is left out.

    Raises:
        InvalidValueError: maps, camera and picture of different sizes, or `drop_uncertain` without uncertainty.
    """
    check_picture(rgb, camera)
    grid = surface_grid(depth, camera, choice or PixelChoice(), uncertainty)
    triangles = triangles_of(grid)
    used = np.zeros(grid.depth.size, dtype=bool)
    used[triangles.ravel()] = True
    vertices, pixels, numbers = vertices_of(grid, camera, used.reshape(grid.depth.shape))
    triangles = numbers[triangles]
    size = np.array([camera.width, camera.height])
    return Mesh(
        vertices=vertices,
        triangles=triangles.astype(np.int32),
        normals=vertex_normals(vertices, triangles),
        uv=((pixels + 0.5) / size).astype(np.float32),
        pixels=pixels,
        texture=rgb,
        origin=Origin(camera=camera, **(origin or {})),
    )
