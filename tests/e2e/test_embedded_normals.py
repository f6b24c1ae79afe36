# SPDX-License-Identifier: Apache-2.0
"""The normals model that comes with the package: its place, one set of weights for two engines, better than others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.checkpoints.checkpoint import EMBEDDED_DIR, EMBEDDED_DIRS, read_checkpoint
from openmarigold.checkpoints.integrity import describe, verify
from openmarigold.cli import run
from openmarigold.geometry import angles_between, unit_vectors
from openmarigold.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = sorted((ROOT / "examples" / "photos").glob("*.jpg"))
BENCHMARK = ROOT / "examples" / "benchmark"
NORMALS_DIR = EMBEDDED_DIRS["normals"]
MAX_BYTES = 25 * 2**20
WINDOW = 7
# Of a plane's fit to 1/z in a window, relative to 1/z: steps of 2 mm in stored depth and flat surfaces stay below.
SMOOTH = 0.002


@pytest.fixture(scope="module")
def embedded() -> Predictor:
    return Predictor.load(modality="normals")


def test_it_is_small_intact_and_shares_the_encoder() -> None:
    files = [path for path in NORMALS_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert not (NORMALS_DIR / "image_encoder").exists()
    checkpoint = read_checkpoint(NORMALS_DIR)
    assert checkpoint.graphs and checkpoint.modality.name == "normals"
    assert [line for _, lines in verify(checkpoint) for line in lines] == []
    content = describe(checkpoint)
    assert content["license"] == "see LICENSE.md"
    assert f"../{EMBEDDED_DIR.name}/image_encoder/diffusion_pytorch_model.safetensors" in content["files"]


def test_same_normals_by_torch_from_the_same_weights(embedded: Predictor) -> None:
    checkpoint = Predictor.load(modality="normals", engine="torch", device="cpu")
    assert (embedded.engine.name, checkpoint.engine.name) == ("onnx", "torch")
    assert PHOTOS
    for photo in PHOTOS[:3]:
        ours, other = (predictor(photo).maps["normals"] for predictor in (embedded, checkpoint))
        apart = angles_between(ours, other, axis=-1)
        assert apart.mean() < 0.05 and np.quantile(apart, 0.999) < 2.0, photo.name


def test_the_command_uses_it_offline(tmp_path: Path) -> None:
    assert run(["predict", str(PHOTOS[0]), "--modality", "normals", "--output-dir", str(tmp_path)]) == 0
    line = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[-1])
    assert NORMALS_DIR.name in json.dumps(line) and "derived_from" not in json.dumps(line)
    normals = np.load(tmp_path / f"{PHOTOS[0].stem}_normals.npy")
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0, atol=1e-4)


def window_sums(values: np.ndarray) -> np.ndarray:
    """Of each window of `WINDOW` pixels a side, around all pixels that are far enough from the border."""
    return np.lib.stride_tricks.sliding_window_view(values, (WINDOW, WINDOW)).sum(axis=(2, 3))


def measured_normals(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Normals of planes that are fitted to 1/z around each pixel, and where such a plane is what is there."""
    meta = json.loads((folder / "meta.json").read_text())
    depth = np.asarray(Image.open(folder / "depth.png")).astype(np.float64) / meta["depth_scale"]
    fx, fy, cx, cy = meta["intrinsics_px"]
    known = depth > 0
    inverse = np.where(known, 1.0 / np.maximum(depth, 1e-9), 0.0)
    row, column = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float64)
    half, count = WINDOW // 2, WINDOW**2
    middle = (slice(half, -half), slice(half, -half))
    spread = count * (WINDOW**2 - 1) / 12  # sum of squared offsets from the middle
    mean = window_sums(inverse) / count
    slope_x = (window_sums(inverse * column) - column[middle] * mean * count) / spread
    slope_y = (window_sums(inverse * row) - row[middle] * mean * count) / spread
    left = window_sums(inverse**2) / count - mean**2 - (slope_x**2 + slope_y**2) * spread / count
    whole = window_sums(known.astype(np.float64)) > count - 0.5
    x, y = column[middle] + 0.5 - cx, row[middle] + 0.5 - cy  # the set counts pixel centers from 0.5
    vectors = np.stack([-fx * slope_x, fy * slope_y, mean - x * slope_x - y * slope_y], axis=-1)
    usable = whole & (np.sqrt(np.maximum(left, 0.0)) < SMOOTH * mean)
    normals, mask = np.zeros((*depth.shape, 3)), np.zeros(depth.shape, dtype=bool)
    normals[middle], mask[middle] = unit_vectors(vectors, axis=-1), usable
    return normals, mask


def test_better_than_facing_the_camera_and_than_normals_from_embedded_depth(embedded: Predictor) -> None:
    derived = Predictor.load(EMBEDDED_DIR, modality="normals")
    errors: dict[str, list[float]] = {"model": [], "from depth": [], "facing the camera": []}
    for folder in sorted(path for path in BENCHMARK.iterdir() if path.is_dir()):
        truth, mask = measured_normals(folder)
        assert mask.mean() > 0.1, folder.name
        photo = folder / "rgb.jpg"
        found = {
            "model": embedded(photo).maps["normals"],
            "from depth": derived(photo).maps["normals"],
            "facing the camera": np.broadcast_to([0.0, 0.0, 1.0], truth.shape),
        }
        for name, normals in found.items():
            errors[name].append(float(angles_between(normals, truth, axis=-1)[mask].mean()))
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    assert mean["model"] < 0.9 * mean["from depth"] < mean["facing the camera"], mean
