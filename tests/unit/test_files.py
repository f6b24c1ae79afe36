# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from openmarigold.errors import OutputError
from openmarigold.files import atomic_directory, write_atomically


def test_file_has_its_final_name_only_when_whole(tmp_path):
    path = tmp_path / "result.txt"

    def write(temporary):
        temporary.write_text("whole")
        assert temporary.parent == path.parent, "another file system could not be renamed from"
        assert not path.exists()

    write_atomically(path, write)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_an_output_error(tmp_path):
    def write(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*result\.txt: No space left on device"):
        write_atomically(tmp_path / "result.txt", write)
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="check the folder"):
        write_atomically(tmp_path / "missing" / "result.txt", lambda path: path.write_text("x"))


def test_directory_appears_whole(tmp_path):
    path = tmp_path / "deep" / "checkpoint"
    with atomic_directory(path) as temporary:
        (temporary / "weights").write_text("new")
        assert not path.exists()
    assert (path / "weights").read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_directory_replaces_the_old_one_entirely(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "stale").touch()
    with atomic_directory(path) as temporary:
        (temporary / "weights").touch()
    assert [entry.name for entry in path.iterdir()] == ["weights"]
    assert list(tmp_path.iterdir()) == [path]


def test_failed_directory_keeps_the_old_one(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError), atomic_directory(path) as temporary:
        (temporary / "weights").touch()
        raise RuntimeError
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file/result", "x" * 300])
def test_impossible_paths_are_output_errors(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(tmp_path / name, lambda path: path.write_text("x"))
    with pytest.raises(OutputError, match="cannot write"), atomic_directory(tmp_path / name):
        raise AssertionError("there is no folder to work in")
