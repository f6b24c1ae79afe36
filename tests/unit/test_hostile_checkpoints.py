# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are damaged or made to harm: one error before anything is computed, and no code of their choice."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from openmarigold.checkpoints.checkpoint import EMBEDDING_FILE, read_checkpoint
from openmarigold.checkpoints.safetensors_header import read_header
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError
from openmarigold.networks.prompt import load_empty_prompt_embedding
from openmarigold.predictor import Predictor
from tiny import add_text_encoder, edit_json, make_photo


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def safetensors(path: Path, header: Any, size: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def tensor(shape: Any, start: Any = 0, end: Any = 16, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"w": tensor([2.0, 2])},
        {"w": tensor([-2, -2])},
        {"w": tensor([True, 4])},
        {"w": tensor("22")},
        {"w": tensor([4], 0.0, 16.0)},
        {"w": tensor([4], -16, 0), "x": tensor([4])},
        {"w": tensor([4], True, 17)},
        {"w": tensor([4], dtype=["F32"])},
        {"w": tensor([2], 0, 8), "x": tensor([3], 4, 16)},
        {"w": tensor([1], 12, 16)},
        {"w": [4]},
        [],
        7,
        b"[" * 100_000,
        b'{"w": {"shape": [' + b"9" * 400 + b"]}}",
        b'{"w\\u0000": {}}',
        b"\xff\xfe",
    ],
)
def test_headers_of_weights(header: Any, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "w.safetensors", header, 16)
    with pytest.raises(CheckpointError, match=r"w\.safetensors is (not a safetensors file|truncated)") as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
    header = read_header(safetensors(path, {"x": tensor([2], 8, 16), "w": tensor([2], 0, 8)}, 16))
    assert header.tensors["x"].start == header.tensors["w"].end == header.data_start + 8


EPSILON: dict[str, Any] = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_timesteps": 0}, "is outside 2"),
        ({"num_train_timesteps": 10**9}, "is outside 2"),
        ({"num_train_timesteps": 1000.0}, "not a whole number"),
        ({"num_train_timesteps": 10**300}, "is outside 2"),
        ({"beta_start": -0.1}, "0 < beta_start"),
        ({"beta_end": 1.5}, "0 < beta_start"),
        ({"beta_end": float("nan")}, "not a number"),
        ({"beta_end": float("inf")}, "0 < beta_start"),
        ({"beta_start": 1e-300}, "adds no noise"),
        (
            {"beta_start": 0.9, "beta_end": 0.99, "prediction_type": "epsilon", "rescale_betas_zero_snr": False},
            "leaves",
        ),
        ({"steps_offset": -1}, "is not a timestep"),
        ({"steps_offset": 10**6}, "is not a timestep"),
        ({"_class_name": "LCMScheduler", "timestep_scaling": float("inf")}, "timestep_scaling=inf"),
        ({"_class_name": "LCMScheduler", "timestep_scaling": -1.0}, "timestep_scaling=-1"),
        ({"_class_name": ["DDIMScheduler"]}, "the scheduler is"),
        ({"trained_betas": [0.1] * 10}, "trained_betas"),
    ],
)
def test_absurd_values_of_the_scheduler(changes: dict[str, Any], message: str, checkpoint: Path) -> None:
    edit_json(checkpoint / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(checkpoint)


def test_schedules_in_use_are_accepted() -> None:
    NoiseSchedule(**EPSILON, timestep_spacing="leading")
    NoiseSchedule(sampler="lcm", beta_schedule="linear", beta_start=1e-4, beta_end=0.02)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}, r"layers_per_block is the number 1e\+09"),
        ("unet/config.json", {"block_out_channels": [10**12, 4]}, "block_out_channels is the number"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 10_000}, "is a list of 10000"),
        ("unet/config.json", {"norm_eps": float("nan")}, "norm_eps is the number nan"),
        ("unet/config.json", {"out_channels": 1}, "and 1 output channels do not fit"),
        ("unet/config.json", {"out_channels": 16}, "and 16 output channels do not fit"),
        ("vae/config.json", {"latent_channels": -8}, "a whole number from 1 to"),
        ("model_index.json", {"default_processing_resolution": 8 * 10**8}, "a whole number from 0 to 16384"),
    ],
)
def test_absurd_values_of_the_networks(file: str, changes: dict[str, Any], message: str, checkpoint: Path) -> None:
    edit_json(checkpoint / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("channels", [1, 16])
def test_a_converted_unet_of_other_output_channels(channels: int, onnx_checkpoint: Path, tmp_path: Path) -> None:
    """One channel was stretched over all of the latent's, and a depth map came out."""
    directory = Path(shutil.copytree(onnx_checkpoint, tmp_path / "onnx"))
    free = ["b", "c", "h", "w"]
    nodes = [helper.make_node("ReduceMean", ["sample"], ["mean"], axes=[1], keepdims=1)]
    nodes.append(helper.make_node("Concat", ["mean"] * channels, ["prediction"], axis=1))
    graph = helper.make_graph(
        nodes,
        "unet",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, free),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, free)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        directory / "unet/model.onnx",
    )
    predictor = Predictor.load(directory, engine="onnx")
    with pytest.raises(CheckpointError, match=rf"unet gave an output of shape \[1, {channels}, 8, 8\], not"):
        predictor(make_photo(64, 64))


# --- The text encoder


def published(checkpoint: Path, **changes: Any) -> torch.Tensor:
    (checkpoint / EMBEDDING_FILE).unlink()
    expected = add_text_encoder(checkpoint)
    edit_json(checkpoint / "text_encoder" / "config.json", **changes)
    return expected


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "somebody/kernels"},
        {"_attn_implementation": "flash_attention_2", "_attn_implementation_internal": "somebody/kernels"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"auto_map": {"AutoModel": "somebody/code--model.Model"}, "architectures": ["Other"], "model_type": "other"},
        {"dtype": "float16", "torch_dtype": "bfloat16", "output_hidden_states": True, "return_dict": False},
    ],
)
def test_its_configuration_chooses_no_code(changes: dict[str, Any], checkpoint: Path) -> None:
    expected = published(checkpoint, **changes)
    torch.testing.assert_close(load_empty_prompt_embedding(checkpoint), expected, rtol=0, atol=0)


def test_an_adapter_in_its_folder_is_not_loaded(checkpoint: Path) -> None:
    expected = published(checkpoint)
    folder = checkpoint / "text_encoder"
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}')
    torch.testing.assert_close(load_empty_prompt_embedding(checkpoint), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; a whole number from 0 to 128"),
        ({"vocab_size": 10**15}, "vocab_size is 1"),
        ({"hidden_size": -16}, "hidden_size is -16"),
        ({"hidden_size": 16.0}, "hidden_size is 16.0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"hidden_act": "__import__"}, "hidden_act is '__import__'"),
        ({"hidden_size": 32}, "cannot be loaded"),
        ({"num_hidden_layers": 3}, "cannot be loaded"),
    ],
)
def test_absurd_values_of_its_configuration(changes: dict[str, Any], message: str, checkpoint: Path) -> None:
    published(checkpoint, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_empty_prompt_embedding(checkpoint)
    assert "\n" not in str(caught.value)


def test_an_embedding_that_is_not_finite(checkpoint: Path) -> None:
    save_file({"empty_prompt_embedding": torch.full((1, 2, 16), torch.nan)}, checkpoint / EMBEDDING_FILE)
    with pytest.raises(CheckpointError, match="is not finite"):
        load_empty_prompt_embedding(checkpoint)


# --- Links


def test_links_out_of_the_folder_are_said_once(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    elsewhere = tmp_path / "elsewhere.safetensors"
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read_checkpoint(checkpoint)
    assert [record.getMessage() for record in caplog.records] == [
        f"{weights} is a link out of the checkpoint's folder, to {elsewhere.resolve()}"
    ]


def test_links_of_the_hubs_cache_are_not_said(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = Path(shutil.copytree(checkpoint, repository / "snapshots" / "0123"))
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = repository / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(blob)
    with caplog.at_level(logging.WARNING):
        read_checkpoint(snapshot)
    assert not caplog.records and np.isfinite(Predictor.load(snapshot)(make_photo(64, 64)).depth).all()
