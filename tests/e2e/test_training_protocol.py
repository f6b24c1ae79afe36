# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning protocol from a Stable Diffusion folder: order of samples, processes, kills, and what comes out."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openmarigold.checkpoints.integrity import write_sums
from openmarigold.data.preparation import FrameFilter, prepare
from openmarigold.data.readers.vkitti2 import VirtualKitti2Reader
from openmarigold.errors import CheckpointError, DataError, MissingExtraError, NumericalError, RecipeError
from openmarigold.modalities import find_modality
from openmarigold.predictor import Predictor
from openmarigold.training import dry_run, train
from openmarigold.training.recipe import DataConfig, OptimizationConfig, parse_recipe
from openmarigold.training.views import BatchSlice, Mixture
from raw_data import write_vkitti2
from stable_diffusion import write_stable_diffusion
from tiny import make_photo
from training_data import write_prepared, write_training_data

RECIPE = """
kind = "depth"
modality = "{modality}"
base = "{base}"
{objective}

[data]
sources = {{ synthetic = 0.9, synthetic-val = 0.1 }}
size = [32, 48]
sizes = {{ synthetic-val = [24, 64] }}
mixture = "micro_batch"
mirror = "both"
num_variants = 2
max_depth = {{ rooms = 65.0, street = 80.0 }}
cache = {cache}

[optimization]
num_steps = {steps}
batch_size = 4
micro_batch_size = {micro}
learning_rate = 3e-4
warmup_steps = 2
{more}

[run]
save_period_s = 0.0
num_workers = {workers}

[checkpoint]
name = "tiny-v1"
num_inference_steps = 4
processing_resolution = 48
final_step = "{final_step}"
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sources and a tiny Stable Diffusion, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("protocol")
    write_training_data(folder / "data", num_pairs=7)
    other = write_training_data(folder / "more", num_pairs=4)
    (other / "synthetic" / "train-00.tar").rename(folder / "data" / "synthetic" / "val-00.tar")
    write_stable_diffusion(folder / "sd", prediction_type="v_prediction")
    return folder


def write_recipe(workspace: Path, name: str, **values: Any) -> Path:
    settings = {"base": workspace / "sd", "cache": "true", "steps": 8, "micro": 2, "workers": 2, "more": ""}
    settings |= {"modality": "depth", "objective": "", "final_step": "reference"} | values
    path = workspace / f"{name}.toml"
    path.write_text(RECIPE.format(**settings))
    return path


def run(workspace: Path, name: str, **values: Any) -> Path:
    recipe = write_recipe(workspace, name, **values)
    data = data_dir(workspace, values.get("modality", "depth"))
    train(recipe, data_dir=data, output_dir=workspace / name, device="cpu")
    return workspace / name


def data_dir(workspace: Path, modality: str) -> Path:
    """The folder with the two sources of the recipe, with maps of the modality."""
    if modality == "depth":
        return workspace / "data"
    folder = workspace / f"data-{modality}"
    if not folder.exists():
        write_prepared(folder / "synthetic", modality, num_samples=7)
        write_prepared(folder / "synthetic-val", modality, num_samples=4, seed=6)
    return folder


def losses(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def reference(workspace: Path) -> Path:
    return run(workspace, "reference")


def test_diffusers_loads_and_runs_what_comes_out(reference: Path) -> None:
    from diffusers import MarigoldDepthPipeline

    pipeline = MarigoldDepthPipeline.from_pretrained(reference / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    rgb = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    theirs = pipeline(
        image, num_inference_steps=4, processing_resolution=0, generator=torch.Generator().manual_seed(0)
    ).prediction
    assert theirs.shape == (1, 32, 48, 1) and np.ptp(theirs) > 0
    ours = Predictor.load(reference / "checkpoint")(rgb).depth
    assert ours.shape == (32, 48) and np.ptp(ours) > 0
    index = json.loads((reference / "checkpoint" / "model_index.json").read_text())
    assert index["_class_name"] == "MarigoldDepthPipeline" and index["default_denoising_steps"] == 4
    scheduler = json.loads((reference / "checkpoint" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["timestep_spacing"] == "trailing" and scheduler["rescale_betas_zero_snr"] is True
    assert (reference / "checkpoint" / "text_encoder" / "model.safetensors").is_file()


@pytest.mark.parametrize("final_step", ["reference", "clean"])
def test_a_trained_checkpoint_gives_the_same_depth_in_diffusers(
    workspace: Path, reference: Path, final_step: str
) -> None:
    from diffusers import MarigoldDepthPipeline

    folder = reference if final_step == "reference" else run(workspace, "clean", steps=1, final_step="clean")
    pipeline = MarigoldDepthPipeline.from_pretrained(folder / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    rgb, latents = make_photo(32, 48), np.random.default_rng(5).standard_normal((1, 4, 4, 6)).astype(np.float32)
    for steps in (1, 4):
        theirs = pipeline(Image.fromarray(rgb), num_inference_steps=steps, latents=torch.from_numpy(latents))
        ours = Predictor.load(folder / "checkpoint", device="cpu")(rgb, num_inference_steps=steps, latents=latents)
        np.testing.assert_allclose(ours.depth, theirs.prediction[0, :, :, 0], rtol=0, atol=1e-5)


def test_latents_from_the_cache_train_as_latents_made_anew(workspace: Path, reference: Path) -> None:
    anew = run(workspace, "anew", cache="false")
    assert not (anew / "latents").exists()
    assert losses(anew) == losses(reference)
    for name, value in weights(anew).items():
        assert torch.equal(value, weights(reference)[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["depth", "normals", "appearance", "lighting"])
def test_five_kills_change_nothing(workspace: Path, modality: str) -> None:
    """SIGKILL at random moments of 60 steps, resumed with another number of workers: the same losses and weights."""
    whole = run(workspace, f"whole-{modality}", steps=60, modality=modality)
    killed = workspace / f"killed-{modality}"
    rng = np.random.default_rng(1)
    for kill in range(6):
        recipe = write_recipe(workspace, killed.name, steps=60, workers=2 + kill % 2, modality=modality)
        command = [sys.executable, "-m", "openmarigold", "train", "--recipe", str(recipe)]
        command += ["--data-dir", str(data_dir(workspace, modality)), "--output-dir", str(killed), "--device", "cpu"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        if kill == 5:
            assert process.wait(timeout=300) == 0
            process.communicate()
            break
        before = _steps_done(killed)
        deadline = time.monotonic() + 120
        while _steps_done(killed) < before + 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.15)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert _steps_done(killed) < 60, "the run ended before it was killed"
    assert losses(killed) == losses(whole)
    for name, value in weights(killed).items():
        assert torch.equal(value, weights(whole)[name]), name
    assert set(Predictor.load(killed / "checkpoint")(make_photo(32, 48)).maps) == {
        kind.name for kind in find_modality(modality).maps
    }


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["normals", "appearance", "lighting"])
def test_end_to_end_training_of_other_maps_resumes(workspace: Path, modality: str) -> None:
    objective = 'objective = { kind = "end_to_end", start_noise = "zeros" }'
    settings: dict[str, Any] = {"modality": modality, "steps": 30, "objective": objective}
    settings |= {"more": 'gradient_clip = 1.0\ndecay = "cosine"', "cache": "false"}
    whole = run(workspace, f"end-{modality}", **settings)
    halves = workspace / f"end-halves-{modality}"
    recipe = write_recipe(workspace, halves.name, **settings)
    paths = {"data_dir": data_dir(workspace, modality), "output_dir": halves, "device": "cpu"}
    assert train(recipe, stop_after_steps=11, **paths) is None
    train(recipe, **paths)
    found = losses(whole)
    assert losses(halves) == found and np.mean(found[-8:]) < np.mean(found[:8])
    for name, value in weights(halves).items():
        assert torch.equal(value, weights(whole)[name]), name


def _steps_done(run_dir: Path) -> int:
    states = sorted((run_dir / "states").glob("step-*"))
    return int(states[-1].name.removeprefix("step-")) if states else 0


def test_eight_bit_moments_average_and_checkpointing_resume(workspace: Path) -> None:
    pytest.importorskip("bitsandbytes")
    more = 'optimizer = "adamw_8bit"\nema_decay = 0.9\ngradient_checkpointing = true\nmixed_precision = "bf16"'
    whole = run(workspace, "eight", more=more)
    recipe = write_recipe(workspace, "eight", more=more)
    settings = {"data_dir": workspace / "data", "output_dir": workspace / "halves", "device": "cpu"}
    train(recipe, **settings, stop_after_steps=3)
    train(recipe, **settings)
    assert losses(workspace / "halves") == losses(whole)


def test_tensorboard_pictures_and_scores(workspace: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    examples = Path(__file__).parents[2] / "examples"
    recipe = write_recipe(workspace, "seen", steps=2)
    recipe.write_text(recipe.read_text().replace("[run]", "[run]\ntensorboard = true\nvalidation_period = 1"))
    output = tmp_path / "run"
    benchmark = examples / "benchmark"
    paths = {"data_dir": workspace / "data", "output_dir": output, "photos_dir": examples / "photos"}
    train(recipe, device="cpu", benchmark_dir=benchmark, **paths)
    lines = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and 0 < lines[0]["all_abs_rel"] < 1
    photos = sorted(path.stem for path in (examples / "photos").glob("*.jpg"))
    for step in ("step-00000001", "step-00000002"):
        assert sorted(path.stem for path in (output / "pictures" / step).iterdir()) == photos
    board = EventAccumulator(str(output / "tensorboard"))
    board.Reload()
    assert {"train/loss", "train/learning_rate", "validation/all_abs_rel"} <= set(board.Tags()["scalars"])
    assert len(board.Scalars("train/loss")) == 2
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert all(len(row["loss_by_timestep"]) == 10 for row in rows)
    assert rows[-1]["samples_per_s"] > 0 and 0 <= rows[-1]["wait_share"] <= 1 and rows[-1]["peak_memory"] > 2**20


def test_dry_run_says_what_a_run_needs_and_writes_nothing(workspace: Path, reference: Path) -> None:
    # After a run, since the first one keeps the empty prompt's embedding in the base.
    recipe = write_recipe(workspace, "dry")
    before = sorted(workspace.rglob("*"))
    report = dry_run(recipe, data_dir=workspace / "data", output_dir=workspace / "dry", device="cpu")
    assert sorted(workspace.rglob("*")) == before
    text = str(report)
    assert "source synthetic: 7 samples, 14 views of 32x48" in text
    assert "batch: 4 = 2 a process x 1 processes x 2 accumulated" in text
    assert report.state_bytes > 3 * 4 * report.num_parameters and report.cache_bytes > 0


class TestBadInput:
    """Each stops before damage, with one clear message."""

    def start(self, workspace: Path, recipe: Path, **paths: Path) -> None:
        train(recipe, data_dir=workspace / "data", output_dir=workspace / "bad", device="cpu", **paths)

    def test_base(self, workspace: Path, tmp_path: Path) -> None:
        write_stable_diffusion(tmp_path / "epsilon", prediction_type="epsilon")
        recipe = write_recipe(workspace, "bad", base=tmp_path / "epsilon")
        with pytest.raises(RecipeError, match=r"predicts epsilon.*timesteps\.prediction_type"):
            self.start(workspace, recipe)
        (tmp_path / "epsilon" / "vae").rename(tmp_path / "vae")
        with pytest.raises(CheckpointError, match="holds no vae/; the base must be a whole checkpoint"):
            self.start(workspace, recipe)
        write_stable_diffusion(tmp_path / "wide", prediction_type="v_prediction", in_channels=5)
        with pytest.raises(RecipeError, match="turns 5 channels into 4, and the autoencoder's latents have 4"):
            self.start(workspace, write_recipe(workspace, "bad", base=tmp_path / "wide"))
        with pytest.raises(CheckpointError, match=r"is not a folder; the recipe's `base` is a folder"):
            self.start(workspace, write_recipe(workspace, "bad", base="./nowhere/at/all"))

    def test_recipes_that_contradict_themselves(self) -> None:
        data: dict[str, Any] = {"sources": {"a": 0.5, "b": 0.5}, "size": (32, 48)}
        for wrong, message in (
            ({"sizes": {"b": (24, 64)}}, 'set mixture = "micro_batch"'),
            ({"sizes": {"c": (24, 64)}, "mixture": "micro_batch"}, "sizes names c, which sources does not"),
            ({"num_samples": {"c": 5}}, "num_samples names c, which sources does not"),
            ({"sizes": {"b": (20, 64)}, "mixture": "micro_batch"}, "20 is not a multiple of 8"),
            ({"kind_weights": {"x": 2.0}, "mixture": "micro_batch"}, 'kind_weights needs mixture = "sample"'),
            ({"mirror": "both"}, "even num_variants, not 1"),
        ):
            with pytest.raises(RecipeError, match=message):
                DataConfig(**(data | wrong))
        with pytest.raises(RecipeError, match="micro_batch_size=3 must divide batch_size=8"):
            OptimizationConfig(num_steps=1, batch_size=8, learning_rate=1.0, micro_batch_size=3)
        with pytest.raises(RecipeError, match=r"final_learning_rate_factor=-0\.01 must be above 0"):
            OptimizationConfig(num_steps=1, batch_size=8, learning_rate=1.0, final_learning_rate_factor=-0.01)
        with pytest.raises(RecipeError, match=r"kind=\['depth'\] is not a kind"):
            parse_recipe({"kind": ["depth"]}, where="test")
        with pytest.raises(RecipeError, match="decay_steps=5 must be above warmup_steps=100"):
            OptimizationConfig(num_steps=1, batch_size=8, learning_rate=1.0, decay_steps=5)

    def test_data_smaller_than_a_batch(self, workspace: Path) -> None:
        recipe = write_recipe(workspace, "bad", micro=16)
        recipe.write_text(recipe.read_text().replace("batch_size = 4", "batch_size = 16", 1))
        with pytest.raises(DataError, match="has 7 samples, 14 views, and a micro-batch takes 16"):
            self.start(workspace, recipe)

    def test_all_invalid_depth(self, workspace: Path) -> None:
        for cache in ("true", "false"):
            shutil.rmtree(workspace / "bad", ignore_errors=True)
            recipe = write_recipe(workspace, "bad", cache=cache)
            recipe.write_text(recipe.read_text().replace("rooms = 65.0, street = 80.0", "rooms = 0.1, street = 0.1"))
            with pytest.raises(DataError, match="none of its 14 views has valid depth"):
                self.start(workspace, recipe)
            with pytest.raises(DataError, match="none of its 14 views has valid depth"):
                dry_run(recipe, data_dir=workspace / "data", output_dir=workspace / "bad", device="cpu")

    def test_weights_that_a_step_has_spoilt_do_not_replace_good_ones(self, workspace: Path, tmp_path: Path) -> None:
        recipe = write_recipe(workspace, "bad")
        settings = {"data_dir": workspace / "data", "output_dir": tmp_path / "run", "device": "cpu"}
        train(recipe, **settings, stop_after_steps=2)
        wild = write_recipe(workspace, "wild", more="gradient_clip = 0.0")
        text = wild.read_text().replace("learning_rate = 3e-4", "learning_rate = 1e38")
        wild.write_text(text)
        states = tmp_path / "run" / "states"
        described = json.loads((states / "step-00000002" / "state.json").read_text())
        described["recipe"]["optimization"]["learning_rate"] = 1e38
        (states / "step-00000002" / "state.json").write_text(json.dumps(described))
        write_sums(states / "step-00000002")
        with pytest.raises(NumericalError, match=r"not finite|is nan|is inf"):
            train(wild, **settings)
        kept = load_file(sorted(states.glob("step-*"))[-1] / "tensors.safetensors")
        assert all(bool(value.isfinite().all()) for value in kept.values() if value.is_floating_point())

    def test_named_benchmarks_need_their_data(self, workspace: Path) -> None:
        recipe = write_recipe(workspace, "bad")
        recipe.write_text(recipe.read_text() + '\n[validation]\nbenchmarks = ["nyuv2"]\n')
        with pytest.raises(RecipeError, match=r"names nyuv2; give .*--benchmark-data"):
            self.start(workspace, recipe)
        with pytest.raises(DataError, match="does not exist"):
            self.start(workspace, recipe, benchmark_data_dir=workspace)
        with pytest.raises(DataError, match="holds no photos"):
            self.start(workspace, write_recipe(workspace, "bad"), photos_dir=workspace / "data")

    def test_missing_packages_are_named(self, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
        with pytest.raises(MissingExtraError, match=r"openmarigold\[eight-bit\]"):
            self.start(workspace, write_recipe(workspace, "bad", more='optimizer = "adamw_8bit"'))


def test_every_sample_is_seen_before_any_is_seen_twice(workspace: Path) -> None:
    config = DataConfig(
        sources={"synthetic": 0.75, "synthetic-val": 0.25},
        size=(32, 48),
        sizes={"synthetic-val": (24, 64)},
        mixture="micro_batch",
        mirror="both",
        num_variants=2,
    )
    mixture = Mixture(config, data_dir=workspace / "data", seed=5)
    taken: dict[int, list[int]] = {0: [], 1: []}
    for step in range(400):
        for micro_step in range(2):
            share = BatchSlice(step=step, micro_step=micro_step, group_size=2, rows=slice(0, 2))
            _, chosen, _ = mixture.choose("depth", share, 4)
            (number,) = {mixture.source_of(int(index)) for index in chosen}
            taken[number] += [(int(index) - int(mixture.starts[number])) // 2 for index in chosen]
    assert len(taken[0]) / 1600 == pytest.approx(0.75, abs=0.04)
    for number, size in ((0, 7), (1, 4)):
        for epoch in range(len(taken[number]) // size):
            assert sorted(taken[number][epoch * size : (epoch + 1) * size]) == list(range(size))
        assert taken[number][:size] != taken[number][size : 2 * size], "each time in another order"


def test_variants_are_the_plain_and_the_mirrored_view(workspace: Path) -> None:
    config = DataConfig(sources={"synthetic": 1.0}, size=(48, 64), mirror="both", num_variants=2)
    mixture = Mixture(config, data_dir=workspace / "data", seed=5)
    for sample in range(7):
        plain, mirrored = mixture.view(2 * sample), mixture.view(2 * sample + 1)
        original = mixture.sources[0].read(sample).rgb.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0
        np.testing.assert_array_equal(plain.rgb, original)
        np.testing.assert_array_equal(mirrored.rgb, original[:, :, ::-1])
        assert plain.target is not None and mirrored.target is not None
        np.testing.assert_array_equal(mirrored.target.values, plain.target.values[..., ::-1])


def test_a_prepared_set_says_which_depth_may_be_used(tmp_path: Path) -> None:
    """Also below a folder, with a cache, and without a word of it in the recipe."""
    write_vkitti2(tmp_path / "raw")
    reader = VirtualKitti2Reader(tmp_path / "raw", split="train", crop=True)
    prepare(reader, tmp_path / "data" / "deep" / "train", frame_filter=FrameFilter(min_valid=0.0, min_brightness=0.0))
    config = DataConfig(sources={"deep/train": 1.0}, size=(32, 96))
    mixture = Mixture(config, data_dir=tmp_path / "data", seed=0)
    assert mixture.sources[0].valid_range == (1e-5, 80.0)
    view = mixture.view(0)
    assert view.target is not None and view.target.bounds[1] < 80.0
    assert not view.valid_mask.all() and set(view.target.values[0, 0][~view.valid_mask].tolist()) == {1.0}, (
        "the sky is far"
    )


def test_holes_can_stay_what_the_published_code_makes_of_them(workspace: Path) -> None:
    config = DataConfig(sources={"synthetic": 1.0}, size=(48, 64), mirror="both", num_variants=2)
    for fill, expected in (("far", 1.0), ("raw", -1.0)):
        mixture = Mixture(dataclasses.replace(config, invalid=fill), data_dir=workspace / "data", seed=5)
        view = mixture.view(0)  # with a hole in the corner
        assert view.target is not None and not view.valid_mask.all()
        assert set(view.target.values[0, 0][~view.valid_mask].tolist()) == {expected}
