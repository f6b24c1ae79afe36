# SPDX-License-Identifier: Apache-2.0
"""Points and meshes of depth, against rooms whose points are known, and files, read by other tools."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.reconstruction.grid import PixelChoice, surface_grid, triangles_of
from openmarigold.reconstruction.mesh import Mesh, mesh_from_depth
from openmarigold.reconstruction.points import PointCloud, points_from_depth
from openmarigold.results.provenance import read_provenance

CAMERA = Camera(fx=150.0, fy=140.0, cx=75.0, cy=62.0, width=160, height=120)
LEFT, RIGHT, UP, DOWN, BACK = -1.0, 1.4, -1.2, 1.0, 4.0
"""Walls of a room, in OpenCV's axes: x, x, y, y, z [m]."""


def room(camera: Camera = CAMERA) -> np.ndarray:
    """Planar depth of a room without a front wall, by intersecting each pixel's ray with each wall."""
    x = (np.arange(camera.width)[None] - camera.cx) / camera.fx + np.zeros((camera.height, 1))
    y = (np.arange(camera.height)[:, None] - camera.cy) / camera.fy + np.zeros((1, camera.width))
    with np.errstate(divide="ignore"):
        walls = [np.where(x > 0, RIGHT, LEFT) / x, np.where(y > 0, DOWN, UP) / y, np.full(x.shape, BACK)]
    return np.minimum.reduce([np.where(wall > 0, wall, np.inf) for wall in walls])


def picture(camera: Camera = CAMERA) -> np.ndarray:
    """Red grows to the right, green downwards."""
    rgb = np.zeros((camera.height, camera.width, 3), dtype=np.uint8)
    rgb[..., 0] = np.linspace(0, 255, camera.width)[None]
    rgb[..., 1] = np.linspace(0, 255, camera.height)[:, None]
    return rgb


def box_before_wall(ramp: int = 0) -> np.ndarray:
    """A square at 2 m before a wall at 5 m; with a ramp of some pixels between the two, as predictions have."""
    depth = np.full(CAMERA.size, 5.0)
    depth[40:80, 50:110] = 2.0
    for step in range(ramp):
        share = (step + 1) / (ramp + 1)
        depth[40:80, 110 + step] = 1 / ((1 - share) / 2 + share / 5)
    return depth


def test_a_room_is_unprojected_exactly() -> None:
    cloud = points_from_depth(room(), CAMERA, rgb=picture())
    assert len(cloud) == 160 * 120
    points = cloud.points
    walls = np.stack([points[:, 0] - LEFT, points[:, 0] - RIGHT, points[:, 1] - UP, points[:, 1] - DOWN], axis=1)
    off = np.abs(np.column_stack([walls, points[:, 2] - BACK])).min(axis=1)
    assert off.max() < 1e-5
    np.testing.assert_array_equal(cloud.colors, picture().reshape(-1, 3))
    np.testing.assert_array_equal(cloud.pixels[161], (1, 1))


def test_normals_of_walls_are_at_right_angles_and_towards_the_camera() -> None:
    cloud = points_from_depth(room(), CAMERA)
    normals = {}
    for name, pixel in {"floor": (80, 115), "left": (2, 60), "back": (75, 60), "ceiling": (75, 2)}.items():
        (place,) = np.flatnonzero((cloud.pixels == pixel).all(axis=1))
        normals[name] = cloud.normals[place]
    np.testing.assert_allclose(normals["floor"], (0, -1, 0), atol=1e-4)
    np.testing.assert_allclose(normals["ceiling"], (0, 1, 0), atol=1e-4)
    np.testing.assert_allclose(normals["left"], (1, 0, 0), atol=1e-4)
    np.testing.assert_allclose(normals["back"], (0, 0, -1), atol=1e-4)
    assert ((cloud.points * cloud.normals).sum(axis=1) < 0).all()


def test_every_triangle_of_a_room_is_there_and_faces_the_camera() -> None:
    mesh = mesh_from_depth(room(), CAMERA)
    assert len(mesh) == 2 * 159 * 119 and len(mesh.vertices) == 160 * 120
    first, second, third = (mesh.vertices[mesh.triangles[:, corner]].astype(np.float64) for corner in range(3))
    faces = np.cross(second - first, third - first)
    assert ((faces * (first + second + third)).sum(axis=1) < 0).all()


def test_a_floor_up_to_the_horizon_stays() -> None:
    camera = Camera(fx=500.0, fy=500.0, cx=160.0, cy=20.0, width=320, height=240)
    rows = np.arange(22, 240, dtype=np.float64)
    depth = np.full(camera.size, np.nan)
    depth[22:] = (1.5 / ((rows - 20) / 500))[:, None]  # 1.5 m below the camera: 375 m to 3.4 m away
    assert depth[22, 0] / depth[23, 0] == pytest.approx(1.5)  # a larger step than at many an edge
    assert len(mesh_from_depth(depth, camera)) == 2 * 319 * 217


@pytest.mark.parametrize("ramp", [0, 1, 2])
def test_no_triangle_spans_a_step(ramp: int) -> None:
    mesh = mesh_from_depth(box_before_wall(ramp), CAMERA)
    corners = mesh.vertices[mesh.triangles][..., 2]
    assert np.ptp(corners, axis=1).max() == 0
    assert {2.0, 5.0} == set(np.unique(mesh.vertices[:, 2]))
    # Neither the box nor the wall loses more than its rim.
    assert (mesh.vertices[:, 2] == 2).sum() >= 40 * 60 - 4
    assert (mesh.vertices[:, 2] == 5).sum() >= 160 * 120 - 40 * 60 - 40 * ramp - 4


def test_points_within_a_ramp_are_left_out_or_kept_as_asked() -> None:
    depth = box_before_wall(ramp=2)
    assert set(np.unique(points_from_depth(depth, CAMERA).points[:, 2])) == {2.0, 5.0}
    everything = points_from_depth(depth, CAMERA, choice=PixelChoice(cut_edges=False))
    assert len(everything) == 160 * 120 and len(np.unique(everything.points[:, 2])) == 4


def test_a_crease_is_no_edge() -> None:
    depth = room()
    grid = surface_grid(depth, CAMERA, PixelChoice())
    assert grid.across.all() and grid.down.all()


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_cell_without_one_corner_is_a_triangle(corner: tuple[int, int]) -> None:
    depth = np.ones((2, 2))
    depth[corner] = np.nan
    camera = Camera.from_fov((2, 2), 50.0)
    triangles = triangles_of(surface_grid(depth, camera, PixelChoice()))
    assert sorted(triangles.ravel()) == sorted({0, 1, 2, 3} - {2 * corner[0] + corner[1]})
    assert (mesh_from_depth(depth, camera).normals[:, 2] < -0.99).all()


@pytest.mark.parametrize("budget", [1, 2, 100, 5000, 19199, 10**6])
def test_budgets_are_kept_and_used(budget: int) -> None:
    choice = PixelChoice(max_points=budget)
    cloud = points_from_depth(room(), CAMERA, choice=choice)
    assert min(budget, 19200) * 0.5 <= len(cloud) <= budget
    assert len(mesh_from_depth(room(), CAMERA, choice=choice).vertices) <= budget
    if budget >= 100:  # spread over the whole picture
        assert cloud.pixels.min() < 20 and (cloud.pixels.max(axis=0) > (140, 100)).all()


def test_a_sparser_mesh_of_a_plane_is_the_same_plane() -> None:
    mesh = mesh_from_depth(room(), CAMERA, choice=PixelChoice(max_points=3000))
    back = mesh.vertices[np.abs(mesh.vertices[:, 2] - BACK) < 1e-5]
    np.testing.assert_allclose(CAMERA.project(mesh.vertices.astype(np.float64)), mesh.pixels, atol=1e-3)
    assert len(back) > 300


def test_what_is_far_deep_or_uncertain_is_left_out() -> None:
    depth = np.linspace(1, 3, 19200).reshape(CAMERA.size)
    uncertainty = depth[::-1].copy()

    def deepest(**choice: Any) -> tuple[int, float, float]:
        cloud = points_from_depth(depth, CAMERA, uncertainty=uncertainty, choice=PixelChoice(**choice, cut_edges=False))
        return len(cloud), float(cloud.points[:, 2].min()), float(cloud.points[:, 2].max())

    assert deepest(drop_far=0.25) == (14400, 1.0, pytest.approx(2.5, abs=1e-3))
    assert deepest(max_depth=1.5) == (4800, 1.0, pytest.approx(1.5, abs=1e-3))
    number, near, far = deepest(drop_uncertain=0.25)
    assert (number, far) == (14400, 3.0) and near == pytest.approx(1.5, abs=0.02)
    constant = points_from_depth(np.ones((4, 5)), Camera.assumed((4, 5)), choice=PixelChoice(drop_far=0.5))
    assert len(constant) == 20  # nothing is farther than the rest
    sky = depth.copy()
    sky[:36] = 3.0  # 30 % of the rows share the largest depth
    for share in (0.1, 0.29):
        left = points_from_depth(sky, CAMERA, choice=PixelChoice(drop_far=share, cut_edges=False))
        assert len(left) == 0.7 * sky.size - 1  # the deepest of the other pixels is as deep


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    camera = Camera.assumed(size)
    assert len(points_from_depth(np.ones(size), camera)) == size[0] * size[1]
    assert len(mesh_from_depth(np.ones(size), camera)) == 2 * (size[0] - 1) * (size[1] - 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_depth_that_is_unknown_everywhere_gives_nothing_and_no_file(value: float, tmp_path: Path) -> None:
    cloud = points_from_depth(np.full((5, 6), value), Camera.assumed((5, 6)))
    assert len(cloud) == 0 and cloud.points.shape == (0, 3)
    with pytest.raises(InvalidValueError, match="there are no points to write: all depth is unknown"):
        cloud.save(tmp_path / "a.ply")
    assert len(mesh_from_depth(np.full((5, 6), value), Camera.assumed((5, 6)))) == 0


def test_sizes_must_agree() -> None:
    with pytest.raises(InvalidValueError, match="the depth map is 5x6 and the camera's picture 120x160"):
        points_from_depth(np.ones((5, 6)), CAMERA)
    with pytest.raises(InvalidValueError, match="the picture is 5x6 and the camera's 120x160"):
        mesh_from_depth(room(), CAMERA, rgb=np.zeros((5, 6, 3), dtype=np.uint8))
    with pytest.raises(InvalidValueError, match="drop_uncertain needs an uncertainty map"):
        points_from_depth(room(), CAMERA, choice=PixelChoice(drop_uncertain=0.1))
    with pytest.raises(InvalidValueError, match="the uncertainty is 5x6"):
        points_from_depth(room(), CAMERA, uncertainty=np.ones((5, 6)))


def spaces(**options: Any) -> dict[str, PointCloud | Mesh]:
    """The room with its picture, and a record, as points and as a mesh."""
    origin = {"unit": "meters", "record": {"seed": 7, "stem": "café, 1/2  |", "long": "x" * 500, "error": float("nan")}}
    makers = {"points": points_from_depth, "mesh": mesh_from_depth}
    return {name: make(room(), CAMERA, rgb=picture(), origin=origin, **options) for name, make in makers.items()}


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
@pytest.mark.parametrize("kind", ["points", "mesh"])
def test_files_are_read_by_another_tool_and_stand_upright(kind: str, suffix: str, tmp_path: Path) -> None:
    path = spaces()[kind].save(tmp_path / f"room{suffix}")
    found: Any = trimesh.load(path, process=False)
    geometry = next(iter(found.geometry.values())) if isinstance(found, trimesh.Scene) else found
    vertices = np.asarray(geometry.vertices)
    assert len(vertices) == 160 * 120
    # Right stays right, the floor is below, what is in front lies along -z.
    np.testing.assert_allclose(vertices.max(axis=0)[:2], (RIGHT, -UP), atol=1e-5)
    np.testing.assert_allclose(vertices.min(axis=0), (LEFT, -DOWN, -BACK), atol=1e-5)
    assert (vertices[:, 2] < 0).all()
    if kind == "mesh":
        assert len(geometry.faces) == 2 * 159 * 119
        assert ((geometry.face_normals * geometry.triangles_center).sum(axis=1) < 0).all()
    if kind == "points" or suffix == ".ply":
        colors = np.asarray(geometry.colors if kind == "points" else geometry.visual.vertex_colors)
        right, left = vertices[:, 0] == vertices[:, 0].max(), vertices[:, 0] == vertices[:, 0].min()
        assert colors[right, 0].mean() > colors[left, 0].mean() + 50
    record = read_provenance(path)
    assert record["seed"] == 7 and record["stem"] == "café, 1/2  |" and record["length_unit"] == "meters"
    assert record["error"] is None
    assert Camera.from_dict(record["camera"]) == CAMERA


def gltf(path: Path) -> tuple[dict[str, Any], bytes]:
    """Both chunks of a file, by the specification."""
    content = path.read_bytes()
    magic, version, total, length, kind = struct.unpack("<4sIII4s", content[:20])
    assert (magic, version, kind, total) == (b"glTF", 2, b"JSON", len(content))
    binary_length, binary_kind = struct.unpack("<I4s", content[20 + length : 28 + length])
    assert binary_kind == b"BIN\0" and length % 4 == 0 and binary_length == len(content) - 28 - length
    return json.loads(content[20 : 20 + length]), content[28 + length :]


def test_the_photo_lies_within_a_mesh_at_its_place(tmp_path: Path) -> None:
    mesh = spaces()["mesh"]
    content, binary = gltf(mesh.save(tmp_path / "room.glb"))
    (primitive,) = content["meshes"][0]["primitives"]
    assert primitive["mode"] == 4 and content["asset"]["version"] == "2.0"
    arrays = {}
    for name, number in {**primitive["attributes"], "indices": primitive["indices"]}.items():
        accessor = content["accessors"][number]
        view = content["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        values = np.frombuffer(binary[view["byteOffset"] :][: view["byteLength"]], kind)
        arrays[name] = values.reshape(accessor["count"], -1)
    accessor = content["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_array_equal(accessor["min"], arrays["POSITION"].min(axis=0))
    np.testing.assert_array_equal(accessor["max"], arrays["POSITION"].max(axis=0))
    assert arrays["indices"].max() == 160 * 120 - 1
    (place,) = np.flatnonzero((mesh.pixels == (100, 30)).all(axis=1))
    np.testing.assert_allclose(arrays["TEXCOORD_0"][place], (100.5 / 160, 30.5 / 120), atol=1e-6)
    view = content["bufferViews"][content["images"][0]["bufferView"]]
    (tmp_path / "texture.jpg").write_bytes(binary[view["byteOffset"] :][: view["byteLength"]])
    with Image.open(tmp_path / "texture.jpg") as texture:
        assert texture.size == (160, 120)
        assert np.abs(np.asarray(texture).astype(int) - picture()).max() < 12
    assert content["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    # The photo's own view: 120 px high at a focal length of 140 px.
    assert content["cameras"][0]["perspective"]["yfov"] == pytest.approx(2 * np.arctan(60 / 140))


def test_colors_of_points_are_linear_light_in_gltf(tmp_path: Path) -> None:
    rgb = np.full((2, 3, 3), 128, dtype=np.uint8)
    cloud = points_from_depth(np.ones((2, 3)), Camera.assumed((2, 3)), rgb=rgb)
    content, binary = gltf(cloud.save(tmp_path / "a.glb"))
    (primitive,) = content["meshes"][0]["primitives"]
    accessor = content["accessors"][primitive["attributes"]["COLOR_0"]]
    view = content["bufferViews"][accessor["bufferView"]]
    colors = np.frombuffer(binary[view["byteOffset"] :][: view["byteLength"]], "<f4").reshape(-1, 3)
    assert primitive["mode"] == 0 and (accessor["componentType"], accessor["type"]) == (5126, "VEC3")
    np.testing.assert_allclose(colors, 0.2158605, atol=1e-4)  # of sRGB 128


def test_a_mesh_without_a_photo_is_lit_by_its_normals(tmp_path: Path) -> None:
    content, _ = gltf(mesh_from_depth(room(), CAMERA).save(tmp_path / "a.glb"))
    assert "NORMAL" in content["meshes"][0]["primitives"][0]["attributes"]
    assert "images" not in content and "extensionsUsed" not in content


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_bytes_are_the_same_again(suffix: str, tmp_path: Path) -> None:
    for kind in ("points", "mesh"):
        first, second = (spaces()[kind].save(tmp_path / f"{kind}{name}{suffix}").read_bytes() for name in "ab")
        assert first == second


def test_lines_of_a_ply_header_are_short_ascii(tmp_path: Path) -> None:
    header = spaces()["points"].save(tmp_path / "a.ply").read_bytes().partition(b"end_header\n")[0]
    assert max(map(len, header.splitlines())) < 256 and header.isascii()
    assert b"comment unit meters: 1 unit is 1 meter\n" in header and b"comment axes x right, y up, z backward" in header


def test_saving_is_atomic_and_replaces_only_when_asked(tmp_path: Path) -> None:
    cloud = spaces()["points"]
    path = cloud.save(tmp_path / "a.ply")
    with pytest.raises(OutputError, match="exists; allow overwriting"):
        cloud.save(path)
    assert cloud.save(path, overwrite=True) == path and [one.name for one in tmp_path.iterdir()] == ["a.ply"]
    with pytest.raises(InvalidValueError, match=r"suffix '\.obj'; give \.ply or \.glb"):
        cloud.save(tmp_path / "a.obj")
    with pytest.raises(OutputError, match="cannot write"):
        cloud.save(tmp_path / "no" / "a.ply")


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_files_of_others_carry_no_provenance(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"other{suffix}"
    trimesh.creation.box().export(path)
    for content in (path.read_bytes(), path.read_bytes()[:30], b"", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(InvalidValueError, match="carries no provenance"):
            read_provenance(path)
