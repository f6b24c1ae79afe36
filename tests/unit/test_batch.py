# SPDX-License-Identifier: Apache-2.0
"""Batches: each photo once into shards, the same bytes however and wherever they are made."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from batch_data import CONFIG, NUM_PHOTOS, photo, records, write_photos
from dying import DoomedWorker, DyingWorker
from openmarigold import Predictor
from openmarigold.batch.run import BatchOutcome, batch_files
from openmarigold.batch.settings import BatchConfig
from openmarigold.batch.sources import shards_of
from openmarigold.batch.spark import SparkFactory
from openmarigold.batch.worker import ShardWorker
from openmarigold.cli import run as run_cli
from openmarigold.config import PredictConfig
from openmarigold.data import units
from openmarigold.data.units import ProcessEngine
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.images.png import read_png

SMALL = BatchConfig(shard_size=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `photos`, two photos each."""
    out = tmp_path_factory.mktemp("made")
    outcome = batch_files(str(photos), str(out), config=CONFIG, batch=SMALL)
    assert (outcome.shards, outcome.photos, outcome.failures, outcome.predicted) == (3, 5, 0, 5)
    return out


def contents(folder: Path | str) -> dict[str, bytes]:
    """The files that must not depend on how shards are made."""
    system, path = fsspec.core.url_to_fs(str(folder))
    names = [name for name in system.ls(path, detail=False) if name.endswith((".tar", ".parquet"))]
    return {Path(name).name: system.cat_file(name) for name in names}


def test_codes_are_the_predicted_maps(photos: Path, made: Path) -> None:
    rows = records(made)
    assert [row["key"] for row in rows] == ["000000000", "000000001", "000010000", "000010001", "000020000"]
    assert [Path(row["source"]).name for row in rows] == [f"p{number}.png" for number in range(NUM_PHOTOS)]
    predictor = Predictor.load()
    for row in rows:
        with tarfile.open(made / f"{row['key'][:5]}.tar") as archive:
            file = archive.extractfile(f"{row['key']}.depth.png")
            text = archive.extractfile(f"{row['key']}.json")
            assert file is not None and text is not None
            codes, record = read_png(file.read()), json.loads(text.read())
        depth = predictor(row["source"], processing_resolution=32).depth
        assert codes.dtype == np.uint16 and codes.shape == depth.shape == (row["height"], row["width"])
        low, high = row["depth_lo"], row["depth_hi"]
        found = low + codes / 65535 * (high - low)
        assert np.abs(found - depth).max() <= (high - low) / 65535 * 0.501 + 1e-7
        assert record == row
        assert row["input_sha256"] == hashlib.sha256(Path(row["source"]).read_bytes()).hexdigest()


def test_statistics_count_and_time_each_photo(made: Path) -> None:
    stats = json.loads((made / "00000_stats.json").read_bytes())
    assert (stats["count"], stats["successes"], stats["failures"]) == (2, 2, 0)
    assert len(stats["photo_seconds"]) == 2 and sum(stats["photo_seconds"]) > 0
    assert stats["engine"] == "onnx"


def test_a_bad_photo_is_a_failed_row(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(photo(0))
    (folder / "b.png").write_bytes(photo(1)[:300])
    (folder / "c.png").write_bytes(photo(2))
    out = tmp_path / "out"
    outcome = batch_files(str(folder), str(out), config=CONFIG)
    assert (outcome.photos, outcome.failures, dict(outcome.failed_by_class)) == (3, 1, {"ImageError": 1})
    rows = records(out)
    assert [row["status"] for row in rows] == ["success", "failed", "success"]
    assert rows[1]["error_class"] == "ImageError" and rows[1]["depth_lo"] is None and "b.png" in rows[1]["error"]
    with tarfile.open(out / "00000.tar") as archive:
        assert archive.getnames() == [
            f"{key}.{end}" for key in ("000000000", "000000002") for end in ("depth.png", "json")
        ]

    partial = contents(out)
    again = batch_files(str(folder), str(out), config=CONFIG, batch=BatchConfig(retry=True))
    assert (again.failures, again.predicted) == (1, 3)  # it is bad still
    (folder / "b.png").write_bytes(photo(1))
    with pytest.MonkeyPatch.context() as patch:
        seen = count_predictions(patch)
        repaired = batch_files(str(folder), str(out), config=CONFIG, batch=BatchConfig(retry=True))
    assert (repaired.failures, len(seen)) == (0, 1)  # only the failed one was predicted
    rows = records(out)
    assert [row["status"] for row in rows] == ["success"] * 3
    fresh = tmp_path / "fresh"
    batch_files(str(folder), str(fresh), config=CONFIG)
    assert contents(fresh) == contents(out) != partial


def count_predictions(patch: pytest.MonkeyPatch) -> list[object]:
    """Each prediction from here on adds an entry."""
    seen: list[object] = []
    predict = ShardWorker._predict

    def counted(self: ShardWorker, work: Any) -> Any:
        if work.photo is not None:
            seen.append(work.key)
        return predict(self, work)

    patch.setattr(ShardWorker, "_predict", counted)
    return seen


@pytest.mark.parametrize("lost", ["00001_stats.json", "00001.tar"])
def test_only_shards_without_statistics_are_made(
    lost: str, photos: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(made, tmp_path)
    before = contents(out)
    (out / lost).unlink()
    (out / "00001_stats.json").unlink(missing_ok=True)
    seen = count_predictions(monkeypatch)
    outcome = batch_files(str(photos), str(out), config=CONFIG, batch=SMALL)
    assert (outcome.done_before, outcome.predicted, outcome.photos) == (2, 2, 5)
    assert seen == ["000010000", "000010001"]
    assert contents(out) == before


def copied(folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "copy"
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def test_memory_in_and_out_gives_the_same_bytes(photos: Path, made: Path) -> None:
    system = fsspec.filesystem("memory")
    for path in photos.iterdir():
        system.pipe_file(f"/in/{path.name}", path.read_bytes())
    outcome = batch_files("memory://in", "memory://out/deep", config=CONFIG, batch=SMALL)
    assert (outcome.photos, outcome.failures) == (5, 0)
    tars = {name: content for name, content in contents(made).items() if name.endswith(".tar")}
    found = contents("memory://out/deep")
    assert set(found) == set(contents(made))
    for name, content in tars.items():  # their records state other sources
        assert maps_of(found[name]) == maps_of(content)
    again = batch_files("memory://in", "memory://out/deep", config=CONFIG, batch=SMALL)
    assert (again.done_before, again.predicted) == (3, 0)


def maps_of(tar: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file is not None and name.endswith(".png")}


def test_parts_make_all_shards_once(photos: Path, made: Path, tmp_path: Path) -> None:
    for part, number in (("2/2", 1), ("1/2", 2)):
        config = BatchConfig(shard_size=2, part=part)
        assert batch_files(str(photos), str(tmp_path), config=CONFIG, batch=config).shards == number
    assert contents(tmp_path) == contents(made)


def test_processes_give_the_same_bytes_though_one_dies(photos: Path, made: Path, tmp_path: Path) -> None:
    config = BatchConfig(shard_size=2, workers=2)
    shards = shards_of(str(photos), config)
    worker = DyingWorker(CONFIG, config, str(tmp_path))
    done = [shard.number for shard, _ in ProcessEngine(workers=2)(worker, shards, again=False)]
    assert sorted(done) == [0, 1, 2]
    assert (tmp_path / "died").exists()
    assert contents(tmp_path) == contents(made)


def test_a_shard_that_kills_every_worker_ends_the_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_MOST_DEATHS", 1)  # starting processes takes long
    config = BatchConfig(shard_size=5)
    worker = DoomedWorker(CONFIG, config, str(tmp_path))
    worker.number = 0
    with pytest.raises(OutputError, match=r"1 times while making shard 00000.*memory"):
        list(ProcessEngine(workers=1)(worker, shards_of(str(photos), config), again=False))


def test_another_input_or_setting_needs_another_folder(photos: Path, made: Path, tmp_path: Path) -> None:
    out = copied(made, tmp_path)
    with pytest.raises(InvalidValueError, match="differ in settings; choose another folder"):
        batch_files(str(photos), str(out), config=PredictConfig(processing_resolution=40), batch=SMALL)
    with pytest.raises(InvalidValueError, match="differ in shards, the input files"):
        batch_files(str(photos), str(out), config=CONFIG)
    assert contents(out) == contents(made)


def test_parquet_output_holds_the_maps(photos: Path, made: Path, tmp_path: Path) -> None:
    config = BatchConfig(shard_size=2, format="parquet")
    batch_files(str(photos), str(tmp_path), config=CONFIG, batch=config)
    assert not list(tmp_path.glob("*.tar"))
    maps = {
        name: content for path in sorted(made.glob("*.tar")) for name, content in maps_of(path.read_bytes()).items()
    }
    assert {f"{row['key']}.depth.png": row["depth"] for row in records(tmp_path)} == maps
    assert batch_files(str(photos), str(tmp_path), config=CONFIG, batch=config).predicted == 0


def test_uncertainties_are_maps_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(0))
    config = PredictConfig(processing_resolution=32, ensemble_size=3)
    batch_files(str(tmp_path / "a.png"), str(tmp_path / "out"), config=config)
    (row,) = records(tmp_path / "out")
    maps = maps_of((tmp_path / "out" / "00000.tar").read_bytes())
    assert set(maps) == {"000000000.depth.png", "000000000.uncertainty.png"}
    found = Predictor.load()(tmp_path / "a.png", processing_resolution=32, ensemble_size=3).uncertainty
    assert found is not None
    codes = read_png(maps["000000000.uncertainty.png"])
    low, high = row["uncertainty_lo"], row["uncertainty_hi"]
    assert low <= found.min() <= found.max() <= high
    assert np.abs(low + codes / 65535 * (high - low) - found).max() <= (high - low) / 65535


def test_damaged_statistics_are_named(photos: Path, made: Path, tmp_path: Path) -> None:
    out = copied(made, tmp_path)
    (out / "00001_stats.json").write_text("{")
    with pytest.raises(OutputError, match=r"00001_stats.json is damaged; remove it"):
        batch_files(str(photos), str(out), config=CONFIG, batch=SMALL)


def test_command_line(photos: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["batch", str(photos), str(tmp_path), "--shard-size", "2", "--processing-resolution", "32"]
    assert run_cli([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shards"], told["photos"], told["failures"], told["predicted"]) == (3, 5, 0, 5)
    assert contents(tmp_path) == contents(made)
    assert run_cli([*words, "--gpus-per-worker", "1"]) == 2
    assert "without --ray" in capsys.readouterr().err
    (tmp_path / "bad.png").write_bytes(b"nothing")
    assert run_cli(["batch", str(tmp_path / "bad.png"), str(tmp_path / "second")]) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_ray_gives_the_same_bytes_though_an_actor_dies(photos: Path, made: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from openmarigold.batch.ray_engine import RayEngine

    def engine(worker: ShardWorker, shards: Sequence[Any], *, again: bool) -> Any:
        dying = DyingWorker(worker.config, worker.batch, worker.folder.address)
        return RayEngine(address="local", workers=2)(dying, shards, again=again)

    outcome: BatchOutcome = batch_files(str(photos), str(tmp_path), config=CONFIG, batch=SMALL, engine=engine)
    assert (outcome.photos, outcome.failures) == (5, 0)
    assert (tmp_path / "died").exists()
    assert contents(tmp_path) == contents(made)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("s3")
def test_s3_gives_the_same_maps(photos: Path, made: Path) -> None:
    """Against moto's server on the loopback interface, where moto and s3fs are installed."""
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("photos")
    for path in photos.iterdir():
        system.pipe_file(f"photos/in/{path.name}", path.read_bytes())
    outcome = batch_files("s3://photos/in", "s3://photos/out", config=CONFIG, batch=SMALL)
    assert (outcome.photos, outcome.failures) == (5, 0)
    found = contents("s3://photos/out")
    for name, content in contents(made).items():
        if name.endswith(".tar"):
            assert maps_of(found[name]) == maps_of(content)
    assert batch_files("s3://photos/in", "s3://photos/out", config=CONFIG, batch=SMALL).predicted == 0


def test_spark_factory_gives_what_shards_hold(photos: Path, made: Path) -> None:
    factory = pickle.loads(pickle.dumps(SparkFactory(CONFIG)))
    predict = factory()
    column = np.array([(photos / "p3.png").read_bytes(), b"nothing", None], dtype=object)
    found = predict(column)
    assert list(found) == list(factory.columns())
    good, bad, empty = ({name: values[place] for name, values in found.items()} for place in range(3))
    row = records(made)[3]
    assert {name: good[name] for name in ("status", "input_sha256", "width", "height", "depth_lo", "depth_hi")} == {
        name: row[name] for name in ("status", "input_sha256", "width", "height", "depth_lo", "depth_hi")
    }
    assert base64.b64decode(good["depth"]) == maps_of((made / "00001.tar").read_bytes())["000010001.depth.png"]
    assert (bad["status"], bad["error_class"], bad["depth"]) == ("failed", "ImageError", None)
    assert (empty["status"], empty["error_class"]) == ("failed", "DataError")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spark_session(photos: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local session, where pyspark and Java are installed."""
    functions = pytest.importorskip("pyspark.ml.functions")
    sql = pytest.importorskip("pyspark.sql")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    session = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        predict = SparkFactory(CONFIG)
        udf = functions.predict_batch_udf(predict, return_type=predict.schema(), batch_size=2)
        table = session.read.format("binaryFile").option("pathGlobFilter", "p*.png").load(str(photos))
        found = table.select("path", udf("content").alias("maps")).collect()
    finally:
        session.stop()
    by_name = {Path(row["path"]).name: row["maps"] for row in found}
    for row in records(made):
        maps = by_name[Path(row["source"]).name]
        assert (maps["status"], maps["depth_hi"]) == ("success", row["depth_hi"])
        stored = maps_of((made / f"{row['key'][:5]}.tar").read_bytes())[f"{row['key']}.depth.png"]
        assert base64.b64decode(maps["depth"]) == stored
