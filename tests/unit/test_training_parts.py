# SPDX-License-Identifier: Apache-2.0
"""Loss, learning rate, timesteps, state and the widened first layer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openmarigold.alignment import fit_scale_shift
from openmarigold.checkpoints.checkpoint import read_checkpoint
from openmarigold.checkpoints.safetensors_header import read_header
from openmarigold.data.sources import Source
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, OutputError
from openmarigold.networks.backbone import (
    load_unet,
    load_vae,
    save_tensors,
    widen_conv_in,
    widen_conv_out,
)
from openmarigold.networks.conversion import export_checkpoint
from openmarigold.seeding import generator_for
from openmarigold.training.loss import absolute_loss, affine_invariant_loss, latent_regularization, masked_latent_loss
from openmarigold.training.nano.generator import make_unet
from openmarigold.training.nano.recipes import UNetModelConfig
from openmarigold.training.noise import draw_timesteps, noisy_latent_and_target
from openmarigold.training.recipe import (
    OptimizationConfig,
    TimestepConfig,
    read_recipe,
    to_table,
)
from openmarigold.training.state import (
    StateWriter,
    check_recipe,
    collect_state,
    latest_state,
    load_state,
    set_damaged_aside,
)
from openmarigold.training.trainer import learning_rate_factor
from tiny import make_checkpoint
from training_data import write_training_data


@pytest.mark.parametrize("channels", [4, 8])
def test_widened_unet_equals_the_generator_on_equal_latents(channels: int) -> None:
    torch.manual_seed(0)
    unet = make_unet(
        UNetModelConfig(block_out_channels=(32, 32), layers_per_block=1, head_dim=16, cross_attention_dim=8),
        channels=channels,
    ).eval()
    latent, context = torch.randn(2, channels, 6, 7), torch.randn(2, 2, 8)
    bias = unet.conv_in.bias.detach().clone()  # pyright: ignore[reportOptionalMemberAccess]
    with torch.no_grad():
        before = unet(latent, 500, encoder_hidden_states=context).sample
        widen_conv_in(unet)
        after = unet(torch.cat([latent, latent], dim=1), 500, encoder_hidden_states=context).sample
    torch.testing.assert_close(after, before)
    assert unet.config["in_channels"] == unet.conv_in.in_channels == 2 * channels
    torch.testing.assert_close(unet.conv_in.bias.detach(), bias, rtol=0, atol=0)  # pyright: ignore


@pytest.mark.parametrize("num_targets", [2, 3])
def test_a_unet_widened_for_several_targets_answers_each_as_before(num_targets: int) -> None:
    torch.manual_seed(0)
    config = UNetModelConfig(block_out_channels=(32, 32), layers_per_block=1, head_dim=16, cross_attention_dim=8)
    unet = make_unet(config, channels=4).eval()
    latent, context = torch.randn(2, 4, 6, 7), torch.randn(2, 2, 8)
    with torch.no_grad():
        before = unet(latent, 500, encoder_hidden_states=context).sample
        widen_conv_out(widen_conv_in(unet, num_latents=1 + num_targets), num_latents=num_targets)
        wide = latent.repeat(1, 1 + num_targets, 1, 1)
        after = unet(wide, 500, encoder_hidden_states=context).sample
    assert (unet.config["in_channels"], unet.config["out_channels"]) == (4 * (1 + num_targets), 4 * num_targets)
    for answer in after.split(4, dim=1):
        torch.testing.assert_close(answer, before)


def test_masked_cells_never_touch_the_loss() -> None:
    torch.manual_seed(0)
    prediction = torch.randn(2, 4, 5, 6, requires_grad=True)
    wanted = torch.randn(2, 4, 5, 6)
    valid_mask = torch.rand(2, 1, 5, 6) > 0.4
    loss = masked_latent_loss(prediction, wanted, valid_mask).mean
    loss.backward()
    assert prediction.grad is not None
    chosen = valid_mask.expand_as(wanted)
    assert bool((prediction.grad[~chosen] == 0).all()) and bool((prediction.grad[chosen] != 0).all())
    oracle = ((prediction.detach() - wanted)[chosen] ** 2).mean()
    torch.testing.assert_close(loss.detach(), oracle)
    spoiled = wanted.masked_fill(~chosen, float("nan"))
    torch.testing.assert_close(masked_latent_loss(prediction, spoiled, valid_mask).mean.detach(), oracle)


def test_loss_without_a_valid_cell_is_zero_not_nan() -> None:
    prediction = torch.randn(1, 4, 3, 3, requires_grad=True)
    loss = masked_latent_loss(prediction, torch.zeros(1, 4, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.bool)).mean
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None and bool((prediction.grad == 0).all())


def test_affine_invariant_loss_is_the_error_left_by_a_least_squares_fit() -> None:
    torch.manual_seed(0)
    prediction, wanted = torch.randn(3, 1, 6, 7), torch.randn(3, 1, 6, 7)
    valid_mask = torch.rand(3, 1, 6, 7) > 0.3
    errors = []
    for p, d, m in zip(prediction.numpy(), wanted.numpy(), valid_mask.numpy(), strict=True):
        scale, shift = fit_scale_shift(p, d, m)
        errors.append(np.abs(scale * p + shift - d)[m])
    expected = np.concatenate(errors).mean()
    assert affine_invariant_loss(prediction, wanted, valid_mask).mean.item() == pytest.approx(expected, rel=1e-5)
    stretched = prediction * torch.tensor([0.5, 2.0, 3.0]).view(3, 1, 1, 1) + 0.7
    assert affine_invariant_loss(stretched, wanted, valid_mask).mean.item() == pytest.approx(expected, rel=1e-5)
    assert affine_invariant_loss(2 * wanted - 1, wanted, valid_mask).mean.item() == pytest.approx(0.0, abs=1e-6)
    weight = torch.rand(3, 1, 6, 7)
    weighted = np.concatenate([e * w[m] for e, w, m in zip(errors, weight.numpy(), valid_mask.numpy(), strict=True)])
    found = affine_invariant_loss(prediction, wanted, valid_mask, weight.masked_fill(~valid_mask, float("nan"))).mean
    assert found.item() == pytest.approx(weighted.mean(), rel=1e-5)


def test_affine_invariant_loss_ignores_invalid_pixels_and_survives_flat_maps() -> None:
    torch.manual_seed(0)
    prediction = torch.randn(2, 1, 5, 6, requires_grad=True)
    valid_mask = torch.rand(2, 1, 5, 6) > 0.4
    wanted = torch.randn(2, 1, 5, 6).masked_fill(~valid_mask, float("nan"))
    affine_invariant_loss(prediction, wanted, valid_mask).mean.backward()
    assert prediction.grad is not None and bool(prediction.grad.isfinite().all())
    assert bool((prediction.grad[~valid_mask] == 0).all()) and bool((prediction.grad[valid_mask] != 0).any())
    flat = torch.zeros(2, 1, 5, 6, requires_grad=True)
    loss = affine_invariant_loss(flat, wanted, valid_mask).mean
    loss.backward()
    assert np.isfinite(loss.item()) and flat.grad is not None and bool(flat.grad.isfinite().all())
    nothing = affine_invariant_loss(prediction, wanted, torch.zeros_like(valid_mask)).mean
    assert nothing.item() == 0


def test_absolute_loss_is_the_mean_error_of_valid_values() -> None:
    torch.manual_seed(0)
    prediction, wanted, valid_mask = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 5, 4), torch.rand(2, 6, 5, 4) > 0.4
    prediction.requires_grad_()
    loss = absolute_loss(prediction, wanted.masked_fill(~valid_mask, float("nan")), valid_mask)
    loss.mean.backward()
    expected = (prediction.detach() - wanted)[valid_mask].abs()
    torch.testing.assert_close(loss.mean.detach(), expected.mean())
    assert prediction.grad is not None and bool((prediction.grad[~valid_mask] == 0).all())
    assert loss.per_sample is not None and loss.per_sample.shape == (2,)
    doubled = absolute_loss(prediction, wanted, valid_mask, torch.full_like(wanted, 2.0)).mean
    torch.testing.assert_close(doubled, 2 * loss.mean)


def test_latent_regularization_is_zero_for_standard_channels() -> None:
    latent = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert latent_regularization(latent).item() < 1e-3
    assert latent_regularization(3 * latent + 1).item() == pytest.approx(5.0, rel=0.05)


def test_learning_rate_of_the_paper() -> None:
    """Published values at 3e-5: 5k -> 1.21e-5, 10k -> 4.8e-6, 18k -> 1.1e-6, 25k -> 3e-7."""
    config = OptimizationConfig(num_steps=25000, batch_size=32, learning_rate=3e-5)
    for step, expected in ((5000, 1.21e-5), (10000, 4.8e-6), (18000, 1.1e-6), (25000, 3e-7)):
        assert 3e-5 * learning_rate_factor(step, config) == pytest.approx(expected, rel=0.03)
    assert 0 < learning_rate_factor(0, config) < learning_rate_factor(99, config) < 1
    cosine = OptimizationConfig(num_steps=300, batch_size=1, learning_rate=1.0, decay="cosine")
    assert learning_rate_factor(200, cosine) == pytest.approx(0.505)
    assert learning_rate_factor(300, cosine) == pytest.approx(0.01)


def test_timesteps_are_uniform_with_the_asked_share_at_the_last() -> None:
    rng = generator_for(0, "test")
    drawn = draw_timesteps(rng, 20000, config=TimestepConfig(last_share=0.3), num_train_timesteps=1000)
    assert (drawn == 999).mean() == pytest.approx(0.3 + 0.7 / 1000, abs=0.01)
    uniform = draw_timesteps(rng, 20000, config=TimestepConfig(), num_train_timesteps=1000)
    assert uniform.min() == 0 and uniform.max() == 999
    assert uniform.mean() == pytest.approx(499.5, abs=8)


def test_noisy_latent_and_velocity_sample_by_sample() -> None:
    schedule = NoiseSchedule()
    clean, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    timesteps = torch.tensor([0, 500, 999])
    noisy, wanted = noisy_latent_and_target(clean, noise, timesteps, schedule)
    for i, timestep in enumerate(timesteps.tolist()):
        alpha = schedule.alphas_cumprod[timestep]
        torch.testing.assert_close(noisy[i], (alpha**0.5 * clean[i] + (1 - alpha) ** 0.5 * noise[i]).float())
        torch.testing.assert_close(wanted[i], (alpha**0.5 * noise[i] - (1 - alpha) ** 0.5 * clean[i]).float())
    # Zero terminal SNR: at the last timestep nothing of the depth is left and the target is the depth itself.
    torch.testing.assert_close(noisy[2], noise[2])
    torch.testing.assert_close(wanted[2], -clean[2])


def test_state_round_trip_and_damage(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = {name: value.detach() * 2 for name, value in model.named_parameters()}
    recipe = {"seed": 1, "run": {"save_period_s": 1}}
    writer = StateWriter(tmp_path, keep=2)
    settings = {"recipe": recipe, "inputs": {"base": "1"}, "average": average, "optimizer": optimizer}
    for step in (3, 7, 12):
        writer.submit(collect_state(step, model=model, **settings))
    with torch.no_grad():  # what is written in the background is what was submitted
        expected = model.weight.clone()
        model.weight.add_(1.0)
    writer.wait()
    with torch.no_grad():
        model.weight.copy_(expected)
    state = latest_state(tmp_path)
    assert state == tmp_path / "step-00000012"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000012"]

    other = torch.nn.Linear(3, 2)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    restored = {name: torch.zeros_like(value) for name, value in other.named_parameters()}
    arguments = {"model": other, "average": restored, "optimizer": fresh}
    assert load_state(state, inputs={"base": "1"}, **arguments) == 12
    torch.testing.assert_close(other.weight, model.weight, rtol=0, atol=0)
    torch.testing.assert_close(restored["bias"], average["bias"], rtol=0, atol=0)
    for mine, theirs in zip(
        fresh.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        for key in mine:
            torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=0)

    check_recipe(state, recipe | {"run": {"save_period_s": 9}})
    with pytest.raises(CheckpointError, match="another recipe \\(seed changed\\)"):
        check_recipe(state, {**recipe, "seed": 2})
    with pytest.raises(CheckpointError, match="from something else \\(base changed since\\)"):
        load_state(state, inputs={"base": "2"}, **arguments)
    (state / "tensors.safetensors").write_bytes((state / "tensors.safetensors").read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"cannot be resumed .*remove it to continue from step-00000007"):
        load_state(state, inputs={"base": "1"}, **arguments)
    (state / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        check_recipe(state, recipe)


def write_two_states(folder: Path) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    average = {name: value.detach() * 2 for name, value in model.named_parameters()}
    writer = StateWriter(folder, keep=2)
    for step in (3, 7):
        writer.submit(
            collect_state(step, recipe={"seed": 1}, inputs={}, model=model, average=average, optimizer=optimizer)
        )
    writer.wait()
    return model, optimizer


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["model", "average", "optimizer", "step"])
def test_a_damaged_state_is_found_and_the_one_before_it_is_used(tmp_path: Path, part: str) -> None:
    model, optimizer = write_two_states(tmp_path)
    newest = tmp_path / "step-00000007"
    if part == "step":
        path = newest / "state.json"
        path.write_text(path.read_text().replace('"step": 7', '"step": 5'))
    else:
        path = newest / "tensors.safetensors"
        flip(path, next(tensor.start for name, tensor in read_header(path).tensors.items() if name.startswith(part)))
    set_damaged_aside(tmp_path)
    assert latest_state(tmp_path) == tmp_path / "step-00000003"
    assert (tmp_path / "damaged-step-00000007").is_dir()

    writer = StateWriter(tmp_path, keep=2)  # step 7 is written again, and the damaged one goes
    writer.submit(collect_state(7, recipe={}, inputs={}, model=model, average={}, optimizer=optimizer))
    writer.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000007"]


def test_without_an_intact_state_nothing_is_renamed(tmp_path: Path) -> None:
    write_two_states(tmp_path)
    for name in ("step-00000003", "step-00000007"):
        flip(tmp_path / name / "tensors.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"step-00000007 cannot be resumed \(.*has SHA-256.*--no-resume"):
        set_damaged_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000007"]


def test_a_state_without_hashes_is_of_an_earlier_version_and_resumes(tmp_path: Path) -> None:
    write_two_states(tmp_path)
    (tmp_path / "step-00000007" / "SHA256SUMS").unlink()
    set_damaged_aside(tmp_path)
    assert latest_state(tmp_path) == tmp_path / "step-00000007"


def test_a_flipped_bit_of_plain_data_changes_its_identity(tmp_path: Path) -> None:
    write_training_data(tmp_path)
    before = Source("synthetic", tmp_path)
    (shard,) = (tmp_path / "synthetic").glob("train-*.tar")
    flip(shard, 700)  # within the first picture
    after = Source("synthetic", tmp_path)
    assert after.contents == before.contents  # names and sizes
    assert after.sha256 != before.sha256


def test_a_state_of_an_earlier_version_has_the_defaults_of_newer_keys(tmp_path: Path) -> None:
    recipe = to_table(read_recipe(Path(__file__).parents[2] / "recipes" / "nano-4-depth.toml"))
    earlier = {**recipe, "data": {name: value for name, value in recipe["data"].items() if name != "num_samples"}}
    del earlier["modality"]
    described = {"step": 3, "recipe": earlier, "inputs": {}, "param_groups": [], "scalars": {}}
    (tmp_path / "state.json").write_text(json.dumps(described))
    check_recipe(tmp_path, recipe)
    other = {**recipe, "data": {**recipe["data"], "num_samples": {"rendered": 10}}}
    with pytest.raises(CheckpointError, match=r"another recipe \(data.num_samples.* changed\)"):
        check_recipe(tmp_path, other)
    with pytest.raises(CheckpointError, match=r"another recipe \(modality changed\)"):
        check_recipe(tmp_path, {**recipe, "modality": "normals"})


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from openmarigold.errors import OutputError
from openmarigold.training.state import StateWriter, collect_state, latest_state

model = torch.nn.Linear(100, 100)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
model(torch.ones(1, 100)).sum().backward()
optimizer.step()
states = Path(sys.argv[1])
writer = StateWriter(states, keep=1)
for step in (1, 2):
    writer.submit(collect_state(step, recipe={}, inputs={}, model=model, average={}, optimizer=optimizer))
    try:
        writer.wait()
    except OutputError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
print(sorted(path.name for path in states.iterdir()))
"""


def test_full_disk_leaves_the_last_state(tmp_path: Path) -> None:
    """Files may not grow beyond a limit any more: the system's error is that of a full disk, but for its words."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    message, left = done.stdout.splitlines()
    assert message.startswith("cannot write") and "step-00000002" in message and "free space" in message
    assert left == "['step-00000001']"


def test_checkpoint_folder_is_what_diffusers_reads(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel

    folder = make_checkpoint(tmp_path / "tiny", "tiny")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    vae = AutoencoderTiny.from_pretrained(folder, subfolder="vae", use_safetensors=True)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config["timestep_spacing"] == "trailing"
    for ours, theirs in ((load_unet(folder / "unet"), unet), (load_vae(folder / "vae"), vae)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name])
    assert "block_out_channels" not in json.loads((folder / "vae" / "config.json").read_text())


def test_generators_differ_by_every_part_of_their_name() -> None:
    draws = {
        generator_for(*arguments).random()
        for arguments in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1), (1, "a", 2), (-1, "a", 0), (1, "a", 0, 1))
    }
    assert len(draws) == 7
    assert generator_for(1, "\udce9").random() not in draws, "a name that is not UTF-8 is one too"
    assert np.array_equal(generator_for(5, "x", 3).random(4), generator_for(5, "x", 3).random(4))


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path, change: str) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "tiny") / "unet"
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    if change == "missing":
        del tensors["conv_out.bias"]
    else:
        tensors["conv_extra.bias"] = torch.zeros(3)
    save_tensors(tensors, path)
    with pytest.raises(CheckpointError, match=rf"do not fit config\.json \({change}: conv_"):
        load_unet(folder)


def test_weights_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_tensors({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644
    with pytest.raises(OSError, match="No such file"):
        save_tensors({"x": torch.zeros(1)}, tmp_path / "missing" / "x.safetensors")


def test_export_refuses_to_replace_what_it_did_not_make(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", "tiny")
    precious = tmp_path / "models"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for destination in (precious, precious / "thesis.txt", checkpoint):
        with pytest.raises(OutputError, match="exists and is not an exported checkpoint"):
            export_checkpoint(read_checkpoint(checkpoint), destination, format="onnx")
    assert (precious / "thesis.txt").read_text() == "years of work"
    export_checkpoint(read_checkpoint(checkpoint), tmp_path / "onnx", format="onnx")
    export_checkpoint(read_checkpoint(checkpoint), tmp_path / "onnx", format="onnx")
    with pytest.raises(CheckpointError, match="ONNX networks already"):
        export_checkpoint(read_checkpoint(tmp_path / "onnx"), tmp_path / "again", format="onnx")
