# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

import openmarigold

PUBLIC = {
    "BatchResult",
    "CheckpointError",
    "Client",
    "DataError",
    "CallConfig",
    "ImageError",
    "InvalidValueError",
    "MapEstimator",
    "MissingExtraError",
    "NumericalError",
    "OpenMarigoldError",
    "OutputConfig",
    "OutputError",
    "ModelConfig",
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
}


def test_public_names() -> None:
    assert set(openmarigold.__all__) == PUBLIC
    assert set(dir(openmarigold)) >= PUBLIC
    for name in PUBLIC:
        value = getattr(openmarigold, name)
        assert getattr(value, "__name__", name).removeprefix("openmarigold.") == name
    with pytest.raises(AttributeError, match="has no attribute 'Pipeline'"):
        _ = openmarigold.Pipeline


def test_errors_are_ours_and_builtin() -> None:
    assert issubclass(openmarigold.InvalidValueError, openmarigold.OpenMarigoldError)
    assert issubclass(openmarigold.InvalidValueError, ValueError)
    for name in PUBLIC:
        if name.endswith("Error"):
            assert issubclass(getattr(openmarigold, name), openmarigold.OpenMarigoldError)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import openmarigold", ["numpy", "torch", "onnxruntime", "PIL", "rich", "tyro"]),
        ("import openmarigold.cli", ["numpy", "torch", "onnxruntime", "PIL", "rich.progress"]),
        ("from openmarigold import PredictConfig", ["numpy", "torch", "onnxruntime"]),
        ("from openmarigold import Predictor, evaluate, predict_files, train", ["torch", "diffusers", "scipy"]),
    ],
)
def test_imports_stay_lean(code: str, absent: list[str]) -> None:
    check = f"{code}; import sys; print([name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
