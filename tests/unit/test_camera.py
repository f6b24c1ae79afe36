# SPDX-License-Identifier: Apache-2.0
"""The pinhole camera, against projections by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError

CAMERA = Camera(fx=50.0, fy=40.0, cx=21.5, cy=13.0, width=40, height=30)
POINTS = np.array([[0.3, -0.2, 2.0], [-0.5, 0.4, 3.0], [0.0, 0.0, 1.0]])


def test_pixels_of_points_follow_the_textbook() -> None:
    x, y = CAMERA.project(POINTS)[0]
    assert (x, y) == pytest.approx((50 * 0.3 / 2 + 21.5, 40 * -0.2 / 2 + 13.0))


def test_points_of_pixels_are_the_inverse() -> None:
    found = CAMERA.unproject_at(CAMERA.project(POINTS), POINTS[:, 2])
    np.testing.assert_allclose(found, POINTS, atol=1e-12)


def test_a_map_is_unprojected_pixel_by_pixel() -> None:
    depth = np.linspace(1, 2, 30 * 40).reshape(30, 40)
    points = CAMERA.unproject(depth)
    np.testing.assert_allclose(CAMERA.project(points.reshape(-1, 3))[7 * 40 + 9], (9, 7), atol=1e-4)
    assert points[7, 9, 2] == pytest.approx(depth[7, 9])


def test_a_point_behind_the_camera_has_no_pixel() -> None:
    assert np.isnan(CAMERA.project(np.array([[0.0, 0.0, -1.0]]))).all()


def test_distance_along_the_ray() -> None:
    assert CAMERA.ray_lengths()[0, 0] == pytest.approx(math.sqrt(1 + (21.5 / 50) ** 2 + (13 / 40) ** 2), rel=1e-6)


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_turning_the_picture_turns_the_camera(turns: int) -> None:
    picture = np.zeros((30, 40))
    picture[7, 9] = 1
    turned = CAMERA.turned(turns)
    (row,), (column,) = np.nonzero(np.rot90(picture, turns))
    assert turned.size == np.rot90(picture, turns).shape
    # The ray of the pixel, turned about the optical axis.
    ray = CAMERA.rays()[7, 9, :2]
    for _ in range(turns):
        ray = np.array([ray[1], -ray[0]])
    np.testing.assert_allclose(turned.rays()[row, column, :2], ray, atol=1e-6)


def test_mirroring_negates_x() -> None:
    np.testing.assert_allclose(CAMERA.mirrored().rays()[7, 40 - 1 - 9] * [-1, 1, 1], CAMERA.rays()[7, 9], atol=1e-6)


def test_a_crop_keeps_rays() -> None:
    part = CAMERA.cropped(top=4, left=6, size=(10, 12))
    np.testing.assert_allclose(part.rays(), CAMERA.rays()[4:14, 6:18], atol=1e-6)


def test_resizing_keeps_the_edges_of_the_picture() -> None:
    twice = CAMERA.resized((60, 80))
    # The left edge lies half a pixel left of the first center.
    assert (-0.5 - twice.cx) / twice.fx == pytest.approx((-0.5 - CAMERA.cx) / CAMERA.fx)
    assert (79.5 - twice.cx) / twice.fx == pytest.approx((39.5 - CAMERA.cx) / CAMERA.fx)
    assert twice.fov == pytest.approx(CAMERA.fov)


def test_a_field_of_view_is_along_the_longer_side() -> None:
    assert Camera.from_fov((30, 40), 90.0).fx == pytest.approx(20.0)
    assert Camera.from_fov((40, 30), 90.0).fy == pytest.approx(20.0)
    assert Camera.from_fov((40, 30), 71.0).fov == pytest.approx(71.0)


def test_records_round_trip() -> None:
    camera = Camera.from_focal((30, 40), 33.25, source="exif", note="35 mm")
    assert Camera.from_dict(camera.to_dict()) == camera
    assert Camera.assumed((30, 40)).to_dict()["source"] == "assumed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fx": 0.0}, "fx=0.0 is not accepted; give a focal length in pixels, above 0"),
        ({"fy": float("nan")}, "fy=nan"),
        ({"cx": float("inf")}, "cx=inf"),
        ({"width": 0}, "width=0"),
        ({"source": "guess"}, "source='guess' is not known"),
    ],
)
def test_values_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message.replace("(", r"\(")):
        Camera.from_dict({**CAMERA.to_dict(), **changes})


def test_a_record_must_be_whole() -> None:
    with pytest.raises(InvalidValueError, match="cy is missing"):
        Camera.from_dict({"fx": 1, "fy": 1, "cx": 1, "width": 2, "height": 2})


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="3x4 and the camera's picture 30x40"):
        CAMERA.unproject(np.ones((3, 4)))


@pytest.mark.parametrize("value", [math.inf, math.nan, 10**400, None, "wide", [640]])
@pytest.mark.parametrize("name", ["fx", "cx", "width", "height"])
def test_values_of_strangers_give_one_error(name: str, value: object) -> None:
    record = Camera.from_focal((480, 640), 500.0).to_dict() | {name: value}
    with pytest.raises(InvalidValueError, match=f"camera: {name}=.* is not accepted"):
        Camera.from_dict(record)
