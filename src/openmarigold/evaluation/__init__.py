# SPDX-License-Identifier: Apache-2.0
"""Scores of estimators: protocols, runs, reports, comparisons and the paper's tables.

>>> from openmarigold.evaluation import baseline_estimators, evaluate
>>> report = evaluate("examples/benchmark", baseline_estimators()["constant"])  # doctest: +SKIP
>>> report.kinds["all"].metrics["abs_rel"]  # doctest: +SKIP
"""

from openmarigold.evaluation.estimators import (
    Estimator,
    MapEstimator,
    SavedPredictions,
    baseline_estimators,
    predictor_estimator,
)
from openmarigold.evaluation.report import ImageScore, Report
from openmarigold.evaluation.runner import evaluate, evaluate_benchmark, read_manifest, score_benchmark
from openmarigold.evaluation.statistics import KindScore

__all__ = [
    "Estimator",
    "ImageScore",
    "KindScore",
    "MapEstimator",
    "Report",
    "SavedPredictions",
    "baseline_estimators",
    "evaluate",
    "evaluate_benchmark",
    "predictor_estimator",
    "read_manifest",
    "score_benchmark",
]
