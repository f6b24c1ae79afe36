# SPDX-License-Identifier: Apache-2.0
"""The memory bound of docs/predict.md, on a photo of 100 megapixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
BASE_MIB = 300
BYTES_A_PIXEL = 16

MEASURE = """
import resource, sys
from openmarigold.cli import run
status = run(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("peak", peak / (2**20 if sys.platform == "darwin" else 2**10))
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the peak is asked of getrusage")
@pytest.mark.parametrize("tiles", ["--tiles", "--no-tiles"])
@pytest.mark.parametrize("size", [(11180, 8944), (54800, 1825)], ids=["100 megapixels", "panorama 30:1"])
def test_memory_of_large_photos(tmp_path: Path, onnx_checkpoint: Path, size: tuple[int, int], tiles: str) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    photo = tmp_path / "large.jpg"
    Image.fromarray(colors).resize(size, Image.Resampling.BILINEAR).save(photo, quality=90)
    arguments = ("predict", photo, "-o", tmp_path / "out", "--checkpoint", onnx_checkpoint, tiles)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    peak_mib = float(result.stdout.split()[-1])
    assert peak_mib < BASE_MIB + BYTES_A_PIXEL * size[0] * size[1] / 2**20
    assert np.load(tmp_path / "out" / "large_depth.npy", mmap_mode="r").shape == size[::-1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the peak is asked of getrusage")
@pytest.mark.parametrize("size", [(6000, 4000), (11180, 8944)], ids=["24 megapixels", "100 megapixels"])
def test_memory_of_a_folder_of_large_photos(tmp_path: Path, onnx_checkpoint: Path, size: tuple[int, int]) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(3):
        colors = np.random.default_rng(index).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        large = Image.fromarray(colors).resize(size, Image.Resampling.BILINEAR)
        large.save(tmp_path / "photos" / f"{index}.jpg", quality=90)
    arguments = ("predict", tmp_path / "photos", "-o", tmp_path / "out", "--checkpoint", onnx_checkpoint, "--no-tiles")
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    aside = min(2**25, 2 * size[0] * size[1]) if size[0] * size[1] <= 2**25 else 0
    assert float(result.stdout.split()[-1]) < BASE_MIB + BYTES_A_PIXEL * (size[0] * size[1] + aside) / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the peak is asked of getrusage")
def test_memory_of_an_evaluation_of_large_pairs(tmp_path: Path, onnx_checkpoint: Path) -> None:
    """The bound of docs/evaluation.md: 300 MiB and 100 bytes a pixel of the largest image, however many there are."""
    size, entries = (4000, 3000), []
    for index in range(2):
        folder = tmp_path / "benchmark" / f"room-{index}"
        folder.mkdir(parents=True)
        colors = np.random.default_rng(index).integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(colors).resize(size, Image.Resampling.BILINEAR).save(folder / "rgb.jpg", quality=90)
        depth = np.broadcast_to(np.linspace(1000, 5000, size[0]).astype(np.uint16), size[::-1])
        Image.fromarray(np.ascontiguousarray(depth)).save(folder / "depth.png")
        (folder / "meta.json").write_text('{"depth_scale": 1000}')
        entries.append({"name": folder.name, "kind": "room", "place": folder.name})
    (tmp_path / "benchmark" / "manifest.json").write_text(json.dumps(entries))
    arguments = ("evaluate", "--benchmark", tmp_path / "benchmark", "--checkpoint", onnx_checkpoint)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) < BASE_MIB + 100 * size[0] * size[1] / 2**20
