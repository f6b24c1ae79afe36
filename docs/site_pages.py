# SPDX-License-Identifier: Apache-2.0
"""A hook of mkdocs: the README becomes the first page, and links to files outside docs/ lead to the repository."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds index.md: README.md, with its links as they are from docs/."""
    readme = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8")
    content = LINK.sub(lambda match: posixpath.relpath(match[1], "docs"), readme)
    files.append(File.generated(config, "index.md", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page, with links that leave docs/ as links to the repository."""

    def absolute(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[1]))
        if path.startswith("docs/") and not path.endswith(".py"):
            return match[1]
        return f"{config.extra['repository']}/blob/main/{path}"

    return LINK.sub(absolute, markdown)
