# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with an image encoder and log depth: run alike by every engine, hashed, refused if damaged."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from openmarigold.checkpoints.checkpoint import read_checkpoint, resolve_settings
from openmarigold.checkpoints.integrity import describe, verify
from openmarigold.config import PredictConfig
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, DataError, InvalidValueError
from openmarigold.modalities import DEPTH, find_modality
from openmarigold.modalities.depth import LOG_DEPTH, LOG_HALF_RANGE, from_log, log_targets
from openmarigold.networks.backbone import save_checkpoint, save_complete_checkpoint
from openmarigold.networks.conversion import count_network_flops, export_checkpoint, export_shared
from openmarigold.networks.image_encoder import EfficientNetLiteEncoder
from openmarigold.predictor import Predictor
from tiny import make_unet, make_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"
CHANNELS = (2, 3, 4, 5, 6)
RGB = np.random.default_rng(0).integers(0, 256, (72, 104, 3), dtype=np.uint8)
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, in half precision as trained ones are."""
    folder = tmp_path_factory.mktemp("lite") / "checkpoint"
    torch.manual_seed(0)
    encoder = EfficientNetLiteEncoder("lite0", CHANNELS)
    for module in encoder.modules():
        if hasattr(module, "running_var"):  # so that folded norms differ from what is stored
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    save_checkpoint(
        folder,
        vae=make_vae("tiny"),
        unet=make_unet(8, in_channels=8 + sum(CHANNELS)),
        image_encoder=encoder,
        empty_prompt_embedding=torch.randn(1, 2, 16),
        schedule=NoiseSchedule(rescale_betas_zero_snr=True),
        index={
            "_class_name": "MarigoldDepthPipeline",
            "name": "tiny-lite",
            "prediction_type": "depth",
            **LOG_DEPTH.index_facts,
            "default_denoising_steps": 1,
            "default_processing_resolution": 72,
            "processing_side": "shorter",
            "start_noise": "zeros",
            "ensemble_start_noise": "gaussian",
        },
        dtype=torch.float16,
    )
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_condition_and_latent_channels_are_facts_of_their_own(made: Path) -> None:
    checkpoint = read_checkpoint(made)
    assert (checkpoint.latent_channels, checkpoint.condition_channels) == (8, 20)
    assert checkpoint.modality is LOG_DEPTH
    content = describe(checkpoint)
    assert content["condition_channels"] == 20
    assert content["parameters"]["image_encoder"] > 3_000_000
    assert f"image_encoder/{WEIGHTS}" in content["files"]
    assert [line for _, lines in verify(checkpoint) for line in lines] == []
    assert count_network_flops(checkpoint, "vae_encoder", 64, 96) > 0
    assert count_network_flops(checkpoint, "unet", 64, 96) > 0


def test_every_engine_gives_the_same_depth_from_its_own_files(made: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(made)
    export_shared(checkpoint, tmp_path / "shared")
    export_checkpoint(checkpoint, tmp_path / "onnx", format="onnx", dtype="float32")
    export_checkpoint(checkpoint, tmp_path / "openvino", format="openvino", dtype="float32")
    expected = {size: Predictor.load(made, engine="torch", device="cpu")(RGB, ensemble_size=size) for size in (1, 3)}
    places = (("shared", "onnx"), ("shared", "openvino"), ("onnx", "onnx"), ("onnx", "openvino"), ("openvino",) * 2)
    for folder, engine in places:
        predictor = Predictor.load(tmp_path / folder, engine=engine)
        for size, wanted in expected.items():
            found = predictor(RGB, ensemble_size=size)
            np.testing.assert_allclose(found.depth, wanted.depth, rtol=0, atol=TOLERANCE, err_msg=f"{folder} {engine}")


def test_shared_networks_hold_no_second_copy_of_the_weights(made: Path, tmp_path: Path) -> None:
    export_shared(read_checkpoint(made), tmp_path / "shared")
    weights = (tmp_path / "shared" / "image_encoder" / WEIGHTS).stat().st_size
    graph = (tmp_path / "shared" / "image_encoder" / "encoder.onnx").stat().st_size
    assert graph < weights / 20
    assert not (tmp_path / "shared" / "vae" / "encoder.onnx").exists()
    assert read_checkpoint(tmp_path / "shared").graphs


def test_the_hash_follows_the_image_encoder(copied: Path) -> None:
    before = describe(read_checkpoint(copied))["sha256"]
    path = copied / "image_encoder" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert describe(read_checkpoint(copied))["sha256"] != before


def test_shared_networks_of_other_weights_are_refused(made: Path, tmp_path: Path) -> None:
    export_shared(read_checkpoint(made), tmp_path / "shared")
    path = tmp_path / "shared" / "image_encoder" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-100:] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="made from other weights"):
        read_checkpoint(tmp_path / "shared")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"_class_name": "CLIPVisionModel"}, "not a supported image encoder"),
        ({"variant": "lite9"}, "lite0, lite1, lite2"),
        ({"variant": ["lite0"]}, "lite0, lite1, lite2"),
        ({"condition_channels": [1, 2]}, "5 numbers"),
        ({"condition_channels": [1, 2, 3, 4, -5]}, "from 1 to"),
        ({"condition_channels": [1, 2, 3, 4, 10**9]}, "from 1 to"),
        ({"condition_channels": [2, 3, 4, 5, 7]}, "an image encoder of 21 channels"),
        ({"variant": "lite2"}, "cannot be loaded"),
    ],
)
def test_other_image_encoders_are_refused(copied: Path, values: dict, message: str) -> None:
    change(copied / "image_encoder" / "config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        Predictor.load(copied, engine="torch", device="cpu")


def test_missing_or_cut_weights_are_refused(copied: Path) -> None:
    path = copied / "image_encoder" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="image_encoder"):
        read_checkpoint(copied)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_checkpoint(copied)


def test_without_its_image_encoder_the_unet_does_not_fit(copied: Path) -> None:
    shutil.rmtree(copied / "image_encoder")
    with pytest.raises(CheckpointError, match="28 input and 8 output channels do not fit"):
        read_checkpoint(copied)


def test_diffusers_cannot_run_it_and_saving_for_it_says_so(made: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no pipeline of diffusers runs"):
        save_complete_checkpoint(read_checkpoint(made), tmp_path / "saved", dtype="float32")


def test_one_member_starts_from_zeros_and_several_from_noise(made: Path) -> None:
    checkpoint = read_checkpoint(made)
    starts = {size: resolve_settings(PredictConfig(ensemble_size=size), checkpoint).start_noise for size in (1, 2)}
    assert starts == {1: "zeros", 2: "gaussian"}
    assert resolve_settings(PredictConfig(start_noise="gaussian"), checkpoint).start_noise == "gaussian"
    with pytest.raises(InvalidValueError, match="gains nothing"):
        resolve_settings(PredictConfig(ensemble_size=2, start_noise="zeros"), checkpoint)
    members = Predictor.load(made, engine="torch", device="cpu")(RGB, ensemble_size=3)
    assert members.uncertainty is not None and members.uncertainty.max() > 0


def test_an_unknown_start_or_space_is_refused(copied: Path) -> None:
    change(copied / "model_index.json", ensemble_start_noise="ones")
    with pytest.raises(CheckpointError, match="ensemble_start_noise"):
        read_checkpoint(copied)
    change(copied / "model_index.json", ensemble_start_noise="gaussian", space="cubic")
    with pytest.raises(CheckpointError, match=r"space 'cubic' is not known for depth; accepted: log"):
        read_checkpoint(copied)


def test_depth_is_up_to_scale_and_the_farthest_pixel_one(made: Path) -> None:
    predictor = Predictor.load(made, engine="torch", device="cpu")
    prediction = predictor(RGB)
    assert predictor.checkpoint.invariance == "scale"
    assert prediction.depth.min() > 0 and prediction.depth.max() <= 1.0
    assert describe(predictor.checkpoint)["kind"] == "scale-invariant depth"


def test_log_targets_and_back_keep_ratios() -> None:
    depth = np.random.default_rng(1).uniform(1.0, 6.0, (16, 24)).astype(np.float32)
    valid = np.ones(depth.shape, dtype=bool)
    valid[0] = False
    target = log_targets(depth, valid)
    assert (target[0] == 1).all()
    assert np.median(target[1:]) == pytest.approx(0.0, abs=1e-3)
    found = from_log(target[1:])
    np.testing.assert_allclose(found / found[0, 0], depth[1:] / depth[1, 0], rtol=1e-5)
    far = np.where(valid, depth, 1.0)
    far[1, 1] = 1e6
    assert log_targets(far, valid)[1, 1] == 1.0
    assert LOG_HALF_RANGE == 2.0  # a fact of trained checkpoints


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_log_targets_refuse_what_has_no_logarithm(value: float) -> None:
    depth = np.ones((4, 4))
    depth[1, 1] = value
    with pytest.raises(DataError, match="not finite and above 0"):
        log_targets(depth, np.ones(depth.shape, dtype=bool))
    with pytest.raises(DataError, match="no valid pixel"):
        log_targets(depth, np.zeros(depth.shape, dtype=bool))


def test_variants_are_found_by_space_and_survive_pickling() -> None:
    assert find_modality("depth") is DEPTH
    assert find_modality("depth", "log") is LOG_DEPTH
    assert pickle.loads(pickle.dumps(LOG_DEPTH)) is LOG_DEPTH
    assert pickle.loads(pickle.dumps(DEPTH)) is DEPTH
    assert LOG_DEPTH.name == "depth"
