# SPDX-License-Identifier: Apache-2.0
"""The three networks behind one protocol; everything else of a prediction is the same whichever engine runs them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from openmarigold.checkpoint import Checkpoint
from openmarigold.config import Dtype

Latent = Any
"""`[b C h w]` float32 in the engine's own array type: a NumPy array or a tensor on the engine's device."""


@runtime_checkable
class Engine(Protocol):
    """Encodes images, denoises latents and decodes depth. `h = H / 8`, `w = W / 8`."""

    device: str
    dtype: str
    """Precision of the networks; latents are float32 whatever it is."""
    latent_channels: int
    max_batch_size: int | None
    """Largest batch whose results are bit for bit those of single images; None where single ones differ too."""

    def encode(self, rgb: Float[np.ndarray, "b 3 H W"]) -> Latent:
        """Scaled latent of images in [-1, 1]; `H` and `W` are multiples of 8. Paper: §3.2."""
        ...

    def denoise(self, rgb_latent: Latent, noisy_latent: Latent, *, timestep: int) -> Latent:
        """The U-Net's raw output for `[rgb_latent, noisy_latent]`; one `rgb_latent` serves a whole batch."""
        ...

    def decode(self, depth_latent: Latent) -> Float[np.ndarray, "b H W"]:
        """Decoded depth, about [-1, 1] but not clipped. Paper: §3.2."""
        ...

    def to_engine(self, array: Float[np.ndarray, "b C h w"]) -> Latent:
        """The same values as the engine's own array type."""
        ...

    def is_finite(self, latent: Latent) -> bool:
        """Whether every value is a finite number."""
        ...


def open_engine(checkpoint: Checkpoint, *, device: str = "auto", dtype: Dtype = "float32") -> Engine:
    """The engine for the checkpoint's kind of weights, with the networks loaded.

    Raises:
        CheckpointError: a network file is damaged.
        InvalidValueError: the device is not available, or does not compute in this precision.
        MissingExtraError: safetensors weights without the extra `torch`.
    """
    if checkpoint.weights == "onnx":
        from openmarigold.engines.onnx import OnnxEngine

        return OnnxEngine(checkpoint, device=device, dtype=dtype)
    from openmarigold.engines.torch import TorchEngine

    return TorchEngine(checkpoint, device=device, dtype=dtype)
