# SPDX-License-Identifier: Apache-2.0
"""The real packages, where they are: in the folder OPENMARIGOLD_ASSETS, or in /usr/share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from openmarigold.errors import DataError
from openmarigold_render.assets import Assets
from openmarigold_render.furnishing import AssetCatalog
from openmarigold_render.gamemaps.streets import game_street, street_maps
from openmarigold_render.scene import GROUPS, Lens

pytestmark = pytest.mark.slow


@pytest.fixture
def catalog(tmp_path: Path) -> AssetCatalog:
    folder = os.environ.get("OPENMARIGOLD_ASSETS")
    try:
        return AssetCatalog(Assets(None if folder is None else Path(folder), cache_dir=tmp_path / "cache"))
    except DataError as error:
        pytest.skip(str(error))


def test_nearly_every_piece_can_be_read_and_has_its_size(catalog: AssetCatalog) -> None:
    read, broken = 0, []
    for group in GROUPS:
        for item in catalog.items(group):
            try:
                mesh = item.load()
            except DataError as error:
                broken.append(str(error))
                continue
            read += 1
            assert mesh.size == pytest.approx(item.size, abs=2e-3), item.name
    assert read > 20 * max(len(broken), 1), broken


def test_maps_become_streets_with_attributions(catalog: AssetCatalog) -> None:
    if not street_maps(catalog.assets):
        pytest.skip("the packages with maps are not there")
    generator = np.random.default_rng(0)
    for _ in range(3):
        setting = game_street(generator, catalog)
        cameras = [setting.propose(generator, Lens(width=64, height=48)) for _ in range(40)]
        assert any(camera is not None for camera in cameras)
        used = catalog.assets.sources(setting.scene)
        rows = catalog.assets.attributions(used)
        assert len(rows) == len(used) > 5
        assert all(row.license for row in rows)
