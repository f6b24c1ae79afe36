# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands share to choose where large work runs, and the engine for them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from openmarigold.errors import InvalidValueError

if TYPE_CHECKING:
    from openmarigold.data.units import UnitEngine

MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """Flags of commands whose work Ray may schedule."""

    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Run the work on a Ray cluster, --workers actors at most (extra `ray`): its address; auto, the one that runs
    here; or local, a new one on this machine."""
    gpus_per_worker: float = 0.0
    """With --ray: GPUs for each actor, such as 1 or 0.5."""


def ray_engine(address: str | None, *, workers: int, gpus_per_worker: float = 0.0) -> UnitEngine | None:
    """The engine for a cluster of Ray; None without an address.

    Raises:
        InvalidValueError: GPUs without an address.
    """
    if address is not None:
        from openmarigold.batch.ray_engine import RayEngine

        return RayEngine(address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    if gpus_per_worker:
        raise InvalidValueError("gpus_per_worker was given without --ray; give both or neither")
    return None


def num_workers(given: int) -> int:
    """Processes or threads that `--workers` asks for; 0 means one per CPU core.

    Raises:
        InvalidValueError: it is below 0.
    """
    if given < 0:
        raise InvalidValueError(f"--workers: {given} is not accepted; give 1 or more, or 0 for one per CPU core")
    return given or os.cpu_count() or 1
