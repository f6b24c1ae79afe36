# SPDX-License-Identifier: Apache-2.0
"""From linear light to a photo: exposure, white balance, tone curve, contrast, as cameras differ in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from openmarigold_render.core import InvalidValueError

MAX_EXPOSURE = 4.0
_LUMINANCE = np.array((0.2126, 0.7152, 0.0722), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Development:
    """How linear colors become a photo; the same one for all frames of a sequence."""

    gain: Float[np.ndarray, " 3"]
    """Exposure and white balance, a factor for each color."""
    shoulder: float
    gamma: float
    contrast: float
    saturation: float

    def __call__(self, linear: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The photo."""
        with np.errstate(over="ignore"):  # a path may meet a lamp's very center: such pixels are saturated, not black
            value = np.minimum(linear * self.gain.astype(np.float32), np.float32(1e6))
        value = value * (1.0 + 0.1 * value) / (1.0 + self.shoulder * value)
        value = np.clip(value, 0.0, 1.0) ** (1.0 / self.gamma)
        value = 0.45 + (value - 0.45) * self.contrast
        gray = value @ _LUMINANCE
        value = gray[..., None] + (value - gray[..., None]) * self.saturation
        return np.round(255.0 * np.clip(value, 0.0, 1.0)).astype(np.uint8)


def development_for(
    linear: Float[np.ndarray, "h w 3"],
    measured: Bool[np.ndarray, "h w"],
    generator: np.random.Generator,
    *,
    exposure: float = 0.0,
) -> Development:
    """Exposes linear colors for the pixels `measured`, lighter or darker by `exposure` [stops].

    A random percentile of luminance lands on a random middle gray; white balance, shoulder, gamma and contrast are
    drawn too.
    """
    luminance = linear @ _LUMINANCE
    chosen = luminance[measured] if measured.any() else luminance.ravel()
    level = float(np.percentile(chosen, generator.uniform(48.0, 66.0)))
    target = generator.uniform(0.15, 0.36)
    gain = target / max(level, 1e-5) * 2.0 ** (generator.normal(0.0, 0.3) + exposure)
    # The brightest pixels may be far above: a photographer would stop down for them, half way.
    high = float(np.percentile(luminance, 97.0)) * gain
    if high > 1.6:
        gain *= (1.6 / high) ** 0.5
    balance = np.exp(generator.normal(0.0, 0.05, size=3) + generator.normal(0.0, 0.05) * np.array((1.0, 0.0, -1.0)))
    return Development(
        gain=gain * balance,
        shoulder=generator.uniform(0.35, 0.75),
        gamma=generator.uniform(2.0, 2.4),
        contrast=generator.uniform(1.0, 1.22),
        saturation=generator.uniform(0.75, 1.1),
    )


def develop(
    linear: Float[np.ndarray, "h w 3"],
    measured: Bool[np.ndarray, "h w"],
    generator: np.random.Generator,
    *,
    exposure: float = 0.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """A photo of linear colors by a development of its own (`development_for`)."""
    return development_for(linear, measured, generator, exposure=exposure)(linear)


def check_exposure(value: float) -> None:
    """Accepts -4 to 4 stops."""
    if not -MAX_EXPOSURE <= value <= MAX_EXPOSURE:
        raise InvalidValueError(f"exposure={value!r} is not accepted; give -4 to 4 stops, 0 for as measured")
