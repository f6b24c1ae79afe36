# SPDX-License-Identifier: Apache-2.0
"""A batch that is killed at random moments ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from openmarigold.results.manifest import Manifest
from tiny import make_photo

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
NUM_PHOTOS = 200
NUM_KILLS = 3


def results_in(directory: Path) -> dict[str, bytes]:
    """Every file but the manifest, with its bytes; temporary ones too, of which none may be left."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_two_hundred_photos_killed_three_times(tmp_path: Path, onnx_checkpoint: Path) -> None:
    photos = tmp_path / "photos"
    for index in range(NUM_PHOTOS):
        path = photos / f"{index % 3}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_photo(24, 16 + index % 7, seed=index)).save(path)

    def command(name: str) -> list[str]:
        options = ("--checkpoint", onnx_checkpoint, "--num-inference-steps", 1, "--processing-resolution", 16)
        return [sys.executable, "-m", "openmarigold", "predict", *map(str, (photos, "-o", tmp_path / name, *options))]

    manifest = tmp_path / "killed" / "manifest.jsonl"
    rng = random.Random(3)
    done_before = 0
    for _ in range(NUM_KILLS):
        process = subprocess.Popen(command("killed"), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        wanted = done_before + rng.randrange(5, 50)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if manifest.exists() and manifest.read_bytes().count(b'"done"') >= wanted:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.wait()
        done = manifest.read_bytes().count(b'"done"')
        assert done_before < done < NUM_PHOTOS
        done_before = done

    for name in ("killed", "whole"):
        subprocess.run(command(name), env=ENVIRONMENT, check=True, capture_output=True)
    lines = Manifest(tmp_path / "killed").lines()
    done_times = Counter(line["result"] for line in lines if line["status"] == "done")
    assert len(done_times) == NUM_PHOTOS
    assert set(done_times.values()) == {1}, "finished work was repeated"
    started = Counter(line["result"] for line in lines if line["status"] == "started")
    assert started.total() <= NUM_PHOTOS + NUM_KILLS

    whole = results_in(tmp_path / "whole")
    assert len(whole) == 3 * NUM_PHOTOS
    assert results_in(tmp_path / "killed") == whole
    assert np.load(tmp_path / "killed" / "1" / "001_depth.npy").shape == (24, 17)
