# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of depth completion on files in each layout: what is given, which pixels count, the filter of LiDAR."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_data import add_folder_image, gray16, image_bytes, make_depth, make_nyuv2_extracted, pack, write
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation import score_benchmark
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmarks import BENCHMARKS, open_benchmark, open_folder_benchmark
from openmarigold.evaluation.completion_estimators import PointsEstimator
from openmarigold.evaluation.revealing import drop_see_through, shuffled_points, sparse_points, with_points
from openmarigold.modalities import DEPTH, METRIC, NORMALS
from tiny import make_photo

SIZE = (24, 32)


def open_partial(name: str, root: Path) -> Benchmark:
    return open_benchmark(name, root, allow_partial=True)


def steps(depth: np.ndarray, per_meter: float) -> np.ndarray:
    """Depth as a 16-bit file can hold it."""
    return np.rint(depth * per_meter) / per_meter


def some(depth: np.ndarray, share: float = 0.1, seed: int = 5) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(depth.shape) < share, depth, 0)


def two_meters(more: float = 0.0) -> PointsEstimator:
    return PointsEstimator(estimate=lambda rgb, points: np.full(rgb.shape[:2], 2.0 + more))


# --- The layouts


def make_kitti(root: Path, depth: np.ndarray, sparse: np.ndarray) -> str:
    folder = root / "kitti" / "depth_selection" / "val_selection_cropped"
    drive, end = "2011_09_26_drive_0002_sync", "0000000005_image_02.png"
    write(folder / "image" / f"{drive}_image_{end}", image_bytes(make_photo(*depth.shape)))
    write(folder / "groundtruth_depth" / f"{drive}_groundtruth_depth_{end}", gray16(depth, 256))
    write(folder / "velodyne_raw" / f"{drive}_velodyne_raw_{end}", gray16(sparse, 256))
    return f"{drive}_image_0000000005_image_02"


def test_kitti(tmp_path: Path) -> None:
    depth = np.full(SIZE, 8.0)
    depth[:4] = 0  # the sky
    sparse = np.zeros(SIZE)
    sparse[10, 10], sparse[11, 12], sparse[20, 20] = 6, 7.75, 9  # the second is 1.75 m behind the first, next to it
    name = make_kitti(tmp_path, depth, sparse)
    for benchmark, given in (("kitti-lidar", 3), ("kitti-completion", 2)):
        opened = open_partial(benchmark, tmp_path)
        (entry,) = opened.entries
        sample = opened.sample(entry)
        assert (entry.name, entry.place, entry.kind) == (name, "2011_09_26_drive_0002_sync", "outdoor")
        np.testing.assert_array_equal(sample.maps["depth"], depth)
        np.testing.assert_array_equal(sample.valid_mask, depth > 0)
        assert np.count_nonzero(sample.given["depth"]) == given
        assert (sample.given["depth"][10, 10], sample.given["depth"][20, 20]) == (6, 9)
    # 0.5 m off everywhere, of 8 m: hand values. Given pixels count, as in the official scores.
    report = score_benchmark(opened, two_meters(6.5))
    assert (report.protocol, report.modality) == ("completion", "metric")
    assert report.kinds["all"].metrics == pytest.approx(
        {
            "mae": 0.5,
            "rmse": 0.5,
            "i_mae": 1 / 8 - 1 / 8.5,
            "i_rmse": 1 / 8 - 1 / 8.5,
            "abs_rel": 0.0625,
            "delta1": 1,
            "pixels_scored": 1,
        }
    )
    with pytest.raises(DataError, match=r"holds 1 images of KITTI depth completion.* 1000 are needed"):
        open_benchmark("kitti-completion", tmp_path)
    (tmp_path / "zipped").mkdir()
    pack(tmp_path / "kitti", tmp_path / "zipped" / "kitti.zip")
    zipped = open_partial("kitti-lidar", tmp_path / "zipped")
    np.testing.assert_array_equal(zipped.sample(zipped.entries[0]).given["depth"], sparse)


def test_kitti_without_a_file(tmp_path: Path) -> None:
    make_kitti(tmp_path, np.full(SIZE, 8.0), np.full(SIZE, 8.0))
    (lidar,) = tmp_path.rglob("velodyne_raw/*.png")
    lidar.write_bytes(gray16(np.full((5, 5), 8.0), 256))
    opened = open_partial("kitti-lidar", tmp_path)
    with pytest.raises(DataError, match=r"velodyne_raw.*size \[5, 5\], the photo \[24, 32\]"):
        opened.sample(opened.entries[0])
    lidar.write_bytes(gray16(np.zeros(SIZE), 256))
    with pytest.raises(DataError, match="has no given point"):
        opened.sample(opened.entries[0])
    lidar.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"velodyne_raw.*is missing or damaged"):
        opened.sample(opened.entries[0])
    lidar.unlink()
    with pytest.raises(DataError, match=r"no image of KITTI.*1 files are missing, such as .*velodyne_raw"):
        open_partial("kitti-lidar", tmp_path)


@pytest.mark.parametrize("num_points", [150, 1500])
def test_void(tmp_path: Path, num_points: int) -> None:
    depth, root = make_depth(*SIZE), tmp_path / "void" / "void_release"
    sparse = some(depth)
    for folder in ("void_150", "void_1500"):
        for time in ("1552.1", "1552.2", "1552.3"):
            frame = root / folder / "data" / "stairs0"
            write(frame / "image" / f"{time}.png", image_bytes(make_photo(*SIZE)))
            write(frame / "ground_truth" / f"{time}.png", gray16(depth, 256))
            write(
                frame / "sparse_depth" / f"{time}.png", gray16(sparse if folder == f"void_{num_points}" else depth, 256)
            )
        lines = [f"data/{folder}/data/stairs0/image/{time}.png" for time in ("1552.1", "1552.3", "1552.9")]
        write(root / folder / "test_image.txt", "\n".join(lines).encode())
    opened = open_partial(f"void-{num_points}", tmp_path)
    assert [entry.name for entry in opened.entries] == ["stairs0/1552.1", "stairs0/1552.3"]  # 1552.2 is not listed
    sample = opened.sample(opened.entries[1])
    np.testing.assert_array_equal(sample.given["depth"], steps(sparse, 256))
    np.testing.assert_array_equal(sample.maps["depth"], steps(depth, 256))
    assert sample.place == "stairs0"
    with pytest.raises(
        DataError, match=r"holds 2 images of VOID.*1 files are missing, such as .*1552\.9\.png.*800 are"
    ):
        open_benchmark(f"void-{num_points}", tmp_path)
    (root / f"void_{num_points}" / "test_image.txt").unlink()
    with pytest.raises(DataError, match=rf"no list void_{num_points}/test_image\.txt"):
        open_partial(f"void-{num_points}", tmp_path)


def test_ibims(tmp_path: Path) -> None:
    size, root = (40, 50), tmp_path / "ibims" / "ibims1_core_raw"
    depth = make_depth(*size, seed=1)
    valid, opaque = np.ones(size, bool), np.ones(size, bool)
    valid[:8], opaque[:, :5] = False, False
    stored = np.rint(depth * 65535 / 50).astype(np.uint16)
    for name, content in {
        "rgb": image_bytes(make_photo(*size)),
        "depth": image_bytes(stored),
        "mask_invalid": one_bit(valid),
        "mask_transp": one_bit(opaque),
    }.items():
        write(root / name / "corridor_01.png", content)
    opened = open_partial("ibims-completion", tmp_path)
    sample = opened.sample(opened.entries[0])
    counted = valid & opaque & (depth > 0)
    np.testing.assert_array_equal(sample.valid_mask, counted)
    np.testing.assert_allclose(sample.maps["depth"], depth, atol=0.0004)
    known = sample.given["depth"] > 0
    assert np.count_nonzero(known) == 1000 and not (known & ~counted).any()
    np.testing.assert_array_equal(sample.given["depth"][known], sample.maps["depth"][known])


def one_bit(mask: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG")
    return content.getvalue()


def test_ddad(tmp_path: Path) -> None:
    depth, root = np.full(SIZE, 50.0), tmp_path / "ddad" / "pregenerated" / "val"
    sparse = np.zeros(SIZE)
    sparse[5, 5], sparse[5, 8] = 40, 60  # three columns apart: behind
    sparse[20, 5], sparse[20, 12] = 40, 60  # seven columns apart: not
    write(root / "rgb" / "0000000000.png", image_bytes(make_photo(*SIZE)))
    write(root / "gt" / "0000000000.png", gray16(depth, 256))
    write(root / "hints" / "0000000000.png", gray16(sparse, 256))
    opened = open_partial("ddad-completion", tmp_path)
    sample = opened.sample(opened.entries[0])
    assert sorted(zip(*np.nonzero(sample.given["depth"]), strict=True)) == [(5, 5), (20, 5), (20, 12)]
    np.testing.assert_array_equal(sample.maps["depth"], depth)


def test_scannet(tmp_path: Path) -> None:
    depth, root = make_depth(*SIZE), tmp_path / "scannet"
    for scene, number in (("scene0707_00", "000343"), ("scene0707_00", "9"), ("scene0708_01", "58")):
        write(root / scene / "color" / f"{number}.jpg", image_bytes(make_photo(48, 64), "JPEG"))
        write(root / scene / "depth" / f"{number}.png", gray16(depth, 1000))
    write(root / "scannet_decotr_split.txt", b"scene0707_00/343\nscene0708_01/58\nscene0708_01/59\n")
    opened = open_partial("scannet-completion", tmp_path)
    assert [(entry.name, entry.place) for entry in opened.entries] == [
        ("scene0707_00/343", "scene0707"),
        ("scene0708_01/58", "scene0708"),
    ]
    with pytest.raises(DataError, match="1 files are missing, such as scene0708_01/59"):
        open_benchmark("scannet-completion", tmp_path)
    sample = opened.sample(opened.entries[0])
    assert sample.rgb.shape == (*SIZE, 3)
    with Image.open(root / "scene0707_00" / "color" / "000343.jpg") as photo:
        np.testing.assert_array_equal(sample.rgb, photo.resize(SIZE[::-1], Image.Resampling.LANCZOS))
    assert np.count_nonzero(sample.given["depth"]) == 500


def test_nyu(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    depths = np.stack([make_depth(*SIZE, seed=seed) for seed in range(2)]).astype(np.float32)
    photos = np.stack([make_photo(*SIZE, seed=seed) for seed in range(2)])
    hints = np.stack([some(depth) for depth in depths])
    folder = tmp_path / "nyuv2"
    folder.mkdir()
    with h5py.File(folder / "nyu_img_gt.h5", "w") as file:
        file["img"], file["gt"] = photos, depths[..., None]
    with pytest.raises(DataError, match=r"nyu_pred_with_500\.h5 does not exist"):
        open_partial("nyuv2-completion", tmp_path)
    with h5py.File(folder / "nyu_pred_with_500.h5", "w") as file:
        file["hints"] = hints[:, None]
    opened = open_partial("nyuv2-completion", tmp_path)
    assert [entry.name for entry in opened.entries] == ["0000", "0001"]
    sample = opened.sample(opened.entries[1])
    np.testing.assert_array_equal(sample.rgb, photos[1])
    np.testing.assert_array_equal(sample.maps["depth"], depths[1])
    np.testing.assert_array_equal(sample.given["depth"], hints[1])
    other = tmp_path / "other" / "nyuv2"
    shutil.copytree(folder, other)
    with h5py.File(other / "nyu_pred_with_500.h5", "w") as file:
        file["hints"] = hints[:1, None]
    with pytest.raises(DataError, match="different numbers of images"):
        open_partial("nyuv2-completion", other.parent)
    (other / "nyu_pred_with_500.h5").unlink()
    (other / "nyu_pred_with_500.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"nyu_pred_with_500\.h5 is not the set of Conti"):
        open_partial("nyuv2-completion", other.parent)


def test_every_row_says_what_is_given() -> None:
    rows = [row for row in BENCHMARKS.values() if row.reveal]
    assert len(rows) == 9
    for row in rows:
        assert row.reveal and row.reveal.scored and row.given_facts["points"]
        assert row.protocol == "completion" and row.modality is METRIC
        assert "{root}" in row.files


# --- Drawn points


def test_the_published_draw() -> None:
    # The first places of NumPy's legacy shuffle with the seed 2024, worked out with `numpy.random.seed`.
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    depth = np.arange(35, dtype=float).reshape(5, 7) + 1
    places = np.argwhere(mask)
    np.random.seed(2024)
    order = np.random.permutation(len(places))
    known = shuffled_points(depth, mask, 4)
    assert {tuple(place) for place in np.argwhere(known)} == {tuple(places[index]) for index in order[:4]}
    np.testing.assert_array_equal(known[known > 0], depth[known > 0])
    np.testing.assert_array_equal(shuffled_points(depth, mask, 99) > 0, mask)


def slow_filter(known: np.ndarray) -> np.ndarray:
    """The filter, point by point."""
    height, width = known.shape
    kept = known.copy()
    for row, column in np.argwhere(known > 0):
        around = slice(max(0, row - 3), row + 4), slice(max(0, column - 3), column + 4)
        nearest = known[around][known[around] > 0].min()
        for y in range(max(0, row - 3), min(height, row + 4)):
            for x in range(max(0, column - 3), min(width, column + 4)):
                if known[y, x] - nearest > 1.5:
                    kept[y, x] = 0
    return kept


def test_see_through_points_are_dropped() -> None:
    rng = np.random.default_rng(3)
    known = np.where(rng.random((30, 40)) < 0.1, rng.uniform(5, 12, (30, 40)), 0)
    kept = drop_see_through(known)
    np.testing.assert_array_equal(kept, slow_filter(known))
    assert 0 < np.count_nonzero(kept) < np.count_nonzero(known)
    flat = np.where(known > 0, 5.0, 0.0)
    np.testing.assert_array_equal(drop_see_through(flat), flat)


def make_pairs(folder: Path, count: int = 3) -> Path:
    for index in range(count):
        add_folder_image(folder, f"r{index}", "room", f"p{index // 2}", make_depth(*SIZE, seed=index), seed=index)
    return folder


def test_points_of_pairs(tmp_path: Path) -> None:
    plain = open_folder_benchmark(make_pairs(tmp_path))
    benchmark = with_points(plain, 50)
    assert plain.row.reveal is None and plain.row.modality is DEPTH
    samples = [benchmark.sample(entry) for entry in benchmark.entries]
    for sample in samples:
        known = sample.given["depth"] > 0
        assert np.count_nonzero(known) == 50
        np.testing.assert_array_equal(sample.given["depth"][known], sample.maps["depth"][known])
        np.testing.assert_array_equal(sample.valid_mask, (sample.maps["depth"] > 0) & ~known)
    first, second = (sample.given["depth"] > 0 for sample in samples[:2])
    assert (first != second).any()  # each image has points of its own
    again = with_points(open_folder_benchmark(tmp_path), 50).sample(benchmark.entries[0])
    np.testing.assert_array_equal(again.given["depth"], samples[0].given["depth"])
    other = with_points(plain, 50, seed=1).sample(benchmark.entries[0]).given["depth"]
    assert ((other > 0) != first).any()
    more = with_points(plain, 200).sample(benchmark.entries[0]).given["depth"]
    assert np.count_nonzero(more) == 200 and (more[first] > 0).all()


def test_outliers_among_points(tmp_path: Path) -> None:
    benchmark = with_points(open_folder_benchmark(make_pairs(tmp_path)), 200, outliers=0.1)
    sample = benchmark.sample(benchmark.entries[0])
    known = sample.given["depth"] > 0
    ratio = sample.given["depth"][known] / sample.maps["depth"][known]
    wrong = ratio[ratio != 1]
    assert len(ratio) == 200 and len(wrong) == 20
    factors = np.maximum(wrong, 1 / wrong)
    assert (factors >= 1.3).all() and (factors <= 2).all()
    assert (wrong > 1).any() and (wrong < 1).any()
    assert benchmark.row.given_facts == {"points": 200, "outliers": 0.1, "seed": 2024, "given_pixels_scored": False}


def test_points_that_cannot_be_drawn(tmp_path: Path) -> None:
    plain = open_folder_benchmark(make_pairs(tmp_path / "pairs", 1))
    benchmark = with_points(plain, 5000)
    with pytest.raises(DataError, match=r"r0 has \d+ measured pixels, too few for 5000 points"):
        benchmark.sample(benchmark.entries[0])
    for wrong in ({"num_points": 0}, {"num_points": 5, "outliers": 0.6}, {"num_points": 5, "seed": -1}):
        with pytest.raises(InvalidValueError, match="is not accepted"):
            with_points(plain, **wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidValueError, match="has points of its own"):
        with_points(with_points(plain, 5), 5)
    with pytest.raises(InvalidValueError, match="measures surface normals; points need a benchmark of depth"):
        with_points(open_folder_benchmark(tmp_path / "pairs", NORMALS), 5)


def test_points_of_a_known_benchmark(tmp_path: Path) -> None:
    make_nyuv2_extracted(tmp_path / "nyuv2", [make_depth(480, 640)])
    benchmark = with_points(open_partial("nyuv2", tmp_path), 500)
    sample = benchmark.sample(benchmark.entries[0])
    rows, columns = np.nonzero(sample.given["depth"])
    assert len(rows) == 500 and rows.min() >= 45 and columns.max() <= 600  # of the pixels that count


# --- Scores


def test_only_unknown_pixels_are_scored(tmp_path: Path) -> None:
    benchmark = with_points(open_folder_benchmark(make_pairs(tmp_path)), 100)

    def exact_at_points(rgb: np.ndarray, points) -> np.ndarray:
        depth = np.full(rgb.shape[:2], 3.0)
        depth[points.pixels[:, 1].astype(int), points.pixels[:, 0].astype(int)] = points.depth
        return depth

    report = score_benchmark(benchmark, PointsEstimator(estimate=exact_at_points))
    expected = []
    for entry in benchmark.entries:
        sample = benchmark.sample(entry)
        errors = 3.0 - sample.maps["depth"][(sample.maps["depth"] > 0) & (sample.given["depth"] == 0)]
        expected.append((np.abs(errors).mean(), np.sqrt((errors**2).mean())))
    places = [np.mean(expected[:2], axis=0), expected[2]]  # means over places
    metrics = report.kinds["all"].metrics
    assert (metrics["mae"], metrics["rmse"]) == pytest.approx(tuple(np.mean(places, axis=0)))
    assert report.given == {"points": 100, "outliers": 0.0, "seed": 2024, "given_pixels_scored": False}


def test_points_keep_their_pixels() -> None:
    known = np.zeros((3, 4))
    known[2, 1], known[0, 3] = 5, 7
    points = sparse_points(known, "here")
    assert sorted(map(tuple, np.column_stack([points.pixels, points.depth]))) == [(1, 2, 5), (3, 0, 7)]


def test_without_points_there_is_nothing_to_complete(tmp_path: Path) -> None:
    benchmark = open_folder_benchmark(make_pairs(tmp_path), METRIC)
    with pytest.raises(InvalidValueError, match="depth completion needs points"):
        score_benchmark(benchmark, two_meters())


def test_metric_folders_keep_the_ranges_of_depth(tmp_path: Path) -> None:
    make_pairs(tmp_path, 1)
    add_folder_image(tmp_path, "street", "outdoor", "q", make_depth(*SIZE), seed=9)
    benchmark = open_folder_benchmark(tmp_path, METRIC)
    samples = [benchmark.sample(entry) for entry in benchmark.entries]
    assert [(sample.min_value, sample.max_value) for sample in samples] == [(1e-3, 20), (1e-3, 80)]
    for sample in samples:
        np.testing.assert_array_equal(sample.valid_mask, sample.maps["depth"] > 0)
