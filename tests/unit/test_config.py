# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import openmarigold
from openmarigold.config import OutputConfig, PredictConfig
from openmarigold.errors import InvalidValueError


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"processing_resolution": 0},
        {"processing_resolution": 768, "num_inference_steps": 1000},
        {"device": "cuda:1", "final_step": "clean", "seed": 0},
    ],
)
def test_accepts(settings: dict[str, Any]) -> None:
    config = PredictConfig(**settings)
    assert all(getattr(config, name) == value for name, value in settings.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processing_resolution": 770}, "processing_resolution=770 is not a multiple of 8; try 768"),
        ({"processing_resolution": 3}, "processing_resolution=3 is not a multiple of 8; try 8"),
        ({"processing_resolution": -8}, "processing_resolution=-8 is not accepted"),
        ({"ensemble_size": 0}, "ensemble_size=0 is not accepted; give a whole number, 1 or above"),
        ({"ensemble_size": True}, "ensemble_size=True"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not accepted; give a whole number, 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"tiny_vae": ""}, "tiny_vae='' is not accepted; give a folder or a hub id"),
        ({"tiny_vae_for": "both"}, "tiny_vae_for='both' has no effect without tiny_vae"),
        ({"device": "tpu"}, "device='tpu' is not known; use auto, cpu"),
    ],
)
def test_refuses_with_what_is_accepted(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        PredictConfig(**settings)


def test_every_setting_is_read() -> None:
    package = Path(openmarigold.__file__).parent
    code = "".join(
        (package / name).read_text() for name in ("results/run.py", "checkpoints/checkpoint.py", "predictor.py")
    )
    unread = [field.name for field in fields(PredictConfig) if f"config.{field.name}" not in code]
    assert not unread


def test_no_format_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="nothing is not known; give one or more of npy, png, npz, exr"):
        OutputConfig(format=())


def test_every_output_setting_is_read() -> None:
    package = Path(openmarigold.__file__).parent
    code = "".join((package / name).read_text() for name in ("results/run.py", "results/writers.py"))
    unread = [field.name for field in fields(OutputConfig) if f"output.{field.name}" not in code]
    assert not unread
