# SPDX-License-Identifier: Apache-2.0
"""Prepared data sets: encodings, what a shard looks like to others, resuming, damage."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.cli import run
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, Rejection, ShardWriter
from openmarigold.data.shards import ShardedDataset, contents_sha256
from openmarigold.data.sources import Source
from openmarigold.data.statistics import dataset_statistics
from openmarigold.errors import DataError
from training_data import write_training_data

LINEAR = MapEncoding(kind="linear", meters_per_unit=0.001)
LOG = MapEncoding(kind="log", near=0.1, far=100.0, levels=4095)
FLOAT = MapEncoding(kind="float32")


def make_photo(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def jpeg(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG")
    return buffer.getvalue()


def new_sample(number: int, *, kind: str = "rooms", rgb: np.ndarray | bytes | None = None) -> NewSample:
    depth = np.full((6 + number, 9), 1.5 + number, dtype=np.float32)
    depth[0, :number] = 0
    return NewSample(
        key=f"{kind}-{number}",
        kind=kind,
        scene=f"scene_{number // 2}",
        rgb=make_photo(6 + number, 9, seed=number) if rgb is None else rgb,
        maps={"depth": depth},
        info={"source": f"raw/{number}.png"},
    )


def new_writer(folder: Path, *, encoding: MapEncoding = LINEAR, **settings: object) -> ShardWriter:
    return ShardWriter(folder, name="made", split="train", encodings={"depth": encoding}, settings=settings)


def write_five(folder: Path, *, encoding: MapEncoding = LINEAR) -> ShardedDataset:
    writer = new_writer(folder, encoding=encoding)
    writer.begin()
    writer.write(0, [new_sample(0), new_sample(1), Rejection(name="raw/x.png", reason="truncated", detail="cut")])
    writer.write(1, [])
    writer.write(2, [new_sample(2, kind="street"), Rejection(name="y", reason="not listed", is_error=False)])
    last = new_sample(4, rgb=jpeg(make_photo(10, 9)))
    writer.write(3, iter([new_sample(3), last]))
    writer.finish(4, {"license": "CC0"})
    return ShardedDataset(folder)


def test_codes_by_hand() -> None:
    depth = np.array([[0, 0.001, 1.2344, 65.535]], dtype=np.float32)
    np.testing.assert_array_equal(LINEAR.codes(depth), [[0, 1, 1234, 65535]])
    np.testing.assert_array_equal(LINEAR.meters(LINEAR.codes(depth)), np.float32([[0, 0.001, 1.234, 65.535]]))
    # 0.1 m * 1000 ** (code / 4095): 100 m is the last code, sqrt(1000) * 0.1 m the middle.
    depth = np.array([[0, 0.1 * 1000 ** (1 / 4095), 0.1 * 1000**0.5, 100]], dtype=np.float32)
    assert LOG.codes(depth)[0, [0, 1, 3]].tolist() == [0, 1, 4095]
    np.testing.assert_allclose(LOG.meters(LOG.codes(depth)), depth, rtol=0.00085)
    assert LOG.meters(np.array([[0]], dtype=np.uint16))[0, 0] == 0


@pytest.mark.parametrize("encoding", [LINEAR, MapEncoding(kind="linear", meters_per_unit=0.01), LOG])
def test_every_code_survives_a_round_trip(encoding: MapEncoding) -> None:
    codes = np.arange(encoding.levels + 1 if encoding.kind == "log" else 65536, dtype=np.uint16)[None]
    np.testing.assert_array_equal(encoding.codes(encoding.meters(codes)), codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 65.6, 0.0001])
def test_what_does_not_fit_is_refused_and_not_changed(bad: float) -> None:
    depth = np.array([[1.0, bad]], dtype=np.float32)
    with pytest.raises(DataError, match="mark"):
        LINEAR.encode(depth)


def test_impossible_encodings_are_refused() -> None:
    with pytest.raises(DataError, match="0 < near < far"):
        MapEncoding(kind="log", near=3.0, far=2.0)


@pytest.mark.parametrize("encoding", [LINEAR, LOG, FLOAT])
def test_samples_are_read_as_they_were_written(tmp_path: Path, encoding: MapEncoding) -> None:
    data = write_five(tmp_path / "set", encoding=encoding)
    assert data.keys == ["rooms-0", "rooms-1", "street-2", "rooms-3", "rooms-4"]
    assert data.kinds == ["rooms", "rooms", "street", "rooms", "rooms"]
    assert data.scenes == ["scene_0", "scene_0", "scene_1", "scene_1", "scene_2"]
    assert data.sizes.tolist() == [[6 + number, 9] for number in range(5)]
    assert len(data) == 5 and data.encodings == {"depth": encoding}
    tolerance = {"linear": 1e-6, "log": 0.00085, "float32": 0.0}[encoding.kind]
    for number in (3, 0, 2, 1):
        sample, made = data.read(number), new_sample(number)
        np.testing.assert_array_equal(sample.rgb, made.rgb)
        assert sample.maps["depth"].dtype == np.float32
        np.testing.assert_allclose(sample.maps["depth"], made.maps["depth"], rtol=tolerance)
        assert sample.kind == data.kinds[number]
    assert data.member(4, "rgb") == jpeg(make_photo(10, 9))  # a JPEG file is kept byte for byte
    info = data.info(3)
    assert info["source"] == "raw/3.png" and info["statistics"]["invalid_ratio"] == pytest.approx(3 / 81, abs=1e-6)
    assert info["statistics"]["depth"] == {"mean": 4.5, "std": 0.0, "min": 4.5, "max": 4.5}


def test_shards_are_plain_tars_and_the_index_is_right(tmp_path: Path) -> None:
    data = write_five(tmp_path)
    with tarfile.open(tmp_path / "shard-00003.tar") as archive:
        assert archive.getnames() == [
            f"rooms-{number}.{suffix}"
            for number, rgb in ((3, "rgb.png"), (4, "rgb.jpg"))
            for suffix in (rgb, "depth.png", "json")
        ]
        index = json.loads((tmp_path / "shard-00003.json").read_text())
        for row in index["samples"]:
            for suffix, (offset, size, _) in row["members"].items():
                member = archive.getmember(f"{row['key']}.{suffix}")
                assert (member.offset_data, member.size, member.mtime) == (offset, size, 0)
    assert data.manifest["counts"] == {
        "samples": 5,
        "kinds": {"rooms": 4, "street": 1},
        "scenes": {"scene_0": 2, "scene_1": 2, "scene_2": 1},
        "defective": {"truncated": 1},
        "left_out": {"not listed": 1},
    }
    assert data.manifest["license"] == "CC0" and data.manifest["split"] == "train"
    assert [shard["samples"] for shard in data.manifest["shards"]] == [2, 0, 1, 2]
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rejected] == ["raw/x.png", "y"]
    assert not (tmp_path / "plan.json").exists()


def test_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    write_five(tmp_path / "a")
    write_five(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    def interrupted() -> Iterator[NewSample]:
        yield new_sample(1)
        raise KeyboardInterrupt

    writer = new_writer(tmp_path / "set", count=2)
    writer.begin()
    writer.write(0, [new_sample(0)])
    with pytest.raises(KeyboardInterrupt):
        writer.write(1, interrupted())
    # What SIGKILL leaves: this process lives, so its own partial file is none of the dead.
    dead = tmp_path / "set" / ".shard-00001.tar.999999999.partial"
    own = tmp_path / "set" / f".shard-00001.tar.{os.getpid()}.partial"
    dead.write_bytes(b"cut")
    own.write_bytes(b"cut")
    with pytest.raises(DataError, match="preparation is not finished"):
        ShardedDataset(tmp_path / "set")
    again = pickle.loads(pickle.dumps(new_writer(tmp_path / "set", count=2)))
    again.begin()
    assert not dead.exists() and own.exists()
    assert again.is_done(0) and not again.is_done(1)
    with pytest.raises(DataError, match=r"shards \[1\] are not done"):
        again.finish(2)
    again.write(1, [new_sample(1)])
    again.finish(2)
    assert ShardedDataset(tmp_path / "set").keys == ["rooms-0", "rooms-1"]
    with pytest.raises(DataError, match=r"other settings \(count: 2 then, 3 now\)"):
        new_writer(tmp_path / "set", count=3).begin()
    (tmp_path / "set" / "shard-00001.tar").unlink()
    again.begin()  # a finished set, of which somebody deleted a damaged shard
    assert again.is_done(0) and not again.is_done(1)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(DataError, match="is not empty and holds no prepared data"):
        new_writer(tmp_path).begin()


def test_names_and_sizes_are_checked(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    writer.begin()
    with pytest.raises(DataError, match="use letters, digits"):
        writer.write(0, [NewSample(key="a.b", kind="k", scene="s", rgb=make_photo(4, 4))])
    uneven = NewSample(
        key="a", kind="k", scene="s", rgb=jpeg(make_photo(4, 4)), maps={"depth": np.ones((4, 5), np.float32)}
    )
    with pytest.raises(DataError, match="make them equal"):
        writer.write(0, [uneven])
    writer.write(0, [new_sample(0), new_sample(0)])
    with pytest.raises(DataError, match="1 keys occur twice, rooms-0 first"):
        writer.finish(1)


def test_a_damaged_sample_is_named(tmp_path: Path) -> None:
    write_five(tmp_path)
    shard = tmp_path / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    shard.write_bytes(content)
    data = ShardedDataset(tmp_path)
    with pytest.raises(DataError, match=r"shard-00000.tar: sample rooms-0 is damaged .*data verify"):
        data.read(0)
    data.read(1)
    (tmp_path / "shard-00003.tar").write_bytes(b"")
    with pytest.raises(DataError, match="ends within its rgb"):
        data.read(4)
    (tmp_path / "shard-00002.tar").unlink()
    with pytest.raises(DataError, match=r"sample street-2 is damaged .No such file"):
        data.read(2)
    data.close()
    edit_json(tmp_path / "manifest.json", maps={"depth": {"kind": "cubic"}})
    with pytest.raises(DataError, match="missing or damaged"):
        ShardedDataset(tmp_path)
    edit_json(tmp_path / "manifest.json", maps={"depth": {"kind": "float32"}}, format="openmarigold-shards-0")
    with pytest.raises(DataError, match="has format 'openmarigold-shards-0'"):
        ShardedDataset(tmp_path)
    edit_json(tmp_path / "manifest.json", format="openmarigold-shards-1")
    ShardedDataset(tmp_path)
    (tmp_path / "index.npy").write_bytes(b"")
    with pytest.raises(DataError, match="missing or damaged"):
        ShardedDataset(tmp_path)


def _read_all(data: ShardedDataset, results: multiprocessing.SimpleQueue) -> None:
    results.put([int(data.read(number).rgb.sum()) for number in range(len(data))])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_and_threads_share_a_data_set(tmp_path: Path, method: str) -> None:
    data = write_five(tmp_path)
    expected = [int(data.read(number).rgb.sum()) for number in range(5)]
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append([int(data.read(number).rgb.sum()) for number in range(5)]))
        for _ in range(4)
    ]
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    process = context.Process(target=_read_all, args=(data, results))
    process.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.join()
    assert process.exitcode == 0
    found.append(results.get())
    assert found == [expected] * 5
    data.close()


def test_a_source_is_a_prepared_set_or_plain_tars(tmp_path: Path) -> None:
    data = write_five(tmp_path / "mine" / "train")
    source = Source("mine/train", tmp_path)
    assert source.keys == data.keys and source.contents == data.contents and len(source) == 5
    assert source.sizes.tolist() == data.sizes.tolist()
    assert source.read(2).kind == "street"
    source.close()
    plain = Source("photos", write_training_data(tmp_path))
    assert plain.sizes.tolist() == [[48, 64]] * 6
    plain.close()


def test_a_source_may_be_a_random_part(tmp_path: Path) -> None:
    data = write_five(tmp_path / "mine")
    part = Source("mine", tmp_path, num_samples=3, seed=7)
    assert len(part) == len(part.keys) == len(part.kinds) == len(part.sizes) == 3
    assert set(part.keys) < set(data.keys) and part.keys == Source("mine", tmp_path, num_samples=3, seed=7).keys
    for number, key in enumerate(part.keys):
        np.testing.assert_array_equal(part.read(number).rgb, data.read(data.keys.index(key)).rgb)
    others = {tuple(Source("mine", tmp_path, num_samples=3, seed=seed).keys) for seed in range(20)}
    assert len(others) > 3
    contents = {Source("mine", tmp_path, num_samples=count).contents for count in (None, 2, 3)}
    assert len(contents) == 3  # a cache of one must not be taken for another
    assert Source("mine", tmp_path, num_samples=5).keys == data.keys
    with pytest.raises(DataError, match=r"has 5 samples, not the 6 of data\.num_samples; lower it"):
        Source("mine", tmp_path, num_samples=6)


def test_statistics_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Rooms 0, 1, 3, 4 and street 2; number n has 6 + n rows of 9 pixels, n without depth, the others at 1.5 + n m.
    write_five(tmp_path)
    rooms, street, everything = dataset_statistics(tmp_path)
    assert (rooms.kind, street.kind, everything.kind) == ("rooms", "street", "all")
    assert (rooms.num_samples, rooms.num_scenes, everything.num_samples, everything.num_scenes) == (4, 3, 5, 3)
    shares = [0, 1 / 63, 2 / 72, 3 / 81, 4 / 90]
    assert everything.invalid_share == pytest.approx(np.mean(shares))
    assert everything.above_limit_share == pytest.approx(2 / 5)  # 3 / 81 and 4 / 90 are above 3 %
    assert street.quantiles == pytest.approx((3.5, 3.5, 3.5)) and street.range == pytest.approx((3.5, 3.5))
    assert everything.quantiles == pytest.approx((1.5, 3.5, 5.5)), "of all pixels, not means of the samples' own"
    assert everything.range == pytest.approx((1.5, 5.5))
    assert run(["data", "statistics", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["all"]["depth_range"] == pytest.approx([1.5, 5.5]) and printed["kinds"]["rooms"]["num_scenes"] == 3
    assert run(["data", "statistics", str(tmp_path)]) == 0
    assert "street        1       1     2.8 %     0.0 %" in capsys.readouterr().out
    edit_json(tmp_path / "manifest.json", valid_range=[1e-5, 5.0])  # as training takes it: 5.5 m is sky
    *_, everything = dataset_statistics(tmp_path)
    assert everything.range == pytest.approx((1.5, 4.5))
    assert everything.invalid_share == pytest.approx(np.mean([*shares[:4], 1.0]))


def test_statistics_without_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = new_writer(tmp_path)
    writer.begin()
    empty = NewSample(
        key="e", kind="fog", scene="s", rgb=make_photo(6, 9), maps={"depth": np.zeros((6, 9), np.float32)}
    )
    writer.write(0, [empty, NewSample(key="p", kind="photo", scene="s", rgb=make_photo(6, 9))])
    writer.finish(1, {})
    assert [(row.kind, row.num_samples, row.invalid_share) for row in dataset_statistics(tmp_path)] == [
        ("fog", 1, 1.0),
        ("all", 1, 1.0),
    ]
    assert run(["data", "statistics", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["depth_range"] == [None, None]


def test_statistics_of_photos_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = new_writer(tmp_path)
    writer.begin()
    writer.write(0, [NewSample(key="p", kind="photo", scene="s", rgb=make_photo(6, 9))])
    writer.finish(1, {})
    assert run(["data", "statistics", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["invalid_share"] is None
    assert run(["data", "statistics", str(tmp_path)]) == 0
    assert "has a depth map" in capsys.readouterr().out


def test_a_set_without_samples_has_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = new_writer(tmp_path / "empty")
    writer.begin()
    writer.write(0, [Rejection(name="x", reason="too dark", is_error=False)])
    writer.finish(1, {})
    assert run(["data", "preview", str(tmp_path / "empty"), "--output", str(tmp_path / "sheet.jpg")]) != 0
    assert "holds no samples, so there is nothing to show" in " ".join(capsys.readouterr().err.split())


def test_names_that_no_text_has_are_damage(tmp_path: Path) -> None:
    write_five(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["counts"]["kinds"] = dict.fromkeys(["\ud800", *list(manifest["counts"]["kinds"])[1:]], 1)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"missing or damaged \(UnicodeEncodeError"):
        ShardedDataset(tmp_path)


def test_opening_many_samples_is_quick(tmp_path: Path) -> None:
    writer = new_writer(tmp_path)
    writer.begin()
    index = writer.write(0, [new_sample(0)])
    row = index["samples"][0]
    index["samples"] = [{**row, "key": f"scene_{number:06d}"} for number in range(20_000)]
    (tmp_path / "shard-00000.json").write_text(json.dumps(index))
    writer.finish(1)
    start = time.perf_counter()
    data = ShardedDataset(tmp_path)
    seconds = time.perf_counter() - start
    assert len(data) == 20_000 and data.keys[-1] == "scene_019999"
    np.testing.assert_array_equal(data.read(15_000).rgb, new_sample(0).rgb)
    data.close()
    assert seconds < 0.5  # 0.01 s on an idle machine


def test_the_hash_of_a_set_is_that_of_version_0_1() -> None:
    stored = '{"kind": "linear", "metres_per_unit": 0.001}\n0 abc\n'
    found = contents_sha256({"depth": {"kind": "linear", "meters_per_unit": 0.001}}, [{"name": "0", "sha256": "abc"}])
    assert found == hashlib.sha256(stored.encode()).hexdigest()
