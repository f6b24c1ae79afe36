# SPDX-License-Identifier: Apache-2.0
"""Shift of depth and field of view from depth and normals, against other ways, all in one run (extra `dev`).

    python benchmarks/camera.py                   # synthetic rooms with known cameras: about a minute
    python benchmarks/camera.py --renders DIR     # and the embedded models on a prepared data set with intrinsics

Rooms are planes and spheres (tests/analytic_rooms.py), 128x96, fields of view of 44 to 85 degrees. Depth is exact, up
to scale and shift; normals have smooth errors of a stated mean angle. MoGe's solver (Wang et al. 2024, written from its
description) needs a map of points instead of normals. Its points, exact up to scale and a shift of z, get errors in x,
y and z, as smooth, by depth, of the size at which the normals of the points are off by the same mean angle. That is
comparable from pixel to pixel; a network's points are also off over larger distances, as in the row of 24 px.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import openmarigold
from openmarigold.camera import ASSUMED_FOV, Camera
from openmarigold.data.shards import ShardedDataset
from openmarigold.geometry import angles_between, unit_vectors
from openmarigold.predictor import Predictor
from openmarigold.reconstruction import recovery
from openmarigold.reconstruction.recovery import recover
from openmarigold.seeding import generator_for

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from analytic_rooms import (
    SPHERES,
    Room,
    make_room,
    smooth_noise,
    with_angular_error,
)

NOISES = ((0.0, 4.0), (5.0, 4.0), (10.0, 4.0), (16.0, 4.0), (16.0, 10.0), (10.0, 24.0))
SCALE, SHIFT = 0.37, -0.8  # affine depth = SCALE * depth + SHIFT
FEWEST = 200  # pixels of a wall that is measured


@dataclass(frozen=True)
class Guess:
    """A method's answer for one picture."""

    camera: Camera
    shift: float
    """Of affine depth, in its unit."""


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the first room")
    parser.add_argument("--renders", type=Path, help="prepared data set with intrinsics; runs the embedded models")
    parser.add_argument("--last", type=int, help="only so many of its samples, the last ones")
    parser.add_argument("--without-limit", action="store_true", help="use fits of any cost (recovery.LARGEST_COST)")
    arguments = parser.parse_args()
    if arguments.without_limit:
        recovery.LARGEST_COST = float("inf")
    print(f"{datetime.date.today()}, {platform.processor() or platform.machine()}, NumPy {np.__version__}\n")
    rooms = [make_room(arguments.seed + index) for index in range(arguments.rooms)]
    if rooms:
        synthetic(rooms)
    if arguments.renders:
        rendered(arguments.renders, arguments.last)


def synthetic(rooms: list[Room]) -> None:
    """The tables of rooms: errors of the camera, then what the rooms look like after recovery."""
    fovs = np.array([room.camera.fov for room in rooms])
    print(f"{len(rooms)} rooms, fields of view {fovs.min():.0f} to {fovs.max():.0f} degrees. Medians: error of the")
    print("nearest point's depth [%] / error of the field of view [%] (degrees).\n")
    print("| errors | " + " | ".join(METHODS) + " |")
    print("|---|" + "---|" * len(METHODS))
    shapes = []
    seconds = []
    for degrees, blobs in NOISES:
        cells = []
        normals = [
            with_angular_error(room.normals, degrees, generator_for(seed, "errors"), correlation=blobs)
            for seed, room in enumerate(rooms)
        ]
        for name, method in METHODS.items():
            started = time.perf_counter()
            found = [method(room, seen, degrees, blobs) for room, seen in zip(rooms, normals, strict=True)]
            if name == BOTH:
                seconds.append((time.perf_counter() - started) / len(rooms))
            if name in (BOTH, GUESS) and blobs == NOISES[0][1]:
                shapes.append(
                    (degrees, name, [shape_of(room, guess) for room, guess in zip(rooms, found, strict=True)])
                )
            cells.append(_errors(rooms, found))
        print(f"| {degrees:g} degrees, {blobs:g} px | " + " | ".join(cells) + " |", flush=True)
    print(f"\nOur fit of both: {np.mean(seconds):.2f} s a picture.\n")
    print(
        "After recovery: distance of walls from their planes (root mean square, % of the wall's extent); error of the"
    )
    print("angles between neighboring walls [deg], median and 90 % quantile over walls and pairs of all rooms.\n")
    print("| errors of the normals | method | flatness | right angles |")
    print("|---|---|---|---|")
    for degrees, name, parts in shapes:
        flat, angles = (np.concatenate(values) for values in zip(*parts, strict=True))
        row = (f"{np.median(values):.2f} / {np.quantile(values, 0.9):.2f}" for values in (flat, angles))
        print(f"| {degrees:g} degrees | {name} | " + " | ".join(row) + " |")
    print()


def _errors(rooms: list[Room], found: list[Guess]) -> str:
    shift = [
        abs((SCALE * room.depth.min() + SHIFT + guess.shift) / (SCALE * room.depth.min()) - 1)
        for room, guess in zip(rooms, found, strict=True)
    ]
    fov = [abs(guess.camera.fov - room.camera.fov) for room, guess in zip(rooms, found, strict=True)]
    share = [error / room.camera.fov for room, error in zip(rooms, fov, strict=True)]
    return f"{100 * np.median(shift):.1f} / {100 * np.median(share):.1f} ({np.median(fov):.1f})"


def shape_of(room: Room, guess: Guess) -> tuple[list[float], list[float]]:
    """Flatness of a room's walls [% of extent], and errors of its right angles [deg]."""
    points = guess.camera.unproject(np.maximum(SCALE * room.depth + SHIFT + guess.shift, 1e-3)).astype(np.float64)
    normals, flat = {}, []
    for wall in range(SPHERES):
        seen = points[room.surface == wall]
        if len(seen) < FEWEST:
            continue
        centered = seen - seen.mean(axis=0)
        axes = np.linalg.svd(centered, full_matrices=False)[2]
        along = centered @ axes.T
        normals[wall] = axes[2]
        flat.append(100 * float(np.sqrt(np.mean(np.square(along[:, 2]))) / np.ptp(along[:, 0])))
    pairs = [
        (a, b) for a in normals for b in normals if a < b and abs(_true_normal(room, a) @ _true_normal(room, b)) < 0.5
    ]
    return flat, [abs(90 - float(np.degrees(np.arccos(abs(normals[a] @ normals[b]))))) for a, b in pairs]


def _true_normal(room: Room, wall: int) -> np.ndarray:
    return room.normals[room.surface == wall][0]


def fit_both(room: Room, normals: np.ndarray, degrees: float, blobs: float) -> Guess:
    """Our fit."""
    found = recover(SCALE * room.depth + SHIFT, normals, invariance="affine")
    return Guess(found.camera, found.shift)


def fit_shift(room: Room, normals: np.ndarray, degrees: float, blobs: float) -> Guess:
    """Our fit with the true camera."""
    found = recover(SCALE * room.depth + SHIFT, normals, invariance="affine", camera=room.camera)
    return Guess(found.camera, found.shift)


def fit_focal(room: Room, normals: np.ndarray, degrees: float, blobs: float) -> Guess:
    """Our fit with depth up to scale."""
    found = recover(SCALE * room.depth, normals, invariance="scale")
    return Guess(found.camera, -SHIFT)


def assume(room: Room, normals: np.ndarray, degrees: float, blobs: float) -> Guess:
    """What is assumed where nothing is known."""
    depth = SCALE * room.depth + SHIFT
    unit = float(np.subtract(*np.quantile(depth, (0.98, 0.02))))
    return Guess(Camera.assumed(room.depth.shape), recovery.ASSUMED_SHIFT * unit - float(depth.min()))


def solve_linearly(room: Room, normals: np.ndarray, degrees: float, blobs: float) -> Guess:
    """Shift and focal length from the tangents, which are linear in both; reweighted five times (least absolute).

    A tangent of the surface is orthogonal to its normal n (x right, y down, z forward), with affine depth d:
    n_x (d + shift) + d_x (n_x x + n_y y + n_z focal) = 0, and the same with y.
    """
    depth = SCALE * room.depth + SHIFT
    height, width = depth.shape
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height)[:, None] - (height - 1) / 2
    n_x, n_y, n_z = normals[..., 0], -normals[..., 1], -normals[..., 2]
    slopes = np.gradient(depth, axis=1), np.gradient(depth, axis=0)
    smooth = np.hypot(*slopes) <= np.quantile(np.hypot(*slopes), 0.92)
    rows, right = [], []
    for slope, component in zip(slopes, (n_x, n_y), strict=True):
        rows.append(np.stack([component, slope * n_z], axis=-1)[smooth])
        right.append(-(component * depth + slope * (n_x * x + n_y * y))[smooth])
    matrix, values = np.concatenate(rows), np.concatenate(right)
    weights = np.ones(len(values))
    for _ in range(6):
        (shift, focal), *_ = np.linalg.lstsq(matrix * weights[:, None], values * weights, rcond=None)
        residuals = np.abs(matrix @ [shift, focal] - values)
        weights = 1.0 / np.sqrt(residuals + 1e-3 * residuals.mean() + 1e-12)
    return Guess(Camera.from_focal(depth.shape, max(float(focal), 1.0)), float(shift))


def solve_points(room: Room, normals: np.ndarray, degrees: float, blobs: float) -> Guess:
    """MoGe's solver: for each shift of z the best focal length is known; one-dimensional search over the shift.

    With pixels uv by half the diagonal, p = xy / (z + shift) and focal(shift) = sum(p uv) / sum(p^2), the sum of
    (focal p - uv)^2 is smallest. 64x64 pixels, as published.
    """
    points = noisy_points(room, degrees, blobs)
    height, width = room.depth.shape
    x, y = np.arange(width) - (width - 1) / 2, np.arange(height)[:, None] - (height - 1) / 2
    uv = np.stack(np.broadcast_arrays(x, y), axis=-1) / (np.hypot(height, width) / 2)
    rows, columns = (np.linspace(0, side - 1, 64).round().astype(int) for side in (height, width))
    sampled, places = points[rows][:, columns].reshape(-1, 3), uv[rows][:, columns].reshape(-1, 2)

    def cost(shift: float) -> tuple[float, float]:
        flat = sampled[:, :2] / (sampled[:, 2:] + shift)
        focal = float((flat * places).sum() / np.square(flat).sum())
        return float(np.square(focal * flat - places).sum()), focal

    low = float(sampled[:, 2].min())
    unit = float(np.ptp(sampled[:, 2]))
    nearest = np.geomspace(0.005, 20.0, 60)
    for _ in range(8):
        best = nearest[int(np.argmin([cost(unit * near - low)[0] for near in nearest]))]
        ratio = nearest[1] / nearest[0]
        nearest = np.geomspace(best / ratio, best * ratio, 9)
    shift = unit * best - low
    focal_px = cost(shift)[1] * np.hypot(height, width) / 2
    return Guess(Camera.from_focal((height, width), focal_px), shift)


def noisy_points(room: Room, degrees: float, blobs: float) -> np.ndarray:
    """Points up to scale and a shift of z, whose normals are off by `degrees`."""
    true = room.camera.unproject(room.depth).astype(np.float64)
    points = true
    if degrees:
        noise = smooth_noise(generator_for(int(1e6 * room.camera.fov), "points"), room.depth.shape, 3, blobs)
        low, high = 0.0, 0.5
        for _ in range(20):
            middle = (low + high) / 2
            points = true + middle * noise * room.depth[..., None]
            if _tilt(points, room) < degrees:
                low = middle
            else:
                high = middle
    return SCALE * points + np.array([0.0, 0.0, SHIFT])


def _tilt(points: np.ndarray, room: Room) -> float:
    """Mean angle [deg] between the normals of points and the true ones, away from edges."""
    across = np.cross(points[2:, 1:-1] - points[:-2, 1:-1], points[1:-1, 2:] - points[1:-1, :-2])
    seen = unit_vectors(across * [1.0, -1.0, -1.0], axis=-1)
    same = room.surface[1:-1, 1:-1]
    inside = np.ones(same.shape, dtype=bool)
    for rows, columns in ((slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1))):
        inside &= room.surface[rows, columns] == same
    for rows, columns in ((slice(1, -1), slice(2, None)), (slice(1, -1), slice(None, -2))):
        inside &= room.surface[rows, columns] == same
    return float(angles_between(seen, room.normals[1:-1, 1:-1], axis=-1)[inside].mean())


BOTH, GUESS = "our fit", f"{ASSUMED_FOV:g} degrees guess"
METHODS: dict[str, Callable[[Room, np.ndarray, float, float], Guess]] = {
    "linear least squares": solve_linearly,
    BOTH: fit_both,
    "our fit, camera known": fit_shift,
    "our fit, depth up to scale": fit_focal,
    GUESS: assume,
    "MoGe's solver, of points": solve_points,
}


def rendered(folder: Path, last: int | None) -> None:
    """Errors of the field of view and of the shift with true maps and with those of the embedded models."""
    weights = Path(openmarigold.__file__).parent / "weights"
    models = {name: Predictor.load(weights / name) for name in ("marigold-lite", "marigold-lite-normals")}
    fovs, kinds, found, tilts = [], [], {}, []
    for sample, camera, depth, normals in _samples(folder, last):
        valid = depth > 0
        seen = {name: model(sample.rgb).maps for name, model in models.items()}
        depth_of = {"true": depth, "predicted": seen["marigold-lite"]["depth"]}
        normals_of = {"true": normals, "predicted": seen["marigold-lite-normals"]["normals"]}
        known = np.square(normals).sum(axis=-1) > 0.25
        tilts.append(float(angles_between(normals_of["predicted"], normals, axis=-1)[known].mean()))
        fovs.append(camera.fov)
        kinds.append(sample.kind)
        for of_depth, z in depth_of.items():
            mask = valid if of_depth == "true" else None
            for of_normals, n in normals_of.items():
                result = recover(z, n, invariance="scale", valid_mask=mask)
                found.setdefault((of_depth, of_normals, "scale"), []).append(
                    (result.camera.fov, result.fov_spread, 0.0)
                )
        nearest = float(depth[valid & known].min())
        for of_normals, n in normals_of.items():
            result = recover(depth - nearest, n, invariance="affine", valid_mask=valid)
            error = abs(result.shift / nearest - 1)
            found.setdefault(("true", of_normals, "affine"), []).append((result.camera.fov, result.fov_spread, error))
            result = recover(depth - nearest, n, invariance="affine", valid_mask=valid, camera=camera)
            error = abs(result.shift / nearest - 1)
            found.setdefault(("true", of_normals, "affine, camera known"), []).append((camera.fov, 0.0, error))
    _print_rendered(folder, np.array(fovs), np.array(kinds), found, float(np.mean(tilts)))


def _samples(folder: Path, last: int | None) -> Iterator[tuple]:
    data = ShardedDataset(folder)
    for index in range(max(0, len(data) - last) if last else 0, len(data)):
        sample = data.read(index)
        if not {"depth", "normals"} <= sample.maps.keys():
            continue
        known = data.info(index)["intrinsics"]
        # The renderer's pixel centers lie at halves.
        center = {"cx": known["cx"] - 0.5, "cy": known["cy"] - 0.5}
        height, width = sample.maps["depth"].shape
        camera = Camera(fx=known["fx"], fy=known["fy"], width=width, height=height, **center)
        yield sample, camera, sample.maps["depth"], sample.maps["normals"]


def _print_rendered(
    folder: Path,
    fovs: np.ndarray,
    kinds: np.ndarray,
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]],
    tilt: float,
) -> None:
    constants = np.arange(30.0, 110.0, 0.5)
    best = constants[int(np.argmin([np.median(np.abs(fovs - constant)) for constant in constants]))]
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in sorted(set(kinds)))
    print(
        f"{folder.name}: {len(fovs)} pictures ({counts}), fields of view {fovs.min():.0f} to {fovs.max():.0f} degrees."
    )
    print(f"Predicted normals are off by {tilt:.1f} degrees (mean).\n")
    print(
        "| depth | normals | depth known up to | error of the field of view [deg]: median | mean | within 2 stated "
        "deviations | error of the nearest depth [%], median |"
    )
    print("|---|---|---|---|---|---|---|")
    for (depth, normals, invariance), rows in found.items():
        fov, spread, shift = np.array(rows).T
        errors = np.abs(fov - fovs)
        inside = f"{100 * np.mean(errors <= 2 * spread):.0f} %" if spread.any() else ""
        nearest = f"{100 * np.median(shift):.0f}" if invariance != "scale" else ""
        cells = f"{np.median(errors):.1f} | {errors.mean():.1f} | {inside} | {nearest}"
        print(f"| {depth} | {normals} | {invariance} | {cells} |")
    for name, constant in ((GUESS, ASSUMED_FOV), (f"best constant for these, {best:g} degrees", best)):
        errors = np.abs(fovs - constant)
        print(f"| {name} | | | {np.median(errors):.1f} | {errors.mean():.1f} | | |")


if __name__ == "__main__":
    main()
