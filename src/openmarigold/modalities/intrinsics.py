# SPDX-License-Identifier: Apache-2.0
"""Intrinsic images: "appearance" (albedo, roughness, metallicity) and "lighting" (albedo, shading, residual).

The U-Net denoises the latents of all targets together, and the autoencoder decodes each by itself. `target_properties`
of model_index.json states the order of the targets, and the space of their values; other orders and spaces than the
published ones are variants. Source: the published family, github.com/prs-eth/Marigold (`marigold-iid-*`), and the
journal version of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from openmarigold.config import CallConfig, OutputConfig
from openmarigold.ensembling import REDUCTIONS, ensemble
from openmarigold.errors import DataError, InvalidValueError
from openmarigold.modalities import intrinsics_scores
from openmarigold.modalities.colors import to_levels, uncertainty_picture
from openmarigold.modalities.modality import MapKind, Maps, Merged, Modality, Picture, Target
from openmarigold.modalities.recomposition import fit_to_photo, recompose

MATERIAL_GAMMA = 2.2
"""Targets hold roughness and metallicity to the power 1 / 2.2, as the published training does; maps are linear."""
CUT = 0.98
"""The quantile of shading and residual, the larger of both, that lighting targets call 1; what is above is clipped."""

_SMALLEST_WHITE = 1e-6
_STACKED = ("roughness", "metallicity", None)
_ColorSpace = Literal["srgb", "linear"]


@dataclass(frozen=True)
class _Stated:
    """The properties of a target that `target_properties` states."""

    space: str
    up_to_scale: bool = False

    def __str__(self) -> str:
        return f"{self.space}, up to scale" if self.up_to_scale else self.space

    @property
    def record(self) -> dict[str, Any]:
        return {"prediction_space": self.space, "up_to_scale": self.up_to_scale}


def _target_names(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The stated targets in their order; empty where none are stated, or not as a list of names."""
    properties = index.get("target_properties")
    names = properties.get("target_names") if isinstance(properties, Mapping) else None
    known = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
    return tuple(names) if known and not isinstance(names, str) else ()  # pyright: ignore[reportArgumentType]


def _stated(index: Mapping[str, Any], usual: Mapping[str, _Stated]) -> dict[str, _Stated]:
    """The stated properties of each target, in their order; the usual ones if none are stated.

    Raises:
        InvalidValueError: a value of another type.
    """
    found = {}
    for name in _target_names(index):
        properties = index["target_properties"].get(name) or {}
        if not isinstance(properties, Mapping):
            raise InvalidValueError(f"target_properties: {name} is {properties!r:.60}; an object is needed")
        space = properties.get("prediction_space") or usual[name].space
        scaled = properties.get("up_to_scale")
        if not isinstance(scaled, (bool, type(None))):
            raise InvalidValueError(f"target_properties: up_to_scale of {name} is {scaled!r:.60}; true or false")
        found[name] = _Stated(str(space), usual[name].up_to_scale if scaled is None else scaled)
    return found


def _unclaimed(index: Mapping[str, Any]) -> str:
    known = " and ".join(f"{list(usual)} ({name})" for name, usual in _USUAL.items())
    if not (names := _target_names(index)):
        return f"target_properties.target_names is missing; known are {known}"
    return f"target_properties.target_names is {list(names)!r:.80}; known are {known}, in any order"


def _words(targets: Mapping[str, _Stated]) -> str:
    return "; ".join(f"{name} {stated}" for name, stated in targets.items())


def _merge(kinds: Sequence[MapKind], members: Float32[np.ndarray, "n c h w"], reduction: str) -> Merged:
    """Median or mean of each channel by itself; the uncertainty of a map is the mean of its channels'."""
    merged = [ensemble(channel, invariance="absolute", reduction=reduction) for channel in members.swapaxes(0, 1)]
    uncertainties, start = [], 0
    for kind in kinds:
        of_map = merged[start : start + kind.channels]
        uncertainties.append(np.mean([one.uncertainty for one in of_map], axis=0))
        start += kind.channels
    return Merged(stack=np.stack([one.depth for one in merged]), uncertainty=np.stack(uncertainties))


def _valid_mask(maps: Maps, accepted: tuple[float, float]) -> Bool[np.ndarray, "h w"]:
    """Pixels where all values are finite and the albedo is not black. `accepted` is a range of depth and has no meaning
    here.
    """
    valid = (maps["albedo"] > 0).any(axis=-1)
    for values in maps.values():
        valid = valid & np.isfinite(values if values.ndim == 2 else values.sum(axis=-1))
    return np.asarray(valid)


def _shares(values: np.ndarray, valid_mask: Bool[np.ndarray, "h w"], invalid: str, white: float = 1.0) -> np.ndarray:
    """A map as shares of white, `[c h w]`; invalid pixels are black ("far"), or what is stored ("raw")."""
    with np.errstate(invalid="ignore", over="ignore"):
        shares = np.clip(np.nan_to_num(values.astype(np.float32) / np.float32(white)), 0.0, 1.0)
    if invalid != "raw":
        shares = np.where(valid_mask if shares.ndim == 2 else valid_mask[..., None], shares, np.float32(0.0))
    return shares[None] if shares.ndim == 2 else np.moveaxis(shares, -1, 0)


def _as_target(named: Mapping[str, np.ndarray], order: Sequence[str]) -> Target:
    return Target(values=(np.stack([named[name] for name in order]) * 2.0 - 1.0).astype(np.float32))


def _check_valid(valid_mask: Bool[np.ndarray, "h w"]) -> None:
    if not valid_mask.any():
        raise DataError("the albedo map has no valid pixel; skip this sample")


def _unit_range(decoded: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.clip(decoded, -1.0, 1.0) * 0.5 + 0.5


def _mirror(maps: Maps) -> Maps:
    return {name: values[:, ::-1] for name, values in maps.items()}


def _color_map(name: str, space: _ColorSpace, unit: str, file_name: str = "") -> MapKind:
    return MapKind(
        name=name,
        channels=3,
        range=(0.0, 1.0),
        unit=unit,
        space=space,
        exr_channels=tuple(f"{name}.{color}" for color in "RGB"),
        resample="bilinear",
        file_name=file_name,
    )


def _white(values: np.ndarray, up_to_scale: bool) -> float:
    """The value of a map that its picture shows as white."""
    return max(float(values.max()), -float(values.min()), _SMALLEST_WHITE) if up_to_scale else 1.0


def _picture_of(kind: MapKind, *, up_to_scale: bool = False, negative: bool = False) -> Picture:
    """The 16-bit picture of a map: colors in sRGB, grays as they are."""
    encode = kind.space == "linear" and kind.channels == 3
    name, sign = kind.name, -1.0 if negative else 1.0
    what = f"{name}, where it is negative, its sign changed" if negative else name
    scaled = f"{what}, divided by the largest size of {name}" if up_to_scale else what
    shown = "encoded in sRGB" if encode else "sRGB" if kind.channels == 3 else "linear"

    def make(maps: Maps, output: OutputConfig) -> np.ndarray:
        white = _white(maps[name], up_to_scale)
        return to_levels(maps[name], dtype=np.uint16, white=sign * white, encode=encode)

    return Picture(
        suffix=f"_{kind.file_name}{'_negative' if negative else ''}.png",
        content=f"{scaled}, {shown}, x 65535",
        make=make,
        applies=(lambda settings: settings.get("recompose") is True) if negative else (lambda settings: True),
    )


def _uncertainty_picture_of(name: str) -> Picture:
    return Picture(
        suffix=f"_{name}.png",
        content="uncertainty, white where it is largest",
        make=lambda maps, output: uncertainty_picture(maps[name]),
        wanted=lambda output: output.uncertainty_picture,
        of_uncertainty=True,
    )


def _show_albedo(maps: Maps, encode: bool) -> UInt8[np.ndarray, "h w 3"]:
    return to_levels(maps["albedo"], dtype=np.uint8, encode=encode)


def _modality(
    name: str,
    targets: Mapping[str, _Stated],
    maps: tuple[MapKind, ...],
    usual: Mapping[str, _Stated],
    accepted: Callable[[Mapping[str, Any], Mapping[str, _Stated]], object],
    **more: Any,
) -> Modality:
    """A modality with the fields that both modalities share."""
    files = tuple(f"{kind.file_name}_uncertainty" for kind in maps)
    spaces = {kind.name: str(targets.get(kind.name, _Stated(kind.space))) for kind in maps}
    albedo_encoded = maps[0].space == "linear"

    def space_of(index: Mapping[str, Any]) -> str:
        stated = _stated(index, usual)
        accepted(index, stated)
        return _words(stated)

    return Modality(
        name=name,
        pipeline_classes=("MarigoldIntrinsicsPipeline",),
        prediction_type="intrinsics",
        maps=maps,
        num_targets=len(targets),
        decoded_channels=3,
        uncertainties=files,
        valid_mask=_valid_mask,
        merge=lambda members, invariance, reduction: _merge(maps, members, reduction),
        reductions=REDUCTIONS,
        finish=lambda stack: np.clip(stack, 0.0, 1.0, out=stack),
        mirror=_mirror,
        picture=lambda maps, color_map: _show_albedo(maps, albedo_encoded),
        check_output=lambda output: None,
        pixel_loss="absolute",
        space=_words(targets),
        space_of=space_of,
        claims=lambda index: sorted(_target_names(index)) == sorted(targets),
        unclaimed=_unclaimed,
        output_facts=lambda output: {"map_spaces": spaces},
        **more,
    )


# Appearance


_USUAL_APPEARANCE = {"albedo": _Stated("srgb"), "material": _Stated("stack")}
_MATERIAL = tuple(
    MapKind(
        name=name, channels=1, range=(0.0, 1.0), unit=unit, space="linear", exr_channels=(name,), resample="bilinear"
    )
    for name, unit in (("roughness", "0 smooth, 1 rough"), ("metallicity", "0 no metal, 1 metal"))
)


def _check_appearance(index: Mapping[str, Any], stated: Mapping[str, _Stated]) -> None:
    """Raises InvalidValueError for spaces that no variant has."""
    properties = index.get("target_properties") or {}
    material = properties.get("material") or {}
    parts = material.get("sub_target_names") or _STACKED
    if tuple(parts) != _STACKED:
        raise InvalidValueError(f"target_properties: sub_target_names of material is {parts!r:.80}, not {_STACKED}")
    found = _stated({"target_properties": {**properties, "target_names": _STACKED[:2]}}, _USUAL_PARTS)
    for name, part in {**stated, **found}.items():
        accepted = {"albedo": ("srgb", "linear"), "material": ("stack",)}.get(name, ("linear",))
        if part.space not in accepted or part.up_to_scale:
            raise InvalidValueError(f"target_properties: {name} is {part}; accepted is {' or '.join(accepted)}")


_USUAL_PARTS = {"roughness": _Stated("linear"), "metallicity": _Stated("linear")}


def _appearance(order: Sequence[str], albedo_space: _ColorSpace) -> Modality:
    targets = {name: _Stated(albedo_space) if name == "albedo" else _USUAL_APPEARANCE[name] for name in order}
    maps = (_color_map("albedo", albedo_space, "share of reflected light"), *_MATERIAL)
    albedo_at, material_at = order.index("albedo"), order.index("material")

    def from_decoded(decoded: Float[np.ndarray, "2 3 h w"]) -> Float[np.ndarray, "5 h w"]:
        material = np.power(_unit_range(decoded[material_at, :2]), MATERIAL_GAMMA)
        return np.concatenate([_unit_range(decoded[albedo_at]), material])

    def to_target(maps: Maps, valid_mask: Bool[np.ndarray, "h w"], invalid: str) -> Target:
        _check_valid(valid_mask)
        parts = [_shares(maps[kind.name], valid_mask, invalid) ** (1 / MATERIAL_GAMMA) for kind in _MATERIAL]
        material = np.concatenate([*parts, np.zeros_like(parts[0])])
        return _as_target({"albedo": _shares(maps["albedo"], valid_mask, invalid), "material": material}, order)

    properties = {
        "target_names": list(order),
        "albedo": {"prediction_space": albedo_space, "up_to_scale": False},
        "material": {"prediction_space": "stack", "sub_target_names": list(_STACKED)},
        **{name: stated.record for name, stated in _USUAL_PARTS.items()},
    }
    return _modality(
        "appearance",
        targets,
        maps,
        _USUAL_APPEARANCE,
        _check_appearance,
        title="albedo, roughness and metallicity",
        to_target=to_target,
        from_decoded=from_decoded,
        pictures=(
            *(_picture_of(kind) for kind in maps),
            *(_uncertainty_picture_of(f"{kind.file_name}_uncertainty") for kind in maps),
        ),
        quantities=MappingProxyType({"absolute": f"albedo ({albedo_space}), roughness and metallicity, in [0, 1]"}),
        index_facts=MappingProxyType({"target_properties": properties}),
        **intrinsics_scores.appearance(albedo_space),
    )


# Lighting

_USUAL_LIGHTING = {
    "albedo": _Stated("linear"),
    "shading": _Stated("linear", up_to_scale=True),
    "residual": _Stated("linear", up_to_scale=True),
}


def _check_lighting(index: Mapping[str, Any], stated: Mapping[str, _Stated]) -> None:
    """Raises InvalidValueError for spaces that no variant has."""
    for name, part in stated.items():
        accepted = ("linear", "srgb") if name == "albedo" else ("linear",)
        if part.space not in accepted or (name == "albedo" and part.up_to_scale):
            raise InvalidValueError(f"target_properties: {name} is {part}; accepted is {' or '.join(accepted)}")
    if len({stated[name].up_to_scale for name in ("shading", "residual") if name in stated}) > 1:
        raise InvalidValueError("target_properties: up_to_scale of shading and residual differ; they have one unit")


def lighting_target(
    maps: Maps, valid_mask: Bool[np.ndarray, "h w"], invalid: str, order: Sequence[str] = tuple(_USUAL_LIGHTING)
) -> Target:
    """The target of a view: shading and residual divided by the larger one of their `CUT` quantiles, and clipped.

    Raises:
        DataError: no valid pixel, or neither shading nor residual above 0.
    """
    _check_valid(valid_mask)
    cut = max(float(np.quantile(maps[name][valid_mask], CUT)) for name in ("shading", "residual"))
    if not 0 < cut < np.inf:
        raise DataError(f"shading and residual are black ({cut:g} at both quantiles); skip this sample")
    whites = {"albedo": 1.0, "shading": cut, "residual": cut}
    return _as_target({name: _shares(maps[name], valid_mask, invalid, white) for name, white in whites.items()}, order)


def _scale(uncertainties: Maps, kinds: Sequence[MapKind], scale: float) -> None:
    """Scales the uncertainties of maps in place, where there are any, as the maps were scaled."""
    for kind in kinds:
        if (spread := uncertainties.get(f"{kind.file_name}_uncertainty")) is not None:
            spread *= np.float32(scale)


def _lighting(order: Sequence[str], albedo_space: _ColorSpace, up_to_scale: bool) -> Modality:
    light_is = _Stated("linear", up_to_scale)
    named = {"albedo": _Stated(albedo_space), "shading": light_is, "residual": light_is}
    targets = {name: named[name] for name in order}
    light = "light, up to a scale that shading and residual share" if up_to_scale else "light, white paper being 1"
    albedo = _color_map("albedo", albedo_space, "share of reflected light", file_name="lighting_albedo")
    shading, residual = (_color_map(name, "linear", light) for name in ("shading", "residual"))
    maps = (albedo, shading, residual)
    places = [order.index(kind.name) for kind in maps]
    in_srgb = albedo_space == "srgb"

    def from_decoded(decoded: Float[np.ndarray, "3 3 h w"]) -> Float[np.ndarray, "9 h w"]:
        return _unit_range(decoded[places]).reshape(9, *decoded.shape[2:])

    def complete(
        maps: Maps, uncertainties: Maps, rgb: UInt8[np.ndarray, "h w 3"], config: CallConfig
    ) -> tuple[Maps, Mapping[str, float | bool]]:
        parts = (rgb, *(maps[name] for name in named))
        fit = fit_to_photo(*parts, up_to_scale=up_to_scale, albedo_in_srgb=in_srgb)
        if config.recompose:
            recompose(*parts, scale=fit.scale, albedo_in_srgb=in_srgb)
            _scale(uncertainties, (shading, residual), fit.scale)
        return maps, {"recomposition_error": round(fit.error, 6), "recomposition_scale": round(fit.scale, 6)}

    return _modality(
        "lighting",
        targets,
        maps,
        _USUAL_LIGHTING,
        _check_lighting,
        title="albedo, shading and residual",
        to_target=lambda maps, valid_mask, invalid: lighting_target(maps, valid_mask, invalid, order),
        from_decoded=from_decoded,
        pictures=(
            _picture_of(albedo),
            _picture_of(shading, up_to_scale=up_to_scale),
            _picture_of(residual, up_to_scale=up_to_scale),
            _picture_of(residual, up_to_scale=up_to_scale, negative=True),
            *(_uncertainty_picture_of(f"{kind.file_name}_uncertainty") for kind in maps),
        ),
        quantities=MappingProxyType(
            {
                "absolute": f"the photo in linear light is about recomposition_scale * (albedo * shading + residual); "
                f"the albedo is {albedo_space}, shading and residual are {named['shading']}; with recompose it is "
                "albedo * shading + residual"
            }
        ),
        index_facts=MappingProxyType(
            {
                "target_properties": {
                    "target_names": list(order),
                    **{name: stated.record for name, stated in targets.items()},
                }
            }
        ),
        complete=complete,
        **intrinsics_scores.lighting(albedo_space),
    )


_USUAL = {"appearance": _USUAL_APPEARANCE, "lighting": _USUAL_LIGHTING}
_SPACES: tuple[_ColorSpace, ...] = ("srgb", "linear")


def _with_variants(usual: Modality, variants: Sequence[Modality]) -> Modality:
    return replace(usual, variants=MappingProxyType({v.space: v for v in variants if v.space != usual.space}))


APPEARANCE = _with_variants(
    _appearance(tuple(_USUAL_APPEARANCE), "srgb"),
    [_appearance(order, space) for order, space in product(permutations(_USUAL_APPEARANCE), _SPACES)],
)
"""Albedo (sRGB) and material; `metallicity` and `roughness` are linear."""
LIGHTING = _with_variants(
    _lighting(tuple(_USUAL_LIGHTING), "linear", up_to_scale=True),
    [_lighting(*case) for case in product(permutations(_USUAL_LIGHTING), _SPACES, (True, False))],
)
"""Albedo, shading and residual in linear light; shading and residual up to a scale that they share."""
