# SPDX-License-Identifier: Apache-2.0
"""A newcomer's path by docs/training.md, "On your own data": from raw pictures to scores, by the page's commands."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmarigold.cli import run
from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError, OutputError, RecipeError
from openmarigold.predictor import Predictor
from openmarigold.training.recipe import parse_recipe, read_recipe, with_overrides
from openmarigold.training.starting import LARGEST_AREA, choose_buckets, make_recipe, to_toml, write_recipe
from openmarigold.training.views import Mixture
from own_pictures import prepare_own_pictures, write_own_pictures
from stable_diffusion import write_stable_diffusion

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
# What a test of seconds changes in the page's commands.
BASE = ("--set base=prs-eth/marigold-depth-v1-1", "--set base=sd --set optimization.num_steps=30")
TINY = " --set optimization.batch_size=4 --set optimization.learning_rate=1e-3 --set run.validation_period=15"


def commands() -> list[str]:
    section = PAGE.partition("## On your own data\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (openmarigold .*)$", section, re.MULTILINE)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all commands of the section were given."""
    folder = tmp_path_factory.mktemp("own")
    write_own_pictures(folder / "RAW" / "mine")
    write_stable_diffusion(folder / "sd", prediction_type="v_prediction")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands():
            line = command.replace(*BASE) + (TINY if "--init" in command else "")
            line += " --device cpu" if command.split()[1] in ("train", "evaluate") else ""
            assert run(shlex.split(line)[1:]) == 0, line
    return folder


def test_the_page_leads_from_pictures_to_scores(walked: Path) -> None:
    assert [command.split()[1] for command in commands()] == ["data", "data", "train", "train", "train", "evaluate"]
    recipe: Any = read_recipe(walked / "mine.toml")
    assert set(recipe.data.buckets) == {(48, 64), (64, 40)} and recipe.optimization.warmup_steps == 1
    lines = [json.loads(line) for line in (walked / "runs/mine/validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [15, 30]
    best = min(line["held_out_mine_abs_rel"] for line in lines)
    assert best < lines[0]["held_out_mine_abs_rel_of_constant"], "better than a map that ignores the photo"
    assert lines[1]["held_out_loss"] < lines[0]["held_out_loss"]


def test_what_comes_out_loads_in_diffusers(walked: Path) -> None:
    from diffusers import MarigoldDepthPipeline

    checkpoint = walked / "runs" / "mine" / "checkpoint-best"
    pipeline = MarigoldDepthPipeline.from_pretrained(checkpoint)
    assert pipeline.unet.config.in_channels == 8
    assert Predictor.load(checkpoint)(np.zeros((64, 40, 3), np.uint8)).depth.shape == (64, 40)


@pytest.mark.slow
def test_what_comes_out_exports_to_onnx(walked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walked)
    assert run(["checkpoint", "export", "runs/mine/checkpoint-best", "--output-dir", "onnx"]) == 0
    rgb = np.zeros((48, 64, 3), np.uint8)
    ours, theirs = (Predictor.load(walked / name)(rgb).depth for name in ("onnx", "runs/mine/checkpoint-best"))
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    return prepare_own_pictures(folder / "raw", folder / "data")


def test_each_picture_keeps_its_shape(data_dir: Path) -> None:
    recipe: Any = parse_recipe(make_recipe(data_dir, ["data.held_out=0.0"]), where="made")
    mixture = Mixture(recipe.data, data_dir=data_dir, seed=0)
    assert {source.name: len(source) for source in mixture.sources} == {"mine-48x64": 18, "mine-64x40": 6}
    assert mixture.shares == pytest.approx([0.75, 0.25])
    data = ShardedDataset(data_dir / "mine")
    sizes = dict(zip(data.keys, data.sizes.tolist(), strict=True))
    for number, source in enumerate(mixture.sources):
        assert {tuple(sizes[key]) for key in source.keys} == {mixture.size_of(number)}
        view = mixture.view(int(mixture.starts[number]))
        assert view.rgb.shape == (3, *mixture.size_of(number)) and view.valid_mask.all()


def test_buckets_of_real_sizes() -> None:
    photos = {(3024, 4032): 500, (4032, 3024): 200, (1080, 1920): 90, (1081, 1920): 2, (600, 600): 1}
    buckets = choose_buckets(photos)
    assert buckets == [(480, 640), (640, 480), (408, 736)]
    for size in [*photos, (243, 1338), (480, 640), (1201, 1999)]:
        assert np.prod(choose_buckets({size: 9})[0]) <= LARGEST_AREA
    assert choose_buckets({(40, 62): 9}) == [(40, 56)], "not enlarged"
    assert len(choose_buckets({(100 + 8 * i, 400): 10 for i in range(30)})) == 6
    assert choose_buckets({(48, 64): 1}) == [(48, 64)]


def write_split(data_dir: Path, name: str, split: str) -> None:
    """A copy of the prepared set `mine` that states another split."""
    shutil.copytree(data_dir / "mine", data_dir / name)
    manifest = json.loads((data_dir / name / "manifest.json").read_text())
    (data_dir / name / "manifest.json").write_text(json.dumps(manifest | {"split": split}))


def test_splits_for_validation_are_scored_and_not_trained_on(tmp_path: Path) -> None:
    data_dir = prepare_own_pictures(tmp_path / "raw", tmp_path / "data")
    write_split(data_dir, "others", "train")
    write_split(data_dir, "mine/val", "val")
    table = make_recipe(data_dir)
    assert table["data"]["sources"] == {"mine": 0.5, "others": 0.5} and table["data"]["held_out"] == 0.0
    assert table["validation"]["sources"] == {"mine/val": 100}
    write_recipe(data_dir, tmp_path / "mine.toml")
    assert read_recipe(tmp_path / "mine.toml") == parse_recipe(table, where="made")
    named = make_recipe(data_dir, ['data.sources={ "mine/val" = 1.0 }'])
    assert named["data"]["sources"] == {"mine/val": 1.0} and "sources" not in named["validation"]
    shutil.rmtree(data_dir / "others")
    (data_dir / "mine" / "val").rename(data_dir / "val")
    shutil.rmtree(data_dir / "mine")
    with pytest.raises(DataError, match=r"only sets for validation \(val\); prepare one with `--split train`"):
        make_recipe(data_dir)


def test_a_benchmark_next_to_prepared_sets_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = prepare_own_pictures(tmp_path / "raw", tmp_path / "data")
    (data_dir / "benchmark").mkdir()
    (data_dir / "benchmark" / "manifest.json").write_text('[{"name": "a", "kind": "rooms", "place": "here"}]')
    assert make_recipe(data_dir)["data"]["sources"] == {"mine": 1.0}
    for command in ("verify", "statistics", "preview"):
        more = ["--output", str(tmp_path / "sheet.jpg")] if command == "preview" else []
        assert run(["data", command, str(data_dir / "benchmark"), *more]) != 0
        said = " ".join(capsys.readouterr().err.split())
        assert "is a benchmark's list of images, not the manifest of a prepared set; give the folder" in said
        assert "delete" not in said


def test_schedule_and_rate_follow_steps_and_base(data_dir: Path, tmp_path: Path) -> None:
    table = make_recipe(data_dir)
    assert table["base"] == "prs-eth/marigold-depth-v1-1" and table["optimization"]["learning_rate"] == 7.1e-6
    assert table["optimization"]["num_steps"] == 400 and table["run"]["validation_period"] == 40
    longer = make_recipe(data_dir, ["optimization.num_steps=5000", "base=stabilityai/stable-diffusion-2"])
    assert longer["optimization"]["warmup_steps"] == 100 and longer["run"]["validation_period"] == 500
    assert longer["optimization"]["learning_rate"] == 2.1e-5
    published = make_recipe(data_dir, ["base=stabilityai/stable-diffusion-2", "optimization.batch_size=32"])
    assert published["optimization"]["learning_rate"] == 3e-5
    low_rank = make_recipe(data_dir, ["base=stabilityai/stable-diffusion-2", "lora.rank=16"])
    assert low_rank["optimization"]["learning_rate"] == 2.1e-4 and low_rank["lora"] == {"rank": 16}
    write_stable_diffusion(tmp_path / "sd", prediction_type="epsilon")
    assert make_recipe(data_dir, [f"base={tmp_path / 'sd'}"])["timesteps"]["prediction_type"] == "v_prediction"
    write_recipe(data_dir, tmp_path / "mine.toml")
    assert read_recipe(tmp_path / "mine.toml") == parse_recipe(table, where="made")
    with pytest.raises(OutputError, match=r"mine\.toml exists"):
        write_recipe(data_dir, tmp_path / "mine.toml")
    with pytest.raises(DataError, match="no prepared set with maps of depth; make one with `openmarigold data prepare"):
        make_recipe(tmp_path)
    with pytest.raises(DataError, match="holds only mine, without maps of"):
        make_recipe(data_dir, ["modality=normals"])


def test_overrides(tmp_path: Path, data_dir: Path) -> None:
    table = with_overrides(
        {"data": {"sources": {"a": 1.0}}},
        ["data.sources.b=0.5", 'validation.sources."hypersim/val"=80', "base=a/b", "data.size=[48, 64]", "x.y=true"],
    )
    assert table == {
        "data": {"sources": {"a": 1.0, "b": 0.5}, "size": [48, 64]},
        "validation": {"sources": {"hypersim/val": 80}},
        "base": "a/b",
        "x": {"y": True},
    }
    for wrong, message in (("steps", "give section.key=value"), ("base.x=1", "base is not a section")):
        with pytest.raises(RecipeError, match=message):
            with_overrides({"base": "a"}, [wrong])
    path = tmp_path / "made.toml"
    path.write_text(to_toml(make_recipe(data_dir)))
    with pytest.raises(RecipeError, match=r"unknown key optimization\.num_step; did you mean optimization\.num_steps"):
        read_recipe(path, overrides=["optimization.num_step=3"])
    recipe: Any = read_recipe(path, overrides=["optimization.num_steps=3", "data.max_depth.rooms=9.0"])
    assert recipe.optimization.num_steps == 3 and recipe.data.max_depth == {"rooms": 9.0}
    for section in ("max_depth", "kind_weights"):
        changed = [f"data.{section}={{ photo = 2.0 }}", "data.mixture=sample", "data.buckets=[]"]
        recipe = read_recipe(path, overrides=changed)
        with pytest.raises(RecipeError, match=rf"data\.{section}: kind 'photo' is not known; the data has rooms"):
            Mixture(recipe.data, data_dir=data_dir, seed=0)


def test_a_run_states_what_it_does(
    walked: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the recipe.json of another run, and that `accelerate launch` started one process only."""
    monkeypatch.chdir(walked)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    caplog.set_level(logging.INFO, logger="openmarigold")
    command = "train --recipe runs/mine/recipe.json --data-dir DATA --output-dir runs/again --device cpu"
    assert (
        run([*command.split(), "--set", "data.size=[48, 48]", "--set", "data.buckets=[]", "--stop-after-steps", "1"])
        == 0
    )
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "device cpu, 1 process, precision float32" in text
    assert "batch: 4 = 2 a process x 1 processes x 2 accumulated" in text
    assert re.search(r"source mine: 100\.0 % of the samples, 18 pictures, views 48x48 of (62|75) to 75 % of each", text)
    assert re.search(r"held out of mine: 6 pictures of \w+", text)
    assert 'recipe: base = "sd"' in text and "held_out_mine: 6 images" in text
    assert "`accelerate launch` started one process" in text


def test_train_without_a_recipe_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--data-dir", "DATA"]) == 2
    assert "--recipe is missing; give a recipe and an output folder, or write a recipe for your data with --init" in (
        capsys.readouterr().err
    )


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        run(["train", "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 50
