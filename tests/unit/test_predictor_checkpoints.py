# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint and its settings change: invariance, schedules, start noise, data types, broken weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from openmarigold.ensembling import ensemble
from openmarigold.errors import InvalidValueError, NumericalError
from openmarigold.predictor import Predictor
from tiny import make_photo, varied


def test_scale_only_and_absolute_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rgb = make_photo(48, 64)
    scale = Predictor.load(varied(tiny_checkpoint, tmp_path / "scale", shift_invariant=False), device="cpu")
    absolute = varied(tiny_checkpoint, tmp_path / "absolute", shift_invariant=False, scale_invariant=False)
    absolute_predictor = Predictor.load(absolute, device="cpu")
    members = [
        absolute_predictor(rgb, latents=member_latents[None]).depth
        for member_latents in np.random.default_rng(1).standard_normal((3, 8, 6, 8)).astype(np.float32)
    ]
    latents = np.random.default_rng(1).standard_normal((3, 8, 6, 8)).astype(np.float32)
    merged = absolute_predictor(rgb, ensemble_size=3, latents=latents)
    np.testing.assert_allclose(merged.depth, np.median(members, axis=0), atol=1e-6)
    assert merged.settings["invariance"] == "absolute"
    scaled = scale(rgb, ensemble_size=3, latents=latents)
    expected = ensemble(np.stack(members), invariance="scale")
    np.testing.assert_allclose(scaled.depth, expected.depth, atol=1e-6)
    assert scaled.settings["invariance"] == "scale"


def test_leading_timesteps_are_warned_of_once(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = {"timestep_spacing": "leading", "rescale_betas_zero_snr": False}
    predictor = Predictor.load(varied(tiny_checkpoint, tmp_path / "v1-0", scheduler=scheduler), device="cpu")
    rgb = make_photo(24, 32)
    predictor(rgb, timestep_spacing="leading")
    trailing = predictor(rgb, timestep_spacing="trailing")
    assert not caplog.records
    first, second = predictor(rgb), predictor(rgb)
    (record,) = caplog.records
    assert "v1-0 asks for leading timesteps" in record.getMessage()
    assert "timestep_spacing trailing fixes it" in record.getMessage()
    np.testing.assert_array_equal(first.depth, second.depth)
    assert first.settings["timestep_spacing"] == "leading"
    assert not np.array_equal(first.depth, trailing.depth)


def test_settings_that_a_checkpoint_has_no_use_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lcm = {"_class_name": "LCMScheduler", "rescale_betas_zero_snr": False}
    rgb = make_photo(24, 32)
    predictor = Predictor.load(varied(tiny_checkpoint, tmp_path / "lcm", scheduler=lcm), device="cpu")
    for setting in ({"final_step": "clean"}, {"timestep_spacing": "trailing"}):
        (name,) = setting
        with pytest.raises(InvalidValueError, match=f"{name} is a setting of DDIM, and lcm is an LCM checkpoint"):
            predictor(rgb, **setting)
    with pytest.raises(InvalidValueError, match="num_inference_steps=60 is more than the 50"):
        predictor(rgb, num_inference_steps=60)
    depths = [predictor(rgb, num_inference_steps=3, ensemble_size=2, batch_size=size).depth for size in (1, 2)]
    assert depths[0].tobytes() == depths[1].tobytes()
    with pytest.raises(InvalidValueError, match=r"ensemble_size=2 gains nothing .* starts from zeros"):
        Predictor.load(tiny_checkpoint, device="cpu")(rgb, ensemble_size=2, start_noise="zeros")


def test_zeros_as_start_noise_do_not_depend_on_the_seed(tiny_checkpoint: Path) -> None:
    predictor, rgb = Predictor.load(tiny_checkpoint, device="cpu"), make_photo(24, 32)
    depths = [predictor(rgb, seed=seed, start_noise="zeros").depth for seed in (1, 2)]
    np.testing.assert_array_equal(*depths)
    assert not np.array_equal(predictor(rgb, seed=1).depth, depths[0])


def test_bfloat16_is_near_float32_and_float16_is_refused_on_cpus(tiny_checkpoint: Path, onnx_checkpoint: Path) -> None:
    rgb = make_photo(48, 64)
    narrow = Predictor.load(tiny_checkpoint, device="cpu", dtype="bfloat16")(rgb)
    exact = Predictor.load(tiny_checkpoint, device="cpu")(rgb)
    assert narrow.settings["dtype"] == "bfloat16"
    assert narrow.depth.dtype == np.float32
    assert 0 < np.abs(narrow.depth - exact.depth).mean() < 0.05
    with pytest.raises(InvalidValueError, match=r"dtype='float16' is not for CPUs, .* use bfloat16"):
        Predictor.load(tiny_checkpoint, device="cpu", dtype="float16")
    with pytest.raises(InvalidValueError, match="dtype='bfloat16' is not for ONNX networks"):
        Predictor.load(onnx_checkpoint, engine="onnx", dtype="bfloat16")


@pytest.mark.parametrize(
    ("network", "weight", "stage"),
    [("unet", "conv_out.bias", "U-Net"), ("vae", "encoder.layers.0.bias", "VAE encoder")],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_are_not_finite_name_the_stage_and_the_cure(
    network: str, weight: str, stage: str, dtype: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    directory = varied(tiny_checkpoint, tmp_path / "broken")
    path = directory / network / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights[weight][0] = float("inf")
    save_file(weights, path, metadata={"format": "pt"})
    cure = "checkpoint verify" if dtype == "float32" else "bfloat16 may be too narrow for it: use dtype float32"
    with pytest.raises(NumericalError, match=rf"the {stage} of checkpoint broken .* not finite; .*{cure}"):
        Predictor.load(directory, device="cpu", dtype=dtype)(make_photo(24, 32))


def test_a_decoder_that_overflows_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = varied(tiny_checkpoint, tmp_path / "broken")
    path = directory / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    last = sorted(name for name in weights if name.startswith("decoder.") and name.endswith(".bias"))[-1]
    weights[last][:] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="the VAE decoder of checkpoint broken"):
        Predictor.load(directory, device="cpu").try_out()
