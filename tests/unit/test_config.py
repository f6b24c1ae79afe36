# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.predictor import Predictor
from openmarigold.results.run import predict_files
from tiny import make_photo, make_vae


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
        ({"device": "tpu"}, "device='tpu' is not known; use auto, cpu"),
    ],
)
def test_refuses_with_what_is_accepted(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        PredictConfig(**settings)


# A value of each setting that differs from its default. Those of a call change the depth of a photo.
CALL: dict[str, Any] = {
    "num_inference_steps": 3,
    "ensemble_size": 3,
    "processing_resolution": 32,
    "seed": 5,
    "final_step": "clean",
    "timestep_spacing": "leading",
    "start_noise": "zeros",
}
READ = {"checkpoint": Path("folder"), "variant": "fp16", "revision": "main", "local_files_only": True}
OPENED = {"engine": "torch", "device": "cuda:1", "dtype": "bfloat16", "compile": "full"}
# Each has a test of its own, below.
OTHERS = {"tiny_vae", "tiny_vae_for", "ensemble_tolerance", "batch_size", "background"}


def test_every_setting_has_a_test_of_its_effect() -> None:
    assert {field.name for field in fields(PredictConfig)} == {*CALL, *READ, *OPENED, *OTHERS}
    assert set(PredictConfig().call_options) == {*CALL, "ensemble_tolerance", "batch_size"}


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return Predictor.load(tiny_checkpoint, engine="torch", device="cpu")


@pytest.mark.parametrize("name", CALL)
def test_settings_of_a_call_change_the_depth(name: str, predictor: Predictor) -> None:
    photo = make_photo(48, 64)
    assert not np.array_equal(predictor(photo).depth, predictor(photo, **{name: CALL[name]}).depth)


def test_a_tolerance_saves_members(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_images(predictor, monkeypatch)
    predictor(make_photo(48, 64), ensemble_size=6)
    assert sum(decoded) == 6
    decoded.clear()
    predictor(make_photo(48, 64), ensemble_size=6, ensemble_tolerance=0.99)
    assert sum(decoded) == 3  # the third member changes the depth by less than all of its range


def test_batch_size_limits_what_is_denoised_at_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_images(predictor, monkeypatch)
    monkeypatch.setattr(predictor.engine, "max_batch_size", None)  # as on a GPU
    monkeypatch.setattr(predictor.engine, "fitting_batch_size", lambda height, width: 8)
    predictor(make_photo(48, 64), ensemble_size=4)
    predictor(make_photo(48, 64), ensemble_size=4, batch_size=2)
    assert decoded == [4, 2, 2]


def count_images(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images that go through the decoder together."""
    counts: list[int] = []
    decode = predictor.engine.decode

    def counted(latent: Any) -> Any:
        counts.append(len(latent))
        return decode(latent)

    monkeypatch.setattr(predictor.engine, "decode", counted)
    return counts


class SeenError(Exception):
    """Ends a call whose arguments are known."""


def test_settings_of_loading_reach_checkpoint_and_engine(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def see(*arguments: Any, **settings: Any) -> None:
        raise SeenError(*arguments, settings)

    monkeypatch.setattr("openmarigold.predictor.read_checkpoint", see)
    with pytest.raises(SeenError) as seen:
        Predictor.from_config(PredictConfig(**READ))
    checkpoint, settings = seen.value.args
    assert {"checkpoint": checkpoint, **settings} == READ
    found = read_checkpoint(tiny_checkpoint)
    monkeypatch.setattr("openmarigold.predictor.open_engine", see)
    with pytest.raises(SeenError) as seen:
        Predictor.from_config(PredictConfig(**OPENED), found=found)
    assert seen.value.args == (found, {**OPENED, "tiny_vae": None})
    make_vae("tiny").save_pretrained(tmp_path / "vae")
    config = PredictConfig(tiny_vae=str(tmp_path / "vae"), tiny_vae_for="both")
    with pytest.raises(SeenError) as seen:
        Predictor.from_config(config, found=found)
    chosen = seen.value.args[1]["tiny_vae"]
    assert (chosen.directory.name, chosen.used_for) == ("vae", "both")


def write_files(folder: Path, photo: Path, checkpoint: Path, **settings: Any) -> dict[str, bytes]:
    """Result files of a photo by name."""
    names = {field.name for field in fields(OutputConfig)}
    output = OutputConfig(**{name: value for name, value in settings.items() if name in names})
    others = {name: value for name, value in settings.items() if name not in names}
    config = PredictConfig(checkpoint=checkpoint, ensemble_size=2, **others)
    predict_files([photo], output_dir=folder, config=config, output=output)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(photo.stem)}


def pixels(content: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(content))).tobytes()


@pytest.fixture
def transparent(tmp_path: Path) -> Path:
    pixels = np.dstack([make_photo(48, 64), np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


OUTPUT: dict[str, tuple[Any, set[str], set[str]]] = {
    # A value, the files that it adds, and those that it leaves out.
    "format": (("npz",), {"photo_depth.npz"}, {"photo_depth.npy", "photo_uncertainty.npy", "photo_depth.png"}),
    "inverted": (True, {"photo_depth_inverted.png"}, set()),
    "uncertainty_picture": (True, {"photo_uncertainty.png"}, set()),
    "color_map": ("viridis", set(), set()),
}


def test_every_output_setting_changes_the_files(tmp_path: Path, transparent: Path, onnx_checkpoint: Path) -> None:
    assert {field.name for field in fields(OutputConfig)} == set(OUTPUT)
    before = write_files(tmp_path / "before", transparent, onnx_checkpoint)
    for name, (value, added, left_out) in OUTPUT.items():
        files = write_files(tmp_path / name, transparent, onnx_checkpoint, **{name: value})
        assert files.keys() - before.keys() == added, name
        assert before.keys() - files.keys() >= left_out, name
        if name == "color_map":  # the record in every picture names it; the pixels of one change
            changed = {key for key in files if key.endswith("png") and pixels(before[key]) != pixels(files[key])}
            assert changed == {"photo_depth_colored.png"}


def test_the_background_changes_the_depth(tmp_path: Path, transparent: Path, onnx_checkpoint: Path) -> None:
    white = write_files(tmp_path / "white", transparent, onnx_checkpoint)
    black = write_files(tmp_path / "black", transparent, onnx_checkpoint, background="black")
    assert white["photo_depth.npy"] != black["photo_depth.npy"]


def test_no_format_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="nothing is not known; give one or more of npy, png, npz, exr"):
        OutputConfig(format=())
