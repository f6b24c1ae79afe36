# SPDX-License-Identifier: Apache-2.0
"""`openmarigold video` with a network: from a clip to its files, and to a pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clips import decoded, patterns, write_clip

pytest.importorskip("av")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def run(*words: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "openmarigold", "video", *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)


def test_clip_to_files_and_to_a_pipe(tmp_path: Path, onnx_checkpoint: Path) -> None:
    clip = write_clip(tmp_path / "room.mkv", patterns(6))
    options = ("--checkpoint", onnx_checkpoint, "--num-inference-steps", 1, "--processing-resolution", 16)
    first = run(clip, tmp_path / "out", *options, "--format", "colored", "sidebyside", "ffv1", "npy", "--json")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["num_frames"] == told["num_predicted"] == 6 and told["problem"] is None and not told["skipped"]
    assert len(decoded(tmp_path / "out" / "room_depth_colored.mp4")[0]) == 6
    frames = np.load(tmp_path / "out" / "room_depth_frames.npz")
    assert np.isfinite(frames["bounds"]).all() and (frames["scale"] > 0).all()
    depth = np.load(tmp_path / "out" / "room_depth_frames" / "000005_depth.npy")
    low, high = frames["range_depth"][5]
    codes = decoded(tmp_path / "out" / "room_depth.mkv", pixel_format="gray16le")[1][5]
    assert np.abs(low + codes / 65535 * (high - low) - depth).max() <= (high - low) / 65535
    again = run(clip, tmp_path / "out", *options, "--format", "colored", "sidebyside", "ffv1", "npy", "--json")
    assert json.loads(again.stdout)["skipped"]

    piped = run(clip, "-", *options, "--format", "ffv1", "--pipe", "raw")
    assert piped.returncode == 0, piped.stderr
    assert (np.frombuffer(piped.stdout, "<u2").reshape(6, *depth.shape)[5] == codes).all()

    whole = write_clip(clip, patterns(40)).read_bytes()
    clip.write_bytes(whole[: len(whole) // 2])
    damaged = run(clip, tmp_path / "cut", *options)
    assert damaged.returncode == 1 and b"is cut off" in damaged.stderr and damaged.stderr.count(b"\n") == 1
    assert (tmp_path / "cut" / "room_depth_colored.mp4").exists()


def test_help_is_short_and_fast() -> None:
    code = (
        "import sys; from openmarigold.cli import parse\n"
        "try: parse(['video', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'numpy', 'av', 'cv2', 'torch'} & set(sys.modules)"
    )
    environment = {**ENVIRONMENT, "COLUMNS": "100"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert len(shown.stdout.splitlines()) <= 60
