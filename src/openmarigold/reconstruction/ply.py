# SPDX-License-Identifier: Apache-2.0
"""PLY files of points and meshes: binary, little endian, with unit, axes and provenance as comments.

Format: the PLY description of Greg Turk (1994), as Blender, MeshLab, Open3D, trimesh and three.js read it: positions
and normals float32, colors uint8, faces as lists of int32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from openmarigold.reconstruction.saving import METERS, Origin, upright

RECORD_MARK = "openmarigold "
_LINE_LENGTH = 200  # of a comment: readers of some tools take lines of at most 1023 bytes
_MAX_HEADER_BYTES = 2**18
_BLOCK_ROWS = 2**16


def write_ply(
    path: Path,
    points: Float32[np.ndarray, "n 3"],
    *,
    normals: Float32[np.ndarray, "n 3"] | None = None,
    colors: UInt8[np.ndarray, "n 3"] | None = None,
    triangles: Int32[np.ndarray, "t 3"] | None = None,
    origin: Origin,
) -> None:
    """Writes points or, with triangles, a mesh. Vectors are given in OpenCV's axes and written upright (`AXES`)."""
    fields = [(name, "<f4") for name in ("x", "y", "z")]
    fields += [(name, "<f4") for name in ("nx", "ny", "nz") if normals is not None]
    fields += [(name, "u1") for name in ("red", "green", "blue") if colors is not None]
    header = ["ply", "format binary_little_endian 1.0", *_comments(origin), f"element vertex {len(points)}"]
    header += [f"property {'float' if dtype == '<f4' else 'uchar'} {name}" for name, dtype in fields]
    if triangles is not None:
        header += [f"element face {len(triangles)}", "property list uchar int vertex_indices"]
    with path.open("wb") as file:
        file.write("\n".join([*header, "end_header", ""]).encode("ascii"))
        for start in range(0, len(points), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            block = np.empty(len(points[rows]), dtype=fields)
            columns = [upright(points[rows])]
            columns += [] if normals is None else [upright(normals[rows])]
            columns += [] if colors is None else [colors[rows]]
            for (name, _), values in zip(fields, (part for array in columns for part in array.T), strict=True):
                block[name] = values
            file.write(block.tobytes())
        for start in range(0, 0 if triangles is None else len(triangles), _BLOCK_ROWS):
            assert triangles is not None
            faces = triangles[start : start + _BLOCK_ROWS]
            block = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", (3,))])
            block["count"], block["corners"] = 3, faces
            file.write(block.tobytes())


def _comments(origin: Origin) -> Iterator[str]:
    statement = origin.statement
    scale = "1 unit is 1 meter" if origin.unit == METERS else "lengths are known up to one factor"
    yield "comment made by OpenMarigold"
    yield f"comment unit {origin.unit}: {scale}"
    yield f"comment axes {statement['axes']}"
    if origin.camera is not None:
        yield f"comment camera is {origin.camera.source}, field of view {origin.camera.fov:.2f} deg on the longer side"
    text = json.dumps(statement, ensure_ascii=True)
    for start in range(0, len(text), _LINE_LENGTH):
        yield f"comment {RECORD_MARK}{text[start : start + _LINE_LENGTH]}|"  # the bar keeps spaces at the end


def read_ply_record(path: Path) -> str | None:
    """The provenance of a PLY file of ours, as JSON text; None for others.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES).partition(b"\nend_header")[0]
    mark = f"comment {RECORD_MARK}".encode()
    lines = [line.removeprefix(mark) for line in head.splitlines() if line.startswith(mark)]
    return b"".join(line.removesuffix(b"|") for line in lines).decode("ascii", "replace") or None
