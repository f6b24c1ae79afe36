# SPDX-License-Identifier: Apache-2.0
"""A modality for tests, all of it: a photo's own colors and their inverse. Two maps of three channels, two targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from openmarigold.modalities.modality import MapKind, Maps, Merged, Modality, Picture, Target


def maps_of(rgb: np.ndarray) -> dict[str, np.ndarray]:
    """The true maps of a photo."""
    bright = rgb.astype(np.float32) / 255
    return {"bright": bright, "dark": 1 - bright}


def _to_target(maps: Maps, valid_mask: np.ndarray, invalid: str) -> Target:
    values = np.stack([maps[name].transpose(2, 0, 1) * 2 - 1 for name in ("bright", "dark")])
    return Target(values=values.astype(np.float32))


def _merge(members: np.ndarray, invariance: str) -> Merged:
    return Merged(stack=np.median(members, axis=0), uncertainty=members.std(axis=0).mean(axis=0, keepdims=True))


def _picture(maps: Maps, color_map: str) -> np.ndarray:
    return np.rint(255 * np.clip(maps["bright"], 0, 1)).astype(np.uint8)


_COLORS: dict[str, Any] = {"channels": 3, "range": (0.0, 1.0), "unit": "shares of white", "space": "srgb"}
_COLORS |= {"exr_channels": ("R", "G", "B"), "resample": "bilinear"}
_FILE = Picture(suffix="_bright.png", content="colors", make=lambda maps, _: _picture(maps, ""), wanted=lambda _: True)
BRIGHTNESS = Modality(
    name="brightness",
    title="brightness",
    pipeline_classes=("BrightnessPipeline",),
    prediction_type="brightness",
    maps=(MapKind(name="bright", **_COLORS), MapKind(name="dark", **_COLORS)),
    num_targets=2,
    decoded_channels=3,
    uncertainties=("uncertainty",),
    valid_mask=lambda maps, accepted: maps["bright"].mean(axis=-1) < accepted[1],
    to_target=_to_target,
    from_decoded=lambda decoded: np.clip((decoded.reshape(6, *decoded.shape[2:]) + 1) / 2, 0, 1),
    merge=_merge,
    finish=lambda stack: np.clip(stack, 0, 1, out=stack),
    mirror=lambda maps: {name: values[:, ::-1] for name, values in maps.items()},
    picture=_picture,
    check_output=lambda output: None,
    pictures=(_FILE,),
    quantities=dict.fromkeys(("affine", "scale", "absolute"), "shares of white"),
    pixel_loss="absolute",
    headline_metrics=("mae",),
    index_facts={},
)
