# SPDX-License-Identifier: Apache-2.0
"""From Hypersim to shards: the formulas by hand, every defect by name, the same bytes from any number of processes."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dying import DyingOnceReader
from openmarigold.cli.prepare import PrepareHypersim, _filter
from openmarigold.data import preview
from openmarigold.data.decoding import FrameDefectError, plane_depth
from openmarigold.data.preparation import PUBLISHED_FILTER, FrameFilter, prepare
from openmarigold.data.preview import write_preview
from openmarigold.data.readers.hypersim import FOCAL_PX, SPLIT_CSV, HypersimReader, millimeters, tone_map
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.units import ProcessEngine, UnitEngine
from openmarigold.data.verification import verify
from openmarigold.errors import DataError, InvalidValueError, OpenMarigoldError, OutputError
from raw_data import FOCAL_PX as SMALL_FOCAL_PX
from raw_data import (
    HYPERSIM_DEFECTS,
    HYPERSIM_GOOD,
    HYPERSIM_LEFT_OUT,
    SIZE,
    DyingReader,
    hypersim_arrays,
    write_good_hypersim_frame,
    write_hypersim,
    write_split,
)


def rejections(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- Formulas


def test_tone_map_by_hand() -> None:
    # 11 valid grays 0, 0.1 ... 1.0: the 90th percentile is the tenth, 0.9, and becomes 0.8.
    values = np.array([0.1 * number for number in range(11)] + [50.0], dtype=np.float32)
    valid_mask = np.array([[True] * 11 + [False]])
    rgb = tone_map(values[None, :, None].repeat(3, axis=2), valid_mask)
    assert rgb.shape == (1, 12, 3) and rgb[0, 0, 0] == 0
    for number in (1, 4, 7, 10):
        linear = 0.8**2.2 / 0.9 * 0.1 * number
        assert rgb[0, number].tolist() == [math.floor(255 * linear ** (1 / 2.2))] * 3
    assert rgb[0, 11].tolist() == [255] * 3  # brighter than the exposure allows


def test_brightness_weighs_the_channels() -> None:
    color = np.zeros((1, 4, 3), dtype=np.float32)
    color[..., 1] = 0.5  # brightness 0.59 * 0.5, so green becomes 0.8 / 0.59 ** (1 / 2.2) > 1
    assert tone_map(color, np.ones((1, 4), dtype=bool))[0, 0].tolist() == [0, 255, 0]
    color[..., 0] = 0.5  # brightness 0.89 * 0.5
    expected = math.floor(255 * 0.8 / 0.89 ** (1 / 2.2))
    assert tone_map(color, np.ones((1, 4), dtype=bool))[0, 0].tolist() == [expected, expected, 0]


def test_exposure_of_the_dark_of_nothing_and_of_lamps() -> None:
    color = np.full((2, 10, 3), 1e-5, dtype=np.float32)
    assert tone_map(color, np.ones((2, 10), dtype=bool)).max() == 0  # too dark to be exposed
    gray = np.full((2, 10, 3), 0.5, dtype=np.float32)
    assert tone_map(gray, np.zeros((2, 10), dtype=bool))[0, 0, 0] == math.floor(255 * 0.5 ** (1 / 2.2))
    gray[0, 0] = np.inf
    assert tone_map(gray, np.ones((2, 10), dtype=bool))[0, 0].tolist() == [255] * 3
    gray[0, 0] = -1.0
    assert tone_map(gray, np.ones((2, 10), dtype=bool))[0, 0].tolist() == [0] * 3
    gray[:] = np.inf
    with pytest.raises(FrameDefectError, match="not finite"):
        tone_map(gray, np.ones((2, 10), dtype=bool))


def test_plane_depth_by_hand() -> None:
    distance = np.full((768, 1024), 10.0, dtype=np.float32)
    depth = plane_depth(distance, fx=FOCAL_PX, fy=FOCAL_PX, cx=512.0, cy=384.0)
    # Corner: 511.5 and 383.5 pixels from the middle; sqrt(511.5² + 383.5² + 886.81²) = 1093.2230.
    assert depth[0, 0] == pytest.approx(10 * 886.81 / 1093.2230, rel=1e-6)
    assert depth[767, 0] == depth[0, 1023] == depth[767, 1023] == depth[0, 0]
    # Next to the middle: half a pixel from it on both axes.
    assert depth[383, 511] == pytest.approx(10 * 886.81 / math.sqrt(0.25 + 0.25 + 886.81**2), rel=1e-6)


def test_millimeters_are_cut_and_do_not_wrap_around() -> None:
    depth = np.array([[1.2349, 65.5351, 66.0, 400.0, np.nan, np.inf, -1.0, 2.0]])
    valid_mask = np.array([[True] * 7 + [False]])
    assert millimeters(depth, valid_mask).tolist() == [[1234, 65535, 65535, 65535, 0, 0, 0, 0]]


# --- Hypersim


def hypersim_reader(source: Path, **options: Any) -> HypersimReader:
    return HypersimReader(source, size=SIZE, focal_px=SMALL_FOCAL_PX, **options)


@pytest.fixture(scope="module")
def hypersim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypersim(tmp_path_factory.mktemp("hypersim"))


def test_good_frames_pass_and_each_bad_one_is_named(hypersim: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    steps: list[tuple[int, int]] = []
    prepared = prepare(
        hypersim_reader(hypersim), tmp_path, shard_size=5, note=notes.append, progress=lambda *step: steps.append(step)
    )
    data = ShardedDataset(tmp_path)
    assert data.keys == [*(f"ai_001_001-cam_00-{number:04d}" for number in HYPERSIM_GOOD), "ai_001_002-cam_01-0007"]
    found = {row["name"]: (row["reason"], row["is_error"]) for row in rejections(tmp_path)}
    name = "ai_001_001/images/scene_cam_00_final_hdf5/frame.{:04d}.color.hdf5"
    expected = {name.format(number): (reason, True) for number, reason in HYPERSIM_DEFECTS.items()}
    expected |= {name.format(number): (reason, False) for number, reason in HYPERSIM_LEFT_OUT.items()}
    assert found == {**expected, "ai_001_004": ("scene not there", False)}
    assert notes == [f"1 scenes of the selection are not in {hypersim}, ai_001_004 first"]
    assert steps[0] == (0, 17) and steps[-1] == (17, 17)
    counts = prepared.manifest["counts"]
    assert counts["samples"] == 5 and counts["scenes"] == {"ai_001_001": 4, "ai_001_002": 1}
    assert sum(counts["defective"].values()) == len(HYPERSIM_DEFECTS)
    assert verify(tmp_path) == []


def test_a_frame_is_what_the_formulas_say(hypersim: Path, tmp_path: Path) -> None:
    prepare(hypersim_reader(hypersim), tmp_path)
    data = ShardedDataset(tmp_path)
    color, distance, entity = hypersim_arrays(0, SIZE)
    sample = data.read(0)
    valid_mask = entity != -1
    np.testing.assert_array_equal(sample.rgb, tone_map(color.astype(np.float32), valid_mask))
    assert "depth" in sample.maps and sample.kind == "rooms"
    x, y = 31.5 - 16, 20.5 - 12
    exact = float(distance[20, 31]) * 27.7 / math.sqrt(x**2 + y**2 + 27.7**2)
    assert sample.maps["depth"][20, 31] == pytest.approx(math.floor(1000 * exact) / 1000)
    np.testing.assert_array_equal(sample.maps["depth"] == 0, ~valid_mask)
    holes, far = data.read(1).maps["depth"], data.read(2).maps["depth"]
    assert holes is not None and far is not None
    assert (holes[10:12] == 0).all() and (holes[12:] > 0).all()
    # 300 m is beyond 16 bits of millimeters, and stays far.
    assert far[20, -1] == np.float32(65.535) and data.valid_range == (1e-5, 65.0)
    assert data.info(1)["non_finite_depth"] == 64
    assert data.info(0)["intrinsics"] == {"fx": 27.7, "fy": 27.7, "cx": 16.0, "cy": 12.0}
    with (tmp_path / "meta.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == data.keys
    valid = sample.maps["depth"][sample.maps["depth"] > 0].astype(np.float64)
    assert float(rows[0]["depth_mean"]) == pytest.approx(valid.mean(), abs=1e-6)
    assert float(rows[0]["depth_std"]) == pytest.approx(valid.std(), abs=1e-6)
    assert float(rows[0]["rgb_mean"]) == pytest.approx(sample.rgb.mean(), abs=1e-6)
    assert (float(rows[0]["depth_min"]), float(rows[0]["rgb_max"])) == (pytest.approx(valid.min()), sample.rgb.max())
    assert float(rows[0]["invalid_ratio"]) == pytest.approx(3 / 24, abs=1e-6)


def test_selections(hypersim: Path, tmp_path: Path) -> None:
    def keys(**options: Any) -> list[str]:
        return [frame.key for frame in hypersim_reader(hypersim, **options).list_frames().frames]

    assert keys(split="test") == ["ai_001_003-cam_00-0000"]
    assert len(keys(split="all")) == 18
    assert keys(scenes=("ai_001_002",)) == ["ai_001_002-cam_01-0007"]
    listed = [
        "train/ai_001_002/rgb_cam_01_fr0007.png train/ai_001_002/depth_plane_cam_01_fr0007.png",
        "ai_001_001/images/scene_cam_00_final_hdf5/frame.0009.color.hdf5",
        "ai_001_001-cam_00-0000",
    ]
    expected = ["ai_001_002-cam_01-0007", "ai_001_001-cam_00-0009", "ai_001_001-cam_00-0000"]
    assert keys(listed=listed) == expected
    with pytest.raises(DataError, match="'holiday' names no frame"):
        keys(listed=["holiday"])
    with pytest.raises(DataError, match="no scene ai_001_004 of the selection"):
        keys(scenes=("ai_001_004",))
    with pytest.raises(DataError, match="no public frame of split 'val'; use train, val, test or all"):
        keys(split="val")
    with pytest.raises(DataError, match="is not a folder"):
        hypersim_reader(hypersim / "none").list_frames()
    with pytest.raises(DataError, match="does not exist; it is evermotion_dataset"):
        hypersim_reader(tmp_path).list_frames()
    (tmp_path / SPLIT_CSV).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="is not Hypersim's split"):
        hypersim_reader(tmp_path).list_frames()


def test_thresholds_and_limit(hypersim: Path, tmp_path: Path) -> None:
    everything = prepare(hypersim_reader(hypersim), tmp_path / "a", frame_filter=FrameFilter(min_valid=0.0))
    assert everything.manifest["counts"]["samples"] == 6  # the frame with little depth too
    strict = prepare(
        hypersim_reader(hypersim),
        tmp_path / "b",
        frame_filter=FrameFilter(min_valid=0.85, min_brightness=0.3),
        limit=12,
    )
    counts = strict.manifest["counts"]
    assert counts["left_out"] == {"scene not there": 1, "too little depth": 3}
    assert counts["samples"] + sum(counts["defective"].values()) + 3 == 12
    dark = prepare(hypersim_reader(hypersim), tmp_path / "c", frame_filter=FrameFilter(min_brightness=0.99))
    assert dark.manifest["counts"]["left_out"]["too dark"] == 5
    for options in ({"min_valid": 1.5}, {"min_brightness": -0.1}):
        with pytest.raises(InvalidValueError, match=r"must be in \[0, 1\]"):
            FrameFilter(**options)


def test_the_published_filter_by_hand() -> None:
    """At most 3 % without depth, a depth range of 0.5 m, an RGB range of 10: each limit from both sides."""
    assert (PUBLISHED_FILTER.max_invalid, PUBLISHED_FILTER.min_depth_range, PUBLISHED_FILTER.min_rgb_range) == (
        0.03,
        0.5,
        10,
    )

    def refused(*, holes: int = 0, spread: float = 2.0, colors: int = 100, far: float = 0.0) -> str:
        depth = np.full((10, 10), 1.0, dtype=np.float32)
        depth[:, 5:] = 1.0 + spread
        depth.flat[:holes] = 0.0
        depth.flat[50 : 50 + 5] = far or depth.flat[50]
        rgb = np.full((10, 10, 3), 50, dtype=np.uint8)
        rgb[0, 0, 0] = 50 + colors
        try:
            PUBLISHED_FILTER.apply(rgb, {"depth": depth}, (1e-5, 65.0))
        except FrameDefectError as defect:
            assert not defect.is_error
            return str(defect)
        return ""

    assert refused() == refused(holes=3) == refused(spread=0.5) == refused(colors=10) == refused(far=70.0) == ""
    assert refused(holes=4) == "too many holes: 0.0400 of the pixels have no value"
    assert refused(spread=0.49).startswith("small range: depth spans 0.490")
    assert refused(colors=9) == "small range: rgb spans 9"


def test_a_plan_without_the_newer_thresholds_is_that_of_earlier_versions() -> None:
    assert FrameFilter().record() == {"min_valid": 0.05, "min_brightness": 0.0}
    assert FrameFilter(max_invalid=0.5).record() == {"min_valid": 0.05, "min_brightness": 0.0, "max_invalid": 0.5}


def test_hypersims_training_split_is_filtered_as_published(hypersim: Path, tmp_path: Path) -> None:
    command = PrepareHypersim(source=hypersim, dest=tmp_path)
    assert _filter(command) == PUBLISHED_FILTER
    assert _filter(dataclasses.replace(command, max_invalid=0.2)).max_invalid == 0.2
    for changes in ({"split": "val"}, {"modality": "normals"}, {"list": tmp_path / "list.txt"}):
        assert _filter(dataclasses.replace(command, **changes)) == FrameFilter()
    with pytest.raises(InvalidValueError, match="workers=0 must be at least 1"):
        prepare(hypersim_reader(hypersim), tmp_path / "d", workers=0)


def test_a_set_without_a_good_frame_is_an_empty_one(tmp_path: Path) -> None:
    write_split(tmp_path, [("ai_001_001", "cam_00", 0, "True", "train")])
    (tmp_path / "ai_001_001").mkdir()
    manifest = prepare(hypersim_reader(tmp_path), tmp_path / "out").manifest
    assert manifest["counts"]["samples"] == 0 and manifest["counts"]["defective"] == {"missing file": 1}
    assert len(ShardedDataset(tmp_path / "out")) == 0 and verify(tmp_path / "out") == []


# --- Verify and preview


def test_every_flipped_byte_is_found(hypersim: Path, tmp_path: Path) -> None:
    prepare(hypersim_reader(hypersim), tmp_path, shard_size=16)
    shard = tmp_path / "shard-00000.tar"
    whole = shard.read_bytes()
    rng = np.random.default_rng(7)
    data = ShardedDataset(tmp_path)
    for position in [*rng.integers(0, len(whole), 6).tolist(), len(whole) - 1]:
        changed = bytearray(whole)
        changed[position] ^= 1 << int(rng.integers(8))
        shard.write_bytes(changed)
        problems = verify(tmp_path, workers=2)
        inside = [
            key
            for index, key in enumerate(data.keys)
            if data.shard_numbers[index] == 0
            and any(start <= position < start + size for start, size, _ in data.places(index).values())
        ]
        assert problems[0].what == "its SHA-256 is not that of the manifest"
        assert [problem.key for problem in problems[1:]] == inside
        assert all("checksum" in problem.what for problem in problems[1:])
    shard.write_bytes(whole)
    assert verify(tmp_path) == []
    shard.write_bytes(whole[:-1000])
    assert "bytes, not" in str(verify(tmp_path)[0])
    shard.unlink()
    assert [str(problem) for problem in verify(tmp_path)] == [
        "shard-00000.tar: cannot be read: No such file or directory"
    ]
    shard.write_bytes(whole)
    index = tmp_path / "shard-00001.json"
    content = json.loads(index.read_text())
    content["samples"][0]["key"] = "other"
    index.write_text(json.dumps(content))
    assert [str(problem) for problem in verify(tmp_path)] == ["shard-00001.json: does not agree with index.npy"]
    index.unlink()
    assert "cannot be read (FileNotFoundError)" in str(verify(tmp_path)[0])
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"contents": "', '"contents": "0'))
    assert "`contents` is not the hash" in str(verify(tmp_path)[0])


def test_preview(hypersim: Path, tmp_path: Path) -> None:
    prepare(hypersim_reader(hypersim), tmp_path / "set")
    assert write_preview(tmp_path / "set", tmp_path / "sheet.png", count=3) == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    # Two columns of RGB next to depth, two rows; the holes of the first sample, its top eighth, are black.
    assert pixels.shape[1] == 2 * (2 * 288 + 6) + 6
    assert (pixels[10:20, 6 + 288 + 10 : 6 + 570] == 0).all()
    assert write_preview(tmp_path / "set", tmp_path / "sheet.jpg") == 5
    with pytest.raises(InvalidValueError, match=r"must end in \.jpg or \.png"):
        write_preview(tmp_path / "set", tmp_path / "sheet.gif")
    with pytest.raises(InvalidValueError, match="count=0"):
        write_preview(tmp_path / "set", tmp_path / "sheet.jpg", count=0)
    with pytest.raises(OutputError, match=r"sheet\.jpg exists"):
        write_preview(tmp_path / "set", tmp_path / "sheet.jpg")
    assert write_preview(tmp_path / "set", tmp_path / "sheet.jpg", count=1, overwrite=True) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "_MOST_JPEG_ROWS", 300)
        with pytest.raises(InvalidValueError, match=r"at most 300 rows, and 5 samples need"):
            write_preview(tmp_path / "set", tmp_path / "more.jpg")


def test_the_result_does_not_depend_on_the_processes(hypersim: Path, tmp_path: Path) -> None:
    one = prepare(hypersim_reader(hypersim), tmp_path / "one", shard_size=3)
    two = prepare(hypersim_reader(hypersim), tmp_path / "two", shard_size=3, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert one == two
    again = prepare(hypersim_reader(hypersim), tmp_path / "two", shard_size=3, workers=2)
    assert again.num_shards_kept == len(again.manifest["shards"]) == 6
    assert files(tmp_path / "one") == files(tmp_path / "two")
    with pytest.raises(DataError, match=r"prepared with other settings .*shard_size: 3 then, 4 now"):
        prepare(hypersim_reader(hypersim), tmp_path / "two", shard_size=4)


def test_a_worker_that_is_ended_from_outside(hypersim: Path, tmp_path: Path) -> None:
    reader = DyingReader(hypersim, size=SIZE, focal_px=SMALL_FOCAL_PX)
    with pytest.raises(OpenMarigoldError, match="finished shards are kept: run the same command again, with fewer"):
        prepare(reader, tmp_path, shard_size=9, workers=2)
    prepare(hypersim_reader(hypersim), tmp_path, shard_size=9)
    assert verify(tmp_path) == [] and len(ShardedDataset(tmp_path)) == 5
    assert not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_engines_make_the_same_bytes_though_a_worker_dies(kind: str, hypersim: Path, tmp_path: Path) -> None:
    if kind == "ray":
        pytest.importorskip("ray")
        from openmarigold.batch.ray_engine import RayEngine

        engine: UnitEngine = RayEngine(address="local", workers=2)
    else:
        engine = ProcessEngine(workers=1)
    reader = DyingOnceReader(hypersim, size=SIZE, focal_px=SMALL_FOCAL_PX)
    reader.marker = tmp_path / "died"
    told: list[tuple[int, int]] = []
    made = prepare(
        reader,
        tmp_path / "made",
        shard_size=3,
        engine=engine,
        progress=lambda done, total: told.append((done, total)),
    )
    assert reader.marker.exists()
    prepare(hypersim_reader(hypersim), tmp_path / "one", shard_size=3)
    assert files(tmp_path / "made") == files(tmp_path / "one")  # and nothing of what the worker had begun
    total = told[0][1]
    assert told[-1] == (total, total) and len(told) == 1 + len(made.manifest["shards"])


def test_a_good_frame_at_the_real_size(tmp_path: Path) -> None:
    write_good_hypersim_frame(tmp_path / "ai_001_001", "cam_00", 0, (768, 1024))
    write_split(tmp_path, [("ai_001_001", "cam_00", 0, "True", "train")])
    prepare(HypersimReader(tmp_path), tmp_path / "out")
    data = ShardedDataset(tmp_path / "out")
    assert data.sizes.tolist() == [[768, 1024]]
    depth = data.read(0).maps["depth"]
    assert depth is not None
    _, distance, _ = hypersim_arrays(0, (768, 1024))
    exact = float(distance[767, 0]) * 886.81 / math.sqrt(511.5**2 + 383.5**2 + 886.81**2)
    assert depth[767, 0] == pytest.approx(math.floor(1000 * exact) / 1000)
