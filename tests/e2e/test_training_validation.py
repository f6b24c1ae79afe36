# SPDX-License-Identifier: Apache-2.0
"""Validation: on scenes that are not trained on, with numbers that follow the weights; kept checkpoints; more steps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
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
from openmarigold.errors import CheckpointError, RecipeError
from openmarigold.modalities import DEPTH
from openmarigold.predictor import Predictor
from openmarigold.training import dry_run, train
from openmarigold.training.packed import read_ids
from openmarigold.training.recipe import parse_recipe, read_recipe
from openmarigold.training.settings import DataConfig
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
