# SPDX-License-Identifier: Apache-2.0
"""Completion from sparse points: errors of methods and baselines, and what left-out points say about them.

    python benchmarks/completion.py examples/benchmark [--points 50 200 500] [--outliers 0 0.1] [--limit 20]
    python benchmarks/completion.py --synthetic 12

Points are drawn evenly from the valid pixels of pictures of rooms, within 10 m (what is beyond lies outside of
windows). Outliers are multiplied or divided by 1.3 to 2. The mean absolute error [m] is taken over valid pixels of
a picture, then over pictures. "estimate / truth" is the left-out error of the field by its error, the geometric mean
over pictures; next to it the ratio of the means. `--synthetic` makes rooms of planes with a known error of the model:
a smooth field of 8 % and fine noise of 1 % on true depth, then an affine map.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmarigold import Predictor
from openmarigold.camera import Camera
from openmarigold.completion.evidence import RelativeDepth, SparsePoints
from openmarigold.completion.leave_out import left_out_errors
from openmarigold.completion.methods import METHODS, Fitted, Method, Options
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.seeding import generator_for

ROOMS = ("room", "rooms")
FARTHEST = 10.0


@dataclass(frozen=True)
class Picture:
    """True depth and what a model gives."""

    name: str
    relative: RelativeDepth
    depth: np.ndarray
    valid: np.ndarray


def rendered(path: Path, limit: int, every: int) -> Iterator[Picture]:
    """Rooms of a benchmark folder or prepared set, with the embedded model's depth."""
    predictor = Predictor.load()
    benchmark = open_folder_benchmark(path)
    rooms = [entry for entry in benchmark.entries if entry.kind in ROOMS][::every]
    for entry in rooms[:limit]:
        sample = benchmark.sample(entry)
        depth = sample.maps["depth"].astype(np.float64)
        prediction = predictor(sample.rgb)
        camera = Camera.assumed(depth.shape)
        invariance = prediction.settings["invariance"]
        relative = RelativeDepth(depth=prediction.depth, invariance=invariance, camera=camera, rgb=sample.rgb)
        yield Picture(entry.name, relative, depth, sample.valid_mask & (depth < FARTHEST))


def synthetic(count: int) -> Iterator[Picture]:
    """Rooms of five planes and some spheres, 96x128, and depth with a smooth error, known up to scale and shift."""
    for number in range(count):
        rng = generator_for(0, "completion-rooms", number)
        camera = Camera.from_fov((96, 128), rng.uniform(50, 80))
        rays = camera.rays().astype(np.float64)
        x, y = rays[..., 0], rays[..., 1]
        left, right, up, down, back = rng.uniform((1.5, 1.5, 1.0, 1.0, 4.0), (3, 3, 1.6, 1.6, 7.0))
        with np.errstate(divide="ignore"):
            sides = np.where(x < 0, -left / x, right / x), np.where(y < 0, -up / y, down / y)
        depth = np.minimum(np.minimum(*sides), back)
        for _ in range(4):
            center = np.array([rng.uniform(-1, 1), rng.uniform(-0.3, 0.8), rng.uniform(2, 4)])
            a, b, c = (rays**2).sum(-1), rays @ center, center @ center - rng.uniform(0.2, 0.5) ** 2
            root = b**2 - a * c
            hit = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
            depth = np.minimum(depth, hit)
        smooth = sum(
            rng.normal() * np.sin(rng.uniform(1, 4) * x + rng.uniform(1, 4) * y + rng.uniform(0, 6.3)) for _ in range(6)
        )
        error = 0.08 * smooth / smooth.std() + 0.01 * rng.normal(size=depth.shape)
        found = depth * np.exp(error)
        found = (found - found.min()) / np.ptp(found)
        relative = RelativeDepth(depth=found.astype(np.float32), invariance="affine", camera=camera)
        yield Picture(f"synthetic-{number}", relative, depth, np.ones(depth.shape, dtype=bool))


def drawn(picture: Picture, count: int, share: float, number: int) -> SparsePoints:
    """Points of a picture, some of them wrong."""
    rng = generator_for(0, "completion-points", number, count)
    rows, columns = np.nonzero(picture.valid)
    chosen = rng.permutation(len(rows))[:count]
    depth = picture.depth[rows[chosen], columns[chosen]].copy()
    wrong = rng.permutation(count)[: round(share * count)]
    depth[wrong] *= rng.uniform(1.3, 2.0, len(wrong)) ** rng.choice([-1.0, 1.0], len(wrong))
    return SparsePoints(pixels=np.stack([columns, rows], axis=-1)[chosen].astype(np.float64), depth=depth)


def judged(picture: Picture, count: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Valid pixels, evenly drawn, and their depth: the whole map would cost more and say the same."""
    rows, columns = np.nonzero(picture.valid)
    chosen = generator_for(0, "completion-judged", number).permutation(len(rows))[:count]
    places = np.stack([columns, rows], axis=-1)[chosen].astype(np.float64)
    return places, picture.depth[rows[chosen], columns[chosen]]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--points", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument("--outliers", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--every", type=int, default=1, help="take every n-th room")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N")
    parser.add_argument("--pixels", type=int, default=3000, help="of a picture that are judged")
    parser.add_argument("--estimates", nargs="*", default=["field"], help="methods with left-out errors")
    arguments = parser.parse_args()
    pictures = (
        synthetic(arguments.synthetic)
        if arguments.synthetic
        else rendered(arguments.path, arguments.limit, arguments.every)
    )
    cells = [(count, share) for count in arguments.points for share in arguments.outliers]
    errors: dict[tuple, list[float]] = defaultdict(list)
    total, start = 0, time.perf_counter()
    for number, picture in enumerate(pictures):
        total += 1
        places, truth = judged(picture, arguments.pixels, number)
        for cell in cells:
            points = drawn(picture, *cell, number)
            for name, method in METHODS.items():

                def run(some: SparsePoints, method: Method = method, picture: Picture = picture) -> Fitted:
                    return method.run(picture.relative, some, Options())

                difference = np.abs(run(points).at(places) - truth)
                errors[(*cell, name)].append(float(difference.mean()))
                if name in arguments.estimates:
                    estimate = left_out_errors(run, points, picture.depth.shape[:2])
                    assert estimate is not None
                    errors[(*cell, f"estimate of {name}")].append(estimate.mean_m)
        if number % 6 == 5:
            show(errors, cells, total, time.perf_counter() - start)
    show(errors, cells, total, time.perf_counter() - start)


def show(errors: dict[tuple, list[float]], cells: list[tuple[int, float]], total: int, seconds: float) -> None:
    """Prints the table of the pictures so far."""
    names = [name for name in METHODS if (*cells[0], f"estimate of {name}") in errors]
    print(f"{total} pictures, {seconds:.0f} s\n")
    print(
        f"| points | outliers | {' | '.join(METHODS)} | {' | '.join(f'estimate / truth, {name}' for name in names)} |"
    )
    print("|---|---|" + "---|" * (len(METHODS) + len(names)))
    for cell in cells:
        row = [f"{np.mean(errors[(*cell, name)]):.3f}" for name in METHODS]
        for name in names:
            truth, estimate = np.array(errors[(*cell, name)]), np.array(errors[(*cell, f"estimate of {name}")])
            row.append(f"{np.exp(np.log(estimate / truth).mean()):.2f} ({estimate.mean() / truth.mean():.2f})")
        print(f"| {cell[0]} | {100 * cell[1]:.0f} % | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
