# SPDX-License-Identifier: Apache-2.0
"""Shapes, rays, placement, rooms and tabletops, without Blender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.seeding import generator_for
from openmarigold_render import primitives
from openmarigold_render.cameras import depth_rejection, picture_rejection, rejection
from openmarigold_render.development import check_exposure, develop
from openmarigold_render.furniture import FURNITURE
from openmarigold_render.objects import OBJECTS
from openmarigold_render.placement import Box, Occupied, find_spot, has_room
from openmarigold_render.prints import PRINT_KINDS, Prints, draw_print
from openmarigold_render.procedural import ProceduralCatalog
from openmarigold_render.rays import Caster, camera_rays, cast_picture
from openmarigold_render.rooms import ROOM_RULES, RoomBuilder, sample_room
from openmarigold_render.scene import (
    Catalog,
    Instance,
    Item,
    Lens,
    Material,
    Mesh,
    Setting,
    ViewRules,
    merged,
    place,
    rescaled,
    split_at_edges,
    transform_points,
    translation,
)
from openmarigold_render.shell import Opening, reveal_mesh
from openmarigold_render.tabletops import sample_tabletop
from rendering_data import GRAY, block, camera_at, floor, scene_of

LENS = Lens(width=96, height=72)
LOOSE = ViewRules(
    min_hits=0.5,
    min_depth=0.1,
    median_depth=(0.1, 100.0),
    min_log_spread=0.0,
    max_plane=1.0,
    min_planes=1,
    near=(0.1, 1.0),
    min_distance=0.5,
)


def volume(mesh: Mesh) -> float:
    """Of a closed surface; positive if its triangles are wound outward."""
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    return float(np.einsum("nc,nc->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6)


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (primitives.box("box", (1.0, 2.0, 0.5), GRAY), 1.0),
        (primitives.box("box", (1.0, 2.0, 0.5), GRAY, bevel=1e-4), 1.0),
        (primitives.box("box", (1.0, 2.0, 0.5), GRAY, faces=(GRAY,) * 6), 1.0),
        (primitives.cylinder("cylinder", 0.5, 2.0, GRAY, segments=200), np.pi / 2),
        (primitives.cushion("cushion", (1.0, 1.0, 1.0), GRAY, softness=1.0, segments=60), np.pi / 6),
        (
            primitives.tube("tube", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 2.0)], 0.1, GRAY, segments=100),
            0.02 * np.pi,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Mesh) else None,
)
def test_solids_are_closed_and_face_outward(mesh: Mesh, expected: float) -> None:
    assert volume(mesh) == pytest.approx(expected, rel=2e-3)


def test_box_has_meters_or_whole_pictures_as_uvs() -> None:
    plain = primitives.box("box", (1.0, 2.0, 0.5), GRAY)
    assert plain.uvs is not None
    assert plain.uvs.reshape(-1, 2).max(axis=0) == pytest.approx((2.0, 1.0))
    labeled = primitives.box("box", (1.0, 2.0, 0.5), GRAY, bevel=0.01, faces=(GRAY,) * 6)
    assert labeled.uvs is not None and labeled.uvs.min() >= 0 and labeled.uvs.max() <= 1


def test_a_printed_front_is_not_mirrored() -> None:
    front = primitives.box("box", (2.0, 1.0, 1.0), GRAY, faces=(GRAY, GRAY, Material(name="front"), GRAY, GRAY, GRAY))
    assert front.uvs is not None
    for face in np.flatnonzero(front.face_materials == 2):
        for corner, uv in zip(front.vertices[front.faces[face]], front.uvs[face], strict=True):
            assert uv[0] == pytest.approx((corner[0] + 1.0) / 2.0)  # seen from -Y, x runs to the right


@pytest.fixture(scope="module")
def prints(tmp_path_factory: pytest.TempPathFactory) -> Prints:
    return Prints(tmp_path_factory.mktemp("prints"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ProceduralCatalog:
    return ProceduralCatalog(tmp_path_factory.mktemp("prints"))


MAKERS = {
    **{name: make for name, (_, make) in OBJECTS.items()},
    **{f"{group} {make.__name__}": make for group, rows in FURNITURE.items() for _, _, make in rows},
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_maker_gives_sound_meshes(name: str, prints: Prints) -> None:
    for seed in range(2):
        mesh = MAKERS[name](generator_for(seed, "maker"), prints)
        assert np.isfinite(mesh.vertices).all()
        assert mesh.uvs is not None and mesh.uvs.shape == (len(mesh.faces), 3, 2) and np.isfinite(mesh.uvs).all()
        assert mesh.faces.min() >= 0 and mesh.faces.max() < len(mesh.vertices)
        assert mesh.face_materials.min() >= 0 and mesh.face_materials.max() < len(mesh.materials)
        assert len(mesh.faces) < 30_000
        largest = 0.62 if name in OBJECTS else 2.8
        assert 0.0008 < mesh.size.max() < largest
        for material in mesh.materials:
            assert material.texture is None or material.texture.exists()
            assert all(0 <= channel <= 1 for channel in material.base_color)


def test_sharp_edges_are_split_and_round_ones_are_not() -> None:
    cylinder = primitives.cylinder("cylinder", 0.5, 1.0, GRAY, segments=24)
    split = split_at_edges(cylinder, 0.7)
    assert np.array_equal(split.vertices[split.faces], cylinder.vertices[cylinder.faces])
    assert len(split.vertices) == 4 * 24 + 2  # the side and each end have rims of their own; two centers
    corners = split.vertices.astype(float)[split.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for vertex in range(len(split.vertices)):
        around = normals[(split.faces == vertex).any(axis=1)]
        assert (around @ around.T).min() > np.cos(0.7)
    beveled = primitives.box("box", (1.0, 1.0, 1.0), GRAY, bevel=0.1)
    assert len(split_at_edges(beveled, 0.7).vertices) == 6 * 4 + 24  # 35 degrees between edges and corners are smooth
    assert len(split_at_edges(beveled, 0.5).vertices) == 6 * 4 + 12 * 4 + 8 * 3
    ball = primitives.cushion("ball", (1.0, 1.0, 1.0), GRAY, softness=1.0, segments=24)
    assert len(split_at_edges(ball, 0.7).vertices) == len(ball.vertices)


def test_prints_depend_on_their_number_alone() -> None:
    for kind in PRINT_KINDS:
        assert np.array_equal(draw_print(kind, 3), draw_print(kind, 3))
        assert not np.array_equal(draw_print(kind, 3), draw_print(kind, 4))


def test_rescaled_and_merged_meshes_stand_on_their_origin() -> None:
    pair = merged(
        "pair",
        [
            (primitives.box("a", (1.0, 1.0, 1.0), GRAY), translation(5.0, 0.0, 2.0)),
            (block(7, 0, (1.0, 1.0, 1.0)).mesh, translation(7.0, 0.0, 2.0)),
        ],
    )
    assert len(pair.materials) == 1
    small = rescaled(pair, (0.3, 0.2, 0.1))
    assert small.bounds == pytest.approx(np.array(((-0.15, -0.1, 0.0), (0.15, 0.1, 0.1))), abs=1e-6)


# Rays


def test_depth_of_a_plane_is_planar_and_gives_back_the_focal_length() -> None:
    camera = camera_at((0.0, -3.0, 1.5), (0.0, 0.0, 0.0), roll=0.2)
    depth, ids = cast_picture(Caster([floor(400.0)]), camera)
    valid = depth > 0
    assert np.array_equal(valid, ids == 1) and 0.3 < valid.mean() < 1.0
    row, column = np.nonzero(valid)
    # 1/z of a plane is linear in the pixel's coordinates.
    design = np.stack((column + 0.5, row + 0.5, np.ones(len(row))), axis=1)
    solution, *_ = np.linalg.lstsq(design, 1 / depth[valid].astype(np.float64), rcond=None)
    assert np.abs(design @ solution * depth[valid] - 1).max() < 1e-3
    # The points of all pixels lie on the floor only for the true focal length.
    rays = design - (camera.width / 2, camera.height / 2, 0)

    def unevenness(focal: float) -> float:
        points = rays / (focal, focal, 1.0) * depth[valid][:, None]
        return float(transform_points(camera.transform, points)[:, 2].std())

    candidates = camera.focal_px * np.linspace(0.9, 1.1, 401)
    best = candidates[np.argmin([unevenness(focal) for focal in candidates])]
    assert best == pytest.approx(camera.focal_px, rel=0.005)


def test_depth_is_not_the_length_of_the_ray() -> None:
    wall = Instance(
        primitives.quad("wall", ((-9.0, 2.0, -9.0), (9.0, 2.0, -9.0), (9.0, 2.0, 9.0), (-9.0, 2.0, 9.0)), GRAY),
        np.eye(4),
        "wall",
    )
    depth, _ = cast_picture(Caster([wall]), camera_at((0.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    assert depth == pytest.approx(2.0, rel=1e-6)


def test_object_ids_change_where_depth_does() -> None:
    camera = camera_at((0.0, -3.0, 1.2), (0.0, 0.0, 0.4))
    depth, ids = cast_picture(
        Caster([floor(), block(0.0, 0.0, (0.6, 0.6, 0.8)), block(1.0, 2.0, (0.5, 0.5, 1.5))]), camera
    )
    assert set(np.unique(ids)) >= {1, 2, 3}
    jumps = np.abs(np.diff(np.log(np.where(depth > 0, depth, 100.0)), axis=1)) > 0.2
    assert jumps.any() and (np.diff(ids, axis=1)[jumps] != 0).all()


def test_rays_pass_through_the_holes_of_a_texture(tmp_path: Path) -> None:
    texels = np.zeros((2, 2, 4), dtype=np.uint8)
    texels[:, 0] = 255  # the left half is solid
    Image.fromarray(texels).save(tmp_path / "leaf.png")
    leaf = Material(name="leaf", texture=tmp_path / "leaf.png", cutout=True)
    sheet = primitives.quad(
        "leaf",
        ((-1.0, 1.0, -1.0), (1.0, 1.0, -1.0), (1.0, 1.0, 1.0), (-1.0, 1.0, 1.0)),
        leaf,
        uv=((0, 0), (1, 0), (1, 1), (0, 1)),
    )
    behind = primitives.quad("wall", ((-5.0, 3.0, -5.0), (5.0, 3.0, -5.0), (5.0, 3.0, 5.0), (-5.0, 3.0, 5.0)), GRAY)
    caster = Caster([Instance(sheet, np.eye(4), "leaf"), Instance(behind, np.eye(4), "wall")])
    hits = caster.cast(np.zeros((1, 3)), np.array(((-0.5, 1.0, 0.1), (0.5, 1.0, 0.1))))
    assert hits.distance == pytest.approx((1.0, 3.0), rel=1e-5)
    assert hits.instance.tolist() == [0, 1]


def test_instances_may_be_added_after_a_cast() -> None:
    caster = Caster([floor()])
    down = np.array(((0.0, 0.0, -1.0),))
    assert caster.cast(np.array(((0.0, 0.0, 3.0),)), down).distance[0] == pytest.approx(3.0)
    caster.add([block(0.0, 0.0, (1.0, 1.0, 1.0))])
    hits = caster.cast(np.array(((0.0, 0.0, 3.0),)), down)
    assert hits.distance[0] == pytest.approx(2.0) and hits.normal[0] == pytest.approx((0.0, 0.0, 1.0))
    assert not Caster().cast(np.zeros((1, 3)), down).hit.any()


# Placement


def test_boxes_overlap_exactly_where_points_are_in_both() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(-2, 2, size=(20_000, 2))

    def inside(one: Box) -> np.ndarray:
        local = (points - (one.x, one.y)) @ np.array(
            ((np.cos(one.angle), -np.sin(one.angle)), (np.sin(one.angle), np.cos(one.angle)))
        )
        return (np.abs(local) < (one.half_x, one.half_y)).all(axis=1)

    seen = set()
    for _ in range(200):
        a, b = (
            Box(
                *generator.uniform(-1, 1, 2).tolist(),
                *generator.uniform(0.1, 0.8, 2).tolist(),
                float(generator.uniform(0, 6)),
                0.0,
                1.0,
            )
            for _ in range(2)
        )
        common = int((inside(a) & inside(b)).sum())
        seen.add(a.overlaps(b))
        if common:
            assert a.overlaps(b)
        elif a.overlaps(b):  # then the common part is too small for the points
            shrunk = [Box(one.x, one.y, one.half_x - 0.05, one.half_y - 0.05, one.angle, 0.0, 1.0) for one in (a, b)]
            assert not shrunk[0].overlaps(shrunk[1])
    assert seen == {True, False}


def _item(size: tuple[float, float, float]) -> Item:
    return Item(name="thing", group="object", size=size, load=lambda: primitives.box("thing", size, GRAY))


def test_things_stand_level_on_their_support_and_touch_nothing() -> None:
    table, obstacle = block(0.0, 0.0, (1.0, 0.6, 0.7)), block(0.25, 0.0, (0.3, 0.3, 0.3), z=0.7)
    caster = Caster([floor(), table, obstacle])
    area = Box(0.0, 0.0, 0.5, 0.3, 0.0, 0.0, 0.7)
    taken = Occupied()
    for seed in range(60):
        spot = find_spot(
            caster, _item((0.12, 0.1, 0.2)), area, taken, generator_for(seed, "spot"), from_height=1.5, support=1
        )
        if spot is None:
            continue
        assert spot.low == pytest.approx(0.7, abs=1e-3)
        assert (np.abs(spot.corners(0.9)) <= (0.5, 0.3)).all()
        assert not spot.overlaps(Box(0.25, 0.0, 0.15, 0.15, 0.0, 0.7, 1.0))
        assert taken.is_free(spot)
        taken.take(spot)
    assert len(taken.boxes) >= 4


def test_nothing_is_put_under_a_board_that_is_too_low() -> None:
    shelf = [floor(), block(0.0, 0.0, (1.0, 0.4, 0.02)), block(0.0, 0.0, (1.0, 0.4, 0.02), z=0.15)]
    area = Box(0.0, 0.0, 0.5, 0.2, 0.0, 0.0, 0.2)
    caster = Caster(shelf)

    def find(height: float) -> Box | None:
        generator = generator_for(0, "shelf")
        return find_spot(caster, _item((0.1, 0.1, height)), area, Occupied(), generator, from_height=0.1, support=1)

    assert find(0.1) is not None and find(0.2) is None
    assert not has_room(Caster(shelf), Box(0.0, 0.0, 0.1, 0.1, 0.0, 0.03, 0.3))


# Cameras and pictures


def _reason(instances: list[Instance], rules: ViewRules, **where: tuple[float, float, float]) -> str | None:
    return rejection(Caster(instances), camera_at(where["position"], where["target"]), rules)


def test_views_are_rejected_for_what_is_wrong_with_them() -> None:
    things = [floor(), block(0.0, 0.0, (1.0, 1.0, 1.0)), block(2.0, 3.0, (1.0, 1.0, 2.0))]
    good = {"position": (0.5, -4.0, 1.6), "target": (0.3, 0.0, 0.5)}
    assert _reason(things, LOOSE, **good) is None
    assert _reason(things, LOOSE, position=(0.0, -4.0, 1.0), target=(0.0, -8.0, 4.0)) == "few surfaces"
    assert _reason(things, LOOSE, position=(0.0, 0.0, 0.5), target=(0.0, 1.0, 0.5)) == "inside something"
    assert _reason(things, replace(LOOSE, min_depth=4.0), **good) == "too near"
    assert _reason(things, replace(LOOSE, median_depth=(0.1, 1.0)), **good) == "median depth"
    assert _reason(things, replace(LOOSE, min_log_spread=2.0), **good) == "flat"
    assert _reason(things, replace(LOOSE, near=(50.0, 0.1)), **good) == "crowded"
    assert _reason(things, replace(LOOSE, max_plane=0.1), **good) == "one plane"
    assert _reason(things, replace(LOOSE, min_planes=50), **good) == "few planes"
    camera = camera_at((0.5, -4.0, 1.6), (0.3, 0.0, 0.5))
    assert rejection(Caster(things), camera, LOOSE, [camera]) == "same view"


def test_depth_and_pictures_are_rejected_for_what_is_wrong_with_them() -> None:
    ramp = np.geomspace(0.5, 8.0, 7200).reshape(72, 100).astype(np.float32)
    assert depth_rejection(ramp, ROOM_RULES) is None
    assert depth_rejection(np.where(ramp > 1, 0, ramp).astype(np.float32), ROOM_RULES) == "few surfaces"
    assert depth_rejection(ramp * np.float32(0.01), ROOM_RULES) == "too near"
    assert depth_rejection(np.full_like(ramp, 2.0), ROOM_RULES) == "flat"
    gray = np.linspace(40, 200, 7200).reshape(72, 100, 1).repeat(3, axis=2)
    assert picture_rejection(gray.astype(np.uint8)) is None
    assert picture_rejection((gray / 30).astype(np.uint8)) == "dark"
    assert picture_rejection(np.clip(gray * 4, 0, 255).astype(np.uint8)) == "bright"
    assert picture_rejection((100 + gray / 50).astype(np.uint8)) == "low contrast"


def test_a_doorway_has_one_floor() -> None:
    # Two surfaces in one place shade each other black.
    for bottom, sides in ((0.0, 3), (0.8, 4)):
        reveal = reveal_mesh(Opening(left=1.0, right=1.9, bottom=bottom, top=2.1), 0.12, GRAY)
        assert len(reveal.faces) == 2 * sides
        lowest = reveal.vertices[reveal.faces][..., 2].max(axis=1) <= bottom
        assert lowest.sum() == (0 if bottom == 0 else 2)


def test_photos_are_exposed_for_what_was_measured() -> None:
    generator = np.random.default_rng(0)
    linear = generator.gamma(2.0, 0.05, size=(72, 96, 3)).astype(np.float32)
    measured = np.ones((72, 96), dtype=bool)
    means = []
    for stops in (-2.0, 0.0, 2.0):
        photo = develop(linear, measured, generator_for(1, "photo"), exposure=stops)
        assert photo.dtype == np.uint8
        means.append(photo.mean())
    assert means[0] < means[1] < means[2]
    plain = develop(linear, measured, generator_for(1, "photo"))
    for value in (3e38, np.inf):  # a path that met a lamp's center
        burned = linear.copy()
        burned[3, 4] = value
        photo = develop(burned, measured, generator_for(1, "photo"))
        assert photo[3, 4].min() > 200
        photo[3, 4] = plain[3, 4]
        # One pixel moves the percentiles by next to nothing.
        assert np.abs(photo.astype(int) - plain).max() <= 1
    same = develop(1000 * linear, measured, generator_for(1, "photo"))
    assert np.abs(same.astype(int) - develop(linear, measured, generator_for(1, "photo"))).max() <= 1
    with pytest.raises(ValueError, match="-4 to 4 stops"):
        check_exposure(5.0)


# Rooms and tabletops


def _fingerprint(setting: Setting) -> list[object]:
    scene = setting.scene
    return [
        [
            (one.name, one.transform.tobytes(), one.mesh.vertices.tobytes(), one.mesh.materials, one.tint)
            for one in scene.instances
        ],
        scene.lights,
        scene.sky,
        setting.facts,
    ]


@pytest.fixture(scope="module", params=[sample_room, sample_tabletop])
def sampled(request: pytest.FixtureRequest, catalog: Catalog) -> tuple[Callable[..., Setting], Setting]:
    return request.param, request.param(generator_for(1, "scene"), catalog)


def test_a_seed_is_a_scene(sampled, catalog: Catalog) -> None:
    sample, setting = sampled
    assert _fingerprint(sample(generator_for(1, "scene"), catalog)) == _fingerprint(setting)
    assert _fingerprint(sample(generator_for(2, "scene"), catalog)) != _fingerprint(setting)


def test_scenes_have_light_and_views(sampled) -> None:
    _, setting = sampled
    assert setting.scene.lights
    caster = Caster(setting.scene.instances)
    generator = generator_for(1, "camera")
    views = [setting.propose(generator, LENS) for _ in range(40)]
    reasons = [rejection(caster, view, setting.rules) for view in views if view is not None]
    depth, _ = cast_picture(caster, views[reasons.index(None)])
    assert depth_rejection(depth, setting.rules) is None


def test_furniture_stands_on_the_floor_and_does_not_intersect(catalog: Catalog) -> None:
    room = RoomBuilder(generator_for(3, "room"), catalog, size=(3.6, 4.0, 2.6), kind="living", day=True)
    room.build_shell()
    room.furnish(density=0.9)
    assert len(room.pieces) > 5
    for number, piece in enumerate(room.pieces):
        assert piece.box.inside(3.6, 4.0) and piece.box.high < 2.6
        if piece.item.group != "wall":
            assert piece.box.low == 0.0
        points = transform_points(
            room.instances[piece.number].transform, room.instances[piece.number].mesh.vertices.astype(float)
        )
        assert points[:, 2].min() == pytest.approx(piece.box.low, abs=1e-5)
        for other in room.pieces[:number]:
            assert not piece.box.overlaps(other.box)


def test_small_things_rest_on_something(catalog: Catalog) -> None:
    room = RoomBuilder(generator_for(5, "room"), catalog, size=(3.0, 3.0, 2.6), kind="office", day=False)
    room.build_shell()
    room.furnish(density=0.8)
    before = len(room.instances)
    caster = Caster(room.instances)
    room.strew(clutter=1.0)
    things = room.instances[before:]
    assert len(things) > 2
    for thing in things:
        points = transform_points(thing.transform, thing.mesh.vertices.astype(float))
        start = np.array((*thing.transform[:2, 3], points[:, 2].min() + 1e-3))
        gap = caster.cast(start[None], np.array(((0.0, 0.0, -1.0),))).distance[0]
        assert gap < 6e-3


def test_camera_rays_run_through_the_middle_of_the_picture() -> None:
    camera = camera_at((0.0, 0.0, 0.0), (1.0, 2.0, 0.5))
    assert camera_rays(camera, 1, 1)[0] == pytest.approx(camera.direction)
    assert (camera_rays(camera, 7, 5) @ camera.direction) == pytest.approx(1.0)


def test_scene_names_the_assets_in_it() -> None:
    mesh = replace(block(0, 0, (1.0, 1.0, 1.0)).mesh, source="package/file")
    assert scene_of(floor(), Instance(mesh, place(0, 0, 0), "a")).sources == ("package/file",)
