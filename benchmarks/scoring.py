# SPDX-License-Identifier: Apache-2.0
"""Time to score 654 maps of NYU's size, without predicting them: reading, aligning, all metrics, the report.

    python benchmarks/scoring.py [--count 654] [--num-workers 2]

It makes photos, depth (16 bits) and saved predictions in a temporary folder, once and untimed, and scores them as
`openmarigold evaluate --benchmark nyuv2 --predictions DIR` does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from openmarigold.evaluation.benchmarks import open_benchmark
from openmarigold.evaluation.runner import evaluate_benchmark
from openmarigold.evaluation.specs import saved_spec

SIZE = (480, 640)
DISTINCT = 12


def make_data(root: Path, count: int) -> None:
    """Smooth rooms with holes, noisy predictions; files beyond the first `DISTINCT` are links to them."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] / SIZE[1]
    for number in range(1, count + 1):
        names = {
            f"data/nyuv2/test/scene_{number // 4:04d}/rgb_{number:04d}.png": "rgb",
            f"data/nyuv2/test/scene_{number // 4:04d}/depth_{number:04d}.png": "depth",
            f"maps/test/scene_{number // 4:04d}/rgb_{number:04d}.npy": "map",
        }
        for name, kind in names.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if number > DISTINCT:
                path.hardlink_to(root / f"{kind}-{number % DISTINCT}")
                continue
            depth = 1.5 + 4 * rng.random() * rows + 3 * np.sin(5 * columns + number) ** 2
            if kind == "rgb":
                photo = 40 * depth[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 6, (*SIZE, 3))
                Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(path)
            elif kind == "depth":
                holes = rng.random(SIZE) < 0.15
                Image.fromarray(np.where(holes, 0, 1000 * depth).astype(np.uint16)).save(path)
            else:
                np.save(path, (depth / 10 + rng.normal(0, 0.02, SIZE)).astype(np.float32))
            (root / f"{kind}-{number % DISTINCT}").hardlink_to(path)


def main() -> None:
    """Makes the data, scores it, prints the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=654)
    parser.add_argument("--num-workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_data(root, arguments.count)
        wall, processor = time.perf_counter(), time.process_time()
        report = evaluate_benchmark(
            open_benchmark("nyuv2", root / "data", allow_partial=True),
            saved_spec(root / "maps", "affine_depth"),
            output_dir=root / "out",
            num_workers=arguments.num_workers,
        )
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    count = len(report.images)
    print(
        f"{count} maps of {SIZE[0]}x{SIZE[1]}, {arguments.num_workers} workers: {wall:.1f} s, processor time "
        f"{processor:.1f} s ({1000 * processor / count:.0f} ms a map)"
    )


if __name__ == "__main__":
    main()
