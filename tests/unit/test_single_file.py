# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion in one file: tiny ones of both versions, named as the originals are, unpacked and trained."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from openmarigold.checkpoints.single_file import read_single_file
from openmarigold.errors import CheckpointError, RecipeError
from openmarigold.networks.backbone import load_empty_prompt_embedding, load_unet, load_vae
from openmarigold.networks.single_file import unpack_single_file
from openmarigold.predictor import Predictor
from openmarigold.training import train
from openmarigold.training.starting import make_recipe
from own_pictures import prepare_own_pictures
from training_data import write_training_data

WIDTH = 64  # of the text encoder, one head
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}


def original_unet_name(name: str) -> str:
    """The name that a weight of a U-Net with one layer a block has in the original code."""
    is_resnet = "resnets" in name
    for new, old in ENDS.items():
        if name.startswith(new):
            name = name.replace(new, old)
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name):
        way, block, what, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if way == "down":
            place = f"{2 * block + 2}.0.op" if what == "downsamplers" else f"{2 * block + 1 + number}"
            name = f"input_blocks.{place}"
        else:
            attends = block == 0  # the first of the upper half
            place = f"{2 * block + 1}.{2 if attends else 1}" if what == "upsamplers" else f"{2 * block + number}"
            name = f"output_blocks.{place}"
        rest = rest.removeprefix("conv.") if what == "downsamplers" else rest
        name += {"resnets": ".0", "attentions": ".1"}.get(what, "") + f".{rest}"
    for new, old in RESNET.items():
        name = name.replace(f".{new}.", f".{old}.") if is_resnet else name
    return f"model.diffusion_model.{name}"


def original_vae_name(name: str) -> str:
    for new, old in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("attn_1.group_norm", "attn_1.norm"),
        ("attn_1.to_out.0", "attn_1.proj_out"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0.conv", "downsample.conv"),
        ("upsamplers.0.conv", "upsample.conv"),
    ):
        name = name.replace(new, old)
    name = re.sub(r"attn_1\.to_([qkv])", r"attn_1.\1", name)
    name = re.sub(r"down_blocks\.(\d)\.", r"down.\1.", name).replace("resnets", "block")
    name = re.sub(r"up_blocks\.(\d)\.", lambda found: f"up.{3 - int(found[1])}.", name)
    return f"first_stage_model.{name}"


def original_text(model: Any, version: int) -> dict[str, torch.Tensor]:
    state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    if version == 1:
        return {f"cond_stage_model.transformer.text_model.{name}": value for name, value in state.items()}
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "text_projection": torch.eye(WIDTH),
        **{f"ln_final.{end}": state[f"final_layer_norm.{end}"] for end in ("weight", "bias")},
    }
    for end in ("weight", "bias"):
        layer, block = "encoder.layers.0.", "transformer.resblocks.0."
        joined = [state[f"{layer}self_attn.{part}_proj.{end}"] for part in "qkv"]
        found[f"{block}attn.in_proj_{end}"] = torch.cat(joined)
        for new, old in (
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            found[f"{block}{old}.{end}"] = state[f"{layer}{new}.{end}"]
    # The last block, which the second version does not use.
    blocks = {name: value for name, value in found.items() if "resblocks" in name}
    last = {name.replace("resblocks.0", "resblocks.1"): value + 1 for name, value in blocks.items()}
    return {f"cond_stage_model.model.{name}": value for name, value in (found | last).items()}


def write_single_file(path: Path, version: int) -> tuple[Any, Any, torch.Tensor]:
    """Writes a tiny Stable Diffusion; returns its U-Net, its autoencoder and the embedding of ""."""
    torch.manual_seed(version)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8 if version == 1 else (1, 1),
        use_linear_projection=version == 2,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 64),
        latent_channels=4,
    )
    config: Any = CLIPTextConfig
    sizes = {"vocab_size": 3, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1}
    act = "quick_gelu" if version == 1 else "gelu"
    text = CLIPTextModel(config(**sizes, num_attention_heads=1, hidden_act=act, bos_token_id=1, eos_token_id=2)).eval()
    tensors = {original_unet_name(name): value for name, value in unet.state_dict().items()}
    for name, value in vae.state_dict().items():
        old = original_vae_name(name)
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", old)
        tensors[old] = value[..., None, None] if is_projection else value
    tensors |= original_text(text, version)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)
    with torch.no_grad():
        return unet, vae, text(torch.tensor([[1, 2]]))[0]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and with a cache of its own."""

    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("OPENMARIGOLD_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(("version", "predicts"), [(1, "epsilon"), (2, "v_prediction")])
def test_a_file_is_unpacked_to_the_same_networks(tmp_path: Path, version: int, predicts: str) -> None:
    path = tmp_path / "sd.safetensors"
    unet, vae, embedding = write_single_file(path, version)
    folder = unpack_single_file(path)
    for ours, theirs in ((load_unet(folder / "unet"), unet), (load_vae(folder / "vae"), vae)):
        state = ours.state_dict()
        assert state.keys() == theirs.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    sample, context = torch.randn(1, 4, 8, 8), torch.randn(1, 2, WIDTH)
    with torch.no_grad():
        both = (load_unet(folder / "unet"), unet.eval())
        pair = [one(sample, 7, encoder_hidden_states=context).sample for one in both]
    torch.testing.assert_close(*pair, atol=1e-6, rtol=0)
    torch.testing.assert_close(load_empty_prompt_embedding(folder), embedding, atol=1e-6, rtol=0)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == predicts and scheduler["rescale_betas_zero_snr"] is False
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert unpack_single_file(path) == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == before, "once is enough"


def test_the_published_shapes_are_known(tmp_path: Path) -> None:
    write_single_file(tmp_path / "v2-1_512-ema.safetensors", 2)
    found = read_single_file(tmp_path / "v2-1_512-ema.safetensors")
    assert found.prediction_type == "epsilon" and found.version == 2
    assert found.unet["attention_head_dim"] == [1, 1] and found.text_encoder["num_hidden_layers"] == 1


NO_ATTENTION = {
    f"model.diffusion_model.input_blocks.{name}.weight": torch.zeros(4, 4) for name in ("0.0", "1.0.out_layers.3")
}


def test_what_is_no_stable_diffusion_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors is not a Stable Diffusion 1 or 2 in one file"):
        read_single_file(tmp_path / "other.safetensors")
    save_file({**NO_ATTENTION}, tmp_path / "flat.safetensors")
    with pytest.raises(CheckpointError, match=r"in one file \(its tensors have other shapes\); give a checkpoint in"):
        read_single_file(tmp_path / "flat.safetensors")
    (tmp_path / "sd.ckpt").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"sd\.ckpt is not a \.safetensors file; a \.ckpt or \.bin is a pickle"):
        read_single_file(tmp_path / "sd.ckpt")


def test_a_training_starts_from_a_file(tmp_path: Path) -> None:
    base = tmp_path / "v1-5.safetensors"
    write_single_file(base, 1)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'kind = "depth"\nbase = "{base}"\ncheckpoint = {{ name = "tiny", processing_resolution = 48 }}\n'
        "data = { sources = { synthetic = 1.0 }, size = [32, 48], cache = false }\n"
        'timesteps = { prediction_type = "v_prediction" }\n'
        "optimization = { num_steps = 1, batch_size = 1, learning_rate = 1e-4 }\n"
    )
    data = write_training_data(tmp_path / "data", num_pairs=1)
    checkpoint = train(recipe, data_dir=data, output_dir=tmp_path / "run", device="cpu")
    assert checkpoint is not None
    assert Predictor.load(checkpoint)(np.zeros((48, 48, 3), np.uint8)).depth.shape == (48, 48)


def test_a_recipe_is_made_for_a_file(tmp_path: Path) -> None:
    base = tmp_path / "v1-5.safetensors"
    write_single_file(base, 1)
    data = prepare_own_pictures(tmp_path / "raw", tmp_path / "data")
    table = make_recipe(data, [f"base={base}"])
    assert table["timesteps"]["prediction_type"] == "v_prediction"
    plain = make_recipe(data)["optimization"]["learning_rate"]
    assert table["optimization"]["learning_rate"] > plain
    for override in ("optimization.batch_size=many", "optimization.batch_size=-1", "optimization=3", "data=3"):
        with pytest.raises(RecipeError, match=f"--set.*{override.split('=')[0]}"):
            make_recipe(data, [override])
