# SPDX-License-Identifier: Apache-2.0
"""How each benchmark of depth stores its images and maps: a function that lists them and one that decodes the maps.

A lister turns an archive into entries, files that belong together. A decoder turns an entry's bytes into maps, float64,
and a mask where the data set has one of its own. Depth is in meters, 0 where nothing was measured.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64
from PIL import Image

from openmarigold.data.archives import Archive
from openmarigold.data.arrays import load_npy
from openmarigold.errors import DataError
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
    """What a lister found, and the listed files that are not there."""

    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


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
    r"""Photos whose paths fit a pattern, each with other files; name and place are made of the pattern's groups.

    Args:
        pattern: of the photos' paths.
        files: paths by role, of the groups too, such as `\1/depth.png`.
        name: of the image.
        kind: of all images.
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
            entry = Entry(name=its_name, kind=kind, place=match.expand(place), files={"rgb": photo, **others})
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

    def list_entries(archive: Archive) -> Listing:
        def place(rgb: str) -> str:
            return next((part for part in PurePosixPath(rgb).parts if "_drive_" in part), "kitti")

        return _listed(archive, list_names, kind="outdoor", place=place)

    return list_entries


def list_scannet(*list_names: str) -> Lister:
    """A list of `<scene>/color/<n>.jpg <scene>/depth/<n>.png`; the scans of a room, `scene0000_*`, are one place."""

    def list_entries(archive: Archive) -> Listing:
        return _listed(archive, list_names, kind="indoor", place=lambda rgb: rgb.split("/")[0].split("_")[0])

    return list_entries


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


def list_diode(archive: Archive) -> Listing:
    """`indoors/scene_*/scan_*/X.png`, and outdoor, with `X_depth.npy` and `X_depth_mask.npy`; not those of train/."""
    pattern = re.compile(r"(?:^|/)((indoors|outdoor)/(scene_\d+)/scan_\d+/[^/]+)\.png$")
    listing = Listing()
    for name, match in matches(archive, pattern):
        if "train/" in name[: match.start(1)]:
            continue
        stem, kind, scene = match.groups()
        base = name.removesuffix(".png")
        files = {"rgb": name, "depth": f"{base}_depth.npy", "mask": f"{base}_depth_mask.npy"}
        absent = [file for file in files.values() if file not in archive.names]
        if absent:
            listing.missing.extend(absent)
        else:
            listing.entries.append(Entry(name=stem, kind=kind.rstrip("s"), place=scene, files=files))
    return listing


def matches(archive: Archive, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Names that fit a pattern, in order."""
    for name in sorted(archive.names):
        match = pattern.search(name)
        if match is not None:
            yield name, match


def _listed(archive: Archive, list_names: tuple[str, ...], *, kind: str, place: Callable[[str], str]) -> Listing:
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
