# SPDX-License-Identifier: Apache-2.0
"""Safetensors files to tensors and back.

Tensors are read one after another into memory of their own and converted at once: reading a float32 file as bfloat16
takes the memory of the bfloat16 weights and of one float32 tensor. (A memory-mapped file counts in full.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from openmarigold.checkpoints.safetensors_header import read_header
from openmarigold.checkpoints.weight_files import readable
from openmarigold.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_tensors(path: Path, *, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name, floating-point ones as `dtype` (None: as stored).

    Raises:
        CheckpointError: truncated, not in safetensors format, or with numbers of another kind.
    """
    header = read_header(path)
    with readable(), path.open("rb") as file:
        for name, stored in header.tensors.items():
            if stored.dtype not in _DTYPES:
                raise CheckpointError(f"{path}: {name} is stored as {stored.dtype}; accepted are {', '.join(_DTYPES)}")
            file.seek(stored.start)
            # In torch's own memory, whose alignment is always the same: kernels round differently on other addresses.
            content = torch.empty(stored.end - stored.start, dtype=torch.uint8)
            if file.readinto(content.numpy().data) != len(content):
                raise CheckpointError(f"{path} ends within {name}; get the checkpoint again")
            tensor = content.view(_DTYPES[stored.dtype]).reshape(stored.shape)
            yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file that others may read as the folder allows; `metadata` are texts in its header.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # the library turns errors of the operating system into this class
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
