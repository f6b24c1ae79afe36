# SPDX-License-Identifier: Apache-2.0
"""`openmarigold compare` (also `evaluate compare`): whether one run is better than another on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from openmarigold.cli.terminal import cell, print_json, print_table

if TYPE_CHECKING:
    from openmarigold.evaluation.compare import Comparison


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare two runs of `evaluate` on the same images by a paired bootstrap."""

    a: tyro.conf.Positional[Path]
    """Output folder (or summary.json) of a run."""
    b: tyro.conf.Positional[Path]
    """Output folder (or summary.json) of another run."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all metrics as JSON."""


def run_compare(command: Compare) -> int:
    """Compares, prints, and returns the exit status."""
    from openmarigold.evaluation.compare import compare

    comparison = compare(command.a, command.b)
    if command.json:
        print_json(comparison.to_dict())
    else:
        _print_table(comparison)
    return 0


def _print_table(comparison: Comparison) -> None:
    from rich.table import Table

    from openmarigold.evaluation.compare import MIN_IMAGES

    caption, count = "better: named if every 95 % interval of b - a excludes 0", comparison.num_images
    if count < MIN_IMAGES:
        few = "one image decides nothing" if count == 1 else f"{count} are too few to name the better one"
        caption = f"{few}; score {MIN_IMAGES} images or more"
    elif comparison.num_places < MIN_IMAGES:
        places = "one place" if comparison.num_places == 1 else f"{comparison.num_places} places"
        caption += f"; all images are from {places}, so the result may not hold elsewhere"
    table = Table(
        title=f"{comparison.num_images} images of {cell(comparison.benchmark)}, protocol {comparison.protocol}",
        caption=caption,
    )
    table.add_column("metric")
    for heading in ("a", "b", "b - a"):
        table.add_column(heading, justify="right")
    for drawn in next(iter(comparison.differences.values())).intervals:
        table.add_column(f"95 % over {drawn}", justify="right")
    table.add_column("better")
    for score in comparison.scores.values():
        if not score.label or score.name not in comparison.differences:
            continue
        difference = comparison.differences[score.name]
        plain, signed = f".{score.digits}f", f"+.{score.digits}f"
        table.add_row(
            score.heading,
            *(score.text(value, plain) for value in (difference.a, difference.b)),
            score.text(difference.difference, signed),
            *(f"{score.text(low, signed)} … {score.text(high, signed)}" for low, high in difference.intervals.values()),
            comparison.verdict(score.name) or "–",
        )
    print_table(table, width=110)
