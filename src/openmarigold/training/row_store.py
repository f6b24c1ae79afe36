# SPDX-License-Identifier: Apache-2.0
"""A folder of rows by name, which several runs share: each file holds some rows, in no order.

Files appear whole by a rename and never change. So runs and processes can add to a folder at the same time. A row that
two of them wrote is there twice, with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openmarigold.errors import DataError
from openmarigold.files import make_directory
from openmarigold.training.packed import PackedRows, read_ids, write_packed

SUFFIX = ".rows"
_DAMAGE = (OSError, ValueError, KeyError, TypeError)


class RowStore:
    """The rows of one folder."""

    def __init__(self, folder: Path, dtype: np.dtype, fields: Sequence[str], *, deflate: bool) -> None:
        """Lists what is there.

        Args:
            dtype: of a row.
            fields: half-precision maps of it, which are stored as codes where rows are deflated.
            deflate: whether new rows are.

        Raises:
            DataError: a file is damaged.
        """
        self.folder, self._dtype, self._fields, self._deflate = folder, dtype, fields, deflate
        self._places: dict[str, tuple[Path, int]] = {}
        self._counts: dict[Path, int] = {}
        self._open: dict[Path, PackedRows] = {}
        self.scan()

    def scan(self) -> None:
        """Lists what others have added.

        Raises:
            DataError: a file is damaged.
        """
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path in self._counts:
                continue
            try:
                ids = read_ids(path)
            except _DAMAGE as error:
                raise _damaged(path) from error
            self._counts[path] = len(ids)
            for row, name in enumerate(ids):
                self._places.setdefault(name, (path, row))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def add(self, names: Sequence[str], rows: np.ndarray) -> Path:
        """Writes rows as a file of their own, and returns it.

        Raises:
            OutputError: it cannot be written.
        """
        make_directory(self.folder)
        path = self.folder / f"{hashlib.sha256(' '.join(names).encode()).hexdigest()[:32]}{SUFFIX}"
        write_packed(path, rows, self._fields, ids=names, deflate=self._deflate)
        return path

    def __getitem__(self, name: str) -> np.void:
        """The row of a name. Raises DataError if its file is damaged."""
        path, row = self._places[name]
        if path not in self._open:
            try:
                self._open[path] = PackedRows(path, self._dtype, self._fields, self._counts[path])
            except _DAMAGE as error:
                raise _damaged(path) from error
        return self._open[path][row]


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is not what was kept there; remove it, and it will be encoded again")
