# SPDX-License-Identifier: Apache-2.0
"""Runs: resumed, with workers, with failures; their reports, tables and pages."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark_data import (
    add_folder_image,
    look,
    make_depth,
    make_folder_benchmark,
    make_nyuv2_extracted,
    spec,
    summary,
)
from openmarigold.cli import run
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.errors import DataError, InvalidValueError, OutputError
from openmarigold.evaluation import Estimator, evaluate, evaluate_benchmark
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.compare import compare
from openmarigold.evaluation.report import read_report
from openmarigold.evaluation.specs import EstimatorSpec

LINEAR = MapEncoding(kind="linear")


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


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["maps"]["depth"].update(meters_per_unit=0.002),
        lambda manifest: manifest.update(valid_range=[0.0, 4.0]),
    ],
)
def test_a_prepared_set_that_states_another_depth_is_scored_again(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    folder, outs = tmp_path / "set", [tmp_path / "before", tmp_path / "after"]
    writer = ShardWriter(folder, name="set", split="train", encodings={"depth": LINEAR}, settings={})
    writer.begin()
    depth, rgb = make_depth(24, 32).astype(np.float32), np.zeros((24, 32, 3), np.uint8)
    writer.write(0, [NewSample(key="a", kind="rooms", scene="s", rgb=rgb, maps={"depth": depth})])
    writer.finish(1, {})

    def reused(out: Path) -> int:
        run = evaluate_benchmark(open_folder_benchmark(folder), spec(), output_dir=out)
        return run.times["images_from_earlier_runs"]

    assert [reused(outs[0]), reused(outs[0])] == [0, 1]
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert reused(outs[1]) == 0
    with pytest.raises(InvalidValueError, match="changed between the runs"):
        compare(*outs)
    assert reused(outs[0]) == 0, "bytes and name are those of before"


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


def test_another_kind_of_place_has_another_range_and_is_scored_again(benchmark: Path, tmp_path: Path) -> None:
    evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "out")
    manifest = benchmark / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries[0]["kind"] = "outdoor" if entries[0]["kind"] != "outdoor" else "room"
    manifest.write_text(json.dumps(entries))
    again = evaluate_benchmark(open_folder_benchmark(benchmark), spec(), output_dir=tmp_path / "out")
    assert again.times["images_from_earlier_runs"] == 5


def test_far_pixels_of_a_kind_with_a_small_range_are_pointed_out(tmp_path: Path) -> None:
    far = make_depth(24, 32, low=15.0, high=60.0)
    for name, kind in (("a", "garden"), ("b", "Outdoor"), ("c", "room")):
        add_folder_image(tmp_path / "far", name, kind, name, far if kind != "room" else make_depth(24, 32))
    notes: list[str] = []
    opened = open_folder_benchmark(tmp_path / "far")
    evaluate_benchmark(opened, spec(), note=notes.append)
    assert notes == [
        "note: in 1 image more than 1 % of the measured pixels lie beyond 20 m, to which predictions are clipped; "
        "outdoor images need another kind, such as 'outdoor' (80 m)"
    ]
    evaluate_benchmark(opened, spec(), protocol="log-ransac", note=notes.append)
    assert len(notes) == 1, "not clipped to the range"


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
