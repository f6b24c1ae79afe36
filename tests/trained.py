# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a folder in which the recipes of an autoencoder and a generator were trained, for several test files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openmarigold.training import train
from training_data import AUTOENCODER, DEPTH, GENERATOR, write_training_data


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, recipes, a trained autoencoder and a trained generator."""
    folder = tmp_path_factory.mktemp("training")
    write_training_data(folder / "data")
    for name, text in (("autoencoder", AUTOENCODER), ("generator", GENERATOR), ("depth", DEPTH)):
        (folder / f"{name}.toml").write_text(text)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in ("autoencoder", "generator"):
            train(folder / f"{name}.toml", data_dir=folder / "data", output_dir=folder / name, device="cpu")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace
