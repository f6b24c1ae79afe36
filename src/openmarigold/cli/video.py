# SPDX-License-Identifier: Apache-2.0
"""`openmarigold video`: steady maps of a clip."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from openmarigold.cli.terminal import EXIT_SOME_FAILED, print_json, progress_bar, say
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.temporal.settings import StreamConfig
from openmarigold.video.settings import VideoConfig


@dataclass(frozen=True, kw_only=True)
class Video:
    """Predict depth or normals of a clip without flicker. `--help-all` lists the rare settings too.

    Writes STEM_depth_colored.mp4, STEM_depth_sidebyside.mp4 (with the sound), the other formats of --format,
    STEM_depth_frames.npz (time, scale, shift, shot of each frame) and STEM_depth.json. An interrupted run resumes. Exit
    status: 0 all done, 1 the clip is damaged and ended early, 2 an error, 130 interrupted.
    """

    GROUPS: ClassVar[Mapping[str, type]] = {"config": PredictConfig, "stream": StreamConfig, "video": VideoConfig}
    COMMON: ClassVar[frozenset[str]] = frozenset({"start", "end", "every", "fps", "look_ahead"})

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN", help_behavior_hint="")]
    """Video file, folder of pictures, pattern such as "frames/*.png", or - for a pipe."""
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT", help_behavior_hint="")]
    """Folder of the results, created if missing; - writes one video to stdout."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """TOML file with settings; flags override it."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Repeat finished work, and replace results of another clip."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a summary as JSON."""
    video: tyro.conf.OmitArgPrefixes[VideoConfig] = field(default_factory=VideoConfig)
    stream: tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[StreamConfig]] = field(default_factory=StreamConfig)
    config: tyro.conf.UseAppendAction[tyro.conf.OmitArgPrefixes[PredictConfig]] = field(default_factory=PredictConfig)


def run_video(command: Video) -> int:
    """Predicts, prints a summary, and returns the exit status."""
    to_stdout = str(command.output_dir) == "-"
    if to_stdout and command.json:
        raise InvalidValueError("--json was given with -, but both write to stdout; give one of them")
    from openmarigold.video.model import VideoEvent
    from openmarigold.video.run import video_file

    started = time.perf_counter()
    with progress_bar("frames", speed=True) as (advance, note):

        def report(event: VideoEvent) -> None:
            if event.note is not None:
                note(f"note: {event.note}")
            else:
                advance(event.done, event.total)

        result = video_file(
            command.source,
            command.output_dir,
            config=command.config,
            stream=command.stream,
            video=command.video,
            overwrite=command.overwrite,
            report=report,
        )
    total_s = time.perf_counter() - started
    if result.problem is not None:
        say(f"error: {result.problem}", error=True)
    if command.json:
        print_json({**result.to_dict(), "total_s": round(total_s, 3)})
    elif result.skipped:
        say(f"done before: {result.num_frames} frames, {len(result.cuts)} cuts -> {command.output_dir}")
    else:
        speed = result.num_predicted / result.predict_s if result.predict_s else 0.0
        engine = f"engine {result.engine}, " if result.engine else ""
        say(
            f"{result.num_frames} frames, {result.num_predicted} of them predicted now, {len(result.cuts)} cuts in "
            f"{total_s:.2f} s ({engine}model loaded in {result.load_s:.2f} s, {speed:.1f} frames a second) "
            f"-> {command.output_dir}",
            error=to_stdout,
        )
    return EXIT_SOME_FAILED if result.problem is not None else 0
