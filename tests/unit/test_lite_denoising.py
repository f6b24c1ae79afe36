# SPDX-License-Identifier: Apache-2.0
"""marigold-lite's networks with the paper's objective: noisy latents at any timestep, errors of the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from openmarigold import Predictor
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.shard_writer import NewSample, ShardWriter
from openmarigold.errors import RecipeError
from openmarigold.networks.backbone import encode_to_latent
from openmarigold.training.lite.denoising import DenoisingLiteTask
from openmarigold.training.lite.recipes import LiteRecipe
from openmarigold.training.recipe import read_recipe
from openmarigold.training.views import BatchSlice
from training_data import LITE, LOG_AUTOENCODER, train_in_turn, write_training_data

DENOISING = LITE.replace("[optimization]", '[loss]\nobjective = "denoising"\n\n[optimization]')
WHOLE = BatchSlice(step=0, micro_step=0, group_size=4, rows=slice(0, 4))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a trained autoencoder and a model that was trained with the paper's objective."""
    return train_in_turn(tmp_path_factory.mktemp("denoising"), log_autoencoder=LOG_AUTOENCODER, run=DENOISING)


def task_of(folder: Path, data: Path, text: str = DENOISING) -> DenoisingLiteTask:
    (data / "recipe.toml").write_text(text.replace("log-autoencoder", str(folder / "log-autoencoder")))
    recipe = read_recipe(data / "recipe.toml")
    assert isinstance(recipe, LiteRecipe)
    return DenoisingLiteTask(recipe, data_dir=data, accelerator=Accelerator(cpu=True))


class Oracle(nn.Module):
    """Knows the clean latents, and answers with v = signal * noise - amount * clean; keeps what it was shown."""

    def __init__(self, task: DenoisingLiteTask, clean: Tensor, error: float = 0.0) -> None:
        super().__init__()
        self.task, self.clean, self.error = task, clean, error

    def forward(self, image: Tensor, noisy: Tensor, rows: Tensor, rays: None, timesteps: Tensor) -> Tensor:
        assert rows.tolist() == list(range(len(image)))
        signal, amount = self.task._schedule.coefficients(timesteps.numpy())
        signal, amount = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 1, 1) for part in (signal, amount))
        noise = (noisy - signal * self.clean) / amount
        self.noise = noise
        return signal * noise - amount * self.clean + self.error


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def clean_latents(task: DenoisingLiteTask, batch: dict[str, Tensor]) -> Tensor:
    _, target = task.views(batch)
    with torch.no_grad():
        return encode_to_latent(task._vae, task._target.picture(target))


def test_whoever_knows_the_map_has_no_loss_at_any_timestep(workspace: Path, tmp_path: Path) -> None:
    write_training_data(tmp_path)
    task = task_of(workspace, tmp_path)
    batch = tensors(task.batch(WHOLE))
    oracle = Oracle(task, clean_latents(task, batch))
    assert len(batch["timesteps"].unique()) > 1
    assert float(task.loss(oracle, batch).total) == pytest.approx(0.0, abs=1e-4)
    assert torch.allclose(oracle.noise, batch["noise"], atol=1e-3)
    oracle.error = 0.5
    loss = task.loss(oracle, batch)
    assert float(loss.total / loss.count) == pytest.approx(0.25, rel=1e-3)


def test_only_cells_whose_pixels_are_known_or_far_count(workspace: Path, tmp_path: Path) -> None:
    write_training_data(tmp_path)
    encodings = {"depth": MapEncoding(kind="float32")}
    writer = ShardWriter(tmp_path / "labels", name="labels", split="train", encodings=encodings, settings={})
    writer.begin()
    depth = np.full((48, 64), 2.0, dtype=np.float32)
    depth[:, :32] = 0  # unsure
    for number in range(4):
        rgb = np.full((48, 64, 3), 60 * number, dtype=np.uint8)
        writer.write(number, [NewSample(key=f"s-{number}", kind="photos", scene="s", rgb=rgb, maps={"depth": depth})])
    writer.finish(4, {"unknown_is_far": False})
    still = DENOISING.replace("min_scale = 0.5, aspect_jitter = 0.1", "min_scale = 1.0").replace("[32, 48]", "[48, 64]")
    still = still.replace("views = { other_sizes = [[48, 32]], other_share = 0.5 }", "views = { rotation = 0.0 }")
    counted = {}
    for source in ("synthetic", "labels"):
        task = task_of(workspace, tmp_path, still.replace("synthetic = 1.0", f"{source} = 1.0"))
        batch = tensors(task.batch(WHOLE))
        oracle = Oracle(task, clean_latents(task, batch), error=1.0)
        counted[source] = float(task.loss(oracle, batch).count)
    cells = 4 * 4 * (48 // 8) * (64 // 8)  # samples, channels, rows, columns
    assert counted["synthetic"] == cells  # skies are far
    assert counted["labels"] == cells / 2


@pytest.mark.parametrize(("annealed", "low"), [(True, 0.5), (False, 1.3)])
def test_noise_is_coarse_as_the_recipe_says(workspace: Path, tmp_path: Path, annealed: bool, low: float) -> None:
    write_training_data(tmp_path)
    text = DENOISING.replace("[optimization]", f"[noise]\nannealed = {str(annealed).lower()}\n\n[optimization]")
    task = task_of(workspace, tmp_path, text)
    found = task.draw_starts(np.random.default_rng(0), (256, 2, 4, 16, 16))
    assert found["noise"].shape == (256, 4, 16, 16) and found["noise"].dtype == np.float32
    coarse = found["noise"].mean(axis=(2, 3)).std(axis=1) * 16  # 1 for white noise
    early = found["timesteps"] < 200
    ratio = coarse[early].mean() / coarse[~early].mean()
    assert (ratio < low) if annealed else (1 / low < ratio < low)


def test_micro_batches_see_the_samples_of_the_batch(workspace: Path, tmp_path: Path) -> None:
    write_training_data(tmp_path)
    task = task_of(workspace, tmp_path)
    whole = task.batch(WHOLE)
    part = task.batch(BatchSlice(step=0, micro_step=0, group_size=4, rows=slice(2, 4)))
    for name in ("noise", "timesteps", "rgb", "affine"):
        assert np.array_equal(whole[name][2:4], part[name]), name


def test_the_checkpoint_predicts_from_noise_in_a_few_steps(workspace: Path) -> None:
    index: dict[str, Any] = json.loads((workspace / "run/checkpoint/model_index.json").read_text())
    assert (index["default_denoising_steps"], index["start_noise"]) == (4, "gaussian")
    assert "ensemble_noise_scale" not in index
    predictor = Predictor.load(workspace / "run/checkpoint", engine="torch")
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    one, four = (predictor(photo, num_inference_steps=count).depth for count in (1, 4))
    assert np.isfinite(four).all() and not np.array_equal(one, four)
    assert not np.array_equal(four, predictor(photo, num_inference_steps=4, seed=5).depth)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[loss]", "decoder_learning_rate_factor = 0.5\n[loss]", "does not see the decoder"),
        ('objective = "denoising"', "[noise]\nstrength = 0.0", r"\[noise\] has no effect"),
        ('objective = "denoising"', "[timesteps]\nlast_share = 0.5", "timesteps.last_share has no effect"),
        ('"denoising"', '"diffusion"', "objective"),
        ("processing_resolution = 32", "processing_resolution = 30", "processing_resolution.*multiple of 8"),
        ("resolution = 32", "resolution = 32, coarse_resolution = 32", "coarse_resolution=32 must be less than"),
    ],
)
def test_values_without_effect_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "wrong.toml").write_text(DENOISING.replace(old, new, 1))
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "wrong.toml")


def test_a_start_in_another_unit_is_refused(workspace: Path, tmp_path: Path) -> None:
    write_training_data(tmp_path)
    start = f'start = "{workspace / "run" / "checkpoint"}"\nmodality = "metric"'
    with pytest.raises(RecipeError, match="another unit"):
        task_of(workspace, tmp_path, DENOISING.replace("[loss]", f"{start}\n[loss]", 1))
