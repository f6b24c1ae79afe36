# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU: the engine of the embedded model, without torch.

Safetensors weights are converted once for this engine and kept (see `converted`).
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.config import Dtype
from openmarigold.engines.converted import ConvertedEngine, failed_run, open_networks
from openmarigold.errors import CheckpointError, InvalidValueError, one_line


def open_onnx(
    checkpoint: Checkpoint, *, device: str, dtype: Dtype, tiny_vae: TinyVae | None, at_once: int = 1
) -> ConvertedEngine:
    """The engine of three ONNX Runtime sessions, which any number of threads may run at once.

    If `at_once` calls keep all cores busy, each call has one thread, which does not wait for others.

    Raises:
        CheckpointError: a network file is damaged.
        InvalidValueError: a device other than the CPU, or another precision than float32.
        MissingExtraError: networks have to be converted and torch is not installed.
    """
    if device not in ("auto", "cpu"):
        raise InvalidValueError(
            f"device={device!r} does not run ONNX networks, cpu does; for a GPU give --checkpoint a folder with "
            'safetensors weights and install "openmarigold[torch]"'
        )
    if dtype not in ("float32", "int8"):
        more = "or use engine torch on a GPU" if dtype == "float16" else "or use engine openvino"
        raise InvalidValueError(
            f"dtype={dtype!r} is not for ONNX networks, which compute in float32 or int8; leave it out, {more} (extra "
            f"{'torch' if dtype == 'float16' else 'openvino'})"
        )
    num_threads = 1 if at_once >= (os.cpu_count() or 1) else 0
    open_all = partial(_open_all, num_threads=num_threads)
    sessions = open_networks(checkpoint, "onnx", open_all, tiny_vae=tiny_vae)
    stored = sessions[checkpoint.networks[0]].get_outputs()[0].shape[1]
    if isinstance(stored, int) and stored != checkpoint.image_channels:
        key = "condition_channels" if checkpoint.image_encoder else "latent_channels"
        raise CheckpointError(
            f"{checkpoint.directory / 'model_index.json'}: {key} is {checkpoint.condition_channels}, and the "
            f"networks have {stored + checkpoint.condition_channels - checkpoint.image_channels}; get the checkpoint "
            "again"
        )

    def run(name: str, **inputs: np.ndarray) -> np.ndarray:
        try:
            return sessions[name].run(None, inputs)[0]  # pyright: ignore[reportReturnType]
        except Exception as error:  # ONNX Runtime's error classes share no public base
            raise failed_run(name, inputs, error) from error

    return ConvertedEngine("onnx", checkpoint, run, dtype=dtype)


def _open_all(paths: dict[str, Path], *, num_threads: int) -> dict[str, onnxruntime.InferenceSession]:
    return {name: _open_session(path, num_threads) for name, path in paths.items()}


def _open_session(path: Path, num_threads: int) -> onnxruntime.InferenceSession:
    """A session with `num_threads` threads, 0: one per core. Their number does not change the results."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads
    # Sessions do not share threads. A thread that spins while it waits takes a core from the next network.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's error classes share no public base
        raise CheckpointError(f"{path} cannot be loaded ({one_line(error)}); get the checkpoint again") from error
