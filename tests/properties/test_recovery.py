# SPDX-License-Identifier: Apache-2.0
"""Shift and focal length do not depend on how affine depth happens to be stated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytic_rooms import make_room, with_angular_error
from openmarigold.geometry import mirror_normals
from openmarigold.reconstruction.ground import find_ground
from openmarigold.reconstruction.recovery import recover
from openmarigold.seeding import generator_for

seeds = st.integers(0, 40)


@settings(max_examples=8, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_affine_changes_of_depth_change_the_shift_alone(seed: int, scale: float, shift: float) -> None:
    room = make_room(seed, size=(48, 64))
    normals = with_angular_error(room.normals, 8.0, generator_for(seed, "errors"), correlation=2.0)
    first = recover(room.depth, normals, invariance="affine")
    second = recover(scale * (room.depth + shift), normals, invariance="affine")
    assert second.camera.fov == pytest.approx(first.camera.fov, abs=1e-3)
    assert second.shift == pytest.approx(scale * (first.shift - shift), rel=1e-4, abs=1e-3 * scale)
    assert second.confidence == pytest.approx(first.confidence, abs=1e-4)


@settings(max_examples=8, deadline=None)
@given(seed=seeds, scale=st.floats(1e-6, 1e6))
def test_scales_of_depth_change_nothing(seed: int, scale: float) -> None:
    room = make_room(seed, size=(48, 64))
    normals = with_angular_error(room.normals, 8.0, generator_for(seed, "errors"), correlation=2.0)
    first = recover(room.depth, normals, invariance="scale")
    second = recover(scale * room.depth, normals, invariance="scale")
    assert second.camera.fov == pytest.approx(first.camera.fov, abs=1e-3)


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_a_mirrored_picture_has_the_same_camera(seed: int) -> None:
    room = make_room(seed, size=(48, 64))
    first = recover(room.depth, room.normals, invariance="affine")
    second = recover(room.depth[:, ::-1], mirror_normals(room.normals), invariance="affine")
    assert second.camera.fov == pytest.approx(first.camera.fov, abs=1e-3)
    assert second.shift == pytest.approx(first.shift, abs=1e-3)


@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_a_turned_picture_has_the_same_camera(seed: int) -> None:
    room = make_room(seed, size=(48, 64))
    first = recover(room.depth, room.normals, invariance="affine")
    turned = np.rot90(room.normals)
    turned = np.stack([-turned[..., 1], turned[..., 0], turned[..., 2]], axis=-1)
    second = recover(np.rot90(room.depth), turned, invariance="affine")
    assert second.camera.size == (64, 48)
    assert second.camera.fov == pytest.approx(first.camera.fov, abs=1e-3)


@settings(max_examples=8, deadline=None)
@given(scale=st.floats(1e-4, 1e4), seed=st.sampled_from([1, 2, 4, 8, 9, 13]))
def test_a_ground_keeps_its_direction_at_any_scale(scale: float, seed: int) -> None:
    room = make_room(seed, size=(48, 64))
    found = find_ground(scale * room.depth, room.camera)
    assert found.distance == pytest.approx(scale * room.height, rel=0.02)
    assert float(found.normal @ room.up) > 0.999
