# SPDX-License-Identifier: Apache-2.0
"""Rooms of planes and spheres with known cameras: exact depth and normals, ray by ray, and errors to add to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from openmarigold.camera import Camera
from openmarigold.geometry import angles_between
from openmarigold.seeding import generator_for

FLOOR, CEILING, FRONT, LEFT, RIGHT, BACK, SPHERES = range(7)


@dataclass(frozen=True)
class Room:
    """What a camera sees in a room: planar depth [m], normals (frame "rub"), the surface of each pixel."""

    camera: Camera
    depth: np.ndarray
    normals: np.ndarray
    surface: np.ndarray
    height: float
    up: np.ndarray
    """Of the room, in the camera's axes (OpenCV)."""


def make_room(
    seed: int, *, size: tuple[int, int] = (96, 128), fov: float | None = None, height: float | None = None
) -> Room:
    """A room with four spheres; the camera's height above the floor, turn, tilt, roll and field of view vary."""
    random = generator_for(seed, "analytic room")
    drawn_fov = random.uniform(44, 85)
    camera = Camera.from_fov(size, drawn_fov if fov is None else fov, source="file")
    drawn_height = random.uniform(1.2, 1.8)
    height = drawn_height if height is None else height
    ceiling, front = random.uniform(2.4, 3.0) - height, random.uniform(3.5, 6.5)
    left, right, back = random.uniform(1.0, 3.0), random.uniform(1.0, 3.0), random.uniform(0.5, 2.0)
    rotation = _rotation(random.uniform(-0.5, 0.5), random.uniform(-0.05, 0.3), random.uniform(-0.05, 0.05))
    # In the room's axes: x right, y down, z forward, the camera at the origin.
    rays = camera.rays().astype(np.float64) @ rotation.T
    planes = [
        ((0, 1, 0), height),
        ((0, -1, 0), ceiling),
        ((0, 0, 1), front),
        ((-1, 0, 0), left),
        ((1, 0, 0), right),
        ((0, 0, -1), back),
    ]
    depth = np.full(size, np.inf)
    outward = np.zeros((*size, 3))
    surface = np.zeros(size, dtype=int)
    for index, (direction, distance) in enumerate(planes):
        towards = rays @ np.array(direction, dtype=float)
        with np.errstate(divide="ignore"):
            reach = np.where(towards > 0, distance / towards, np.inf)
        nearer = reach < depth
        depth[nearer], outward[nearer], surface[nearer] = reach[nearer], -np.array(direction, dtype=float), index
    for index in range(4):
        radius = random.uniform(0.25, 0.6)
        center = np.array(
            [random.uniform(-left, right) * 0.7, height - radius, random.uniform(1.8, max(front - radius, 2.0))]
        )
        a, b, c = (rays**2).sum(axis=-1), rays @ center, center @ center - radius**2
        under = b * b - a * c
        reach = np.where(under > 0, (b - np.sqrt(np.maximum(under, 0))) / a, np.inf)
        nearer = (reach > 0.2) & (reach < depth)
        depth[nearer], surface[nearer] = reach[nearer], SPHERES + index
        outward[nearer] = (rays[nearer] * reach[nearer][:, None] - center) / radius
    normals = (outward @ rotation) * np.array([1.0, -1.0, -1.0])
    up = np.array([0.0, -1.0, 0.0]) @ rotation
    return Room(camera=camera, depth=depth, normals=normals, surface=surface, height=height, up=up)


def _rotation(turn: float, tilt: float, roll: float) -> np.ndarray:
    """From the camera's axes to the room's; a positive tilt looks down."""
    c, s = math.cos(turn), math.sin(turn)
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = math.cos(tilt), math.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    c, s = math.cos(roll), math.sin(roll)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def smooth_noise(random: np.random.Generator, size: tuple[int, int], channels: int, correlation: float) -> np.ndarray:
    """Standard normal fields [h w c] whose values are correlated over about `correlation` pixels (Gaussian blur)."""
    noise = random.standard_normal((*size, channels))
    reach = math.ceil(3 * correlation)
    if correlation > 0:
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / correlation) ** 2)
        for axis in (0, 1):
            padded = np.pad(noise, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="reflect")
            noise = np.zeros_like(noise)
            for shift, weight in enumerate(kernel):
                noise += weight * np.take(padded, np.arange(shift, shift + noise.shape[axis]), axis=axis)
    return noise / noise.std()


def with_angular_error(
    normals: np.ndarray, degrees: float, random: np.random.Generator, *, correlation: float = 4.0
) -> np.ndarray:
    """Normals with smooth errors of a mean angle [deg]."""
    if degrees == 0:
        return normals
    noise = smooth_noise(random, normals.shape[:2], 3, correlation)
    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        changed = normals + middle * noise
        changed /= np.linalg.norm(changed, axis=-1, keepdims=True)
        if angles_between(changed, normals, axis=-1).mean() < degrees:
            low = middle
        else:
            high = middle
    return changed
