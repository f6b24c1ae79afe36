# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from openmarigold.errors import OutputError
from openmarigold.files import Leftovers, atomic_directory, concerns_every_file, user_cache_dir, write_atomically


def test_file_has_its_final_name_only_when_whole(tmp_path):
    path = tmp_path / "result.txt"

    def write(temporary):
        temporary.write_text("whole")
        assert temporary.parent == path.parent, "another file system could not be renamed from"
        assert not path.exists()

    write_atomically(path, write)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_removed_after_one_search(tmp_path, monkeypatch):
    own, other = tmp_path / ".a.npy.12-12.partial", tmp_path / ".b.npy.12-12.partial"
    for path in (own, other):
        path.write_text("half")
    leftovers = Leftovers()
    leftovers.remove(tmp_path / "a.npy")
    assert not own.exists() and other.exists()
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("the folder was searched again"))
    leftovers.remove(tmp_path / "b.npy")
    assert not other.exists()


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


def test_an_error_without_a_number_is_explained_by_the_file_system(tmp_path):
    """Encoders raise errors of their own kinds on a full disk; the file system says what it was."""
    import resource

    def write(temporary):
        temporary.write_bytes(bytes(3000))
        raise RuntimeError("cannot write block 3")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*result\.exr: File too large") as caught:
            write_atomically(tmp_path / "result.exr", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert concerns_every_file(caught.value, tmp_path)
    assert not list(tmp_path.iterdir())


def test_errors_of_one_name_do_not_concern_every_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError) as caught:
        write_atomically(tmp_path / "taken", lambda path: path.write_text("x"))
    assert not concerns_every_file(caught.value, tmp_path)


def test_a_cache_that_cannot_be_made_is_temporary_and_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("OPENMARIGOLD_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert user_cache_dir() == tmp_path / "home" / "openmarigold"
    (tmp_path / "home").write_text("not a folder")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    folder = user_cache_dir()
    assert folder.is_dir() and folder == user_cache_dir()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"{tmp_path / 'home' / 'openmarigold'} cannot be made"
    ]
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "chosen"))
    assert user_cache_dir() == tmp_path / "chosen"


def test_a_file_that_cannot_be_written_into_a_new_folder_is_named_once(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(OutputError) as caught, atomic_directory(tmp_path / "new") as folder:
        write_atomically(folder / "file", fail)
    assert str(caught.value).count("cannot write") == 1
    assert str(caught.value).endswith("No space left on device; check the folder and free space")
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_processes_are_removed_or_moved_back(tmp_path: Path) -> None:
    path = tmp_path / "model"
    old = [tmp_path / name for name in (".model.aaaaaaaa.partial", ".model.bbbbbbbb.old")]
    others = [
        tmp_path / name for name in (".model.x.aaaaaaaa.partial", ".other.aaaaaaaa.partial", ".model.cccccccc.partial")
    ]
    for folder in (*old, *others):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
        if folder != others[-1]:  # which is new
            for changed in (folder / "file", folder):
                os.utime(changed, (0, 0))
    with atomic_directory(path) as folder:
        assert (path / "file").read_text() == ".model.bbbbbbbb.old"  # the process was killed between its two moves
        (folder / "file").write_text("new")
        with atomic_directory(path) as second:  # does not remove what another one holds
            for changed in (folder / "file", folder):
                os.utime(changed, (0, 0))
            (second / "file").write_text("second")
        assert folder.is_dir()
    assert (path / "file").read_text() == "new"
    assert sorted(tmp_path.iterdir()) == sorted([*others, path])


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real")
    (tmp_path / "dangling").symlink_to("elsewhere")
    for path in (link, tmp_path / "dangling"):
        with atomic_directory(path) as folder:
            (folder / "file").write_text("new")
        assert path.is_symlink() and (path / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "elsewhere", "link", "real"]
