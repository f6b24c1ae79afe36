# SPDX-License-Identifier: Apache-2.0
"""Writing prepared data sets: each unit of work becomes a whole shard; an index and a manifest are written last."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from openmarigold.data.encodings import MapEncoding, png_bytes
from openmarigold.data.shards import (
    FORMAT,
    INDEX_FILE,
    MANIFEST_FILE,
    PLACE,
    PLAN_FILE,
    contents_sha256,
    decode_rgb,
    read_json,
    roles,
    with_maps,
)
from openmarigold.errors import DataError, OutputError
from openmarigold.files import file_sha256, remove_leftovers, write_atomically
from openmarigold.text_files import parse_json

REJECTED_FILE = "rejected.jsonl"
_KEY = re.compile(r"[A-Za-z0-9_-]{1,88}")  # no dots, which end a key
_MAP_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")
_TAKEN = {"rgb", "json", "key", "kind", "scene", "size", "shard", "invalid_ratio"}  # in the index and the statistics
_LONGEST_NAME = 100  # of a file in a tar
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class NewSample:
    """A good picture of a unit of work.

    Attributes:
        key: name within the data set: letters, digits, `_` and `-`, at most 88.
        kind: what it shows; training may weight kinds.
        scene: pictures of one scene belong to one split.
        rgb: pixels, stored as PNG, or a JPEG file's bytes, stored as they are.
        maps: as in `shards.Sample`, of the data set's maps; none for photos.
        info: more for the sample's .json: source path, intrinsics (fx fy cx cy in pixels), what it was made of.
    """

    key: str
    kind: str
    scene: str
    rgb: UInt8[np.ndarray, "h w 3"] | bytes
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A picture of a unit of work that does not become a sample.

    Attributes:
        name: the picture's name in the source.
        reason: a few short words; rejections are counted by it ("truncated", "all invalid").
        detail: what exactly was found.
        is_error: True if the source is defective, False if a setting left the picture out.
    """

    name: str
    reason: str
    detail: str = ""
    is_error: bool = True


class ShardWriter:
    """Writes the shards of one data set; can be pickled for other processes.

    One process calls `begin`, any number of processes `write` (each unit once), then one calls `finish`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        split: str,
        encodings: Mapping[str, MapEncoding],
        settings: Mapping[str, Any],
    ) -> None:
        """Describes the data set; nothing is read or written yet.

        Args:
            folder: holds one split of one data set.
            encodings: of its maps, by name: lower-case letters, digits and `_`.
            settings: everything that the samples depend on, as JSON; shards of an interrupted run are kept only if its
                settings are the same.

        Raises:
            DataError: a name of a map that is not accepted.
        """
        for map_name in encodings:
            if not _MAP_NAME.fullmatch(map_name) or map_name in _TAKEN:
                raise DataError(
                    f"the map name {map_name!r} is not accepted; use up to 24 lower-case letters, digits and _, and "
                    f"none of {', '.join(sorted(_TAKEN))}"
                )
        self.folder = folder
        self.encodings = dict(encodings)
        self._plan = {
            "format": FORMAT,
            "name": name,
            "split": split,
            "maps": {name: encoding.record() for name, encoding in encodings.items()},
            "settings": parse_json(json.dumps(settings)),
        }

    def begin(self) -> None:
        """Make the folder, or check that an earlier run in it had the same settings.

        Raises:
            DataError: the folder holds something else.
            OutputError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = {path.name for path in self.folder.iterdir()}
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror}; choose another folder") from error
        partial = {name: match for name in found if (match := re.fullmatch(r"\..+\.(\d+)(?:-\d+)?\.partial", name))}
        earlier = self._earlier_plan()
        if earlier is None and found - partial.keys():
            raise DataError(f"{self.folder} is not empty and holds no prepared data; choose a new folder")
        is_running = any(_is_alive(int(match[1])) for match in partial.values())
        if PLAN_FILE in found and not is_running and not any(name.startswith("shard-") for name in found):
            earlier = None  # nothing was made by it
        if earlier is not None and {**earlier, "name": self._plan["name"]} != self._plan:  # a name changes no sample
            raise DataError(
                f"{self.folder} was prepared with other settings ({', '.join(_differences(earlier, self._plan))}); "
                "use the same, choose another folder, or delete this one"
            )
        if earlier is None:
            _write_json(self.folder / PLAN_FILE, self._plan)
        for name, match in partial.items():
            if not _is_alive(int(match[1])):
                with suppress(OSError):
                    (self.folder / name).unlink()

    def is_done(self, number: int, sources: str | None = None) -> bool:
        """Whether shard `number` is there, whole, and states these sources or none."""
        shard, _ = self._paths(number)
        try:
            index = self._read_index(number)
            return index["bytes"] == shard.stat().st_size and (
                sources is None or index.get("sources", sources) == sources
            )
        except (OSError, DataError):
            return False

    def reopen(self, is_needed: bool = True) -> None:
        """Makes a finished set an unfinished one before its shards are replaced, which its index would misread.

        Raises:
            OutputError: the folder cannot be written.
        """
        if is_needed and (self.folder / MANIFEST_FILE).exists():
            _write_json(self.folder / PLAN_FILE, self._plan)
            for name in (MANIFEST_FILE, INDEX_FILE):
                with suppress(FileNotFoundError):
                    (self.folder / name).unlink()

    def write(self, number: int, items: Iterable[NewSample | Rejection], sources: str | None = None) -> dict[str, Any]:
        """Write shard `number` (over an unfinished or damaged one) and its index, which is returned.

        `sources` stands for the files that it is made from; `is_done` compares it. If `items` raises, nothing of the
        unit is kept.

        Raises:
            DataError: a sample whose key, size or depth cannot be stored.
            OutputError: the disk is full or the folder cannot be written.
        """
        shard, index = self._paths(number)
        content: dict[str, Any] = {"format": FORMAT, "shard": shard.name}
        content |= {} if sources is None else {"sources": sources}
        for path in (index, shard):
            with suppress(FileNotFoundError):
                path.unlink()
        write_atomically(shard, lambda temporary: content.update(self._write_tar(temporary, items)))
        _write_json(index, content)
        return content

    def finish(self, num_shards: int, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Writes index, list of rejections and manifest of a data set whose shards 0 to `num_shards` - 1 are done.

        Args:
            num_shards: how many units there were.
            facts: more for the manifest: command, license, attribution.

        Returns:
            The manifest.

        Raises:
            DataError: a shard is not done, or two samples have the same key.
            OutputError: the folder cannot be written.
        """
        undone = [number for number in range(num_shards) if not self.is_done(number)]
        if undone:
            raise DataError(f"{self.folder}: shards {undone[:5]} are not done; run the preparation again")
        indices = [self._read_index(number) for number in range(num_shards)]
        samples = [(number, row) for number, index in enumerate(indices) for row in index["samples"]]
        rejected = [row for index in indices for row in index["rejected"]]
        _write_lines(self.folder / REJECTED_FILE, rejected)
        twice = [key for key, count in Counter(row["key"] for _, row in samples).items() if count > 1]
        if twice:
            raise DataError(f"{self.folder}: {len(twice)} keys occur twice, {twice[0]} first; make the names unique")
        kinds, scenes = (Counter(row[name] for _, row in samples) for name in ("kind", "scene"))
        table = _index_table(samples, sorted(kinds), sorted(scenes), roles(self.encodings))
        write_atomically(self.folder / INDEX_FILE, lambda temporary: _save_array(temporary, table))
        errors = [row for row in rejected if row["is_error"]]
        manifest = {
            **self._plan,
            "counts": {
                "samples": len(samples),
                "kinds": dict(sorted(kinds.items())),
                "scenes": dict(sorted(scenes.items())),
                "defective": dict(sorted(Counter(row["reason"] for row in errors).items())),
                "left_out": dict(sorted(Counter(row["reason"] for row in rejected if not row["is_error"]).items())),
            },
            "shards": [
                {"name": index["shard"], "bytes": index["bytes"], "sha256": index["sha256"], "samples": count}
                for index, count in ((index, len(index["samples"])) for index in indices)
            ],
            "contents": contents_sha256(self._plan["maps"], indices),
            "index_sha256": file_sha256(self.folder / INDEX_FILE),
            **(facts or {}),
        }
        _write_json(self.folder / MANIFEST_FILE, manifest)
        with suppress(FileNotFoundError):
            (self.folder / PLAN_FILE).unlink()
        for number in range(num_shards):  # of workers that were killed, perhaps on another machine
            for path in self._paths(number):
                remove_leftovers(path)
        return manifest

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"shard-{number:05d}.tar", self.folder / f"shard-{number:05d}.json"

    def _read_index(self, number: int) -> dict[str, Any]:
        path = self._paths(number)[1]
        index = read_json(path)
        if not _is_index(index, set(roles(self.encodings))):
            raise DataError(f"{path} is not the index of a shard; delete it and run the preparation again")
        return index

    def _earlier_plan(self) -> dict[str, Any] | None:
        for name in (MANIFEST_FILE, PLAN_FILE):
            with suppress(FileNotFoundError):
                found = with_maps(read_json(self.folder / name))
                return {key: found.get(key) for key in self._plan}
        return None

    def _write_tar(self, path: Path, items: Iterable[NewSample | Rejection]) -> dict[str, Any]:
        samples: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        with path.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for item in items:
                    if isinstance(item, Rejection):
                        rejected.append(asdict(item))
                        continue
                    members, size = self._members(item)
                    places: dict[str, list[int]] = {}
                    for suffix, data in members.items():
                        member = tarfile.TarInfo(f"{item.key}.{suffix}")
                        member.size = len(data)  # time, user and mode are constants, so equal samples make equal shards
                        member.mode = 0o644
                        places[suffix] = [archive.offset + _BLOCK, len(data), zlib.crc32(data)]
                        archive.addfile(member, io.BytesIO(data))
                    row = {"key": item.key, "kind": item.kind, "scene": item.scene, "size": size, "members": places}
                    samples.append(row)
            file.flush()
            os.fsync(file.fileno())
        return {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "samples": samples,
            "rejected": rejected,
        }

    def _members(self, sample: NewSample) -> tuple[dict[str, bytes], list[int]]:
        if not _KEY.fullmatch(sample.key):
            raise DataError(f"key {sample.key!r} is not accepted; use letters, digits, _ and -, at most 88")
        if isinstance(sample.rgb, bytes):
            rgb, name, data = decode_rgb(sample.rgb), "rgb.jpg", sample.rgb
        else:
            rgb, name, data = sample.rgb, "rgb.png", png_bytes(sample.rgb)
        members = {name: data}
        unknown = sorted(sample.maps.keys() - self.encodings.keys())
        if unknown:
            known = ", ".join(self.encodings)
            raise DataError(f"{sample.key}: {unknown[0]} is not among the data set's maps ({known}); leave it out")
        for map_name in (name for name in self.encodings if name in sample.maps):
            values = sample.maps[map_name]
            if values.shape[:2] != rgb.shape[:2]:
                raise DataError(f"{sample.key}: rgb is {rgb.shape[:2]}, {map_name} {values.shape}; make them equal")
            encoding = self.encodings[map_name]
            members[f"{map_name}.{encoding.suffix}"] = encoding.encode(values)
        info = {
            "kind": sample.kind,
            "scene": sample.scene,
            **sample.info,
            "statistics": statistics(rgb, sample.maps),
        }
        members["json"] = (json.dumps(info, ensure_ascii=True) + "\n").encode()
        longest = max(map(len, members))
        if len(sample.key) + 1 + longest > _LONGEST_NAME:
            raise DataError(
                f"key {sample.key!r} is too long; use at most {_LONGEST_NAME - 1 - longest} characters here"
            )
        return members, list(rgb.shape[:2])


def _is_index(index: Mapping[str, Any], known: set[str]) -> bool:
    """Whether a shard's index has all the fields that are read; a damaged one may still be valid JSON."""
    samples, rejected = index.get("samples"), index.get("rejected")
    if not (isinstance(samples, list) and isinstance(rejected, list) and isinstance(index.get("sha256"), str)):
        return False
    texts = [(row, ("key", "kind", "scene")) for row in samples] + [(row, ("name", "reason")) for row in rejected]
    if not all(isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names) for row, names in texts):
        return False
    lists = [(row.get("size"), 2) for row in samples]
    for row in samples:
        members = row.get("members")
        if not isinstance(members, dict) or not {name.partition(".")[0] for name in members} <= known:
            return False
        lists += [(place, 3) for place in members.values()]
    return all(row.get("is_error") in (True, False) for row in rejected) and all(
        isinstance(values, list) and len(values) == count and all(type(value) is int and value >= 0 for value in values)
        for values, count in lists
    )


def statistics(rgb: UInt8[np.ndarray, "h w 3"], maps: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Mean, standard deviation, minimum and maximum of colors [0, 255] and of the known values of each map.

    A pixel that is 0 in all channels of a map is unknown; `invalid_ratio` is the largest share of them.
    """
    found: dict[str, Any] = {"rgb": _moments(rgb)}
    shares = []
    for name, values in maps.items():
        known = values[values > 0 if values.ndim == 2 else values.any(axis=-1)]
        found[name] = _moments(known) if known.size else None
        shares.append(1 - known.size / values.size)
    return {**found, "invalid_ratio": round(max(shares), 6)} if shares else found


def _moments(values: np.ndarray) -> dict[str, float]:
    numbers = {
        "mean": values.mean(dtype=np.float64),
        "std": values.std(dtype=np.float64),
        "min": values.min(),
        "max": values.max(),
    }
    return {name: round(float(value), 6) for name, value in numbers.items()}


def _index_table(
    samples: list[tuple[int, dict[str, Any]]], kinds: list[str], scenes: list[str], members: tuple[str, ...]
) -> np.ndarray:
    """Rows of index.npy: the facts about each sample that `ShardedDataset` needs, of fixed size."""
    longest = max((len(row["key"]) for _, row in samples), default=1)
    fields: list[Any] = [("key", f"S{longest}"), ("kind", "<u2"), ("scene", "<u4"), ("size", "<u4", (2,))]
    fields += [("shard", "<u4"), *((role, PLACE) for role in members)]
    table = np.zeros(len(samples), dtype=fields)
    kind_code, scene_code = ({name: code for code, name in enumerate(names)} for names in (kinds, scenes))
    for target, (number, row) in zip(table, samples, strict=True):
        target["key"], target["kind"], target["scene"] = row["key"], kind_code[row["kind"]], scene_code[row["scene"]]
        target["size"], target["shard"] = row["size"], number
        for name, place in row["members"].items():
            target[name.partition(".")[0]] = tuple(place)
    return table


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after)
        elif before != after:
            yield f"{key}: {before!r:.60} then, {after!r:.60} now"


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there a signal ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _save_array(path: Path, table: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, table)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=True, indent=1) + "\n"
    write_atomically(path, lambda temporary: _write_synced(temporary, text))


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    write_atomically(path, lambda temporary: _write_synced(temporary, text))


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
