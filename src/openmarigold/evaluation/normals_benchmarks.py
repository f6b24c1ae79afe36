# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of surface normals: DSINE's evaluation sets, and the copies that Marigold's scripts read.

Both have the same names: `<photo>_img.<suffix>` and `<photo>_normal.<suffix>`. DSINE's files hold the frame "lub", as
PNG pictures (a component is level / white * 2 - 1, black is unknown) or EXR files (shorter than 0.5 is unknown). The
copies are .npy [h, w, 3] in the frame "rub", unknown where they are 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import numpy as np

from openmarigold.data.archives import Archive
from openmarigold.data.arrays import load_npy
from openmarigold.errors import DataError
from openmarigold.evaluation.benchmark import BenchmarkRow
from openmarigold.evaluation.benchmark_readers import Decoded, Entry, Lister, Listing, matches
from openmarigold.evaluation.map_files import exr_map_of_bytes
from openmarigold.geometry import convert_frame, unit_vectors
from openmarigold.images.png import read_png
from openmarigold.modalities import NORMALS

_NORMALS = NORMALS.maps[0]
_SHORTEST_IN_EXR = 0.5
_SUFFIXES = (".npy", ".png", ".exr")


def list_dsine(folder: str, *, kind: str, place: Callable[[str], str]) -> Lister:
    """Photos `<folder>/<name>_img.png` (or .jpg) with `<name>_normal.npy`, `.png` or `.exr`, below any folders.

    Args:
        folder: a pattern of the folders that hold the photos.
        kind: of all images.
        place: from the photo's path without its suffix and `_img`.
    """
    pattern = re.compile(rf"(?:^|/)({folder}/[^/]+)_img\.(?:png|jpg)$")

    def list_entries(archive: Archive) -> Listing:
        listing = Listing()
        for photo, match in matches(archive, pattern):
            stem = photo.rpartition("_img.")[0]
            candidates = [f"{stem}_normal{suffix}" for suffix in _SUFFIXES]
            normals = next((file for file in candidates if file in archive.names), None)
            if normals is None:
                listing.missing.append(candidates[1])
                continue
            files = {"rgb": photo, _NORMALS.name: normals}
            listing.entries.append(
                Entry(name=f"{match.group(1)}_img", kind=kind, place=place(match.group(1)), files=files)
            )
        return listing

    return list_entries


def decode_dsine(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
    """Unit normals in the frame "rub", (0, 0, 0) where the file has none."""
    content = files[_NORMALS.name]
    if content[:6] == b"\x93NUMPY":
        normals, frame = load_npy(content), "rub"
        known = np.square(normals.astype(np.float64)).sum(axis=-1) > 0 if normals.ndim == 3 else None
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        levels, frame = read_png(content), "lub"
        normals = levels.astype(np.float64) / np.iinfo(levels.dtype).max * 2 - 1
        known = levels.astype(np.int64).sum(axis=-1) > 0 if levels.ndim == 3 else None
    else:
        try:
            normals, frame = exr_map_of_bytes(content, _NORMALS), "lub"
        except DataError as error:
            raise ValueError("no .npy, .png or .exr file of three channels") from error
        known = np.sqrt(np.square(normals.astype(np.float64)).sum(axis=-1)) > _SHORTEST_IN_EXR
    if known is None or normals.shape[2] != 3:
        raise ValueError(f"shape {list(normals.shape)}; [h, w, 3] is needed")
    vectors = convert_frame(unit_vectors(normals.astype(np.float64), axis=-1), frame, "rub", axis=-1)
    return {_NORMALS.name: np.where(known[..., None], vectors, 0.0)}, None


_SOURCE = """\
DSINE's evaluation sets (dsine_eval.zip), whose address is given in https://github.com/baegwangbin/DSINE, extracted:"""
_COPY = """\
or the copies that Marigold's evaluation reads (.npy, https://github.com/prs-eth/Marigold, script/normals):"""


def _row(
    name: str,
    title: str,
    count: int,
    folder: str,
    example: str,
    stored: str,
    *,
    copied: bool,
    kind: str = "indoor",
    place: Callable[[str], str],
) -> BenchmarkRow:
    suffix = "exr" if "EXR" in stored else "png"
    files = f"{_SOURCE}\n  {{root}}/{example}_img.png, {PurePosixPath(example).name}_normal.{suffix}"
    if copied:
        files += f"\n{_COPY}\n  {{root}}/{example}_img.png, {PurePosixPath(example).name}_normal.npy"
    return BenchmarkRow(
        name=f"{name}-normals",
        title=title,
        modality=NORMALS,
        list_entries=list_dsine(folder, kind=kind, place=place),
        decode=decode_dsine,
        unit=stored,
        min_value=-np.inf,
        max_value=np.inf,
        expected_count=count,
        files=files,
    )


ROWS = (
    _row(
        "nyuv2",
        "NYU Depth v2, test split, normals of GeoNet",
        654,
        r"test",
        "nyuv2/test/000000",
        "8-bit PNG",
        copied=True,
        place=lambda stem: stem,  # the files do not state the scene
    ),
    _row(
        "scannet",
        "ScanNet, 300 frames, normals of FrameNet",
        300,
        r"scene\d+_\d+",
        "scannet/scene0532_00/000000",
        "8-bit PNG",
        copied=True,
        place=lambda stem: stem.split("_")[0],
    ),
    _row(
        "ibims",
        "iBims-1, normals of fitted planes",
        100,
        r"ibims",
        "ibims/ibims/corridor_01",
        "EXR",
        copied=True,
        place=lambda stem: stem,
    ),
    _row(
        "sintel",
        "Sintel, normals of fitted planes",
        1064,
        r"[a-z]+_\d+",
        "sintel/alley_1/frame_0001",
        "EXR",
        copied=False,
        kind="film",
        place=lambda stem: stem.split("/")[0],
    ),
    _row(
        "vkitti",
        "Virtual KITTI 2, 1,000 frames, normals of fitted planes",
        1000,
        r"Scene\d+",
        "vkitti/Scene01/000000",
        "16-bit PNG",
        copied=False,
        kind="outdoor",
        place=lambda stem: stem.split("/")[0],
    ),
)
"""Benchmarks of DSINE. Its set OASIS is not read: the files are pickles, which can run any code."""
