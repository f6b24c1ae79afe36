# SPDX-License-Identifier: Apache-2.0
"""Evaluation and data preparation by engines: the same scores and bytes as in one process, whoever dies."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmark_data import add_folder_image, make_depth, make_folder_benchmark
from dying import DyingIdleWorker, DyingScoreWorker, opened
from openmarigold.cli import run
from openmarigold.config import PredictConfig
from openmarigold.data.units import ProcessEngine, UnitEngine, UnitWorker
from openmarigold.errors import CheckpointError, DataError, InvalidValueError, OutputError
from openmarigold.evaluation import evaluate_benchmark
from openmarigold.evaluation.benchmark import Benchmark
from openmarigold.evaluation.image_run import Elsewhere, ScoreWorker
from openmarigold.evaluation.report import Report
from openmarigold.evaluation.specs import EstimatorSpec

CONFIG = PredictConfig(processing_resolution=32)
FILES = ("summary.json", "images.csv", "page.html")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder_benchmark(tmp_path_factory.mktemp("units") / "benchmark", count=7)


@pytest.fixture(scope="module")
def alone(benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone")
    score(benchmark, out, None)
    return out


def score(benchmark: Path, out: Path, engine: UnitEngine | None, **options: Any) -> Report:
    found, spec = opened(benchmark, CONFIG)
    elsewhere = engine and Elsewhere(engine=engine, opened=partial(opened, benchmark, CONFIG), images_per_unit=2)
    return evaluate_benchmark(found, spec, output_dir=out, elsewhere=elsewhere, **options)  # pyright: ignore


def contents(folder: Path) -> dict[str, Any]:
    """What must not depend on who scored."""
    found: dict[str, Any] = {name: (folder / name).read_text() for name in FILES}
    summary = json.loads(found["summary.json"])
    del summary["times"]
    return {**found, "summary.json": summary}


class Backwards:
    """Does pickled units in this process, the last first, with a pickled worker; fails after `most` of them."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.units = most, 0

    def __call__(self, worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        other = pickle.loads(pickle.dumps(worker))
        other.load()
        for unit in reversed(units):
            if self.units == self.most:
                raise OutputError("the end")
            self.units += 1
            yield unit, pickle.loads(pickle.dumps(other.make(pickle.loads(pickle.dumps(unit)), again=again)))


def test_scores_are_those_of_one_process(benchmark: Path, alone: Path, tmp_path: Path) -> None:
    engine = Backwards()
    told: list[tuple[int, int]] = []
    score(benchmark, tmp_path, engine, progress=lambda done, total: told.append((done, total)))
    assert engine.units == 4 and told == [(done, 7) for done in range(1, 8)]
    assert contents(tmp_path) == contents(alone)


def test_a_run_goes_on_with_another_engine(
    benchmark: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="the end"):
        score(benchmark, tmp_path, Backwards(most=2))
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 3  # images 7, and 5 and 6
    report = score(benchmark, tmp_path, Backwards())
    assert report.times["images_from_earlier_runs"] == 3
    assert contents(tmp_path) == contents(alone)
    assert score(benchmark, tmp_path, None).times["images_from_earlier_runs"] == 7
    # With all scores there, workers load no model.
    monkeypatch.setattr("openmarigold.evaluation.image_run.ImageRun._predict", None)
    monkeypatch.setattr("openmarigold.evaluation.runner.write_page", lambda *_, **__: None)
    assert score(benchmark, tmp_path, Backwards()).times["images_from_earlier_runs"] == 7


def test_failed_images_are_the_same(benchmark: Path, tmp_path: Path) -> None:
    folder = make_folder_benchmark(tmp_path / "benchmark", count=5)
    (folder / "room-1" / "depth.png").write_bytes(b"nothing")
    notes: list[str] = []
    options = {"allow_partial": True, "note": notes.append}
    here = score(folder, tmp_path / "here", None, **options)
    there = score(folder, tmp_path / "there", Backwards(), **options)
    assert list(here.failed) == ["room-1"] and there.failed == here.failed
    assert notes[0] == notes[1] and "room-1/depth.png is missing or damaged" in notes[0]
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    with pytest.raises(DataError, match="1 of 5 images could not be scored"):
        score(folder, tmp_path / "there", Backwards())


def failing(benchmark: Path) -> tuple[Benchmark, EstimatorSpec]:
    def load() -> Any:
        raise CheckpointError("no weights here")

    found, spec = opened(benchmark, CONFIG)
    return found, replace(spec, load=load)


def test_a_model_that_cannot_be_loaded_ends_the_run(benchmark: Path) -> None:
    found, spec = opened(benchmark, CONFIG)
    elsewhere = Elsewhere(engine=Backwards(), opened=partial(failing, benchmark))
    with pytest.raises(CheckpointError, match="no weights here"):
        evaluate_benchmark(found, spec, elsewhere=elsewhere)


def test_workers_must_see_the_same_images(benchmark: Path, tmp_path: Path) -> None:
    other = make_folder_benchmark(tmp_path / "other", count=7)
    add_folder_image(other, "room-8", "room", "place-8", make_depth(24, 32, seed=8))
    found, spec = opened(benchmark, CONFIG)
    elsewhere = Elsewhere(engine=Backwards(), opened=partial(opened, other, CONFIG))
    with pytest.raises(InvalidValueError, match="holds other images for a worker"):
        evaluate_benchmark(found, spec, elsewhere=elsewhere)


def test_processes_give_the_same_scores_though_one_dies(benchmark: Path, alone: Path, tmp_path: Path) -> None:
    def engine(worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        return ProcessEngine(workers=1)(dying(worker, tmp_path / "died"), units, again=again)

    score(benchmark, tmp_path / "out", engine)
    assert (tmp_path / "died").exists()
    assert contents(tmp_path / "out") == contents(alone)


def test_no_unit_is_lost_where_a_worker_dies_while_a_result_is_used(tmp_path: Path) -> None:
    """The pool is broken before the next unit is handed to it."""
    made: list[int] = []
    for _, result in ProcessEngine(workers=2)(DyingIdleWorker(tmp_path), range(4), again=False):
        made.append(result)
        (tmp_path / "go").touch()
        while not (tmp_path / "died").exists():
            time.sleep(0.01)
        if len(made) == 1:
            time.sleep(0.2)  # until the pool has noticed
    assert sorted(made) == [0, 1, 2, 3]


def dying(worker: UnitWorker, marker: Path) -> DyingScoreWorker:
    assert isinstance(worker, ScoreWorker)
    found = DyingScoreWorker(worker.opened, worker.protocol, worker.names_sha256)
    found.marker = marker
    return found


def test_command_line(benchmark: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--benchmark", str(benchmark), "--processing-resolution", "32"]
    assert run([*words, "--workers", "2", "-o", str(tmp_path)]) == 0
    assert contents(tmp_path) == contents(alone)
    for more, text in (
        (["--workers", "0"], "workers=0 is not accepted; give 1 to 1024"),
        (["--workers", "2", "--num-workers", "2"], "num_workers is for one process"),
        (["--gpus-per-worker", "1"], "without --ray"),
    ):
        assert run([*words, *more]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_ray_gives_the_same_scores_though_an_actor_dies(benchmark: Path, alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from openmarigold.batch.ray_engine import RayEngine

    def engine(worker: UnitWorker, units: Sequence[Any], *, again: bool) -> Iterator[tuple[Any, Any]]:
        yield from RayEngine(address="local", workers=2)(dying(worker, tmp_path / "died"), units, again=again)

    score(benchmark, tmp_path / "out", engine)
    assert (tmp_path / "died").exists()
    assert contents(tmp_path / "out") == contents(alone)
