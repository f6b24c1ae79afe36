# SPDX-License-Identifier: Apache-2.0
"""Points and meshes of a prediction, and their files. They follow from the modality's depth and the camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from openmarigold.camera import Camera
from openmarigold.config import FileFormat, OutputConfig
from openmarigold.errors import InvalidValueError
from openmarigold.modalities import Modality
from openmarigold.modalities.modality import Maps

SPACE_FORMATS: tuple[FileFormat, ...] = ("ply", "glb")
"""Formats of points and meshes."""
_SETTINGS = ("ply", "glb", "max_points", "max_depth", "drop_far", "drop_uncertain")


def check_space_formats(output: OutputConfig, modality: Modality) -> None:
    """Raises InvalidValueError where points or meshes are asked of a modality that shows no surface."""
    asked = [name for name in SPACE_FORMATS if name in output.format]
    if asked and modality.surface is None:
        raise InvalidValueError(
            f"format {', '.join(asked)}: {modality.title} alone gives no points or mesh; ask for depth (modality "
            "depth), or leave these formats out"
        )


def check_uncertainty(output: OutputConfig, *, has_uncertainty: bool) -> None:
    """Raises InvalidValueError if files must leave out uncertain pixels, but the uncertainty is not known."""
    if output.drop_uncertain and not has_uncertainty and set(SPACE_FORMATS) & set(output.format):
        raise InvalidValueError(
            f"drop_uncertain={output.drop_uncertain:g} needs the uncertainty of an ensemble; give ensemble_size 2 or "
            "more, or leave it out"
        )


def check_is_plane(panorama: str | None) -> None:
    """Raises InvalidValueError for a panorama (its projection, None: none), which gives no points or mesh."""
    if panorama:
        raise InvalidValueError(
            f"the photo is a panorama ({panorama}), in which straight lines are bent: its depth gives no points "
            "or mesh; leave out ply and glb, or cut it into views (docs/points.md, Panoramas)"
        )


def space_facts(output: OutputConfig, modality: Modality) -> dict[str, Any]:
    """Settings of points and meshes that differ from the defaults. Other values make other files."""
    if modality.surface is None:
        return {}
    default = {setting.name: setting.default for setting in fields(output)}
    return {name: getattr(output, name) for name in _SETTINGS if getattr(output, name) != default[name]}


def surface_arguments(
    maps: Maps,
    uncertainties: Maps,
    *,
    modality: Modality,
    settings: Mapping[str, Any],
    camera: Camera | None,
    rgb: UInt8[np.ndarray, "h w 3"] | None,
) -> dict[str, Any]:
    """What `points_from_depth` and `mesh_from_depth` take, of a prediction.

    Raises:
        InvalidValueError: a modality that shows no surface, or a panorama.
    """
    if modality.surface is None:
        raise InvalidValueError(
            f"{modality.title} alone gives no points or mesh; predict depth, or metric depth, for these"
        )
    check_is_plane(settings.get("panorama"))
    surface = modality.surface(maps, settings)
    return {
        "depth": surface.depth,
        "camera": camera or Camera.assumed(surface.depth.shape),
        "rgb": rgb,
        "uncertainty": next(iter(uncertainties.values()), None),
        "origin": {"unit": surface.unit, "record": {**settings, **surface.facts}},
    }


def space_writers(
    maps: Maps,
    uncertainties: Maps,
    *,
    modality: Modality,
    output: OutputConfig,
    settings: Mapping[str, Any],
    camera: Camera | None,
    rgb: UInt8[np.ndarray, "h w 3"] | None,
) -> dict[str, Callable[[Path], object]]:
    """The writers of the requested files of points and meshes, by the end of their names.

    Raises:
        InvalidValueError: a modality that shows no surface, a panorama, or no points.
    """
    asked = [name for name in SPACE_FORMATS if name in output.format]
    if not asked:
        return {}
    from openmarigold.reconstruction.grid import PixelChoice
    from openmarigold.reconstruction.mesh import Mesh, mesh_from_depth
    from openmarigold.reconstruction.points import PointCloud, points_from_depth
    from openmarigold.reconstruction.saving import check_not_empty

    known = surface_arguments(maps, uncertainties, modality=modality, settings=settings, camera=camera, rgb=rgb)
    names = ("max_points", "max_depth", "drop_far", "drop_uncertain")
    known["choice"] = PixelChoice(**{name: getattr(output, name) for name in names})
    made: dict[str, PointCloud | Mesh] = {}
    for content in {getattr(output, name) for name in asked}:
        made[content] = (points_from_depth if content == "points" else mesh_from_depth)(**known)
        check_not_empty(len(made[content]))
    writers: dict[str, Callable[[Path], object]] = {}
    for name in asked:
        space = made[getattr(output, name)]
        writers[f"_{modality.name}.{name}"] = space.write_ply if name == "ply" else space.write_glb
    return writers
