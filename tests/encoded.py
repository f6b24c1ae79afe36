# SPDX-License-Identifier: Apache-2.0
"""A tiny checkpoint with an image encoder and log depth, as training writes them: random weights, real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from openmarigold.camera.conditions import CONDITIONS
from openmarigold.diffusion import NoiseSchedule
from openmarigold.networks.backbone import save_checkpoint
from openmarigold.networks.image_encoder import EfficientNetLiteEncoder
from tiny import INDEX, make_unet, make_vae

CONDITION_CHANNELS = (1, 2, 2, 3, 3)
LOG_INDEX = {
    **INDEX,
    "shift_invariant": False,
    "space": "log",
    "start_noise": "zeros",
    "ensemble_start_noise": "gaussian",
}


def make_encoder() -> EfficientNetLiteEncoder:
    """The smallest variant, with statistics of batch norms that differ from 0 and 1."""
    encoder = EfficientNetLiteEncoder("lite0", CONDITION_CHANNELS).eval()
    with torch.no_grad():
        for name, value in (*encoder.named_parameters(), *encoder.named_buffers()):
            if name.endswith("norm.weight"):
                value.uniform_(0.8, 1.2)
            elif name.endswith("norm.bias"):
                value.uniform_(0.0, 0.4)
            elif name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.1, 0.5)
    return encoder


def make_encoded_checkpoint(directory: Path, **index: Any) -> Path:
    """Writes it, with weights in half precision; `index` joins model_index.json and may state `condition_on`."""
    extra = CONDITIONS.get(index.get("condition_on", ""), 0)
    with torch.random.fork_rng():
        torch.manual_seed(13)
        vae, encoder = make_vae("tiny"), make_encoder()
        unet = make_unet(8, in_channels=8 + sum(CONDITION_CHANNELS) + extra)
        embedding = torch.randn(1, 2, 16)
        with torch.no_grad():
            vae.decoder.layers[-1].weight.mul_(20.0)
    save_checkpoint(
        directory,
        vae=vae,
        unet=unet,
        empty_prompt_embedding=embedding.half().float(),
        schedule=NoiseSchedule(),
        index={**LOG_INDEX, **index},
        dtype=torch.float16,
        image_encoder=encoder,
    )
    return directory
