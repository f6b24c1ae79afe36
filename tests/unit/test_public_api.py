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


WRONG_TYPES = """
import io
import numpy as np
from openmarigold import InvalidValueError, CallConfig, Predictor
predictor = Predictor.load()
photo = np.zeros((16, 16, 3), np.uint8)
made = predictor(photo, processing_resolution=32)
closed = io.BytesIO(b"")
closed.close()
switches = ("estimate_camera", "recompose", "ensemble_mirror", "tiles")
calls = [lambda name=name: CallConfig(**{name: "no"}) for name in switches]
calls += [lambda: predictor(photo, guide=5), lambda: made.save("nowhere", 5), lambda: made.picture(5)]
as_text = open(__import__("openmarigold").__file__, encoding="ascii")
for call in [*calls, lambda: predictor(closed), lambda: predictor(as_text)]:
    try:
        call()
    except InvalidValueError as error:
        print(error)
"""


def test_wrong_types_are_named() -> None:
    """In a process of its own, where nothing else checks types."""
    result = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=True)
    switches = ("estimate_camera", "recompose", "ensemble_mirror", "tiles")
    assert result.stdout.splitlines() == [
        *(f"{name}='no' is not known; use False or True" for name in switches),
        "guide is 5; give a function that is called before each step, or None",
        "stem=5 is not a plain file name; give it without a folder",
        "color_map=5 is not a text; give the name of a color map, such as Spectral",
        "an open file cannot be read (ValueError: I/O operation on closed file.); give one that is open",
        "an open file that gives str is not accepted; open it with 'rb'",
    ]
