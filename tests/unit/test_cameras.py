# SPDX-License-Identifier: Apache-2.0
"""The camera of every prediction: which source wins, where it is stated, and what follows from it."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analytic_rooms import Room, make_room
from openmarigold.camera import Camera
from openmarigold.cli import run
from openmarigold.config import CallConfig, OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.geometry import angles_between, normals_from_depth
from openmarigold.images.exif import Photo, read_metadata
from openmarigold.modalities.normals import ASSUMED_SHIFT
from openmarigold.predictor import Predictor
from openmarigold.predictor.cameras import CameraEstimator, camera_facts, choose_camera
from openmarigold.predictor.run import predict_files
from openmarigold.results.prediction import Prediction
from openmarigold.results.provenance import read_provenance
from tiny import make_photo

SIZE = (48, 64)
EXIF_FOCAL = 50 * 80 / 43.26661531  # of 50 mm by the diagonal of 48x64


def write_jpeg(path: Path, mm: int | None = 50, size: tuple[int, int] = SIZE, seed: int = 0, **tags: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = tags.get("orientation", 1)
    if mm is not None:
        exif[0x8769] = {0xA405: mm}
    Image.fromarray(make_photo(*size, seed=seed)).save(path, quality=95, exif=exif)
    return path


@pytest.fixture(scope="module")
def predictor(onnx_checkpoint: Path) -> Predictor:
    return Predictor.load(onnx_checkpoint)


def test_the_surest_source_wins(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "photo.jpg")
    with_exif = Photo(rgb=make_photo(*SIZE), metadata=read_metadata(path))
    without = Photo(rgb=make_photo(*SIZE))
    (tmp_path / "k.json").write_text('{"fx": 70, "fy": 71, "cx": 30, "cy": 20}')
    given = Camera.from_focal(SIZE, 80.0, source="file")
    from_file = CallConfig(camera_file=tmp_path / "k.json")
    for photo, config, camera, wanted in (
        (with_exif, CallConfig(), given, ("file", 80.0)),
        (with_exif, from_file, None, ("file", 70.0)),
        (with_exif, CallConfig(focal_px=90.0), None, ("focal_px", 90.0)),
        (with_exif, CallConfig(fov=90.0), None, ("fov", 32.0)),
        (with_exif, CallConfig(), None, ("exif", EXIF_FOCAL)),
        (without, CallConfig(), None, ("assumed", 61.4714)),  # 32 / tan(27.5 degrees)
    ):
        found = choose_camera(photo, config, camera)
        assert (found.source, found.fx) == (wanted[0], pytest.approx(wanted[1])) and found.size == SIZE
    for config, name in ((from_file, "camera_file"), (CallConfig(fov=60.0), "fov")):
        with pytest.raises(InvalidValueError, match=f"camera and {name} state the same thing; give one of them"):
            choose_camera(without, config, given)
    with pytest.raises(InvalidValueError, match=re.escape("focal_px is 2, a field of view of 172.8 degrees for 64")):
        choose_camera(without, CallConfig(focal_px=2.0))


def test_a_prediction_carries_camera_and_photo(predictor: Predictor, tmp_path: Path) -> None:
    turned = write_jpeg(tmp_path / "turned.jpg", orientation=6)
    rgb = make_photo(*SIZE)
    for form in (turned, turned.read_bytes(), Image.open(turned)):
        prediction = predictor(form)
        assert prediction.camera.size == prediction.depth.shape == (64, 48)
        assert prediction.camera.source == "exif" and prediction.camera.fx == pytest.approx(EXIF_FOCAL)
        assert prediction.settings["camera"] == prediction.camera.to_dict()
        assert prediction.rgb.shape == (64, 48, 3)
    plain = predictor(rgb)
    assert plain.camera.source == "assumed" and plain.camera.fov == pytest.approx(55)
    np.testing.assert_array_equal(plain.rgb, rgb)
    focal = Camera.from_focal((96, 128), 100.0)
    assert predictor(rgb, camera=focal).camera.fx == 50
    assert predictor(rgb, camera=focal).camera.note == "scaled from 128x96"
    with pytest.raises(InvalidValueError, match="another shape"):
        predictor(rgb, camera=Camera.from_focal((64, 48), 50.0))
    assert pickle.loads(pickle.dumps(predictor))(rgb).camera == plain.camera


def test_photos_of_a_list_have_their_own_cameras(predictor: Predictor, tmp_path: Path) -> None:
    rgb = make_photo(*SIZE)
    paths = [write_jpeg(tmp_path / f"{mm}.jpg", mm, seed=mm) for mm in (24, 50)]
    found = predictor([paths[0], rgb, paths[1]])
    assert [one.camera.source for one in found] == ["exif", "assumed", "exif"]
    assert found[0].camera.fx * 50 / 24 == pytest.approx(found[2].camera.fx) == pytest.approx(EXIF_FOCAL)
    known = Camera.from_focal(SIZE, 99.0)
    assert [one.camera.fx for one in predictor([rgb, paths[1]], camera=[known, None])] == pytest.approx(
        [99, EXIF_FOCAL]
    )
    assert [one.camera.fx for one in predictor([rgb, rgb], camera=known)] == [99, 99]
    for camera, photos in (([known], [rgb, rgb]), ([known, known], rgb)):
        with pytest.raises(InvalidValueError, match=f"{len(camera)} cameras were given for {3 - len(camera)} photos"):
            predictor(photos, camera=camera)


@pytest.mark.parametrize("mirror", [False, True])
def test_normals_from_depth_follow_the_photos_camera(
    onnx_checkpoint: Path, tmp_path: Path, mirror: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXIF, centers outside of the middle, photos side by side in a batch, and members that see the mirrored photo."""
    normals = Predictor.load(onnx_checkpoint, modality="normals")
    depth = Predictor.load(onnx_checkpoint)
    for one in (normals, depth):
        monkeypatch.setattr(one.engine, "max_batch_size", None)
        monkeypatch.setattr(one.engine, "fitting_batch_size", lambda height, width: 4)
    paths = [write_jpeg(tmp_path / f"{mm}.jpg", mm, seed=mm) for mm in (24, 85)]
    aside = Camera(fx=60.0, fy=66.0, cx=10.0, cy=40.0, width=64, height=48)
    cameras = [None, None, aside]
    options: dict[str, Any] = {"processing_resolution": 0, "num_inference_steps": 1}
    options |= {"ensemble_size": 2, "ensemble_mirror": True, "ensemble_reduction": "mean"} if mirror else {}
    found = normals([*paths, make_photo(*SIZE)], camera=cameras, **options)
    wanted_fov = [2 * np.degrees(np.arctan(32 / (mm * 80 / 43.26661531))) for mm in (24, 85)]
    for one, fov in zip(found[:2], wanted_fov, strict=True):
        assert (
            f"field of view {fov:.4g} degrees along the longer side (of the photo's metadata)"
            in one.settings["quantity"]
        )
    if mirror:
        return  # below
    maps = depth([*paths, make_photo(*SIZE)], **options)
    for one, relief, (fx, fy, cx, cy) in zip(
        found,
        maps,
        [*((mm * 80 / 43.26661531,) * 2 + (31.5, 23.5) for mm in (24, 85)), (60.0, 66.0, 10.0, 40.0)],
        strict=True,
    ):
        by_hand, _ = normals_from_depth(relief.depth + ASSUMED_SHIFT, focal=(fx, fy), center=(cx, cy))
        assert np.median(angles_between(one.normals, by_hand, axis=-1)) < 0.01
    assert np.median(angles_between(found[2].normals, normals(make_photo(*SIZE), **options).normals, axis=-1)) > 1


def test_a_mirrored_member_has_the_mirrored_camera(onnx_checkpoint: Path) -> None:
    """A photo that is its own mirror image, seen by a camera whose center lies aside, as by the mirrored camera."""
    predictor = Predictor.load(onnx_checkpoint, modality="normals")
    half = make_photo(48, 32)
    photo = np.concatenate([half, half[:, ::-1]], axis=1)
    camera = Camera(fx=60.0, fy=60.0, cx=10.0, cy=20.0, width=64, height=48)
    noise = np.zeros((2, 8, 6, 8), np.float32)
    options: dict[str, Any] = {"processing_resolution": 0, "num_inference_steps": 1, "ensemble_reduction": "mean"}
    options |= {"ensemble_size": 2, "ensemble_mirror": True, "latents": noise}
    straight, mirrored = (predictor(photo, camera=one, **options).normals for one in (camera, camera.mirrored()))
    np.testing.assert_allclose(straight[:, ::-1] * [-1, 1, 1], mirrored, atol=1e-4)
    assert np.abs(straight - mirrored).max() > 0.05


def test_every_file_states_the_camera(onnx_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    photos = [write_jpeg(tmp_path / "known.jpg"), write_jpeg(tmp_path / "unknown.jpg", mm=None, seed=1)]
    output = OutputConfig(format=("npy", "png", "npz", "exr"), uncertainty_picture=True)
    config = PredictConfig(checkpoint=onnx_checkpoint, ensemble_size=2)
    result = predict_files(photos, output_dir=tmp_path / "out", config=config, output=output)
    assert len(result.written) == 2 * 7
    for path in result.written:
        camera = read_provenance(path)["camera"]
        known = path.name.startswith("known")
        assert camera["source"] == ("exif" if known else "assumed")
        assert camera["fx"] == pytest.approx(EXIF_FOCAL if known else 61.4714, abs=1e-3)
        assert (camera["width"], camera["height"], camera["cx"], camera["cy"]) == (64, 48, 31.5, 23.5)
        assert ("fov" in camera) and Camera.from_dict(camera).size == SIZE
    saved = Predictor.load(onnx_checkpoint)(photos[0]).save(tmp_path / "saved", "x")
    assert read_provenance(saved[1])["camera"]["source"] == "exif"


def test_other_cameras_make_other_results(onnx_checkpoint: Path, tmp_path: Path) -> None:
    photo = write_jpeg(tmp_path / "photo.jpg")
    camera_file = tmp_path / "k.json"
    camera_file.write_text('{"fx": 70}')

    def outcome(**settings: Any) -> tuple[int, int]:
        config = PredictConfig(checkpoint=onnx_checkpoint, num_inference_steps=1, **settings)
        result = predict_files(photo, output_dir=tmp_path / "out", config=config)
        assert not result.failed
        return len(result.skipped), len(result.renewed)

    assert outcome() == (0, 0)
    for settings in ({"fov": 60.0}, {"fov": 61.0}, {"focal_px": 60.0}, {"camera_file": camera_file}, {}):
        assert outcome(**settings) == (0, 1)
        assert outcome(**settings) == (1, 0)
    assert outcome(camera_file=camera_file) == (0, 1)
    camera_file.write_text('{"fx": 75}')
    assert outcome(camera_file=camera_file) == (0, 1)
    moved = camera_file.rename(tmp_path / "other.json")
    assert outcome(camera_file=moved) == (1, 0)
    write_jpeg(photo, mm=24)  # metadata are bytes of the photo
    assert outcome(camera_file=moved) == (0, 1)


def test_wrong_cameras_are_errors_before_or_of_their_photo(onnx_checkpoint: Path, tmp_path: Path) -> None:
    photos = [write_jpeg(tmp_path / "a.jpg"), write_jpeg(tmp_path / "b.jpg", size=(48, 48))]
    (tmp_path / "k.json").write_text('{"fx": 70, "width": 128, "height": 96}')
    config = PredictConfig(checkpoint=onnx_checkpoint, camera_file=tmp_path / "k.json")
    result = predict_files(photos, output_dir=tmp_path / "out", config=config)
    ((failed, message),) = result.failed
    assert failed == photos[1] and "the photo has another shape, 48x48" in message and "k.json" in message
    assert result.num_predicted == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    done = next(line for line in lines if line["status"] == "done")
    assert done["notes"] == [f"{photos[0]}: camera of the file: scaled from 128x96"]
    (tmp_path / "k.json").write_text('{"fx": 0}')
    with pytest.raises(InvalidValueError, match="fx is 0; a focal length is above 0"):
        predict_files(photos, output_dir=tmp_path / "out", config=config)


def test_the_command_line(
    onnx_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, out = write_jpeg(tmp_path / "photo.jpg"), tmp_path / "out"
    words = ["predict", str(photo), "-o", str(out), "--checkpoint", str(onnx_checkpoint), "--num-inference-steps", "1"]
    assert run([*words, "--fov", "70"]) == 0
    assert read_provenance(out / "photo_depth.npy")["camera"]["fov"] == 70
    assert run([*words, "--focal-px", "70"]) == 0
    assert read_provenance(out / "photo_depth.npy")["camera"]["fx"] == 70
    (tmp_path / "k.txt").write_text("75 76 30 20")
    assert run([*words, "--camera-file", str(tmp_path / "k.txt")]) == 0
    assert read_provenance(out / "photo_depth.png")["camera"]["fy"] == 76
    assert run([*words, "--modality", "normals"]) == 0
    assert "(of the photo's metadata)" in read_provenance(out / "photo_normals.png")["quantity"]
    capsys.readouterr()
    assert run([*words, "--fov", "70", "--focal-px", "70"]) == 2
    assert "fov and focal_px state the same thing; give one of them" in capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        run(["predict", "--help"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 48 and "--focal-px" not in shown


def test_notes_about_metadata_stand_in_the_manifest(onnx_checkpoint: Path, tmp_path: Path) -> None:
    photo = write_jpeg(tmp_path / "photo.jpg", mm=6000)
    result = predict_files(photo, output_dir=tmp_path / "out", config=PredictConfig(checkpoint=onnx_checkpoint))
    assert not result.failed
    last = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[-1])
    assert last["notes"][0].startswith(f"{photo} states a focal length of 6000 mm in terms of 35 mm film, which no")
    assert last["provenance"]["camera"]["source"] == "assumed"


class OneRoom:
    """The place of a model of normals: gives those of a room."""

    def __init__(self, room: Room) -> None:
        self.room, self.seen = room, []

    def __call__(self, rgb: np.ndarray, **options: Any) -> Any:
        self.seen.append(rgb)
        return Prediction(maps={"normals": self.room.normals.astype(np.float32)})


@pytest.mark.parametrize("invariance", ["affine", "scale", "absolute"])
def test_estimates_in_a_known_room(invariance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact depth and normals give field of view and shift; a known camera stays."""
    room = make_room(3, size=(96, 128), fov=70.0)
    low, high = float(room.depth.min()), float(room.depth.max())
    relief = room.depth.astype(np.float32) / np.float32(high)
    if invariance == "affine":
        relief = (room.depth.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    model = OneRoom(room)
    estimator = CameraEstimator()
    monkeypatch.setattr(CameraEstimator, "_model", lambda self, config, device: model)
    rgb = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    settings: dict[str, Any] = {"invariance": invariance, "config": CallConfig(), "device": "cpu"}
    camera, facts = estimator.estimate(relief, rgb, camera=Camera.assumed((96, 128)), **settings)
    assert camera.source == "estimated" and camera.size == (96, 128)
    assert camera.fov == pytest.approx(70, abs=2)
    assert camera.note.startswith("from depth and normals, field of view +-")
    assert 0.5 < facts["camera_confidence"] <= 1
    np.testing.assert_array_equal(model.seen[0], rgb)
    known = Camera.from_fov((96, 128), 70.0)
    kept, of_shift = estimator.estimate(relief, rgb, camera=known, **settings)
    assert kept is known
    if invariance == "affine":
        for found in (facts, of_shift):
            assert found["shift_source"] == "estimated"
            assert found["shift"] == pytest.approx(low / (high - low), rel=0.1)
    else:
        assert "shift" not in facts and of_shift == {} and len(model.seen) == 1


def test_what_cannot_be_estimated_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall that faces the camera tells nothing."""
    room = make_room(3, size=(96, 128))
    wall = replace(room, normals=np.broadcast_to(np.array([0.0, 0.0, 1.0]), (96, 128, 3)))
    monkeypatch.setattr(CameraEstimator, "_model", lambda self, config, device: OneRoom(wall))
    rgb = np.zeros((96, 128, 3), np.uint8)
    settings: dict[str, Any] = {"invariance": "affine", "config": CallConfig(), "device": "cpu"}
    relief = np.full((96, 128), 0.5, np.float32)
    camera, facts = CameraEstimator().estimate(relief, rgb, camera=Camera.assumed((96, 128)), **settings)
    assert camera.source == "assumed" and camera.fov == pytest.approx(55)
    assert camera.note.startswith("not estimated: ")
    assert facts["shift_source"] == "assumed" and facts["camera_confidence"] < 0.5


def test_estimates_with_the_embedded_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Depth and normals of the package; photos that state their camera need no estimate, as depth is up to scale."""
    photo = Path(__file__).parents[2] / "examples" / "photos"
    pixels = Image.open(min(photo.glob("*.jpg"))).convert("RGB").resize((320, 240))
    pixels.save(tmp_path / "unknown.png")
    exif = Image.Exif()
    exif[0x8769] = {0xA405: 28}
    pixels.save(tmp_path / "known.jpg", exif=exif)
    config = PredictConfig(estimate_camera=True)
    photos = [tmp_path / "unknown.png", tmp_path / "known.jpg"]
    result = predict_files(photos, output_dir=tmp_path / "out", config=config)
    assert not result.failed
    unknown, known = (read_provenance(tmp_path / "out" / f"{name}_depth.png") for name in ("unknown", "known"))
    assert unknown["camera"]["source"] in ("estimated", "assumed") and unknown["camera"]["note"]
    assert 0 <= unknown["camera_confidence"] <= 1 and unknown["estimate_camera"] is True
    assert known["camera"]["source"] == "exif" and "camera_confidence" not in known
    assert predict_files(photos, output_dir=tmp_path / "out", config=config).skipped == photos
    again = predict_files(photos, output_dir=tmp_path / "out", config=PredictConfig())
    assert again.renewed == photos
    normals = Predictor.load(modality="normals")
    assert normals(np.asarray(pixels), estimate_camera=True).camera.source == "assumed"
    assert "estimate_camera has no effect on surface normals: it needs predicted depth" in caplog.text


def test_a_checkpoint_of_normals_for_estimates(onnx_checkpoint: Path, tmp_path: Path) -> None:
    depth = Predictor.load(onnx_checkpoint)
    rgb = make_photo(*SIZE)
    found = depth(rgb, estimate_camera=True, normals_checkpoint=onnx_checkpoint)  # whose normals follow from depth
    assert found.settings["shift_source"] in ("estimated", "assumed") and "camera_confidence" in found.settings
    facts = camera_facts(CallConfig(estimate_camera=True, normals_checkpoint=onnx_checkpoint))
    assert facts != camera_facts(CallConfig(estimate_camera=True)) and facts["estimate_camera"] is True
