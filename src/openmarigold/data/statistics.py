# SPDX-License-Identifier: Apache-2.0
"""Statistics of a prepared data set: ranges of its maps, and shares of pixels without values."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError
from openmarigold.files import write_atomically

QUANTILES = (0.05, 0.5, 0.95)
META_FILE = "meta.csv"
INVALID_LIMIT = 0.03  # share without depth; Marigold's list of Hypersim seems to leave out frames above it
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Numbers of one map in all samples, or in those of one kind; means are over samples.

    Attributes:
        kind: what the samples show, `ALL` for the whole data set.
        num_samples: samples with the map.
        num_scenes: scenes of these samples.
        invalid_share: mean share of pixels without usable values, such as sky, [0, 1]; NaN without samples.
        above_limit_share: share of samples with an invalid share above `INVALID_LIMIT`, [0, 1]; NaN without samples.
        quantiles: means of the `QUANTILES` of usable values (depth in meters); NaN without any.
        range: smallest and largest usable value of all; NaN without any.
    """

    kind: str
    num_samples: int
    num_scenes: int
    invalid_share: float
    above_limit_share: float
    quantiles: tuple[float, float, float]
    range: tuple[float, float]


def dataset_statistics(
    folder: Path, *, map_name: str | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[DatasetStatistics]:
    """Statistics of the data set in `folder`: of each kind in the order of their names, then of all.

    In a map of one channel, values within the set's `valid_range` are usable, as in training; in others all values of
    pixels that are not 0 in every channel.
    Samples without the map (photos) are left out.

    Args:
        map_name: which map; None: its first.
        progress: called with the samples done and their number.

    Raises:
        DataError: no prepared data set, one without such a map, or a damaged sample.
    """
    data = ShardedDataset(folder)
    chosen = next(iter(data.encodings), "") if map_name is None else map_name
    if chosen not in data.encodings:
        raise DataError(f"{folder} has no map {chosen!r}; it has {', '.join(data.encodings) or 'none'}")
    low, high = data.valid_range
    rows: list[tuple[str, str, tuple[float, ...]]] = []
    for index in range(len(data)):
        values = data.read(index).maps.get(chosen)
        if values is not None:
            usable = values[(values > low) & (values < high) if values.ndim == 2 else values.any(axis=-1)]
            valid = usable.astype(np.float64)
            found = (np.nan,) * 5 if not valid.size else (*np.quantile(valid, QUANTILES), valid.min(), valid.max())
            rows.append((data.kinds[index], data.scenes[index], (1 - valid.size / values.size, *found)))
        progress(index + 1, len(data))
    data.close()
    kinds = sorted({kind for kind, _, _ in rows})
    return [_summary(kind, [row for row in rows if row[0] == kind]) for kind in kinds] + [_summary(ALL, rows)]


def write_meta(folder: Path) -> None:
    """Writes meta.csv, one line a sample: statistics of color [0, 255] and of each map, share invalid."""
    data = ShardedDataset(folder)
    buffer = io.StringIO()
    moments = ("mean", "std", "min", "max")
    columns = [f"{what}_{name}" for what in ("rgb", *data.encodings) for name in moments]
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["key", "kind", "scene", "source", *columns, "invalid_ratio"])
    for index, key in enumerate(data.keys):
        info = data.info(index)
        found = info["statistics"]
        values = [(found.get(what) or {}).get(name) for what in ("rgb", *data.encodings) for name in moments]
        table.writerow([key, info["kind"], info["scene"], info.get("source"), *values, found.get("invalid_ratio")])
    data.close()
    text = buffer.getvalue()
    # Bytes of a name that are not UTF-8 are written as \\udc.., as in the .json files.
    content = text.encode("utf-8", "backslashreplace")
    write_atomically(folder / META_FILE, lambda temporary: temporary.write_bytes(content))


def _summary(kind: str, rows: list[tuple[str, str, tuple[float, ...]]]) -> DatasetStatistics:
    table = np.array([numbers for _, _, numbers in rows], dtype=np.float64).reshape(-1, 6)
    some = table[np.isfinite(table[:, 1])]  # with any depth
    low, middle, high = some[:, 1:4].mean(axis=0).tolist() if len(some) else [np.nan] * 3
    return DatasetStatistics(
        kind=kind,
        num_samples=len(rows),
        num_scenes=len({scene for _, scene, _ in rows}),
        invalid_share=float(table[:, 0].mean()) if len(table) else np.nan,
        above_limit_share=float((table[:, 0] > INVALID_LIMIT).mean()) if len(table) else np.nan,
        quantiles=(low, middle, high),
        range=(float(some[:, 4].min()), float(some[:, 5].max())) if len(some) else (np.nan, np.nan),
    )
