# SPDX-License-Identifier: Apache-2.0
"""Depth from a single photo with a small diffusion model, following Marigold (Ke et al., CVPR 2024).

>>> import openmarigold
>>> predictor = openmarigold.Predictor.load()  # doctest: +SKIP
>>> predictor("photo.jpg").depth  # doctest: +SKIP
"""

from __future__ import annotations

from openmarigold.privacy import switch_off_reports
from openmarigold.repeatability import fix_order_of_sums

TYPE_CHECKING = False  # as in `typing`, whose import would take longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from openmarigold import alignment, metrics
    from openmarigold.config import CallConfig, ModelConfig, OutputConfig, PredictConfig
    from openmarigold.errors import (
        CheckpointError,
        DataError,
        ImageError,
        InvalidValueError,
        MissingExtraError,
        NumericalError,
        OpenMarigoldError,
        OutputError,
        RecipeError,
        ServerError,
    )
    from openmarigold.evaluation import MapEstimator, Report, evaluate
    from openmarigold.predictor import Predictor
    from openmarigold.predictor.pipeline import pipeline
    from openmarigold.predictor.run import BatchResult, predict_files
    from openmarigold.results.prediction import Prediction
    from openmarigold.serving.client import Client
    from openmarigold.training import train

__version__ = "0.1.0"

switch_off_reports()  # before any import of the libraries that look for these switches
fix_order_of_sums()

__all__ = [
    "BatchResult",
    "CallConfig",
    "CheckpointError",
    "Client",
    "DataError",
    "ImageError",
    "InvalidValueError",
    "MapEstimator",
    "MissingExtraError",
    "ModelConfig",
    "NumericalError",
    "OpenMarigoldError",
    "OutputConfig",
    "OutputError",
    "PredictConfig",
    "Prediction",
    "Predictor",
    "RecipeError",
    "Report",
    "ServerError",
    "__version__",
    "alignment",
    "evaluate",
    "metrics",
    "pipeline",
    "predict_files",
    "train",
]

# Imported when first asked for (PEP 562), so that `import openmarigold` and `--help` stay fast.
_MODULES = {
    "predictor.run": ("BatchResult", "predict_files"),
    "config": ("CallConfig", "ModelConfig", "OutputConfig", "PredictConfig"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "evaluation": ("MapEstimator", "Report", "evaluate"),
    "predictor": ("Predictor",),
    "predictor.pipeline": ("pipeline",),
    "results.prediction": ("Prediction",),
    "serving.client": ("Client",),
    "training": ("train",),
}
_PUBLIC_MODULES = ("alignment", "metrics")
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PUBLIC_MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
