# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_data import add_folder_image
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation import (
    Estimator,
    MapEstimator,
    baseline_estimators,
    evaluate,
    predictor_estimator,
)
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.statistics import summarize
from openmarigold.predictor import Predictor

CONSTANT = baseline_estimators()["constant"]


class Careless:
    """An estimator from elsewhere that returns another size than the photo's."""

    invariance = "affine_depth"

    def __call__(self, rgb: np.ndarray, /) -> np.ndarray:
        return np.ones((2, 2))


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Two rooms, one of them photographed twice, and a street; half of a photo is invalid."""
    directory = tmp_path / "benchmark"
    rows, columns = np.mgrid[:24, :32]
    half_known = 1.0 + columns / 16
    half_known[:, :16] = 0
    add_folder_image(directory, "room-a-1", "room", "a", 1.0 + rows / 24)
    add_folder_image(directory, "room-a-2", "room", "a", 1.0 + columns / 32)
    add_folder_image(directory, "room-b-1", "room", "b", half_known)
    add_folder_image(directory, "street-c-1", "outdoor", "c", 5 + 70.0 * (columns >= 16), scale=256)
    return directory


def test_a_perfect_estimate_scores_perfectly(benchmark: Path) -> None:
    opened = open_folder_benchmark(benchmark)
    truths = iter([opened.sample(entry) for entry in opened.entries])
    calls: list[tuple[int, int]] = []
    report = evaluate(
        benchmark,
        Estimator(lambda rgb: 3 * next(truths).maps["depth"] + 7),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for kind in report.kinds.values():
        assert kind.metrics["abs_rel"] == pytest.approx(0, abs=1e-9)
        assert kind.metrics["delta1"] == 1


def test_means_go_over_places_not_images(benchmark: Path) -> None:
    report = evaluate(benchmark, CONSTANT)
    scores = {image.name: image.metrics["abs_rel"] for image in report.images}
    place_a = (scores["room-a-1"] + scores["room-a-2"]) / 2
    assert list(report.kinds) == ["room", "outdoor", "all"]
    assert report.kinds["room"].metrics["abs_rel"] == pytest.approx((place_a + scores["room-b-1"]) / 2)
    all_places = (place_a + scores["room-b-1"] + scores["street-c-1"]) / 3
    assert report.kinds["all"].metrics["abs_rel"] == pytest.approx(all_places)
    assert [(kind.num_places, kind.num_images) for kind in report.kinds.values()] == [(2, 3), (1, 1), (3, 4)]
    assert json.loads(json.dumps(report.to_dict()))["kinds"]["all"]["num_places"] == 3
    assert summarize(report.images[:1], over_places=True)["all"].metrics == report.images[0].metrics


def test_a_constant_becomes_the_mean_depth(benchmark: Path) -> None:
    opened = open_folder_benchmark(benchmark)
    sample = opened.sample(opened.entries[2])
    depth = sample.maps["depth"][sample.valid_mask]
    score = {image.name: image.metrics for image in evaluate(benchmark, CONSTANT).images}["room-b-1"]
    assert score["abs_rel"] == pytest.approx(np.mean(np.abs(depth.mean() - depth) / depth))


def test_image_row_is_exact_on_a_floor(tmp_path: Path) -> None:
    rows = np.mgrid[:24, :32][0]
    add_folder_image(tmp_path, "floor", "room", "a", 10 / (rows + 2.0))
    report = evaluate(tmp_path, baseline_estimators()["image row"])
    assert report.kinds["all"].metrics["abs_rel"] < 1e-3


@pytest.mark.parametrize(("kind", "maximum"), [("room", 20.0), ("outdoor", 80.0)])
def test_depth_is_clipped_after_the_fit(tmp_path: Path, kind: str, maximum: float) -> None:
    depth = np.full((24, 32), 3.0)
    depth[:, 16:] = 6.0
    depth[0, 0] = 0  # invalid, and where the estimate is far out
    add_folder_image(tmp_path, "one", kind, "a", depth)
    estimate = depth.copy()
    estimate[0, 0] = 1e6
    assert evaluate(tmp_path, Estimator(lambda rgb: estimate)).kinds["all"].metrics["abs_rel"] < 1e-6

    far = np.full((24, 32), 60.0)
    far[:, 16:] = 30.0
    add_folder_image(tmp_path / "far", "one", kind, "a", far)
    aligned = np.minimum(far, maximum)
    score = evaluate(tmp_path / "far", Estimator(lambda rgb: far)).kinds["all"].metrics["abs_rel"]
    assert score == pytest.approx(np.mean(np.abs(aligned - far) / far), abs=1e-6)


def test_a_predictor_is_an_estimator(benchmark: Path, onnx_checkpoint: Path) -> None:
    predictor = Predictor.load(onnx_checkpoint)
    reports = [evaluate(benchmark, predictor_estimator(predictor, ensemble_size=2)) for _ in range(2)]
    assert isinstance(predictor_estimator(predictor), MapEstimator)
    assert reports[0] == reports[1]
    assert reports[0].kinds["all"].metrics["abs_rel"] > 0


def test_damaged_benchmarks(benchmark: Path) -> None:
    with pytest.raises(
        InvalidValueError, match=r"room-a-1: the estimate is \[2, 2\] and the measured depth \[24, 32\]"
    ):
        evaluate(benchmark, Careless())
    depth_path = benchmark / "room-a-1" / "depth.png"
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(depth_path)
    with pytest.raises(DataError, match=r"depth\.png has no valid pixel"):
        evaluate(benchmark, CONSTANT)
    Image.fromarray(np.ones((24, 30), np.uint16)).save(depth_path)
    with pytest.raises(DataError, match="sizes must be equal"):
        evaluate(benchmark, CONSTANT)
    depth_path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"depth\.png is missing or damaged"):
        evaluate(benchmark, CONSTANT)
    (benchmark / "room-a-1" / "meta.json").write_text("{}")
    with pytest.raises(DataError, match="has no number depth_scale"):
        evaluate(benchmark, CONSTANT)
    (benchmark / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="is not a list of objects with name, kind and place"):
        evaluate(benchmark, CONSTANT)
    with pytest.raises(DataError, match=r"a benchmark is a folder with manifest\.json"):
        evaluate(benchmark / "missing", CONSTANT)
