# SPDX-License-Identifier: Apache-2.0
"""Scores of depth estimators: estimators, protocols, runs, reports, comparisons and the paper's tables.

>>> from openmarigold.evaluation import constant_estimator, evaluate
>>> evaluate(Path("examples/benchmark"), constant_estimator()).kinds["all"].metrics["abs_rel"]  # doctest: +SKIP
"""

from openmarigold.evaluation.estimators import (
    BASELINES,
    DepthEstimator,
    Estimator,
    Invariance,
    SavedPredictions,
    constant_estimator,
    image_row_estimator,
    predictor_estimator,
)
from openmarigold.evaluation.report import ImageScore, Report
from openmarigold.evaluation.runner import evaluate, evaluate_benchmark, read_manifest, score_benchmark
from openmarigold.evaluation.statistics import KindScore

__all__ = [
    "BASELINES",
    "DepthEstimator",
    "Estimator",
    "ImageScore",
    "Invariance",
    "KindScore",
    "Report",
    "SavedPredictions",
    "constant_estimator",
    "evaluate",
    "evaluate_benchmark",
    "image_row_estimator",
    "predictor_estimator",
    "read_manifest",
    "score_benchmark",
]
