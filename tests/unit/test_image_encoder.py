# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose U-Net sees an image encoder's condition: written, read, converted and run as others are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoded import CONDITION_CHANNELS, LOG_INDEX, make_encoded_checkpoint, make_encoder
from hub_server import HUB_ID, Hub
from openmarigold.checkpoints.channels import IMAGE_ENCODER_CLASS, IMAGE_ENCODER_VARIANTS
from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.checkpoints.configured import TinyVae, read_tiny_vae, resolve_settings
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.integrity import describe, verify, write_sums
from openmarigold.cli import run
from openmarigold.config import PredictConfig
from openmarigold.engines import open_engine
from openmarigold.engines.converted import weight_bytes
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.evaluation.speed import count_flops
from openmarigold.networks import image_encoder
from openmarigold.networks.backbone import hash_of_weights, load_image_encoder, save_complete_checkpoint
from openmarigold.networks.conversion import export_checkpoint, export_shared
from openmarigold.predictor import Predictor
from tiny import edit_json, make_photo

pytestmark = pytest.mark.usefixtures("shared_cache")

CONDITION = sum(CONDITION_CHANNELS)
FLOAT32 = 1e-4  # sums in another order
HALF = 2e-3  # folded weights in half precision
WEIGHTS = "image_encoder/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoded_checkpoint(tmp_path_factory.mktemp("encoded") / "tiny-encoded")


@pytest.fixture(scope="module")
def shared(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared") / "tiny-shared"
    export_shared(read_checkpoint(encoded), directory)
    return directory


@pytest.fixture
def copied(encoded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "copied"))


def test_what_a_checkpoint_is(encoded: Path, tiny_checkpoint: Path) -> None:
    found = read_checkpoint(encoded)
    assert (found.latent_channels, found.condition_channels) == (8, CONDITION)
    assert found.networks == ("image_encoder", "unet", "vae_decoder")
    assert found.modality.space == "log" and found.invariance == "scale"
    plain = read_checkpoint(tiny_checkpoint)
    assert plain.condition_channels == plain.latent_channels == 8
    assert plain.networks == ("vae_encoder", "unet", "vae_decoder") and plain.modality.space == "linear"


def test_weights_come_back(encoded: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = hash_of_weights(make_encoder())
    loaded = load_image_encoder(encoded / "image_encoder")
    assert not loaded.training and hash_of_weights(loaded) != other
    state = load_image_encoder(encoded / "image_encoder", dtype=torch.float16).state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, state[name].float(), rtol=0, atol=0)


def test_the_names_of_variants_are_those_of_the_network() -> None:
    assert tuple(image_encoder._VARIANTS) == IMAGE_ENCODER_VARIANTS
    assert image_encoder.EfficientNetLiteEncoder.__name__ == IMAGE_ENCODER_CLASS
    assert len(image_encoder._STRIDES) == len(CONDITION_CHANNELS)


@pytest.mark.parametrize("size", [(48, 64), (40, 56), (8, 24)])
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_networks_agree(encoded: Path, shared: Path, engine: Any, size: tuple[int, int]) -> None:
    engines = [open_engine(read_checkpoint(encoded), engine="torch", device="cpu")]
    engines += [open_engine(read_checkpoint(folder), engine=engine) for folder in (encoded, shared)]
    rng = np.random.default_rng(3)
    rgb = rng.uniform(-1, 1, (1, 3, *size)).astype(np.float32)
    noise = rng.standard_normal((2, 8, size[0] // 8, size[1] // 8)).astype(np.float32)
    expected: list[np.ndarray] = []
    for opened in engines:
        condition = opened.encode(rgb)
        prediction = opened.denoise(condition, opened.to_engine(noise), timestep=999)
        found = [np.asarray(condition), np.asarray(prediction), opened.decode(prediction)]
        expected = expected or found
        assert found[0].shape == (1, CONDITION, size[0] // 8, size[1] // 8) and found[0].std() > 0.1
        for ours, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, other, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_converted_networks_hold_all(encoded: Path, tmp_path: Path, format: Any) -> None:
    found = read_checkpoint(encoded)
    export_checkpoint(found, tmp_path / "out", format=format)
    export_checkpoint(found, tmp_path / "out", format=format)  # over itself
    converted = read_checkpoint(tmp_path / "out")
    assert (converted.latent_channels, converted.condition_channels) == (8, CONDITION)
    assert converted.modality.space == "log" and describe(converted)["parameters"] == describe(found)["parameters"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == [
        "image_encoder",
        "scheduler",
        "unet",
        "vae_decoder",
    ]
    photo = make_photo(50, 70)
    theirs, ours = Predictor.load(encoded, device="cpu")(photo), Predictor.load(tmp_path / "out")(photo)
    np.testing.assert_allclose(ours.depth, theirs.depth, rtol=0, atol=HALF)
    edit_json(tmp_path / "out" / "model_index.json", condition_channels=None)
    with pytest.raises(CheckpointError, match="condition_channels is None; a whole number from 1 to"):
        read_checkpoint(tmp_path / "out")


def test_onnx_becomes_openvino(encoded: Path, tmp_path: Path) -> None:
    export_checkpoint(read_checkpoint(encoded), tmp_path / "onnx", format="onnx")
    export_checkpoint(read_checkpoint(tmp_path / "onnx"), tmp_path / "openvino", format="openvino")
    assert read_checkpoint(tmp_path / "openvino").condition_channels == CONDITION
    edit_json(tmp_path / "onnx" / "model_index.json", condition_channels=5)
    with pytest.raises(CheckpointError, match=f"condition_channels is 5, and the networks have {CONDITION}"):
        Predictor.load(tmp_path / "onnx")


def test_each_weight_is_stored_once(shared: Path) -> None:
    import onnx

    graph = onnx.load(shared / "image_encoder" / "encoder.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("BatchNormalization") == 48, "folded norms would be other weights than the stored ones"
    assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer)
    found = read_checkpoint(shared)
    assert found.graphs and not (shared / "vae" / "encoder.onnx").exists()
    assert Predictor.load(shared).engine.name == "onnx"


def test_other_weights_next_to_a_graph_are_refused(shared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared, tmp_path / "changed"))
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"image_encoder/encoder\.onnx was made from other weights"):
        read_checkpoint(folder)
    (folder / "image_encoder" / "encoder.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"image_encoder/encoder\.onnx is missing"):
        read_checkpoint(folder)


def test_hash_sums_and_description(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sums(copied)
    found = read_checkpoint(copied)
    before, content = checkpoint_sha256(found), describe(found)
    assert {"image_encoder/config.json", WEIGHTS} < set(content["files"])
    assert set(content["parameters"]) == {"unet", "vae", "image_encoder"}
    assert content["condition_channels"] == CONDITION
    assert (content["defaults"]["start_noise"], content["defaults"]["ensemble_start_noise"]) == ("zeros", "gaussian")
    assert weight_bytes(found) > (copied / WEIGHTS).stat().st_size
    assert [line for _, lines in verify(found) for line in lines] == []
    assert run(["checkpoint", "info", str(copied)]) == 0
    assert f"8 latent channels, {CONDITION} of the image encoder" in capsys.readouterr().out

    raw = bytearray((copied / WEIGHTS).read_bytes())
    raw[-2] ^= 1
    (copied / WEIGHTS).write_bytes(raw)
    assert checkpoint_sha256(read_checkpoint(copied)) != before
    wrong = [line for _, lines in verify(read_checkpoint(copied)) for line in lines]
    assert len(wrong) == 1 and WEIGHTS in wrong[0]
    assert run(["checkpoint", "verify", str(copied)]) == 2


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda d: shutil.rmtree(d / "image_encoder"), "image_encoder is missing; a checkpoint holds unet/"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "safetensors is missing"),
    "cut weights": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), "is truncated"),
    "another class": (
        lambda d: edit_json(d / "image_encoder/config.json", _class_name="CLIPVisionModel"),
        "_class_name is 'CLIPVisionModel'; accepted: EfficientNetLiteEncoder",
    ),
    "another variant": (
        lambda d: edit_json(d / "image_encoder/config.json", variant="lite9"),
        "variant is 'lite9'; accepted: lite0, lite1, lite2",
    ),
    "other channels": (
        lambda d: edit_json(d / "image_encoder/config.json", condition_channels=[1, 2, 2, 3, 4]),
        "do not fit a VAE of 8 latent channels and an image encoder of 12 channels; a checkpoint .* has 20 and 8",
    ),
    "channels of no list": (
        lambda d: edit_json(d / "image_encoder/config.json", condition_channels=11),
        "condition_channels is 11; a list of 5 whole numbers from 1 to 1024 is needed",
    ),
    "channels of no number": (
        lambda d: edit_json(d / "image_encoder/config.json", condition_channels=[1, 2, 2, 3, True]),
        "a list of 5 whole numbers",
    ),
    "a stranger in the index": (
        lambda d: edit_json(d / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"]),
        "image_encoder is .*CLIPVision.*; accepted is .*EfficientNetLiteEncoder",
    ),
    "not in the index": (
        lambda d: edit_json(d / "model_index.json", image_encoder=[None, None]),
        "19 input and 8 output channels do not fit a VAE of 8 latent channels; a checkpoint for depth has 16 and 8",
    ),
    "unknown space": (
        lambda d: edit_json(d / "model_index.json", space="cubic"),
        "space is 'cubic'; accepted for depth: linear, log",
    ),
    "log depth with a shift": (
        lambda d: edit_json(d / "model_index.json", shift_invariant=True),
        "shift_invariant is True; with space 'log' it must be False",
    ),
    "unknown noise": (
        lambda d: edit_json(d / "model_index.json", ensemble_start_noise="ones"),
        "ensemble_start_noise='ones'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_are_refused(copied: Path, name: str) -> None:
    damage, message = BROKEN[name]
    damage(copied)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(copied)


def test_weights_of_another_size_are_named(copied: Path) -> None:
    edit_json(copied / "image_encoder" / "config.json", variant="lite1")
    with pytest.raises(CheckpointError, match=r"the weights do not fit|has shape"):
        Predictor.load(copied, engine="torch", device="cpu")


def test_one_member_starts_from_zeros_and_several_from_noise(encoded: Path) -> None:
    found = read_checkpoint(encoded)
    for size, given, expected in ((1, None, "zeros"), (3, None, "gaussian"), (1, "gaussian", "gaussian")):
        config = PredictConfig(ensemble_size=size, start_noise=given)
        assert resolve_settings(config, found).start_noise == expected
    with pytest.raises(InvalidValueError, match="gains nothing"):
        resolve_settings(PredictConfig(ensemble_size=2, start_noise="zeros"), found)
    plain = replace(found, default_start_noise="zeros", default_ensemble_start_noise="zeros")
    with pytest.raises(InvalidValueError, match="gains nothing"):
        resolve_settings(PredictConfig(ensemble_size=2), plain)


def test_log_depth_is_positive_and_its_ensemble_too(encoded: Path) -> None:
    predictor = Predictor.load(encoded, device="cpu")
    photo = make_photo(48, 64)
    one, three = predictor(photo), predictor(photo, ensemble_size=3)
    for depth in (one.depth, three.depth):
        assert depth.min() > 0 and depth.max() == 1.0
    assert three.uncertainty is not None and 0 < three.uncertainty.max() < 1
    assert one.settings["start_noise"] == "zeros" and three.settings["start_noise"] == "gaussian"
    assert predictor(photo, seed=7).depth.tobytes() == one.depth.tobytes(), "nothing is drawn"


def tiny_vae(checkpoint: Checkpoint, directory: Path, used_for: Any) -> TinyVae | None:
    return read_tiny_vae(PredictConfig(tiny_vae=str(directory), tiny_vae_for=used_for), checkpoint)


def test_a_small_autoencoder_may_decode(encoded: Path, tiny_checkpoint: Path) -> None:
    found = read_checkpoint(encoded)
    for used_for in ("encode", "both"):
        with pytest.raises(InvalidValueError, match="whose image encoder replaces the VAE's encoder; use decode"):
            tiny_vae(found, tiny_checkpoint / "vae", used_for)
    small = tiny_vae(found, tiny_checkpoint / "vae", "decode")
    assert small is not None
    depth = Predictor.load(encoded, device="cpu", tiny_vae=str(tiny_checkpoint / "vae"))(make_photo(32, 32)).depth
    assert depth.min() > 0


def test_arithmetic_is_counted(encoded: Path, shared: Path) -> None:
    counted = count_flops(read_checkpoint(encoded), PredictConfig(), 64, 64)
    assert counted is not None and set(counted) == {"image_encoder", "unet", "vae_decoder"}
    assert all(value > 0 for value in counted.values())


def test_a_complete_copy_keeps_the_encoder_and_says_who_runs_it(
    encoded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_complete_checkpoint(read_checkpoint(encoded), tmp_path / "copy", dtype="float16")
    assert "has an image encoder, which no pipeline of diffusers runs" in caplog.text
    index = json.loads((tmp_path / "copy" / "model_index.json").read_text())
    assert index["image_encoder"] == ["openmarigold", IMAGE_ENCODER_CLASS]
    assert {key: index[key] for key in LOG_INDEX} == LOG_INDEX
    photo = make_photo(48, 64)
    ours, other = (Predictor.load(folder, device="cpu")(photo).depth for folder in (encoded, tmp_path / "copy"))
    np.testing.assert_array_equal(ours, other)


def test_a_checkpoint_of_the_hub(encoded: Path, hub: Hub) -> None:
    shutil.rmtree(hub.folder)
    shutil.copytree(encoded, hub.folder)
    found = read_checkpoint(HUB_ID)
    assert found.condition_channels == CONDITION
    assert checkpoint_sha256(found) == checkpoint_sha256(read_checkpoint(encoded))
