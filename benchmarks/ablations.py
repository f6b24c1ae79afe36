# SPDX-License-Identifier: Apache-2.0
"""The paper's ablations at marigold-lite's size: small trainings of equal compute, and curves of a finished model.

    python benchmarks/ablations.py train prior objective noise data kinds --data-dir DATA --benchmark BENCHMARK \
        --output DIR
    python benchmarks/ablations.py train labels --start runs/lite-2-depth/checkpoint ...
    python benchmarks/ablations.py curves --benchmark BENCHMARK --output DIR [--checkpoint FOLDER]
    python benchmarks/ablations.py report --output DIR [--pictures docs/images]

`train` trains each arm of the named comparisons with each seed (recipe `recipes/ablation.toml` with the arm's changes)
and scores it on the benchmark. `curves` scores a checkpoint at 1 to 50 denoising steps and with 1 to 20 members. Both
append lines to `DIR/results.jsonl` and leave out what is there, so an interrupted run continues. `report` prints
tables (mean and spread over seeds) and draws plots.

DATA holds `synthetic/train-*.tar`. The comparison `labels` trains a model further; it also needs `labels/`, a set of
`openmarigold data label`, and `--start`, a model that has not learned from labels, as the shipped one has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold import Predictor, evaluate, train
from openmarigold.evaluation.estimators import Estimator, predictor_estimator

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "ablation.toml"
LITE = RECIPE.parent.parent / "src" / "openmarigold" / "weights" / "marigold-lite"
_BOTH = "data.sources={ synthetic = 0.5, labels = 0.5 }"
_DENOISING = ('loss.objective="denoising"',)
_FURTHER = (
    "encoder.frozen=true",
    "data.size=[256, 320]",
    "checkpoint.processing_resolution=256",
    "optimization.num_steps=120",
    "optimization.batch_size=12",
    "optimization.micro_batch_size=6",
    "optimization.learning_rate=1.5e-4",
    "loss.pair_share=0.2",
    "loss.gradient_weight=2.0",
)
"""What recipe lite-3-photos says but for its labels; the last arm of `labels` is that recipe."""
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "prior": {
        "random weights": ('encoder.weights="random"', "encoder.learning_rate_factor=1.0", "encoder.frozen_stages=0"),
        "ImageNet, frozen": ("encoder.learning_rate_factor=0.0",),
        "ImageNet, fine-tuned": (),
    },
    "start": {
        "zeros": (),
        "zeros, two of five Gaussian": ("loss.pair_share=0.4",),
        "Gaussian": ("loss.pair_share=1.0",),
    },
    "data": {
        "176 pairs": ("data.num_samples={ synthetic = 176 }",),
        "353 pairs": ("data.num_samples={ synthetic = 353 }",),
        "705 pairs": ("data.num_samples={ synthetic = 705 }",),
        "1,411 pairs": (),
    },
    "kinds": {
        "all kinds": (),
        "all kinds, equally often": ("data.kind_weights={ rooms = 1.0, tabletop = 4.32, street = 2.49 }",),
        "without rooms": ("data.kind_weights={ rooms = 0.0 }",),
        "without table tops": ("data.kind_weights={ tabletop = 0.0 }",),
        "without streets": ("data.kind_weights={ street = 0.0 }",),
    },
    "objective": {
        "end to end": (),
        "denoising, v": _DENOISING,
        "denoising, x0": (*_DENOISING, 'timesteps.prediction_type="sample"'),
        "denoising, v, half at the last timestep": (*_DENOISING, "timesteps.last_share=0.5"),
    },
    "noise": {
        "annealed multi-resolution": _DENOISING,
        "multi-resolution": (*_DENOISING, "noise.annealed=false"),
        "Gaussian": (*_DENOISING, "noise.strength=0.0"),
    },
    "labels": {
        "further on renders alone": _FURTHER,
        "further with its own labels of photos": (*_FURTHER, _BOTH),
        "the same, edges from renders alone": (*_FURTHER, _BOTH, "loss.gradient_weight_of={ labels = 0.0 }"),
    },
}
"""Comparisons: what each arm changes in the recipe. The encoder of an arm with random weights learns all of it at the
full rate, since it knows nothing that should be kept."""
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    group: {
        ", 1 step": {"num_inference_steps": 1},
        ", 4 steps": {"num_inference_steps": 4},
        ", 4 steps, 5 members": {"num_inference_steps": 4, "ensemble_size": 5},
    }
    for group in ("objective", "noise")
}
"""How the models of a comparison are used, where not as their checkpoints recommend."""
STEPS = (1, 2, 4, 10, 25, 50)
MEMBERS = (1, 2, 3, 5, 10, 20)
_PROTOCOLS = {"depth": "marigold", "log": "log"}
_SCORES = ("abs_rel", "delta1", "boundary_f1")
PLACES = ("room", "tabletop", "outdoor")
"""Kinds of places in the benchmark."""


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "curves", "report"))
    parser.add_argument("groups", nargs="*", help=f"of train: {', '.join(GROUPS)}")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--benchmark", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=LITE)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="of the comparison labels: the checkpoint that is trained further")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="changes the recipe of every arm")
    parser.add_argument("--pictures", type=Path)
    words = parser.parse_args()
    words.output.mkdir(parents=True, exist_ok=True)
    if unknown := set(words.groups) - GROUPS.keys():
        parser.error(f"no comparison {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    needed = {"train": ("data_dir", "benchmark"), "curves": ("benchmark",), "report": ()}[words.part]
    if missing := [name for name in needed if getattr(words, name) is None]:
        parser.error(f"{words.part} needs {', '.join('--' + name.replace('_', '-') for name in missing)}")
    if words.part == "train" and "labels" in words.groups and words.start is None:
        parser.error("labels needs --start")
    {"train": train_groups, "curves": curves, "report": report}[words.part](words)


def train_groups(words: argparse.Namespace) -> None:
    """Trains and scores every arm; one seed of all arms first, so that an early end leaves whole comparisons.

    Arms of two comparisons that change the same are trained once.
    """
    done = {(row["group"], row["arm"], row["seed"]) for row in rows(words.output)}
    for group in words.groups:
        settings = SETTINGS.get(group, {"": {}})
        for seed in range(1, words.seeds + 1):
            for arm, changes in GROUPS[group].items():
                missing = [name for name in settings if (group, arm + name, seed) not in done]
                if not missing:
                    continue
                overrides = [*changes, *([f'start="{words.start}"'] if group == "labels" else []), *words.set]
                digest = hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:12]
                folder = words.output / "runs" / f"{digest}-{seed}"
                overrides += [f"seed={seed}", f'autoencoder="{LITE}"']
                found = train(RECIPE, data_dir=words.data_dir, output_dir=folder, overrides=overrides, device="cpu")
                assert found is not None
                for name in missing:
                    measured = scores(words.benchmark, found, **settings[name])
                    add(words.output, group=group, arm=arm + name, seed=seed, **measured)


def curves(words: argparse.Namespace) -> None:
    """Scores a checkpoint at several numbers of steps (from zeros and from noise) and of members."""
    done = {(row["group"], row["arm"], row.get("x")) for row in rows(words.output)}
    for start in ("zeros", "gaussian"):
        for count in STEPS:
            if ("steps", start, count) not in done:
                options = {"num_inference_steps": count, "start_noise": start}
                found = scores(words.benchmark, words.checkpoint, **options)
                add(words.output, group="steps", arm=start, x=count, seed=0, **found)
    for arm, mirror in (("members mirrored by turns", True), ("not mirrored", False)):
        for count in MEMBERS:
            if ("members", arm, count) not in done:
                found = scores(words.benchmark, words.checkpoint, ensemble_size=count, ensemble_mirror=mirror)
                add(words.output, group="members", arm=arm, x=count, seed=0, **found)


def scores(benchmark: Path, checkpoint: Path, **options: Any) -> dict[str, float]:
    """AbsRel, delta1 and boundary F1 [%] of two protocols, and AbsRel of the first at each kind of place."""
    has_onnx = (checkpoint / "unet" / "unet.onnx").exists()
    predictor = Predictor.load(checkpoint, engine="auto" if has_onnx else "torch")
    estimator = predictor_estimator(predictor, **options)
    kept: dict[bytes, Any] = {}

    def once(rgb: np.ndarray) -> Any:
        key = hashlib.sha256(rgb.tobytes()).digest()
        if key not in kept:
            kept[key] = estimator(rgb)
        return kept[key]

    found = {}
    for name, protocol in _PROTOCOLS.items():
        scored = evaluate(benchmark, Estimator(once, estimator.invariance, estimator.modality), protocol=protocol)
        everywhere = scored.kinds["all"].metrics
        found |= {f"{name}_{score}": 100 * everywhere[score] for score in _SCORES}
        if name == "depth":
            found |= {f"at_{kind}": 100 * scored.kinds[kind].metrics["abs_rel"] for kind in PLACES}
    return {key: round(value, 3) for key, value in found.items()}


def rows(folder: Path) -> list[dict[str, Any]]:
    """What was measured."""
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add(folder: Path, **row: Any) -> None:
    """Keeps and prints a measurement."""
    with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def report(words: argparse.Namespace) -> None:
    """Prints tables of all measurements, and draws a plot of each comparison where a folder is given."""
    found = rows(words.output)
    for group in dict.fromkeys(row["group"] for row in found):
        lines = dict(of_group([row for row in found if row["group"] == group]))
        places = PLACES if group == "kinds" else ()
        titles = "".join(f" AbsRel, {place} |" for place in places)
        print(f"\n| {group} | seeds | AbsRel | delta1 | boundary F1 | AbsRel, log | delta1, log |{titles}")
        print("|" + "---|" * (7 + len(places)))
        for (arm, x), values in lines.items():
            names = (*_NAMES, *(f"at_{place}" for place in places))
            cells = [_cell([row[name] for row in values if name in row]) for name in names]
            print(f"| {arm}{'' if x is None else f', {x}'} | {len(values)} | {' | '.join(cells)} |")
        if words.pictures is not None:
            draw(group, lines, words.pictures / f"ablation-{group}.png")


_NAMES = ("depth_abs_rel", "depth_delta1", "depth_boundary_f1", "log_abs_rel", "log_delta1")
_Key = tuple[str, int | None]


def of_group(found: list[dict[str, Any]]) -> Iterator[tuple[_Key, list[dict[str, Any]]]]:
    """Measurements by arm and place on the curve, over seeds."""
    for key in dict.fromkeys((row["arm"], row.get("x")) for row in found):
        yield key, [row for row in found if (row["arm"], row.get("x")) == key]


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def draw(group: str, lines: dict[_Key, list[dict[str, Any]]], path: Path) -> None:
    """A curve for each arm, or a point for each seed of each arm."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot, ticker

    is_curve = any(x is not None for _, x in lines)
    figure, axes = pyplot.subplots(figsize=(7.2, 2.8 if is_curve else 0.8 + 0.3 * len(lines)), layout="constrained")
    if is_curve:
        for arm in dict.fromkeys(arm for arm, _ in lines):
            points = [(x, values[0][_NAMES[0]]) for (name, x), values in lines.items() if name == arm]
            axes.plot(*zip(*points, strict=True), marker="o", label=arm)
        axes.set_xscale("log")
        axes.set_xticks(sorted({x for _, x in lines if x is not None}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel("denoising steps" if group == "steps" else "members")
        axes.set_ylabel("AbsRel [%]")
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.5, high + 0.5)  # a tenth of a point is no finding
        axes.legend(frameon=False)
    else:
        for place, values in enumerate(lines.values()):
            points = [row[_NAMES[0]] for row in values]
            axes.plot(points, [place] * len(points), "o", color="C0", alpha=0.6)
            axes.plot([statistics.mean(points)], [place], "k|", markersize=16)
        axes.set_yticks(range(len(lines)), [arm for arm, _ in lines])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel("AbsRel [%], a point a seed, | their mean")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
