# SPDX-License-Identifier: Apache-2.0
"""A modality for tests, all of it: a photo's own colors and their inverse. Two maps of three channels, two targets."""

from __future__ import annotations

from typing import Any

import numpy as np

from openmarigold.modalities.modality import MapKind, Maps, Merged, Modality, Picture, Target
from openmarigold.modalities.protocol import Protocol, Score

NAMES = ("bright", "dark")


def maps_of(rgb: np.ndarray) -> dict[str, np.ndarray]:
    """The true maps of a photo."""
    bright = rgb.astype(np.float32) / 255
    return {"bright": bright, "dark": 1 - bright}


def _to_target(maps: Maps, valid_mask: np.ndarray, invalid: str) -> Target:
    return Target(values=np.stack([maps[name].transpose(2, 0, 1) * 2 - 1 for name in NAMES]).astype(np.float32))


def _errors(sample: Any, maps: Maps, usable: np.ndarray) -> dict[str, float]:
    return {"mae": float(np.mean([np.abs(maps[name] - sample.maps[name])[usable].mean() for name in NAMES]))}


def _picture(maps: Maps, _: object) -> np.ndarray:
    return np.rint(255 * np.clip(maps["bright"], 0, 1)).astype(np.uint8)


def _map(name: str) -> MapKind:
    names = tuple(f"{name}.{color}" for color in "RGB")
    colors: Any = {"channels": 3, "range": (0.0, 1.0), "unit": "white", "space": "srgb", "resample": "bilinear"}
    return MapKind(name=name, exr_channels=names, **colors)


_MAE = Protocol(name="mae", summary="as it is", accepts=frozenset({"srgb"}), scores=(Score(name="mae"),), score=_errors)
_FILE = Picture(suffix="_bright.png", content="colors", make=_picture, wanted=lambda to: "png" in to.format)
BRIGHTNESS = Modality(
    name="brightness",
    title="brightness",
    pipeline_classes=("BrightnessPipeline",),
    prediction_type="brightness",
    maps=(_map("bright"), _map("dark")),
    num_targets=2,
    decoded_channels=3,
    uncertainties=("uncertainty",),
    valid_mask=lambda maps, accepted: maps["bright"].mean(axis=-1) < accepted[1],
    to_target=_to_target,
    from_decoded=lambda decoded: np.clip((decoded.reshape(6, *decoded.shape[2:]) + 1) / 2, 0, 1),
    merge=lambda members, *_: Merged(stack=np.median(members, axis=0), uncertainty=members.std(axis=0).mean(0)[None]),
    reductions=("median",),
    finish=lambda stack: np.clip(stack, 0, 1, out=stack),
    mirror=lambda maps: {name: values[:, ::-1] for name, values in maps.items()},
    picture=_picture,
    check_output=lambda output: None,
    pictures=(_FILE,),
    quantities=dict.fromkeys(("affine", "scale", "absolute"), "shares of white"),
    pixel_loss="absolute",
    index_facts={},
    protocols={"mae": _MAE},
    default_protocol=lambda space: "mae",
    headline_metrics=("mae",),
    spaces=("srgb",),
    prediction_space=lambda invariance: "srgb",
)
