# SPDX-License-Identifier: Apache-2.0
"""The three recipes in a row, killed and resumed, down to a prediction; and what bad recipes and data are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from openmarigold.cli import run
from openmarigold.errors import CheckpointError, DataError, RecipeError
from openmarigold.networks.backbone import load_unet, load_vae
from openmarigold.predictor import Predictor
from openmarigold.training import train
from openmarigold.training.recipe import read_recipe
from openmarigold.training.views import BatchSlice, Mixture
from training_data import AUTOENCODER, DEPTH, write_training_data


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


@pytest.fixture
def whole(in_workspace: Path) -> Path:
    """The folder of a run of the third recipe, which is made once."""
    folder = in_workspace / "whole"
    if not folder.exists():
        train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=folder, device="cpu")
    return folder


def test_recipes_in_a_row_end_in_a_model_that_predicts(in_workspace: Path, whole: Path) -> None:
    checkpoint = whole / "checkpoint"
    assert len(losses(whole)) == 12
    generator, depth = load_unet(Path("generator/checkpoint/unet")), load_unet(checkpoint / "unet")
    assert generator.config["in_channels"] == 4
    assert depth.config["in_channels"] == 8
    # The autoencoder stays frozen: the same weights from the first recipe to the last.
    first, last = load_vae(Path("autoencoder/checkpoint/vae")), load_vae(checkpoint / "vae")
    for name, value in first.state_dict().items():
        assert torch.equal(value.half(), last.state_dict()[name].half()), name
    stored = load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    rgb = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    prediction = Predictor.load(checkpoint)(rgb)
    assert prediction.depth.shape == (40, 56)
    assert 0 <= prediction.depth.min() <= prediction.depth.max() <= 1


def test_killed_run_resumes_with_the_same_losses(in_workspace: Path, whole: Path) -> None:
    killed = in_workspace / "killed"
    command = [sys.executable, "-m", "openmarigold", "train", "--recipe", "depth.toml"]
    command += ["--data-dir", "data", "--output-dir", str(killed)]
    process = subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((killed / "states").glob("step-0000000[3-9]")):
        assert process.poll() is None, process.stderr.read().decode()  # pyright: ignore[reportOptionalMemberAccess]
        assert time.monotonic() < deadline, "the run did not save a state in time"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(losses(killed)) < 12, "the run ended before it was killed"
    train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=killed, device="cpu")
    assert losses(killed) == losses(whole)
    ours, theirs = load_unet(killed / "checkpoint" / "unet"), load_unet(whole / "checkpoint" / "unet")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert sorted(path.name for path in (killed / "states").iterdir()) == ["step-00000012"]


@pytest.mark.parametrize(("start_noise", "error"), [("gaussian", "relative"), ("zeros", "absolute")])
def test_end_to_end_objective_learns_and_resumes(
    in_workspace: Path, tmp_path: Path, start_noise: str, error: str
) -> None:
    recipe = tmp_path / "end_to_end.toml"
    objective = f'objective = {{ kind = "end_to_end", start_noise = "{start_noise}", error = "{error}" }}\n'
    text = DEPTH.replace("[optimization]", f"{objective}[optimization]").replace("num_steps = 12", "num_steps = 40")
    # States and checkpoints on the way and mixed precision are tested above, and take most of the time.
    for given, other in (
        ("timesteps = { last_share = 0.25 }\n", ""),
        ("save_period_s = 0.0, validation_period = 5", ""),
        ('"bf16"', '"no"'),
    ):
        assert given in text
        text = text.replace(given, other)
    recipe.write_text(text)
    settings = {"data_dir": in_workspace / "data", "device": "cpu"}
    train(recipe, output_dir=tmp_path / "halved", stop_after_steps=15, **settings)
    checkpoint = train(recipe, output_dir=tmp_path / "halved", **settings)
    train(recipe, output_dir=tmp_path / "whole", stop_after_steps=20, **settings)
    found = losses(tmp_path / "halved")
    assert found[:20] == losses(tmp_path / "whole")
    assert np.mean(found[-10:]) < np.mean(found[:10])
    assert json.loads((checkpoint / "model_index.json").read_text())["start_noise"] == start_noise
    rgb = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    assert np.ptp(Predictor.load(checkpoint)(rgb).depth) > 0


def test_errors_in_meters_are_those_of_the_normalized_map_times_its_range(in_workspace: Path, tmp_path: Path) -> None:
    """One step with one picture: -1 to 1 of its target stands for the meters between its quantiles."""
    found = {}
    for error in ("absolute", "meters"):
        recipe = tmp_path / f"{error}.toml"
        objective = f'objective = {{ kind = "end_to_end", start_noise = "zeros", error = "{error}" }}\n'
        text = DEPTH.replace("[optimization]", f"{objective}[optimization]").replace("batch_size = 2", "batch_size = 1")
        text = text.replace("timesteps = { last_share = 0.25 }\n", "").replace('"bf16"', '"no"')
        recipe.write_text(text)
        train(recipe, data_dir=in_workspace / "data", output_dir=tmp_path / error, device="cpu", stop_after_steps=1)
        (found[error],) = losses(tmp_path / error)
    config = read_recipe(tmp_path / "meters.toml").data
    mixture = Mixture(config, data_dir=in_workspace / "data", seed=2024)
    _, chosen, _ = mixture.choose("depth", BatchSlice(0, 0, 1, slice(0, 1)), 1)
    target = mixture.view(int(chosen[0])).target
    assert target is not None
    near, far = target.bounds
    assert found["meters"] / found["absolute"] == pytest.approx((far - near) / 2, rel=1e-4)


def test_stopping_early_and_resuming_equals_one_run(in_workspace: Path) -> None:
    """Also for a recipe that averages weights and draws its views anew each step."""
    settings = {"data_dir": in_workspace / "data", "device": "cpu"}
    train(Path("autoencoder.toml"), output_dir=in_workspace / "halved", stop_after_steps=3, **settings)
    assert not (in_workspace / "halved" / "checkpoint").exists()
    train(Path("autoencoder.toml"), output_dir=in_workspace / "halved", **settings)
    assert losses(in_workspace / "halved") == losses(in_workspace / "autoencoder")


def test_changed_recipe_does_not_resume(in_workspace: Path) -> None:
    Path("changed.toml").write_text(AUTOENCODER.replace("learning_rate = 1e-3", "learning_rate = 2e-3"))
    before = (in_workspace / "autoencoder" / "recipe.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"optimization\.learning_rate changed"):
        train(Path("changed.toml"), data_dir=in_workspace / "data", output_dir=in_workspace / "autoencoder")
    assert (in_workspace / "autoencoder" / "recipe.json").read_bytes() == before
    Path("changed.toml").write_text(
        AUTOENCODER.replace("photos = 0.5, synthetic = 0.5", "synthetic = 0.5, photos = 0.5")
    )
    with pytest.raises(CheckpointError, match=r"data\.sources changed"):
        train(Path("changed.toml"), data_dir=in_workspace / "data", output_dir=in_workspace / "autoencoder")


def test_changed_base_or_data_does_not_resume(in_workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=output, device="cpu", stop_after_steps=1)
    other = write_training_data(tmp_path / "data", num_pairs=5)
    with pytest.raises(
        CheckpointError, match=r"from something else \(autoencoder or data, the data's bytes changed since\)"
    ):
        train(Path("depth.toml"), data_dir=other, output_dir=output, device="cpu")
    shutil.copytree("generator/checkpoint", tmp_path / "generator")
    weights = tmp_path / "generator" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    Path("generator/checkpoint").rename("generator/original")
    shutil.copytree(tmp_path / "generator", "generator/checkpoint")
    try:
        with pytest.raises(CheckpointError, match="base changed since"):
            train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=output, device="cpu")
    finally:
        shutil.rmtree("generator/checkpoint")
        Path("generator/original").rename("generator/checkpoint")


def test_a_flipped_bit_of_the_data_does_not_train_on(in_workspace: Path, tmp_path: Path) -> None:
    data = write_training_data(tmp_path / "data")
    settings = {"data_dir": data, "device": "cpu", "stop_after_steps": 1}
    for recipe in ("autoencoder", "depth"):
        train(Path(f"{recipe}.toml"), output_dir=tmp_path / recipe, **settings)
    shard = next((data / "synthetic").glob("train-*.tar"))
    content = bytearray(shard.read_bytes())
    content[700] ^= 1  # within the first picture
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"from something else \(the data's bytes changed since\)"):
        train(Path("autoencoder.toml"), output_dir=tmp_path / "autoencoder", **settings)
    with pytest.raises(CheckpointError, match=r"from something else \(the data's bytes changed since\)"):
        train(Path("depth.toml"), output_dir=tmp_path / "depth", **settings)


def test_a_damaged_state_is_passed_over(in_workspace: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    text = Path("depth.toml").read_text().replace("run = {", "run = { keep_states = 2,")
    recipe = tmp_path / "depth.toml"
    recipe.write_text(text)
    settings = {"data_dir": in_workspace / "data", "device": "cpu", "output_dir": output}
    train(recipe, stop_after_steps=2, **settings)
    train(recipe, stop_after_steps=4, **settings)
    expected = losses(output)
    tensors = output / "states" / "step-00000004" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    train(recipe, stop_after_steps=4, **settings)
    assert losses(output) == expected
    assert "step-00000004" in [path.name for path in (output / "states").iterdir()]


def test_no_resume_forgets_everything(in_workspace: Path, tmp_path: Path) -> None:
    settings = {"data_dir": in_workspace / "data", "output_dir": tmp_path / "run", "device": "cpu"}
    train(Path("autoencoder.toml"), **settings, stop_after_steps=5)
    train(Path("autoencoder.toml"), **settings, stop_after_steps=2, resume=False)
    assert [path.name for path in (tmp_path / "run" / "states").iterdir()] == ["step-00000002"]
    assert losses(tmp_path / "run") == losses(in_workspace / "autoencoder")[:2]


def test_validation_lines_are_not_repeated(in_workspace: Path, tmp_path: Path) -> None:
    settings = {"data_dir": in_workspace / "data", "output_dir": tmp_path / "run", "device": "cpu"}
    for _ in range(2):
        train(Path("generator.toml"), **settings)
    lines = (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6]


def test_missing_data_and_base(in_workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no photos-\*\.tar in .*--data-dir"):
        train(Path("autoencoder.toml"), data_dir=tmp_path, output_dir=tmp_path / "run")
    Path("orphan.toml").write_text(DEPTH.replace("generator/checkpoint", "nowhere"))
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        train(Path("orphan.toml"), data_dir=in_workspace / "data", output_dir=tmp_path / "run")


def test_unknown_key_is_one_line_on_the_command_line(
    in_workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("typo.toml").write_text(DEPTH.replace("learning_rate", "learning_rat"))
    with pytest.raises(RecipeError, match=r"did you mean optimization\.learning_rate"):
        train(Path("typo.toml"), data_dir=in_workspace / "data", output_dir=tmp_path / "run")
    assert run(["train", "--recipe", "typo.toml", "--data-dir", "data", "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.strip().count("\n") == 0
    assert "unknown key optimization.learning_rat; did you mean optimization.learning_rate?" in error
    assert not (tmp_path / "run").exists()
