# SPDX-License-Identifier: Apache-2.0
"""Files of points and meshes as results: of which modalities, with what stated, and how runs continue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from openmarigold import Prediction, Predictor
from openmarigold.camera import Camera
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError, OutputError
from openmarigold.modalities import DEPTH, MODALITIES, NORMALS
from openmarigold.modalities.depth import ASSUMED_SHIFT, LOG_DEPTH
from openmarigold.modalities.metric import METRIC
from openmarigold.predictor.run import predict_files
from openmarigold.results.provenance import read_provenance
from openmarigold.results.writers import write_prediction
from tiny import make_photo

SPACE = OutputConfig(format=("ply", "glb"))


@pytest.fixture
def config(onnx_checkpoint: Path) -> PredictConfig:
    return PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1)


def prediction(**changes: Any) -> Prediction:
    """Affine depth of a plane."""
    depth = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
    made = Prediction(maps={"depth": depth}, settings={"invariance": "affine"}, rgb=make_photo(24, 32))
    return replace(made, **changes)


def test_a_run_writes_points_and_a_mesh_and_goes_on(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    result = predict_files([photo], output_dir=out, config=config, output=SPACE)
    assert [path.name for path in result.written] == ["a_depth.ply", "a_depth.glb"]
    for path in result.written:
        record = read_provenance(path)
        assert (record["shift"], record["shift_source"]) == (ASSUMED_SHIFT, "assumed")
        assert record["camera"]["source"] in ("assumed", "exif") and record["length_unit"] == "relative"
        assert record["seed"] == config.seed and record["input_sha256"]
        assert len(trimesh.load(path).bounds) == 2
    assert len(predict_files([photo], output_dir=out, config=config, output=SPACE).skipped) == 1
    sparse = replace(SPACE, max_points=200)
    assert predict_files([photo], output_dir=out, config=config, output=sparse).renewed == [photo]
    assert len(trimesh.load(out / "a_depth.ply").vertices) <= 200
    assert read_provenance(out / "a_depth.ply")["max_points"] == 200


def test_a_format_of_space_is_added_to_a_finished_run(photo_dir: Path, tmp_path: Path, config: PredictConfig) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    predict_files([photo], output_dir=out, config=config)
    result = predict_files([photo], output_dir=out, config=config, output=SPACE)
    assert result.renewed == [] and (out / "a_depth.npy").is_file() and (out / "a_depth.glb").is_file()


@pytest.mark.parametrize("modality", [name for name in MODALITIES if MODALITIES[name].surface is None])
def test_what_shows_no_surface_is_refused_before_anything_is_written(modality: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"format glb: .* alone gives no points or mesh; ask for depth"):
        write_prediction(
            {}, output_dir=tmp_path, stem="a", output=OutputConfig(format=("glb",)), modality=MODALITIES[modality]
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(InvalidValueError, match="alone gives no points or mesh; predict depth"):
        Prediction(maps={}, modality=modality).points()


def test_a_run_of_normals_is_refused_before_photos_are_read(
    photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    both = replace(config, modality=("depth", "normals"))
    with pytest.raises(InvalidValueError, match="format ply, glb: surface normals alone"):
        predict_files([photo_dir], output_dir=tmp_path / "out", config=both, output=SPACE)


def test_uncertain_pixels_are_left_out_where_they_are_known(
    photo_dir: Path, tmp_path: Path, config: PredictConfig
) -> None:
    output = replace(SPACE, drop_uncertain=0.5)
    with pytest.raises(InvalidValueError, match=r"drop_uncertain=0\.5 needs the uncertainty of an ensemble"):
        predict_files([photo_dir], output_dir=tmp_path / "out", config=config, output=output)
    ensemble = replace(config, ensemble_size=2)
    predict_files([photo_dir / "a.png"], output_dir=tmp_path / "out", config=ensemble, output=output)
    uncertainty = np.full((24, 32), 0.1, dtype=np.float32)
    uncertainty[:, :8] = 0.9
    made = prediction(uncertainties={"uncertainty": uncertainty})
    assert made.points(drop_uncertain=0.25).pixels[:, 0].min() == 8
    assert made.mesh(drop_uncertain=0.25).pixels[:, 0].min() == 8


def test_a_panorama_is_refused(tmp_path: Path) -> None:
    bent = prediction(settings={"invariance": "scale", "panorama": "equirectangular"})
    for act in (bent.points, bent.mesh, lambda: bent.save(tmp_path, "a", output=SPACE)):
        with pytest.raises(InvalidValueError, match="the photo is a panorama"):
            act()
    assert not list(tmp_path.iterdir())
    assert len(bent.save(tmp_path, "a")) == 3  # depth itself is written


def test_depth_that_is_unknown_everywhere_writes_nothing(tmp_path: Path) -> None:
    unknown = prediction(maps={"depth": np.full((24, 32), np.nan, dtype=np.float32)}, modality="metric")
    with pytest.raises(InvalidValueError, match="there are no points to write"):
        unknown.save(tmp_path, "a", output=replace(SPACE, format=("npy", "ply")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [{"max_depth": 1e-9}, {"drop_far": 0.1}])
def test_files_that_cannot_be_made_leave_those_of_an_earlier_run(
    asked: dict[str, Any], photo_dir: Path, tmp_path: Path, config: PredictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, out = photo_dir / "a.png", tmp_path / "out"
    if "drop_far" in asked:  # a panorama, which is refused before a network runs
        text = 'GPano:ProjectionType="equirectangular"'
        xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {text}/></x:xmpmeta>'
        photo = tmp_path / "pano.jpg"
        Image.open(photo_dir / "a.png").convert("RGB").save(photo, xmp=xmp.encode())
    first = predict_files([photo], output_dir=out, config=config)
    before = {path.name: path.read_bytes() for path in first.written}
    output = OutputConfig(format=("npy", "png", "ply"), **asked)
    if "drop_far" in asked:
        monkeypatch.setattr(Predictor, "__call__", lambda *_, **__: pytest.fail("a network ran"))
    result = predict_files([photo], output_dir=out, config=config, output=output)
    assert len(result.failed) == 1 and result.written == []
    assert {path.name: path.read_bytes() for path in first.written} == before
    monkeypatch.undo()
    assert predict_files([photo], output_dir=out, config=config).skipped == [photo]


def test_affine_depth_takes_the_shift_that_is_known() -> None:
    assert prediction().points().points[0, 2] == pytest.approx(ASSUMED_SHIFT)
    known = prediction(settings={"invariance": "affine", "shift": 0.5, "shift_source": "estimated"})
    cloud = known.points()
    assert cloud.points[0, 2] == pytest.approx(0.5) and cloud.points[-1, 2] == pytest.approx(1.5)
    assert cloud.origin.statement["shift_source"] == "estimated"
    scale = prediction(settings={"invariance": "scale"})
    assert len(scale.points(cut_edges=False)) == 24 * 32 - 1  # depth 0 is at the camera itself
    assert "shift" not in scale.points().origin.statement
    assert LOG_DEPTH.surface is not None and DEPTH.surface is not None and NORMALS.surface is None


def test_metric_depth_is_in_meters(tmp_path: Path) -> None:
    depth = np.full((24, 32), 2.5, dtype=np.float32)
    depth[0] = np.nan
    camera = Camera.from_focal((24, 32), 40.0)
    made = prediction(maps={"depth": depth}, settings={"invariance": "absolute"}, modality="metric", camera=camera)
    assert METRIC.surface is not None
    cloud = made.points()
    assert cloud.origin.unit == "meters" and len(cloud) == 23 * 32
    assert np.ptp(cloud.points[:, 0]) == pytest.approx(31 * 2.5 / 40)
    names = [path.name for path in made.save(tmp_path, "cat", output=replace(SPACE, ply="mesh", glb="points"))]
    assert names == ["cat_metric.ply", "cat_metric.glb"]
    assert read_provenance(tmp_path / "cat_metric.ply")["camera"]["source"] == "focal_px"
    assert len(trimesh.load(tmp_path / "cat_metric.ply").faces) == 2 * 22 * 31


def test_a_prediction_keeps_its_colors_and_replaces_only_when_asked(tmp_path: Path) -> None:
    made = prediction()
    assert made.rgb is not None
    np.testing.assert_array_equal(made.points().colors, made.rgb.reshape(-1, 3))
    np.testing.assert_array_equal(made.mesh().texture, made.rgb)
    assert prediction(rgb=None).points().colors is None
    path = made.points(max_points=50).save(tmp_path / "a.ply")
    with pytest.raises(OutputError, match="exists"):
        made.points().save(path)
