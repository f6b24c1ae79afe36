# SPDX-License-Identifier: Apache-2.0
"""Scores of normals against hand values: per image, pooled over all pixels, resumed, compared and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_data import image_bytes, npy, write
from openmarigold.cli import run
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation import Estimator, Report, baseline_estimators, evaluate, evaluate_benchmark
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.compare import compare
from openmarigold.evaluation.report import read_report
from openmarigold.evaluation.specs import EstimatorSpec, saved_spec
from openmarigold.evaluation.statistics import decode_tally, encode_tally
from openmarigold.modalities.normals import NORMALS, panels
from openmarigold.modalities.normals_scores import (
    BIN_WIDTH,
    PROTOCOLS,
    angle_metrics,
    angular_errors,
    pooled_metrics,
    tally_of,
)
from tiny import make_photo


def tilted(angles: np.ndarray) -> np.ndarray:
    """Normals that lie so many degrees to the right of the direction to the viewer."""
    radians = np.radians(angles)
    return np.stack([np.sin(radians), np.zeros_like(radians), np.cos(radians)], axis=-1).astype(np.float32)


def make_benchmark(folder: Path, angles: dict[str, np.ndarray], places: dict[str, str] | None = None) -> Path:
    """Measured normals face the viewer where an angle is 0; NaN is unknown."""
    for seed, (name, values) in enumerate(angles.items()):
        normals = np.where(np.isnan(values)[..., None], 0.0, tilted(values))
        write(folder / name / "rgb.jpg", image_bytes(make_photo(*values.shape, seed=seed), "JPEG"))
        write(folder / name / "normals.npy", npy(normals.astype(np.float32)))
    places = places or {name: name for name in angles}
    images = [{"name": name, "kind": "room", "place": places[name]} for name in angles]
    (folder / "manifest.json").write_text(json.dumps(images))
    return folder


# An image of 4 pixels: 0, 10, 20, 50 degrees; one of 12, 4 of them unknown: 2 of 8 at 4 degrees, 6 at 40.
SMALL = np.array([[0.0, 10.0], [20.0, 50.0]])
LARGE = np.array([[4.0, 4.0, 40.0, 40.0], [40.0] * 4, [np.nan] * 4])
PER_IMAGE = {
    "mean_angle": ((0 + 10 + 20 + 50) / 4 + (2 * 4 + 6 * 40) / 8) / 2,
    "median_angle": (15 + 40) / 2,
    "rmse_angle": (np.sqrt((100 + 400 + 2500) / 4) + np.sqrt((2 * 16 + 6 * 1600) / 8)) / 2,
    "below_5": (1 / 4 + 2 / 8) / 2,
    "below_7.5": (1 / 4 + 2 / 8) / 2,
    "below_11.25": (2 / 4 + 2 / 8) / 2,
    "below_22.5": (3 / 4 + 2 / 8) / 2,
    "below_30": (3 / 4 + 2 / 8) / 2,
    "pixels_scored": 1.0,
    "facing_away": 0.0,
}
POOLED = {
    "mean_angle": (80 + 248) / 12,
    "median_angle": 40.0,  # 0 4 4 10 20 | 40 40 40 40 40 40 | 50
    "rmse_angle": np.sqrt((3000 + 9632) / 12),
    "below_5": 3 / 12,
    "below_7.5": 3 / 12,
    "below_11.25": 4 / 12,
    "below_22.5": 5 / 12,
    "below_30": 5 / 12,
    "pixels_scored": 1.0,
    "facing_away": 0.0,
}
FACING = baseline_estimators(NORMALS)["facing the camera"]


def spec_of(estimate: Callable[[np.ndarray], object], name: str, invariance: str = "normals") -> EstimatorSpec:
    return EstimatorSpec(
        name=name,
        load=lambda: Estimator(estimate, invariance, NORMALS),  # pyright: ignore[reportArgumentType]
        invariance=invariance,
        settings={"name": name},
        modality=NORMALS,
    )


def facing(rgb: np.ndarray) -> np.ndarray:
    return tilted(np.zeros(rgb.shape[:2]))


def test_two_images_have_the_hand_values_of_both_protocols(tmp_path: Path) -> None:
    folder = make_benchmark(tmp_path / "two", {"small": SMALL, "large": LARGE})
    per_image = evaluate(folder, FACING)
    assert per_image.protocol == "marigold-normals"
    assert per_image.kinds["all"].metrics == pytest.approx(PER_IMAGE, abs=1e-4)
    pooled = evaluate(folder, FACING, protocol="dsine")
    assert list(pooled.kinds["all"].metrics) == list(PER_IMAGE)
    medians = pooled.kinds["all"].metrics["median_angle"], POOLED["median_angle"]
    assert medians[0] == pytest.approx(medians[1], abs=BIN_WIDTH)
    exact = {name: value for name, value in POOLED.items() if name != "median_angle"}
    assert {name: pooled.kinds["all"].metrics[name] for name in exact} == pytest.approx(exact, abs=1e-4)
    # The large and worse image counts more only where pixels are pooled; each image's own scores are the same.
    assert pooled.kinds["all"].metrics["mean_angle"] > per_image.kinds["all"].metrics["mean_angle"] + 1
    assert [image.metrics for image in pooled.images] == [image.metrics for image in per_image.images]
    assert (pooled.to_dict()["mean_over"], per_image.to_dict()["mean_over"]) == ("pixels", "places")


def test_the_length_of_vectors_does_not_matter(tmp_path: Path) -> None:
    folder = make_benchmark(tmp_path / "two", {"small": SMALL, "large": LARGE})
    longer = Estimator(lambda rgb: 3 * facing(rgb), "normals", NORMALS)
    assert evaluate(folder, longer).kinds["all"].metrics == pytest.approx(PER_IMAGE, abs=1e-4)


def test_pooled_scores_are_those_of_all_errors() -> None:
    rng = np.random.default_rng(0)
    parts = [180 * rng.beta(1, 4, count) for count in (1000, 37, 501)]
    tallies = np.stack([tally_of(part) for part in parts])
    # Images that count 1, 0 and 3 times.
    found = pooled_metrics(np.array([[1.0, 0.0, 3.0], [1.0, 1.0, 1.0]]) @ tallies)
    for row, chosen in enumerate((np.concatenate([parts[0], *[parts[2]] * 3]), np.concatenate(parts))):
        expected = angle_metrics(chosen)
        for name, values in found.items():
            assert values[row] == pytest.approx(expected[name], abs=BIN_WIDTH if name == "median_angle" else 1e-9)
    # Half of the pixels below, half above: the median lies between them, also pooled.
    between = pooled_metrics(tally_of(np.array([10.01, 10.02, 30.03, 30.04]))[None])["median_angle"]
    assert between[0] == pytest.approx((10.02 + 30.03) / 2, abs=BIN_WIDTH)
    assert pooled_metrics(tally_of(np.array([180.0]))[None])["median_angle"][0] == pytest.approx(180, abs=BIN_WIDTH)


def random_benchmark(folder: Path, count: int = 8) -> Path:
    rng = np.random.default_rng(1)
    angles = {f"i{k}": rng.uniform(0, 10 * (k + 1), (4 + k, 6)) for k in range(count)}
    return make_benchmark(folder, angles, {f"i{k}": f"p{k // 2}" for k in range(count)})


def test_intervals_pool_within_each_resample(tmp_path: Path) -> None:
    """The interval over places is that of resampled places, whose pixels are pooled."""
    from openmarigold.evaluation.statistics import resampled

    folder = random_benchmark(tmp_path / "random")
    report = evaluate(folder, FACING, protocol="dsine")
    opened = open_folder_benchmark(folder, NORMALS)
    errors = []
    for entry in opened.entries:
        sample = opened.sample(entry)
        errors.append(angular_errors(facing(sample.rgb), sample.maps["normals"], sample.valid_mask))
    weights = resampled(np.arange(8) // 2, "all", np.asarray)
    for what in ("images", "places"):
        means = [
            np.concatenate([np.repeat(part, int(times)) for part, times in zip(errors, row, strict=True)]).mean()
            for row in weights[what]
        ]
        interval = report.kinds["all"].intervals[what]["mean_angle"]
        assert interval == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=1e-6)


def test_runs_are_resumed_read_and_compared_by_protocol(tmp_path: Path) -> None:
    folder = random_benchmark(tmp_path / "random")
    opened, out = open_folder_benchmark(folder, NORMALS), tmp_path / "out"
    model, worse = spec_of(facing, "model"), spec_of(lambda rgb: tilted(np.full(rgb.shape[:2], -20.0)), "worse")
    first = evaluate_benchmark(opened, model, protocol="dsine", output_dir=out)
    assert read_report(out) == first
    again = evaluate_benchmark(opened, model, protocol="dsine", output_dir=out)
    assert again == first and again.times["images_from_earlier_runs"] == 8
    other = evaluate_benchmark(opened, model, output_dir=tmp_path / "other")
    assert other.protocol == "marigold-normals" and "tally" not in (tmp_path / "other" / "summary.json").read_text()
    # What was scored by one protocol is never taken for the other.
    mixed = evaluate_benchmark(opened, model, output_dir=out)
    assert (mixed.protocol, mixed.times["images_from_earlier_runs"]) == ("marigold-normals", 0)
    evaluate_benchmark(opened, model, protocol="dsine", output_dir=out)
    with pytest.raises(InvalidValueError, match="the runs have protocol dsine and marigold-normals"):
        compare(out, tmp_path / "other")

    last = evaluate_benchmark(opened, worse, protocol="dsine", output_dir=tmp_path / "worse")
    comparison = compare(out, tmp_path / "worse")
    difference = comparison.differences["mean_angle"]
    assert (difference.a, difference.b) == pytest.approx(
        (first.kinds["all"].metrics["mean_angle"], last.kinds["all"].metrics["mean_angle"])
    )
    assert comparison.verdict("mean_angle") == "a"
    assert "protocol dsine" in (out / "page.html").read_text()


def damage(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "summary.json"
    content = json.loads(path.read_text())
    content["images"][0]["tally"] = change(content["images"][0]["tally"])
    path.write_text(json.dumps(content))


def test_damaged_tallies(tmp_path: Path) -> None:
    opened, out = open_folder_benchmark(random_benchmark(tmp_path / "random"), NORMALS), tmp_path / "out"
    evaluate_benchmark(opened, spec_of(facing, "model"), protocol="dsine", output_dir=out)
    text = encode_tally(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(decode_tally(text, 2), [1, 2])
    bomb = encode_tally(np.zeros(10_000_000))
    for other in ("no base 64!", text, bomb, encode_tally(np.full(len(tally_of(np.ones(1))), np.nan))):
        damage(out, lambda _, other=other: other)
        with pytest.raises(DataError, match="is not a summary of `openmarigold evaluate`"):
            read_report(out)
    # A damaged line of the log is scored again.
    log = out / "scores.jsonl"
    lines = log.read_text().splitlines()
    broken = {**json.loads(lines[0]), "tally": text}
    log.write_text("\n".join([json.dumps(broken), *lines[1:]]) + "\n")
    again = evaluate_benchmark(opened, spec_of(facing, "model"), protocol="dsine", output_dir=out)
    assert again.times["images_from_earlier_runs"] == 7


# --- Frames, baselines, panels


SIGNS = {"normals": (1, 1, 1), "normals_lub": (-1, 1, 1), "normals_opencv": (1, -1, -1)}


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
@pytest.mark.parametrize("space", list(SIGNS))
def test_predictions_of_other_frames(space: str, protocol: str, tmp_path: Path) -> None:
    folder = make_benchmark(tmp_path / "one", {"small": SMALL})
    saved = tmp_path / "saved"
    write(saved / "small.npy", npy(tilted(SMALL) * np.array(SIGNS[space])))

    def mean_angle(invariance: str) -> Report:
        opened = open_folder_benchmark(folder, NORMALS)
        return evaluate_benchmark(opened, saved_spec(saved, invariance, NORMALS), protocol=protocol)

    assert mean_angle(space).kinds["all"].metrics["mean_angle"] == pytest.approx(0, abs=1e-3)
    assert mean_angle(space).num_flagged == {"facing_away": 0}
    for other in set(SIGNS) - {space}:
        assert mean_angle(other).kinds["all"].metrics["mean_angle"] > 10
    wrong = {"normals_opencv": "normals", "normals": "normals_opencv", "normals_lub": "normals_opencv"}[space]
    assert mean_angle(wrong).num_flagged == {"facing_away": 1}


def test_predictions_of_marigolds_scripts_have_channels_first(tmp_path: Path) -> None:
    folder = make_benchmark(tmp_path / "one", {"small": np.pad(SMALL, 2)})
    write(tmp_path / "saved" / "small.npy", npy(np.moveaxis(tilted(np.pad(SMALL, 2)), -1, 0)))
    spec = saved_spec(tmp_path / "saved", None, NORMALS)
    report = evaluate_benchmark(open_folder_benchmark(folder, NORMALS), spec)
    assert report.kinds["all"].metrics["mean_angle"] == pytest.approx(0, abs=1e-3)


def test_baselines_know_where_the_bottom_is(tmp_path: Path) -> None:
    room = np.zeros((6, 4, 3), np.float32)
    room[:3, :, 2], room[3:, :, 1] = 1, 1  # a wall above, a floor below, whose normal points up
    folder = make_benchmark(tmp_path / "room", {"room": np.zeros((6, 4))})
    write(folder / "room" / "normals.npy", npy(room))
    baselines = baseline_estimators(NORMALS)
    assert list(baselines) == ["facing the camera", "floor and wall"]
    errors = [evaluate(folder, estimator).kinds["all"].metrics["mean_angle"] for estimator in baselines.values()]
    assert errors == pytest.approx([45, 0], abs=1e-3)


def test_panels_show_measured_and_predicted_normals_and_the_error(tmp_path: Path) -> None:
    opened = open_folder_benchmark(make_benchmark(tmp_path / "one", {"large": LARGE}), NORMALS)
    sample = opened.sample(opened.entries[0])
    pred = facing(sample.rgb)
    pred[0, 3] = np.nan
    measured, predicted, error = panels(sample, {"normals": pred}, 1).values()
    assert measured[0, 0].tolist() == [round(127.5 * (np.sin(np.radians(4)) + 1)), 128, 255]
    assert measured[2].tolist() == [[96, 96, 96]] * 4
    assert predicted[0, 0].tolist() == [128, 128, 255]
    assert error[..., 0].tolist() == [[17, 17, 170, 255], [170] * 4, [96] * 4]  # 255 * 4 / 60, 255 * 40 / 60


# --- The command


def test_the_command_scores_normals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_benchmark(tmp_path / "two", {"small": SMALL, "large": LARGE})
    for name, values in (("small", SMALL), ("large", LARGE)):
        write(tmp_path / "saved" / f"{name}_normals.npy", npy(tilted(np.zeros(values.shape))))
    arguments = ["evaluate", "--benchmark", str(folder), "--predictions", str(tmp_path / "saved")]
    arguments += ["--modality", "normals", "--protocol", "dsine", "--baselines"]
    assert run([*arguments, "-o", str(tmp_path / "out")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "protocol dsine" in printed and "protocol marigold-normals" not in printed
    assert "floor and wall" in printed and "27.3 / 33.3" in printed
    assert read_report(tmp_path / "out").kinds["all"].metrics["mean_angle"] == pytest.approx(328 / 12, abs=1e-4)
    page = (tmp_path / "out" / "page.html").read_text()
    assert "predicted normals" in page and "angular error, 0 to 60°" in page
    assert run([*arguments, "--modality", "normals", "depth"]) == 2
    assert "only `predict` and `serve` take several" in capsys.readouterr().err


def test_a_model_of_depth_is_scored_with_derived_normals(
    tmp_path: Path, onnx_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_benchmark(tmp_path / "one", {"a": np.zeros((32, 48))})
    arguments = ["evaluate", "--benchmark", str(folder), "--checkpoint", str(onnx_checkpoint), "--modality", "normals"]
    assert run([*arguments, "--num-inference-steps", "1", "--fov", "60", "-o", str(tmp_path / "out")]) == 0
    report = read_report(tmp_path / "out")
    assert (report.modality, report.protocol) == ("normals", "marigold-normals")
    assert (report.settings["derived_from"], report.settings["fov"]) == ("depth", 60)
    assert "normals" in capsys.readouterr().out


def test_pictures_are_as_good_as_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    normals = rng.standard_normal((16, 20, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    folder = make_benchmark(tmp_path / "one", {"a": np.zeros((16, 20))})
    write(folder / "a" / "normals.npy", npy(normals.astype(np.float32)))
    Image.fromarray(np.rint((normals + 1) * 127.5).astype(np.uint8)).save(tmp_path / "a_normals.png")
    report = evaluate_benchmark(open_folder_benchmark(folder, NORMALS), saved_spec(tmp_path, None, NORMALS))
    assert 0 < report.kinds["all"].metrics["mean_angle"] < 0.45
