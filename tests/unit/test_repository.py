# SPDX-License-Identifier: Apache-2.0
"""The check of file sizes that continuous integration makes."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "check_sizes.py"))


def test_the_repository_has_no_large_files_but_weights() -> None:
    assert SCRIPT["main"]() == 0


def test_large_files_outside_the_weights_and_second_copies_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / SCRIPT["WEIGHTS"]
    weights.mkdir(parents=True)
    large = bytes(SCRIPT["LIMIT"] + 1)
    names = {"one.safetensors": large, "two.safetensors": large, "graph.onnx": large, "small.onnx": large[1:]}
    for name, content in names.items():
        (weights / name).write_bytes(content)
    (tmp_path / "picture.jpg").write_bytes(large)
    files = ["picture.jpg", *(f"{SCRIPT['WEIGHTS']}{name}" for name in names)]
    found = SCRIPT["problems"](tmp_path, files)
    assert [line.split()[0].rpartition("/")[2] for line in found] == ["picture.jpg", "two.safetensors", "graph.onnx"]
