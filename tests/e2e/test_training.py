# SPDX-License-Identifier: Apache-2.0
"""The three recipes in a row, killed and resumed, down to a prediction; and what bad recipes and data are told."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from openmarigold.cli import run
from openmarigold.errors import CheckpointError, DataError, RecipeError
from openmarigold.networks.backbone import load_unet, load_vae
from openmarigold.predictor import Predictor
from openmarigold.training import latents, train
from openmarigold.training.latents import Latents
from openmarigold.training.loop import make_accelerator
from openmarigold.training.marigold import MarigoldTask
from openmarigold.training.recipe import DataConfig, MarigoldRecipe, read_recipe
from openmarigold.training.views import BatchSlice, Mixture
from training_data import AUTOENCODER, DEPTH, GENERATOR, write_training_data


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, recipes, a trained autoencoder and a trained generator."""
    folder = tmp_path_factory.mktemp("training")
    write_training_data(folder / "data")
    for name, text in (("autoencoder", AUTOENCODER), ("generator", GENERATOR), ("depth", DEPTH)):
        (folder / f"{name}.toml").write_text(text)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name in ("autoencoder", "generator"):
            train(folder / f"{name}.toml", data_dir=folder / "data", output_dir=folder / name, device="cpu")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    return workspace


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


def open_latents(workspace: Path, cache_dir: Path | None, config: DataConfig, *, form: str = "latents") -> Latents:
    return Latents(
        Mixture(config, data_dir=workspace / "data", seed=0),
        vae=load_vae(workspace / "autoencoder" / "checkpoint" / "vae"),
        cache_dir=cache_dir,
        accelerator=make_accelerator("no", "cpu"),
        target_form=form,  # pyright: ignore[reportArgumentType]
    )


PAIRS = DataConfig(sources={"synthetic": 1.0}, size=(32, 48), num_variants=2)


def test_interrupted_encoding_continues(in_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents of an encoding that was killed between two shards are those of one that was not."""
    monkeypatch.setattr(latents, "SHARD_BYTES", 1000)  # two views
    open_latents(in_workspace, tmp_path / "whole", PAIRS)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*/*.rows"))
    assert len(names) == 6
    encode, calls = Latents._encode, []

    def failing(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 10:  # of 24: in the third shard
            raise KeyboardInterrupt
        return encode(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Latents, "_encode", failing)
    with pytest.raises(KeyboardInterrupt):
        open_latents(in_workspace, tmp_path / "killed", PAIRS)
    first = sorted(path.name for path in (tmp_path / "killed").glob("*/*.rows"))
    assert len(first) == 2 and set(first) < set(names)
    open_latents(in_workspace, tmp_path / "killed", PAIRS)
    assert len(calls) == 10 + 16, "only the four files that were not whole are encoded again"
    (folder,) = (path.name for path in (tmp_path / "whole").iterdir())
    for name in names:
        killed, whole = (tmp_path / run / folder / name for run in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("form", "more"),
    [
        ("none", {}),
        ("latents", {}),
        ("maps", {}),
        ("latents", {"latents": "float32"}),
        ("maps", {"latents": "float32"}),
    ],
)
def test_kept_latents_are_those_computed_anew(
    in_workspace: Path, tmp_path: Path, form: str, more: dict[str, Any]
) -> None:
    config = dataclasses.replace(PAIRS, min_scale=0.5, appearance=1.0, **more)
    indices = np.array([3, 0, 11, 3])
    found = []
    for cache_dir in (tmp_path / "kept", None):
        source = open_latents(in_workspace, cache_dir, config, form=form)
        batch = {name: torch.from_numpy(value) for name, value in source.batch(indices).items()}
        found.append(source.encoded(batch))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value.nan_to_num(9.0), found[1][name].nan_to_num(9.0)), name


@pytest.mark.parametrize(
    ("form", "old"),
    [
        ("latents", {"target_latent": "depth_latent"}),
        ("maps", {"target": "norm_depth", "bounds": "depth_range"}),
    ],
)
def test_a_cache_of_version_0_1_is_read(in_workspace: Path, tmp_path: Path, form: str, old: dict[str, str]) -> None:
    new = open_latents(in_workspace, tmp_path / "new", PAIRS, form=form)
    rows = np.stack([new._store(index)[new._name(index)] for index in range(new.num_views)])
    shard = tmp_path / "old" / "synthetic" / "shard-00000.npy"
    fields = []
    for name in rows.dtype.names:
        base, shape = rows.dtype[name].subdtype
        fields.append((old.get(name, name), base, shape[1:] if name == "target" else shape))  # it had no targets
    renamed = np.zeros(len(rows), dtype=fields)
    for name in rows.dtype.names:
        renamed[old.get(name, name)] = rows[name].reshape(renamed[old.get(name, name)].shape)
    shard.parent.mkdir(parents=True)
    np.save(shard, renamed)
    (tmp_path / "old" / "cache.json").write_text(json.dumps(new._described(new._vae)))
    anew = open_latents(in_workspace, tmp_path / "old", PAIRS, form=form)
    assert not list((tmp_path / "old").glob("*/*.rows")), "nothing was encoded again"
    batches = [source.batch(np.arange(12)) for source in (new, anew)]
    assert batches[0].keys() == batches[1].keys()
    for name, values in batches[0].items():
        np.testing.assert_array_equal(values, batches[1][name])
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00000\.npy .*remove it, and it will be encoded again"):
        open_latents(in_workspace, tmp_path / "old", PAIRS, form=form).batch(np.arange(12))
    # Another mixture does not use them.
    other = open_latents(in_workspace, tmp_path / "old", dataclasses.replace(PAIRS, num_variants=4), form=form)
    assert other.batch(np.arange(12)) and len(list((tmp_path / "old").glob("*/*.rows"))) == 1


def test_latents_are_encoded_once(in_workspace: Path) -> None:
    output = in_workspace / "cached"
    train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=output, stop_after_steps=1)
    (shard,) = (output / "latents").glob("*/*.rows")
    written = shard.stat().st_mtime_ns
    train(Path("depth.toml"), data_dir=in_workspace / "data", output_dir=output, stop_after_steps=2)
    assert shard.stat().st_mtime_ns == written
    assert list((output / "latents").glob("*/*.rows")) == [shard]


def test_latents_of_another_autoencoder_are_others(in_workspace: Path, tmp_path: Path) -> None:
    first = open_latents(in_workspace, tmp_path / "cache", PAIRS)
    other = load_vae(in_workspace / "autoencoder" / "checkpoint" / "vae")
    with torch.no_grad():
        next(iter(other.parameters())).add_(1.0)
    mixture = Mixture(PAIRS, data_dir=in_workspace / "data", seed=0)
    settings: dict[str, Any] = {"accelerator": make_accelerator("no", "cpu"), "target_form": "latents"}
    second = Latents(mixture, vae=other, cache_dir=tmp_path / "cache", **settings)
    assert len(list((tmp_path / "cache").iterdir())) == 2 and first.fingerprint != second.fingerprint
    places = np.arange(3)
    assert not np.array_equal(first.batch(places)["rgb_latent"], second.batch(places)["rgb_latent"])


@pytest.mark.parametrize("form", ["latents", "maps"])
def test_a_damaged_file_of_latents_is_named(in_workspace: Path, tmp_path: Path, form: str) -> None:
    open_latents(in_workspace, tmp_path / "cache", PAIRS, form=form)
    (path,) = (tmp_path / "cache").glob("*/*.rows")
    content = path.read_bytes()
    for damaged in (content[:-100], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{path.name} .*remove it, and it will be encoded again"):
            open_latents(in_workspace, tmp_path / "cache", PAIRS, form=form)


def test_data_without_any_valid_depth_is_refused(in_workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source synthetic: none of its 12 views has valid depth; check the unit"):
        open_latents(
            in_workspace, tmp_path / "cache", dataclasses.replace(PAIRS, max_depth={"rooms": 0.1, "street": 0.1})
        )


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


def test_noise_on_color_latents_stays_within_its_limit(in_workspace: Path, tmp_path: Path) -> None:
    share = BatchSlice(step=3, micro_step=0, group_size=64, rows=slice(0, 64))
    for value in (0.0, 0.5):
        (tmp_path / "noisy.toml").write_text(
            DEPTH.replace("num_variants = 2", f"num_variants = 2, latent_noise = {value}")
        )
        recipe = read_recipe(tmp_path / "noisy.toml")
        assert isinstance(recipe, MarigoldRecipe)
        recipe = dataclasses.replace(recipe, optimization=dataclasses.replace(recipe.optimization, batch_size=64))
        settings = {"data_dir": in_workspace / "data", "cache_dir": tmp_path / "latents"}
        task = MarigoldTask(recipe, accelerator=make_accelerator("no", "cpu"), **settings)
        batch = task.batch(share)
        if not value:
            assert "rgb_noise" not in batch
            continue
        spread = batch["rgb_noise"].std(axis=(1, 2, 3))
        assert 0.0 < spread.min() < 0.1 and 0.4 < spread.max() < 0.55
        np.testing.assert_array_equal(batch["rgb_noise"], task.batch(share)["rgb_noise"])


def test_the_network_sees_the_photo_before_the_noisy_target(in_workspace: Path) -> None:
    settings = {"data_dir": in_workspace / "data", "cache_dir": None}
    recipe = read_recipe(Path("depth.toml"))
    assert isinstance(recipe, MarigoldRecipe)
    task = MarigoldTask(recipe, accelerator=make_accelerator("no", "cpu"), **settings)
    drawn = task.batch(BatchSlice(step=0, micro_step=0, group_size=2, rows=slice(0, 2)))
    batch = task.latents.encoded({name: torch.from_numpy(value) for name, value in drawn.items()})

    class Network(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timesteps: torch.Tensor, **context: torch.Tensor) -> SimpleNamespace:
            assert torch.equal(sample[:, :4], batch["rgb_latent"])
            return SimpleNamespace(sample=torch.zeros_like(sample[:, 4:]))

    assert task.loss(Network(), batch).count > 0


def test_kinds_are_drawn_as_often_as_asked(in_workspace: Path) -> None:
    config = dataclasses.replace(PAIRS, kind_weights={"street": 4.0})
    mixture = Mixture(config, data_dir=in_workspace / "data", seed=0)
    share = BatchSlice(step=0, micro_step=0, group_size=3000, rows=slice(0, 3000))
    _, chosen, _ = mixture.choose("test", share, 3000)
    # Eight views of rooms with weight 1, four of streets with weight 4: one in 24, four in 24.
    np.testing.assert_allclose(np.bincount(chosen, minlength=12) / 3000, [1 / 24] * 8 + [4 / 24] * 4, atol=0.02)
    nothing = dataclasses.replace(config, kind_weights={"rooms": 0.0, "street": 0.0})
    with pytest.raises(RecipeError, match="leaves nothing of source synthetic"):
        Mixture(nothing, data_dir=in_workspace / "data", seed=0)
