# SPDX-License-Identifier: Apache-2.0
"""Runs: resumed, with workers, on saved predictions, with failures; their reports, pages and comparisons."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark_data import make_depth, make_folder_benchmark, make_kitti, make_nyuv2_extracted
from openmarigold.cli import run
from openmarigold.config import PredictConfig
from openmarigold.errors import DataError, InvalidValueError, OutputError
from openmarigold.evaluation import Estimator, evaluate, evaluate_benchmark, predictor_estimator
from openmarigold.evaluation.benchmarks import open_benchmark, open_folder_benchmark
from openmarigold.evaluation.compare import compare, compare_reports
from openmarigold.evaluation.report import read_report, write_report
from openmarigold.evaluation.specs import (
    EstimatorSpec,
    baseline_specs,
    predictor_spec,
    saved_spec,
)
from openmarigold.predictor import Predictor


def look(rgb: np.ndarray) -> np.ndarray:
    """A stand-in for a model: some function of the photo."""
    return rgb.astype(np.float32).mean(axis=2) / 255


def spec(estimate: Callable[[np.ndarray], np.ndarray] = look, **settings: Any) -> EstimatorSpec:
    return EstimatorSpec(
        name="look", load=lambda: Estimator(estimate), invariance="affine_depth", settings={"model": "look", **settings}
    )


def summary(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "summary.json").read_text())
    assert content.pop("times")["wall_s"] >= 0
    return content


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return make_folder_benchmark(tmp_path / "benchmark")


def test_a_run_writes_summary_table_and_page(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    opened = open_folder_benchmark(benchmark)
    report = evaluate_benchmark(opened, spec(), output_dir=out)
    assert {path.name for path in out.iterdir()} == {"summary.json", "images.csv", "page.html", "scores.jsonl"}
    # The same scores as in memory.
    assert report.kinds == evaluate(benchmark, Estimator(look)).kinds

    content = summary(out)
    assert (content["benchmark"], content["protocol"], content["mean_over"]) == ("folder", "marigold", "places")
    assert content["settings"] == {"model": "look"}
    assert content["provenance"]["estimator"] == "look"
    assert content["provenance"]["versions"]["numpy"] == np.__version__
    assert content["provenance"]["hardware"]["num_cpus"] >= 1
    overall = content["kinds"]["all"]
    assert (overall["num_places"], overall["num_images"]) == (3, 6)
    for what in ("images", "places"):
        low, high = overall["intervals_95"][what]["abs_rel"]
        assert low <= overall["abs_rel"] <= high
    assert len({image["input_sha256"] for image in content["images"]}) == 6

    with (out / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [entry.name for entry in opened.entries]
    assert float(rows[3]["abs_rel"]) == content["images"][3]["abs_rel"]

    page = (out / "page.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 3 * 3 * 4
    best = min(content["images"], key=lambda image: image["abs_rel"])["name"]
    assert page.index("Best") < page.index(best) < page.index("Median") < page.index("Worst")
    assert read_report(out) == report

    evaluate_benchmark(opened, spec(), output_dir=out, page_images=6)
    assert (out / "page.html").read_text().count('src="data:image/jpeg;base64,') == 6 * 4
    with pytest.raises(InvalidValueError, match="page_images=2 is not accepted; give 3 or above"):
        evaluate_benchmark(opened, spec(), page_images=2)


def spoiled(change: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], np.ndarray]:
    def estimate(rgb: np.ndarray) -> np.ndarray:
        values = look(rgb)
        change(values)
        return values

    return estimate


def missing_rows(values: np.ndarray) -> None:
    values[len(values) // 10 :] = np.nan


def all_but_one(values: np.ndarray) -> None:
    values.reshape(-1)[:-1] = np.inf


@pytest.mark.parametrize("change", [missing_rows, all_but_one])
def test_missing_predictions_are_failures_and_no_good_scores(
    change: Callable[[np.ndarray], Any], benchmark: Path, tmp_path: Path
) -> None:
    """These scored AbsRel 0.0 and delta1 100.0: what is left of a map can always be fitted."""
    opened = open_folder_benchmark(benchmark)
    with pytest.raises(DataError, match=r"6 of 6 images could not be scored .* at most 1 % may be missing|not finite"):
        evaluate_benchmark(opened, spec(spoiled(change)), output_dir=tmp_path / "out")
    first = opened.sample(opened.entries[0]).rgb

    def some(rgb: np.ndarray) -> np.ndarray:
        return spoiled(change)(rgb) if np.array_equal(rgb, first) else look(rgb)

    report = evaluate_benchmark(opened, spec(some), output_dir=tmp_path / "out", allow_partial=True)
    assert list(report.failed) == [opened.entries[0].name] and report.share_scored == pytest.approx(5 / 6)
    assert summary(tmp_path / "out")["share_scored"] == report.share_scored
    page = (tmp_path / "out" / "page.html").read_text()
    assert "83.3 % of the pixels scored" in page and "1 images failed and are not counted" in page


def test_few_missing_pixels_are_counted_in_every_table(benchmark: Path, tmp_path: Path) -> None:
    report = evaluate_benchmark(
        open_folder_benchmark(benchmark),
        spec(spoiled(lambda values: values[:1, :1].fill(np.nan))),
        output_dir=tmp_path,
    )
    assert not report.failed and 0.99 < report.share_scored <= 1
    with (tmp_path / "images.csv").open() as file:
        shares = [float(row["pixels_scored"]) for row in csv.DictReader(file)]
    assert report.share_scored == pytest.approx(np.mean(shares))


@pytest.mark.parametrize(
    ("invariance", "protocol"), [("affine_depth", None), ("affine_depth", "log-ransac"), ("disparity", None)]
)
def test_an_inverted_map_is_pointed_out(invariance: Any, protocol: str | None, benchmark: Path, tmp_path: Path) -> None:
    """The alignment turns it around: its scores are those of the map itself."""
    opened = open_folder_benchmark(benchmark)
    depths = {sample.rgb.tobytes(): sample.maps["depth"] for sample in map(opened.sample, opened.entries)}

    def estimate(rgb: np.ndarray) -> np.ndarray:
        depth = depths[rgb.tobytes()]
        return depth if invariance == "disparity" else -depth

    found = EstimatorSpec(
        name="inverted", load=lambda: Estimator(estimate, invariance), invariance=invariance, settings={"n": 1}
    )
    report = evaluate_benchmark(opened, found, protocol=protocol, output_dir=tmp_path)
    assert report.num_flagged == {"negative_scale": 6} and summary(tmp_path)["num_negative_scale"] == 6
    with (tmp_path / "images.csv").open() as file:
        assert [row["negative_scale"] for row in csv.DictReader(file)] == ["1.0"] * 6
    assert "in 6 images the fitted scale is negative" in (tmp_path / "page.html").read_text()
    assert read_report(tmp_path).num_flagged == {"negative_scale": 6}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"key": "KEY", "metrics": {"abs_rel": 0.0}}',
        '{"key": "KEY", "metrics": null}',
        '{"key": 3}',
        '{"key": "KEY", "metrics": {"abs_rel": 1' + "0" * 400 + "}}",
        "7",
        '{"key": "KEY", "met',
    ],
)
def test_damaged_scores_are_made_again(line: str, benchmark: Path, tmp_path: Path) -> None:
    opened = open_folder_benchmark(benchmark)
    report = evaluate_benchmark(opened, spec(), output_dir=tmp_path)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    lines[2] = line.replace("KEY", json.loads(lines[2])["key"])
    (tmp_path / "scores.jsonl").write_text("\n".join(lines) + "\n")
    again = evaluate_benchmark(opened, spec(), output_dir=tmp_path)
    assert again == report and again.times["images_from_earlier_runs"] == 5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"images": [', '"images": [], "other": ['),
        ('"delta1": ', '"delta1": 1e999, "was": '),
        ('"name": "', '"name": 3, "was": "'),
    ],
)
def test_a_summary_of_other_content_is_refused(old: str, new: str, benchmark: Path, tmp_path: Path) -> None:
    evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path)
    path = tmp_path / "summary.json"
    before, _, images = path.read_text().partition('"images": [')
    path.write_text(before + ('"images": [' + images).replace(old, new, 1))
    with pytest.raises(DataError, match="is not a summary of"):
        compare(path, path)


def test_the_number_of_workers_does_not_matter(benchmark: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 5):
        evaluate_benchmark(
            open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / str(workers), num_workers=workers
        )
    assert summary(tmp_path / "1") == summary(tmp_path / "2") == summary(tmp_path / "5")
    csvs = {(tmp_path / str(workers) / "images.csv").read_bytes() for workers in (1, 2, 5)}
    assert len(csvs) == 1
    with pytest.raises(InvalidValueError, match="num_workers=0 is not accepted"):
        evaluate_benchmark(open_folder_benchmark(benchmark), spec(), num_workers=0)


def test_an_estimator_sees_one_photo_at_a_time(benchmark: Path) -> None:
    inside = threading.Semaphore(1)

    def estimate(rgb: np.ndarray) -> np.ndarray:
        assert inside.acquire(blocking=False)
        try:
            return look(rgb)
        finally:
            inside.release()

    evaluate_benchmark(open_folder_benchmark(benchmark), spec(estimate), num_workers=4)


class Interrupted:
    """An estimator during which the user presses Ctrl-C, at the third photo."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        self.seen += 1
        if self.seen == 3:
            raise KeyboardInterrupt
        return look(rgb)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_run_goes_on(workers: int, benchmark: Path, tmp_path: Path) -> None:
    evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmark(open_folder_benchmark(benchmark), spec(Interrupted()), output_dir=out, num_workers=workers)
    assert not (out / "summary.json").exists()
    done = len((out / "scores.jsonl").read_text().splitlines())
    assert 1 <= done <= 5
    # A line that the interruption cut.
    with (out / "scores.jsonl").open("a") as file:
        file.write('{"key": "ab", "na')
    calls: list[int] = []
    seen = spec(lambda rgb: (calls.append(1), look(rgb))[1])
    report = evaluate_benchmark(open_folder_benchmark(benchmark), seen, output_dir=out, num_workers=workers)
    assert report.times["images_from_earlier_runs"] == done
    assert summary(out) == summary(tmp_path / "whole")
    # What was scored is not predicted again, but for the images on the page.
    scored_lines = [line for line in (out / "scores.jsonl").read_text().splitlines() if line.endswith("}")]
    assert len(scored_lines) == 6
    assert (out / "images.csv").read_bytes() == (tmp_path / "whole" / "images.csv").read_bytes()


def test_what_has_changed_is_scored_again(benchmark: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def reused(**settings: Any) -> int:
        run = evaluate_benchmark(open_folder_benchmark(benchmark), spec(**settings), output_dir=out)
        return run.times["images_from_earlier_runs"]

    assert [reused(), reused(), reused(ensemble_size=2), reused(ensemble_size=2), reused()] == [0, 6, 0, 6, 6]
    Image.fromarray(np.full((24, 32, 3), 40, np.uint8)).save(benchmark / "room-1" / "rgb.jpg")
    assert reused() == 5
    run = evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=out, protocol="log-ransac")
    assert (run.protocol, run.times["images_from_earlier_runs"]) == ("log-ransac", 0)


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


def test_one_bad_image_never_loses_the_others(benchmark: Path, tmp_path: Path) -> None:
    (benchmark / "room-1" / "depth.png").write_bytes(b"no image")
    notes: list[str] = []
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"1 of 6 images could not be scored \(room-1: .*--allow-partial"):
        evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=out, note=notes.append)
    assert len(notes) == 1
    report = evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=out, allow_partial=True)
    assert report.times["images_from_earlier_runs"] == 5
    assert report.kinds["all"].num_images == 5
    assert list(summary(out)["failed"]) == ["room-1"]
    for entry in open_folder_benchmark(benchmark).entries:
        (benchmark / entry.name / "depth.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="6 of 6 images could not be scored"):
        evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=out, allow_partial=True)


def test_an_output_folder_that_is_a_file(benchmark: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="choose another --output-dir"):
        evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "file")


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


# --- Comparisons


@pytest.fixture
def runs(benchmark: Path, tmp_path: Path) -> tuple[Path, Path]:
    opened = open_folder_benchmark(benchmark)
    truths = {entry.name: opened.sample(entry).maps["depth"] for entry in opened.entries}
    rng = np.random.default_rng(0)
    for name, error in {"a": 0.6, "b": 0.05}.items():
        folder = tmp_path / f"maps-{name}"
        folder.mkdir()
        for image, depth in truths.items():
            np.save(folder / f"{image}.npy", depth + error * rng.normal(size=depth.shape))
        evaluate_benchmark(opened, saved_spec(folder, "affine_depth"), output_dir=tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def test_compare(runs: tuple[Path, Path]) -> None:
    a, b = runs
    comparison = compare(a, b / "summary.json")
    difference = comparison.differences["abs_rel"]
    assert difference.difference == pytest.approx(difference.b - difference.a)
    assert difference.a == read_report(a).kinds["all"].metrics["abs_rel"]
    assert (comparison.verdict("abs_rel"), comparison.verdict("delta1")) == ("b", "b")
    assert comparison.verdict("pixels_scored") == "undecided"
    assert difference.share_below == {"images": 1.0, "places": 1.0}
    turned = compare(b, a)
    assert turned.verdict("abs_rel") == "a"
    assert turned.differences["abs_rel"].difference == pytest.approx(-difference.difference)
    assert json.loads(json.dumps(comparison.to_dict()))["differences"]["abs_rel"]["better"] == "b"
    same = compare(a, a)
    assert all(set(d.intervals.values()) == {(0.0, 0.0)} for d in same.differences.values())


def test_few_images_name_no_winner(runs: tuple[Path, Path]) -> None:
    a, b = (read_report(run) for run in runs)
    assert len(a.images) == 6
    for count in (1, 2, 5):
        fewer = compare_reports(*(replace(run, images=run.images[:count]) for run in (a, b)))
        assert {fewer.verdict(metric) for metric in fewer.differences} == {"too few images"}
        assert fewer.to_dict()["differences"]["abs_rel"]["better"] == "too few images"
    assert compare_reports(a, b).verdict("abs_rel") == "b"


def test_compare_says_when_images_or_places_are_too_few(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(count: int) -> str:
        folders = [tmp_path / f"{name}{count}" for name in "ab"]
        for folder, run_dir in zip(folders, runs, strict=True):
            report = read_report(run_dir)
            folder.mkdir()
            write_report(replace(report, images=report.images[:count]), folder)
        assert run(["compare", *map(str, folders)]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "one image decides nothing; score 6 images or more" in printed(1)
    assert "5 are too few to name the better one; score 6" in printed(5)
    assert "excludes 0; all images are from 3 places, so the result may not hold elsewhere" in printed(6)


def test_the_table_names_what_was_scored(
    benchmark: Path, tmp_path: Path, onnx_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (benchmark / "room-1" / "depth.png").write_bytes(b"no image")
    options = ["--checkpoint", str(onnx_checkpoint), "--allow-partial"]
    assert run(["evaluate", "--benchmark", str(benchmark), *options]) == 1
    shown = capsys.readouterr().out
    first, second = (line.strip() for line in shown.splitlines()[:2])
    assert first == benchmark.name
    assert second == "AbsRel % (lower is better) / delta1 % (higher is better), protocol marigold"
    # One of six images failed, so a sixth of the measured pixels has no number.
    assert "5 of 6" in shown and "16.7 %" in shown and "without" in shown
    make_nyuv2_extracted(tmp_path / "data" / "nyuv2", [make_depth(480, 640)])
    assert run(["evaluate", "--benchmark", "nyuv2", "--data", str(tmp_path / "data"), *options]) == 0
    shown = capsys.readouterr().out
    assert "nyuv2: NYU Depth v2, Eigen test split" in shown and "1 of 654" in shown and "0.0 %" in shown


def test_runs_that_cannot_be_compared(runs: tuple[Path, Path], benchmark: Path, tmp_path: Path) -> None:
    a, _ = runs
    opened = open_folder_benchmark(benchmark)
    row = next(other for other in baseline_specs() if other.invariance == "disparity")
    evaluate_benchmark(opened, row, output_dir=tmp_path / "row")
    with pytest.raises(InvalidValueError, match="the runs have protocol marigold and disparity"):
        compare(a, tmp_path / "row")
    opened.entries.pop()
    evaluate_benchmark(opened, spec(), output_dir=tmp_path / "fewer")
    with pytest.raises(InvalidValueError, match="1 images, such as room-5, were scored in one run only"):
        compare(a, tmp_path / "fewer")
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(benchmark / "room-0" / "rgb.jpg")
    evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "changed")
    with pytest.raises(InvalidValueError, match="the files of 1 images, such as room-0, changed between the runs"):
        compare(a, tmp_path / "changed")
    with pytest.raises(DataError, match=r"summary\.json cannot be read \(No such file"):
        compare(a, benchmark)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="is not a summary of"):
        compare(a, tmp_path / "broken.json")


def test_another_kind_of_place_has_another_range_and_is_scored_again(benchmark: Path, tmp_path: Path) -> None:
    evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "out")
    manifest = benchmark / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries[0]["kind"] = "outdoor" if entries[0]["kind"] != "outdoor" else "room"
    manifest.write_text(json.dumps(entries))
    again = evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "out")
    assert again.times["images_from_earlier_runs"] == 5


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


def test_what_is_no_estimator_is_refused(benchmark: Path) -> None:
    code = f"import openmarigold; openmarigold.evaluate({str(benchmark)!r}, 5)"  # without the suite's checks of types
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InvalidValueError: int is not an estimator; give a Predictor" in result.stderr


def test_brackets_in_names_are_shown_as_they_are(
    benchmark: Path, tmp_path: Path, onnx_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((benchmark / "manifest.json").read_text())
    for image in manifest["images"] if isinstance(manifest, dict) else manifest:
        image["kind"] = "[/red]a"
    (benchmark / "manifest.json").write_text(json.dumps(manifest))
    options = ["--checkpoint", str(onnx_checkpoint), "--baselines", "-o", str(tmp_path / "out")]
    assert run(["evaluate", "--benchmark", str(benchmark), *options]) == 0
    assert "[/red]a" in capsys.readouterr().out


def test_names_that_are_no_utf_8(benchmark: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"r\xe9\n\x1b[31m")
    (benchmark / "room-0").rename(benchmark / name)
    for listed in benchmark.glob("manifest.json"):
        listed.write_text(listed.read_text().replace('"room-0"', json.dumps(name)))
    report = evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "out")
    assert name in [image.name for image in report.images]
    assert read_report(tmp_path / "out").images == report.images
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "\x1b" not in page
    assert "r\\udce9\\n\\x1b[31m" in page
    assert "r\\udce9" in (tmp_path / "out" / "images.csv").read_text(encoding="utf-8")
