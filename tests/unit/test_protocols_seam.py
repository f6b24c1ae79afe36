# SPDX-License-Identifier: Apache-2.0
"""A modality of two maps, described here alone, is evaluated, resumed, shown and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from benchmark_data import gray16, make_folder_benchmark, npy, score_sample, write
from openmarigold.cli import run
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation import Estimator, SavedPredictions, evaluate, evaluate_benchmark
from openmarigold.evaluation.benchmark import hash_of_files
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.compare import compare
from openmarigold.evaluation.report import read_report, version_of
from openmarigold.evaluation.scoring import choose_protocol
from openmarigold.evaluation.specs import EstimatorSpec, baseline_specs, saved_spec
from openmarigold.modalities import DEPTH, MODALITIES
from openmarigold.modalities.modality import MapKind
from openmarigold.modalities.protocol import Aligned, Baseline, Protocol, Score
from tiny import make_photo

SIZE = (24, 32)


def lights(rgb: np.ndarray) -> dict[str, np.ndarray]:
    """Two maps of three channels that add up to the photo."""
    bright = np.maximum(rgb / 255.0 - 0.5, 0.0)
    return {"bright": bright, "dark": rgb / 255.0 - bright}


def distances(sample: Any, maps: Any, usable: np.ndarray) -> dict[str, float]:
    errors = {name: np.abs(maps[name] - sample.maps[name])[usable] for name in ("bright", "dark")}
    found = {f"{name}_error": float(error.mean()) for name, error in errors.items()}
    return {**found, "agreement": float(np.mean(errors["bright"] < 0.05))}


def scaled(sample: Any, maps: Any, usable: np.ndarray) -> Aligned:
    factor = float((maps["bright"] * sample.maps["bright"])[usable].sum() / (maps["bright"] ** 2)[usable].sum())
    return Aligned(maps={name: factor * maps[name] for name in maps}, scores={"inverted": float(factor < 0)})


SCORES = (
    Score(name="bright_error", label="error (bright)", digits=3),
    Score(name="dark_error"),
    Score(name="agreement", label="agreement", unit="%", higher_is_better=True),
)
FLAG = Score(name="inverted", flag="the light is negative")


def map_kind(name: str) -> MapKind:
    channels = tuple(f"{name}.{color}" for color in "RGB")
    return MapKind(name=name, channels=3, range=(0.0, 1.0), unit="light", space="linear", exr_channels=channels)


BRIGHTNESS = replace(
    DEPTH,
    name="brightness",
    title="brightness",
    maps=(map_kind("bright"), map_kind("dark")),
    valid_mask=lambda maps, accepted: np.isfinite(maps["bright"]).all(axis=2),
    protocols={
        "plain": Protocol(
            name="plain", summary="as it is", accepts=frozenset({"light"}), scores=SCORES, score=distances
        ),
        "scaled": Protocol(
            name="scaled",
            summary="one factor",
            accepts=frozenset({"light", "relative"}),
            scores=(*SCORES, FLAG),
            score=distances,
            align=scaled,
        ),
    },
    default_protocol=lambda space: "plain" if space == "light" else "scaled",
    headline_metrics=("agreement", "bright_error"),
    spaces=("light", "relative"),
    picture_spaces=frozenset(),
    baselines={"black": Baseline(space="light", estimate=lambda rgb: lights(np.zeros_like(rgb)))},
    panels=lambda sample, maps, step: {"bright": (255 * sample.maps["bright"][::step, ::step]).astype(np.uint8)},
)


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(MODALITIES, "brightness", BRIGHTNESS)
    folder = tmp_path / "benchmark"
    for index in range(6):
        rgb = make_photo(*SIZE, seed=index)
        (folder / f"r{index}").mkdir(parents=True)
        Image.fromarray(rgb).save(folder / f"r{index}" / "rgb.jpg", quality=95)
        for name, values in lights(rgb).items():
            np.save(folder / f"r{index}" / f"{name}.npy", values.astype(np.float32))
    images = [{"name": f"r{index}", "kind": "room", "place": f"p{index // 2}"} for index in range(6)]
    (folder / "manifest.json").write_text(json.dumps(images))
    return folder


def shifted(amount: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda rgb: {name: values + amount for name, values in lights(rgb).items()}


def spec(amount: float, invariance: str = "light") -> EstimatorSpec:
    return EstimatorSpec(
        name="model",
        load=lambda: Estimator(shifted(amount), invariance, BRIGHTNESS),
        invariance=invariance,
        settings={"amount": amount},
        modality=BRIGHTNESS,
    )


def test_evaluate_scores_maps_by_name(benchmark: Path) -> None:
    report = evaluate(benchmark, Estimator(shifted(0.25), "light", BRIGHTNESS))
    assert (report.modality, report.protocol) == ("brightness", "plain")
    metrics = report.kinds["all"].metrics
    assert list(metrics) == ["bright_error", "dark_error", "agreement", "pixels_scored"]
    opened = open_folder_benchmark(benchmark, BRIGHTNESS)
    expected = []
    for entry in opened.entries:
        sample = opened.sample(entry)  # its photo went through JPEG, the measured maps did not
        expected.append(np.abs(lights(sample.rgb)["dark"] + 0.25 - sample.maps["dark"]).mean())
    assert metrics["dark_error"] == pytest.approx(np.mean(expected))  # as many images in each place
    assert metrics["pixels_scored"] == 1
    # A class from elsewhere does not know its modality.
    assert evaluate(benchmark, spec(0.25).load(), modality=BRIGHTNESS) == report  # pyright: ignore[reportArgumentType]
    assert evaluate(benchmark, Estimator(shifted(0.25), "relative", BRIGHTNESS)).protocol == "scaled"


def test_a_run_is_resumed_shown_and_compared(benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    opened = open_folder_benchmark(benchmark, BRIGHTNESS)
    first = evaluate_benchmark(opened, spec(0.3), output_dir=str(tmp_path / "a"))
    again = evaluate_benchmark(opened, spec(0.3), output_dir=tmp_path / "a", num_workers=2)
    assert again == first and again.times["images_from_earlier_runs"] == 6
    np.save(benchmark / "r0" / "dark.npy", np.zeros((*SIZE, 3)))
    changed = evaluate_benchmark(opened, spec(0.3), output_dir=tmp_path / "a")
    assert changed.times["images_from_earlier_runs"] == 5
    assert read_report(str(tmp_path / "a")) == changed

    better = evaluate_benchmark(opened, spec(0.01), output_dir=tmp_path / "b")
    page = (tmp_path / "b" / "page.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 3 * 3 * 2  # the photo, and the only panel
    ranked = sorted(better.images, key=lambda image: (-image.metrics["agreement"], image.name))
    assert page.index("Best") < page.index(ranked[0].name) < page.index("Median")  # the highest agreement, not lowest
    assert page.index("Worst") < page.rindex(ranked[-1].name)

    comparison = compare(str(tmp_path / "a"), tmp_path / "b")
    assert (comparison.verdict("bright_error"), comparison.verdict("agreement")) == ("b", "b")
    assert run(["compare", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "error" in line or "agreement" in line]
    assert ["agreement %" in lines[0], "error (bright)" in lines[1]] == [
        True,
        True,
    ]  # the headline first, no dark_error
    assert len(lines) == 2 and all(line.rstrip(" │").endswith(" a") for line in lines)


def test_what_is_flagged_is_counted(benchmark: Path, tmp_path: Path) -> None:
    negative = replace(
        spec(0.0, "relative"), load=lambda: Estimator(lambda rgb: {n: -v for n, v in lights(rgb).items()})
    )
    report = evaluate_benchmark(open_folder_benchmark(benchmark, BRIGHTNESS), negative, output_dir=tmp_path / "out")
    assert report.num_flagged == {"inverted": 6}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_inverted"] == 6
    assert (tmp_path / "out" / "page.html").read_text().count("the light is negative") == 1 + 9


def test_the_command_scores_saved_maps_and_baselines(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    opened = open_folder_benchmark(benchmark, BRIGHTNESS)
    saved = tmp_path / "maps"
    for number, entry in enumerate(opened.entries):
        for name, values in lights(opened.sample(entry).rgb).items():
            if number == 0:
                channels = {f"{name}.{c}": values[..., k].astype(np.float32) for k, c in enumerate("RGB")}
                (saved / "r0").mkdir(parents=True, exist_ok=True)
                with OpenEXR.File({"type": OpenEXR.scanlineimage}, channels) as file:
                    file.write(str(saved / "r0" / f"rgb_{name}.exr"))
            else:
                np.save(saved / f"{entry.name}_{name}.npy", values.astype(np.float32))
    arguments = ["evaluate", "--benchmark", str(benchmark), "--predictions", str(saved), "--modality", "brightness"]
    assert run([*arguments, "--baselines", "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "agreement % (higher is better) / error (bright) (lower is better), protocol plain" in " ".join(out.split())
    assert "maps" in out and "black" in out
    live = evaluate(benchmark, Estimator(lights, "light", BRIGHTNESS)).kinds["all"].metrics
    assert read_report(tmp_path / "out").kinds["all"].metrics == pytest.approx(live, abs=1e-6)

    np.save(saved / "r1_dark.npy", np.zeros((*SIZE, 3)))
    again = evaluate_benchmark(opened, saved_spec(saved, None, BRIGHTNESS), output_dir=tmp_path / "out")
    assert again.times["images_from_earlier_runs"] == 5
    (saved / "r1_dark.npy").unlink()
    with pytest.raises(DataError, match="holds no prediction r1_dark"):
        SavedPredictions(saved, "light", BRIGHTNESS).read("r1")
    np.save(saved / "r1_dark.npy", np.zeros(SIZE))
    with pytest.raises(DataError, match=r"holds float64 of shape \[24, 32\]; a map \[h, w, 3\] of numbers is needed"):
        SavedPredictions(saved, "light", BRIGHTNESS).read("r1")


def test_estimates_that_do_not_fit(benchmark: Path) -> None:
    def error(estimate: Callable[[np.ndarray], Any]) -> str:
        with pytest.raises(InvalidValueError) as caught:
            evaluate(benchmark, Estimator(estimate, "light", BRIGHTNESS))
        return str(caught.value)

    assert "r0: the estimate is one array; give a mapping with the maps bright, dark" in error(lambda rgb: rgb / 1.0)
    assert "r0: the estimate has no map dark, only bright" in error(lambda rgb: {"bright": lights(rgb)["bright"]})
    gray = error(lambda rgb: {name: values[..., 0] for name, values in lights(rgb).items()})
    assert "the estimate is [24, 32] and the measured bright [24, 32, 3]" in gray
    assert "complex128 values" in error(lambda rgb: {name: 1j * values for name, values in lights(rgb).items()})

    def holey(rgb: np.ndarray) -> dict[str, np.ndarray]:
        maps = lights(rgb)
        maps["dark"][:3, :, 1] = np.nan  # one channel of one map
        return maps

    assert f"not finite on {3 * 32} of {24 * 32} valid pixels" in error(holey)
    with pytest.raises(InvalidValueError, match="invariance='metric' is not known; use one of light, relative"):
        choose_protocol(BRIGHTNESS, None, "metric")
    with pytest.raises(InvalidValueError, match="protocol plain does not score relative estimates; use one of scaled"):
        choose_protocol(BRIGHTNESS, "plain", "relative")


def test_models_and_benchmarks_of_two_modalities(benchmark: Path) -> None:
    with pytest.raises(InvalidValueError, match="model predicts brightness and folder measures depth; use a benchmark"):
        evaluate_benchmark(open_folder_benchmark(benchmark), spec(0.1))


def test_benchmarks_with_other_maps_are_refused(benchmark: Path) -> None:
    opened = open_folder_benchmark(benchmark, BRIGHTNESS)
    np.save(benchmark / "r0" / "bright.npy", np.zeros(SIZE))
    with pytest.raises(DataError, match=r"bright\.npy .*float64 of shape \[24, 32\]; .* \[h, w, 3\] are needed"):
        opened.sample(opened.entries[0])
    np.save(benchmark / "r1" / "dark.npy", np.zeros((24, 30, 3)))
    with pytest.raises(DataError, match=r"dark\.npy is \[24, 30\] and its photo \[24, 32\]; sizes must be equal"):
        opened.sample(opened.entries[1])
    (benchmark / "r2" / "dark.npy").unlink()
    with pytest.raises(DataError, match=r"dark\.npy is missing"):
        fresh = open_folder_benchmark(benchmark, BRIGHTNESS)
        fresh.sample(fresh.entries[2])


def test_depth_may_be_npy_in_meters(tmp_path: Path) -> None:
    folder = make_folder_benchmark(tmp_path / "benchmark", count=2)
    opened = open_folder_benchmark(folder)
    before = [opened.sample(entry) for entry in opened.entries]
    for entry, sample in zip(opened.entries, before, strict=True):
        depth = np.where(sample.valid_mask, sample.maps["depth"], np.nan)  # missing ones may be NaN there
        write(folder / entry.name / "depth.npy", npy(depth))
        write(folder / entry.name / "depth.png", gray16(np.ones(SIZE), 1))  # the array wins
        (folder / entry.name / "meta.json").unlink()
    again = open_folder_benchmark(folder)
    estimate = np.random.default_rng(0).random(SIZE)
    protocol = DEPTH.protocols["marigold"]
    for entry, sample in zip(again.entries, before, strict=True):
        found = again.sample(entry)
        np.testing.assert_array_equal(found.valid_mask, sample.valid_mask)
        assert score_sample(found, estimate, protocol) == score_sample(sample, estimate, protocol)


def test_runs_of_depth_keep_their_keys(tmp_path: Path) -> None:
    """What an earlier version scored is found again: the key of an image is built as it was."""
    folder = make_folder_benchmark(tmp_path / "benchmark", count=1)
    opened = open_folder_benchmark(folder)
    (constant,) = (one for one in baseline_specs() if one.name == "constant")
    evaluate_benchmark(opened, constant, output_dir=tmp_path / "out")
    context = (
        '{"benchmark": "folder", "estimator": "constant", "protocol": "marigold", '
        f'"settings": {{"baseline": "constant"}}, "version": "{version_of("openmarigold")}"}}'
    )
    files = {name: (folder / "room-0" / file).read_bytes() for name, file in FILES.items()}
    text = "\n".join([context, "room-0", "room", hash_of_files(files)])
    (line,) = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == hashlib.sha256(text.encode()).hexdigest()


FILES = {"rgb": "rgb.jpg", "depth": "depth.png", "meta": "meta.json"}
