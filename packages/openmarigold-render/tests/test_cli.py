# SPDX-License-Identifier: Apache-2.0
"""The command line without Blender, and what a run imports."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import openmarigold_render
from asset_files import piece, write_catalog, write_packages
from openmarigold_render.cli import run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"openmarigold-render {openmarigold_render.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pictures", "mix", "--count", "0"], "error: count=0 is not accepted; give 1 to 10000000\n"),
        (["pictures", "rooms", "--assets", "EMPTY"], "error: EMPTY holds none of the packages"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("openmarigold_render.render.require_bpy", lambda: None)
    assert run(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(message.rstrip())


@pytest.mark.skipif(importlib.util.find_spec("bpy") is not None, reason="bpy is installed")
def test_without_blender_pictures_say_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pictures", "mix", "--output", str(tmp_path / "out")]) == 2
    assert "pip install openmarigold-render" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_source_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["pictures", "gardens"])
    assert ended.value.code == 2
    assert "gardens" in capsys.readouterr().err


@pytest.mark.parametrize("has_game", [False, True])
def test_the_readers_of_the_games_maps_are_imported_only_for_its_packages(tmp_path: Path, *, has_game: bool) -> None:
    if has_game:
        write_packages(tmp_path / "assets")
    else:
        write_catalog(tmp_path / "assets" / "Tiny.sh3f", [piece(1)])
    script = (
        "import sys; from pathlib import Path\n"
        "from openmarigold_render.render import RenderConfig, SceneRenderer\n"
        "config = RenderConfig(source='mix', count=1, assets=Path(sys.argv[1]))\n"
        "SceneRenderer(config, Path(sys.argv[1]), studio=lambda quality, folder: None)\n"
        "print(any(name.startswith('openmarigold_render.gamemaps') for name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "assets")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{has_game}\n"
