# SPDX-License-Identifier: Apache-2.0
"""The settings of guided denoising, the published ones, and the defaults for a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from openmarigold.completion.guidance import LOSSES, Loss
from openmarigold.config import CallConfig, PredictConfig, check_choice, check_whole
from openmarigold.errors import InvalidValueError
from openmarigold.predictor import Predictor

GUIDED = "guided"
"""Name of the method."""
PUBLISHED_STEPS = 50
_ITERATIONS_OF_ONE_STEP = 30
_SMOOTHING = 0.4


@dataclass(frozen=True, kw_only=True)
class GuidedSettings:
    """The settings of guided denoising.

    Raises:
        InvalidValueError: a value that is not accepted.
    """

    num_inference_steps: int | None = None
    """Denoising steps. None: 1 for checkpoints that predict in one step, 50 for all others."""
    iterations: int | None = None
    """How often the latent is moved at each timestep. 1 is the published loop: the sampler continues with the moved
    latent and the U-Net's output from before the move. More: it continues with the best latent and the U-Net's output
    for that one. None: 30 for checkpoints that predict in one step, 1 for all others."""
    ensemble_size: int = 1
    """Guided predictions from different noise; the result is the median of their meters at each pixel."""
    seed: int = 2024
    """Seed of the noise."""
    processing_resolution: int | None = None
    """Size of the networks' input [px], 0 for the photo's size. None: the checkpoint's default."""
    timestep_spacing: Literal["leading", "trailing"] | None = None
    """Which timesteps are visited. None: trailing for several steps of DDIM, else the checkpoint's spacing."""
    learning_rate: float | None = None
    """Learning rate of Adam on the latent. None: 0.03 for several iterations at a timestep, else 0.05, as
    published."""
    fit_rate: float = 0.005
    """Learning rate of Adam on the parameters of the fit from relative depth to meters."""
    loss: Loss = "robust"
    """squared: mean absolute plus mean squared error [m], as published; robust: mean absolute error of log depth."""
    rescale: bool | None = None
    """Scale the gradient of the latent to the length of the noise, as published. None: only for one iteration at each
    timestep; with several, Adam alone takes smaller steps near the end."""
    smoothing: float | None = None
    """Also move wide structures of the latent: their width as a share of the mean distance between points; 0 for none,
    as published. None: 0.4 for several iterations at a timestep, else 0."""
    exponent: bool = False
    """Depth up to scale: also fit an exponent."""
    patience: int = 15
    """Stop at a timestep after this many iterations without progress of 1 %."""
    save_memory: bool = False
    """Compute the networks' blocks twice instead of keeping their activations: less memory, more time, the same result
    up to rounding."""

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        for name in ("iterations", "patience", "ensemble_size"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        for name in ("learning_rate", "fit_rate", "smoothing"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (int, float)) or not 0 <= value < math.inf):
                raise InvalidValueError(f"{name}={value!r} is not accepted; give a number such as 0.05")

    @classmethod
    def published(cls, **changes: Any) -> GuidedSettings:
        """The loop of the published code: 50 trailing steps, one move each, the squared loss."""
        exact: dict[str, Any] = {
            "num_inference_steps": PUBLISHED_STEPS,
            "iterations": 1,
            "timestep_spacing": "trailing",
            "loss": "squared",
            "learning_rate": 0.05,
            "rescale": True,
            "smoothing": 0.0,
        }
        return cls(**exact | changes)


def settings_of(config: CallConfig) -> GuidedSettings:
    """The settings of guided denoising that follow from the settings of a prediction."""
    return GuidedSettings(
        num_inference_steps=config.num_inference_steps,
        ensemble_size=config.ensemble_size,
        seed=config.seed,
        processing_resolution=config.processing_resolution,
    )


def with_gradients(config: PredictConfig) -> PredictConfig:
    """The settings with an engine that gives gradients (torch).

    Raises:
        InvalidValueError: they name an engine without gradients.
    """
    if config.engine not in ("auto", "torch"):
        raise InvalidValueError(
            f"method='guided' needs gradients, which engine {config.engine} does not give; use torch"
        )
    return replace(config, engine="torch")


def with_defaults(settings: GuidedSettings, predictor: Predictor) -> GuidedSettings:
    """`settings` with defaults for the checkpoint in place of None."""
    one_step = predictor.checkpoint.default_num_inference_steps == 1
    steps = settings.num_inference_steps or (1 if one_step else PUBLISHED_STEPS)
    spacing = settings.timestep_spacing
    if spacing is None and steps > 1 and predictor.checkpoint.schedule.sampler == "ddim":
        spacing = "trailing"
    iterations = settings.iterations or (_ITERATIONS_OF_ONE_STEP if one_step else 1)
    usual_rate = 0.03 if iterations > 1 else 0.05
    return replace(
        settings,
        num_inference_steps=steps,
        iterations=iterations,
        learning_rate=usual_rate if settings.learning_rate is None else settings.learning_rate,
        rescale=iterations == 1 if settings.rescale is None else settings.rescale,
        smoothing=_SMOOTHING * (iterations > 1) if settings.smoothing is None else settings.smoothing,
        timestep_spacing=spacing,
    )
