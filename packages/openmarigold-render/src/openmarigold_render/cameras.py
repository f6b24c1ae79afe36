# SPDX-License-Identifier: Apache-2.0
"""Which views are worth rendering: measured on a coarse grid of rays before, and on depth and colors after."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from openmarigold_render.rays import Caster, camera_rays
from openmarigold_render.scene import Camera, ViewRules

_COLUMNS, _ROWS = 22, 16
_NEAR_SPHERE = 48
_MAX_BACK_FACES = 0.12

# What a depth map and a picture must have, whatever the scene.
MIN_VALID = 0.35
MAX_DARK, MAX_BRIGHT = 0.33, 0.25
MEAN_RANGE = (40.0, 215.0)
MIN_CONTRAST = 14.0


def rejection(caster: Caster, camera: Camera, rules: ViewRules, accepted: Sequence[Camera] = ()) -> str | None:
    """Why a view is not worth rendering, in few words; None where it is."""
    for other in accepted:
        apart = float(np.linalg.norm(camera.position - other.position))
        if apart < rules.min_distance and float(camera.direction @ other.direction) > 0.8:
            return "same view"
    if clearance(caster, camera.position[None], _NEAR_SPHERE)[0] < 0.5 * rules.min_depth:
        return "too near"
    rays = camera_rays(camera, _COLUMNS, _ROWS)
    hits = caster.cast(camera.position[None], rays)
    if hits.hit.mean() < rules.min_hits:
        return "few surfaces"
    depth = hits.distance[hits.hit]
    normals, points = hits.normal[hits.hit], camera.position + rays[hits.hit] * depth[:, None]
    if (np.einsum("nc,nc->n", normals, rays[hits.hit]) > 0).mean() > _MAX_BACK_FACES:
        return "inside something"
    if depth.min() < rules.min_depth:
        return "too near"
    if not rules.median_depth[0] <= np.median(depth) <= rules.median_depth[1]:
        return "median depth"
    if np.log(depth).std() < rules.min_log_spread:
        return "flat"
    near, share = rules.near
    if (depth < near).mean() > share:
        return "crowded"
    counts = _plane_counts(normals, points)
    if counts.max() > rules.max_plane * len(rays):
        return "one plane"
    if len(counts) < rules.min_planes:
        return "few planes"
    return None


def depth_rejection(depth: Float[np.ndarray, "h w"], rules: ViewRules) -> str | None:
    """Why a whole depth map [m] is not kept; None where it is."""
    valid = depth[depth > 0]
    if valid.size < MIN_VALID * depth.size:
        return "few surfaces"
    if float(np.quantile(valid, 0.01)) < 0.6 * rules.min_depth:
        return "too near"
    if float(np.log(valid).std()) < 0.8 * rules.min_log_spread:
        return "flat"
    return None


def picture_rejection(rgb: UInt8[np.ndarray, "h w 3"]) -> str | None:
    """Why a picture is not kept; None where it is."""
    gray = rgb.astype(np.float32) @ np.array((0.299, 0.587, 0.114), dtype=np.float32)
    if (gray < 10).mean() > MAX_DARK or gray.mean() < MEAN_RANGE[0]:
        return "dark"
    if (gray > 248).mean() > MAX_BRIGHT or gray.mean() > MEAN_RANGE[1]:
        return "bright"
    if gray.std() < MIN_CONTRAST:
        return "low contrast"
    return None


def _plane_counts(normals: Float[np.ndarray, "n 3"], points: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """How many of the points lie on each plane, told apart by normal and offset in steps of 1/8 m."""
    rounded = np.round(normals, 1)
    offset = np.round(8.0 * np.einsum("nc,nc->n", normals, points))
    return np.unique(np.column_stack((rounded, offset)) + 0.0, axis=0, return_counts=True)[1]


def clearance(caster: Caster, positions: Float[np.ndarray, "n 3"], num_rays: int) -> Float[np.ndarray, " n"]:
    """Distance of the nearest surface that `num_rays` rays, spread over all directions, meet from each place [m]."""
    number = np.arange(num_rays) + 0.5
    height = 1.0 - 2.0 * number / num_rays
    angle = math.pi * (1.0 + math.sqrt(5.0)) * number
    ring = np.sqrt(1.0 - height**2)
    directions = np.stack((ring * np.cos(angle), ring * np.sin(angle), height), axis=1)
    distance = caster.cast(np.repeat(positions, num_rays, axis=0), np.tile(directions, (len(positions), 1))).distance
    return distance.reshape(len(positions), num_rays).min(axis=1)
