# SPDX-License-Identifier: Apache-2.0
"""The switch that makes the same matrix product give the same bits each time."""

from __future__ import annotations

import os

_SWITCHES = {"MKL_CBWR": "AUTO"}
"""Intel's MKL, which PyTorch calls on x86 CPUs, may sum in an order that depends on where in memory a matrix lies.

Seen on an AMD EPYC (Zen 5) with a product of 2x16 and 16x32, whose weights lay in a file that was mapped to memory: two
trainings in a row differed in the seventh digit. AUTO takes the fastest of the ways whose order is fixed (oneMKL's
developer guide, "Obtaining Numerically Reproducible Results").
"""


def fix_order_of_sums() -> None:
    """Sets the switch, in this process and in those it starts; a value that is set already stays.

    MKL reads it once, when it is first used: what a process multiplied before decides for all that follows.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
