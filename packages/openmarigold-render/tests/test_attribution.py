# SPDX-License-Identifier: Apache-2.0
"""The page that names whose assets are in the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openmarigold_render.cli import run


def test_attribution_page_names_each_asset_under_its_authors(tmp_path: Path) -> None:
    rows = [
        {"asset": "chairs/a.zip/x/chair.obj", "title": "Chair", "creator": "A_B <a@b.c>", "license": "CC0"},
        {"asset": "chairs/a.zip/y.obj", "title": "Stool", "creator": "A_B <a@b.c>", "license": "CC0"},
        {"asset": "chairs/b.zip/z.obj", "title": "Sofa", "creator": "", "license": "CC-BY-3.0"},
    ]
    manifest = {
        "settings": {"source": "mix", "count": 4, "seed": 1},
        "counts": {"samples": 4},
        "attribution": [{**row, "package": "chairs"} for row in rows],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert run(["attribution", str(tmp_path / "manifest.json"), str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "of 4 pictures (`openmarigold-render pictures mix --count 4 --seed 1 --assets DIR`): 3 assets" in page
    assert "## chairs, CC0\n\nA\\_B \\<a@b.c\\>\n\n- Chair (`a.zip/x/chair.obj`)\n- Stool (`a.zip/y.obj`)\n" in page
    assert "## chairs, CC-BY-3.0\n\nNo author is named.\n\n- Sofa (`b.zip/z.obj`)\n" in page


@pytest.mark.parametrize("text", [None, "{", '{"settings": {}}', "[]", '{"settings": {}, "attribution": [1]}'])
def test_what_is_not_such_a_manifest_is_refused(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    assert run(["attribution", str(tmp_path / "manifest.json"), str(tmp_path / "page.md")]) == 2
    assert "manifest.json is not the manifest of pictures that were rendered with assets" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()
