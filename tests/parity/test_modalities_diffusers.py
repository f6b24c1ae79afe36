# SPDX-License-Identifier: Apache-2.0
"""Surface normals and intrinsic images against diffusers' pipelines, same tiny random weights and starting noise.

Photos have the processing size: beyond it the two resize by different rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import MarigoldIntrinsicsPipeline, MarigoldNormalsPipeline
from PIL import Image

from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.modalities import find_modality
from openmarigold.networks.backbone import load_empty_prompt_embedding, load_unet, load_vae
from openmarigold.predictor import Predictor
from tiny import make_checkpoint, make_photo

SIZE = (48, 64)
TOLERANCE = 1e-5  # ours has ᾱ in float64, diffusers in float32


def reference(pipeline_class: Any, checkpoint: Path, latents: np.ndarray, **settings: Any) -> Any:
    """What diffusers' pipeline predicts; `settings` of its making are in capitals."""
    found = read_checkpoint(checkpoint)
    making = {name.lower(): settings.pop(name) for name in [*settings] if name.isupper()}
    pipeline = pipeline_class(
        unet=load_unet(checkpoint / "unet"),
        vae=load_vae(checkpoint / "vae"),
        scheduler=getattr(diffusers, found.schedule.class_name).from_config(found.schedule.to_config()),
        text_encoder=None,
        tokenizer=None,
        default_denoising_steps=1,
        default_processing_resolution=0,
        **making,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.empty_text_embedding = load_empty_prompt_embedding(checkpoint)
    return pipeline(Image.fromarray(make_photo(*SIZE)), latents=torch.from_numpy(latents), **settings)


def starting_noise(predictor: Predictor, members: int) -> np.ndarray:
    channels = predictor.engine.latent_channels * predictor.modality.num_targets
    shape = (members, channels, SIZE[0] // 8, SIZE[1] // 8)
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module", params=["appearance", "lighting"])
def intrinsics(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("intrinsics") / request.param
    return make_checkpoint(folder, "tiny", modality=find_modality(request.param))


def maps_of_targets(modality: str, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Maps as we name them of targets [t h w 3]; ours has roughness and metallicity in linear light."""
    if modality == "lighting":
        return dict(zip(("albedo", "shading", "residual"), targets, strict=True))
    albedo, material = targets
    return {"albedo": albedo, "roughness": material[..., 0] ** 2.2, "metallicity": material[..., 1] ** 2.2}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("members", [1, 3])
def test_intrinsic_images_equal_those_of_diffusers(intrinsics: Path, steps: int, members: int) -> None:
    predictor = Predictor.load(intrinsics, device="cpu")
    latents = starting_noise(predictor, members)
    settings: dict[str, Any] = {
        "num_inference_steps": steps,
        "ensemble_size": members,
        "processing_resolution": 0,
    }
    wanted = reference(MarigoldIntrinsicsPipeline, intrinsics, latents, **settings).prediction
    ours = predictor(make_photo(*SIZE), latents=latents, **settings)
    expected = maps_of_targets(predictor.modality.name, wanted)
    assert list(ours.maps) == list(expected)
    for name, values in expected.items():
        assert values.std() > 0.01, "a constant map proves nothing"
        np.testing.assert_allclose(ours.maps[name], values, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_uncertainties_are_the_mean_over_the_channels_of_those_of_diffusers(intrinsics: Path, reduction: str) -> None:
    predictor = Predictor.load(intrinsics, device="cpu")
    latents = starting_noise(predictor, 3)
    settings: dict[str, Any] = {"num_inference_steps": 1, "ensemble_size": 3, "processing_resolution": 0}
    kwargs = {"reduction": reduction}
    wanted = reference(
        MarigoldIntrinsicsPipeline, intrinsics, latents, output_uncertainty=True, ensembling_kwargs=kwargs, **settings
    )
    ours = predictor(make_photo(*SIZE), latents=latents, ensemble_reduction=reduction, **settings)
    names = {"appearance": ["albedo"], "lighting": ["lighting_albedo", "shading", "residual"]}[predictor.modality.name]
    for name, prediction, uncertainty in zip(names, wanted.prediction, wanted.uncertainty, strict=False):
        found = ours.maps[name.removeprefix("lighting_")]
        np.testing.assert_allclose(found, prediction, rtol=0, atol=TOLERANCE)
        spread = ours.uncertainties[f"{name}_uncertainty"]
        assert spread.shape == SIZE and spread.mean() > 1e-3
        np.testing.assert_allclose(spread, uncertainty.mean(axis=-1), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=[True, False], ids=["full-z", "half-z"])
def normals(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("normals") / "tiny"
    return make_checkpoint(folder, "tiny", modality=find_modality("normals"), use_full_z_range=request.param)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("reduction", [None, "closest", "mean"])
def test_normals_equal_those_of_diffusers(normals: Path, steps: int, reduction: str | None) -> None:
    predictor = Predictor.load(normals, device="cpu")
    members = 1 if reduction is None else 3
    latents = starting_noise(predictor, members)
    settings: dict[str, Any] = {"num_inference_steps": steps, "ensemble_size": members, "processing_resolution": 0}
    full_range = predictor.checkpoint.index["use_full_z_range"]
    wanted = reference(
        MarigoldNormalsPipeline,
        normals,
        latents,
        USE_FULL_Z_RANGE=full_range,
        PREDICTION_TYPE="normals",
        output_uncertainty=reduction is not None,
        ensembling_kwargs={} if reduction is None else {"reduction": reduction},
        **settings,
    )
    ours = predictor(make_photo(*SIZE), latents=latents, ensemble_reduction=reduction, **settings)
    expected = wanted.prediction[0]
    assert expected.std(axis=(0, 1)).min() > 0.01 and (full_range or expected[..., 2].min() >= 0)
    lengths = np.linalg.norm(ours.normals, axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-5)
    decided = np.ones(SIZE, dtype=bool)
    if reduction == "closest":  # where two members are equally near, rounding chooses
        alone = [predictor(make_photo(*SIZE), latents=one[None], **settings | {"ensemble_size": 1}) for one in latents]
        stack = np.stack([one.normals for one in alone])
        mean = stack.mean(axis=0) / np.linalg.norm(stack.mean(axis=0), axis=-1, keepdims=True)
        first, second = np.sort((stack * mean).sum(axis=-1), axis=0)[:-3:-1]
        decided = first - second > 1e-5
        assert decided.mean() > 0.95
    np.testing.assert_allclose(ours.normals[decided], expected[decided], rtol=0, atol=TOLERANCE)
    if reduction is not None:
        # Theirs is a share of 180 degrees, by an arc cosine, which is off by up to sqrt(2 eps) rad near 0.
        found = ours.uncertainties["normals_uncertainty"] / 180
        assert found.max() > 0.02
        np.testing.assert_allclose(found, wanted.uncertainty[0, ..., 0], rtol=0, atol=3e-4)
