# SPDX-License-Identifier: Apache-2.0
"""Schedule and sampler against diffusers' DDIMScheduler, an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest

from openmarigold.diffusion import NoiseSchedule, add_noise, target

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SCHEDULES = [
    NoiseSchedule(timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr)
    for spacing in ("leading", "trailing")
    for zero_snr in (False, True)
]
SCHEDULES += [
    NoiseSchedule(prediction_type="epsilon", rescale_betas_zero_snr=False),
    NoiseSchedule(prediction_type="sample", set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading"),
    NoiseSchedule(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
]
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=range(len(SCHEDULES)))


def scheduler_of(schedule: NoiseSchedule):
    return getattr(diffusers, schedule.class_name).from_config(schedule.to_config())


@EVERY_SCHEDULE
def test_configs_are_understood_both_ways(schedule):
    scheduler = scheduler_of(schedule)
    assert NoiseSchedule.from_config(scheduler.config) == schedule
    ours = {key: value for key, value in schedule.to_config().items() if not key.startswith("_")}
    theirs = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    assert ours == theirs


@EVERY_SCHEDULE
def test_alphas_cumprod(schedule):
    np.testing.assert_allclose(schedule.alphas_cumprod, scheduler_of(schedule).alphas_cumprod.double(), atol=1e-6)


@EVERY_SCHEDULE
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 50])
def test_sampling_step_by_step(schedule, steps):
    scheduler = scheduler_of(schedule)
    scheduler.set_timesteps(steps)
    timesteps = schedule.timesteps(steps)
    assert timesteps == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(steps)
    theirs = torch.randn(2, 4, 3, 5, generator=generator)
    ours, ours_in_numpy = theirs, theirs.numpy()
    for timestep in timesteps:
        prediction = torch.randn(theirs.shape, generator=generator)
        theirs = scheduler.step(prediction, timestep, theirs).prev_sample
        where = {"timestep": timestep, "num_inference_steps": steps}
        ours = schedule.step(ours, prediction, **where)
        ours_in_numpy = schedule.step(ours_in_numpy, prediction.numpy(), **where)
        assert ours.dtype == torch.float32
        # Relative to 1: epsilon divides by √ᾱ = 0.07 at the first step and takes values of hundreds.
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(ours_in_numpy, ours, rtol=1e-5, atol=1e-6)


@EVERY_SCHEDULE
def test_noise_and_velocity_of_a_batch_with_its_own_timesteps(schedule):
    scheduler = scheduler_of(schedule)
    timesteps = np.array([0, 1, 249, 500, 998, 999])
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(len(timesteps), 4, 2, 3, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    weights = [
        torch.from_numpy(values.astype(np.float32)).reshape(-1, 1, 1, 1) for values in schedule.coefficients(timesteps)
    ]
    expected = scheduler.add_noise(clean, noise, torch.from_numpy(timesteps))
    torch.testing.assert_close(add_noise(clean, noise, *weights), expected, rtol=1e-5, atol=2e-6)
    velocity = target(clean, noise, *weights, prediction_type="v_prediction")
    expected = scheduler.get_velocity(clean, noise, torch.from_numpy(timesteps))
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=2e-6)


def test_trailing_timesteps_of_every_step_count():
    """Two documented deviations, both from floating-point spacing in diffusers: one timestep too many, and ties."""
    schedule = NoiseSchedule()
    scheduler = scheduler_of(schedule)
    one_too_many, ties = [], []
    for steps in range(1, 1001):
        ours = schedule.timesteps(steps)
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        if len(theirs) == steps + 1:
            one_too_many.append(steps)
        if ours != theirs[:steps]:
            ties.append(steps)
            differing = [(a, b, left) for a, b, left in zip(ours, theirs, range(steps, 0, -1), strict=False) if a != b]
            # 1000·left/steps is then exactly half an integer; they round their inexact value, we round it to even.
            assert all(abs(a - b) == 1 and 2000 * left % steps == 0 for a, b, left in differing)
    assert len(one_too_many) == 62
    assert one_too_many[:5] == [61, 103, 121, 122, 201]
    assert ties[0] == 48
    assert len(ties) < 60


def test_leading_timesteps_of_every_step_count():
    """Documented deviation: at 1000 steps diffusers' list begins at timestep 1000, which is not in its own table."""
    schedule = NoiseSchedule(timestep_spacing="leading")
    scheduler = scheduler_of(schedule)
    differing = []
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        if schedule.timesteps(steps) != scheduler.timesteps.tolist():
            differing.append(steps)
    assert differing == [1000]
    assert scheduler.timesteps[0] == 1000


LCM_SCHEDULES = [
    NoiseSchedule(sampler="lcm", rescale_betas_zero_snr=False, timestep_spacing="leading"),
    NoiseSchedule(sampler="lcm", rescale_betas_zero_snr=True, original_inference_steps=100, timestep_scaling=5.0),
    NoiseSchedule(sampler="lcm", rescale_betas_zero_snr=False, prediction_type="epsilon"),
    NoiseSchedule(sampler="lcm", rescale_betas_zero_snr=False, prediction_type="sample"),
]
EVERY_LCM_SCHEDULE = pytest.mark.parametrize("schedule", LCM_SCHEDULES, ids=range(len(LCM_SCHEDULES)))


@EVERY_LCM_SCHEDULE
def test_lcm_configs_are_understood_both_ways(schedule):
    scheduler = scheduler_of(schedule)
    assert NoiseSchedule.from_config(scheduler.config) == schedule
    ours = {key: value for key, value in schedule.to_config().items() if not key.startswith("_")}
    assert ours == {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    # Keys that an older file leaves out have diffusers' defaults, which are not those of DDIM.
    assert NoiseSchedule.from_config({"_class_name": "LCMScheduler"}) == NoiseSchedule.from_config(
        {"_class_name": "LCMScheduler", **diffusers.LCMScheduler().config}
    )


@EVERY_LCM_SCHEDULE
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 50])
def test_lcm_sampling_step_by_step_with_the_same_noise(schedule, steps, monkeypatch):
    scheduler = scheduler_of(schedule)
    scheduler.set_timesteps(steps)
    timesteps = schedule.timesteps(steps)
    assert timesteps == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(steps)
    drawn = torch.randn(steps, 2, 4, 3, 5, generator=generator)
    remaining = iter(drawn)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(remaining))
    theirs = torch.randn(2, 4, 3, 5, generator=generator)
    ours, ours_in_numpy = theirs, theirs.numpy()
    for index, timestep in enumerate(timesteps):
        prediction = torch.randn(theirs.shape, generator=generator)
        theirs = scheduler.step(prediction, timestep, theirs).prev_sample
        where = {"timestep": timestep, "num_inference_steps": steps}
        assert schedule.adds_noise(timestep, steps) == (index < steps - 1)
        ours = schedule.step(ours, prediction, **where, noise=drawn[index])
        ours_in_numpy = schedule.step(ours_in_numpy, prediction.numpy(), **where, noise=drawn[index].numpy())
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(ours_in_numpy, ours, rtol=1e-5, atol=1e-6)
    assert len(list(remaining)) == 1, "no noise after the last step"


def test_lcm_timesteps_of_every_step_count():
    schedule = LCM_SCHEDULES[0]
    scheduler = scheduler_of(schedule)
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        assert schedule.timesteps(steps) == scheduler.timesteps.tolist()
