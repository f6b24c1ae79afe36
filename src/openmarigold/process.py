# SPDX-License-Identifier: Apache-2.0
"""Whether this process is our own command line, which may arrange it to its needs, or somebody's that imported us."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ours = False


def claim() -> None:
    """Says that the command line was started as a program: nobody else needs the libraries in this process."""
    global _ours
    _ours = True


def is_claimed() -> bool:
    """Whether this process is our own command line."""
    return _ours


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Makes an installed package look as if it was not there to what is imported inside, in our own process only.

    Who imports us as a library finds every package as it is. A package that is imported already stays so.
    """
    if not _ours or package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # what makes Python's import say that it is missing
    try:
        yield
    finally:
        del sys.modules[package]
