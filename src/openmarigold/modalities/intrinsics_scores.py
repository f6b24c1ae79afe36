# SPDX-License-Identifier: Apache-2.0
"""Scores of intrinsic images: PSNR [dB] and SSIM of each map, and the baselines.

Source: the published evaluation of Marigold's intrinsic images (`marigold-appearance`, `marigold-lighting`). Its LPIPS
is left out: the networks that it compares have weights of their own, which would have to be downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from openmarigold.errors import DataError
from openmarigold.images.pixels import decode_srgb, encode_srgb
from openmarigold.images.pixels import light_of_pixels as light_of
from openmarigold.modalities.colors import to_levels
from openmarigold.modalities.protocol import (
    PIXELS_SCORED,
    Aligned,
    Baseline,
    BenchmarkSample,
    Maps,
    PredictionSpace,
    Protocol,
    Score,
)

LARGEST_PSNR = 100.0
"""Decibels of maps that are equal, whose mean squared error is 0."""
WINDOW = 11
"""Side of the Gaussian window of SSIM [px]; its standard deviation is 1.5."""

_WINDOW_STD = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_BRIGHTNESS = np.array([0.3, 0.59, 0.11])
_BRIGHT_QUANTILE, _BRIGHT = 0.9, 0.8
_GAMMA = 2.2


def psnr(
    pred: Float[np.ndarray, "h w *c"], gt: Float[np.ndarray, "h w *c"], valid_mask: Bool[np.ndarray, "h w"]
) -> float:
    """Peak signal-to-noise ratio [dB] of values in [0, 1] over the valid pixels, at most `LARGEST_PSNR`."""
    error = float(np.square(pred[valid_mask].astype(np.float64) - gt[valid_mask]).mean())
    return float(min(LARGEST_PSNR, -10 * np.log10(max(error, 10 ** (-LARGEST_PSNR / 10)))))


def ssim(pred: Float[np.ndarray, "h w *c"], gt: Float[np.ndarray, "h w *c"]) -> float:
    """Structural similarity of values in [0, 1], at most 1: mean over all whole windows and channels.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", with the Gaussian
    window of 11x11 pixels and K1, K2 = 0.01, 0.03.

    Raises:
        DataError: a map smaller than a window.
    """
    if min(pred.shape[:2]) < WINDOW:
        raise DataError(
            f"SSIM needs maps of {WINDOW}x{WINDOW} pixels or more; these are {pred.shape[0]}x{pred.shape[1]}"
        )
    first, second = pred.astype(np.float64), gt.astype(np.float64)
    mean1, mean2 = _windowed(first), _windowed(second)
    var1, var2 = _windowed(first**2) - mean1**2, _windowed(second**2) - mean2**2
    covariance = _windowed(first * second) - mean1 * mean2
    light = (2 * mean1 * mean2 + _C1) / (mean1**2 + mean2**2 + _C1)
    return float((light * (2 * covariance + _C2) / (var1 + var2 + _C2)).mean())


def _windowed(values: Float64[np.ndarray, "h w *c"]) -> Float64[np.ndarray, "hv wv *c"]:
    """Gaussian means around each pixel whose window lies in the picture."""
    weights = np.exp(-0.5 * np.square((np.arange(WINDOW) - WINDOW // 2) / _WINDOW_STD))
    weights /= weights.sum()
    height, width = (side - WINDOW + 1 for side in values.shape[:2])
    rows = sum(weight * values[start : start + height] for start, weight in enumerate(weights))
    return sum(weight * rows[:, start : start + width] for start, weight in enumerate(weights))  # pyright: ignore


def brightness_factor(light: Float[np.ndarray, "h w 3"], valid_mask: Bool[np.ndarray, "h w"]) -> float:
    """The factor for light that makes the 90 % quantile of its brightness 0.8.

    Of light that is 0 at this quantile, the brightest pixel becomes 0.8; of none at all, the factor is 1.
    """
    brightness = light[valid_mask] @ _BRIGHTNESS
    bright = float(np.quantile(brightness, _BRIGHT_QUANTILE)) or float(brightness.max())
    return _BRIGHT / bright if bright > 0 else 1.0


def fit_factor(pred: np.ndarray, gt: np.ndarray, valid_mask: Bool[np.ndarray, "h w"]) -> float:
    """The factor of `pred` that is nearest to `gt` over the valid pixels, by least squares; 1 where `pred` is 0."""
    first, second = pred[valid_mask].astype(np.float64), gt[valid_mask].astype(np.float64)
    power = float(np.vdot(first, first))
    return float(np.vdot(first, second)) / power if power > 0 else 1.0


def _both(
    name: str, pred: np.ndarray, gt: np.ndarray, valid_mask: Bool[np.ndarray, "h w"], *, with_ssim: bool = True
) -> dict[str, float]:
    """PSNR over the valid pixels, and SSIM of both maps with 0 elsewhere."""
    found = {f"{name}_psnr": psnr(pred, gt, valid_mask)}
    if with_ssim:
        mask = valid_mask if pred.ndim == 2 else valid_mask[..., None]
        found[f"{name}_ssim"] = ssim(np.where(mask, pred, 0.0), np.where(mask, gt, 0.0))
    return found


def _psnr_score(name: str, label: str = "") -> Score:
    return Score(name=f"{name}_psnr", label=label, unit="dB" if label else "", higher_is_better=True)


def _ssim_score(name: str, label: str = "") -> Score:
    return Score(name=f"{name}_ssim", label=label, digits=3, higher_is_better=True)


def _score_appearance(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Mapping[str, float]:
    first, second = ({**named, "material": _material(named)} for named in (maps, sample.maps))
    scores: dict[str, float] = {}
    for name in ("albedo", "material", "roughness", "metallicity"):
        scores |= _both(name, first[name], second[name], usable, with_ssim=name in ("albedo", "material"))
    return scores


def _material(maps: Maps) -> np.ndarray:
    return np.stack([maps["roughness"], maps["metallicity"]], axis=-1)


def _align_lighting(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Aligned:
    fitted = {name: maps[name] * fit_factor(maps[name], sample.maps[name], usable) for name in ("shading", "residual")}
    return Aligned(maps={**maps, **fitted})


def _score_lighting(sample: BenchmarkSample, maps: Maps, usable: Bool[np.ndarray, "h w"]) -> Mapping[str, float]:
    first, second = (np.clip(named["albedo"], 0, 1) ** (1 / _GAMMA) for named in (maps, sample.maps))
    scores = _both("albedo", first, second, usable)
    for name in ("shading", "residual"):
        factor = brightness_factor(sample.maps[name], usable)
        first, second = (np.clip(named[name] * factor, 0, 1) for named in (maps, sample.maps))
        scores |= _both(name, first, second, usable)
    return scores


def _panels(sample: BenchmarkSample, maps: Maps, step: int, *, encode: bool) -> Mapping[str, np.ndarray]:
    """Albedo, measured and predicted."""
    shown = {"measured albedo": sample.maps["albedo"], "albedo": maps["albedo"]}
    return {
        heading: to_levels(values[::step, ::step].astype(np.float32), dtype=np.uint8, encode=encode)
        for heading, values in shown.items()
    }


_OTHER = ", albedo in the other space"


def _with_albedo(maps: Maps, albedo: np.ndarray) -> Maps:
    return {**maps, "albedo": albedo}


def _appearance_of_photo(rgb: UInt8[np.ndarray, "h w 3"]) -> Maps:
    flat = np.zeros(rgb.shape[:2], dtype=np.float32)
    return {"albedo": rgb.astype(np.float32) / 255, "roughness": flat + np.float32(0.5), "metallicity": flat}


def _lighting_of_photo(rgb: UInt8[np.ndarray, "h w 3"]) -> Maps:
    light = light_of(rgb)
    return {"albedo": light, "shading": np.ones_like(light), "residual": np.zeros_like(light)}


def _parts(
    name: str, protocol: Protocol, headline: tuple[str, ...], estimate: Any, *, encode: bool, usual: bool
) -> Any:
    """The fields of a `Modality` that are about scores."""
    spaces: tuple[PredictionSpace, ...] = (name, f"{name}{_OTHER}")
    return {
        "protocols": MappingProxyType({protocol.name: protocol}),
        "default_protocol": lambda space: protocol.name,
        "headline_metrics": headline,
        "spaces": spaces,
        "prediction_space": lambda invariance: spaces[0 if usual else 1],
        "baselines": MappingProxyType({"photo as albedo": Baseline(space=spaces[0], estimate=estimate)}),
        "panels": lambda sample, maps, step: _panels(sample, maps, step, encode=encode),
    }


def appearance(albedo_space: str) -> dict[str, Any]:
    """Fields of the modality "appearance" with an albedo in a space; measured maps have theirs in sRGB."""
    protocol = Protocol(
        name="marigold-appearance",
        summary="PSNR and SSIM of each image, averaged over images; the albedo in sRGB, the material linear",
        accepts=frozenset({"appearance", f"appearance{_OTHER}"}),
        scores=(
            _psnr_score("albedo", "albedo PSNR"),
            _ssim_score("albedo", "albedo SSIM"),
            _psnr_score("material", "material PSNR"),
            _ssim_score("material"),
            _psnr_score("roughness"),
            _psnr_score("metallicity"),
            PIXELS_SCORED,
        ),
        score=_score_appearance,
        convert={f"appearance{_OTHER}": lambda maps, usable: _with_albedo(maps, encode_srgb(maps["albedo"]))},
    )
    headline = ("albedo_psnr", "material_psnr")
    usual = albedo_space == "srgb"
    return _parts("appearance", protocol, headline, _appearance_of_photo, encode=False, usual=usual)


def lighting(albedo_space: str) -> dict[str, Any]:
    """Fields of the modality "lighting" with an albedo in a space; measured maps are linear."""
    names = ("albedo", "shading", "residual")
    protocol = Protocol(
        name="marigold-lighting",
        summary="PSNR and SSIM of each image, averaged over images; the albedo in sRGB, shading and residual after "
        "the best factor, as bright as the measured ones",
        accepts=frozenset({"lighting", f"lighting{_OTHER}"}),
        scores=(
            *(_psnr_score(name, f"{name} PSNR") for name in names),
            *(_ssim_score(name, f"{name} SSIM" if name == "albedo" else "") for name in names),
            PIXELS_SCORED,
        ),
        score=_score_lighting,
        align=_align_lighting,
        convert={f"lighting{_OTHER}": lambda maps, usable: _with_albedo(maps, decode_srgb(maps["albedo"]))},
    )
    headline = ("albedo_psnr", "shading_psnr")
    usual = albedo_space == "linear"
    return _parts("lighting", protocol, headline, _lighting_of_photo, encode=True, usual=usual)
