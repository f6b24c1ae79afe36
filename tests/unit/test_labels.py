# SPDX-License-Identifier: Apache-2.0
"""Photos labeled by a model: `openmarigold data label` and what training makes of unknown pixels."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold import Predictor
from openmarigold.batch.labels import LabelReader
from openmarigold.cli import run
from openmarigold.config import PredictConfig
from openmarigold.data.decoding import FrameDefectError
from openmarigold.data.shards import ShardedDataset
from openmarigold.data.sources import Source
from openmarigold.data.verification import verify
from openmarigold.errors import CheckpointError, DataError, InvalidValueError
from openmarigold.files import only_run
from tiny import make_checkpoint

PAIR = PredictConfig(ensemble_size=2, processing_resolution=64)


def write_photos(folder: Path) -> Path:
    """A wide and a high photo, one that is cut, and a file of another kind."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    for name, shape in (("wide", (90, 150)), ("high", (150, 90))):
        small = rng.integers(0, 255, (*(side // 10 for side in shape), 3), dtype=np.uint8)
        Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC).save(folder / f"{name}.jpg")
    (folder / "cut.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("no photo")
    return folder


def label(photos: Path, dest: Path, *more: str) -> int:
    return run(["data", "label", str(photos), str(dest), "--ensemble-size", "2", "--size", "48", "64", *more])


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_photos_become_samples_of_the_ensembles_depth(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos")
    assert label(photos, tmp_path / "set", "--max-uncertainty", "0.01", "--min-valid", "0.01") == 1  # one is cut
    assert "2 samples of 2 scenes" in capfd.readouterr().out
    data = ShardedDataset(tmp_path / "set")
    assert verify(tmp_path / "set", workers=1) == []
    assert (data.keys, set(data.kinds), data.unknown_is_far) == (["high", "wide"], {"photos"}, False)
    assert "cut.jpg" in (tmp_path / "set" / "rejected.jsonl").read_text()

    found = Predictor.load()(photos / "wide.jpg", ensemble_size=2)
    assert found.uncertainty is not None
    sure = found.uncertainty <= 0.01 * found.depth
    depth = np.where(sure, found.depth / np.median(found.depth), 0)[:, 15:135]  # the middle 4:3 of 90x150
    rows, columns = ((np.arange(count) * 2 + 1) * side // (2 * count) for count, side in ((48, 90), (64, 120)))
    sample = data.read(1)
    assert sample.rgb.shape == (48, 64, 3)
    stored, wanted = sample.maps["depth"], depth[rows][:, columns]
    assert np.array_equal(stored > 0, wanted > 0)
    assert 0.01 < (stored > 0).mean() < 0.999  # the threshold has something to do
    assert np.abs(stored[stored > 0] / wanted[stored > 0] - 1).max() < 0.001


def test_a_resolution_of_its_own(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "cut.jpg").unlink()
    assert label(photos, tmp_path / "set", "--max-uncertainty", "1000", "--processing-resolution", "64") == 0
    data = ShardedDataset(tmp_path / "set")
    assert data.manifest["settings"]["processing_resolution"] == 64
    assert "--processing-resolution 64" in data.manifest["command"]
    found = Predictor.load()(photos / "high.jpg", ensemble_size=2, processing_resolution=64).depth
    inside = np.median(found[40:110]) / np.median(found)  # the middle of 90x150
    assert np.median(data.read(0).maps["depth"]) == pytest.approx(inside, rel=0.1)


def test_an_interrupted_run_gives_the_same_bytes(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "cut.jpg").unlink()
    for name in ("one", "two"):
        assert label(photos, tmp_path / name, "--shard-size", "1") == 0
    again = tmp_path / "two"
    before = {path.name: path.read_bytes() for path in again.iterdir()}
    kept = (again / "shard-00000.tar").stat().st_mtime_ns
    (again / "shard-00001.tar").unlink()  # as if it had not been written
    assert label(photos, again, "--shard-size", "1") == 0
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before
    assert (again / "shard-00000.tar").stat().st_mtime_ns == kept


def test_photos_of_tars_in_a_folder(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "photos-00.tar", "w") as archive:
        archive.add(photos / "wide.jpg", "wide.jpg")
    reader = LabelReader(tmp_path / "tars", PAIR, size=(48, 64))
    (frame,) = reader.list_frames().frames
    first = reader.read(frame)
    copy = pickle.loads(pickle.dumps(reader))  # as other processes get it
    second = copy.read(frame)
    assert first[0] == second[0]
    assert np.array_equal(first[1]["depth"], second[1]["depth"])
    assert reader.settings() == copy.settings()


def test_what_is_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(InvalidValueError, match="give 2 or more"):
        LabelReader(photos, PredictConfig())
    with pytest.raises(InvalidValueError, match="at least 16 px"):
        LabelReader(photos, PAIR, size=(0, 64))
    with pytest.raises(InvalidValueError, match="must be a number above 0"):
        LabelReader(photos, PAIR, max_uncertainty=0.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no photo"):
        LabelReader(tmp_path / "empty", PAIR).list_frames()
    checkpoint = make_checkpoint(tmp_path / "affine", "tiny")
    affine = PredictConfig(checkpoint=checkpoint, ensemble_size=2)
    with pytest.raises(InvalidValueError, match="labels need depth up to a scale"):
        LabelReader(photos, affine).settings()


def test_unknown_pixels_of_labels_are_not_asked_to_be_far(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "cut.jpg").unlink()
    label(photos, tmp_path / "data" / "labels")
    assert not Source("labels", tmp_path / "data").unknown_is_far


def test_hidden_files_and_results_are_no_photos(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "cut.jpg").unlink()
    (photos / "._wide.jpg").write_bytes(b"\0\5\x16\7" + bytes(100))  # as macOS writes next to a photo
    (photos / ".cache").mkdir()
    (photos / ".cache" / "preview.jpg").write_bytes((photos / "wide.jpg").read_bytes())
    Predictor.load()(photos / "wide.jpg").save(tmp_path / "out", "wide")
    shutil.copy(tmp_path / "out" / "wide_depth.png", photos)
    assert label(photos, tmp_path / "set") == 0
    assert ShardedDataset(tmp_path / "set").keys == ["high", "wide"]
    (rejected,) = read_json_lines(tmp_path / "set" / "rejected.jsonl")
    assert (rejected["name"], rejected["reason"], rejected["is_error"]) == ("wide_depth.png", "result", False)


def test_reasons_name_the_photo(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    label(photos, tmp_path / "set")
    (rejected,) = read_json_lines(tmp_path / "set" / "rejected.jsonl")
    assert rejected["detail"].startswith("cut.jpg is damaged")


def test_photos_without_agreement_are_left_out_and_not_defective(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "cut.jpg").unlink()
    assert label(photos, tmp_path / "set", "--max-uncertainty", "1e-12") == 1
    assert "the set holds no sample (2 too little depth)" in capfd.readouterr().err
    rejected = read_json_lines(tmp_path / "set" / "rejected.jsonl")
    assert [(row["reason"], row["is_error"]) for row in rejected] == [("too little depth", False)] * 2


def test_a_full_disk_for_temporary_files_is_no_damage_of_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos")

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", no_room)
        assert label(photos, tmp_path / "set") == 2
    assert "free space for it" in capfd.readouterr().err
    assert label(photos, tmp_path / "set") == 1  # one is cut; the others are labeled now
    assert ShardedDataset(tmp_path / "set").keys == ["high", "wide"]


def test_a_worker_without_memory_for_the_model_is_no_damage_of_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = LabelReader(write_photos(tmp_path / "photos"), PAIR, size=(48, 64))
    frame = reader.list_frames().frames[-1]

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "from_config", no_memory)
        with pytest.raises(CheckpointError, match="run the same again"):
            reader.read(frame)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", no_memory)
        with pytest.raises(FrameDefectError, match=r"not predicted: wide\.jpg: MemoryError"):
            reader.read(frame)


def test_one_run_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    photos = write_photos(tmp_path / "photos")
    (tmp_path / "set").mkdir()
    with only_run(tmp_path / "set"):
        assert label(photos, tmp_path / "set") == 2
    assert "another run is writing" in capfd.readouterr().err
    assert label(photos, tmp_path / "set", "--max-uncertainty", "1") == 1  # one photo is cut; and a failed run is over


def test_fewer_than_no_workers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert label(write_photos(tmp_path / "photos"), tmp_path / "set", "--workers", "-1") == 2
    assert "--workers: -1 is not accepted; give 1 or more, or 0" in capfd.readouterr().err
