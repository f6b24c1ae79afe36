# SPDX-License-Identifier: Apache-2.0
"""`openmarigold calibrate`: fit the width of intervals on pictures with measured maps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openmarigold.cli.terminal import print_json, progress_bar, say
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError, OutputError

if TYPE_CHECKING:
    from openmarigold.evaluation.calibration import Calibrated


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Fit the intervals of a checkpoint, so that `predict --interval 0.9` holds for 90 % of a picture's pixels.

    Writes calibration.json into the checkpoint's folder. It holds for these weights and settings (steps, ensemble size,
    resolution); further runs add further settings. The pictures must be new to the checkpoint: those it was trained on
    make intervals too narrow. docs/uncertainty.md states the guarantee.
    """

    benchmark: Path
    """Pictures with measured maps, as for `evaluate`: a folder, tar or zip, or a prepared set. Each place in it is a
    scene. With --data: a name."""
    data: Path | None = None
    """Folder of the known benchmarks."""
    levels: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """Shares of pixels that the intervals must cover."""
    rule: Literal["rcps", "conformal"] = "rcps"
    """rcps: with probability 1 - delta over the scenes, the mean missed share is at most 1 - level. conformal: this
    holds only on average over the scenes; intervals are a little narrower, and fewer scenes are enough."""
    delta: float = 0.1
    """For rcps: probability, over the scenes, that more is missed."""
    signal: tuple[str, ...] = ()
    """Signals that set the width of intervals; for depth: constant, edges, surroundings, spread (of an ensemble).
    Nothing: all of them, with weights that are fitted on a quarter of the scenes."""
    max_scenes: int | None = None
    """Use only this many scenes, the first ones, if predictions take long. None: all."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder for calibration.json. None: the checkpoint's folder."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the fit as JSON."""
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_calibrate(command: Calibrate) -> int:
    """Fits, writes and prints the intervals, and returns the exit status."""
    from openmarigold.checkpoints.calibration import (
        CALIBRATION_FILE,
        band_of,
        new_calibration,
        write_calibration,
    )
    from openmarigold.checkpoints.configured import read_configured
    from openmarigold.evaluation.benchmarks import open_benchmark, open_folder_benchmark
    from openmarigold.evaluation.calibration import Rule, calibrate
    from openmarigold.files import make_directory, try_to_write

    if command.max_scenes is not None and command.max_scenes < 1:
        raise InvalidValueError(f"max_scenes={command.max_scenes} is not accepted; give 1 or above")
    if command.config.interval is not None:
        raise InvalidValueError("interval is not a setting of calibrate; give the shares as --levels")
    checkpoint = read_configured(command.config)
    band_of(checkpoint)
    if command.data is not None:
        benchmark = open_benchmark(str(command.benchmark), command.data)
    else:
        benchmark = open_folder_benchmark(command.benchmark, checkpoint.predicts)
    if benchmark.row.modality.name != checkpoint.predicts.name:
        raise InvalidValueError(
            f"{benchmark.row.name} measures {benchmark.row.modality.title}, and {checkpoint.name} predicts "
            f"{checkpoint.predicts.title}; give pictures with measured maps of the same kind"
        )
    for line in benchmark.notes:
        say(f"note: {line}", error=True)
    folder = command.output_dir or checkpoint.directory
    make_directory(folder)
    try:
        try_to_write(folder)  # before hours of predictions
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; give --output-dir") from error
    with progress_bar("pictures") as (advance, _):
        found = calibrate(
            benchmark,
            command.config,
            signals=command.signal,
            levels=command.levels,
            rule=Rule(name=command.rule, delta=command.delta),
            max_scenes=command.max_scenes,
            progress=advance,
        )
    calibration = new_calibration(checkpoint, found.entry, folder)
    path = write_calibration(calibration, folder)
    entry = found.entry
    if command.json:
        print_json({**dataclasses.asdict(entry), "coverage": found.coverage, "path": str(path)})
        return 0
    _say(found, command.levels)
    number = len(calibration.entries)
    say(f"{number} {'choice' if number == 1 else 'choices'} of settings in {CALIBRATION_FILE} -> {path}")
    return 0


def _say(found: Calibrated, levels: tuple[float, ...]) -> None:
    """Prints the fit."""
    from openmarigold.checkpoints.calibration import level_text

    entry = found.entry
    weights = ", ".join(f"{name} {weight:.4g}" for name, weight in entry.weights.items())
    say(
        f"{entry.num_pictures} pictures of {entry.num_scenes} scenes fit scales, {entry.num_scenes_for_weights} scenes "
        f"weights: {weights}"
    )
    for level, scale in entry.scales.items():
        say(
            f"level {level:>5}: scale {scale:.4g}, covers {100 * found.coverage[level]:.1f} % of these pictures' pixels"
        )
    if few := ", ".join(text for text in map(level_text, levels) if text not in entry.scales):
        say(f"level {few}: {entry.num_scenes} scenes are too few; left out")
