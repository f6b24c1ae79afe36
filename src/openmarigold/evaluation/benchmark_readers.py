# SPDX-License-Identifier: Apache-2.0
"""How each benchmark of depth stores its images and maps: a function that lists them and one that decodes the maps.

A lister turns an archive into entries, files that belong together. A decoder turns an entry's bytes into maps, float64,
and a mask where the data set has one of its own. Depth is in meters, 0 where nothing was measured.

NYU Depth v2's official file, `nyu_depth_v2_labeled.mat`, is HDF5 inside (extra `data`). MATLAB stores the last axis
first, so HDF5 shows `images` as [n, 3, w, h] and `rawDepths` as [n, w, h]; `scenes` is a list of references to strings
of 16-bit characters. Image k of MATLAB is row k - 1.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64
from PIL import Image

from openmarigold.data.archives import Archive
from openmarigold.data.arrays import Hdf5Archive, hdf5_dataset, load_npy
from openmarigold.errors import DataError, needs_extra, one_line
from openmarigold.modalities.protocol import Maps


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of a benchmark: its unique name, and its file in each role (rgb, mask, meta, and the names of maps)."""

    name: str
    kind: str
    place: str
    files: Mapping[str, str]


@dataclass
class Listing:
    """What a lister found, the listed files that are not there, and notes for the user."""

    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Lister: TypeAlias = Callable[[Archive], Listing]
Decoded: TypeAlias = tuple[Maps, Bool[np.ndarray, "h w"] | None]
Decoder: TypeAlias = Callable[[Mapping[str, bytes], tuple[int, int]], Decoded]


# --- Listers


def list_photos(
    pattern: str,
    files: Mapping[str, str],
    *,
    name: str,
    kind: str,
    place: str,
    listed: tuple[str, Callable[[str], str]] | None = None,
) -> Lister:
    r"""Photos whose paths fit a pattern, each with other files; the pattern's groups give name, kind and place.

    Args:
        pattern: of the photos' paths.
        files: paths by role, of the groups too, such as `\1/depth.png`.
        name: of the image.
        kind: of the image.
        place: of the image.
        listed: a list file, which may lie below any folders, and the name of the image that a line of it means; only
            these images are taken.
    """

    def list_entries(archive: Archive) -> Listing:
        listing = Listing()
        lines = None if listed is None else {listed[1](line): line for line in _lines(archive, listed[0])}
        for photo, match in matches(archive, re.compile(pattern)):
            its_name = match.expand(name)
            if lines is not None and its_name not in lines:
                continue
            others = {role: match.expand(path) for role, path in files.items()}
            if absent := [path for path in others.values() if path not in archive.names]:
                listing.missing += absent
                continue
            entry = Entry(
                name=its_name, kind=match.expand(kind), place=match.expand(place), files={"rgb": photo, **others}
            )
            listing.entries.append(entry)
        there = {entry.name for entry in listing.entries}
        listing.missing += [line for its_name, line in (lines or {}).items() if its_name not in there]
        return listing

    return list_entries


def _lines(archive: Archive, name: str) -> list[str]:
    """The lines of a list, which may lie below any folders."""
    found = sorted(other for other in archive.names if f"/{other}".endswith(f"/{name}"))
    if not found:
        raise DataError(f"{archive.location} holds no list {name}; put it there, one frame a line")
    text = archive.read(found[0]).decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def list_nyuv2(split: str) -> Lister:
    """`<split>/<scene>/rgb_0001.png` and `depth_0001.png`; .npy from the official file."""
    return list_photos(
        rf"(?s)^(.*/|)({split}/([^/]+)/)rgb_(\d+)\.(png|npy)$",
        {"depth": r"\1\2depth_\4.\5"},
        name=r"\2rgb_\4",
        kind="indoor",
        place=r"\3",
    )


def list_kitti(*list_names: str) -> Lister:
    """A list of `<raw image> <annotated depth> <focal length>`; depth "None" is left out, as it was never annotated."""

    def place(rgb: str) -> str:
        return next((part for part in PurePosixPath(rgb).parts if "_drive_" in part), "kitti")

    return partial(_listed, list_names=list_names, kind="outdoor", place=place)


def list_scannet(*list_names: str) -> Lister:
    """A list of `<scene>/color/<n>.jpg <scene>/depth/<n>.png`; the scans of a room, `scene0000_*`, are one place."""
    return partial(_listed, list_names=list_names, kind="indoor", place=lambda rgb: rgb.split("/")[0].split("_")[0])


def list_eth3d(archive: Archive) -> Listing:
    """`<scene>/images/dslr_images/X.JPG` with `<scene>/ground_truth_depth/dslr_images/X.JPG`, below any folders."""
    depth_pattern = re.compile(r"(?:^|/)([^/]+)/ground_truth_depth/dslr_images/([^/]+)$")
    depths = {match.groups(): name for name, match in matches(archive, depth_pattern)}
    rgb_pattern = re.compile(r"(?:^|/)([^/]+)/images/dslr_images/([^/]+)\.(?i:jpg)$")
    listing = Listing()
    for name, match in matches(archive, rgb_pattern):
        scene, stem = match.groups()
        depth = depths.get((scene, f"{stem}{PurePosixPath(name).suffix}"))
        if depth is None:
            listing.missing.append(f"{scene}/ground_truth_depth/dslr_images/{PurePosixPath(name).name}")
            continue
        files = {"rgb": name, "depth": depth}
        listing.entries.append(Entry(name=f"{scene}/{stem}", kind="mixed", place=scene, files=files))
    return listing


# `indoors/scene_*/scan_*/X.png`, and outdoor, with `X_depth.npy` and `X_depth_mask.npy`; not those of train/.
list_diode = list_photos(
    r"(?s)^((?:(?!train/).)*/|)((indoor(?=s/)|outdoor(?=/))s?/(scene_\d+)/scan_\d+/[^/]+)\.png$",
    {"depth": r"\1\2_depth.npy", "mask": r"\1\2_depth_mask.npy"},
    name=r"\2",
    kind=r"\3",
    place=r"\4",
)


def matches(archive: Archive, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Names that fit a pattern, in order."""
    for name in sorted(archive.names):
        match = pattern.search(name)
        if match is not None:
            yield name, match


def _listed(archive: Archive, *, list_names: tuple[str, ...], kind: str, place: Callable[[str], str]) -> Listing:
    """Pairs of a list file, whose paths may lie below further folders of the archive."""
    found = sorted(name for name in archive.names if PurePosixPath(name).name in list_names)
    if not found:
        raise DataError(
            f"{archive.location} holds no list {' or '.join(list_names)}; put it there, one `rgb depth` a line"
        )
    listing = Listing()
    by_tail: dict[int, dict[str, str]] = {}

    def locate(path: str) -> str | None:
        if path in archive.names:
            return path
        parts = path.count("/") + 1
        if parts not in by_tail:
            by_tail[parts] = {"/".join(name.split("/")[-parts:]): name for name in archive.names}
        return by_tail[parts].get(path)

    for line in archive.read(found[0]).decode("utf-8", errors="replace").splitlines():
        paths = line.split()
        if not paths or paths[1:2] == ["None"]:
            continue
        if len(paths) < 2:
            raise DataError(f"{archive.location}/{found[0]}: {line!r} is not `rgb depth`; get the list again")
        files = {role: locate(path) for role, path in zip(("rgb", "depth"), paths[:2], strict=True)}
        present = {role: name for role, name in files.items() if name is not None}
        if len(present) < len(files):
            listing.missing.extend(path for path, name in zip(paths, files.values(), strict=False) if name is None)
            continue
        name = str(PurePosixPath(paths[0]).with_suffix(""))
        listing.entries.append(Entry(name=name, kind=kind, place=place(paths[0]), files=present))
    return listing


# --- Decoders: they raise ValueError, KeyError or what a library raises for bytes that are not what they should be


def decode_png(values_per_meter: float) -> Decoder:
    """16-bit grays, `values_per_meter` of them a meter. 16-bit .npy files hold the same; float ones meters."""

    def decode(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
        if files["depth"][:6] == b"\x93NUMPY":
            return {"depth": finite_depth(load_npy(files["depth"]))}, None
        return {"depth": read_gray16(files["depth"]) / values_per_meter}, None

    return decode


def decode_float32(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
    """ETH3D: little-endian float32 [m] of the photo's size without a header; inf where nothing was measured."""
    height, width = size
    content = files["depth"]
    if len(content) != 4 * height * width:
        raise ValueError(f"{len(content)} bytes; {4 * height * width} are needed for {height}x{width}")
    return {"depth": finite_depth(np.frombuffer(content, "<f4").reshape(height, width))}, None


def decode_diode(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
    """DIODE: [h, w, 1] float32 [m] and a mask [h, w] of 0 and 1, both .npy."""
    depth, mask = load_npy(files["depth"]), load_npy(files["mask"])
    depth = depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if mask.shape != depth.shape:
        raise ValueError(f"the mask is {list(mask.shape)}, the depth {list(depth.shape)}")
    return {"depth": finite_depth(depth)}, mask.astype(np.float64) > 0.5


def finite_depth(depth: np.ndarray) -> Float64[np.ndarray, "h w"]:
    """float64, with 0 in the place of values that are not finite."""
    if depth.ndim != 2 or not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(f"{depth.dtype} of shape {list(depth.shape)} is not a depth map")
    return np.where(np.isfinite(depth), depth, 0.0).astype(np.float64)


def read_gray16(content: bytes) -> Float64[np.ndarray, "h w"]:
    """The levels of a PNG of 16-bit grays."""
    with Image.open(io.BytesIO(content)) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"Pillow mode {image.mode}, not 16-bit grays")
        return np.asarray(image).astype(np.float64)


MAT_NAME = "nyu_depth_v2_labeled.mat"
NUM_LABELED = 1449
_LONGEST_NAME = 1000
# Numbers, from 1, of the 654 images of the official test split, which Eigen et al. 2014 evaluate on.
TEST_SPLIT = """
1-2 9 14-18 21 28-43 46-47 56-57 59-63 76-79 84-91 117-119 125-129 131-134 137 153-155 167-169 171-176 180-202 207-212
220-222 250 264 271-273 279-285 296-302 310-312 315-317 325-335 351-352 355-364 384-390 395-397 411-414 430-435 441-448
462-466 469-477 508-513 515-526 531-533 537-539 549-551 555-571 579-583 591-594 603-607 612-613 617-621 633-638 644-645
650-651 656-658 663-664 668-673 676-681 686-690 693-694 697-699 706-713 717-718 724-728 731-734 743-744 759-787 800-804
810-814 821-823 833-846 850-852 857-862 869-871 906-908 917-919 926-928 932-935 945-947 959-962 965-967 970-977 991-995
1001-1004 1010-1012 1021-1023 1032-1034 1038-1039 1048-1049 1052-1053 1057-1058 1075-1084 1088-1096 1098-1104 1106-1109
1117-1119 1123-1131 1135-1136 1144-1158 1162-1167 1170-1171 1174-1176 1179-1184 1192-1196 1201-1212 1216-1220 1226-1230
1233-1235 1247-1250 1254-1265 1275-1280 1285-1295 1297-1299 1302-1308 1314-1315 1329-1332 1335-1340 1347-1349 1353-1356
1364-1365 1368-1369 1384-1391 1394-1401 1407-1414 1421-1424 1430-1433 1441-1449
"""


def split_numbers(split: str) -> list[int]:
    """Numbers, from 1, of the labeled images of "test" or "train".

    >>> len(split_numbers("test")), len(split_numbers("train"))
    (654, 795)
    """
    test: set[int] = set()
    for part in TEST_SPLIT.split():
        first, _, last = part.partition("-")
        test.update(range(int(first), int(last or first) + 1))
    return sorted(test if split == "test" else set(range(1, NUM_LABELED + 1)) - test)


def open_mat(path: Path) -> Hdf5Archive:
    """The labeled set's images as files `<split>/<scene>/rgb_0001.npy` and `.../depth_0001.npy` (uint8; float32 [m]).

    Depth is `rawDepths`, what the sensor measured (0 = nothing), not the in-painted `depths`.

    Raises:
        MissingExtraError: h5py is not installed.
        DataError: the file is damaged or another one.
    """
    with needs_extra("data"):
        import h5py
    try:
        file = h5py.File(path, "r")
        images, depths = (hdf5_dataset(file, name) for name in ("images", "rawDepths"))
        scenes = hdf5_dataset(file, "scenes", kinds="O")
        count, colors, width, height = images.shape
        references = np.asarray(scenes).reshape(-1)
        if colors != 3 or depths.shape != (count, width, height) or len(references) != count:
            raise DataError(f"{path}: images, rawDepths and scenes do not belong together; get it again")
        names = [_text(file[reference]) for reference in references]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not the labeled set of NYU Depth v2 ({one_line(error)}); get it again") from error
    rows: dict[str, Any] = {}
    for split in ("test", "train"):
        for number in split_numbers(split):
            if number <= count:
                folder, row = f"{split}/{names[number - 1]}", number - 1
                rows[f"{folder}/rgb_{number:04d}.npy"] = images, row, lambda values: values.transpose(2, 1, 0)
                rows[f"{folder}/depth_{number:04d}.npy"] = depths, row, lambda values: values.T.astype(np.float32)
    return Hdf5Archive(path, rows)


def _text(target: Any) -> str:
    if target.dtype.kind not in "ui" or target.size > _LONGEST_NAME or target.external or target.is_virtual:
        raise ValueError("the name of a scene is not a text")
    return "".join(map(chr, np.asarray(target).reshape(-1)))
