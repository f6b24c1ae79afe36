# SPDX-License-Identifier: Apache-2.0
"""Bands, strata and fits of calibrations, by hand values and on scenes whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmark_data import make_folder_benchmark
from openmarigold.checkpoints.calibration import weighted_sum
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import DataError
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.calibration import Observed, Rule, calibrate, fit_calibration, fit_weights
from openmarigold.evaluation.scoring import interval_score_names, interval_scores, summary_of
from openmarigold.modalities import DEPTH, NORMALS
from openmarigold.modalities.bands import AFFINE, DEPTH_PICTURES, NORMALS_BAND, UP_TO_SCALE, largest_change
from openmarigold.modalities.modality import Band
from openmarigold.modalities.protocol import BenchmarkSample

ALL = np.ones((2, 4), dtype=bool)


def test_errors_up_to_scale_are_logarithms_after_the_median_ratio() -> None:
    pred = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]], np.float32)
    truth = 5.0 * pred.astype(np.float64)
    truth[0, 3] *= 1.5
    error = UP_TO_SCALE.error({"depth": pred}, {"depth": truth}, ALL)
    assert error[0, 3] == pytest.approx(np.log(1.5), abs=1e-6)
    assert np.delete(error.ravel(), 3) == pytest.approx(0, abs=1e-6)
    doubled = UP_TO_SCALE.error({"depth": pred * 2}, {"depth": truth * 7}, ALL)
    assert doubled == pytest.approx(error, abs=1e-6)
    mask = ALL.copy()
    mask[1, 1] = False
    assert UP_TO_SCALE.error({"depth": pred}, {"depth": np.where(mask, truth, 0)}, mask)[1, 1] == np.inf


def test_errors_of_affine_depth_are_in_units_of_the_prediction() -> None:
    pred = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4)
    truth = 3.0 * pred.astype(np.float64) + 2.0
    assert AFFINE.error({"depth": pred}, {"depth": truth}, ALL) == pytest.approx(0, abs=1e-6)
    assert np.isinf(AFFINE.error({"depth": 1 - pred}, {"depth": truth}, ALL)).all()  # near and far exchanged


@pytest.mark.parametrize("band", [UP_TO_SCALE, AFFINE])
def test_half_widths_follow_from_bounds(band: Band) -> None:
    depth = np.array([[0.2, 0.5, 0.7, 1.0]] * 2, np.float32)
    half = np.array([[0.1, 0.2, 0.3, 0.4]] * 2, np.float32)
    bounds = band.bounds({"depth": depth}, half)
    assert tuple(bounds) == band.names
    assert band.half_width({"depth": depth}, bounds) == pytest.approx(half, abs=1e-6)
    expected = 0.2 * np.exp(0.1) if band is UP_TO_SCALE else 0.3
    assert bounds["depth_hi"][0, 0] == pytest.approx(expected, abs=1e-6)


def test_bounds_of_any_width_are_finite() -> None:
    """As float32 and as 16-bit pictures, which say their levels per unit exactly."""
    depth, half = np.full((2, 4), 0.5, np.float32), np.array([[0.0, 1.0, 90.0, 1e30]] * 2, np.float32)
    with np.errstate(all="raise", under="ignore"):
        bounds = UP_TO_SCALE.bounds({"depth": depth}, half)
        codes = [picture.make({name: bounds[name] for name in bounds}, OutputConfig()) for picture in DEPTH_PICTURES]
    assert all(np.isfinite(values).all() for values in bounds.values())
    assert (bounds["depth_lo"] <= depth).all() and (bounds["depth_hi"] >= depth).all()
    assert codes[1].max() > 2**14
    content = DEPTH_PICTURES[1].content
    assert callable(content) and content({"depth_hi": np.full((2, 4), 3.9)}).startswith("depth_hi x 16383.75,")


def test_levels_that_differ_are_not_the_same() -> None:
    scores = [
        Observed(scene=("rooms", str(n)), error=np.array([n], np.float32), signals=np.ones((1, 1), np.float32))
        for n in range(1, 20)
    ]
    fitted = fit_calibration(scores, ["constant"], [0.9, 0.9000001], Rule(name="conformal"))
    assert fitted.scales == {"0.9": pytest.approx(18, rel=1e-5), "0.9000001": pytest.approx(19, rel=1e-5)}


def test_normals_have_a_cone() -> None:
    up, tilted = np.zeros((2, 4, 3)), np.zeros((2, 4, 3))
    up[..., 1], tilted[..., 1], tilted[..., 2] = 1, np.cos(np.radians(30)), np.sin(np.radians(30))
    assert NORMALS_BAND.error({"normals": up}, {"normals": tilted}, ALL) == pytest.approx(30.0)
    tilted[:, :2] = up[:, :2]
    turns = NORMALS_BAND.strata["edges"]({"normals": tilted}, ALL)
    assert turns.tolist() == [[False, True, True, False]] * 2


def test_signals_by_hand() -> None:
    values = np.zeros((5, 5), np.float32)
    values[2, 2] = 3.0
    change = largest_change(values, 1)
    assert (change[1:4, 1:4] == 3).all() and change.sum() == 27
    stack = np.exp(values)[None] / np.exp(3.0)
    spread = 0.1 * stack
    total = weighted_sum(
        UP_TO_SCALE, {"constant": 0.5, "edges": 2.0, "spread": 10.0, "surroundings": 0.0}, stack, spread
    )
    assert total[0, 0] == pytest.approx(0.5 + 1.0) and total[2, 2] == pytest.approx(0.5 + 6.0 + 1.0, abs=1e-5)


def test_modalities_say_what_their_intervals_are() -> None:
    assert DEPTH.band("affine") is AFFINE and DEPTH.variants["log"].band("scale") is UP_TO_SCALE
    assert DEPTH.band("absolute") is None and NORMALS.band("absolute") is NORMALS_BAND


def test_scores_and_strata_by_hand() -> None:
    """Columns 0 to 3 lie at 1, 1, 2 and 2 m: edges are within a pixel of the jump, which is everywhere but column 0."""
    truth = np.tile([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0], (3, 1))
    mask = np.ones(truth.shape, bool)
    sample = BenchmarkSample(
        name="a",
        kind="room",
        place="a",
        rgb=np.zeros((3, 8, 3), np.uint8),
        maps={"depth": truth},
        valid_mask=mask,
        full_size=(3, 8),
    )
    depth = (truth / 4).astype(np.float32)
    depth[0, 4], depth[2, 0] = 0.75, 0.1875  # wrong by log 1.5 and log 4/3
    half = np.full(depth.shape, 0.35, np.float32)
    half[:, :4] = 0.2
    found = interval_scores(UP_TO_SCALE, sample, {"depth": depth}, UP_TO_SCALE.bounds({"depth": depth}, half), mask)
    assert tuple(found) == interval_score_names(UP_TO_SCALE)
    assert found["interval_coverage"] == pytest.approx(22 / 24)
    assert found["interval_half_width"] == pytest.approx(0.275, abs=1e-5)
    summary = summary_of(found)
    assert summary is not None
    parts = summary["coverage_by"]
    assert found["interval_share_edges"] == pytest.approx(4 / 8)  # two columns on each side of the jump
    assert parts["edges"] == pytest.approx(11 / 12) and parts["flat"] == pytest.approx(11 / 12)
    assert parts["near"] == pytest.approx(11 / 12)  # a third is at most 1 m away, and all of those are in it
    assert summary_of({"abs_rel": 0.1}) is None


def _scene(number: int, rng: np.random.Generator, *, pictures: int = 2, pixels: int = 40) -> list[Observed]:
    """Errors of which the width is 0.1 + 0.5 * edges, times the scene's difficulty."""
    difficulty = rng.gamma(4.0, 0.25)
    found = []
    for _ in range(pictures):
        edges = rng.uniform(size=pixels)
        width = 0.1 + 0.5 * edges
        error = difficulty * width * np.abs(rng.normal(size=pixels))
        signals = np.stack([np.ones(pixels), edges]).astype(np.float32)
        found.append(Observed(scene=("rooms", str(number)), error=error.astype(np.float32), signals=signals))
    return found


def test_calibrations_hold_on_new_scenes() -> None:
    rng = np.random.default_rng(5)
    seen = [picture for number in range(400) for picture in _scene(number, rng)]
    fitted = fit_calibration(seen, ["constant", "edges"], [0.5, 0.9], Rule(name="conformal"))
    assert fitted.num_scenes == 300 and fitted.num_scenes_for_weights == 100 and fitted.num_pictures == 600
    ratio = fitted.weights["edges"] / fitted.weights["constant"]
    assert ratio == pytest.approx(5.0, rel=0.25)
    new = [picture for number in range(400) for picture in _scene(number, rng)]
    for level in (0.5, 0.9):
        half = [fitted.scales[f"{level:g}"] * np.dot(list(fitted.weights.values()), picture.signals) for picture in new]
        covered = np.mean([np.mean(picture.error <= wide) for picture, wide in zip(new, half, strict=True)])
        assert covered == pytest.approx(level, abs=0.02)
    assert fit_calibration(seen[::-1], ["constant", "edges"], [0.9], Rule(name="conformal")).scales == {
        "0.9": fitted.scales["0.9"]
    }
    careful = fit_calibration(seen, ["constant", "edges"], [0.9], Rule(name="rcps"))
    assert careful.scales["0.9"] > fitted.scales["0.9"] and careful.coverage["0.9"] > fitted.coverage["0.9"]


def test_scenes_count_and_not_pictures() -> None:
    rng = np.random.default_rng(6)
    few = [picture for number in range(8) for picture in _scene(number, rng, pictures=50)]
    fitted = fit_calibration(
        [Observed(scene=p.scene, error=p.error, signals=p.signals[:1]) for p in few],
        ["constant"],
        [0.5, 0.9],
        Rule(name="conformal"),
    )
    assert list(fitted.scales) == ["0.5"] and fitted.num_scenes == 8  # 400 pictures would be enough for 0.9
    with pytest.raises(DataError, match="1 scenes are too few"):
        fit_calibration(few[:50], ["constant", "edges"], [0.5], Rule())


def test_widths_are_nowhere_zero() -> None:
    """Where edges explain every error, a constant of 5 % of the mean error remains."""
    edges = np.linspace(0, 1, 101, dtype=np.float32)
    signals = np.stack([np.ones(101, np.float32), edges])
    one = Observed(scene=("rooms", "0"), error=edges, signals=signals)
    constant, slope = fit_weights([one], ["constant", "edges"])
    assert constant == pytest.approx(0.05 * 0.5, rel=0.01) and slope == pytest.approx(1.0, rel=0.02)


def test_missing_pictures_are_named_before_the_first_prediction(tmp_path: Path) -> None:
    folder = make_folder_benchmark(tmp_path / "pairs")
    for name in ("room-1/rgb.jpg", "outdoor-3/depth.png"):
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"lacks 2 files of 6 pictures: room-1/rgb.jpg, outdoor-3/depth.png; get them"):
        calibrate(
            open_folder_benchmark(folder),
            PredictConfig(),
            signals=("constant",),
            levels=(0.5,),
            rule=Rule(name="conformal"),
            progress=lambda done, total: pytest.fail("a picture was predicted"),
        )
