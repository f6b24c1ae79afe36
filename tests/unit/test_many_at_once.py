# SPDX-License-Identifier: Apache-2.0
"""Networks that several threads call at the same time: how the cores are divided, and that results stay the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.config import CallConfig, OutputConfig, PredictConfig
from openmarigold.engines import onnx as onnx_engine
from openmarigold.engines import open_engine
from openmarigold.predictor.stream import frames_at_once
from openmarigold.temporal.settings import StreamConfig
from openmarigold.video import model as model_module
from openmarigold.video.model import LoadedModel

NUM_FRAMES = 6


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return read_checkpoint(None)


def decoded(engine: Any, number: int) -> list[np.ndarray]:
    """What the networks make of a frame, each of what the one before gave; frames have two sizes."""
    size = (64, 88) if number % 2 else (72, 64)
    rgb = np.random.default_rng(number).uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    condition = engine.encode(rgb)
    noise = np.zeros((1, engine.latent_channels, size[0] // 8, size[1] // 8), dtype=np.float32)
    latent = engine.denoise(condition, noise, timestep=999)
    return [condition, latent, engine.decode(latent)]


def test_many_calls_at_once_give_the_bytes_of_one_after_the_other(embedded: Checkpoint) -> None:
    alone = open_engine(embedded, engine="onnx")
    together = open_engine(embedded, engine="onnx", at_once=3)
    expected = [decoded(alone, number) for number in range(NUM_FRAMES)]
    with ThreadPoolExecutor(4) as pool:  # one more than the engine was told
        found = list(pool.map(lambda number: decoded(together, number), range(NUM_FRAMES)))
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("cores", "at_once", "num_threads"),
    [(2, 1, 0), (2, 3, 1), (3, 3, 1), (4, 3, 0), (1, 1, 1), (None, 1, 1)],
)
def test_each_call_has_one_thread_where_calls_keep_all_cores_busy(
    embedded: Checkpoint, monkeypatch: pytest.MonkeyPatch, cores: int | None, at_once: int, num_threads: int
) -> None:
    seen: list[int] = []

    def noting(paths: dict[str, Path], *, num_threads: int) -> dict[str, Any]:
        seen.append(num_threads)
        return dict.fromkeys(paths, _Outputs())

    monkeypatch.setattr(onnx_engine.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(onnx_engine, "_open_all", noting)
    onnx_engine.open_onnx(embedded, device="cpu", dtype="float32", tiny_vae=None, at_once=at_once)
    assert seen == [num_threads]


class _Outputs:
    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"shape": ["batch", None]})()]


def test_threads_that_wait_leave_their_core_to_others(embedded: Checkpoint) -> None:
    path = embedded.directory / "vae" / "decoder.onnx"
    options = onnx_engine._open_session(path, 1).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 1


@pytest.mark.parametrize(
    ("previous", "noise", "expected"),
    [(None, "zeros", 3), (None, "gaussian", 1), (0.0, "gaussian", 3), (0.3, "gaussian", 1)],
)
def test_frames_that_wait_for_the_one_before_have_all_cores(
    previous: float | None, noise: Any, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StreamConfig(previous_latent=previous)
    assert frames_at_once(stream, CallConfig(start_noise=noise)) == expected
    seen: list[Any] = []
    monkeypatch.setattr(model_module.ModelRun, "load", lambda run: seen.append(run.at_once))
    monkeypatch.setattr(model_module, "Stream", lambda *_: Mock(spec=["follow", "state"]))
    LoadedModel(PredictConfig(start_noise=noise), stream, OutputConfig(), tmp_path).open(None)
    assert seen == [expected]
