# SPDX-License-Identifier: Apache-2.0
"""Furniture catalogs of Sweet Home 3D (.sh3f): what pieces there are, and their models in real size.

A catalog is a ZIP with a Java properties file, whose lines `key#number=value` describe a piece each number, and the
OBJ files that the pieces name. Sizes come from the properties, never from the OBJ files, whose units vary.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float64

from openmarigold_render.core import Archive, DataError, open_archive
from openmarigold_render.wavefront import MtlMaterial, ObjMesh, find_materials, read_obj

_PROPERTIES = "PluginFurnitureCatalog.properties"
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Piece:
    """A piece of furniture as its catalog describes it.

    Attributes:
        name, category: in English.
        creator: who made the model; "" where the catalog does not say.
        model: path of the OBJ file in the catalog.
        size: width, depth, height [m].
        elevation: of the lowest point above the floor [m].
        lamp_height: of its first lamp above the lowest point [m]; None without one.
        rotation: of the model, a row-major matrix in the OBJ file's axes.
    """

    name: str
    category: str
    creator: str
    model: str
    size: tuple[float, float, float]
    elevation: float
    lamp_height: float | None
    is_door_or_window: bool
    rotation: tuple[float, ...] = _IDENTITY


@dataclass(frozen=True)
class Model:
    """A piece's triangles in real size: meters, Z up, front to -Y, its footprint's center at 0, its lowest point at 0.

    Attributes:
        vertices: of `mesh`, moved; `mesh.vertices` and `mesh.normals` are still in the file's own frame.
        axes: matrix that turns the file's directions into these.
    """

    mesh: ObjMesh
    vertices: Float64[np.ndarray, "n 3"]
    axes: Float64[np.ndarray, "3 3"]
    materials: dict[str, MtlMaterial]


class FurnitureFile:
    """One .sh3f file: its pieces, and their models on demand.

    Attributes:
        pieces: in the order of their numbers.
        title: the catalog's own name.
        skipped: pieces whose description is incomplete, and why.
    """

    def __init__(self, path: Path) -> None:
        """Reads the descriptions, no models.

        Raises:
            DataError: the file is not a furniture catalog, or is damaged.
        """
        self.path = path
        self._archive: Archive = open_archive(path)
        self._files = {name.lower(): name for name in self._archive.names}
        properties = self._files.get(_PROPERTIES.lower())
        if properties is None:
            raise DataError(f"{path} holds no {_PROPERTIES}; it is not a furniture catalog of Sweet Home 3D")
        values = read_properties(self._archive.read(properties).decode("latin-1"))
        self.title = values.get("name", path.stem)
        rows: dict[int, dict[str, str]] = defaultdict(dict)
        for key, value in values.items():
            word, mark, number = key.partition("#")
            if mark and number.isdecimal():
                rows[int(number)][word] = value
        self.pieces: list[Piece] = []
        self.skipped: dict[str, str] = {}
        for number in sorted(rows):
            try:
                self.pieces.append(self._piece(rows[number], number))
            except DataError as error:
                self.skipped[f"{path.stem}#{number}"] = str(error)

    @cached_property
    def by_model(self) -> dict[str, Piece]:
        """Pieces by the path of their model."""
        return {piece.model: piece for piece in self.pieces}

    def load(self, piece: Piece) -> Model:
        """The piece's triangles in real size.

        Raises:
            DataError: the model is damaged, flat in a direction in which it should not be, or lacks a texture.
        """
        name = f"{self.path.name}:{piece.model}"
        mesh = read_obj(self._archive.read(piece.model), name)
        try:
            materials = find_materials(mesh, piece.model, self._archive.read, self._files)
        except DataError as error:
            raise DataError(f"{self.path.name}: {error}") from error
        # Y up to Z up: (x, y, z) -> (x, -z, y).
        axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ np.array(piece.rotation).reshape(3, 3)
        vertices = mesh.vertices @ axes.T
        used = vertices[np.unique(mesh.triangles)]
        low, high = used.min(0), used.max(0)
        extent, size = high - low, np.array(piece.size)
        # A sheet of paper has no thickness to scale, a wardrobe must have one.
        if (extent[size > 0.05] < 1e-9).any():
            raise DataError(
                f"{name} is flat but should measure {size[0]:g} x {size[1]:g} x {size[2]:g} m; leave it out"
            )
        scale = np.where(extent > 1e-9, size / np.maximum(extent, 1e-9), 1.0)
        origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        return Model(mesh, (vertices - origin) * scale, axes, materials)

    def read(self, name: str) -> bytes:
        """The content of a file of the catalog, such as a texture that a material names."""
        return self._archive.read(name)

    def _piece(self, row: dict[str, str], number: int) -> Piece:
        where = f"{self.path.name}, piece {number} ({row.get('name', 'without a name')})"
        for key in ("name", "category", "model", "width", "depth", "height"):
            if not row.get(key):
                raise DataError(f"{where} has no {key}; it is left out")
        model = self._files.get(str(PurePosixPath("/" + row["model"].lstrip("/"))).lstrip("/").lower())
        if model is None:
            raise DataError(f"{where}: its model {row['model']} is not in the catalog; it is left out")
        size = [_centimeters(row[key], where) for key in ("width", "depth", "height")]
        rotation = tuple(float(v) for v in row["modelRotation"].split()) if "modelRotation" in row else _IDENTITY
        if min(size) <= 0 or len(rotation) != 9:
            raise DataError(f"{where}: its size or rotation is not valid; it is left out")
        return Piece(
            name=row["name"],
            category=row["category"],
            creator=row.get("creator", ""),
            model=model,
            size=(size[0], size[1], size[2]),
            elevation=_centimeters(row.get("elevation", "0"), where),
            lamp_height=_centimeters(row["lightSourceZ"].split()[0], where) if row.get("lightSourceZ") else None,
            is_door_or_window=row.get("doorOrWindow", "false").lower() == "true",
            rotation=rotation,
        )


def read_properties(text: str) -> dict[str, str]:
    """Keys and values of a Java properties file: comments, continued lines and escapes as Java reads them."""
    values = {}
    logical = re.sub(r"(?<!\\)((?:\\\\)*)\\\r?\n[ \t]*", r"\1", text)
    for line in logical.splitlines():
        line = line.lstrip()
        if not line or line[0] in "#!":
            continue
        match = re.match(r"((?:\\.|[^\s=:\\])+)\s*[=:]?\s*(.*)", line)
        if match:
            values[_unescape(match[1])] = _unescape(match[2]).rstrip()
    return values


def _unescape(text: str) -> str:
    plain = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", lambda m: chr(int(m[1], 16)) if m[1] else plain.get(m[2], m[2]), text)


def _centimeters(value: str, where: str) -> float:
    try:
        meters = float(value) / 100.0
    except ValueError:
        meters = math.nan
    if not math.isfinite(meters):
        raise DataError(f"{where}: {value!r} is not a length; it is left out")
    return meters
