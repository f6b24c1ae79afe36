# SPDX-License-Identifier: Apache-2.0
"""The benchmarks, rows of `BENCHMARKS`: crops, ranges, resolutions and counts of the paper's published evaluation.

Paper: §4.1, table 1; its ablations use `nyuv2-train` and `kitti-val`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from openmarigold.data.archives import open_archive
from openmarigold.data.readers.vkitti2 import kitti_crop
from openmarigold.data.remote import RemoteFolder
from openmarigold.data.shards import INDEX_FILE, ShardedDataset, is_prepared
from openmarigold.errors import DataError
from openmarigold.evaluation import completion_benchmarks, normals_benchmarks
from openmarigold.evaluation.benchmark import Benchmark, BenchmarkRow
from openmarigold.evaluation.benchmark_readers import (
    MAT_NAME,
    decode_diode,
    decode_float32,
    decode_png,
    list_diode,
    list_eth3d,
    list_kitti,
    list_nyuv2,
    list_scannet,
    open_mat,
)
from openmarigold.evaluation.folder_readers import (
    ShardArchive,
    decode_folder,
    decode_shards,
    list_folder,
    list_shards,
    stored_shards,
)
from openmarigold.files import as_path
from openmarigold.modalities import DEPTH
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.protocol import Window


def kitti_eigen_window(height: int, width: int) -> Window:
    """Rows and columns that Eigen et al. 2014 evaluate, as shares of the (cropped) image.

    >>> kitti_eigen_window(352, 1216)
    (slice(117, 321, None), slice(43, 1172, None))
    """
    return (
        slice(int(0.3324324 * height), int(0.91351351 * height)),
        slice(int(0.0359477 * width), int(0.96405229 * width)),
    )


def nyu_eigen_window(height: int, width: int) -> Window:
    """Rows and columns of the 480x640 images of NYU Depth v2 that Eigen et al. 2014 evaluate."""
    return slice(45, 471), slice(41, 601)


def open_folder_benchmark(path: Path | str | RemoteFolder, modality: Modality = DEPTH) -> Benchmark:
    """A benchmark in the generic layout: a folder, tar or zip with manifest.json and the maps of a modality.

    A folder of photos with maps next to them, or of a prepared set, is one too; a prepared set may lie at an address.

    Raises:
        DataError: it is missing or damaged.
        InvalidValueError: an empty path.
    """
    path = path if isinstance(path, RemoteFolder) else as_path(path, "the benchmark")
    has_shards = _has_shards(path)
    row = BENCHMARKS["folder"]
    if {kind.name for kind in row.modality.maps} == {kind.name for kind in modality.maps}:  # the same files and ranges
        row = replace(row, modality=modality)
    else:
        row = replace(
            row,
            modality=modality,
            list_entries=list_folder(modality),
            decode=decode_folder(modality),
            unit=".npy",
            min_value=-np.inf,
            max_value=np.inf,
            max_value_by_kind=MappingProxyType({}),
            valid_range=None,
        )
    if isinstance(path, RemoteFolder) or has_shards:
        dataset = ShardedDataset(path)
        low, high = dataset.valid_range
        row = replace(
            row,
            list_entries=list_shards(dataset, modality),
            decode=decode_shards(dataset, modality),
            min_value=max(low, row.min_value),
            max_value=high,
            max_value_by_kind=MappingProxyType({}),
            valid_range=None,
            stored=stored_shards(dataset, modality),
        )
        return Benchmark(row, ShardArchive(dataset))
    return Benchmark(row, open_archive(path))


def _has_shards(path: Path | RemoteFolder) -> bool:
    """Whether a benchmark is a prepared set.

    Raises:
        DataError: there is none, or its folder cannot be read.
    """
    why = "No such file or directory"
    try:
        if is_prepared(path) if isinstance(path, RemoteFolder) else path.exists():
            return isinstance(path, RemoteFolder) or (path / INDEX_FILE).is_file()
    except OSError as error:
        why = error.strerror or str(error)
    raise DataError(
        f"{path / 'manifest.json'} cannot be read ({why}); a benchmark is a folder with manifest.json and one folder "
        "an image"
    )


def open_benchmark(name: str, data_dir: Path | str, *, allow_partial: bool = False) -> Benchmark:
    """A benchmark of `BENCHMARKS` by name: `<data_dir>/<name>/`, `<name>.tar` or `<name>.zip`.

    Raises:
        DataError: the name is unknown, or the data is missing, damaged or incomplete.
        MissingExtraError: NYU's official file without h5py.
    """
    row = find_row(name)
    folder = as_path(data_dir, "data_dir") / row.name.split("-")[0]
    candidates = [folder, folder.with_suffix(".tar"), folder.with_suffix(".zip")]
    location = next((path for path in candidates if path.exists()), None)
    if location is None:
        raise DataError(
            f"{folder} does not exist; `openmarigold data where {row.name}` lists what belongs there and its source"
        )
    official = location / row.official_file
    archive = row.open_official(official) if row.open_official and official.is_file() else open_archive(location)
    return Benchmark(row, archive, allow_partial=allow_partial)


def find_row(name: str) -> BenchmarkRow:
    """The row of a name.

    Raises:
        DataError: there is none.
    """
    if name not in BENCHMARKS:
        raise DataError(f"unknown benchmark {name!r}; use one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


_REPACKED = "The paper's authors offer a repacked copy at https://share.phys.ethz.ch/~pf/bingkedata/marigold/evaluation_dataset/"
_NYU_FILES = f"""\
Either the official file (2.8 GB) from https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html as
  {{root}}/nyuv2/{MAT_NAME}         (read with the extra `data`; the split is built in)
or the repacked copy (extracted, or the tar as it is):
  {{root}}/nyuv2/nyu_labeled_extracted.tar
  {{root}}/nyuv2/test/<scene>/rgb_0001.png, depth_0001.png (16 bits, millimeters)
{_REPACKED}"""
_KITTI_FILES = f"""\
The raw data of the listed drives and the annotated depth from https://www.cvlibs.net/datasets/kitti/raw_data.php and
https://www.cvlibs.net/datasets/kitti/eval_depth.php (registration), zipped as they come or extracted:
  {{root}}/kitti/2011_09_26_drive_0002_sync.zip, ...
  {{root}}/kitti/data_depth_annotated.zip
or the repacked copy:
  {{root}}/kitti/kitti_eigen_split_test.tar
and, in both cases, the list `rgb depth focal` of the split, from data_split/kitti/ of
https://github.com/prs-eth/Marigold:
  {{root}}/kitti/LIST
{_REPACKED}"""

_KITTI_LIST, _KITTI_VAL_LIST = "eigen_test_files_with_gt.txt", "eigen_val_from_train_800.txt"
_SCANNET_LIST = "scannet_val_sampled_list_800_1.txt"


def _nyuv2(name: str, title: str, split: str, count: int) -> BenchmarkRow:
    return BenchmarkRow(
        name=name,
        title=title,
        list_entries=list_nyuv2(split),
        decode=decode_png(1000.0),
        unit="16-bit PNG [mm]; float [m] in the official file",
        min_value=1e-3,
        max_value=10.0,
        window=nyu_eigen_window,
        official_file=MAT_NAME,
        open_official=open_mat,
        expected_count=count,
        files=_NYU_FILES.replace("test/", f"{split}/"),
    )


def _kitti(name: str, title: str, list_name: str, count: int) -> BenchmarkRow:
    return BenchmarkRow(
        name=name,
        title=title,
        list_entries=list_kitti(list_name),
        decode=decode_png(256.0),
        unit="16-bit PNG [1/256 m]",
        min_value=1e-5,
        max_value=80.0,
        window=kitti_eigen_window,
        crop=kitti_crop,
        expected_count=count,
        files=_KITTI_FILES.replace("LIST", list_name),
    )


_FOLDER_FARTHEST = 20.0
_OUTDOORS = MappingProxyType({kind: limit for kind, limit in DEPTH.usual_limits.items() if limit > _FOLDER_FARTHEST})

_ROWS = (
    _nyuv2("nyuv2", "NYU Depth v2, Eigen test split", "test", 654),
    _kitti("kitti", "KITTI, Eigen test split", _KITTI_LIST, 652),
    BenchmarkRow(
        name="eth3d",
        title="ETH3D, high-resolution multi-view, training scenes",
        list_entries=list_eth3d,
        decode=decode_float32,
        unit="raw float32 [m], inf = none",
        min_value=1e-5,
        max_value=np.inf,
        # 756 at the source, of which its autoencoder uses 752: see docs/faithfulness.md.
        processing_resolution=752,
        max_fit_width=1024,
        expected_count=454,
        files=f"""\
The distorted photos and their depth, `<scene>_dslr_jpg.7z` and `<scene>_dslr_depth.7z` of the 13 training scenes of the
high-resolution multi-view set, from https://www.eth3d.net/datasets, extracted (7z is not read):
  {{root}}/eth3d/<scene>/images/dslr_images/DSC_0219.JPG
  {{root}}/eth3d/<scene>/ground_truth_depth/dslr_images/DSC_0219.JPG   (raw float32, in spite of its name)
or the repacked copy:
  {{root}}/eth3d/eth3d.tar
{_REPACKED}""",
    ),
    BenchmarkRow(
        name="scannet",
        title="ScanNet, 800 validation frames",
        list_entries=list_scannet(_SCANNET_LIST),
        decode=decode_png(1000.0),
        unit="16-bit PNG [mm]",
        min_value=1e-3,
        max_value=10.0,
        resize_rgb=Image.Resampling.BILINEAR,
        expected_count=800,
        files=f"""\
Frames exported with ScanNet's SensReader (terms of use: http://www.scan-net.org), 6 digits a frame:
  {{root}}/scannet/scene0406_02/color/000300.jpg, depth/000300.png
or the repacked copy:
  {{root}}/scannet/scannet_val_sampled_800_1.tar
and, in both cases, the list from data_split/ of https://github.com/prs-eth/Marigold:
  {{root}}/scannet/{_SCANNET_LIST}
Photos of another size than the depth (1296x968) are resized to it.
{_REPACKED}""",
    ),
    BenchmarkRow(
        name="diode",
        title="DIODE, validation, indoors and outdoors",
        list_entries=list_diode,
        decode=decode_diode,
        unit=".npy float32 [m] and mask",
        min_value=0.6,
        max_value=350.0,
        valid_range=(0.0, np.inf),
        processing_resolution=640,
        expected_count=771,
        files=f"""\
The validation set, val.tar.gz (2.6 GB), from https://diode-dataset.org, decompressed once (`gunzip val.tar.gz`),
since a compressed tar cannot be read at random:
  {{root}}/diode/val.tar        (or extracted: {{root}}/diode/val/indoors/scene_*/scan_*/...)
or the repacked copy:
  {{root}}/diode/diode_val.tar
{_REPACKED}""",
    ),
    _nyuv2("nyuv2-train", "NYU Depth v2, training split (the paper's ablations)", "train", 795),
    _kitti("kitti-val", "KITTI, 800 training frames (the paper's ablations)", _KITTI_VAL_LIST, 800),
    *normals_benchmarks.ROWS,
    *completion_benchmarks.ROWS,
    BenchmarkRow(
        name="folder",
        title="a folder in the generic layout",
        list_entries=list_folder(DEPTH),
        decode=decode_folder(DEPTH),
        unit=".npy [m]; 16-bit PNG, values per meter in meta.json",
        min_value=1e-3,
        max_value=_FOLDER_FARTHEST,
        max_value_by_kind=_OUTDOORS,
        valid_range=(0.0, np.inf),
        expected_count=None,
        average_over_places=True,
        files="""\
Your own pairs, given as `evaluate --benchmark DIR` (a folder, tar or zip) without --data:
  DIR/manifest.json            [{"name": ..., "kind": ..., "place": ...}, ...]
  DIR/<name>/rgb.jpg
  DIR/<name>/depth.png         (16 bits, planar depth = value / depth_scale meters, 0 = none)
  DIR/<name>/meta.json         {"depth_scale": 1000}
  DIR/<name>/depth.npy         (instead of these two: meters, 0 = none)
Depth is clipped to [0.001, 20] m, to 80 m for the kinds outdoor(s), street(s), driving and landscape(s). Images of a
place count together.""",
    ),
)
BENCHMARKS: Mapping[str, BenchmarkRow] = MappingProxyType({row.name: row for row in _ROWS})
