# SPDX-License-Identifier: Apache-2.0
"""The plane that the camera stands over, from depth up to scale.

On a plane 1/z = q . ray for one vector q, where a ray has depth 1. The plane lies 1/|q| away from the camera. So planes
are fitted linearly, and z (q . ray) - 1 is how far a pixel lies behind the plane, by its depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.camera import Camera
from openmarigold.errors import InvalidValueError
from openmarigold.geometry import normals_from_depth, unit_vectors
from openmarigold.seeding import generator_for

LARGEST_TILT = 50.0
"""Between the ground's normal and the picture's vertical [deg]: a camera looks down or up, or is rolled, by less."""
RELIABLE_SHARE = 0.15
"""Share of the lower half of the picture that a reliable ground covers."""

_FEWEST_SHARE = 0.03
_FEWEST = 30  # points on the ground
_GRID = 128  # points along the longer side
_NUM_PLANES = 400
_TOLERANCE = 0.03  # by depth
_FINEST = 0.002  # the smallest tolerance
_ROUNDS = 6
_SINGULAR = 1e-7
_AGAINST = 1.0  # how much a point behind a plane counts, by one on it
_MOST_BEHIND = 0.3  # share of the lower half behind a reliable ground
_NONE = (
    "no ground was found: the lower half of the picture {}; give a known length or a known distance instead of the "
    "camera's height"
)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A ground plane. Points p of it have normal . p = -distance, in the camera's axes (x right, y down, z forward)."""

    normal: Float64[np.ndarray, " 3"]
    """Unit vector that points up: its y is below 0."""
    distance: float
    """From the camera to the plane, in the unit of depth: the camera's height above the ground."""
    inlier_share: float
    """Share of the lower half of the picture, where depth is known, that lies on the plane."""
    is_reliable: bool
    reason: str = ""
    """Why it is not reliable, one line."""


def find_ground(
    depth: Float[np.ndarray, "h w"],
    camera: Camera,
    *,
    normals: Float[np.ndarray, "h w 3"] | None = None,
    valid_mask: Bool[np.ndarray, "h w"] | None = None,
    seed: int = 0,
) -> Ground:
    """The ground plane in the lower half of the picture: the plane with most points on it and fewest behind it.

    Points behind a plane speak against it, because nothing is seen through the ground: so a table top above a visible
    floor is not taken. Candidates go through three points whose normals are near up; the best one is fitted again to
    the points within 3 % of depth, then to nearer ones.

    Args:
        depth: planar, up to scale or in meters, above 0 where valid.
        camera: of the picture.
        normals: predicted, frame "rub"; None takes those of depth.
        valid_mask: True = use this pixel.
        seed: of the draws; the same arguments give the same plane.

    Raises:
        InvalidValueError: no plane that could be the ground, or maps of another size than the camera's picture.
    """
    if depth.shape != camera.size or (normals is not None and normals.shape != (*depth.shape, 3)):
        raise InvalidValueError(
            f"the depth map is {depth.shape}, normals are {None if normals is None else normals.shape} and the "
            f"camera's picture is {camera.size}; give maps of one picture"
        )
    rays, depths, faces_up = _lower_half(depth, camera, normals, valid_mask)
    candidates = np.flatnonzero(faces_up >= math.cos(math.radians(LARGEST_TILT)))
    if len(candidates) < _FEWEST:
        raise InvalidValueError(_NONE.format("has no surface that faces up"))
    planes = _planes_through_three(rays, depths, candidates, generator_for(seed, "ground planes"))
    behind = depths * (planes @ rays.T) - 1.0
    scores = (np.abs(behind) < _TOLERANCE).sum(axis=1) - (behind > _TOLERANCE).sum(axis=1) * _AGAINST
    plane = planes[int(scores.argmax())] if len(planes) else np.zeros(3)
    plane = _fitted(plane, rays, depths)
    behind = depths * (rays @ plane) - 1.0
    share = float((np.abs(behind) < _TOLERANCE).mean())
    length = float(np.linalg.norm(plane))
    normal = -plane / length
    if -normal[1] < math.cos(math.radians(LARGEST_TILT)) or share < _FEWEST_SHARE:
        raise InvalidValueError(_NONE.format("has no plane that faces up"))
    reason = ""
    if share < RELIABLE_SHARE:
        reason = f"only {share:.0%} of the lower half of the picture lies on the ground"
    elif float((behind > _TOLERANCE).mean()) > _MOST_BEHIND:
        reason = "much of the lower half of the picture lies behind the plane, so it may be a table top"
    return Ground(normal=normal, distance=1.0 / length, inlier_share=share, is_reliable=not reason, reason=reason)


def _fitted(plane: np.ndarray, rays: np.ndarray, depths: np.ndarray) -> Float64[np.ndarray, " 3"]:
    """The plane of the points around a plane, of nearer and nearer ones: feet of walls and of things drop out."""
    tolerance = _TOLERANCE
    for _ in range(_ROUNDS):
        residuals = np.abs(depths * (rays @ plane) - 1.0)
        on_it = residuals < tolerance
        if on_it.sum() < _FEWEST:
            raise InvalidValueError(_NONE.format("has no plane that faces up"))
        plane = np.linalg.lstsq(rays[on_it] * depths[on_it, None], np.ones(int(on_it.sum())), rcond=None)[0]
        residuals = np.abs(depths * (rays @ plane) - 1.0)
        spread = 1.4826 * float(np.median(residuals[residuals < tolerance])) if (residuals < tolerance).any() else 0.0
        tolerance = min(tolerance, max(3 * spread, _FINEST))
    return plane


def _lower_half(
    depth: np.ndarray, camera: Camera, normals: np.ndarray | None, valid_mask: np.ndarray | None
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Rays of depth 1, depths, and the vertical components of the normals (0 where unknown) of a grid of pixels."""
    step = max(1, max(depth.shape) // _GRID)
    z = depth[::step, ::step].astype(np.float64)
    known = np.isfinite(z) & (z > 0)
    if valid_mask is not None:
        known &= valid_mask[::step, ::step]
    if normals is not None:
        faces_up = np.nan_to_num(unit_vectors(normals[::step, ::step].astype(np.float64), axis=-1)[..., 1])
    elif min(z.shape) >= 3:
        focal, center = (camera.fx / step, camera.fy / step), (camera.cx / step, camera.cy / step)
        vectors, smooth = normals_from_depth(z, focal=focal, center=center, valid_mask=known)
        faces_up = np.where(smooth, vectors[..., 1], 0.0)
    else:
        faces_up = np.zeros(z.shape)
    known[: len(z) // 2] = False
    rows, columns = np.nonzero(known)
    rays = camera.unproject_at(np.stack([columns, rows], axis=-1) * float(step), np.ones(len(rows)))
    return rays, z[known], faces_up[known].astype(np.float64)


def _planes_through_three(
    rays: np.ndarray, depths: np.ndarray, candidates: np.ndarray, random: np.random.Generator
) -> Float64[np.ndarray, "m 3"]:
    """Vectors q of planes through three candidates each, which face up within `LARGEST_TILT`."""
    three = random.choice(candidates, size=(_NUM_PLANES, 3))
    apart = np.abs(np.linalg.det(rays[three])) > _SINGULAR
    three = three[apart]
    planes = np.linalg.solve(rays[three], (1.0 / depths[three])[..., None])[..., 0]
    lengths = np.linalg.norm(planes, axis=1)
    # The normal that points up is -q: its vertical component upwards is q's downwards.
    return planes[planes[:, 1] >= lengths * math.cos(math.radians(LARGEST_TILT))]
