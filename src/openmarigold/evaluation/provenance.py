# SPDX-License-Identifier: Apache-2.0
"""Where numbers came from: versions, hardware, and hashes of checkpoints."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from openmarigold import __version__
from openmarigold.checkpoint import read_checkpoint

_PACKAGES = ("numpy", "pillow", "onnxruntime", "torch", "diffusers")
_WEIGHTS_AND_SETTINGS = {".json", ".onnx", ".safetensors"}
_CHUNK = 1 << 22


def describe_machine() -> dict[str, Any]:
    """Versions of what computes the numbers, and the machine."""
    versions: dict[str, str | None] = {"openmarigold": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "versions": versions,
        "hardware": {"machine": platform.machine(), "processor": _processor(), "num_cpus": os.cpu_count()},
        "system": platform.system(),
    }


def hash_of_checkpoint(directory: Path | None) -> str:
    """SHA-256 over names and contents of a checkpoint folder's weights and settings; None is the embedded model."""
    folder = read_checkpoint(directory).directory
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in _WEIGHTS_AND_SETTINGS and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
