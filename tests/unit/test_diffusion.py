# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from openmarigold.diffusion import (
    NoiseSchedule,
    add_noise,
    member_noise,
    target,
    to_clean_and_noise,
)
from openmarigold.errors import CheckpointError, InvalidValueError

V1_0_CONFIG = {  # published v1-0 file: no timestep_spacing, no rescale_betas_zero_snr
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


@pytest.mark.parametrize(
    ("zero_snr", "expected"),
    [
        (False, [0.99915, 0.67543, 0.27767, 0.05662, 0.0046601]),
        (True, [0.99915, 0.65419, 0.24236, 0.03317, 0.0]),
    ],
)
def test_alphas_cumprod_has_the_published_values(zero_snr, expected):
    alphas = NoiseSchedule(rescale_betas_zero_snr=zero_snr).alphas_cumprod
    np.testing.assert_allclose(alphas[[0, 249, 499, 749, 999]], expected, atol=5e-6)
    assert (np.diff(alphas) < 0).all()
    assert alphas.dtype == np.float64


def test_zero_terminal_snr_is_exactly_zero():
    assert NoiseSchedule().alphas_cumprod[-1] == 0.0


def test_alphas_cumprod_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        NoiseSchedule().alphas_cumprod[0] = 1.0


@pytest.mark.parametrize(
    ("num_inference_steps", "expected"),
    [
        (1, [999]),
        (2, [999, 499]),
        (3, [999, 666, 332]),
        (4, [999, 749, 499, 249]),
        (5, [999, 799, 599, 399, 199]),
        (10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
    ],
)
def test_trailing_timesteps(num_inference_steps, expected):
    assert NoiseSchedule().timesteps(num_inference_steps) == expected


def test_halves_are_rounded_to_even():
    # 1000 · 15/16 = 937.5 and 1000 · 13/16 = 812.5 become 938 and 812, less one.
    assert NoiseSchedule().timesteps(16)[:4] == [999, 937, 874, 811]


@pytest.mark.parametrize(
    ("num_inference_steps", "expected"), [(1, [1]), (4, [751, 501, 251, 1]), (10, list(range(901, 0, -100)))]
)
def test_leading_timesteps(num_inference_steps, expected):
    assert NoiseSchedule(timestep_spacing="leading").timesteps(num_inference_steps) == expected


def test_leading_fifty_steps_run_from_981_to_1():
    assert NoiseSchedule(timestep_spacing="leading").timesteps(50) == list(range(981, 0, -20))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_step_count_gives_that_many_decreasing_timesteps(spacing):
    schedule = NoiseSchedule(timestep_spacing=spacing)
    for count in range(1, 1001):
        timesteps = schedule.timesteps(count)
        assert len(timesteps) == count
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999
        assert all(earlier > later for earlier, later in itertools.pairwise(timesteps))


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_impossible_step_counts_are_refused(count):
    with pytest.raises(InvalidValueError, match=f"num_inference_steps={count} is outside 1 … 1000"):
        NoiseSchedule().timesteps(count)


@pytest.mark.parametrize("timestep", [-1, 1000, np.array([3, 1000]), np.array([-1, 3])])
def test_timesteps_outside_the_schedule_are_refused(timestep):
    with pytest.raises(InvalidValueError, match="is outside 0 … 999"):
        NoiseSchedule().coefficients(timestep)


def test_coefficients_of_one_timestep_keep_float32_and_agree_with_an_array():
    schedule = NoiseSchedule()
    signal, noise = schedule.coefficients(249)
    assert type(signal) is float
    assert (np.float32(1) * np.ones(1, np.float32) * signal).dtype == np.float32
    signals, noises = schedule.coefficients(np.array([249, 999]))
    assert (signals[0], noises[0]) == (signal, noise)
    assert (signals[1], noises[1]) == (0.0, 1.0)
    np.testing.assert_allclose(signals**2 + noises**2, 1.0)


def test_add_noise_and_velocity_by_hand():
    assert add_noise(2.0, 10.0, 0.6, 0.8) == pytest.approx(9.2)
    assert target(2.0, 10.0, 0.6, 0.8, prediction_type="v_prediction") == pytest.approx(4.4)
    assert target(2.0, 10.0, 0.6, 0.8, prediction_type="epsilon") == 10.0
    assert target(2.0, 10.0, 0.6, 0.8, prediction_type="sample") == 2.0
    assert to_clean_and_noise(9.2, 4.4, 0.6, 0.8, prediction_type="v_prediction") == pytest.approx((2.0, 10.0))


def test_ddim_steps_leave_the_input_alone_and_keep_float32():
    noisy = np.ones((1, 4, 2, 3), np.float32)
    stepped = NoiseSchedule().step(noisy, noisy * 0.5, timestep=999, num_inference_steps=2)
    assert stepped.dtype == np.float32
    assert stepped.shape == noisy.shape
    assert (noisy == 1).all()


def test_final_alpha_of_one_makes_the_reference_step_clean():
    schedule = NoiseSchedule(set_alpha_to_one=True)
    noisy, prediction = np.float32([0.3]), np.float32([-0.7])
    both = [
        schedule.step(noisy, prediction, timestep=999, num_inference_steps=1, final_step=final_step)
        for final_step in ("reference", "clean")
    ]
    assert both[0] == both[1] == np.float32(0.7)


def test_clean_changes_only_the_last_step():
    schedule = NoiseSchedule()
    noisy, prediction = np.float32([0.3]), np.float32([-0.7])
    for timestep, same in ((999, True), (499, False)):
        reference, clean = (
            schedule.step(noisy, prediction, timestep=timestep, num_inference_steps=2, final_step=final_step)
            for final_step in ("reference", "clean")
        )
        assert (reference == clean).item() is same


def test_unknown_final_step_is_refused():
    with pytest.raises(InvalidValueError, match="final_step='Clean' is not one of reference, clean"):
        NoiseSchedule().step(1.0, 1.0, timestep=999, num_inference_steps=1, final_step="Clean")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "velocity"}, "prediction_type='velocity' is not one of"),
        ({"beta_schedule": "cosine"}, "beta_schedule='cosine'"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing='linspace'"),
        ({"num_train_timesteps": 1}, "num_train_timesteps=1"),
        ({"beta_start": 0.02}, "beta_start < beta_end"),
        ({"steps_offset": 1000}, "steps_offset=1000"),
        ({"prediction_type": "epsilon"}, "cannot be sampled with rescale_betas_zero_snr"),
    ],
)
def test_unusable_schedules_are_refused(change, message):
    with pytest.raises(InvalidValueError, match=message):
        NoiseSchedule(**change)


def test_published_v1_0_config_is_leading_without_zero_snr():
    schedule = NoiseSchedule.from_config(V1_0_CONFIG)
    assert schedule == NoiseSchedule(timestep_spacing="leading", rescale_betas_zero_snr=False)


def test_config_round_trip_through_json():
    schedule = NoiseSchedule(steps_offset=0, prediction_type="sample", set_alpha_to_one=True)
    assert NoiseSchedule.from_config(json.loads(json.dumps(schedule.to_config()))) == schedule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "the scheduler is PNDMScheduler; only DDIMScheduler and LCMScheduler are"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 0}, "original_inference_steps=0 is outside 1"),
        ({"clip_sample": True}, "clip_sample=True"),
        ({"thresholding": True}, "thresholding=True"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing='linspace'"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps is 'many', which is not a whole number"),
    ],
)
def test_unsupported_scheduler_configs_are_checkpoint_errors(change, message):
    with pytest.raises(CheckpointError, match=message):
        NoiseSchedule.from_config(V1_0_CONFIG | change)


def test_absent_clip_sample_means_clipping_as_in_diffusers():
    config = {key: value for key, value in V1_0_CONFIG.items() if key != "clip_sample"}
    with pytest.raises(CheckpointError, match="clip_sample=True"):
        NoiseSchedule.from_config(config)


def test_member_noise_depends_on_every_key_and_on_nothing_else():
    keys = {"seed": 2024, "image_key": 2**63 + 5, "member": 3}
    noise = member_noise((4, 6, 8), **keys)
    np.testing.assert_array_equal(noise, member_noise((4, 6, 8), **keys))
    assert noise.dtype == np.float32
    for name in keys:
        other = member_noise((4, 6, 8), **(keys | {name: keys[name] + 1}))
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.25


def test_member_noise_is_standard_normal():
    noise = member_noise((4, 100, 100), seed=0, image_key=0, member=0)
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1.0, abs=0.02)


def test_member_noise_never_changes():
    # A change here changes every published result: NumPy promises this stream for Philox and standard_normal.
    noise = member_noise((1, 1, 4), seed=2024, image_key=1, member=0)
    np.testing.assert_allclose(noise.ravel(), GOLDEN_NOISE, rtol=1e-6)


GOLDEN_NOISE = [0.6981938, 1.4880968, -0.22526886, 0.5823053]


def test_lcm_refuses_more_steps_than_it_was_distilled_from():
    schedule = NoiseSchedule(sampler="lcm", rescale_betas_zero_snr=False)
    assert schedule.timesteps(1) == [999]
    assert schedule.timesteps(4) == [999, 759, 499, 259]
    with pytest.raises(InvalidValueError, match=r"num_inference_steps=51 is more than the 50 .* try 1 to 4"):
        schedule.timesteps(51)


def test_noise_of_a_step_depends_on_seed_photo_member_and_step():
    keys = {"seed": 1, "image_key": 2, "member": 3}
    start = member_noise((2, 3), **keys)
    np.testing.assert_array_equal(member_noise((2, 3), **keys, step=0), start)
    others = [member_noise((2, 3), **{**keys, "step": 1, **change}) for change in ({}, {"step": 2}, {"member": 4})]
    others += [member_noise((2, 3), **{**keys, "step": 1, **change}) for change in ({"seed": 2}, {"image_key": 3})]
    assert len({noise.tobytes() for noise in [start, *others]}) == 6
