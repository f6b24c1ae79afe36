# SPDX-License-Identifier: Apache-2.0
"""The other files from which an ONNX file reads its weights, and its metadata.

ONNX files are protocol buffers. Only the messages that may hold tensors are read, without the package `onnx`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from openmarigold.errors import CheckpointError

# Message -> number of a field -> its message, for all that may hold tensors. Names as in onnx.proto.
_MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 14: "metadata", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "external_data"},
}
_LENGTH_OF = {1: 8, 5: 4}  # wire types of fixed size: 64 and 32 bits
_MAX_VARINT_BYTES = 10


@dataclass
class OnnxFacts:
    """The other files that hold the weights of an ONNX file, and the file's metadata."""

    external_files: list[Path] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def read_onnx_facts(path: Path) -> OnnxFacts:
    """The files that an ONNX file reads its weights from, sorted, and its metadata.

    Raises:
        CheckpointError: not an ONNX file, or its weights are in another folder, missing or cut off.
        OSError: it cannot be read.
    """
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=32)
def _read(path: Path, size: int, _mtime_ns: int) -> OnnxFacts:
    facts = OnnxFacts()
    ends: dict[str, int] = {}
    if size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                for message, entries in _entries(content):
                    if message == "metadata":
                        facts.metadata.update(entries)
                    elif entries:
                        values = dict(entries)
                        end = int(values.get("offset", 0)) + int(values.get("length", 0))
                        for key, location in entries:
                            if key == "location":
                                ends[location] = max(ends.get(location, 0), end)
            except (ValueError, IndexError) as error:
                raise CheckpointError(f"{path} is not a whole ONNX file; get the checkpoint again") from error
    for location, end in sorted(ends.items()):
        facts.external_files.append(_checked(path, location, end))
    return facts


def _checked(path: Path, location: str, end: int) -> Path:
    """The file of weights that `path` names, which must be next to it and have at least `end` bytes."""
    if Path(location).name != location or "\\" in location or location in ("", ".", "..", path.name):
        raise CheckpointError(
            f"{path} reads weights from {location!r}; accepted are files in its own folder, so that all loaded files "
            "can be hashed: export the network again"
        )
    sibling = path.parent / location
    if not sibling.is_file():
        raise CheckpointError(f"{sibling} is missing; {path.name} reads weights from it; get the checkpoint again")
    if sibling.stat().st_size < end:
        raise CheckpointError(
            f"{sibling} is truncated ({sibling.stat().st_size} of {end} bytes at least); get the checkpoint again"
        )
    return sibling


def _entries(content: mmap.mmap) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields ("metadata", its key and value) and, for each tensor, ("TensorProto", the
    keys and values of its external data).

    Raises:
        ValueError, IndexError: not a protocol buffer.
    """
    messages = [("ModelProto", 0, len(content))]
    while messages:
        message, start, end = messages.pop()
        known = _MESSAGES[message]
        external = []
        for number, begin, stop in _fields(content, start, end):
            inner = known.get(number)
            if inner == "metadata":
                yield inner, [_key_and_value(content, begin, stop)]
            elif inner == "external_data":
                external.append(_key_and_value(content, begin, stop))
            elif inner is not None and content.find(b"location", begin, stop) >= 0:  # the key that every entry needs
                messages.append((inner, begin, stop))
        if message == "TensorProto":
            yield message, external


def _key_and_value(content: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for number, begin, stop in _fields(content, start, end):
        texts[number] = content[begin:stop].decode()
    return texts[1], texts[2]


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields (number, start, end) of the fields of a message that have a length, and skips the others."""
    position = start
    while position < end:
        tag, position = _varint(content, position)
        wire_type = tag & 7
        if wire_type == 0:
            _, position = _varint(content, position)
        elif wire_type == 2:
            length, position = _varint(content, position)
            if position + length > end:
                raise ValueError("a field is longer than its message")
            yield tag >> 3, position, position + length
            position += length
        elif wire_type in _LENGTH_OF:
            position += _LENGTH_OF[wire_type]
        else:
            raise ValueError(f"wire type {wire_type}")
    if position != end:
        raise ValueError("a field is longer than its message")


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = content[position]
    if value < 128:
        return value, position + 1
    value &= 127
    for place in range(1, _MAX_VARINT_BYTES):
        byte = content[position + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, position + place + 1
    raise ValueError("a number of more than 64 bits")
