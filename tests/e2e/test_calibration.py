# SPDX-License-Identifier: Apache-2.0
"""Intervals from end to end: calibrate a copy of the embedded model, predict with bounds, score them, refuse others."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold import Predictor
from openmarigold.checkpoints.calibration import (
    CALIBRATION_FILE,
    carry_calibration,
    choose_interval,
    read_calibration,
    write_calibration,
)
from openmarigold.checkpoints.checkpoint import EMBEDDED_DIR, Checkpoint, read_checkpoint
from openmarigold.checkpoints.configured import resolve_settings
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.cli import run
from openmarigold.config import CallConfig
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.results.provenance import read_provenance

BENCHMARK = Path(__file__).parents[2] / "examples" / "benchmark"
PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "courtyard.jpg"
SMALL = ["--processing-resolution", "64"]


def _copy(folder: Path) -> Path:
    """The embedded model without its calibration; weights are linked, not copied."""

    def link(source: str, target: str) -> None:
        os.link(source, target)

    shutil.copytree(EMBEDDED_DIR, folder, copy_function=link, ignore=shutil.ignore_patterns(CALIBRATION_FILE))
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that is calibrated at 64 px on the example benchmark, which has 11 scenes."""
    folder = _copy(tmp_path_factory.mktemp("checkpoints") / "model")
    command = ["calibrate", "--benchmark", str(BENCHMARK), "--checkpoint", str(folder), *SMALL]
    assert run([*command, "--rule", "conformal", "--levels", "0.5", "0.6", "0.8", "0.95"]) == 0
    return folder


def _resolved(checkpoint: Checkpoint, **options: Any) -> CallConfig:
    return resolve_settings(CallConfig(**{"processing_resolution": 64, **options}), checkpoint)


def test_the_file_says_what_it_was_fitted_on(calibrated: Path) -> None:
    checkpoint = read_checkpoint(calibrated)
    found = read_calibration(checkpoint)
    assert found is not None and found.weights_sha256 == checkpoint_sha256(checkpoint)
    (entry,) = found.entries
    assert (entry.num_scenes, entry.num_scenes_for_weights) == (8, 3)  # of 11, whose pictures are 12
    assert entry.settings.processing_resolution == 64 and entry.settings.ensemble_size == 1
    assert list(entry.scales) == ["0.5", "0.6", "0.8"]  # 8 scenes are too few for 0.95
    assert list(entry.scales.values()) == sorted(entry.scales.values())
    assert set(entry.weights) == {"constant", "edges", "surroundings"} and entry.weights["constant"] > 0


def test_calibrating_again_gives_the_same_file_and_more_settings_join_it(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", "--benchmark", str(BENCHMARK), "--checkpoint", str(calibrated), *SMALL]
    command += ["--rule", "conformal", "--output-dir", str(tmp_path)]
    assert run([*command, "--levels", "0.5", "0.6", "0.8", "0.95"]) == 0
    assert (tmp_path / CALIBRATION_FILE).read_bytes() == (calibrated / CALIBRATION_FILE).read_bytes()
    capsys.readouterr()
    command += ["--ensemble-size", "2", "--signal", "spread", "--max-scenes", "5", "--json"]
    assert run([*command, "--levels", "0.5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (
        printed["num_scenes"] == printed["num_pictures"] == 5 and printed["num_scenes_for_weights"] == 0
    )  # one signal needs no weights
    assert printed["coverage"]["0.5"] >= 0.5
    sizes = [
        entry["settings"]["ensemble_size"] for entry in json.loads((tmp_path / CALIBRATION_FILE).read_text())["entries"]
    ]
    assert sizes == [1, 2]


def test_calibrations_that_cannot_succeed_end_before_anything_is_predicted(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise AssertionError("predicted")

    monkeypatch.setattr("openmarigold.predictor.Predictor.from_config", fails)
    (tmp_path / "file").touch()
    command = ["calibrate", "--benchmark", str(BENCHMARK), "--checkpoint", str(calibrated), *SMALL]
    for options, told in (
        (["--levels", "0.99"], "8 scenes for scales are too few for the levels 0.99"),
        (["--levels", "0.5", "--max-scenes", "1"], "0 scenes for scales are too few"),
        (["--levels", "90"], "level 90 is not accepted; give shares between 0 and 1"),
        (["--levels"], "no level was given"),
        (["-o", str(tmp_path / "file")], "File exists; choose another folder"),
    ):
        assert run([*command, *options]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_predict_writes_bounds(calibrated: Path, tmp_path: Path) -> None:
    command = ["predict", str(PHOTO), "-o", str(tmp_path), "--checkpoint", str(calibrated), *SMALL]
    assert run([*command, "--interval", "0.6", "--format", "npy", "png", "npz"]) == 0
    depth, low, high = (np.load(tmp_path / f"courtyard_{name}.npy") for name in ("depth", "depth_lo", "depth_hi"))
    assert (low < depth).all() and (depth < high).all()
    assert np.log(high / depth) == pytest.approx(np.log(depth / low), abs=1e-5)
    assert np.log(high / depth).std() > 0.001  # wider at edges
    with Image.open(tmp_path / "courtyard_depth_hi.png") as image:
        picture = np.asarray(image)
    record = read_provenance(tmp_path / "courtyard_depth_hi.png")
    levels = float(record["content"].split()[2].rstrip(","))
    assert levels == 65535 / 2 ** np.ceil(np.log2(high.max()))
    assert picture.dtype == np.uint16 and np.abs(picture / levels - high).max() <= 0.5 / levels + 1e-6
    with np.load(tmp_path / "courtyard_depth.npz") as entries:
        assert (entries["depth_lo"] == low).all()
    stated = record["interval"]
    entry = read_calibration(read_checkpoint(calibrated)).entries[0]  # pyright: ignore
    assert stated["level"] == 0.6 and stated["scale"] == entry.scales["0.6"]
    assert stated["median_half_width"] == pytest.approx(np.median(np.log(high / depth)), abs=1e-4)
    again = ["predict", str(PHOTO), "-o", str(tmp_path), "--checkpoint", str(calibrated), *SMALL, "--interval"]
    manifest = (tmp_path / "manifest.jsonl").read_bytes()
    assert run([*again, "0.6", "--format", "npy", "png", "npz"]) == 0
    assert (tmp_path / "manifest.jsonl").read_bytes() == manifest  # done already
    assert run([*again, "0.8", "--format", "npy"]) == 0  # another level makes other results
    assert (np.load(tmp_path / "courtyard_depth_hi.npy") > high).all()


def test_evaluate_measures_intervals(calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads((BENCHMARK / "manifest.json").read_text())[::4]
    for entry in listed:
        (tmp_path / entry["name"]).symlink_to(BENCHMARK / entry["name"])
    (tmp_path / "manifest.json").write_text(json.dumps(listed))
    command = ["evaluate", "--benchmark", str(tmp_path), "--checkpoint", str(calibrated), *SMALL]
    assert run([*command, "--interval", "0.8", "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "80 % intervals" in printed and "widest quarter" in printed and "AUSE" in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = summary["kinds"]["all"]["interval"]
    assert found["coverage"] == pytest.approx(summary["kinds"]["all"]["interval_coverage"])
    assert 0.5 < found["coverage"] < 1
    parts = found["coverage_by"]
    assert set(parts) >= {"edges", "flat", "near", "middle", "far", "width_1", "width_4"}
    assert min(parts["edges"], parts["flat"]) <= found["coverage"] <= max(parts["edges"], parts["flat"])


def test_what_is_not_calibrated_is_refused(calibrated: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(calibrated)
    assert choose_interval(checkpoint, _resolved(checkpoint)) is None
    assert choose_interval(checkpoint, _resolved(checkpoint, interval=0.5)) is not None
    for options, match in (
        ({"interval": 0.7}, r"calibrated for the levels 0\.5, 0\.6, 0\.8"),
        ({"interval": 0.5000001}, r"interval=0\.5000001: .* calibrated for the levels 0\.5, 0\.6"),
        ({"interval": 0.5, "ensemble_size": 3}, "calibrated for ensemble_size 1, and ensemble_size is 3"),
        ({"interval": 0.5, "processing_resolution": 128}, "processing_resolution 64, and processing_resolution is 128"),
        ({"interval": 0.5, "num_inference_steps": 2}, "num_inference_steps 1, and num_inference_steps is 2"),
        ({"interval": 0.5, "start_noise": "gaussian"}, "start_noise zeros, and start_noise is gaussian"),
        ({"interval": 0.5, "tiles": True}, "calibrated without tiles"),
        ({"interval": 0.5, "ensemble_tolerance": 0.01}, "calibrated without ensemble_tolerance"),
    ):
        with pytest.raises(InvalidValueError, match=match):
            choose_interval(checkpoint, _resolved(checkpoint, **options))
    with pytest.raises(InvalidValueError, match="another autoencoder"):
        choose_interval(checkpoint, _resolved(checkpoint, interval=0.5), has_tiny_vae=True)
    bare = read_checkpoint(_copy(tmp_path / "bare"))
    with pytest.raises(InvalidValueError, match=r"has no calibration\.json; fit one with `openmarigold calibrate`"):
        choose_interval(bare, _resolved(bare, interval=0.5))
    found = read_calibration(checkpoint)
    assert found is not None
    write_calibration(replace(found, weights_sha256="0" * 64), bare.directory)
    with pytest.raises(InvalidValueError, match="other weights"):
        choose_interval(bare, _resolved(bare, interval=0.5))
    for content, match in (
        ("{", "not valid JSON"),
        ("[]", "must be a table"),
        (json.dumps({"format": "x"}), "is missing"),
        (json.dumps({**json.loads((calibrated / CALIBRATION_FILE).read_text()), "format": "2"}), "this version reads"),
        ((calibrated / CALIBRATION_FILE).read_text().replace('"0.5": ', '"0.5": -'), r"numbers from 0 to 1e\+12"),
        ((calibrated / CALIBRATION_FILE).read_text().replace('"0.5": ', '"0.5": 1e39, "0.4": '), r"from 0 to 1e\+12"),
        ((calibrated / CALIBRATION_FILE).read_text().replace('"constant"', '"spread"'), "a signal of ensembles"),
    ):
        (bare.directory / CALIBRATION_FILE).write_text(content)
        with pytest.raises(CheckpointError, match=match):
            choose_interval(bare, _resolved(bare, interval=0.5))
    derived = replace(checkpoint, derived=checkpoint.modality)
    with pytest.raises(InvalidValueError, match="no interval is defined for depth, computed from depth"):
        choose_interval(derived, _resolved(checkpoint, interval=0.5))


def test_python_has_bounds_and_refuses_what_they_do_not_hold_for(calibrated: Path) -> None:
    predictor = Predictor.load(calibrated)
    small: dict[str, Any] = {"processing_resolution": 64, "interval": 0.5}
    found, alone = predictor([str(PHOTO), np.zeros((70, 90, 3), np.uint8)], **small)
    assert found.interval == 0.5 and found.lo is not None and found.hi is not None
    assert found.lo.shape == found.depth.shape and found.hi.dtype == np.float32
    assert alone.bounds.keys() == {"depth_lo", "depth_hi"}
    plain = predictor(str(PHOTO), processing_resolution=64)
    assert plain.interval is None and plain.lo is None and (plain.depth == found.depth).all()
    with pytest.raises(InvalidValueError, match="guide or latents"):
        predictor(str(PHOTO), guide=lambda latent, step: latent, **small)
    with pytest.raises(InvalidValueError, match="frames of a clip"):
        list(predictor.stream([np.zeros((64, 64, 3), np.uint8)], **small))
    with pytest.raises(InvalidValueError, match=r"interval=1\.5 is not accepted"):
        CallConfig(interval=1.5)


def test_meters_have_no_intervals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["metric", str(PHOTO), "-o", str(tmp_path), "--known-depth", "320,240=2", "--interval", "0.9"]
    assert run(command) == 2
    assert "not for meters" in capsys.readouterr().err


def test_a_copy_in_another_form_keeps_its_calibration(calibrated: Path, tmp_path: Path) -> None:
    """Of the same networks, whose files differ: here a scheduler's file with another indentation."""
    source, folder = read_checkpoint(calibrated), _copy(tmp_path / "copy")
    path = folder / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text())
    path.unlink()  # a link to the embedded model's own
    path.write_text(json.dumps(content))
    carry_calibration(source, read_calibration(source), folder, same_networks=True)
    copy = read_checkpoint(folder)
    carried = read_calibration(copy)
    assert carried is not None and carried.weights_sha256 == checkpoint_sha256(copy) != checkpoint_sha256(source)
    assert carried.exported_from == checkpoint_sha256(source)
    assert choose_interval(copy, _resolved(copy, interval=0.5)) is not None
    (folder / CALIBRATION_FILE).unlink()
    carry_calibration(source, read_calibration(source), folder, same_networks=False)
    assert read_calibration(copy) is None


def test_a_server_gives_the_bounds_of_predict(calibrated: Path, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from openmarigold.config import PredictConfig
    from openmarigold.serving.app import create_app
    from openmarigold.serving.service import Service
    from openmarigold.serving.settings import ServeConfig

    command = ["predict", str(PHOTO), "-o", str(tmp_path), "--checkpoint", str(calibrated), *SMALL]
    assert run([*command, "--interval", "0.5", "--format", "npy"]) == 0
    service = Service(PredictConfig(checkpoint=calibrated, processing_resolution=64), ServeConfig())
    with TestClient(create_app(service, ServeConfig(), None), base_url="http://localhost") as client:
        for _ in range(600):
            if client.get("/readyz").status_code == 200:
                break
            time.sleep(0.05)
        asked = {"interval": "0.5", "file": "depth_hi.npy"}
        content, headers = {"photo": PHOTO.read_bytes()}, {"Accept": "application/x-npy"}
        found = client.post("/v1/predict", files=content, data=asked, headers=headers)
        refused = client.post("/v1/predict", files=content, data={"interval": "0.7"}, headers=headers)
    assert found.content == (tmp_path / "courtyard_depth_hi.npy").read_bytes()
    assert refused.status_code == 400 and "calibrated for the levels" in refused.json()["error"]


def test_the_embedded_model_is_calibrated() -> None:
    """Its file is of these weights; a new model needs the command of docs/uncertainty.md again."""
    path = EMBEDDED_DIR / CALIBRATION_FILE
    assert path.stat().st_size < 20_000
    checkpoint = read_checkpoint()
    for level in (0.5, 0.8, 0.9, 0.95):
        assert choose_interval(checkpoint, resolve_settings(CallConfig(interval=level), checkpoint)) is not None
