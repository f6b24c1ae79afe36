# SPDX-License-Identifier: Apache-2.0
"""Wavefront OBJ and MTL files as arrays, with the liberties that hand-made models take.

Met in the furniture catalogs and read all the same: options and absolute paths of the author's disk before a
texture's name, back-slashes, URL escapes, another case or extension than the file's, negative indices, polygons that
are not convex. What cannot be repaired (a texture that is nowhere, a material that no MTL file defines) is an error
that names the model, so that a catalog can leave it out and count it.

Source: Wavefront, Advanced Visualizer manual, appendix B1 (object files) and the MTL material format (1995).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from posixpath import basename, dirname, join, normpath, splitext
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float32, Float64, Int32

from openmarigold_render.core import DataError

# What exporters write for faces without a material, which then have the default one; "": faces before any usemtl.
_NO_MATERIAL = ("", "(null)", "None", "none", "(none)")
_SHADING_ONLY = re.compile(r"normal|bump", re.IGNORECASE)
# Options of map lines and how many values they take; -s, -o and -t take one to three numbers.
_MAP_OPTIONS = {"-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1, "-mm": 2}
_MAP_OPTIONS |= {"-texres": 1, "-type": 1}
_VECTOR_OPTIONS = ("-s", "-o", "-t")


@dataclass(frozen=True)
class ObjMesh:
    """Triangles of an OBJ file, in its own units and axes (Y up, as a rule).

    Attributes:
        uv: texture coordinates of each corner, V up; 0 where there are none.
        normals: shading normal of each corner; 0 where there is none.
        material: of each triangle, an index into `material_names`.
        libraries: names of the MTL files, as in the file.
    """

    vertices: Float64[np.ndarray, "n 3"]
    triangles: Int32[np.ndarray, "t 3"]
    uv: Float32[np.ndarray, "t 3 2"]
    normals: Float32[np.ndarray, "t 3 3"]
    material: Int32[np.ndarray, " t"]
    material_names: tuple[str, ...]
    libraries: tuple[str, ...]


@dataclass(frozen=True)
class MtlMaterial:
    """A material of an MTL file.

    Attributes:
        color: diffuse color, each [0, 1].
        specular: specular color, each [0, 1].
        shininess: exponent of Phong's model, [0, 1000]; None where the file does not say.
        alpha: opacity, [0, 1].
        color_map: name of the diffuse texture as in the file, without its options; None without one.
        alpha_map: the same for opacity.
    """

    color: tuple[float, float, float] = (0.8, 0.8, 0.8)
    specular: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shininess: float | None = None
    alpha: float = 1.0
    color_map: str | None = None
    alpha_map: str | None = None


def read_obj(data: bytes, name: str) -> ObjMesh:
    """The triangles of an OBJ file. Lines, points, curves and groups are passed over.

    Args:
        name: the file, for messages.

    Raises:
        DataError: there are no faces, or numbers are missing, not finite, or point to vertices that are not there.
    """
    lines = _Lines()
    for line in _logical_lines(data.decode("utf-8", "replace")):
        keyword, _, rest = line.partition(" ")
        if keyword == "v":
            lines.vertices.append(rest)
        elif keyword == "vt":
            lines.uv.append(rest)
        elif keyword == "vn":
            lines.normals.append(rest)
        elif keyword == "f":
            lines.add_face(rest)
        elif keyword == "usemtl":
            lines.use(rest.strip())
        elif keyword == "mtllib":
            lines.libraries.append(rest.strip())
    if not lines.faces:
        raise DataError(f"{name} holds no faces; it is empty or no OBJ file, so leave it out")
    vertices = _table(lines.vertices, 3, name, "vertex")
    uv = _table(lines.uv, 2, name, "texture coordinate")
    normals = _table(lines.normals, 3, name, "normal")
    sizes = np.array(lines.sizes)
    corners = _corners(lines.faces, np.array(lines.seen), name, len(vertices), len(uv), len(normals))
    order, polygon = _triangulate(sizes, vertices, corners[:, 0])
    triangles = corners[order]
    return ObjMesh(
        vertices=vertices,
        triangles=np.ascontiguousarray(triangles[..., 0], dtype=np.int32),
        uv=_pick(uv, triangles[..., 1]),
        normals=_pick(normals, triangles[..., 2]),
        material=np.array(lines.material, dtype=np.int32)[polygon],
        material_names=tuple(lines.names),
        libraries=tuple(lines.libraries),
    )


def read_mtl(data: bytes, name: str) -> dict[str, MtlMaterial]:
    """The materials of an MTL file, by name. Only what a path tracer needs is read: colors, opacity, two maps.

    Raises:
        DataError: a color or a factor is not a number.
    """
    found: dict[str, dict[str, object]] = {}
    current: dict[str, object] = {}
    for number, line in enumerate(_logical_lines(data.decode("utf-8", "replace")), start=1):
        keyword, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        try:
            if keyword == "newmtl":
                current = found[rest] = {}
            elif keyword in ("Kd", "Ks"):
                current["color" if keyword == "Kd" else "specular"] = _color(rest)
            elif keyword == "Ns":
                current["shininess"] = float(np.clip(float(rest.split()[0]), 0, 1000))
            elif keyword == "d":
                current["alpha"] = _unit(rest.removeprefix("-halo").split()[0])
            elif keyword == "Tr":
                current["alpha"] = 1.0 - _unit(rest.split()[0])
            elif keyword in ("map_Kd", "map_d"):
                current["color_map" if keyword == "map_Kd" else "alpha_map"] = _strip_options(rest) or None
        except (ValueError, IndexError):
            raise DataError(f"{name}, line {number}: {line.strip()!r} has no numbers; leave this model out") from None
    return {title: MtlMaterial(**fields) for title, fields in found.items()}  # type: ignore[arg-type]


def find_materials(
    mesh: ObjMesh, name: str, read: Callable[[str], bytes], files: Mapping[str, str]
) -> dict[str, MtlMaterial]:
    """The materials that a mesh uses, their map names replaced by those of files that are there.

    Args:
        name: the OBJ file, relative to the archive.
        read: gives the content of a file by its name.
        files: names of the archive's files, keyed by the same in lower case.

    Raises:
        DataError: a material is defined nowhere, a texture is nowhere, or an MTL file is damaged.
    """
    defined: dict[str, MtlMaterial] = {}
    folder = dirname(name)
    for library in mesh.libraries:
        path = find_file(library, folder, files)
        if path is not None:
            defined |= read_mtl(read(path), path)
    used = {}
    for title in (mesh.material_names[i] for i in np.unique(mesh.material)):
        if title in _NO_MATERIAL and title not in defined:
            used[title] = MtlMaterial()
            continue
        if title not in defined:
            raise DataError(f"{name}: no MTL file defines its material {title!r}; leave this model out")
        used[title] = _with_files(defined[title], name, folder, files)
    return used


def find_file(given: str, folder: str, files: Mapping[str, str]) -> str | None:
    """The file that a hand-made reference means; None if there is none.

    First the path as given, relative to `folder`; then any file of the folder whose base name agrees when case,
    spaces, underscores and at last the extension are ignored.
    """
    path = unquote(given.strip().strip('"')).replace("\\", "/")
    exact = files.get(normpath(join(folder, path)).lower())
    if exact is not None:
        return exact
    start = f"{folder}/".lower() if folder else ""
    close = [files[low] for low in sorted(files) if low.startswith(start)]
    for keep_extension in (True, False):
        wanted = _plain(path, keep_extension)
        for candidate in close:
            is_picture = splitext(candidate)[1].lower() in (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tga")
            if (keep_extension or is_picture) and _plain(candidate, keep_extension) == wanted:
                return candidate
    return None


@dataclass
class _Lines:
    # What one pass over the file collects; numbers are converted afterward, all at once.
    vertices: list[str] = field(default_factory=list)
    uv: list[str] = field(default_factory=list)
    normals: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    faces: list[str] = field(default_factory=list)  # one token a corner
    sizes: list[int] = field(default_factory=list)  # corners of each face
    seen: list[tuple[int, int, int]] = field(default_factory=list)  # vertices, uv, normals before each corner
    material: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add_face(self, rest: str) -> None:
        corners = rest.split()
        if len(corners) < 3:
            return  # exporters write stray edges as faces of two corners
        if not self.names:
            self.use("")
        self.faces += corners
        self.sizes.append(len(corners))
        self.seen += [(len(self.vertices), len(self.uv), len(self.normals))] * len(corners)
        self.material.append(self._current)

    def use(self, title: str) -> None:
        if title not in self.names:
            self.names.append(title)
        self._current = self.names.index(title)


def _logical_lines(text: str) -> Iterable[str]:
    joined = re.sub(r"\\\r?\n", " ", text)
    return (line.replace("\t", " ").strip() for line in joined.splitlines())


def _table(lines: list[str], width: int, name: str, what: str) -> Float64[np.ndarray, "n w"]:
    try:
        rows = [line.split()[:width] for line in lines]
        table = np.array([value for row in rows for value in row], dtype=np.float64).reshape(-1, width)
        if len(table) != len(lines) or not np.isfinite(table).all():
            raise ValueError
    except ValueError:
        raise DataError(f"{name}: a {what} without {width} finite numbers; the file is damaged, leave it out") from None
    return table


def _corners(
    tokens: list[str], seen: np.ndarray, name: str, num_vertices: int, num_uv: int, num_normals: int
) -> np.ndarray:
    # "7", "7/3", "7//2" or "7/3/2" -> three indices from 0, -1 where there is none.
    slashes = {token.count("/") for token in tokens}
    text = " ".join(tokens)
    try:
        if slashes == {2}:
            flat = text.replace("//", "/0/").replace("/", " ").split()
        else:
            parts = ([*token.split("/"), "", ""][:3] for token in tokens)
            flat = [part or "0" for row in parts for part in row]
        index = np.array(flat, dtype=np.int64).reshape(-1, 3)
        if len(index) != len(tokens):
            raise ValueError
    except ValueError:
        raise DataError(f"{name}: a face's corners are not indices; the file is damaged, leave it out") from None
    index = np.where(index > 0, index - 1, np.where(index < 0, index + seen, -1))
    limits = np.array([num_vertices, num_uv, num_normals])
    if (index[:, 0] < 0).any() or (index >= limits).any():
        raise DataError(f"{name}: a face points to a vertex that is not there; the file is damaged, leave it out")
    return index


def _triangulate(
    sizes: np.ndarray, vertices: Float64[np.ndarray, "n 3"], corner_vertices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # Corner numbers of each triangle, and the polygon that each belongs to.
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    fans, owners = [], []
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        corners = starts[members][:, None] + np.arange(size)
        if size == 3:
            fans.append(corners)
            owners.append(members)
            continue
        fan = np.array([[0, k, k + 1] for k in range(1, size - 1)])
        points = vertices[corner_vertices[corners]]
        for convex, at, polygon in zip(_are_convex(points), corners, members, strict=True):
            # Fans overlap outside a polygon that is not convex, so those are cut ear by ear.
            chosen = fan if convex else cut_ears(vertices[corner_vertices[at]])
            fans.append(at[chosen])
            owners.append(np.full(len(chosen), polygon))
    return np.concatenate(fans), np.concatenate(owners)


def _are_convex(points: Float64[np.ndarray, "p k 3"]) -> np.ndarray:
    before, after = np.roll(points, 1, axis=1), np.roll(points, -1, axis=1)
    turns = np.cross(points - before, after - points)
    normal = _newell(points)
    return (np.einsum("pkc,pc->pk", turns, normal) >= -1e-4 * np.einsum("pc,pc->p", normal, normal)[:, None]).all(1)


def _newell(points: Float64[np.ndarray, "p k 3"]) -> Float64[np.ndarray, "p 3"]:
    # Twice the area along the normal: robust for polygons that are not quite planar.
    return np.cross(points, np.roll(points, -1, axis=1)).sum(1)


def cut_ears(polygon: Float64[np.ndarray, "k 3"]) -> np.ndarray:
    """Triangles (rows of three corner numbers) that cover a simple polygon, by cutting ears."""
    normal = _newell(polygon[None])[0]
    keep = [axis for axis in range(3) if axis != int(np.abs(normal).argmax())]
    flat = polygon[:, keep]
    if _area(flat) < 0:
        flat = flat[:, ::-1]
    left = list(range(len(polygon)))
    ears = []
    while len(left) > 3:
        ear = next((i for i in range(len(left)) if _is_ear(flat, left, i)), 0)  # 0: degenerate, any will do
        ears.append([left[ear - 1], left[ear], left[(ear + 1) % len(left)]])
        del left[ear]
    return np.array([*ears, left])


def _area(flat: np.ndarray) -> float:
    following = np.roll(flat, -1, axis=0)
    return float((flat[:, 0] * following[:, 1] - flat[:, 1] * following[:, 0]).sum())


def _is_ear(flat: np.ndarray, left: list[int], i: int) -> bool:
    corner = flat[[left[i - 1], left[i], left[(i + 1) % len(left)]]]
    if _area(corner) <= 0:
        return False
    others = flat[[k for k in left if k not in (left[i - 1], left[i], left[(i + 1) % len(left)])]]
    inside = np.ones(len(others), bool)
    for start, end in pairwise([*corner, corner[0]]):
        side, to = end - start, others - start
        inside &= side[0] * to[:, 1] - side[1] * to[:, 0] > 0
    return not inside.any()


def _pick(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    if not len(table):
        return np.zeros((*index.shape, table.shape[1]), np.float32)
    return np.where((index >= 0)[..., None], table[index], 0.0).astype(np.float32)


def _color(rest: str) -> tuple[float, float, float]:
    values = [_unit(value) for value in rest.split()[:3]]
    red, green, blue = values * 3 if len(values) == 1 else values  # one value stands for all three
    return red, green, blue


def _unit(value: str) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError
    return float(np.clip(number, 0.0, 1.0))


def _strip_options(rest: str) -> str:
    words = rest.split(" ")
    while words and (words[0] in _MAP_OPTIONS or words[0] in _VECTOR_OPTIONS or not words[0]):
        option = words.pop(0)
        if option in _VECTOR_OPTIONS:
            taken = 0
            while words and taken < 3 and _is_number(words[0]):
                words.pop(0)
                taken += 1
        else:
            del words[: _MAP_OPTIONS.get(option, 0)]
    return " ".join(words).strip()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _plain(path: str, keep_extension: bool) -> str:
    stem, extension = splitext(basename(path).lower())
    return re.sub(r"[ _]+", "", stem) + (extension if keep_extension else "")


def _with_files(material: MtlMaterial, name: str, folder: str, files: Mapping[str, str]) -> MtlMaterial:
    found: dict[str, str | None] = {}
    for kind, given in (("color_map", material.color_map), ("alpha_map", material.alpha_map)):
        found[kind] = None if given is None else find_file(given, folder, files)
        # A map of normals in the place of colors would have to be dropped if it were there.
        if given is not None and found[kind] is None and not _SHADING_ONLY.search(basename(given)):
            raise DataError(f"{name}: its texture {given!r} is nowhere in the catalog; leave this model out")
    return MtlMaterial(
        color=material.color,
        specular=material.specular,
        shininess=material.shininess,
        alpha=material.alpha,
        color_map=found["color_map"],
        alpha_map=found["alpha_map"],
    )
