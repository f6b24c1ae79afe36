# SPDX-License-Identifier: Apache-2.0
"""The benchmark for GPUs, on a CPU with tiny networks: it must not rot between two loans of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What it prints and writes; `folder` becomes that of temporary files."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--output", str(folder / "gpu.json")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "gpu.json").read_text(encoding="utf-8"))


def test_every_way_of_both_pipelines_runs(tmp_path: Path) -> None:
    printed, found = run(tmp_path, "--minutes", "5")
    rows = found["rows"]
    assert [row["name"] for row in rows if "error" in row] == []
    assert {(row["who"], row["way"]) for row in rows} == {
        ("diffusers", "plain"),
        ("diffusers", "recipe"),
        *(("ours", way) for way in ("plain", "default", "channels_last", "graphs", "compiled", "compiled+graphs")),
    }
    assert {(row["photos"], row["members"]) for row in rows} == {(1, 1), (4, 1), (16, 1), (1, 10)}
    assert printed.count("\n| ours") + printed.count("\n| diffusers") == len(rows)
    assert found["stopped_at"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"], "the weights are removed"
    for row in rows:
        assert row["ms"] > 0 and row["tflops"] > 0, row["name"]
        assert row["depth_std"] > 0.05, "a constant depth would show no difference"
        if row["members"] == 1:
            assert row["difference_to"].startswith(f"diffusers {row['vae']} float32 plain")
            assert row["mean_difference"] < (0.05 if row["dtype_used"] == "bfloat16" else 1e-4), row["name"]


def test_the_clock_ends_it_with_what_there_is(tmp_path: Path) -> None:
    printed, found = run(tmp_path, "--minutes", "0.15")  # of which some seconds are kept for the table
    assert "Stopped by the clock at " in printed
    assert found["stopped_at"]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
