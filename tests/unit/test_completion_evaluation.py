# SPDX-License-Identifier: Apache-2.0
"""`evaluate` of depth completion: methods next to their baselines, resuming, comparisons, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark_data import gray16, image_bytes, make_depth, make_folder_benchmark, npy, write
from openmarigold.cli import run
from openmarigold.completion.evidence import RelativeDepth, SparsePoints
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.compare import compare
from openmarigold.evaluation.completion_estimators import KeptDepth, completion_specs
from openmarigold.evaluation.report import read_report
from openmarigold.evaluation.revealing import with_points
from openmarigold.modalities import METRIC, NORMALS
from openmarigold.predictor import Predictor
from tiny import make_checkpoint, make_photo

RESOLUTION = 64


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return make_folder_benchmark(tmp_path / "pairs", 6)


def arguments(pairs: Path, *more: str, points: int = 60) -> list[str]:
    return ["evaluate", "--benchmark", str(pairs), "--points", str(points), "--processing-resolution", "64", *more]


def reports(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def means(benchmark: Benchmark, errors: dict[str, float]) -> float:
    """Over the images of a place, then over places."""
    places: dict[str, list[float]] = {}
    for entry in benchmark.entries:
        places.setdefault(entry.place, []).append(errors[entry.name])
    return float(np.mean([np.mean(values) for values in places.values()]))


def test_methods_next_to_baselines(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(arguments(pairs, "--method", "fit", "field", "-o", str(out), "--json")) == 0
    found = reports(capsys)
    assert list(found) == ["marigold-lite, fit", "marigold-lite, field", "least squares", "nearest", "linear"]
    for report in found.values():
        assert (report["modality"], report["protocol"], report["benchmark"]) == ("metric", "completion", "folder")
        assert report["given"] == {"points": 60, "outliers": 0.0, "seed": 2024, "given_pixels_scored": False}
    # Least squares and the nearest point by hand, on the same points.
    benchmark, predictor = with_points(open_folder_benchmark(pairs), 60), Predictor.load()
    line, nearest = {}, {}
    for entry in benchmark.entries:
        sample = benchmark.sample(entry)
        known, gt = sample.given["depth"] > 0, sample.maps["depth"]
        relative = predictor(sample.rgb, processing_resolution=RESOLUTION).depth.astype(float)
        fitted = np.polyval(np.polyfit(relative[known], gt[known], 1), relative)
        rows, columns = np.nonzero(known)
        places = np.indices(gt.shape)
        closest = ((places[..., None] - np.stack([rows, columns])[:, None, None]) ** 2).sum(axis=0)
        mask = sample.valid_mask
        line[entry.name] = float(np.abs(fitted - gt)[mask].mean())
        # Of several points that are as near, any may be the one.
        tied = closest == closest.min(axis=-1, keepdims=True)
        errors = np.abs(gt[rows, columns] - gt[..., None])
        low = np.where(tied, errors, np.inf).min(axis=-1)[mask].mean()
        high = np.where(tied, errors, -np.inf).max(axis=-1)[mask].mean()
        nearest[entry.name] = low, high
    assert found["least squares"]["kinds"]["all"]["mae"] == pytest.approx(means(benchmark, line), rel=1e-5)
    low, high = (means(benchmark, {name: pair[end] for name, pair in nearest.items()}) for end in (0, 1))
    assert low - 1e-6 <= found["nearest"]["kinds"]["all"]["mae"] <= high + 1e-6
    # The depth of these pairs is smooth: points tell more than a photo of noise.
    assert found["linear"]["kinds"]["all"]["mae"] < found["least squares"]["kinds"]["all"]["mae"]
    assert found["marigold-lite, field"]["kinds"]["all"]["mae"] < found["marigold-lite, fit"]["kinds"]["all"]["mae"]
    # Files: the first method in the folder itself, all else below it.
    names = ["field", "least-squares", "nearest", "linear"]
    assert {path.name for path in out.iterdir() if path.is_dir()} == set(names)
    for folder in (out, *(out / name for name in names)):
        assert (folder / "images.csv").is_file() and "MAE" in (folder / "page.html").read_text()
    assert "60 points" in (out / "page.html").read_text()
    comparison = compare(out, out / "nearest")
    assert list(comparison.scores)[:2] == ["mae", "rmse"]
    assert comparison.differences["mae"].b == pytest.approx(found["nearest"]["kinds"]["all"]["mae"])
    assert run(["compare", str(out), str(out / "nearest")]) == 0
    assert "MAE m" in capsys.readouterr().out


def test_tables(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments(pairs)) == 0
    printed = capsys.readouterr().out
    assert "MAE m (lower is better) / RMSE m (lower is better), protocol completion" in printed
    for name in ("marigold-lite, auto", "least squares", "nearest", "linear"):
        assert printed.count(f"│ {name} ") == 1
    assert "95 % interval over places" in printed


def test_runs_are_resumed_with_the_same_points_only(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept(*more: str, points: int = 60, out: str = "out") -> list[int]:
        assert run(arguments(pairs, "--method", "fit", "-o", str(tmp_path / out), "--json", *more, points=points)) == 0
        return [report["times"]["images_from_earlier_runs"] for report in reports(capsys).values()]

    assert kept() == [0, 0, 0, 0]
    assert kept() == [6, 6, 6, 6]
    assert kept(points=61) == [0, 0, 0, 0]
    assert kept("--outliers", "0.1") == [0, 0, 0, 0]
    assert kept("--points-seed", "5") == [0, 0, 0, 0]
    assert kept("--seed", "5") == [0, 0, 6, 6]  # of the model's noise: interpolation has none
    assert kept() == [6, 6, 6, 6]
    assert kept(points=61, out="other") == [0, 0, 0, 0]
    with pytest.raises(InvalidValueError, match=r"given points 60, .* and points 61, .*; only runs that knew the same"):
        compare(tmp_path / "out", tmp_path / "other")
    assert read_report(tmp_path / "other").given["points"] == 61


def test_maps_of_another_tool(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = open_folder_benchmark(pairs)
    for entry in benchmark.entries:
        depth = benchmark.sample(entry).maps["depth"]
        write(tmp_path / "maps" / f"{entry.name}.npy", npy((depth + 0.25).astype(np.float32)))
    more = ("--predictions", str(tmp_path / "maps"), "--json")
    assert run(["evaluate", "--benchmark", str(pairs), "--points", "60", "--method", "fit", *more]) == 0
    captured = capsys.readouterr()
    assert "not used with --predictions: --method" in captured.err
    found = json.loads(captured.out)
    assert list(found) == ["maps", "nearest", "linear"]
    assert found["maps"]["kinds"]["all"]["mae"] == pytest.approx(0.25, abs=1e-6)
    # The same maps as metric depth, without points.
    assert run(["evaluate", "--benchmark", str(pairs), "--modality", "metric", *more]) == 0
    (report,) = reports(capsys).values()
    assert report["protocol"] == "metric" and "given" not in report
    assert report["kinds"]["all"]["rmse"] == pytest.approx(0.25, abs=1e-6)
    assert run(["evaluate", "--benchmark", str(pairs), "--modality", "metric", "--protocol", "completion", *more]) == 0
    (report,) = reports(capsys).values()
    assert report["kinds"]["all"]["mae"] == pytest.approx(0.25, abs=1e-6)


def make_void(root: Path) -> None:
    depth = make_depth(24, 32)
    sparse = np.where(np.random.default_rng(0).random(depth.shape) < 0.1, depth, 0)
    frame = root / "void" / "void_150" / "data" / "stairs0"
    write(frame / "image" / "1.png", image_bytes(make_photo(24, 32)))
    write(frame / "ground_truth" / "1.png", gray16(depth, 256))
    write(frame / "sparse_depth" / "1.png", gray16(sparse, 256))
    write(root / "void" / "void_150" / "test_image.txt", b"void_150/data/stairs0/image/1.png")


def test_known_benchmarks_bring_their_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_void(tmp_path)
    void = ["evaluate", "--benchmark", "void-150", "--data", str(tmp_path), "--processing-resolution", "64"]
    assert run([*void, "--allow-partial", "--method", "field", "--json"]) == 0
    found = reports(capsys)
    assert list(found) == ["marigold-lite, field", "least squares", "nearest", "linear"]
    assert found["linear"]["given"]["given_pixels_scored"] is True
    assert found["linear"]["mean_over"] == "images"
    assert run([*void, "--allow-partial", "--points", "5"]) == 2
    assert "void-150 has points of its own; leave points and outliers out" in capsys.readouterr().err
    assert run([*void, "--allow-partial", "--outliers", "0.1"]) == 2
    assert "void-150 has points of its own; leave --outliers and --points-seed out" in capsys.readouterr().err
    assert run(["data", "where", "void-150"]) == 0
    assert "sparse_depth/ and ground_truth/ (16 bits, 1/256 m)" in capsys.readouterr().out
    assert run(["data", "list"]) == 0
    assert "kitti-completion" in capsys.readouterr().out


def test_what_is_refused(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*command: str) -> str:
        assert run(["evaluate", "--benchmark", str(pairs), *command]) == 2
        return capsys.readouterr().err

    assert "--outliers is for depth completion; give --points, such as 500" in refused("--outliers", "0.1")
    assert "--method is for depth completion" in refused("--method", "fit")
    assert "method='linear' is not known; use auto or fit or field" in refused("--points", "9", "--method", "linear")
    assert "points=0 is not accepted" in refused("--points", "0")
    assert "outliers=0.7 is not accepted; give a share from 0 to 0.5" in refused("--points", "9", "--outliers", "0.7")
    assert "room-0 has" in refused("--points", "900")
    normals = str(make_checkpoint(tmp_path / "normals", "tiny", modality=NORMALS))
    assert "depth completion needs a checkpoint that predicts depth" in refused(
        "--points", "9", "--checkpoint", normals
    )
    assert "measures surface normals; points need a benchmark of depth" in refused(
        "--points", "9", "--modality", "normals"
    )


def test_too_few_points_for_a_method(pairs: Path) -> None:
    field, *_ = completion_specs(PredictConfig(processing_resolution=RESOLUTION), ("field",))
    benchmark = with_points(open_folder_benchmark(pairs), 3)
    sample = benchmark.sample(benchmark.entries[0])
    with pytest.raises(InvalidValueError, match="method field needs 5 points, and there are 3"):
        field.load().estimate_given(sample.rgb, sample.given)  # pyright: ignore


def test_a_baseline_that_fails_does_not_hide_the_others(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One point fixes no scale and shift."""
    command = ["evaluate", "--benchmark", str(pairs), "--points", "1", "--processing-resolution", "64"]
    assert run([*command, "--json"]) == 1
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)) == ["marigold-lite, auto", "nearest", "linear"]
    assert "error: least squares: 6 of 6 images could not be scored (room-0: " in printed.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "scipy", None)
        patch.setitem(sys.modules, "scipy.interpolate", None)
        patch.setitem(sys.modules, "scipy.spatial", None)
        assert run([*command[:3], "--points", "9", "--predictions", str(saved(pairs, tmp_path / "maps"))]) == 1
    printed = capsys.readouterr()
    assert "│ maps " in printed.out and "│ linear " not in printed.out
    assert 'pip install "openmarigold[metric]"' in printed.err


def saved(pairs: Path, folder: Path) -> Path:
    """Perfect maps in meters."""
    benchmark = open_folder_benchmark(pairs)
    for entry in benchmark.entries:
        depth = benchmark.sample(entry).maps["depth"]
        write(folder / f"{entry.name}.npy", npy(np.where(depth > 0, depth, 1.0)))
    return folder


def test_each_photo_is_predicted_once() -> None:
    kept = KeptDepth(PredictConfig(processing_resolution=RESOLUTION))
    photos = [make_photo(24, 32, seed=seed) for seed in (0, 1, 0)]
    first, other, again = (kept(photo).depth for photo in photos)
    np.testing.assert_array_equal(first, Predictor.load()(photos[0], processing_resolution=RESOLUTION).depth)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    folder = kept._folder
    assert len(list(folder.iterdir())) == 2
    del kept
    assert not folder.exists()


def test_methods_see_what_the_model_gives(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openmarigold.completion import methods as table

    seen: list[tuple[RelativeDepth, SparsePoints]] = []
    fit = table.METHODS["fit"]

    def watched(relative: RelativeDepth, points: SparsePoints, options: table.Options) -> table.Fitted:
        seen.append((relative, points))
        return fit.run(relative, points, options)

    watching = table.Method(name="fit", title="fit", run=watched)
    monkeypatch.setattr("openmarigold.evaluation.completion_estimators.METHODS", {**table.METHODS, "fit": watching})
    spec, *_ = completion_specs(PredictConfig(processing_resolution=RESOLUTION), ("fit",))
    assert spec.modality is METRIC and spec.settings["method"] == "fit"
    assert spec.settings["checkpoint_sha256"]
    benchmark = with_points(open_folder_benchmark(pairs), 40)
    sample = benchmark.sample(benchmark.entries[0])
    spec.load().estimate_given(sample.rgb, sample.given)  # pyright: ignore
    ((relative, points),) = seen
    assert (
        relative.depth.shape == sample.rgb.shape[:2] and relative.invariance == Predictor.load().checkpoint.invariance
    )
    assert (relative.camera.width, relative.camera.height) == (32, 24) and len(points) == 40
    columns, rows = points.pixels.T.astype(int)
    np.testing.assert_array_equal(points.depth, sample.maps["depth"][rows, columns])
