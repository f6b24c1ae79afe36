# SPDX-License-Identifier: Apache-2.0
"""The files of a shard: maps as 16-bit PNG, a record of each photo, and statistics, which are written last."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from openmarigold.addresses import OutputFolder
from openmarigold.batch.settings import BatchConfig
from openmarigold.checkpoints.calibration import band_of
from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, OutputError, needs_extra, one_line
from openmarigold.images.png import save_png
from openmarigold.modalities.codes import LARGEST_CODE, code_range, to_codes
from openmarigold.modalities.modality import MapKind, Modality
from openmarigold.results.prediction import Prediction
from openmarigold.text_files import DamagedTextError, parse_json

SUCCESS, FAILED = "success", "failed"
STATS_END = "_stats.json"
_IN_MEMORY = 2**26
"""Bytes of a shard's maps, beyond which they wait in a file."""
_GROUP_BYTES = 2**26
"""Bytes of maps in a row group of a table."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The result for a photo: its maps, or its error."""

    key: str
    source: str
    status: str
    input_sha256: str | None = None
    width: int | None = None
    """Width of the upright photo [px]; `height` is its height."""
    height: int | None = None
    error_class: str | None = None
    """Name of the error: ImageError, DataError, NumericalError ..."""
    error: str | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By map: the values that codes 0 and 65535 stand for."""
    maps: Mapping[str, bytes] = field(default_factory=dict)
    """By map: a 16-bit PNG."""

    def record(self, names: Sequence[str]) -> dict[str, Any]:
        """Without the maps, for JSON and tables; the same columns for every photo. `names` are those of the maps."""
        own = {name: getattr(self, name) for name in _columns()}
        low_high = {name: self.ranges.get(name, (None, None)) for name in names}
        return own | {
            f"{name}_{end}": value
            for name, pair in low_high.items()
            for end, value in zip(("lo", "hi"), pair, strict=True)
        }


def _columns() -> list[str]:
    """Those of every record, whatever maps there are."""
    return [one.name for one in fields(Entry) if one.name not in ("ranges", "maps")]


class StoredMaps(Mapping[str, bytes]):
    """Maps of an entry that lie in a file, and are read where they are needed."""

    def __init__(self, file: Any, places: Mapping[str, tuple[int, int]]) -> None:
        """`places`: offset and size of each in `file`."""
        self._file, self._places = file, places

    def __getitem__(self, name: str) -> bytes:
        offset, size = self._places[name]
        self._file.seek(offset)
        return self._file.read(size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Spool:
    """Keeps the maps of a shard until it is written: in memory, beyond 64 MiB in a file without a name.

    The system removes the file when the process ends, also after a kill.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self._folder, self._size = folder, 0
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=folder.temporary)  # noqa: SIM115 - see __exit__

    def put(self, entry: Entry) -> Entry:
        """The entry, with its maps in the file.

        Raises:
            OutputError: the disk is full.
        """
        if isinstance(entry.maps, StoredMaps):
            return entry
        places: dict[str, tuple[int, int]] = {}
        with self._folder.writing():
            self._file.seek(self._size)
            for name, content in entry.maps.items():
                self._file.write(content)
                places[name] = (self._size, len(content))
                self._size += len(content)
        return replace(entry, maps=StoredMaps(self._file, places))

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def names_of_maps(checkpoint: Checkpoint, config: PredictConfig) -> list[str]:
    """The maps of an entry, in order: the modality's, uncertainties of an ensemble, bounds of an interval.

    Raises:
        InvalidValueError: an interval of what has none.
    """
    modality = checkpoint.predicts
    return [
        *(kind.name for kind in modality.maps),
        *(modality.uncertainties if config.ensemble_size > 1 else ()),
        *(() if config.interval is None else map(_name_of_bound, band_of(checkpoint).names)),
    ]


def _name_of_bound(name: str) -> str:
    """Name of a bound as a map: `depth_lo` is the lower end of depth's own codes."""
    return f"interval_{name}"


def encoded(prediction: Prediction, modality: Modality, *, key: str, source: str, sha256: str) -> Entry:
    """A prediction as 16-bit codes: `value = lo + code / 65535 * (hi - lo)`."""
    maps: dict[str, bytes] = {}
    ranges: dict[str, tuple[float, float]] = {}
    kinds = {kind.name: kind for kind in modality.maps}
    width = height = None
    bounds = {_name_of_bound(name): values for name, values in prediction.bounds.items()}
    for name, values in {**prediction.maps, **prediction.uncertainties, **bounds}.items():
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
        *((name, pa.int32() if name in ("width", "height") else pa.string()) for name in _columns()),
        *((f"{name}_{end}", pa.float64()) for name in maps for end in ("lo", "hi")),
    ]
    if config.format == "parquet":
        columns += [(name, pa.binary()) for name in maps]
    schema = pa.schema(columns)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _groups(entries, maps, config):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _groups(entries: Sequence[Entry], maps: Sequence[str], config: BatchConfig) -> Iterator[list[dict[str, Any]]]:
    """The rows of each row group; with maps, only as many rows as fit well in memory."""
    rows: list[dict[str, Any]] = []
    size = 0
    for entry in entries:
        own = {name: entry.maps.get(name) for name in maps} if config.format == "parquet" else {}
        more = sum(len(content) for content in own.values() if content is not None)
        if rows and size + more > _GROUP_BYTES:
            yield rows
            rows, size = [], 0
        rows.append(entry.record(maps) | own)
        size += more
    yield rows


def read_shard(folder: OutputFolder, stem: str, maps: Sequence[str], config: BatchConfig) -> Iterator[Entry]:
    """The entries of a finished shard, in order.

    Raises:
        DataError: it is missing or damaged.
    """
    with needs_extra("batch"):
        from pyarrow import ArrowException
    told = f"remove {stem}{STATS_END}, and it is made again"
    with _maps_of(folder, stem, maps, config) as records:
        try:
            for record, found in records:
                is_done = record["status"] == SUCCESS
                ranges = {name: (record.pop(f"{name}_lo"), record.pop(f"{name}_hi")) for name in maps}
                if is_done and not all(found.values()):
                    raise DataError(f"{folder.address}/{stem}: maps of {record['key']} are missing; {told}")
                known = {name: content for name, content in found.items() if content}
                yield Entry(**record, ranges=ranges if is_done else {}, maps=known if is_done else {})
        except (ArrowException, tarfile.TarError, KeyError, TypeError) as error:
            raise DataError(f"{folder.address}/{stem} is damaged ({one_line(error)}); {told}") from error


_Records = Iterable[tuple[dict[str, Any], dict[str, bytes | None]]]


@contextmanager
def _maps_of(folder: OutputFolder, stem: str, maps: Sequence[str], config: BatchConfig) -> Iterator[_Records]:
    """The record and the maps of each photo of a shard, which are read one after the other."""
    with folder.open_copy(f"{stem}.parquet") as table:
        if config.format == "parquet":
            yield ((row, {name: row.pop(name) for name in maps}) for row in _rows_of(table))
            return
        with folder.open_copy(f"{stem}.tar") as path:
            yield ((row, found) for row, found in _with_tar(_rows_of(table), path, maps))


def _rows_of(table: Path) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(table) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def _with_tar(rows: Iterable[dict[str, Any]], path: Path, maps: Sequence[str]) -> _Records:
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive}
        for row in rows:
            own = {name: members.get(f"{row['key']}.{name}.png") for name in maps}
            files = {name: None if member is None else archive.extractfile(member) for name, member in own.items()}
            yield row, {name: None if file is None else file.read() for name, file in files.items()}


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
    """Seconds of each photo in order: reading, predicting and encoding, which overlap with neighbors'."""
    engine: str
    input_file: str | None = None
    """Fingerprint of the tar or table that it was made of; None for photos that are files of their own."""

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


def is_changed(stats: ShardStats, now: str | None) -> bool:
    """Whether the input file of a shard is another one now, by its fingerprint; not where one of the two is unknown."""
    return stats.input_file is not None and now is not None and stats.input_file != now


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
