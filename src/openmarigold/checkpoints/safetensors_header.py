# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file: the names, types, shapes and byte positions of its tensors.

It is read here because the library `safetensors` does not state byte positions: ONNX networks refer to them, and checks
and loading read the bytes in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmarigold.errors import CheckpointError, one_line
from openmarigold.text_files import parse_json

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file; its bytes are from `start` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The content of a header; the bytes of the tensors begin at `data_start` of the file."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file; the file's size is checked against it.

    Raises:
        CheckpointError: the file is truncated or not in safetensors format.
    """
    try:
        size = path.stat().st_size
        check_not_a_pointer(path)
        with path.open("rb") as file:
            data_start = 8 + int.from_bytes(file.read(8), "little")
            if size < data_start:
                raise CheckpointError(f"{path} is truncated ({size} bytes); get the checkpoint again")
            entries = parse_json(file.read(min(data_start - 8, _MAX_HEADER_BYTES)))
        metadata = entries.pop("__metadata__", None)
        tensors = {name: _tensor(name, entry, data_start) for name, entry in entries.items()}
        expected = _end_of(tensors.values(), data_start)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is not a safetensors file ({one_line(error)}); get the checkpoint again"
        ) from error
    if size != expected:
        raise CheckpointError(f"{path} is truncated ({size} of {expected} bytes); get the checkpoint again")
    return Header(tensors, dict(metadata) if isinstance(metadata, dict) else {}, data_start)


def check_not_a_pointer(path: Path) -> None:
    """Refuse the pointer text that a clone without Git LFS has instead of a large file.

    Raises:
        CheckpointError: `path` is such a text.
    """
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights themselves; run `git lfs install` and `git lfs pull` in the "
            "clone, or give the checkpoint's hub id"
        )


def _tensor(name: str, entry: Any, data_start: int) -> StoredTensor:
    """One entry of the header.

    Raises:
        ValueError: a place or shape that is not a list of whole numbers from 0 on, or a size that differs from the
            shape's.
    """
    start, end = _whole_numbers(name, entry["data_offsets"])
    shape, dtype = tuple(_whole_numbers(name, entry["shape"])), entry["dtype"]
    itemsize = _ITEM_BYTES.get(dtype)
    if start > end or (itemsize is not None and end - start != itemsize * math.prod(shape)):
        raise ValueError(f"tensor {name[:80]!r} has {end - start} bytes, which does not fit its shape")
    return StoredTensor(dtype, shape, data_start + start, data_start + end)


def _end_of(tensors: Iterable[StoredTensor], data_start: int) -> int:
    """Where the last tensor ends.

    Raises:
        ValueError: tensors overlap or leave a gap.
    """
    position = data_start
    for start, end in sorted((tensor.start, tensor.end) for tensor in tensors):
        if start != position:
            raise ValueError(f"the tensor at byte {start - data_start} overlaps another, or leaves a gap")
        position = end
    return position


def _whole_numbers(name: str, values: Any) -> list[int]:
    # 2.0 and True are equal to whole numbers, and the product of two negative sizes is positive.
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"tensor {name[:80]!r} has shape or data_offsets {values!r:.80}; whole numbers are needed")
    return values
