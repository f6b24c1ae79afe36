# SPDX-License-Identifier: Apache-2.0
"""Flicker, drift and memory of a clip whose truth is known, for four ways to align its frames.

    python benchmarks/stream.py [--frames 500] [--seed 0] [--plot stream.png]

The clip is that of tests/synthetic_clip.py: a room that stands still, a box that moves through it, and maps that are
known up to a random scale and shift, with noise of 1 %. Flicker is the standard deviation over time of the logarithm of
the scale that least squares finds between a map and the truth, on what stands still; drift is how far that scale is
from its first ten frames in the last ten.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from openmarigold.gauges import fit_gauge
from synthetic_clip import FakePredictor, Frame, Room


def per_frame(frames: Iterator[Frame]) -> Iterator[np.ndarray]:
    """From 0 to 1 in each frame."""
    for frame in frames:
        yield (frame.raw - frame.raw.min()) / (frame.raw.max() - frame.raw.min())


def to_previous(frames: Iterator[Frame], fit: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> Iterator:
    """Each frame fitted to the one before."""
    before: np.ndarray | None = None
    for frame in frames:
        scale, shift = (1.0, 0.0) if before is None else fit(frame.raw.ravel(), before.ravel())
        before = (scale * frame.raw + shift).astype(np.float32)
        yield before


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Ordinary regression."""
    scale, shift = np.polyfit(x.astype(np.float64), y.astype(np.float64), 1)
    return float(scale), float(shift)


def symmetric(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """As `gauges`."""
    fit = fit_gauge(x, y)
    assert fit is not None
    return fit.scale, fit.shift


def ours(frames: Iterator[Frame]) -> Iterator[np.ndarray]:
    """`Predictor.stream`, of a predictor that gives the clip's maps."""
    predictor = FakePredictor()
    for out in predictor.stream(predictor.learn(frame.rgb, depth=frame.raw) for frame in frames):
        predictor.started.clear()
        yield out.prediction.depth


WAYS: dict[str, Callable[[Iterator[Frame]], Iterator[np.ndarray]]] = {
    "per frame": per_frame,
    "least squares to previous": lambda frames: to_previous(frames, least_squares),
    "symmetric to previous": lambda frames: to_previous(frames, symmetric),
    "Predictor.stream": ours,
}


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    room, curves = Room(seed=given.seed), {}
    for name, way in WAYS.items():
        scales, memory = [], []
        start = time.process_time()
        for number, depth in enumerate(way(room.frame(number) for number in range(given.frames))):
            frame = room.frame(number)
            still = ~frame.is_box
            scales.append(np.polyfit(frame.depth[still], depth[still], 1)[0])
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        curves[name] = np.log(np.abs(scales))
        drift = curves[name][-10:].mean() - curves[name][:10].mean()
        print(
            f"{name}: flicker {curves[name].std():.4f}, drift {drift:+.4f}, memory after 50 frames {memory[49]:.0f} "
            f"MiB and at the end {memory[-1]:.0f} MiB, {1000 * (time.process_time() - start) / given.frames:.0f} ms of "
            "the processor a frame"
        )
    if given.plot:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 4))
        for name, curve in curves.items():
            axes.plot(curve - curve[:10].mean(), label=name, linewidth=1)
        axes.set(xlabel="frame", ylabel="log scale to the truth", ylim=(-0.6, 0.6))
        axes.legend()
        figure.savefig(given.plot, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
