# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from openmarigold.config import OutputConfig
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.modalities import DEPTH, find_modality
from openmarigold.modalities.colors import colorize
from openmarigold.modalities.depth import LOG_DEPTH, LOG_HALF_RANGE, normalize_depth, to_affine
from openmarigold.modalities.modality import latent_valid_mask

# 101 values 0 … 100: the 2 % quantile is exactly 2, the 98 % quantile exactly 98.
RAMP = np.arange(101, dtype=np.float32).reshape(1, 101)
EVERYWHERE = np.ones(RAMP.shape, dtype=bool)


def test_quantiles_become_minus_one_and_one_and_the_rest_is_clipped():
    norm_depth = normalize_depth(RAMP, EVERYWHERE)
    assert norm_depth.dtype == np.float32
    np.testing.assert_allclose(norm_depth[0, [0, 2, 26, 50, 98, 100]], [-1, -1, -0.5, 0, 1, 1], atol=1e-6)


def test_quantiles_interpolate_linearly():
    # Quantile 0.25 of (0, 10) is 2.5, quantile 0.75 is 7.5.
    norm_depth = normalize_depth(np.array([[0.0, 10.0]]), np.ones((1, 2), bool), quantiles=(0.25, 0.75))
    np.testing.assert_array_equal(norm_depth, [[-1, 1]])
    middle = normalize_depth(np.array([[0.0, 4.0, 10.0]]), np.ones((1, 3), bool), quantiles=(0.25, 0.75))
    # Quantiles 2 and 7: 4 lies at 2/5.
    np.testing.assert_allclose(middle[0, 1], -0.2, atol=1e-6)


def test_invalid_pixels_do_not_set_the_quantiles_and_go_far_by_default():
    depth, valid_mask = RAMP.copy(), EVERYWHERE.copy()
    depth[0, 50], valid_mask[0, 50] = 1e6, False
    depth[0, 51], valid_mask[0, 51] = np.nan, False
    norm_depth = normalize_depth(depth, valid_mask)
    assert (norm_depth[0, [50, 51]] == 1.0).all()
    assert norm_depth[0, 10] == pytest.approx((10 - 2) / 96 * 2 - 1, abs=0.01)


def test_raw_keeps_what_invalid_pixels_hold():
    depth, valid_mask = RAMP + 10, EVERYWHERE.copy()
    depth[0, :4] = [0.0, np.nan, np.inf, 60.0]
    valid_mask[0, :4] = False
    norm_depth = normalize_depth(depth, valid_mask, invalid="raw")
    assert norm_depth[0, :3].tolist() == [-1.0, 1.0, 1.0]  # a Hypersim hole becomes near
    assert -1 < norm_depth[0, 3] < 1


def test_maps_without_information_are_data_errors():
    with pytest.raises(DataError, match="no valid pixel"):
        normalize_depth(RAMP, ~EVERYWHERE)
    with pytest.raises(DataError, match="constant"):
        normalize_depth(np.full((2, 2), 3.0), np.ones((2, 2), bool))
    broken = RAMP.copy()
    broken[0, 7] = np.nan
    with pytest.raises(DataError, match="not finite"):
        normalize_depth(broken, EVERYWHERE)


def test_to_affine_maps_to_zero_one_and_clips():
    np.testing.assert_allclose(to_affine(np.array([-3.0, -1.0, 0.0, 1.0, 1.5])), [0, 0, 0.5, 1, 1])


def test_one_invalid_pixel_invalidates_its_latent_cell_only():
    valid_mask = np.ones((16, 24), dtype=bool)
    valid_mask[8, 23] = False
    cells = latent_valid_mask(valid_mask)
    assert cells.tolist() == [[True, True, True], [True, True, False]]


def test_latent_mask_keeps_leading_axes_and_takes_another_factor():
    valid_mask = np.ones((2, 1, 8, 8), dtype=bool)
    valid_mask[1, 0, 0, 7] = False
    assert latent_valid_mask(valid_mask, factor=4).tolist() == [
        [[[True, True], [True, True]]],
        [[[True, False], [True, True]]],
    ]


def test_latent_mask_of_another_size_is_refused():
    with pytest.raises(InvalidValueError, match="12x16 does not divide into cells of 8"):
        latent_valid_mask(np.ones((12, 16), bool))


def _log_target(depth: np.ndarray, valid_mask: np.ndarray, invalid: str = "far") -> np.ndarray:
    return LOG_DEPTH.to_target({"depth": depth}, valid_mask, invalid).values[0, 0]


def test_log_depth_is_centered_on_the_median_and_clipped():
    depth = np.exp(np.array([[-5.0, -1.0, 0.0, 1.0, 9.0, 0.0]]))
    valid_mask = np.array([[True, True, True, True, True, False]])
    norm_depth = _log_target(3 * depth, valid_mask)
    assert norm_depth.dtype == np.float32 and LOG_HALF_RANGE == 2.0
    np.testing.assert_allclose(norm_depth, [[-1, -0.5, 0, 0.5, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(_log_target(3 * depth, valid_mask, "raw")[0, 5], 0, atol=1e-6)
    holes = np.array([[0.0, np.nan, 2.0]])
    assert _log_target(holes, holes > 1, "raw").tolist() == [[-1, 1, 0]]
    target = LOG_DEPTH.to_target({"depth": 3 * depth}, valid_mask, "far")
    np.testing.assert_array_equal(target.values[0, 0], norm_depth)
    np.testing.assert_allclose(target.bounds, [3 * np.exp(-2), 3 * np.exp(2)])
    for wrong, message in ((depth * 0, "not above 0"), (depth * np.nan, "not finite")):
        with pytest.raises(DataError, match=message):
            _log_target(wrong, valid_mask)
    with pytest.raises(DataError, match="no valid pixel"):
        _log_target(depth, valid_mask & False)


def test_log_depth_comes_back_up_to_scale():
    depth = np.random.default_rng(0).uniform(1, 9, (5, 7))
    target = LOG_DEPTH.to_target({"depth": depth}, depth > 0, "far")
    stack = LOG_DEPTH.from_decoded(target.values)
    assert stack.dtype == np.float32 and stack.shape == (1, 5, 7)
    np.testing.assert_allclose(stack[0], depth / depth.max(), rtol=1e-5)
    for members in ([stack, 0.5 * stack], [stack, stack, 0.1 * stack]):
        merged = LOG_DEPTH.merge(np.stack(members), "scale", "median")
        np.testing.assert_allclose(merged.stack, stack, rtol=1e-5)
        np.testing.assert_allclose(merged.uncertainty, 0, atol=1e-6)


def test_log_depth_is_a_variant_of_depth():
    assert DEPTH.variants == {"log": LOG_DEPTH} and LOG_DEPTH.name == "depth"
    assert find_modality("depth") is find_modality("depth", "linear") is DEPTH
    assert pickle.loads(pickle.dumps(LOG_DEPTH)) is LOG_DEPTH
    assert pickle.loads(pickle.dumps(DEPTH)) is DEPTH
    with pytest.raises(InvalidValueError, match="space='cubic' is not known; use one of linear, log"):
        find_modality("depth", "cubic")


def test_colors_run_from_red_over_yellow_to_violet():
    picture = colorize(np.array([[0.0, 0.5, 1.0, -2.0, 7.0, np.nan]]))
    assert picture.dtype == np.uint8
    assert picture[0].tolist() == [[158, 1, 66], [255, 255, 191], [94, 79, 162], [158, 1, 66], [94, 79, 162], [0, 0, 0]]


def test_colors_between_two_classes_are_halfway():
    assert colorize(np.array([[0.05]]))[0, 0].tolist() == pytest.approx([185.5, 31.5, 72.5], abs=0.51)


def test_shapes_are_checked_in_the_tests():
    with pytest.raises(TypeCheckError):
        normalize_depth(RAMP, np.ones((2, 2), bool))


def test_pictures_of_depth_up_to_scale_give_ratios_equal_steps_and_withstand_a_far_sky() -> None:
    depth = np.geomspace(0.01, 0.16, 400).reshape(20, 20)
    shown = LOG_DEPTH.picture({"depth": depth}, "Spectral")
    assert np.array_equal(shown, LOG_DEPTH.picture({"depth": 3.0 * depth}, "Spectral"))
    with_sky = depth.copy()
    with_sky[0, :2] = 1000.0  # half a percent of the pixels
    near = LOG_DEPTH.picture({"depth": with_sky}, "Spectral")[5:15]
    assert np.abs(shown[5:15].astype(int) - near).max() < 12
    flat = LOG_DEPTH.picture({"depth": np.full((4, 4), 0.5)}, "Spectral")
    assert (flat == flat[0, 0]).all()
    zeros = LOG_DEPTH.picture({"depth": np.array([[0.0, 0.5, 1.0]])}, "Spectral")
    assert zeros.shape == (1, 3, 3)
    made = {picture.suffix: picture for picture in LOG_DEPTH.pictures}
    assert made["_depth_colored.png"].content == "the logarithm of depth in colors"
    assert np.array_equal(made["_depth_colored.png"].make({"depth": depth}, OutputConfig()), shown)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unknown_pixels_are_black_in_every_precision(dtype: type) -> None:
    depth = np.linspace(0, 1, 64).reshape(8, 8).astype(dtype)
    depth[3, 4] = np.nan
    picture = colorize(depth)
    assert (picture[3, 4] == 0).all() and (picture == 0).all(axis=2).sum() == 1
