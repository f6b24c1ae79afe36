# SPDX-License-Identifier: Apache-2.0
"""`openmarigold benchmark`: how fast a checkpoint predicts on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from openmarigold.cli.terminal import print_json, say
from openmarigold.config import CompileMode, Dtype, EngineName, PredictConfig, TinyVaeUse
from openmarigold.errors import InvalidValueError

if TYPE_CHECKING:
    from openmarigold.evaluation.speed import SpeedReport


@dataclass(frozen=True, kw_only=True)
class BenchmarkCommand:
    """Measure seconds and GFLOP/s of each network, their share of this machine's rate, memory and start-up."""

    checkpoint: Path | None = None
    """Checkpoint folder, or its id on the Hugging Face hub. None: the embedded model."""
    variant: str | None = None
    """Weight files to read, such as fp16. None: the plain ones, else fp16."""
    engine: EngineName = "auto"
    """Engine for the networks: onnx, openvino or torch; auto: the fastest that is installed."""
    device: str = PredictConfig.device
    """Where the networks run: auto, cpu, cuda, cuda:1 or mps."""
    dtype: Dtype = "float32"
    """Precision of the networks."""
    tiny_vae: str | None = None
    """Small autoencoder that replaces the checkpoint's: folder or hub id."""
    tiny_vae_for: TinyVaeUse = "decode"
    """What tiny-vae is used for: decode, encode or both."""
    compile: CompileMode = "off"
    """Engine torch: off or full."""
    size: tuple[int, int] = (640, 480)
    """Width and height of the photo [px]."""
    processing_resolution: int | None = None
    """Side of the networks' input [px]. None: the checkpoint's default; 0: the photo's side."""
    repeats: int = 3
    """Number of timed runs; the median is reported."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print everything as JSON."""


def run_benchmark(command: BenchmarkCommand) -> int:
    """Measures, prints, and returns the exit status."""
    from openmarigold.evaluation.speed import measure_speed

    if min(command.size) < 1 or command.repeats < 1:
        raise InvalidValueError(
            f"size={command.size} and repeats={command.repeats} are not accepted; give numbers of 1 or above"
        )
    own = ("size", "repeats", "json")
    config = PredictConfig(**{name: value for name, value in vars(command).items() if name not in own})
    report = measure_speed(config, size=command.size, repeats=command.repeats)
    if command.json:
        print_json(report.to_dict())
    else:
        _print(report)
    return 0


def _print(report: SpeedReport) -> None:
    photo, seen = ("x".join(map(str, size)) for size in (report.photo_size, report.network_size))
    say(f"{report.checkpoint}, engine {report.engine}, {report.device}, {report.dtype}; photo {photo}, seen at {seen}")
    for name, stage in report.stages.items():
        details = ""
        if stage.gflop is not None and stage.gflop_per_s is not None:
            details = f"  {stage.gflop:10.1f} GFLOP  {stage.gflop_per_s:8.1f} GFLOP/s"
        if stage.ceiling_share is not None:
            details += f"  {100 * stage.ceiling_share:5.0f} % of a matrix product"
        say(f"  {name:<8}{stage.seconds:9.4f} s{details}")
    say(f"  photo   {report.photo_s:9.4f} s, the first one {report.first_photo_s:.3f} s")
    say(f"  model loaded in {report.load_s:.2f} s; from the start of a process {report.start_up_s:.2f} s")
    if report.ceiling_gflop_per_s is not None:
        say(f"  matrix product in {report.dtype}: {report.ceiling_gflop_per_s:.0f} GFLOP/s")
    if report.peak_gib is not None:
        say(f"  peak memory {report.peak_gib:.2f} GiB")
