# SPDX-License-Identifier: Apache-2.0
"""Caches of latents that earlier versions made: for one mixture of sources, in the order of its views.

A folder for each source, whose shards hold so many views each, and `cache.json`, which states what they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.errors import DataError
from openmarigold.printing import quoted_logger
from openmarigold.text_files import DamagedTextError, parse_json, with_current_keys
from openmarigold.training.packed import SUFFIX, PackedRows, damaged
from openmarigold.training.settings import DEFAULT_MODALITY
from openmarigold.training.views import Mixture

LOGGER = quoted_logger(__name__)
CACHE_FILE = "cache.json"
_SHARD_BYTES = 2**23
_PACKED_FIELDS = ("target",)
_BYTES, _MODALITY = "the data's bytes", "the modality"
# Fields of the caches of version 0.1, and what they are called now.
_OLD_FIELDS = {"depth_latent": "target_latent", "norm_depth": "target", "depth_range": "bounds"}


class EarlierLatents:
    """Latents of a mixture's views that an earlier version stored."""

    def __init__(self, folder: Path, mixture: Mixture, dtypes: list[np.dtype], described: Mapping[str, Any]) -> None:
        """Check whether the folder holds latents of exactly this mixture.

        Args:
            dtypes: of the rows of each source.
            described: everything that latents depend on.
        """
        self._folder, self._mixture, self._dtypes = folder, mixture, dtypes
        self._shards: dict[tuple[int, int], Any] = {}
        expected = parse_json(json.dumps({**described, _BYTES: mixture.sha256, _MODALITY: mixture.modality.name}))
        try:
            kept = with_current_keys(parse_json((folder / CACHE_FILE).read_bytes()))
        except (OSError, DamagedTextError):
            kept = None
        if isinstance(kept, dict):  # the first ones had neither of these:
            kept.setdefault(_BYTES, expected.get(_BYTES))
            kept.setdefault(_MODALITY, DEFAULT_MODALITY)
        self._applies = kept == expected
        if kept is not None and not self._applies:
            LOGGER.warning(
                "%s holds latents of an earlier version that were made from something else; they are not used, and may "
                "be removed (%s and the folders of the sources)",
                *(folder, CACHE_FILE),
            )

    def __contains__(self, index: int) -> bool:
        return self._applies and any(path.is_file() for path in self._files(*self._place(index)[:2]))

    def __getitem__(self, index: int) -> np.void:
        """The row of view number `index`. Raises DataError if its shard is damaged."""
        number, shard, row = self._place(index)
        if (number, shard) not in self._shards:
            size, views = self._views_in_shard(number), int(np.diff(self._mixture.starts)[number])
            count, dtype = min(size, views - shard * size), self._dtypes[number]
            plain, packed = self._files(number, shard)
            self._shards[number, shard] = (
                _open_npy(plain, dtype, count) if plain.is_file() else _open_packed(packed, dtype, count)
            )
        return self._shards[number, shard][row]

    def _place(self, index: int) -> tuple[int, int, int]:
        """Source, shard and row of a view."""
        number = self._mixture.source_of(index)
        return number, *divmod(index - int(self._mixture.starts[number]), self._views_in_shard(number))

    def _views_in_shard(self, number: int) -> int:
        return max(1, _SHARD_BYTES // self._dtypes[number].itemsize)

    def _files(self, number: int, shard: int) -> tuple[Path, Path]:
        """Possible paths of a shard: plain, or packed."""
        plain = self._folder / self._mixture.sources[number].name / f"shard-{shard:05d}.npy"
        return plain, plain.with_suffix(SUFFIX)


def _open_packed(path: Path, dtype: np.dtype, count: int) -> PackedRows:
    try:
        return PackedRows(path, dtype, _PACKED_FIELDS, count)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error


def _open_npy(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it, and it will be encoded again") from error
    names = [_OLD_FIELDS.get(name, name) for name in array.dtype.names or ()]
    if names == list(dtype.names or ()) and array.dtype.itemsize == dtype.itemsize:
        array = array.view(dtype)  # the same numbers under older names
    stated = path.with_suffix(".sha256")  # the first ones have none
    differs = stated.is_file() and stated.read_text(errors="replace") != hashlib.sha256(array.tobytes()).hexdigest()
    if differs or array.dtype != dtype or array.shape != (count,):
        raise damaged(path)
    return array
