# SPDX-License-Identifier: Apache-2.0
"""Comparisons of two runs: the better one, too few images, runs that differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_data import make_folder_benchmark, spec
from openmarigold.cli import run
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation import evaluate_benchmark
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.compare import compare, compare_reports
from openmarigold.evaluation.report import Report, read_report, write_report
from openmarigold.evaluation.specs import baseline_specs, saved_spec
from openmarigold.modalities.protocol import Score


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    return make_folder_benchmark(tmp_path / "benchmark")


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


def test_scores_of_intervals_name_a_winner_only_where_one_is_better(runs: tuple[Path, Path]) -> None:
    values = {"interval_coverage": 0.9, "interval_half_width": 0.1, "interval_ause": 0.1, "interval_aurg": 0.1}
    a, b = (read_report(run) for run in runs)

    def with_intervals(run: Report, times: float) -> Report:
        found = {name: times * value for name, value in values.items()}
        images = [replace(image, metrics={**image.metrics, **found}) for image in run.images]
        return replace(run, images=images, scores=(*run.scores, *(Score(name=name) for name in values)))

    compared = compare_reports(with_intervals(a, 1.0), with_intervals(b, 0.5))
    assert [compared.verdict(name) for name in values] == [None, None, "b", "a"]
    written = json.loads(json.dumps(compared.to_dict()))["differences"]
    assert written["interval_coverage"]["better"] is None and written["delta1"]["better"] == "b"


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
    with pytest.raises(
        InvalidValueError, match=r"the files of 1 images, such as room-0, or what their set states .*evaluate both"
    ):
        compare(a, tmp_path / "changed")
    with pytest.raises(DataError, match=r"summary\.json cannot be read \(No such file"):
        compare(a, benchmark)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="is not a summary of"):
        compare(a, tmp_path / "broken.json")
