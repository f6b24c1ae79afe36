# SPDX-License-Identifier: Apache-2.0
"""Meters from one photo: a model of metric depth next to baselines that learn from its training renders only.

    python benchmarks/metric_model.py --training DIR --measured DIR [DIR ...] [--checkpoint DIR] [--output FILE]

`--training` is a prepared set; `--measured` are prepared sets or benchmark folders. Nothing is aligned: depth in meters
is compared as it is. Rows: the median depth of the training renders everywhere; their mean log depth by image row; the
embedded model's depth with that median in every photo; the checkpoint with the photo's own camera; the checkpoint with
55 degrees assumed. Columns: means over images of AbsRel and delta1, in percent, by kind, of all images, and of those
whose camera is known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmarigold import Predictor
from openmarigold.camera import Camera
from openmarigold.data.shards import INDEX_FILE, ShardedDataset
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.metrics import abs_rel, delta

FARTHEST = 80.0  # m, of what counts, as in training
ROWS = 48


@dataclass(frozen=True)
class Measured:
    """A photo with its measured depth [m] and, where known, its camera."""

    kind: str
    rgb: np.ndarray
    depth: np.ndarray
    valid_mask: np.ndarray
    camera: Camera | None


Estimate = Callable[[Measured], np.ndarray]


def main() -> None:
    """Prints one table for each measured set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--measured", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--resolution", type=int, help="processing resolution of the checkpoint; its own where not given"
    )
    parser.add_argument("--samples", type=int, default=300, help="training renders that the baselines learn from")
    parser.add_argument("--only-checkpoint", action="store_true", help="leave the baselines out")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    words = parser.parse_args()
    estimators: dict[str, Estimate] = {} if words.only_checkpoint else baselines(words.training, words.samples)
    if words.checkpoint is not None:
        estimators |= of_checkpoint(words.checkpoint, words.resolution)
    tables = {str(place): table_of(place, estimators) for place in words.measured}
    if words.output is not None:
        words.output.write_text(json.dumps(tables, indent=1) + "\n", encoding="utf-8")


def table_of(place: Path, estimators: dict[str, Estimate]) -> dict[str, dict[str, list[float]]]:
    """Means of AbsRel and delta1 [%] and their number of images, by estimator and kind; printed as a table."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in estimators}
    for one in read(place):
        valid = one.valid_mask & (one.depth < FARTHEST)
        if not valid.any():
            continue
        for name, estimate in estimators.items():
            if one.camera is None and name.endswith("own camera"):
                continue
            pred = estimate(one)
            errors = (100 * abs_rel(pred, one.depth, valid), 100 * delta(pred, one.depth, valid))
            groups = [one.kind, "all", *(["all, camera known"] if one.camera else [])]
            for kind in groups:
                found[name].setdefault(kind, []).append(errors)
    table = {
        name: {kind: [*np.mean(errors, axis=0).tolist(), len(errors)] for kind, errors in sorted(kinds.items())}
        for name, kinds in found.items()
    }
    print(f"\n{place}: AbsRel / delta1 [%] (images)\n")
    kinds = sorted({kind for row in table.values() for kind in row})
    print("| | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for name, row in table.items():
        cells = [f"{row[kind][0]:.1f} / {row[kind][1]:.1f} ({row[kind][2]})" if kind in row else "" for kind in kinds]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return table


def read(place: Path, *, at_most: int | None = None) -> Iterator[Measured]:
    """The photos of a prepared set or a benchmark folder; some of them, spread over all, if there are more."""
    benchmark = open_folder_benchmark(place)
    shards = ShardedDataset(place) if (place / INDEX_FILE).is_file() else None
    numbers = {key: number for number, key in enumerate(shards.keys)} if shards else {}
    step = max(1, len(benchmark.entries) // (at_most or len(benchmark.entries)))
    for entry in benchmark.entries[::step]:
        files = benchmark.files(entry)
        sample = benchmark.sample(entry, files)
        if shards is not None:
            camera = shards.camera(numbers[entry.name])
        else:
            camera = camera_of(json.loads(files.get("meta", b"{}")), (sample.rgb.shape[0], sample.rgb.shape[1]))
        depth = np.asarray(sample.maps["depth"], dtype=np.float64)
        yield Measured(sample.kind, sample.rgb, depth, sample.valid_mask, camera)


def camera_of(facts: dict, size: tuple[int, int]) -> Camera | None:
    """What a meta.json states: fx, fy, cx, cy of pixels whose corner lies at (0, 0)."""
    if "intrinsics_px" not in facts:
        return None
    fx, fy, x, y = (float(value) for value in facts["intrinsics_px"])
    return Camera(fx=fx, fy=fy, cx=x - 0.5, cy=y - 0.5, height=size[0], width=size[1])


def baselines(training: Path, samples: int) -> dict[str, Estimate]:
    """The estimators that need no model of metric depth."""
    medians, sums, counts = [], np.zeros(ROWS), np.zeros(ROWS)
    for one in read(training, at_most=samples):
        valid = one.valid_mask & (one.depth < FARTHEST)
        medians.append(np.median(one.depth[valid]))
        rows = np.nonzero(valid)[0] * ROWS // len(valid)
        sums += np.bincount(rows, np.log(one.depth[valid]), ROWS)
        counts += np.bincount(rows, minlength=ROWS)
    middle, by_row = float(np.median(medians)), sums / np.maximum(counts, 1)
    embedded = Predictor.load()
    print(f"median depth {middle:.2f} m; rows from {np.exp(by_row[0]):.2f} m (top) to {np.exp(by_row[-1]):.2f} m")

    def of_embedded(one: Measured) -> np.ndarray:
        depth = embedded(one.rgb).depth.astype(np.float64)
        return middle / np.median(depth) * depth

    def by_image_row(one: Measured) -> np.ndarray:
        place = (np.arange(len(one.depth)) + 0.5) * ROWS / len(one.depth) - 0.5
        row = np.exp(np.interp(place, np.arange(ROWS), by_row))
        return np.repeat(row[:, None], one.depth.shape[1], axis=1)

    return {
        "median depth of the training renders": lambda one: np.full(one.depth.shape, middle),
        "image row": by_image_row,
        "embedded depth, that median": of_embedded,
    }


def of_checkpoint(folder: Path, resolution: int | None) -> dict[str, Estimate]:
    """A model of metric depth, with the photo's camera and without."""
    predictor = Predictor.load(folder)

    def estimate(one: Measured, camera: Camera) -> np.ndarray:
        return predictor(one.rgb, camera=camera, processing_resolution=resolution).depth.astype(np.float64)

    def with_own(one: Measured) -> np.ndarray:
        assert one.camera is not None
        return estimate(one, one.camera)

    def with_assumed(one: Measured) -> np.ndarray:
        return estimate(one, Camera.assumed((one.depth.shape[0], one.depth.shape[1])))

    return {
        f"{predictor.checkpoint.name}, own camera": with_own,
        f"{predictor.checkpoint.name}, 55 degrees": with_assumed,
    }


if __name__ == "__main__":
    main()
