# SPDX-License-Identifier: Apache-2.0
"""Estimators as runs need them: loaded late, and with a description that changes whenever their maps may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmarigold.checkpoint import read_checkpoint
from openmarigold.config import PredictConfig
from openmarigold.evaluation.estimators import (
    BASELINES,
    DepthEstimator,
    Invariance,
    SavedPredictions,
    predictor_estimator,
)
from openmarigold.evaluation.provenance import hash_of_checkpoint
from openmarigold.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An estimator for a run: loaded when the first image needs it, and described so that a run can be resumed.

    Attributes:
        name: what tables call it.
        load: gives the estimator, or saved predictions.
        invariance: as the estimator's.
        settings: everything its maps depend on, such as the hash of its weights; written to the report.
    """

    name: str
    load: Callable[[], DepthEstimator | SavedPredictions]
    invariance: Invariance
    settings: Mapping[str, Any]


def predictor_contestant(config: PredictConfig) -> Contestant:
    """A checkpoint with settings, the checkpoint's defaults in the place of None.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    checkpoint = read_checkpoint(config.checkpoint)
    resolution = config.processing_resolution
    settings = {
        "num_inference_steps": config.num_inference_steps or checkpoint.default_num_inference_steps,
        "ensemble_size": config.ensemble_size,
        "processing_resolution": checkpoint.default_processing_resolution if resolution is None else resolution,
        "seed": config.seed,
        "final_step": config.final_step or checkpoint.default_final_step,
    }

    def load() -> DepthEstimator:
        predictor = Predictor.load(config.checkpoint, device=config.device)
        return predictor_estimator(predictor, batch_size=config.batch_size, **settings)

    return Contestant(
        name=checkpoint.name,
        load=load,
        invariance="affine_depth",
        settings={
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": hash_of_checkpoint(config.checkpoint),
            "device": config.device,
            **settings,
        },
    )


def saved_contestant(directory: Path, invariance: Invariance) -> Contestant:
    """Maps that lie in a folder.

    Raises:
        DataError: there is no such folder.
    """
    saved = SavedPredictions(directory, invariance)
    return Contestant(
        name=directory.resolve().name,
        load=lambda: saved,
        invariance=invariance,
        settings={"predictions": directory.resolve().name, "invariance": invariance},
    )


def baseline_contestants() -> list[Contestant]:
    """The estimators of `BASELINES`, which do not look at the photo."""
    return [
        Contestant(name=name, load=make, invariance=make().invariance, settings={"baseline": name})
        for name, make in BASELINES.items()
    ]
