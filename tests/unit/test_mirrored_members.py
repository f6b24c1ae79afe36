# SPDX-License-Identifier: Apache-2.0
"""Members that see the photo mirrored, and the noise that members start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openmarigold.checkpoints.checkpoint import EMBEDDED_DIR, read_checkpoint
from openmarigold.checkpoints.configured import resolve_settings
from openmarigold.config import CallConfig
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.modalities.depth import DEPTH
from openmarigold.modalities.normals import merge_normals
from openmarigold.predictor import Predictor
from openmarigold.predictor.sampling import MemberNoise
from tiny import edit_json, make_photo


@pytest.mark.parametrize("width", [56, 53])  # 53 is padded to 56, on the right in both
def test_a_mirrored_member_sees_the_mirrored_photo(onnx_checkpoint: Path, width: int) -> None:
    photo = make_photo(40, width)
    predictor = Predictor.load(onnx_checkpoint)
    options: dict[str, Any] = {"processing_resolution": 0, "start_noise": "zeros"}
    plain = predictor(photo, **options).depth
    mirrored = predictor(np.ascontiguousarray(photo[:, ::-1]), **options).depth[:, ::-1]
    assert np.abs(plain - mirrored).max() > 0.05, "a network that is blind to the side would show nothing"
    wanted = DEPTH.merge(np.stack([plain, mirrored])[:, None], "affine", "median")
    both = predictor(photo, ensemble_size=2, ensemble_mirror=True, **options)
    np.testing.assert_allclose(both.depth, wanted.stack[0], atol=1e-5)
    np.testing.assert_allclose(both.uncertainty, wanted.uncertainty[0], atol=1e-5)
    assert both.settings["ensemble_mirror"] is True


def test_mirrored_normals_point_to_the_other_side(onnx_checkpoint: Path) -> None:
    photo = make_photo(40, 56)
    predictor = Predictor.load(onnx_checkpoint, modality="normals")
    options: dict[str, Any] = {"processing_resolution": 0, "start_noise": "zeros"}
    plain = predictor(photo, **options).normals
    mirrored = predictor(np.ascontiguousarray(photo[:, ::-1]), **options).normals[:, ::-1] * (-1, 1, 1)
    members = np.stack([plain, mirrored]).transpose(0, 3, 1, 2).astype(np.float32)
    both = predictor(photo, ensemble_size=2, ensemble_mirror=True, ensemble_reduction="mean", **options)
    wanted = merge_normals(members, reduction="mean").stack.transpose(1, 2, 0)
    np.testing.assert_allclose(both.normals, wanted, atol=1e-4)


def test_batches_change_nothing(onnx_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [make_photo(40, 56, seed=seed) for seed in (1, 2)]
    predictor = Predictor.load(onnx_checkpoint)
    options: dict[str, Any] = {"processing_resolution": 0, "ensemble_size": 3, "ensemble_mirror": True}
    alone = [predictor(photo, **options).depth for photo in photos]
    monkeypatch.setattr(predictor.engine, "max_batch_size", None)
    monkeypatch.setattr(predictor.engine, "fitting_batch_size", lambda height, width: 4)
    for one, other in zip(alone, predictor(photos, **options), strict=True):
        np.testing.assert_allclose(one, other.depth, atol=1e-5)


def test_only_two_members_from_zeros_differ(onnx_checkpoint: Path) -> None:
    found = read_checkpoint(onnx_checkpoint)
    options: dict[str, Any] = {"start_noise": "zeros", "ensemble_mirror": True}
    assert resolve_settings(CallConfig(ensemble_size=2, **options), found).ensemble_mirror is True
    with pytest.raises(InvalidValueError, match="all members that see the same photo are equal; use 2"):
        resolve_settings(CallConfig(ensemble_size=3, **options), found)
    with pytest.raises(InvalidValueError, match="all members are equal; use 1"):
        resolve_settings(CallConfig(ensemble_size=2, start_noise="zeros"), found)
    assert resolve_settings(CallConfig(ensemble_mirror=True), found).ensemble_mirror is False, "one member"


def test_members_start_from_scaled_noise() -> None:
    rgb, shape = make_photo(16, 24), (2, 2, 3)
    full = MemberNoise(shape, rgb=rgb, seed=3, zeros=False, latents=None)
    scaled = MemberNoise(shape, rgb=rgb, seed=3, zeros=False, scale=0.3, latents=None)
    np.testing.assert_allclose(scaled(1), 0.3 * full(1), rtol=1e-6)
    np.testing.assert_array_equal(scaled(1, step=2), full(1, step=2))  # noise between the steps is the sampler's


def test_the_embedded_model_states_how_its_members_differ() -> None:
    embedded = read_checkpoint(EMBEDDED_DIR)
    assert (embedded.default_ensemble_mirror, embedded.ensemble_noise_scale) == (True, 0.3)
    one, many = CallConfig(), CallConfig(ensemble_size=4)
    assert (embedded.mirrors(one), embedded.noise_scale(one), embedded.facts_of_call(one)) == (False, 1.0, {})
    assert embedded.facts_of_call(many) == {"ensemble_mirror": True, "ensemble_noise_scale": 0.3}
    assert embedded.facts_of_call(CallConfig(ensemble_size=4, ensemble_mirror=False)) == {"ensemble_noise_scale": 0.3}
    assert embedded.facts_of_call(CallConfig(ensemble_size=2, start_noise="zeros")) == {"ensemble_mirror": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble_mirror": "yes"}, "ensemble_mirror is 'yes'; true or false"),
        ({"ensemble_noise_scale": 0}, "ensemble_noise_scale is 0; a number above 0, to 1"),
        ({"ensemble_noise_scale": 2.5}, "ensemble_noise_scale is 2.5"),
        ({"ensemble_noise_scale": True}, "ensemble_noise_scale is True"),
    ],
)
def test_wrong_statements_are_refused(
    changes: dict[str, Any], message: str, onnx_checkpoint: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(onnx_checkpoint, folder)
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)
