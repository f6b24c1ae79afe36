# SPDX-License-Identifier: Apache-2.0
"""The recipes of the embedded models with normals: views of analytic planes, losses, training in a row."""

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
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.errors import RecipeError
from openmarigold.geometry import normals_from_depth
from openmarigold.networks.prompt import load_empty_prompt_embedding
from openmarigold.training import train
from openmarigold.training.lite.loss import BY_ANGLE, angular_distance, averted, pair_loss, point_loss
from openmarigold.training.lite.recipes import MODALITIES, ViewConfig
from openmarigold.training.lite.samples import cut_normals, draw_views, pack_normals
from openmarigold.training.lite.targets import TARGETS, target_of
from openmarigold.training.recipe import parse_recipe, read_recipe, to_table
from openmarigold.training.settings import DataConfig
from tiny import make_photo
from training_data import LITE, LOG_AUTOENCODER, write_training_data

STORED = (96, 128)
WHOLE = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
FOCAL = 110.0


def plane(normal: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A unit normal (x right, y up, z backward), and 1/z of its plane as a, b, c: a + b * column + c * row."""
    unit = np.array(normal) / np.linalg.norm(normal)
    x, y, z = unit
    # On the plane n . p = -distance, with p = z * ((column - cx) / f, -(row - cy) / f, -1).
    center_x, center_y = (STORED[1] - 1) / 2, (STORED[0] - 1) / 2
    slope_x, slope_y = -x / FOCAL, y / FOCAL
    return unit, np.array([z - slope_x * center_x - slope_y * center_y, slope_x, slope_y])


@pytest.mark.parametrize("normal", [[0.3, 0.1, 1.0], [-0.5, 0.4, 0.9], [0.1, 0.8, 0.6], [0.0, 0.0, 1.0]])
def test_normals_turn_with_the_view(normal: list[float]) -> None:
    # The depth of the plane at the view's own pixels, seen by the view's camera, says what its normal is there.
    unit, inverse_depth = plane(normal)
    data = DataConfig(sources={"synthetic": 1.0}, size=(64, 80), min_scale=0.5)
    views = ViewConfig(rotation=40.0, rotated_share=1.0)
    affine = draw_views(np.random.default_rng(1), 24, stored=STORED, data=data, views=views).arrays["affine"]
    maps = {"normals": np.broadcast_to(unit.astype(np.float32), (*STORED, 3))}
    code = torch.from_numpy(pack_normals(maps, np.ones(STORED, dtype=bool)))
    cut = cut_normals(code.expand(24, -1, -1, -1), torch.from_numpy(affine), size=(64, 80)).numpy()
    mirrored = 0
    for matrix, found in zip(affine.astype(np.float64), cut, strict=True):
        row, column = np.mgrid[0:64, 0:80]
        # Pixel centers from -1 to 1 over the sides, in the view and in the picture.
        place = np.stack([(column + 0.5) / 40 - 1, (row + 0.5) / 32 - 1, np.ones(row.shape)])
        x, y = np.einsum("ij,jhw->ihw", matrix, place)
        in_picture = np.stack([np.ones(row.shape), (x + 1) * 64 - 0.5, (y + 1) * 48 - 0.5])
        depth = 1.0 / np.einsum("i,ihw->hw", inverse_depth, in_picture)
        right = matrix[:, 0] * [64, 48] / 40  # the picture's pixels in one of the view
        center = np.linalg.solve(matrix[:, :2], -matrix[:, 2])
        view = normals_from_depth(
            depth,
            focal=FOCAL / np.linalg.norm(right),
            center=((center[0] + 1) * 40 - 0.5, (center[1] + 1) * 32 - 0.5),
        )[0]
        assert np.abs(found.transpose(1, 2, 0) - view).max() < 0.01
        mirrored += np.linalg.det(matrix[:, :2]) < 0
    assert 0 < mirrored < 24


def test_a_mirrored_view_negates_x_and_a_roll_turns_x_and_y() -> None:
    code = torch.tensor([60, 40, 104], dtype=torch.int8).expand(1, *STORED, 3)
    whole = cut_normals(code, WHOLE, size=STORED)[0, :, 0, 0]
    mirrored = cut_normals(code, WHOLE * torch.tensor([-1.0, 1, 1]), size=STORED)[0, :, 0, 0]
    assert torch.allclose(whole, torch.nn.functional.normalize(torch.tensor([60.0, 40, 104]), dim=0))
    assert torch.allclose(mirrored, whole * torch.tensor([-1.0, 1, 1]))
    # The view's right is the picture's down: what pointed up points left, what pointed right points up.
    quarter = torch.tensor([[[0.0, -0.75, 0], [1.0, 0, 0]]])
    turned = cut_normals(code, quarter, size=(96, 72))[0, :, 0, 0]
    assert torch.allclose(turned, whole[[1, 0, 2]] * torch.tensor([-1.0, 1, 1]), atol=1e-6)


def test_unknown_normals_stay_unknown_and_others_are_kept_to_half_a_degree() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((*STORED, 3)).astype(np.float32)
    valid = rng.random(STORED) < 0.8
    cut = cut_normals(torch.from_numpy(pack_normals({"normals": vectors}, valid))[None], WHOLE, size=STORED)[0]
    assert np.array_equal(~torch.isnan(cut).any(dim=0).numpy(), valid)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosine = (cut.permute(1, 2, 0).numpy() * unit).sum(axis=-1)[valid]
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 0.5


def facing(count: int = 2) -> torch.Tensor:
    return torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(count, 3, 24, 32).clone()


def tilted(degrees: float, length: float = 1.0) -> torch.Tensor:
    angle = math.radians(degrees)
    return length * torch.tensor([math.sin(angle), 0.0, math.cos(angle)]).view(1, 3, 1, 1).expand(2, 3, 24, 32)


def test_the_distance_is_the_angle_and_the_difference() -> None:
    valid = torch.ones(2, 1, 24, 32, dtype=torch.bool)
    found = angular_distance(tilted(30), facing(), valid, gradient_weight=1.0)
    wanted = math.radians(30) + math.sin(math.radians(30)) + 1 - math.cos(math.radians(30))
    assert torch.allclose(found, torch.tensor([wanted] * 2), atol=1e-4)
    longer = angular_distance(tilted(30, 1.5), facing(), valid, gradient_weight=1.0)
    assert (longer > found).all()


def test_unknown_pixels_count_only_by_facing_the_camera() -> None:
    target = facing()
    target[:, :, :12] = torch.nan
    answer = tilted(20).clone()
    answer[:, :, 12:] = facing()[:, :, 12:]
    weights = {"gradient_weight": 1.0, "by": BY_ANGLE}
    assert torch.allclose(point_loss(answer, target, far_weight=0.0, **weights), torch.zeros(2), atol=2e-3)
    assert torch.allclose(averted(answer, target), torch.tensor([math.radians(20) / 2] * 2), atol=1e-4)
    assert (point_loss(answer, target, far_weight=1.0, **weights) > 0.1).all()


def test_a_pair_of_normals_gains_by_the_right_spread() -> None:
    # The truth is tilted to the left or to the right by 30 degrees; a pair that covers both beats its mean.
    target = torch.cat([tilted(30), tilted(-30)])
    members = {
        "sure": (torch.cat([facing(), facing()]),) * 2,
        "spread": (torch.cat([tilted(30), tilted(30)]), torch.cat([tilted(-30), tilted(-30)])),
        "wild": (torch.cat([tilted(80), tilted(80)]), torch.cat([tilted(-80), tilted(-80)])),
    }
    settings = {"gradient_weight": 0.0, "far_weight": 0.0, "by": BY_ANGLE}
    found = {name: float(pair_loss(*pair, target, **settings).mean()) for name, pair in members.items()}
    assert found["spread"] < min(found["sure"], found["wild"])


AUTOENCODER = """
kind = "log_autoencoder"
modality = "normals"
data = { sources = { planes = 1.0 }, size = [32, 48], min_scale = 0.5 }
model = { latent_channels = 4, width = 8, encoder_blocks = [0, 1, 1, 1], decoder_blocks = [1, 1, 1, 0] }
optimization = { num_steps = 6, batch_size = 2, learning_rate = 1e-3, warmup_steps = 2, ema_decay = 0.9 }
"""
# Keys of the top level after `start`; the tables follow.
FURTHER = """
kind = "lite"
modality = "normals"
autoencoder = "autoencoder/checkpoint"
start = "{start}"
start_without_middle = true
decoder_learning_rate_factor = 0.5
data = {{ sources = {{ planes = 1.0 }}, size = [32, 48], min_scale = 0.5, appearance = 1.0 }}
encoder = {{ frozen = true }}
optimization = {{ num_steps = 4, batch_size = 4, learning_rate = 1e-3, warmup_steps = 1, ema_decay = 0.9 }}
run = {{ save_period_s = 0.0 }}
checkpoint = {{ name = "tiny-normals", processing_resolution = 32 }}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of tilted planes, an autoencoder, a model of depth, and one of normals trained from its weights."""
    folder = tmp_path_factory.mktemp("lite-normals")
    write_planes(folder / "data" / "planes")
    write_training_data(folder / "data")
    (folder / "autoencoder.toml").write_text(AUTOENCODER)
    (folder / "log.toml").write_text(LOG_AUTOENCODER)
    (folder / "lite.toml").write_text(LITE)
    (folder / "normals.toml").write_text(FURTHER.format(start="depth/checkpoint"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        for recipe, output in (
            ("autoencoder", "autoencoder"),
            ("log", "log-autoencoder"),
            ("lite", "depth"),
            ("normals", "normals"),
        ):
            train(f"{recipe}.toml", data_dir=folder / "data", output_dir=folder / output, device="cpu")
    finally:
        os.chdir(before)
    return folder


def write_planes(folder: Path) -> None:
    rng = np.random.default_rng(3)
    encodings = {"normals": MapEncoding(kind="float16")}
    writer = ShardWriter(folder, name="planes", split="train", encodings=encodings, settings={})
    writer.begin()
    samples = []
    for number in range(6):
        unit, _ = plane([*rng.uniform(-0.5, 0.5, 2), 1.0])
        maps = {"normals": np.tile(unit.astype(np.float32), (48, 64, 1))}
        maps["normals"][:9, :9] = 0.0
        rgb = make_photo(48, 64, seed=number)
        samples.append(NewSample(key=f"p-{number}", kind="rooms", scene=f"s{number}", rgb=rgb, maps=maps))
    writer.write(0, samples)
    writer.finish(1)


def weights_of(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / part / "diffusion_pytorch_model.safetensors")


def test_a_frozen_encoder_stays_and_the_rest_learns(workspace: Path) -> None:
    before, after = (weights_of(workspace / name, "image_encoder") for name in ("depth", "normals"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    unet = weights_of(workspace / "normals", "unet")
    assert not any(name.startswith("mid_block.") for name in unet)
    assert unet.keys() == {name for name in weights_of(workspace / "depth", "unet") if not name.startswith("mid_block")}
    autoencoder, trained = weights_of(workspace / "autoencoder", "vae"), weights_of(workspace / "normals", "vae")
    changed = {name.split(".")[0] for name in trained if not torch.equal(trained[name], autoencoder[name].half())}
    assert changed == {"decoder"}


def test_the_prompt_of_the_start_is_kept(workspace: Path) -> None:
    embeddings = [load_empty_prompt_embedding(workspace / name / "checkpoint") for name in ("depth", "normals")]
    assert torch.equal(*embeddings)


def test_the_checkpoint_predicts_normals(workspace: Path) -> None:
    photo = make_photo(40, 56, seed=1)
    predictor = Predictor.load(workspace / "normals" / "checkpoint", engine="torch", device="cpu")
    assert predictor.checkpoint.modality.name == "normals"
    found = predictor(photo)
    assert found.maps["normals"].shape == (40, 56, 3)
    np.testing.assert_allclose(np.linalg.norm(found.maps["normals"], axis=-1), 1.0, atol=1e-5)
    ensemble = predictor(photo, ensemble_size=3)
    assert ensemble.uncertainty is not None


def test_a_stopped_run_of_normals_goes_on_to_the_same_bits(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    settings = {"data_dir": workspace / "data", "output_dir": workspace / "stopped", "device": "cpu"}
    assert train("normals.toml", stop_after_steps=2, **settings) is None
    assert train("normals.toml", **settings) is not None
    for part in ("unet", "image_encoder", "vae"):
        whole, stopped = (weights_of(workspace / name, part) for name in ("normals", "stopped"))
        assert all(torch.equal(whole[name], stopped[name]) for name in whole), part


def test_an_autoencoder_is_trained_further_from_one_of_its_shape(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    settings = {"data_dir": workspace / "data", "output_dir": workspace / "further", "device": "cpu"}
    started = AUTOENCODER.replace('modality = "normals"', 'modality = "normals"\nstart = "log-autoencoder/checkpoint"')
    (workspace / "further.toml").write_text(started)
    assert train("further.toml", stop_after_steps=1, **settings) is None
    losses = [
        json.loads((workspace / name / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("autoencoder", "further")
    ]
    assert losses[0] != losses[1]  # the same views by other weights
    (workspace / "misfit.toml").write_text(started.replace("width = 8", "width = 12"))
    with pytest.raises(RecipeError, match="another shape"):
        train("misfit.toml", data_dir=workspace / "data", output_dir=workspace / "misfit", device="cpu")


def test_what_the_recipes_accept_has_a_target() -> None:
    assert set(MODALITIES) == set(TARGETS)
    for name in MODALITIES:
        assert target_of(name).modality.name == name


def test_the_shipped_recipes_read_and_write_the_same() -> None:
    for name in ("lite-normals-1-autoencoder", "lite-normals-2", "lite-normals-3"):
        recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml")
        assert parse_recipe(json.loads(json.dumps(to_table(recipe))), where=name) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('modality = "normals"', 'modality = "brightness"', "use one of depth, normals"),
        ("factor = 0.5", "factor = 1.5", r"in \[0, 1\]"),
        ('start = "depth/checkpoint"', "", "needs start"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "wrong.toml").write_text(FURTHER.format(start="depth/checkpoint").replace(old, new))
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "wrong.toml")
