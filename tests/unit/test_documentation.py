# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings and on all pages are run, their commands are understood, and their links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
import tempfile
import tomllib
from pathlib import Path

import pytest

from openmarigold.cli import parse

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "openmarigold"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"))
}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
BLOCKS = {page: blocks for page, text in PAGES.items() if (blocks := BLOCK.findall(text))}
# What the blocks of a page have made, where more than "no error" can be said of it.
OUTCOMES = {
    "README.md": ("prediction.depth.shape", (480, 640)),
    "docs/data.md": ("sample.maps['depth'].shape", (288, 384)),
    "docs/evaluation.md": ("report.protocol", "marigold"),
}
COMMAND = re.compile(r"^ {3,}(?:\.venv/bin/)?(openmarigold (?:.*\\\n)*.*)$", re.MULTILINE)
COMMANDS = sorted({(page, line) for page, text in PAGES.items() for line in COMMAND.findall(BLOCK.sub("", text))})
FILE_NAME = re.compile(r"\.(json|jsonl|md|npy|onnx|py|toml|xml)$")
SCRIPTS = sorted(path for folder in ("docs", "benchmarks") for path in (REPOSITORY / folder).glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0


def test_examples_are_found() -> None:
    assert {"openmarigold.seeding", "openmarigold.diffusion", "openmarigold.images.photo"} <= set(MODULES)
    assert set(OUTCOMES) <= set(BLOCKS)
    names = {line.split()[1] for _, line in COMMANDS}
    assert names >= {"predict", "evaluate", "compare", "data", "train", "checkpoint"}
    assert {"contact_sheet.py", "threads.py"} <= {path.name for path in SCRIPTS}


def test_every_block_has_a_known_language() -> None:
    for page, text in PAGES.items():
        fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
        assert len(fences) % 2 == 0, page
        assert set(fences[::2]) <= {"", "python", "toml"}, page


@pytest.mark.parametrize("page", sorted(BLOCKS))
def test_python_of_a_page(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, object] = {}
    for block in BLOCKS[page]:
        exec(compile(block, page, "exec"), names)
    if page in OUTCOMES:
        expression, value = OUTCOMES[page]
        assert eval(expression, names) == value


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_are_understood(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.toml").write_text("ensemble_size = 10")
    monkeypatch.chdir(tmp_path)
    parse(shlex.split(line.replace("\\\n", " "), comments=True)[1:])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_imported(script: Path) -> None:
    assert "__doc__" in runpy.run_path(str(script), run_name="not_main")


def test_readme_is_short_and_links_lead_somewhere() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not link.startswith("http"):
                assert (REPOSITORY / page).parent.joinpath(link).exists(), f"{page}: {link}"


def rows_of_layers() -> list[set[str]]:
    """Modules of each row of the linter's layers, lowest first."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [set(re.findall(r"\w+", row)) for row in reversed(layers)]


def first_cells(section: str) -> list[str]:
    """First cells of the rows of the table in a section of docs/architecture.md."""
    text = PAGES["docs/architecture.md"].partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)


def test_the_top_level_is_seen_at_a_glance() -> None:
    modules = [path.name for path in PACKAGE.glob("[a-z]*.py")]
    assert len(modules) <= 15, "gather modules in a room"


def test_architecture_lists_the_layers_that_are_checked() -> None:
    assert [set(re.findall(r"`(\w+)`", cell)) for cell in first_cells("Layers")] == rows_of_layers()


def test_the_walk_through_the_rooms_goes_down() -> None:
    layers = rows_of_layers()
    walk = [cell.strip("`") for cell in first_cells("One photo and one training sample")]
    heights = [next(height for height, row in enumerate(layers) if room in row) for room in walk]
    assert len(walk) == len(set(walk)) > 10
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/faithfulness.md"])
def test_names_of_functions_and_tests_exist(page: str) -> None:
    names = {name for name in re.findall(r"`([a-zA-Z_]+(?:\.\w+)+)[`(]", PAGES[page]) if not FILE_NAME.search(name)}
    assert names
    for name in names - {"diffusers.MarigoldDepthPipeline", "timesteps.last_share"}:  # another package, a recipe's key
        pkgutil.resolve_name(f"openmarigold.{name}")
    tests = {path.stem for path in (REPOSITORY / "tests").rglob("test_*.py")}
    assert set(re.findall(r"`(?:\w+/)?(test_\w+)`", PAGES[page])) <= tests
