# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmark_data import pack, write
from openmarigold.data.archives import open_archive
from openmarigold.errors import DataError

CONTENT = {"a.txt": b"first", "b/c.bin": bytes(range(256)) * 50, "b/empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        write(tmp_path / "folder" / name, content)
    return tmp_path / "folder"


@pytest.mark.parametrize("kind", ["folder", "a.tar", "a.zip", "folder of archives"])
@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("sent", [False, True])
def test_the_same_files_from_a_folder_a_tar_a_zip_and_in_threads(
    kind: str, prefix: str, sent: bool, folder: Path, tmp_path: Path
) -> None:
    path = folder
    if kind == "folder of archives":
        path = tmp_path / "outer"
        for name, content in CONTENT.items():
            write(tmp_path / "part" / name, content)
        path.mkdir()
        pack(tmp_path / "part", path / "part.zip", prefix=prefix)
        write(path / "own.txt", b"own")
    elif kind != "folder":
        path = tmp_path / kind
        pack(folder, path, prefix=prefix)
    archive = open_archive(path)
    if sent:
        archive = pickle.loads(pickle.dumps(archive))
    assert set(CONTENT) <= archive.names
    names = sorted(CONTENT) * 20
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(archive.read, names)) == [CONTENT[name] for name in names]
    if kind == "folder of archives":
        assert archive.read("own.txt") == b"own"
    with pytest.raises(DataError, match=r"holds no \.\./secret"):
        archive.read("../secret")


@pytest.mark.parametrize("kind", ["a.tar", "a.zip"])
def test_broken_archives(kind: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / kind
    pack(folder, path)
    whole = path.read_bytes()
    archive = open_archive(path)
    path.write_bytes(whole[:600])
    if kind == "a.tar":
        with pytest.raises(DataError, match=r"ends within b/c\.bin"):
            archive.read("b/c.bin")
    else:
        damaged = bytearray(whole)
        damaged[90:150] = bytes(60)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match="is damaged"):
            open_archive(path).read("b/c.bin")
    path.write_bytes(b"no archive at all" * 100)
    with pytest.raises(DataError, match="is not a whole tar or zip file"):
        open_archive(path)
    with pytest.raises(DataError, match="does not exist; give a folder, a tar or a zip"):
        open_archive(tmp_path / "none.tar")


def test_a_tar_that_is_compressed_as_a_whole_cannot_be_read_at_random(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match="compressed as a whole"):
        open_archive(tmp_path / "a.tar.gz")
