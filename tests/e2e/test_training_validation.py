# SPDX-License-Identifier: Apache-2.0
"""Validation: on scenes that are not trained on, with numbers that follow the weights; kept checkpoints; more steps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark_data import kitti_paths, make_depth, make_kitti, make_nyuv2_extracted
from openmarigold.data.preparation import prepare
from openmarigold.data.readers.hypersim import HypersimReader
from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import CheckpointError, DataError, ImageError, MissingExtraError, RecipeError
from openmarigold.modalities import DEPTH
from openmarigold.predictor import Predictor
from openmarigold.training import dry_run, loop, train
from openmarigold.training.packed import read_ids
from openmarigold.training.recipe import ValidationConfig, parse_recipe, read_recipe
from openmarigold.training.settings import DataConfig
from openmarigold.training.state import latest_state
from openmarigold.training.validation import Validation, ValidationPaths
from openmarigold.training.views import Mixture
from own_pictures import NUM_FRAMES, prepare_own_pictures
from raw_data import write_good_hypersim_frame, write_split
from stable_diffusion import write_stable_diffusion

RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE: dict[str, Any] = {
    "kind": "depth",
    "data": {"sources": {"mine": 1.0}, "size": [48, 64]},
    "optimization": {"num_steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1},
    "run": {"save_period_s": 0.0, "validation_period": 2, "checkpoint_period": 3, "num_workers": 1},
    "checkpoint": {"name": "mine", "processing_resolution": 64},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 prepared pictures of four scenes and a tiny Stable Diffusion."""
    folder = tmp_path_factory.mktemp("validation")
    prepare_own_pictures(folder / "raw", folder / "data")
    write_stable_diffusion(folder / "sd", prediction_type="v_prediction")
    return folder


def write_recipe(workspace: Path, name: str, **changes: dict[str, Any]) -> Path:
    table = {**RECIPE, "base": str(workspace / "sd")}
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values}
    path = workspace / f"{name}.json"
    path.write_text(json.dumps(table))
    return path


def run(workspace: Path, name: str, *, output: str = "", **changes: dict[str, Any]) -> Path:
    folder = workspace / (output or name)
    recipe = write_recipe(workspace, name, **changes)
    train(recipe, data_dir=workspace / "data", output_dir=folder, device="cpu")
    return folder


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Path:
    return run(workspace, "whole")


def test_whole_scenes_are_held_out_and_scored(workspace: Path, whole: Path) -> None:
    assert json.loads((whole / "recipe.json").read_text())["data"]["held_out"] == 0.05
    config = DataConfig(sources={"mine": 1.0}, size=(48, 64), held_out=0.05)
    (source,) = Mixture(config, data_dir=workspace / "data", seed=2024).sources
    data = ShardedDataset(workspace / "data" / "mine")
    scene_of = dict(zip(data.keys, data.scenes, strict=True))
    trained, held_out = ({scene_of[key] for key in keys} for keys in (source.keys, source.held_out.keys))
    assert len(held_out) == 1 and len(trained) == 3 and not trained & held_out
    assert len(source.held_out) == NUM_FRAMES and len(source) == 3 * NUM_FRAMES
    nothing = Mixture(DataConfig(sources={"mine": 1.0}, size=(48, 64)), data_dir=workspace / "data", seed=2024)
    assert len(nothing.sources[0]) == 24 and not len(nothing.sources[0].held_out)
    lines = rows(whole, "validation.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    assert all(0 < line["held_out_mine_abs_rel"] < 2 and line["held_out_loss"] > 0 for line in lines)
    assert lines[0]["held_out_loss"] != lines[1]["held_out_loss"]
    assert lines[0]["held_out_mine_abs_rel"] != lines[1]["held_out_mine_abs_rel"]


def test_best_last_and_numbered_checkpoints(whole: Path) -> None:
    lines = rows(whole, "validation.jsonl")
    best = min(lines, key=lambda line: line["held_out_mine_abs_rel"])["step"]
    steps = {path.name for path in (whole / "checkpoints").iterdir()}
    assert steps == {"step-00000003"}
    unet = "unet/diffusion_pytorch_model.safetensors"
    last, kept = (load_file(whole / name / unet) for name in ("checkpoint", "checkpoint-best"))
    assert all(torch.equal(value, kept[name]) for name, value in last.items()) == (best == 4)
    numbered = load_file(whole / "checkpoints" / "step-00000003" / unet)
    assert not all(torch.equal(value, numbered[name]) for name, value in last.items())
    for name in ("checkpoint", "checkpoint-best", "checkpoints/step-00000003"):
        assert (whole / name / "text_encoder" / "model.safetensors").is_file()
        assert np.ptp(Predictor.load(whole / name)(np.zeros((48, 64, 3), np.uint8)).depth) >= 0


@pytest.mark.parametrize("place", ["Validation.scores", "keep_checkpoint"])
def test_what_an_interrupted_run_did_not_finish_is_made_up(
    workspace: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Interrupted in the validation of step 2, or while the checkpoint of step 3 is kept; both states are saved."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    interrupted, output = Validation if place == "Validation.scores" else loop, f"interrupted-in-{place}"
    with monkeypatch.context() as context:
        if interrupted is Validation:
            context.setattr(Validation, "scores", interrupt)
        else:
            context.setattr(loop, "best_step", lambda *_, **__: None)  # nothing is kept before step 3
            context.setattr(loop, "keep_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(workspace, "whole", output=output)
    assert latest_state(workspace / output / "states") == workspace / output / "states" / (
        "step-00000002" if interrupted is Validation else "step-00000003"
    )
    folder = run(workspace, "whole", output=output)
    assert rows(folder, "validation.jsonl") == rows(whole, "validation.jsonl")
    (numbered,) = (folder / "checkpoints").iterdir()
    unet = "unet/diffusion_pytorch_model.safetensors"
    for name in ("checkpoint", f"checkpoints/{numbered.name}"):
        assert (folder / name / unet).read_bytes() == (whole / name / unet).read_bytes(), name


def test_an_error_in_a_validation_loses_no_step(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DataError("a damaged picture")

    monkeypatch.setattr(Validation, "scores", fail)
    with pytest.raises(DataError, match="a damaged picture"):
        run(workspace, "failing", run={"save_period_s": 1e6})
    assert latest_state(workspace / "failing" / "states") == workspace / "failing" / "states" / "step-00000002"


def test_what_a_validation_cannot_use_is_refused_before_the_first_step(workspace: Path, tmp_path: Path) -> None:
    table = {**RECIPE, "base": "x", "validation": {"seed": -1}}
    with pytest.raises(RecipeError, match="seed=-1 must be 0 or more"):
        parse_recipe(table, where="test")
    picture = (workspace / "raw" / "den" / "color" / "000.jpg").read_bytes()
    (tmp_path / "good.jpg").write_bytes(picture)
    (tmp_path / "short.jpg").write_bytes(picture[: len(picture) // 2])
    with pytest.raises(ImageError, match=r"short\.jpg.*remove it from the folder of --photos, or replace it"):
        Validation(ValidationConfig(), ValidationPaths(photos_dir=tmp_path), device="cpu", modality=DEPTH)


def test_the_command_of_a_finished_run_given_again_changes_nothing(workspace: Path, whole: Path) -> None:
    again = workspace / "again"
    shutil.copytree(whole, again)
    for name in ("checkpoint", "checkpoint-best", "checkpoints/step-00000003"):
        (again / name / "calibration.json").write_text("{}")
        (again / name / "LICENSE").write_text("mine")
        (again / name / "README.md").unlink()  # which was a link to that of another checkpoint
        (again / name / "README.md").write_text("edited")
    before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file()}
    run(workspace, "whole", output="again")
    assert {path: path.read_bytes() for path in again.rglob("*") if path.is_file()} == before
    run(workspace, "more", output="again", optimization={"num_steps": 5}, run={"validation_period": 0})
    kept = again / "checkpoints" / "step-00000003"
    assert (kept / "calibration.json").read_text() == "{}" and (kept / "LICENSE").read_text() == "mine"
    assert (kept / "README.md").read_text() == "edited"
    assert not (again / "checkpoint" / "calibration.json").exists(), "another checkpoint"


def test_no_resume_forgets_nothing_before_the_last_check(
    workspace: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = workspace / "kept"
    shutil.copytree(whole, kept)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    recipe = write_recipe(workspace, "eight", optimization={"optimizer": "adamw_8bit"})
    settings: dict[str, Any] = {"data_dir": workspace / "data", "output_dir": kept, "device": "cpu", "resume": False}
    with pytest.raises(MissingExtraError, match=r"openmarigold\[eight-bit\]"):
        train(recipe, **settings)
    with pytest.raises(RecipeError, match=r"run\.patience needs a validation score"):
        train(write_recipe(workspace, "impatient", data={"held_out": 0.0}, run={"patience": 1}), **settings)
    names = ("states/step-00000004", "checkpoint-best", "checkpoints/step-00000003", "finished.json", "metrics.jsonl")
    assert all((kept / name).exists() for name in names)
    train(write_recipe(workspace, "whole"), **settings, stop_after_steps=1)
    assert [name for name in names if (kept / name).exists()] == ["metrics.jsonl"]
    assert len(rows(kept, "metrics.jsonl")) == 1


def test_a_finished_run_goes_on_as_one_that_had_more_steps(workspace: Path, whole: Path) -> None:
    extended = workspace / "extended"
    shutil.copytree(whole, extended)
    run(workspace, "longer", output="extended", optimization={"num_steps": 6})
    run(workspace, "at-once", optimization={"num_steps": 6, "decay_steps": 4})
    for name in ("metrics.jsonl", "validation.jsonl"):
        keys = ("step", "loss", "learning_rate", "held_out_loss", "held_out_mine_abs_rel")
        found, expected = (
            [[row.get(key) for key in keys] for row in rows(workspace / run, name)] for run in ("extended", "at-once")
        )
        assert found == expected, name
    assert [path.name for path in sorted((extended / "checkpoints").iterdir())] == ["step-00000003", "step-00000006"]
    with pytest.raises(RecipeError, match="num_steps=4 is less than the 6 of the run in the output folder"):
        run(workspace, "whole", output="extended")
    with pytest.raises(CheckpointError, match=r"data\.held_out changed"):
        run(workspace, "other", output="extended", optimization={"num_steps": 6}, data={"held_out": 0.4})


def test_runs_with_other_parts_of_the_data_share_maps_and_no_loss_changes(workspace: Path, tmp_path: Path) -> None:
    """End-to-end training, whose maps are packed: from a cache that another run began, and without any."""

    def losses(name: str, **data: Any) -> list[float]:
        recipe = write_recipe(
            workspace,
            name,
            data={"held_out": 0.0, "draws": "sample", "min_scale": 0.7, **data},
            optimization={"num_steps": 2},
            objective={"kind": "end_to_end", "start_noise": "zeros"},
            run={"validation_period": 0, "checkpoint_period": 0},
        )
        folder = tmp_path / name
        cache = None if data.get("cache") is False else tmp_path / "cache"
        train(recipe, data_dir=workspace / "data", output_dir=folder, cache_dir=cache, device="cpu")
        return [row["loss"] for row in rows(folder, "metrics.jsonl")]

    losses("part", num_samples={"mine": 9})
    (first,) = (tmp_path / "cache").glob("*/*.rows")
    found = losses("all")
    files = sorted((tmp_path / "cache").glob("*/*.rows"))
    assert len(files) == 2 and first in files and [len(read_ids(path)) for path in files if path != first] == [15]
    assert found == losses("anew", cache=False) and len(found) == 2


def test_a_run_of_an_earlier_version_goes_on_with_all_its_scenes(workspace: Path) -> None:
    old = run(workspace, "old", data={"held_out": 0.0, "caps": False}, optimization={"num_steps": 1})
    (state,) = (old / "states").iterdir()
    described = json.loads((state / "state.json").read_text())
    for key in ("held_out", "caps", "buckets", "valid_range", "draws", "resampling", "latents"):
        described["recipe"]["data"].pop(key)
    described["recipe"]["optimization"].pop("warmup_from_zero")
    (state / "state.json").write_text(json.dumps(described))
    (state / "SHA256SUMS").unlink()
    run(workspace, "old-again", output="old", optimization={"num_steps": 2})
    assert json.loads((old / "recipe.json").read_text())["data"]["held_out"] == 0.0
    assert [row["step"] for row in rows(old, "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize("name", ["marigold-v1", "marigold-v1-1", "e2e-ft"])
def test_scores_of_the_paper_recipes_follow_the_weights(
    workspace: Path, whole: Path, tmp_path: Path, name: str
) -> None:
    recipe: Any = read_recipe(RECIPES / f"{name}.toml")
    assert recipe.validation.benchmarks == ("nyuv2-train", "kitti-val") and recipe.validation.num_images == 100
    assert recipe.validation.sources == {"hypersim/val": 80} and recipe.validation.processing_resolution == 0
    other = turned(whole / "checkpoint", tmp_path / "other")
    settings = parse_validation(workspace, recipe)
    first, second = (settings.scores(checkpoint) for checkpoint in (whole / "checkpoint", other))
    assert first.keys() == second.keys() == {"mine_abs_rel", "mine_delta1", "mine_abs_rel_of_constant"}
    assert abs(first["mine_abs_rel"] - second["mine_abs_rel"]) > 1e-4 * first["mine_abs_rel"]


def test_scores_on_the_published_layouts_follow_the_weights(workspace: Path, whole: Path, tmp_path: Path) -> None:
    """Hypersim's validation split as prepared, NYU's 795 and KITTI's 800 training pictures at their own sizes."""
    raw, size = tmp_path / "raw", (48, 64)
    for frame in range(3):
        write_good_hypersim_frame(raw / "ai_003_001", "cam_00", frame, size)
    write_split(raw, [("ai_003_001", "cam_00", frame, "True", "val") for frame in range(3)])
    prepare(HypersimReader(raw, size=size, split="val"), tmp_path / "data" / "hypersim" / "val")
    write_many(tmp_path / "benchmarks")
    names = ("marigold-v1", "marigold-v1-1", "marigold-v1-1-exact", "e2e-ft")
    recipes: list[Any] = [read_recipe(RECIPES / f"{name}.toml") for name in names]
    assert all(recipe.validation == recipes[0].validation for recipe in recipes)
    config = dataclasses.replace(recipes[0].validation, sources={"hypersim/val": 2}, num_images=1)
    paths = ValidationPaths(benchmark_data_dir=tmp_path / "benchmarks")
    validation = Validation(config, paths, device="cpu", modality=DEPTH, data_dir=tmp_path / "data")
    assert validation.described == ["hypersim/val: 2 images", "nyuv2-train: 1 images", "kitti-val: 1 images"]
    first, second = (
        validation.scores(folder) for folder in (whole / "checkpoint", turned(whole / "checkpoint", tmp_path / "other"))
    )
    for name in ("hypersim/val", "nyuv2-train", "kitti-val"):
        for metric in ("abs_rel", "delta1"):
            assert np.isfinite(first[f"{name}_{metric}"])
        assert abs(first[f"{name}_abs_rel"] - second[f"{name}_abs_rel"]) > 1e-4 * first[f"{name}_abs_rel"]
    assert validation.main_score == ("hypersim/val_abs_rel", False)


def write_many(folder: Path) -> None:
    """As many pictures as the published sets have, all of a set links to one."""
    make_nyuv2_extracted(folder / "nyuv2", [make_depth(480, 640)], split="train")
    scene = folder / "nyuv2" / "train" / "kitchen_0004"
    for number in range(2, 796):
        for what in ("rgb", "depth"):
            os.link(scene / f"{what}_0001.png", scene / f"{what}_{number:04d}.png")
    make_kitti(folder / "kitti", [make_depth(375, 1242, high=40.0)], list_name="eigen_val_from_train_800.txt")
    lines = []
    for frame in range(800):
        paths = kitti_paths(frame)
        lines.append(" ".join((*paths, "721.5377")))
        if frame:
            os.link(folder / "kitti" / kitti_paths(0)[0], folder / "kitti" / paths[0])
            os.link(folder / "kitti" / "val" / kitti_paths(0)[1], folder / "kitti" / "val" / paths[1])
    (folder / "kitti" / "eigen_val_from_train_800.txt").write_text("\n".join(lines))


def turned(checkpoint: Path, other: Path) -> Path:
    """A copy with other weights: the last layer's channels in reverse order."""
    shutil.copytree(checkpoint, other)
    path = other / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.weight"] = weights["conv_out.weight"].flip(0)
    save_file(weights, path, metadata={"format": "pt"})
    return other


def parse_validation(workspace: Path, recipe: Any) -> Validation:
    """The recipe's validation on three pictures of the prepared set in the place of its own sets."""
    config = dataclasses.replace(recipe.validation, benchmarks=(), sources={"mine": 3})
    return Validation(config, ValidationPaths(), device="cpu", modality=DEPTH, data_dir=workspace / "data")


def test_validation_that_no_weight_can_change_is_an_error() -> None:
    table = {**RECIPE, "base": "x", "validation": {"num_inference_steps": 1, "spacing": "leading"}}
    with pytest.raises(RecipeError, match=r'begins at timestep 1.*set spacing = "trailing"'):
        parse_recipe(table, where="test")
    table["validation"] = {"num_inference_steps": 10, "spacing": "leading"}
    parse_recipe(table, where="test")


def test_dry_run_includes_validation(workspace: Path) -> None:
    recipe = write_recipe(workspace, "dry", run={"validation_period": 2})
    report = dry_run(recipe, data_dir=workspace / "data", output_dir=workspace / "dry", device="cpu")
    assert "validation: held_out_mine: 6 images; about 0:0" in str(report) and "each time, 2 times" in str(report)
    assert not (workspace / "dry").exists()
