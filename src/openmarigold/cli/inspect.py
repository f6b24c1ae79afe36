# SPDX-License-Identifier: Apache-2.0
"""`openmarigold inspect`: where a result file comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from openmarigold.cli.terminal import print_json, say


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Print where a result file comes from: checkpoint, settings, hashes."""

    file: tyro.conf.Positional[Path]
    """Result of `predict`: .png, .npz, .exr, .ply, .glb, or .npy next to its manifest."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print it as JSON."""


def run_inspect(command: Inspect) -> int:
    """Prints the record and returns the exit status."""
    from openmarigold.results.provenance import read_provenance

    record = read_provenance(command.file)
    if command.json:
        print_json(record)
        return 0
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        say(f"{name:<{width}}  {value}")
    return 0
