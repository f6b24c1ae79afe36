# SPDX-License-Identifier: Apache-2.0
"""Photos from folders, patterns, list files, Parquet files and webdataset tars, divided into shards."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmarigold import addresses
from openmarigold.batch.settings import BatchConfig
from openmarigold.data.tar_index import TarIndex, read_tar_index
from openmarigold.errors import DataError, InvalidValueError, needs_extra, one_line
from openmarigold.images.kinds import image_suffixes

_COLUMNS = ("image", "jpg", "png", "bytes", "url", "address", "path")
_KEYS = ("key", "__key__")
_LISTS = (".txt", ".lst")
_MOST_SHARDS = 100_000
_ROWS_AT_ONCE = 16  # of a table, which may hold photos
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Row:
    """One photo. `read` returns its bytes, or raises a DataError."""

    key: str
    source: str
    """Its address; of a member of a tar or a row of a table the address of that, `#`, and its name or number."""
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Files:
    """Photos that are files of their own."""

    addresses: tuple[str, ...]

    @property
    def file(self) -> None:
        """There is no single file that holds the photos."""
        return None

    @contextmanager
    def rows(self, prefix: str) -> Iterator[Iterator[Row]]:
        """The photos, keys from the shard's number and their place."""
        yield self._rows_of(prefix)

    def _rows_of(self, prefix: str) -> Iterator[Row]:
        for place, address in enumerate(self.addresses):
            yield Row(f"{prefix}{place:04d}", address, lambda address=address: addresses.read_bytes(address))


@dataclass(frozen=True)
class Tar:
    """A webdataset tar: files of one name up to its first dot are one sample, whose picture is the photo."""

    address: str

    @property
    def file(self) -> str:
        """The file that holds the photos."""
        return self.address

    def rows(self, prefix: str) -> AbstractContextManager[Iterator[Row]]:
        """The photos in the tar's order, with their keys in the tar; the rows of a damaged tar hold errors.

        They can be read within the block.
        """
        return _rows_of_copy(self.address, prefix, lambda path: self._rows_of(path, self._index(path), prefix))

    def _index(self, path: Path) -> TarIndex:
        try:
            return read_tar_index(path)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{self.address} is not a tar that can be read: {one_line(error)}") from error

    def _rows_of(self, path: Path, index: TarIndex, prefix: str) -> Iterator[Row]:
        names = [*index.places, *index.defects]
        pictures = [name for name in names if os.path.splitext(name)[1].lower() in image_suffixes()]
        taken: set[str] = set()
        for name in pictures:
            folder, _, base = name.rpartition("/")
            if base.startswith("."):
                continue  # hidden, as in folders
            key = f"{folder}/{base.partition('.')[0]}".lstrip("/")
            if key in taken:
                continue  # a sample has one photo: its first picture
            taken.add(key)
            yield Row(key, f"{self.address}#{name}", lambda name=name: self._content(path, index, name))
        if index.damage:
            told = DataError(f"{self.address} {index.damage}; its samples from there on are lost")
            yield Row(f"{prefix}damage", self.address, lambda: _refuse(told))

    def _content(self, path: Path, index: TarIndex, name: str) -> bytes:
        if name in index.defects:
            raise DataError(f"{self.address}#{name} {index.defects[name]}")
        offset, size = index.places[name]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True)
class Table:
    """Rows of a Parquet file: the photos' bytes (also as `{bytes, path}`), or their addresses."""

    address: str
    first: int
    count: int
    column: str
    key: str | None
    """Column of the keys; None: they are made from the shard's number and the place."""

    @property
    def file(self) -> str:
        """The file that holds the photos, or their addresses."""
        return self.address

    def rows(self, prefix: str) -> AbstractContextManager[Iterator[Row]]:
        """The photos of the rows."""
        return _rows_of_copy(self.address, prefix, lambda path: self._rows_of(path, prefix))

    def _rows_of(self, path: Path, prefix: str) -> Iterator[Row]:
        folder = self.address.rpartition("/")[0]
        try:
            for place, (value, key) in enumerate(_values(path, self)):
                name = f"{prefix}{place:04d}" if key is None else str(key)
                source = f"{self.address}#{self.first + place}"
                yield Row(name, source, lambda value=value, source=source: _content_of(value, source, folder))
        except DataError as error:
            yield from _refused(error, self.address, f"{prefix}-damage-")


Source = Files | Tar | Table


@dataclass(frozen=True)
class Shard:
    """What one shard is made of."""

    number: int
    source: Source

    @property
    def stem(self) -> str:
        """The beginning of its files' names, and of keys that are made."""
        return f"{self.number:05d}"

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"shard {self.stem}"


def shards_of(given: str, config: BatchConfig, output: str = "") -> list[Shard]:
    """The shards of an input: a folder, photo, tar, Parquet or list file, or a pattern with `*` or `{000..123}`.

    The same files give the same shards.

    Args:
        given: the input; as `located` gives it.
        config: how it is divided.
        output: folder of the shards; it is not read as input if it lies in the input's folder.

    Raises:
        DataError: it holds nothing, or cannot be read.
        InvalidValueError: more than 100,000 shards, files of several kinds, or tars and tables in the folder where
            shards are to be.
    """
    files = _files_of(given, output)
    file_types = {_file_type(address) for address in files}
    if len(file_types) > 1:
        raise InvalidValueError(f"{given} holds {' and '.join(sorted(file_types))}; give files of one kind")
    file_type = file_types.pop()
    if output and file_type in ("tars", "Parquet files"):
        _check_apart(files, output)
    sources = _sources_of(files, file_type, config)
    if not sources:
        raise DataError(f"{given} holds no photos: its tables have no rows")
    if len(sources) > _MOST_SHARDS:
        raise InvalidValueError(
            f"{given} makes {len(sources)} shards; {_MOST_SHARDS} is the most: raise shard_size, or give a part of it"
        )
    return [Shard(number, source) for number, source in enumerate(sources)]


def _files_of(given: str, output: str) -> list[str]:
    """The files of an input, sorted; of a folder the photos, or else its tars or tables."""
    exists = not addresses.is_remote(given) and os.path.lexists(given)  # whatever characters its name has
    if not exists and (found := _RANGE.search(given)):
        width = len(found[1])
        numbers = range(int(found[1]), int(found[2]) + 1)
        if not 0 < len(numbers) <= _MOST_SHARDS:
            raise InvalidValueError(f"{given}: {found[0]} is not a range of 1 to {_MOST_SHARDS} numbers")
        expanded = (given[: found.start()] + f"{number:0{width}d}" + given[found.end() :] for number in numbers)
        return [file for one in expanded for file in (_files_of(one, output) if _RANGE.search(one) else [one])]
    if not exists and addresses.has_wildcard(given):
        found = _outside(addresses.matches(given), addresses.fixed_part(given), output)
        files = [address for address in found if _is_known(address)]
        if not files:
            raise DataError(f"{given} names no photo, tar, Parquet or list file; check the pattern")
        return files
    if not addresses.is_folder(given):
        addresses.check_file(given)
        return [given]
    files = _outside(addresses.list_files(given), given, output)
    for file_type in ("photos", "tars", "Parquet files"):
        if chosen := [address for address in files if _file_type(address) == file_type and _is_known(address)]:
            return chosen
    raise DataError(f"{given} holds no photos, tars or Parquet files")


def _outside(files: list[str], folder: str, output: str) -> list[str]:
    """Without the shards of earlier runs, where their folder is within the input's."""
    begin = output.rstrip("/") + "/"
    if not output or not begin.startswith(folder.rstrip("/") + "/") or begin.rstrip("/") == folder.rstrip("/"):
        return files
    return [file for file in files if not file.startswith(begin)]


def _check_apart(files: Sequence[str], output: str) -> None:
    """Raises an InvalidValueError where shards would be written over the input."""
    folders = {file.rpartition("/")[0] for file in files}
    if addresses.is_remote(output):
        together = output.rstrip("/") in folders
    else:
        together = os.path.realpath(output) in {
            os.path.realpath(one) for one in folders if not addresses.is_remote(one)
        }
    if together:
        raise InvalidValueError(f"{output} holds the input, which shards would replace; choose another folder for them")


def _file_type(address: str) -> str:
    suffix = os.path.splitext(address)[1].lower()
    if suffix == ".tar":
        return "tars"
    if suffix == ".parquet":
        return "Parquet files"
    return "lists" if suffix in _LISTS else "photos"


def _is_known(address: str) -> bool:
    return _file_type(address) != "photos" or os.path.splitext(address)[1].lower() in image_suffixes()


def _sources_of(files: Sequence[str], file_type: str, config: BatchConfig) -> list[Source]:
    if file_type == "tars":
        return [Tar(address) for address in files]
    if file_type == "Parquet files":
        return [table for address in files for table in _tables_of(address, config)]
    if file_type == "lists":
        files = [address for listing in files for address in _listed(listing)]
    return [Files(tuple(files[first : first + config.shard_size])) for first in range(0, len(files), config.shard_size)]


def _listed(listing: str) -> list[str]:
    """The addresses in a list file, one a line; a path that is not absolute begins at the list's folder."""
    try:
        lines = addresses.read_bytes(listing).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{listing} is not text in UTF-8; a list file has one address a line") from None
    folder = listing.rpartition("/")[0]
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise DataError(f"{listing} names no file; a list file has one address a line")
    return [_beside(line, folder) for line in found]


def _beside(address: str, folder: str) -> str:
    """An address that is named in a file of the folder."""
    return address if addresses.is_remote(address) or os.path.isabs(address) or not folder else f"{folder}/{address}"


def _tables_of(address: str, config: BatchConfig) -> list[Table]:
    with needs_extra("batch"):
        from pyarrow.parquet import ParquetFile
    with addresses.local_copy(address) as path, _reading_parquet(address):
        table = ParquetFile(path)
        names, count = table.schema_arrow.names, table.metadata.num_rows
    column = config.column or next((name for name in _COLUMNS if name in names), None)
    if column is None or column not in names:
        raise DataError(
            f"{address} has no column {column or 'of photos'!s}; it has {', '.join(names)}: name one with --column"
        )
    key = next((name for name in _KEYS if name in names), None)
    size = config.shard_size
    return [Table(address, first, min(size, count - first), column, key) for first in range(0, count, size)]


def _values(path: Path, table: Table) -> Iterator[tuple[Any, Any]]:
    """Photo and key of each row."""
    from pyarrow.parquet import ParquetFile

    with _reading_parquet(table.address):
        file = ParquetFile(path)
        columns = [table.column] if table.key is None else [table.column, table.key]
        start, end = table.first, table.first + table.count
        before = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if before < end and before + rows > start:
                first, last = max(start - before, 0), min(end - before, rows)
                row = 0
                for part in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                    for place in range(max(first - row, 0), min(last - row, part.num_rows)):
                        key = None if table.key is None else part.column(table.key)[place].as_py()
                        yield part.column(table.column)[place].as_py(), key
                    row += part.num_rows
            before += rows


class _reading_parquet:  # noqa: N801 - used as a function
    """Turns pyarrow's errors into one of ours; not a generator, since it is left by generators."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> None: ...

    def __exit__(self, error_type: object, error: object, trace: object) -> None:
        if isinstance(error, Exception) and type(error).__module__.startswith("pyarrow"):
            raise DataError(f"{self.address} is not a Parquet file that can be read: {one_line(error)}") from error


def _content_of(value: Any, source: str, folder: str) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return addresses.read_bytes(_beside(value, folder))
    raise DataError(f"{source} holds no photo: neither bytes nor an address")


@contextmanager
def _rows_of_copy(
    address: str, prefix: str, rows_of: Callable[[Path], Iterator[Row]]
) -> Generator[Iterator[Row], None, None]:
    """The rows of a file, read from a local copy; one row with the error if it cannot be read."""
    with ExitStack() as stack:
        try:
            found = rows_of(stack.enter_context(addresses.local_copy(address)))
        except DataError as error:
            found = _refused(error, address, prefix)
        yield found


def _refused(error: DataError, source: str, prefix: str) -> Iterator[Row]:
    """The row of what cannot be read."""
    yield Row(f"{prefix}0000", source, lambda: _refuse(error))


def _refuse(error: DataError) -> bytes:
    raise error
