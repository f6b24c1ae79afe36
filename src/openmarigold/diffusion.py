# SPDX-License-Identifier: Apache-2.0
"""The noise schedule, the training targets and the samplers: DDIM, and multi-step consistency (LCM).

Everything is plain arithmetic with Python floats, so that one set of functions serves NumPy arrays (ONNX Runtime) and
torch tensors (also on a GPU) without copies. `Latent` stands for either of them.

Paper: §3.1 (diffusion), §3.3 (DDIM inference); zero terminal SNR and trailing timesteps: Lin et al. 2023,
"Common diffusion noise schedules and sample steps are flawed"; LCM: Luo et al. 2023, "Latent consistency models".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, TypeAlias, overload

import numpy as np
from jaxtyping import Float, Float32, Integer

from openmarigold.errors import CheckpointError, InvalidValueError

Latent: TypeAlias = Any  # NumPy array or torch tensor [b c h w]; only +, -, * and / are used on it

BETA_SCHEDULES = ("scaled_linear", "linear")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "trailing")
FINAL_STEPS = ("reference", "clean")
SAMPLERS = ("ddim", "lcm")

_SCHEDULER_CLASSES = {"DDIMScheduler": "ddim", "LCMScheduler": "lcm"}
# Training scripts save the scheduler that they add noise with. Prediction reads its file as the sampler's settings.
_READ_AS = {"DDPMScheduler": "DDIMScheduler"}
_LCM_FIELDS = ("original_inference_steps", "timestep_scaling")
_MAX_TIMESTEP_SCALING = 1e6
_LEAST_ALPHA = 1e-12  # share of the image's variance below which dividing by its root leaves no digit of float32
_MAX_TRAIN_TIMESTEPS = 100_000  # a hundred times what anybody uses; each takes memory
# What a field whose default is of this type must be.
_TYPES: dict[type, tuple[str, Any]] = {
    int: ("a whole number", int),
    float: ("a number", (int, float)),
    bool: ("true or false", bool),
    str: ("a text", str),
}
_LCM_SIGMA = 0.5  # standard deviation of data in the boundary condition, a constant of the method

# What diffusers' schedulers assume for keys that a scheduler_config.json leaves out.
_DIFFUSERS_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "clip_sample": True,
    "thresholding": False,
    "trained_betas": None,
}
_LCM_DEFAULTS: dict[str, Any] = {
    **_DIFFUSERS_DEFAULTS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
# Features of the schedulers that no Marigold checkpoint uses: only these values are accepted.
_ONLY_SUPPORTED: dict[str, Any] = {"clip_sample": False, "thresholding": False, "trained_betas": None}


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """How much noise each timestep carries and in which steps it is removed.

    The defaults are those of the published v1-1 checkpoints: DDIM, zero terminal SNR and trailing timesteps. The last
    two fields belong to `sampler="lcm"`, which has its own timesteps and always ends on the clean latent.

    Raises:
        InvalidValueError: a value that is not accepted, or `epsilon` together with zero terminal SNR.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "v_prediction"
    timestep_spacing: str = "trailing"
    rescale_betas_zero_snr: bool = True
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    sampler: str = "ddim"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        for name, accepted in (
            ("beta_schedule", BETA_SCHEDULES),
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_spacing", TIMESTEP_SPACINGS),
            ("sampler", SAMPLERS),
        ):
            if getattr(self, name) not in accepted:
                raise InvalidValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(accepted)}")
        if not 2 <= self.num_train_timesteps <= _MAX_TRAIN_TIMESTEPS:
            raise InvalidValueError(
                f"num_train_timesteps={self.num_train_timesteps} is outside 2 … {_MAX_TRAIN_TIMESTEPS}; try 1000"
            )
        if not 0 < self.beta_start < self.beta_end < 1:
            raise InvalidValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: 0 < beta_start < beta_end < 1 is needed"
            )
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise InvalidValueError(f"steps_offset={self.steps_offset} is not a timestep; try 0 or 1")
        if not 1 <= self.original_inference_steps <= self.num_train_timesteps:
            raise InvalidValueError(
                f"original_inference_steps={self.original_inference_steps} is outside 1 … {self.num_train_timesteps}; "
                "try 50"
            )
        if not 0 < self.timestep_scaling <= _MAX_TIMESTEP_SCALING:
            raise InvalidValueError(
                f"timestep_scaling={self.timestep_scaling} is outside 0 … {_MAX_TIMESTEP_SCALING:g}; try 10"
            )
        if not float(self.alphas_cumprod[0]) < 1:
            raise InvalidValueError(f"beta_start={self.beta_start} adds no noise at all; try 0.00085")
        if (
            self.prediction_type == "epsilon"
            and not self.rescale_betas_zero_snr
            and self.alphas_cumprod[-1] < _LEAST_ALPHA
        ):
            raise InvalidValueError(
                f"beta_end={self.beta_end} over {self.num_train_timesteps} timesteps leaves nothing of the image, and "
                "prediction_type='epsilon' cannot start from that; try 0.012"
            )
        if self.prediction_type == "epsilon" and self.rescale_betas_zero_snr:
            # At SNR 0 the input is the noise itself, so its prediction carries no information about the image.
            raise InvalidValueError(
                "prediction_type='epsilon' cannot be sampled with rescale_betas_zero_snr=True; use 'v_prediction'"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Schedule described by a diffusers `scheduler_config.json`, absent keys having diffusers' defaults.

        Raises:
            CheckpointError: another scheduler class, or a feature or value that is not supported.
        """
        class_name = config.get("_class_name", "DDIMScheduler")
        class_name = _READ_AS.get(class_name, class_name) if isinstance(class_name, str) else class_name
        if not isinstance(class_name, str) or class_name not in _SCHEDULER_CLASSES:
            raise CheckpointError(
                f"the scheduler is {class_name}; only {' and '.join(_SCHEDULER_CLASSES)} are supported"
            )
        sampler = _SCHEDULER_CLASSES[class_name]
        defaults = _LCM_DEFAULTS if sampler == "lcm" else _DIFFUSERS_DEFAULTS
        merged: dict[str, Any] = {**defaults, **config, "sampler": sampler}
        for name, supported in _ONLY_SUPPORTED.items():
            if merged[name] != supported:
                raise CheckpointError(
                    f"the scheduler has {name}={merged[name]!r}; only {supported!r} is supported: "
                    "correct scheduler_config.json if the model was trained without it"
                )
        chosen = [field for field in fields(cls) if sampler == "lcm" or field.name not in _LCM_FIELDS]
        for field in chosen:
            what, accepted = _TYPES[type(field.default)]
            value = merged[field.name]
            # A truth value is a whole number to Python, and no setting means it so; NaN is a number to JSON.
            if not isinstance(value, accepted) or (isinstance(value, bool) and accepted is not bool) or value != value:
                raise CheckpointError(f"{field.name} is {value!r}, which is not {what}; get the checkpoint again")
        try:
            return cls(**{field.name: merged[field.name] for field in chosen})
        except InvalidValueError as error:
            raise CheckpointError(f"the scheduler is not supported: {error}") from error

    @property
    def class_name(self) -> str:
        """The diffusers class that does the same."""
        return next(name for name, sampler in _SCHEDULER_CLASSES.items() if sampler == self.sampler)

    def to_config(self) -> dict[str, Any]:
        """Content of a `scheduler_config.json` that diffusers' scheduler of this `class_name` understands."""
        unused = {"clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
        left_out = ("sampler", *(() if self.sampler == "lcm" else _LCM_FIELDS))
        content = {key: value for key, value in asdict(self).items() if key not in left_out} | _ONLY_SUPPORTED | unused
        return {"_class_name": self.class_name} | dict(sorted(content.items()))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: the settings, without the table that is computed from them."""
        return asdict(self)

    @cached_property
    def alphas_cumprod(self) -> Float[np.ndarray, " num_train_timesteps"]:
        """Share of signal variance left at each timestep, [0, 1], decreasing; float64, read-only.

        With zero terminal SNR the last entry is exactly 0. Paper: §3.1 (ᾱ); Lin et al. 2023, algorithm 1.
        """
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        alphas_cumprod = np.cumprod(1.0 - betas)
        if self.rescale_betas_zero_snr:
            signal = np.sqrt(alphas_cumprod)
            signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
            alphas_cumprod = signal**2
        alphas_cumprod.setflags(write=False)
        return alphas_cumprod

    @overload
    def coefficients(self, timestep: int) -> tuple[float, float]: ...
    @overload
    def coefficients(self, timestep: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def coefficients(self, timestep: int | Integer[np.ndarray, " b"]) -> tuple[Any, Any]:
        """Weights (√ᾱ_t of the clean latent, √(1 − ᾱ_t) of the noise), each in [0, 1].

        Python floats for one timestep, float64 arrays [b] for an array of timesteps.

        Raises:
            InvalidValueError: a timestep outside 0 … num_train_timesteps − 1.
        """
        if np.min(timestep) < 0 or np.max(timestep) >= self.num_train_timesteps:
            raise InvalidValueError(f"timestep {timestep} is outside 0 … {self.num_train_timesteps - 1}")
        alpha = self.alphas_cumprod[timestep]
        signal, noise = np.sqrt(alpha), np.sqrt(1.0 - alpha)
        # A Python float leaves float32 latents float32; a NumPy float64 scalar would promote them.
        return (signal, noise) if isinstance(timestep, np.ndarray) else (float(signal), float(noise))

    def timesteps(self, num_inference_steps: int) -> list[int]:
        """The `num_inference_steps` timesteps to visit, strictly decreasing.

        Integer arithmetic: floating-point spacing returns one timestep too many for 62 step counts (61, 103, …).
        `leading` with as many steps as there are timesteps ignores `steps_offset`, which would leave the schedule. LCM
        picks them evenly from the `original_inference_steps` of its distillation.

        >>> NoiseSchedule().timesteps(4)
        [999, 749, 499, 249]

        Raises:
            InvalidValueError: not 1 … num_train_timesteps steps (LCM: 1 … original_inference_steps).
        """
        total, steps = self.num_train_timesteps, num_inference_steps
        if not 1 <= steps <= total:
            raise InvalidValueError(f"num_inference_steps={steps} is outside 1 … {total}; try 1, 4 or 10")
        if self.sampler == "lcm":
            original = self.original_inference_steps
            if steps > original:
                raise InvalidValueError(
                    f"num_inference_steps={steps} is more than the {original} that this LCM checkpoint was distilled "
                    "from; try 1 to 4"
                )
            return [(original - original * step // steps) * (total // original) - 1 for step in range(steps)]
        if self.timestep_spacing == "leading":
            stride = total // steps
            offset = min(self.steps_offset, total - 1 - (steps - 1) * stride)
            return [offset + step * stride for step in reversed(range(steps))]
        return [_rounded_ratio(total * left, steps) - 1 for left in range(steps, 0, -1)]

    def step(
        self,
        noisy_latent: Latent,
        prediction: Latent,
        *,
        timestep: int,
        num_inference_steps: int,
        final_step: str = "reference",
        noise: Latent | None = None,
    ) -> Latent:
        """Latent one step of this schedule's sampler cleaner than `noisy_latent`, same type and shape.

        `noise`, standard normal and of the same shape, is needed where `adds_noise`; `final_step` is DDIM's.
        """
        if final_step not in FINAL_STEPS:
            raise InvalidValueError(f"final_step={final_step!r} is not one of {', '.join(FINAL_STEPS)}")
        weights = self.coefficients(timestep)
        clean, found = to_clean_and_noise(noisy_latent, prediction, *weights, prediction_type=self.prediction_type)
        if self.sampler == "lcm":
            return self._lcm_step(noisy_latent, clean, noise, timestep, num_inference_steps)
        return self._ddim_step(clean, found, timestep, num_inference_steps, final_step)

    def adds_noise(self, timestep: int, num_inference_steps: int) -> bool:
        """Whether the step from `timestep` takes fresh noise: all of LCM's but the last."""
        return self.sampler == "lcm" and timestep != self.timesteps(num_inference_steps)[-1]

    def _lcm_step(
        self, noisy_latent: Latent, clean: Latent, noise: Latent | None, timestep: int, num_inference_steps: int
    ) -> Latent:
        """The consistency function of `noisy_latent`, noised again to the next timestep unless this is the last.

        Luo et al. 2023, algorithm 3; the skip and output weights of its boundary condition (section 4.1) are almost 0
        and 1 at every timestep that is visited.
        """
        scaled = timestep * self.timestep_scaling
        skip = _LCM_SIGMA**2 / (scaled**2 + _LCM_SIGMA**2)
        denoised = scaled / math.sqrt(scaled**2 + _LCM_SIGMA**2) * clean + skip * noisy_latent
        if not self.adds_noise(timestep, num_inference_steps):
            return denoised
        assert noise is not None
        timesteps = self.timesteps(num_inference_steps)
        return add_noise(denoised, noise, *self.coefficients(timesteps[timesteps.index(timestep) + 1]))

    def _ddim_step(
        self, clean: Latent, noise: Latent, timestep: int, num_inference_steps: int, final_step: str
    ) -> Latent:
        """Latent one deterministic DDIM step (η = 0) cleaner, from the two parts of the noisy one.

        The step goes to `timestep − num_train_timesteps // num_inference_steps`, as in diffusers, which is not always
        the next entry of `timesteps`. The last step of the reference lands on ᾱ_0 instead of 1 and so keeps 2.9 % of
        the noise (`final_step="reference"`); `final_step="clean"` returns the denoised latent itself.

        Paper: §3.3; Song et al. 2021 (DDIM), eq. 12.
        """
        if final_step == "clean" and timestep == self.timesteps(num_inference_steps)[-1]:
            return clean
        previous = timestep - self.num_train_timesteps // num_inference_steps
        if previous < 0 and self.set_alpha_to_one:
            return clean
        return add_noise(clean, noise, *self.coefficients(max(previous, 0)))


def add_noise(clean: Latent, noise: Latent, signal_weight: Any, noise_weight: Any) -> Latent:
    """Noisy latent x_t = √ᾱ_t·clean + √(1 − ᾱ_t)·noise; the weights come from `NoiseSchedule.coefficients`.

    For a batch with one timestep per sample the caller shapes the weights [b 1 1 1].

    Paper: §3.1.
    """
    return signal_weight * clean + noise_weight * noise


def target(clean: Latent, noise: Latent, signal_weight: Any, noise_weight: Any, *, prediction_type: str) -> Latent:
    """What the network learns to predict: the noise, the clean latent, or the velocity √ᾱ_t·noise − √(1 − ᾱ_t)·clean.

    Paper: §3.1 (epsilon); Salimans & Ho 2022 (velocity), used by the published code.
    """
    if prediction_type == "v_prediction":
        return signal_weight * noise - noise_weight * clean
    return {"epsilon": noise, "sample": clean}[prediction_type]


def to_clean_and_noise(
    noisy: Latent, prediction: Latent, signal_weight: Any, noise_weight: Any, *, prediction_type: str
) -> tuple[Latent, Latent]:
    """The (clean latent, noise) that a network's prediction on a noisy latent stands for; inverse of `target`.

    Not defined for `epsilon` at SNR 0 (`signal_weight` 0), which `NoiseSchedule` refuses.
    """
    if prediction_type == "v_prediction":
        clean = signal_weight * noisy - noise_weight * prediction
        noise = signal_weight * prediction + noise_weight * noisy
        return clean, noise
    if prediction_type == "epsilon":
        return (noisy - noise_weight * prediction) / signal_weight, prediction
    if prediction_type == "sample":
        return prediction, (noisy - signal_weight * prediction) / noise_weight
    raise InvalidValueError(f"prediction_type={prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")


def member_noise(
    shape: tuple[int, ...], *, seed: int, image_key: int, member: int, step: int = 0
) -> Float32[np.ndarray, "..."]:
    """Standard normal latent of one ensemble member, which depends only on the arguments.

    Step 0 is the start latent, step k the fresh noise after k denoising steps (LCM). So a photo gets the same noise
    alone, in a batch and on another day. All keys are non-negative.
    """
    keys = [seed, image_key, member] + [step] * (step > 0)
    bits = np.random.Philox(np.random.SeedSequence(keys))
    return np.random.Generator(bits).standard_normal(math.prod(shape), dtype=np.float32).reshape(shape)


def _rounded_ratio(numerator: int, denominator: int) -> int:
    """`numerator / denominator` rounded to the nearest integer, halves to even (as NumPy does), without floats."""
    quotient, remainder = divmod(numerator, denominator)
    return quotient + (2 * remainder > denominator or (2 * remainder == denominator and quotient % 2 == 1))
