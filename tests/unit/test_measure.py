# SPDX-License-Identifier: Apache-2.0
"""Lengths between pixels, on walls whose sizes are known."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError
from openmarigold.reconstruction.measure import depth_at, length_between

CAMERA = Camera.from_fov((60, 80), 70.0)


def wall(normal: tuple[float, float, float], distance: float) -> np.ndarray:
    """Depth of the plane normal · point = distance."""
    return distance / (CAMERA.rays().astype(np.float64) @ np.array(normal))


def test_a_line_across_a_wall_that_faces_the_camera() -> None:
    depth = np.full((60, 80), 2.0)
    found = length_between(depth, CAMERA, (10, 30), (60, 30))
    assert found.value == pytest.approx(50 * 2.0 / CAMERA.fx)
    assert found.low is None and found.high is None


def test_a_line_on_a_slanted_wall() -> None:
    depth = wall((0.5, 0.1, 0.8), 1.7)
    pixels = np.array([[12.0, 21.0], [62.0, 40.0]])
    at = 1.7 / (CAMERA.unproject_at(pixels, np.ones(2)) @ np.array((0.5, 0.1, 0.8)))
    ends = CAMERA.unproject_at(pixels, at)
    found = length_between(depth, CAMERA, (12, 21), (62, 40))
    assert found.value == pytest.approx(float(np.linalg.norm(ends[0] - ends[1])), rel=1e-6)
    np.testing.assert_allclose(found.ends, ends, rtol=1e-6)


def test_a_place_between_two_surfaces_is_on_one_of_them() -> None:
    depth = np.full((60, 80), 2.0)
    depth[:, 41:] = 6.0
    assert (depth_at(depth, (40.4, 3.0)), depth_at(depth, (40.6, 3.0))) == (2.0, 6.0)


def test_a_camera_of_another_picture_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="the depth map is 3x4 and the camera's picture 60x80"):
        length_between(np.ones((3, 4)), CAMERA, (0, 0), (1, 1))


def test_the_interval_of_a_line_along_the_view_adds_the_errors_of_both_ends() -> None:
    depth = np.full((61, 81), 2.0)
    depth[:, 41:] = 6.0
    camera = Camera.from_focal((61, 81), 1e5)  # all rays parallel
    found = length_between(depth, camera, (40, 30), (41, 30), relative_90=0.05)
    assert found.low is not None and found.high is not None
    half = 0.05 * np.hypot(2.0, 6.0)
    assert found.value - found.low == pytest.approx(half, rel=0.08)
    assert found.high - found.value == pytest.approx(half, rel=0.08)


def test_the_interval_grows_with_the_error_and_holds_the_value() -> None:
    depth = wall((0.5, 0.1, 0.8), 1.7)
    spans = []
    for error in (0.01, 0.05, 0.2):
        found = length_between(depth, CAMERA, (10, 20), (60, 40), relative_90=error)
        assert found.low is not None and found.high is not None
        assert found.low <= found.value <= found.high
        spans.append(found.high - found.low)
    assert spans == sorted(spans)


def test_the_same_pixels_give_the_same_interval() -> None:
    depth = wall((0.5, 0.1, 0.8), 1.7)
    first, second = (length_between(depth, CAMERA, (10, 20), (60, 40), relative_90=0.1) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("pixel", [(-1.0, 3.0), (80.0, 3.0), (3.0, 60.0), (float("nan"), 3.0)])
def test_a_pixel_outside_is_refused(pixel: tuple[float, float]) -> None:
    with pytest.raises(
        InvalidValueError, match=r"outside of the picture of 80x60; give x from 0 to 79 and y from 0 to"
    ):
        depth_at(np.ones((60, 80)), pixel)


def test_pixels_without_depth_are_left_out_or_refused() -> None:
    depth = np.full((60, 80), 2.0)
    depth[10, 10] = np.nan
    assert depth_at(depth, (10.6, 10.0)) == pytest.approx(2.0)
    with pytest.raises(InvalidValueError, match="no depth is known at pixel 10,10"):
        depth_at(depth, (10, 10))
