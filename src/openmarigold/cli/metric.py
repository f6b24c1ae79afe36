# SPDX-License-Identifier: Apache-2.0
"""`openmarigold metric`: metric depth from photos and something that is known in meters."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from openmarigold.cli.terminal import EXIT_SOME_FAILED, cell, print_json, progress_bar, say
from openmarigold.completion.known import KnownConfig
from openmarigold.config import OutputConfig, PredictConfig

_MAX_SHOWN = 4  # photos whose fits are printed; the manifest holds all fits


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Depth in meters, from photos and known lengths or depths. `--help-all` lists the rare settings too.

    For each photo: STEM_metric.npy (float32, planar depth in meters), STEM_metric.png (16 bits, millimeters, or 1/256 m
    if anything is beyond 65.5 m), STEM_metric_colored.png. Each file states camera, scale, shift and error. Give
    one of --known-depth, --known-length, --camera-height, --points, --metric-map. An interrupted run resumes.
    """

    inputs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")]
    """Photos, and folders of photos."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder of the results; created if missing."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """TOML file with settings of the prediction; flags override it."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Repeat photos that are done with the same settings."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a summary as JSON."""
    known: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[KnownConfig]]
    output: tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[OutputConfig]] = field(default_factory=OutputConfig)
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_metric(command: Metric) -> int:
    """Predicts and fits, prints the fits, and returns the exit status."""
    from openmarigold.completion.run import metric_files
    from openmarigold.predictor.run import Event

    started = time.perf_counter()
    with progress_bar("photos") as (advance, note):

        def report(event: Event) -> None:
            if event.error is not None:
                note(f"error: {event.error}")
            if event.note is not None and event.done == 0:  # notes on photos are printed with their fits
                note(f"note: {event.note}")
            advance(event.done, event.total)

        result = metric_files(
            command.inputs,
            output_dir=command.output_dir,
            known=command.known,
            config=command.config,
            output=command.output,
            overwrite=command.overwrite,
            report=report,
        )
    fits = _fits(command.output_dir, result.results)
    if command.json:
        print_json({**result.to_dict(), "fits": fits})
        return EXIT_SOME_FAILED if result.failed else 0
    for name, record in list(fits.items())[:_MAX_SHOWN]:
        _print_fit(name, record)
    if len(fits) > _MAX_SHOWN:
        noted = sum(bool(record["notes"]) for record in list(fits.values())[_MAX_SHOWN:])
        say(f"{len(fits) - _MAX_SHOWN} more photos, {noted} of them with notes: --json and the manifest list all")
    say(
        f"{result.num_predicted} done, {len(result.skipped)} skipped, {len(result.failed)} failed in "
        f"{time.perf_counter() - started:.2f} s -> {command.output_dir}"
    )
    return EXIT_SOME_FAILED if result.failed else 0


_SHOWN = ("method", "fit_space", "scale", "shift", "left_out_errors", "camera", "compared")


def _fits(output_dir: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The fit of each photo of this run, by the name of its results."""
    from openmarigold.modalities.metric import METRIC
    from openmarigold.results.manifest import Manifest

    manifest, found = Manifest(output_dir, METRIC.name), {}
    for name in dict.fromkeys(names):
        line = manifest.standing(name)
        if line is not None and line["status"] == "done":
            found[name] = {key: line["provenance"].get(key) for key in _SHOWN} | {"notes": line.get("notes", [])}
    return found


def _print_fit(name: str, record: dict[str, Any]) -> None:
    """Prints one line about the fit, its notes, and a table of the compared methods."""
    from rich.console import Console
    from rich.table import Table

    camera, errors = record["camera"], record["left_out_errors"]
    error = "its error is not known" if errors is None else f"error about {errors['mean_m']:.3g} m"
    if errors is not None:
        error += (
            f" (median {errors['median_m']:.3g} m; {errors['num_points']} points, {errors['num_outliers']} outliers)"
        )
    say(
        f"{name}: {record['method']}, scale {record['scale']:.4g}, shift {record['shift']:.4g} in "
        f"{record['fit_space']}; {error}; field of view {camera['fov']:.1f}° ({camera['source']})"
    )
    for note in record["notes"]:
        say(f"note: {note}")
    if not any(row["left_out_errors"] for row in record["compared"] or ()):
        return
    table = Table(
        "method", "error at points left out [m]", title="a tenth of the points (of few points one) left out in turn"
    )
    for row in record["compared"]:
        errors = row["left_out_errors"]
        table.add_row(cell(row["method"]), row.get("note", "–") if errors is None else f"{errors['mean_m']:.4g}")
    Console(width=100).print(table)
