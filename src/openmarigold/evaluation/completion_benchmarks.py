# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of depth completion that the field reports, in their owners' layouts.

Crops, points, filter and pixels that count are those of the published evaluation of Marigold-DC (Viola et al. 2024,
§4.1): MAE and RMSE over all pixels with ground truth, also those whose depth is given, averaged over images.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from openmarigold.data.archives import Archive, missing
from openmarigold.data.arrays import hdf5_dataset, hdf5_values, load_npy
from openmarigold.errors import DataError, needs_extra, one_line
from openmarigold.evaluation.benchmark import BenchmarkRow, Reveal
from openmarigold.evaluation.benchmark_readers import (
    Decoded,
    Entry,
    Lister,
    Listing,
    decode_png,
    matches,
    read_gray16,
)
from openmarigold.evaluation.revealing import drop_see_through, from_file, shuffled_points
from openmarigold.modalities import METRIC
from openmarigold.modalities.metric_scores import COMPLETION
from openmarigold.modalities.protocol import BenchmarkSample, Maps

_CONTI_IMAGES, _CONTI_POINTS = "nyu_img_gt.h5", "nyu_pred_with_500.h5"
_SCANNET_LIST = "scannet_decotr_split.txt"
_IBIMS_FARTHEST = 50.0
_NUM_SCANNET, _NUM_IBIMS = 500, 1000


# --- Listers


def list_conti(archive: Archive) -> Listing:
    """`0000/rgb.npy`, `depth.npy` and `sparse.npy` of `ContiArchive`."""
    pattern = re.compile(r"^(\d+)/rgb\.npy$")
    return Listing(
        entries=[
            Entry(
                name=match[1],
                kind="indoor",
                place=match[1],
                files={"rgb": name, "depth": f"{match[1]}/depth.npy", "sparse": f"{match[1]}/sparse.npy"},
            )
            for name, match in matches(archive, pattern)
        ]
    )


def list_kitti_selection(archive: Archive) -> Listing:
    """`val_selection_cropped/image/<drive>_image_<frame>_image_02.png`, with `groundtruth_depth` and `velodyne_raw`."""
    pattern = re.compile(r"((?:^|.*/)val_selection_cropped/)image/((.+_drive_\d+_sync)_)image_(\d+_image_0[23])\.png$")

    def files(match: re.Match[str]) -> dict[str, str]:
        folder, start, _, end = match.groups()
        roles = {"depth": "groundtruth_depth", "sparse": "velodyne_raw"}
        return {role: f"{folder}{name}/{start}{name}_{end}.png" for role, name in roles.items()}

    return _found(
        archive, pattern, files, lambda match: f"{match[2]}image_{match[4]}", "outdoor", lambda match: match[3]
    )


def list_void(num_points: int) -> Lister:
    """The frames of `void_<n>/test_image.txt`: `data/<sequence>/image/<time>.png`, `ground_truth`, `sparse_depth`."""
    root = f"void_{num_points}"
    pattern = re.compile(rf"((?:^|.*/){root}/data/([^/]+)/)image/([^/]+)\.png$")

    def files(match: re.Match[str]) -> dict[str, str]:
        roles = {"depth": "ground_truth", "sparse": "sparse_depth"}
        return {role: f"{match[1]}{folder}/{match[3]}.png" for role, folder in roles.items()}

    def list_entries(archive: Archive) -> Listing:
        listed = _lines(archive, f"{root}/test_image.txt")
        wanted = {_void_name(line) for line in listed}
        listing = _found(
            archive,
            pattern,
            files,
            lambda match: f"{match[2]}/{match[3]}",
            "indoor",
            lambda match: match[2],
            lambda match: f"{match[2]}/{match[3]}" in wanted,
        )
        there = {entry.name for entry in listing.entries}
        listing.missing += [line for line in listed if _void_name(line) not in there]
        return listing

    return list_entries


def _void_name(line: str) -> str:
    """Sequence and time: paths of the list may begin with further folders."""
    parts = PurePosixPath(line).parts
    return f"{parts[-3]}/{parts[-1].removesuffix('.png')}" if len(parts) > 2 else line


def list_ibims(archive: Archive) -> Listing:
    """`rgb/<name>.png` with `depth`, `mask_invalid` and `mask_transp`."""
    pattern = re.compile(r"((?:^|.*/)ibims1_core_raw/)rgb/([^/]+)\.png$")
    roles = {"depth": "depth", "mask": "mask_invalid", "transparent": "mask_transp"}

    def files(match: re.Match[str]) -> dict[str, str]:
        return {role: f"{match[1]}{folder}/{match[2]}.png" for role, folder in roles.items()}

    return _found(archive, pattern, files, lambda match: match[2], "indoor", lambda match: match[2])


def list_ddad(archive: Archive) -> Listing:
    """`val/rgb/0000000000.png` with `gt` and `hints`."""
    pattern = re.compile(r"((?:^|.*/)val/)rgb/(\d+)\.png$")

    def files(match: re.Match[str]) -> dict[str, str]:
        return {"depth": f"{match[1]}gt/{match[2]}.png", "sparse": f"{match[1]}hints/{match[2]}.png"}

    return _found(archive, pattern, files, lambda match: match[2], "outdoor", lambda match: match[2])


def list_scannet_decotr(archive: Archive) -> Listing:
    """The frames `<scene>/<number>` of the list: `<scene>/color/<number>.jpg` and `depth/<number>.png`, or 6 digits."""
    pattern = re.compile(r"((?:^|.*/)(scene\d+_\d+)/)color/(\d+)\.jpg$")
    listed = _lines(archive, _SCANNET_LIST)
    wanted = {_scannet_name(line) for line in listed}

    def name(match: re.Match[str]) -> str:
        return f"{match[2]}/{int(match[3])}"

    listing = _found(
        archive,
        pattern,
        lambda match: {"depth": f"{match[1]}depth/{match[3]}.png"},
        name,
        "indoor",
        lambda match: match[2].split("_")[0],
        lambda match: name(match) in wanted,
    )
    there = {entry.name for entry in listing.entries}
    listing.missing += [line for line in listed if _scannet_name(line) not in there]
    return listing


def _scannet_name(line: str) -> str:
    scene, _, number = line.partition("/")
    return f"{scene}/{int(number)}" if number.isdecimal() else line


def _found(
    archive: Archive,
    pattern: re.Pattern[str],
    files: Callable[[re.Match[str]], Mapping[str, str]],
    name: Callable[[re.Match[str]], str],
    kind: str,
    place: Callable[[re.Match[str]], str],
    wanted: Callable[[re.Match[str]], bool] = lambda match: True,
) -> Listing:
    """Photos that fit a pattern, with the other files of each."""
    listing = Listing()
    for photo, match in matches(archive, pattern):
        if not wanted(match):
            continue
        others = dict(files(match))
        absent = [file for file in others.values() if file not in archive.names]
        if absent:
            listing.missing.extend(absent)
        else:
            entry = Entry(name=name(match), kind=kind, place=place(match), files={"rgb": photo, **others})
            listing.entries.append(entry)
    return listing


def _lines(archive: Archive, name: str) -> list[str]:
    """The lines of a list, which may lie below any folders."""
    found = sorted(other for other in archive.names if f"/{other}".endswith(f"/{name}"))
    if not found:
        raise DataError(f"{archive.location} holds no list {name}; put it there, one frame a line")
    text = archive.read(found[0]).decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


# --- Decoders


def decode_conti(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
    """Float depth [m], 0 where nothing was measured."""
    return {"depth": _npy_depth(files["depth"])}, None


def _npy_depth(content: bytes) -> Float64[np.ndarray, "h w"]:
    values = np.squeeze(load_npy(content))
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(f"{values.dtype} of shape {list(values.shape)} is not a depth map")
    return np.where(np.isfinite(values), values, 0.0).astype(np.float64)


def decode_ibims(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
    """16 bits, 65,535 of them 50 m; a pixel counts where both masks are set."""
    depth = read_gray16(files["depth"]) * (_IBIMS_FARTHEST / 65535)
    masks = [_read_mask(files[role]) for role in ("mask", "transparent")]
    if wrong := [mask.shape for mask in masks if mask.shape != depth.shape]:
        raise ValueError(f"a mask is {list(wrong[0])}, the depth {list(depth.shape)}")
    return {"depth": depth}, masks[0] & masks[1]


def _read_mask(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L")) > 0


def _shuffled(num_points: int) -> Callable[[BenchmarkSample, Mapping[str, bytes]], Maps]:
    return lambda sample, files: {"depth": shuffled_points(sample.maps["depth"], sample.valid_mask, num_points)}


def _levels(content: bytes) -> Float64[np.ndarray, "h w"]:
    return read_gray16(content) / 256.0


def _filtered_levels(content: bytes) -> Float64[np.ndarray, "h w"]:
    return drop_see_through(_levels(content))


class ContiArchive:
    """The two HDF5 files of Conti et al. as `0000/rgb.npy` (uint8), `depth.npy` and `sparse.npy` (float32 [m])."""

    def __init__(self, path: Path) -> None:
        """Opens the file of the photos, and the file of the points next to it.

        Raises:
            MissingExtraError: h5py is not installed.
            DataError: one is missing, damaged or another one.
        """
        with needs_extra("data"):
            import h5py
        self.location = path.parent
        self.notes: tuple[str, ...] = ()
        self.damage: dict[str, str] = {}
        # HDF5 is not for several threads at once.
        self._lock = threading.Lock()
        self._data: dict[str, Any] = {}
        points = path.with_name(_CONTI_POINTS)
        if not points.is_file():
            raise DataError(f"{points} does not exist; get it from where {path.name} comes from")
        for role, file, name in (("rgb", path, "img"), ("depth", path, "gt"), ("sparse", points, "hints")):
            try:
                self._data[role] = hdf5_dataset(h5py.File(file, "r"), name)
            except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
                raise DataError(f"{file} is not the set of Conti et al. ({one_line(error)}); get it again") from error
        counts = {data.shape[0] if data.shape else 0 for data in self._data.values()}
        if len(counts) != 1:
            raise DataError(f"{path} and {points.name} hold different numbers of images; get both again")
        self.names = frozenset(f"{index:04d}/{role}.npy" for index in range(counts.pop()) for role in self._data)

    def read(self, name: str) -> bytes:
        """One array as the bytes of an .npy file.

        Raises:
            DataError: there is none of that name, or the file is damaged there.
        """
        if name not in self.names:
            raise missing(self.location, name)
        index, role = name.removesuffix(".npy").split("/")
        try:
            with self._lock:
                values = hdf5_values(self._data[role], int(index))
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{self.location}: {name} is damaged ({one_line(error)}); get it again") from error
        content = io.BytesIO()
        np.save(content, values if role == "rgb" else values.astype(np.float32))
        return content.getvalue()


# --- Rows


def _row(
    name: str,
    title: str,
    count: int,
    list_entries: Lister,
    given: Callable[[BenchmarkSample, Mapping[str, bytes]], Maps],
    points: str,
    files: str,
    *,
    max_value: float = np.inf,
    **fields: Any,
) -> BenchmarkRow:
    return BenchmarkRow(
        **{"decode": decode_png(256.0), "unit": "16-bit PNG [1/256 m]", "processing_resolution": 0, **fields},
        name=name,
        title=f"{title}; {points}",
        modality=METRIC,
        list_entries=list_entries,
        min_value=0.0,
        max_value=max_value,
        expected_count=count,
        reveal=Reveal(given=given, scored=True, facts={"points": points, "given_pixels_scored": True}),
        protocol=COMPLETION.name,
        files=files,
    )


_KITTI_FILES = """\
data_depth_selection.zip (2 GB) from https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_completion
(registration), as it is or extracted:
  {root}/kitti/data_depth_selection.zip
  {root}/kitti/depth_selection/val_selection_cropped/image/2011_*_sync_image_0000000005_image_02.png,
    velodyne_raw/*_velodyne_raw_*.png and groundtruth_depth/*_groundtruth_depth_*.png (16 bits, 1/256 m)"""

_VOID_FILES = """\
void_release.zip, whose source stands in https://github.com/alexklwong/void-dataset, as it is or extracted:
  {root}/void/void_release/void_NUM/test_image.txt
  {root}/void/void_release/void_NUM/data/<sequence>/image/<time>.png, sparse_depth/ and ground_truth/ (16 bits, 1/256 m)
Only the listed frames are read."""


def _void(num_points: int) -> BenchmarkRow:
    return _row(
        f"void-{num_points}",
        "VOID, 800 test frames",
        800,
        list_void(num_points),
        from_file(_levels),
        f"{num_points} points of visual-inertial odometry",
        _VOID_FILES.replace("NUM", str(num_points)),
    )


ROWS = (
    _row(
        "nyuv2-completion",
        "NYU Depth v2, test split, 304x228",
        654,
        list_conti,
        from_file(_npy_depth),
        "500 points of Conti et al.",
        f"""\
The two files of https://github.com/andreaconti/sparsity-agnostic-depth-completion/releases/tag/v0.1.0 (extra `data`):
  {{root}}/nyuv2/{_CONTI_IMAGES}
  {{root}}/nyuv2/{_CONTI_POINTS}
The networks see the photos at 768 px: give --processing-resolution 768 to published checkpoints.""",
        decode=decode_conti,
        unit="HDF5, float [m]",
        processing_resolution=768,
        official_file=_CONTI_IMAGES,
        open_official=ContiArchive,
    ),
    _row(
        "kitti-completion",
        "KITTI depth completion, 1,000 selected validation frames, 1216x352",
        1000,
        list_kitti_selection,
        from_file(_filtered_levels),
        "LiDAR without points that lie behind others",
        _KITTI_FILES,
    ),
    _row(
        "kitti-lidar",
        "KITTI depth completion, 1,000 selected validation frames, 1216x352",
        1000,
        list_kitti_selection,
        from_file(_levels),
        "LiDAR as it is",
        _KITTI_FILES,
    ),
    *map(_void, (150, 500, 1500)),
    _row(
        "ibims-completion",
        "iBims-1",
        100,
        list_ibims,
        _shuffled(_NUM_IBIMS),
        f"{_NUM_IBIMS} points of the measured depth, seed 2024",
        """\
ibims1_core_raw.zip from https://mediatum.ub.tum.de/1455541, as it is or extracted:
  {root}/ibims/ibims1_core_raw/rgb/<name>.png, depth/ (16 bits, 65,535 is 50 m), mask_invalid/ and mask_transp/
The published evaluation reads the same images from .mat files, whose depth has more digits.""",
        decode=decode_ibims,
        unit="16-bit PNG [50/65535 m] and masks",
    ),
    _row(
        "ddad-completion",
        "DDAD, 3,950 front views of the validation set, 1936x1216",
        3950,
        list_ddad,
        from_file(_filtered_levels),
        "LiDAR without points that lie behind others",
        """\
ddad_pregenerated.zip of VPP4DC, whose source stands in https://github.com/bartn8/vppdc, as it is or extracted:
  {root}/ddad/pregenerated/val/rgb/0000000000.png, hints/0000000000.png (the points) and gt/0000000000.png
    (both 16 bits, 1/256 m, 0 = none)
The networks see the photos at 768 px: give --processing-resolution 768 to published checkpoints.""",
        processing_resolution=768,
    ),
    _row(
        "scannet-completion",
        "ScanNet, 745 test frames of DeCoTR, 640x480",
        745,
        list_scannet_decotr,
        _shuffled(_NUM_SCANNET),
        f"{_NUM_SCANNET} points of the measured depth, seed 2024",
        f"""\
Frames exported with ScanNet's SensReader (terms of use: http://www.scan-net.org):
  {{root}}/scannet/scene0707_00/color/343.jpg, depth/343.png   (numbers may have 6 digits)
and the list from script/eval/ of https://github.com/prs-eth/Marigold-DC:
  {{root}}/scannet/{_SCANNET_LIST}
Photos are resized to the depth's size (Lanczos).""",
        decode=decode_png(1000.0),
        unit="16-bit PNG [mm]",
        resize_rgb=Image.Resampling.LANCZOS,
    ),
)
