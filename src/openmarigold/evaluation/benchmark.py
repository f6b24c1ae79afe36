# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: a row describes the storage and the pixels that count; `Benchmark` gives access to the samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from openmarigold.data.archives import Archive
from openmarigold.data.arrays import load_npy
from openmarigold.errors import DataError, ImageError, MissingExtraError, one_line
from openmarigold.evaluation.benchmark_readers import Decoder, Entry, Lister
from openmarigold.evaluation.statistics import ALL_KINDS
from openmarigold.images.photo import as_rgb
from openmarigold.modalities import DEPTH
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.protocol import BenchmarkSample, Maps, Window


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """What a benchmark tells an estimator besides the photo."""

    given: Callable[[BenchmarkSample, Mapping[str, bytes]], Maps]
    """Values `[h w]` at some pixels, 0 at all others, from the sample and its files. Raises what decoders raise, and
    DataError; its text continues the image's name ("has ...")."""
    scored: bool
    """Whether those pixels are scored too."""
    facts: Mapping[str, object]
    """Facts about it in reports, of plain types; runs with other facts are not comparable."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """How a benchmark is stored and which pixels of it count."""

    name: str
    title: str
    modality: Modality = DEPTH
    list_entries: Lister
    decode: Decoder
    unit: str
    """Format and unit of the files of the maps, in words."""
    min_value: float
    max_value: float
    """Range of valid values, exclusive; protocols clip aligned predictions to it."""
    max_value_by_kind: Mapping[str, float] = field(default_factory=dict)
    valid_range: tuple[float, float] | None = None
    """Range that counts instead, exclusive, if the data set's own mask selects the pixels."""
    window: Callable[[int, int], Window] | None = None
    """Part of the (cropped) image that counts."""
    crop: Callable[[int, int], Window] | None = None
    """Part of the image that is predicted and scored."""
    processing_resolution: int = 0
    """Longer side that the paper's networks see [px]; 0: the image's own size."""
    max_fit_width: int | None = None
    """Columns that the fit of scale and shift uses, at most."""
    resize_rgb: Image.Resampling | None = None
    """Photos of another size than the maps are resized to it with this filter."""
    expected_count: int | None
    official_file: str = ""
    """The owner's file of the data set. It is read instead of the folder that holds it."""
    open_official: Callable[[Path], Archive] | None = None
    """Opens that file."""
    stored: str = ""
    """How the maps' files are decoded and which values count, where the set states it outside of an image's files. It
    counts in their hash."""
    reveal: Reveal | None = None
    """What estimators get besides the photo, for depth completion."""
    protocol: str | None = None
    """Name of the protocol if the caller names none. None: the modality's default."""
    average_over_places: bool = False
    """Mean over the images of a place, then over places; False: over images."""
    files: str
    """Where the files come from and what to put where, with {root} for the folder of the data."""

    def max_value_of(self, kind: str) -> float:
        """The upper end of the range for images of a kind, whose capitals do not count."""
        by_kind = self.max_value_by_kind
        return by_kind.get(kind, by_kind.get(kind.casefold(), self.max_value))

    @property
    def given_facts(self) -> Mapping[str, object]:
        """Facts in reports about what estimators may know."""
        return {} if self.reveal is None else self.reveal.facts


class Benchmark:
    """A benchmark's images, in random order and from any thread."""

    def __init__(self, row: BenchmarkRow, archive: Archive, *, allow_partial: bool = False) -> None:
        """Lists the images.

        Raises:
            DataError: there are more or fewer than the row expects (unless `allow_partial`), none, or some of a
                kind with a reserved name.
        """
        self.row, self.archive = row, archive
        listing = row.list_entries(archive)
        self.entries: list[Entry] = listing.entries
        self.notes: tuple[str, ...] = tuple(listing.notes)
        names = {entry.name for entry in self.entries}
        if len(names) < len(self.entries):
            raise DataError(f"{archive.location} holds images twice, extracted and in an archive; keep one of the two")
        kinds = {entry.kind for entry in self.entries}
        if ALL_KINDS in kinds and len(kinds) > 1:
            raise DataError(
                f"{archive.location} has images of the kind {ALL_KINDS!r}, which is the name of the scores over all "
                "kinds; give this kind another name"
            )
        count, expected = len(self.entries), row.expected_count
        self.is_complete = expected is None or count == expected
        absent = f" ({len(listing.missing)} files are missing, such as {listing.missing[0]})" if listing.missing else ""
        absent += "".join(f" ({what})" for what in list(archive.damage.values())[:1])
        if count == 0:
            raise DataError(
                f"{archive.location} holds no image of {row.title}{absent}; see `openmarigold data where {row.name}`"
            )
        if not self.is_complete and not allow_partial:
            raise DataError(
                f"{archive.location} holds {count} images of {row.title}{absent}; {expected} are needed for numbers "
                "that can be compared. Complete it, or give --allow-partial to score what is there"
            )

    def files(self, entry: Entry) -> dict[str, bytes]:
        """The content of an image's files by role.

        Raises:
            DataError: one is missing or cannot be read.
        """
        contents = {}
        for role, name in entry.files.items():
            if name not in self.archive.names:
                raise DataError(f"{self._path(name)} is missing or damaged; get the benchmark again")
            contents[role] = self.archive.read(name)
        return contents

    def hash_of(self, files: Mapping[str, bytes]) -> str:
        """SHA-256 over the content of an image's files, and over what the set states about them elsewhere."""
        return hash_of_files(files, self.row.stored)

    def sample(self, entry: Entry, files: Mapping[str, bytes] | None = None) -> BenchmarkSample:
        """One image with its measured maps, from its files' content where that has been read already.

        Raises:
            DataError: a file is missing or damaged, sizes differ, or no pixel was measured.
            ImageError: the photo cannot be read.
        """
        files = self.files(entry) if files is None else files
        row = self.row
        rgb = self._rgb(entry, files["rgb"])
        maps, mask = self._maps(entry, files, (rgb.shape[0], rgb.shape[1]))
        height, width = next(iter(maps.values())).shape[:2]
        if row.resize_rgb is not None and rgb.shape[:2] != (height, width):
            rgb = np.array(Image.fromarray(rgb).resize((width, height), row.resize_rgb))
        for name, values in maps.items():
            if values.shape[:2] != rgb.shape[:2]:
                path = self._path(entry.files.get(name, _measured_file(entry)))
                raise DataError(
                    f"{path} is {list(values.shape[:2])} and its photo {list(rgb.shape[:2])}; sizes must be equal"
                )
        crop = None if row.crop is None else row.crop(height, width)
        if crop is not None:
            rgb = np.ascontiguousarray(rgb[crop])
            maps = {name: np.ascontiguousarray(values[crop]) for name, values in maps.items()}
            mask = None if mask is None else mask[crop]
        max_value = row.max_value_of(entry.kind)
        valid_mask = row.modality.valid_mask(maps, row.valid_range or (row.min_value, max_value))
        if mask is not None:
            valid_mask = valid_mask & mask
        if row.window is not None:
            inside = np.zeros(valid_mask.shape, dtype=bool)
            inside[row.window(*valid_mask.shape)] = True
            valid_mask = valid_mask & inside
        if not valid_mask.any():
            path = self._path(_measured_file(entry))
            raise DataError(f"{path} has no valid pixel; leave the image out of the manifest")
        sample = BenchmarkSample(
            name=entry.name,
            kind=entry.kind,
            place=entry.place,
            rgb=rgb,
            maps=maps,
            valid_mask=valid_mask,
            min_value=row.min_value,
            max_value=max_value,
            max_fit_width=row.max_fit_width,
            full_size=(height, width),
            crop=crop,
            marks=self._marks(entry, files, (height, width), crop),
        )
        return sample if row.reveal is None else self._revealed(sample, row.reveal, entry, files)

    def _revealed(
        self, sample: BenchmarkSample, reveal: Reveal, entry: Entry, files: Mapping[str, bytes]
    ) -> BenchmarkSample:
        """The sample with what estimators may know of it."""
        with self._decoding(entry.files.get("sparse", _measured_file(entry)), entry.name):
            given = reveal.given(sample, files)
            if wrong := [values.shape for values in given.values() if values.shape != sample.valid_mask.shape]:
                raise ValueError(f"size {list(wrong[0])}, the photo {list(sample.valid_mask.shape)}")
        known = np.logical_or.reduce([values > 0 for values in given.values()])
        if not known.any():
            raise DataError(f"{entry.name} has no given point; leave the image out")
        mask = sample.valid_mask if reveal.scored else sample.valid_mask & ~known
        if not mask.any():
            raise DataError(f"{entry.name} has no pixel besides the given points; leave the image out")
        return replace(sample, given=given, valid_mask=mask)

    def _marks(
        self, entry: Entry, files: Mapping[str, bytes], size: tuple[int, int], crop: Window | None
    ) -> dict[str, Bool[np.ndarray, "h w"]]:
        """Marks that people drew, cropped like the photo: pixels that are lighter than middle gray."""
        marks = {}
        for name in self.row.modality.marks:
            if name not in files:
                continue
            with self._decoding(entry.files[name], entry.name):
                with Image.open(io.BytesIO(files[name])) as image:
                    drawn = as_rgb(image).max(axis=2) > 127
                if drawn.shape != size:
                    raise ValueError(f"size {list(drawn.shape)}, the photo {list(size)}")
            marks[name] = drawn if crop is None else np.ascontiguousarray(drawn[crop])
        return marks

    def _maps(
        self, entry: Entry, files: Mapping[str, bytes], size: tuple[int, int]
    ) -> tuple[Maps, Bool[np.ndarray, "h w"] | None]:
        """The measured maps, and the pixels that count where the data set has a mask of its own."""
        measured = _measured_file(entry)
        with self._decoding(measured, self._path(entry.files.get("meta", measured))):
            return self.row.decode(files, size)

    @contextmanager
    def _decoding(self, name: str, about: str) -> Iterator[None]:
        """Turn errors of decoders into errors that name the file; a `DataError`'s text continues `about`."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{about} {error}") from error
        except MissingExtraError:
            raise
        except Exception as error:
            # Decoders, such as Pillow's and NumPy's, raise many kinds for damaged bytes.
            raise DataError(
                f"{self._path(name)} is missing or damaged ({one_line(error)}); get the benchmark again"
            ) from error

    def _rgb(self, entry: Entry, content: bytes) -> UInt8[np.ndarray, "h w 3"]:
        path = self._path(entry.files["rgb"])
        try:
            if content[:6] == b"\x93NUMPY":
                return as_rgb(load_npy(content))
            with Image.open(io.BytesIO(content)) as image:
                return as_rgb(image)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        except Exception as error:
            # Pillow's decoders raise many kinds for damaged bytes.
            raise ImageError(f"{path} is damaged or cannot be read: {one_line(error)}") from error

    def _path(self, name: str) -> str:
        return f"{self.archive.location}/{name}"


def _measured_file(entry: Entry) -> str:
    """The first file that measured maps come from."""
    return next(name for role, name in entry.files.items() if role not in ("rgb", "mask", "meta"))


def hash_of_files(files: Mapping[str, bytes], stored: str = "") -> str:
    """SHA-256 over the content of an image's files, and over how they are stored (`BenchmarkRow.stored`)."""
    digest = hashlib.sha256()
    for role in sorted(files):
        digest.update(f"{role} {len(files[role])}\n".encode())
        digest.update(files[role])
    digest.update(stored.encode())
    return digest.hexdigest()
