# SPDX-License-Identifier: Apache-2.0
"""Where numbers came from: versions, hardware, and hashes of checkpoints."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from openmarigold.checkpoint import read_checkpoint

_PACKAGES = ("openmarigold", "numpy", "pillow", "onnxruntime", "torch", "diffusers")
_WEIGHTS_AND_SETTINGS = {".json", ".onnx", ".safetensors"}
_CHUNK = 1 << 22


def describe_machine() -> dict[str, Any]:
    """Versions of what computes the numbers, and the machine."""
    versions = {"python": platform.python_version(), **{package: version_of(package) for package in _PACKAGES}}
    return {
        "versions": versions,
        "hardware": {"machine": platform.machine(), "processor": _processor(), "num_cpus": os.cpu_count()},
        "system": platform.system(),
    }


def version_of(package: str) -> str | None:
    """Version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
