# SPDX-License-Identifier: Apache-2.0
"""One prediction at the full Stable Diffusion 2 architecture (0.95 billion random weights) against diffusers.

Ours is the torch engine, which keeps to the memory of diffusers (OpenVINO does not in float32: docs/speed.md). Each
pipeline runs in a process of its own, so that its peak memory can be read. Needs 4 GB of disk, 6 GB of memory and
minutes: `pytest -m slow tests/parity/test_full_size.py -s`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

# The shapes of U-Net and VAE of Stable Diffusion 2; the first layer takes two latents.
MAKE = """
import torch
from pathlib import Path
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from openmarigold.networks.backbone import save_checkpoint
from openmarigold.diffusion import NoiseSchedule

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=96, in_channels=8, out_channels=4, block_out_channels=(320, 640, 1280, 1280),
    attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True,
)
vae = AutoencoderKL(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=768,
)
counts = [sum(p.numel() for p in model.parameters()) for model in (unet, vae)]
assert counts == [865_922_244, 83_653_863], counts
with torch.no_grad():
    vae.decoder.conv_out.weight.mul_(3)  # a fresh decoder gives a nearly constant map
index = {"_class_name": "MarigoldDepthPipeline", "prediction_type": "depth", "scale_invariant": True,
         "shift_invariant": True, "default_denoising_steps": 1, "default_processing_resolution": 768}
save_checkpoint(Path(folder), vae=vae, unet=unet, empty_prompt_embedding=torch.randn(1, 2, 1024),
                schedule=NoiseSchedule(), index=index)
"""
DIFFUSERS = """
import torch
from PIL import Image
from diffusers import MarigoldDepthPipeline
from safetensors.torch import load_file

pipeline = MarigoldDepthPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
pipeline.empty_text_embedding = load_file(folder + "/empty_prompt_embedding.safetensors")["empty_prompt_embedding"]
result = pipeline(Image.fromarray(rgb), latents=torch.from_numpy(latents), num_inference_steps=1)
depth = result.prediction[0, :, :, 0]
"""
OURS = """
from openmarigold import Predictor

predictor = Predictor.load(folder, engine="torch", device="cpu", dtype=dtype)
depth = predictor(rgb, latents=latents, num_inference_steps=1).depth
"""
# `VmHWM`, the most memory this process has had; `ru_maxrss` would begin with that of the process that started it.
REPORT = """
import json, re, time
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 2**20
np.save(output, depth)
print(json.dumps({"peak_gib": peak, "seconds": time.perf_counter() - started}))
"""


def run(code: str, **variables: object) -> dict[str, float]:
    prelude = "import time\nstarted = time.perf_counter()\n" + "".join(
        f"{name} = {value!r}\n" for name, value in variables.items()
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.strip().splitlines()[-1]) if result.stdout.strip() else {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_full_stable_diffusion_2_architecture(tmp_path: Path) -> None:
    folder = str(tmp_path / "full")
    run(MAKE, folder=folder)
    inputs = """
import numpy as np
rows, columns = np.mgrid[:576, :768]
waves = [np.sin(rows / (9 + k) + k) * np.cos(columns / (13 + k)) for k in range(3)]
rgb = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
latents = np.random.default_rng(0).standard_normal((1, 4, 72, 96)).astype(np.float32)
"""
    runs = {"diffusers": (DIFFUSERS, "float32"), "ours": (OURS, "float32"), "ours, bfloat16": (OURS, "bfloat16")}
    reports, depths = {}, {}
    for name, (code, dtype) in runs.items():
        output = str(tmp_path / f"{name}.npy")
        reports[name] = run(inputs + code + REPORT, folder=folder, output=output, dtype=dtype)
        depths[name] = np.load(output)
        print(name, reports[name], flush=True)
    expected = depths["diffusers"]
    difference = np.abs(depths["ours"] - expected).max()
    narrow = np.abs(depths["ours, bfloat16"] - expected)
    print(f"std {expected.std():.4f}, max difference {difference:.2e}, in bfloat16 {narrow.max():.2e}", flush=True)
    assert expected.shape == (576, 768)
    assert expected.std() > 0.01, "a constant map proves nothing"
    assert difference <= 1e-4
    peak = reports["diffusers"]["peak_gib"]
    assert reports["ours"]["peak_gib"] <= peak
    assert reports["ours, bfloat16"]["peak_gib"] <= 0.6 * peak
