# SPDX-License-Identifier: Apache-2.0
"""`openmarigold export`: short for `openmarigold checkpoint export --format onnx`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openmarigold.cli.terminal import say
from openmarigold.errors import needs_extra


@dataclass(frozen=True, kw_only=True)
class Export:
    """Turn a checkpoint with safetensors weights into one that runs without torch, in ONNX format (extra `export`).

    Short for `checkpoint export`, which has more formats.
    """

    checkpoint_dir: tyro.conf.Positional[Path]
    """Checkpoint folder."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder to write; replaced if it is there."""


def run_export(command: Export) -> int:
    """Exports and returns the exit status."""
    with needs_extra("export"):
        from openmarigold.networks.conversion import export_onnx

    export_onnx(command.checkpoint_dir, command.output_dir)
    say(f"ONNX checkpoint -> {command.output_dir}")
    return 0
