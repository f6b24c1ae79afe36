# SPDX-License-Identifier: Apache-2.0
"""What the golden test compares: predictions, scores and training losses, and how golden.json is recorded.

Record again, only where results are meant to change: `PYTHONPATH=tests python tests/golden/goldens.py --record`. The
test runs this file as a program, since the run-time checks of shapes in the tests' own process triple the time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: sums depend on the number of threads

import numpy as np
from PIL import Image

from openmarigold.cli import run
from training_data import AUTOENCODER, DEPTH, GENERATOR, write_training_data

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).parent / "golden.json"
NUM_STEPS = 20
_OBJECTIVE = 'objective = { kind = "end_to_end", error = "relative" }'
END_TO_END = DEPTH.replace("timesteps = { last_share = 0.25 }", _OBJECTIVE)
CHAIN = {"autoencoder": AUTOENCODER, "generator": GENERATOR, "depth": DEPTH, "end-to-end": END_TO_END}


def environment() -> dict[str, str]:
    """What rounding depends on: where all of it is equal, results are equal to the last bit."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    keys = ("model name", "cpu family", "model", "stepping")
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    model = " ".join(value.strip() for key, value in found.items() if key.strip() in keys)
    packages = ("numpy", "onnxruntime", "pillow", "torch")
    return {
        "cpu": model or platform.processor(),
        "cores": str(os.cpu_count()),  # ONNX Runtime uses them all
        **{name: version(name) for name in packages},
    }


def predictions(folder: Path) -> dict[str, Any]:
    """Depth of the example photos with the defaults, and of two in an ensemble of 4."""
    photos = sorted((ROOT / "examples" / "photos").glob("*.jpg"))
    assert run(["predict", *map(str, photos), "-o", str(folder / "one")]) == 0
    assert run(["predict", *map(str, photos[:2]), "-o", str(folder / "four"), "--ensemble-size", "4"]) == 0
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix == ".npy":
            found[f"{path.parent.name}/{path.name}"] = _fingerprint(np.load(path))
        elif path.suffix == ".png":  # pixels: the text in the file names the version
            found[f"{path.parent.name}/{path.name}"] = _fingerprint(np.asarray(Image.open(path)))
    return found


def scores(folder: Path) -> dict[str, Any]:
    """The scores of the example benchmark by kind, all but times and what names the software."""
    assert run(["evaluate", "--benchmark", str(ROOT / "examples" / "benchmark"), "-o", str(folder)]) == 0
    kinds = json.loads((folder / "summary.json").read_text())["kinds"]
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3", "boundary_f1")
    return {kind: {name: score[name] for name in names if name in score} for kind, score in kinds.items()}


def losses(folder: Path) -> dict[str, list[float]]:
    """The first losses of each kind of recipe, one trained from the other."""
    data = write_training_data(folder / "data")
    found, before = {}, Path.cwd()
    os.chdir(folder)
    try:
        for name, text in CHAIN.items():
            Path(f"{name}.toml").write_text(re.sub(r"num_steps = \d+", f"num_steps = {NUM_STEPS}", text))
            arguments = ["--recipe", f"{name}.toml", "--data-dir", str(data), "--output-dir", name, "--device", "cpu"]
            assert run(["train", *arguments]) == 0
            rows = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
            found[name] = [row["loss"] for row in rows if "loss" in row]
    finally:
        os.chdir(before)
    return found


def _fingerprint(values: np.ndarray) -> dict[str, Any]:
    """A hash of all bytes, and means of 4x4 parts for machines that round differently."""
    height, width = values.shape[:2]
    parts = values[: height // 4 * 4, : width // 4 * 4].astype(np.float64)
    means = parts.reshape(4, height // 4, 4, width // 4, -1).mean(axis=(1, 3, 4))
    digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return {"sha256": digest.hexdigest(), "means": means.round(6).tolist()}


def record(folder: Path) -> Mapping[str, Any]:
    """All goldens, as golden.json holds them."""
    return {
        "environment": environment(),
        "predictions": predictions(folder / "predictions"),
        "scores": scores(folder / "scores"),
        "losses": losses(folder / "losses"),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("predictions", "scores", "losses"):
            (Path(temporary) / name).mkdir()
        text = json.dumps(record(Path(temporary)), indent=1) + "\n"
    (RECORD if sys.argv[1:] == ["--record"] else Path(sys.argv[1])).write_text(text)
