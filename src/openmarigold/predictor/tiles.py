# SPDX-License-Identifier: Apache-2.0
"""More detail for large photos: parts of the photo ("tiles") are predicted too, and their detail joins the whole map.

The coarse structure comes from the whole photo, the fine structure from the tiles: each tile's map is fitted to the map
below it, and its coarse part is replaced by that of the map below. If a photo is much larger than the networks' input,
this is done level by level, with ever smaller tiles. Only maps at the networks' size are kept; the map of the photo is
composed in bands of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64

from openmarigold.camera import Camera
from openmarigold.config import LATENT_FACTOR, CallConfig
from openmarigold.errors import InvalidValueError
from openmarigold.gauges import GaugeFit, fit_gauge
from openmarigold.images.exif import NOTHING, Photo
from openmarigold.images.photo import resize
from openmarigold.images.tiles import TilePlan, axis_weights, interpolate, lowpass, plan_tiles, smallest_tile
from openmarigold.modalities import Modality
from openmarigold.modalities.modality import Gauge
from openmarigold.predictor.sampling import Consensus, PreparedPhoto
from openmarigold.printing import quoted_logger

AUTOMATIC_PIXELS = 2**25
"""Photos with more pixels are divided unless `tiles` is False."""

_ASPECT = 4 / 3  # of tiles, at most
_LEVEL_RATIO = 3.0  # maximum ratio of tile sizes between two levels
_SMALLEST_GAIN = 1.25  # minimum gain in resolution over the whole photo; below it there are no tiles
_LOWPASS = 16  # a tile's shorter side divided by the filter's standard deviation
_LOWEST_CORRELATION = 0.6
_SAMPLES_PER_SIGMA = 4
_BAND_ROWS = 64

_log = quoted_logger(__name__)

Box: TypeAlias = tuple[slice, slice]
"""Rows and columns of a photo."""
Predict: TypeAlias = Callable[[Sequence[Box]], Iterable[tuple[int, Consensus]]]
"""The consensus of each part of a photo, by its number, in any order."""


def check_tiles(config: CallConfig, *, is_steered: bool) -> None:
    """Raises InvalidValueError if tiles are requested together with a guide or latents."""
    if config.tiles and is_steered:
        raise InvalidValueError(
            "tiles=True was given with guide or latents, which are for the photo as a whole; leave one of them out"
        )


def crops_of(photo: PreparedPhoto, boxes: Sequence[Box]) -> tuple[Iterator[Photo], list[Camera]]:
    """Parts of a photo (rows, columns) as photos, and their cameras."""
    cameras = [
        photo.camera.cropped(
            top=rows.start, left=columns.start, size=(rows.stop - rows.start, columns.stop - columns.start)
        )
        for rows, columns in boxes
    ]
    return (Photo(rgb=photo.photo.rgb[box], metadata=NOTHING) for box in boxes), cameras


def at_photos_size(
    found: Consensus,
    photo: PreparedPhoto,
    predict: Predict | None,
    *,
    modality: Modality,
    invariance: str,
    side: str,
    config: CallConfig,
) -> tuple[Float[np.ndarray, "c H W"], Float[np.ndarray, "u H W"] | None, dict[str, Any]]:
    """Maps and uncertainties at the photo's size before `Modality.finish`, and facts about tiles for provenance.

    Args:
        found: consensus of the whole photo.
        photo: the photo.
        predict: returns the consensus of parts of the photo; None: no tiles.
        modality: the predicted modality.
        invariance: of the maps, such as "affine".
        side: the side that the processing resolution sets, "longer" or "shorter".
        config: the resolved settings.
    """
    resolution = config.processing_resolution
    assert resolution is not None
    facts: dict[str, Any] = {}
    if predict is not None and are_wanted(photo, config):
        detailed = _Detailed(found, photo, modality, modality.gauge(invariance))
        for plan in plan_levels(photo, resolution, side):
            detailed.add(plan, predict)
        facts = {"tiles": detailed.facts}
        if detailed.has_detail:
            return *detailed.compose(), facts
    stack, uncertainty = found.stack, found.uncertainty
    if photo.processing_size != photo.size:
        stack = resize(stack, photo.size, antialias=False)
        uncertainty = None if uncertainty is None else resize(uncertainty, photo.size, antialias=False)
    return stack, uncertainty, facts


def are_wanted(photo: PreparedPhoto, config: CallConfig) -> bool:
    """Whether a photo is also predicted in tiles."""
    if config.tiles is not None:
        return config.tiles
    is_large = photo.size[0] * photo.size[1] > AUTOMATIC_PIXELS
    return is_large and config.processing_resolution != 0 and not photo.noise.is_given


def plan_levels(photo: PreparedPhoto, resolution: int, side: str) -> list[TilePlan]:
    """The tiles of each level, the largest ones first; none if they would not show more than the whole photo.

    The last level's tiles are the smallest with context (`smallest_tile`), but are not enlarged for the networks.
    """
    shrink = min(own / seen for own, seen in zip(photo.size, photo.processing_size, strict=True))
    smallest = max(resolution, smallest_tile(photo.photo.rgb))
    gain = shrink * resolution / smallest
    if gain < _SMALLEST_GAIN:
        return []
    count = max(1, math.ceil(math.log(gain) / math.log(_LEVEL_RATIO) - 1e-9))
    plans = []
    for level in reversed(range(count)):
        reach = smallest * gain ** (level / count)
        plan = plan_tiles(
            photo.size, _tile_size(photo.size, reach, side), step=round(LATENT_FACTOR * reach / resolution)
        )
        if plan.number > 1:
            plans.append(plan)
    return plans


def seam_lines(tiles: dict[str, Any], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Where tiles begin and end within a photo, as pairs (axis, place) for `metrics.seam_energy`.

    Args:
        tiles: the entry `tiles` of a prediction's settings.
        size: height and width of the photo.
    """
    return sorted(
        {
            (axis, place)
            for level in tiles["levels"]
            for axis, name in ((0, "tops"), (1, "lefts"))
            for start in level[name]
            for place in (start, start + level["size"][axis])
            if 0 < place < size[axis]
        }
    )


def _tile_size(photo: tuple[int, int], reach: float, side: str) -> tuple[int, int]:
    """Height and width of tiles with one side given; they have the photo's aspect ratio, but at most 4:3."""
    aspect = min(max(photo) / min(photo), _ASPECT)
    short, long = (reach, reach * aspect) if side == "shorter" else (reach / aspect, reach)
    return (round(short), round(long)) if photo[0] <= photo[1] else (round(long), round(short))


@dataclass(frozen=True, kw_only=True)
class _Field:
    """Maps of the photo or a tile, at the size that the networks saw."""

    box: Box
    """Where it lies in the photo."""
    stack: Float32[np.ndarray, "c h w"]
    """In the space of the gauge."""
    uncertainty: Float32[np.ndarray, "u h w"] | None

    def grid(self) -> tuple[Float64[np.ndarray, " h"], Float64[np.ndarray, " w"]]:
        """The rows and columns of the stack's pixels in the photo."""
        rows, columns = (
            part.start + (np.arange(seen) + 0.5) * ((part.stop - part.start) / seen) - 0.5
            for part, seen in zip(self.box, self.stack.shape[1:], strict=True)
        )
        return rows, columns

    def at(
        self, rows: Float64[np.ndarray, " m"], columns: Float64[np.ndarray, " n"], *, uncertain: bool
    ) -> Float32[np.ndarray, "c m n"]:
        """The stack, or the uncertainty, at rows and columns of the photo."""
        own = self.uncertainty if uncertain else self.stack
        assert own is not None
        places = (
            (along - part.start + 0.5) * (seen / (part.stop - part.start)) - 0.5
            for along, part, seen in zip((rows, columns), self.box, self.stack.shape[1:], strict=True)
        )
        return interpolate(own, *places)


class _Detailed:
    """The maps of a photo, to which levels of tiles are added."""

    def __init__(self, found: Consensus, photo: PreparedPhoto, modality: Modality, gauge: Gauge | None) -> None:
        self._modality, self._gauge = modality, gauge
        self._size = photo.size
        self._whole = self._field(found, (slice(0, photo.size[0]), slice(0, photo.size[1])))
        self._levels: list[tuple[TilePlan, list[_Field | None]]] = []

    @property
    def has_detail(self) -> bool:
        """Whether a tile was accepted."""
        return any(tile is not None for _, tiles in self._levels for tile in tiles)

    @property
    def facts(self) -> dict[str, Any]:
        """For provenance: how many tiles were predicted, and for each level their size (height, width) [px], their
        first rows and columns, and how many were rejected.
        """
        levels = [
            {
                "size": list(plan.tile),
                "tops": list(plan.tops),
                "lefts": list(plan.lefts),
                "rejected": sum(tile is None for tile in tiles),
            }
            for plan, tiles in self._levels
        ]
        return {"number": sum(plan.number for plan, _ in self._levels), "levels": levels}

    def add(self, plan: TilePlan, predict: Predict) -> None:
        """Adds a level, fitted to those below. The result does not depend on the order of tiles from `predict`."""
        boxes = list(plan.boxes())
        tiles: list[_Field | None] = [None] * plan.number
        for number, found in predict(boxes):
            tiles[number] = self._fitted(found, boxes[number])
        self._levels.append((plan, tiles))
        rejected = sum(tile is None for tile in tiles)
        _log.debug("%s tiles of %sx%s px, %s rejected", plan.number, *plan.tile[::-1], rejected)

    def compose(self) -> tuple[Float32[np.ndarray, "c H W"], Float32[np.ndarray, "u H W"] | None]:
        """Maps and uncertainties at the photo's size, computed in bands of rows."""
        height, width = self._size
        columns = np.arange(width, dtype=np.float64)
        stack = np.empty((len(self._whole.stack), height, width), dtype=np.float32)
        own = self._whole.uncertainty
        uncertainty = None if own is None else np.empty((len(own), height, width), dtype=np.float32)
        for top in range(0, height, _BAND_ROWS):
            band = slice(top, min(top + _BAND_ROWS, height))
            rows = np.arange(band.start, band.stop, dtype=np.float64)
            values = self._at(rows, columns, len(self._levels))
            stack[:, band] = values if self._gauge is None else self._gauge.from_space(values)
            if uncertainty is not None:
                uncertainty[:, band] = self._at(rows, columns, len(self._levels), uncertain=True)
        self._into_range(stack, uncertainty)
        return stack, uncertainty

    def _into_range(self, stack: np.ndarray, uncertainty: np.ndarray | None) -> None:
        """Scales maps that are known up to a factor back into the range: else the farthest values would be clipped."""
        end = max(kind.range[1] for kind in self._modality.maps)
        if self._gauge is None or self._gauge.space != "log" or (factor := float(stack.max()) / end) <= 1:
            return
        stack /= np.float32(factor)
        if uncertainty is not None:
            uncertainty /= np.float32(factor)

    def _field(self, found: Consensus, box: Box) -> _Field:
        stack = found.stack if self._gauge is None else self._gauge.to_space(found.stack)
        uncertainty = None if found.uncertainty is None else found.uncertainty.astype(np.float32, copy=False)
        return _Field(box=box, stack=stack.astype(np.float32, copy=False), uncertainty=uncertainty)

    def _fitted(self, found: Consensus, box: Box) -> _Field | None:
        """A tile's maps with the coarse part of the maps below; None if the two do not fit."""
        own, gauge = self._field(found, box), self._gauge
        sigma = min(own.stack.shape[1:]) / _LOWPASS
        coarse = lowpass(own.stack, sigma)
        coarse_below = lowpass(self._at(*own.grid(), len(self._levels)), sigma)
        step = max(1, int(sigma / _SAMPLES_PER_SIGMA))
        fit = _fit(coarse[:, ::step, ::step], coarse_below[:, ::step, ::step], gauge)
        if fit is None or fit.scale <= 0 or fit.correlation < _LOWEST_CORRELATION:
            return None
        scale = np.float32(fit.scale)
        shift = coarse_below - scale * coarse
        stack, uncertainty = scale * own.stack + shift, own.uncertainty
        if uncertainty is not None and gauge is not None and uncertainty.shape == stack.shape:
            beyond = gauge.from_space(scale * gauge.to_space(found.stack + uncertainty) + shift)
            uncertainty = np.abs(beyond - gauge.from_space(stack))
        return _Field(box=box, stack=stack, uncertainty=uncertainty)

    def _at(
        self,
        rows: Float64[np.ndarray, " m"],
        columns: Float64[np.ndarray, " n"],
        level: int,
        *,
        uncertain: bool = False,
    ) -> Float32[np.ndarray, "c m n"]:
        """The maps of the first levels in the space of the gauge, or the uncertainties, at rows and columns."""
        if level == 0:
            return self._whole.at(rows, columns, uncertain=uncertain)
        plan, tiles = self._levels[level - 1]
        down = _weights(plan.tops, plan.tile[0], rows)
        right = _weights(plan.lefts, plan.tile[1], columns)
        total: Float32[np.ndarray, "c m n"] | None = None
        for (row, below, height), (column, beside, width) in product(down, right):
            tile = tiles[row * len(plan.lefts) + column]
            if tile is None:
                values = self._at(rows[below], columns[beside], level - 1, uncertain=uncertain)
            else:
                values = tile.at(rows[below], columns[beside], uncertain=uncertain)
            if total is None:
                total = np.zeros((len(values), len(rows), len(columns)), dtype=np.float32)
            values *= height[:, None] * width
            total[:, below, beside] += values
        assert total is not None
        return total


def _fit(
    coarse: Float32[np.ndarray, "c h w"], coarse_below: Float32[np.ndarray, "c h w"], gauge: Gauge | None
) -> GaugeFit | None:
    """Fit of a tile to the maps below. Without a gauge the scale is 1, and each channel is centered at its mean."""
    if gauge is not None:
        return fit_gauge(coarse.ravel(), coarse_below.ravel(), with_scale=gauge.with_scale)
    centered = (values - values.mean(axis=(1, 2), keepdims=True) for values in (coarse, coarse_below))
    return fit_gauge(*(values.ravel() for values in centered), with_scale=False)


def _weights(
    starts: Sequence[int], tile: int, at: Float64[np.ndarray, " n"]
) -> list[tuple[int, slice, Float32[np.ndarray, " _"]]]:
    """The tiles of an axis that have weight at some coordinates: their number, the coordinates, and the weights."""
    found = []
    for number, weights in enumerate(axis_weights(starts, tile, at)):
        if (places := np.flatnonzero(weights)).size:
            part = slice(int(places[0]), int(places[-1]) + 1)
            found.append((number, part, weights[part]))
    return found
