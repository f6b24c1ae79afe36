# SPDX-License-Identifier: Apache-2.0
"""The files of a shard: maps as 16-bit PNG, a record of each photo, and statistics, which are written last."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openmarigold.batch.addresses import OutputFolder
from openmarigold.batch.settings import BatchConfig
from openmarigold.errors import DataError, OutputError, needs_extra
from openmarigold.images.png import save_png
from openmarigold.modalities.codes import LARGEST_CODE, code_range, to_codes
from openmarigold.modalities.modality import MapKind, Modality
from openmarigold.results.prediction import Prediction
from openmarigold.text_files import DamagedTextError, parse_json

SUCCESS, FAILED = "success", "failed"
STATS_END = "_stats.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of a photo."""

    key: str
    source: str
    status: str
    input_sha256: str | None = None
    width: int | None = None
    """Of the photo, upright [px]."""
    height: int | None = None
    error_class: str | None = None
    """Name of the error: ImageError, DataError, NumericalError ..."""
    error: str | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By map: the values that codes 0 and 65535 stand for."""
    maps: Mapping[str, bytes] = field(default_factory=dict)
    """By map: a 16-bit PNG."""

    def record(self, kinds: Sequence[MapKind | str]) -> dict[str, Any]:
        """Without the maps, for JSON and tables; the same columns for every photo."""
        names = [kind if isinstance(kind, str) else kind.name for kind in kinds]
        own = {name: value for name, value in asdict(self).items() if name not in ("ranges", "maps")}
        low_high = {name: self.ranges.get(name, (None, None)) for name in names}
        return own | {
            f"{name}_{end}": value
            for name, pair in low_high.items()
            for end, value in zip(("lo", "hi"), pair, strict=True)
        }


def names_of_maps(modality: Modality, *, uncertainty: bool) -> list[str]:
    """The maps of an entry, in order."""
    return [kind.name for kind in modality.maps] + (list(modality.uncertainties) if uncertainty else [])


def encoded(prediction: Prediction, modality: Modality, *, key: str, source: str, sha256: str) -> Entry:
    """A prediction as 16-bit codes: `value = lo + code / 65535 * (hi - lo)`."""
    maps: dict[str, bytes] = {}
    ranges: dict[str, tuple[float, float]] = {}
    kinds = {kind.name: kind for kind in modality.maps}
    width = height = None
    for name, values in {**prediction.maps, **prediction.uncertainties}.items():
        kind = kinds.get(name) or MapKind(
            name=name, channels=1, range=(0.0, float("inf")), unit="", space="linear", exr_channels=("Y",)
        )
        ranges[name] = code_range(values, kind, None)
        buffer = io.BytesIO()
        low, high = ranges[name]
        texts = {"lo": repr(low), "hi": repr(high), "value": f"lo + code / {LARGEST_CODE} * (hi - lo)"}
        save_png(buffer, to_codes(values, ranges[name]), texts)
        maps[name] = buffer.getvalue()
        height, width = values.shape[:2]
    return Entry(
        key=key,
        source=source,
        status=SUCCESS,
        input_sha256=sha256,
        width=width,
        height=height,
        ranges=ranges,
        maps=maps,
    )


def write_shard(
    folder: OutputFolder, stem: str, entries: Sequence[Entry], maps: Sequence[str], config: BatchConfig
) -> None:
    """Writes a shard's maps and records. Equal entries give equal bytes.

    Raises:
        OutputError: they cannot be written.
    """
    if config.format == "webdataset":
        folder.write(f"{stem}.tar", lambda path: _write_tar(path, entries, maps))
    folder.write(f"{stem}.parquet", lambda path: _write_table(path, entries, maps, config))


def _write_tar(path: Path, entries: Sequence[Entry], maps: Sequence[str]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            if entry.status != SUCCESS:
                continue
            record = json.dumps(entry.record(maps), ensure_ascii=False, sort_keys=True).encode()
            files = {f"{name}.png": content for name, content in entry.maps.items()} | {"json": record}
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{entry.key}.{suffix}")
                member.size, member.mode = len(content), 0o644
                archive.addfile(member, io.BytesIO(content))


def _write_table(path: Path, entries: Sequence[Entry], maps: Sequence[str], config: BatchConfig) -> None:
    with needs_extra("batch"):
        import pyarrow as pa
        from pyarrow import parquet

    columns: list[tuple[str, Any]] = [
        ("key", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("input_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error_class", pa.string()),
        ("error", pa.string()),
        *((f"{name}_{end}", pa.float64()) for name in maps for end in ("lo", "hi")),
    ]
    records = [entry.record(maps) for entry in entries]
    if config.format == "parquet":
        columns += [(name, pa.binary()) for name in maps]
        records = [
            {**record, **{name: entry.maps.get(name) for name in maps}}
            for record, entry in zip(records, entries, strict=True)
        ]
    table = pa.Table.from_pylist(records, schema=pa.schema(columns))
    parquet.write_table(table, path, compression="zstd")


def read_shard(folder: OutputFolder, stem: str, maps: Sequence[str], config: BatchConfig) -> Iterator[Entry]:
    """The entries of a finished shard, in order.

    Raises:
        DataError: it is missing or damaged.
    """
    with needs_extra("batch"):
        from pyarrow import parquet
    with folder.open_copy(f"{stem}.parquet") as path:
        records = parquet.read_table(path).to_pylist()
    contents: dict[str, bytes] = {}
    if config.format == "webdataset":
        with folder.open_copy(f"{stem}.tar") as path, tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and not member.name.endswith(".json"):
                    contents[member.name] = file.read()
    for record in records:
        is_done = record["status"] == SUCCESS
        found = {name: record.pop(name, None) or contents.get(f"{record['key']}.{name}.png") for name in maps}
        ranges = {name: (record.pop(f"{name}_lo"), record.pop(f"{name}_hi")) for name in maps}
        if is_done and not all(found.values()):
            raise DataError(f"{folder.address}/{stem}: maps of {record['key']} are missing; remove {stem}{STATS_END}")
        yield Entry(
            **record,
            ranges=ranges if is_done else {},
            maps={name: content for name, content in found.items() if content} if is_done else {},
        )


@dataclass(frozen=True, kw_only=True)
class ShardStats:
    """A finished shard, after img2dataset's `_stats.json`."""

    count: int
    successes: int
    failed_by_class: Mapping[str, int]
    started: float
    """Seconds since 1970."""
    seconds: float
    photo_seconds: tuple[float, ...]
    """Of each photo in order: reading, predicting and encoding, which overlap with neighbors'."""
    engine: str

    @property
    def failures(self) -> int:
        """Photos without maps."""
        return self.count - self.successes

    def write(self, folder: OutputFolder, stem: str) -> None:
        """Marks a shard as finished.

        Raises:
            OutputError: it cannot be written.
        """
        text = json.dumps({**asdict(self), "failures": self.failures}, indent=1)
        folder.write(f"{stem}{STATS_END}", lambda path: path.write_text(text, encoding="ascii"))


def read_stats(folder: OutputFolder, stem: str) -> ShardStats:
    """The statistics of a finished shard.

    Raises:
        OutputError: they are damaged.
    """
    try:
        found = parse_json(folder.read(f"{stem}{STATS_END}"))
        found.pop("failures")
        return ShardStats(**{**found, "photo_seconds": tuple(found["photo_seconds"])})
    except (DamagedTextError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{folder.address}/{stem}{STATS_END} is damaged; remove it, and the shard is made again"
        ) from error
