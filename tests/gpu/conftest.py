# SPDX-License-Identifier: Apache-2.0
"""Tests of the paths that only a GPU takes: `pytest -m gpu`. Without a CUDA device they are skipped.

OPENMARIGOLD_GPU_TESTS_ON=cpu runs those on a CPU that can, to try the tests themselves out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tiny import kl_checkpoint, tiny_checkpoint  # noqa: F401 - fixtures

_INSTEAD = os.environ.get("OPENMARIGOLD_GPU_TESTS_ON")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default"))  # compilers of each torch warn of something else


@pytest.fixture
def device() -> str:
    """Where the tested networks run."""
    if torch.cuda.is_available():
        return "cuda"
    if _INSTEAD == "cpu":
        return "cpu"
    pytest.skip("needs a CUDA device, and torch finds none")


@pytest.fixture
def cuda(device: str) -> str:
    """For what a CPU has not: graphs, streams, its own memory."""
    if device != "cuda":
        pytest.skip("needs a CUDA device itself")
    return device


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Convolutions without TF32, whose 10 bits would hide what is tested; users keep torch's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
