# SPDX-License-Identifier: Apache-2.0
"""Shift and focal length from depth and normals, against rooms with known cameras."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analytic_rooms import SPHERES, Room, make_room, with_angular_error
from openmarigold.camera import ASSUMED_FOV, Camera
from openmarigold.errors import InvalidValueError
from openmarigold.reconstruction.recovery import Recovered, recover
from openmarigold.seeding import generator_for

SCALE, SHIFT = 0.37, -0.8
ROOMS = [make_room(seed) for seed in range(12)]


def recovered(room: Room, normals: np.ndarray | None = None, **options: object) -> Recovered:
    return recover(
        SCALE * room.depth + SHIFT, room.normals if normals is None else normals, invariance="affine", **options
    )


def noisy(seed: int, room: Room) -> np.ndarray:
    return with_angular_error(room.normals, 10.0, generator_for(seed, "errors"))


def walls_of(room: Room, found: Recovered) -> tuple[float, float]:
    """The largest distance of walls from their planes (root mean square, by extent), and from right angles [deg]."""
    points = found.camera.unproject(SCALE * room.depth + SHIFT + found.shift).astype(np.float64)
    normals, flat = {}, []
    for wall in range(SPHERES):
        seen = points[room.surface == wall]
        if len(seen) >= 300:
            centered = seen - seen.mean(axis=0)
            axes = np.linalg.svd(centered, full_matrices=False)[2]
            along = centered @ axes.T
            flat.append(float(np.sqrt(np.mean(along[:, 2] ** 2)) / np.ptp(along[:, 0])))
            normals[wall] = (axes[2], room.normals[room.surface == wall][0])
    angles = [
        abs(90 - math.degrees(math.acos(abs(a @ b))))
        for a, true_a in normals.values()
        for b, true_b in normals.values()
        if abs(true_a @ true_b) < 0.5
    ]
    return max(flat), max(angles, default=0.0)


@pytest.mark.parametrize("room", ROOMS[:6])
def test_without_errors_shift_and_focal_length_are_exact(room: Room) -> None:
    found = recovered(room)
    nearest = SCALE * room.depth.min()
    assert nearest + SHIFT + found.shift == pytest.approx(nearest, rel=0.005)
    assert found.camera.fov == pytest.approx(room.camera.fov, abs=0.1)
    assert found.camera.source == "estimated"
    assert found.is_reliable
    assert found.confidence > 0.8
    assert found.cost < 1.0


@pytest.mark.parametrize("room", ROOMS[:6])
def test_walls_are_flat_and_upright_after_recovery(room: Room) -> None:
    flat, angle = walls_of(room, recovered(room))
    assert flat < 0.0005
    assert angle < 0.2


def test_normals_that_are_off_by_ten_degrees() -> None:
    found = [recovered(room, noisy(seed, room)) for seed, room in enumerate(ROOMS)]
    shift = [
        abs((SHIFT + result.shift) / (SCALE * room.depth.min())) for room, result in zip(ROOMS, found, strict=True)
    ]
    fov = [abs(result.camera.fov / room.camera.fov - 1) for room, result in zip(ROOMS, found, strict=True)]
    walls = [walls_of(room, result) for room, result in zip(ROOMS, found, strict=True)]
    assert np.median(shift) <= 0.10
    assert np.median(fov) <= 0.065
    assert np.median([flat for flat, _ in walls]) <= 0.005
    assert np.median([angle for _, angle in walls]) <= 2.0


def test_a_known_camera_is_kept_and_the_shift_found() -> None:
    room = ROOMS[1]
    found = recovered(room, noisy(1, room), camera=room.camera)
    assert found.camera is room.camera
    assert found.fov_spread == 0
    assert found.shift == pytest.approx(-SHIFT, abs=0.1 * SCALE * room.depth.min())


def test_depth_up_to_scale_needs_the_focal_length_alone() -> None:
    room = ROOMS[2]
    found = recover(5 * room.depth, room.normals, invariance="scale")
    assert found.shift == 0
    assert found.camera.fov == pytest.approx(room.camera.fov, abs=0.1)


def test_nothing_unknown_is_certain() -> None:
    room = ROOMS[2]
    found = recover(room.depth, room.normals, invariance="scale", camera=room.camera)
    assert (found.camera, found.shift, found.confidence) == (room.camera, 0.0, 1.0)


def test_other_pixels_and_principal_points_of_a_known_camera_count() -> None:
    """Every second row is left out: fy is half of fx."""
    room = make_room(5, size=(192, 128))
    camera = Camera(
        fx=room.camera.fx, fy=room.camera.fy / 2, cx=room.camera.cx, cy=room.camera.cy / 2, width=128, height=96
    )
    found = recover(SCALE * room.depth[::2] + SHIFT, room.normals[::2], invariance="affine", camera=camera)
    assert found.shift == pytest.approx(-SHIFT, rel=0.01)


def test_a_part_of_a_picture_with_its_camera() -> None:
    room = ROOMS[4]
    camera = room.camera.cropped(top=20, left=40, size=(70, 80))
    part = (slice(20, 90), slice(40, 120))
    found = recover(SCALE * room.depth[part] + SHIFT, room.normals[part], invariance="affine", camera=camera)
    assert found.shift == pytest.approx(-SHIFT, rel=0.01)


@pytest.mark.parametrize("size", [(48, 64), (130, 90), (600, 1100)])
def test_pictures_of_any_size_and_direction(size: tuple[int, int]) -> None:
    room = make_room(3, size=size)
    found = recovered(room)
    assert found.camera.size == size
    assert found.camera.fov == pytest.approx(room.camera.fov, abs=1.0)


def test_unknown_pixels_do_not_count() -> None:
    room = ROOMS[3]
    depth, normals = SCALE * room.depth + SHIFT, room.normals.copy()
    mask = np.ones(depth.shape, dtype=bool)
    depth[10:20, 10:30], depth[30:35], normals[60:70, 80:90], mask[:9] = np.nan, np.inf, 0.0, False
    depth[:9] = 1e6
    found = recover(depth, normals, invariance="affine", valid_mask=mask)
    assert found.camera.fov == pytest.approx(room.camera.fov, abs=0.5)


def test_a_wall_that_faces_the_camera_tells_nothing() -> None:
    depth = np.full((96, 128), 2.0)
    normals = np.broadcast_to([0.0, 0.0, 1.0], (96, 128, 3))
    for invariance in ("affine", "scale"):
        found = recover(depth, normals, invariance=invariance)
        assert not found.is_reliable
        assert found.camera.fov == pytest.approx(ASSUMED_FOV)
        assert found.camera.source == "assumed"
        assert found.confidence == pytest.approx(0.0, abs=0.05)
        assert found.note
    assert recover(depth, normals, invariance="affine").shift + 2.0 > 0


def test_errors_that_are_alike_over_the_picture_make_less_certain() -> None:
    room = ROOMS[2]
    near, far = (
        recovered(room, with_angular_error(room.normals, 10.0, generator_for(2, "errors"), correlation=pixels))
        for pixels in (2.0, 16.0)
    )
    assert far.fov_spread > 1.5 * near.fov_spread
    assert far.confidence < near.confidence


def test_normals_of_another_frame_do_not_fit() -> None:
    room = ROOMS[0]
    assert recovered(room, room.normals * np.array([-1.0, 1.0, 1.0])).cost > 5 * max(1.0, recovered(room).cost)


def test_too_few_pixels() -> None:
    room = ROOMS[0]
    mask = np.zeros(room.depth.shape, dtype=bool)
    mask[40:45, 40:45] = True
    found = recovered(room, valid_mask=mask)
    assert not found.is_reliable
    assert "too few" in found.note


def test_what_is_refused() -> None:
    room = ROOMS[0]
    with pytest.raises(InvalidValueError, match=r"camera\.resized"):
        recovered(room, camera=room.camera.resized((48, 64)))
    with pytest.raises(InvalidValueError, match="3x3"):
        recover(room.depth[:2], room.normals[:2], invariance="scale")
