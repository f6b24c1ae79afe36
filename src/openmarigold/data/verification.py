# SPDX-License-Identifier: Apache-2.0
"""Verification of a prepared data set: every shard is compared with its hash, every sample decoded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.data.shards import INDEX_FILE, MANIFEST_FILE, ShardedDataset, contents_sha256, with_maps
from openmarigold.errors import DataError
from openmarigold.files import file_sha256
from openmarigold.text_files import parse_json


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong, and where."""

    shard: str
    """File name."""
    key: str | None = None
    """Key of the sample; None if the problem concerns the whole file."""
    what: str

    def __str__(self) -> str:
        return f"{self.shard}: {f'{self.key}: ' if self.key else ''}{self.what}"


def verify(
    folder: Path, *, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Problem]:
    """The problems of the data set in `folder`, in the order of its shards.

    Args:
        workers: threads; hashing and decoding release the interpreter lock.
        progress: called with the samples done and their number.

    Raises:
        DataError: no prepared data set, or its manifest or index cannot be read.
    """
    data = ShardedDataset(folder)
    problems = _whole(data)
    shards = data.manifest["shards"]
    members: list[list[int]] = [[] for _ in shards]
    for index, number in enumerate(data.shard_numbers.tolist()):
        members[number].append(index)
    done = 0
    progress(done, len(data))
    with ThreadPoolExecutor(workers) as pool:
        checks = [pool.submit(_shard, data, shard, indices) for shard, indices in zip(shards, members, strict=True)]
        for check, indices in zip(checks, members, strict=True):
            problems += check.result()
            done += len(indices)
            progress(done, len(data))
    data.close()
    return problems


def _whole(data: ShardedDataset) -> list[Problem]:
    problems = []
    assert isinstance(data.folder, Path)
    if file_sha256(data.folder / INDEX_FILE) != data.manifest.get("index_sha256"):
        problems.append(Problem(shard=INDEX_FILE, what="is not the file that was written"))
    # As it was written: a key of version 0.1 is part of the hash.
    manifest = with_maps(parse_json((data.folder / MANIFEST_FILE).read_bytes()))
    if contents_sha256(manifest["maps"], manifest["shards"]) != data.contents:
        problems.append(Problem(shard=MANIFEST_FILE, what="`contents` is not the hash of the shards' hashes"))
    return problems


def _shard(data: ShardedDataset, shard: dict[str, Any], indices: list[int]) -> list[Problem]:
    assert isinstance(data.folder, Path)
    name, path = str(shard["name"]), data.folder / str(shard["name"])
    problems = []
    try:
        size = path.stat().st_size
        if size != shard["bytes"]:
            problems.append(Problem(shard=name, what=f"has {size} bytes, not {shard['bytes']}"))
        elif file_sha256(path) != shard["sha256"]:
            problems.append(Problem(shard=name, what="its SHA-256 is not that of the manifest"))
    except OSError as error:
        return [Problem(shard=name, what=f"cannot be read: {error.strerror}")]
    if shard["samples"] != len(indices):
        what = f"the index has {len(indices)} samples of it, the manifest {shard['samples']}"
        problems.append(Problem(shard=name, what=what))
    problems += _index(data, path, indices)
    for index in indices:
        try:
            maps = data.read(index).maps
            data.info(index)
        except DataError as error:
            problems.append(Problem(shard=name, key=data.keys[index], what=_core(str(error))))
            continue
        for map_name, values in maps.items():
            if not (np.isfinite(values).all() and (values.ndim > 2 or (values >= 0).all())):
                problems.append(Problem(shard=name, key=data.keys[index], what=f"{map_name} is negative or not finite"))
    return problems


def _index(data: ShardedDataset, path: Path, indices: list[int]) -> list[Problem]:
    """Checks the shard's own index against the data set's."""
    index_path = path.with_suffix(".json")
    try:
        rows = parse_json(index_path.read_bytes())["samples"]
        own = [(row["key"], {name.partition(".")[0]: tuple(at) for name, at in row["members"].items()}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"cannot be read ({type(error).__name__}); reading does not need it, resuming does"
        return [Problem(shard=index_path.name, what=what)]
    if own != [(data.keys[index], data.places(index)) for index in indices]:
        return [Problem(shard=index_path.name, what=f"does not agree with {INDEX_FILE}")]
    return []


def _core(message: str) -> str:
    """The damage in a message, without its advice."""
    start, end = message.find("is damaged ("), message.rfind("); see all damage")
    return message[start + len("is damaged (") : end] if 0 <= start < end else message
