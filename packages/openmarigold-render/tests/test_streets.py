# SPDX-License-Identifier: Apache-2.0
"""Streets: reproducible, nothing in anything else, cameras in the open, maps of the game."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from asset_files import write_archive, write_packages
from openmarigold.errors import DataError
from openmarigold_render import houses, outdoors, streets
from openmarigold_render.assets import Assets
from openmarigold_render.furnishing import AssetCatalog
from openmarigold_render.gamemaps.streets import any_street, game_street, street_maps
from openmarigold_render.rays import Caster, cast_picture
from openmarigold_render.scene import GROUPS, Instance, Lens, Material, Mesh
from openmarigold_render.solids import Builder, Opening
from openmarigold_render.terrain import Ground

LENS = Lens(width=48, height=36)
PLAIN = Material(name="plain")


def area(mesh: Mesh) -> float:
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    return float(
        0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    )


def test_walls_have_holes_of_their_size_and_reveals() -> None:
    holes = [
        Opening(left=1.0, right=2.0, bottom=1.0, top=2.0),
        Opening(left=3.0, right=3.5, bottom=0.0, top=2.2),
        Opening(left=1.2, right=1.8, bottom=3.0, top=3.4),
    ]
    builder = Builder()
    along, outward = builder.wall((0.0, 0.0, 0.0), (5.0, 0.0, 0.0), 4.0, holes, PLAIN, reveal=0.1)
    assert along.tolist() == [1, 0, 0]
    assert outward.tolist() == [0, -1, 0]
    open_area = sum((one.right - one.left) * (one.top - one.bottom) for one in holes)
    rim = sum(2 * (one.right - one.left + one.top - one.bottom) for one in holes)
    assert area(builder.mesh("wall")) == pytest.approx(20.0 - open_area + 0.1 * rim, rel=1e-5)


def test_textures_run_on_from_quad_to_quad() -> None:
    builder = Builder()
    builder.polygon(((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)), PLAIN)
    builder.polygon(((1, 0, 0), (3, 0, 0), (3, 0, 1), (1, 0, 1)), PLAIN)
    mesh = builder.mesh("strip")
    assert mesh.uvs is not None
    points = mesh.vertices[mesh.faces]
    assert mesh.uvs == pytest.approx(points[..., (0, 2)])


@pytest.mark.parametrize("style", [houses.DETACHED, houses.TERRACE, houses.BLOCK, houses.HALL, houses.FARM])
def test_houses_keep_to_their_style_and_let_no_ray_in(style: houses.HouseStyle) -> None:
    for seed in range(4):
        mesh = houses.house(np.random.default_rng(seed), style)
        assert style.width[0] <= mesh.size[0] <= style.width[1] + 4.0
        assert 2.6 * style.stories[0] < mesh.size[2]
        assert np.isfinite(mesh.vertices).all()
        # From the street: what is met first is met from outside.
        caster = Caster([_instance(mesh)])
        heights = np.linspace(0.3, 0.8 * style.stories[0] * 2.6, 12)
        across = np.linspace(-0.45, 0.45, 15) * style.width[0]
        origins = np.array([(x, -60.0, z) for x in across for z in heights])
        hits = caster.cast(origins, np.array(((0.0, 1.0, 0.0),)))
        assert hits.hit.all()
        assert (hits.distance < 60.0).all()
        assert (hits.normal[:, 1] < 0.0).all()


def _instance(mesh: Mesh) -> Instance:
    return Instance(mesh, np.eye(4), mesh.name)


@pytest.mark.parametrize("group", sorted(outdoors.MAKERS))
def test_procedural_things_stand_on_the_ground(group: str) -> None:
    assert group in GROUPS
    for seed in range(6):
        item = outdoors.OutdoorCatalog().draw(group, np.random.default_rng(seed))
        assert item is not None
        mesh = item.load()
        assert mesh.size == pytest.approx(item.size, rel=1e-5)
        assert abs(float(mesh.bounds[0][2])) < 0.02
        assert len(mesh.faces) < 40_000
        assert mesh.face_materials.max() < len(mesh.materials)
        assert mesh.source is None


def test_the_outdoor_catalog_serves_only_what_fits() -> None:
    catalog = outdoors.OutdoorCatalog()
    generator = np.random.default_rng(0)
    assert catalog.draw("vehicle", generator, max_size=(1.0, 1.0, 1.0)) is None
    assert catalog.draw("bed", generator) is None
    assert catalog.texture("asphalt", generator) is None


def test_the_same_seed_gives_the_same_street() -> None:
    first, second = (streets.street(np.random.default_rng(5), layout="yard") for _ in range(2))
    assert [one.name for one in first.scene.instances] == [one.name for one in second.scene.instances]
    for a, b in zip(first.scene.instances, second.scene.instances, strict=True):
        assert np.array_equal(a.transform, b.transform)
        assert np.array_equal(a.mesh.vertices, b.mesh.vertices)
        assert a.mesh.materials == b.mesh.materials
    assert first.scene.lights == second.scene.lights
    one, other = (found.propose(np.random.default_rng(1), LENS) for found in (first, second))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert np.array_equal(one.transform, other.transform)


@pytest.mark.parametrize(
    "layout",
    [
        "town",
        "yard",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("suburb", "country", "park", "car park")),
    ],
)
def test_every_layout_has_views_with_ground_things_and_distance(layout: streets.Layout) -> None:
    found = streets.street(np.random.default_rng(1), layout=layout)
    assert found.facts == {"layout": layout}
    caster = Caster(found.scene.instances)
    generator = np.random.default_rng(0)
    depths = []
    for _ in range(40):
        camera = found.propose(generator, LENS)
        if camera is not None:
            assert 0.4 <= camera.position[2] <= 4.5
            depth, _ = cast_picture(caster, camera)
            depths.append(depth[depth > 0])
    assert len(depths) >= 10
    every = np.concatenate(depths)
    assert every.min() > 0.05
    assert np.percentile(every, 99) > 25.0


def test_what_stands_never_meets_and_houses_keep_trees_out() -> None:
    ground = Ground(np.random.default_rng(0), outdoors.OutdoorCatalog())
    house = houses.house(np.random.default_rng(0), houses.DETACHED)
    tree = outdoors.broadleaf(np.random.default_rng(1))
    assert ground.stand(house, 0.0, 0.0)
    assert not ground.stand(house, 2.0, 0.0, angle=0.4)
    edge = 0.5 * float(house.size[0])
    assert not ground.stand(tree, edge + 0.3, 0.0)  # the stem has room, its crown has not
    assert ground.stand(tree, edge + float(tree.size[0]), 0.0)
    # A crown may reach over a bench.
    bench = outdoors.bench(np.random.default_rng(0))
    assert ground.stand(bench, edge + float(tree.size[0]) + 1.5, 0.0)
    assert not ground.is_free((-1.0, -1.0, 1.0, 1.0))


def test_scenes_stay_light_enough_to_cast_rays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmarigold_render.terrain.MAX_TRIANGLES", 500)
    ground = Ground(np.random.default_rng(0), outdoors.OutdoorCatalog())
    tree = outdoors.broadleaf(np.random.default_rng(1))
    assert not ground.stand(tree, 0.0, 0.0)
    assert ground.instances == []
    assert ground.is_free((-1.0, -1.0, 1.0, 1.0))


def village(tmp_path: Path) -> AssetCatalog:
    return AssetCatalog(Assets(write_packages(tmp_path), cache_dir=tmp_path / "cache"))


def test_maps_stand_at_ground_level_with_things_around_and_cameras_in_the_open(tmp_path: Path) -> None:
    catalog = village(tmp_path)
    assert street_maps(catalog.assets) == ("maps/village.bsp",)  # the small one is left out
    found = game_street(np.random.default_rng(3), catalog)
    assert found.facts == {"layout": "map", "map": "village"}
    surfaces = found.scene.instances[0]
    assert abs(surfaces.transform[2, 3]) < 0.05
    assert len(found.scene.instances) > 5
    assert "ufoai-maps/0maps.pk3/maps/village.bsp" in found.scene.sources
    caster = Caster(found.scene.instances[:2])
    generator = np.random.default_rng(0)
    cameras = [camera for camera in (found.propose(generator, LENS) for _ in range(60)) if camera is not None]
    assert len(cameras) > 10
    for camera in cameras:
        above = caster.cast(camera.position[None], np.array(((0.0, 0.0, 1.0),)))
        below = caster.cast(camera.position[None], np.array(((0.0, 0.0, -1.0),)))
        assert not above.hit[0]
        assert below.normal[0, 2] > 0.9 or not below.hit[0]
        assert camera.position[2] < 8.0
        tilt = math.degrees(math.asin(float(camera.direction[2])))
        assert abs(tilt) < 35.0


@pytest.mark.slow
def test_a_map_in_two_of_five_streets_and_without_packages_none(tmp_path: Path) -> None:
    catalog = village(tmp_path)
    # The first number of a generator decides: one seed on either side of the share.
    below = next(seed for seed in range(99) if np.random.default_rng(seed).random() < 0.39)
    above = next(seed for seed in range(99) if np.random.default_rng(seed).random() > 0.41)
    assert any_street(np.random.default_rng(below), catalog).facts["layout"] == "map"
    assert any_street(np.random.default_rng(above), catalog).facts["layout"] != "map"
    assert any_street(np.random.default_rng(below)).facts["layout"] != "map"


def test_a_map_without_ground_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asset_files import box_faces, bsp

    wall = box_faces((0, 0, 0), (2000, 10, 10))[0]
    monkeypatch.setattr("asset_files.village", lambda: bsp([(wall, "tex_ctp1/bricks_r_2", 0)]).ljust(3_400_000, b"\0"))
    catalog = village(tmp_path)
    with pytest.raises(DataError, match=r"maps/village\.bsp: hardly a ray"):
        game_street(np.random.default_rng(0), catalog)


@pytest.mark.slow
def test_a_broken_map_gives_way_to_a_procedural_street_and_is_noted(tmp_path: Path) -> None:
    root = write_packages(tmp_path)
    write_archive(root / "usr/share/games/ufoai/base/0maps.pk3", {"maps/cut.bsp": b"IBSP".ljust(3_400_000, b" ")})
    catalog = AssetCatalog(Assets(root, cache_dir=tmp_path / "cache"))
    below = next(seed for seed in range(99) if np.random.default_rng(seed).random() < 0.39)
    assert any_street(np.random.default_rng(below), catalog).facts["layout"] != "map"
    assert any("cut.bsp" in reason for reason in catalog.broken.values())
