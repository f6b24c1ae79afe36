# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmarigold.batch import Event, predict_files
from openmarigold.config import PredictConfig
from openmarigold.errors import CheckpointError, InvalidValueError, OutputError
from openmarigold.manifest import MANIFEST_NAME
from tiny import make_photo


def results_in(directory: Path) -> list[Path]:
    """Result files, in folders within too; the manifest is none."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)


@pytest.fixture
def config(onnx_checkpoint: Path) -> PredictConfig:
    return PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1)


def test_folder_is_predicted_in_order(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    (photo_dir / "notes.txt").write_text("no photo")
    (photo_dir / "._a.png").write_bytes(b"left behind by a file manager")
    (photo_dir / ".hidden").mkdir()
    Image.fromarray(make_photo(16, 16)).save(photo_dir / ".hidden" / "f.png")
    events: list[Event] = []
    result = predict_files([photo_dir], output_dir=tmp_path / "out", config=config, report=events.append)
    assert [event.path.name for event in events] == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert [(event.done, event.total, event.error) for event in events[-1:]] == [(5, 5, None)]
    assert result.num_predicted == len(result.predict_s) == 5
    assert not result.failed
    assert sorted(result.written) == results_in(tmp_path / "out")
    assert len(result.written) == 15
    assert np.load(tmp_path / "out" / "c_depth.npy").shape == (50, 70)


def test_bytes_do_not_depend_on_company(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    for name, inputs in {"alone": [photo_dir / "c.png"], "five": [photo_dir], "again": [photo_dir]}.items():
        predict_files(inputs, output_dir=tmp_path / name, config=config)
    for path in results_in(tmp_path / "alone"):
        contents = {(tmp_path / name / path.name).read_bytes() for name in ("alone", "five", "again")}
        assert len(contents) == 1, path.name


def test_bad_files_are_counted_and_stop_nothing(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    (photo_dir / "a.png").write_bytes(b"")
    (photo_dir / "b.png").write_bytes((photo_dir / "b.png").read_bytes()[:200])
    (photo_dir / "c.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "missing.jpg"
    events: list[Event] = []
    result = predict_files(
        [missing, tmp_path / "empty", photo_dir], output_dir=tmp_path / "out", config=config, report=events.append
    )
    assert result.num_predicted == 2
    messages = {path.name: message for path, message in result.failed}
    assert set(messages) == {"missing.jpg", "empty", "a.png", "b.png", "c.png"}
    assert "does not exist" in messages["missing.jpg"]
    assert "holds no photo; accepted are" in messages["empty"]
    assert all(name in message and "\n" not in message for name, message in messages.items())
    assert len(events) == events[-1].total == events[-1].done == 7
    assert sorted(path.name[:2] for path in results_in(tmp_path / "out")) == ["d_"] * 3 + ["e_"] * 3


def test_existing_results_are_skipped(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    out = tmp_path / "out"
    predict_files([photo_dir], output_dir=out, config=config)
    (out / "b_depth.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in results_in(out) if path.name[0] != "b"}
    result = predict_files([photo_dir], output_dir=out, config=config)
    assert (len(result.skipped), result.num_predicted) == (4, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "b_depth.png").is_file()
    result = predict_files([photo_dir], output_dir=out, config=config, overwrite=True)
    assert (len(result.skipped), result.num_predicted) == (0, 5)


def test_uncertainty_file_comes_and_goes(photo_dir: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    many = PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1, ensemble_size=3)
    one = PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1)
    predict_files([photo], output_dir=out, config=many)
    assert np.load(out / "a_uncertainty.npy").shape == (48, 64)
    predict_files([photo], output_dir=out, config=one, overwrite=True)
    assert not (out / "a_uncertainty.npy").exists()


def test_same_photo_twice_and_same_stem(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    photo = photo_dir / "a.png"
    twin = photo_dir / "a.jpg"
    Image.fromarray(make_photo(32, 32)).save(twin)
    result = predict_files([photo, Path(os.path.relpath(photo)), twin], output_dir=tmp_path / "out", config=config)
    assert result.num_predicted == 1
    assert result.failed == [(twin, f"{twin} has the same result names as {photo}; rename one of them")]


def test_everything_is_checked_before_weights_are_loaded(
    photo_dir: Path, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **named: object) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr("openmarigold.predictor.Predictor.load", load)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to output folder .*sub: Not a directory; choose a folder"):
        predict_files([photo_dir], output_dir=tmp_path / "file" / "sub", config=config)
    with pytest.raises(OutputError, match=r"cannot write to output folder .*file: File exists"):
        predict_files([photo_dir], output_dir=tmp_path / "file", config=config)
    with pytest.raises(InvalidValueError, match="is also an input"):
        predict_files([photo_dir], output_dir=photo_dir, config=config)
    with pytest.raises(InvalidValueError, match="no input given"):
        predict_files([], output_dir=tmp_path / "out", config=config)
    with pytest.raises(CheckpointError, match="is not a folder"):
        predict_files([photo_dir], output_dir=tmp_path / "out", config=PredictConfig(checkpoint=tmp_path / "no"))
    result = predict_files([tmp_path / "missing.png"], output_dir=tmp_path / "out", config=config)
    assert len(result.failed) == 1
