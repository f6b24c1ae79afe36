# SPDX-License-Identifier: Apache-2.0
"""How much memory is free for tensors."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_SYSTEM = Path("/proc/meminfo")
_CONTAINERS = Path("/sys/fs/cgroup")
# The files with limit and use, and what files that were read are called: version 2 of cgroups, and version 1.
_LAYOUTS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_memory(device: str = "cpu") -> float:
    """Memory that tensors on a device may still take [bytes]; infinite where this is not known.

    On a CPU: free main memory without swapping, or the rest of a container's limit. On CUDA: free memory, and memory
        that torch holds without using it.
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min(_main_memory(), _container_memory()) if device == "cpu" else float("inf")


def _main_memory() -> float:
    try:
        lines = _SYSTEM.read_text(encoding="ascii").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        try:
            return float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return float("inf")


def _container_memory() -> float:
    """The rest of a container's memory limit. Cached files count as free, because they can be dropped."""
    for limit, used, statistics, read_files in _LAYOUTS:
        try:
            left = int(_text(limit)) - int(_text(used))
            kept = dict(line.split() for line in _text(statistics).splitlines())
            return float(max(0, left + int(kept.get(read_files, 0))))
        except (OSError, ValueError):  # no container of this kind, or no limit ("max")
            continue
    return float("inf")


def _text(name: str) -> str:
    return (_CONTAINERS / name).read_text(encoding="ascii")
