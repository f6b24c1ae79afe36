# SPDX-License-Identifier: Apache-2.0
"""Commands as a user runs them, in this process and in one of their own, with what they print and write."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from openmarigold.cli import run
from tiny import make_photo

# The environment finds the package installed or, in a checkout, on the path of this process.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "100"}


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", ENVIRONMENT["COLUMNS"])


def openmarigold(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in this process, with its status and what it prints; warnings are printed as Python does by itself."""
    words = list(map(str, arguments))
    stdout, stderr = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(stderr)
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = run(words)
    finally:
        logging.getLogger().removeHandler(handler)
    return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())


def openmarigold_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openmarigold", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def assert_one_error_line(result: subprocess.CompletedProcess[str], *parts: str, status: int = 2) -> None:
    assert result.returncode == status, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def names_in(directory: Path) -> list[str]:
    """Names of result files; the manifest is none."""
    names = (path.name for path in directory.iterdir()) if directory.exists() else ()
    return sorted(name for name in names if name != "manifest.jsonl")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(make_photo(48, 64)).save(path)
    return path
