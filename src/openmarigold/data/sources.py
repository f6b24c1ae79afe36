# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: a prepared data set, or a row of `SOURCES` (plain tar shards and a decode function)."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.data.archives import TarArchive
from openmarigold.data.remote import DataFolder, RemoteFolder
from openmarigold.data.shards import Sample, ShardedDataset, is_prepared
from openmarigold.errors import DataError, one_line
from openmarigold.files import files_sha256
from openmarigold.seeding import generator_for


@dataclass(frozen=True)
class SourceRow:
    """Storage of a source: shards in a folder, and the function from a sample's files (by suffix) to rgb and maps.

    A sample's kind is the first part of its name: `rooms-040110-03` shows rooms.
    """

    folder: str
    shards: str
    suffixes: tuple[str, ...]
    decode: Callable[[Mapping[str, bytes]], tuple[np.ndarray, dict[str, np.ndarray]]]
    maps: tuple[str, ...] = ()


def _decode_photo(files: Mapping[str, bytes]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return _decode_rgb(files[".jpg"]), {}


def _decode_log_depth_pair(files: Mapping[str, bytes]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    # 12-bit logarithmic code: 0 = no depth, else 0.1 m * 1000 ** (code / 4095).
    code = np.asarray(Image.open(io.BytesIO(files[".depth.png"])), dtype=np.float32)
    depth = np.where(code > 0, 0.1 * 1000.0 ** (code / 4095.0), 0.0).astype(np.float32)
    return _decode_rgb(files[".rgb.jpg"]), {"depth": depth}


def _decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


_PAIR = (".rgb.jpg", ".depth.png")
SOURCES: dict[str, SourceRow] = {
    "photos": SourceRow("photos", "photos-*.tar", (".jpg",), _decode_photo),
    "synthetic": SourceRow("synthetic", "train-*.tar", _PAIR, _decode_log_depth_pair, ("depth",)),
    "synthetic-val": SourceRow("synthetic", "val-*.tar", _PAIR, _decode_log_depth_pair, ("depth",)),
}


class Source:
    """Random access to the samples of one source."""

    def __init__(
        self, name: str, data_dir: DataFolder, *, num_samples: int | None = None, held_out: float = 0.0, seed: int = 0
    ) -> None:
        """Opens source `name`: the prepared data set in `data_dir/name`, else the row of `SOURCES`; reads no samples.

        At an address there are prepared data sets only.

        Args:
            num_samples: use only so many of its samples, drawn at random; None uses all.
            held_out: share of its scenes that are left out, at least one of two or more; their samples are `held_out`.
                Plain tars know no scenes.
            seed: seed of these draws.

        Raises:
            DataError: neither exists, a shard is not a whole tar file, or there are fewer samples than `num_samples`.
        """
        reader = _reader_of(name, data_dir)
        self.name = name
        self.origin = name
        """Its name in the recipe; parts of it have longer names."""
        self._reader = reader
        self.folder = data_dir / name
        left = _scenes_held_out(reader.scenes, held_out, name, seed) if isinstance(reader, ShardedDataset) else set()
        scenes = reader.scenes if isinstance(reader, ShardedDataset) else [""] * len(reader.keys)
        is_left = np.array([scene in left for scene in scenes], dtype=bool)
        self._chosen, self._held_out = np.flatnonzero(~is_left), np.flatnonzero(is_left)
        self.contents = reader.contents
        """Names and sizes of plain tars' samples, hashed; of a prepared data set the hash of all shards."""
        self.sha256 = reader.sha256 if isinstance(reader, _PlainTars) else reader.contents
        """Hash of all bytes; samples of a prepared data set are compared with its index when they are read."""
        if left:
            self.contents += f":without {','.join(sorted(left))}"
        if num_samples is not None:
            if num_samples > len(self._chosen):
                raise DataError(
                    f"source {name} has {len(self._chosen)} samples, not the {num_samples} of data.num_samples; "
                    "lower it"
                )
            rng = generator_for(seed, f"samples of {name}")
            self._chosen = self._chosen[np.sort(rng.choice(len(self._chosen), size=num_samples, replace=False))]
            self.contents += f":{num_samples} by {seed}"
        self._name_chosen()
        self.all_kinds = set(reader.kinds)
        """Kinds of the whole source; the samples drawn may lack some."""
        self.valid_range: tuple[float, float] = (
            reader.valid_range if isinstance(reader, ShardedDataset) else (0.0, float("inf"))
        )
        """Values that training may use, exclusive (depth in meters), as a prepared data set states them."""
        self.unknown_is_far: bool = not isinstance(reader, ShardedDataset) or reader.unknown_is_far
        """Whether pixels without depth are sky or out of reach; in labels of a model they may be anything."""
        self.maps: tuple[str, ...] = (
            tuple(reader.encodings) if isinstance(reader, ShardedDataset) else SOURCES[name].maps
        )
        """Names of the maps that its samples may have."""

    def _name_chosen(self) -> None:
        self.keys = [self._reader.keys[index] for index in self._chosen]
        self.kinds = [self._reader.kinds[index] for index in self._chosen]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def scenes(self) -> list[str]:
        """Names of the scenes of its samples; none where they are not known, as in plain tars."""
        reader = self._reader
        return sorted({reader.scenes[i] for i in self._chosen}) if isinstance(reader, ShardedDataset) else []

    @property
    def has_sizes(self) -> bool:
        """Whether `sizes` reads no samples."""
        return isinstance(self._reader, ShardedDataset)

    def part(self, members: np.ndarray, label: str) -> Source:
        """Some of its samples, by their numbers, as a source of its own whose name ends in `label`."""
        other = self._with(self._chosen[members])
        other.name, other.contents = f"{self.name}-{label}", f"{self.contents}:{label}"
        return other

    @property
    def held_out(self) -> Source:
        """The samples of the scenes that were left out, as a source of its own."""
        return self._with(self._held_out)

    def _with(self, chosen: np.ndarray) -> Source:
        other = copy.copy(self)
        other._chosen = chosen
        other._name_chosen()
        return other

    @property
    def sizes(self) -> Int64[np.ndarray, "n 2"]:
        """Height and width of each sample; plain tars are read once for it."""
        return self._reader.sizes[self._chosen]

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of sample number `index`."""
        height, width = self._reader.sizes[self._chosen[index]].tolist()
        return height, width

    def read(self, index: int) -> Sample:
        """Decoded sample number `index`.

        Raises:
            DataError: the sample is damaged.
        """
        return self._reader.read(int(self._chosen[index]))

    def identity(self, index: int, maps: Iterable[str]) -> tuple[str, ...]:
        """An identifier of sample number `index`. It changes only with the sample's bytes; in plain tars with any byte
        of the tars.
        """
        reader = self._reader
        if isinstance(reader, ShardedDataset):
            return reader.identity(int(self._chosen[index]), (name for name in maps if name in reader.encodings))
        return reader.sha256, self.keys[index]

    def camera(self, index: int) -> Camera | None:
        """The camera of sample number `index`; None where it is not known, as in plain tars.

        Raises:
            DataError: the sample is damaged.
        """
        reader = self._reader
        return reader.camera(int(self._chosen[index])) if isinstance(reader, ShardedDataset) else None

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        self._reader.close()


def _reader_of(name: str, data_dir: DataFolder) -> ShardedDataset | _PlainTars:
    if is_prepared(data_dir / name):
        return ShardedDataset(data_dir / name)
    if name not in SOURCES:
        raise DataError(
            f"unknown data source {name!r}; use one of {', '.join(SOURCES)}, or the folder below {data_dir} that "
            "`openmarigold data prepare` wrote"
        )
    if isinstance(data_dir, RemoteFolder):
        raise DataError(
            f"{data_dir / name} is not a prepared data set; plain tars are read from this machine only: copy "
            f"{SOURCES[name].folder}/ here, and give its parent as --data-dir"
        )
    return _PlainTars(name, SOURCES[name], data_dir)


def _scenes_held_out(scenes: list[str], share: float, name: str, seed: int) -> set[str]:
    names = sorted(set(scenes))
    if not share or len(names) < 2:
        return set()
    count = min(max(1, round(share * len(names))), len(names) - 1)
    drawn = generator_for(seed, f"scenes held out of {name}").choice(len(names), size=count, replace=False)
    return {names[number] for number in drawn}


class _PlainTars:
    """Samples of tars without an index, in the order of their names."""

    def __init__(self, name: str, row: SourceRow, data_dir: Path) -> None:
        self.name = name
        self._row = row
        folder = data_dir / self._row.folder
        shards = sorted(folder.glob(self._row.shards))
        if not shards:
            raise DataError(
                f"no {self._row.shards} in {folder}; --data-dir must be the folder that holds {self._row.folder}/"
            )
        self._shards = [_whole_tar(shard) for shard in shards]
        entries: dict[str, dict[str, tuple[TarArchive, str]]] = {}
        for shard in self._shards:
            for path in shard.places:
                for suffix in self._row.suffixes:
                    if path.endswith(suffix):
                        entries.setdefault(path[: -len(suffix)], {})[suffix] = shard, path
        complete = {key: parts for key, parts in entries.items() if len(parts) == len(self._row.suffixes)}
        if not complete:
            raise DataError(f"{folder} holds no sample with all of {', '.join(self._row.suffixes)}")
        self.keys = sorted(complete)
        self.kinds = [key.split("-", maxsplit=1)[0] for key in self.keys]
        self._entries = [complete[key] for key in self.keys]
        # A hash of names and sizes changes when the data is made again, and needs no reading of all bytes.
        sizes = [[key, [shard.places[path][1] for shard, path in complete[key].values()]] for key in self.keys]
        self.contents = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
        self.sha256 = files_sha256(shards)

    @functools.cached_property
    def sizes(self) -> Int64[np.ndarray, "n 2"]:
        found = np.zeros((len(self.keys), 2), dtype=np.int64)
        for index, entry in enumerate(self._entries):
            try:
                # The size is near the start, before any pixel.
                shard, path = entry[self._row.suffixes[0]]
                with Image.open(io.BytesIO(shard.read(path))) as image:
                    found[index] = image.height, image.width
            except (OSError, DataError) as error:
                raise self._damaged(index, error) from error
        return found

    def read(self, index: int) -> Sample:
        entry = self._entries[index]
        try:
            rgb, maps = self._row.decode({suffix: shard.read(path) for suffix, (shard, path) in entry.items()})
        except (OSError, ValueError) as error:
            raise self._damaged(index, error) from error
        return Sample(rgb=rgb, maps=maps, kind=self.kinds[index])

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def _damaged(self, index: int, error: Exception) -> DataError:
        return DataError(f"sample {self.keys[index]} of source {self.name} is damaged: {one_line(error)}")


def _whole_tar(path: Path) -> TarArchive:
    try:
        archive = TarArchive(path)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is not a whole tar file ({one_line(error)}); get it again") from error
    # Training must not depend on which files can still be read.
    defects = (f"{path}: {name} {what}; get it again" for name, what in archive.defects.items())
    if damage := next(chain(archive.damage.values(), defects), None):
        raise DataError(damage)
    return archive
