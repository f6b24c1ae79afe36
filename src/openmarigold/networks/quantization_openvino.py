# SPDX-License-Identifier: Apache-2.0
"""OpenVINO networks in int8, by NNCF (extra `quantize`): weights have a scale for each output channel.

Only convolutions and matrix products are put into int8: sums, products and resizing of images gain little and lose
much. Files hold OpenVINO's own operators, so that running them needs no NNCF.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.errors import needs_extra
from openmarigold.networks.quantization import Quantized, Sample, chosen_layers, relative_error
from openmarigold.privacy import openvino_without_reports

with needs_extra("quantize"), openvino_without_reports():
    import nncf
    import openvino
    from openvino import opset13 as operations

_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData"})
_LAYERS = _CONVOLUTIONS | {"MatMul"}
_OF_WEIGHTS = frozenset({"Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape", "Transpose"})
_TINY_BIAS = 1e-12  # not 0, because OpenVINO would remove a bias of 0
_SETTINGS: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}


def quantize_openvino(source: Path, folder: Path, samples: Sequence[Sample], small: Sequence[Sample]) -> Quantized:
    """Writes an OpenVINO network in int8 as model.xml and model.bin of a folder.

    Where layers share the quantization of an image, they stay in floating point together.

    Args:
        source: the float32 network.
        folder: where it is written.
        samples: its inputs on calibration photos.
        small: its inputs on a few of these at a small size, on which single layers are measured.
    """
    core = openvino.Core()
    plain, whole = core.read_model(source), _quantized(core.read_model(source), samples)
    groups = _groups(whole)
    errors = _measured(core, plain, whole.clone(), groups, small)
    expected = _outputs(core, source, samples)
    destination = folder / "model.xml"

    def quantize(kept: Mapping[str, float]) -> float:
        model = whole.clone()
        for name in kept:
            _keep(model, plain, groups[name])
        _save(model, destination)
        return relative_error(_outputs(core, destination, samples), expected)

    kept_groups, error = chosen_layers(errors, quantize)
    kept = {layer: error for name, error in kept_groups.items() for layer in groups[name].layers}
    num_layers = sum(len(group.layers) for group in groups.values()) - len(kept)
    return Quantized(num_layers=num_layers, kept=kept, output_error=error)


def write_whole(source: Path, folder: Path, samples: Sequence[Sample]) -> None:
    """Writes a network with all layers in int8, whatever their errors."""
    _save(_quantized(openvino.Core().read_model(source), samples), folder / "model.xml")


def _save(model: Any, path: Path) -> None:
    save: Any = openvino.save_model
    model.validate_nodes_and_infer_types()
    save(model, path, compress_to_fp16=False)


class _Group:
    """Layers whose inputs are quantized together, and the nodes that quantize them, by name."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.quantizers: list[str] = []


def _quantized(model: Any, samples: Sequence[Sample]) -> Any:
    logging.getLogger("nncf").setLevel(logging.ERROR)
    _add_biases(model)
    others = {node.get_type_name() for node in model.get_ordered_ops()} - _LAYERS
    # The default takes the mean of the photos' ranges, which clips.
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True, activations_range_estimator_params=ranges
    )
    return nncf.quantize(
        model,
        nncf.Dataset([dict(sample) for sample in samples]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(types=sorted(others), validate=False),
        advanced_parameters=advanced,
    )


def _add_biases(model: Any) -> None:
    """Gives each convolution without a bias a tiny one.

    Without it OpenVINO 2026.4.1 computes wrong values in int8, where the next layer is in int8 too.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _CONVOLUTIONS:
            continue
        targets = list(node.output(0).get_target_inputs())
        user = targets[0].get_node()
        if len(targets) == 1 and user.get_type_name() == "Add" and any(map(_is_constant, user.input_values())):
            continue
        bias = np.full((1, node.get_output_partial_shape(0)[1].get_length(), 1, 1), _TINY_BIAS, dtype=np.float32)
        shifted = operations.add(node, operations.constant(bias))
        for target in targets:
            target.replace_source_output(shifted.output(0))
    model.validate_nodes_and_infer_types()


def _groups(model: Any) -> dict[str, _Group]:
    """The layers in int8, by the name of the first of each group."""
    of_layer: dict[str, _Group] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize" or _is_constant(node.input_value(0)):
            continue
        layers = list(_layers_after(node))
        groups = [of_layer[layer] for layer in layers if layer in of_layer]
        group = groups[0] if groups else _Group()
        group.quantizers.append(node.get_friendly_name())
        for other in groups[1:]:
            if other is not group:
                group.layers += [layer for layer in other.layers if layer not in group.layers]
                group.quantizers += [one for one in other.quantizers if one not in group.quantizers]
        group.layers += [layer for layer in layers if layer not in group.layers]
        of_layer |= dict.fromkeys(group.layers, group)
    return {group.layers[0]: group for group in of_layer.values()}


def _layers_after(quantizer: Any) -> Iterator[str]:
    """Names of the layers that read a quantizer's output, directly or through operators that only move values."""
    waiting, seen = [quantizer], set()
    while waiting:
        for target in waiting.pop().output(0).get_target_inputs():
            node = target.get_node()
            name = node.get_friendly_name()
            if name in seen or node.get_type_name() == "FakeQuantize":
                continue
            seen.add(name)
            if node.get_type_name() in _LAYERS:
                yield name
            elif node.get_output_size() == 1:
                waiting.append(node)


def _is_constant(output: Any, depth: int = 6) -> bool:
    """Whether a value is a weight: a constant, perhaps stored in another type, scaled or reshaped."""
    node = output.get_node()
    if node.get_type_name() == "Constant":
        return True
    if not depth or node.get_type_name() not in _OF_WEIGHTS:
        return False
    return all(_is_constant(node.input_value(number), depth - 1) for number in range(node.get_input_size()))


def _keep(model: Any, plain: Any, group: _Group) -> None:
    """Brings a group of a network in int8 back to floating point."""
    nodes = _by_name(model)
    _restore_weights(nodes, plain, group.layers)
    for name in group.quantizers:
        _replace(nodes[name], nodes[name].input_value(0))


def _measured(
    core: Any, plain: Any, model: Any, groups: Mapping[str, _Group], samples: Sequence[Sample]
) -> dict[str, float]:
    """The error of the output with the inputs of one group quantized, by its name.

    The network gets back its float32 weights, and each group a switch: an input that is 1 for int8 and 0 for float32.
    """
    nodes = _by_name(model)
    _restore_weights(nodes, plain, [layer for group in groups.values() for layer in group.layers])
    switches = []
    for number, group in enumerate(groups.values()):
        switch = operations.parameter([], np.float32, name=f"int8_{number}")
        switch.output(0).set_names({f"int8_{number}"})
        switches.append(switch)
        for quantizer in (nodes[name] for name in group.quantizers):
            value, targets = quantizer.input_value(0), list(quantizer.output(0).get_target_inputs())
            share = operations.multiply(operations.subtract(quantizer, value), switch)
            _replace(quantizer, operations.add(value, share).output(0), targets)
    model.add_parameters(switches)
    request = core.compile_model(model, "CPU", _SETTINGS).create_infer_request()
    off = {f"int8_{number}": np.zeros((), dtype=np.float32) for number in range(len(groups))}
    on = np.ones((), dtype=np.float32)

    def outputs(switched: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [_output(request, {**sample, **off, **switched}) for sample in samples]

    expected = outputs({})
    return {name: relative_error(outputs({f"int8_{number}": on}), expected) for number, name in enumerate(groups)}


def _by_name(model: Any) -> dict[str, Any]:
    return {node.get_friendly_name(): node for node in model.get_ordered_ops()}


def _restore_weights(nodes: Mapping[str, Any], plain: Any, layers: Iterable[str]) -> None:
    """Gives layers the weights that they have in the float32 network."""
    originals = _by_name(plain)
    for layer in layers:
        for port in range(2):  # a product may have its weights first
            if _is_constant(nodes[layer].input_value(port)):
                nodes[layer].input(port).replace_source_output(originals[layer].input_value(port))


def _replace(node: Any, value: Any, targets: Iterable[Any] | None = None) -> None:
    """Replace the output of a node by another value in all its readers, or in the given ones."""
    for target in list(node.output(0).get_target_inputs()) if targets is None else targets:
        target.replace_source_output(value)


def _outputs(core: Any, path: Path, samples: Iterable[Sample]) -> list[np.ndarray]:
    request = core.compile_model(core.read_model(path), "CPU", _SETTINGS).create_infer_request()
    return [_output(request, sample) for sample in samples]


def _output(request: Any, inputs: Sample) -> np.ndarray:
    return np.array(request.infer(dict(inputs))[0], dtype=np.float32)
