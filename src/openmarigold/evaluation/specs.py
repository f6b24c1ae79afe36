# SPDX-License-Identifier: Apache-2.0
"""Estimators for runs: loaded late, and described by everything that their maps depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.calibration import choose_interval
from openmarigold.checkpoints.checkpoint import loaded_variant
from openmarigold.checkpoints.configured import read_configured, read_tiny_vae, resolve_settings
from openmarigold.checkpoints.hashes import checkpoint_sha256, tiny_vae_sha256
from openmarigold.config import PredictConfig
from openmarigold.engines import choose_engine
from openmarigold.evaluation.estimators import (
    MapEstimator,
    SavedPredictions,
    baseline_estimators,
    predictor_estimator,
)
from openmarigold.modalities import DEPTH
from openmarigold.modalities.modality import Band, Modality
from openmarigold.modalities.protocol import PredictionSpace
from openmarigold.predictor import Predictor
from openmarigold.predictor.cameras import camera_facts

# Photos of benchmarks have no transparent pixels, and the size of batches changes nothing on a CPU.
_LEFT_OUT = (
    "batch_size",
    "background",
    "ensemble_mirror",
    "ensemble_reduction",
    "tiles",
    "interval",
    "recompose",  # facts state these five, and the ones about the camera
    "fov",
    "focal_px",
    "camera_file",
    "estimate_camera",
    "normals_checkpoint",
)


@dataclass(frozen=True, kw_only=True)
class EstimatorSpec:
    """An estimator for a run: loaded when the first image needs it, and described so that a run can be resumed.

    Attributes:
        name: what tables call it.
        load: gives the estimator, or saved predictions.
        invariance: as the estimator's.
        settings: everything its maps depend on, such as the hash of its weights; written to the report.
        modality: what it predicts.
        has_seams: whether it predicts in tiles, whose seams are scored.
        band: of the intervals that it gives; None: it gives none.
    """

    name: str
    load: Callable[[], MapEstimator | SavedPredictions]
    invariance: PredictionSpace
    settings: Mapping[str, Any]
    modality: Modality = DEPTH
    has_seams: bool = False
    band: Band | None = None


def predictor_spec(config: PredictConfig, *, at_once: int = 1) -> EstimatorSpec:
    """A checkpoint with settings, the checkpoint's defaults in the place of None.

    Args:
        config: the model and its call.
        at_once: how many processes of a machine will predict at the same time; changes no result.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InvalidValueError: a setting that does not apply to this checkpoint.
    """
    checkpoint = read_configured(config)
    resolved = resolve_settings(config, checkpoint).call_options
    settings = {name: value for name, value in resolved.items() if name not in _LEFT_OUT}
    tiny_vae = read_tiny_vae(config, checkpoint)
    if tiny_vae is not None:
        settings |= {"tiny_vae": tiny_vae.name, "tiny_vae_for": tiny_vae.used_for}
        settings["tiny_vae_sha256"] = tiny_vae_sha256(tiny_vae)
    modality = checkpoint.predicts
    loading: dict[str, Any] = {"device": config.device, "dtype": config.dtype}
    interval = choose_interval(checkpoint, resolve_settings(config, checkpoint), has_tiny_vae=tiny_vae is not None)
    engine = choose_engine(checkpoint, engine=config.engine, compile=config.compile, **loading)

    def load() -> MapEstimator:
        predictor = Predictor.from_config(config, found=checkpoint, tiny_vae=tiny_vae, at_once=at_once)
        return predictor_estimator(predictor, **config.call_options)

    return EstimatorSpec(
        name=checkpoint.name,
        load=load,
        invariance=modality.prediction_space(checkpoint.invariance),
        modality=modality,
        has_seams=bool(config.tiles),
        band=None if interval is None else interval.band,
        settings={
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": checkpoint_sha256(checkpoint),
            "invariance": checkpoint.invariance,
            "processing_side": checkpoint.processing_side,
            **checkpoint.facts_of_index,
            "variant": loaded_variant(checkpoint),
            "engine": engine,
            **loading,
            **settings,
            **checkpoint.facts_of_call(config),
            **camera_facts(config),
            **({} if interval is None else interval.facts),
        },
    )


def saved_spec(
    directory: Path | str, invariance: PredictionSpace | None = None, modality: Modality = DEPTH
) -> EstimatorSpec:
    """Maps that lie in a folder.

    Raises:
        DataError: the folder does not exist.
        InvalidValueError: an invariance that the modality does not have.
    """
    saved = SavedPredictions(directory, invariance, modality)
    name = saved.directory.resolve().name
    return EstimatorSpec(
        name=name,
        load=lambda: saved,
        invariance=saved.invariance,
        settings={"predictions": name, "invariance": saved.invariance},
        modality=modality,
    )


def baseline_specs(modality: Modality = DEPTH) -> list[EstimatorSpec]:
    """The modality's baselines."""
    return [
        EstimatorSpec(
            name=name,
            load=lambda estimator=estimator: estimator,
            invariance=estimator.invariance,
            settings={"baseline": name},
            modality=modality,
        )
        for name, estimator in baseline_estimators(modality).items()
    ]
