# SPDX-License-Identifier: Apache-2.0
"""Inputs of batches: tars, tables and lists of photos, what is refused, and a million rows."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from batch_data import CONFIG, photo, records, write_photos
from openmarigold.batch.run import batch_files
from openmarigold.batch.settings import BatchConfig
from openmarigold.errors import DataError, InvalidValueError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["{0..1}.tar", "*.tar", ""])
def test_tars_keep_their_keys(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(2):
        files = {f"s{number}/x{place}.jpg": photo(place) for place in range(2)}
        write_tar(folder / f"{number}.tar", {**files, f"s{number}/x0.json": b"{}", f"s{number}/x0.seg.png": photo(7)})
    batch_files(f"{folder}/{name}", str(tmp_path / "out"), config=CONFIG)
    rows = records(tmp_path / "out")
    assert [row["key"] for row in rows] == ["s0/x0", "s0/x1", "s1/x0", "s1/x1"]
    assert rows[3]["source"].endswith("1.tar#s1/x1.jpg") and rows[3]["status"] == "success"


def test_a_damaged_tar_gives_failed_rows(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"x{place}.png": photo(place) for place in range(3)})
    whole = (tmp_path / "a.tar").read_bytes()
    end = 512 + -(-len(photo(0)) // 512) * 512  # of the first photo: header, content in whole blocks
    (tmp_path / "a.tar").write_bytes(whole[: end + 512 + 100])  # cut within the second one
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    outcome = batch_files(f"{tmp_path}/*.tar", str(tmp_path / "out"), config=CONFIG)
    rows = records(tmp_path / "out")
    assert rows[0]["status"] == "success" and rows[0]["key"] == "x0"
    assert {row["status"] for row in rows[1:]} == {"failed"}
    assert outcome.failures == len(rows) - 1
    assert "not a tar" in rows[-1]["error"] and rows[-1]["error_class"] == "DataError"


@pytest.mark.parametrize("kind", ["bytes", "huggingface", "address"])
def test_parquet_rows(kind: str, photos: Path, tmp_path: Path) -> None:
    paths = sorted(photos.glob("p*.png"))
    values: list[Any] = {
        "bytes": [path.read_bytes() for path in paths],
        "huggingface": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "address": [str(path) for path in paths],
    }[kind]
    table = pa.table({"image": [*values, None], "key": [f"k.{place}" for place in range(6)]})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=4)
    outcome = batch_files(
        str(tmp_path / "in.parquet"), str(tmp_path / "out"), config=CONFIG, batch=BatchConfig(shard_size=3)
    )
    rows = records(tmp_path / "out")
    assert (outcome.shards, outcome.failures) == (2, 1)
    assert [row["key"] for row in rows] == [f"k_{place}" for place in range(6)]  # a dot would end a key
    assert [row["width"] for row in rows] == [40, 41, 42, 43, 44, None]
    assert "neither bytes nor an address" in rows[5]["error"] and rows[5]["source"].endswith("in.parquet#5")


def test_equal_keys_fail_but_for_the_first(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"jpg": [photo(0), photo(1)], "key": ["a", "a"]}), tmp_path / "in.parquet")
    batch_files(str(tmp_path / "in.parquet"), str(tmp_path / "out"), config=CONFIG)
    rows = records(tmp_path / "out")
    assert [row["status"] for row in rows] == ["success", "failed"] and rows[0]["key"] != rows[1]["key"]
    assert "the key a is there already" in rows[1]["error"]


def test_list_files_name_photos_from_their_own_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "near.png").write_bytes(photo(3))
    (tmp_path / "list.txt").write_text(f"# photos\nnear.png\n\n{photos}/p1.png\nmissing.png\n")
    batch_files(str(tmp_path / "list.txt"), str(tmp_path / "out"), config=CONFIG)
    rows = records(tmp_path / "out")
    assert [row["status"] for row in rows] == ["success", "success", "failed"]
    assert rows[2]["error"] == f"{tmp_path}/missing.png does not exist; check the name"


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("missing", DataError, "missing does not exist; check the name"),
        ("empty", DataError, "holds no photos, tars or Parquet files"),
        ("*.nothing", DataError, "names no photo, tar, Parquet or list file; check the pattern"),
        ("{5..1}.tar", InvalidValueError, "is not a range"),
        ("mixed/*", InvalidValueError, "photos and tars; give files of one kind"),
        ("bad.parquet", DataError, "is not a Parquet file that can be read"),
        ("other.parquet", DataError, "has no column of photos; it has number"),
        ("nothing://a/b", DataError, "cannot be read"),
    ],
)
def test_bad_inputs(given: str, error: type[Exception], text: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.png").write_bytes(photo(0))
    write_tar(tmp_path / "mixed" / "b.tar", {})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    parquet.write_table(pa.table({"number": [1]}), tmp_path / "other.parquet")
    with pytest.raises(error, match=text):
        batch_files(given if "://" in given else f"{tmp_path}/{given}", str(tmp_path / "out"), config=CONFIG)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"shard_size": 0}, "1 to 10000"),
        ({"workers": True}, "whole number"),
        ({"part": "3/2"}, "I/N"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidValueError, match=text):
        BatchConfig(**settings)


@pytest.mark.slow
def test_a_million_rows_start_within_bounds(tmp_path: Path) -> None:
    """A resumed run of a million rows: under 10 s and 500 MB before the first photo."""
    with (tmp_path / "list.txt").open("w") as listing:
        listing.writelines(f"s3://bucket/some/folder/photo-{number:07d}.jpg\n" for number in range(1_000_000))
    out = tmp_path / "out"
    code = (
        "import re, sys, time\n"
        "from pathlib import Path\n"
        "from openmarigold.batch import run\n"
        "from openmarigold.config import PredictConfig\n"
        "started = time.perf_counter()\n"
        "def make(worker, shards, *, again):\n"
        "    peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "    print(len(shards), time.perf_counter() - started, peak)\n"
        "    return iter(())\n"
        "run.batch_files(sys.argv[1], sys.argv[2], config=PredictConfig(), engine=make)\n"
    )
    stats = {"count": 1000, "successes": 1000, "failures": 0, "failed_by_class": {}, "started": 0.0, "seconds": 1.0}
    text = json.dumps({**stats, "photo_seconds": [0.123456] * 1000, "engine": "onnx"})
    out.mkdir()
    for number in range(900):
        (out / f"{number:05d}_stats.json").write_text(text)
    command = [sys.executable, "-c", code, str(tmp_path / "list.txt"), str(out)]
    for _ in range(2):  # the second one finds the plan
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout.split()
        assert told[0] == "100"
        assert float(told[1]) < 10
        assert int(told[2]) < 500_000
