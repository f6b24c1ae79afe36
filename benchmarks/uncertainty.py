# SPDX-License-Identifier: Apache-2.0
"""What intervals of depth should be made of: signals compared on pictures with measured depth, by 4-fold validation.

    python benchmarks/uncertainty.py PICTURES [--ensemble-size 10] [--signals constant constant+edges ...]

PICTURES is what `openmarigold calibrate --benchmark` takes, new to the embedded model. For each choice of signals,
three quarters of the scenes fit weights and a 90 % scale (rule conformal), the last quarter is measured; means over
pictures. "half" is the mean half width in natural logarithms; "score" the interval score (Winkler): width plus 20 times
what a miss is off; "edges" the coverage within a pixel of true jumps of a tenth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from openmarigold import Predictor
from openmarigold.config import PredictConfig
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.calibration import MAX_PIXELS, Observed, fit_weights
from openmarigold.modalities.bands import UP_TO_SCALE, largest_change
from openmarigold.predictor.intervals import signals_of
from openmarigold.uncertainty.conformal import fit_scale
from openmarigold.uncertainty.sparsification import sparsification

FOLDS, ALPHA = 4, 0.1
RADII = (1, 4, 8, 16)
SINGLE = ("constant", *(f"constant+change{radius}" for radius in RADII), "constant+change1+change16")
SINGLE += ("constant+range", "constant+distance")
ENSEMBLE = ("spread", "constant+spread", "constant+spread+change1+change4", "constant+spread+change1+change16")


def _logs(stack: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(stack[0], 1e-6))


def _range(stack: np.ndarray, uncertainty: np.ndarray | None) -> np.ndarray:
    low, high = np.quantile(_logs(stack), (0.1, 0.9))
    return np.full(stack.shape[1:], high - low, dtype=np.float32)


SIGNALS = {
    **{name: UP_TO_SCALE.signals[name] for name in ("constant", "spread")},
    **{
        f"change{radius}": lambda stack, uncertainty, radius=radius: largest_change(_logs(stack), radius)
        for radius in RADII
    },
    "range": _range,
    "distance": lambda stack, uncertainty: np.abs(_logs(stack) - np.median(_logs(stack))),
}
BAND = replace(UP_TO_SCALE, signals=SIGNALS)


def observe(path: Path, ensemble_size: int, names: Sequence[str]) -> list[tuple[Observed, np.ndarray]]:
    """Errors and signals of every picture, and which of its pixels lie near true edges."""
    predictor, benchmark = Predictor.load(), open_folder_benchmark(path)
    config, found = PredictConfig(ensemble_size=ensemble_size), []
    for entry in benchmark.entries:
        sample = benchmark.sample(entry)
        maps, signals = signals_of(predictor, sample.rgb, config.call, BAND, names)
        step = max(1, int(np.ceil(np.sqrt(sample.valid_mask.size / MAX_PIXELS))))
        chosen = np.zeros(sample.valid_mask.shape, dtype=bool)
        chosen[::step, ::step] = sample.valid_mask[::step, ::step]
        error = BAND.error(maps, sample.maps, sample.valid_mask)[chosen].astype(np.float32)
        edges = BAND.strata["edges"](sample.maps, sample.valid_mask)[chosen]
        stacked = np.stack([signals[name][chosen] for name in names])
        found.append((Observed(scene=(entry.kind, entry.place), error=error, signals=stacked), edges))
    return found


def compare(observed: list[tuple[Observed, np.ndarray]], places: list[int], names: list[str]) -> dict[str, float]:
    """Means over pictures that did not fit."""
    scenes = sorted({one.scene for one, _ in observed})
    order = np.random.default_rng(0).permutation(len(scenes))
    rows: list[dict[str, float]] = []
    for fold in range(FOLDS):
        tested = {scenes[place] for place in order[fold::FOLDS]}
        chosen = [replace(one, signals=one.signals[places]) for one, _ in observed]
        fitting = [one for one in chosen if one.scene not in tested]
        weights = np.ones(1) if len(names) == 1 else fit_weights(fitting, names)
        by_scene = {scene: [one for one in fitting if one.scene == scene] for scene in scenes if scene not in tested}
        scores = [[one.error / (weights @ one.signals) for one in pictures] for pictures in by_scene.values()]
        scale = fit_scale(scores, ALPHA)
        assert scale is not None, "too few scenes"
        for one, (_, edges) in zip(chosen, observed, strict=True):
            if one.scene in tested:
                half = scale * (weights @ one.signals)
                covered = one.error <= half
                ause, aurg = sparsification(one.error, half)
                score = np.mean(2 * half + 2 / ALPHA * np.maximum(one.error - half, 0))
                row = {"coverage": covered.mean(), "half": half.mean(), "score": score, "ause": ause, "aurg": aurg}
                rows.append({**row, "edges": covered[edges].mean() if edges.any() else np.nan})
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    """Reads the command line and prints a line for each choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--ensemble-size", type=int, default=1)
    parser.add_argument("--signals", nargs="+", default=None)
    given = parser.parse_args()
    choices = given.signals or [*SINGLE, *(ENSEMBLE if given.ensemble_size > 1 else ())]
    names = [name for name in SIGNALS if any(name in choice.split("+") for choice in choices)]
    observed = observe(given.pictures, given.ensemble_size, names)
    print(f"{len(observed)} pictures, ensemble_size {given.ensemble_size}")
    for choice in choices:
        chosen = choice.split("+")
        found = compare(observed, [names.index(name) for name in chosen], chosen)
        print(f"{choice:36}", "  ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
