# SPDX-License-Identifier: Apache-2.0
"""Surface normals: codec, frames, ensembles, files, and normals that are computed from depth."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest

from openmarigold.camera import Camera
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.configured import read_configured
from openmarigold.config import ModelConfig, OutputConfig, PredictConfig
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.evaluation.estimators import SavedPredictions
from openmarigold.geometry import (
    NORMAL_FRAMES,
    angles_between,
    convert_frame,
    normals_from_depth,
    unit_vectors,
)
from openmarigold.images.png import read_png, save_png
from openmarigold.modalities import NORMALS, find_modality, modality_of_index
from openmarigold.modalities.depth import DEPTH, LOG_DEPTH
from openmarigold.modalities.normals import ASSUMED_SHIFT, merge_normals, to_uint16
from openmarigold.predictor import Predictor
from openmarigold.predictor.run import predict_files
from openmarigold.results.provenance import read_provenance
from openmarigold.results.writers import write_prediction
from tiny import edit_json, make_photo

FLOOR = {"rub": (0.0, 1.0, 0.0), "lub": (0.0, 1.0, 0.0), "opencv": (0.0, -1.0, 0.0)}
WALL = {"rub": (0.0, 0.0, 1.0), "lub": (0.0, 0.0, 1.0), "opencv": (0.0, 0.0, -1.0)}
LEFT_WALL = {"rub": (1.0, 0.0, 0.0), "lub": (-1.0, 0.0, 0.0), "opencv": (1.0, 0.0, 0.0)}  # faces right


def constant(vector: tuple[float, float, float]) -> np.ndarray:
    return np.broadcast_to(np.array(vector, dtype=np.float32), (4, 5, 3)).copy()


@pytest.mark.parametrize("surface", [FLOOR, WALL, LEFT_WALL], ids=["floor", "wall", "left wall"])
@pytest.mark.parametrize("source", NORMAL_FRAMES)
@pytest.mark.parametrize("target", NORMAL_FRAMES)
def test_frames(surface: dict[str, tuple[float, float, float]], source: str, target: str) -> None:
    converted = convert_frame(constant(surface[source]), source, target, axis=-1)
    np.testing.assert_array_equal(converted, constant(surface[target]))


@pytest.mark.parametrize("space", ["rub", "lub", "opencv", "rub, z in [0, 1]", "lub, z in [0, 1]"])
def test_a_target_decodes_to_what_it_was_made_from(space: str) -> None:
    modality = find_modality("normals", space)
    rng = np.random.default_rng(0)
    normals = unit_vectors(rng.standard_normal((6, 7, 3)), axis=-1).astype(np.float32)
    normals[..., 2] = np.abs(normals[..., 2])  # a half range holds no others
    target = modality.to_target({"normals": normals}, np.ones((6, 7), dtype=bool), "far")
    assert target.values.shape == (1, 3, 6, 7) and np.abs(target.values).max() <= 1
    decoded = modality.from_decoded(target.values)
    if "z in" in space:
        x, y, z = np.moveaxis(normals, -1, 0)
        x = -x if space.startswith("lub") else x
        np.testing.assert_allclose(target.values[0], np.stack([x, y, 2 * z - 1]), atol=1e-6)
    np.testing.assert_allclose(np.moveaxis(decoded, 0, -1), normals, atol=1e-6)


def test_vectors_that_are_not_finite_do_not_count() -> None:
    normals = np.full((1, 5, 3), (0, 0, 1), dtype=np.float32)
    normals[0, :4, 0] = np.inf, -np.inf, np.nan, 1e30  # the square of the last one is infinite
    np.testing.assert_array_equal(NORMALS.valid_mask({"normals": normals}, (0.0, 1.0)), [[False] * 4 + [True]])


def test_unknown_pixels_of_a_target_face_the_camera_or_stay() -> None:
    normals = np.zeros((2, 2, 3), dtype=np.float32)
    normals[0, 0], normals[1, 1] = (0, 3, 4), (0, 0, 0.3)
    valid = NORMALS.valid_mask({"normals": normals}, (0.0, np.inf))
    np.testing.assert_array_equal(valid, [[True, False], [False, False]])
    far = NORMALS.to_target({"normals": normals}, valid, "far").values[0]
    np.testing.assert_allclose(far[:, 0, 0], (0, 0.6, 0.8), atol=1e-6)
    np.testing.assert_array_equal(far[:, 0, 1], (0, 0, 1))
    raw = NORMALS.to_target({"normals": normals}, valid, "raw").values[0]
    np.testing.assert_allclose(raw[:, 1, 1], (0, 0, 0.3), atol=1e-6)
    with pytest.raises(DataError, match="no valid pixel"):
        NORMALS.to_target({"normals": 0 * normals}, np.zeros((2, 2), dtype=bool), "far")


def test_a_mirrored_photo_has_mirrored_normals() -> None:
    normals = np.zeros((1, 2, 3), dtype=np.float32)
    normals[0, 0], normals[0, 1] = (0.6, 0, 0.8), (0, 1, 0)
    mirrored = NORMALS.mirror({"normals": normals})["normals"]
    np.testing.assert_allclose(mirrored, [[[0, 1, 0], [-0.6, 0, 0.8]]])


def test_members_are_merged_by_their_direction() -> None:
    angles = np.radians([-30.0, 0.0, 10.0, 40.0])  # the mean direction is near 5 degrees: 10 is the nearest member
    members = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=1)[..., None, None].astype(np.float32)
    sine, cosine = np.sin(angles).mean(), np.cos(angles).mean()
    mean = merge_normals(members, reduction="mean")
    np.testing.assert_allclose(mean.stack[:, 0, 0], np.array([sine, 0, cosine]) / np.hypot(sine, cosine), atol=1e-6)
    center = np.degrees(np.arctan2(sine, cosine))
    np.testing.assert_allclose(mean.uncertainty[0, 0, 0], np.abs(np.degrees(angles) - center).mean(), atol=1e-3)
    closest = merge_normals(members, reduction="closest")
    np.testing.assert_array_equal(closest.stack, members[np.abs(np.degrees(angles) - center).argmin()])
    with pytest.raises(InvalidValueError, match="ensemble_reduction='median' is not known; use one of closest, mean"):
        merge_normals(members, reduction="median")


def test_members_around_an_axis_give_the_axis() -> None:
    turns = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    members = np.stack([0.5 * np.cos(turns), 0.5 * np.sin(turns), np.full(6, np.sqrt(0.75))], axis=1)
    merged = merge_normals(members[..., None, None].astype(np.float32), reduction="mean")
    np.testing.assert_allclose(merged.stack[:, 0, 0], (0, 0, 1), atol=1e-6)
    np.testing.assert_allclose(merged.uncertainty, 30.0, atol=1e-4)


def test_lengths_are_one_after_resizing() -> None:
    stack = np.stack([np.full((3, 600), 0.3), np.zeros((3, 600)), np.full((3, 600), 0.4)]).astype(np.float32)
    finished = NORMALS.finish(stack)
    np.testing.assert_allclose(np.square(finished).sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(finished[:, 0, 0], (0.6, 0, 0.8), atol=1e-6)


def test_small_angles_are_exact() -> None:
    tilt = np.radians(1e-3)
    first, second = np.array([[0.0, 0, 1]]), np.array([[np.sin(tilt), 0, np.cos(tilt)]])
    np.testing.assert_allclose(angles_between(first, second, axis=-1), 1e-3, rtol=1e-6)
    np.testing.assert_allclose(angles_between(first, -first, axis=-1), 180.0)


def png_pixels(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels by another reader than Pillow, and the record."""
    width, height, rows, info = png.Reader(bytes=path.read_bytes()).read()
    texts = [data for kind, data in png.Reader(bytes=path.read_bytes()).chunks() if kind == b"tEXt"]
    pixels = np.vstack([np.asarray(row) for row in rows]).reshape(height, width, info["planes"])
    return pixels, json.loads(texts[0].split(b"\0", 1)[1]) if texts else {}


@pytest.mark.parametrize("frame", NORMAL_FRAMES)
def test_files_are_in_the_frame_that_is_asked_for(frame: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    normals = unit_vectors(rng.standard_normal((9, 11, 3)), axis=-1).astype(np.float32)
    output = OutputConfig(normal_frame=frame)
    write_prediction(
        {"normals": normals}, output_dir=tmp_path, stem="a", output=output, modality=NORMALS, provenance={"seed": 1}
    )
    wanted = convert_frame(normals, "rub", frame, axis=-1)
    np.testing.assert_array_equal(np.load(tmp_path / "a_normals.npy"), wanted)
    pixels, record = png_pixels(tmp_path / "a_normals.png")
    assert pixels.dtype == np.uint16
    read_back = unit_vectors(pixels.astype(np.float64) / 32767.5 - 1, axis=-1)
    assert angles_between(read_back, wanted.astype(np.float64), axis=-1).max() < 0.01
    assert record["normal_frame"] == frame and record["green"] == "gl"
    texture, _ = png_pixels(tmp_path / "a_normals_colored.png")
    read_back = unit_vectors(texture / 127.5 - 1, axis=-1)  # whatever the frame: red right, green up, blue to us
    assert angles_between(read_back, normals.astype(np.float64), axis=-1).max() < 0.45


def test_green_is_turned_for_directx(tmp_path: Path) -> None:
    normals = constant((0.6, 0.48, 0.64))
    levels = {green: to_uint16(normals, green=green)[0, 0].tolist() for green in ("gl", "dx")}
    assert levels["gl"][0] == levels["dx"][0] and levels["gl"][2] == levels["dx"][2]
    assert levels["gl"][1] + levels["dx"][1] == 65535
    for green in ("gl", "dx"):
        output = OutputConfig(green=green)  # pyright: ignore[reportArgumentType]
        write_prediction({"normals": normals}, output_dir=tmp_path, stem=green, output=output, modality=NORMALS)
        assert png_pixels(tmp_path / f"{green}_normals.png")[0][0, 0].tolist() == levels[green]
    np.testing.assert_array_equal(np.load(tmp_path / "dx_normals.npy"), normals)  # numbers have a frame, not a green
    with pytest.raises(InvalidValueError, match="green=dx negates y"):
        output = OutputConfig(green="dx", normal_frame="opencv")
        write_prediction({"normals": normals}, output_dir=tmp_path, stem="c", output=output, modality=NORMALS)


def test_sixteen_bits_of_color_are_what_was_given(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    path = tmp_path / "deep.png"
    with path.open("wb") as file:
        save_png(file, pixels, {"openmarigold": '{"a": "record"}'})
    np.testing.assert_array_equal(png_pixels(path)[0], pixels)
    assert path.read_bytes().index(b"tEXtopenmarigold\0") < 100, "in the head, where results are recognized"


def test_frames_of_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    facts = {"_class_name": "MarigoldNormalsPipeline", "prediction_type": "normals"}
    assert modality_of_index(facts) is NORMALS
    for more, space in (
        ({}, "rub"),
        ({"normal_frame": "lub"}, "lub"),
        ({"use_full_z_range": False}, "rub, z in [0, 1]"),
        ({"normal_frame": "opencv", "use_full_z_range": True}, "opencv"),
    ):
        assert NORMALS.space_of({**facts, **more}) == space
        assert find_modality("normals", space).space == space


# Normals from depth.


def plane(normal: tuple[float, float, float], *, focal: float, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    """Depth of a plane with this normal (frame "rub"), 5 before the camera."""
    height, width = size
    x = (np.arange(width)[None] - (width - 1) / 2) / focal
    y = (np.arange(height)[:, None] - (height - 1) / 2) / focal
    right, up, back = unit_vectors(np.array(normal), axis=-1)
    return 5 / (back - right * x + up * y)  # of the ray (x, y, 1): -right·x + up·y + back is how much it meets it


@pytest.mark.parametrize("invariance", ["affine", "scale"])
def test_normals_of_a_model_of_depth(invariance: str) -> None:
    """A decoded plane gives its normal, if the field of view is right and, for affine depth, the assumed shift."""
    wanted = unit_vectors(np.array((0.2, 0.7, 0.6)), axis=-1)
    depth = plane((0.2, 0.7, 0.6), focal=Camera.from_fov((40, 56), 70.0).fx)
    source = DEPTH if invariance == "affine" else LOG_DEPTH
    if invariance == "affine":
        near, far = depth.min(), depth.max()
        shown = (depth - near) / (far - near) * 2 - 1
        assumed = (far - near) * ASSUMED_SHIFT - near  # what is added to the true depth by assuming this shift
        depth = depth + assumed
        exact, _ = normals_from_depth(depth, focal=Camera.from_fov((40, 56), 70.0).fx)
    else:
        shown = np.log(depth / depth.max()) / 2
        exact = np.broadcast_to(wanted, (40, 56, 3))
    derived = NORMALS.derivations["depth"](source, invariance, Camera.from_fov((40, 56), 70.0))
    stack = derived.from_decoded(shown[None, None])
    assert angles_between(np.moveaxis(stack, 0, -1), exact, axis=-1).max() < 0.05
    assert "70 degrees along the longer side" in derived.quantities[invariance]
    assert "side (assumed)" not in derived.quantities[invariance]
    unknown = NORMALS.derivations["depth"](source, invariance, Camera.assumed((40, 56)))
    assert "55 degrees along the longer side (assumed)" in unknown.quantities[invariance]


def test_a_depth_checkpoint_gives_normals(onnx_checkpoint: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(onnx_checkpoint, modality="normals")
    photo = make_photo(40, 56)
    prediction = predictor(photo, ensemble_size=3, processing_resolution=0)
    assert prediction.modality == "normals" and prediction.normals.shape == (40, 56, 3)
    np.testing.assert_allclose(np.square(prediction.normals).sum(axis=-1), 1, atol=1e-5)
    assert prediction.uncertainties["normals_uncertainty"].shape == (40, 56)
    assert prediction.settings["derived_from"] == "depth"
    saved = prediction.save(tmp_path, "x")
    assert "55 degrees along the longer side (assumed)" in read_provenance(saved[1])["quantity"]
    depth = Predictor.load(onnx_checkpoint)(photo, processing_resolution=0).depth
    alone = predictor(photo, processing_resolution=0).normals
    by_hand, _ = normals_from_depth(depth + ASSUMED_SHIFT, focal=Camera.from_fov((40, 56), 55.0).fx)
    assert np.median(angles_between(alone, by_hand, axis=-1)) < 0.1
    with pytest.raises(InvalidValueError, match="ensemble_reduction='median' does not fit surface normals"):
        predictor(photo, ensemble_reduction="median")


def test_what_a_checkpoint_cannot_give_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "normals"
    shutil.copytree(tiny_checkpoint, folder)
    edit_json(folder / "model_index.json", _class_name="MarigoldNormalsPipeline", prediction_type="normals")
    assert read_checkpoint(folder).modality is NORMALS and read_checkpoint(folder).invariance == "absolute"
    with pytest.raises(InvalidValueError, match="predicts surface normals, from which depth cannot be computed"):
        read_configured(ModelConfig(checkpoint=folder, modality=("depth",)))
    with pytest.raises(InvalidValueError, match="only `predict` and `serve` take several"):
        read_configured(ModelConfig(checkpoint=folder, modality=("depth", "normals")))


def test_deep_colors_are_written_without_copies_of_all(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (1000, 1000, 3)).astype(np.uint16)  # cannot be compressed
    with (tmp_path / "x.png").open("wb") as file:
        tracemalloc.start()
        try:
            save_png(file, pixels, {"note": "with a text"})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < pixels.nbytes
    content = (tmp_path / "x.png").read_bytes()
    assert [kind for kind, _ in png.Reader(bytes=content).chunks()][:3] == [b"IHDR", b"tEXt", b"IDAT"]
    np.testing.assert_array_equal(read_png(content), pixels)


# Several modalities at once.


def test_several_modalities_share_the_photo(
    onnx_checkpoint: Path, photo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openmarigold.predictor.run as run_module

    reads: list[Path] = []
    read = run_module.read_rgb
    monkeypatch.setattr(run_module, "read_rgb", lambda path, **rest: reads.append(path) or read(path, **rest))
    both = PredictConfig(checkpoint=onnx_checkpoint, modality=("depth", "normals"), processing_resolution=64)
    photos = sorted(path for path in photo_dir.iterdir() if path.suffix in (".png", ".jpg"))
    outcome = predict_files(photos, output_dir=tmp_path / "both", config=both)
    assert outcome.num_predicted == len(photos) and reads == photos
    for name in ("depth", "normals"):
        config = PredictConfig(checkpoint=onnx_checkpoint, modality=(name,), processing_resolution=64)
        predict_files(photos, output_dir=tmp_path / name, config=config)
        for path in sorted((tmp_path / name).glob("*.npy")):
            assert path.read_bytes() == (tmp_path / "both" / path.name).read_bytes()
    again = predict_files(photos, output_dir=tmp_path / "both", config=both)
    assert again.skipped == photos and not again.written
    # One of both is done: only the other is made.
    (tmp_path / "both" / f"{photos[0].stem}_normals.npy").unlink()
    again = predict_files(photos, output_dir=tmp_path / "both", config=both)
    assert {path.name for path in again.written} == {
        f"{photos[0].stem}{end}" for end in ("_normals.npy", "_normals.png", "_normals_colored.png")
    }


def test_a_photo_that_cannot_be_read_fails_once(onnx_checkpoint: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    config = PredictConfig(checkpoint=onnx_checkpoint, modality=("depth", "normals"))
    outcome = predict_files([bad], output_dir=tmp_path / "out", config=config)
    assert len(outcome.failed) == 1 and outcome.num_predicted == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [(line["modality"], line["status"]) for line in lines] == [("depth", "failed"), ("normals", "failed")]


def test_a_file_of_another_photo_with_a_name_that_meets_is_not_replaced(onnx_checkpoint: Path, tmp_path: Path) -> None:
    out, paths = tmp_path / "out", [tmp_path / "x.png", tmp_path / "x_normals.png"]
    for number, path in enumerate(paths):
        with path.open("wb") as file:
            save_png(file, make_photo(24, 32, seed=number), {})
    one = PredictConfig(checkpoint=onnx_checkpoint, processing_resolution=64)
    three = replace(one, ensemble_size=3)
    assert predict_files([paths[1]], output_dir=out, config=one).num_predicted == 1
    assert predict_files([paths[0]], output_dir=out, config=replace(three, modality=("normals",))).num_predicted == 1
    before = (out / "x_normals_uncertainty.npy").read_bytes()
    refused = predict_files([paths[1]], output_dir=out, config=three)  # the uncertainty of depth has the same name
    assert "x_normals_uncertainty.npy is there already" in refused.failed[0][1]
    assert (out / "x_normals_uncertainty.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("output", "stated"),
    [
        ({"normal_frame": "rub"}, None),
        ({"normal_frame": "lub"}, "normals_lub"),
        ({"normal_frame": "opencv", "format": ("png",)}, "normals_opencv"),
        ({"green": "dx", "format": ("png",)}, "normals with green down"),
        ({"green": "dx"}, None),  # of pictures alone
    ],
)
def test_saved_maps_that_state_another_frame_are_not_scored(
    output: dict[str, Any], stated: str | None, onnx_checkpoint: Path, tmp_path: Path
) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        save_png(file, make_photo(24, 32), {})
    config = PredictConfig(checkpoint=onnx_checkpoint, processing_resolution=64, modality=("normals",))
    predict_files([tmp_path / "x.png"], output_dir=tmp_path / "out", config=config, output=OutputConfig(**output))
    saved = SavedPredictions(tmp_path / "out", None, NORMALS)
    if stated is None:
        assert saved.read("x")["normals"].shape == (24, 32, 3)
        return
    with pytest.raises(DataError, match=f"the manifest says that it holds {stated}, not normals"):
        saved.read("x")
    if stated in NORMALS.spaces:
        assert SavedPredictions(tmp_path / "out", stated, NORMALS).read("x")["normals"].shape == (24, 32, 3)
