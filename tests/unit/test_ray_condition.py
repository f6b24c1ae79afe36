# SPDX-License-Identifier: Apache-2.0
"""Rays as a part of the condition: their values, checkpoints that state them, predictions on all engines."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoded import CONDITION_CHANNELS, make_encoded_checkpoint
from openmarigold.camera import Camera
from openmarigold.camera.conditions import CONDITIONS, ray_channels
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.integrity import describe
from openmarigold.completion.evidence import RelativeDepth, SparsePoints
from openmarigold.completion.guided import guided, guided_method
from openmarigold.completion.guided_settings import GuidedSettings
from openmarigold.completion.methods import Options
from openmarigold.errors import CheckpointError
from openmarigold.networks.backbone import insert_inputs
from openmarigold.networks.conversion import export_checkpoint, export_shared
from openmarigold.predictor import Predictor
from tiny import edit_json, make_photo, make_unet

pytestmark = pytest.mark.usefixtures("shared_cache")

OF_IMAGE = sum(CONDITION_CHANNELS)
FLOAT32 = 1e-4
HALF = 2e-3


@pytest.fixture(scope="module")
def rayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoded_checkpoint(tmp_path_factory.mktemp("rayed") / "tiny-rayed", condition_on="rays")


def test_rays_of_a_known_camera() -> None:
    # 90 degrees over 32 pixels: 16 pixels are a slope of 1, so that cells of 8 have their centers at -3/4, -1/4, ...
    channels = ray_channels(Camera.from_fov((16, 32), 90.0))
    assert channels.shape == (CONDITIONS["rays"], 2, 4) and channels.dtype == np.float32
    np.testing.assert_allclose(channels[0] / 8, [[-0.75, -0.25, 0.25, 0.75]] * 2, atol=1e-6)
    np.testing.assert_allclose(channels[1] / 8, [[-0.25] * 4, [0.25] * 4], atol=1e-6)
    np.testing.assert_allclose(channels[2] / 8, math.log(2 / 40), rtol=1e-6)  # a focal length of two cells


def test_cells_of_a_padded_picture_see_what_they_saw() -> None:
    camera = Camera(fx=30.0, fy=25.0, cx=11.0, cy=6.0, width=27, height=18)
    channels = ray_channels(camera, (24, 32))
    assert channels.shape == (3, 3, 4)
    # Cell 3 covers columns 24 to 31, row 2 rows 16 to 23.
    np.testing.assert_allclose(channels[:2, 2, 3] / 8, [(27.5 - 11.0) / 30, (19.5 - 6.0) / 25], rtol=1e-6)
    np.testing.assert_allclose(channels[2] / 8, math.log(math.sqrt(30 * 25) / 8 / 40), rtol=1e-6)


def test_what_a_checkpoint_is(rayed: Path) -> None:
    found = read_checkpoint(rayed)
    assert (found.condition_on, found.image_channels, found.condition_channels) == ("rays", OF_IMAGE, OF_IMAGE + 3)
    assert describe(found)["condition_on"] == "rays"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: edit_json(d / "model_index.json", condition_on="moods"), "condition_on is 'moods'; accepted: rays"),
        (lambda d: edit_json(d / "model_index.json", condition_on=["rays"]), "accepted: rays, or none"),
        (lambda d: edit_json(d / "model_index.json", condition_on=None), f"of {OF_IMAGE} channels"),
        (lambda d: edit_json(d / "unet" / "config.json", in_channels=8 + OF_IMAGE), r"channels \(with those of rays\)"),
    ],
)
def test_what_does_not_fit_is_refused(
    rayed: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copied = Path(shutil.copytree(rayed, tmp_path / "copied"))
    damage(copied)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(copied)


@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_the_camera_changes_the_prediction(rayed: Path, engine: Any) -> None:
    photo = make_photo(50, 70)
    predictor = Predictor.load(rayed, engine=engine, device="cpu")
    first, again, other = (predictor(photo, fov=fov) for fov in (40.0, 40.0, 90.0))
    np.testing.assert_array_equal(first.depth, again.depth)
    assert np.abs(first.depth - other.depth).max() > 0.01
    assert first.settings["condition_on"] == "rays"
    reference = Predictor.load(rayed, engine="torch", device="cpu")(photo, fov=90.0)
    np.testing.assert_allclose(other.depth, reference.depth, rtol=0, atol=FLOAT32)


def test_a_checkpoint_without_rays_does_not_see_the_camera(tmp_path: Path) -> None:
    predictor = Predictor.load(make_encoded_checkpoint(tmp_path / "plain"), engine="torch", device="cpu")
    photo = make_photo(50, 70)
    np.testing.assert_array_equal(predictor(photo, fov=40.0).depth, predictor(photo, fov=90.0).depth)


def test_a_mirrored_member_sees_mirrored_rays(rayed: Path) -> None:
    predictor = Predictor.load(rayed, engine="torch", device="cpu")
    seen: list[np.ndarray] = []
    encode = predictor.engine.joined
    predictor.engine.joined = lambda condition, more: seen.append(more) or encode(condition, more)
    # 48 x 64 pixels are processed as 48 x 64; the center lies 10 pixels left of the middle, then right of it.
    camera = Camera(fx=50.0, fy=50.0, cx=21.5, cy=23.5, width=64, height=48)
    predictor(make_photo(48, 64), camera=camera, ensemble_size=2, ensemble_mirror=True, processing_resolution=0)
    assert [rays.shape for rays in seen] == [(1, 3, 6, 8)] * 2
    centers = 8 * np.arange(8) + 3.5
    np.testing.assert_allclose(seen[0][0, 0, 0] / 8, (centers - 21.5) / 50, atol=1e-6)
    np.testing.assert_allclose(seen[1][0, 0, 0] / 8, (centers - 41.5) / 50, atol=1e-6)
    np.testing.assert_allclose(seen[1][0, 1:], seen[0][0, 1:], atol=1e-6)


def test_photos_of_a_list_are_what_they_are_alone(rayed: Path) -> None:
    photos = [make_photo(48, 64, seed=seed) for seed in range(3)]
    predictor = Predictor.load(rayed, engine="torch", device="cpu")
    cameras = [Camera.from_fov((48, 64), fov) for fov in (30.0, 60.0, 90.0)]
    together = predictor(photos, camera=cameras)
    for photo, camera, found in zip(photos, cameras, together, strict=True):
        np.testing.assert_allclose(found.depth, predictor(photo, camera=camera).depth, rtol=0, atol=FLOAT32)
    assert np.abs(together[0].depth - predictor(photos[0], camera=cameras[2]).depth).max() > 0.01


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_converted_networks_take_rays(rayed: Path, tmp_path: Path, format: Any) -> None:
    export_checkpoint(read_checkpoint(rayed), tmp_path / "out", format=format)
    converted = read_checkpoint(tmp_path / "out")
    assert (converted.condition_on, converted.condition_channels) == ("rays", OF_IMAGE + 3)
    photo = make_photo(50, 70)
    theirs = Predictor.load(rayed, engine="torch", device="cpu")(photo, fov=80.0)
    ours = Predictor.load(tmp_path / "out")(photo, fov=80.0)
    np.testing.assert_allclose(ours.depth, theirs.depth, rtol=0, atol=HALF)


def test_a_wrong_number_of_channels_of_converted_networks_is_named(rayed: Path, tmp_path: Path) -> None:
    export_checkpoint(read_checkpoint(rayed), tmp_path / "onnx", format="onnx")
    edit_json(tmp_path / "onnx" / "model_index.json", condition_channels=5)
    with pytest.raises(CheckpointError, match=f"condition_channels is 5, and the networks have {OF_IMAGE + 3}"):
        Predictor.load(tmp_path / "onnx")


def test_a_copy_with_graphs_takes_rays(rayed: Path, tmp_path: Path) -> None:
    export_shared(read_checkpoint(rayed), tmp_path / "shared")
    photo = make_photo(50, 70)
    found = [
        Predictor.load(folder, engine=engine, device="cpu")(photo, fov=80.0).depth
        for folder, engine in ((rayed, "torch"), (tmp_path / "shared", "onnx"))
    ]
    np.testing.assert_allclose(*found, rtol=0, atol=HALF)


def test_new_inputs_change_nothing_until_they_learn() -> None:
    unet = make_unet(8, in_channels=20).eval()
    rng = torch.Generator().manual_seed(0)
    image, rays, latent = (torch.randn(1, count, 6, 8, generator=rng) for count in (12, 3, 8))
    context = torch.randn(1, 2, 16, generator=rng)
    with torch.no_grad():
        before = unet(torch.cat([image, latent], dim=1), 3, context).sample
        insert_inputs(unet, at=12, count=3)
        after = unet(torch.cat([image, rays, latent], dim=1), 3, context).sample
        assert unet.config["in_channels"] == unet.conv_in.in_channels == 23
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
        unet.conv_in.weight[:, 12:15] = 1.0
        assert (unet(torch.cat([image, rays, latent], dim=1), 3, context).sample - before).abs().max() > 1e-3


def test_guided_denoising_sees_the_rays_of_the_photos_camera(rayed: Path) -> None:
    predictor, photo = Predictor.load(rayed, engine="torch", device="cpu"), make_photo(48, 64)
    pixels = np.array([[5.0, 6.0], [40.0, 20.0], [60.0, 40.0]])
    points = SparsePoints(pixels=pixels, depth=np.array([1.0, 2.0, 3.0]))
    settings = GuidedSettings(num_inference_steps=1, iterations=1)
    method = guided_method(predictor, settings)
    maps = []
    for fov in (40.0, 90.0):
        camera = Camera.from_fov((48, 64), fov)
        relative = RelativeDepth(depth=np.ones((48, 64)), invariance="scale", camera=camera, rgb=photo)
        maps.append(method.run(relative, points, Options()).map())
        np.testing.assert_array_equal(maps[-1], guided(predictor, photo, points, settings, camera=camera).depth)
    assert np.abs(maps[0] - maps[1]).max() > 0.01
