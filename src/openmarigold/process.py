# SPDX-License-Identifier: Apache-2.0
"""Whether this process is our own command line, which may arrange it to its needs, or somebody's that imported us."""

from __future__ import annotations

_ours = False


def claim() -> None:
    """Says that the command line was started as a program: nothing else in this process needs other libraries."""
    global _ours
    _ours = True


def is_ours() -> bool:
    """Whether the process was claimed."""
    return _ours
