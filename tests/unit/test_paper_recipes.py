# SPDX-License-Identifier: Apache-2.0
"""The recipes of published models hold the published values, and the exact ones nothing else.

Values: the configuration files of Marigold's code (prs-eth/Marigold: config/train_marigold_depth.yaml and the files
that it names; -normals, -iid), §4.1 of the paper, and the training script of Garcia et al. 2024.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openmarigold.training.noise import draw_timesteps, multi_resolution_noise
from openmarigold.training.recipe import MarigoldRecipe, read_recipe
from openmarigold.training.settings import TimestepConfig
from openmarigold.training.trainer import learning_rate_factor

RECIPES = Path(__file__).parents[2] / "recipes"
DEPTH = ("marigold-v1", "marigold-v1-exact", "marigold-v1-1", "marigold-v1-1-exact")
END_TO_END = ("e2e-ft", "e2e-ft-exact")
OTHER_MAPS = ("marigold-normals", "marigold-iid-appearance", "marigold-iid-lighting")
# Where an improved recipe leaves the published code on purpose: the table in docs/faithfulness.md.
IMPROVEMENTS = {
    "data.resampling",
    "data.latents",
    "data.invalid",
    "noise.normalization",
    "optimization.warmup_from_zero",
    "optimization.mixed_precision",
}


def read(name: str) -> MarigoldRecipe:
    recipe = read_recipe(RECIPES / f"{name}.toml")
    assert isinstance(recipe, MarigoldRecipe)
    return recipe


def values(recipe: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for entry in dataclasses.fields(recipe):
        value = getattr(recipe, entry.name)
        name = f"{prefix}{entry.name}"
        found |= values(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


@pytest.mark.parametrize("name", DEPTH)
def test_depth_recipes_hold_the_published_values(name: str) -> None:
    recipe = read(name)
    data, optimization = recipe.data, recipe.optimization
    # Base weights, seeds, and no second model or average.
    assert (recipe.base, recipe.seed, recipe.modality) == ("stabilityai/stable-diffusion-2", 2024, "depth")
    assert (optimization.optimizer, optimization.weight_decay) == ("adam", 0.0)
    assert (optimization.gradient_clip, optimization.ema_decay) == (0.0, 0.0)
    # 3e-5, warm-up over 100 iterations, then down to 1 % at iteration 25,000 and no further.
    assert (optimization.learning_rate, optimization.warmup_steps) == (3e-5, 100)
    assert (optimization.decay, optimization.decay_steps, optimization.final_learning_rate_factor) == (
        "exponential",
        25000,
        0.01,
    )
    # 32 = 2 x 16 accumulated.
    assert (optimization.batch_size, optimization.micro_batch_size) == (32, 2)
    assert optimization.num_steps == (30000 if "v1-1" in name else 18000)  # max_iter; the paper's 18 K
    # Hypersim and Virtual KITTI 2, nine to one by micro-batch, at 480x640 and 352x1216, mirrored half of the time.
    assert list(data.sources.items()) == [("hypersim", 0.9), ("vkitti2", 0.1)] and data.mixture == "micro_batch"
    assert (data.size_of("hypersim"), data.size_of("vkitti2")) == ((480, 640), (352, 1216))
    assert (data.mirror, data.num_variants, data.appearance, data.latent_noise) == ("both", 2, 0.0, 0.0)
    assert (data.min_scale, data.aspect_jitter, data.buckets) == (1.0, 0.0, ())
    assert (data.min_depth, data.max_depth, data.valid_range) == (1e-5, {"rooms": 65.0, "street": 80.0}, {})
    assert not data.invalid_is_far
    # Mean squared error at uniform timesteps under annealed multi-resolution noise.
    assert (recipe.objective.kind, recipe.timesteps.last_share) == ("denoising", 0.0)
    assert (recipe.noise.strength, recipe.noise.annealed) == (0.9, True)
    is_v11 = "v1-1" in name
    assert (recipe.timesteps.zero_terminal_snr, recipe.timesteps.spacing) == (
        (True, "trailing") if is_v11 else (False, "leading")
    )
    assert recipe.timesteps.prediction_type == "base"  # the base's own: v
    assert recipe.run.num_workers == 2
    check_validation(recipe)
    defaults = recipe.checkpoint
    assert (defaults.num_inference_steps, defaults.processing_resolution) == (4 if is_v11 else 10, 768)
    assert (defaults.final_step, defaults.processing_side) == ("reference", "longer")


def check_validation(recipe: MarigoldRecipe) -> None:
    """80 pictures of Hypersim's validation split, 100 of NYU's training split, 100 of KITTI's."""
    validation = recipe.validation
    assert validation.sources == {"hypersim/val": 80}
    assert (validation.benchmarks, validation.num_images) == (("nyuv2-train", "kitti-val"), 100)
    assert (validation.ensemble_size, validation.processing_resolution, validation.seed) == (1, 0, 2024)


def test_exact_depth_recipes_leave_nothing_out() -> None:
    for name, steps, spacing, period in (
        ("marigold-v1-exact", 50, "leading", 2000),
        ("marigold-v1-1-exact", 1, "trailing", 500),
    ):
        recipe = read(name)
        assert recipe.optimization.mixed_precision == "no" and recipe.data.latents == "float32"
        assert recipe.noise.normalization == "batch"
        assert (recipe.data.resampling, recipe.data.invalid) == ("published", "raw")
        assert recipe.optimization.warmup_from_zero
        assert (recipe.validation.num_inference_steps, recipe.validation.spacing) == (steps, spacing)
        assert (recipe.run.validation_period, recipe.run.checkpoint_period) == (period, 2000)


@pytest.mark.parametrize("name", ["marigold-v1", "marigold-v1-1", "e2e-ft"])
def test_improved_recipes_differ_by_the_stated_improvements_alone(name: str) -> None:
    improved, exact = values(read(name)), values(read(f"{name}-exact"))
    differing = {key for key in improved if improved[key] != exact[key]}
    learned = {key for key in differing if key.split(".")[0] not in ("run", "validation", "checkpoint")}
    if name == "e2e-ft":
        assert learned == {*IMPROVEMENTS, "objective.error", "data.cache"} - {"data.invalid", "noise.normalization"}
    else:
        assert learned == IMPROVEMENTS
    page = (RECIPES.parent / "docs" / "faithfulness.md").read_text()
    for key in learned:
        assert f"`{key.rpartition('.')[2]}" in page, f"docs/faithfulness.md does not name {key}"


@pytest.mark.parametrize("name", END_TO_END)
def test_end_to_end_recipes_hold_the_published_values(name: str) -> None:
    recipe = read(name)
    optimization = recipe.optimization
    assert (recipe.objective.kind, recipe.objective.start_noise) == ("end_to_end", "zeros")
    assert recipe.objective.error == ("meters" if name.endswith("exact") else "absolute")
    assert (optimization.learning_rate, optimization.warmup_steps, optimization.num_steps) == (3e-5, 100, 20000)
    assert (optimization.decay, optimization.decay_steps, optimization.final_learning_rate_factor) == (
        "exponential",
        0,  # the last step
        0.01,
    )
    assert (optimization.weight_decay, optimization.gradient_clip) == (0.01, 1.0)
    assert (optimization.batch_size, optimization.micro_batch_size) == (32, 2)
    assert optimization.gradient_checkpointing and not recipe.timesteps.zero_terminal_snr
    assert recipe.data.sources == {"hypersim": 0.9, "vkitti2": 0.1} and recipe.data.invalid == "far"
    assert (recipe.checkpoint.num_inference_steps, recipe.checkpoint.final_step) == (1, "clean")


@pytest.mark.parametrize(
    ("name", "rate", "end", "steps"),
    [
        ("marigold-normals", 6e-5, 25000, 30000),
        ("marigold-iid-appearance", 3e-5, 25000, 50000),
        ("marigold-iid-lighting", 8e-5, 45000, 50000),
    ],
)
def test_recipes_of_other_maps_hold_the_published_values(name: str, rate: float, end: int, steps: int) -> None:
    recipe = read(name)
    optimization = recipe.optimization
    assert (optimization.learning_rate, optimization.decay_steps, optimization.num_steps) == (rate, end, steps)
    assert (optimization.batch_size, optimization.micro_batch_size, optimization.warmup_steps) == (32, 2, 100)
    assert (recipe.noise.strength, recipe.noise.annealed) == (0.9, True)
    assert (recipe.timesteps.zero_terminal_snr, recipe.checkpoint.num_inference_steps) == (True, 4)
    if name == "marigold-normals":
        assert list(recipe.data.sources.values()) == [0.5, 0.49, 0.01]


def test_learning_rates_of_the_exact_recipes() -> None:
    """n / 100 for the first hundred iterations, from 0; the values further on are those of the published schedule."""
    optimization = read("marigold-v1-1-exact").optimization
    assert [learning_rate_factor(step, optimization) for step in (0, 1, 50, 99)] == [0.0, 0.01, 0.5, 0.99]
    for step, rate in ((100, 3e-5), (5000, 1.21e-5), (10000, 4.8e-6), (18000, 1.1e-6), (25000, 3e-7), (29999, 3e-7)):
        assert 3e-5 * learning_rate_factor(step, optimization) == pytest.approx(rate, rel=0.03)
    lighting = read("marigold-iid-lighting").optimization
    assert 8e-5 * learning_rate_factor(45000, lighting) == pytest.approx(8e-7)


def test_the_exact_noise_shares_its_deviation() -> None:
    """Samples of a micro-batch at timesteps 0 and 999: 0.887 and 1.089 by one deviation over both, 1 by their own."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.tensor([0.0, 0.9 * 0.999])
    found = {"batch": np.zeros(2), "sample": np.zeros(2)}
    for name in ("marigold-v1-exact", "marigold-v1"):
        normalization = read(name).noise.normalization
        for _ in range(40):
            noise = multi_resolution_noise(
                (2, 4, 60, 80), strength=strength, generator=generator, normalization=normalization
            )
            found[normalization] += noise.std(dim=(1, 2, 3)).numpy() / 40
    np.testing.assert_allclose(found["batch"], (0.887, 1.089), atol=0.01)
    np.testing.assert_allclose(found["sample"], 1.0, atol=1e-5)


def test_timesteps_are_uniform() -> None:
    drawn = draw_timesteps(np.random.default_rng(0), 40_000, config=TimestepConfig(), num_train_timesteps=1000)
    assert (drawn.min(), drawn.max()) == (0, 999)
    assert np.bincount(drawn // 100) / 40_000 == pytest.approx(0.1, abs=0.01)
