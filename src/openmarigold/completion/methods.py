# SPDX-License-Identifier: Apache-2.0
"""The methods of completion, in steps of cost, and the baselines that they are compared with.

A method fits relative depth to points; the result gives depth at any pixel and as a map. So every method is judged in
the same way, by points that it did not see (`leave_out`), and the best one is chosen without ground truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float64

from openmarigold.completion import interpolation
from openmarigold.completion.evidence import Completed, FitSpace, LeftOutErrors, RelativeDepth, SparsePoints
from openmarigold.completion.field import ResidualField, fit_field
from openmarigold.completion.fits import Fit, fit_points
from openmarigold.completion.leave_out import FOLDS, left_out_errors, pixel_indices
from openmarigold.errors import InvalidValueError, MissingExtraError

Pixels = Float64[np.ndarray, "n 2"]


class Fitted(Protocol):
    """A method that is fitted to points."""

    @property
    def fit(self) -> Fit | None:
        """Its global fit; None for a method without one."""
        ...

    @property
    def outliers(self) -> Bool[np.ndarray, " n"]:
        """Points that contradict the others; all False if the method does not check this."""
        ...

    def at(self, pixels: Pixels) -> Float64[np.ndarray, " n"]:
        """Depth [m] at pixels (x, y) of the picture."""
        ...

    def map(self) -> Float64[np.ndarray, "h w"]:
        """Depth [m] of the picture."""
        ...

    # It may also have `facts` (a mapping for provenance) and `notes` (lines for the user).


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a call, for all methods."""

    shift: float | None = None
    """Shift of affine depth, if known or assumed: depth is proportional to `relative + shift`."""
    space: FitSpace | None = None
    """Space of the global fit; None: chosen by left-out errors."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way from relative depth and points to meters."""

    name: str
    title: str
    """In a few words, for tables."""
    run: Callable[[RelativeDepth, SparsePoints, Options], Fitted]
    min_points: int = 1
    is_baseline: bool = False
    """Shown for comparison only: never chosen by "auto"."""
    folds: int = FOLDS
    """Maximum number of parts in which points are left out to measure its error; each runs the method once more."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison of methods."""

    method: str
    title: str
    errors: LeftOutErrors | None
    """None if the method cannot run with these points, or too few can be left out."""
    is_baseline: bool
    note: str = ""
    """Why there are no errors."""


@dataclass(frozen=True, eq=False)
class _GlobalFit:
    relative: RelativeDepth
    fit: Fit

    @property
    def outliers(self) -> Bool[np.ndarray, " n"]:
        return self.fit.outliers

    def at(self, pixels: Pixels) -> Float64[np.ndarray, " n"]:
        return self.fit(self.relative.depth[pixel_indices(pixels, self.relative.depth.shape)])

    def map(self) -> Float64[np.ndarray, "h w"]:
        return self.fit(self.relative.depth)


@dataclass(frozen=True, eq=False)
class _Interpolated:
    points: SparsePoints
    size: tuple[int, int]
    interpolate: Callable[..., Float64[np.ndarray, " m"]]
    fit: None = None

    @property
    def outliers(self) -> Bool[np.ndarray, " n"]:
        return np.zeros(len(self.points), dtype=bool)

    def at(self, pixels: Pixels) -> Float64[np.ndarray, " n"]:
        return self.interpolate(self.points.pixels, self.points.depth, pixels)

    def map(self) -> Float64[np.ndarray, "h w"]:
        rows, columns = np.indices(self.size, dtype=np.float64)
        return self.at(np.stack([columns.ravel(), rows.ravel()], axis=-1)).reshape(self.size)


def global_fit(relative: RelativeDepth, points: SparsePoints, options: Options) -> _GlobalFit:
    """The robust fit of scale and shift (`fits`)."""
    at_points = relative.depth[pixel_indices(points.pixels, relative.depth.shape)]
    fit = fit_points(
        at_points, points.depth, invariance=relative.invariance, space=options.space or "auto", shift=options.shift
    )
    return _GlobalFit(relative, fit)


def _field(relative: RelativeDepth, points: SparsePoints, options: Options) -> ResidualField:
    return fit_field(relative, points, global_fit(relative, points, options).fit)


def _least_squares(relative: RelativeDepth, points: SparsePoints, options: Options) -> _GlobalFit:
    at_points = relative.depth[pixel_indices(points.pixels, relative.depth.shape)]
    scale, shift = interpolation.least_squares(at_points, points.depth)
    floor = 1e-3 * float(points.depth.min())
    none = np.zeros(len(points), dtype=bool)
    return _GlobalFit(
        relative, Fit(space="depth", scale=scale, shift=shift, floor=floor, ceiling=np.inf, outliers=none)
    )


def _interpolated(interpolate: Callable[..., np.ndarray]) -> Callable[..., _Interpolated]:
    return lambda relative, points, options: _Interpolated(points, relative.depth.shape[:2], interpolate)


_ALL = (
    Method(name="nearest", title="nearest point", run=_interpolated(interpolation.nearest), is_baseline=True),
    Method(name="linear", title="linear interpolation", run=_interpolated(interpolation.linear), is_baseline=True),
    Method(
        name="least_squares",
        title="least squares of scale and shift",
        run=_least_squares,
        min_points=2,
        is_baseline=True,
    ),
    Method(name="fit", title="robust fit of scale and shift", run=global_fit),
    Method(name="field", title="fit and field of its residuals", run=_field, min_points=5),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})
"""By name; after the baselines, the cheapest method comes first. Methods of other modules can be added:
`complete(..., methods={**METHODS, "guided": ...})`."""

_GAIN = 0.98  # a more expensive method must lower the left-out error to this share


def complete(
    relative: RelativeDepth,
    points: SparsePoints,
    *,
    method: str = "auto",
    options: Options | None = None,
    exact: bool = False,
    methods: Mapping[str, Method] = METHODS,
    rows: Sequence[Row] | None = None,
) -> Completed:
    """Metric depth of a photo from relative depth and sparse points.

    Multiplying the points' depths by a factor multiplies the map by it.

    Args:
        relative: the model's depth.
        points: the measured points.
        method: a name in `methods`, or "auto": the method (not a baseline) with the smallest left-out error.
        options: options for all methods.
        exact: pixels with points get the depth of their point, except for points that contradict the others.
        methods: the methods to choose from.
        rows: the result of `compare` for the same arguments, so that it is not computed again.

    Raises:
        InvalidValueError: an unknown method, a camera or points of another picture, too few points for the method, or
            points that `fit_points` refuses.
        MissingExtraError: a method that needs an extra, asked for by its name.
    """
    options = options or Options()
    points = _usable(relative, points)
    notes: list[str] = list(points.notes)
    errors: LeftOutErrors | None = None
    if method == "auto":
        rows = compare(relative, points, options=options, methods=methods) if rows is None else rows
        method, errors = _best([row for row in rows if not row.is_baseline])
    elif method not in methods:
        raise InvalidValueError(f"method={method!r} is not known; use auto or one of {', '.join(methods)}")
    chosen = methods[method]
    if len(points) < chosen.min_points:
        raise InvalidValueError(
            f"the method {method} needs {chosen.min_points} points, and there are {len(points)}; use the method fit"
        )
    fitted = chosen.run(relative, points, options)
    errors = errors or next((row.errors for row in rows or () if row.method == method), None)
    if errors is None:
        errors = left_out_errors(
            lambda some: chosen.run(relative, some, options), points, relative.depth.shape[:2], folds=chosen.folds
        )
    depth = fitted.map()
    if exact:
        kept = ~fitted.outliers
        depth = depth.copy()
        depth[pixel_indices(points.pixels[kept], depth.shape)] = points.depth[kept]
    if errors is not None and errors.num_outliers:
        share = 100 * errors.num_outliers / errors.num_points
        notes.append(f"{errors.num_outliers} of {errors.num_points} points ({share:.0f} %) contradict the others")
    return _completed(depth, method, fitted, errors, points, notes)


def _completed(
    depth: Float64[np.ndarray, "h w"],
    method: str,
    fitted: Any,  # a `Fitted`
    errors: LeftOutErrors | None,
    points: SparsePoints,
    notes: Sequence[str],
) -> Completed:
    """The result, with the facts and notes of the method."""
    fit = fitted.fit
    return Completed(
        depth=depth.astype(np.float32),
        method=method,
        scale=1.0 if fit is None else fit.scale,
        shift=0.0 if fit is None else fit.shift,
        space="depth" if fit is None else fit.space,
        errors=errors,
        facts={
            **getattr(fitted, "facts", {}),
            "num_points": len(points),
            "points": points.source,
            **({} if fit is None else {"fit": fit.reason}),
        },
        notes=(*notes, *getattr(fitted, "notes", ())),
    )


def compare(
    relative: RelativeDepth,
    points: SparsePoints,
    *,
    options: Options | None = None,
    methods: Mapping[str, Method] = METHODS,
) -> list[Row]:
    """The methods and baselines with their left-out errors, in the order of `methods`; for printing with a result."""
    options = options or Options()
    points = _usable(relative, points)
    rows = []
    for name, method in methods.items():
        errors, note = None, ""
        try:
            if len(points) < method.min_points:
                note = f"needs {method.min_points} points"
            else:
                errors = left_out_errors(
                    lambda some, method=method: method.run(relative, some, options),
                    points,
                    relative.depth.shape[:2],
                    min_points=method.min_points,
                    folds=method.folds,
                )
                note = "" if errors else "too few points to leave any out"
        except (InvalidValueError, MissingExtraError) as error:
            note = str(error)
        rows.append(Row(method=name, title=method.title, errors=errors, is_baseline=method.is_baseline, note=note))
    return rows


def _best(rows: Sequence[Row]) -> tuple[str, LeftOutErrors | None]:
    """The row with the smallest left-out error; a later one must be better by `_GAIN`. Without errors, the first."""
    best = rows[0]
    for row in rows[1:]:
        if row.errors is not None and (best.errors is None or row.errors.mean_m < _GAIN * best.errors.mean_m):
            best = row
    return best.method, best.errors


def _usable(relative: RelativeDepth, points: SparsePoints) -> SparsePoints:
    """The points at pixels whose relative depth is known.

    Raises:
        InvalidValueError: a camera of another size; no points; points outside of the picture.
    """
    relative.camera.check_map(relative.depth)
    points.check_inside(relative.depth.shape)
    at_points = relative.depth[pixel_indices(points.pixels, relative.depth.shape)]
    known = np.isfinite(at_points)
    if relative.invariance != "affine":  # the nearest value that a model can give; it has no logarithm
        known &= at_points > 0
    if known.all():
        return points
    if not known.any():
        raise InvalidValueError("the model gives no depth at any of the points; give points elsewhere")
    above = "" if relative.invariance == "affine" else " above 0"
    note = f"{int((~known).sum())} of {len(known)} points lie where the model gives no depth{above} and were left out"
    return replace(points, pixels=points.pixels[known], depth=points.depth[known], notes=(*points.notes, note))
