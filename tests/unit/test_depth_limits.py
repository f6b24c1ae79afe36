# SPDX-License-Identifier: Apache-2.0
"""Which depth counts: ranges of source, kind and recipe, the usual caps, and the quantiles that show what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmarigold.cli import run
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.statistics import dataset_statistics
from openmarigold.errors import RecipeError
from openmarigold.training.settings import DataConfig
from openmarigold.training.views import Mixture
from tiny import make_photo

INF = float("inf")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rooms and ten streets of 10x20 pixels, depth 1 to 5 m; one room and all streets have 4 % at 300 m."""
    folder = tmp_path_factory.mktemp("limits")
    encodings = {"depth": MapEncoding(kind="float32")}
    writer = ShardWriter(folder / "mine", name="mine", split="train", encodings=encodings, settings={})
    writer.begin()
    depth = np.linspace(1, 5, 200, dtype=np.float32).reshape(10, 20)
    samples = []
    for number in range(20):
        kind = "rooms" if number < 10 else "street"
        values = depth.copy()
        if kind == "street" or number == 3:
            values[0, :8] = 300.0
        samples.append(
            NewSample(key=f"s{number}", kind=kind, scene=f"{number}", rgb=make_photo(10, 20), maps={"depth": values})
        )
    writer.write(0, samples)
    writer.finish(1, {"valid_range": [0.5, None]})
    return folder


def limits(data_dir: Path, **settings: Any) -> dict[str, tuple[float, float]]:
    config = DataConfig(sources={"mine": 1.0}, size=(8, 16), **settings)
    mixture = Mixture(config, data_dir=data_dir, seed=0)
    return {kind: mixture.limits(kind, mixture.sources[0]) for kind in ("rooms", "street")}


def test_limits_of_source_kind_and_recipe(data_dir: Path) -> None:
    assert limits(data_dir) == {"rooms": (0.5, 20.0), "street": (0.5, 80.0)}
    assert limits(data_dir, caps=False) == {"rooms": (0.5, INF), "street": (0.5, INF)}
    assert limits(data_dir, max_depth={"rooms": 65.0}) == {"rooms": (0.5, 65.0), "street": (0.5, 80.0)}
    by_kind = limits(data_dir, valid_range={"rooms": (1.5, 30.0)})
    assert by_kind == {"rooms": (1.5, 30.0), "street": (0.5, 80.0)}
    both = limits(data_dir, valid_range={"mine": (0.2, 100.0), "rooms": (0.1, 15.0)})
    assert both == {"rooms": (0.5, 15.0), "street": (0.5, 100.0)}
    with pytest.raises(RecipeError, match=r"data\.valid_range: kind 'mime' is not known; the data has mine, rooms"):
        limits(data_dir, valid_range={"mime": (0.0, 1.0)})
    with pytest.raises(RecipeError, match=r"valid_range of mine = \[2.0, 1.0\] must be two numbers"):
        limits(data_dir, valid_range={"mine": (2.0, 1.0)})


def test_a_window_does_not_squeeze_the_room(data_dir: Path) -> None:
    """With the cap the far plane is the room's; without it the room has a sixtieth of the range."""
    found = {}
    for caps in (True, False):
        config = DataConfig(sources={"mine": 1.0}, size=(8, 16), caps=caps)
        mixture = Mixture(config, data_dir=data_dir, seed=0)
        view = mixture.view(mixture.sources[0].keys.index("s3"))
        assert view.target is not None
        found[caps] = view.target.bounds[1]
        assert view.valid_mask.all() != caps
    assert 4.5 < found[True] <= 5.0 and found[False] == pytest.approx(300.0)


def test_statistics_show_quantiles(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rooms, street, everything = dataset_statistics(data_dir / "mine")
    assert (rooms.beyond_usual_share, street.beyond_usual_share) == (0.1, 1.0)
    assert everything.beyond_usual_share == pytest.approx(11 / 20)
    # 98 % of 200 values from 1 to 5, the 196.02th: 1 + 4 * 195.02 / 199.
    far = 1 + 4 * 195.02 / 199
    assert rooms.far_quantiles[:2] == pytest.approx((far, far), rel=1e-5)
    assert rooms.far_quantiles[2] > 100 and street.far_quantiles == pytest.approx((300, 300, 300))
    assert rooms.quantiles == pytest.approx((1.08, 3.0, 4.95), abs=0.05), "not the mean of the samples' own, 34 m"
    assert run(["data", "statistics", str(data_dir / "mine")]) == 0
    printed = capsys.readouterr().out
    assert "98 % in 50 / 80 / 95 % of samples" in printed and "10.0 %" in printed
