# SPDX-License-Identifier: Apache-2.0
"""Tiny asset packages, written by the formats' own rules: catalogs, OBJ and MTL, maps, models, copyright files."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

BOX_OBJ = """mtllib box.mtl
v 0 0 0
v 2 0 0
v 2 3 0
v 0 3 0
v 0 0 1
v 2 0 1
v 2 3 1
v 0 3 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl paint
f 4/4 3/3 2/2 1/1
f 5/1 6/2 7/3 8/4
f 1/1 2/2 6/3 5/4
f 3/1 4/2 8/3 7/4
usemtl cloth
f 2/1 3/2 7/3 6/4
f 4/1 1/2 5/3 8/4
"""
BOX_MTL = """newmtl paint
Kd 0.9 0.1 0.1
Ns 250
Ks 0.5 0.5 0.5
newmtl cloth
Kd 0 0 0
map_Kd -s 2 2 1 -bm 0.3 C:\\Users\\somebody\\My%20Textures\\Blue_Cloth.JPG
"""


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 8), *, kind: str = "PNG") -> bytes:
    """A gradient; with alpha, its left half is clear."""
    height, width = size[1], size[0]
    ramp = np.linspace(0, 255, height * width * len(mode)).reshape(height, width, len(mode)).astype(np.uint8)
    if mode.endswith("A"):
        ramp[..., -1] = np.where(np.arange(width) < width // 2, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(ramp.squeeze(), mode=mode if mode == "RGBA" else None).save(buffer, kind)
    return buffer.getvalue()


def box_files() -> dict[str, bytes]:
    """A model whose MTL file refers to a texture the way hand-made ones do."""
    return {
        "models/box/box.obj": BOX_OBJ.encode(),
        "models/box/box.mtl": BOX_MTL.encode(),
        "models/box/bluecloth.png": picture(),
    }


def piece(number: int, **values: object) -> str:
    """A piece of a catalog; 50 x 40 x 90 cm unless values say otherwise."""
    row = {"name": "Chair", "category": "Living room", "creator": "A. Maker", "model": "/models/box/box.obj"}
    row |= {"width": "50", "depth": "40", "height": "90", "movable": "true", "doorOrWindow": "false"}
    row |= {key: str(value) for key, value in values.items()}
    return "".join(f"{key}#{number}={value}\n" for key, value in row.items() if value != "")


def write_catalog(path: Path, pieces: Sequence[str], files: Mapping[str, bytes] | None = None) -> Path:
    """A furniture catalog; pieces as `piece` gives them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "# tiny\nname=Tiny\n" + "".join(pieces))
        for name, data in {**box_files(), **(files or {})}.items():
            archive.writestr(name, data)
    return path


def box_faces(low: Sequence[float], high: Sequence[float]) -> list[np.ndarray]:
    """The six sides of a box, corners counter-clockwise from outside."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    corners = (
        ((x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)),
        ((x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)),
        ((x1, y1, z0), (x0, y1, z0), (x0, y1, z1), (x1, y1, z1)),
        ((x0, y1, z0), (x0, y0, z0), (x0, y0, z1), (x0, y1, z1)),
        ((x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)),
        ((x0, y1, z0), (x1, y1, z0), (x1, y0, z0), (x0, y0, z0)),
    )
    return [np.array(side, dtype=np.float64) for side in corners]


def bsp(
    faces: Sequence[tuple[np.ndarray, str, int]],
    entities: str = '{\n"classname" "worldspawn"\n}\n',
    *,
    version: int = 78,
) -> bytes:
    """A map out of faces: corners counter-clockwise from outside [units], texture, flags. As in the game, each face is
    stored clockwise, and every second edge backward.
    """
    vertices, planes, surfaces, stored, edges, face_edges = [], [], [], [], [(0, 0)], []
    for corners, texture, flags in faces:
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        normal /= np.linalg.norm(normal)
        is_flipped = len(planes) % 2 == 1  # the plane's other side is meant
        planes.append(struct.pack("<4fi", *(-normal if is_flipped else normal), 0.0, 0))
        surfaces.append(struct.pack("<8fII32s", 1, 0, 0, 3, 0, 1, 0, 5, flags, 0, texture.encode()))
        first = len(face_edges)
        base = len(vertices)
        vertices += [tuple(corner) for corner in corners]
        ring = list(range(base, base + len(corners)))[::-1]
        for start, end in zip(ring, [*ring[1:], ring[0]], strict=True):
            if len(edges) % 2:
                edges.append((start, end))
                face_edges.append(len(edges) - 1)
            else:
                edges.append((end, start))
                face_edges.append(-(len(edges) - 1))
        number = len(planes) - 1
        stored.append(struct.pack("<HhihhII", number, is_flipped, first, len(corners), number, 0, 0))
    lumps = {
        0: entities.encode() + b"\0",
        1: b"".join(planes),
        2: b"".join(struct.pack("<3f", *vertex) for vertex in vertices),
        5: b"".join(surfaces),
        6: b"".join(stored),
        11: b"".join(struct.pack("<2H", *edge) for edge in edges),
        12: b"".join(struct.pack("<i", edge) for edge in face_edges),
    }
    header, body = b"", b""
    start = 8 + 17 * 8
    for number in range(17):
        data = lumps.get(number, b"")
        header += struct.pack("<ii", start + len(body), len(data))
        body += data
    return b"IBSP" + struct.pack("<i", version) + header + body


def md2(size: Sequence[float] = (32.0, 64.0, 48.0), *, skin: str = ".crate") -> bytes:
    """A box of a size [units] on the ground, as an MD2 model."""
    corners, triangles, uv = [], [], [(0, 0), (16, 0), (16, 16), (0, 16)]
    scale = np.array(size) / 255.0
    for side in box_faces((0, 0, 0), (255, 255, 255)):
        base = len(corners)
        corners += [tuple(int(value) for value in corner) for corner in side]
        for a, b, c in ((0, 1, 2), (0, 2, 3)):
            triangles.append((base + c, base + b, base + a, c, b, a))  # clockwise, as the game has it
    frame = struct.pack("<6f16s", *scale, -size[0] / 2, -size[1] / 2, 0.0, b"frame")
    frame += b"".join(struct.pack("<4B", *corner, 0) for corner in corners)
    parts = [
        skin.encode().ljust(64, b"\0"),
        b"".join(struct.pack("<2h", *pair) for pair in uv),
        b"".join(struct.pack("<6H", *triangle) for triangle in triangles),
        frame,
    ]
    offsets = np.cumsum([68, *(len(part) for part in parts)]).tolist()
    counts = (1, len(corners), len(uv), len(triangles), 0, 1)
    header = struct.pack("<4s16i", b"IDP2", 8, 16, 16, len(frame), *counts, *offsets[:4], offsets[4], offsets[4])
    return header + b"".join(parts)


def village() -> bytes:
    """A map of 60 x 60 m: a lawn, three houses, a pane, a clip that is not drawn, a crate; padded to a large map."""
    ground = np.array(((-960, -960, 0), (960, -960, 0), (960, 960, 0), (-960, 960, 0)), dtype=np.float64)
    faces = [(ground, "tex_nature/grass001", 0)]
    for low, high in (
        ((200, 200, 0), (500, 600, 150)),
        ((-700, 100, 0), (-300, 500, 200)),
        ((-300, -700, 0), (300, -500, 120)),
    ):
        faces += [(side, "tex_ctp1/bricks_r_2", 0) for side in box_faces(low, high)]
    pane = np.array(((0, 800, 0), (64, 800, 0), (64, 800, 64), (0, 800, 64)), dtype=np.float64)
    faces += [(pane, "tex_buildings/window001", 0x10), (pane, "tex_common/nodraw", 0x80)]
    entities = (
        '{\n"classname" "worldspawn"\n}\n'
        '{\n"classname" "misc_model"\n"model" "models/objects/crate/crate.md2"\n"origin" "640 -320 0"\n"angle" "90"\n'
        '"modelscale_vec" "1 1 2"\n}\n'
        '{\n"classname" "misc_model"\n"model" "models/objects/gone.md2"\n"origin" "0 0 0"\n}\n'
    )
    return bsp(faces, entities).ljust(3_400_000, b"\0")


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    """A ZIP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2002-2014, The Team
License: GPL-2+

Files:
 base/textures/tex_nature/grass001.png
 base/textures/tex_pics/*
Copyright:
 Ann Author
 Ben Builder,
License: CC-BY-3.0

License: CC-BY-3.0
 Long text.
"""


def write_packages(root: Path, pieces: Sequence[str] | None = None) -> Path:
    """A folder as dpkg-deb leaves it, with all four packages."""
    share = root / "usr" / "share"
    if pieces is None:
        pieces = [piece(1), piece(2, name="Sofa", width=200, depth=90, height=80)]
    write_catalog(share / "sweethome3d" / "furniture" / "Tiny.sh3f", pieces)
    base = share / "games" / "ufoai" / "base"
    write_archive(base / "0maps.pk3", {"maps/village.bsp": village(), "maps/tiny.bsp": b"short"})
    textures = {
        "textures/tex_nature/grass001.png": picture(size=(16, 8)),
        "textures/tex_nature/grass001_nm.png": picture(),
        "textures/tex_ctp1/bricks_r_2.jpg": picture(kind="JPEG"),
        "textures/tex_buildings/window001.png": picture(),
        "textures/tex_pics/art_africa001.png": picture(size=(2000, 10)),
    }
    write_archive(base / "0textures.pk3", textures)
    models = {"models/objects/crate/crate.md2": md2(), "models/objects/crate/Crate.png": picture("RGBA")}
    write_archive(base / "0models.pk3", models)
    for name in ("ufoai-maps", "ufoai-textures", "ufoai-data"):
        notice = share / "doc" / name / "copyright"
        notice.parent.mkdir(parents=True)
        notice.write_text(COPYRIGHT)
    return root
