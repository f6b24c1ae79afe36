# SPDX-License-Identifier: Apache-2.0
"""What a run scores: models, functions, and saved predictions."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_data import (
    add_folder_image,
    look,
    make_depth,
    make_folder_benchmark,
    make_kitti,
    npy,
    spec,
    summary,
    write,
)
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation import Estimator, evaluate, evaluate_benchmark, predictor_estimator
from openmarigold.evaluation.benchmarks import open_benchmark, open_folder_benchmark
from openmarigold.evaluation.specs import EstimatorSpec, predictor_spec, saved_spec
from openmarigold.modalities import METRIC
from openmarigold.predictor import Predictor


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return make_folder_benchmark(tmp_path / "benchmark")


def test_an_estimator_sees_one_photo_at_a_time(benchmark: Path) -> None:
    inside = threading.Semaphore(1)

    def estimate(rgb: np.ndarray) -> np.ndarray:
        assert inside.acquire(blocking=False)
        try:
            return look(rgb)
        finally:
            inside.release()

    evaluate_benchmark(open_folder_benchmark(benchmark), spec(estimate), num_workers=4)


def save_predictions(benchmark: Path, folder: Path, estimate: Callable[[np.ndarray], np.ndarray]) -> Path:
    opened = open_folder_benchmark(benchmark)
    folder.mkdir()
    for entry in opened.entries:
        np.save(folder / f"{entry.name}_depth.npy", estimate(opened.sample(entry).rgb))
    return folder


def test_saved_predictions_score_like_the_model_live(benchmark: Path, tmp_path: Path, onnx_checkpoint: Path) -> None:
    predictor = Predictor.load(onnx_checkpoint)
    saved = save_predictions(benchmark, tmp_path / "saved", lambda rgb: predictor(rgb).depth)
    evaluate_benchmark(
        open_folder_benchmark(benchmark),
        predictor_spec(PredictConfig(checkpoint=onnx_checkpoint)),
        output_dir=tmp_path / "live",
    )
    for workers in (1, 2):
        evaluate_benchmark(
            open_folder_benchmark(benchmark),
            saved_spec(saved, "affine_depth"),
            output_dir=tmp_path / str(workers),
            num_workers=workers,
        )
    assert summary(tmp_path / "1") == summary(tmp_path / "2")
    live, from_files = summary(tmp_path / "live"), summary(tmp_path / "1")
    differing = {key for key in live if live[key] != from_files[key]}
    assert differing == {"settings", "provenance"}
    assert live["settings"]["num_inference_steps"] == 2
    assert len(live["settings"]["checkpoint_sha256"]) == 64
    assert evaluate(benchmark, predictor_estimator(predictor)).kinds["all"].metrics == {
        name: live["kinds"]["all"][name] for name in live["kinds"]["all"] if name not in NOT_METRICS
    }

    # A changed file is scored again, the others are not.
    np.save(saved / "room-0_depth.npy", np.random.default_rng(0).random((24, 32)))
    again = evaluate_benchmark(
        open_folder_benchmark(benchmark), saved_spec(saved, "affine_depth"), output_dir=tmp_path / "1"
    )
    assert again.times["images_from_earlier_runs"] == 5


NOT_METRICS = ("num_places", "num_images", "intervals_95")


def test_predictions_before_or_after_the_crop(tmp_path: Path) -> None:
    depth = make_depth(375, 1242, low=3, high=60)
    make_kitti(tmp_path / "kitti", [depth])
    opened = open_benchmark("kitti", tmp_path, allow_partial=True)
    (entry,) = opened.entries
    sample = opened.sample(entry)
    scores = []
    for name, prediction in {"full": depth + 0.5, "cropped": (depth + 0.5)[sample.crop]}.items():
        # Marigold's scripts write pred_<frame> next to the photo's path; ours write <frame>_depth.
        path = tmp_path / name / f"{entry.name}_depth.npy"
        path.parent.mkdir(parents=True)
        np.save(path, prediction.astype(np.float32))
        report = evaluate_benchmark(opened, saved_spec(tmp_path / name, "metric"), allow_partial=True)
        scores.append(report.images[0].metrics)
        assert (report.benchmark, report.expected, report.over_places) == ("kitti", 652, False)
    assert scores[0] == scores[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_cannot_be_loaded_is_said_once(workers: int, benchmark: Path) -> None:
    attempts: list[int] = []

    def load() -> Estimator:
        attempts.append(1)
        raise InvalidValueError("device='cuda' is not available")

    broken = EstimatorSpec(name="broken", load=load, invariance="affine_depth", settings={})
    notes: list[str] = []
    with pytest.raises(InvalidValueError, match="is not available"):
        evaluate_benchmark(open_folder_benchmark(benchmark), broken, num_workers=workers, note=notes.append)
    assert not notes and len(attempts) == 1


def test_settings_without_use_and_those_of_model_index_are_known_before_loading(tiny_checkpoint: Path) -> None:
    config = PredictConfig(checkpoint=tiny_checkpoint, start_noise="zeros", ensemble_size=2)
    with pytest.raises(InvalidValueError, match="gains nothing"):
        predictor_spec(config)
    settings = predictor_spec(PredictConfig(checkpoint=tiny_checkpoint)).settings
    assert (settings["invariance"], settings["processing_side"], settings["variant"]) == ("affine", "longer", None)


def test_text_is_a_path_and_a_predictor_an_estimator(tmp_path: Path, onnx_checkpoint: Path) -> None:
    benchmark = make_folder_benchmark(tmp_path / "benchmark")
    predictor = Predictor.load(str(onnx_checkpoint))
    report = evaluate(str(benchmark), predictor)
    assert report == evaluate(benchmark, predictor_estimator(predictor))
    with pytest.raises(InvalidValueError, match="the benchmark is empty"):
        evaluate("", predictor)


@pytest.mark.parametrize("dtype", [object, str, "datetime64[s]"])
def test_what_holds_no_numbers_is_refused(benchmark: Path, dtype: Any) -> None:
    with pytest.raises(DataError, match=r"room-0: the estimate holds .* values; real numbers are needed"):
        evaluate_benchmark(
            open_folder_benchmark(benchmark), spec(lambda rgb: np.zeros(rgb.shape[:2], int).astype(dtype))
        )


def test_what_is_no_estimator_is_refused(benchmark: Path) -> None:
    code = f"import openmarigold; openmarigold.evaluate({str(benchmark)!r}, 5)"  # without the suite's checks of types
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InvalidValueError: int is not an estimator; give a Predictor" in result.stderr


def test_one_file_is_not_the_prediction_of_two_images(tmp_path: Path) -> None:
    folder, saved = tmp_path / "benchmark", tmp_path / "saved"
    saved.mkdir()
    for name in ("a/1", "a_1", "rgb_2", "2"):
        add_folder_image(folder, name, "room", name, make_depth(24, 32))
    opened, one = open_folder_benchmark(folder), make_depth(24, 32)
    for file, owners in (("a_1", "a/1 and of a_1"), ("pred_2", "rgb_2 and of 2")):
        np.save(saved / f"{file}.npy", one)
        with pytest.raises(DataError, match=rf"{file}\.npy is the prediction of {owners}; give each image"):
            evaluate_benchmark(opened, saved_spec(saved), allow_partial=True)
        (saved / f"{file}.npy").unlink()
    for name in ("a/1", "a_1", "rgb_2", "2"):
        write(saved / f"{name}.npy", npy(one))
    assert not evaluate_benchmark(opened, saved_spec(saved)).failed


def refuse(path: Path, monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    """Makes a path unreadable, also for the superuser."""
    for method in methods:
        usual = getattr(Path, method)

        def refused(self: Path, *, usual: Callable[[Path], Any] = usual) -> Any:
            if self.is_relative_to(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return usual(self)

        monkeypatch.setattr(Path, method, refused)


@pytest.mark.parametrize("method", ["read_bytes", "is_file"])
def test_an_unreadable_prediction_stops_no_other(
    method: str, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_predictions(benchmark, tmp_path / "saved", look)
    (saved / "room-1_depth.npy").rename(saved / "room-1.npy")
    refuse(saved / "room-1.npy", monkeypatch, method)
    report = evaluate_benchmark(open_folder_benchmark(benchmark), saved_spec(saved), allow_partial=True)
    assert len(report.images) == 5
    assert report.failed == {"room-1": f"{saved}/room-1.npy cannot be read: Permission denied; check its permissions"}


def test_a_flat_name_that_is_too_long_for_a_file(tmp_path: Path) -> None:
    folder, name, saved = tmp_path / "benchmark", "/".join(["scene" * 30] * 2), tmp_path / "saved"
    add_folder_image(folder, name, "room", "place", make_depth(24, 32))
    saved.mkdir()
    with pytest.raises(DataError, match="holds no prediction"):
        evaluate_benchmark(open_folder_benchmark(folder), saved_spec(saved))


def test_an_unreadable_benchmark(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(benchmark / "index.npy", monkeypatch, "is_file")
    with pytest.raises(DataError, match=r"manifest.json cannot be read \(Permission denied\)"):
        open_folder_benchmark(benchmark)


def test_scores_that_are_not_finite_are_failures(benchmark: Path, tmp_path: Path) -> None:
    """They ended the run when its summary was written."""
    opened, saved = open_folder_benchmark(benchmark, METRIC), tmp_path / "saved"
    for entry in opened.entries:
        write(saved / f"{entry.name}.npy", npy(np.full((24, 32), 1e200 if entry.name == "room-1" else 2.0)))
    report = evaluate_benchmark(
        opened,
        saved_spec(saved, modality=METRIC),
        protocol="completion",
        output_dir=tmp_path / "out",
        allow_partial=True,
    )
    assert len(report.images) == 5 and len(report.failed) == 1
    assert "rmse is inf, since the prediction or the measured map holds values" in report.failed["room-1"]
