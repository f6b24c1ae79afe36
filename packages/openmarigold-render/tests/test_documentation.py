# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings are run; the documents' links and the list of what comes from the core are right."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import openmarigold_render.core

PACKAGE = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE / "src").with_suffix("").parts)
    for path in (PACKAGE / "src").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_examples_are_found() -> None:
    assert "openmarigold_render.scene" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_links_in_the_documents_lead_somewhere() -> None:
    documents = [PACKAGE / "README.md", *sorted((PACKAGE / "docs").glob("*.md"))]
    assert len(documents) == 3
    for document in documents:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_readme_lists_the_interface_to_the_core() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Interface to the core")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", section, re.MULTILINE)
    assert sorted(name for _, names in rows for name in re.findall(r"`(\w+)`", names)) == sorted(
        openmarigold_render.core.__all__
    )
    project = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    allowed = re.findall(r'"openmarigold_render\.core -> openmarigold\.([a-z_.]+)"', project)
    assert allowed == sorted(module for module, _ in rows)
