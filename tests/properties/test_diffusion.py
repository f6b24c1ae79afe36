# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmarigold.diffusion import PREDICTION_TYPES, NoiseSchedule, add_noise, target, to_clean_and_noise

SEEDS = st.integers(0, 2**32 - 1)


def clean_and_noise(seed: int, *, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, 4, 2, size)), rng.standard_normal((1, 4, 2, size))


def sample(schedule: NoiseSchedule, clean: np.ndarray, noise: np.ndarray, steps: int, final_step: str) -> np.ndarray:
    """Result of a network that always knows the clean latent and the noise it began with."""
    timesteps = schedule.timesteps(steps)
    latent = add_noise(clean, noise, *schedule.coefficients(timesteps[0]))
    for timestep in timesteps:
        weights = schedule.coefficients(timestep)
        # A perfect denoiser explains the latent it is given: its noise is whatever is not the clean latent.
        remaining = (latent - weights[0] * clean) / weights[1]
        velocity = target(clean, remaining, *weights, prediction_type="v_prediction")
        latent = schedule.step(latent, velocity, timestep=timestep, num_inference_steps=steps, final_step=final_step)
    return latent


@given(seed=SEEDS, steps=st.integers(1, 60), spacing=st.sampled_from(["leading", "trailing"]), zero_snr=st.booleans())
def test_the_true_noise_gives_back_the_clean_latent(seed, steps, spacing, zero_snr):
    schedule = NoiseSchedule(timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr)
    clean, noise = clean_and_noise(seed)
    np.testing.assert_allclose(sample(schedule, clean, noise, steps, "clean"), clean, atol=1e-9)


@given(seed=SEEDS, steps=st.sampled_from([1, 2, 4, 10, 50]))
def test_the_reference_step_keeps_2_9_percent_of_the_noise(seed, steps):
    clean, noise = clean_and_noise(seed)
    result = sample(NoiseSchedule(), clean, noise, steps, "reference")
    np.testing.assert_allclose(result, np.sqrt(0.99915) * clean + 0.02915 * noise, atol=5e-5)


@given(seed=SEEDS, timestep=st.integers(0, 998), prediction_type=st.sampled_from(PREDICTION_TYPES))
def test_targets_are_undone(seed, timestep, prediction_type):
    clean, noise = clean_and_noise(seed)
    weights = NoiseSchedule().coefficients(timestep)
    noisy = add_noise(clean, noise, *weights)
    prediction = target(clean, noise, *weights, prediction_type=prediction_type)
    found = to_clean_and_noise(noisy, prediction, *weights, prediction_type=prediction_type)
    np.testing.assert_allclose(found[0], clean, atol=1e-6)
    np.testing.assert_allclose(found[1], noise, atol=1e-6)


@given(timestep=st.integers(0, 999))
def test_noising_keeps_the_variance(timestep):
    signal, noise = NoiseSchedule().coefficients(timestep)
    assert signal**2 + noise**2 == pytest.approx(1.0)
