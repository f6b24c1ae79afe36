# SPDX-License-Identifier: Apache-2.0
"""`openmarigold evaluate`: scores on a folder of photos with measured depth."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from openmarigold.cli.terminal import progress_bar
from openmarigold.config import PredictConfig

if TYPE_CHECKING:
    from openmarigold.evaluation import Report


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on a folder of photos with measured depth.

    Per image, scale and shift are fitted to the measured depth; scores are means over the places of a kind.
    """

    benchmark: Path
    """Folder with manifest.json and, for each image, a folder with rgb.jpg, depth.png and meta.json."""
    baselines: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also score two estimators that do not look at the photo: a constant, and the image row."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all metrics, per kind and per image, as JSON."""
    config: tyro.conf.OmitArgPrefixes[PredictConfig] = field(default_factory=PredictConfig)


def run_evaluate(command: Evaluate) -> int:
    """Scores, prints a table or JSON, and returns the exit status."""
    from openmarigold.evaluation import BASELINES, evaluate, predictor_estimator, read_manifest
    from openmarigold.predictor import Predictor

    read_manifest(command.benchmark)
    config = command.config
    predictor = Predictor.from_config(config)
    estimator = predictor_estimator(predictor, **config.call_options)
    estimators = {predictor.name: estimator}
    if command.baselines:
        estimators |= {name: make() for name, make in BASELINES.items()}
    reports = {}
    for name, chosen in estimators.items():
        with progress_bar(name) as (advance, _):
            reports[name] = evaluate(command.benchmark, chosen, progress=advance)
    if command.json:
        print(json.dumps({name: report.to_dict() for name, report in reports.items()}, indent=2))
    else:
        _print_table(reports)
    return 0


def _print_table(reports: dict[str, Report]) -> None:
    from rich.console import Console
    from rich.table import Table

    kinds = next(iter(reports.values())).kinds
    table = Table(title="AbsRel % (lower is better) / delta1 % (higher is better)")
    table.add_column("estimator")
    for name, kind in kinds.items():
        table.add_column(f"{name}\n{kind.num_places} places", justify="right")
    for name, report in reports.items():
        scores = (kind.metrics for kind in report.kinds.values())
        table.add_row(name, *(f"{100 * score['abs_rel']:.1f} / {100 * score['delta1']:.1f}" for score in scores))
    Console(width=None if sys.stdout.isatty() else 100).print(table)
