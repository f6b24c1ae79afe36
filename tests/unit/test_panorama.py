# SPDX-License-Identifier: Apache-2.0
"""Views of panoramas, against panoramas whose color is a function of the direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openmarigold.errors import InvalidValueError
from openmarigold.reconstruction.panorama import cut_panorama


def directions(height: int) -> np.ndarray:
    """Unit vectors (x right, y down, z forward in the panorama's middle) of its pixels."""
    longitude = ((np.arange(2 * height) + 0.5) / (2 * height) - 0.5) * 2 * np.pi
    latitude = ((np.arange(height) + 0.5) / height - 0.5) * np.pi
    around, down = np.meshgrid(longitude, latitude)
    return np.stack([np.sin(around) * np.cos(down), np.sin(down), np.cos(around) * np.cos(down)], axis=-1)


def colors(vectors: np.ndarray) -> np.ndarray:
    return np.rint((vectors + 1) * 127.5).astype(np.uint8)


PANORAMA = colors(directions(256))


@pytest.mark.parametrize("pitch", [-60.0, 0.0, 30.0])
@pytest.mark.parametrize("fov", [60.0, 90.0])
def test_every_ray_of_a_view_sees_its_direction(pitch: float, fov: float) -> None:
    for view in cut_panorama(PANORAMA, yaws=(0.0, 45.0, 180.0, -100.0), pitch=pitch, fov=fov):
        rays = view.camera.rays() @ view.rotation.T
        expected = colors(rays / np.linalg.norm(rays, axis=-1, keepdims=True))
        assert np.abs(view.rgb.astype(int) - expected).max() <= 2
        assert view.camera.fov == pytest.approx(fov)


def test_views_turn_to_the_right_and_upwards() -> None:
    ahead, right = cut_panorama(PANORAMA, yaws=(0.0, 90.0))
    middle = ahead.camera.height // 2
    np.testing.assert_allclose(ahead.rgb[middle, middle], (128, 128, 255), atol=3)
    np.testing.assert_allclose(right.rgb[middle, middle], (255, 128, 128), atol=3)
    np.testing.assert_allclose(np.array([0, 0, 1]) @ right.rotation.T, (1, 0, 0), atol=1e-12)
    (up,) = cut_panorama(PANORAMA, yaws=(0.0,), pitch=90.0)
    np.testing.assert_allclose(up.rgb[middle, middle], (128, 0, 128), atol=3)
    # Neighbors at 90 degrees share an edge: the last column of one continues in the first of the next.
    assert np.abs(ahead.rgb[:, -1].astype(int) - right.rgb[:, 0]).max() < 6


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((100, 300), {}, "the picture is 300x100 pixels; a whole equirectangular panorama is twice as wide as high"),
        ((64, 128), {"fov": 150.0}, "give a fov up to 120"),
        ((64, 128), {"pitch": 100.0}, "a pitch of -90 to 90"),
        ((64, 128), {"size": 0}, "size=0 is not accepted"),
        ((64, 128), {"fov": 0.0}, "fov=0.0 is not accepted"),
    ],
)
def test_what_is_no_whole_panorama_is_refused(size: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        cut_panorama(np.zeros((*size, 3), dtype=np.uint8), **options)


def test_tiny_panoramas_have_views() -> None:
    (view,) = cut_panorama(np.full((1, 2, 3), 7, dtype=np.uint8), yaws=(30.0,), size=5)
    assert view.rgb.shape == (5, 5, 3) and (view.rgb == 7).all()
