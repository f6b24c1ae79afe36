# SPDX-License-Identifier: Apache-2.0
"""Switches that keep the libraries we use from reporting to their makers and from writing to the home folder.

ONNX Runtime reports from the moment it is imported, OpenVINO too. The Hugging Face libraries add what they run on to
their requests. Their switches are set when this package is imported, so that every import of theirs finds them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from openmarigold import workers

_SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def switch_off_reports() -> None:
    """Sets the libraries' own switches, in this process and in those it starts; a value that is set already stays."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)


@contextmanager
def hidden(*packages: str, only_ours: bool = False) -> Iterator[None]:
    """Makes packages look as if they were not installed to what is imported inside.

    With `only_ours` only in our own process, and not where one of them is imported already: a program that imports us
    as a library finds every package as it is.
    """
    if only_ours and (any(package in sys.modules for package in packages) or not workers.is_claimed()):
        yield
        return
    imported = {key: module for key, module in sys.modules.items() if key.partition(".")[0] in packages}
    for key in imported:
        del sys.modules[key]
    for package in packages:
        sys.modules[package] = None  # type: ignore[assignment]  # makes Python's import report that it is missing
    try:
        yield
    finally:
        for package in packages:
            del sys.modules[package]
        sys.modules.update(imported)


def openvino_without_reports() -> AbstractContextManager[None]:
    """Hides the package `openvino_telemetry` while OpenVINO is imported inside, which then reports nothing.

    Its only other switch is a file in the home folder. When it is imported it would send an event and write an id.
    """
    return hidden("openvino_telemetry")


@contextmanager
def matplotlib_without_folder() -> Iterator[None]:
    """Gives matplotlib a temporary folder for its settings while it is imported inside, in our own process only.

    Otherwise it would make one in the home folder. A program that imports us as a library keeps the usual one.
    """
    if not workers.is_claimed() or "MPLCONFIGDIR" in os.environ or "matplotlib" in sys.modules:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]
