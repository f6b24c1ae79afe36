# SPDX-License-Identifier: Apache-2.0
"""`openmarigold data label`: photos with a model's own depth, for self-training."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openmarigold.cli.prepare import changed_options, say_prepared
from openmarigold.cli.terminal import progress_bar
from openmarigold.config import DTYPES


@dataclass(frozen=True, kw_only=True)
class Label:
    """Make a data set for training of photos: a model's ensemble labels them where its members agree.

    Pixels on which they differ are left unknown. Depth is up to a scale of each photo. An interrupted run of the same
    settings is continued. Exit status 1 if photos were defective: they are named in rejected.jsonl.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Folder, tar or zip of photos; a folder may hold tars and zips."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder of the data set, made if need be."""
    checkpoint: str | None = None
    """The teacher: folder or hub id of a model of depth up to scale, or in meters. None: the embedded model."""
    engine: str = "auto"
    """What runs it: onnx, openvino, torch, or auto."""
    dtype: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(DTYPES) + "}")] = "float32"
    """Precision of its networks."""
    ensemble_size: int = 4
    """Its members, 2 or more."""
    max_uncertainty: float = 0.1
    """Leave pixels unknown where members deviate from their median by more than this share of the depth."""
    min_valid: float = 0.5
    """Leave out photos with a smaller share of known pixels."""
    size: tuple[int, int] = (288, 384)
    """Height and width of the samples [px]: the middle of each photo, in this shape. One size for all of a recipe's
    sources."""
    license: str = ""
    """Terms of the photos, for the manifest."""
    limit: int | None = None
    """Only the first so many photos."""
    shard_size: int = 256
    """Photos a shard. A shard is what an interrupted run does not do again."""
    workers: int = 1
    """Processes, each with a model of its own that uses all cores; 0 = one per CPU core."""


def run_label(command: Label) -> int:
    """Prints what was made, and returns the exit status."""
    from openmarigold.batch.labels import FACTS, LabelReader
    from openmarigold.config import PredictConfig
    from openmarigold.data.preparation import FrameFilter, prepare

    config = PredictConfig(
        checkpoint=command.checkpoint,
        engine=command.engine,  # pyright: ignore[reportArgumentType] - it is checked
        dtype=command.dtype,  # pyright: ignore[reportArgumentType]
        ensemble_size=command.ensemble_size,
    )
    reader = LabelReader(command.source, config, size=command.size, max_uncertainty=command.max_uncertainty)
    words = ["openmarigold", "data", "label", str(command.source), "DEST", *changed_options(command)]
    with progress_bar("photos") as (progress, note):
        prepared = prepare(
            reader,
            command.dest,
            frame_filter=FrameFilter(min_valid=command.min_valid),
            limit=command.limit,
            shard_size=command.shard_size,
            workers=command.workers or os.cpu_count() or 1,
            facts={"command": shlex.join(words), "license": command.license, **FACTS},
            progress=progress,
            note=note,
        )
    return say_prepared(prepared, command.dest, frames="photos")
