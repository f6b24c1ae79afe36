# SPDX-License-Identifier: Apache-2.0
"""PyTorch on a CPU or GPU: the engine of published checkpoints and of those being trained (extra `torch`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float

from openmarigold.checkpoint import Checkpoint
from openmarigold.config import Dtype
from openmarigold.errors import InvalidValueError, MissingExtraError, OpenMarigoldError, one_line

try:
    import torch
    from torch import Tensor

    from openmarigold import backbone
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("openmarigold"):
        raise
    raise MissingExtraError(error.name, "torch") from error


class TorchEngine:
    """U-Net and VAE as diffusers modules. See `Engine`.

    The networks' weights and activations have the given precision; images, latents, the sampler and decoded depth are
    float32.

    Raises:
        CheckpointError: a network file is damaged.
        InvalidValueError: the device is not available, or does not compute in this precision.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str = "auto", dtype: Dtype = "float32") -> None:
        self.device = _choose_device(device)
        _check_dtype(dtype, self.device)
        self.dtype = dtype
        self._dtype = getattr(torch, dtype)
        # Convolutions may choose another algorithm for another batch size: on a CPU bytes must not depend on it.
        self.max_batch_size: int | None = 1 if self.device == "cpu" else None
        self.latent_channels = checkpoint.latent_channels
        files: dict[str, Any] = {"variant": checkpoint.variant, "dtype": self._dtype}
        self._unet = backbone.load_unet(checkpoint.directory / "unet", **files).to(self.device)  # pyright: ignore
        self._vae = backbone.load_vae(checkpoint.directory / "vae", **files).to(self.device)  # pyright: ignore
        embedding = backbone.load_empty_prompt_embedding(checkpoint.directory, variant=checkpoint.variant)
        self._empty_prompt_embedding = embedding.to(self.device, self._dtype)

    def encode(self, rgb: Float[np.ndarray, "b 3 H W"]) -> Float[Tensor, "b C h w"]:
        with _inference():
            return backbone.encode_to_latent(self._vae, self.to_engine(rgb).to(self._dtype)).float()

    def denoise(
        self,
        rgb_latent: Float[Tensor, "#b C h w"],
        noisy_latent: Float[Tensor, "b C h w"],
        *,
        timestep: int,
    ) -> Float[Tensor, "b C h w"]:
        with _inference():
            sample = torch.cat([rgb_latent.expand_as(noisy_latent), noisy_latent], dim=1).to(self._dtype)
            embedding = self._empty_prompt_embedding.expand(len(sample), -1, -1)
            return self._unet(sample, timestep, encoder_hidden_states=embedding, return_dict=False)[0].float()

    def decode(self, depth_latent: Float[Tensor, "b C h w"]) -> Float[np.ndarray, "b H W"]:
        with _inference():
            decoded = backbone.decode_to_image(self._vae, depth_latent.to(self._dtype))
            return decoded.float().mean(dim=1).cpu().numpy()

    def to_engine(self, array: Float[np.ndarray, "b C h w"]) -> Float[Tensor, "b C h w"]:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def is_finite(self, latent: Float[Tensor, "b C h w"]) -> bool:
        return bool(torch.isfinite(latent).all())


@contextmanager
def _inference() -> Iterator[None]:
    try:
        with torch.inference_mode():
            yield
    except RuntimeError as error:
        # On a CPU torch has no class of its own for it.
        if not isinstance(error, torch.OutOfMemoryError) and "alloc_cpu" not in str(error):
            raise
        raise OpenMarigoldError(
            f"out of memory ({one_line(error)}); try a smaller processing_resolution or batch_size"
        ) from error


def _choose_device(name: str) -> str:
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidValueError(
            f"device={name!r} is not available to torch {torch.__version__}; use cpu or auto, or install another torch"
        ) from error
    return name


def _check_dtype(dtype: str, device: str) -> None:
    if dtype == "float16" and device == "cpu":
        raise InvalidValueError(
            "dtype='float16' is not for CPUs, whose half-precision arithmetic is hundreds of times slower than "
            "float32; use bfloat16 (the same memory) or float32"
        )
    if dtype == "bfloat16" and device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        raise InvalidValueError("dtype='bfloat16' is not supported by this GPU; use float16 or float32")
