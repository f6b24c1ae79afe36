# SPDX-License-Identifier: Apache-2.0
"""ONNX networks in int8, by ONNX Runtime's static quantization (QDQ): activations 8 bits unsigned, weights signed.

Weights have a scale for each output channel, activations one for each tensor, from its range on calibration photos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from openmarigold.images.quiet import quiet
from openmarigold.networks.quantization import Quantized, Sample, chosen_layers, relative_error

_LAYERS = ("Conv", "Gemm", "MatMul")


def quantize_onnx(source: Path, folder: Path, samples: Sequence[Sample], small: Sequence[Sample]) -> Quantized:
    """Writes an ONNX network in int8 as model.onnx of a folder.

    Args:
        source: the float32 network.
        folder: where it is written.
        samples: its inputs on calibration photos.
        small: its inputs on a few of these at a small size, on which single layers are measured.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch, quiet():
        prepared, whole, probe = (Path(scratch, f"{name}.onnx") for name in ("prepared", "whole", "probe"))
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        named = onnx.load(prepared)
        for number, node in enumerate(named.graph.node):
            node.name = node.name or f"{node.op_type}_{number}"
        onnx.save(named, prepared)
        _quantize(prepared, whole, samples, ())
        layers = _write_probe(named, onnx.load(whole), probe)
        errors = _measured(layers, probe, small)
        session = _session(source)
        expected = [_output(session, sample) for sample in samples]
        destination = folder / "model.onnx"

        def quantize(kept: Mapping[str, float]) -> float:
            _quantize(prepared, destination, samples, kept)
            session = _session(destination)
            return relative_error([_output(session, sample) for sample in samples], expected)

        kept, error = chosen_layers(errors, quantize)
    return Quantized(num_layers=len(layers) - len(kept), kept=kept, output_error=error)


class _Samples(CalibrationDataReader):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self._left = iter(samples)

    def get_next(self) -> Any:
        return next(self._left, None)


def _quantize(source: Path, destination: Path, samples: Sequence[Sample], kept: Collection[str]) -> None:
    quantize_static(
        str(source),
        str(destination),
        _Samples(samples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_LAYERS),
        nodes_to_exclude=list(kept),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _measured(layers: Mapping[str, str], probe: Path, samples: Sequence[Sample]) -> dict[str, float]:
    """The error of the output with one layer in int8, by layer."""
    off = {name: np.zeros((), dtype=np.float32) for name in layers.values()}
    on = np.ones((), dtype=np.float32)
    session = _session(probe)
    expected = [_output(session, {**sample, **off}) for sample in samples]
    return {
        layer: relative_error([_output(session, {**sample, **off, switch: on}) for sample in samples], expected)
        for layer, switch in layers.items()
    }


def _write_probe(network: Any, quantized: Any, path: Path) -> dict[str, str]:
    """Writes the float32 network with a switch for each layer: an input that is 1 for int8 and 0 for float32.

    Each layer gets a twin, which sees the same inputs through the quantization of the int8 network.

    Returns:
        The name of the switch of each layer.
    """
    twins = {node.name: node for node in quantized.graph.node if node.op_type in _LAYERS}
    makers = {output: node for node in quantized.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    known = {output for node in network.graph.node for output in node.output}
    known |= {tensor.name for tensor in (*network.graph.initializer, *network.graph.input)}
    probe = onnx.ModelProto()
    probe.CopyFrom(network)
    del probe.graph.node[:]
    switches = {}
    for number, node in enumerate(network.graph.node):
        probe.graph.node.append(node)
        twin = twins.get(node.name)
        if twin is None or list(twin.input) == list(node.input):
            continue
        switches[node.name] = switch = f"int8_{number}"
        probe.graph.input.append(helper.make_tensor_value_info(switch, TensorProto.FLOAT, []))
        for needed in _needed(twin.input, makers, known):
            known |= set(needed.output)
            probe.graph.node.append(needed)
            lacking = {name for name in needed.input if name in weights and name not in known}
            probe.graph.initializer.extend(weights[name] for name in lacking)
            known |= lacking
        probe.graph.node.extend(_switched(probe.graph.node, node, twin, switch))
    del probe.opset_import[:]
    probe.opset_import.extend(quantized.opset_import)
    onnx.save(probe, path)
    return switches


def _switched(written: Any, node: Any, twin: Any, switch: str) -> list[Any]:
    """The twin of a layer, and nodes that give output + switch * (output of the twin - output) as the output."""
    (output,) = node.output
    plain, other = f"{switch}_plain", f"{switch}_twin"
    next(one for one in written if one.name == node.name).output[0] = plain
    copy = onnx.NodeProto()
    copy.CopyFrom(twin)
    copy.name, copy.output[0] = other, other
    make = helper.make_node
    return [
        copy,
        make("Sub", [other, plain], [f"{switch}_difference"]),
        make("Mul", [f"{switch}_difference", switch], [f"{switch}_share"]),
        make("Add", [plain, f"{switch}_share"], [output]),
    ]


def _needed(inputs: Sequence[str], makers: Mapping[str, Any], known: Collection[str]) -> Iterator[Any]:
    """The nodes between known values and inputs, in the order of their use."""
    for name in inputs:
        if name not in known and name in makers:
            yield from _needed(makers[name].input, makers, known)
            yield makers[name]


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _output(session: onnxruntime.InferenceSession, inputs: Sample) -> np.ndarray:
    return session.run(None, dict(inputs))[0]  # pyright: ignore[reportReturnType]
