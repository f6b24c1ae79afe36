# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of depth completion that the field reports, in their owners' layouts.

Crops, points, filter and pixels that count are those of the published evaluation of Marigold-DC (Viola et al. 2024,
§4.1): MAE and RMSE over all pixels with ground truth, also those whose depth is given, averaged over images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from openmarigold.data.arrays import Hdf5Archive, hdf5_dataset, load_npy
from openmarigold.errors import DataError, needs_extra, one_line
from openmarigold.evaluation.benchmark import BenchmarkRow, Reveal
from openmarigold.evaluation.benchmark_readers import (
    Decoded,
    Lister,
    decode_png,
    finite_depth,
    list_photos,
    read_gray16,
)
from openmarigold.evaluation.revealing import drop_see_through, from_file, shuffled_points
from openmarigold.modalities import METRIC
from openmarigold.modalities.metric import COMPLETION
from openmarigold.modalities.protocol import BenchmarkSample, Maps

_CONTI_IMAGES, _CONTI_POINTS = "nyu_img_gt.h5", "nyu_pred_with_500.h5"
_SCANNET_LIST = "scannet_decotr_split.txt"
_IBIMS_FARTHEST = 50.0
_NUM_SCANNET, _NUM_IBIMS = 500, 1000


# --- Listers


def list_void(num_points: int) -> Lister:
    """The frames of `void_<n>/test_image.txt`: `data/<sequence>/image/<time>.png`, `ground_truth`, `sparse_depth`."""
    root = f"void_{num_points}"
    return list_photos(
        rf"((?:^|.*/){root}/data/([^/]+)/)image/([^/]+)\.png$",
        {"depth": r"\1ground_truth/\3.png", "sparse": r"\1sparse_depth/\3.png"},
        name=r"\2/\3",
        kind="indoor",
        place=r"\2",
        listed=(f"{root}/test_image.txt", _void_name),
    )


def _void_name(line: str) -> str:
    """Sequence and time: paths of the list may begin with further folders."""
    parts = PurePosixPath(line).parts
    return f"{parts[-3]}/{parts[-1].removesuffix('.png')}" if len(parts) > 2 else line


def _scannet_name(line: str) -> str:
    scene, _, number = line.partition("/")
    return f"{scene}/{int(number)}" if number.isdecimal() else line


# `0000/rgb.npy`, `depth.npy` and `sparse.npy` of `open_conti`
_CONTI = list_photos(
    r"^(\d+)/rgb\.npy$",
    {"depth": r"\1/depth.npy", "sparse": r"\1/sparse.npy"},
    name=r"\1",
    kind="indoor",
    place=r"\1",
)
# `val_selection_cropped/image/<drive>_image_<frame>_image_02.png`, with `groundtruth_depth` and `velodyne_raw`
_KITTI_SELECTION = list_photos(
    r"((?:^|.*/)val_selection_cropped/)image/((.+_drive_\d+_sync)_)image_(\d+_image_0[23])\.png$",
    {"depth": r"\1groundtruth_depth/\2groundtruth_depth_\4.png", "sparse": r"\1velodyne_raw/\2velodyne_raw_\4.png"},
    name=r"\2image_\4",
    kind="outdoor",
    place=r"\3",
)
# `rgb/<name>.png` with `depth`, `mask_invalid` and `mask_transp`
_IBIMS = list_photos(
    r"((?:^|.*/)ibims1_core_raw/)rgb/([^/]+)\.png$",
    {"depth": r"\1depth/\2.png", "mask": r"\1mask_invalid/\2.png", "transparent": r"\1mask_transp/\2.png"},
    name=r"\2",
    kind="indoor",
    place=r"\2",
)
# `val/rgb/0000000000.png` with `gt` and `hints`
_DDAD = list_photos(
    r"((?:^|.*/)val/)rgb/(\d+)\.png$",
    {"depth": r"\1gt/\2.png", "sparse": r"\1hints/\2.png"},
    name=r"\2",
    kind="outdoor",
    place=r"\2",
)
# The frames `<scene>/<number>` of the list: `<scene>/color/<number>.jpg` and `depth/<number>.png`, or 6 digits
_SCANNET_DECOTR = list_photos(
    r"((?:^|.*/)((scene\d+)_\d+)/)color/(0*(\d+))\.jpg$",
    {"depth": r"\1depth/\4.png"},
    name=r"\2/\5",
    kind="indoor",
    place=r"\3",
    listed=(_SCANNET_LIST, _scannet_name),
)


# --- Decoders


def decode_conti(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
    """Float depth [m], 0 where nothing was measured."""
    return {"depth": _npy_depth(files["depth"])}, None


def _npy_depth(content: bytes) -> Float64[np.ndarray, "h w"]:
    return finite_depth(np.squeeze(load_npy(content)))


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


def open_conti(path: Path) -> Hdf5Archive:
    """The two HDF5 files of Conti et al. as `0000/rgb.npy` (uint8), `depth.npy` and `sparse.npy` (float32 [m]).

    `path` is the file of the photos; that of the points lies next to it.

    Raises:
        MissingExtraError: h5py is not installed.
        DataError: one is missing, damaged or another one.
    """
    with needs_extra("data"):
        import h5py
    data: dict[str, Any] = {}
    points = path.with_name(_CONTI_POINTS)
    if not points.is_file():
        raise DataError(f"{points} does not exist; get it from where {path.name} comes from")
    for role, file, name in (("rgb", path, "img"), ("depth", path, "gt"), ("sparse", points, "hints")):
        try:
            data[role] = hdf5_dataset(h5py.File(file, "r"), name)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{file} is not the set of Conti et al. ({one_line(error)}); get it again") from error
    counts = {found.shape[0] if found.shape else 0 for found in data.values()}
    if len(counts) != 1:
        raise DataError(f"{path} and {points.name} hold different numbers of images; get both again")
    makers = {"rgb": np.asarray, "depth": np.float32, "sparse": np.float32}
    numbers = range(counts.pop())
    rows = {f"{row:04d}/{role}.npy": (found, row, makers[role]) for role, found in data.items() for row in numbers}
    return Hdf5Archive(path.parent, rows)


# --- Rows


def _row(
    name: str,
    title: str,
    count: int,
    list_entries: Lister,
    given: Callable[[BenchmarkSample, Mapping[str, bytes]], Maps],
    points: str,
    files: str,
    **fields: Any,
) -> BenchmarkRow:
    return BenchmarkRow(
        **{"decode": decode_png(256.0), "unit": "16-bit PNG [1/256 m]", **fields},
        name=name,
        title=f"{title}; {points}",
        modality=METRIC,
        list_entries=list_entries,
        min_value=0.0,
        max_value=np.inf,
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
void_release.zip, whose address is given in https://github.com/alexklwong/void-dataset, as it is or extracted:
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
        _CONTI,
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
        open_official=open_conti,
    ),
    _row(
        "kitti-completion",
        "KITTI depth completion, 1,000 selected validation frames, 1216x352",
        1000,
        _KITTI_SELECTION,
        from_file(_filtered_levels),
        "LiDAR without points that lie behind others",
        _KITTI_FILES,
    ),
    _row(
        "kitti-lidar",
        "KITTI depth completion, 1,000 selected validation frames, 1216x352",
        1000,
        _KITTI_SELECTION,
        from_file(_levels),
        "LiDAR as it is",
        _KITTI_FILES,
    ),
    *map(_void, (150, 500, 1500)),
    _row(
        "ibims-completion",
        "iBims-1",
        100,
        _IBIMS,
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
        _DDAD,
        from_file(_filtered_levels),
        "LiDAR without points that lie behind others",
        """\
ddad_pregenerated.zip of VPP4DC, whose address is given in https://github.com/bartn8/vppdc, as it is or extracted:
  {root}/ddad/pregenerated/val/rgb/0000000000.png, hints/0000000000.png (the points) and gt/0000000000.png
    (both 16 bits, 1/256 m, 0 = none)
The networks see the photos at 768 px: give --processing-resolution 768 to published checkpoints.""",
        processing_resolution=768,
    ),
    _row(
        "scannet-completion",
        "ScanNet, 745 test frames of DeCoTR, 640x480",
        745,
        _SCANNET_DECOTR,
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
