# SPDX-License-Identifier: Apache-2.0
"""PyTorch on a CPU or GPU: the engine of published checkpoints and of those being trained (extra `torch`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.checkpoints.weight_files import IMAGE_ENCODER, part_folder
from openmarigold.config import LATENT_FACTOR, CompileMode, Dtype
from openmarigold.engines import Linearized
from openmarigold.errors import InvalidValueError, OpenMarigoldError, needs_extra, one_line
from openmarigold.printing import quoted_logger

with needs_extra("torch"):
    import torch
    from torch import Tensor

    from openmarigold.networks import backbone
    from openmarigold.networks.graphs import RecordedNetwork
    from openmarigold.networks.memory import available_memory
    from openmarigold.networks.rewrites import fold_constant_context, fold_upsampling
    from openmarigold.networks.strips import (
        decode_in_strips,
        encode_in_strips,
        one_pass_bytes,
        runs_in_strips,
        strips_bytes,
    )

_MEMORY_SHARE = 0.8  # of the free memory, for a batch: allocators waste some
_STRIPS_FROM = 2**20  # pixels, on a CPU: from there on strips take less memory and no more time
_MPS_BATCH_SIZE = 4  # torch does not report there how much memory a batch took
_log = quoted_logger(__name__)


class TorchEngine:
    """U-Net and VAE as diffusers modules. See `Engine`.

    Weights and activations have the given precision; images, latents, the sampler and decoded depth are float32. The
    empty prompt's context is folded into the U-Net and, on a CPU, doublings into the VAE's convolutions (see
    `rewrites`). `plain` leaves both out, for comparison. A large image goes through the VAE in strips of rows (see
    `strips`), which is exact: on a CPU from 2^20 pixels on, elsewhere if one pass does not fit into memory. A VAE of an
    unknown kind then runs in tiles with blended seams, which changes the result. Threads take turns, because tiles,
    recorded graphs and the measured peak of memory belong to the engine.

    Raises:
        CheckpointError: a network file is damaged.
        InvalidValueError: the device is not available, or does not compute in this precision.
    """

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: Dtype = "float32",
        tiny_vae: TinyVae | None = None,
        compile: CompileMode = "off",
        plain: bool = False,
    ) -> None:
        self.device = _choose_device(device)
        _check_dtype(dtype, self.device)
        self.dtype = dtype
        self._dtype = getattr(torch, dtype)
        # Convolutions may choose another algorithm for another batch size; on a CPU results must not depend on it.
        self.max_batch_size: int | None = 1 if self.device == "cpu" else None
        self.latent_channels = checkpoint.latent_channels
        self.condition_channels = checkpoint.condition_channels
        self._modality = checkpoint.modality
        files: dict[str, Any] = {"variant": checkpoint.variant, "dtype": self._dtype}
        unet = backbone.load_unet(checkpoint.directory / "unet", **files)
        embedding = backbone.load_empty_prompt_embedding(checkpoint.directory, variant=checkpoint.variant)
        self._unet = self._placed(unet if plain else fold_constant_context(unet, embedding))
        self._empty_prompt_embedding = embedding.to(self.device, self._dtype)
        vaes = _load_vaes(checkpoint, tiny_vae, self._dtype)
        if self.device == "cpu" and not plain:  # measured only there
            vaes = {name: fold_upsampling(vae) for name, vae in vaes.items()}
        self._vaes = {name: self._placed(vae) for name, vae in vaes.items()}
        self._in_strips = {name: runs_in_strips(vae) for name, vae in vaes.items()}
        self._image_encoder = None
        if checkpoint.image_encoder:
            encoder = backbone.load_image_encoder(part_folder(checkpoint.directory, IMAGE_ENCODER), **files)
            self._image_encoder = self._placed(encoder)
        self._timesteps: dict[int, Tensor] = {}
        self._turn = threading.Lock()
        self._compile = compile
        networks = {"encode": self._encode, "denoise": self._denoise, "decode": self._decode}
        self._networks = {name: _compiled(network, compile, self.device) for name, network in networks.items()}
        # The most memory that an image of a batch has needed so far, without the weights.
        self._bytes_per_pixel = dict.fromkeys(networks, 0.0)

    def encode(self, rgb: Float[np.ndarray, "b 3 H W"]) -> Float[Tensor, "b K h w"]:
        with self._inference(), self._tiles_if_needed("encode"), self._measured("encode", rgb[:, 0].size):
            image = self.to_engine(rgb)
            return self._retried("encode", image)

    def joined(
        self, condition: Float[Tensor, "b K h w"], more: Float[np.ndarray, "b r h w"]
    ) -> Float[Tensor, "b k h w"]:
        return torch.cat([condition, self.to_engine(more)], dim=1)

    def denoise(
        self, rgb_latent: Float[Tensor, "#b K h w"], noisy_latent: Float[Tensor, "b tC h w"], *, timestep: int
    ) -> Float[Tensor, "b tC h w"]:
        with self._inference(), self._measured("denoise", 64 * noisy_latent[:, 0].numel()):
            sample = torch.cat([rgb_latent.expand(len(noisy_latent), -1, -1, -1), noisy_latent], dim=1)
            return self._networks["denoise"](sample, self._timestep(timestep))

    def decode(self, latent: Float[Tensor, "b C h w"]) -> Float[np.ndarray, "b t k H W"]:
        with self._inference(), self._tiles_if_needed("decode"), self._measured("decode", 64 * latent[:, 0].numel()):
            targets = latent.reshape(-1, self.latent_channels, *latent.shape[2:])
            decoded = self._retried("decode", targets).cpu().numpy()
            return decoded.reshape(len(latent), self._modality.num_targets, *decoded.shape[1:])

    def linearize(
        self,
        rgb_latent: Float[Tensor, "#b K h w"],
        noisy_latent: Float[Tensor, "b tC h w"],
        *,
        timestep: int,
        preview: Callable[[Tensor, Tensor], Tensor],
        save_memory: bool = False,
    ) -> Linearized:
        with self._gradients(), self._recomputed(save_memory):
            # Clones: tensors made in inference mode take no part in derivatives.
            noisy = noisy_latent.detach().clone().requires_grad_(True)
            condition = rgb_latent.detach().clone().expand(len(noisy), -1, -1, -1)
            prediction = self._denoise(torch.cat([condition, noisy], dim=1), self._timestep(timestep))
            latent = preview(noisy, prediction)
            output = self._decode(latent.reshape(-1, self.latent_channels, *latent.shape[2:]))
            decoded = output.detach().cpu().numpy()

        def pullback(cotangent: Float[np.ndarray, "b t k H W"]) -> Float[Tensor, "b tC h w"]:
            with self._gradients():
                outer = torch.from_numpy(np.ascontiguousarray(cotangent, dtype=np.float32)).reshape(output.shape)
                return torch.autograd.grad(output, noisy, outer.to(output.device))[0]

        shape = (len(noisy), self._modality.num_targets, *decoded.shape[1:])
        return Linearized(prediction.detach(), decoded.reshape(shape), pullback)

    def to_engine(self, array: Float[np.ndarray, "b C h w"]) -> Float[Tensor, "b C h w"]:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.startswith("cuda"):  # pinned memory is copied while the GPU computes
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def from_engine(self, latent: Float[Tensor, "b C h w"]) -> Float[np.ndarray, "b C h w"]:
        return latent.cpu().numpy()

    def is_finite(self, latent: Float[Tensor, "b C h w"]) -> Any:
        finite = torch.isfinite(latent).all()
        return bool(finite) if self.device == "cpu" else finite

    def fitting_batch_size(self, height: int, width: int) -> int:
        if self.device == "cpu":
            return 1
        if not self.device.startswith("cuda"):
            return _MPS_BATCH_SIZE
        known = self._bytes_per_pixel.values()
        return batch_that_fits(int(available_memory(self.device)), max(known) * height * width if all(known) else 0.0)

    def _encode(self, rgb: Tensor) -> Tensor:
        if self._image_encoder is not None:
            return self._image_encoder(rgb.to(self._dtype)).float()
        return backbone.encode_to_latent(self._vaes["encode"], rgb.to(self._dtype)).float()

    def _denoise(self, sample: Tensor, timestep: Tensor) -> Tensor:
        context = self._empty_prompt_embedding.expand(len(sample), -1, -1)
        return self._unet(sample.to(self._dtype), timestep, encoder_hidden_states=context, return_dict=False)[0].float()

    def _decode(self, latent: Tensor) -> Tensor:
        return self._target(backbone.decode_to_image(self._vaes["decode"], latent.to(self._dtype)).float())

    def _target(self, image: Tensor) -> Tensor:
        return image.mean(dim=1, keepdim=True) if self._modality.decoded_channels == 1 else image

    def _placed(self, network: Any) -> Any:
        """The network on the device, in the default memory layout: group norms on CUDA return that from any."""
        return network.to(self.device).requires_grad_(False)

    def _timestep(self, timestep: int) -> Tensor:
        """The timestep as a tensor, kept on the device: making a new one waits for the GPU."""
        if timestep not in self._timesteps:
            self._timesteps[timestep] = torch.tensor([timestep], device=self.device)
        return self._timesteps[timestep]

    def _retried(self, name: str, value: Tensor) -> Tensor:
        """The output of an encoder or decoder. If a batch does not fit into memory, its images run one by one. If one
        image does not fit, an autoencoder runs in strips; if its kind is unknown or strips do not fit either, in tiles.
        """
        last = len(value) == 1 and name not in self._vaes
        if self._fits_in_one_pass(name, value):
            output = self._attempted(lambda: self._networks[name](value), last=last)
            if output is not None:
                return output
        if len(value) > 1:
            return torch.cat([self._retried(name, one[None]) for one in value])
        for num_whole in self._strips_that_fit(name, value):
            output = self._attempted(lambda: self._strips(name, value, num_whole))  # noqa: B023 - called here
            if output is not None:
                return output
        height, width = value.shape[-2:]
        _log.warning("the VAE does not fit into the memory at %dx%d: it %ss in tiles", width, height, name)
        self._vaes[name].enable_tiling()
        return {"encode": self._encode, "decode": self._decode}[name](value)

    def _attempted(self, run: Callable[[], Tensor], *, last: bool = False) -> Tensor | None:
        """The output of a network; None if memory does not suffice and this was not the last attempt."""
        try:
            return run()
        except RuntimeError as error:
            if not _is_out_of_memory(error) or last:
                raise
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return None

    def _fits_in_one_pass(self, name: str, value: Tensor) -> bool:
        """Whether one pass is worth trying: always if strips are not possible or the networks are compiled."""
        if not self._in_strips.get(name) or self._compile != "off":
            return True
        if self.device == "cpu" and _num_pixels(name, value) >= _STRIPS_FROM:
            return False
        needed = one_pass_bytes(self._half(name), len(value) * _num_pixels(name, value), self._dtype)
        return needed <= _MEMORY_SHARE * available_memory(self.device)

    def _strips_that_fit(self, name: str, value: Tensor) -> tuple[int, ...]:
        """Values of `num_whole` that are worth trying, the fastest first: see `encode_in_strips`."""
        if not self._in_strips.get(name):
            return ()
        needed = strips_bytes(self._half(name), _num_pixels(name, value), self._dtype, num_whole=2)
        return (2, 1) if needed <= _MEMORY_SHARE * available_memory(self.device) else (1,)

    def _strips(self, name: str, value: Tensor, num_whole: int) -> Tensor:
        vae, value = self._vaes[name], value.to(self._dtype)
        _log.debug("the VAE %ss %s in strips of rows", name, list(value.shape))
        if name == "encode":
            return encode_in_strips(vae, value, num_whole=num_whole).float()
        return self._target(decode_in_strips(vae, value, num_whole=num_whole).float())

    def _half(self, name: str) -> Any:
        return self._vaes[name].encoder if name == "encode" else self._vaes[name].decoder

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """One thread's turn, without gradients."""
        with self._computing(), torch.inference_mode():
            yield

    @contextmanager
    def _gradients(self) -> Iterator[None]:
        """One thread's turn, with gradients, whatever the caller's mode."""
        with self._computing(), torch.inference_mode(False), torch.enable_grad():
            yield

    @contextmanager
    def _recomputed(self, wanted: bool) -> Iterator[None]:
        """If `wanted`, the networks' blocks keep no activations for the backward pass."""
        networks: list[Any] = [self._unet, self._vaes["decode"]] if wanted else []
        with ExitStack() as stack:
            for network in networks:
                network.enable_gradient_checkpointing()
                stack.callback(network.disable_gradient_checkpointing)
            yield

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """One thread's turn; out-of-memory errors become ours."""
        try:
            with self._turn:
                yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise OpenMarigoldError(
                f"out of memory ({one_line(error)}); try a smaller processing_resolution or batch_size"
            ) from error

    @contextmanager
    def _tiles_if_needed(self, name: str) -> Iterator[None]:
        """Switches tiling off again after this image, so that the next one is tiled only if needed."""
        try:
            yield
        finally:
            if getattr(self._vaes.get(name), "use_tiling", False):
                self._vaes[name].disable_tiling()

    @contextmanager
    def _measured(self, name: str, num_pixels: int) -> Iterator[None]:
        """Learns from this batch how much memory an image takes, without waiting for the GPU."""
        if not self.device.startswith("cuda"):
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield
        needed = torch.cuda.max_memory_allocated(self.device) - before
        self._bytes_per_pixel[name] = max(self._bytes_per_pixel[name], needed / num_pixels)


def has_gpu() -> bool:
    """Whether torch finds a CUDA or MPS device."""
    return _choose_device("auto") != "cpu"


def matrix_product(size: int, device: str, dtype: str) -> Callable[[], object]:
    """A product of square matrices, for timing; the call returns when it is done."""
    matrix = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    return lambda: float((matrix @ matrix)[0, 0])


def batch_that_fits(free_bytes: int, image_bytes: float) -> int:
    """The number of images that fit; one while the memory of an image is unknown.

    >>> [batch_that_fits(free, 3e9) for free in (80_000_000_000, 1_000_000_000)], batch_that_fits(80_000_000_000, 0.0)
    ([21, 1], 1)
    """
    return max(1, int(_MEMORY_SHARE * free_bytes / image_bytes)) if image_bytes else 1


def _load_vaes(checkpoint: Checkpoint, tiny_vae: TinyVae | None, dtype: torch.dtype) -> dict[str, backbone.Vae]:
    """The autoencoder for each direction; only those in use are read."""
    used_for = () if tiny_vae is None else ("encode", "decode") if tiny_vae.used_for == "both" else (tiny_vae.used_for,)
    vaes: dict[str, backbone.Vae] = {}
    if tiny_vae is not None:
        tiny = backbone.load_vae(tiny_vae.directory, variant=tiny_vae.variant, dtype=dtype)
        vaes = dict.fromkeys(used_for, tiny)
    needed = ("decode",) if checkpoint.image_encoder else ("encode", "decode")
    own = [name for name in needed if name not in used_for]
    if own:
        vae = backbone.load_vae(checkpoint.directory / "vae", variant=checkpoint.variant, dtype=dtype)
        vaes |= dict.fromkeys(own, vae)
    return vaes


def _compiled(network: Callable[..., Tensor], mode: CompileMode, device: str) -> Callable[..., Tensor]:
    if mode == "off":
        return network
    compiled = torch.compile(network, dynamic=False)  # each size at its first use
    return RecordedNetwork(compiled) if device.startswith("cuda") else compiled


def _num_pixels(name: str, value: Tensor) -> int:
    """Pixels of one image, given itself or its latent."""
    return value.shape[-2] * value.shape[-1] * (1 if name == "encode" else LATENT_FACTOR**2)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On a CPU torch has no error class for it.
    return isinstance(error, torch.OutOfMemoryError) or "alloc_cpu" in str(error)


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
