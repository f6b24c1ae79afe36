# SPDX-License-Identifier: Apache-2.0
"""Depth: normalization for training, ensembles, pictures, and its description as a modality.

Paper: §3.2 (affine-invariant depth normalization, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt16

from openmarigold.config import OutputConfig
from openmarigold.ensembling import REDUCTIONS, ensemble
from openmarigold.ensembling.published import ONE_ROOT, published_ensemble
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.modalities import depth_scores
from openmarigold.modalities.bands import DEPTH_BANDS, DEPTH_PICTURES
from openmarigold.modalities.colors import color_table, colorize, strip_rows, uncertainty_picture
from openmarigold.modalities.modality import Gauge, MapKind, Maps, Merged, Modality, Picture, Surface, Target

METRIC_SPACE = "metric_log"
"""The space that model_index.json states if decoded values are the logarithm of meters: `modalities.metric`."""

ASSUMED_SHIFT = 0.1
"""Added to affine depth in [0, 1] to make it depth up to scale where nothing is known, so that far is 11 times near:
the best of six on rendered pictures (docs/experiments.md)."""

_INDOORS, _OUTDOORS = 20.0, 80.0  # m
USUAL_LIMITS = MappingProxyType(
    {
        **dict.fromkeys(("rooms", "room", "indoor", "indoors", "tabletop", "tabletops", "objects"), _INDOORS),
        **dict.fromkeys(("street", "streets", "outdoor", "outdoors", "driving", "landscape", "landscapes"), _OUTDOORS),
    }
)
"""Farthest depth that training uses of pictures of a kind [m]. Normalization stretches the 2 % and 98 % quantiles of an
image over the whole range, so a view out of a window would leave a sliver of it for the room."""

_SMALLEST_SHOWN = 1e-6
_QUANTILE_ROWS = 1000  # the quantiles of colors are those of so many rows and columns
LOG_HALF_RANGE = 2.0
"""Difference of log depth (natural logarithm) that a normalized value of 1 means. Targets span a factor of e^4 = 55."""


def depth_range(
    depth: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
    *,
    quantiles: tuple[float, float] = (0.02, 0.98),
) -> tuple[float, float]:
    """The near and far depth of normalization: two quantiles of the valid pixels, near < far, in the unit of `depth`.

    Raises:
        DataError: no valid pixel, a valid pixel that is not finite, or both quantiles equal.

    Paper: §3.2, eq. 3.
    """
    valid_depth = depth[valid_mask]
    if valid_depth.size == 0:
        raise DataError("the depth map has no valid pixel; skip this sample")
    near, far = np.quantile(valid_depth.astype(np.float64), quantiles)
    if not (np.isfinite(near) and np.isfinite(far)):
        raise DataError("valid pixels of the depth map are not finite; mark them invalid")
    if far <= near:
        raise DataError(f"the depth map is constant ({near:g} at both quantiles); skip this sample")
    return float(near), float(far)


def normalize_depth(
    depth: Float[np.ndarray, "h w"],
    valid_mask: Bool[np.ndarray, "h w"],
    *,
    quantiles: tuple[float, float] = (0.02, 0.98),
    invalid: Literal["far", "raw"] = "far",
) -> Float32[np.ndarray, "h w"]:
    """Training target in [-1, 1]: the quantiles of the valid pixels become -1 (near) and +1 (far), the rest is clipped.

    Args:
        depth: any affine function of planar depth, for example metric depth [m].
        valid_mask: True = use this pixel; only these set the quantiles.
        quantiles: shares of the valid pixels, linear interpolation between neighbors.
        invalid: "far" puts invalid pixels on the far plane (+1); "raw" normalizes their stored values, as the published
            code does (Hypersim holes, stored as 0, become -1; NaN becomes +1).

    Raises:
        DataError: no valid pixel, a valid pixel that is not finite, or both quantiles equal.

    Paper: §3.2, eq. 3.
    """
    near, far = depth_range(depth, valid_mask, quantiles=quantiles)
    with np.errstate(invalid="ignore"):  # inf - inf in pixels that are replaced below
        norm_depth = np.clip((depth - near) / (far - near) * 2.0 - 1.0, -1.0, 1.0)
    unknown = np.isnan(norm_depth) if invalid == "raw" else ~valid_mask
    return np.where(unknown, 1.0, norm_depth).astype(np.float32)


def _log_target(
    depth: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"], invalid: str
) -> tuple[Float32[np.ndarray, "h w"], float]:
    """Log depth minus its median over the valid pixels, by `LOG_HALF_RANGE`, clipped to [-1, 1]; and that median.

    Invalid pixels are on the far plane (+1); with `invalid` "raw" their stored values are normalized (0 becomes -1; NaN
    and what is negative become +1). Raises DataError for no valid pixel, or one that is not finite or not above 0.
    """
    valid_depth = depth[valid_mask]
    if valid_depth.size == 0:
        raise DataError("the depth map has no valid pixel; skip this sample")
    if not (np.isfinite(valid_depth).all() and valid_depth.min() > 0):
        raise DataError("valid pixels of the depth map are not finite or not above 0; mark them invalid")
    with np.errstate(divide="ignore", invalid="ignore"):  # in pixels that are replaced or clipped below
        log_depth = np.log(depth.astype(np.float64))
        middle = float(np.median(log_depth[valid_mask]))
        norm_depth = np.clip((log_depth - middle) / LOG_HALF_RANGE, -1.0, 1.0)
    unknown = np.isnan(norm_depth) if invalid == "raw" else ~valid_mask
    return np.where(unknown, 1.0, norm_depth).astype(np.float32), middle


def to_relative(norm_depth: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Depth up to scale in (0, 1], the farthest pixel 1, of a normalized log depth."""
    return np.exp(LOG_HALF_RANGE * (norm_depth - norm_depth.max()))


def to_affine(norm_depth: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Affine depth in [0, 1] (near 0, far 1) of a normalized depth, clipped to [-1, 1] first."""
    return (np.clip(norm_depth, -1.0, 1.0) + 1.0) / 2.0


def differentiable_affine(
    norm_depth: Float[np.ndarray, "*shape"],
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """`to_affine` and its derivative, 0 where the clip acts."""
    return to_affine(norm_depth), np.where(np.abs(norm_depth) <= 1.0, 0.5, 0.0)


def differentiable_relative(
    norm_depth: Float[np.ndarray, "*shape"],
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Depth up to scale of a normalized log depth, and its derivative; a value of 0 is 1."""
    depth = np.exp(LOG_HALF_RANGE * norm_depth)
    return depth, LOG_HALF_RANGE * depth


def to_uint16(affine_depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Affine depth [0, 1] as 16-bit grays, rounded to the nearest level (truncation would shift by half a level)."""
    grays = np.empty(affine_depth.shape, dtype=np.uint16)
    rows = strip_rows(affine_depth.shape[1])
    clipped = np.empty((rows, affine_depth.shape[1]), dtype=affine_depth.dtype)
    levels = np.empty(clipped.shape, dtype=np.float64)  # in which a float32 times 65535 is exact
    for top in range(0, len(grays), rows):
        strip = affine_depth[top : top + rows]
        within, level = clipped[: len(strip)], levels[: len(strip)]
        np.clip(strip, 0.0, 1.0, out=within)
        np.multiply(within, 65535.0, out=level, dtype=np.float64)
        grays[top : top + rows] = np.rint(level, out=level)
    return grays


def _valid_mask(maps: Maps, accepted: tuple[float, float]) -> Bool[np.ndarray, "h w"]:
    return (maps["depth"] > accepted[0]) & (maps["depth"] < accepted[1])


def _to_target(maps: Maps, valid_mask: Bool[np.ndarray, "h w"], invalid: str) -> Target:
    bounds = depth_range(maps["depth"], valid_mask)
    rule: Literal["far", "raw"] = "raw" if invalid == "raw" else "far"
    return Target(values=normalize_depth(maps["depth"], valid_mask, invalid=rule)[None, None], bounds=bounds)


def _to_log_target(maps: Maps, valid_mask: Bool[np.ndarray, "h w"], invalid: str) -> Target:
    values, middle = _log_target(maps["depth"], valid_mask, invalid)
    low, high = np.exp(middle - LOG_HALF_RANGE), np.exp(middle + LOG_HALF_RANGE)
    return Target(values=values[None, None], bounds=(float(low), float(high)))


def _merge(members: Float32[np.ndarray, "n 1 h w"], invariance: str, reduction: str) -> Merged:
    if reduction in ONE_ROOT:
        depth, uncertainty = published_ensemble(members[:, 0], invariance=invariance, one_root=ONE_ROOT[reduction])
        return Merged(stack=depth[None], uncertainty=uncertainty[None])
    merged = ensemble(members[:, 0], invariance=invariance, reduction=reduction)
    return Merged(stack=merged.depth[None], uncertainty=merged.uncertainty[None])


def _mirror(maps: Maps) -> Maps:
    return {name: values[:, ::-1] for name, values in maps.items()}


def _check_output(output: OutputConfig) -> None:
    if "png" in output.format:
        color_table(output.color_map)


def _space_of(index: Mapping[str, Any]) -> object:
    space = index.get("space")
    if space == LOG_DEPTH.space:
        for key, value in LOG_DEPTH.index_facts.items():
            if index.get(key) != value:
                raise InvalidValueError(f"{key} is {index.get(key)!r:.60}; with space {space!r} it must be {value!r}")
    return space


def _surface(maps: Maps, settings: Mapping[str, Any]) -> Surface:
    if settings.get("invariance", "affine") != "affine":
        return Surface(depth=maps["depth"])
    shift = settings.get("shift")
    facts = {"shift": ASSUMED_SHIFT, "shift_source": "assumed"} if shift is None else {}
    return Surface(depth=maps["depth"] + np.float32(ASSUMED_SHIFT if shift is None else shift), facts=facts)


_AFFINE = Gauge(to_space=lambda depth: depth, from_space=lambda values: values, with_scale=True, space="linear")
_UP_TO_SCALE = Gauge(to_space=lambda depth: _logs(depth), from_space=np.exp, with_scale=False, space="log")
_GAUGES: Mapping[str, Gauge] = {"affine": _AFFINE, "scale": _UP_TO_SCALE}


_LINEAR = Modality(
    name="depth",
    title="depth",
    pipeline_classes=("MarigoldDepthPipeline", "MarigoldPipeline"),
    prediction_type="depth",
    maps=(
        MapKind(
            name="depth",
            channels=1,
            range=(0.0, 1.0),
            unit="shares of the image's range, near 0",
            space="linear",
            exr_channels=("Y",),
            exr_aliases=("Z", "depth", "depth.Z", "Depth", "Y", "R"),
        ),
    ),
    num_targets=1,
    decoded_channels=1,
    uncertainties=("uncertainty",),
    valid_mask=_valid_mask,
    usual_limits=USUAL_LIMITS,
    to_target=_to_target,
    from_decoded=lambda decoded: to_affine(decoded[:, 0]),
    merge=_merge,
    reductions=(*REDUCTIONS, *ONE_ROOT),
    finish=lambda stack: np.clip(stack, 0, 1, out=stack),
    mirror=_mirror,
    picture=lambda maps, color_map: colorize(maps["depth"], color_map=color_map),
    check_output=_check_output,
    pictures=(
        Picture(
            suffix="_depth.png",
            content="depth x 65535, near 0",
            make=lambda maps, output: to_uint16(maps["depth"]),
            wanted=lambda output: "png" in output.format,
        ),
        Picture(
            suffix="_depth_colored.png",
            content="depth in colors",
            make=lambda maps, output: colorize(maps["depth"], color_map=output.color_map),
            wanted=lambda output: "png" in output.format,
        ),
        Picture(
            suffix="_depth_inverted.png",
            content="(1 - depth) x 65535, near 65535",
            make=lambda maps, output: np.uint16(65535) - to_uint16(maps["depth"]),
            wanted=lambda output: output.inverted,
        ),
        Picture(
            suffix="_uncertainty.png",
            content="uncertainty, white where it is largest",
            make=lambda maps, output: uncertainty_picture(maps["uncertainty"]),
            wanted=lambda output: output.uncertainty_picture,
            of_uncertainty=True,
        ),
        *DEPTH_PICTURES,
    ),
    quantities=MappingProxyType(
        {
            "affine": "affine depth in [0, 1], near 0; true depth is about scale * depth + shift",
            "scale": "depth in [0, 1] up to scale; true depth is about scale * depth",
            "absolute": "depth in [0, 1]; true depth is a fixed multiple that the checkpoint's authors state",
        }
    ),
    pixel_loss="affine_invariant",
    index_facts=MappingProxyType({"scale_invariant": True, "shift_invariant": True}),
    protocols=depth_scores.PROTOCOLS,
    default_protocol=depth_scores.default_protocol,
    headline_metrics=depth_scores.HEADLINE_METRICS,
    spaces=depth_scores.SPACES,
    prediction_space=depth_scores.prediction_space,
    picture_spaces=frozenset({"affine_depth", "disparity"}),
    baselines=depth_scores.BASELINES,
    marks=depth_scores.MARKS,
    space_of=_space_of,
    claims=lambda index: index.get("space") != METRIC_SPACE,
    relative_depth=differentiable_affine,
    relief=lambda maps: maps["depth"],
    gauge=_GAUGES.get,
    band=DEPTH_BANDS.get,
    picture_within=lambda maps, color_map, bounds: colorize(_between(maps["depth"], bounds), color_map=color_map),
    surface=_surface,
    panels=depth_scores.panels,
)


def colored_logs(
    depth: Float[np.ndarray, "h w"], color_map: str, bounds: tuple[float, float] | None = None
) -> np.ndarray:
    """Colors by the logarithm of depth, from its 1 % to its 99 % quantile, so that near things have different colors
    even under a far sky.

    With `bounds`, from the lower depth to the upper one.
    """
    if bounds is None:
        height, width = depth.shape
        some = _logs(depth[:: max(1, height // _QUANTILE_ROWS), :: max(1, width // _QUANTILE_ROWS)])
        known = some[np.isfinite(some)]
        low, high = np.quantile(known, (0.01, 0.99)) if known.size else (0.0, 1.0)
    else:
        low, high = _logs(np.array(bounds, dtype=np.float32))
    low, scale = np.float32(low), np.float32(1.0 / max(high - low, _SMALLEST_SHOWN))

    def to_share(strip: np.ndarray, share: np.ndarray) -> None:
        np.maximum(strip, _SMALLEST_SHOWN, out=share)
        np.log(share, out=share)
        share -= low
        share *= scale

    return colorize(depth, color_map=color_map, to_share=to_share)


def _between(depth: Float[np.ndarray, "h w"], bounds: tuple[float, float]) -> Float32[np.ndarray, "h w"]:
    """Depth as shares of the way from the lower bound to the upper one."""
    low, high = bounds
    return (depth - np.float32(low)) * np.float32(1.0 / max(high - low, _SMALLEST_SHOWN))


def _logs(depth: Float[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    return np.log(np.maximum(depth, _SMALLEST_SHOWN), dtype=np.float32)


LOG_DEPTH = replace(
    _LINEAR,
    space="log",
    maps=(replace(_LINEAR.maps[0], unit="shares of the image's farthest depth"),),
    to_target=_to_log_target,
    from_decoded=lambda decoded: to_relative(decoded[:, 0]),
    picture=lambda maps, color_map: colored_logs(maps["depth"], color_map),
    picture_within=lambda maps, color_map, bounds: colored_logs(maps["depth"], color_map, bounds),
    pictures=tuple(
        replace(
            picture,
            content="the logarithm of depth in colors",
            make=lambda maps, output: colored_logs(maps["depth"], output.color_map),
        )
        if picture.suffix == "_depth_colored.png"
        else picture
        for picture in _LINEAR.pictures
    ),
    surface=lambda maps, settings: Surface(depth=maps["depth"]),
    pixel_loss="absolute",
    relative_depth=differentiable_relative,
    index_facts=MappingProxyType({"scale_invariant": True, "shift_invariant": False, "space": "log"}),
)
"""Depth up to scale: a decoded value times `LOG_HALF_RANGE` is log depth plus an unknown constant."""

DEPTH = replace(_LINEAR, variants=MappingProxyType({LOG_DEPTH.space: LOG_DEPTH}))
