# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is: a row that says how it is stored and which pixels count, and access to its samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

from openmarigold.data.archives import Archive
from openmarigold.data.arrays import load_npy
from openmarigold.errors import DataError, ImageError, one_line
from openmarigold.evaluation.benchmark_readers import Decoder, Entry, Lister, NoDepthScaleError
from openmarigold.images.photo import as_rgb

Window: TypeAlias = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """How a benchmark is stored and which pixels of it count."""

    name: str
    title: str
    list_entries: Lister
    decode: Decoder
    unit: str
    """What the depth files hold, in words."""
    min_depth: float
    max_depth: float
    """Range of valid depth [m], exclusive; aligned predictions are clipped to it."""
    max_depth_by_kind: Mapping[str, float] = field(default_factory=dict)
    use_range: bool = True
    """False: only the data set's own mask says what is valid."""
    window: Callable[[int, int], Window] | None = None
    """Part of the (cropped) image that counts."""
    crop: Callable[[int, int], Window] | None = None
    """Part of the image that is predicted and scored."""
    processing_resolution: int
    """Longer side that the paper's networks see [px]; 0: the image's own size."""
    max_fit_width: int | None = None
    """Columns that the fit of scale and shift uses, at most."""
    resize_rgb: bool = False
    """Photos of another size than the depth are resized to it."""
    expected_count: int | None
    average_over_places: bool = False
    """Mean over the images of a place, then over places; False: over images."""
    files: str
    """Where the files come from and what to put where, with {root} for the folder of the data."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSample:
    """A photo and its measured depth [m], cropped as the benchmark asks; True in `valid_mask` = use this pixel."""

    name: str
    kind: str
    place: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float64[np.ndarray, "h w"]
    valid_mask: Bool[np.ndarray, "h w"]
    min_depth: float
    max_depth: float
    max_fit_width: int | None = None
    full_size: tuple[int, int]
    """Height and width before the crop."""
    crop: Window | None = None


class Benchmark:
    """A benchmark's images, in random order and from any thread."""

    def __init__(self, row: BenchmarkRow, archive: Archive, *, allow_partial: bool = False) -> None:
        """Lists the images.

        Raises:
            DataError: there are more or fewer than the row expects (unless `allow_partial`), or none.
        """
        self.row, self.archive = row, archive
        listing = row.list_entries(archive)
        self.entries: list[Entry] = listing.entries
        names = {entry.name for entry in self.entries}
        if len(names) < len(self.entries):
            raise DataError(f"{archive.location} holds images twice, extracted and in an archive; keep one of the two")
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

    def sample(self, entry: Entry, files: Mapping[str, bytes] | None = None) -> BenchmarkSample:
        """One image with its measured depth, from its files' content where that has been read already.

        Raises:
            DataError: a file is missing or damaged, sizes differ, or no pixel has a measured depth.
            ImageError: the photo cannot be read.
        """
        files = self.files(entry) if files is None else files
        row, depth_path = self.row, self._path(entry.files["depth"])
        rgb = self._rgb(entry, files["rgb"])
        try:
            depth, mask = row.decode(files, rgb.shape[:2])
        except NoDepthScaleError as error:
            path = self._path(entry.files["meta"])
            raise DataError(f"{path} has no number depth_scale, the values per meter") from error
        except Exception as error:
            # Decoders raise whatever damaged bytes lead to, as Pillow's and NumPy's do.
            raise DataError(
                f"{depth_path} is missing or damaged ({one_line(error)}); get the benchmark again"
            ) from error
        if row.resize_rgb and rgb.shape[:2] != depth.shape:
            size = depth.shape[::-1]
            rgb = np.array(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        if depth.shape != rgb.shape[:2]:
            raise DataError(
                f"{depth_path} is {list(depth.shape)} and its photo {list(rgb.shape[:2])}; sizes must be equal"
            )
        full_size = (depth.shape[0], depth.shape[1])
        crop = None if row.crop is None else row.crop(*full_size)
        if crop is not None:
            rgb, depth = np.ascontiguousarray(rgb[crop]), np.ascontiguousarray(depth[crop])
            mask = None if mask is None else mask[crop]
        max_depth = row.max_depth_by_kind.get(entry.kind, row.max_depth)
        valid_mask = depth > 0
        if row.use_range:
            valid_mask &= (depth > row.min_depth) & (depth < max_depth)
        if mask is not None:
            valid_mask &= mask
        if row.window is not None:
            inside = np.zeros(depth.shape, dtype=bool)
            inside[row.window(*depth.shape)] = True
            valid_mask &= inside
        if not valid_mask.any():
            raise DataError(f"{depth_path} has no valid pixel; leave the image out of the manifest")
        return BenchmarkSample(
            name=entry.name,
            kind=entry.kind,
            place=entry.place,
            rgb=rgb,
            depth=depth,
            valid_mask=valid_mask,
            min_depth=row.min_depth,
            max_depth=max_depth,
            max_fit_width=row.max_fit_width,
            full_size=full_size,
            crop=crop,
        )

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
            # Pillow's decoders raise whatever damaged bytes lead to.
            raise ImageError(f"{path} is damaged or cannot be read: {one_line(error)}") from error

    def _path(self, name: str) -> str:
        return f"{self.archive.location}/{name}"


def hash_of_files(files: Mapping[str, bytes]) -> str:
    """SHA-256 over the content of an image's files."""
    digest = hashlib.sha256()
    for role in sorted(files):
        digest.update(f"{role} {len(files[role])}\n".encode())
        digest.update(files[role])
    return digest.hexdigest()
