# SPDX-License-Identifier: Apache-2.0
"""Low-rank fine-tuning: merged equals separate, here, in diffusers and in PEFT; resumed equals uninterrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openmarigold.errors import InvalidValueError, RecipeError
from openmarigold.networks.adapters import ADAPTER_DIR, LoraUNet, as_low_rank
from openmarigold.networks.backbone import load_unet, widen_conv_in
from openmarigold.training import train
from openmarigold.training.recipe import parse_recipe
from tiny import make_checkpoint, make_unet
from training_data import write_training_data

TARGETS = ("to_q", "to_out.0", "conv1")
RECIPE = """
kind = "depth"
base = "base"
data = { sources = { synthetic = 1.0 }, size = [32, 48], cache = false }
lora = { rank = 2, targets = ["to_q", "to_v", "conv1"] }
checkpoint = { name = "tiny", processing_resolution = 48 }
optimization = { num_steps = 6, batch_size = 2, learning_rate = 1e-2, warmup_steps = 1, ema_decay = 0.5 }
"""


def inputs(channels: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, channels, 8, 12, generator=generator),
        torch.tensor([3, 700]),
        torch.randn(2, 2, 16, generator=generator),
    )


def answer(unet: Any) -> torch.Tensor:
    sample, timesteps, context = inputs()
    with torch.no_grad():
        return unet(sample, timesteps, encoder_hidden_states=context).sample


@pytest.fixture
def base() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return widen_conv_in(make_unet(4, in_channels=4)).eval()


def trained(base: Any) -> LoraUNet:
    """As after training: every matrix and the first layer have moved."""
    lora = LoraUNet(base, rank=2, alpha=3.0, targets=TARGETS, in_full=("conv_in",), seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lora


def test_an_untrained_update_changes_nothing(base: Any) -> None:
    before = answer(base)
    lora = LoraUNet(base, rank=2, alpha=2.0, targets=TARGETS, in_full=("conv_in",), seed=5)
    assert torch.equal(answer(base), before)
    low_rank, full = lora.groups(full_factor=0.1)
    assert [tuple(p.shape) for p in full["params"]] == [(8, 8, 3, 3)] and full["factor"] == 0.1
    trained = [name for name, p in base.named_parameters() if p.requires_grad]
    assert len(trained) == 1 + len(low_rank["params"]) and all("lora_" in n or n == "conv_in.weight" for n in trained)


def test_merged_equals_separate_in_use_in_diffusers_and_in_peft(base: Any, tmp_path: Path) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from peft import PeftModel

    before, weights = answer(base), {name: value.clone() for name, value in base.state_dict().items()}

    def fresh() -> Any:
        unet: Any = UNet2DConditionModel.from_config(base.config)
        unet.load_state_dict(weights)
        return unet.eval()

    lora = trained(base)
    wanted = answer(base)
    assert (wanted - before).abs().max() > 0.01
    lora.save(tmp_path, base="the base")
    for merged in (lora.merged(), lora.merged(weights)):
        torch.testing.assert_close(answer(merged.eval()), wanted, atol=1e-5, rtol=0)
    separate = fresh()
    separate.load_lora_adapter(tmp_path, prefix="unet", use_safetensors=True)
    torch.testing.assert_close(answer(separate), wanted, atol=1e-5, rtol=0)
    separate.fuse_lora()  # diffusers' own merging
    torch.testing.assert_close(answer(separate), wanted, atol=1e-5, rtol=0)
    other = fresh()
    found, alphas, facts = StableDiffusionLoraLoaderMixin.lora_state_dict(tmp_path, return_lora_metadata=True)
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(found, alphas, other, metadata=facts)
    torch.testing.assert_close(answer(other), wanted, atol=1e-5, rtol=0)
    wrapped: Any = PeftModel.from_pretrained(fresh(), tmp_path)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(answer(wrapped), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (320, 8, 3, 3), (8, 320, 3, 3)])
def test_a_change_in_full_is_an_exact_update(shape: tuple[int, ...]) -> None:
    change = torch.randn(shape)
    update = as_low_rank(change)
    assert update.rank == min(shape[0], change[0].numel())
    assert torch.equal(update.product(), change)


def test_unknown_layers_are_refused(base: Any) -> None:
    with pytest.raises(
        InvalidValueError, match=r"names only what is trained in full anyway \(conv_in\); name other lay"
    ):
        LoraUNet(base, rank=2, alpha=2.0, targets=("conv_in",), in_full=("conv_in",), seed=5)
    with pytest.raises(
        InvalidValueError, match=r"lora\.targets names to_x, which no layer of this U-Net ends with; su"
    ):
        LoraUNet(base, rank=2, alpha=2.0, targets=("to_q", "to_x"), in_full=("conv_in",), seed=5)
    table = {
        "kind": "depth",
        "base": "b",
        "data": {"sources": {"a": 1.0}, "size": [32, 32]},
        "checkpoint": {"name": "n"},
    }
    table |= {"optimization": {"num_steps": 1, "batch_size": 1, "learning_rate": 1.0}, "lora": {"half_base": True}}
    with pytest.raises(
        RecipeError, match=r"lora\.half_base needs lora\.rank above 0 and optimization\.mixed_precision"
    ):
        parse_recipe(table, where="r")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    write_training_data(folder / "data")
    make_checkpoint(folder / "base", "kl")
    (folder / "recipe.toml").write_text(RECIPE.replace('"base"', f'"{folder / "base"}"'))
    return folder


def go(workspace: Path, name: str, *overrides: str, stop: int | None = None) -> Path:
    paths = {"data_dir": workspace / "data", "output_dir": workspace / name}
    train(workspace / "recipe.toml", overrides=overrides, device="cpu", stop_after_steps=stop, **paths)
    return workspace / name


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Path:
    return go(workspace, "whole")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_unet(run / "checkpoint" / "unet").state_dict()


def test_a_run_ends_in_a_merged_checkpoint_and_its_update(workspace: Path, whole: Path) -> None:
    from diffusers import MarigoldDepthPipeline

    before, after = load_unet(workspace / "base" / "unet").state_dict(), weights_of(whole)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "conv_in.weight" in changed and "conv_in.bias" not in changed
    assert all(name == "conv_in.weight" or name.split(".")[-2] in ("to_q", "to_v", "conv1") for name in changed)
    assert len(changed) > 10
    photo = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    settings: Any = {"num_inference_steps": 1, "processing_resolution": 48, "match_input_resolution": False}
    depths = []
    for separate in (True, False):
        pipeline: Any = MarigoldDepthPipeline.from_pretrained(whole / "checkpoint")
        pipeline.set_progress_bar_config(disable=True)
        if separate:
            pipeline.unet = load_unet(workspace / "base" / "unet")
            pipeline.unet.load_lora_adapter(whole / "checkpoint" / ADAPTER_DIR, prefix="unet", use_safetensors=True)
        depths.append(pipeline(photo / 255.0, generator=torch.Generator().manual_seed(0), **settings).prediction)
    assert np.ptp(depths[0]) > 0
    np.testing.assert_allclose(depths[0], depths[1], atol=1e-5)


def test_states_hold_what_is_trained_and_resume_exactly(workspace: Path, whole: Path) -> None:
    halved = go(workspace, "halved", stop=3)
    (state,) = (halved / "states").glob("step-*")
    names = load_file(state / "tensors.safetensors").keys()
    assert {name.split("/")[0] for name in names} == {"model", "average", "optimizer"}
    assert all("lora_" in name or "conv_in.weight" in name for name in names)
    go(workspace, "halved")
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (halved, whole)]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]
    theirs = weights_of(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in weights_of(halved).items())


def test_a_base_in_half_precision_is_merged_into_the_whole_one(workspace: Path) -> None:
    run = go(workspace, "half", "lora.half_base=true", "optimization.mixed_precision=bf16", stop=2)
    run = go(workspace, "half", "lora.half_base=true", "optimization.mixed_precision=bf16")
    before, after = load_unet(workspace / "base" / "unet").state_dict(), weights_of(run)
    assert torch.equal(after["mid_block.resnets.0.conv2.weight"], before["mid_block.resnets.0.conv2.weight"])
    rounded = before["mid_block.resnets.0.conv2.weight"].bfloat16().float()
    assert not torch.equal(rounded, before["mid_block.resnets.0.conv2.weight"]), "a test of nothing"
    assert not torch.equal(after["conv_in.weight"], before["conv_in.weight"])


def test_the_model_card_states_what_the_run_knows(workspace: Path, whole: Path) -> None:
    card = (whole / "checkpoint" / "README.md").read_text()
    front, text = card.split("---\n")[1:3]
    assert 'tags: ["marigold", "openmarigold", "depth"]' in front and "license" not in front
    for line in (
        "# tiny",
        "| trained | low-rank updates of rank 2, merged; also in `adapter/` |",
        "| steps | 6 of 6 |",
        "| learning rate | 0.01, warm-up 1 steps, exponential decay |",
        "| synthetic | 100.0 % | 6 | 32x48 |",
        "This checkpoint was not scored.",
    ):
        assert line in text.splitlines(), line
    recipe = json.loads(card.split("```json\n")[1].split("```")[0])
    assert recipe == json.loads((whole / "recipe.json").read_text()) | {"base": "base"}
    assert "states no license" in text
    adapter = json.loads((whole / "checkpoint" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "base"
    for path in (whole / "checkpoint").rglob("*"):  # which may be uploaded
        assert path.is_dir() or str(workspace).encode() not in path.read_bytes(), path
