# SPDX-License-Identifier: Apache-2.0
"""One photo: the kinds of input, ensembles, guides, what is refused, and the prediction that comes out."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from openmarigold.camera import Camera
from openmarigold.config import CallConfig, PredictConfig
from openmarigold.errors import ImageError, InvalidValueError, NumericalError, OutputError
from openmarigold.predictor import Predictor, intervals
from openmarigold.predictor.pipeline import pipeline
from openmarigold.predictor.run import predict_files
from openmarigold.predictor.sampling import Step
from openmarigold.results.prediction import Prediction
from openmarigold.results.provenance import read_provenance
from tiny import edit_json, make_photo


@pytest.fixture(scope="module")
def predictor(onnx_checkpoint: Path) -> Predictor:
    return Predictor.load(onnx_checkpoint)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 70), (8, 8), (3, 5), (1, 1), (9, 200), (200, 9)])
def test_depth_has_the_photos_size(predictor: Predictor, size: tuple[int, int]) -> None:
    for processing_resolution in (0, 64):
        prediction = predictor(make_photo(*size), processing_resolution=processing_resolution)
        assert prediction.depth.shape == size
        assert prediction.depth.dtype == np.float32
        assert prediction.depth.min() >= 0
        assert prediction.depth.max() <= 1
        assert prediction.uncertainty is None


def test_inputs_of_all_kinds_are_equal(predictor: Predictor, tmp_path: Path) -> None:
    rgb = make_photo(40, 56)
    path = tmp_path / "photo.png"
    Image.fromarray(rgb).save(path)
    expected = predictor(rgb).depth
    for same in (path, str(path), Image.fromarray(rgb), rgb.astype(np.uint16) * 257, rgb / 255):
        np.testing.assert_array_equal(predictor(same).depth, expected)


def test_a_list_gives_the_results_of_its_photos(predictor: Predictor) -> None:
    photos = [make_photo(48, 64, seed=1), make_photo(50, 70, seed=2), make_photo(64, 64, seed=3)]
    together = predictor(photos, ensemble_size=2)
    assert isinstance(together, list)
    for photo, prediction in zip(photos[::-1], together[::-1], strict=True):
        np.testing.assert_array_equal(predictor(photo, ensemble_size=2).depth, prediction.depth)
    assert predictor([]) == []


@pytest.mark.parametrize("fixture", ["onnx_checkpoint", "tiny_checkpoint", "kl_checkpoint"])
def test_batch_size_never_changes_a_byte(request: pytest.FixtureRequest, fixture: str) -> None:
    predictor = Predictor.load(request.getfixturevalue(fixture), device="cpu")
    rgb = make_photo(50, 70)
    results = [predictor(rgb, ensemble_size=5, batch_size=batch_size) for batch_size in (1, 2, 5, 64)]
    for result in results[1:]:
        assert result.depth.tobytes() == results[0].depth.tobytes()
        assert result.uncertainty.tobytes() == results[0].uncertainty.tobytes()


def test_members_are_the_first_of_a_larger_ensemble(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, seen = make_photo(48, 64), []

    def to_engine(array: np.ndarray) -> np.ndarray:
        seen.append(array.tobytes())
        return array

    monkeypatch.setattr(predictor.engine, "to_engine", to_engine)
    predictor(rgb)
    predictor(rgb, ensemble_size=3)
    predictor(rgb, seed=1)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4


def test_each_lcm_step_takes_noise_of_its_own(
    onnx_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(onnx_checkpoint, tmp_path / "lcm"))
    lcm = {"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False}
    edit_json(copied / "scheduler" / "scheduler_config.json", **lcm)
    predictor, seen = Predictor.load(copied), []

    def to_engine(array: np.ndarray) -> np.ndarray:
        seen.append(array.tobytes())
        return array

    monkeypatch.setattr(predictor.engine, "to_engine", to_engine)
    predictor(make_photo(48, 64), num_inference_steps=3)
    assert len(seen) == len(set(seen)) == 3


def test_the_image_is_encoded_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(name: str) -> Any:
        method = getattr(predictor.engine, name)

        def counted(*args: Any, **named: Any) -> Any:
            calls.append(name)
            return method(*args, **named)

        return counted

    for name in ("encode", "denoise", "decode"):
        monkeypatch.setattr(predictor.engine, name, count(name))
    predictor(make_photo(48, 64), ensemble_size=3, num_inference_steps=2)
    assert (calls.count("encode"), calls.count("denoise"), calls.count("decode")) == (1, 6, 3)


def test_seed_and_photo_change_the_noise(predictor: Predictor) -> None:
    rgb = make_photo(48, 64)
    other = rgb.copy()
    other[0, 0, 0] ^= 1
    depth = predictor(rgb).depth
    np.testing.assert_array_equal(predictor(rgb).depth, depth)
    assert not np.array_equal(predictor(rgb, seed=1).depth, depth)
    assert not np.allclose(predictor(other).depth, depth, atol=1e-3)


def test_ensemble_has_uncertainty(predictor: Predictor) -> None:
    prediction = predictor(make_photo(50, 70), ensemble_size=4)
    assert prediction.uncertainty is not None
    assert prediction.uncertainty.shape == prediction.depth.shape == (50, 70)
    assert prediction.uncertainty.dtype == np.float32
    assert prediction.uncertainty.min() >= 0
    assert prediction.uncertainty.max() > 0


def test_settings_are_resolved(predictor: Predictor) -> None:
    settings = predictor(make_photo(48, 64)).settings
    assert settings == {
        "checkpoint": "tiny-8-onnx",
        "invariance": "affine",
        "num_inference_steps": 2,
        "ensemble_size": 1,
        "num_members": 1,
        "processing_resolution": 64,
        "seed": 2024,
        "timestep_spacing": "trailing",
        "start_noise": "gaussian",
        "final_step": "reference",
        "engine": "onnx",
        "device": "cpu",
        "dtype": "float32",
        "camera": Camera.assumed((48, 64)).to_dict(),
    }
    clean = predictor(make_photo(48, 64), final_step="clean", num_inference_steps=1)
    assert isinstance(clean, Prediction)
    assert (clean.settings["final_step"], clean.settings["num_inference_steps"]) == ("clean", 1)


def test_refuses(predictor: Predictor, onnx_checkpoint: Path, tmp_path: Path) -> None:
    rgb = make_photo(48, 64)
    with pytest.raises(InvalidValueError, match="ensemble_size=0 is not accepted"):
        predictor(rgb, ensemble_size=0)
    with pytest.raises(InvalidValueError, match="processing_resolution=770 is not a multiple of 8; try 768"):
        predictor(rgb, processing_resolution=770)
    with pytest.raises(InvalidValueError, match=r"latents has shape \[1, 4, 6, 8\]; .* it is \[1, 8, 6, 8\]"):
        predictor(rgb, latents=np.zeros((1, 4, 6, 8), np.float32))
    with pytest.raises(InvalidValueError, match="latents holds values that are not finite"):
        predictor(rgb, latents=np.full((1, 8, 6, 8), np.nan))
    with pytest.raises(InvalidValueError, match="latents was given with a list"):
        predictor([rgb], latents=np.zeros((1, 8, 6, 8), np.float32))
    with pytest.raises(ImageError, match="does not exist"):
        predictor(tmp_path / "missing.png")
    with pytest.raises(InvalidValueError, match="device='cuda' does not run ONNX networks"):
        Predictor.load(onnx_checkpoint, device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_refuses_a_device_that_is_not_there(tiny_checkpoint: Path) -> None:
    with pytest.raises(InvalidValueError, match="device='cuda' is not available to torch"):
        Predictor.load(tiny_checkpoint, device="cuda")


def test_damaged_weights_do_not_become_a_depth_map(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "not-finite"
    shutil.copytree(tiny_checkpoint, directory)
    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.bias"] = torch.full_like(weights["conv_in.bias"], float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"the U-Net of checkpoint not-finite .* not finite; .*checkpoint verify"):
        Predictor.load(directory, device="cpu")(make_photo(48, 64))


def test_early_stop_uses_the_first_members_whatever_the_batch_size(tiny_checkpoint: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint, device="cpu")
    rgb = make_photo(48, 64)
    every = predictor(rgb, ensemble_size=8)
    assert every.settings["num_members"] == 8
    depths = [predictor(rgb, ensemble_size=count).depth for count in range(2, 9)]
    changes = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(depths)]
    tolerance = 1.001 * changes[1]  # of the third and the fourth member
    expected = next(count for count, change in enumerate(changes, start=3) if change < tolerance)
    assert 3 <= expected <= 4
    predictor.engine.max_batch_size = None  # as on a GPU; the networks are the same
    results = [
        predictor(rgb, ensemble_size=8, ensemble_tolerance=tolerance, batch_size=batch_size) for batch_size in (1, 3, 8)
    ]
    for result in results:
        assert result.settings["num_members"] == expected
        np.testing.assert_allclose(result.depth, depths[expected - 2], atol=1e-5)
    never = predictor(rgb, ensemble_size=4, ensemble_tolerance=1e-9)
    assert never.settings["num_members"] == 4
    np.testing.assert_allclose(never.depth, predictor(rgb, ensemble_size=4).depth, atol=1e-6)


def test_early_stop_gives_the_same_bytes_in_any_batch_on_a_cpu(predictor: Predictor) -> None:
    rgb = make_photo(50, 70)
    results = [
        predictor(rgb, ensemble_size=6, ensemble_tolerance=0.02, batch_size=batch_size) for batch_size in (1, 2, 5)
    ]
    assert len({result.depth.tobytes() for result in results}) == 1
    assert len({result.settings["num_members"] for result in results}) == 1


def test_arrays_and_tensors_in_any_layout_are_the_same_photo(predictor: Predictor) -> None:
    torch = pytest.importorskip("torch")
    rgb = make_photo(24, 32)
    expected = predictor(rgb).depth.tobytes()
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    for one in (planes, torch.from_numpy(planes), torch.from_numpy(rgb), planes.astype(np.float32) / 255):
        assert predictor(one).depth.tobytes() == expected
    for batch in (np.stack([rgb, rgb]), np.stack([planes, planes]), torch.from_numpy(np.stack([planes, planes]))):
        found = predictor(batch)
        assert isinstance(found, list)
        assert [one.depth.tobytes() for one in found] == [expected] * 2
    with pytest.raises(InvalidValueError, match=r"may be \[h w c\] or \[c h w\]"):
        predictor(torch.zeros((3, 24, 3), dtype=torch.uint8))


def test_a_prediction_saves_shows_and_names_itself(predictor: Predictor, tmp_path: Path) -> None:
    prediction = predictor(make_photo(24, 32), ensemble_size=3)
    paths = prediction.save(str(tmp_path), "cat")
    assert [path.name for path in paths] == [
        "cat_depth.npy",
        "cat_depth.png",
        "cat_depth_colored.png",
        "cat_uncertainty.npy",
    ]
    np.testing.assert_array_equal(np.load(paths[0]), prediction.depth)
    record = read_provenance(paths[1])
    assert record["seed"] == 2024 and record["quantity"].startswith("affine depth")
    with pytest.raises(OutputError, match="exists"):
        prediction.save(tmp_path, "cat")
    np.testing.assert_array_equal(np.asarray(prediction.picture()), np.asarray(Image.open(paths[2])))
    shown = repr(prediction)
    assert "depth [24, 32]" in shown and "uncertainty [24, 32]" in shown and "array(" not in shown
    with pytest.raises(AttributeError, match="has no attribute 'albedo'"):
        _ = prediction.albedo
    latent = prediction.latent
    assert latent is not None and latent.shape == (3, predictor.engine.latent_channels, 6, 8)
    decoded = predictor.engine.decode(predictor.engine.to_engine(latent[:1]))
    assert decoded.shape == (1, 1, 1, 48, 64)


def test_a_guide_sees_every_step_and_may_change_the_latents(predictor: Predictor) -> None:
    rgb, seen = make_photo(24, 32), []

    def look(latent: Any, step: Step) -> Any:
        seen.append((step.number, step.num_steps, step.timestep, latent.shape))
        return latent

    plain = predictor(rgb, num_inference_steps=3)
    assert predictor(rgb, num_inference_steps=3, guide=look).depth.tobytes() == plain.depth.tobytes()
    assert [(number, count) for number, count, *_ in seen] == [(0, 3), (1, 3), (2, 3)]
    assert [timestep for _, _, timestep, _ in seen] == predictor.checkpoint.schedule.timesteps(3)
    guided = predictor(rgb, num_inference_steps=3, guide=lambda latent, step: 0.5 * latent)
    assert guided.depth.tobytes() != plain.depth.tobytes()


def test_a_guide_may_run_the_network_itself(predictor: Predictor) -> None:
    rgb, engine, members = make_photo(24, 32), predictor.engine, []

    def ahead(latent: Any, step: Step) -> Any:
        members.append((step.members, step.mirrored))
        return latent, engine.denoise(step.rgb_latent, latent, timestep=step.timestep)

    call: dict[str, Any] = {"num_inference_steps": 2, "ensemble_size": 2, "ensemble_mirror": True}
    assert predictor(rgb, guide=ahead, **call).depth.tobytes() == predictor(rgb, **call).depth.tobytes()
    assert members == [((0,), False), ((0,), False), ((1,), True), ((1,), True)]
    # What it returns is taken as it is: in one step from pure noise the map is that of the output alone.
    one = predictor(rgb, num_inference_steps=1, final_step="clean").latent
    other = predictor(
        rgb, num_inference_steps=1, final_step="clean", guide=lambda latent, step: (latent, 0 * latent)
    ).latent
    assert one is not None and other is not None and np.abs(one).max() > 0 and np.abs(other).max() == 0


def test_the_pipeline_has_the_keys_of_transformers(onnx_checkpoint: Path) -> None:
    torch = pytest.importorskip("torch")
    estimate, rgb = pipeline("depth-estimation", model=str(onnx_checkpoint)), make_photo(24, 32)
    found, again = estimate(rgb), estimate([rgb, rgb], num_inference_steps=1)
    assert isinstance(found, dict) and isinstance(again, list) and len(again) == 2
    assert found.keys() == {"predicted_depth", "depth"}
    assert found["predicted_depth"].shape == (24, 32) and found["depth"].size == (32, 24)
    np.testing.assert_array_equal(np.asarray(found["depth"]), np.rint(255 * found["predicted_depth"]).astype(np.uint8))
    for device in (-1, torch.device("cpu")):
        assert pipeline(model=onnx_checkpoint, device=device)(rgb)["depth"] == found["depth"]
    with pytest.raises(InvalidValueError, match="device='cuda:0' does not run ONNX networks"):
        pipeline(model=onnx_checkpoint, engine="onnx", device=0)
    with pytest.raises(InvalidValueError, match="task='image-to-text' is not known; use 'depth-estimation'"):
        pipeline("image-to-text")


def test_from_pretrained_is_load(onnx_checkpoint: Path) -> None:
    assert Predictor.from_pretrained(onnx_checkpoint).checkpoint == Predictor.load(onnx_checkpoint).checkpoint


@pytest.mark.parametrize(
    "wrong",
    [
        lambda latent: None,
        lambda latent: latent[:, :1],
        lambda latent: latent.astype(np.float64),
        list,
        lambda latent: (latent, None),
        lambda latent: (latent, latent[:, :1]),
    ],
)
def test_a_guide_that_returns_something_else_is_refused(predictor: Predictor, wrong: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"the guide returned .* is needed"):
        predictor(make_photo(24, 32), guide=lambda latent, step: wrong(latent))


def test_types_that_annotations_do_not_know(onnx_checkpoint: Path) -> None:
    """In a process of its own: here annotations are checked. NumPy's numbers are accepted, other things refused."""
    code = """
import sys
import numpy as np
from openmarigold import Predictor
from openmarigold.camera import Camera
from openmarigold.config import CallConfig, OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.geometry import normals_from_depth

predictor = Predictor.load(sys.argv[1])
rgb = np.zeros((48, 64, 3), np.uint8)
prediction = predictor(rgb, ensemble_size=np.int64(1), seed=np.int32(2), latents=np.zeros((1, 8, 6, 8)).tolist())
assert len(prediction.points(max_points=np.int64(9), drop_far=np.float32(0.1))) <= 9
assert abs(Camera.from_fov((48, 64), np.float32(70)).fx - Camera.from_fov((48, 64), 70.0).fx) < 1e-3
assert len(normals_from_depth(np.ones((48, 64)), focal=np.float32(50))) == 2
assert OutputConfig(format="npy").format == ("npy",) and PredictConfig(modality="normals").modality == ("normals",)
shape = predictor.latent_shape((48, 64), CallConfig(seed=3))
assert shape == predictor.latent_shape((48, 64), predictor.resolve(CallConfig())) == (8, 6, 8)
for name, refused in {
    "fov=True": lambda: Camera.from_fov((48, 64), True),
    "latents must be an array of numbers": lambda: predictor(rgb, latents="noise"),
    "background=None": lambda: predictor(rgb, background=None),
    "background=(255, 255, 255)": lambda: predictor(rgb, background=(255, 255, 255)),
    "ensemble_tolerance='0.1'": lambda: predictor(rgb, ensemble_size=2, ensemble_tolerance="0.1"),
    "camera={'fx': 1}": lambda: predictor(rgb, camera={"fx": 1}),
    "camera=3": lambda: predictor([rgb, rgb], camera=[None, 3]),
    "modality=3": lambda: Predictor.load(sys.argv[1], modality=3),
    "color_map=3": lambda: OutputConfig(color_map=3),
}.items():
    try:
        refused()
    except InvalidValueError as error:
        assert str(error).startswith(name), error
    else:
        raise SystemExit(f"{name} is accepted")
"""
    done = subprocess.run([sys.executable, "-c", code, onnx_checkpoint], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_intervals_are_looked_up_once_for_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.load()
    looked_up: list[CallConfig] = []

    def choose(checkpoint: object, config: CallConfig, **_: object) -> None:
        looked_up.append(config)

    monkeypatch.setattr(intervals, "choose_interval", choose)
    for seed in range(3):
        predictor(make_photo(48, 64), interval=0.9, seed=seed)
    assert len(looked_up) == 1


def test_a_prediction_becomes_a_dict(predictor: Predictor) -> None:
    prediction = predictor(make_photo(24, 32))
    assert asdict(prediction)["maps"]["depth"].shape == (24, 32)
    assert pickle.loads(pickle.dumps(prediction)).depth.tobytes() == prediction.depth.tobytes()


def test_a_prediction_is_shown_as_predict_shows_it(tmp_path: Path) -> None:
    """Of the embedded model, whose depth is a variant: colored by its logarithm."""
    Image.fromarray(make_photo(48, 64)).save(tmp_path / "cat.png")
    predict_files(tmp_path / "cat.png", output_dir=tmp_path / "out", config=PredictConfig(processing_resolution=64))
    prediction = Predictor.load()(tmp_path / "cat.png", processing_resolution=64)
    prediction.save(tmp_path / "again", "cat")
    shown = Image.open(tmp_path / "out" / "cat_depth_colored.png")
    for picture in (prediction.picture(), Image.open(tmp_path / "again" / "cat_depth_colored.png")):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(shown))
