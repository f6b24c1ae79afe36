# SPDX-License-Identifier: Apache-2.0
"""What a prepared data set holds, in numbers to set beside those of another: depth ranges, shares without depth."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openmarigold.data.shards import ShardedDataset
from openmarigold.files import write_atomically

QUANTILES = (0.05, 0.5, 0.95)
META_FILE = "meta.csv"
INVALID_LIMIT = 0.03  # share without depth above which users of Hypersim found frames left out of Marigold's list
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Numbers of all samples, or of those of one kind; means are over samples.

    Attributes:
        kind: what the samples show, `ALL` for the whole data set.
        num_samples: samples with a depth map.
        num_scenes: scenes that they are of.
        invalid_share: mean share of pixels without usable depth, such as sky, [0, 1]; NaN without samples.
        above_limit_share: share of samples of which more than `INVALID_LIMIT` is so, [0, 1]; NaN without samples.
        depth_quantiles: means of the `QUANTILES` of usable depth [m]; NaN without any.
        depth_range: smallest and largest usable depth of all [m]; NaN without any.
    """

    kind: str
    num_samples: int
    num_scenes: int
    invalid_share: float
    above_limit_share: float
    depth_quantiles: tuple[float, float, float]
    depth_range: tuple[float, float]


def dataset_statistics(
    folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[DatasetStatistics]:
    """Statistics of the data set in `folder`: of each kind in the order of their names, then of all.

    Depth is usable within the set's `valid_range`, as in training. Samples without a depth map (photos) are left out.

    Args:
        folder: of the data set.
        progress: called with the samples done and their number.

    Raises:
        DataError: no prepared data set, or a damaged sample.
    """
    data = ShardedDataset(folder)
    low, high = data.valid_range
    rows: list[tuple[str, str, tuple[float, ...]]] = []
    for index in range(len(data)):
        depth = data.read(index).depth
        if depth is not None:
            valid = depth[(depth > low) & (depth < high)].astype(np.float64)
            found = (np.nan,) * 5 if not valid.size else (*np.quantile(valid, QUANTILES), valid.min(), valid.max())
            rows.append((data.kinds[index], data.scenes[index], (1 - valid.size / depth.size, *found)))
        progress(index + 1, len(data))
    data.close()
    kinds = sorted({kind for kind, _, _ in rows})
    return [_summary(kind, [row for row in rows if row[0] == kind]) for kind in kinds] + [_summary(ALL, rows)]


def write_meta(folder: Path) -> None:
    """Writes meta.csv, one line a sample: statistics of color [0, 255] and valid depth [m], share invalid."""
    data = ShardedDataset(folder)
    buffer = io.StringIO()
    moments = ("mean", "std", "min", "max")
    columns = [f"{what}_{name}" for what in ("rgb", "depth") for name in moments]
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["key", "kind", "scene", "source", *columns, "invalid_ratio"])
    for index, key in enumerate(data.keys):
        info = data.info(index)
        found = info["statistics"]
        values = [(found.get(what) or {}).get(name) for what in ("rgb", "depth") for name in moments]
        table.writerow([key, info["kind"], info["scene"], info.get("source"), *values, found.get("invalid_ratio")])
    data.close()
    text = buffer.getvalue()
    # What is no UTF-8 in a name is written as \\udc.., as in the .json files.
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
        depth_quantiles=(low, middle, high),
        depth_range=(float(some[:, 4].min()), float(some[:, 5].max())) if len(some) else (np.nan, np.nan),
    )
