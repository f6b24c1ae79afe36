# SPDX-License-Identifier: Apache-2.0
"""Other maps of Hypersim's frames: intrinsic images in linear light (albedo, diffuse shading, residual), and surface
normals, geometric ones without bump maps, turned to the camera.

The steps are those of the published preparation (github.com/prs-eth/Marigold, script/iid and script/normals);
docs/data.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from openmarigold.data.decoding import FrameDefectError
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.readers.hypersim import Context, HypersimMaps, RawFile, final, geometry, tone_map
from openmarigold.geometry import unit_vectors
from openmarigold.modalities.modality import Maps

CUT = 98.0
"""Percentile of the shading. Shading and residual are cut there, to test whether they still give the photo."""
MIN_PSNR = 40.0
"""Smallest PSNR of the photo that is computed from the cut maps [dB]."""

_HALF = MapEncoding(kind="float16")


def _lighting(arrays: Mapping[str, np.ndarray], context: Context) -> tuple[Maps, dict[str, Any]]:
    empty = arrays["entity"] == -1
    if empty.any():
        raise FrameDefectError("pixels without a surface", f"{int(empty.sum())} pixels, as of windows", is_error=False)
    color, albedo, shading, residual = (
        arrays[name].astype(np.float32) for name in ("color", "albedo", "shading", "residual")
    )
    with np.errstate(over="ignore", invalid="ignore"):
        known = np.isfinite(albedo * shading + residual).all(axis=-1) & np.isfinite(shading + residual).all(axis=-1)
        for light in (shading, residual):
            known &= np.isfinite(light.astype(np.float16)).all(axis=-1)  # as it is stored
    if not known.all():
        raise FrameDefectError("light not finite", f"{int((~known).sum())} pixels", is_error=False)
    stated: dict[str, Any] = {}
    if context.split != "test":  # the published test split keeps these
        _check_ranges(albedo, shading, residual)
        psnr = cut_psnr(color, albedo, shading, residual)
        if psnr < MIN_PSNR:
            detail = f"{psnr:.1f} dB between the photo and the one of cut shading and residual"
            raise FrameDefectError("light too bright", detail, is_error=False)
        stated["cut_psnr_db"] = round(min(psnr, 999.0), 3)
    return {"albedo": np.clip(albedo, 0.0, 1.0), "shading": shading, "residual": residual}, stated


def _check_ranges(
    albedo: Float32[np.ndarray, "h w 3"], shading: Float32[np.ndarray, "h w 3"], residual: Float32[np.ndarray, "h w 3"]
) -> None:
    if albedo.min() < 0 or albedo.max() > 1:
        raise FrameDefectError("albedo out of range", f"{albedo.min():g} to {albedo.max():g}", is_error=False)
    for name, light in (("shading", shading), ("residual", residual)):
        if light.min() < 0:
            raise FrameDefectError("negative light", f"{name} down to {light.min():g}", is_error=False)


def cut_psnr(
    color: Float32[np.ndarray, "h w 3"],
    albedo: Float32[np.ndarray, "h w 3"],
    shading: Float32[np.ndarray, "h w 3"],
    residual: Float32[np.ndarray, "h w 3"],
) -> float:
    """PSNR [dB] of the photo made of shading and residual that are cut at the shading's `CUT` percentile.

    Both are tone-mapped as `hypersim.tone_map` has it, each with its own exposure.
    """
    limit = np.percentile(shading, CUT).astype(np.float32)
    made = albedo * np.minimum(shading, limit) + np.minimum(residual, limit)
    whole = np.ones(color.shape[:2], dtype=bool)
    return _psnr(tone_map(color, whole), tone_map(made, whole))


def _psnr(first: UInt8[np.ndarray, "h w 3"], second: UInt8[np.ndarray, "h w 3"]) -> float:
    error = float(np.square(first.astype(np.float64) - second).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


LIGHTING_MAPS = HypersimMaps(
    modality="lighting",
    encodings={"albedo": _HALF, "shading": _HALF, "residual": _HALF},
    files={
        "albedo": final("diffuse_reflectance"),
        "shading": final("diffuse_illumination"),
        "residual": final("residual"),
    },
    compose=_lighting,
)


_AWAY = -1e-3  # cosine between normal and view, below which a normal looks away from the camera


def looking_away(
    normals: Float[np.ndarray, "h w 3"], positions: Float[np.ndarray, "h w 3"], camera: Float[np.ndarray, " 3"]
) -> Bool[np.ndarray, "h w"]:
    """Pixels whose normals point away from the camera; all in axes of the world and one unit of length.

    A position that is not finite is taken from the row above, in the first row from the one below.
    """
    positions = positions.astype(np.float64)
    for row in range(len(positions)):
        unknown = ~np.isfinite(positions[row]).all(axis=-1)
        positions[row][unknown] = positions[row - 1 if row else min(1, len(positions) - 1)][unknown]
    with np.errstate(invalid="ignore"):
        views = unit_vectors(camera - positions, axis=-1)
        return np.asarray((normals * views).sum(axis=-1) < _AWAY)


def _normals(arrays: Mapping[str, np.ndarray], context: Context) -> tuple[Maps, dict[str, Any]]:
    normals, in_world = (arrays[name].astype(np.float64) for name in ("normals", "normals_world"))
    unknown = ~np.isfinite(normals).all(axis=-1) | ~np.isfinite(in_world).all(axis=-1)
    if unknown.any():
        raise FrameDefectError("normals not finite", f"{int(unknown.sum())} pixels", is_error=False)
    cameras = arrays["cameras"]
    if context.number >= len(cameras):
        raise FrameDefectError("wrong size", f"{len(cameras)} positions of the camera; frame {context.number} has none")
    away = looking_away(in_world, arrays["positions"], cameras[context.number].astype(np.float64))
    normals = unit_vectors(np.where(away[..., None], -normals, normals), axis=-1)
    return {"normals": normals.astype(np.float32)}, {"turned_normals": int(away.sum())}


NORMALS_MAPS = HypersimMaps(
    modality="normals",
    encodings={"normals": MapEncoding(kind="float16")},
    files={
        "normals": geometry("normal_cam"),
        "normals_world": geometry("normal_world"),
        "positions": geometry("position"),
        "cameras": RawFile(path="_detail/{camera}/camera_keyframe_positions.hdf5", shape="n 3"),
    },
    compose=_normals,
)
