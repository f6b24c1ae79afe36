# SPDX-License-Identifier: Apache-2.0
"""Normals of cast rays against shapes whose normals are known, and how light splits. Without Blender."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.errors import InvalidValueError
from openmarigold_render.maps import Light, check_maps, normals_picture
from openmarigold_render.primitives import cylinder, lathe, quad
from openmarigold_render.rays import Caster, depth_picture, picture_hits
from openmarigold_render.scene import Camera, Instance, look_at, translation
from rendering_data import GRAY, block, camera_at, floor


def pictures(camera: Camera, *instances: Instance) -> tuple[np.ndarray, np.ndarray]:
    hits = picture_hits(Caster(instances), camera)
    return normals_picture(instances, hits, camera), depth_picture(hits, camera)


def ball(radius: float = 1.0, *, segments: int = 12) -> Instance:
    angles = np.linspace(-np.pi / 2, np.pi / 2, segments + 1)
    profile = [(float(radius * np.cos(a)), float(radius * np.sin(a))) for a in angles]
    return Instance(lathe("ball", profile, GRAY, segments=2 * segments), np.eye(4), "ball")


def angles_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((first * second).sum(axis=-1), -1, 1)))


def test_floor_and_wall_in_the_axes_of_the_camera() -> None:
    camera = camera_at((0.0, -3.0, 1.0), (0.0, 0.0, 1.0))  # level: up is the world's
    wall = Instance(quad("wall", ((-9, 2, -9), (9, 2, -9), (9, 2, 9), (-9, 2, 9)), GRAY), np.eye(4), "wall")
    turned = Instance(quad("wall", ((-9, 2, 9), (9, 2, 9), (9, 2, -9), (-9, 2, -9)), GRAY), np.eye(4), "wall")
    for other_side in (wall, turned):  # whichever way its triangles are wound
        normals, _ = pictures(camera, floor(), other_side)
        assert normals[0, 40] == pytest.approx((0.0, 0.0, 1.0), abs=1e-6)
        assert normals[-1, 40] == pytest.approx((0.0, 1.0, 0.0), abs=1e-6)
    side = camera_at((0.0, 0.0, 1.0), (1.0, 2.0, 1.0))  # looks to the right of the wall's normal
    normals, _ = pictures(side, wall)
    assert normals[30, 40] == pytest.approx((1 / 5**0.5, 0.0, 2 / 5**0.5), abs=1e-6)


def test_a_rolled_camera_turns_normals_and_sky_has_none() -> None:
    normals, depth = pictures(camera_at((0.0, -3.0, 1.0), (0.0, 0.0, 1.0), roll=np.radians(30)), floor(400.0))
    assert normals[depth > 0] == pytest.approx(np.array([(-0.5, 3**0.5 / 2, 0.0)] * int((depth > 0).sum())), abs=1e-5)
    assert (depth == 0).any() and not normals[depth == 0].any()


def test_every_normal_looks_to_the_camera() -> None:
    camera = camera_at((0.2, -3.0, 1.4), (0.2, 0.0, 0.4), roll=0.1)
    things = (floor(), block(0.0, 0.0, (0.6, 0.6, 0.8), angle=0.3), Instance(ball().mesh, translation(1, 2, 1), "ball"))
    normals, depth = pictures(camera, *things)
    x = (np.arange(camera.width) + 0.5 - camera.width / 2) / camera.focal_px
    y = (np.arange(camera.height) + 0.5 - camera.height / 2) / camera.focal_px
    rays = np.stack([*np.meshgrid(x, -y), -np.ones((camera.height, camera.width))], axis=-1)
    assert ((normals * rays).sum(axis=-1)[depth > 0] < 1e-6).all()
    assert np.linalg.norm(normals, axis=-1)[depth > 0] == pytest.approx(1.0, abs=1e-5)


def test_normals_of_smooth_meshes_are_those_of_the_round_thing_and_of_flat_ones_those_of_its_faces() -> None:
    camera = Camera(look_at((0.0, -4.0, 0.0), (0.0, 0.0, 0.0)), 96, 72, 90.0)
    smooth = ball(segments=12)
    x = (np.arange(96) + 0.5 - 48) / 90
    y = (np.arange(72) + 0.5 - 36) / 90
    rays = np.stack([*np.meshgrid(x, -y), -np.ones((72, 96))], axis=-1)
    errors = {}
    for is_smooth in (True, False):
        normals, depth = pictures(camera, Instance(_with(smooth, is_smooth).mesh, np.eye(4), "ball"))
        points = rays * depth[..., None] + (0.0, 0.0, 4.0)
        truth = points / np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-9)
        errors[is_smooth] = angles_between(normals, truth)[depth > 0]
    assert errors[True].mean() < 1.0 and np.percentile(errors[True], 99) < 6.0
    assert errors[False].mean() > 3.0


def _with(instance: Instance, is_smooth: bool) -> Instance:
    from dataclasses import replace

    return replace(instance, mesh=replace(instance.mesh, smooth=is_smooth))


def test_scaled_things_have_the_normals_of_their_shape() -> None:
    camera = Camera(look_at((0.0, -6.0, 0.0), (0.0, 0.0, 0.0)), 96, 72, 90.0)
    axes = np.array((2.0, 1.0, 0.5))
    normals, depth = pictures(camera, Instance(ball(segments=32).mesh, np.diag((*axes, 1.0)), "ellipsoid"))
    row, column = 36, 68
    forward = depth[row, column]
    at = np.array(((column + 0.5 - 48) / 90 * forward, forward - 6.0, -(row + 0.5 - 36) / 90 * forward))  # world
    gradient = at / axes**2
    truth = gradient / np.linalg.norm(gradient)
    assert angles_between(normals[row, column], np.array((truth[0], truth[2], -truth[1]))) < 1.5


def test_sharp_edges_of_smooth_meshes_stay_sharp() -> None:
    can = Instance(cylinder("can", 1.0, 2.0, GRAY, segments=32), np.eye(4), "can")
    normals, depth = pictures(camera_at((0.0, -0.01, 8.0), (0.0, 0.0, 2.0)), can)
    assert normals[depth > 0] == pytest.approx(np.array([(0.0, 0.0, 1.0)] * int((depth > 0).sum())), abs=0.01)


def test_light_splits_into_what_adds_up() -> None:
    color = np.array([[[0.5, 0.2, 1e9], [0.0, 0.3, 0.1]]])
    albedo = np.array([[[0.5, 0.0, 0.25], [1.2, 0.6, 0.5]]])
    shading = np.array([[[0.6, 4.0, 1e8], [0.4, 0.5, 0.2]]])
    maps = Light(color=color, albedo=albedo, shading=shading).maps()
    assert list(maps) == ["albedo", "shading", "residual"] and {part.dtype for part in maps.values()} == {
        np.dtype("f4")
    }
    assert maps["albedo"].max() == 1.0 and np.isfinite(maps["shading"].astype(np.float16)).all()
    total = maps["albedo"] * maps["shading"] + maps["residual"]
    np.testing.assert_allclose(total[color < 1e9], color[color < 1e9], atol=1e-6)
    np.testing.assert_allclose(maps["residual"][0, :, 0], [0.2, -0.4], atol=1e-6)


def test_maps_are_checked_and_put_in_their_order() -> None:
    assert check_maps(("shading", "normals", "depth")) == ("depth", "normals", "shading")
    with pytest.raises(
        InvalidValueError, match=r"maps=depth,gloss: 'gloss' is not known; give depth and any of .*albedo"
    ):
        check_maps(("depth", "gloss"))
    with pytest.raises(InvalidValueError, match="maps=normals: depth is missing"):
        check_maps(("normals",))
