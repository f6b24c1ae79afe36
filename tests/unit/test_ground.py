# SPDX-License-Identifier: Apache-2.0
"""The ground plane and lengths, against rooms with known cameras."""

from __future__ import annotations

import numpy as np
import pytest

from analytic_rooms import FLOOR, make_room, with_angular_error
from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError
from openmarigold.geometry import normals_from_depth
from openmarigold.reconstruction.ground import find_ground
from openmarigold.seeding import generator_for

FLOORS = (1, 2, 4, 7, 8, 9, 13, 15)  # rooms that show much floor


@pytest.mark.parametrize("seed", FLOORS)
def test_the_camera_stands_1_6_above_the_floor(seed: int) -> None:
    room = make_room(seed, height=1.6)
    found = find_ground(room.depth, room.camera)
    assert found.distance == pytest.approx(1.6, rel=0.01)
    assert found.is_reliable
    assert found.normal[1] < 0  # y points down
    assert found.normal @ room.up > np.cos(np.radians(0.5))
    assert found.inlier_share == pytest.approx((room.surface[48:] == FLOOR).mean(), abs=0.03)


@pytest.mark.parametrize("seed", FLOORS[:4])
def test_errors_of_depth_and_of_normals(seed: int) -> None:
    room = make_room(seed, height=1.6)
    random = generator_for(seed, "errors")
    depth = room.depth * (1 + 0.01 * random.standard_normal(room.depth.shape))
    found = find_ground(depth, room.camera, normals=with_angular_error(room.normals, 10.0, random))
    assert found.distance == pytest.approx(1.6, rel=0.02)


def test_the_distance_has_the_unit_of_depth() -> None:
    room = make_room(2)
    one, ten = find_ground(room.depth, room.camera), find_ground(10 * room.depth, room.camera)
    assert ten.distance == pytest.approx(10 * one.distance)
    np.testing.assert_allclose(one.normal, ten.normal, atol=1e-9)


def test_the_same_arguments_give_the_same_plane() -> None:
    room = make_room(2)
    depth = room.depth * (1 + 0.01 * generator_for(0, "errors").standard_normal(room.depth.shape))
    first, second = (find_ground(depth, room.camera, seed=3) for _ in range(2))
    assert first.distance == second.distance


def test_a_floors_normals_point_up() -> None:
    room = make_room(2)
    normals, usable = normals_from_depth(room.depth, focal=room.camera.fx)
    floor = (room.surface == FLOOR) & usable
    assert (normals[floor][:, 1] > 0.9).mean() > 0.9
    assert (room.normals[room.surface == FLOOR][:, 1] > 0.9).all()


def table_above_a_floor() -> tuple[np.ndarray, Camera]:
    """A level camera 1.5 above a floor and 0.4 above a table that hides more of the floor than it leaves to be seen."""
    camera = Camera.from_fov((96, 128), 60.0)
    rays = camera.rays().astype(np.float64)
    down = np.maximum(rays[..., 1], 1e-6)
    floor, table = np.minimum(1.5 / down, 12.0), 0.4 / down
    on_table = (table > 0.9) & (table < 2.0) & (np.abs(rays[..., 0] * table) < 0.7)
    return np.where(on_table, table, floor), camera


def test_a_table_above_a_floor_is_not_the_ground() -> None:
    depth, camera = table_above_a_floor()
    assert find_ground(depth, camera).distance == pytest.approx(1.5, rel=0.01)


def test_a_picture_without_a_floor_is_refused() -> None:
    camera = Camera.from_fov((96, 128), 60.0)
    with pytest.raises(InvalidValueError, match=r"no ground was found.*give a known length"):
        find_ground(np.full((96, 128), 2.0), camera)
    ceiling = 1.0 / np.maximum(-camera.rays()[..., 1].astype(np.float64), 0.05)
    with pytest.raises(InvalidValueError, match="no ground was found"):
        find_ground(ceiling, camera)
    with pytest.raises(InvalidValueError, match="no ground was found"):
        find_ground(np.full((96, 128), np.nan), camera)


def test_little_floor_is_not_reliable() -> None:
    room = make_room(6, height=1.6)
    found = find_ground(room.depth, room.camera)
    assert not found.is_reliable
    assert "of the lower half" in found.reason


def test_maps_of_other_sizes_are_refused() -> None:
    room = make_room(2)
    with pytest.raises(InvalidValueError, match="of one picture"):
        find_ground(room.depth[1:], room.camera)
