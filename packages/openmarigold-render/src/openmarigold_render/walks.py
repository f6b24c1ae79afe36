# SPDX-License-Identifier: Apache-2.0
"""Camera walks through a scene: smooth, of bounded speed, clear of all surfaces, with the sway of a hand.

A walk goes from view to view, each of which is worth a picture. Between them lie straight legs that the rays find
clear; a cubic B-spline rounds their corners. Position and direction run along it as fast as the slower of the two may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from openmarigold_render.cameras import clearance, rejection
from openmarigold_render.rays import Caster
from openmarigold_render.scene import Camera, Lens, Setting, look_at

_SWAY_SHARE = 0.15  # of speed and turn; the rest is the walk's
_SWAY_HERTZ = (0.3, 2.0)
_SWAY_WAVES = 3
_MAX_TURN = math.radians(110.0)  # between one view and the next
_MAX_PITCH = math.radians(65.0)
_MIN_SHARE = 0.5  # a walk that is over sooner than this share of its time would have to be too slow
_PARTS = 3  # control points to a leg: more of them cut corners less
_FINE = 32  # steps between control points in which time is measured
_SMOOTH = 16  # of these steps: how gradually the walk gets slower and faster
_TRIES, _PROPOSALS = 4, 150


@dataclass(frozen=True, kw_only=True)
class Gait:
    """How a camera moves in a kind of scene."""

    speed: float
    """Never faster than this [m/s]."""
    turn: float
    """Never turns faster than this [rad/s]."""
    clearance: float
    """Never nearer to a surface, in any direction [m]."""
    eye_height: tuple[float, float] | None = None
    """Range of the height above the floor [m]; None: that of the first view."""
    is_level: bool = True
    """Keeps its height, but for the sway."""


GAITS: Mapping[str, Gait] = {
    "rooms": Gait(speed=0.7, turn=math.radians(40.0), clearance=0.2, eye_height=(1.25, 1.7)),
    "tabletops": Gait(speed=0.2, turn=math.radians(30.0), clearance=0.1, is_level=False),
    "streets": Gait(speed=1.4, turn=math.radians(30.0), clearance=0.4),
    "thin": Gait(speed=0.8, turn=math.radians(35.0), clearance=0.15),
}


@dataclass(frozen=True, eq=False)
class _View:
    """Where a camera stands [m], and where it looks: yaw from x toward y and pitch upward [rad]."""

    position: Float[np.ndarray, " 3"]
    yaw: float
    pitch: float

    def row(self) -> Float[np.ndarray, " 5"]:
        return np.array((*self.position, self.yaw, self.pitch))


def plan_walk(
    setting: Setting,
    caster: Caster,
    lens: Lens,
    gait: Gait,
    generator: np.random.Generator,
    *,
    num_frames: int,
    fps: float,
) -> tuple[Camera, ...] | None:
    """The cameras of a walk, or None where none was found in this scene.

    No frame's view is rejected by the scene's own rules, none is nearer to a surface than the gait allows, and no
    surface lies between one frame's position and the next.
    """
    seconds = max(num_frames - 1, 1) / fps
    angle = float(generator.uniform(*lens.fov))
    lens = Lens(width=lens.width, height=lens.height, fov=(angle, angle))
    ground = _Ground(setting, caster, lens, gait)
    for _ in range(_TRIES):
        views = _stops(ground, generator, seconds)
        if views is None:
            continue
        path = _along(views, gait, seconds, num_frames)
        if path is None:
            continue
        path[:, :5] += _sway(gait, generator, np.arange(num_frames) / fps)[:, :5]
        roll = _sway(gait, generator, np.arange(num_frames) / fps)[:, 4]
        cameras = tuple(ground.camera(row, float(turn)) for row, turn in zip(path, roll, strict=True))
        if ground.accepts(cameras):
            return cameras
    return None


class _Ground:
    """A scene to walk in, for one lens."""

    def __init__(self, setting: Setting, caster: Caster, lens: Lens, gait: Gait) -> None:
        self._setting, self._caster, self._lens, self._gait = setting, caster, lens, gait

    def view(self, generator: np.random.Generator, height: float | None) -> _View | None:
        """A view from `propose` at a height [m] that is worth a picture; None where this try found none."""
        camera = self._setting.propose(generator, self._lens)
        if camera is None:
            return None
        position = camera.position.copy()
        if height is not None:
            position[2] = height
        forward = camera.direction
        view = _View(position, math.atan2(forward[1], forward[0]), math.asin(float(np.clip(forward[2], -1.0, 1.0))))
        return view if abs(view.pitch) <= _MAX_PITCH and self._is_worth(self.camera(view.row())) else None

    def camera(self, row: Float[np.ndarray, " 5"], roll: float = 0.0) -> Camera:
        """The camera of a position, yaw and pitch."""
        x, y, z, yaw, pitch = (float(value) for value in row)
        ahead = (math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch))
        pose = look_at((x, y, z), (x + ahead[0], y + ahead[1], z + ahead[2]), roll=roll)
        return Camera(pose, self._lens.width, self._lens.height, self._lens.focal_px(self._lens.fov[0]))

    def leg_is_clear(self, start: _View, end: _View) -> bool:
        """Whether a straight leg keeps its distance from surfaces and shows views worth a picture."""
        length = float(np.linalg.norm(end.position - start.position))
        share = np.linspace(0.0, 1.0, 2 + int(length / max(0.5 * self._gait.clearance, 0.05)))[1:, None]
        positions = start.position + share * (end.position - start.position)
        if self._crosses(np.concatenate((start.position[None], positions))):
            return False
        if clearance(self._caster, positions, 96).min() < self._gait.clearance:
            return False
        rows = start.row() + np.linspace(0.0, 1.0, 6)[1:, None] * (end.row() - start.row())
        return all(self._is_worth(self.camera(row)) for row in rows)

    def accepts(self, cameras: Sequence[Camera]) -> bool:
        """Whether a whole walk may be rendered."""
        positions = np.stack([camera.position for camera in cameras])
        return (
            not self._crosses(positions)
            and bool(clearance(self._caster, positions, 192).min() >= self._gait.clearance)
            and all(self._is_worth(camera) for camera in cameras)
        )

    def _is_worth(self, camera: Camera) -> bool:
        return rejection(self._caster, camera, self._setting.rules) is None

    def _crosses(self, positions: Float[np.ndarray, "n 3"]) -> bool:
        steps = np.diff(positions, axis=0)
        moved = np.linalg.norm(steps, axis=1) > 1e-6
        return bool((self._caster.cast(positions[:-1][moved], steps[moved]).distance <= 1.0).any())

    @property
    def gait(self) -> Gait:
        return self._gait


def _stops(ground: _Ground, generator: np.random.Generator, seconds: float) -> list[_View] | None:
    """Views for a walk of about so many seconds, with clear legs between them."""
    gait = ground.gait
    height = None if gait.eye_height is None else float(generator.uniform(*gait.eye_height))
    views: list[_View] = []
    left = seconds
    for _ in range(_PROPOSALS):
        view = ground.view(generator, height)
        if view is None:
            continue
        if not views:
            views.append(view)
            if gait.is_level:
                height = float(view.position[2])
            continue
        last = views[-1]
        turn = (view.yaw - last.yaw + math.pi) % (2.0 * math.pi) - math.pi
        if abs(turn) > _MAX_TURN:
            continue
        view = _View(view.position, last.yaw + turn, view.pitch)
        needed = _seconds(last, view, gait)
        if needed > 1.2 * left:  # the part of the leg that fits into the remaining time
            row = last.row() + 1.2 * left / needed * (view.row() - last.row())
            view = _View(row[:3], float(row[3]), float(row[4]))
        if not ground.leg_is_clear(last, view):
            continue
        left -= _seconds(last, view, gait)
        views.append(view)
        if left <= 0.0:
            return views
    return views if left < (1.0 - _MIN_SHARE) * seconds else None


def _seconds(start: _View, end: _View, gait: Gait) -> float:
    length = float(np.linalg.norm(end.position - start.position))
    angle = math.hypot(end.yaw - start.yaw, end.pitch - start.pitch)
    return max(length / gait.speed, angle / gait.turn) / (1.0 - _SWAY_SHARE)


def _along(views: Sequence[_View], gait: Gait, seconds: float, num_frames: int) -> Float[np.ndarray, "n 5"] | None:
    """Position, yaw and pitch of each frame on the way; None where the way is over too soon."""
    rows = [
        start.row() + part / _PARTS * (end.row() - start.row())
        for start, end in pairwise(views)
        for part in range(_PARTS)
    ]
    rows.append(views[-1].row())
    curve = _spline(np.stack([rows[0], rows[0], *rows, rows[-1], rows[-1]]))
    steps = np.linspace(0.0, len(rows) + 1.0, (len(rows) + 1) * _FINE + 1)
    time = _times(curve(steps), gait)
    if time[-1] < _MIN_SHARE * seconds:
        return None
    time *= max(1.0, seconds / time[-1])
    return curve(np.interp(np.linspace(0.0, seconds, num_frames), time, steps))


def _spline(points: Float[np.ndarray, "k 5"]) -> Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, "n 5"]]:
    """The uniform cubic B-spline of control points, over [0, k - 3]: its second derivative has no jumps."""

    def curve(at: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 5"]:
        first = np.clip(np.floor(at).astype(np.int64), 0, len(points) - 4)
        t = (at - first)[:, None]
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        return sum((weight * points[first + place] for place, weight in enumerate(weights)), np.zeros(5)) / 6.0

    return curve


def _times(path: Float[np.ndarray, "n 5"], gait: Gait) -> Float[np.ndarray, " n"]:
    """When each point of a path is reached [s]: as soon as speed and turn allow, without sudden changes of pace.

    Each step takes the mean, over its neighbors, of the longest time that steps near them need: never less than its
    own. A turn of yaw and pitch is at most the root of the sum of their squares.
    """
    steps = np.diff(path, axis=0)
    length, angle = np.linalg.norm(steps[:, :3], axis=1), np.linalg.norm(steps[:, 3:], axis=1)
    needed = np.maximum(length / gait.speed, angle / gait.turn) / (1.0 - _SWAY_SHARE)
    longest = np.lib.stride_tricks.sliding_window_view(np.pad(needed, 2 * _SMOOTH, mode="edge"), 4 * _SMOOTH + 1)
    paced = longest.max(axis=1)
    for _ in range(2):
        padded = np.pad(paced, _SMOOTH, mode="edge")
        paced = np.lib.stride_tricks.sliding_window_view(padded, 2 * _SMOOTH + 1).mean(axis=1)
    return np.concatenate(((0.0,), np.cumsum(np.maximum(paced, 1e-9))))


def _sway(gait: Gait, generator: np.random.Generator, time: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 5"]:
    """Changes of position, yaw and pitch by an unsteady hand: sums of waves whose speeds add up to a share of the
    gait's.
    """
    fastest = _SWAY_SHARE / math.sqrt(3.0) * np.array((*(gait.speed,) * 3, *(gait.turn,) * 2))
    hertz = generator.uniform(*_SWAY_HERTZ, size=(_SWAY_WAVES, 5))
    phase = generator.uniform(0.0, 2.0 * math.pi, size=(_SWAY_WAVES, 5))
    size = fastest / (_SWAY_WAVES * 2.0 * math.pi * hertz)
    return (size * np.sin(2.0 * math.pi * hertz * time[:, None, None] + phase)).sum(axis=1)
