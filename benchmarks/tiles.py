# SPDX-License-Identifier: Apache-2.0
"""Depth of large pictures with tiles against the resized depth: AbsRel, boundary F1, seam energy, time.

    python benchmarks/tiles.py DATA [--count 12] [--max-depth 10]
    python benchmarks/tiles.py --photo PHOTO

DATA is a prepared data set with depth, such as `openmarigold-render pictures rooms --resolution 2048 1536` makes. With
--photo: time and peak memory of one photo, in this process.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from openmarigold import Predictor
from openmarigold.alignment import fit_scale_shift
from openmarigold.data.shards import ShardedDataset
from openmarigold.metrics import abs_rel, boundary_f1, seam_energy
from openmarigold.predictor.tiles import seam_lines


def scores(depth: np.ndarray, gt: np.ndarray, max_depth: float) -> tuple[float, float]:
    """AbsRel [%] and boundary F1 [%] after a fit of scale and shift by least squares."""
    valid = (gt > 0) & (gt < max_depth)
    scale, shift = fit_scale_shift(depth, gt, valid)
    aligned = np.clip(scale * depth.astype(np.float64) + shift, 1e-3, None)
    return 100 * abs_rel(aligned, gt, valid), 100 * boundary_f1(aligned, gt, valid)


def main() -> None:
    """Prints a line for each picture, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--max-depth", type=float, default=10.0)
    parser.add_argument("--photo", type=Path)
    arguments = parser.parse_args()
    predictor = Predictor.load()
    if arguments.photo is not None:
        started = time.perf_counter()
        tiles = predictor(arguments.photo, tiles=True).settings["tiles"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{tiles['number']} tiles, {time.perf_counter() - started:.1f} s, peak {peak:.0f} MiB")
        return
    data, rows = ShardedDataset(arguments.data), []
    for index in range(min(arguments.count, len(data))):
        sample = data.read(index)
        gt = sample.maps["depth"]
        shape = gt.shape[0], gt.shape[1]
        row: list[float] = []
        lines: list[tuple[int, int]] = []
        for settings in ({"tiles": True}, {"tiles": False}):
            started = time.perf_counter()
            prediction = predictor(sample.rgb, **settings)
            seconds = time.perf_counter() - started
            lines = lines or seam_lines(prediction.settings["tiles"], shape)
            seam = seam_energy(prediction.depth, lines) if lines else 0.0
            row += [*scores(prediction.depth, gt, arguments.max_depth), seam, seconds]
        rows.append(row)
        print(index, *(f"{value:.2f}" for value in row), flush=True)
    print("tiles: AbsRel %, boundary F1 %, seam energy, seconds; then the same of the resized depth")
    print("mean", *(f"{value:.2f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
