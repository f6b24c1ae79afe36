# SPDX-License-Identifier: Apache-2.0
"""Guided denoising against the same model's own ensemble, fitted to the same points, on a prepared set with depth.

    python benchmarks/guided.py DATA [--points 50 200 500] [--outliers 0] [--ensemble-size 2] [--each 2] [--max-m 80]

Points are drawn from measured pixels by a seed; every measured pixel is scored. With --outliers, that share of the
points is multiplied by 1.3 to 2. Errors are means over photos; seconds are of the processor, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from openmarigold import Predictor
from openmarigold.camera import Camera
from openmarigold.completion.evidence import RelativeDepth, SparsePoints
from openmarigold.completion.guided import guided_method
from openmarigold.completion.guided_settings import GuidedSettings
from openmarigold.completion.methods import METHODS, Options
from openmarigold.data.shards import ShardedDataset

SHOWN = ("linear", "least_squares", "fit", "field", "guided")


def draw(depth: np.ndarray, known: np.ndarray, count: int, outliers: float, seed: int) -> SparsePoints:
    """Points of known pixels, some of them wrong."""
    rng = np.random.default_rng([seed, count])
    rows, columns = np.nonzero(known)
    chosen = rng.choice(len(rows), count, replace=False)
    values = depth[rows[chosen], columns[chosen]].astype(np.float64)
    wrong = rng.random(count) < outliers
    values[wrong] *= rng.uniform(1.3, 2.0, int(wrong.sum()))
    return SparsePoints(pixels=np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float64), depth=values)


def photos_of(data: ShardedDataset, each: int) -> list[int]:
    """Some photos of every kind, from different scenes where they are neighbors."""
    return [
        i for kind in sorted(set(data.kinds)) for i in [j for j, k in enumerate(data.kinds) if k == kind][::5][:each]
    ]


def main() -> None:
    """Predicts, completes, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--points", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument("--outliers", type=float, default=0.0)
    parser.add_argument("--ensemble-size", type=int, default=2)
    parser.add_argument("--each", type=int, default=2)
    parser.add_argument("--max-m", type=float, default=80.0)
    parser.add_argument("--iterations", type=int, default=None)
    parser.add_argument("--processing-resolution", type=int, default=None)
    given = parser.parse_args()

    predictor = Predictor.load(given.checkpoint, engine="torch")
    call = {"ensemble_size": given.ensemble_size, "processing_resolution": given.processing_resolution}
    settings = GuidedSettings(iterations=given.iterations, **call)
    methods = {**METHODS, "guided": guided_method(predictor, settings)}
    data = ShardedDataset(given.data)
    found: dict[tuple[int, str], list[tuple[float, float, float]]] = defaultdict(list)
    for number in photos_of(data, given.each):
        sample = data.read(number)
        depth = sample.maps["depth"]
        known = (depth > 0) & (depth < given.max_m)
        relative = RelativeDepth(
            depth=predictor(sample.rgb, **call).depth,
            invariance=predictor.checkpoint.invariance,
            camera=Camera.assumed((depth.shape[0], depth.shape[1])),
            rgb=sample.rgb,
        )
        for count in given.points:
            points = draw(depth, known, count, given.outliers, number)
            for name in SHOWN:
                start = time.process_time()
                error = np.abs(methods[name].run(relative, points, Options()).map() - depth)[known]
                seconds = time.process_time() - start
                found[count, name].append((float(error.mean()), float((error / depth[known]).mean()), seconds))
            row = "  ".join(f"{name} {found[count, name][-1][0]:.4f}" for name in SHOWN)
            print(f"{sample.kind} {number}, {count} points, MAE [m]: {row}", flush=True)
    print(f"\n| points | method | MAE [m] | relative | seconds |\n|{'---|' * 5}")
    for (count, name), scores in found.items():
        mae, share, seconds = np.mean(scores, axis=0)
        print(f"| {count} | {name} | {mae:.3f} | {100 * share:.1f} % | {seconds:.2f} |")


if __name__ == "__main__":
    main()
