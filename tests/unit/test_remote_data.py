# SPDX-License-Identifier: Apache-2.0
"""Prepared sets at an address: the samples of a local copy, and a cache that stays within its bound."""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from openmarigold import addresses
from openmarigold.cli import run
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.remote import DataFolder, RemoteFolder, SampleCache, data_folder
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.training import train
from openmarigold.training.settings import DataConfig
from openmarigold.training.views import Mixture
from stable_diffusion import write_stable_diffusion

NUM_SHARDS, IN_SHARD = 3, 4
ADDRESS = "memory://bucket/data"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data: `walls`, 12 samples in 3 shards, and the same at `ADDRESS`."""
    folder = tmp_path_factory.mktemp("local")
    rng = np.random.default_rng(4)
    writer = ShardWriter(
        folder / "walls",
        name="walls",
        split="train",
        encodings={"depth": MapEncoding(kind="float32")},
        settings={},
    )
    writer.begin()
    for number in range(NUM_SHARDS):
        samples = []
        for place in range(IN_SHARD):
            rgb = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            depth = rng.uniform(1, 5, (48, 64)).astype(np.float32)
            scene, key = f"room-{number}", f"room-{number}-{place}"
            samples.append(NewSample(key=key, kind="rooms", scene=scene, rgb=rgb, maps={"depth": depth}))
        writer.write(number, samples)
    writer.finish(NUM_SHARDS)
    copy_to(ADDRESS, folder)
    return folder


def copy_to(address: str, folder: Path) -> None:
    system, path = fsspec.core.url_to_fs(address)
    for file in sorted((folder / "walls").iterdir()):
        system.pipe_file(f"{path}/walls/{file.name}", file.read_bytes())


def opened(tmp_path: Path, max_bytes: int = 10**9, address: str = ADDRESS) -> ShardedDataset:
    return ShardedDataset(RemoteFolder(f"{address}/walls", SampleCache(tmp_path / "cache", max_bytes)))


def equal(found: ShardedDataset, expected: ShardedDataset, index: int) -> bool:
    one, other = found.read(index), expected.read(index)
    same = np.array_equal(one.rgb, other.rgb) and np.array_equal(one.maps["depth"], other.maps["depth"])
    return same and found.info(index) == expected.info(index)


def span(data: ShardedDataset, index: int) -> int:
    places = data.places(index).values()
    return max(offset + size for offset, size, _ in places) - min(offset for offset, _, _ in places)


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.part"))


def num_bytes(cache: Path) -> int:
    found = 0
    for path in cache.glob("*/*"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The ranges that are fetched."""
    made: list[tuple[str, int, int]] = []
    read = addresses.read_range

    def counted(address: str, start: int, size: int) -> bytes:
        made.append((address, start, size))
        return read(address, start, size)

    monkeypatch.setattr(addresses, "read_range", counted)
    return made


def test_samples_are_those_of_a_local_copy(local: Path, tmp_path: Path, requests: list[Any]) -> None:
    expected, found = ShardedDataset(local / "walls"), pickle.loads(pickle.dumps(opened(tmp_path)))
    assert requests == []  # opening reads no shard
    assert (found.keys, found.kinds, found.scenes) == (expected.keys, expected.kinds, expected.scenes)
    assert found.contents == expected.contents
    for index in (7, 0, 11, 3, 7):
        assert equal(found, expected, index)
        assert found.member(index, "rgb") == expected.member(index, "rgb")
    # One request a sample, of its bytes alone; what was read once is kept.
    assert [size for _, _, size in requests] == [span(expected, index) for index in (7, 0, 11, 3)]
    assert requests[0][0] == f"{ADDRESS}/walls/shard-00001.tar"
    assert num_bytes(tmp_path / "cache") == sum(span(expected, index) for index in (7, 0, 11, 3))


def test_the_cache_stays_within_its_bound(local: Path, tmp_path: Path, requests: list[Any]) -> None:
    expected = ShardedDataset(local / "walls")
    largest = max(span(expected, index) for index in range(12))
    bound = 4 * largest
    found, cache = opened(tmp_path, bound), tmp_path / "cache"
    for index in range(12):
        assert equal(found, expected, index)
        assert num_bytes(cache) <= bound
    assert 3 <= len(kept(cache)) <= 4
    requests.clear()
    found.read(11)  # the newest one
    assert requests == []
    found.read(0)  # which had to go
    assert len(requests) == 1
    time.sleep(0.02)
    found.read(11)  # is used again, so that 10 goes before it
    for index in (1, 2):
        found.read(index)
    requests.clear()
    found.read(11)
    assert requests == []


def test_other_files_in_the_folder_of_the_cache_stay(local: Path, tmp_path: Path) -> None:
    others = [tmp_path / "cache" / name for name in ("notes/a.txt", "notes/film.part", "ab/mine.partial", "ab/a.part")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100_000))
        os.utime(path, (0, 0))
    found = opened(tmp_path, 2 * max(span(ShardedDataset(local / "walls"), index) for index in range(12)))
    for index in range(6):
        found.read(index)
    assert all(path.stat().st_size == 100_000 for path in others)
    assert 1 <= len(set(kept(tmp_path / "cache")) - set(others)) <= 2


@pytest.mark.parametrize("max_bytes", [0, 100])
def test_without_room_nothing_is_kept(max_bytes: int, local: Path, tmp_path: Path, requests: list[Any]) -> None:
    found = opened(tmp_path, max_bytes)
    for _ in range(2):
        assert equal(found, ShardedDataset(local / "walls"), 5)
    assert len(requests) == 4 and not kept(tmp_path / "cache")  # a sample, and its facts


def read_often(local: Path, tmp_path: Path, bound: int, seed: int, done: Any) -> None:
    found, expected = opened(tmp_path, bound), ShardedDataset(local / "walls")
    rng = np.random.default_rng(seed)
    while not done.is_set():
        if not equal(found, expected, int(rng.integers(12))):
            os._exit(3)
    os._exit(0)


def test_processes_share_a_cache_though_one_is_killed(local: Path, tmp_path: Path) -> None:
    bound = 4 * max(span(ShardedDataset(local / "walls"), index) for index in range(12))
    context = multiprocessing.get_context("fork")  # which has the files in memory, too
    done = context.Event()
    workers = [context.Process(target=read_often, args=(local, tmp_path, bound, seed, done)) for seed in range(3)]
    for worker in workers:
        worker.start()
    most, until = 0, time.monotonic() + 0.8
    while time.monotonic() < until:
        (tmp_path / "cache").mkdir(exist_ok=True)
        with (tmp_path / "cache" / "lock").open("a") as lock:  # for a sum of one moment
            fcntl.flock(lock, fcntl.LOCK_EX)
            most = max(most, num_bytes(tmp_path / "cache"))
        if time.monotonic() > until - 0.4 and workers[0].is_alive():
            assert workers[0].pid is not None
            os.kill(workers[0].pid, signal.SIGKILL)
    done.set()
    for worker in workers:
        worker.join(timeout=20)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0]
    assert 0 < most <= bound


def junk(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [junk, shorter])
def test_damaged_samples_of_the_cache_are_fetched_again(
    damage: Callable[[Path], None], local: Path, tmp_path: Path, requests: list[Any]
) -> None:
    found = opened(tmp_path)
    found.read(2)
    (path,) = kept(tmp_path / "cache")
    damage(path)
    assert equal(found, ShardedDataset(local / "walls"), 2)
    assert len(requests) == 2
    assert equal(found, ShardedDataset(local / "walls"), 2)
    assert len(requests) == 2


def test_what_is_damaged_at_the_address_is_named(local: Path, tmp_path: Path) -> None:
    address = "memory://bucket/damaged"
    copy_to(address, local)
    system, path = fsspec.core.url_to_fs(f"{address}/walls/shard-00001.tar")
    whole = system.cat_file(path)
    system.pipe_file(path, bytes(len(whole)))
    with pytest.raises(DataError, match=r"walls/shard-00001.tar: sample room-1-1 is damaged \(the checksum of its rgb"):
        opened(tmp_path, address=address).read(5)
    system.pipe_file(path, whole[:1000])
    with pytest.raises(DataError, match=r"the shard ends within its .*; copy the shard there again"):
        opened(tmp_path / "other", address=address).read(5)


def test_a_network_that_fails_now_and_then(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = addresses.read_range, iter([True, True, False])
    monkeypatch.setattr("openmarigold.data.remote._FIRST_PAUSE_S", 0.001)

    def failing(address: str, start: int, size: int) -> bytes:
        if next(failures, True):
            raise DataError(f"{address} cannot be read: no route") from OSError("no route")
        return read(address, start, size)

    monkeypatch.setattr(addresses, "read_range", failing)
    found = opened(tmp_path)
    assert equal(found, ShardedDataset(local / "walls"), 1)
    with pytest.raises(DataError, match="no route"):
        found.read(2)


def test_a_cache_that_cannot_be_written_is_told_once(
    local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    found = opened(tmp_path)
    with caplog.at_level(logging.WARNING):
        for index in range(3):
            assert equal(found, ShardedDataset(local / "walls"), index)
    (record,) = [one.getMessage() for one in caplog.records if "samples are not kept" in one.getMessage()]
    assert str(tmp_path / "cache") in record


def test_addresses_and_paths(local: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"cache_dir": tmp_path, "cache_gb": 1.5}
    assert data_folder(str(local), **settings) == data_folder(local, **settings) == local
    assert data_folder(f"file://{local}", **settings) == local
    assert data_folder("s3://bucket/data", **settings) == RemoteFolder(
        "s3://bucket/data", SampleCache(tmp_path, 1_500_000_000)
    )
    with pytest.raises(InvalidValueError, match="sample_cache_gb=-1"):
        data_folder(ADDRESS, cache_dir=tmp_path, cache_gb=-1.0)


@pytest.mark.parametrize(
    ("source", "text"),
    [("missing", "unknown data source 'missing'"), ("synthetic", "plain tars are read from this machine only")],
)
def test_only_prepared_sets(source: str, text: str, local: Path, tmp_path: Path) -> None:
    config = DataConfig(sources={source: 1.0}, size=(32, 48))
    with pytest.raises(DataError, match=text):
        Mixture(config, data_dir=RemoteFolder(ADDRESS, SampleCache(tmp_path, 0)), seed=0)


def views(data_dir: DataFolder) -> Iterator[np.ndarray]:
    config = DataConfig(sources={"walls": 1.0}, size=(32, 48), min_scale=0.5, num_variants=2, held_out=0.3)
    mixture = Mixture(config, data_dir=data_dir, seed=3)
    yield np.frombuffer(mixture.sha256.encode(), np.uint8)
    for index in range(0, 16, 3):
        view = mixture.view(index)
        assert view.target is not None
        yield from (view.rgb, view.target.values, view.valid_mask)


def test_views_are_those_of_a_local_copy(local: Path, tmp_path: Path) -> None:
    remote = RemoteFolder(ADDRESS, SampleCache(tmp_path, 200_000))
    for found, expected in zip(views(remote), views(local), strict=True):
        assert np.array_equal(found, expected)


def test_training_is_that_of_a_local_copy(local: Path, tmp_path: Path) -> None:
    """With scenes held out, from which it takes the best checkpoint; the recipe is made from the address, too."""
    write_stable_diffusion(tmp_path / "sd", prediction_type="v_prediction")
    init = ["train", "--init", str(tmp_path / "mine.toml"), "--data-dir", ADDRESS, "--set", f"base={tmp_path / 'sd'}"]
    assert run(init) == 0
    changes = {"num_steps": 2, "batch_size": 2, "micro_batch_size": 1, "warmup_steps": 1, "mixed_precision": "no"}
    overrides = [f"optimization.{name}={json.dumps(value)}" for name, value in changes.items()]
    overrides += ["data.cache=false", "run.validation_period=2", "checkpoint.processing_resolution=32"]
    for name, data_dir in (("there", ADDRESS), ("here", str(local))):
        train(
            tmp_path / "mine.toml",
            overrides=overrides,
            data_dir=data_dir,
            output_dir=tmp_path / name,
            sample_cache_dir=tmp_path / "cache",
            sample_cache_gb=1e-4,
            device="cpu",
        )
    there, here = (read_lines(tmp_path / name / "metrics.jsonl", "loss") for name in ("there", "here"))
    assert len(here) == 2 and there == here
    scores = [read_lines(tmp_path / name / "validation.jsonl", "held_out_loss") for name in ("there", "here")]
    assert scores[0] == scores[1] and len(scores[0]) == 1
    assert 0 < num_bytes(tmp_path / "cache") <= 100_000


def read_lines(path: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("s3")
def test_s3_gives_the_same_samples(local: Path, tmp_path: Path) -> None:
    """Against moto's server on the loopback interface, where moto and s3fs are installed."""
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("shards")
    copy_to("s3://shards/data", local)
    expected = ShardedDataset(local / "walls")
    found = opened(tmp_path, 4 * span(expected, 0), address="s3://shards/data")
    assert all(equal(found, expected, index) for index in range(12))
    remote = RemoteFolder("s3://shards/data", SampleCache(tmp_path, 200_000))
    assert remote.folders_with("manifest.json") == ["walls"]
    for one, other in zip(views(remote), views(local), strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(DataError, match="unknown data source 'nothing'"):
        Mixture(DataConfig(sources={"nothing": 1.0}, size=(32, 48)), data_dir=remote, seed=0)
