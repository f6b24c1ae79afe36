# SPDX-License-Identifier: Apache-2.0
"""What a worker does: it loads the model once and makes whole shards."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from openmarigold.addresses import OutputFolder, fingerprint
from openmarigold.batch.settings import BatchConfig
from openmarigold.batch.shard_files import (
    FAILED,
    STATS_END,
    Entry,
    ShardStats,
    Spool,
    encoded,
    is_changed,
    names_of_maps,
    read_shard,
    read_stats,
    write_shard,
)
from openmarigold.batch.sources import Row, Shard
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, OpenMarigoldError
from openmarigold.images.exif import Photo
from openmarigold.images.photo import read_photo
from openmarigold.predictor import Predictor

_AHEAD = 3
"""Photos that are read, or encoded, while another is predicted."""
_MAX_PIXELS_AHEAD = 2**25
"""Most pixels of a photo whose maps may wait; those of larger ones are encoded before another is predicted."""
_LONGEST_TEXT = 1000
"""Characters of an error's text in a record."""
_NOT_OF_KEYS = re.compile(r"[.\x00-\x1f\x7f]")
_PHOTO_ERRORS = (OpenMarigoldError, MemoryError, OSError)


@dataclass
class _Work:
    """A photo on its way."""

    row: Row
    key: str
    sha256: str | None = None
    photo: Photo | None = None
    error: Exception | None = None
    kept: Entry | None = None
    """The entry of a finished shard, if it was made of the same bytes."""
    seconds: float = 0.0


class ShardWorker:
    """Makes shards. It can be pickled: the model is loaded where the first shard is made."""

    def __init__(self, config: PredictConfig, batch: BatchConfig, folder: str) -> None:
        """`config` states one modality, or none."""
        self.config, self.batch, self.folder = config, batch, OutputFolder(folder)
        self._predictor: Predictor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_predictor": None}

    def load(self) -> Predictor:
        """The model. Raises what `Predictor.from_config` raises."""
        if self._predictor is None:
            # Workers share the cores of a machine: as many as there are cores have one thread each.
            self._predictor = Predictor.from_config(self.config, at_once=self.batch.workers)
        return self._predictor

    def make(self, shard: Shard, *, again: bool = False) -> ShardStats:
        """Makes a shard; the statistics are written last, so that a shard with statistics is whole.

        Args:
            shard: what it is made of.
            again: keep the maps that a finished shard has, and do its failed photos again. If its tar or table has
                changed, do the photos again whose bytes have changed, too.

        Raises:
            OutputError: it cannot be written.
            CheckpointError: the model cannot be loaded.
        """
        predictor = self.load()
        started, began = time.time(), time.perf_counter()
        maps = names_of_maps(predictor.checkpoint, self.config)
        input_file = None if shard.source.file is None else fingerprint(shard.source.file)
        entries, seconds = [], []
        with self.folder.writing():
            spool = Spool(self.folder)
        with spool:
            kept: dict[str, Entry] = {}
            compares = False
            if again:
                before = read_shard(self.folder, shard.stem, maps, self.batch)
                kept = {one.key: spool.put(one) for one in before if one.status != FAILED}
                compares = is_changed(read_stats(self.folder, shard.stem), input_file)
            for entry, spent in self._entries(shard, kept, compares=compares):
                entries.append(spool.put(entry))
                seconds.append(round(spent, 4))
            if again:  # a run that is killed from here on leaves files of which some are new
                self.folder.remove(f"{shard.stem}{STATS_END}")
            write_shard(self.folder, shard.stem, entries, maps, self.batch)
        failed = Counter(entry.error_class or "" for entry in entries if entry.status == FAILED)
        stats = ShardStats(
            count=len(entries),
            successes=len(entries) - failed.total(),
            failed_by_class=dict(sorted(failed.items())),
            started=round(started, 3),
            seconds=round(time.perf_counter() - began, 3),
            photo_seconds=tuple(seconds),
            engine=predictor.engine.name,
            input_file=input_file,
        )
        stats.write(self.folder, shard.stem)
        return stats

    def entry(self, row: Row) -> Entry:
        """What becomes of one photo; errors of it are part of the entry."""
        work = self._read(_Work(row=row, key=row.key))
        return self._encode(work, self._predict(work))[0]

    def _entries(self, shard: Shard, kept: dict[str, Entry], *, compares: bool) -> Iterator[tuple[Entry, float]]:
        """The entries of a shard in order, with the time of each [s]; see `_read` for `compares`."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as encoder:
            encoding: deque[Future[tuple[Entry, float]]] = deque()
            ahead = _AHEAD
            for work in self._read_ahead(reader, shard, kept, compares=compares):
                if work.kept is not None:
                    encoding.append(encoder.submit(lambda one=work.kept: (one, 0.0)))
                else:
                    prediction = self._predict(work)
                    encoding.append(encoder.submit(self._encode, work, prediction))
                    ahead = 0 if _is_large(prediction) else _AHEAD
                    del prediction
                while len(encoding) > ahead:
                    yield encoding.popleft().result()
            while encoding:
                yield encoding.popleft().result()

    def _read_ahead(
        self, reader: ThreadPoolExecutor, shard: Shard, kept: dict[str, Entry], *, compares: bool
    ) -> Iterator[_Work]:
        reading: deque[Future[_Work]] = deque()
        taken: set[str] = set()
        with shard.source.rows(shard.stem) as rows:
            for row in rows:
                work = _Work(row=row, key=_clean_key(row.key))
                if work.key in taken:
                    work.error = DataError(f"{row.source}: the key {work.key} is there already")
                    work.key = f"{shard.stem}-again-{len(taken):04d}"
                taken.add(work.key)
                reading.append(reader.submit(self._read, work, kept.get(work.key), compares=compares))
                while len(reading) > _AHEAD or (reading and reading[0].done()):
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()

    def _read(self, work: _Work, before: Entry | None = None, *, compares: bool = False) -> _Work:
        """Reads a photo, unless there is an entry `before` that stays.

        It stays if `compares` is off, if it was made of the same bytes, or if they cannot be read any more.
        """
        started = time.perf_counter()
        work.kept = None if before is None else replace(before, source=_storable(work.row.source))
        if work.error is None and (before is None or compares):
            try:
                content = work.row.read()
                work.sha256 = hashlib.sha256(content).hexdigest()
                if before is None or before.input_sha256 != work.sha256:
                    work.kept = None
                    work.photo = read_photo(content, background=self.config.background)
            except _PHOTO_ERRORS as error:
                work.error = error
        work.seconds += time.perf_counter() - started
        return work

    def _predict(self, work: _Work) -> Any:
        started = time.perf_counter()
        prediction = None
        if work.photo is not None:
            try:
                prediction = replace(self.load()(work.photo, **self.config.call_options), rgb=None)
            except _PHOTO_ERRORS as error:
                work.error = error
            work.photo = None
        work.seconds += time.perf_counter() - started
        return prediction

    def _encode(self, work: _Work, prediction: Any) -> tuple[Entry, float]:
        started = time.perf_counter()
        source, entry = _storable(work.row.source), None
        if work.error is None:
            try:
                modality = self.load().modality
                entry = encoded(prediction, modality, key=work.key, source=source, sha256=work.sha256 or "")
            except _PHOTO_ERRORS as error:
                work.error = error
        if work.error is not None:
            entry = Entry(
                key=work.key,
                source=source,
                status=FAILED,
                input_sha256=work.sha256,
                error_class=type(work.error).__name__,
                error=_storable(_text(work.error, work.row.source)),
            )
        assert entry is not None
        return entry, work.seconds + time.perf_counter() - started


def _is_large(prediction: Any) -> bool:
    return prediction is not None and any(
        values.shape[0] * values.shape[1] > _MAX_PIXELS_AHEAD for values in prediction.maps.values()
    )


def _clean_key(key: str) -> str:
    """A key that is a relative name in a tar, and that no dot ends."""
    return _NOT_OF_KEYS.sub("_", _storable(key)).strip("/") or "_"


def _storable(text: str) -> str:
    """Bytes of names that are not UTF-8, which tables do not hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(error: Exception, source: str) -> str:
    if isinstance(error, MemoryError):
        return "out of memory; try a smaller processing_resolution or ensemble_size"
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    told = told if source in told else f"{source}: {told}"
    return told if len(told) <= _LONGEST_TEXT else f"{told[:_LONGEST_TEXT]} ..."
