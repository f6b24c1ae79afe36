# SPDX-License-Identifier: Apache-2.0
"""From a raw data set to a prepared one: frames are read, checked and written to shards, by several processes.

A reader lists the frames of one raw data set and reads the RGB and maps of a frame. Everything else is here. The bytes
of a shard depend on the frames and the settings only, not on the number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from openmarigold.data.archives import Archive
from openmarigold.data.decoding import FrameDefectError, decode_image, size_text
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, Rejection, ShardWriter
from openmarigold.data.statistics import write_meta
from openmarigold.data.units import UnitEngine, run_units
from openmarigold.errors import (
    CheckpointError,
    DataError,
    InvalidValueError,
    MissingExtraError,
    OutputError,
    one_line,
)
from openmarigold.files import only_run
from openmarigold.modalities import DEPTH, find_modality
from openmarigold.modalities.modality import Maps, Modality


@dataclass(frozen=True, kw_only=True)
class RawDataSet:
    """Facts about a raw data set that its users need."""

    name: str
    title: str
    num_images: str
    size: str
    license: str
    attribution: str
    where: str
    """Where the files come from and what to put where; `{root}` is the folder of the user's data."""


@dataclass(frozen=True, kw_only=True)
class RawFrame:
    """One picture of a raw data set, not read yet.

    Attributes:
        name: in messages, lists and reports: its path in the source.
        key, kind, scene: of the sample it becomes.
        files: names of its files in the source, by what they hold.
        fields: what the reader knows about it (camera, variant, number).
    """

    name: str
    key: str
    kind: str
    scene: str
    files: Mapping[str, str]
    fields: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The frames of a raw data set, those that are missing, and notes for the user."""

    frames: list[RawFrame]
    rejected: list[Rejection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    archive: Archive | None = None
    """What the frames' files are in, by which shards whose files changed are made again; None: they are kept."""

    def files_sha256(self, frames: Iterable[RawFrame]) -> str | None:
        """A hash over sizes and times of the files on disk that frames are in; None if these are not known."""
        if self.archive is None:
            return None
        names = {name for frame in frames for name in (frame.name, *frame.files.values())} & self.archive.names
        lines = []
        for path in sorted({f"{self.archive.file_of(name)}" for name in names}):
            with contextlib.suppress(OSError):
                found = os.stat(path)
                lines.append(f"{Path(path).name} {found.st_size} {found.st_mtime_ns}\n")
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


RawSample = tuple[UInt8[np.ndarray, "h w 3"] | bytes, Maps, dict[str, Any]]


@runtime_checkable
class RawReader(Protocol):
    """A raw data set. Readers are pickled for other processes, so they hold no open files."""

    name: str
    split: str
    modality: str
    """Name of the modality that its maps are for, which also checks them."""
    encodings: dict[str, MapEncoding]
    """How its maps are stored, by name."""
    valid_range: tuple[float, float]
    """Values (of depth in meters) that training may use, exclusive at both ends."""

    def settings(self) -> dict[str, Any]:
        """Everything that its samples depend on, except the frames."""
        ...

    def list_frames(self) -> Listing:
        """The frames, in a fixed order.

        Raises:
            DataError: the source is damaged or of another kind.
        """
        ...

    def read(self, frame: RawFrame) -> RawSample:
        """RGB (or a JPEG file's bytes), the maps (`depth` planar [m], 0 = none), and more for the sample's .json.

        Raises:
            FrameDefectError: the frame is defective.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FrameFilter:
    """Thresholds for frames; those below are left out, which is not an error.

    Attributes:
        min_valid: least share of pixels that can be used.
        min_brightness: least mean of RGB, [0, 1].
        max_invalid: largest share of pixels without any value (depth 0), in whatever range values may be used.
        min_depth_range: least difference of the largest and the smallest value of a map of one channel (depth [m]).
        min_rgb_range: least difference of the largest and the smallest value of RGB, [0, 255].
    """

    min_valid: float = 0.05
    min_brightness: float = 0.0
    max_invalid: float = 1.0
    min_depth_range: float = 0.0
    min_rgb_range: int = 0

    def __post_init__(self) -> None:
        for name in ("min_depth_range", "min_rgb_range"):
            if not getattr(self, name) >= 0:
                raise InvalidValueError(f"{name}={getattr(self, name)} must be 0 or more")
        for name in ("min_valid", "min_brightness", "max_invalid"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidValueError(f"{name}={getattr(self, name)} must be in [0, 1]")

    def apply(
        self, rgb: UInt8[np.ndarray, "h w 3"], maps: Maps, limits: tuple[float, float], modality: Modality = DEPTH
    ) -> None:
        """Checks a frame of a modality whose maps are usable within `limits` (exclusive).

        Raises:
            FrameDefectError: no usable pixel, constant maps or colors, or a threshold that is not reached.
        """
        for name, values in maps.items():
            if rgb.shape[:2] != values.shape[:2]:
                raise FrameDefectError("wrong size", f"rgb is {size_text(rgb)}, {name} {size_text(values)}")
        if int(rgb.min()) == int(rgb.max()):
            raise FrameDefectError("constant color", f"every value is {rgb.min()}")
        valid, title = modality.valid_mask(maps, limits), modality.title
        share = float(valid.mean())
        if share == 0:
            raise FrameDefectError(f"no {title}", f"no pixel between {limits[0]:g} and {limits[1]:g}")
        if share < self.min_valid:
            raise FrameDefectError(f"too little {title}", f"{share:.4f} of the pixels have one", is_error=False)
        try:
            with np.errstate(over="ignore"):  # where values are far apart
                modality.to_target(maps, valid, "far")
        except DataError as error:
            raise FrameDefectError(f"constant {title}", str(error)) from error
        brightness = float(rgb.mean()) / 255
        if brightness < self.min_brightness:
            raise FrameDefectError("too dark", f"mean brightness {brightness:.4f}", is_error=False)
        self._check_ranges(rgb, maps, modality)

    def _check_ranges(self, rgb: UInt8[np.ndarray, "h w 3"], maps: Maps, modality: Modality) -> None:
        known = modality.valid_mask(maps, (0.0, float("inf")))
        invalid, rgb_range = float((~known).mean()), int(rgb.max()) - int(rgb.min())
        if invalid > self.max_invalid:
            raise FrameDefectError("too many holes", f"{invalid:.4f} of the pixels have no value", is_error=False)
        for name, values in maps.items():
            spread = float(np.ptp(values[known])) if values.ndim == 2 and known.any() else float("inf")
            if spread < self.min_depth_range:
                raise FrameDefectError("small range", f"{name} spans {spread:.3f}", is_error=False)
        if rgb_range < self.min_rgb_range:
            raise FrameDefectError("small range", f"rgb spans {rgb_range}", is_error=False)

    def record(self) -> dict[str, Any]:
        """The thresholds for the plan of a set; as in earlier versions where newer ones are not used."""
        newer = FrameFilter()
        return {
            name: value
            for name, value in asdict(self).items()
            if name in ("min_valid", "min_brightness") or value != getattr(newer, name)
        }


PUBLISHED_FILTER = FrameFilter(max_invalid=0.03, min_depth_range=0.5, min_rgb_range=10)
"""By which the authors chose their frames of Hypersim's training split (prs-eth/Marigold, issue 158)."""
PUBLISHED_COUNT = 53_885


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What `prepare` did."""

    manifest: dict[str, Any]
    num_shards_kept: int
    """Shards that an earlier run had finished."""


def prepare(
    reader: RawReader,
    destination: Path,
    *,
    frame_filter: FrameFilter | None = None,
    limit: int | None = None,
    shard_size: int = 256,
    workers: int = 1,
    engine: UnitEngine | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Write a prepared data set to `destination`, or continue an interrupted run with the same settings.

    Args:
        limit: only the first so many frames.
        shard_size: frames a shard.
        workers: processes; 1 = this one.
        engine: makes the shards instead, such as `batch.ray_engine.RayEngine`; its workers must see the same files.
        facts: more for the manifest.
        progress: called with the frames done and their number.
        note: called with lines for the user.

    Raises:
        DataError: the source has no frames, or the folder holds something else.
        OutputError: the destination cannot be written, or another run writes it.
    """
    for name, value in (("limit", limit), ("shard_size", shard_size), ("workers", workers)):
        if value is not None and value < 1:
            raise InvalidValueError(f"{name}={value} must be at least 1")
    frame_filter = frame_filter or FrameFilter()
    listing = reader.list_frames()
    list(map(note, listing.notes))
    frames = listing.frames[:limit]
    if not frames:
        raise DataError(f"{reader.name}: the source has no frame of the selection; see `openmarigold data where`")
    settings = {
        **reader.settings(),
        **frame_filter.record(),
        "limit": limit,
        "shard_size": shard_size,
        "frames": _names_sha256([*frames, *listing.rejected]),
    }
    about: Any = {"name": reader.name, "split": reader.split, "encodings": reader.encodings}
    writer = ShardWriter(destination, **about, settings=settings)
    with only_run(destination):
        writer.begin()
        units = _units(frames, listing, shard_size)
        todo = [unit for unit in units if not writer.is_done(unit.number, unit.sources)]
        writer.reopen(bool(todo))
        total, kept = len(frames), len(frames) - sum(len(unit.frames) for unit in todo)
        progress(kept, total)
        task = _Task(reader, writer, frame_filter)
        run_units(task, todo, workers=workers, engine=engine, progress=lambda done: progress(kept + done, total))
        low, high = reader.valid_range
        valid_range = [low, high if np.isfinite(high) else None]
        manifest = writer.finish(len(units), {"valid_range": valid_range, **(facts or {})})
        write_meta(destination)
    return Prepared(manifest=manifest, num_shards_kept=len(units) - len(todo))


def _units(frames: Sequence[RawFrame], listing: Listing, shard_size: int) -> list[_Unit]:
    """One unit for each shard; the first one also has the missing frames."""
    parts = [list(frames[start : start + shard_size]) for start in range(0, len(frames), shard_size)]
    return [
        _Unit(number, part, [] if number else listing.rejected, listing.files_sha256(part))
        for number, part in enumerate(parts)
    ]


def _names_sha256(items: Sequence[RawFrame | Rejection]) -> str:
    # Names may have bytes that are not UTF-8, which Python keeps as surrogates.
    names = "".join(f"{item.name}\n" for item in items).encode("utf-8", "surrogatepass")
    return hashlib.sha256(names).hexdigest()


def read_list(path: Path) -> list[str]:
    """Lines of a list of frames, without empty ones and comments.

    Raises:
        DataError: it cannot be read or is empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); --list is a text file, a frame a line") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise DataError(f"{path} lists no frame; --list is a text file, a frame a line")
    return lines


def damaged_archives(archive: Archive) -> list[Rejection]:
    """A rejection for each part of the source that is damaged as a whole."""
    return [
        Rejection(name=name, reason="damaged archive", detail=what) for name, what in sorted(archive.damage.items())
    ]


@dataclass(frozen=True)
class _Unit:
    number: int
    frames: list[RawFrame]
    rejected: list[Rejection]
    sources: str | None
    """Hash of the files that it is made from, before they are read."""


@dataclass(frozen=True)
class _Task:
    reader: RawReader
    writer: ShardWriter
    frame_filter: FrameFilter

    def run(self, unit: _Unit, tick: Callable[[], None]) -> None:
        self.writer.write(unit.number, itertools.chain(unit.rejected, self._items(unit, tick)), unit.sources)

    def _items(self, unit: _Unit, tick: Callable[[], None]) -> Iterator[NewSample | Rejection]:
        for frame in unit.frames:
            try:
                yield self._sample(frame)
            except FrameDefectError as defect:
                yield Rejection(name=frame.name, reason=defect.reason, detail=defect.detail, is_error=defect.is_error)
            except (CheckpointError, MissingExtraError, OutputError):  # of which no frame is the cause
                raise
            except Exception as error:  # noqa: BLE001 - one damaged file never ends the run
                yield Rejection(name=frame.name, reason="damaged", detail=one_line(error))
            tick()

    def _sample(self, frame: RawFrame) -> NewSample:
        rgb, maps, info = self.reader.read(frame)
        pixels = np.asarray(decode_image(rgb, frame.name).convert("RGB")) if isinstance(rgb, bytes) else rgb
        self.frame_filter.apply(pixels, maps, self.reader.valid_range, find_modality(self.reader.modality))
        return NewSample(key=frame.key, kind=frame.kind, scene=frame.scene, rgb=rgb, maps=maps, info=info)
