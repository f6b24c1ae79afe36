# SPDX-License-Identifier: Apache-2.0
"""Arrays of real numbers from .npy and HDF5 files that may be damaged or hostile: checked before they are read.

A small header can announce terabytes. An HDF5 file can name any other file, which the library would read.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.data.archives import LARGEST_FILE, missing
from openmarigold.errors import DataError, one_line


class UnexpectedArrayError(ValueError):
    """An intact file whose array is not accepted."""


def load_npy(content: bytes) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        UnexpectedArrayError: it holds no real numbers.
        ValueError: not an .npy file, or it is cut off.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
    except Exception as error:  # NumPy evaluates the header as Python, which raises many kinds
        raise ValueError(f"not an .npy file: {error}") from error
    if dtype.kind not in "fiub":
        raise UnexpectedArrayError(f"the .npy file holds {dtype}, not real numbers")
    needed, present = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if min(shape, default=0) < 0 or needed > present:
        raise ValueError(f"truncated: shape {list(shape)} of {dtype} needs {needed} bytes, {present} are there")
    return np.load(io.BytesIO(content), allow_pickle=False)


def hdf5_dataset(file: Any, name: str, *, kinds: str = "fiu") -> Any:
    """The h5py dataset `name` at the top of an open `h5py.File`, with its values in this file.

    Args:
        kinds: NumPy's letters for the accepted types; by default real numbers.

    Raises:
        KeyError: there is none.
        UnexpectedArrayError: it is a link to another place or file, has its values in other files, or is of another
            type.
    """
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        raise KeyError(f"no {name}")
    if not isinstance(link, h5py.HardLink):
        raise UnexpectedArrayError(
            f"{name} is a link to {getattr(link, 'filename', None) or link.path}, which is not followed"
        )
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise UnexpectedArrayError(f"{name} is not a data set")
    if dataset.is_virtual or dataset.external:
        raise UnexpectedArrayError(f"{name} has its values in other files, which are not read")
    if dataset.dtype.kind not in kinds:
        raise UnexpectedArrayError(f"{name} holds {dataset.dtype}, not real numbers")
    return dataset


def hdf5_values(dataset: Any, row: int | None = None) -> np.ndarray:
    """The values of a data set, or of one row of it.

    Raises:
        UnexpectedArrayError: it announces more than `LARGEST_FILE` bytes, or its compressed parts do.
    """
    shape = dataset.shape if row is None else dataset.shape[1:]
    for what, sizes in (("values", shape or ()), ("parts", dataset.chunks or ())):
        announced = math.prod(sizes) * dataset.dtype.itemsize
        if announced > LARGEST_FILE:
            raise UnexpectedArrayError(
                f"{what} of shape {list(sizes)} announce {announced} bytes; {LARGEST_FILE >> 20} MiB are accepted"
            )
    return np.asarray(dataset[()] if row is None else dataset[row])


class Hdf5Archive:
    """An `Archive` of rows of HDF5 data sets, each as the bytes of an .npy file."""

    def __init__(self, location: Path, rows: Mapping[str, tuple[Any, int, Callable[[np.ndarray], np.ndarray]]]) -> None:
        """Takes `rows`: for each name the data set, the number of the row, and the function that converts its
        values.
        """
        self.location, self._rows = location, rows
        self.names = frozenset(rows)
        self.notes: tuple[str, ...] = ()
        self.damage: dict[str, str] = {}
        self._lock = threading.Lock()  # HDF5 is not for several threads at once

    def read(self, name: str) -> bytes:
        """One array as the bytes of an .npy file.

        Raises:
            DataError: no array has that name, or the file is damaged there.
        """
        if name not in self._rows:
            raise missing(self.location, name)
        dataset, row, make = self._rows[name]
        try:
            with self._lock:
                values = hdf5_values(dataset, row)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{self.location}: {name} is damaged ({one_line(error)}); get it again") from error
        content = io.BytesIO()
        np.save(content, make(values))
        return content.getvalue()

    def file_of(self, name: str) -> Path:
        """The file that holds all arrays."""
        return self.location
