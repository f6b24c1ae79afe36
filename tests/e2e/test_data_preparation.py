# SPDX-License-Identifier: Apache-2.0
"""`openmarigold data prepare`, `verify` and `preview` as a user runs them, killed ones included."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openmarigold.cli import run
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.sources import Source
from raw_data import VKITTI2_DEFECTS, write_good_hypersim_frame, write_split, write_vkitti2

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "100"}


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "openmarigold", "data", *map(str, arguments)]


def data(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in this process, with its status and what it prints."""
    words, stdout, stderr = ["data", *map(str, arguments)], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = run(words)
    return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def vkitti2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vkitti2(tmp_path_factory.mktemp("vkitti2"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_preparation_goes_on(vkitti2: Path, tmp_path: Path) -> None:
    options = ("--variants", "clone", "--shard-size", 1, "--crop", "none")
    whole = data("prepare", "vkitti2", vkitti2, tmp_path / "whole", *options, "--workers", 1)
    assert whole.returncode == 1, whole.stderr
    assert whole.stdout.startswith("12 samples of 1 scenes in 18 shards, 0 left out, 8 defective")
    assert "8 defective frames (1 constant depth, 2 missing file, 1 no depth, 2 truncated" in whole.stderr
    rejected = [json.loads(line) for line in (tmp_path / "whole" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in rejected) == sorted(VKITTI2_DEFECTS.values())

    killed = tmp_path / "killed"
    command = command_line("prepare", "vkitti2", vkitti2, killed, *options, "--workers", 2)
    process = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(killed.glob("shard-*.json"))) >= 2, seconds=60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Its workers end too, though nobody could tell them.
    wait_for(lambda: not group_lives(process.pid), seconds=20)
    done = {path.name: path.stat().st_mtime_ns for path in killed.glob("shard-*.tar")}
    indices = {path.stem for path in killed.glob("shard-*.json")}
    assert 2 <= len(indices) < 18 and not (killed / "manifest.json").exists()
    (killed / ".shard-00017.tar.999999999.partial").write_bytes(b"what a kill in the middle of a shard leaves")
    unfinished = data("verify", killed)
    assert unfinished.returncode == 2 and "its preparation is not finished; run it again" in unfinished.stderr

    changed = data("prepare", "vkitti2", vkitti2, killed, *options[:-1], "kitti")
    assert (
        changed.returncode == 2 and "prepared with other settings (crop: None then, [352, 1216] now)" in changed.stderr
    )
    resumed = data("prepare", "vkitti2", vkitti2, killed, *options, "--workers", 2)
    assert resumed.returncode == 1 and f"in 18 shards ({len(indices)} kept from before)" in resumed.stdout
    for name, written in done.items():
        if Path(name).stem in indices:
            assert (killed / name).stat().st_mtime_ns == written, name
    assert files(killed) == files(tmp_path / "whole")

    verified = data("verify", killed, "--json")
    prepared = ShardedDataset(killed)
    assert json.loads(verified.stdout) == {"samples": 12, "contents": prepared.contents, "problems": []}
    assert verified.returncode == 0
    shard = killed / f"shard-{prepared.shard_numbers[8]:05d}.tar"
    content = bytearray(shard.read_bytes())
    offset, size, _ = prepared.places(8)["rgb"]
    content[offset + size // 2] ^= 4
    shard.write_bytes(content)
    damaged = data("verify", killed)
    assert damaged.returncode == 1
    assert f"{shard.name}: {prepared.keys[8]}: the checksum of its rgb is another" in damaged.stderr
    shard.unlink()
    repaired = data("prepare", "vkitti2", vkitti2, killed, *options, "--workers", 1)
    assert "in 18 shards (17 kept from before)" in repaired.stdout
    assert files(killed) == files(tmp_path / "whole")


def wait_for(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_hypersim_from_scenes_to_a_source_of_training(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    rows = [("ai_001_001", "cam_00", number, "True", "val") for number in range(2)]
    for row in rows:
        write_good_hypersim_frame(raw / row[0], row[1], row[2], (768, 1024))
    write_split(raw, rows)
    prepared = tmp_path / "data" / "hypersim" / "val"
    result = data("prepare", "hypersim", raw, prepared, "--split", "val")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"2 samples of 1 scenes in 1 shards, 0 left out, 0 defective: {prepared}\n"
    source = Source("hypersim/val", tmp_path / "data")
    assert source.sizes.tolist() == [[768, 1024]] * 2 and source.read(1).kind == "rooms"
    source.close()
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["command"] == f"openmarigold data prepare hypersim {raw} DEST --split val"
    assert manifest["license"] == "CC BY-SA 3.0" and "Roberts" in manifest["attribution"][0]
    preview = data("preview", prepared, "--output", tmp_path / "sheet.jpg")
    assert (preview.returncode, preview.stdout) == (0, f"2 samples: {tmp_path / 'sheet.jpg'}\n"), preview.stderr
    assert (tmp_path / "sheet.jpg").stat().st_size > 10_000
    missing = data("prepare", "hypersim", raw, tmp_path / "x", "--split", "test")
    assert missing.returncode == 2 and "no public frame of split 'test'" in missing.stderr


def test_a_full_disk_loses_nothing(vkitti2: Path, tmp_path: Path) -> None:
    options = ("--variants", "fog", "--shard-size", 4, "--crop", "none", "--workers", 2)
    command = command_line("prepare", "vkitti2", vkitti2, tmp_path / "out", *options)
    limit = 200_000  # bytes a file; a shard has more
    result = subprocess.run(
        ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert result.returncode == 2
    error = result.stderr.strip().splitlines()[-1]
    assert "cannot write" in error and "File too large; check the folder and free space" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]
    assert data("prepare", "vkitti2", vkitti2, tmp_path / "out", *options).returncode == 0
    assert len(ShardedDataset(tmp_path / "out")) == 20


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = {
        ("prepare", "folder", tmp_path, tmp_path / "out"): "dataset.toml cannot be read",
        ("prepare", "vkitti2", tmp_path / "none", tmp_path / "out"): "does not exist",
        ("prepare", "vkitti2", tmp_path, tmp_path / "out", "--list", tmp_path / "l"): "--list is a text file",
        ("verify", tmp_path): "holds no manifest.json; give the folder of `data prepare`",
        ("preview", tmp_path, "--output", tmp_path / "a.jpg"): "holds no manifest.json",
    }
    for arguments, message in mistakes.items():
        assert run(["data", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_raw_data_sets_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "hypersim" in listed and "CC BY-NC-SA 3.0" in listed
    assert run(["data", "where", "vkitti2", "--data", str(tmp_path)]) == 0
    where = capsys.readouterr().out
    assert f"{tmp_path}/vkitti2/vkitti_2.0.3_depth.tar" in where and "CC BY-NC-SA 3.0" in where
