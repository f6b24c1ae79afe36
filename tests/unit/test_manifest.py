# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from openmarigold.errors import OutputError
from openmarigold.results.manifest import Manifest

REQUEST = {"seed": 1, "background": "white"}


def finished(folder: Path) -> Manifest:
    """A manifest whose result `a/cat` is done with two files."""
    (folder / "a").mkdir()
    (folder / "a" / "cat_depth.npy").write_bytes(b"12345")
    (folder / "a" / "cat_depth.png").write_bytes(b"123")
    manifest = Manifest(folder)
    manifest.append(
        "a/cat",
        "done",
        request=REQUEST,
        input_sha256="00",
        outputs={"cat_depth.npy": 5, "cat_depth.png": 3},
        provenance={"seed": 1},
    )
    return manifest


def is_done(folder: Path, **changes: object) -> bool:
    given: dict = {"request": REQUEST, "input_sha256": "00", "outputs": ["cat_depth.npy"], **changes}
    return Manifest(folder).is_done("a/cat", **given)


def test_nothing_is_written_before_something_is_appended(tmp_path):
    manifest = Manifest(tmp_path)
    assert manifest.lines() == []
    assert manifest.standing("cat") is None
    assert not manifest.path.exists()


def test_done_means_the_same_photo_settings_and_files(tmp_path):
    finished(tmp_path)
    assert is_done(tmp_path)
    assert is_done(tmp_path, outputs=["cat_depth.npy", "cat_depth.png"])
    assert not is_done(tmp_path, outputs=["cat_depth.npy", "cat_depth.exr"])
    assert not is_done(tmp_path, request={**REQUEST, "seed": 2})
    assert not is_done(tmp_path, input_sha256="01")
    assert not Manifest(tmp_path).is_done("cat", request=REQUEST, input_sha256="00", outputs=["cat_depth.npy"])


@pytest.mark.parametrize("change", ["missing", "truncated", "folder"])
def test_files_that_are_not_as_noted_are_not_done(tmp_path, change):
    finished(tmp_path)
    path = tmp_path / "a" / "cat_depth.npy"
    path.unlink()
    if change == "truncated":
        path.write_bytes(b"12")
    elif change == "folder":
        path.mkdir()
    assert not is_done(tmp_path)


def test_the_last_line_that_is_no_failure_counts(tmp_path):
    manifest = finished(tmp_path)
    manifest.append("a/cat", "failed", error="out of memory, with other settings")
    for seen in (manifest, Manifest(tmp_path)):
        assert seen.standing("a/cat")["status"] == "done"
    assert is_done(tmp_path)
    manifest.append("a/cat", "started")
    manifest.append("a/cat", "failed", error="the disk was full")
    assert not is_done(tmp_path), "its files were about to be replaced"


def test_a_cut_line_is_skipped_and_does_not_spoil_the_next(tmp_path):
    manifest = finished(tmp_path)
    whole = manifest.path.read_bytes()
    for cut in (1, 20, len(whole) - 1):
        manifest.path.write_bytes(whole + whole[:cut])
        assert is_done(tmp_path), cut
        Manifest(tmp_path).append("dog", "failed", error="none")
        assert Manifest(tmp_path).lines()[-1]["error"] == "none"
        assert is_done(tmp_path)


def test_lines_that_are_no_entries_are_skipped(tmp_path):
    manifest = finished(tmp_path)
    with manifest.path.open("ab") as file:
        file.write(b'[1]\n{"result": 3}\n\xff\xfe\n\n')
    assert len(Manifest(tmp_path).lines()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs": ["cat_depth.npy"]},
        {"outputs": {"../cat_depth.npy": 5}},
        {"outputs": {"cat_/../../dog.npy": 5}},
        {"replaces": ["/etc/passwd"]},
        {"replaces": ["dog_depth.npy"]},
        {"replaces": [["cat_depth.npy"]]},
        {"replaces": "cat_depth.npy"},
    ],
)
def test_lines_that_name_files_of_others_are_skipped(tmp_path, fields):
    """A run removes files of other settings that the manifest names: it must not be led to those of others."""
    manifest = finished(tmp_path)
    manifest.append("a/cat", "done", **fields)
    again = Manifest(tmp_path)
    assert len(again.lines()) == 1
    assert again.standing("a/cat")["outputs"] == {"cat_depth.npy": 5, "cat_depth.png": 3}


@pytest.mark.skipif(os.sep == "\\", reason="a backslash separates folders here")
def test_a_backslash_is_a_letter_of_a_name(tmp_path):
    (tmp_path / "a\\b_depth.npy").write_bytes(b"12345")
    Manifest(tmp_path).append("a\\b", "done", request=REQUEST, input_sha256="00", outputs={"a\\b_depth.npy": 5})
    known = Manifest(tmp_path)
    assert known.is_done("a\\b", request=REQUEST, input_sha256="00", outputs=["a\\b_depth.npy"])


def test_provenance_is_that_of_the_file_that_is_there(tmp_path):
    manifest = finished(tmp_path)
    path = tmp_path / "a" / "cat_depth.npy"
    assert manifest.provenance_of(path) == {"seed": 1}
    assert manifest.provenance_of(tmp_path / "cat_depth.npy") is None
    manifest.append("a/dog", "started")
    assert manifest.provenance_of(path) == {"seed": 1}
    manifest.append("a/cat", "started")
    assert manifest.provenance_of(path) is None, "it may be of the run that has not got to its end"
    manifest.append("a/cat", "done", outputs={"cat_depth.npy": 5}, provenance={"seed": 2})
    assert manifest.provenance_of(path) == {"seed": 2}
    path.write_bytes(b"other")
    assert manifest.provenance_of(path) == {"seed": 2}, "only the size is compared"
    path.write_bytes(b"longer than before")
    assert manifest.provenance_of(path) is None


def test_a_manifest_that_cannot_be_used_is_an_output_error(tmp_path):
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot read .*manifest\.jsonl"):
        Manifest(tmp_path).lines()
    with pytest.raises(OutputError, match=r"cannot write .*manifest\.jsonl"):
        Manifest(tmp_path / "missing").append("cat", "done")


def test_a_folder_that_went_has_no_manifest(tmp_path):
    (tmp_path / "out").write_text("not a folder")
    manifest = Manifest(tmp_path / "out")
    assert manifest.lines() == []
    with pytest.raises(OutputError, match=r"cannot write .*manifest\.jsonl"):
        manifest.append("cat", "done")
