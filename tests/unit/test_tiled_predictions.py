# SPDX-License-Identifier: Apache-2.0
"""Tiles in use: predictors, runs, settings and the energy of seams in an evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark_data import add_folder_image, make_depth, score_sample
from openmarigold.camera import Camera
from openmarigold.cli import run
from openmarigold.config import CallConfig
from openmarigold.errors import InvalidValueError
from openmarigold.evaluation.benchmarks import open_folder_benchmark
from openmarigold.evaluation.compare import compare_reports
from openmarigold.evaluation.estimators import TiledMaps
from openmarigold.evaluation.report import read_report
from openmarigold.metrics import seam_energy
from openmarigold.modalities import DEPTH
from openmarigold.modalities.protocol import BenchmarkSample
from openmarigold.predictor import Predictor
from openmarigold.predictor import tiles as tiles_module
from openmarigold.predictor.sampling import PreparedPhoto
from openmarigold.predictor.tiles import seam_lines
from openmarigold.results.manifest import Manifest
from tiny import make_photo


@pytest.fixture(scope="module")
def predictor(onnx_checkpoint: Path) -> Predictor:
    return Predictor.load(onnx_checkpoint, device="cpu")


def test_a_predictor_sees_crops_as_photos_of_their_own(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = make_photo(250, 330)
    plain, fine = predictor(photo), predictor(photo, tiles=True)
    assert "tiles" not in plain.settings
    assert fine.settings["tiles"]["number"] > 4
    assert fine.depth.shape == (250, 330) and 0 <= fine.depth.min() <= fine.depth.max() <= 1
    assert np.array_equal(fine.latent, plain.latent) and fine.camera == plain.camera
    assert predictor(photo, tiles=True).depth.tobytes() == fine.depth.tobytes()
    assert predictor(photo, tiles=False).depth.tobytes() == plain.depth.tobytes()
    both = predictor(photo, tiles=True, ensemble_size=2, ensemble_mirror=True)
    assert both.uncertainty is not None and both.uncertainty.shape == (250, 330)
    # The same in batches, which neighbors of one shape fill.
    monkeypatch.setattr(predictor.engine, "max_batch_size", None)
    monkeypatch.setattr(predictor.engine, "fitting_batch_size", lambda height, width: 3)
    np.testing.assert_allclose(predictor(photo, tiles=True).depth, fine.depth, atol=1e-4)


def test_a_small_photo_has_no_tiles_to_gain_from(predictor: Predictor) -> None:
    photo = make_photo(48, 64)
    fine = predictor(photo, tiles=True)
    assert fine.settings["tiles"] == {"number": 0, "levels": []}
    assert fine.depth.tobytes() == predictor(photo).depth.tobytes()


def test_cameras_of_tiles_are_cropped(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Camera] = []
    prepare = predictor._prepare

    def noted(*arguments: Any, **passes: Any) -> PreparedPhoto:
        photo = prepare(*arguments, **passes)
        seen.append(photo.camera)
        return photo

    monkeypatch.setattr(predictor, "_prepare", noted)
    fine = predictor(make_photo(250, 330), tiles=True, fov=60.0)
    level = fine.settings["tiles"]["levels"][0]
    assert fine.camera == seen[0]
    assert seen[2] == seen[0].cropped(top=level["tops"][0], left=level["lefts"][1], size=tuple(level["size"]))


def test_large_photos_have_tiles_unless_they_are_not_wanted(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles_module, "AUTOMATIC_PIXELS", 250 * 330 - 1)
    photo = make_photo(250, 330)
    assert predictor(photo).settings["tiles"]["number"] > 4
    assert predictor(photo, tiles=False).settings["tiles"] is False
    assert "tiles" not in predictor(photo, processing_resolution=0).settings
    assert "tiles" not in predictor(photo, guide=lambda latent, step: latent).settings
    assert "tiles" not in predictor(photo[:, :329]).settings


def test_what_does_not_go_together_is_refused(predictor: Predictor) -> None:
    photo = make_photo(250, 330)
    latents = np.zeros((1, *predictor(photo).latent.shape[1:]), dtype=np.float32)  # pyright: ignore
    for steered in ({"guide": lambda latent, step: latent}, {"latents": latents}):
        with pytest.raises(InvalidValueError, match="tiles=True was given with guide or latents"):
            predictor(photo, tiles=True, **steered)
    with pytest.raises(InvalidValueError, match="tiles=True has no effect with processing_resolution=0"):
        predictor(photo, tiles=True, processing_resolution=0)


def test_a_run_states_its_tiles_and_predicts_again_with_others(tmp_path: Path, onnx_checkpoint: Path) -> None:
    Image.fromarray(make_photo(250, 330)).save(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--checkpoint", str(onnx_checkpoint)]

    def done() -> list[dict[str, Any]]:
        return [line for line in Manifest(tmp_path / "out").lines() if line["status"] == "done"]

    assert run(command) == 0
    assert "tiles" not in done()[-1]["request"] and "tiles" not in done()[-1]["provenance"]
    for words in (["--tiles"], ["--tiles"], ["--tiles", "True"]):
        assert run([*command, *words]) == 0
    assert len(done()) == 2  # made once
    assert done()[-1]["request"]["tiles"] is True
    assert done()[-1]["provenance"]["tiles"]["number"] > 4
    assert run([*command, "--no-tiles"]) == 0
    assert len(done()) == 3 and done()[-1]["request"]["tiles"] is False


def test_seam_energy_of_hand_values() -> None:
    ramp = np.tile(np.arange(40.0), (20, 1))  # changes by 1 from column to column
    assert seam_energy(ramp, [(1, 10), (1, 20)]) == 0
    step = ramp.copy()
    step[:, 20:] += 3  # across the seam 4, on both sides 1; the mean change is (38 + 4) / 39
    assert seam_energy(step, [(1, 10), (1, 20)]) == pytest.approx(3 / (42 / 39))
    assert seam_energy(step, [(1, 28)]) == pytest.approx((1 - (4 + 1) / 2) / (42 / 39))
    assert seam_energy(step.T, [(0, 20)]) == pytest.approx(3 / (42 / 39))
    assert seam_energy(step[:, 16:24], [(1, 4)]) == pytest.approx(4 / (10 / 7) - 1)  # no sides: by the mean
    assert seam_energy(np.ones((9, 9)), [(0, 4)]) == 0
    with pytest.raises(
        InvalidValueError, match=r"line 40 of axis 1 does not lie within a map of \[20, 40\]; give 1 to 39"
    ):
        seam_energy(ramp, [(1, 40)])
    with pytest.raises(InvalidValueError, match="there is no line"):
        seam_energy(ramp, [])


def test_evaluation_scores_the_seams_of_tiles(
    predictor: Predictor, onnx_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"number": 4, "levels": [{"size": [20, 24], "tops": [0], "lefts": [0, 16], "rejected": 0}]}
    assert seam_lines(facts, (20, 40)) == [(1, 16), (1, 24)]
    depth = np.tile(np.arange(1.0, 41.0), (20, 1))
    depth[:, 24:] += 3  # across the line 4, on both sides 1; the mean change is (38 + 4) / 39
    sample = BenchmarkSample(
        name="a",
        kind="room",
        place="p",
        rgb=np.zeros((20, 40, 3), np.uint8),
        maps={"depth": depth},
        valid_mask=depth > 0,
        full_size=(20, 40),
    )
    protocol = DEPTH.protocols["metric"]
    scored = score_sample(sample, TiledMaps({"depth": depth}, seam_lines(facts, (20, 40))), protocol.with_seams())
    assert scored["seam_energy"] == pytest.approx(3 / (42 / 39)) and scored["abs_rel"] == 0
    assert score_sample(sample, TiledMaps({"depth": depth}, ()), protocol.with_seams())["seam_energy"] == 0
    assert "seam_energy" not in score_sample(sample, depth, protocol)

    add_folder_image(tmp_path / "pairs", "a", "room", "p", make_depth(96, 128))
    (entry,) = open_folder_benchmark(tmp_path / "pairs").entries
    photo = open_folder_benchmark(tmp_path / "pairs").sample(entry).rgb
    fine = predictor(photo, tiles=True)
    assert fine.settings["tiles"]["number"] > 0
    words = ["evaluate", "--benchmark", str(tmp_path / "pairs"), "--checkpoint", str(onnx_checkpoint), "--tiles"]
    assert run([*words, "--output-dir", str(tmp_path / "out")]) == 0
    assert "all: seam energy" in capsys.readouterr().out
    report = read_report(tmp_path / "out")
    expected = seam_energy(fine.depth, seam_lines(fine.settings["tiles"], photo.shape[:2]))
    assert report.images[0].metrics["seam_energy"] == pytest.approx(expected, rel=1e-6)
    assert "seam_energy" in (tmp_path / "out" / "images.csv").read_text().splitlines()[0]
    assert "seam_energy" in compare_reports(report, report).scores


def test_the_settings_are_those_of_a_call() -> None:
    assert CallConfig().tiles is None
    assert dataclasses.replace(CallConfig(), tiles=True).tiles
