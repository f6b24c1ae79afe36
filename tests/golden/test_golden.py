# SPDX-License-Identifier: Apache-2.0
"""Results, scores and losses stay what they are: to the last bit where golden.json was recorded, closely elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent
GOLDEN = json.loads((FOLDER / "golden.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("golden") / "found.json"
    search = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, FOLDER / "goldens.py", path]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(path.read_text())


def is_exact(found: dict[str, Any]) -> bool:
    return found["environment"] == GOLDEN["environment"]


def test_predictions_are_those_that_were_recorded(found: dict[str, Any]) -> None:
    assert found["predictions"].keys() == GOLDEN["predictions"].keys()
    for name, expected in GOLDEN["predictions"].items():
        if is_exact(found):
            assert found["predictions"][name]["sha256"] == expected["sha256"], name
        means, scale = found["predictions"][name]["means"], max(1.0, np.abs(expected["means"]).max())
        np.testing.assert_allclose(means, expected["means"], rtol=0, atol=2e-3 * scale, err_msg=name)


def test_scores_are_those_that_were_recorded(found: dict[str, Any]) -> None:
    assert found["scores"].keys() == GOLDEN["scores"].keys()
    for kind, metrics in GOLDEN["scores"].items():
        expected = metrics if is_exact(found) else pytest.approx(metrics, rel=1e-2, abs=1e-3)
        assert found["scores"][kind] == expected, kind


def test_losses_are_those_that_were_recorded(found: dict[str, Any]) -> None:
    assert found["losses"].keys() == GOLDEN["losses"].keys()
    for name, expected in GOLDEN["losses"].items():
        assert found["losses"][name] == (expected if is_exact(found) else pytest.approx(expected, rel=5e-2)), name
