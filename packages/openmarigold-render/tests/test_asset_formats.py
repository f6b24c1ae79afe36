# SPDX-License-Identifier: Apache-2.0
"""Readers of OBJ, MTL, furniture catalogs, maps and models: what they give, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asset_files import BOX_MTL, BOX_OBJ, box_faces, bsp, md2, piece, village, write_archive, write_catalog
from openmarigold.errors import DataError
from openmarigold_render.gamemaps.quake import read_bsp, read_md2, vector_of
from openmarigold_render.sweethome import FurnitureFile, read_properties
from openmarigold_render.wavefront import cut_ears, find_file, find_materials, read_mtl, read_obj


def areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    corners = vertices[triangles]
    return 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)


def is_outward(vertices: np.ndarray, triangles: np.ndarray) -> bool:
    """Of a convex solid: every triangle's normal points away from its middle."""
    corners = vertices[triangles].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return bool((np.einsum("tc,tc->t", normals, corners.mean(1) - vertices.mean(0)) > 0).all())


def test_obj_gives_triangles_texture_coordinates_and_materials() -> None:
    mesh = read_obj(BOX_OBJ.encode(), "box.obj")
    assert mesh.triangles.shape == (12, 3)
    assert is_outward(mesh.vertices, mesh.triangles)
    assert areas(mesh.vertices, mesh.triangles).sum() == pytest.approx(2 * (2 * 3 + 3 * 1 + 2 * 1))
    assert mesh.material_names == ("paint", "cloth")
    assert np.bincount(mesh.material).tolist() == [8, 4]
    assert mesh.libraries == ("box.mtl",)
    first = mesh.uv[0]
    assert {tuple(uv) for uv in first.tolist()} <= {(0, 0), (1, 0), (1, 1), (0, 1)}


@pytest.mark.parametrize(
    ("faces", "count"),
    [
        ("f 1 2 3 4", 2),
        ("f -4 -3 -2 -1", 2),
        ("f 1//1 2//1 3//1", 1),
        ("f 1/1/1 2/1/1 3/1/1", 1),
        ("f 1/1 2 3//1", 1),
        ("f 1 2 \\\n3 4", 2),
        ("f 1 2\nf 1 2 3", 1),  # a stray edge
        ("o thing\ng part\ns 1\nl 1 2\nf 1 2 3", 1),
    ],
)
def test_obj_faces_in_every_notation(faces: str, count: int) -> None:
    text = f"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0.5 0.5 0\nvn 0 0 1\n{faces}\n"
    mesh = read_obj(text.encode(), "a.obj")
    assert len(mesh.triangles) == count
    assert areas(mesh.vertices, mesh.triangles).sum() == pytest.approx(0.5 * count)


def test_polygons_that_are_not_convex_are_covered_once() -> None:
    arrow = np.array(((0, 0, 0), (4, 0, 0), (4, 4, 0), (3, 1, 0), (0, 1, 0)), dtype=np.float64)
    text = "".join(f"v {x} {y} {z}\n" for x, y, z in arrow) + "f 1 2 3 4 5\n"
    mesh = read_obj(text.encode(), "arrow.obj")
    x, y = arrow[:, 0], arrow[:, 1]
    shoelace = 0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    assert areas(mesh.vertices, mesh.triangles).sum() == pytest.approx(shoelace)


@given(
    radii=st.lists(st.floats(0.2, 3.0), min_size=4, max_size=12),
    tilt=st.floats(-1.2, 1.2),
)
def test_ears_cover_any_star_shaped_polygon(radii: list[float], tilt: float) -> None:
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    flat = np.stack((np.cos(angles) * radii, np.sin(angles) * radii), axis=1)
    polygon = np.stack((flat[:, 0] * np.cos(tilt), flat[:, 1], flat[:, 0] * np.sin(tilt)), axis=1)
    area = 0.5 * abs((flat[:, 0] * np.roll(flat[:, 1], -1) - flat[:, 1] * np.roll(flat[:, 0], -1)).sum())
    assert areas(polygon, cut_ears(polygon)).sum() == pytest.approx(area)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no faces"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\n", "holds no faces"),
        ("v 0 0\nf 1 1 1\n", "3 finite numbers"),
        ("v 0 0 nan\nf 1 1 1\n", "3 finite numbers"),
        ("v 0 0 x\nf 1 1 1\n", "3 finite numbers"),
        ("v 0 0 0\nf 1 2 3\n", "not there"),
        ("v 0 0 0\nf 1/2 1/2 1/2\n", "not there"),
        ("v 0 0 0\nf -2 -2 -2\n", "not there"),
        ("v 0 0 0\nf a b c\n", "not indices"),
        ("v 0 0 0\nf 0 0 0\n", "not there"),
    ],
)
def test_damaged_obj_files_are_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"broken\.obj.*{complaint}"):
        read_obj(text.encode(), "broken.obj")


def test_mtl_drops_options_before_a_texture() -> None:
    materials = read_mtl(BOX_MTL.encode(), "box.mtl")
    assert materials["paint"].color == (0.9, 0.1, 0.1)
    assert materials["paint"].shininess == 250
    assert materials["paint"].alpha == 1.0
    assert materials["cloth"].color_map == "C:\\Users\\somebody\\My%20Textures\\Blue_Cloth.JPG"


def test_mtl_opacity_in_both_ways_and_broken_numbers() -> None:
    materials = read_mtl(b"newmtl a\nd 0.3\nnewmtl b\nTr 0.3\nnewmtl c\nKd 0.2\nmap_Kd\n", "x.mtl")
    assert materials["a"].alpha == pytest.approx(0.3)
    assert materials["b"].alpha == pytest.approx(0.7)
    assert materials["c"].color == (0.2, 0.2, 0.2)
    assert materials["c"].color_map is None
    with pytest.raises(DataError, match=r"x\.mtl, line 2"):
        read_mtl(b"newmtl a\nKd red green blue\n", "x.mtl")


@pytest.mark.parametrize(
    ("given_path", "found"),
    [
        ("wood.jpg", "m/wood.jpg"),
        ("./WOOD.JPG", "m/wood.jpg"),
        ("../other/deep.png", "other/deep.png"),
        ("C:\\stuff\\wood.jpg", "m/wood.jpg"),
        ("/Users/me/wood.png", "m/wood.jpg"),
        ("file%20name.png", "m/File_Name.png"),
        ("Wood", "m/wood.jpg"),
        ("nothing.png", None),
    ],
)
def test_textures_are_found_as_their_authors_meant_them(given_path: str, found: str | None) -> None:
    names = ("m/wood.jpg", "m/wood.mtl", "m/File_Name.png", "other/deep.png")
    assert find_file(given_path, "m", {name.lower(): name for name in names}) == found


def test_what_cannot_be_repaired_names_the_model() -> None:
    mesh = read_obj(BOX_OBJ.encode(), "m/box.obj")
    files = {"m/box.mtl": "m/box.mtl"}
    with pytest.raises(DataError, match=r"m/box\.obj.*nowhere in the catalog"):
        find_materials(mesh, "m/box.obj", lambda _: BOX_MTL.encode(), files)
    with pytest.raises(DataError, match=r"m/box\.obj.*defines its material 'paint'"):
        find_materials(mesh, "m/box.obj", lambda _: b"", files)
    plain = read_obj(b"v 0 0 0\nv 1 0 0\nv 1 1 0\nusemtl (null)\nf 1 2 3\n", "m/plain.obj")
    assert find_materials(plain, "m/plain.obj", lambda _: b"", {})["(null)"].color_map is None


def test_properties_are_read_as_java_reads_them() -> None:
    text = "# no\n! no\na=1\n b : two \nc\\ d=e\\u00e9\\tf\nlong=one,\\\n   two\nempty=\n"
    assert read_properties(text) == {"a": "1", "b": "two", "c d": "eé\tf", "long": "one,two", "empty": ""}


def test_pieces_have_their_real_size_and_stand_on_the_ground(tmp_path: Path) -> None:
    quarter = "0 0 1 0 1 0 -1 0 0"  # about the vertical
    rows = [piece(1), piece(2, elevation=120.5, modelRotation=quarter, lightSourceZ=60)]
    catalog = FurnitureFile(write_catalog(tmp_path / "a.sh3f", rows))
    first, second = catalog.pieces
    assert (first.size, first.elevation, first.creator) == ((0.5, 0.4, 0.9), 0.0, "A. Maker")
    assert (second.elevation, second.lamp_height) == (1.205, 0.6)
    for one in catalog.pieces:
        model = catalog.load(one)
        low, high = model.vertices.min(0), model.vertices.max(0)
        assert high - low == pytest.approx(one.size)
        assert low == pytest.approx((-0.25, -0.2, 0.0))
        assert is_outward(model.vertices, model.mesh.triangles)
        assert model.materials["cloth"].color_map == "models/box/bluecloth.png"
    # The file's z, its front, is -y here; turned by a quarter it is x.
    front = catalog.load(first).vertices[catalog.load(first).mesh.vertices[:, 2] == 1.0]
    turned = catalog.load(second).vertices[catalog.load(second).mesh.vertices[:, 2] == 1.0]
    assert front[:, 1] == pytest.approx(-0.2)
    assert turned[:, 0] == pytest.approx(0.25)


def test_incomplete_pieces_are_skipped_by_name(tmp_path: Path) -> None:
    rows = [
        piece(1, model="/models/gone.obj"),
        piece(2, width="wide"),
        piece(3, height=""),
        piece(4, width=-3),
        piece(5),
    ]
    rows.append(piece(6, modelRotation="1 0 0"))
    catalog = FurnitureFile(write_catalog(tmp_path / "a.sh3f", rows))
    assert [one.name for one in catalog.pieces] == ["Chair"]
    assert len(catalog.skipped) == 5
    assert "gone.obj is not in the catalog" in catalog.skipped["a#1"]


def test_files_that_are_no_catalogs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.sh3f").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"no\.sh3f"):
        FurnitureFile(tmp_path / "no.sh3f")
    write_archive(tmp_path / "other.sh3f", {"readme.txt": b"hello"})
    with pytest.raises(DataError, match=r"other\.sh3f holds no PluginFurnitureCatalog"):
        FurnitureFile(tmp_path / "other.sh3f")


def test_bsp_gives_what_is_seen_in_meters_and_turned_outward() -> None:
    faces = [(side, "tex_a/Brick", 0) for side in box_faces((0, 0, 0), (64, 96, 32))]
    hidden = box_faces((0, 0, 0), (320, 320, 320))
    unseen = [(hidden[0], "tex_a/wall", 0x80), (hidden[1], "tex_common/clip", 0), (hidden[2], "tex_a/nodraw", 0)]
    found = read_bsp(bsp([*faces, *unseen], '{\n"classname" "light"\n"origin" "1 2 3"\n}'), "box.bsp")
    assert found.vertices.max(0).tolist() == [2.0, 3.0, 1.0]
    assert len(found.triangles) == 12
    assert is_outward(found.vertices, found.triangles)
    assert {found.textures[number] for number in found.surface} == {"tex_a/brick"}
    # s = x + 3, t = y + 5, in units
    assert found.texels == pytest.approx(32 * found.vertices[found.triangles][..., :2] + (3, 5))
    assert vector_of(found.entities[0], "origin", 3) == (1.0, 2.0, 3.0)
    assert vector_of(found.entities[0], "angles", 3) is None


def test_bsp_refuses_other_versions_damage_and_emptiness() -> None:
    good = village()
    with pytest.raises(DataError, match=r"a\.bsp is not a BSP map"):
        read_bsp(b"PNG" + good[3:], "a.bsp")
    with pytest.raises(DataError, match=r"a\.bsp is a BSP map of version 38; version 78"):
        read_bsp(bsp([], version=38), "a.bsp")
    with pytest.raises(DataError, match=r"a\.bsp ends too early"):
        read_bsp(good[:3000], "a.bsp")
    with pytest.raises(DataError, match=r"a\.bsp has no visible surface"):
        read_bsp(bsp([(box_faces((0, 0, 0), (9, 9, 9))[0], "tex_common/clip", 0)]), "a.bsp")


def test_md2_gives_its_first_frame_in_meters_and_turned_outward() -> None:
    model = read_md2(md2((32.0, 64.0, 48.0)), "crate.md2")
    assert np.ptp(model.vertices, axis=0) == pytest.approx((1.0, 2.0, 1.5), abs=1e-5)
    assert model.vertices[:, 2].min() == pytest.approx(0.0, abs=1e-6)
    assert is_outward(model.vertices, model.triangles)
    assert model.skins == (".crate",)
    assert {tuple(uv) for uv in model.uv.reshape(-1, 2).tolist()} == {(0, 1), (1, 1), (1, 0), (0, 0)}


@pytest.mark.parametrize("data", [b"", b"IDP2" + bytes(64), b"IDP3" + md2()[4:], md2()[:300], md2()[:-1]])
def test_damaged_md2_files_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"x\.md2"):
        read_md2(data, "x.md2")


@settings(max_examples=60)
@given(st.data())
def test_damage_never_gives_more_than_a_data_error(data: st.DataObject) -> None:
    reader, good = data.draw(
        st.sampled_from(
            (
                (read_bsp, village()[:6000]),
                (read_md2, md2()),
                (read_obj, BOX_OBJ.encode()),
                (read_mtl, BOX_MTL.encode()),
            )
        )
    )
    damaged = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for at in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=6)):
        if damaged:
            damaged[at] = data.draw(st.integers(0, 255))
    try:
        reader(bytes(damaged), "damaged file")
    except DataError as error:
        assert "damaged file" in str(error)
