# SPDX-License-Identifier: Apache-2.0
"""Frames of normals, and normals of exact depth, against analytic scenes: planes, a box, a ball before a wall."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.errors import InvalidValueError
from openmarigold.geometry import NORMAL_FRAMES, convert_frame, mirror_normals, normals_from_depth
from openmarigold.images.png import read_png, save_png
from openmarigold.modalities.normals import NORMALS, texture, to_uint16

HEIGHT, WIDTH, FOCAL = 72, 96, 110.0


def rays(center: tuple[float, float] = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)) -> np.ndarray:
    """Right, up, backward through the pixels; planar depth is their multiple."""
    x = (np.arange(WIDTH) - center[0]) / FOCAL
    y = (np.arange(HEIGHT) - center[1]) / FOCAL
    return np.stack([*np.meshgrid(x, -y), -np.ones((HEIGHT, WIDTH))], axis=-1)


def plane(normal: tuple[float, float, float], distance: float, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a plane so far from the camera, inf where it is not seen, and its unit normal."""
    unit = np.array(normal) / np.linalg.norm(normal)
    along = directions @ unit
    return np.where(along < 0, -distance / np.where(along < 0, along, -1), np.inf), unit


def box() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A room from within: depth, normals, and which of its faces each pixel sees."""
    faces = [((0, 1, 0), 1.0), ((0, -1, 0), 1.1), ((1, 0, 0), 1.3), ((-1, 0, 0), 1.2), ((0, 0, 1), 4.0)]
    parts = [plane(normal, distance, rays()) for normal, distance in faces]
    face = np.argmin([depth for depth, _ in parts], axis=0)
    return np.min([depth for depth, _ in parts], axis=0), np.array([unit for _, unit in parts])[face], face


def ball_before_wall() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ball 2 m away before a wall at 5 m: depth, normals, and where the ball is."""
    center, radius, directions = np.array([0.1, 0.05, -2.0]), 0.5, rays()
    along, square = directions @ center, (directions**2).sum(axis=-1)
    root = along**2 - square * (center @ center - radius**2)
    hit = root > 0
    depth = np.where(hit, (along - np.sqrt(np.maximum(root, 0))) / square, 5.0)
    normals = np.where(hit[..., None], (directions * depth[..., None] - center) / radius, [0.0, 0.0, 1.0])
    return depth, normals, hit


def angles(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    found, truth = np.broadcast_arrays(found.astype(np.float64), truth.astype(np.float64))
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(found, truth), axis=-1), (found * truth).sum(axis=-1)))


# --- Frames


@pytest.mark.parametrize(
    ("frame", "wall", "floor", "left"),  # a wall that is faced, a floor, the side of a box that looks to the left
    [
        ("rub", (0, 0, 1), (0, 1, 0), (-1, 0, 0)),
        ("lub", (0, 0, 1), (0, 1, 0), (1, 0, 0)),
        ("opencv", (0, 0, -1), (0, -1, 0), (-1, 0, 0)),
    ],
)
def test_known_surfaces_in_every_frame(frame: str, wall: tuple, floor: tuple, left: tuple) -> None:
    inside = np.array([[(0, 0, 1), (0, 1, 0), (-1, 0, 0)]], dtype=np.float32)
    np.testing.assert_array_equal(convert_frame(inside, "rub", frame, axis=-1), [[wall, floor, left]])


def test_conversions_are_exact() -> None:
    vectors = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    for first in NORMAL_FRAMES:
        for second in NORMAL_FRAMES:
            there = convert_frame(vectors, first, second)
            np.testing.assert_array_equal(convert_frame(there, second, first), vectors)
            assert (there.dtype, first == second) == (vectors.dtype, bool((there == vectors).all()))
    with pytest.raises(InvalidValueError, match="normal_frame='xyz' is not known; use one of rub, lub, opencv"):
        convert_frame(vectors, "rub", "xyz")


def test_a_mirrored_photo_has_mirrored_normals() -> None:
    depth, normals, _ = box()
    found, _ = normals_from_depth(depth[:, ::-1], focal=FOCAL)
    expected, smooth = normals_from_depth(depth, focal=FOCAL)
    np.testing.assert_allclose(found, mirror_normals(expected), atol=1e-6)
    np.testing.assert_array_equal(mirror_normals(normals)[:, ::-1] * [-1, 1, 1], normals)
    assert NORMALS.mirror({"normals": normals})["normals"][0, 0, 0] == -normals[0, -1, 0]
    assert smooth.mean() > 0.9


# --- Depth


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.5, 0.2, 0.8), (-0.9, 0.1, 0.4), (0, 1, 0.02)])
@pytest.mark.parametrize("center", [None, (30.0, 50.5)])
def test_planes_are_exact(normal: tuple[float, float, float], center: tuple[float, float] | None) -> None:
    depth, unit = plane(normal, 1.5, rays() if center is None else rays(center))
    found, trusted = normals_from_depth(depth, focal=FOCAL, center=center)
    seen = np.isfinite(depth)
    seen &= np.pad(seen[1:-1] & seen[:-2] & seen[2:], ((1, 1), (0, 0)))
    assert seen.mean() > 0.25
    assert angles(found[seen], unit).max() < 1e-2  # float32
    assert trusted[2:-2, 2:-2][np.isfinite(depth)[2:-2, 2:-2] & (depth < 20)[2:-2, 2:-2]].mean() > 0.95
    scaled, _ = normals_from_depth(7 * depth, focal=FOCAL, center=center)
    np.testing.assert_allclose(scaled, found, atol=1e-5)


def test_a_box_is_exact_but_for_its_edges() -> None:
    depth, normals, face = box()
    found, _ = normals_from_depth(depth, focal=FOCAL)
    inside = np.ones_like(face, dtype=bool)
    for axis in (0, 1):
        for shift in (-1, 1):
            inside &= np.roll(face, shift, axis) == face
    error = angles(found, normals)
    assert error[inside].max() < 0.1
    assert error.mean() < 3  # also with the pixels of the edges


def test_a_ball_before_a_wall() -> None:
    depth, normals, ball = ball_before_wall()
    found, trusted = normals_from_depth(depth, focal=FOCAL)
    error = angles(found, normals)
    rim = np.zeros_like(ball)
    for axis in (0, 1):
        for shift in (-1, 1):
            rim |= np.roll(ball, shift, axis) != ball
    assert rim.sum() > 100
    assert error[~rim].mean() < 0.5 and error[~rim & ~ball].max() < 0.1
    # Pixels at the contour use their own side: the wall behind bends none of the ball's by much, and none of its own.
    assert error[rim & ~ball].max() < 0.1
    assert np.median(error[rim & ball]) < 10
    assert (found[rim & ball] * normals[rim & ball]).sum(axis=-1).min() > 0.5
    assert trusted[~rim].all()


# --- Pictures


def sphere_of_normals() -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 50, 3))
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("green", ["gl", "dx"])
def test_pictures_keep_directions(green: str, tmp_path: Path) -> None:
    normals = sphere_of_normals()
    flip = np.array([1, -1 if green == "dx" else 1, 1])
    with (tmp_path / "a.png").open("wb") as file:
        save_png(file, to_uint16(normals, green=green), {})
    levels = read_png((tmp_path / "a.png").read_bytes())
    found = (levels / 32767.5 - 1) * flip
    assert angles(found / np.linalg.norm(found, axis=2, keepdims=True), normals).max() < 0.002
    coarse = io.BytesIO()
    Image.fromarray(texture(normals, green=green)).save(coarse, "PNG")
    found = (read_png(coarse.getvalue()) / 127.5 - 1) * flip
    assert angles(found / np.linalg.norm(found, axis=2, keepdims=True), normals).max() < 0.45
    assert texture(np.array([[[0, 0, 1]]], np.float32)).tolist() == [[[128, 128, 255]]]
