# SPDX-License-Identifier: Apache-2.0
"""Asset packages: where they are found, what the catalog makes of them, whom to thank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asset_files import picture, piece, write_catalog, write_packages
from openmarigold.errors import DataError
from openmarigold_render.assets import PACKAGES, Assets, manifest_rows
from openmarigold_render.cli import run
from openmarigold_render.furnishing import AssetCatalog, group_of
from openmarigold_render.gamemaps.meshes import GameMeshes
from openmarigold_render.scene import Instance, Scene, Sky
from openmarigold_render.sweethome import Piece

RED = "newmtl red\nKd 1 0 0\n"
SQUARE = "mtllib s.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"


def furniture(tmp_path: Path, pieces: list[str], files: dict[str, bytes] | None = None) -> AssetCatalog:
    write_catalog(tmp_path / "packages" / "Tiny.sh3f", pieces, files)
    return AssetCatalog(Assets(tmp_path / "packages", cache_dir=tmp_path / "cache"))


@pytest.mark.parametrize("below", ["usr/share", "share", "."])
def test_packages_are_found_unpacked_installed_or_bare(tmp_path: Path, below: str) -> None:
    share = write_packages(tmp_path / "all") / "usr" / "share"
    target = tmp_path / "folder" / below
    target.parent.mkdir(parents=True, exist_ok=True)
    if below == ".":
        target = tmp_path / "folder"
    share.rename(target)
    assert set(Assets(tmp_path / "folder", cache_dir=tmp_path).found) == set(PACKAGES)


def test_a_folder_without_packages_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="openmarigold-render assets"):
        Assets(tmp_path)


def test_where_names_every_package_its_licenses_and_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["assets", "--folder", "FOLDER"]) == 0
    said = capsys.readouterr().out
    for package in PACKAGES.values():
        assert package.name in said
        assert package.licenses in said
    assert "cd FOLDER" in said
    assert "apt-get download" in said
    assert "dpkg-deb -x" in said


@pytest.mark.parametrize(
    ("name", "category", "size", "elevation", "group"),
    [
        ("Sofa", "Living room", (1.9, 0.9, 0.8), 0.0, "seat"),
        ("Bedside table", "Bedroom", (0.49, 0.48, 0.45), 0.0, "storage"),
        ("Coffee table", "Living room", (1.2, 0.7, 0.45), 0.0, "table"),
        ("Desk", "Office", (2.3, 0.8, 1.8), 0.0, "decor"),
        ("Bar stool", "Living room", (0.5, 0.6, 1.1), 0.0, "chair"),
        ("Bed", "Bedroom", (1.4, 2.1, 0.9), 0.0, "bed"),
        ("Upper cabinet", "Kitchen", (0.6, 0.41, 0.72), 1.45, "wall"),
        ("Washing machine", "Kitchen", (0.6, 0.62, 0.73), 0.0, "appliance"),
        ("Chandelier lamp", "Lights", (1.3, 1.3, 1.7), 1.26, "ceiling"),
        ("Desk lamp", "Lights", (0.24, 0.24, 0.4), 0.0, "object"),
        ("Street light", "Lights", (0.4, 1.5, 7.4), 0.0, "street"),
        ("Coffee cup", "Kitchen", (0.1, 0.1, 0.08), 0.0, "object"),
        ("Poplar", "Exterior", (4.0, 3.8, 7.3), 0.0, "tree"),
        ("Seat Leon", "Vehicles", (1.9, 4.2, 1.5), 0.0, "vehicle"),
        ("Bicycle", "Vehicles", (0.5, 1.5, 0.8), 0.0, "cycle"),
        ("Fire hydrant", "Exterior", (0.4, 0.3, 0.8), 0.0, "street"),
        ("Dog", "Characters", (0.4, 0.8, 0.8), 0.0, "character"),
        ("Sitting boy", "Characters", (0.5, 0.7, 1.3), 0.0, None),
        ("Wall socket", "Miscellaneous", (0.1, 0.02, 0.1), 0.3, None),
        ("Rectangle swimming pool", "Exterior", (5.0, 2.8, 1.4), 0.0, None),
        ("Bill", "Miscellaneous", (0.1, 0.07, 0.001), 0.0, None),
        ("Trunk room", "Miscellaneous", (5.0, 5.0, 5.0), 0.0, None),
    ],
)
def test_groups(
    name: str, category: str, size: tuple[float, float, float], elevation: float, group: str | None
) -> None:
    one = Piece(name, category, "", "m.obj", size, elevation, None, is_door_or_window=False)
    assert group_of(one) == group


def test_doors_and_windows_are_told_apart() -> None:
    for name, group in (("Double window", "window"), ("Exterior door", "door"), ("Garage door", None)):
        assert group_of(Piece(name, "Doors and windows", "", "m", (1.0, 0.2, 2.0), 0.0, None, True)) == group


def test_meshes_have_their_size_materials_and_source_and_are_read_once(tmp_path: Path) -> None:
    catalog = furniture(tmp_path, [piece(1)])
    item = catalog.draw("chair", np.random.default_rng(0))
    assert item is not None
    mesh = item.load()
    assert item.load() is mesh
    assert mesh.size == pytest.approx(item.size, abs=1e-5)
    assert mesh.source == "sweethome3d-furniture/Tiny.sh3f/models/box/box.obj"
    paint, cloth = mesh.materials
    assert paint.base_color == pytest.approx((0.787, 0.015, 0.015), abs=1e-3)  # linear, and never black
    assert paint.roughness == pytest.approx(0.5)
    assert cloth.texture is not None
    assert cloth.texture.is_file()
    assert cloth.tinted


def test_panes_vanish_glass_stays_and_clear_texels_are_cut_out(tmp_path: Path) -> None:
    materials = (
        "newmtl pane\nd 0.5\nnewmtl ghost\nd 0.01\nnewmtl leaf\nKd 1 1 1\nmap_Kd leaf.png\nnewmtl solid\nKd 1 1 1\n"
        "newmtl masked\nmap_Kd wood.png\nmap_d mask.png\n"
    )
    square = SQUARE + "".join(
        f"usemtl {name}\nf 1/1 2/2 3/3\nf 1 2 5\n" for name in ("pane", "ghost", "leaf", "solid", "masked")
    )
    files = {
        "models/s.obj": square.encode(),
        "models/s.mtl": materials.encode(),
        "models/leaf.png": picture("RGBA"),
        "models/wood.png": picture(),
        "models/mask.png": picture("L"),
    }
    rows = [
        piece(1, name="Chair", model="/models/s.obj"),
        piece(2, name="Double window", model="/models/s.obj", doorOrWindow="true"),
    ]
    catalog = furniture(tmp_path, rows, files)
    chair = catalog.items("chair")[0].load()
    window = catalog.items("window")[0].load()
    assert [one.name for one in chair.materials] == ["pane", "leaf", "solid", "masked"]
    assert [one.name for one in window.materials] == ["leaf", "solid", "masked"]
    assert len(chair.faces), len(window.faces) == (8, 6)
    pane, leaf, solid, masked = chair.materials
    assert pane.transmission == pytest.approx(0.5)
    assert [one.cutout for one in (pane, leaf, solid, masked)] == [False, True, False, True]
    assert masked.texture is not None
    with Image.open(masked.texture) as image:
        assert image.mode == "RGBA"


def test_triangles_against_their_normals_are_turned(tmp_path: Path) -> None:
    inside_out = SQUARE + "vn 0 0 1\nusemtl red\nf 4//1 3//1 2//1 1//1\nf 1 2 5\n"
    catalog = furniture(
        tmp_path,
        [piece(1, model="/models/s.obj")],
        {"models/s.obj": inside_out.encode(), "models/s.mtl": RED.encode()},
    )
    mesh = catalog.items("chair")[0].load()
    corners = mesh.vertices[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    square = np.ptp(corners[..., 1], axis=1) == 0
    assert square.sum() == 2
    assert (normal[square, 1] < 0).all()  # the file's z is the front, -y


def test_broken_models_are_skipped_by_name_whatever_came_before(tmp_path: Path) -> None:
    rows = [piece(number, name=f"Chair {number}", model="/models/bad.obj") for number in (1, 2)]
    rows += [piece(3, name="Chair with cushion", creator="")]
    rows = [row.replace("Chair 2", "Stool") for row in rows]
    catalog = furniture(tmp_path, rows, {"models/bad.obj": b"v 1\nf 1 2 3"})
    fresh = furniture(tmp_path, rows, {"models/bad.obj": b"v 1\nf 1 2 3"})
    first = [catalog.draw("chair", np.random.default_rng(seed)) for seed in range(20)]
    again = [fresh.draw("chair", np.random.default_rng(seed)) for seed in reversed(range(20))][::-1]
    assert [item and item.name for item in first] == [item and item.name for item in again]
    assert {item.name for item in first if item} == {"Tiny: Chair with cushion"}
    assert set(catalog.broken) == {"Tiny: Chair 1", "Tiny: Stool"}
    assert "bad.obj" in catalog.broken["Tiny: Chair 1"]


def test_size_room_and_unknown_groups(tmp_path: Path) -> None:
    rows = [piece(1, name="Oven", category="Kitchen"), piece(2, name="Bath", category="Bathroom", width=170)]
    catalog = furniture(tmp_path, rows)
    generator = np.random.default_rng(0)
    names = {catalog.draw("appliance", generator, room="bath").name for _ in range(10)}  # type: ignore[union-attr]
    assert names == {"Tiny: Bath"}
    assert catalog.draw("appliance", generator, room="living") is None
    assert catalog.draw("appliance", generator, max_size=(1.0, 1.0, 1.0)).name == "Tiny: Oven"  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no group 'thing'"):
        catalog.draw("thing", generator)


def test_textures_by_use_without_maps_of_normals_and_small_enough(tmp_path: Path) -> None:
    catalog = AssetCatalog(Assets(write_packages(tmp_path), cache_dir=tmp_path / "cache"))
    generator = np.random.default_rng(0)
    lawns = {catalog.texture("lawn", generator) for _ in range(6)}
    assert {path.name for path in lawns if path} == {"grass001.jpg"}
    art = catalog.texture("picture", generator)
    assert art is not None
    with Image.open(art) as image:
        assert image.size == (1024, 5)
    assert catalog.texture("fabric", generator) is None
    assert catalog.texture("no such use", generator) is None


def test_damaged_textures_are_refused_by_name(tmp_path: Path) -> None:
    assets = Assets(write_packages(tmp_path), cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"ufoai-textures/0textures\.pk3/a\.png cannot be decoded"):
        assets.texture("ufoai-textures/0textures.pk3/a.png", lambda: b"not a picture")


def test_maps_become_meshes_with_texture_units_and_models_in_their_places(tmp_path: Path) -> None:
    assets = Assets(write_packages(tmp_path), cache_dir=tmp_path / "cache")
    archive = assets.archive("ufoai-maps")
    surfaces, crate = GameMeshes(assets).map(archive, "maps/village.bsp")  # the missing model is left out
    assert surfaces.mesh.source == "ufoai-maps/0maps.pk3/maps/village.bsp"
    assert [one.name for one in surfaces.mesh.materials] == ["tex_nature/grass001", "tex_ctp1/bricks_r_2"]
    lawn = surfaces.mesh.faces[surfaces.mesh.face_materials == 0]
    corners = surfaces.mesh.vertices[lawn]
    assert surfaces.mesh.uvs is not None
    uv = surfaces.mesh.uvs[surfaces.mesh.face_materials == 0]
    assert uv[..., 0] == pytest.approx((32 * corners[..., 0] + 3) / 16)
    assert uv[..., 1] == pytest.approx(1 - (32 * corners[..., 1] + 5) / 8)
    assert crate.mesh.source == "ufoai-data/0models.pk3/models/objects/crate/crate.md2"
    world = crate.mesh.vertices @ crate.transform[:3, :3].T + crate.transform[:3, 3]
    assert world.min(0) == pytest.approx((20 - 1.0, -10 - 0.5, 0.0), abs=1e-5)  # turned by 90 degrees
    assert world.max(0) == pytest.approx((20 + 1.0, -10 + 0.5, 3.0), abs=1e-5)  # twice as high
    with pytest.raises(DataError, match=r"holds no models/none\.md2"):
        GameMeshes(assets).model("models/none.md2")


def test_attributions_name_the_maker_and_the_license_of_what_is_used(tmp_path: Path) -> None:
    assets = Assets(write_packages(tmp_path), cache_dir=tmp_path / "cache")
    catalog = AssetCatalog(assets)
    chair = catalog.items("chair")[0].load()
    surfaces, crate = GameMeshes(assets).map(assets.archive("ufoai-maps"), "maps/village.bsp")
    instances = (surfaces, crate, Instance(chair, np.eye(4), "chair"))
    used = assets.sources(Scene(instances=instances, lights=(), sky=Sky()))
    rows = {row["asset"]: row for row in manifest_rows(assets.attributions(used))}
    assert list(rows) == [
        "sweethome3d-furniture/Tiny.sh3f/models/box/box.obj",
        "ufoai-data/0models.pk3/models/objects/crate/Crate.png",
        "ufoai-data/0models.pk3/models/objects/crate/crate.md2",
        "ufoai-maps/0maps.pk3/maps/village.bsp",
        "ufoai-textures/0textures.pk3/textures/tex_ctp1/bricks_r_2.jpg",
        "ufoai-textures/0textures.pk3/textures/tex_nature/grass001.jpg",
    ]
    made = rows["sweethome3d-furniture/Tiny.sh3f/models/box/box.obj"]
    assert (made["title"], made["creator"], made["license"]) == ("Sofa", "A. Maker", "CC0, CC BY 3.0, CC BY 3.0 US")
    lawn = rows["ufoai-textures/0textures.pk3/textures/tex_nature/grass001.jpg"]
    assert (lawn["creator"], lawn["license"]) == ("Ann Author, Ben Builder", "CC-BY-3.0")
    assert rows["ufoai-maps/0maps.pk3/maps/village.bsp"]["license"] == "GPL-2+"
