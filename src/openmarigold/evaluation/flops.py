# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic the networks of a checkpoint are: matrix products, convolutions and attention."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import read_tiny_vae
from openmarigold.checkpoints.weight_files import NETWORK_FILES, graph_file
from openmarigold.config import LATENT_FACTOR, PredictConfig
from openmarigold.engines import is_installed

_COUNTED = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul", "ScaledDotProductAttention")


def count_flops(checkpoint: Checkpoint, config: PredictConfig, height: int, width: int) -> dict[str, int] | None:
    """Arithmetic of each network for one image of this size [px], as the checkpoint has it; None where it cannot be
    counted here.

    Safetensors weights need torch, others OpenVINO.
    """
    tiny_vae = read_tiny_vae(config, checkpoint)
    if checkpoint.weights == "safetensors" and (is_installed("torch") or not checkpoint.graphs):
        if not is_installed("torch"):
            return None
        from openmarigold.networks.conversion import count_network_flops

        return {name: count_network_flops(checkpoint, name, height, width, tiny_vae) for name in checkpoint.networks}
    if not is_installed("openvino") or tiny_vae is not None:
        return None
    directory, kind = checkpoint.directory, checkpoint.weights
    files = {
        name: graph_file(directory, name) if kind == "safetensors" else directory / NETWORK_FILES[kind][name]
        for name in checkpoint.networks
    }
    return {name: _count_file_flops(file, height, width) for name, file in files.items()}


def _count_file_flops(path: Path, height: int, width: int) -> int:
    """Arithmetic of an ONNX or OpenVINO network for one image of this size [px]: convolutions and matrix products."""
    import openvino

    model = openvino.Core().read_model(path)
    shapes = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        if len(shape) == 4:
            cells = 1 if shape[1].get_length() == 3 else LATENT_FACTOR
            shapes[port] = [1, shape[1].get_length(), height // cells, width // cells]
    model.reshape(shapes)
    return sum(_operation_flops(operation) for operation in model.get_ops())


def _operation_flops(operation: Any) -> int:
    name = operation.get_type_name()
    if name not in _COUNTED:
        return 0
    out = math.prod(operation.output(0).get_shape())
    first, second = (list(operation.input(index).get_shape()) for index in (0, 1))
    if name == "MatMul":
        return 2 * out * (first[-2] if operation.get_attributes()["transpose_a"] else first[-1])
    if name == "ScaledDotProductAttention":  # the logits, and their product with the values
        return 4 * math.prod(first) * second[-2]
    if name == "ConvolutionBackpropData":  # each input value goes through all filters
        return 2 * math.prod(first) * math.prod(second[1:])
    return 2 * out * math.prod(second[1:] if name == "Convolution" else second[2:])
