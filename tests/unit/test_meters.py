# SPDX-License-Identifier: Apache-2.0
"""From relative depth to meters by lengths, heights, depths, points and maps: against scenes whose sizes are known."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold.camera import Camera
from openmarigold.cli import run
from openmarigold.completion import guided_settings, meters
from openmarigold.completion.evidence import SparsePoints
from openmarigold.completion.fits import line_depth, slope_of_line
from openmarigold.completion.known import KnownConfig
from openmarigold.completion.measured import measure, measure_file
from openmarigold.completion.meters import thinned, to_meters
from openmarigold.completion.points import read_points
from openmarigold.completion.run import metric_files
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.results.manifest import Manifest
from openmarigold.results.prediction import Prediction
from openmarigold.results.provenance import read_provenance
from tiny import make_photo

SIZE = (60, 80)
CAMERA = Camera.from_fov(SIZE, 70.0)
HEIGHT = 1.6


def room(wall: float = 4.0) -> np.ndarray:
    """Depth [m] of a floor 1.6 m below the camera and a wall ahead."""
    rays = CAMERA.rays().astype(np.float64)
    floor = np.where(rays[..., 1] > 0, HEIGHT / np.maximum(rays[..., 1], 1e-9), np.inf)
    return np.minimum(floor, wall)


def predicted(scale: float = 0.2, offset: float = 0.0, invariance: str = "scale", **settings: Any) -> Prediction:
    """A perfect prediction: depth [m] = (depth - offset) / scale."""
    depth = (room() * scale + offset).astype(np.float32)
    return Prediction(maps={"depth": depth}, camera=CAMERA, settings={"invariance": invariance, **settings})


def test_a_known_depth_gives_the_scale() -> None:
    found = to_meters(predicted(), known_depth=[(40, 5, 4.0)])
    np.testing.assert_allclose(found.depth, room(), rtol=1e-5)
    assert found.modality == "metric"
    assert found.settings["unit"] == "m"
    assert found.settings["convention"] == "planar"
    assert found.settings["camera"]["fov"] == pytest.approx(70.0)
    assert found.settings["left_out_errors"] is None


def test_known_depths_that_are_missed_are_said() -> None:
    """Depth up to scale has no shift to turn, and two depths at one place contradict each other."""
    met = to_meters(predicted(), known_depth=[(40, 5, 4.0), (40, 58, float(room()[58, 40]))])
    assert "notes" not in met.settings
    found = to_meters(predicted(), known_depth=[(40, 5, 4.0), (41, 5, 8.0)])
    (note,) = found.settings["notes"]
    assert "not all known depths are met: " in note and "8 m at 41,5" in note


@pytest.mark.parametrize(
    "known",
    [{"known_depth": ("30,20=2500",)}, {"known_length": ("1,1,30,20=2030",)}, {"camera_height": 1300.0}],
)
def test_millimeters_for_meters_are_an_error_that_asks(known: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match="m looks like millimeters or centimeters; give the unit"):
        KnownConfig(**known)
    KnownConfig(**known, unit="mm")
    KnownConfig(**known, unit="m")


def test_two_depths_give_scale_and_shift_of_affine_depth() -> None:
    depth = room()
    known = [(40, 5, float(depth[5, 40])), (40, 58, float(depth[58, 40]))]
    found = to_meters(predicted(0.2, -0.1, "affine"), known_depth=known)
    np.testing.assert_allclose(found.depth, depth, rtol=1e-4)
    assert found.settings["scale"] == pytest.approx(5.0, rel=1e-4)
    assert found.settings["shift"] == pytest.approx(0.5, rel=1e-3)


def test_a_shift_that_is_assumed_is_said_and_one_that_was_estimated_is_taken() -> None:
    assumed = to_meters(predicted(0.2, -0.1, "affine"), known_depth=[(40, 5, 4.0)])
    assert any("a shift of 0.1 is assumed" in note for note in assumed.settings["notes"])
    estimated = to_meters(
        predicted(0.2, -0.15, "affine", shift=0.15, shift_source="estimated"), known_depth=[(40, 5, 4.0)]
    )
    assert "notes" not in estimated.settings
    # The shift of the result is that of its fit, so the estimated one has a name of its own.
    assert estimated.settings["relative_shift"] == 0.15 and estimated.settings["relative_invariance"] == "affine"
    assert estimated.settings["shift"] == pytest.approx(0.75, rel=1e-3) and "shift_source" not in estimated.settings
    np.testing.assert_allclose(estimated.depth, room(), rtol=1e-4)


def test_a_known_length_gives_the_scale() -> None:
    length = 60 * 4.0 / CAMERA.fx  # of 60 pixels on the wall
    found = to_meters(predicted(), known_length=[(10, 5, 70, 5, length)])
    np.testing.assert_allclose(found.depth, room(), rtol=1e-5)


def test_lengths_of_affine_depth_state_the_shift_of_the_result() -> None:
    length = 60 * 4.0 / CAMERA.fx
    found = to_meters(predicted(0.2, -0.1, "affine"), known_length=[(10, 5, 70, 5, length)])
    np.testing.assert_allclose(found.depth, room(), rtol=1e-4)
    stated = found.settings["scale"] * predicted(0.2, -0.1, "affine").depth + found.settings["shift"]
    np.testing.assert_allclose(found.depth, stated, rtol=1e-4)  # of the model's own depth, not of a shifted one
    assert any("a shift of 0.1 is assumed" in note for note in found.settings["notes"])


def test_a_shift_that_could_not_be_estimated_is_said() -> None:
    unsure = predicted(0.2, -0.15, "affine", shift=0.15, shift_source="assumed")
    found = to_meters(unsure, known_depth=[(40, 5, 4.0)])
    assert any("a shift of 0.15 is assumed" in note for note in found.settings["notes"])


def test_a_doubtful_ground_is_said_with_the_reason() -> None:
    depth = room(9.0)
    rows, columns = np.indices(SIZE)
    depth[(rows > 32) & (columns > 8)] = (
        1.5 + 0.01 * columns[(rows > 32) & (columns > 8)]
    )  # something large is in front
    blocked = Prediction(maps={"depth": depth.astype(np.float32)}, camera=CAMERA, settings={"invariance": "scale"})
    (note,) = to_meters(blocked, camera_height=HEIGHT).settings["notes"]
    assert note.startswith("the scale may be far off: ") and "lower half" in note


def test_lengths_that_contradict_each_other_are_said() -> None:
    length = 60 * 4.0 / CAMERA.fx
    known = [(10, 5, 70, 5, length), (10, 6, 70, 6, length), (10, 7, 70, 7, 2 * length)]
    found = to_meters(predicted(), known_length=known)
    np.testing.assert_allclose(found.depth, room(), rtol=1e-5)
    assert any("contradict each other" in note for note in found.settings["notes"])


def test_the_height_of_the_camera_gives_the_scale() -> None:
    far = Prediction(maps={"depth": room(9.0).astype(np.float32) / 5}, camera=CAMERA, settings={"invariance": "scale"})
    found = to_meters(far, camera_height=HEIGHT)
    np.testing.assert_allclose(found.depth, room(9.0), rtol=0.01)
    np.testing.assert_allclose(found.settings["ground_normal"], [0, -1, 0], atol=0.02)


def test_points_give_an_error_estimate_and_what_other_methods_would_give() -> None:
    rng = np.random.default_rng(5)
    pixels = np.stack([rng.integers(0, 80, 60), rng.integers(0, 60, 60)], axis=-1).astype(np.float64)
    depth = room()[pixels[:, 1].astype(int), pixels[:, 0].astype(int)]
    found = to_meters(predicted(), points=SparsePoints(pixels=pixels, depth=depth), method="fit")
    np.testing.assert_allclose(found.depth, room(), rtol=1e-4)
    assert found.settings["left_out_errors"]["mean_m"] < 1e-3
    by_name = {row["method"]: row["left_out_errors"] for row in found.settings["compared"]}
    assert {"nearest", "linear", "least_squares", "fit", "field"} <= set(by_name)
    assert by_name["nearest"]["mean_m"] > by_name["fit"]["mean_m"]


def test_the_map_of_another_tool_may_have_another_size() -> None:
    found = to_meters(predicted(0.2, -0.1, "affine"), metric_map=room()[::2, ::2] * 1.5, method="fit")
    ratio = np.median(found.depth / room())
    assert ratio == pytest.approx(1.5, rel=0.03)  # pixels of the smaller map lie between pixels of the larger


def test_the_spread_of_members_becomes_meters() -> None:
    prediction = predicted()
    spread = np.full(SIZE, 0.01, dtype=np.float32)
    with_spread = Prediction(
        maps=prediction.maps, uncertainties={"uncertainty": spread}, camera=CAMERA, settings=prediction.settings
    )
    found = to_meters(with_spread, known_depth=[(40, 5, 4.0)])
    np.testing.assert_allclose(found.uncertainties["metric_uncertainty"], 0.05, rtol=1e-4)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "give one kind of measurement"),
        ({"known_depth": [(1, 1, 2.0)], "camera_height": 1.6}, "give one kind of measurement"),
        ({"known_depth": [(80, 1, 2.0)]}, "outside of the picture of 80x60"),
        ({"known_depth": [(1, 1, -2.0)]}, "-2 at 1,1 is not accepted; give meters above 0"),
        ({"known_length": [(1, 1, 5, 5, 0.0)]}, "give meters above 0"),
        ({"known_length": [(1, 1, 1, 1, 2.0)]}, "show the same pixel"),
        ({"camera_height": 0.0}, "give meters above 0"),
        ({"metric_map": np.ones((60, 60))}, "must show the same part of the scene"),
        ({"metric_map": np.zeros((60, 80))}, "no pixel above 0"),
    ],
)
def test_what_is_not_accepted_is_named(known: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        to_meters(predicted(), **known)


@pytest.mark.parametrize("known", [{"known_length": [(1, 1, 5, 5, 1.0)]}, {"camera_height": 1.6}])
def test_a_panorama_has_no_straight_lengths(known: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=r"is a panorama \(equirectangular\)"):
        to_meters(predicted(panorama="equirectangular"), **known)


def test_other_predictions_are_refused() -> None:
    normals = Prediction(maps={"normals": np.zeros((4, 4, 3), dtype=np.float32)}, modality="normals")
    with pytest.raises(InvalidValueError, match="a prediction of normals has no depth; predict depth"):
        to_meters(normals, known_depth=[(1, 1, 1.0)])


def test_lengths_are_measured_in_meters() -> None:
    found = to_meters(predicted(), known_depth=[(40, 5, 4.0)])
    assert measure(found, (10, 5), (70, 5)).value == pytest.approx(60 * 4.0 / CAMERA.fx, rel=1e-4)
    with pytest.raises(InvalidValueError, match="a prediction of depth is not in meters"):
        measure(predicted(), (10, 5), (70, 5))


# --- Folders


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(make_photo(48, 64, seed=ord(name))).save(folder / f"{name}.png")
    return folder


def write_points(path: Path, scale: float = 1.0) -> None:
    rows = [f"{x},{y},{scale * (1 + 0.01 * x + 0.02 * y)}" for x in range(3, 64, 9) for y in range(3, 48, 9)]
    path.write_text("x,y,depth\n" + "\n".join(rows), encoding="utf-8")


def test_a_folder_with_points_is_resumed_and_one_missing_file_stops_no_other(photos: Path, tmp_path: Path) -> None:
    points, out = tmp_path / "points", tmp_path / "out"
    points.mkdir()
    write_points(points / "a.csv")
    known = KnownConfig(points=points)
    first = metric_files(photos, output_dir=out, known=known)
    assert first.num_predicted == 1
    ((failed, reason),) = first.failed
    assert failed.name == "b.png" and "holds no file of its points, b{.csv," in reason
    write_points(points / "b.csv")
    second = metric_files(photos, output_dir=out, known=known)
    assert (second.num_predicted, len(second.skipped)) == (1, 1)
    before = np.load(out / "a_metric.npy")
    write_points(points / "a.csv", scale=2.0)
    third = metric_files(photos, output_dir=out, known=known)
    assert (third.num_predicted, len(third.skipped)) == (1, 1)
    np.testing.assert_allclose(np.load(out / "a_metric.npy"), 2.0 * before, rtol=1e-4)
    # The same again gives the same bytes.
    bytes_of = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".npy", ".png")}
    metric_files(photos, output_dir=out, known=known, overwrite=True)
    assert bytes_of == {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".npy", ".png")}


def test_files_state_camera_unit_and_fit(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status = run(
        ["metric", str(photos / "a.png"), "-o", str(out), "--known-depth", "30,20=2.5", "--format", "npy", "png"]
    )
    assert status == 0
    depth = np.load(out / "a_metric.npy")
    assert depth[20, 30] == pytest.approx(2.5, rel=1e-5)
    record = read_provenance(out / "a_metric.png")
    assert record["unit"] == "m"
    assert record["camera"]["source"] == "assumed"
    assert record["content"] == "planar depth in millimeters, 0 is unknown"
    assert record["known"]["known_depth"] == ["30,20=2.5"]
    with Image.open(out / "a_metric.png") as image:
        assert np.asarray(image)[20, 30] == 2500
    line = Manifest(out, "metric").standing("a")
    assert line is not None and set(line["outputs"]) == {"a_metric.npy", "a_metric.png", "a_metric_colored.png"}


def test_only_fits_of_the_run_are_printed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["metric", "--format", "npy", "-o", str(tmp_path / "out")]
    assert run([*command, str(photos / "a.png"), "--known-depth", "30,20=2.5"]) == 0
    assert run([*command, str(photos / "b.png"), "--known-depth", "30,20=2.5"]) == 0
    capsys.readouterr()
    assert run([*command, str(photos / "b.png"), "--known-depth", "30,20=2.5"]) == 0  # done already
    output = "".join(capsys.readouterr())
    assert "b: fit" in output and "a: fit" not in output
    assert run([*command, str(photos / "a.png"), "--known-depth", "900,20=2.5"]) == 1  # keeps the file of the first
    output = "".join(capsys.readouterr())
    assert "outside of the picture" in output and "a: fit" not in output
    assert run([*command, str(photos / "a.png"), "--known-depth", "900,20=2.5", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fits"] == {}


def test_photos_whose_fits_are_not_printed_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(6):
        Image.fromarray(make_photo(48, 64, seed=index)).save(folder / f"{index}.png")
    known = ["--known-depth", "30,20=2", "--known-depth", "30,20=4"]  # cannot both be
    assert run(["metric", str(folder), "-o", str(tmp_path / "out"), "--format", "npy", *known]) == 0
    assert "2 more photos, 2 of them with notes" in " ".join("".join(capsys.readouterr()).split())


def test_measure_prints_a_length(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    metric_files(photos / "a.png", output_dir=out, known=KnownConfig(known_depth=("30,20=2.5",)))
    capsys.readouterr()
    assert run(["measure", str(out / "a_metric.npy"), "30,20", "31,20"]) == 0
    assert "m (accuracy not known)" in capsys.readouterr().out
    length, unit = measure_file(out / "a_metric.npy", (30, 20), (31, 20))
    assert unit == "m" and length.value > 0
    assert run(["measure", str(out / "a_metric.npy"), "30,20", "64,20", "--json"]) == 2
    assert "outside of the picture of 64x48" in json.loads(capsys.readouterr().out)["error"]


def test_measuring_needs_meters(tmp_path: Path) -> None:
    prediction = predicted()
    prediction.save(tmp_path, "x")
    with pytest.raises(InvalidValueError, match="carries no provenance"):
        measure_file(tmp_path / "x_depth.npy", (1, 1), (2, 2))


def test_guided_denoising_of_a_folder_is_resumed_with_the_same_bytes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guided_settings, "_ITERATIONS_OF_ONE_STEP", 6)  # enough to lower the loss
    points, out = tmp_path / "points", tmp_path / "out"
    points.mkdir()
    for name in ("a", "b"):
        write_points(points / f"{name}.csv")
    known = KnownConfig(points=points, method="guided")
    config = PredictConfig(processing_resolution=64)
    assert metric_files(photos / "a.png", output_dir=out, known=known, config=config).num_predicted == 1
    both = metric_files(photos, output_dir=out, known=known, config=config)
    assert (both.num_predicted, len(both.skipped)) == (1, 1)
    record = read_provenance(out / "b_metric.png")
    assert (record["method"], record["engine"]) == ("guided", "torch")
    assert (record["invariance"], record["relative_invariance"]) == ("absolute", "scale")
    assert record["last_loss"][0] < record["first_loss"][0]
    before = {path.name: path.read_bytes() for path in out.glob("*_metric.*")}
    metric_files(photos, output_dir=out, known=known, config=config, overwrite=True)
    assert before == {path.name: path.read_bytes() for path in out.glob("*_metric.*")}


def test_guided_denoising_needs_gradients(photos: Path, tmp_path: Path) -> None:
    known = KnownConfig(known_depth=("1,2=3",), method="guided")
    with pytest.raises(InvalidValueError, match="needs gradients, which engine onnx does not give; use torch"):
        metric_files(photos, output_dir=tmp_path, known=known, config=PredictConfig(engine="onnx"))


def test_a_file_of_another_tools_map_is_thinned(tmp_path: Path) -> None:
    photo = tmp_path / "wide.png"
    Image.fromarray(make_photo(96, 128, seed=3)).save(photo)
    rows, columns = np.indices((96, 128))
    np.save(tmp_path / "map.npy", 1.0 + 0.01 * columns + 0.02 * rows)
    known = KnownConfig(metric_map=tmp_path / "map.npy", method="fit")
    assert not metric_files(photo, output_dir=tmp_path / "out", known=known).failed
    line = Manifest(tmp_path / "out", "metric").standing("wide")
    assert line is not None and line["provenance"]["num_points"] == 4000  # of 12,288 pixels


@pytest.mark.parametrize("far", [2.5, 70.0])
def test_results_are_metric_maps_of_the_next_run(far: float, photos: Path, tmp_path: Path) -> None:
    """A 16-bit picture states its steps, and a folder of results has the photos' names with an end."""
    first, known = tmp_path / "first", KnownConfig(known_depth=(f"30,20={far}",))
    assert not metric_files(photos, output_dir=first, known=known, output=OutputConfig(format=("png",))).failed
    (first / "b_metric.png").rename(first / "b_metric.PNG")
    depth = read_points(first / "a_metric.png", camera=Camera.assumed((48, 64))).depth
    assert np.abs(depth - far).min() < 0.01 * far
    for given in (first, first / "a_metric.png"):
        known = KnownConfig(metric_map=given, method="fit", unit="m")
        assert not metric_files(photos, output_dir=tmp_path / given.name, known=known).failed
    assert np.load(tmp_path / "first" / "a_metric.npy")[20, 30] == pytest.approx(far, rel=0.02)


def test_the_file_that_cannot_be_read_is_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_points(tmp_path / "points.csv")

    def refused(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("openmarigold.completion.run.file_sha256", refused)
    known = KnownConfig(points=tmp_path / "points.csv")
    failed = metric_files(photos / "a.png", output_dir=tmp_path / "out", known=known).failed
    assert failed[0][1].endswith(f"{tmp_path}/points.csv cannot be read: Permission denied; check its permissions")


@pytest.mark.parametrize("errors", [{"relative_90": None}, {"relative_90": "?"}, {}, "?", None])
def test_a_damaged_error_of_a_record_is_not_known(errors: Any) -> None:
    found = to_meters(predicted(), known_depth=[(40, 5, 4.0)])
    found.settings["left_out_errors"] = errors
    assert measure(found, (10, 5), (70, 5)).low is None


@pytest.mark.parametrize("size", [(1000, 1000), (2000, 3000)])
def test_points_of_a_map_lie_everywhere(size: tuple[int, int]) -> None:
    """Steps of one length through a map's pixels give points on a few diagonals."""
    rows, columns = (values.ravel() for values in np.indices(size))
    pixels = np.stack([columns, rows], axis=-1).astype(np.float64)
    kept = thinned(SparsePoints(pixels=pixels, depth=np.ones(len(pixels))))
    assert len(kept) == 4000 and len(np.unique(kept.pixels, axis=0)) == 4000
    cells = np.histogram2d(*kept.pixels.T, bins=20)[0]
    assert cells.min() >= 1 and cells.max() <= 30


@pytest.mark.parametrize("space", ["depth", "log", "disparity"])
def test_uncertainty_in_meters_is_the_slope_of_the_fit(space: Any) -> None:
    relative, step = np.linspace(0.1, 1.0, 9), 1e-6
    before, after = (line_depth(space, 2.0, 0.5, depth) for depth in (relative, relative + step))
    np.testing.assert_allclose(slope_of_line(space, 2.0, relative, before), (after - before) / step, rtol=1e-4)


@pytest.mark.parametrize("method", ["fit", "field"])
@pytest.mark.parametrize("space", ["depth", "log", "disparity"])
def test_uncertainty_in_meters_is_bounded_where_a_fit_is_clipped(space: Any, method: Any) -> None:
    """Near pixels lie below the fit's floor, where lines in log depth and disparity are steep or not defined."""
    prediction = predicted()
    relative = prediction.maps["depth"]
    relative[:] = np.linspace(0.1, 1.0, SIZE[1])
    relative[:3], relative[3] = 0.0, 1e-4
    prediction.uncertainties["uncertainty"] = np.full(SIZE, 0.01, dtype=np.float32)
    rows, columns = np.indices((SIZE[0] - 4, SIZE[1])).reshape(2, -1)[:, ::37]
    pixels = np.stack([columns, rows + 4], axis=-1).astype(np.float64)
    there = relative[rows + 4, columns].astype(np.float64)
    true = {"depth": 5 * there + 1, "log": 5 * there**0.7, "disparity": 1 / (0.2 / there + 0.3)}[space]
    found = to_meters(prediction, points=SparsePoints(pixels=pixels, depth=true), method=method)
    assert found.settings["fit_space"] == space
    spread = found.uncertainties["metric_uncertainty"]
    assert np.isfinite(spread).all() and (spread <= np.maximum(found.depth, 0.06)).all()


@pytest.mark.parametrize("known", [{"known_length": [(10, 5, 70, 5, 3.0)]}, {"camera_height": 1.5}])
def test_uncertainty_of_lengths_and_heights_is_finite_at_depth_0(known: dict[str, Any]) -> None:
    prediction = predicted()
    prediction.maps["depth"][50, 40] = 0.0
    prediction.uncertainties["uncertainty"] = np.full(SIZE, 0.01, dtype=np.float32)
    found = to_meters(prediction, **known)
    np.testing.assert_allclose(found.uncertainties["metric_uncertainty"], 0.01 * found.settings["scale"], rtol=1e-5)


def test_the_nearest_value_of_a_scale_model_is_left_out() -> None:
    prediction = predicted()
    prediction.maps["depth"][50, 40] = 0.0
    found = to_meters(prediction, metric_map=room())
    np.testing.assert_allclose(found.depth[:50], room()[:50], rtol=1e-3)
    assert "1 of 4000 points lie where the model gives no depth above 0" in " ".join(found.settings["notes"])


def test_many_points_are_compared_by_some_of_them() -> None:
    rows, columns = np.indices((60, 80)).reshape(2, -1)
    pixels = np.stack([columns, rows], axis=-1).astype(np.float64)
    points = SparsePoints(pixels=pixels, depth=room()[rows, columns])
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = meters.compare

        def counting(relative: Any, some: SparsePoints, **more: Any) -> Any:
            seen.append(len(some))
            return whole(relative, some, **more)

        patch.setattr(meters, "compare", counting)
        found = to_meters(predicted(), points=points, method="fit")
    assert seen == [4000] and found.settings["num_points"] == 4800
