# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets: a folder of indexed, uncompressed tar shards with a manifest (docs/data.md, "The shard format").

A shard is the unit of work: written once, by one process, under its final name only when whole, its index after it. So
a killed run leaves whole shards, which the next one skips. Reading needs no scan: `index.npy` says where every file
of every sample lies.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16
from PIL import Image

from openmarigold.errors import DataError, OutputError, one_line
from openmarigold.files import write_atomically

FORMAT = "openmarigold-shards-1"
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.npy"
PLAN_FILE = "plan.json"
REJECTED_FILE = "rejected.jsonl"

_MEMBERS = ("rgb", "depth", "json")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,88}")  # no dots, which end a key; with the suffix at most 100 bytes, tar's limit
_BLOCK = 512
_MAX_CODE = 65535


@dataclass(frozen=True)
class Sample:
    """One picture, with its depth where the source has it.

    Attributes:
        rgb: colour image.
        depth: planar depth [m], 0 where there is none; None for a source of photos.
        kind: what it shows, in the source's own words ("rooms", "tabletop", "street").
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"] | None
    kind: str


@dataclass(frozen=True, kw_only=True)
class DepthEncoding:
    """How a data set stores planar depth z [m]; code 0 is "no depth" in all of them.

    linear: 16-bit PNG, z = code * metres_per_unit. log: 16-bit PNG, z = near * (far / near) ** (code / levels).
    float32: NumPy file, z itself.
    """

    kind: Literal["linear", "log", "float32"]
    metres_per_unit: float = 0.001
    near: float = 0.1
    far: float = 100.0
    levels: int = 4095

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "log", "float32"):
            raise DataError(f"depth encoding {self.kind!r} is not known; use linear, log or float32")
        if not (self.metres_per_unit > 0 and 0 < self.near < self.far and 0 < self.levels <= _MAX_CODE):
            raise DataError(
                f"{self} is no depth encoding; metres_per_unit must be positive, 0 < near < far, "
                f"levels 1 to {_MAX_CODE}"
            )

    @property
    def suffix(self) -> str:
        """Of the member that holds the depth."""
        return "depth.npy" if self.kind == "float32" else "depth.png"

    def record(self) -> dict[str, Any]:
        """What the manifest says: the kind and the settings that it has."""
        names = {"linear": ("metres_per_unit",), "log": ("near", "far", "levels"), "float32": ()}[self.kind]
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}

    def encode(self, depth: Float32[np.ndarray, "h w"]) -> bytes:
        """The member's bytes.

        Raises:
            DataError: a value that is negative, not finite, or outside what the encoding can hold.
        """
        # Sums of finite float32 do not overflow float64, and one pass finds NaN and both infinities.
        if not np.isfinite(depth.sum(dtype=np.float64)) or depth.min(initial=0) < 0:
            raise DataError("depth to be written is negative or not finite; mark such pixels with 0")
        if self.kind == "float32":
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(depth, dtype="<f4"))
            return buffer.getvalue()
        return _png(self.codes(depth))

    def codes(self, depth: Float32[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
        """The 16-bit codes of a depth map, each the nearest one.

        Raises:
            DataError: a value that needs a code below 1 or above the largest.
        """
        valid = depth > 0
        z = np.where(valid, depth, 1.0).astype(np.float64)
        if self.kind == "linear":
            code, top = np.rint(z / self.metres_per_unit), _MAX_CODE
        else:
            code, top = np.rint(np.log(z / self.near) / np.log(self.far / self.near) * self.levels), self.levels
        if bool((valid & ((code < 1) | (code > top))).any()):
            low, high = self.metres(np.array([[1, top]], dtype=np.uint16))[0]
            raise DataError(
                f"depth from {depth[valid].min():g} to {depth[valid].max():g} m does not fit {self.kind} 16-bit codes "
                f"({low:g} to {high:g} m); clip it, mark it as invalid, or store float32"
            )
        return np.where(valid, code, 0).astype(np.uint16)

    def metres(self, codes: UInt16[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Depth of codes."""
        table = _metres_of_codes(self)
        if int(codes.max(initial=0)) >= len(table):
            raise ValueError(f"code {codes.max()} where {len(table) - 1} is the largest")
        return table[codes]


@functools.lru_cache(maxsize=8)
def _metres_of_codes(encoding: DepthEncoding) -> Float32[np.ndarray, " codes"]:
    # There are few codes, so a table of them all costs less than a power per pixel.
    if encoding.kind == "linear":
        table = np.arange(_MAX_CODE + 1) * encoding.metres_per_unit
    else:
        shares = np.arange(encoding.levels + 1) / encoding.levels
        table = encoding.near * (encoding.far / encoding.near) ** shares
        table[0] = 0.0
    return table.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class NewSample:
    """What a unit of work yields for each good picture.

    Attributes:
        key: name within the data set: letters, digits, `_` and `-`, at most 88.
        kind: what it shows; training may weight kinds.
        scene: pictures of one scene belong to one split.
        rgb: pixels, stored as PNG, or a JPEG file's bytes, stored as they are.
        depth: planar depth [m], 0 = none; None for photos.
        info: more for the sample's .json: source path, intrinsics (fx fy cx cy in pixels), what it was made of.
    """

    key: str
    kind: str
    scene: str
    rgb: UInt8[np.ndarray, "h w 3"] | bytes
    depth: Float32[np.ndarray, "h w"] | None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """What a unit of work yields for each picture that does not become a sample.

    Attributes:
        name: the picture, as the source names it.
        reason: one of few short words, under which rejections are counted ("truncated", "all invalid").
        detail: what exactly was found.
        is_error: whether the source is defective; False for what a setting left out.
    """

    name: str
    reason: str
    detail: str = ""
    is_error: bool = True


class ShardWriter:
    """Writes the shards of one data set; may be sent to other processes, which then call `write`.

    One process calls `begin`, any number of them `write` (each unit in one of them), then one calls `finish`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        split: str,
        encoding: DepthEncoding,
        settings: Mapping[str, Any],
    ) -> None:
        """Describes the data set; nothing is read or written yet.

        Args:
            folder: where it goes; one split of one data set a folder.
            name: of the data set ("hypersim").
            split: "train", "val" or "test".
            encoding: of the depth.
            settings: all that the samples depend on, as JSON; shards are taken over from an interrupted run only if its
                settings are the same.
        """
        self.folder = folder
        self.encoding = encoding
        self._plan = {
            "format": FORMAT,
            "name": name,
            "split": split,
            "depth": encoding.record(),
            "settings": json.loads(json.dumps(settings)),
        }

    def begin(self) -> None:
        """Makes the folder, or checks that what an earlier run left there is of the same settings.

        Raises:
            DataError: the folder holds something else.
            OutputError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = {path.name for path in self.folder.iterdir()}
        except OSError as error:
            raise OutputError(f"cannot write {self.folder}: {error.strerror}; choose another folder") from error
        partial = {name: match for name in found if (match := re.fullmatch(r"\..+\.(\d+)\.partial", name))}
        earlier = self._earlier_plan()
        if earlier is None and found - partial.keys():
            raise DataError(f"{self.folder} is not empty and holds no prepared data; choose a new folder")
        if earlier is not None and earlier != self._plan:
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

    def is_done(self, number: int) -> bool:
        """Whether shard `number` is there, whole."""
        shard, index = self._paths(number)
        try:
            return json.loads(index.read_bytes())["bytes"] == shard.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(self, number: int, items: Iterable[NewSample | Rejection]) -> dict[str, Any]:
        """Writes shard `number` (over an unfinished or damaged one) and its index, which is returned.

        Nothing is kept of the unit if `items` raises.

        Raises:
            DataError: a sample whose key, size or depth cannot be stored.
            OutputError: the disk is full or the folder cannot be written.
        """
        shard, index = self._paths(number)
        content: dict[str, Any] = {"format": FORMAT, "shard": shard.name}
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
            facts: more for the manifest: command, licence, attribution.

        Returns:
            The manifest.

        Raises:
            DataError: a shard is not done, no sample was kept, or two have the same key.
            OutputError: the folder cannot be written.
        """
        undone = [number for number in range(num_shards) if not self.is_done(number)]
        if undone:
            raise DataError(f"{self.folder}: shards {undone[:5]} are not done; run the preparation again")
        indices = [json.loads(self._paths(number)[1].read_bytes()) for number in range(num_shards)]
        samples = [(number, row) for number, index in enumerate(indices) for row in index["samples"]]
        rejected = [row for index in indices for row in index["rejected"]]
        _write_lines(self.folder / REJECTED_FILE, rejected)
        twice = [key for key, count in Counter(row["key"] for _, row in samples).items() if count > 1]
        if twice:
            raise DataError(f"{self.folder}: {len(twice)} keys occur twice, {twice[0]} first; make the names unique")
        kinds, scenes = (Counter(row[name] for _, row in samples) for name in ("kind", "scene"))
        table = _index_table(samples, sorted(kinds), sorted(scenes))
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
            "contents": _contents(indices),
            "index_sha256": hashlib.sha256((self.folder / INDEX_FILE).read_bytes()).hexdigest(),
            **(facts or {}),
        }
        _write_json(self.folder / MANIFEST_FILE, manifest)
        with suppress(FileNotFoundError):
            (self.folder / PLAN_FILE).unlink()
        return manifest

    def _paths(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"shard-{number:05d}.tar", self.folder / f"shard-{number:05d}.json"

    def _earlier_plan(self) -> dict[str, Any] | None:
        for name in (MANIFEST_FILE, PLAN_FILE):
            with suppress(FileNotFoundError):
                found = _read_json(self.folder / name)
                return {key: found.get(key) for key in self._plan}
        return None

    def _write_tar(self, path: Path, items: Iterable[NewSample | Rejection]) -> dict[str, Any]:
        samples: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        with path.open("wb") as file:
            counted = _CountedFile(file)
            with tarfile.open(fileobj=cast("IO[bytes]", counted), mode="w", format=tarfile.USTAR_FORMAT) as archive:
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
                        offset = counted.position + _BLOCK
                        archive.addfile(member, io.BytesIO(data))
                        places[suffix] = [offset, len(data), zlib.crc32(data)]
                    row = {"key": item.key, "kind": item.kind, "scene": item.scene, "size": size, "members": places}
                    samples.append(row)
            file.flush()
            os.fsync(file.fileno())
        return {
            "bytes": counted.position,
            "sha256": counted.digest.hexdigest(),
            "samples": samples,
            "rejected": rejected,
        }

    def _members(self, sample: NewSample) -> tuple[dict[str, bytes], list[int]]:
        if not _KEY.fullmatch(sample.key):
            raise DataError(f"key {sample.key!r} is not accepted; use letters, digits, _ and -, at most 88")
        if isinstance(sample.rgb, bytes):
            rgb, name, data = _decode_rgb(sample.rgb), "rgb.jpg", sample.rgb
        else:
            rgb, name, data = sample.rgb, "rgb.png", _png(sample.rgb)
        members = {name: data}
        if sample.depth is not None:
            if sample.depth.shape != rgb.shape[:2]:
                raise DataError(f"{sample.key}: rgb is {rgb.shape[:2]}, depth {sample.depth.shape}; make them equal")
            members[self.encoding.suffix] = self.encoding.encode(sample.depth)
        info = {
            "kind": sample.kind,
            "scene": sample.scene,
            **sample.info,
            "statistics": statistics(rgb, sample.depth),
        }
        members["json"] = (json.dumps(info, ensure_ascii=True) + "\n").encode()
        return members, list(rgb.shape[:2])


class ShardedDataset:
    """Random access to the samples of a prepared data set, from any thread and process; opening reads no shard."""

    def __init__(self, folder: Path) -> None:
        """Opens the data set in `folder`.

        Attributes set: `name`, `keys`, `kinds`, `scenes` (lists, in the order of the shards), `sizes` (height and width
        of each sample), `contents` (one hash over all shards), `manifest`.

        Raises:
            DataError: no prepared data set, or one whose manifest or index is damaged.
        """
        self.folder = folder
        self.manifest = _read_manifest(folder)
        try:
            self.name = str(self.manifest["name"])
            self.contents = str(self.manifest["contents"])
            self._shards = [str(shard["name"]) for shard in self.manifest["shards"]]
            kinds, scenes = (list(self.manifest["counts"][name]) for name in ("kinds", "scenes"))
            depth = dict(self.manifest["depth"])
            self.encoding = DepthEncoding(**depth)
            self._table = np.load(folder / INDEX_FILE, allow_pickle=False)
            self.keys: list[str] = self._table["key"].astype(str).tolist()
            self.kinds: list[str] = [kinds[code] for code in self._table["kind"].tolist()]
            self.scenes: list[str] = [scenes[code] for code in self._table["scene"].tolist()]
            self.sizes: Int64[np.ndarray, "n 2"] = self._table["size"].astype(np.int64)
            if len(self.keys) != self.manifest["counts"]["samples"]:
                raise ValueError(f"{len(self.keys)} samples, the manifest says {self.manifest['counts']['samples']}")
        except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError) as error:
            raise DataError(
                f"{folder}: {MANIFEST_FILE} or {INDEX_FILE} is missing or damaged ({one_line(error)}); "
                "run the preparation again, which keeps whole shards"
            ) from error
        self._handles: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}  # another process opens its own

    def read(self, index: int) -> Sample:
        """Decoded sample number `index`.

        Raises:
            DataError: the sample is damaged.
        """
        rgb, depth = self._decoded(index, "rgb", _decode_rgb), None
        if self._table["depth"]["bytes"][index]:
            depth = self._decoded(index, "depth", self._decode_depth)
        height, width = self.sizes[index].tolist()
        if rgb.shape[:2] != (height, width) or (depth is not None and depth.shape != (height, width)):
            raise self._damaged(index, f"its size is not the {height}x{width} of the index")
        return Sample(rgb=rgb, depth=depth, kind=self.kinds[index])

    def info(self, index: int) -> dict[str, Any]:
        """What the sample's .json says: source, intrinsics where known, statistics.

        Raises:
            DataError: the sample is damaged.
        """
        return self._decoded(index, "json", json.loads)

    def member(self, index: int, role: Literal["rgb", "depth", "json"]) -> bytes:
        """Bytes of one of the sample's files, checked against the index.

        Raises:
            DataError: they are not what was written.
        """
        place = self._table[role][index]
        number, size = int(self._table["shard"][index]), int(place["bytes"])
        try:
            data = os.pread(self._handle(number), size, int(place["offset"]))
        except OSError as error:
            raise self._damaged(index, f"{error.strerror}") from error
        if len(data) != size:
            raise self._damaged(index, f"the shard ends within its {role}")
        if zlib.crc32(data) != int(place["crc32"]):
            raise self._damaged(index, f"the checksum of its {role} is another")
        return data

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        for number in list(self._handles):
            os.close(self._handles.pop(number))

    def _decoded(self, index: int, role: Literal["rgb", "depth", "json"], decode: Callable[[bytes], Any]) -> Any:
        data = self.member(index, role)
        try:
            return decode(data)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise self._damaged(index, f"{role}: {one_line(error)}") from error

    def _decode_depth(self, data: bytes) -> Float32[np.ndarray, "h w"]:
        if data[:6] == b"\x93NUMPY":
            return np.load(io.BytesIO(data), allow_pickle=False)
        with Image.open(io.BytesIO(data)) as image:
            return self.encoding.metres(np.asarray(image).astype(np.uint16))

    def _handle(self, number: int) -> int:
        # pread keeps no position, so threads and forked processes share handles.
        if number not in self._handles:
            handle = os.open(self.folder / self._shards[number], os.O_RDONLY)
            if self._handles.setdefault(number, handle) != handle:
                os.close(handle)  # another thread was faster
        return self._handles[number]

    def _damaged(self, index: int, what: str) -> DataError:
        shard = self.folder / self._shards[int(self._table["shard"][index])]
        return DataError(
            f"{shard}: sample {self.keys[index]} is damaged ({what}); see all damage with `openmarigold data verify "
            f"{self.folder}`, then delete the shard and prepare the data again, or copy it again"
        )


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a prepared data set."""
    return (folder / MANIFEST_FILE).is_file()


def statistics(rgb: UInt8[np.ndarray, "h w 3"], depth: Float32[np.ndarray, "h w"] | None) -> dict[str, Any]:
    """Mean, standard deviation, minimum and maximum of colours [0, 255] and of valid depth [m], and share invalid."""
    found = {"rgb": _moments(rgb)}
    if depth is None:
        return found
    valid = depth[depth > 0]
    return {
        **found,
        "depth": _moments(valid) if valid.size else None,
        "invalid_ratio": round(1 - valid.size / depth.size, 6),
    }


def _moments(values: np.ndarray) -> dict[str, float]:
    numbers = {
        "mean": values.mean(dtype=np.float64),
        "std": values.std(dtype=np.float64),
        "min": values.min(),
        "max": values.max(),
    }
    return {name: round(float(value), 6) for name, value in numbers.items()}


_PLACE = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4")])


def _index_table(samples: list[tuple[int, dict[str, Any]]], kinds: list[str], scenes: list[str]) -> np.ndarray:
    """Rows of index.npy: all that `ShardedDataset` must know about a sample, in a fixed number of bytes."""
    longest = max((len(row["key"]) for _, row in samples), default=1)
    fields: list[Any] = [("key", f"S{longest}"), ("kind", "<u2"), ("scene", "<u4"), ("size", "<u4", (2,))]
    fields += [("shard", "<u4"), *((role, _PLACE) for role in _MEMBERS)]
    table = np.zeros(len(samples), dtype=fields)
    kind_code, scene_code = ({name: code for code, name in enumerate(names)} for names in (kinds, scenes))
    for target, (number, row) in zip(table, samples, strict=True):
        target["key"], target["kind"], target["scene"] = row["key"], kind_code[row["kind"]], scene_code[row["scene"]]
        target["size"], target["shard"] = row["size"], number
        for name, place in row["members"].items():
            target[name.partition(".")[0]] = tuple(place)
    return table


def _contents(indices: list[dict[str, Any]]) -> str:
    lines = "".join(f"{index['shard']} {index['sha256']}\n" for index in indices)
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not is_prepared(folder):
        unfinished = (folder / PLAN_FILE).is_file()
        what = "its preparation is not finished; run it again" if unfinished else "give the folder of `data prepare`"
        raise DataError(f"{folder} holds no {MANIFEST_FILE}; {what}")
    manifest = _read_json(folder / MANIFEST_FILE)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder / MANIFEST_FILE} has format {manifest.get('format')!r}, not {FORMAT!r}; prepare the data again"
        )
    return manifest


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after)
        elif before != after:
            yield f"{key}: {before!r:.60} then, {after!r:.60} now"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _decode_rgb(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _save_array(path: Path, table: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, table)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); delete it and prepare the data again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; delete it and prepare the data again")
    return content


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


class _CountedFile:
    """What tarfile writes to: counts and hashes on the way."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self.position = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.position += len(data)
        return len(data)

    def tell(self) -> int:
        return self.position
