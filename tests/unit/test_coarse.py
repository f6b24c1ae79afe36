# SPDX-License-Identifier: Apache-2.0
"""Two passes at a photo: what is coarse in the latents comes from the pass at the lower resolution."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmarigold.config import CallConfig, PredictConfig
from openmarigold.evaluation.video import model_estimators
from openmarigold.predictor import Predictor
from openmarigold.predictor.coarse import with_coarse
from openmarigold.predictor.sampling import Step
from openmarigold.predictor.stream import Stream
from openmarigold.temporal.settings import StreamConfig
from openmarigold.training.lite.recipes import LiteRecipe
from openmarigold.training.recipe import read_recipe
from tiny import edit_json, make_photo

COARSE = 32  # the tiny checkpoint's own default is 64


@pytest.fixture(scope="module")
def twice(onnx_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """The predictor of a checkpoint with a coarse resolution."""
    folder = tmp_path_factory.mktemp("coarse") / "checkpoint"
    shutil.copytree(onnx_checkpoint, folder)
    edit_json(folder / "model_index.json", coarse_resolution=COARSE)
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def once(onnx_checkpoint: Path) -> Predictor:
    """The predictor of the same networks without one."""
    return Predictor.load(onnx_checkpoint)


def field(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.stack([rows[:, None] + 0 * columns, np.sin(rows[:, None]) + columns]).astype(np.float32)


@pytest.mark.parametrize(("size", "coarse_size"), [((384, 512), (256, 341)), ((640, 384), (427, 256))])
def test_the_coarse_part_is_that_of_the_lower_resolution(size: tuple[int, int], coarse_size: tuple[int, int]) -> None:
    def cells(seen: tuple[int, int]) -> list[np.ndarray]:  # centers of the padded latent cells, as shares of the photo
        return [(np.arange(-(-pixels // 8)) + 0.5) * 8 / pixels for pixels in seen]

    smooth, below = field(*cells(size)), field(*cells(coarse_size))
    rough = np.indices(smooth.shape[1:]).sum(axis=0) % 2 - 0.5  # a chessboard
    found = with_coarse((3 - smooth + rough).astype(np.float32), below, size=size, coarse_size=coarse_size)
    inside = (slice(None), slice(8, -8), slice(8, -8))
    assert found.dtype == np.float32 and found.shape == smooth.shape
    # The opposite slope of the fine latents is gone, their chessboard is there.
    np.testing.assert_allclose(found[inside], (smooth + rough)[inside], atol=0.02)


def test_equal_latents_stay_as_they_are() -> None:
    latents = np.random.default_rng(0).standard_normal((4, 24, 32)).astype(np.float32)
    np.testing.assert_allclose(
        with_coarse(latents, latents, size=(192, 256), coarse_size=(192, 256)), latents, atol=1e-6
    )


def test_the_latent_is_that_of_both_passes(once: Predictor, twice: Predictor) -> None:
    photo = make_photo(96, 120)
    fine, coarse = once(photo), once(photo, processing_resolution=COARSE)
    both = twice(photo)
    expected = with_coarse(fine.latent[0], coarse.latent[0], size=(51, 64), coarse_size=(25, 32))
    np.testing.assert_array_equal(both.latent[0], expected)
    assert both.settings["coarse_resolution"] == COARSE and both.settings["processing_resolution"] == 64
    assert np.abs(both.depth - fine.depth).max() > 0.01


@pytest.mark.parametrize("resolution", [16, COARSE])
def test_a_photo_that_is_not_seen_larger_gets_one_pass(once: Predictor, twice: Predictor, resolution: int) -> None:
    photo = make_photo(96, 120)
    found, expected = (one(photo, processing_resolution=resolution) for one in (twice, once))
    np.testing.assert_array_equal(found.depth, expected.depth)
    assert "coarse_resolution" not in found.settings


def test_at_its_own_size_a_large_photo_gets_two(twice: Predictor) -> None:
    assert "coarse_resolution" in twice(make_photo(40, 48), processing_resolution=0).settings
    assert "coarse_resolution" not in twice(make_photo(24, 32), processing_resolution=0).settings


def test_batches_and_lists_change_no_byte(twice: Predictor) -> None:
    # At 64 pixels all but the last are 48x64; at 32 the second is a row lower than the first.
    photos = [make_photo(*size, seed=seed) for seed, size in enumerate([(96, 128), (97, 128), (96, 128), (60, 128)])]
    settings: dict[str, Any] = {"ensemble_size": 4, "ensemble_mirror": True, "seed": 3}
    alone = [twice(photo, batch_size=1, **settings).depth for photo in photos]
    for batch_size in (3, 16):
        together = twice(photos, batch_size=batch_size, **settings)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other.depth)


def test_a_guide_sees_one_pass_at_the_coarse_resolution(once: Predictor, twice: Predictor) -> None:
    shapes = []

    def guide(latent: Any, step: Step) -> Any:
        del step
        shapes.append(latent.shape[2:])
        return latent

    photo = make_photo(96, 128)
    found = twice(photo, guide=guide, num_inference_steps=2)
    assert shapes == [(3, 4)] * 2 and "coarse_resolution" not in found.settings
    expected = once(photo, num_inference_steps=2, processing_resolution=COARSE)
    np.testing.assert_array_equal(found.depth, expected.depth)
    assert twice(photo, guide=guide, num_inference_steps=1, processing_resolution=64).latent.shape[2:] == (6, 8)


def test_clips_get_one_pass(twice: Predictor, once: Predictor) -> None:
    assert Stream(twice, StreamConfig(), CallConfig()).call.processing_resolution == COARSE
    assert Stream(once, StreamConfig(), CallConfig()).call.processing_resolution == 64
    assert Stream(twice, StreamConfig(), CallConfig(processing_resolution=48)).call.processing_resolution == 48


def test_single_frames_of_a_clip_are_compared_in_one_pass(twice: Predictor) -> None:
    config = PredictConfig(checkpoint=twice.checkpoint.directory)
    for estimator in model_estimators(config, StreamConfig(), ["stream", "per-frame"]):
        assert estimator.spec.settings["processing_resolution"] == COARSE


def test_given_latents_are_those_of_the_first_pass(twice: Predictor) -> None:
    photo = make_photo(96, 128)
    shape = twice.latent_shape((96, 128), twice.resolve(CallConfig()))
    noise = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    assert shape[1:] == (6, 8)
    found = [twice(photo, latents=noise * factor).depth for factor in (1.0, 1.0, 0.5)]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-4


def test_the_embedded_model_takes_two_passes() -> None:
    predictor = Predictor.load()
    assert predictor.checkpoint.coarse_resolution == 256
    found = predictor(make_photo(480, 640))
    assert (found.settings["processing_resolution"], found.settings["coarse_resolution"]) == (352, 256)
    assert found.latent.shape[2:] == (44, 59)


def test_the_recipe_states_the_resolutions_of_the_embedded_model() -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / "lite-3-photos.toml")
    assert isinstance(recipe, LiteRecipe)
    shipped = Predictor.load().checkpoint
    assert recipe.checkpoint.processing_resolution == shipped.default_processing_resolution
    assert recipe.checkpoint.passes == {"coarse_resolution": shipped.coarse_resolution}
