# SPDX-License-Identifier: Apache-2.0
"""Estimators of depth completion: a model's depth and a method, and the baselines that are always shown too."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Float, UInt8

from openmarigold.camera import Camera
from openmarigold.completion.evidence import RelativeDepth, SparsePoints
from openmarigold.completion.guided import guided
from openmarigold.completion.guided_settings import GUIDED, settings_of, with_gradients
from openmarigold.completion.methods import METHODS, Method, Options, complete
from openmarigold.config import PredictConfig
from openmarigold.errors import InvalidValueError
from openmarigold.evaluation.revealing import sparse_points
from openmarigold.evaluation.specs import EstimatorSpec, predictor_spec
from openmarigold.modalities import METRIC
from openmarigold.modalities.modality import Modality
from openmarigold.modalities.protocol import Maps, PredictionSpace
from openmarigold.predictor import Predictor

AUTO = "auto"
_DEPTH = METRIC.maps[0].name
_INTERPOLATIONS = ("nearest", "linear")
"""Baselines that look at the points alone."""


@dataclass(frozen=True, kw_only=True)
class PointsEstimator:
    """A `GivenEstimator` of metric depth: a function of the photo and the given points."""

    estimate: Callable[[UInt8[np.ndarray, "h w 3"], SparsePoints], Float[np.ndarray, "h w"]]
    invariance: PredictionSpace = METRIC.spaces[0]
    modality: Modality = METRIC

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"], /) -> NoReturn:
        """Raises InvalidValueError: without points there is nothing to complete."""
        raise InvalidValueError("depth completion needs points; give a benchmark that has some (`with_points`)")

    def estimate_given(self, rgb: UInt8[np.ndarray, "h w 3"], given: Maps, /) -> Maps:
        """Depth [m] of the photo's size from the given points."""
        if _DEPTH not in given:
            self(rgb)
        return {_DEPTH: self.estimate(rgb, sparse_points(given[_DEPTH], "benchmark"))}


class KeptDepth:
    """A model's depth of photos, computed once for all methods of a run: kept in a temporary folder, 4 bytes a pixel.

    The folder is deleted with the object.
    """

    def __init__(self, config: PredictConfig, at_once: int = 1) -> None:
        """The model is loaded with the first photo; `at_once` as in `Predictor.from_config`."""
        self._config, self._at_once = config, at_once
        self._predictor: Predictor | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="openmarigold-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def predictor(self) -> Predictor:
        """The model."""
        if self._predictor is None:
            self._predictor = Predictor.from_config(self._config, at_once=self._at_once)
        return self._predictor

    def __call__(self, rgb: UInt8[np.ndarray, "h w 3"]) -> RelativeDepth:
        """Raises what a `Predictor` raises."""
        name = hashlib.sha256(f"{rgb.shape}".encode() + rgb.tobytes()).hexdigest()
        path = self._folder / f"{name}.npy"
        if path.is_file():
            depth = np.load(path)
        else:
            depth = self.predictor(rgb, **self._config.call_options).maps[_DEPTH]
            np.save(path, depth)
        return RelativeDepth(
            depth=depth,
            invariance=self.predictor.checkpoint.invariance,
            camera=Camera.assumed((rgb.shape[0], rgb.shape[1])),
            rgb=rgb,
        )


def interpolation_specs() -> list[EstimatorSpec]:
    """Nearest point and linear interpolation: they look at the points alone."""

    def without_depth(rgb: UInt8[np.ndarray, "h w 3"]) -> RelativeDepth:
        size = (rgb.shape[0], rgb.shape[1])
        return RelativeDepth(depth=np.ones(size), invariance="affine", camera=Camera.assumed(size))

    return [
        _spec(name, lambda rgb, points, name=name: _run(METHODS[name], without_depth(rgb), points), {"baseline": name})
        for name in _INTERPOLATIONS
    ]


def completion_specs(config: PredictConfig, methods: Sequence[str], *, at_once: int = 1) -> list[EstimatorSpec]:
    """A checkpoint's depth, completed by each of the methods; then the baselines.

    All of them share one prediction for each photo. `at_once` as in `predictor_spec`.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InvalidValueError: a method that is not known, or a checkpoint that predicts no depth.
    """
    known = [AUTO, *(name for name, method in METHODS.items() if not method.is_baseline), GUIDED]
    if unknown := [name for name in methods if name not in known]:
        raise InvalidValueError(f"method={unknown[0]!r} is not known; use {' or '.join(known)}")
    config = replace(config, modality=())  # what it predicts is completed
    if GUIDED in methods:
        config = with_gradients(config)
    model = predictor_spec(config)
    if _DEPTH not in [kind.name for kind in model.modality.maps]:
        raise InvalidValueError(
            f"{model.name} predicts {model.modality.title}; depth completion needs a checkpoint that predicts depth"
        )
    kept = cache(lambda: KeptDepth(config, at_once))
    baselines = [name for name, method in METHODS.items() if method.is_baseline and name not in _INTERPOLATIONS]
    specs = [
        _spec(
            name.replace("_", " ") if name in baselines else f"{model.name}, {name}",
            lambda rgb, points, name=name: _completed(kept(), rgb, points, name, config),
            {**model.settings, "method": name},
        )
        for name in (*dict.fromkeys(methods), *baselines)
    ]
    return [*specs, *interpolation_specs()]


def _completed(
    kept: KeptDepth, rgb: UInt8[np.ndarray, "h w 3"], points: SparsePoints, name: str, config: PredictConfig
) -> Float[np.ndarray, "h w"]:
    if name == GUIDED:
        return guided(kept.predictor, rgb, points, settings_of(config)).depth
    relative = kept(rgb)
    if name == AUTO:
        return complete(relative, points).depth
    return _run(METHODS[name], relative, points)


def _run(method: Method, relative: RelativeDepth, points: SparsePoints) -> Float[np.ndarray, "h w"]:
    """The method's map alone: `complete` would also leave points out, to tell an error."""
    if len(points) < method.min_points:
        raise InvalidValueError(
            f"the method {method.name} needs {method.min_points} points, and there are {len(points)}; give more points"
        )
    return method.run(relative, points, Options()).map()


def _spec(
    name: str,
    estimate: Callable[[UInt8[np.ndarray, "h w 3"], SparsePoints], Float[np.ndarray, "h w"]],
    settings: dict[str, object],
) -> EstimatorSpec:
    return EstimatorSpec(
        name=name,
        load=lambda: PointsEstimator(estimate=estimate),
        invariance=METRIC.spaces[0],
        settings=settings,
        modality=METRIC,
    )
