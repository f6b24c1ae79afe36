# SPDX-License-Identifier: Apache-2.0
"""Turns a prediction of depth into one in meters, from known measurements of the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32

from openmarigold.camera import Camera
from openmarigold.completion.evidence import Completed, RelativeDepth, SparsePoints, joined
from openmarigold.completion.fits import line_depth, slope_of_line
from openmarigold.completion.guided import guided_method
from openmarigold.completion.guided_settings import GUIDED, GuidedSettings
from openmarigold.completion.known import MethodName
from openmarigold.completion.methods import METHODS, Options, Row, compare, complete
from openmarigold.errors import InvalidValueError
from openmarigold.modalities import find_modality
from openmarigold.modalities.metric import METRIC
from openmarigold.modalities.normals import ASSUMED_SHIFT
from openmarigold.predictor import Predictor
from openmarigold.reconstruction.ground import find_ground
from openmarigold.reconstruction.measure import depth_at, length_between
from openmarigold.results.prediction import Prediction
from openmarigold.seeding import generator_for

KnownDepth: TypeAlias = tuple[float | int, float | int, float | int]
"""x, y [px], planar depth [m]."""
KnownLength: TypeAlias = tuple[float | int, float | int, float | int, float | int, float | int]
"""x, y of both ends [px], length [m]."""

MAX_ALIKE = 1.5
"""Lengths that give scales further apart than this factor contradict each other."""
_HELPFUL = 0.9  # error as a share of that of the points' median; above it, the photo did not help
_MISSED = 0.05  # relative error of a known depth, above which a note reports it
_ENOUGH_TO_DOUBT = 8  # points
_MAX_FITTED = 4000  # points of another tool's map, and points that methods are compared by
_LARGEST_FACTOR = 4.0
_NEAREST = 1e-6  # relative depth
_STALE = ("quantity", "notes")  # facts of the relative prediction that are replaced
_OF_RELATIVE = {name: f"relative_{name}" for name in ("invariance", "shift", "shift_source")}
"""Names of facts of the relative prediction in a result in meters, where `shift` is the shift of the fit."""


def to_meters(
    prediction: Prediction,
    *,
    known_depth: Sequence[KnownDepth] = (),
    known_length: Sequence[KnownLength] = (),
    camera_height: float | None = None,
    points: SparsePoints | None = None,
    metric_map: Float[np.ndarray, "h w"] | None = None,
    method: MethodName = "auto",
    predictor: Predictor | None = None,
    guided: GuidedSettings | None = None,
) -> Prediction:
    """The prediction in meters: `depth` is planar [m]; `settings` state scale, shift, camera and error.

    Args:
        prediction: of depth, from a `Predictor`.
        known_depth: depth at pixels. One gives the scale; for affine depth, two give scale and shift; more are fitted
            robustly.
        known_length: lengths between two pixels each.
        camera_height: height of the camera above the ground [m], which the photo shows.
        points: measured points; `completion.points.read_points` reads files of them.
        metric_map: metric depth of another tool [m], NaN or 0 where there is none.
        method: for depths, points and maps: see `completion.methods`; "guided" needs `predictor`, on engine torch, and
            a prediction that holds its photo (`rgb`).
        predictor: the predictor that made the prediction.
        guided: settings of guided denoising; None is the defaults.

    Raises:
        InvalidValueError: a prediction without depth, no or several kinds of measurements, or a value not accepted.
        DataError: points that do not fix a scale, or no ground.
        MissingExtraError: a method without its extra.
    """
    if find_modality(prediction.modality, prediction.space).relief is None:
        raise InvalidValueError(f"a prediction of {', '.join(prediction.maps)} has no depth; predict depth")
    relative = relative_depth(prediction)
    at_pixels = bool(known_depth) or points is not None or metric_map is not None
    if bool(known_length) + (camera_height is not None) + at_pixels != 1:
        raise InvalidValueError("give one kind of measurement: depths and points, lengths, or the camera's height")
    if not at_pixels and (panorama := prediction.settings.get("panorama")):
        raise InvalidValueError(
            f"the photo is a panorama ({panorama}), in which straight lines are bent: lengths and heights give no "
            "scale; give known depths, or cut it into views (docs/points.md, Panoramas)"
        )
    notes, rows = list[str](), list[dict[str, Any]]()
    if not at_pixels:  # the scale alone
        shift = _shift_of(prediction, notes) if relative.invariance == "affine" else 0.0
        shape = replace(relative, depth=relative.depth + np.float32(shift), invariance="scale") if shift else relative
        found = _from_lengths(shape, known_length) if known_length else _from_height(shape, camera_height)
        found = replace(found, shift=found.scale * shift)
    else:
        sparse = _joined(relative, known_depth, points, metric_map)
        options = Options()
        if relative.invariance == "affine" and len(np.unique(sparse.pixels, axis=0)) == 1:  # one place gives no shift
            options = Options(shift=_shift_of(prediction, notes))
        own = {GUIDED: guided_method(_needed(predictor, relative), guided)} if method == GUIDED else {}
        compared = compare(relative, thinned(sparse), options=options)
        found = complete(relative, sparse, method=method, options=options, methods={**METHODS, **own}, rows=compared)
        rows = [_compared(row) for row in compared]
        notes += _missed(found, known_depth) + _doubts(found, sparse)
    return _as_prediction(prediction, relative, found, [*notes, *found.notes], rows)


def _needed(predictor: Predictor | None, relative: RelativeDepth) -> Predictor:
    """The predictor, if guided denoising can run.

    Raises:
        InvalidValueError: there is none, or no photo.
    """
    if predictor is None or relative.rgb is None:
        missing = "predictor" if predictor is None else "photo (Prediction.rgb)"
        raise InvalidValueError(f"method='guided' runs the model again, and there is no {missing}; give it")
    return predictor


def relative_depth(prediction: Prediction) -> RelativeDepth:
    """The depth of a prediction, and its camera."""
    camera = prediction.camera or Camera.assumed((prediction.depth.shape[0], prediction.depth.shape[1]))
    invariance: Any = prediction.settings.get("invariance", "affine")
    return RelativeDepth(depth=prediction.depth, invariance=invariance, camera=camera, rgb=prediction.rgb)


def _shift_of(prediction: Prediction, notes: list[str]) -> float:
    """Shift of affine depth, estimated or assumed."""
    stated = prediction.settings.get("shift")
    if stated is not None and prediction.settings.get("shift_source") != "assumed":
        return float(stated)
    shift = ASSUMED_SHIFT if stated is None else float(stated)
    notes.append(
        "the model's depth is known up to scale and shift, and the measurement gives only the scale; a shift of "
        f"{shift:g} is assumed: two known depths fix it" + (" or --estimate-camera" if stated is None else "")
    )
    return shift


def _doubts(found: Completed, points: SparsePoints) -> list[str]:
    """A note if the photo's content does not help to predict the points."""
    if found.errors is None:
        return []
    alone = float(np.abs(points.depth - np.median(points.depth)).mean())  # of their median, without the photo
    if found.errors.mean_m < _HELPFUL * alone or len(points) < _ENOUGH_TO_DOUBT:
        return []
    return [
        f"the points hardly agree with the photo: left-out errors of {found.errors.mean_m:.3g} m, and {alone:.3g} m "
        "for their median alone; check that they are of this photo, in the order x, y, depth, and planar"
    ]


def _missed(found: Completed, known_depth: Sequence[KnownDepth]) -> list[str]:
    """A note on known depths that the map misses: a scale alone cannot meet two, and they may contradict each other."""
    shown = [depth_at(found.depth, (x, y)) for x, y, _ in known_depth]
    missed = [
        f"{depth:g} m at {x:g},{y:g} ({there:.3g} m in the result)"
        for (x, y, depth), there in zip(known_depth, shown, strict=True)
        if abs(there - depth) > _MISSED * depth
    ]
    if not missed:
        return []
    return [f"not all known depths are met: {', '.join(missed)}; check them, or give more"]


def _compared(row: Row) -> dict[str, Any]:
    """A line of the comparison, for provenance."""
    errors = None if row.errors is None else asdict(row.errors)
    return {"method": row.method, "left_out_errors": errors, **({"note": row.note} if row.note else {})}


def _joined(
    relative: RelativeDepth,
    known_depth: Sequence[KnownDepth],
    points: SparsePoints | None,
    metric_map: Float[np.ndarray, "h w"] | None,
) -> SparsePoints:
    """All known depths at pixels."""
    parts: list[SparsePoints] = [] if points is None else [points]
    if known_depth:
        for x, y, depth in known_depth:
            if not depth > 0 or not np.isfinite(depth):
                raise InvalidValueError(f"known_depth {depth:g} at {x:g},{y:g} is not accepted; give meters above 0")
            depth_at(relative.depth + 1, (x, y))  # raises an error outside of the picture
        table = np.array(known_depth, dtype=np.float64)
        parts.append(SparsePoints(pixels=table[:, :2], depth=table[:, 2], source="known depth"))
    if metric_map is not None:
        parts.append(_points_of_map(metric_map, relative.depth.shape))
    return joined(parts)


def _points_of_map(metric_map: Float[np.ndarray, "h w"], size: tuple[int, ...]) -> SparsePoints:
    """Known pixels of a map, thinned; a map of another size and the same aspect ratio is scaled to the photo."""
    height, width = metric_map.shape
    scale = size[0] / height, size[1] / width
    if abs(scale[0] / scale[1] - 1) > 0.02:
        raise InvalidValueError(
            f"the metric map is {width}x{height} and the photo {size[1]}x{size[0]}; both must show the same part of "
            "the scene"
        )
    rows, columns = np.nonzero(np.isfinite(metric_map) & (metric_map > 0))
    if not len(rows):
        raise InvalidValueError("the metric map has no pixel above 0; give meters")
    pixels = np.stack([(columns + 0.5) * scale[1] - 0.5, (rows + 0.5) * scale[0] - 0.5], axis=-1)
    depth = metric_map[rows, columns].astype(np.float64)
    return thinned(SparsePoints(pixels=pixels, depth=depth, source="metric map"))


def thinned(points: SparsePoints) -> SparsePoints:
    """At most `_MAX_FITTED` of the points, drawn from all of them alike: neighbors in a map add little.

    Steps of one length through a map's pixels would give points on a few lines.
    """
    if len(points) <= _MAX_FITTED:
        return points
    drawn = generator_for(0, "completion-thinned", len(points)).permutation(len(points))[:_MAX_FITTED]
    chosen = np.sort(drawn)
    return replace(points, pixels=points.pixels[chosen], depth=points.depth[chosen])


def _from_lengths(relative: RelativeDepth, known: Sequence[KnownLength]) -> Completed:
    """The median of the scales that the lengths give."""
    scales = []
    for x1, y1, x2, y2, meters in known:
        if not meters > 0 or not np.isfinite(meters):
            raise InvalidValueError(f"known_length {meters:g} is not accepted; give meters above 0")
        shown = length_between(relative.depth, relative.camera, (x1, y1), (x2, y2)).value
        if shown <= 0 or np.hypot(x2 - x1, y2 - y1) < 1:
            raise InvalidValueError(f"known_length: {x1:g},{y1:g} and {x2:g},{y2:g} show the same pixel; give two")
        scales.append(meters / shown)
    scale = float(np.median(scales))
    notes = []
    if max(scales) > MAX_ALIKE * min(scales):
        notes.append(
            f"the known lengths contradict each other: they give scales from {min(scales):.3g} to {max(scales):.3g}; "
            "the middle one is used"
        )
    spread = float(max(abs(one / scale - 1) for one in scales)) if len(scales) > 1 else None
    facts = {"scales": scales, **({} if spread is None else {"largest_deviation": spread})}
    return _scaled(relative, scale, "length", facts, notes)


def _from_height(relative: RelativeDepth, height: float | None) -> Completed:
    """The scale that puts the ground plane at the camera's height."""
    if height is None or not height > 0 or not np.isfinite(height):
        raise InvalidValueError(f"camera_height={height!r} is not accepted; give meters above 0")
    ground = find_ground(relative.depth, relative.camera)
    facts = {"ground_normal": [float(value) for value in ground.normal], "ground_inliers": ground.inlier_share}
    notes = [] if ground.is_reliable else [f"the scale may be far off: {ground.reason}"]
    return _scaled(relative, height / ground.distance, "height", facts, notes)


def _scaled(
    relative: RelativeDepth, scale: float, method: Literal["length", "height"], facts: dict[str, Any], notes: list[str]
) -> Completed:
    depth = (relative.depth.astype(np.float64) * scale).astype(np.float32)
    return Completed(depth=depth, method=method, scale=scale, shift=0.0, space="depth", facts=facts, notes=tuple(notes))


def _as_prediction(
    prediction: Prediction, relative: RelativeDepth, found: Completed, notes: list[str], rows: list[dict[str, Any]]
) -> Prediction:
    errors = None if found.errors is None else asdict(found.errors)
    return Prediction(
        maps={"depth": found.depth},
        uncertainties=_uncertainties(prediction, relative, found),
        latent=prediction.latent,
        settings={
            **{
                _OF_RELATIVE.get(name, name): value for name, value in prediction.settings.items() if name not in _STALE
            },
            "quantity": METRIC.quantities["absolute"],
            "invariance": "absolute",
            "unit": "m",
            "convention": "planar",
            "camera": relative.camera.to_dict(),
            "method": found.method,
            "fit_space": found.space,
            "scale": found.scale,
            "shift": found.shift,
            "left_out_errors": errors,
            **found.facts,
            **({"compared": rows} if rows else {}),
            **({"notes": notes} if notes else {}),
        },
        modality=METRIC.name,
        camera=relative.camera,
        rgb=prediction.rgb,
    )


def _uncertainties(
    prediction: Prediction, relative: RelativeDepth, found: Completed
) -> dict[str, Float32[np.ndarray, "h w"]]:
    """The spread of the members in meters, to first order."""
    spread = prediction.uncertainty
    if spread is None:
        return {}
    depth = np.maximum(relative.depth.astype(np.float64), _NEAREST)
    line = line_depth(found.space, found.scale, found.shift, depth)
    line = np.minimum(line, _LARGEST_FACTOR * np.nanmax(found.depth))  # it may be infinite where the fit is not
    slope = np.abs(slope_of_line(found.space, found.scale, depth, line))
    if found.method == "field":  # which multiplies the line, by factors near 1
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = found.depth / line
        slope *= np.where((factor > 1 / _LARGEST_FACTOR) & (factor < _LARGEST_FACTOR), factor, 1.0)
    bound = np.inf if found.space == "depth" else found.depth  # the slope of a logarithm has none
    return {METRIC.uncertainties[0]: np.minimum(slope * spread, bound).astype(np.float32)}
