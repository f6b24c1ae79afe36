# SPDX-License-Identifier: Apache-2.0
"""Processor time and memory of points and meshes of one large depth map, each in a process of its own.

    python benchmarks/points.py [--size 6000 4000] [--max-points 1000000]

The map is a floor with boxes on it. Memory is the peak of the process above what it had with map and photo.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from openmarigold.camera import Camera
from openmarigold.reconstruction.grid import PixelChoice
from openmarigold.reconstruction.mesh import mesh_from_depth
from openmarigold.reconstruction.points import points_from_depth

KINDS = {"points": (points_from_depth, "cloud.ply"), "mesh": (mesh_from_depth, "mesh.glb")}


def scene(width: int, height: int) -> np.ndarray:
    """Depth of a floor that rises towards the horizon, with boxes."""
    rows = np.linspace(0.02, 1.0, height, dtype=np.float32)[:, None]
    depth = np.broadcast_to(1.5 / rows, (height, width)).clip(0, 40).copy()
    for number in range(12):
        left, top = width * number // 12, height // 3 + height * (number % 4) // 10
        depth[top : top + height // 5, left : left + width // 24] = 2.0 + 0.3 * number
    return depth


def measure(kind: str, width: int, height: int, max_points: int) -> tuple[float, float]:
    """Seconds of the processor, and MiB."""
    depth = scene(width, height)
    rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    make, name = KINDS[kind]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        choice = PixelChoice(max_points=max_points)
        make(depth, Camera.from_fov(depth.shape, 60.0), rgb=rgb, choice=choice).save(Path(folder) / name)
    seconds = time.process_time() - start
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Prints a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(6000, 4000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--max-points", type=int, default=1_000_000)
    given = parser.parse_args()
    for kind in KINDS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, mib = pool.apply(measure, (kind, *given.size, given.max_points))
        print(f"{kind}, at most {given.max_points}: {seconds:.1f} s, {mib:.0f} MiB")


if __name__ == "__main__":
    main()
