# SPDX-License-Identifier: Apache-2.0
"""`openmarigold measure`: the length between two pixels of a result."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openmarigold.cli.terminal import print_json, say
from openmarigold.errors import InvalidValueError


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Print the length of the straight line between the points that two pixels show.

    Results of `metric` give meters, with a 90 % range if the error is known.
    """

    file: tyro.conf.Positional[Path]
    """STEM_metric.npy, .npz or .exr of `metric`."""
    ends: Annotated[tyro.conf.Positional[tuple[str, str]], tyro.conf.arg(metavar="X,Y X,Y", help_behavior_hint="")]
    """Two pixels, from the upper left corner of the upright photo."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print it as JSON."""


def run_measure(command: Measure) -> int:
    """Prints the length and returns the exit status."""
    from openmarigold.completion.measured import measure_file

    first, second = map(_pixel, command.ends)
    found, unit = measure_file(command.file, first, second)
    if command.json:
        print_json({**asdict(found), "unit": unit})
        return 0
    if found.low is None or found.high is None:
        say(f"{found.value:.3f} {unit} (accuracy not known)")
    else:
        say(f"{found.value:.3f} {unit} (90 % between {found.low:.3f} and {found.high:.3f})")
    return 0


def _pixel(text: str) -> tuple[float, float]:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*,\s*(\d+(?:\.\d*)?)\s*", text)
    if match is None:
        raise InvalidValueError(f"{text!r} is not a pixel; give X,Y, such as 320,240")
    return float(match[1]), float(match[2])
