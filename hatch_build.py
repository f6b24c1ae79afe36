# SPDX-License-Identifier: Apache-2.0
"""Builds the page of `openmarigold serve` before a wheel or a source distribution is made; an editable install has none
until `make page`.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface[Any]):
    """Distributions carry the built page, so that nobody who installs one needs Node.js."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        del build_data
        if version == "editable" or os.environ.get("OPENMARIGOLD_PAGE") == "none":
            return
        page = runpy.run_path(str(Path(self.root) / "web" / "build.py"))
        if page["is_current"]():
            return
        try:
            page["build"]()
        except page["PageError"] as error:
            raise SystemExit(str(error)) from None
