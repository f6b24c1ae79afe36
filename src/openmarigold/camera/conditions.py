# SPDX-License-Identifier: Apache-2.0
"""An input of some U-Nets besides the photo's colors: the rays of its pixels, on the latent grid.

The same picture shows near things through a wide lens and far ones through a long lens. A checkpoint that predicts
meters can be told the lens: its model_index.json states `"condition_on": "rays"`, and these channels follow those of
the image (docs/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from openmarigold.camera import Camera
from openmarigold.config import LATENT_FACTOR

CONDITIONS: Mapping[str, int] = MappingProxyType({"rays": 3})
"""Kinds of added channels, and how many each kind has."""

_USUAL_FOCAL = 40.0  # latent cells; of a photo of 256 x 341 pixels with 55 degrees, so that channels are about 0
_GAIN = 8.0  # makes them as large as our image encoder's features, so that a U-Net learns from both equally fast


def ray_channels(camera: Camera, padded: tuple[int, int] | None = None) -> Float32[np.ndarray, "3 h w"]:
    """For each latent cell, 8 times: x/z and y/z of its center's ray, and log(focal length / 40 cells).

    Args:
        camera: of the picture that the networks see, without padding.
        padded: its height and width [px] with the padding at the bottom and right, multiples of 8; None: its size.
    """
    height, width = padded or camera.size
    cells = height // LATENT_FACTOR, width // LATENT_FACTOR
    grid = camera.cropped(top=0, left=0, size=(height, width)).resized(cells)
    rays = grid.rays()
    focal = 0.5 * math.log(grid.fx * grid.fy) - math.log(_USUAL_FOCAL)
    return _GAIN * np.stack([rays[..., 0], rays[..., 1], np.full(cells, focal, dtype=np.float32)])
