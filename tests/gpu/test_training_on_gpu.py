# SPDX-License-Identifier: Apache-2.0
"""The three recipes on a GPU: it trains as a CPU does, and a run that was stopped continues as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openmarigold.predictor import Predictor
from openmarigold.training import train
from training_data import AUTOENCODER, DEPTH, GENERATOR, write_training_data

# Relative, of losses: the backward pass adds in another order in each run.
AGAIN = 1e-3
AGAIN_IN_BFLOAT16 = 0.02
ON_A_CPU = 0.01


def losses(run_dir: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return np.array([row["loss"] for row in rows])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_training_data(tmp_path / "data")
    for name, text in (("autoencoder", AUTOENCODER), ("generator", GENERATOR), ("depth", DEPTH)):
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("workspace")
def test_recipes_train_resume_and_predict(device: str) -> None:
    chosen = "auto" if device == "cuda" else "cpu"
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for name in ("autoencoder", "generator", "depth"):
        train(Path(f"{name}.toml"), data_dir=Path("data"), output_dir=Path(name), device=chosen)
    if device == "cuda":
        assert torch.cuda.max_memory_allocated() > 0
        train(Path("autoencoder.toml"), data_dir=Path("data"), output_dir=Path("on-cpu"), device="cpu")
        np.testing.assert_allclose(losses(Path("autoencoder")), losses(Path("on-cpu")), rtol=ON_A_CPU)

    for name, bound in (("autoencoder", AGAIN), ("depth", AGAIN_IN_BFLOAT16)):
        halved = Path(f"{name}-halved")
        settings = {"data_dir": Path("data"), "output_dir": halved, "device": chosen}
        assert train(Path(f"{name}.toml"), **settings, stop_after_steps=4) is None
        train(Path(f"{name}.toml"), **settings)
        print(f"{name}: losses differ by {np.ptp([losses(Path(name)), losses(halved)], axis=0).max():.2g} at most")
        np.testing.assert_allclose(losses(halved), losses(Path(name)), rtol=bound)

    rgb = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    found = [Predictor.load(Path("depth/checkpoint"), engine="torch", device=one)(rgb).depth for one in ("cpu", device)]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-3)


@pytest.mark.usefixtures("cuda", "workspace")
def test_a_state_of_a_gpu_goes_on_on_a_cpu() -> None:
    """And the other way round: a state belongs to no device."""
    settings = {"data_dir": Path("data"), "output_dir": Path("run")}
    recipe = Path("autoencoder.toml")
    for device, steps in (("auto", 2), ("cpu", 4), ("auto", 6), ("cpu", 8)):
        train(recipe, **settings, device=device, stop_after_steps=steps)
    train(recipe, data_dir=Path("data"), output_dir=Path("whole"), device="cpu")
    np.testing.assert_allclose(losses(Path("run")), losses(Path("whole")), rtol=ON_A_CPU)
