# SPDX-License-Identifier: Apache-2.0
"""Surface normals of Hypersim: geometric ones, without bump maps, turned to the camera.

The steps are those of the published preparation (github.com/prs-eth/Marigold, script/normals); docs/data.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import FrameDefectError
from openmarigold.data.readers.hypersim import Context, HypersimMaps, RawFile, geometry
from openmarigold.geometry import unit_vectors
from openmarigold.modalities.modality import Maps

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
