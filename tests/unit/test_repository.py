# SPDX-License-Identifier: Apache-2.0
"""The checks of file sizes and wheels that continuous integration makes."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / ".ci" / "check_sizes.py"))
WHEEL = runpy.run_path(str(ROOT / ".ci" / "check_wheel.py"))


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


def test_a_wheel_must_hold_the_sources_and_nothing_else() -> None:
    expected = WHEEL["files_of"](ROOT / "src" / "openmarigold")
    assert WHEEL["REQUIRED"]["openmarigold"] - set(WHEEL["PAGE"]) < expected  # the page may not be built
    expected |= set(WHEEL["PAGE"])
    names = {*expected, "openmarigold-0.1.0.dist-info/METADATA"}
    assert WHEEL["problems"](names, expected, "[a](https://a.org) [b](#b)") == []
    card = f"{WHEEL['WEIGHTS'][-1]}/README.md"
    found = WHEEL["problems"](names - {card} | {"tests/tiny.py"}, expected, "[a](docs/a.md)")
    assert found == [
        f"{card} is missing",
        "tests/tiny.py should not be there",
        "the description has the relative link docs/a.md",
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_pre_commit_and_contributing_run_the_same_checks() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "test", "VENV=.venv", "PIP_ARGS="]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    pattern = re.compile(r"^.*?\.venv/bin/(?!python -m pip|pip)(.+?) *$", re.MULTILINE)
    by_make = pattern.findall(done.stdout)
    assert len(by_make) >= 10
    by_hand = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("Without make:")[2].partition("\n## ")[0]
    assert pattern.findall(by_hand) == by_make

    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    beginnings = [" ".join(command.split()[:2]) for command in by_make if not re.search("pytest|check_wheel", command)]
    assert [" ".join(hook["entry"].split()[:2]) for hook in hooks] == [
        beginning.replace("pyright --pythonpath", "pyright") for beginning in beginnings
    ]
