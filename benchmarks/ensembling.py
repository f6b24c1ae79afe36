# SPDX-License-Identifier: Apache-2.0
"""Our ensembling against diffusers', processor time and quality, both in one run (extra `dev`).

    python benchmarks/ensembling.py            # N = 5, 10, 20 at 768x576, then 20 small cases: about 2 minutes
    python benchmarks/ensembling.py --quick    # a small version of the same

Members are one synthetic depth map under affine maps of their own, each with smooth errors and noise, as diffusion
members have. Both ways get the same arrays, and both compute depth and uncertainty.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import scipy.optimize
import torch

from openmarigold.ensembling import ensemble
from openmarigold.ensembling.published import pairwise_cost
from openmarigold.images.photo import resize


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="N = 3, 5 at 96x72")
    quick = parser.parse_args().quick
    height, width, counts = (72, 96, (3, 5)) if quick else (576, 768, (5, 10, 20))
    print(f"{datetime.date.today()}, {_processor()}, {torch.get_num_threads()} thread(s), {width}x{height}")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, NumPy {np.__version__}\n")
    published_solution(make_members(2, 24, 32, seed=0))  # imports scipy outside the measurement
    print("| N | diffusers, CPU s | ours, CPU s | ratio | pairwise term diffusers | ours |")
    print("|---|---|---|---|---|---|")
    for count in counts:
        members = make_members(count, height, width, seed=count)
        published_s, published = measure(lambda members=members: published_solution(members), repeats=1)
        ours_s, result = measure(lambda members=members: ensemble(members), repeats=3)
        terms = [pairwise_term(members, *published), pairwise_term(members, result.scale, result.shift)]
        print(
            f"| {count} | {published_s:.2f} | {ours_s:.3f} | {published_s / ours_s:.0f}x | {terms[0]:.4f} | "
            f"{terms[1]:.4f} |",
            flush=True,
        )
    print("\nPairwise term: sum of the pairs' root mean squares, the members at mean variance 1 (the same gauge).")
    worse, ratios = 0, []
    for seed in range(20):
        members = make_members(2 + seed % 9, 96, 128, seed=100 + seed)
        result = ensemble(members)
        ours = pairwise_term(members, result.scale, result.shift)
        ratios.append(ours / pairwise_term(members, *published_solution(members)))
        worse += ratios[-1] > 1 + 1e-9
    print(
        f"20 seeded cases (128x96, N = 2 to 10): ours / diffusers' {min(ratios):.3f} to {max(ratios):.3f}, "
        f"mean {np.mean(ratios):.3f}; worse in {worse} of 20"
    )
    sys.exit(worse > 0)


def make_members(count: int, height: int, width: int, *, seed: int) -> np.ndarray:
    """Members [count height width], float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    depth = 0.6 * rows + 0.2 * np.sin(7 * columns) + 0.1 * np.cos(9 * rows)
    depth = (depth - depth.min()) / np.ptp(depth)
    coarse = rng.standard_normal((count, 6, 8)).astype(np.float32)
    smooth = resize(coarse, (height, width), antialias=False)
    scale = rng.uniform(0.6, 1.0, (count, 1, 1))
    shift = rng.uniform(0.0, 1.0 - scale)
    noise = 0.02 * smooth + 0.01 * rng.standard_normal((count, height, width))
    return np.clip(scale * depth + shift + noise, 0, 1).astype(np.float32)


def measure(run: Callable[[], Any], *, repeats: int) -> tuple[float, Any]:
    """Least processor time of all threads [s], and the result."""
    seconds, result = [], None
    for _ in range(repeats):
        started = time.process_time()
        result = run()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def published_solution(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shifts that `MarigoldDepthPipeline.ensemble_depth` finds on its way to depth and uncertainty."""
    with _kept_solutions() as solutions:
        diffusers.MarigoldDepthPipeline.ensemble_depth(torch.from_numpy(members)[:, None], output_uncertainty=True)
    scale, shift = np.split(solutions[-1], 2)
    return scale, shift


def pairwise_term(members: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> float:
    """The published pairwise term, the aligned members being scaled to mean variance 1."""
    flat = members.reshape(len(members), -1).astype(np.float64)
    mean = flat.mean(axis=1)
    gram = flat @ flat.T / flat.shape[1]
    size = np.sqrt(np.mean(scale**2 * (np.diag(gram) - mean**2)))
    return pairwise_cost(gram, mean, scale / size, shift / size)


@contextmanager
def _kept_solutions() -> Any:
    minimize, solutions = scipy.optimize.minimize, []

    def keeping(*arguments: Any, **settings: Any) -> Any:
        result = minimize(*arguments, **settings)
        solutions.append(result.x)
        return result

    scipy.optimize.minimize = keeping
    try:
        yield solutions
    finally:
        scipy.optimize.minimize = minimize


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
