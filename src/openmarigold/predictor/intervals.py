# SPDX-License-Identifier: Apache-2.0
"""Intervals around a prediction: bounds at the photo's size, from members and maps at the networks' size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from openmarigold.checkpoints.calibration import Interval, choose_interval, settings_of, weighted_sum
from openmarigold.config import CallConfig
from openmarigold.errors import InvalidValueError
from openmarigold.images.photo import resize
from openmarigold.modalities.modality import Band, Maps
from openmarigold.predictor.sampling import Consensus, Parts, PreparedPhoto
from openmarigold.predictor.tiles import are_wanted

if TYPE_CHECKING:
    from openmarigold.predictor import Predictor


class Intervals:
    """The intervals of a predictor's calls, looked up once for each choice of settings."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Interval | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # a copy looks its intervals up again
        return Intervals, ()

    def chosen(self, config: CallConfig, parts: Parts, *, is_steered: bool = False) -> Interval | None:
        """The interval that a resolved call asks for; None if it asks for none.

        Raises:
            InvalidValueError, CheckpointError: see `choose_interval`; or a guide or latents are given.
        """
        if config.interval is None:
            return None
        if is_steered:
            raise InvalidValueError(
                f"interval={config.interval:g} was given with guide or latents, but intervals are not calibrated for "
                "these; leave one of them out"
            )
        has_tolerance = config.ensemble_tolerance is not None
        key = (config.interval, config.tiles, has_tolerance, settings_of(config, parts.checkpoint))  # not the seed
        if key not in self._known:
            self._known[key] = choose_interval(parts.checkpoint, config, has_tiny_vae=parts.tiny_vae is not None)
        return self._known[key]


def bounds_of(
    interval: Interval | None, found: Consensus, maps: Maps, photo: PreparedPhoto, config: CallConfig
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The bounds of a photo's maps, float32 at its size, and facts for provenance; both empty without an interval.

    Raises:
        InvalidValueError: the photo is so large that it is divided into tiles.
    """
    if interval is None:
        return {}, {}
    if are_wanted(photo, config):
        raise InvalidValueError(
            f"interval={interval.level:g}: the photo is so large that it is predicted in tiles, but intervals are "
            "not calibrated for these; give tiles False (--no-tiles), or leave interval out"
        )
    half = interval.half_width(found.stack, found.uncertainty)
    if photo.processing_size != photo.size:
        half = resize(half[None], photo.size, antialias=False)[0]
    bounds = interval.band.bounds(maps, half)
    middle = {"median_half_width": round(float(np.median(half)), 6), "unit": interval.band.unit}
    return dict(bounds), {"interval": {**interval.facts["interval"], **middle}}


def signals_of(
    predictor: Predictor, rgb: UInt8[np.ndarray, "H W 3"], config: CallConfig, band: Band, names: Sequence[str]
) -> tuple[Maps, dict[str, Float32[np.ndarray, "H W"]]]:
    """A photo's maps, and the signals of a band at the photo's size, each as the half width for weight 1."""
    resolved = predictor.resolve(replace(config, interval=None, tiles=False))
    photo = predictor._prepare(rgb, resolved, None, None)
    found = next(predictor._consensus([photo], resolved))
    maps = predictor._finish(photo, found, resolved, is_guided=False).maps
    signals = np.stack([weighted_sum(band, {name: 1.0}, found.stack, found.uncertainty) for name in names])
    if photo.processing_size != photo.size:
        signals = resize(signals, photo.size, antialias=False)
    return maps, dict(zip(names, signals, strict=True))
