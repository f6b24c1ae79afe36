# SPDX-License-Identifier: Apache-2.0
"""Recipes: what is accepted, what is refused and how, and that every knob does something."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import openmarigold.training.nano.recipes as nano_recipes
import openmarigold.training.recipe as recipe_module
import openmarigold.training.settings as settings_module
from openmarigold.errors import RecipeError
from openmarigold.training.lite.recipes import DistributionLossConfig, LiteRecipe, LogAutoencoderRecipe
from openmarigold.training.recipe import MarigoldRecipe, parse_recipe, read_recipe, to_table
from openmarigold.training.settings import DataConfig, OptimizationConfig, TimestepConfig
from training_data import AUTOENCODER, DEPTH, GENERATOR

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "openmarigold"
RECIPE_FILES = [PACKAGE / "training" / name for name in ("recipe.py", "settings.py", "nano/recipes.py")]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [AUTOENCODER, GENERATOR, DEPTH])
def test_resolved_recipe_can_be_fed_back(tmp_path: Path, text: str) -> None:
    recipe = read_recipe(write(tmp_path, text))
    saved = json.loads(json.dumps(to_table(recipe)))
    assert parse_recipe(saved, where="saved") == recipe


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    read_recipe(path)


def test_depth_recipe_defaults_are_the_papers() -> None:
    table = {
        "kind": "depth",
        "base": "x",
        "data": {"sources": {"synthetic": 1}, "size": [480, 640]},
        "optimization": {"num_steps": 30000, "batch_size": 32, "learning_rate": 3e-5},
        "checkpoint": {"name": "x"},
    }
    recipe = parse_recipe(table, where="test")
    assert isinstance(recipe, MarigoldRecipe)
    assert (recipe.noise.strength, recipe.noise.annealed) == (0.9, True)
    assert recipe.timesteps.last_share == 0
    optimization = recipe.optimization
    assert (optimization.warmup_steps, optimization.decay) == (100, "exponential")
    assert (optimization.ema_decay, optimization.gradient_clip, optimization.weight_decay) == (0, 0, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size", "batchsize", r"unknown key optimization.batchsize; did you mean optimization.batch_size\?"),
        ('kind = "depth"', 'kind = "normals"', "kind='normals' is not a kind of recipe; use one of autoencoder"),
        ('kind = "depth"', "", "kind=None is not a kind of recipe"),
        ("num_steps = 12\n", "", "optimization.num_steps is missing"),
        ("num_steps = 12", "num_steps = 1.5", "optimization.num_steps=1.5 is not accepted; it must be a whole number"),
        ("num_steps = 12", "num_steps = true", "optimization.num_steps=True is not accepted"),
        ("num_steps = 12", "num_steps = 0", "optimization.num_steps=0 must be at least 1"),
        ("[32, 48]", "[32, 50]", r"data.size=\[32, 50\]: 50 is not a multiple of 8"),
        ("[32, 48]", "[32]", "data.size=.* is not accepted"),
        ("{ synthetic = 1.0 }", "{}", "data.sources is empty"),
        ("{ synthetic = 1.0 }", "{ synthetic = -1 }", "every share in sources must be above 0"),
        ("{ synthetic = 1.0 }", "3", "data.sources=3 is not accepted"),
        ("last_share = 0.25", "last_share = 2", r"last_share=2.0 must be in \[0, 1\]"),
        ("{ last_share = 0.25 }", "7", r"\[timesteps\] must be a table, not 7"),
        ("processing_resolution = 48", "processing_resolution = 50", "processing_resolution=50 is not a multiple of 8"),
        (
            "num_variants = 2",
            "num_variants = 2, kind_weights = { rooms = -1 }",
            "every kind_weights must be 0 or above",
        ),
        ("{ synthetic = 1.0 }", "{ synthetic = inf }", "every share in sources must be above 0, and at most 1e"),
        (
            "num_variants = 2",
            "num_variants = 2, kind_weights = { rooms = inf }",
            "kind_weights must be 0 or above, and",
        ),
        ("num_variants = 2", "num_variants = 1000000000000", "num_variants=1000000000000 must be 1 to 10000"),
        ("num_variants = 2", "latent_noise = inf", "latent_noise=inf must be finite, 0 or above"),
        ("num_variants = 2", "aspect_jitter = inf", "aspect_jitter=inf must be finite, 0 or above"),
        ("[32, 48]", "[80000, 48]", r"size=\[80000, 48\]: 80000 is above 8192 pixels"),
        ("last_share = 0.25", 'spacing = "leading"', "where the result is the starting noise; set spacing"),
        (
            'mixed_precision = "bf16"',
            "mixed_precision = 'fp8'",
            "mixed_precision='fp8' is not accepted; it must be one of",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DEPTH
    with pytest.raises(RecipeError, match=message) as error:
        read_recipe(write(tmp_path, DEPTH.replace(old, new)))
    assert str(error.value).startswith(str(tmp_path / "recipe.toml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("modality", "section", "values", "message"),
    [
        ("normals", "data", {"aspect_jitter": 0.1}, r"data\.aspect_jitter=0\.1 makes surface normals wrong"),
        ("normals", "objective", {"error": "relative"}, 'error="relative" is for depth, not for surface normals'),
        ("lighting", "objective", {"error": "meters"}, 'error="meters" is for depth, not for'),
        ("depth", "objective", {"error": "meters"}, ""),
        ("depth", "data", {"aspect_jitter": 0.1}, ""),
    ],
)
def test_settings_that_make_a_modality_wrong_are_refused(
    modality: str, section: str, values: dict[str, object], message: str
) -> None:
    table: dict[str, Any] = {
        "kind": "depth",
        "modality": modality,
        "base": "x",
        "data": {"sources": {"a": 1}, "size": [48, 64]},
        "optimization": {"num_steps": 1, "batch_size": 1, "learning_rate": 1e-3},
        "checkpoint": {"name": "x"},
        "objective": {"kind": "end_to_end"},
    }
    table[section] = table[section] | values
    if not message:
        parse_recipe(table, where="test")
        return
    with pytest.raises(RecipeError, match=message):
        parse_recipe(table, where="test")


def test_settings_that_make_a_small_model_wrong_are_refused() -> None:
    data = DataConfig(sources={"a": 1.0}, size=(48, 64), aspect_jitter=0.1)
    optimization = OptimizationConfig(num_steps=1, batch_size=1, learning_rate=1e-3)
    LogAutoencoderRecipe(kind="log_autoencoder", data=data, optimization=optimization)
    with pytest.raises(RecipeError, match="makes surface normals wrong"):
        LogAutoencoderRecipe(kind="log_autoencoder", data=data, optimization=optimization, modality="normals")
    settings: dict[str, Any] = {"kind": "lite", "autoencoder": Path("x"), "data": data, "optimization": optimization}
    leading = TimestepConfig(spacing="leading")
    LiteRecipe(**settings, timesteps=leading, loss=DistributionLossConfig(objective="denoising"))
    with pytest.raises(RecipeError, match=r'timesteps\.spacing="leading" has no effect'):
        LiteRecipe(**settings, timesteps=leading)


@pytest.mark.parametrize("content", [b"", b"kind = ", b"\xff\xfe\x00"])
def test_not_a_recipe(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        read_recipe(path)
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "missing.toml")


def test_every_field_is_read_somewhere() -> None:
    """A knob that no code reads would be a lie; each field appears as an attribute outside its definition."""
    read = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                # Validation alone is not a use of a value.
                inside_check = path in RECIPE_FILES and isinstance(node.value, ast.Name) and node.value.id == "self"
                if not inside_check:
                    read.add(node.attr)
    modules = (recipe_module, nano_recipes, settings_module)
    classes = [value for module in modules for value in vars(module).values() if dataclasses.is_dataclass(value)]
    assert len(classes) > 8
    fields = {entry.name for value in classes for entry in dataclasses.fields(value)}
    # Chooses the class of the recipe before there is an object.
    # `sizes` is read through `DataConfig.size_of`.
    unread = fields - read - {"kind", "sizes"}
    assert not unread, f"recipe fields that nothing reads: {sorted(unread)}"


def test_recipes_module_imports_no_torch() -> None:
    for path in RECIPE_FILES:
        assert not re.search(r"^\s*(import|from) (torch|diffusers|accelerate)", path.read_text(), flags=re.MULTILINE)


def test_unet_widths_that_cannot_be_built_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="48 is not a multiple of 32"):
        read_recipe(write(tmp_path, GENERATOR.replace("[32, 32]", "[48, 96]")))
    with pytest.raises(RecipeError, match="head_dim=0 must be at least 1"):
        read_recipe(write(tmp_path, GENERATOR.replace("head_dim = 16", "head_dim = 0")))
