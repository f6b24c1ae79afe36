# SPDX-License-Identifier: Apache-2.0
"""Readers on files in each real format; whole ones and broken ones."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from benchmark_data import (
    add_folder_image,
    gray16,
    image_bytes,
    kitti_paths,
    make_depth,
    make_diode,
    make_eth3d,
    make_folder_benchmark,
    make_kitti,
    make_nyuv2_extracted,
    make_nyuv2_mat,
    make_scannet,
    npy,
    pack,
    write,
)
from openmarigold.data.readers.vkitti2 import kitti_crop
from openmarigold.errors import DataError, ImageError
from openmarigold.evaluation.benchmark import Benchmark, BenchmarkRow
from openmarigold.evaluation.benchmark_readers import MAT_NAME, split_numbers
from openmarigold.evaluation.benchmarks import (
    BENCHMARKS,
    find_row,
    kitti_eigen_window,
    nyu_eigen_window,
    open_benchmark,
    open_folder_benchmark,
)
from tiny import make_photo

NYU_SIZE, KITTI_SIZE = (480, 640), (375, 1242)


def open_partial(name: str, root: Path) -> Benchmark:
    return open_benchmark(name, root, allow_partial=True)


def only_sample(benchmark: Benchmark):
    (entry,) = benchmark.entries
    return benchmark.sample(entry)


# --- The rows


def test_rows_hold_the_papers_numbers() -> None:
    def facts(row: BenchmarkRow):
        return row.min_value, row.max_value, row.processing_resolution, row.expected_count

    assert {name: facts(row) for name, row in BENCHMARKS.items() if row.expected_count} == {
        "nyuv2": (1e-3, 10, 0, 654),
        "kitti": (1e-5, 80, 0, 652),
        "eth3d": (1e-5, np.inf, 752, 454),
        "scannet": (1e-3, 10, 0, 800),
        "diode": (0.6, 350, 640, 771),
        "nyuv2-train": (1e-3, 10, 0, 795),
        "kitti-val": (1e-5, 80, 0, 800),
        "nyuv2-normals": (-np.inf, np.inf, 0, 654),
        "scannet-normals": (-np.inf, np.inf, 0, 300),
        "ibims-normals": (-np.inf, np.inf, 0, 100),
        "sintel-normals": (-np.inf, np.inf, 0, 1064),
        "vkitti-normals": (-np.inf, np.inf, 0, 1000),
        "nyuv2-completion": (0, np.inf, 768, 654),
        "kitti-completion": (0, np.inf, 0, 1000),
        "kitti-lidar": (0, np.inf, 0, 1000),
        "void-150": (0, np.inf, 0, 800),
        "void-500": (0, np.inf, 0, 800),
        "void-1500": (0, np.inf, 0, 800),
        "ibims-completion": (0, np.inf, 0, 100),
        "ddad-completion": (0, np.inf, 768, 3950),
        "scannet-completion": (0, np.inf, 0, 745),
    }
    with pytest.raises(DataError, match="unknown benchmark 'nyu'; use one of nyuv2, kitti"):
        find_row("nyu")


def test_splits_of_nyuv2_are_a_partition() -> None:
    test, train = split_numbers("test"), split_numbers("train")
    assert (len(test), len(train)) == (654, 795)
    assert sorted(test + train) == list(range(1, 1450))
    # Known ends and holes of the published list.
    assert (test[:4], test[-1]) == ([1, 2, 9, 14], 1449)


def test_crops_as_index_sets() -> None:
    rows, columns = nyu_eigen_window(*NYU_SIZE)
    assert (range(480)[rows], range(640)[columns]) == (range(45, 471), range(41, 601))
    for height, width in (KITTI_SIZE, (370, 1226), (376, 1241), (352, 1216)):
        rows, columns = kitti_crop(height, width)
        assert range(height)[rows] == range(height - 352, height)
        assert range(width)[columns] == range(int((width - 1216) / 2), int((width - 1216) / 2) + 1216)
    rows, columns = kitti_eigen_window(352, 1216)
    assert (range(352)[rows], range(1216)[columns]) == (range(117, 321), range(43, 1172))
    with pytest.raises(DataError, match="an image of 300x1242 is smaller than KITTI's window of 352x1216"):
        kitti_crop(300, 1242)


# --- NYU Depth v2


def test_nyuv2_official_file(tmp_path: Path) -> None:
    depths = [make_depth(*NYU_SIZE, seed=seed, high=12) for seed in range(3)]
    make_nyuv2_mat(tmp_path / "nyuv2" / MAT_NAME, depths, ["kitchen_0004", "kitchen_0004", "office_0001"])
    benchmark = open_partial("nyuv2", tmp_path)
    # Images 1 and 2 belong to the test split, 3 does not.
    assert [(entry.name, entry.place) for entry in benchmark.entries] == [
        ("test/kitchen_0004/rgb_0001", "kitchen_0004"),
        ("test/kitchen_0004/rgb_0002", "kitchen_0004"),
    ]
    sample = benchmark.sample(benchmark.entries[1])
    np.testing.assert_array_equal(sample.rgb, make_photo(*NYU_SIZE, seed=1))
    np.testing.assert_array_equal(sample.maps["depth"], depths[1].astype(np.float32))
    expected = np.zeros(NYU_SIZE, dtype=bool)
    expected[45:471, 41:601] = True
    expected &= (depths[1] > 1e-3) & (depths[1].astype(np.float32) < 10)
    np.testing.assert_array_equal(sample.valid_mask, expected)
    assert expected.any()
    assert [entry.name for entry in open_partial("nyuv2-train", tmp_path).entries] == ["train/office_0001/rgb_0003"]


@pytest.mark.parametrize("kind", ["folder", "nyuv2.tar", "nyuv2.zip", "tar in a folder"])
def test_nyuv2_repacked(kind: str, tmp_path: Path) -> None:
    depths = [make_depth(*NYU_SIZE, seed=seed) for seed in range(2)]
    extracted = tmp_path / "nyuv2" if kind == "folder" else tmp_path / "extracted"
    make_nyuv2_extracted(extracted, depths)
    if kind == "tar in a folder":
        (tmp_path / "nyuv2").mkdir()
        pack(extracted, tmp_path / "nyuv2" / "nyu_labeled_extracted.tar", prefix="./")
    elif kind != "folder":
        pack(extracted, tmp_path / kind)
    benchmark = open_partial("nyuv2", tmp_path)
    assert [entry.name for entry in benchmark.entries] == [f"test/kitchen_0004/rgb_000{number}" for number in (1, 2)]
    for entry, depth in zip(benchmark.entries, depths, strict=True):
        np.testing.assert_allclose(benchmark.sample(entry).maps["depth"], np.rint(depth * 1000) / 1000)


def break_not_hdf5(path: Path) -> None:
    path.write_bytes(b"MATLAB 5.0 MAT-file" * 100)


def break_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def break_other_keys(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["depths"] = np.zeros((2, 4, 3), np.float32)


def break_other_shape(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["rawDepths"]
        file["rawDepths"] = np.zeros((1, 640, 480), np.float32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_not_hdf5, "is not the labeled set of NYU Depth v2"),
        (break_truncated, "is not the labeled set of NYU Depth v2"),
        (break_other_keys, "is not the labeled set of NYU Depth v2"),
        (break_other_shape, "images, rawDepths and scenes do not belong together"),
    ],
)
def test_broken_nyuv2_files(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "nyuv2" / MAT_NAME
    make_nyuv2_mat(path, [make_depth(*NYU_SIZE)] * 2, ["a", "b"])
    damage(path)
    with pytest.raises(DataError, match=message):
        open_partial("nyuv2", tmp_path)


# --- KITTI


def test_kitti(tmp_path: Path) -> None:
    depth = make_depth(*KITTI_SIZE, low=2, high=90)
    make_kitti(tmp_path / "kitti", [depth])
    benchmark = open_partial("kitti", tmp_path)
    sample = only_sample(benchmark)  # the frame without depth is left out
    assert sample.place == "2011_09_26_drive_0002_sync"
    stored = np.rint(depth * 256) / 256
    np.testing.assert_array_equal(sample.maps["depth"], stored[23:375, 13:1229])
    np.testing.assert_array_equal(sample.rgb, make_photo(*KITTI_SIZE)[23:375, 13:1229])
    assert (sample.full_size, sample.crop) == (KITTI_SIZE, (slice(23, 375), slice(13, 1229)))
    expected = np.zeros((352, 1216), dtype=bool)
    expected[117:321, 43:1172] = True
    expected &= (sample.maps["depth"] > 1e-5) & (sample.maps["depth"] < 80)
    np.testing.assert_array_equal(sample.valid_mask, expected)


def test_kitti_from_the_zips_as_they_come(tmp_path: Path) -> None:
    make_kitti(tmp_path / "all", [make_depth(*KITTI_SIZE)])
    root = tmp_path / "kitti"
    root.mkdir()
    for part in ("2011_09_26", "val"):
        inner = tmp_path / f"only-{part}" / part
        inner.parent.mkdir()
        (tmp_path / "all" / part).rename(inner)
        pack(inner.parent, root / f"{part}.zip")
    with pytest.raises(DataError, match=r"holds no list eigen_test_files_with_gt\.txt; put it there"):
        open_partial("kitti", tmp_path)
    list_name = "eigen_test_files_with_gt.txt"
    (tmp_path / "all" / list_name).rename(root / list_name)
    assert only_sample(open_partial("kitti", tmp_path)).maps["depth"].shape == (352, 1216)


def test_counts_that_differ_are_an_error_unless_allowed(tmp_path: Path) -> None:
    make_kitti(tmp_path / "kitti", [make_depth(*KITTI_SIZE)] * 2)
    (tmp_path / "kitti" / "val" / kitti_paths(1)[1]).unlink()
    message = (
        rf"holds 1 images of KITTI.*1 files are missing, such as {KITTI_MISSING}\); 652 are needed.*--allow-partial"
    )
    with pytest.raises(DataError, match=message):
        open_benchmark("kitti", tmp_path)
    benchmark = open_partial("kitti", tmp_path)
    assert (len(benchmark.entries), benchmark.is_complete) == (1, False)
    (tmp_path / "kitti" / "val" / kitti_paths(0)[1]).unlink()
    with pytest.raises(DataError, match=r"holds no image of KITTI.*openmarigold data where kitti"):
        open_partial("kitti", tmp_path)


KITTI_MISSING = re.escape(kitti_paths(1)[1])


# --- ETH3D


def test_eth3d(tmp_path: Path) -> None:
    depth = make_depth(30, 40, high=40)
    make_eth3d(tmp_path / "eth3d" / "rgb-and-depth", {"office/DSC_0219": depth})
    # Undistorted photos are another set.
    write(tmp_path / "eth3d" / "office" / "images" / "dslr_images_undistorted" / "DSC_0219.JPG", b"no")
    sample = only_sample(open_partial("eth3d", tmp_path))
    assert (sample.name, sample.place) == ("office/DSC_0219", "office")
    np.testing.assert_array_equal(sample.maps["depth"], depth.astype(np.float32))
    np.testing.assert_array_equal(sample.valid_mask, depth > 0)  # inf became 0, nothing is too far
    assert sample.max_value == np.inf


def test_eth3d_of_another_size(tmp_path: Path) -> None:
    make_eth3d(tmp_path / "eth3d", {"office/DSC_0219": make_depth(30, 40)})
    path = tmp_path / "eth3d" / "office" / "ground_truth_depth" / "dslr_images" / "DSC_0219.JPG"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="4796 bytes; 4800 are needed for 30x40"):
        only_sample(open_partial("eth3d", tmp_path))
    path.unlink()
    with pytest.raises(DataError, match=r"1 files are missing, such as office/ground_truth_depth"):
        open_partial("eth3d", tmp_path)


# --- DIODE


def test_diode(tmp_path: Path) -> None:
    indoors, outdoor = "indoors/scene_00019/scan_00183/00019_00183", "outdoor/scene_00022/scan_00193/00022_00193"
    depths = {indoors: make_depth(24, 32, high=0.9, low=0.3), outdoor: make_depth(24, 32, high=400)}
    make_diode(tmp_path / "diode" / "val", depths)
    make_diode(tmp_path / "diode" / "train", depths)
    benchmark = open_partial("diode", tmp_path)
    assert [(entry.name, entry.kind, entry.place) for entry in benchmark.entries] == [
        (indoors, "indoor", "scene_00019"),
        (outdoor, "outdoor", "scene_00022"),
    ]
    for entry in benchmark.entries:
        sample = benchmark.sample(entry)
        # The data set's mask alone says what is valid, also nearer than 0.6 m and farther than 350 m.
        np.testing.assert_array_equal(sample.valid_mask, depths[entry.name] > 0)
        np.testing.assert_array_equal(sample.maps["depth"], depths[entry.name].astype(np.float32))


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("_depth.npy", b"no npy", "is missing or damaged"),
        ("_depth.npy", npy(np.ones((24, 30, 1), np.float32)), r"the mask is \[24, 32\], the depth \[24, 30\]"),
        ("_depth.npy", npy(np.ones((24, 32), np.uint8)), r"uint8 of shape \[24, 32\] is not a depth map"),
        ("_depth_mask.npy", npy(np.zeros((24, 32), np.float32)), "has no valid pixel"),
        ("_depth_mask.npy", npy(np.array([{}], dtype=object)), "is missing or damaged"),
        (".png", b"no image", "is damaged or cannot be read"),
    ],
)
def test_broken_diode(suffix: str, content: bytes, message: str, tmp_path: Path) -> None:
    name = "indoors/scene_00019/scan_00183/one"
    make_diode(tmp_path / "diode", {name: make_depth(24, 32)})
    write(tmp_path / "diode" / f"{name}{suffix}", content)
    with pytest.raises((DataError, ImageError), match=message):
        only_sample(open_partial("diode", tmp_path))
    (tmp_path / "diode" / f"{name}_depth_mask.npy").unlink()
    with pytest.raises(DataError, match=r"1 files are missing, such as .*_depth_mask"):
        open_partial("diode", tmp_path)


# --- ScanNet


@pytest.mark.parametrize("photo_scale", [1, 2])
def test_scannet(photo_scale: int, tmp_path: Path) -> None:
    depths = {"scene0406_02/000300": make_depth(24, 32, high=12), "scene0406_00/000100": make_depth(24, 32, seed=1)}
    make_scannet(tmp_path / "scannet", depths, photo_scale=photo_scale)
    benchmark = open_partial("scannet", tmp_path)
    # Scans of the same room are one place.
    assert [entry.place for entry in benchmark.entries] == ["scene0406", "scene0406"]
    for entry, depth in zip(benchmark.entries, depths.values(), strict=True):
        sample = benchmark.sample(entry)
        millimeters = np.rint(depth * 1000)
        np.testing.assert_array_equal(sample.maps["depth"], millimeters / 1000)
        np.testing.assert_array_equal(sample.valid_mask, (millimeters > 1) & (millimeters < 10_000))
        assert sample.rgb.shape == (24, 32, 3)


def test_a_list_with_a_line_that_is_no_pair(tmp_path: Path) -> None:
    make_scannet(tmp_path / "scannet", {"scene0406_02/000300": make_depth(24, 32)})
    (tmp_path / "scannet" / "scannet_val_sampled_list_800_1.txt").write_text("scene0406_02/color/000300.jpg\n")
    with pytest.raises(DataError, match=r"'scene0406_02/color/000300\.jpg' is not `rgb depth`"):
        open_partial("scannet", tmp_path)


# --- The generic folder, and what all have in common


@pytest.mark.parametrize("kind", ["folder", "own.tar", "own.zip"])
def test_generic_layout(kind: str, tmp_path: Path) -> None:
    folder = make_folder_benchmark(tmp_path / "folder")
    path = folder if kind == "folder" else tmp_path / kind
    if kind != "folder":
        pack(folder, path)
    benchmark = open_folder_benchmark(path)
    assert [entry.name for entry in benchmark.entries][:2] == ["room-0", "room-1"]
    for index, entry in enumerate(benchmark.entries):
        sample = benchmark.sample(entry)
        expected = np.rint(make_depth(24, 32, seed=index) * 1000) / 1000
        np.testing.assert_array_equal(sample.maps["depth"], expected)
        np.testing.assert_array_equal(sample.valid_mask, expected > 0)
        assert sample.max_value == (20 if entry.kind == "room" else 80)


def test_broken_folders(tmp_path: Path) -> None:
    folder = make_folder_benchmark(tmp_path / "folder", count=1)

    def sample():
        return only_sample(open_folder_benchmark(folder))

    (folder / "room-0" / "depth.png").write_bytes(image_bytes(np.ones((24, 32), np.uint8)))
    with pytest.raises(DataError, match=r"depth\.png is missing or damaged .*Pillow mode L, not 16-bit grays"):
        sample()
    (folder / "room-0" / "depth.png").write_bytes(gray16(np.ones((24, 32)), 1000))
    for meta in ('{"depth_scale": 0}', '{"depth_scale": "many"}', "[]"):
        (folder / "room-0" / "meta.json").write_text(meta)
        with pytest.raises(DataError, match=r"meta\.json has no number depth_scale"):
            sample()
    (folder / "room-0" / "meta.json").write_text('{"depth_scale": ')
    with pytest.raises(DataError, match=r"room-0/meta\.json is not valid JSON .*; get the benchmark again"):
        sample()
    (folder / "room-0" / "meta.json").unlink()
    with pytest.raises(DataError, match=r"meta\.json is missing or damaged"):
        sample()
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) * 2))
    with pytest.raises(DataError, match="lists an image twice"):
        sample()


def test_a_tar_that_is_cut_off_is_said_to_be(tmp_path: Path) -> None:
    folder = make_folder_benchmark(tmp_path / "folder", count=1)
    with tarfile.open(tmp_path / "cut.tar", "w") as tar:
        for name in ("room-0/rgb.jpg", "room-0/depth.png", "room-0/meta.json", "manifest.json"):
            tar.add(folder / name, arcname=name)
    with tarfile.open(tmp_path / "cut.tar") as tar:
        within_depth = tar.getmembers()[1].offset_data + 20
    os.truncate(tmp_path / "cut.tar", within_depth)
    with pytest.raises(DataError, match=r"manifest\.json cannot be read \(No such file or directory\) \(.*cut\.tar "):
        open_folder_benchmark(tmp_path / "cut.tar")


def test_photos_without_a_map_are_named(tmp_path: Path) -> None:
    """Photos in a folder without a manifest; pictures that belong to a photo are not photos."""
    results = ("a_depth_colored.png", "a_edges.png", "sub/b_1_uncertainty.png")
    for name in ("a.jpg", "sub/b_1.jpg", "c.png", "sub/d.jpg", "a_left.jpg", *results):
        write(tmp_path / name, image_bytes(np.zeros((4, 5, 3), np.uint8), "PNG"))
    for name in ("a", "sub/b_1"):
        write(tmp_path / f"{name}_depth.npy", npy(np.ones((4, 5))))
    opened = open_folder_benchmark(tmp_path)
    assert [entry.name for entry in opened.entries] == ["a", "sub/b_1"]
    assert opened.notes == ("3 photos have no depth map: a_left.jpg, c.png, sub/d.jpg; left out",)
    write(tmp_path / "c_depth.npy", npy(np.ones((4, 5))))
    (tmp_path / "a_left.jpg").unlink()
    assert open_folder_benchmark(tmp_path).notes == ("1 photo has no depth map: sub/d.jpg; left out",)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("room", 20.0), ("tabletop", 20.0), ("outdoor", 80.0), ("Street", 80.0), ("landscapes", 80.0), ("cave", 20.0)],
)
def test_kinds_of_a_folder_have_ranges(kind: str, limit: float) -> None:
    assert BENCHMARKS["folder"].max_value_of(kind) == limit


def test_kinds_that_cannot_be_reported_are_refused(tmp_path: Path) -> None:
    folder = make_folder_benchmark(tmp_path / "folder", count=2)
    entries = json.loads((folder / "manifest.json").read_text())
    for kind, message in (
        ("all", "which is the name of the scores over all kinds"),
        ("\ud800", "which is not valid Unicode"),
    ):
        entries[0]["kind"] = kind
        (folder / "manifest.json").write_text(json.dumps(entries))
        with pytest.raises(DataError, match=message):
            open_folder_benchmark(folder)
    for entry in entries:
        entry["kind"] = "all"
    (folder / "manifest.json").write_text(json.dumps(entries))
    assert len(open_folder_benchmark(folder).entries) == 2, "the only kind, so its scores are those of all"


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="diode does not exist; `openmarigold data where diode` lists"):
        open_benchmark("diode", tmp_path)


def test_images_that_are_there_twice(tmp_path: Path) -> None:
    make_nyuv2_extracted(tmp_path / "nyuv2" / "extracted", [make_depth(*NYU_SIZE)])
    pack(tmp_path / "nyuv2" / "extracted", tmp_path / "nyuv2" / "again.tar")
    with pytest.raises(DataError, match="holds images twice, extracted and in an archive"):
        open_partial("nyuv2", tmp_path)


def test_a_photo_is_upright_like_its_depth(tmp_path: Path) -> None:
    add_folder_image(tmp_path, "one", "room", "a", make_depth(24, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_photo(24, 32)).save(tmp_path / "one" / "rgb.jpg", exif=exif)
    with pytest.raises(DataError, match=r"is \[24, 32\] and its photo \[32, 24\]; sizes must be equal"):
        only_sample(open_folder_benchmark(tmp_path))
