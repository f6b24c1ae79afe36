# SPDX-License-Identifier: Apache-2.0
"""One optimizer step of the 866 million weights of Stable Diffusion 2's U-Net, through `train`, on a 24 GiB machine.

Needs 20 GB of memory, 20 GB of disk and minutes: `pytest -m slow tests/e2e/test_full_size_training.py -s`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training_data import write_training_data

pytestmark = pytest.mark.slow

# The shapes of Stable Diffusion 2, before its first layer is widened; random weights.
MAKE = """
import sys
import torch
from pathlib import Path
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from openmarigold.networks.backbone import save_checkpoint
from openmarigold.diffusion import NoiseSchedule

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=96, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280),
    attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True,
)
vae = AutoencoderKL(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=768,
)
save_checkpoint(Path(sys.argv[1]), vae=vae, unet=unet, empty_prompt_embedding=torch.randn(1, 2, 1024),
                schedule=NoiseSchedule(rescale_betas_zero_snr=False))
"""
RECIPE = """
kind = "depth"
base = "{base}"
data = {{ sources = {{ synthetic = 1.0 }}, size = [480, 640] }}
checkpoint = {{ name = "full-size" }}

[optimization]
num_steps = 2
batch_size = 1
learning_rate = 3e-5
gradient_checkpointing = true
"""


def test_the_full_unet_takes_a_step(tmp_path: Path) -> None:
    base = tmp_path / "base"
    subprocess.run([sys.executable, "-c", MAKE, str(base)], check=True)
    write_training_data(tmp_path / "data", num_pairs=1)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(base=base))
    command = [sys.executable, "-m", "openmarigold", "train", "--recipe", str(recipe), "--device", "cpu"]
    command += ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "run"), "--stop-after-steps", "1"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    state = tmp_path / "run" / "states" / "step-00000001"
    size = (state / "tensors.safetensors").stat().st_size
    seconds = 1 / max(row["samples_per_s"], 1e-9)
    print(f"\none step of 866 M weights: {seconds:.1f} s, peak {row['peak_memory'] / 2**30:.2f} GiB")
    print(f"loss {row['loss']:.3f}; state {size / 2**30:.2f} GiB; {time.monotonic() - started:.0f} s in all")
    assert row["loss"] > 0
    assert row["peak_memory"] < 22 * 2**30
    assert size > 3 * 4 * 865_922_244
