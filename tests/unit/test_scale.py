# SPDX-License-Identifier: Apache-2.0
"""benchmarks/scale.py: a simulated fleet writes each key once, with the code of `openmarigold batch`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"


@pytest.fixture(scope="module")
def scale() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("scale", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["scale"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scale"]


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_each_key_is_there_once_whatever_dies(scale: ModuleType, format: str) -> None:
    fleet = scale.Fleet(workers=12, life=200.0, boot=10.0, driver_life=40.0, silence=0.2, patience=2.0)
    found = scale.simulate(1500, fleet, 30, 3, format)
    assert found["keys"] == found["keys_once"] == found["photos_in_statistics"] == 1500
    assert found["files_equal_to_undisturbed"]
    events = found["events"]
    assert min(events[name] for name in ("worker died", "driver died", "shard made twice")) > 0
    assert found["work_lost"] > 0.02
    assert found["longer_by"] > 0.1


def test_a_fleet_without_faults_takes_the_time_of_its_rates(scale: ModuleType) -> None:
    fleet = scale.Fleet(workers=4, rate=2.0, slow_share=0, spread=0, life=1e12, driver_life=1e12, silence=0, write=0.0)
    found = scale.simulate(800, fleet, 50, 0, "parquet")
    assert found["hours"] == found["hours_without_faults_and_ends"] == pytest.approx(800 / 8 / 3600, abs=0.005)
    assert (found["longer_by"], found["work_lost"], found["events"]) == (0, 0, {})


def test_the_plan_is_arithmetic(scale: ModuleType) -> None:
    table = scale.plan([3600.0 * scale.RATES["marigold-lite, CPU core"][0] * 1000], 0.05, 2.0)
    assert "| marigold-lite, CPU core | 1,000 core hours, $50 |" in table
