# SPDX-License-Identifier: Apache-2.0
"""`openmarigold evaluate-video`: how steady and how accurate depth is along clips with measured depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from openmarigold.cli.terminal import EXIT_SOME_FAILED, cell, print_json, print_table, progress_bar, say
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.temporal.settings import StreamConfig

if TYPE_CHECKING:
    from openmarigold.evaluation.video import ClipEstimator
    from openmarigold.evaluation.video_report import VideoReport


@dataclass(frozen=True, kw_only=True)
class EvaluateVideo:
    """Measure how steady and how accurate depth is along clips with measured depth and camera poses.

    `--help-all` lists the rare settings too. Exit status: 0 all done, 1 some clips failed, 2 an error, 130 interrupted.
    """

    GROUPS: ClassVar[Mapping[str, type]] = {"config": PredictConfig, "stream": StreamConfig}
    COMMON: ClassVar[frozenset[str]] = frozenset({"look_ahead"})

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA", help_behavior_hint="")]
    """Folder of one clip or of several."""
    layout: str | None = None
    """Layout of the clips: rendered, scannet, sintel, sintel-clean or tum. None: the one that fits."""
    clips: tuple[str, ...] = ()
    """Names of the clips to score. Nothing: all."""
    frames: tuple[int, int] | None = None
    """First frame, from 0, and the one after the last. None: all."""
    per_frame: tyro.conf.FlagCreatePairsOff[bool] = False
    """Predict each frame by itself, not as a stream."""
    compare: Literal["per-frame"] | None = None
    """Also score each frame by itself, and print the ratio."""
    predictions: Path | None = None
    """Folder of saved depth to score instead of a model: for each clip a folder of its name, files named as the frames,
    or numbered as by `openmarigold video`."""
    invariance: str | None = None
    """Kind of the depth in --predictions: affine_depth, scale, metric or disparity."""
    alignments: tuple[Literal["clip", "frame", "first"], ...] = ("clip", "frame", "first")
    """What is fitted to measured depth: the whole clip at once, each frame by itself, or the first frame alone."""
    protocol: str | None = None
    """How a fit is made, as in `evaluate`: marigold, disparity, log, scale and others. None: by the invariance."""
    flow: Literal["truth", "estimated"] = "truth"
    """Motion for OPW and static pixels: from measured depth and poses (or the data set's flow), or estimated from the
    photos (extra `video`)."""
    depth_range: tuple[float, float] | None = None
    """Range of measured depth to score [m]. None: the layout's range (rendered clips: all)."""
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Folder of report.json and report.md. An interrupted run resumes with the next clip."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """TOML file with settings of the model and the stream; flags override it."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the report as JSON."""
    stream: tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[StreamConfig]] = field(default_factory=StreamConfig)
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_evaluate_video(command: EvaluateVideo) -> int:
    """Scores, prints a table or JSON, and returns the exit status."""
    from openmarigold.evaluation.clips import open_clips
    from openmarigold.evaluation.video import VideoEvaluation, evaluate_clips

    settings = VideoEvaluation(
        frames=command.frames,
        alignments=command.alignments,
        protocol=command.protocol,
        flow=command.flow,
        depth_range=command.depth_range,
    )
    clips = open_clips(command.data, layout=command.layout, names=command.clips)
    with progress_bar("frames") as (advance, note):
        report = evaluate_clips(
            clips,
            _estimators(command),
            settings=settings,
            output_dir=command.output_dir,
            progress=advance,
            note=note,
        )
    if command.json:
        print_json(report.to_dict())
    else:
        _print_table(report)
        if command.output_dir is not None:
            say(f"report.json, report.md -> {command.output_dir}")
    return EXIT_SOME_FAILED if report.failed else 0


def _estimators(command: EvaluateVideo) -> list[ClipEstimator]:
    """The estimator to score, then the one to compare with."""
    from openmarigold.evaluation.video import model_estimators, saved_estimator

    if command.predictions is not None:
        if command.per_frame or command.compare:
            raise InvalidValueError("--predictions was given with --per-frame or --compare; leave these out")
        return [saved_estimator(command.predictions, command.invariance)]
    if command.invariance is not None:
        raise InvalidValueError("--invariance is for --predictions; a checkpoint states its invariance")
    if command.per_frame and command.compare:
        raise InvalidValueError("--per-frame was given with --compare per-frame; leave --per-frame out to have both")
    modes: list[Literal["stream", "per-frame"]] = ["per-frame" if command.per_frame else "stream"]
    if command.compare:
        modes.append(command.compare)
    return model_estimators(command.config, command.stream, modes)


def _print_table(report: VideoReport) -> None:
    from rich.table import Table

    heading, rows = report.rows()
    count = len(next(iter(report.clips.values())))
    table = Table(title=f"means over {count} clip{'s' if count > 1 else ''}, 95 % intervals in brackets")
    for place, name in enumerate(heading):
        table.add_column(cell(name), justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(cell, row))
    print_table(table)
    if report.failed:
        say(f"{len(report.failed)} clips failed and are not counted")
