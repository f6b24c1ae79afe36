# SPDX-License-Identifier: Apache-2.0
"""The global fit: relative depth to meters with one scale and one shift, robust against wrong points.

A fit is a line in one of three spaces (`FitSpace`). All spaces use the same residual, log(measured / fitted depth),
which is relative and does not depend on the unit. The first line goes through the two points whose line has the least
median residual. Weights by Huber's rule then improve it; points beyond `_REJECTED` sigmas lose their weight. With few
points all pairs are tried, otherwise pairs that a fixed generator draws.

The model's invariance decides which spaces are tried. Affine depth has an unknown shift, so its logarithm and its
reciprocal mean nothing: only `depth` remains. Depth up to scale needs a scale only; with enough points a shift in
depth, log depth (an exponent) or disparity is tried too, and the smallest left-out error decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from openmarigold.completion.evidence import FitSpace
from openmarigold.errors import InvalidValueError
from openmarigold.seeding import generator_for

Invariance: TypeAlias = Literal["affine", "scale", "absolute"]
Values: TypeAlias = Float64[np.ndarray, " n"]

_HUBER = 1.345
_REJECTED = 4.0  # robust sigmas, beyond which a point loses its weight in the fit
_OUTLIER = 3.5  # robust sigmas, beyond which a point is reported to contradict the others
_AGREES = 0.03  # a residual in log depth up to which a point is never reported
_ROUNDS = 12
_EXACT = 1e-9  # a residual in log depth that is rounding
_PAIRS = 600
_PAIRS_OF_FEW = 64  # points, up to which all pairs are tried
_ENOUGH_FOR_TWO = 4  # points, from which depth up to scale may get a second parameter
_FOLDS = 5
_KEPT = 0.85  # share of the left-out errors, the smallest ones, that decides between spaces
_GAIN = 0.98  # a second parameter must lower the left-out error to this share
_FLOOR = 0.25  # of the nearest point: fitted depth is never nearer than this
_CEILING = 10.0  # times the farthest point: fitted depth is never farther than this
_SAME = 1e-6  # relative spread of depth that counts as none


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A global fit; calling it turns relative depth of any shape into meters, always above 0."""

    space: FitSpace
    scale: float
    shift: float
    floor: float
    """The smallest depth [m] that it gives."""
    ceiling: float
    """The largest depth [m] that it gives."""
    outliers: Bool[np.ndarray, " n"]
    """Points that contradict the others."""
    reason: str = ""
    """Reason for this space and these parameters, in one line."""

    def __call__(self, depth: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Meters of relative depth."""
        return np.clip(
            line_depth(self.space, self.scale, self.shift, depth.astype(np.float64)), self.floor, self.ceiling
        )


def fit_points(
    relative: Float[np.ndarray, " n"],
    meters: Float[np.ndarray, " n"],
    *,
    invariance: Invariance,
    space: FitSpace | Literal["auto"] = "auto",
    shift: float | None = None,
) -> Fit:
    """The robust fit of relative depth to meters at some points.

    Multiplying `meters` by a factor multiplies the fitted depth by this factor.

    Args:
        relative: depth of the model at the points, near small.
        meters: planar depth [m] of the points, above 0.
        invariance: of the model's depth.
        space: space of the fit; "auto" chooses among those that `invariance` allows.
        shift: known shift of affine depth: depth is proportional to `relative + shift`. Then only a scale is fitted.

    Raises:
        InvalidValueError: no points; a space that the model does not allow; affine depth with one point, with points of
            one depth, or with points that are farther where the model predicts nearer, and no `shift`.
    """
    x, z = np.asarray(relative, dtype=np.float64), np.asarray(meters, dtype=np.float64)
    _check(x, z)
    if shift is not None and invariance == "affine":
        inner = fit_points(x + shift, z, invariance="scale", space="depth")
        scaled = _fit_of("depth", inner.scale, inner.shift + inner.scale * shift, x, z)
        return replace(scaled, reason=f"scale alone, with the shift {shift:.4g} that was given for affine depth")
    candidates = _candidates(x, z, invariance, space)
    fits: list[tuple[FitSpace, int, tuple[float, float]]] = [
        (name, count, line) for name, count in candidates if (line := _robust_line(name, count, x, z)) is not None
    ]
    if not fits:
        raise InvalidValueError(
            "the points contradict the model: they are farther where it predicts nearer; check the points' order (x, "
            "y, depth) and that they belong to this photo, or give the shift of affine depth"
        )
    if len(fits) == 1:
        return _chosen(fits[0], x, z, _why(invariance, len(np.unique(x))))
    errors = [_left_out(name, count, line, x, z) for name, count, line in fits]
    best = 0
    for index in range(1, len(fits)):
        if errors[index] < errors[best] * (_GAIN if fits[best][1] < fits[index][1] else 1.0):
            best = index
    tried = ", ".join(
        f"{'scale' if c == 1 else n} {error:.4g} m" for (n, c, _), error in zip(fits, errors, strict=True)
    )
    return _chosen(fits[best], x, z, f"by left-out errors: {tried}")


def _chosen(choice: tuple[FitSpace, int, tuple[float, float]], x: Values, z: Values, why: str) -> Fit:
    name, count, line = choice
    words = "scale and shift" if count == 2 else "scale alone"
    return replace(_fit_of(name, *line, x, z), reason=f"{words} in {name}, {why}")


def _check(x: Values, z: Values) -> None:
    if len(x) == 0:
        raise InvalidValueError("there are no points to fit; give at least one with its depth in meters")
    if len(x) != len(z):
        raise InvalidValueError(f"{len(x)} relative depths and {len(z)} depths in meters; give as many of each")
    if not (np.isfinite(x).all() and np.isfinite(z).all() and (z > 0).all()):
        raise InvalidValueError("depths of points must be finite numbers, and above 0 in meters; leave others out")


def _candidates(
    x: Values, z: Values, invariance: Invariance, space: FitSpace | Literal["auto"]
) -> list[tuple[FitSpace, int]]:
    """Spaces with their numbers of parameters, the simplest first."""
    spread = np.ptp(x) > _SAME * max(np.abs(x).max(), 1e-30)
    if invariance == "affine":
        if space not in ("auto", "depth"):
            raise InvalidValueError(
                f"fit space {space!r} is not accepted for affine depth: its shift is unknown, so only depth itself "
                "can be fitted; use depth"
            )
        if not spread:
            what = "one point gives" if len(x) == 1 else f"{len(x)} points at one relative depth give"
            raise InvalidValueError(
                f"{what} a scale, and affine depth needs a shift too; add a point at another depth, or give the shift"
            )
        return [("depth", 2)]
    if (x <= 0).any():
        raise InvalidValueError("relative depth at a point is 0 or less, which depth up to scale cannot be")
    if space != "auto":
        return [(space, 2 if spread and len(x) >= 2 else 1)]
    one: list[tuple[FitSpace, int]] = [("depth", 1)]
    return [*one, ("depth", 2), ("log", 2), ("disparity", 2)] if spread and len(x) >= _ENOUGH_FOR_TWO else one


def _why(invariance: Invariance, distinct: int) -> str:
    if invariance == "affine":
        return "all that affine depth allows"
    return "as asked" if distinct >= _ENOUGH_FOR_TWO else "all that so few points support"


def _coordinates(space: FitSpace, values: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    if space == "depth":
        return values
    return np.log(values) if space == "log" else 1.0 / values


def line_depth(
    space: FitSpace, scale: float, shift: float, depth: Float64[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Depth on the line; outside the line's valid range it is 0 or less, or infinite."""
    if space == "depth":
        return scale * depth + shift
    tiny = np.finfo(np.float64).tiny
    if space == "log":
        return np.exp(np.clip(scale * np.log(np.maximum(depth, tiny)) + shift, -700.0, 700.0))
    return 1.0 / np.maximum(scale / np.maximum(depth, tiny) + shift, tiny)


def slope_of_line(
    space: FitSpace, scale: float, depth: Float[np.ndarray, "*shape"], meters: Float[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """The derivative by relative depth of a line that has the values `meters` at these relative depths, above 0."""
    ratio = meters.astype(np.float64) / depth
    return {"depth": np.full_like(ratio, scale), "log": scale * ratio, "disparity": scale * np.square(ratio)}[space]


def _residuals(space: FitSpace, line: tuple[float, float], x: Values, z: Values) -> Values:
    """log(measured / fitted depth); large where the line has no valid depth."""
    return np.log(z / np.clip(line_depth(space, *line, x), *_bounds(z)))


def _bounds(z: Values) -> tuple[float, float]:
    return _FLOOR * float(z.min()), _CEILING * float(z.max())


def _robust_line(
    space: FitSpace, count: int, x: Values, z: Values, start: tuple[float, float] | None = None
) -> tuple[float, float] | None:
    """Scale and shift of one or two parameters; None if no rising line fits."""
    if count == 1:
        return _line_of_scale(space, _robust_log_scale(x, z))
    line = start or _best_pair(space, x, z)
    if line is None:
        return None
    u, v = _coordinates(space, x), _coordinates(space, z)
    # Errors of far points count more in meters and less in relative terms: the weights are half way between.
    relative = {"depth": 1.0 / z, "log": np.ones_like(z), "disparity": z}[space]
    base = np.square(relative) * (z / np.median(z))
    for _ in range(_ROUNDS):
        residual = np.abs(_residuals(space, line, x, z))
        sigma = _sigma(residual)
        if sigma <= _EXACT:
            break
        ratio = residual / sigma
        weight = base * np.where(ratio > _REJECTED, 0.0, _HUBER / np.maximum(ratio, _HUBER))
        new = _weighted_line(u, v, weight)
        if new is None or new[0] <= 0:
            break
        moved = abs(new[0] - line[0]) * np.ptp(u) + abs(new[1] + new[0] * u.mean() - line[1] - line[0] * u.mean())
        line = new
        if moved <= 1e-8 * max(np.abs(v).max(), 1e-30):
            break
    return line


def _robust_log_scale(x: Values, z: Values) -> float:
    logs = np.log(z / x)
    middle = float(np.median(logs))
    for _ in range(_ROUNDS):
        residual = np.abs(logs - middle)
        sigma = _sigma(residual)
        if sigma <= _EXACT:
            break
        weight = np.where(residual > _REJECTED * sigma, 0.0, 1.0 / np.maximum(residual / sigma, _HUBER))
        middle = float((weight * logs).sum() / weight.sum())
    return middle


def _line_of_scale(space: FitSpace, log_scale: float) -> tuple[float, float]:
    if space == "log":
        return 1.0, log_scale
    return float(np.exp(log_scale if space == "depth" else -log_scale)), 0.0


def _sigma(residual: Values) -> float:
    """Robust standard deviation of absolute residuals about 0."""
    return 1.4826 * float(np.median(residual))


def _weighted_line(u: Values, v: Values, weight: Values) -> tuple[float, float] | None:
    total = weight.sum()
    if total <= 0:
        return None
    u_mean, v_mean = (weight * u).sum() / total, (weight * v).sum() / total
    variance = (weight * np.square(u - u_mean)).sum()
    if variance <= 0:
        return None
    scale = float((weight * (u - u_mean) * (v - v_mean)).sum() / variance)
    return scale, float(v_mean - scale * u_mean)


def _best_pair(space: FitSpace, x: Values, z: Values) -> tuple[float, float] | None:
    """The rising line through two points with the least median residual of all points."""
    count = len(x)
    first, second = np.triu_indices(min(count, _PAIRS_OF_FEW), k=1)
    if count > _PAIRS_OF_FEW:
        drawn = generator_for(0, "completion-pairs", count).integers(count, size=(2, _PAIRS))
        first, second = drawn
    u, v = _coordinates(space, x), _coordinates(space, z)
    run, rise = u[second] - u[first], v[second] - v[first]
    rising = (run * rise > 0) & (np.abs(run) > _SAME * np.abs(u).max())
    if not rising.any():
        return None
    scale = rise[rising] / run[rising]
    shift = v[first[rising]] - scale * u[first[rising]]
    some = slice(None, None, max(1, count // 200))  # enough to judge a line by
    fitted = scale[:, None] * u[some] + shift[:, None]
    if space == "log":
        residual = np.abs(v[some] - fitted)
    else:
        residual = np.abs(np.log(np.maximum(fitted, 1e-6 * v.min()) / v[some]))
    # The mean decides between lines of equal median: with few points, many lines pass through half of them.
    best = int(np.argmin(np.median(residual, axis=1) + 1e-3 * residual.mean(axis=1)))
    return float(scale[best]), float(shift[best])


def _left_out(space: FitSpace, count: int, line: tuple[float, float], x: Values, z: Values) -> float:
    """Mean of the smaller errors [m] at points that their fit did not see."""
    folds = min(_FOLDS, len(x))
    errors = np.empty(len(x))
    fold_of = np.arange(len(x)) % folds
    for fold in range(folds):
        out = fold_of == fold
        fitted = _robust_line(space, count, x[~out], z[~out], line if len(x) > 3 * _FOLDS else None) or line
        errors[out] = np.abs(np.clip(line_depth(space, *fitted, x[out]), *_bounds(z)) - z[out])
    kept = max(1, round(_KEPT * len(x)))
    return float(np.sort(errors)[:kept].mean())


def _fit_of(space: FitSpace, scale: float, shift: float, x: Values, z: Values) -> Fit:
    residual = np.abs(_residuals(space, (scale, shift), x, z))
    outliers = residual > max(_OUTLIER * _sigma(residual), _AGREES)
    floor, ceiling = _bounds(z[~outliers])
    return Fit(space=space, scale=scale, shift=shift, floor=floor, ceiling=ceiling, outliers=outliers)
