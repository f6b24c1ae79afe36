# SPDX-License-Identifier: Apache-2.0
"""Guided denoising against a loop written out in torch, its formulas against hand values, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from openmarigold import Predictor
from openmarigold.camera import Camera
from openmarigold.completion.evidence import Completed, RelativeDepth, SparsePoints
from openmarigold.completion.guidance import Adam, AffineFit, PowerFit, Smoothing, loss_at_points, neighbors
from openmarigold.completion.guided import guided, guided_method
from openmarigold.completion.guided_settings import GuidedSettings
from openmarigold.completion.methods import METHODS, complete
from openmarigold.engines.torch import TorchEngine
from openmarigold.errors import InvalidValueError
from openmarigold.networks import backbone
from openmarigold.predictor.sampling import Step
from tiny import make_photo

SIZE = (40, 56)  # at 64 px along the longer side 45x64, padded to 48x64


@pytest.fixture(scope="module")
def predictor(kl_checkpoint: Path) -> Predictor:
    return Predictor.load(kl_checkpoint, engine="torch")


@pytest.fixture(scope="module")
def lite() -> Predictor:
    return Predictor.load(engine="torch")


def some_points(count: int = 30, *, size: tuple[int, int] = SIZE, seed: int = 3) -> SparsePoints:
    rng = np.random.default_rng(seed)
    flat = rng.choice(size[0] * size[1], count, replace=False)
    rows, columns = np.divmod(flat, size[1])
    pixels = np.stack([columns, rows], axis=1).astype(np.float64)
    return SparsePoints(pixels=pixels, depth=rng.uniform(1.5, 4.0, count))


def published_loop(folder: Path, start: np.ndarray, condition: torch.Tensor, points: SparsePoints, steps: int) -> Any:
    """The loop of the published code, written out for one latent; returns meters, s and h."""
    unet = backbone.load_unet(folder / "unet").requires_grad_(False)
    vae = backbone.load_vae(folder / "vae").requires_grad_(False)
    prompt = backbone.load_empty_prompt_embedding(folder)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0).sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])  # zero terminal SNR
    alphas = signal**2

    columns, rows = points.pixels.astype(int).T
    known = torch.from_numpy(points.depth).float()
    low, span = known.min(), known.max() - known.min()
    z = torch.from_numpy(start.copy()).requires_grad_(True)
    s, h = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    adam = torch.optim.Adam([{"params": [s, h], "lr": 0.005}, {"params": [z], "lr": 0.05}])

    def meters(clean: torch.Tensor) -> torch.Tensor:
        decoded = vae.decode(clean / vae.config["scaling_factor"]).sample.mean(dim=1, keepdim=True)
        depth = (decoded.clip(-1, 1) + 1) / 2
        metric = (s**2 * span * depth + h**2 * low)[:, :, :45, :64]
        return functional.interpolate(metric, SIZE, mode="bilinear", align_corners=False)[0, 0]

    for number in range(steps):
        t = round(1000 - number * 1000 / steps) - 1
        a, b = float(alphas[t].sqrt()), float((1 - alphas[t]).sqrt())
        v = unet(torch.cat([condition, z], dim=1), t, encoder_hidden_states=prompt).sample
        noise = (a * v + b * z).detach()
        error = meters(a * z - b * v)[rows, columns] - known
        adam.zero_grad()
        (error.abs().mean() + (error**2).mean()).backward()
        assert z.grad is not None
        z.grad *= noise.norm() / z.grad.norm().clamp(min=1e-8)
        adam.step()
        with torch.no_grad():
            clean, noise = a * z - b * v, a * v + b * z  # the same v, the latent that was moved
            after = alphas[max(t - 1000 // steps, 0)]
            z.copy_(float(after.sqrt()) * clean + float((1 - after).sqrt()) * noise)
    with torch.no_grad():
        return meters(z).numpy(), float(s), float(h)


def first_latent(predictor: Predictor, rgb: np.ndarray, **call: Any) -> tuple[np.ndarray, torch.Tensor]:
    seen: list[Any] = []

    def look(latent: Any, step: Step) -> Any:
        seen.append((latent.clone().numpy(), step.rgb_latent.clone()))
        return latent

    predictor(rgb, guide=look, **call)
    start, condition = seen[0]
    return start, torch.from_numpy(condition.numpy().copy())


@pytest.mark.parametrize("steps", [1, 3])
def test_the_loop_is_the_published_one(predictor: Predictor, kl_checkpoint: Path, steps: int) -> None:
    rgb, points = make_photo(*SIZE), some_points()
    start, condition = first_latent(predictor, rgb, seed=5, num_inference_steps=steps)
    wanted, s, h = published_loop(kl_checkpoint, start, condition, points, steps)
    found = guided(predictor, rgb, points, GuidedSettings.published(num_inference_steps=steps, seed=5))
    np.testing.assert_allclose(found.depth, wanted, rtol=1e-5)
    assert found.scale == pytest.approx(s**2 * np.ptp(points.depth), rel=1e-5)
    assert found.shift == pytest.approx(h**2 * points.depth.min(), rel=1e-5)
    assert found.depth.shape == SIZE and found.space == "depth" and found.method == "guided"
    # It did something: s and h moved, and the map is not the unguided one.
    assert abs(s - 1) > 1e-3 and abs(h - 1) > 1e-3
    plain = predictor(rgb, seed=5, num_inference_steps=steps).depth
    assert steps == 1 or np.abs(plain * np.ptp(points.depth) + points.depth.min() - found.depth).max() > 0.05


def test_published_settings_are_the_published_ones() -> None:
    settings = GuidedSettings.published()
    assert (settings.num_inference_steps, settings.iterations, settings.loss) == (50, 1, "squared")
    assert (settings.learning_rate, settings.fit_rate, settings.rescale) == (0.05, 0.005, True)
    assert settings.smoothing == 0
    assert settings.timestep_spacing == "trailing" and settings.seed == 2024


def test_the_gradient_of_the_latent_is_that_of_finite_differences(predictor: Predictor) -> None:
    engine = predictor.engine
    assert isinstance(engine, TorchEngine)
    rng = np.random.default_rng(0)
    condition, noisy, direction = (rng.normal(size=(1, 4, 4, 6)).astype(np.float32) for _ in range(3))
    cotangent = rng.normal(size=(1, 1, 1, 32, 48)).astype(np.float32)
    at: dict[str, Any] = {"timestep": 499, "preview": lambda latent, prediction: 0.6 * latent - 0.8 * prediction}

    def along(share: float) -> float:
        moved = engine.linearize(torch.from_numpy(condition), torch.from_numpy(noisy + share * direction), **at)
        return float((moved.decoded.astype(np.float64) * cotangent).sum())

    found = engine.linearize(torch.from_numpy(condition), torch.from_numpy(noisy), **at)
    gradient = engine.from_engine(found.pullback(cotangent))
    step = 1e-2
    assert (along(step) - along(-step)) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=5e-3)
    # What it passes through is what the engine computes elsewhere.
    prediction = engine.denoise(torch.from_numpy(condition), torch.from_numpy(noisy), timestep=499)
    np.testing.assert_allclose(found.prediction.numpy(), prediction.numpy(), atol=1e-6)
    preview = 0.6 * torch.from_numpy(noisy) - 0.8 * prediction
    np.testing.assert_allclose(found.decoded, engine.decode(preview), atol=1e-5)
    # Blocks computed twice give the same gradient, also from the middle of somebody's inference mode.
    with torch.inference_mode():
        saving = engine.linearize(torch.from_numpy(condition), torch.from_numpy(noisy), **at, save_memory=True)
        np.testing.assert_allclose(saving.pullback(cotangent).numpy(), gradient, rtol=1e-4, atol=1e-6)
    assert not engine._unet.is_gradient_checkpointing


def test_adam_by_hand() -> None:
    adam = Adam(0.1)
    # First step: m = 0.2, v = 0.004, both divided by 1 - beta: 2 and 4, so the step is the rate itself.
    first = adam(np.array([1.0]), np.array([2.0]))
    assert first[0] == pytest.approx(0.9, abs=1e-8)
    # m = 0.9 * 0.2 - 0.1 = 0.08, v = 0.999 * 0.004 + 0.001 = 0.004996; by 1 - 0.81 and 1 - 0.998001.
    second = adam(first, np.array([-1.0]))
    assert second[0] == pytest.approx(0.9 - 0.1 * (0.08 / 0.19) / (0.004996 / 0.001999) ** 0.5, abs=1e-8)


@pytest.mark.parametrize(
    "fit",
    [
        AffineFit(low=1.5, span=2.0, parameters=np.array([1.2, 0.7])),
        PowerFit(unit=3.0, parameters=np.array([0.3, 1.4]), with_exponent=True),
    ],
)
def test_derivatives_of_a_fit(fit: AffineFit | PowerFit) -> None:
    depth, small = np.array([0.1, 0.5, 0.9]), 1e-6
    by_depth, by_parameters = fit.derivatives(depth)
    np.testing.assert_allclose(by_depth, (fit(depth + small) - fit(depth - small)) / (2 * small), rtol=1e-6)
    for number in (0, 1):
        change = np.where(np.arange(2) == number, small, 0.0)
        more, less = (replace(fit, parameters=fit.parameters + sign * change) for sign in (1, -1))
        np.testing.assert_allclose(by_parameters[number], (more(depth) - less(depth)) / (2 * small), rtol=1e-6)


def test_fits_by_hand() -> None:
    depth = np.array([0.0, 0.5])
    np.testing.assert_allclose(AffineFit(low=2.0, span=3.0, parameters=np.array([2.0, 0.5]))(depth), [0.5, 6.5])
    np.testing.assert_allclose(PowerFit(unit=2.0, parameters=np.array([np.log(3), 2.0]))(depth[1:]), [1.5])
    assert (PowerFit(unit=2.0).derivatives(depth)[1][1] == 0).all()  # the exponent stays
    assert AffineFit(low=1.0, span=1.0, parameters=np.array([-3.0, -2.0]))(depth).min() >= 0


def test_losses_by_hand() -> None:
    meters, known = np.array([2.0, 5.0]), np.array([1.0, 7.0])
    loss, gradient = loss_at_points(meters, known, "squared")
    assert loss == (1 + 2) / 2 + (1 + 4) / 2
    np.testing.assert_allclose(gradient, [(1 + 2) / 2, (-1 - 4) / 2])
    loss, gradient = loss_at_points(np.array([2.0, 5.0]), np.array([1.0, 10.0]), "robust")
    assert loss == pytest.approx(np.log(2.0))
    np.testing.assert_allclose(gradient, [0.5 / 2, -0.2 / 2])


def test_smoothing_adds_wide_structures_and_stays_downhill() -> None:
    peak = np.zeros((1, 1, 31, 41), dtype=np.float32)
    peak[0, 0, 15, 20] = 1.0
    np.testing.assert_array_equal(Smoothing((31, 41), 50, 0.0)(peak), peak)
    # One point for each 25.42 cells, half of their distance: widths 2.521, 5.042 and 10.08 cells, weights 2.5 of that.
    found = Smoothing((31, 41), 50, 0.5)(peak)[0, 0]
    widths = 0.5 * np.sqrt(31 * 41 / 50) * np.array([1, 2, 4])
    center = 1 + sum(2.5 * width / (2 * np.pi * width**2) for width in widths)
    beside = sum(2.5 * width * np.exp(-0.5 * 9 / width**2) / (2 * np.pi * width**2) for width in widths)
    assert found[15, 20] == pytest.approx(center, rel=1e-5) and found[15, 23] == pytest.approx(beside, rel=1e-5)
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(1, 2, 31, 41)).astype(np.float32) for _ in range(2))
    smooth = Smoothing((31, 41), 50, 0.5)
    assert float((smooth(one) * other).sum()) == pytest.approx(float((one * smooth(other)).sum()), rel=1e-3)
    assert float((smooth(one) * one).sum()) >= float((one * one).sum())


@pytest.mark.parametrize("grid", [(45, 64), (17, 90), SIZE])
def test_neighbors_are_those_of_bilinear_resizing(grid: tuple[int, int]) -> None:
    values = np.random.default_rng(1).normal(size=grid)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    index, weight = neighbors(np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64), SIZE, grid)
    resized = functional.interpolate(torch.from_numpy(values)[None, None], SIZE, mode="bilinear", align_corners=False)
    np.testing.assert_allclose((values.ravel()[index] * weight).sum(axis=1), resized.numpy().ravel(), atol=1e-9)
    between = neighbors(np.array([[10.5, 7.25]]), SIZE, SIZE)
    assert sorted(np.round(between[1][0], 6)) == [0.125, 0.125, 0.375, 0.375]


@pytest.mark.parametrize("loss", ["squared", "robust"])
def test_scale_and_shift_of_a_known_map_are_found(loss: Any) -> None:
    depth = np.random.default_rng(0).uniform(0, 1, 200)
    known = 3.0 * depth + 1.5
    seen = depth > 0.4  # so that the points' own span and lowest depth are not the answer
    fit = AffineFit(low=known[seen].min(), span=float(np.ptp(known[seen])))
    assert fit.low > 2.6 and fit.span < 1.9
    for rate in (0.02, 0.002, 0.0002):
        adam = Adam(rate)
        for _ in range(1500):
            by_meters = loss_at_points(fit(depth[seen]), known[seen], loss)[1]
            fit.parameters = adam(fit.parameters, fit.derivatives(depth[seen])[1] @ by_meters)
    s, h = fit.parameters
    assert s**2 * fit.span == pytest.approx(3.0, rel=0.01) and h**2 * fit.low == pytest.approx(1.5, rel=0.01)


def test_the_same_arguments_give_the_same_bytes(predictor: Predictor) -> None:
    rgb, points = make_photo(*SIZE), some_points()
    settings = GuidedSettings(num_inference_steps=2, ensemble_size=2, iterations=2)
    found, again = (guided(predictor, rgb, points, settings) for _ in range(2))
    assert found.depth.tobytes() == again.depth.tobytes() and found.facts == again.facts
    alone = guided(predictor, rgb, points, replace(settings, ensemble_size=1))
    assert alone.facts["last_loss"] == found.facts["last_loss"][:1]  # pyright: ignore[reportIndexIssue]
    other = guided(predictor, rgb, points, replace(settings, seed=7))
    assert other.depth.tobytes() != found.depth.tobytes()


def test_other_units_give_the_same_map_in_them(predictor: Predictor) -> None:
    rgb, points = make_photo(*SIZE), some_points()
    settings = GuidedSettings(num_inference_steps=2, iterations=1)
    found = guided(predictor, rgb, points, settings)
    feet = guided(predictor, rgb, replace(points, depth=points.depth * 3.25), settings)
    np.testing.assert_allclose(feet.depth, found.depth * 3.25, rtol=1e-3)


def warped(lite: Predictor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A photo, and what is to be its truth: the model's depth times a smooth field from 0.7 to 1.4, in meters."""
    rgb = make_photo(*size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    field = np.exp(0.35 * np.sin(3 * columns / size[1]) * np.cos(4 * rows / size[0]))
    return rgb, 5.0 * field * lite(rgb, processing_resolution=64).depth


def errors(lite: Predictor, points_of: Any, **settings: Any) -> tuple[float, float, Completed]:
    """Mean absolute errors of the model's own ensemble, scaled by the median, and of the guided one."""
    size = (64, 88)
    rgb, truth = warped(lite, size)
    points = some_points(150, size=size)
    columns, rows = points.pixels.astype(int).T
    points = points_of(replace(points, depth=truth[rows, columns].astype(np.float64)))
    call = GuidedSettings(processing_resolution=64, iterations=25, **settings)
    found = guided(lite, rgb, points, call)
    own = lite(rgb, processing_resolution=64, ensemble_size=call.ensemble_size).depth
    own = own * np.median(points.depth / own[rows, columns])
    return float(np.abs(own - truth).mean()), float(np.abs(found.depth - truth).mean()), found


@pytest.mark.parametrize("ensemble_size", [1, 2])
def test_the_embedded_model_is_better_guided_than_not(lite: Predictor, ensemble_size: int) -> None:
    own, found, completed = errors(lite, lambda points: points, ensemble_size=ensemble_size)
    assert found < 0.5 * own
    assert completed.space == "log" and completed.scale == 1.0
    assert completed.shift == pytest.approx(np.log(completed.depth.max()))
    facts = completed.facts
    assert len(facts["evaluations"]) == ensemble_size  # pyright: ignore[reportArgumentType]
    assert facts["checkpoint"] == "marigold-lite" and facts["num_points"] == 150 and facts["seed"] == 2024


def test_outliers_pull_less_with_the_robust_loss(lite: Predictor) -> None:
    def spoiled(points: SparsePoints) -> SparsePoints:
        depth = points.depth.copy()
        depth[::10] *= 2.0
        return replace(points, depth=depth)

    own, robust, _ = errors(lite, spoiled)
    _, squared, _ = errors(lite, spoiled, loss="squared")
    assert robust < squared and robust < 0.7 * own


def test_one_point_sets_the_scale_of_depth_up_to_scale(lite: Predictor) -> None:
    rgb = make_photo(64, 88)
    one = SparsePoints(pixels=np.array([[20.25, 30.0]]), depth=np.array([2.5]))
    found = guided(lite, rgb, one, GuidedSettings(processing_resolution=64, iterations=3))
    assert found.depth[30, 20] == pytest.approx(2.5, rel=0.05)
    own = lite(rgb, processing_resolution=64).depth
    assert np.corrcoef(found.depth.ravel(), own.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"tiny": True}, {"save_memory": True}])
def test_precision_tiny_autoencoder_and_memory(
    kl_checkpoint: Path, tmp_path: Path, predictor: Predictor, options: dict[str, Any]
) -> None:
    model: dict[str, Any] = {"dtype": options.get("dtype", "float32")}
    if "tiny" in options:
        from diffusers import AutoencoderTiny

        torch.manual_seed(0)
        sizes: dict[str, Any] = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
        AutoencoderTiny(latent_channels=4, **sizes).save_pretrained(tmp_path / "tiny")
        model["tiny_vae"] = str(tmp_path / "tiny")
    other = Predictor.load(kl_checkpoint, engine="torch", **model)
    rgb, points = make_photo(*SIZE), some_points()
    settings = GuidedSettings(num_inference_steps=2, save_memory=options.get("save_memory", False))
    found = guided(other, rgb, points, settings)
    assert np.isfinite(found.depth).all() and found.facts["dtype"] == model["dtype"]
    assert found.facts.get("tiny_vae") == ("tiny" if "tiny" in options else None)
    if "tiny" not in options:
        usual = guided(predictor, rgb, points, replace(settings, save_memory=False))
        np.testing.assert_allclose(found.depth, usual.depth, rtol=1e-4 if "save_memory" in options else 0.2)


@pytest.mark.parametrize(
    ("pixels", "depth", "message"),
    [
        ([], [], "there are no points; give at least one pixel"),
        ([[900.0, 3.0], [3.0, 3.0]], [2.0, 3.0], "1 of 2 points lie outside of the picture of 56x40"),
        ([[3.0, 3.0]], [2.0], "all 1 points lie at 2 m, and tiny-kl predicts depth up to scale and shift"),
        ([[3.0, 3.0], [9.0, 9.0]], [2.0, 2.0], "all 2 points lie at 2 m"),
        ([[3.0, 3.0], [9.0, 9.0]], [2.0, np.nan], "1 of 2 points have no depth above 0"),
        ([[3.0, 3.0], [9.0, 9.0]], [2.0, -1.0], "1 of 2 points have no depth above 0"),
        ([[3.0, np.nan], [9.0, 9.0]], [2.0, 1.0], "1 of 2 points have no depth above 0 or no place"),
    ],
)
def test_points_that_say_nothing(predictor: Predictor, pixels: Any, depth: Any, message: str) -> None:
    points = SparsePoints(pixels=np.array(pixels, dtype=np.float64).reshape(-1, 2), depth=np.array(depth, dtype=float))
    with pytest.raises(InvalidValueError, match=message):
        guided(predictor, make_photo(*SIZE), points)


def test_it_is_a_method_beside_the_others(lite: Predictor) -> None:
    size = (64, 88)
    rgb, truth = warped(lite, size)
    points = some_points(40, size=size)
    columns, rows = points.pixels.astype(int).T
    points = replace(points, depth=truth[rows, columns].astype(np.float64))
    settings = GuidedSettings(processing_resolution=64, iterations=8)
    own = lite(rgb, processing_resolution=64).depth
    relative = RelativeDepth(depth=own, invariance="scale", camera=Camera.assumed(size), rgb=rgb)
    methods = {**METHODS, "guided": guided_method(lite, settings)}
    found = complete(relative, points, method="guided", methods=methods)
    assert found.depth.tobytes() == guided(lite, rgb, points, settings).depth.tobytes()
    assert found.method == "guided" and found.space == "log" and found.errors is not None
    assert found.errors.num_points == 40 and 0 < found.errors.mean_m < 1
    with pytest.raises(InvalidValueError, match="needs the photo"):
        complete(replace(relative, rgb=None), points, method="guided", methods=methods)


def test_other_engines_and_modalities_are_refused(onnx_checkpoint: Path) -> None:
    with pytest.raises(InvalidValueError, match="guided denoising needs gradients, which engine onnx does not give"):
        guided(Predictor.load(onnx_checkpoint), make_photo(*SIZE), some_points())
    normals = Predictor.load(engine="torch", modality="normals")
    with pytest.raises(InvalidValueError, match=r"needs a model of depth; marigold-lite.* predicts surface normals"):
        guided(normals, make_photo(*SIZE), some_points())


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"ensemble_size": -1}, {"patience": 0}, {"learning_rate": -1.0}, {"fit_rate": np.nan}]
)
def test_settings_that_are_not_accepted(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError, match=f"{next(iter(wrong))}="):
        GuidedSettings(**wrong)
