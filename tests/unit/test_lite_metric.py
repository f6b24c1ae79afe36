# SPDX-License-Identifier: Apache-2.0
"""The recipe of metric depth: cameras of views, the loss without alignment, training from a model that sees no rays."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openmarigold import Predictor
from openmarigold.camera import Camera
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError, RecipeError
from openmarigold.modalities.metric import METRIC_HALF_RANGE, METRIC_MIDDLE
from openmarigold.networks.backbone import decode_to_image, load_vae
from openmarigold.training import train
from openmarigold.training.lite.loss import ABSOLUTE, UP_TO_SCALE, point_loss
from openmarigold.training.lite.recipes import ViewConfig
from openmarigold.training.lite.samples import draw_views, view_camera
from openmarigold.training.lite.targets import relief_of_start, target_of
from openmarigold.training.recipe import parse_recipe, read_recipe, to_table
from openmarigold.training.settings import DataConfig
from tiny import make_photo
from training_data import LITE, LOG_AUTOENCODER, write_training_data

STORED = (96, 128)
CAMERA = Camera(fx=110.0, fy=110.0, cx=60.0, cy=50.0, width=128, height=96)
FURTHER = """
kind = "lite"
modality = "metric"
condition_on = "rays"
autoencoder = "log-autoencoder/checkpoint"
start = "depth/checkpoint"
decoder_learning_rate_factor = 1.0
data = { sources = { rooms = 1.0 }, size = [32, 48], min_scale = 0.5, aspect_jitter = 0.1 }
encoder = { frozen = true }
optimization = { num_steps = 4, batch_size = 4, learning_rate = 1e-3, warmup_steps = 1, ema_decay = 0.9 }
run = { save_period_s = 0.0 }
checkpoint = { name = "tiny-metric", processing_resolution = 32 }
"""


def affine_of(
    *, left: float, top: float, size: tuple[float, float], turn: float = 0.0, flip: float = 1.0
) -> np.ndarray:
    """The matrix of a view of `size` (height, width) px whose middle lies half of that right of and below a corner."""
    half_width, half_height = size[1] / 2, size[0] / 2
    cos, sin = math.cos(turn), math.sin(turn)
    pixels = np.array(
        [
            [flip * cos * half_width, -sin * half_height, left + half_width - STORED[1] / 2],
            [flip * sin * half_width, cos * half_height, top + half_height - STORED[0] / 2],
        ]
    )
    return (pixels / np.array([[STORED[1] / 2], [STORED[0] / 2]])).astype(np.float32)


def same(found: Camera, wanted: Camera) -> None:
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-4), name


def test_the_camera_of_a_crop_follows_it() -> None:
    found = view_camera(CAMERA, affine_of(left=16, top=8, size=(64, 80)), (64, 80))
    same(found, CAMERA.cropped(top=8, left=16, size=(64, 80)))
    same(found, Camera(fx=110.0, fy=110.0, cx=44.0, cy=42.0, width=80, height=64))


def test_the_camera_of_a_resized_and_mirrored_crop_follows_it() -> None:
    found = view_camera(CAMERA, affine_of(left=16, top=8, size=(64, 80), flip=-1.0), (32, 80))
    same(found, CAMERA.cropped(top=8, left=16, size=(64, 80)).resized((32, 80)).mirrored())


def test_a_point_is_seen_where_its_ray_points_whatever_the_view() -> None:
    # Points at depth 1, in the picture and in a rolled view of it: the roll turns x and y, and leaves the depth.
    data = DataConfig(sources={"synthetic": 1.0}, size=(64, 80), min_scale=0.5, aspect_jitter=0.2)
    views = ViewConfig(rotation=40.0, rotated_share=1.0)
    drawn = draw_views(np.random.default_rng(2), 24, stored=STORED, data=data, views=views)
    row, column = (place.ravel() for place in np.mgrid[0:64:7, 0:80:7])
    for affine in drawn.arrays["affine"].astype(np.float64):
        view = view_camera(CAMERA, affine, (64, 80))
        place = affine @ np.stack([(2 * column + 1) / 80 - 1, (2 * row + 1) / 64 - 1, np.ones(len(row))])
        pixels = np.stack([(place[0] + 1) * 64 - 0.5, (place[1] + 1) * 48 - 0.5], axis=1)
        truth = CAMERA.unproject_at(pixels, np.ones(len(row)))
        ours = view.unproject_at(np.stack([column, row], axis=1).astype(float), np.ones(len(row)))
        turn = np.linalg.lstsq(ours[:, :2], truth[:, :2], rcond=None)[0]
        np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-5)  # nothing but a roll and a mirror
        np.testing.assert_allclose(ours[:, :2] @ turn, truth[:, :2], atol=1e-5)


def test_a_roll_of_oblong_pixels_is_refused() -> None:
    oblong = Camera(fx=110.0, fy=80.0, cx=60.0, cy=50.0, width=128, height=96)
    view_camera(oblong, affine_of(left=0, top=0, size=STORED), STORED)
    with pytest.raises(DataError, match=r"cannot be rolled; set views\.rotation to 0"):
        view_camera(oblong, affine_of(left=20, top=20, size=(40, 40), turn=0.3), (40, 40))


def test_the_loss_counts_the_scale() -> None:
    target = torch.rand(2, 1, 16, 16)
    weights = {"gradient_weight": 1.0, "far_weight": 0.5}
    torch.testing.assert_close(point_loss(target + 0.7, target, by=ABSOLUTE, **weights), torch.full((2,), 0.7))
    torch.testing.assert_close(
        point_loss(target + 0.7, target, by=UP_TO_SCALE, **weights), torch.zeros(2), atol=1e-6, rtol=0
    )


def test_decoded_values_are_logarithms_of_meters() -> None:
    target = target_of("metric")
    log_depth = torch.log(torch.tensor([0.2, 4.0, 80.0, float("nan")])).view(1, 1, 2, 2)
    picture = target.picture(log_depth)
    assert picture.shape == (1, 3, 2, 2)
    torch.testing.assert_close(target.values(picture[:, :1]).exp().flatten()[1], torch.tensor(4.0))
    # 0.2 and 80 m lie at the ends: log(4) -+ 3.
    torch.testing.assert_close(picture[0, 0].flatten(), torch.tensor([-0.9986, 0.0, 0.9986, 0.9986]), atol=1e-3, rtol=0)


def test_a_start_with_another_unit_keeps_its_relief() -> None:
    metric, normals = target_of("metric"), target_of("normals")
    assert relief_of_start({"space": "log"}, metric) == pytest.approx(2 / METRIC_HALF_RANGE)
    assert relief_of_start({"space": "metric_log"}, metric) == relief_of_start({"space": "log"}, normals) == 1
    assert relief_of_start({}, metric) == 1


def write_rooms(folder: Path, *, intrinsics: bool = True) -> Path:
    """Slanted planes with a camera each, the fields of view between 40 and 90 degrees."""
    rng = np.random.default_rng(4)
    encodings = {"depth": MapEncoding(kind="float32")}
    writer = ShardWriter(folder, name=folder.name, split="train", encodings=encodings, settings={})
    writer.begin()
    row, column = np.mgrid[0:48, 0:64]
    samples = []
    for number in range(6):
        depth = (1.0 + rng.uniform(0, 0.1) * row + rng.uniform(0, 0.1) * column).astype(np.float32)
        depth[:9, :9] = 0.0
        focal = 32 / math.tan(math.radians(20 + 5 * number))
        info = {"intrinsics": {"fx": focal, "fy": focal, "cx": 32.0, "cy": 24.0}} if intrinsics else {}
        rgb = make_photo(48, 64, seed=number)
        samples.append(
            NewSample(key=f"p-{number}", kind="rooms", scene=f"s{number}", rgb=rgb, maps={"depth": depth}, info=info)
        )
    writer.write(0, samples)
    writer.finish(1)
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with cameras, an autoencoder and a model of log depth, and one of metric depth trained from its weights."""
    folder = tmp_path_factory.mktemp("lite-metric")
    write_rooms(folder / "data" / "rooms")
    write_rooms(folder / "data" / "blind", intrinsics=False)
    write_training_data(folder / "data")
    (folder / "log.toml").write_text(LOG_AUTOENCODER)
    (folder / "lite.toml").write_text(LITE)
    (folder / "metric.toml").write_text(FURTHER)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for recipe, output in (("log", "log-autoencoder"), ("lite", "depth"), ("metric", "metric")):
            train(f"{recipe}.toml", data_dir=folder / "data", output_dir=folder / output, device="cpu")
    finally:
        os.chdir(before)
    return folder


def test_the_camera_of_a_sample(workspace: Path) -> None:
    data = ShardedDataset(workspace / "data" / "rooms")
    camera = data.camera(5)
    assert camera is not None and camera.fov == pytest.approx(90.0)
    same(camera, Camera(fx=32.0, fy=32.0, cx=31.5, cy=23.5, width=64, height=48))  # corners there, centers here
    assert ShardedDataset(workspace / "data" / "blind").camera(0) is None


def test_the_checkpoint_predicts_meters_by_its_camera(workspace: Path) -> None:
    index = json.loads((workspace / "metric" / "checkpoint" / "model_index.json").read_text())
    assert index["condition_on"] == "rays" and index["space"] == "metric_log"
    assert not index["scale_invariant"] and not index["shift_invariant"]
    predictor = Predictor.load(workspace / "metric" / "checkpoint", engine="torch", device="cpu")
    assert predictor.modality.name == "metric"
    found = predictor(make_photo(40, 56, seed=1))
    assert found.maps["depth"].shape == (40, 56) and (found.maps["depth"] > 0).all()
    assert found.settings["invariance"] == "absolute"
    weights = load_file(workspace / "metric" / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")
    rays = weights["conv_in.weight"][:, 20:23]
    assert weights["conv_in.weight"].shape[1] == 20 + 3 + 4 and bool((rays != 0).any()), "rays are learned"


def test_a_stopped_run_goes_on_to_the_same_bits(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    settings = {"data_dir": workspace / "data", "output_dir": workspace / "stopped", "device": "cpu"}
    assert train("metric.toml", stop_after_steps=2, **settings) is None
    assert train("metric.toml", **settings) is not None
    for part in ("unet", "vae"):
        path = Path("checkpoint") / part / "diffusion_pytorch_model.safetensors"
        whole, stopped = load_file(workspace / "metric" / path), load_file(workspace / "stopped" / path)
        assert all(torch.equal(whole[name], stopped[name]) for name in whole), part


def test_a_first_answer_is_the_start_s_in_meters(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A learning rate that moves nothing: what the start said of a photo, times a constant.
    monkeypatch.chdir(workspace)
    (workspace / "still.toml").write_text(FURTHER.replace("learning_rate = 1e-3", "learning_rate = 1e-12"))
    train("still.toml", data_dir=workspace / "data", output_dir=workspace / "still", device="cpu")
    photo = make_photo(48, 64, seed=2)
    before, after = (
        np.log(Predictor.load(workspace / name / "checkpoint", engine="torch", device="cpu")(photo).depth)
        for name in ("depth", "still")
    )
    assert before.std() > 1e-3
    np.testing.assert_allclose(after - after.mean(), before - before.mean(), atol=0.02)  # weights in half precision
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = (
            decode_to_image(load_vae(workspace / name / "checkpoint" / "vae"), latent) for name in ("depth", "still")
        )
    torch.testing.assert_close(new * METRIC_HALF_RANGE, old * 2.0, atol=0.02, rtol=0)
    assert math.isclose(METRIC_MIDDLE, math.log(4.0))


def test_data_without_intrinsics_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    for source, name in (("blind", "p-0"), ("synthetic", "rooms-0")):
        (workspace / "blind.toml").write_text(FURTHER.replace("{ rooms = 1.0 }", f"{{ {source} = 1.0 }}"))
        with pytest.raises(DataError, match=f"sample {name} of source {source} states no intrinsics"):
            train("blind.toml", data_dir=workspace / "data", output_dir=workspace / "blind", device="cpu")


def test_a_start_that_sees_rays_needs_them(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    blind = FURTHER.replace("depth/checkpoint", "metric/checkpoint")
    (workspace / "on.toml").write_text(blind)
    settings = {"data_dir": workspace / "data", "device": "cpu", "stop_after_steps": 1}
    assert train("on.toml", output_dir=workspace / "on", **settings) is None
    (workspace / "off.toml").write_text(blind.replace('condition_on = "rays"', ""))
    with pytest.raises(RecipeError, match=r"takes 27 channels, .* give 24; .* what its condition_on was"):
        train("off.toml", output_dir=workspace / "off", **settings)


def test_damaged_intrinsics_are_named(tmp_path: Path) -> None:
    folder = write_rooms(tmp_path / "rooms")
    data = ShardedDataset(folder)
    monkey = data.info(0) | {"intrinsics": {"fx": 0.0, "fy": 1.0, "cx": 0.0, "cy": 0.0}}
    data.info = lambda index: monkey  # type: ignore[method-assign]
    with pytest.raises(DataError, match="p-0: its intrinsics are not fx, fy, cx and cy"):
        data.camera(0)


def test_the_shipped_recipes_read_and_write_the_same() -> None:
    for name in ("lite-metric-1", "lite-metric-2"):
        recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml")
        assert parse_recipe(json.loads(json.dumps(to_table(recipe))), where=name) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('condition_on = "rays"', 'condition_on = "moods"', "condition_on"),
        ('modality = "metric"', 'modality = "meters"', "use one of depth, normals, metric"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "wrong.toml").write_text(FURTHER.replace(old, new))
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "wrong.toml")
