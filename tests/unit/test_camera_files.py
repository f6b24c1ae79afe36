# SPDX-License-Identifier: Apache-2.0
"""Cameras in files of other tools: hand values of each format, and what is wrong with a wrong one."""

from __future__ import annotations

import functools
import json
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmarigold.camera import Camera
from openmarigold.camera.files import fit_to_photo, read_camera
from openmarigold.errors import InvalidValueError

SIZE = (480, 640)
VALUES = (500.0, 510.0, 320.5, 241.0)  # fx, fy, cx, cy
MATRIX = [[500.0, 0, 320.5], [0, 510.0, 241.0], [0, 0, 1]]
ROS = """\
image_width: 640
image_height: 480
camera_name: left
camera_matrix:
  rows: 3
  cols: 3
  data: [500.0, 0.0, 320.5, 0.0, 510.0,
         241.0, 0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [{distortion}]
projection_matrix:
  data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
"""
ROS_LINES = """\
image_height: 480
image_width: 640
camera_matrix:
  cols: 3
  data:
  - 500.0
  - 0.0
  - 320.5
  - 0.0
  - 510.0
  - 241.0
  - 0.0
  - 0.0
  - 1.0
  rows: 3
"""
KITTI = (
    "P0: {0} 0 {2} 0 0 {1} {3} 0 0 0 1 0\nP2: 500 0 320.5 44.9 0 510 241 0.2 0 0 1 0.003\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
)
KITTI_RAW = (
    "calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\nS_02: 1392 512\nK_02: 9.6e2 0 7e2 0 9.5e2 2e2 0 0 1\n"
    "S_rect_02: 640 480\nP_rect_02: 500 0 320.5 44.9 0 510 241 0.2 0 0 1 0.003\n"
)


def values(camera: Camera) -> tuple[float, float, float, float]:
    return camera.fx, camera.fy, camera.cx, camera.cy


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("k.json", json.dumps(dict(zip(("fx", "fy", "cx", "cy"), VALUES, strict=True))), ""),
        (
            "k.json",
            json.dumps(
                Camera(**dict(zip(("fx", "fy", "cx", "cy"), VALUES, strict=True)), width=640, height=480).to_dict()
            ),
            "",
        ),
        (
            "k.json",
            json.dumps({"camera": {"fx": 500, "fy": 510, "cx": 320.5, "cy": 241, "width": 640, "height": 480}}),
            "",
        ),
        ("k.json", json.dumps(MATRIX), ""),
        ("k.json", json.dumps({"K": MATRIX, "image_width": 640, "image_height": 480}), ""),
        ("k.json", json.dumps({"camera_matrix": {"rows": 3, "data": functools.reduce(operator.iadd, MATRIX, [])}}), ""),
        (
            "k.json",
            json.dumps({"width": 640, "height": 480, "intrinsic_matrix": np.transpose(MATRIX).ravel().tolist()}),
            "",
        ),
        ("k.txt", "500 0 320.5\n0 510 241\n0 0 1\n", ""),
        ("k.txt", "# K\n[[5e2, 0, 320.5],\n [0, 510., 241],\n [0, 0, 1]]", ""),
        ("k.txt", "500,0,320.5,0,0,510,241,0,0,0,1,0", ""),
        ("k.txt", "500 510 320.5 241", ""),
        ("k.txt", "500 0.1 320.5 0 510 241 0 0 1", "skew 0.1 is ignored"),
        ("k.csv", "500;0;320.5;0;510;241;0;0;1", ""),
        ("k.txt", "0.78125 1.0625 0.5015625 0.503125", "normalized values, times the sides of the picture"),
        (
            "k.json",
            '{"fx": 0.78125, "fy": 1.0625, "cx": 0.5015625, "cy": 0.503125}',
            "normalized values, times the sides of the picture",
        ),
        ("left.yaml", ROS.format(distortion="0.0, 0.0, 0.0, 0.0, 0.0"), ""),
        ("left.yaml", ROS.format(distortion="-0.3, 0.1, 0, 0, 0"), "distortion -0.3, 0.1 is ignored"),
        ("left.yml", ROS_LINES, ""),
        ("cameras.txt", "# list\n1 PINHOLE 640 480 500 510 321 241.5\n", ""),
        ("cameras.txt", "7 OPENCV 640 480 500 510 321 241.5 0.01 0 0 0\n", "distortion 0.01 is ignored"),
        ("cameras.txt", "1 PINHOLE 320 240 1 1 1 1\n2 PINHOLE 640 480 500 510 321 241.5\n", ""),
        ("000000.txt", KITTI.format(700, 700, 600, 170), "P2 of the calibration"),
        ("calib_cam_to_cam.txt", KITTI_RAW, "P_rect_02 of the calibration"),
    ],
)
def test_every_format_gives_the_same_camera(tmp_path: Path, name: str, content: str, note: str) -> None:
    (tmp_path / name).write_text(content)
    camera = read_camera(tmp_path / name, SIZE)
    assert values(camera) == pytest.approx(VALUES)
    assert (camera.size, camera.source, camera.note) == (SIZE, "file", note)


@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (4, 4)])
def test_arrays(tmp_path: Path, shape: tuple[int, int]) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = MATRIX
    np.save(tmp_path / "k.npy", matrix[: shape[0], : shape[1]].astype(np.float32))
    assert values(read_camera(tmp_path / "k.npy", SIZE)) == pytest.approx(VALUES)


def test_what_is_left_out_is_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text('{"fx": 500}')
    assert values(read_camera(tmp_path / "k.json", SIZE)) == (500, 500, 319.5, 239.5)
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_PINHOLE 640 480 500 320 240\n")
    assert values(read_camera(tmp_path / "cameras.txt", SIZE)) == (500, 500, 319.5, 239.5)
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_RADIAL 640 480 500 320 240 0\n")
    assert values(read_camera(tmp_path / "cameras.txt", SIZE)) == (500, 500, 319.5, 239.5)


def test_a_camera_of_another_size_of_the_same_shape_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "k.json").write_text('{"fx": 500, "fy": 510, "cx": 320.5, "cy": 241, "width": 640, "height": 480}')
    camera = read_camera(tmp_path / "k.json", (240, 320))
    assert values(camera) == pytest.approx((250, 255, 160, 120.25))  # (c + 0.5) / 2 - 0.5
    assert camera.note == "scaled from 640x480" and camera.size == (240, 320)
    rounded = read_camera(tmp_path / "k.json", (199, 266))  # as tools round sizes
    assert rounded.fx == pytest.approx(500 * 266 / 640)
    for size, message in (
        ((480, 480), "is of a picture of 640x480, and the photo has another shape, 480x480; give the camera of this"),
        ((640, 480), "another shape, 480x640; the photo is turned upright, so turn the camera too"),
    ):
        with pytest.raises(InvalidValueError, match=re.escape(message)):
            read_camera(tmp_path / "k.json", size)
    assert fit_to_photo(camera, (240, 320)) is camera


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("k.json", '{"fx": 0, "fy": 500}', "fx is 0; a focal length is above 0"),
        ("k.json", '{"fx": -500}', "fx is -500; a focal length is above 0"),
        ("k.json", '{"fx": 500, "fy": 0}', "fy is 0; a focal length is above 0"),
        ("k.json", '{"fx": 500, "cx": 3}', "one of cx and cy is missing"),
        ("k.json", '{"fx": "wide"}', "'wide' is not a number"),
        ("k.json", '{"fx": true}', "True is not a number"),
        ("k.json", '{"fx": NaN}', "nan is not a finite number"),
        ("k.json", '{"fx": 1e400}', "inf is not a finite number"),
        ("k.json", '{"fx": 20}', "fx is 20, a field of view of 172.8 degrees for 640 pixels; 1 to 170 are accepted"),
        ("k.json", '{"fx": 100000}', "fx is 100000, a field of view of 0.3667 degrees for 640 pixels"),
        ("k.json", '{"fx": 500, "fy": 5}', "fy is 5, a field of view of 177.6 degrees for 480 pixels"),
        (
            "k.json",
            '{"fx": 500, "cx": 700, "cy": 240}',
            "the center (700, 240) lies outside of the photo, 640x480; if the",
        ),
        ("k.json", '{"fx": 500, "cx": 320, "cy": -9}', "the center (320, -9) lies outside of the photo"),
        ("k.json", '{"fx": 900, "cx": 1999.5, "cy": 1499.5}', "if the file is of another size, state it"),
        (
            "k.json",
            '{"fx": 9e9, "cx": 700, "cy": 2, "width": 640, "height": 480}',
            "outside of the picture that the file",
        ),
        (
            "k.json",
            '{"fx": 250, "cx": 159.5, "cy": 119.5}',
            "is that of a picture of about 320x240, and the photo has 640x",
        ),
        ("k.json", '{"fx": 500, "width": 0, "height": 480}', "width and height are 0 and 480; give pixels"),
        (
            "k.json",
            '{"fx": 500, "width": 320}',
            "width is given without height; give both, or none for the photo's size",
        ),
        (
            "k.json",
            '{"K": [500, 500, 9, 9], "image_height": 480}',
            "image_height is given without image_width; give both",
        ),
        ("k.json", '{"focal": 500}', "has neither fx nor K, k, camera_matrix; give a camera as JSON"),
        ("k.json", '{"fx": 500', "is not valid JSON"),
        ("k.json", "3", "is not a camera; give a camera as JSON"),
        ("k.json", "[[500, 0], [0, 500]]", "fy is 0; a focal length is above 0"),
        (
            "k.json",
            json.dumps(np.transpose(MATRIX).tolist()),
            "the matrix is transposed: cx and cy are in its last row",
        ),
        ("k.json", "[[500, 0, 320], [0, 500, 240], [0, 0, 2]]", "is not a camera matrix; give [[fx, 0, cx]"),
        ("k.txt", "500 0 320\n0 500 240\n", "has 6 numbers; a matrix of 3x3 (or fx, fy, cx, cy) is needed"),
        ("k.txt", "hello world", "is of no known kind; give a camera as JSON"),
        ("k.txt", "", "is of no known kind"),
        ("k.txt", "500 0 320 0 500 nan 0 0 1", "is of no known kind"),
        (
            "cameras.txt",
            "1 OPENCV_FISHEYE 640 480 5 5 3 2 0 0 0 0",
            "COLMAP's model OPENCV_FISHEYE is not a pinhole; undistort",
        ),
        ("cameras.txt", "1 PINHOLE 640 480 500 320 240", "COLMAP's model PINHOLE has 4 parameters, not 3"),
        (
            "cameras.txt",
            "1 PINHOLE 9 9 5 5 4 4\n2 PINHOLE 8 8 5 5 4 4",
            "has 2 cameras, of which none are of 640x480; keep",
        ),
        (
            "cameras.txt",
            "1 PINHOLE 640 480 500 500 320 240\n2 PINHOLE 640 480 600 600 320 240",
            "has 2 cameras, of which 2 are of 640x480; keep the line of this photo's camera",
        ),
        ("k.yaml", "camera_matrix:\n  rows: 3\n", "camera_matrix has 0 numbers under data; 9 are needed"),
        (
            "k.yaml",
            ROS.format(distortion="0").replace("plumb_bob", "equidistant"),
            "distortion_model equidistant is not a pin",
        ),
        ("k.txt", "R_rect_00: 1 0 0 0 1 0 0 0 1\n", "has no line P2, P_rect_02 or K"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InvalidValueError, match=re.escape(message)) as caught:
        read_camera(path, SIZE)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(480, 640), (3000, 4000), (7, 9)])
def test_files_that_are_no_cameras(tmp_path: Path, size: tuple[int, int]) -> None:
    def refused(path: Any, message: str) -> None:
        with pytest.raises(InvalidValueError, match=re.escape(message)):
            read_camera(path, size)

    refused(tmp_path / "missing.json", "does not exist or is not a file; give a camera as JSON")
    refused(tmp_path, "does not exist or is not a file")
    refused("", "the camera file is empty")
    (tmp_path / "k.txt").write_bytes(b"\xff\xfe\x00\x01")
    refused(tmp_path / "k.txt", "cannot be read as a camera")
    (tmp_path / "k.npy").write_bytes(b"\x93NUMPY\x01\x00junk")
    refused(tmp_path / "k.npy", "cannot be read as a camera")
    np.save(tmp_path / "k.npy", np.array([{"fx": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "k.npy", "cannot be read as a camera")
    (tmp_path / "k.json").write_bytes(b" " * 2**21)
    refused(tmp_path / "k.json", "is too large for a camera")
