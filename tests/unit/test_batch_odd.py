# SPDX-License-Identifier: Apache-2.0
"""Batches of odd names, odd tars and tables, other settings, and shards that are larger than memory should be."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from openmarigold import Predictor, addresses
from openmarigold.addresses import OutputFolder, is_remote
from openmarigold.batch import shard_files
from openmarigold.batch.run import BatchOutcome, batch_files
from openmarigold.batch.settings import BatchConfig
from openmarigold.batch.shard_files import FAILED, Entry, Spool, read_shard, write_shard
from openmarigold.batch.sources import shards_of
from openmarigold.batch.spark import SparkFactory
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, InvalidValueError, OutputError
from openmarigold.images.png import read_png

CONFIG = PredictConfig(processing_resolution=32)  # little work


def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def records(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("0*.parquet")) for row in parquet.read_table(path).to_pylist()]


def sources(given: Path | str) -> list[str]:
    """The addresses of an input's photos."""
    found = []
    for shard in shards_of(str(given), BatchConfig()):
        with shard.source.rows(shard.stem) as rows:
            found += [row.source for row in rows]
    return found


def test_the_last_photos_of_a_remote_tar_are_read_too(tmp_path: Path) -> None:
    """Its copy on this machine stays until all of them are read."""
    content = tar_of({f"x{number}.png": photo(number) for number in range(6)})
    fsspec.filesystem("memory").pipe_file("/odd-tars/a.tar", content)
    outcome = batch_files("memory://odd-tars", str(tmp_path), config=CONFIG)
    assert (outcome.photos, outcome.failures) == (6, 0)


@pytest.mark.parametrize("folder", ["brackets [1]", "curly {0..1}", "col::on", "sp ace ü", "a*b?"])
def test_names_that_exist_are_no_patterns(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "a::b [x].png"
    path.parent.mkdir()
    path.write_bytes(b"")
    assert sources(path.parent) == sources(path) == [str(path)]


def test_names_with_two_colons_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative ones look like a chain of protocols."""
    monkeypatch.chdir(tmp_path)
    Path("cam::d").mkdir()
    for name in ("ab::b.png", "cam::d/a.png", "zip::c.png"):
        Path(name).write_bytes(photo(0))
    Path("list.txt").write_text("ab::b.png\ncam::d/a.png\n")
    for given, found in (
        ("ab::b.png", ["ab::b.png"]),
        ("cam::d", ["cam::d/a.png"]),
        ("zip::c.png", ["zip::c.png"]),
        ("list.txt", ["ab::b.png", "cam::d/a.png"]),
    ):
        outcome = batch_files(given, f"out::{given}", config=CONFIG)
        assert (outcome.photos, outcome.failures) == (len(found), 0)
        rows = records(tmp_path / f"out::{given}")
        assert [row["source"] for row in rows] == [str(tmp_path / name) for name in found]
    assert is_remote("simplecache::memory://a") and is_remote("filecache::a") and is_remote("s3://a::b")


def test_patterns_give_what_folders_give(tmp_path: Path) -> None:
    for name in ("a.png", ".hidden.png", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    assert sources(f"{tmp_path}/*") == [str(tmp_path / "a.png")]
    assert sources(f"{tmp_path}/.*") == [str(tmp_path / ".hidden.png")]


def test_shards_never_replace_their_input(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(content := tar_of({"a.png": photo(0)}))
    for given in (tmp_path, tmp_path / "*.tar", tmp_path / "{00000..00000}.tar"):
        with pytest.raises(InvalidValueError, match="holds the input, which shards would replace"):
            batch_files(str(given), str(tmp_path), config=CONFIG)
    assert (tmp_path / "00000.tar").read_bytes() == content
    for done_before in (0, 1):  # a folder within the input's is no input
        outcome = batch_files(str(tmp_path), str(tmp_path / "out"), config=CONFIG)
        assert (outcome.shards, outcome.done_before, outcome.failures) == (1, done_before, 0)


def test_odd_names_are_stored(tmp_path: Path) -> None:
    """Bytes that are not UTF-8; keys that would leave a folder; what macOS adds."""
    (tmp_path / "in").mkdir()
    names = {"../x.png": 0, "/abs/y.png": 1, "._m.png": 2, "v1.0/z.a.png": 3, os.fsdecode(b"\xff.png"): 4}
    (tmp_path / "in" / "a.tar").write_bytes(tar_of({name: photo(number) for name, number in names.items()}))
    outcome = batch_files(str(tmp_path / "in"), str(tmp_path / "out"), config=CONFIG)
    assert outcome.failures == 0
    assert [row["key"] for row in records(tmp_path / "out")] == ["__/x", "abs/y", "v1_0/z", "\\udcff"]
    assert records(tmp_path / "out")[3]["source"].endswith("a.tar#\\udcff.png")


def test_odd_rows_of_tables(tmp_path: Path) -> None:
    (tmp_path / "r.png").write_bytes(photo(1))
    table = pa.table({"image": ["x" * 100_000, "r.png", "", "r.png"], "key": [None, None, "/k", "a\nb"]})
    parquet.write_table(table, tmp_path / "in.parquet")
    batch_files(str(tmp_path / "in.parquet"), str(tmp_path / "out"), config=CONFIG)
    rows = records(tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "success", "failed", "success"]
    assert [row["key"] for row in rows] == ["000000000", "000000001", "k", "a_b"]  # as if there was no column of keys
    assert len(rows[0]["error"]) < 1100
    parquet.write_table(table.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="its tables have no rows"):
        shards_of(str(tmp_path / "empty.parquet"), BatchConfig())


@pytest.mark.parametrize("size", [2, 3, 7])
def test_shards_of_a_table_divide_its_rows(size: int, tmp_path: Path) -> None:
    """Rows within groups of 20, which are read 16 at once."""
    names = [f"/p/{number}.png" for number in range(45)]
    parquet.write_table(pa.table({"path": names}), tmp_path / "in.parquet", row_group_size=20)
    shards = shards_of(str(tmp_path / "in.parquet"), BatchConfig(shard_size=size))
    assert len(shards) == -(-45 // size)
    found = []
    for shard in shards:
        with shard.source.rows(shard.stem) as rows:
            for row in rows:
                with pytest.raises(DataError, match=r"/p/\d+\.png does not exist") as told:
                    row.read()
                found.append(str(told.value).split()[0])
    assert found == names


def test_lists_of_other_editors(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeffa.png\r\n  # remark\r\nfile:///b.png\r\n".encode())
    assert sources(tmp_path / "list.txt") == [f"{tmp_path}/a.png", "file:///b.png"]


def test_an_empty_name_is_no_folder(tmp_path: Path) -> None:
    for given, output in (("", str(tmp_path)), (str(tmp_path), "")):
        with pytest.raises(InvalidValueError, match="is empty; give a path"):
            batch_files(given, output, config=CONFIG)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_bounds_of_intervals_are_maps_too(form: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(0))
    config, batch = PredictConfig(interval=0.9), BatchConfig(format=form)
    batch_files(str(tmp_path / "a.png"), str(tmp_path / "out"), config=config, batch=batch)
    (row,) = records(tmp_path / "out")
    names = [f"interval_depth_{end}" for end in ("lo", "hi")]
    if form == "webdataset":
        with tarfile.open(tmp_path / "out" / "00000.tar") as archive:
            files = [archive.extractfile(f"000000000.{name}.png") for name in names]
            pictures = [file.read() for file in files if file is not None]
    else:
        pictures = [row[name] for name in names]
    found = Predictor.load()(tmp_path / "a.png", interval=0.9)
    for name, picture, expected in zip(names, pictures, (found.lo, found.hi), strict=True):
        low, high = row[f"{name}_lo"], row[f"{name}_hi"]
        assert np.abs(low + read_png(picture) / 65535 * (high - low) - expected).max() <= (high - low) / 65535
    assert row["depth_lo"] == 0.0 and row["depth_hi"] == 1.0
    assert SparkFactory(config).columns().keys() >= {*names, f"{names[0]}_lo", "depth_lo"}
    with pytest.raises(InvalidValueError, match="differ in maps, settings"):
        batch_files(str(tmp_path / "a.png"), str(tmp_path / "out"), config=PredictConfig(), batch=batch)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_maps_of_a_shard_wait_in_a_file(form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a bound on bytes they leave memory and, in tables, begin another row group; what is read back is equal."""
    monkeypatch.setattr(shard_files, "_IN_MEMORY", 1000)
    monkeypatch.setattr(shard_files, "_GROUP_BYTES", 1000)
    folder, batch = OutputFolder(str(tmp_path)), BatchConfig(format=form)
    entries = [
        Entry(key=f"k{place}", source="s", status="success", ranges={"depth": (0.0, 1.0)}, maps={"depth": bytes(400)})
        for place in range(7)
    ]
    entries.insert(3, Entry(key="bad", source="s", status=FAILED, error_class="DataError", error="no"))
    with Spool(folder) as spool:
        stored = [spool.put(entry) for entry in entries]
        assert spool.put(stored[0]) is stored[0]
        assert spool._file._rolled  # pyright: ignore[reportAttributeAccessIssue]
        assert list(tmp_path.iterdir()) == []  # a file without a name
        write_shard(folder, "00000", stored, ["depth"], batch)
    table = parquet.ParquetFile(tmp_path / "00000.parquet")
    assert table.num_row_groups == (4 if form == "parquet" else 1)
    assert list(read_shard(folder, "00000", ["depth"], batch)) == entries


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    folder, batch = OutputFolder(str(tmp_path)), BatchConfig()
    write_shard(folder, "00000", [], ["depth"], batch)
    for name in ("00000.tar", "00000.parquet"):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(DataError, match=r"00000 is damaged .*remove 00000_stats.json, and it is made again"):
            list(read_shard(folder, "00000", ["depth"], batch))


def test_a_retry_that_is_killed_leaves_no_whole_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a new tar and a new table the statistics of the old ones must not stand."""
    (tmp_path / "bad.png").write_bytes(b"bad")
    (tmp_path / "list.txt").write_text("bad.png\n")
    batch_files(str(tmp_path / "list.txt"), str(tmp_path / "out"), config=CONFIG)
    (tmp_path / "bad.png").write_bytes(photo(0))
    write = OutputFolder.write

    def killed(self: OutputFolder, name: str, content: Any) -> None:
        if name.endswith(".parquet"):
            raise KeyboardInterrupt
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            batch_files(str(tmp_path / "list.txt"), str(tmp_path / "out"), config=CONFIG, batch=BatchConfig(retry=True))
    outcome = batch_files(str(tmp_path / "list.txt"), str(tmp_path / "out"), config=CONFIG)
    assert (outcome.predicted, outcome.failures) == (1, 0)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_input_file_that_was_replaced_is_noticed(kind: str, tmp_path: Path) -> None:
    given, out, fresh = tmp_path / f"x.{kind}", tmp_path / "out", tmp_path / "fresh"

    def put(photos: list[bytes]) -> None:
        if kind == "tar":
            given.write_bytes(tar_of({f"{number}.png": content for number, content in enumerate(photos)}))
        else:
            parquet.write_table(pa.table({"png": photos}), given)

    def run(folder: Path, **batch: Any) -> BatchOutcome:
        return batch_files(str(given), str(folder), config=CONFIG, batch=BatchConfig(**batch))

    put([photo(0), photo(1), photo(2)])
    run(out)
    assert run(out).done_before == 1
    put([photo(0), photo(7), photo(2)])
    with pytest.raises(InvalidValueError, match=rf"x\.{kind} has changed since .*00000 was made of it; do its changed"):
        run(out)
    before = {row["key"]: row["input_sha256"] for row in records(out)}
    assert run(out, retry=True).predicted == 3
    after = {row["key"]: row["input_sha256"] for row in records(out)}
    assert [before[key] == after[key] for key in before] == [True, False, True]
    assert run(out).done_before == 1
    run(fresh)
    for name in ("00000.tar", "00000.parquet"):
        assert (fresh / name).read_bytes() == (out / name).read_bytes()
    stats = json.loads((out / "00000_stats.json").read_text())
    del stats["input_file"]  # as of shards that were made before it was stated
    (out / "00000_stats.json").write_text(json.dumps(stats))
    put([photo(3)] * 3)
    assert run(out).done_before == 1


def test_a_retry_reads_no_photo_that_has_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos that are files of their own may lie far away."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, content in {"a": photo(0), "b": b"bad", "c": photo(2)}.items():
        (folder / f"{name}.png").write_bytes(content)
    batch_files(str(folder), str(out), config=CONFIG)
    old = records(out)
    for name, number in {"a": 5, "b": 1}.items():
        (folder / f"{name}.png").write_bytes(photo(number))
    read, names = Path.read_bytes, []

    def reading(self: Path) -> bytes:
        names.append(self.name)
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", reading)
    outcome = batch_files(str(folder), str(out), config=CONFIG, batch=BatchConfig(retry=True))
    assert outcome.failures == 0 and [name for name in names if name.endswith(".png")] == ["b.png"]
    assert [row["status"] for row in old] == ["success", FAILED, "success"]
    same = [row["input_sha256"] == before["input_sha256"] for row, before in zip(records(out), old, strict=True)]
    assert same == [True, False, True]


def test_fingerprints_over_http_take_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives no parts would send the whole file."""
    system = fsspec.filesystem("memory")
    system.pipe_file("/x.tar", b"12345")
    facts = {"size": 5, "ETag": '"v1"'}
    monkeypatch.setattr(type(system), "info", lambda self, path, **_: facts)
    monkeypatch.setattr(type(system), "cat_file", lambda *_, **__: pytest.fail("content was read"))
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda address: (system, "/x.tar"))
    assert addresses.fingerprint("http://localhost/x.tar") == '5 bytes, "v1"'


def test_runs_that_remove_each_others_temporary_files_go_on(tmp_path: Path) -> None:
    """As machines do that begin at once, for the plan; a folder that is gone stays an error."""
    attempts = []

    def write(path: Path) -> None:
        path.write_text("whole")
        attempts.append(path)
        if len(attempts) == 1:
            path.unlink()  # another run, which takes it for a leftover

    OutputFolder(str(tmp_path)).write("a", write)
    assert (tmp_path / "a").read_text() == "whole" and len(attempts) == 2
    with pytest.raises(OutputError, match="No such file"):
        OutputFolder(str(tmp_path / "gone")).write("a", write)


def test_a_map_that_cannot_be_encoded_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(photo(0))

    def fails(*given: Any, **named: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("openmarigold.batch.worker.encoded", fails)
    outcome = batch_files(str(tmp_path / "a.png"), str(tmp_path / "out"), config=CONFIG)
    assert dict(outcome.failed_by_class) == {"MemoryError": 1}
    assert "out of memory" in records(tmp_path / "out")[0]["error"]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(photo(0))

    class Full(io.BytesIO):
        def write(self, content: Any, /) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_files.tempfile, "SpooledTemporaryFile", lambda *given, **named: Full())
    with pytest.raises(OutputError, match="No space left on device"):
        batch_files(str(tmp_path / "a.png"), str(tmp_path / "out"), config=CONFIG)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_do_not_outlive_a_program_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from openmarigold.data.units import _begin\n"
        "def work():\n"
        "    _begin(None)\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    process.start()\n"
        "    print(process.pid, flush=True)\n"
        "    process.join()\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert program.stdout.readline() == "begun\n"
        program.kill()
    until = time.monotonic() + 10
    while time.monotonic() < until and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
