# SPDX-License-Identifier: Apache-2.0
"""Which layers of a network compute in int8, and what this costs: one rule for all kinds of files.

A layer is a convolution or a matrix product. Each is put into int8 alone, and the error of the network's output is
measured on calibration photos. Errors of several layers add as squares. The worst layers stay in floating point until
the sum of the others is small enough (`layers_to_keep`). Where the error of all together is larger than that, more
layers stay, if need be all (`chosen_layers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

Sample: TypeAlias = Mapping[str, np.ndarray]
"""The inputs of one run of a network, by name."""
MAX_OUTPUT_ERROR = 0.02
"""Largest error of a network's output that int8 may cause, as `relative_error` measures it."""
_LIMITS = (0.02, 0.01, 0.005, 0.0025, 0.0)  # tried in turn: for the sum of single errors, which may add to more


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The result of quantizing a network."""

    num_layers: int
    """Layers in int8."""
    kept: Mapping[str, float]
    """Layers that stayed in floating point, and the error that they had in int8."""
    output_error: float
    """Root mean square of the network's error over the calibration photos, by the deviation of its output."""

    def to_dict(self) -> dict[str, Any]:
        """For model_index.json."""
        kept = {name: round(error, 4) for name, error in self.kept.items()}
        return {"int8_layers": self.num_layers, "kept_layers": kept, "output_error": round(self.output_error, 5)}


def chosen_layers(
    errors: Mapping[str, float], quantize: Callable[[Mapping[str, float]], float]
) -> tuple[Mapping[str, float], float]:
    """The layers that stay in floating point, and the error of the output with all others in int8.

    Args:
        errors: of the output with one layer in int8, by layer.
        quantize: puts all but the given layers into int8 and gives the error of the output.
    """
    kept, error = layers_to_keep(errors, limit=_LIMITS[0]), np.inf
    for limit in _LIMITS:
        kept = layers_to_keep(errors, limit=limit)
        error = quantize(kept)
        if error <= MAX_OUTPUT_ERROR:
            break
    return kept, error


def layers_to_keep(errors: Mapping[str, float], *, limit: float = _LIMITS[0]) -> dict[str, float]:
    """The layers that stay in floating point, the worst first: as few as leave others within the limit.

    Args:
        errors: of the output with one layer in int8, by layer; the errors of several add as squares.
        limit: limit for the sum of the remaining errors.
    """
    # Not a number counts as infinite.
    worst_first = sorted(((error if error >= 0 else np.inf, name) for name, error in errors.items()), reverse=True)
    squares = np.square([error for error, _ in worst_first])
    left = np.cumsum(squares[::-1])[::-1]  # of a layer and all better ones
    number = int((left > limit**2).sum())
    return {name: float(error) for error, name in worst_first[:number]}


def relative_error(found: Sequence[Float[np.ndarray, "..."]], expected: Sequence[Float[np.ndarray, "..."]]) -> float:
    """Root mean square of the differences of outputs, by the standard deviation of what is expected."""
    squares = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(found, expected, strict=True))
    number = sum(one.size for one in expected)
    mean = sum(float(one.sum(dtype=np.float64)) for one in expected) / number
    variance = sum(float(np.square(one - mean, dtype=np.float64).sum()) for one in expected)
    return float(np.sqrt(squares / max(variance, np.finfo(np.float64).tiny)))
