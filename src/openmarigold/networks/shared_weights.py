# SPDX-License-Identifier: Apache-2.0
"""ONNX networks that read their weights from the safetensors files of the same folder, so that each weight is stored
once.

A traced network holds weights as torch has them, transposed, or three side by side (the fused projections of
self-attention). Each such weight becomes the stored tensors, by file and offset, and the operators that make the weight
of them; ONNX Runtime computes these once, when it loads the network. What was folded from several tensors stays in the
graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from openmarigold.checkpoints.safetensors_header import StoredTensor, read_header

_TYPES = {
    "F16": (np.dtype("<f2"), TensorProto.FLOAT16),
    "F32": (np.dtype("<f4"), TensorProto.FLOAT),
    "BF16": (np.dtype("<u2"), TensorProto.BFLOAT16),
}
_FUSED = 3  # queries, keys and values


@dataclass(frozen=True)
class _Stored:
    """A tensor in a safetensors file."""

    name: str
    file: str
    tensor: StoredTensor


@dataclass(frozen=True)
class _Source:
    """How a weight is made of stored tensors: put together along the first axis, then transposed."""

    tensors: tuple[_Stored, ...]
    transposed: bool


def share_weights(model: onnx.ModelProto, files: Sequence[Path]) -> None:
    """Lets the float32 weights of a network point into safetensors files, where these hold the same values, in place.

    Raises:
        CheckpointError: a file is damaged.
    """
    stored = _Index(files)
    kept, added, nodes = [], {}, []
    for tensor in model.graph.initializer:
        source = stored.find(tensor) if tensor.data_type == TensorProto.FLOAT else None
        if source is None:
            kept.append(tensor)
            continue
        for part in source.tensors:
            added.setdefault(part.name, _external(part))
        nodes += _operators(source, tensor.name)
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*added.values(), *kept])
    model.graph.node.extend(nodes)


class _Index:
    """Stored tensors by their values."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._by_values: dict[bytes, list[_Stored]] = {}
        for path in files:
            with path.open("rb") as file:
                for name, tensor in read_header(path).tensors.items():
                    if tensor.dtype in _TYPES:
                        file.seek(tensor.start)
                        values = _values(tensor, file.read(tensor.end - tensor.start))
                        self._by_values.setdefault(_key(values), []).append(_Stored(name, path.name, tensor))

    def find(self, weight: Any) -> _Source | None:
        """The stored tensors that a weight of a network is made of; None where it is not made of these alone."""
        values = numpy_helper.to_array(weight)
        for transposed in (False, True) if values.ndim == 2 else (False,):
            oriented = values.T if transposed else values
            parts = [oriented]
            if oriented.ndim and not len(oriented) % _FUSED and _key(oriented) not in self._by_values:
                parts = np.split(oriented, _FUSED)
            found = [self._by_values.get(_key(part)) for part in parts]
            if all(found):
                return _Source(tuple(_most_alike(candidates or [], weight.name) for candidates in found), transposed)
        return None


def _most_alike(candidates: list[_Stored], name: str) -> _Stored:
    """The tensor of the same name among tensors with equal values; the first one where none has that name."""
    return next((stored for stored in candidates if name.endswith(stored.name)), candidates[0])


def _key(values: np.ndarray) -> bytes:
    return hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values, dtype="<f4").tobytes()).digest()


def _values(stored: StoredTensor, content: bytes) -> np.ndarray:
    """The tensor in float32, which holds the values of all three kinds exactly."""
    values = np.frombuffer(content, dtype=_TYPES[stored.dtype][0])
    if stored.dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32).reshape(stored.shape)


def _external(stored: _Stored) -> TensorProto:
    tensor = TensorProto(
        name=_name(stored),
        data_type=_TYPES[stored.tensor.dtype][1],
        dims=stored.tensor.shape,
        data_location=TensorProto.EXTERNAL,
    )
    start, end = stored.tensor.start, stored.tensor.end
    for key, value in (("location", stored.file), ("offset", start), ("length", end - start)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _name(stored: _Stored) -> str:
    return f"stored:{stored.name}"


def _operators(source: _Source, name: str) -> list[Any]:
    """The operators that make the float32 weight `name` of what is stored."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if len(source.tensors) > 1:
        steps.append(("Concat", {"axis": 0}))
    if source.transposed:
        steps.append(("Transpose", {"perm": [1, 0]}))
    if any(stored.tensor.dtype != "F32" for stored in source.tensors):
        steps.append(("Cast", {"to": TensorProto.FLOAT}))
    inputs, nodes = [_name(stored) for stored in source.tensors], []
    for number, (operator, attributes) in enumerate(steps or [("Identity", {})], start=1):
        output = name if number >= len(steps) else f"{name}.{number}"
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        inputs = [output]
    return nodes
