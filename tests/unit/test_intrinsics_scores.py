# SPDX-License-Identifier: Apache-2.0
"""PSNR, SSIM and the protocols of intrinsic images against values worked out by hand and by plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark_data import score_sample
from openmarigold.cli import run
from openmarigold.errors import DataError
from openmarigold.evaluation import Estimator, evaluate
from openmarigold.images.pixels import encode_srgb, light_of_pixels
from openmarigold.modalities.intrinsics import APPEARANCE, LIGHTING
from openmarigold.modalities.intrinsics_scores import LARGEST_PSNR, brightness_factor, fit_factor, psnr, ssim
from openmarigold.modalities.protocol import BenchmarkSample
from tiny import make_photo
from training_data import maps_of

ALL = np.ones((20, 30), dtype=bool)


def sample(modality: str, valid_mask: np.ndarray = ALL) -> BenchmarkSample:
    rgb = make_photo(20, 30)
    maps = maps_of(modality, rgb, np.random.default_rng(0))
    return BenchmarkSample(
        name="r0", kind="room", place="p", rgb=rgb, maps=maps, valid_mask=valid_mask, full_size=(20, 30)
    )


def test_psnr_by_hand() -> None:
    gt = np.full((20, 30, 3), 0.5)
    assert psnr(gt + 0.1, gt, ALL) == pytest.approx(20)  # 10 log10(1 / 0.01)
    assert psnr(gt, gt, ALL) == LARGEST_PSNR
    half = ALL.copy()
    half[:, 15:] = False
    pred = gt.copy()
    pred[:, 15:] = 9.0  # does not count
    pred[:, :15, 0] += 0.3  # one channel of three: mean squared error 0.03
    assert psnr(pred, gt, half) == pytest.approx(-10 * np.log10(0.03))


def test_ssim_by_hand_and_by_a_plain_loop() -> None:
    c1, c2 = 1e-4, 9e-4
    flat = [np.full((11, 11), value) for value in (0.2, 0.6)]
    assert ssim(*flat) == pytest.approx((2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1))
    rng = np.random.default_rng(1)
    first, second = rng.uniform(0, 1, (13, 12)), rng.uniform(0, 1, (13, 12))
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for top in range(3):
        for left in range(2):
            a, b = (picture[top : top + 11, left : left + 11] for picture in (first, second))
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert ssim(first, second) == pytest.approx(np.mean(found), rel=1e-9)
    assert ssim(first, first) == pytest.approx(1)
    pair = [np.stack([x, y], axis=-1) for x, y in ((first, first), (second, first))]
    assert ssim(*pair) == pytest.approx((np.mean(found) + 1) / 2)
    with pytest.raises(DataError, match="SSIM needs maps of 11x11 pixels or more; these are 10x12"):
        ssim(first[:10], second[:10])


def test_factors_by_hand() -> None:
    light = np.zeros((10, 10, 3))
    light[..., 1] = np.arange(100).reshape(10, 10)  # brightness 0.59 x 0 to 99, 90 % quantile 0.59 x 89.1
    every = np.ones((10, 10), dtype=bool)
    assert brightness_factor(light, every) == pytest.approx(0.8 / (0.59 * 89.1))
    spark = np.zeros((10, 10, 3))
    spark[0, 0] = 2.0  # its quantile is 0: the brightest counts
    assert brightness_factor(spark, every) == pytest.approx(0.4)
    assert brightness_factor(0 * spark, every) == 1
    mask = every.copy()
    mask[0, 0] = False
    assert brightness_factor(spark, mask) == 1
    assert fit_factor(light, 3 * light, every) == pytest.approx(3)
    assert fit_factor(0 * light, light, every) == 1


def test_light_is_scored_up_to_a_factor_of_each_map_and_the_albedo_is_not() -> None:
    given, protocol = sample("lighting"), LIGHTING.protocols["marigold-lighting"]
    maps = {**given.maps, "shading": 5 * given.maps["shading"], "residual": given.maps["residual"] / 3}
    found = score_sample(given, maps, protocol, "lighting")
    assert list(found) == list(protocol.score_names)
    assert found["shading_psnr"] > 90 and found["residual_psnr"] > 90 and found["albedo_psnr"] == LARGEST_PSNR
    assert found["shading_ssim"] == pytest.approx(1, abs=1e-6) and found["pixels_scored"] == 1
    darker = score_sample(given, {**maps, "albedo": given.maps["albedo"] / 2}, protocol, "lighting")
    error = (given.maps["albedo"] ** (1 / 2.2)) * (1 - 0.5 ** (1 / 2.2))  # in sRGB
    assert darker["albedo_psnr"] == pytest.approx(-10 * np.log10(np.mean(error**2)), rel=1e-5)
    encoded = {**maps, "albedo": encode_srgb(given.maps["albedo"])}
    other = score_sample(given, encoded, protocol, LIGHTING.spaces[1])
    assert other["albedo_psnr"] > 90 > score_sample(given, encoded, protocol, "lighting")["albedo_psnr"]


def test_shading_is_compared_at_the_measured_brightness_and_cut_at_1() -> None:
    given, protocol = sample("lighting"), LIGHTING.protocols["marigold-lighting"]
    truth = given.maps["shading"].astype(np.float64)
    guess = truth + 0.5 * np.random.default_rng(2).uniform(0, 1, truth.shape)
    found = score_sample(given, {**given.maps, "shading": guess}, protocol, "lighting")
    scale = (guess * truth).sum() / (guess**2).sum()
    factor = 0.8 / np.quantile(truth @ [0.3, 0.59, 0.11], 0.9)
    first, second = (np.clip(values * factor, 0, 1) for values in (scale * guess, truth))
    assert found["shading_psnr"] == pytest.approx(-10 * np.log10(np.mean((first - second) ** 2)), rel=1e-5)


def test_invalid_pixels_are_left_out_of_psnr_and_black_in_ssim() -> None:
    mask = ALL.copy()
    mask[:10] = False
    given, protocol = sample("appearance", mask), APPEARANCE.protocols["marigold-appearance"]
    wrong = {name: values.copy() for name, values in given.maps.items()}
    for values in wrong.values():
        values[:10] = 0.77
    found = score_sample(given, wrong, protocol, "appearance")
    assert found["albedo_psnr"] == found["material_psnr"] == LARGEST_PSNR
    assert found["albedo_ssim"] == found["material_ssim"] == pytest.approx(1)
    rough = {**given.maps, "roughness": given.maps["roughness"] + 0.1}
    found = score_sample(given, rough, protocol, "appearance")
    assert found["roughness_psnr"] == pytest.approx(20, abs=1e-4) and found["metallicity_psnr"] == LARGEST_PSNR
    assert found["material_psnr"] == pytest.approx(20 + 10 * np.log10(2), abs=1e-4)


@pytest.mark.parametrize("modality", [APPEARANCE, LIGHTING], ids=["appearance", "lighting"])
def test_baselines_and_saved_maps_are_scored_by_the_command(
    modality: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, saved = tmp_path / "benchmark", tmp_path / "saved"
    saved.mkdir()
    for number in range(2):
        rgb = make_photo(24, 32, seed=number)
        maps = maps_of(modality.name, rgb, np.random.default_rng(number))
        (benchmark / f"r{number}").mkdir(parents=True)
        Image.fromarray(rgb).save(benchmark / f"r{number}" / "rgb.jpg", quality=95)
        for kind in modality.maps:
            np.save(benchmark / f"r{number}" / f"{kind.name}.npy", maps[kind.name])
            np.save(saved / f"r{number}_{kind.file_name}.npy", maps[kind.name])
    entries = [{"name": f"r{number}", "kind": "room", "place": f"p{number}"} for number in range(2)]
    (benchmark / "manifest.json").write_text(json.dumps(entries))
    report = evaluate(
        benchmark, Estimator(modality.baselines["photo as albedo"].estimate, modality.spaces[0], modality)
    )
    assert report.protocol == f"marigold-{modality.name}"
    assert 5 < report.kinds["all"].metrics["albedo_psnr"] < 50
    words = ["evaluate", "--benchmark", str(benchmark), "--predictions", str(saved), "--modality", modality.name]
    assert run([*words, "--baselines", "-o", str(tmp_path / "out")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "albedo PSNR dB" in out and "photo as albedo" in out and f"protocol marigold-{modality.name}" in out
    page = (tmp_path / "out" / "page.html").read_text()
    assert "measured albedo" in page


def test_the_photo_as_albedo_of_constant_light_makes_the_photo() -> None:
    rgb = make_photo(20, 30)
    maps = LIGHTING.baselines["photo as albedo"].estimate(rgb)
    np.testing.assert_array_equal(maps["albedo"] * maps["shading"] + maps["residual"], light_of_pixels(rgb))
