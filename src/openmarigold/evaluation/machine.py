# SPDX-License-Identifier: Apache-2.0
"""Where numbers came from: versions and hardware."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("openmarigold", "numpy", "pillow", "onnxruntime", "torch", "diffusers")


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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
