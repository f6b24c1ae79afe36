# SPDX-License-Identifier: Apache-2.0
"""photo = albedo * shading + residual: the error is measured, and made 0."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from openmarigold.images.pixels import decode_srgb, encode_srgb, light_of_pixels
from openmarigold.modalities.recomposition import DARKEST, fit_to_photo, recompose
from tiny import make_photo


def parts(seed: int = 0, size: tuple[int, int] = (40, 60)) -> tuple[np.ndarray, ...]:
    """A photo, an albedo with black pixels, and light of which the photo is not made."""
    rng = np.random.default_rng(seed)
    albedo = rng.uniform(0, 1, (*size, 3)).astype(np.float32)
    albedo[:4] = 0.0
    shading = rng.uniform(0.2, 1, (*size, 3)).astype(np.float32)
    residual = (0.3 * rng.uniform(0, 1, (*size, 3)) ** 4).astype(np.float32)
    return make_photo(*size, seed=seed), albedo, shading, residual


def test_srgb_has_the_values_of_the_standard() -> None:
    light = np.array([0.0, 0.0031308, 0.18, 0.5, 1.0], dtype=np.float32)
    np.testing.assert_allclose(255 * encode_srgb(light), [0, 10.31, 117.65, 187.52, 255], atol=0.01)
    assert encode_srgb(light).dtype == decode_srgb(light).dtype == np.float32
    np.testing.assert_allclose(decode_srgb(encode_srgb(light)), light, atol=1e-6)
    np.testing.assert_allclose(
        light_of_pixels(np.array([0, 10, 188, 255], np.uint8)), [0, 0.0030353, 0.5029, 1], atol=1e-4
    )


def test_a_photo_that_is_made_of_its_parts_has_no_error_and_the_scale_is_found() -> None:
    rgb, albedo, _, residual = parts()
    light = light_of_pixels(rgb)
    albedo = np.maximum(albedo, 0.1)
    shading = (light - np.minimum(residual, light)) / albedo
    fit = fit_to_photo(rgb, albedo, shading / 4, np.minimum(residual, light) / 4)
    assert fit.scale == pytest.approx(4, rel=1e-5) and fit.error < 1e-4
    fixed = fit_to_photo(rgb, albedo, shading / 4, np.minimum(residual, light) / 4, up_to_scale=False)
    assert fixed.scale == 1
    assert fixed.error == pytest.approx(np.sqrt(np.mean((0.75 * light.astype(np.float64)) ** 2)), rel=1e-4)
    encoded = fit_to_photo(rgb, encode_srgb(albedo), shading, np.minimum(residual, light), albedo_in_srgb=True)
    assert encoded.scale == pytest.approx(1, rel=1e-5) and encoded.error < 1e-4


def test_the_scale_is_that_of_least_squares_over_all_strips() -> None:
    rgb, albedo, shading, residual = parts(size=(900, 300))  # more than one strip
    made = (albedo * shading + residual).astype(np.float64).ravel()
    light = light_of_pixels(rgb).astype(np.float64).ravel()
    (scale,), (squared,), *_ = np.linalg.lstsq(made[:, None], light, rcond=None)
    fit = fit_to_photo(rgb, albedo, shading, residual)
    assert fit.scale == pytest.approx(scale, rel=1e-6)
    assert fit.error == pytest.approx(np.sqrt(squared / light.size), rel=1e-6)
    dark = np.zeros_like(albedo)
    assert fit_to_photo(rgb, dark, shading, dark).scale == 1


@pytest.mark.parametrize("in_srgb", [False, True])
def test_the_identity_holds_everywhere_and_the_albedo_stays(in_srgb: bool) -> None:
    rgb, albedo, shading, residual = parts(size=(900, 300))
    before = albedo.copy()
    scale = fit_to_photo(rgb, albedo, shading, residual, albedo_in_srgb=in_srgb).scale
    low, high = scale * shading.min(), scale * shading.max()
    given = scale * residual
    recompose(rgb, albedo, shading, residual, scale=scale, albedo_in_srgb=in_srgb)
    np.testing.assert_array_equal(albedo, before)
    reflected = decode_srgb(albedo) if in_srgb else albedo
    made = reflected * shading + residual
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, light_of_pixels(rgb), rtol=0, atol=1e-6)
    assert low * 0.9999 <= shading.min() <= shading.max() <= high * 1.0001
    within = (reflected > DARKEST) & (shading > low * 1.001) & (shading < high * 0.999)
    assert 0.05 < within.mean() < 0.95
    np.testing.assert_allclose(residual[within], given[within], atol=1e-5)  # kept where nothing is clipped
    assert residual.min() < -0.01 and residual.max() > 0.1
    assert (residual[:4] >= 0).all()  # a black albedo: all light is left over
    np.testing.assert_allclose(residual[:4], light_of_pixels(rgb)[:4], atol=1e-6)


def test_large_photos_go_in_strips() -> None:
    maps = [np.full((2000, 1500, 3), value, dtype=np.float32) for value in (0.5, 0.6, 0.1)]
    rgb = np.full((2000, 1500, 3), 200, dtype=np.uint8)
    tracemalloc.start()
    try:
        fit = fit_to_photo(rgb, *maps)
        recompose(rgb, *maps, scale=fit.scale)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * maps[0].nbytes


def test_a_shading_that_fits_comes_back() -> None:
    """Of A * S + R with a known S in the range, recomposing finds S again from another one of the same range."""
    rgb, albedo, _, _ = parts(3)
    light, albedo = light_of_pixels(rgb), np.maximum(albedo, np.float32(0.2))
    residual = (0.1 * light).astype(np.float32)
    true = (light - residual) / albedo
    wrong = np.ascontiguousarray(true[:, ::-1])
    recompose(rgb, albedo, wrong, residual)
    np.testing.assert_allclose(wrong, true, atol=1e-5)
    np.testing.assert_allclose(residual, 0.1 * light, atol=1e-6)
