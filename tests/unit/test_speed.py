# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.cli import run
from openmarigold.config import PredictConfig
from openmarigold.evaluation import speed
from openmarigold.evaluation.speed import count_flops


def test_arithmetic_is_counted_alike_from_weights_and_from_networks(
    kl_checkpoint: Path, kl_onnx_checkpoint: Path, tiny_checkpoint: Path, onnx_checkpoint: Path
) -> None:
    config = PredictConfig()
    for weights, onnx in ((kl_checkpoint, kl_onnx_checkpoint), (tiny_checkpoint, onnx_checkpoint)):
        expected = count_flops(read_checkpoint(weights), config, 64, 96)
        found = count_flops(read_checkpoint(onnx), config, 64, 96)
        assert expected is not None and found is not None
        assert found["vae_encoder"] == pytest.approx(expected["vae_encoder"], rel=0.02)
        # The decoder's last layer is folded to the mean of its three channels.
        assert 0.9 * expected["vae_decoder"] < found["vae_decoder"] <= 1.02 * expected["vae_decoder"]
        assert 0.6 * expected["unet"] < found["unet"] <= expected["unet"]  # the constant context is folded


def test_arithmetic_of_a_convolution_is_counted_right(tiny_checkpoint: Path) -> None:
    small, large = (count_flops(read_checkpoint(tiny_checkpoint), PredictConfig(), side, side) for side in (64, 128))
    assert small is not None and large is not None
    assert large["vae_decoder"] == 4 * small["vae_decoder"]
    assert small["vae_decoder"] > 2 * 9 * 8 * 8 * 64 * 64  # one of its convolutions, 8 to 8 channels of 3x3


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_command_prints_every_stage(
    onnx_checkpoint: Path, engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_CEILING_SIZE", 256)
    arguments = ["benchmark", "--checkpoint", str(onnx_checkpoint), "--engine", engine, "--size", "64", "48"]
    assert run([*arguments, "--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["engine"], report["network_size"]) == (engine, [64, 48])
    assert set(report["stages"]) == {"encode", "denoise", "decode"}
    for stage in report["stages"].values():
        assert stage["gflop_per_s"] == pytest.approx(stage["gflop"] / stage["seconds"])
        assert stage["ceiling_share"] == pytest.approx(stage["gflop_per_s"] / report["ceiling_gflop_per_s"])
    assert report["start_up_s"] > report["load_s"] / 10
    if engine == "onnx":
        assert run([*arguments, "--repeats", "1"]) == 0
        assert "of a matrix product" in capsys.readouterr().out
    assert run(["benchmark", "--size", "0", "48"]) == 2
