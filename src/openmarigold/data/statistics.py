# SPDX-License-Identifier: Apache-2.0
"""Statistics of a prepared data set: ranges of its maps, and shares of pixels without values."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError
from openmarigold.files import write_atomically
from openmarigold.modalities import MODALITIES

QUANTILES = (0.02, 0.5, 0.98)  # the outer two are those of normalization
FAR_QUANTILES = (0.5, 0.8, 0.95)
PIXELS_OF_SAMPLE = 256  # for quantiles over all samples
META_FILE = "meta.csv"
INVALID_LIMIT = 0.03  # share without depth; Marigold's list of Hypersim seems to leave out frames above it
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Numbers of one map in all samples, or in those of one kind.

    Attributes:
        kind: what the samples show, `ALL` for the whole data set.
        num_samples: samples with the map.
        num_scenes: scenes of these samples.
        invalid_share: mean share of pixels without usable values, such as sky, [0, 1]; NaN without samples.
        above_limit_share: share of samples with an invalid share above `INVALID_LIMIT`, [0, 1]; NaN without samples.
        quantiles: the `QUANTILES` of usable values (depth in meters), each sample counting as much; NaN without any.
        far_quantiles: the `FAR_QUANTILES`, over samples, of each sample's own 98 % quantile: what normalization calls
            far in half, 80 % and 95 % of them.
        beyond_usual_share: share of samples whose 98 % quantile is beyond what is usual for their kind
            (`Modality.usual_limits`), so that training caps them, [0, 1]; NaN without samples of such kinds.
        range: smallest and largest usable value of all; NaN without any.
    """

    kind: str
    num_samples: int
    num_scenes: int
    invalid_share: float
    above_limit_share: float
    quantiles: tuple[float, float, float]
    far_quantiles: tuple[float, float, float]
    beyond_usual_share: float
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
    usual = {
        kind: limit
        for modality in MODALITIES.values()
        if chosen in (one.name for one in modality.maps)
        for kind, limit in modality.usual_limits.items()
    }
    rows: list[_Row] = []
    for index in range(len(data)):
        values = data.read(index).maps.get(chosen)
        if values is not None:
            usable = values[(values > low) & (values < high) if values.ndim == 2 else values.any(axis=-1)]
            kind = data.kinds[index]
            rows.append(_row(kind, data.scenes[index], usable, values.size, usual.get(kind, np.nan)))
        progress(index + 1, len(data))
    data.close()
    kinds = sorted({row.kind for row in rows})
    return [_summary(kind, [row for row in rows if row.kind == kind]) for kind in kinds] + [_summary(ALL, rows)]


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


class _Row(NamedTuple):
    """One sample: some of its usable values, evenly spread over them in order, and numbers of all of them."""

    kind: str
    scene: str
    invalid_share: float
    some: np.ndarray
    far: float
    smallest: float
    largest: float
    usual: float


def _row(kind: str, scene: str, usable: np.ndarray, size: int, usual: float) -> _Row:
    ordered = np.sort(usable.astype(np.float64), axis=None)
    invalid_share = 1 - ordered.size / size
    if not ordered.size:
        return _Row(kind, scene, invalid_share, np.empty(0, np.float32), np.nan, np.nan, np.nan, usual)
    # Quantiles of the sample itself, so that each sample counts the same and both ends are kept.
    places = np.linspace(0, ordered.size - 1, PIXELS_OF_SAMPLE).round().astype(int)
    far = float(np.quantile(ordered, QUANTILES[-1]))
    some = ordered[places].astype(np.float32)
    return _Row(kind, scene, invalid_share, some, far, float(ordered[0]), float(ordered[-1]), usual)


def _summary(kind: str, rows: list[_Row]) -> DatasetStatistics:
    invalid = np.array([row.invalid_share for row in rows])
    some = [row for row in rows if row.some.size]
    capped = [row for row in some if np.isfinite(row.usual)]
    return DatasetStatistics(
        kind=kind,
        num_samples=len(rows),
        num_scenes=len({row.scene for row in rows}),
        invalid_share=float(invalid.mean()) if len(rows) else np.nan,
        above_limit_share=float((invalid > INVALID_LIMIT).mean()) if len(rows) else np.nan,
        quantiles=_three([row.some for row in some], QUANTILES),
        far_quantiles=_three([np.array([row.far]) for row in some], FAR_QUANTILES),
        beyond_usual_share=float(np.mean([row.far >= row.usual for row in capped])) if capped else np.nan,
        range=(min(row.smallest for row in some), max(row.largest for row in some)) if some else (np.nan, np.nan),
    )


def _three(parts: list[np.ndarray], quantiles: tuple[float, float, float]) -> tuple[float, float, float]:
    if not parts:
        return (np.nan, np.nan, np.nan)
    low, middle, high = np.quantile(np.concatenate(parts).astype(np.float64), quantiles).tolist()
    return low, middle, high
