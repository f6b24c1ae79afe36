# SPDX-License-Identifier: Apache-2.0
"""Scales of intervals that hold on new pictures: conformal risk control, and risk control with high probability.

A pixel's score is its error by the width that a heuristic gives it; an interval of `scale` widths misses the pixels
whose scores are above `scale`. Pixels of a picture depend on each other, and so do pictures of a scene. So the unit is
the scene: its loss is the share of missed pixels, the mean over its pictures. The only assumption is that the scenes of
the calibration and the new scene are exchangeable.

Sources: Angelopoulos et al. 2022, "Conformal risk control" (`conformal`); Bates et al. 2021, "Distribution-free,
risk-controlling prediction sets" (`rcps`), whose bound is written from the theorem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float, Float64

from openmarigold.errors import InvalidValueError

RULES = ("conformal", "rcps")
"""How a scale is chosen: the expected loss of a new scene is at most `alpha`; or, with probability 1 - `delta` over the
scenes of the calibration, it is."""
_BISECTIONS = 60


def hoeffding_bentkus(mean: float, number: int, delta: float) -> float:
    """The largest expected loss that a mean of `number` losses in [0, 1] leaves possible, at level `delta`.

    The true expected loss is above it with a probability of at most `delta`.

    Args:
        mean: of the losses, in [0, 1].
        number: of losses, independent and alike.
        delta: in (0, 1).

    >>> round(hoeffding_bentkus(0.0, 10, 0.1), 4)  # no loss at all: (1 - R) ** 10 = 0.1
    0.2057
    """
    low, high = mean, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _probability(mean, number, middle) >= delta:
            low = middle
        else:
            high = middle
    return high


def _probability(mean: float, number: int, risk: float) -> float:
    """An upper bound of the probability of such a small mean if the expected loss is `risk`."""
    if risk >= 1.0:
        return float(mean >= 1.0)
    hoeffding = math.exp(-number * _divergence(min(mean, risk), risk))
    return min(hoeffding, math.e * _binomial_cdf(math.ceil(number * mean - 1e-9), number, risk))


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence of two coins, h1(a, b) in the theorem."""
    first = a * math.log(a / b) if a > 0 else 0.0
    second = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def _binomial_cdf(most: int, number: int, share: float) -> float:
    if share <= 0 or most >= number:
        return 1.0
    log_share, log_rest = math.log(share), math.log1p(-share)
    logs = [
        math.lgamma(number + 1)
        - math.lgamma(k + 1)
        - math.lgamma(number - k + 1)
        + k * log_share
        + (number - k) * log_rest
        for k in range(most + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


@cache
def allowed_loss(alpha: float, number: int, *, rule: str = "conformal", delta: float = 0.1) -> float | None:
    """The largest mean loss of `number` scenes with which a scale is accepted; None where they are too few.

    Args:
        alpha: share of pixels that may be missed, in (0, 1).
        number: of scenes.
        rule: one of `RULES`.
        delta: for "rcps", in (0, 1).

    >>> round(allowed_loss(0.1, 99), 4)  # a hundredth scene may be lost as a whole
    0.0909
    """
    check_rule(rule, alpha, delta)
    if number < 1:
        return None
    if rule == "conformal":
        allowed = (alpha * (number + 1) - 1.0) / number
        return allowed if allowed >= -1e-12 else None
    if hoeffding_bentkus(0.0, number, delta) > alpha:
        return None
    low, high = 0.0, alpha
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if hoeffding_bentkus(middle, number, delta) <= alpha:
            low = middle
        else:
            high = middle
    return low


def fit_scale(
    scenes: Sequence[Sequence[Float[np.ndarray, " _"]]], alpha: float, *, rule: str = "conformal", delta: float = 0.1
) -> float | None:
    """The smallest scale whose intervals miss no more than is allowed; None where the scenes are too few.

    Args:
        scenes: the scores of the pixels of each picture of each scene, not below 0; infinite: never covered.
        alpha: share of pixels that may be missed, in (0, 1).
        rule: one of `RULES`.
        delta: for "rcps", in (0, 1).

    With one pixel a scene and rule "conformal" this is the ceil((n + 1)(1 - alpha))-th smallest score.

    >>> fit_scale([[np.array([float(score)])] for score in range(1, 20)], 0.1)
    18.0
    """
    allowed = allowed_loss(alpha, len(scenes), rule=rule, delta=delta)
    if allowed is None:
        return None
    parts = [(picture, 1.0 / (len(scenes) * len(scene) * picture.size)) for scene in scenes for picture in scene]
    scores = np.concatenate([picture for picture, _ in parts])
    weights = np.concatenate([np.full(picture.size, weight) for picture, weight in parts])
    order = np.argsort(-scores, kind="stable")
    scores, missed = scores[order], np.cumsum(weights[order])
    # With the k-th largest score as the scale, the k - 1 before it are missed, but for those that equal it.
    fitting = np.flatnonzero(missed <= allowed + 1e-9)
    first = int(fitting[-1]) + 1 if fitting.size else 0
    scale = float(scores[min(first, scores.size - 1)])
    return scale if math.isfinite(scale) else None


def mean_loss(scenes: Sequence[Sequence[Float[np.ndarray, " _"]]], scale: float) -> float:
    """The share of pixels that intervals of `scale` miss: mean over pictures of a scene, then over scenes."""
    return float(np.mean([np.mean([np.mean(picture > scale) for picture in scene]) for scene in scenes]))


def nonnegative_least_squares(
    columns: Float64[np.ndarray, "n k"], values: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " k"]:
    """Weights not below 0 with which the columns come nearest to the values; exact, for few columns.

    Every choice of columns is solved, and the best one without a negative weight is taken.
    """
    gram, right = columns.T @ columns, columns.T @ values
    number, best, lowest = len(right), np.zeros(len(right)), 0.0
    for choice in range(1, 2**number):
        chosen = [place for place in range(number) if choice >> place & 1]
        found = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], right[chosen], rcond=None)[0]
        if (found < 0).any():
            continue
        cost = float(found @ gram[np.ix_(chosen, chosen)] @ found - 2 * found @ right[chosen])
        if cost < lowest - 1e-12 * abs(lowest):
            best, lowest = np.zeros(number), cost
            best[chosen] = found
    return best


def check_rule(rule: str, alpha: float, delta: float) -> None:
    """Raises InvalidValueError for a rule that is not known, or shares that are not between 0 and 1."""
    if rule not in RULES:
        raise InvalidValueError(f"rule={rule!r} is not known; use {' or '.join(RULES)}")
    for name, value in (("alpha", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise InvalidValueError(f"{name}={value!r} is not accepted; give a number between 0 and 1")
