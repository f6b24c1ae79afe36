# SPDX-License-Identifier: Apache-2.0
"""The error that the renderer adds to those of openmarigold."""

from __future__ import annotations

from openmarigold_render.core import OpenMarigoldError


class MissingPackageError(OpenMarigoldError, ImportError):
    """A package that the renderer depends on is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package} is not installed; with Python 3.11: pip install openmarigold-render")
