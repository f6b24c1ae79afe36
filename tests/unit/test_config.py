# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openmarigold.predictor as predictor_module
from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.config import CallConfig, CallOptions, ModelConfig, ModelOptions, OutputConfig, PredictConfig
from openmarigold.engines import Engine
from openmarigold.errors import InvalidValueError
from openmarigold.modalities import find_modality
from openmarigold.predictor import Predictor
from openmarigold.results.writers import write_prediction


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"processing_resolution": 0},
        {"processing_resolution": 768, "num_inference_steps": 1000},
        {"device": "cuda:1", "final_step": "clean", "seed": 0},
    ],
)
def test_accepts(settings: dict[str, Any]) -> None:
    config = PredictConfig(**settings)
    assert all(getattr(config, name) == value for name, value in settings.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processing_resolution": 770}, "processing_resolution=770 is not a multiple of 8; try 768"),
        ({"processing_resolution": 3}, "processing_resolution=3 is not a multiple of 8; try 8"),
        ({"processing_resolution": -8}, "processing_resolution=-8 is not accepted"),
        ({"ensemble_size": 0}, "ensemble_size=0 is not accepted; give a whole number, 1 or above"),
        ({"ensemble_size": True}, "ensemble_size=True"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not accepted; give a whole number, 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"tiny_vae": ""}, "tiny_vae='' is not accepted; give a folder or a hub id"),
        ({"tiny_vae_for": "both"}, "tiny_vae_for='both' has no effect without tiny_vae"),
        ({"fov": 0.5}, "fov=0.5 is not accepted; give degrees from 1 to 170"),
        ({"fov": 171.0}, "fov=171.0 is not accepted"),
        ({"focal_px": 0.0}, "focal_px=0.0 is not accepted; give pixels, above 0"),
        ({"focal_px": float("nan")}, "focal_px=nan is not accepted; give pixels, above 0"),
        ({"fov": 60.0, "focal_px": 500.0}, "fov and focal_px state the same thing; give one of them"),
        ({"fov": 60.0, "camera_file": "k.json"}, "fov and camera_file state the same thing; give one of them"),
        ({"camera_file": ""}, "camera_file is empty; give a path"),
        ({"normals_checkpoint": "x"}, "normals_checkpoint has no effect without estimate_camera"),
        ({"device": "tpu"}, "device='tpu' is not known; use auto, cpu"),
    ],
)
def test_refuses_with_what_is_accepted(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        PredictConfig(**settings)


# A value of each setting that must change what comes out of a call.
CALLS: dict[str, dict[str, Any]] = {
    "num_inference_steps": {"num_inference_steps": 3},
    "ensemble_size": {"ensemble_size": 2},
    "ensemble_tolerance": {"ensemble_size": 4, "ensemble_tolerance": 0.99},
    "processing_resolution": {"processing_resolution": 32},
    "seed": {"seed": 7},
    "background": {"background": "black"},
    "batch_size": {"ensemble_size": 4, "batch_size": 3},
    "final_step": {"final_step": "clean"},
    "timestep_spacing": {"timestep_spacing": "leading"},
    "start_noise": {"start_noise": "zeros"},
    "ensemble_mirror": {"ensemble_size": 2, "ensemble_mirror": True},
    "ensemble_reduction": {"ensemble_size": 3, "ensemble_reduction": "mean"},
    "fov": {"fov": 90.0},
    "focal_px": {"focal_px": 30.0},
    "camera_file": {"camera_file": "camera.json"},
    "recompose": {"recompose": True},
}
# What is predicted, and the map that shows the effect, where it is not depth.
SHOWN_BY = dict.fromkeys(("fov", "focal_px", "camera_file"), ("normals", "normals"))
# In tests of their own: test_recomposition.py, test_cameras.py, test_tiled_predictions.py and e2e/test_calibration.py.
OTHERS = ("recompose", "estimate_camera", "normals_checkpoint", "tiles", "interval")


@pytest.mark.parametrize("name", [field.name for field in fields(CallConfig) if field.name not in OTHERS])
def test_every_setting_of_a_call_has_its_effect(
    name: str, onnx_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modality, shown = SHOWN_BY.get(name, ("depth", "depth"))
    monkeypatch.chdir(tmp_path)
    Path("camera.json").write_text('{"fx": 30, "width": 48, "height": 40}')
    predictor = Predictor.load(onnx_checkpoint, modality=modality, device="cpu")
    rgba = np.full((40, 48, 4), 90, dtype=np.uint8)
    batches: list[int] = []
    decode = predictor.engine.decode
    monkeypatch.setattr(predictor.engine, "max_batch_size", None)
    monkeypatch.setattr(predictor.engine, "fitting_batch_size", lambda height, width: 2)
    monkeypatch.setattr(predictor.engine, "decode", lambda latent: batches.append(len(latent)) or decode(latent))

    def outcome(**settings: Any) -> tuple[bytes, int, list[int]]:
        batches.clear()
        prediction = predictor(rgba, **settings)
        return prediction.maps[shown].tobytes(), prediction.settings["num_members"], batches.copy()

    settings = CALLS[name]
    others = {key: value for key, value in settings.items() if key != name}
    assert outcome(**settings) != outcome(**others)


def test_every_setting_of_a_model_reaches_what_it_is_for(
    onnx_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {
        "checkpoint": onnx_checkpoint,
        "variant": "fp16",
        "revision": "main",
        "local_files_only": True,
        "engine": "onnx",
        "device": "cuda:1",
        "dtype": "float16",
        "tiny_vae": "tiny",
        "tiny_vae_for": "both",
        "compile": "full",
        "modality": "depth",
    }
    assert wanted.keys() == {field.name for field in fields(ModelConfig)}
    found = read_checkpoint(onnx_checkpoint)
    got: dict[str, Any] = {}

    def read(checkpoint: Path, **settings: Any) -> Checkpoint:
        got.update(settings, checkpoint=checkpoint, modality=settings["wanted"])
        del got["wanted"]
        return found

    def read_tiny(config: ModelConfig, checkpoint: Checkpoint) -> None:
        got.update(tiny_vae=config.tiny_vae, tiny_vae_for=config.tiny_vae_for)

    def open_engine(checkpoint: Checkpoint, **settings: Any) -> Engine:
        got.update({name: value for name, value in settings.items() if name not in ("tiny_vae", "at_once")})
        return engine

    engine = Predictor.load(onnx_checkpoint).engine
    monkeypatch.setattr("openmarigold.checkpoints.configured.read_checkpoint", read)
    for name, fake in (("read_tiny_vae", read_tiny), ("open_engine", open_engine)):
        monkeypatch.setattr(predictor_module, name, fake)
    Predictor.load(**wanted)
    assert got == wanted
    with pytest.raises(InvalidValueError, match="modality='colors' is not known; use one of depth, normals"):
        Predictor.load(**{**wanted, "modality": "colors"})


@pytest.mark.parametrize(
    ("config", "options"), [(ModelConfig, ModelOptions), (CallConfig, CallOptions)], ids=["model", "call"]
)
def test_keywords_are_those_of_the_settings(config: type, options: type) -> None:
    settings = {field.name: field.type for field in fields(config) if field.name != "checkpoint"}
    if "modality" in settings:
        settings["modality"] = "tuple[str, ...] | str | None"  # one may be given by its name
    assert settings == options.__annotations__ or settings == {
        name: value.__forward_arg__ for name, value in options.__annotations__.items()
    }


def test_no_format_is_refused() -> None:
    with pytest.raises(
        InvalidValueError, match="nothing is not known; give one or more of npy, png, npz, exr, ply, glb"
    ):
        OutputConfig(format=())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", ("npz",)),
        ("color_map", "viridis"),
        ("inverted", True),
        ("uncertainty_picture", True),
        ("normal_frame", "opencv"),
        ("green", "dx"),
        ("ply", "mesh"),
        ("glb", "points"),
        ("max_points", 6),
        ("max_depth", 0.5),
        ("drop_far", 0.3),
        ("drop_uncertain", 0.3),
    ],
)
def test_every_output_setting_has_its_effect(name: str, value: Any, tmp_path: Path) -> None:
    assert name in {field.name for field in fields(OutputConfig)} and len(fields(OutputConfig)) == 12
    maps = {"depth": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)}
    uncertainties = {"uncertainty": maps["depth"]}
    modality = "normals" if name in ("normal_frame", "green") else "depth"
    if modality == "normals":
        maps, uncertainties = {"normals": np.full((3, 4, 3), 0.577, dtype=np.float32)}, {}

    def files(output: OutputConfig) -> dict[str, bytes]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        of = {"output_dir": folder, "stem": "cat", "output": output, "modality": find_modality(modality)}
        paths = write_prediction(maps, uncertainties, **of)
        return {path.name: path.read_bytes() for path in paths}

    of_space = name in ("ply", "glb", "max_points", "max_depth", "drop_far", "drop_uncertain")
    formats: dict[str, Any] = {"format": ("ply", "glb")} if of_space else {}
    assert files(OutputConfig(**{**formats, name: value})) != files(OutputConfig(**formats))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_points", 0, "max_points=0 is not accepted; give a whole number, 1 or above"),
        ("max_depth", 0.0, "max_depth=0.0 is not accepted; give a number above 0"),
        ("drop_far", 1.0, "drop_far=1.0 is not accepted; give a share of the pixels from 0 to below 1"),
        ("drop_uncertain", -0.1, "drop_uncertain=-0.1 is not accepted"),
    ],
)
def test_settings_of_points_are_checked(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        OutputConfig(**{name: value})
