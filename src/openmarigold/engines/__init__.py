# SPDX-License-Identifier: Apache-2.0
"""The three networks behind one protocol, and the choice of the engine that runs them."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from openmarigold.checkpoints.checkpoint import TITLES, Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.config import CompileMode, Dtype, EngineName
from openmarigold.engines.converted import LARGE_BYTES, can_keep_converted, weight_bytes
from openmarigold.errors import InvalidValueError
from openmarigold.printing import quoted_logger

ChosenEngine = Literal["onnx", "openvino", "torch"]
Latent = Any
"""`[b C h w]` float32 in the engine's own array type: a NumPy array or a tensor on the engine's device."""

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
# Conversion, the network caches and the libraries' settings belong to the whole process.
_one_opens = threading.Lock()
_log = quoted_logger(__name__)


@runtime_checkable
class Engine(Protocol):
    """Encodes images, denoises latents `[b C·t h w]` of a modality's t targets, and decodes them.

    The U-Net sees an image as its condition, `[b K h w]`: the VAE's latent (then K = C) or the output of an image
    encoder. In some checkpoints channels of the camera follow (`joined`). `h = H / 8`, `w = W / 8`.
    Several threads may call an engine at the same time; this does not change the results.
    """

    name: str
    device: str
    dtype: str
    """Precision of the networks; latents are always float32."""
    latent_channels: int
    max_batch_size: int | None
    """Largest batch with the same bits as single images; None: no limit, since bits may differ anyway."""

    def encode(self, rgb: Float[np.ndarray, "b 3 H W"]) -> Latent:
        """Condition of images in [-1, 1], such as their scaled latent; `H`, `W` are multiples of 8. Paper: §3.2."""
        ...

    def joined(self, condition: Latent, more: Float[np.ndarray, "b r h w"]) -> Latent:
        """The condition with more channels at its end."""
        ...

    def denoise(self, rgb_latent: Latent, noisy_latent: Latent, *, timestep: int) -> Latent:
        """The U-Net's raw output for `[rgb_latent, noisy_latent]`; one `rgb_latent` may serve a whole batch."""
        ...

    def decode(self, latent: Latent) -> Float[np.ndarray, "b t k H W"]:
        """The t decoded targets, about [-1, 1] but not clipped; k as the modality's `decoded_channels`. Paper: §3.2."""
        ...

    def to_engine(self, array: Float[np.ndarray, "b C h w"]) -> Latent:
        """The same values in the engine's array type."""
        ...

    def from_engine(self, latent: Latent) -> Float[np.ndarray, "b C h w"]:
        """The inverse of `to_engine`; waits for a GPU."""
        ...

    def is_finite(self, latent: Latent) -> Any:
        """Whether every value is finite; on a GPU a tensor, whose `bool` waits for the GPU."""
        ...

    def fitting_batch_size(self, height: int, width: int) -> int:
        """Number of images of this size [px] that fit into memory at once; 1 on a CPU, where batches are no faster."""
        ...


@dataclass(frozen=True)
class Linearized:
    """One pass through U-Net and decoder, and its derivative."""

    prediction: Latent
    """The U-Net's raw output."""
    decoded: Float[np.ndarray, "b t k H W"]
    """The preview, as `Engine.decode` returns it."""
    pullback: Callable[[Float[np.ndarray, "b t k H W"]], Latent]
    """Turns the gradient of a scalar with respect to `decoded` into that with respect to the noisy latent. Call it only
    once: it frees its memory."""


@runtime_checkable
class DifferentiableEngine(Engine, Protocol):
    """An engine that also gives derivatives."""

    def linearize(
        self,
        rgb_latent: Latent,
        noisy_latent: Latent,
        *,
        timestep: int,
        preview: Callable[[Latent, Latent], Latent],
        save_memory: bool = False,
    ) -> Linearized:
        """The decoded preview of a noisy latent, and its derivative.

        Args:
            rgb_latent: the condition.
            noisy_latent: where the derivative is taken.
            timestep: its timestep.
            preview: computes the latent to decode from the noisy latent and the U-Net's output, by plain arithmetic.
            save_memory: compute the networks' blocks again in the backward pass instead of keeping their activations
                (about a third more time, the same gradient).
        """
        ...


def differentiable(engine: Engine, purpose: str) -> DifferentiableEngine:
    """The engine, if it gives derivatives.

    Raises:
        InvalidValueError: it does not.
    """
    if isinstance(engine, DifferentiableEngine):
        return engine
    raise InvalidValueError(
        f"{purpose} needs gradients, which engine {engine.name} does not give; use engine torch and a checkpoint with "
        "safetensors weights"
    )


def choose_engine(
    checkpoint: Checkpoint,
    *,
    engine: EngineName = "auto",
    device: str = "auto",
    dtype: Dtype = "float32",
    compile: CompileMode = "off",
) -> ChosenEngine:
    """The given engine; for "auto" the fastest one that is installed and can run this checkpoint.

    ONNX networks (on a CPU also those next to safetensors weights) run on ONNX Runtime; large ones and bfloat16 on
    OpenVINO. Safetensors weights alone run on torch on a GPU and if they are small; large ones on a CPU run on
    OpenVINO, which needs one conversion. In int8, small ones run on ONNX Runtime. ONNX networks that are in int8
    already run on ONNX Runtime only: their layers were chosen for it.

    Raises:
        InvalidValueError: the engine cannot run this checkpoint.
    """
    _check_int8(checkpoint, engine=engine, device=device, dtype=dtype)
    if engine != "auto":
        if engine == "torch" and checkpoint.weights != "safetensors":
            raise InvalidValueError(
                f"engine='torch' does not run {TITLES[checkpoint.weights]} networks; use auto, or give --checkpoint a "
                "folder with safetensors weights"
            )
        if engine != "torch" and compile != "off":
            raise InvalidValueError(f"compile={compile!r} is for engine torch, not {engine}; leave it out")
        return engine
    if checkpoint.weights == "openvino":
        return "openvino"
    if checkpoint.weights == "onnx" and checkpoint.quantization:
        return "onnx"
    on_cpu = device in ("auto", "cpu")
    device = "cpu" if dtype == "int8" else device
    large = weight_bytes(checkpoint) >= LARGE_BYTES
    use_gpu = large and device == "auto" and checkpoint.weights == "safetensors" and _has_gpu()
    if checkpoint.weights == "onnx" or (checkpoint.graphs and on_cpu and compile == "off" and not use_gpu):
        pays = on_cpu and (large or dtype == "bfloat16") and compile == "off"
        return "openvino" if pays and _openvino_computes(dtype) else "onnx"
    if dtype == "int8":
        return "openvino" if large and is_installed("openvino") else "onnx"
    if not on_cpu or compile != "off" or not large or use_gpu:
        return "torch"
    if not (_openvino_computes(dtype) and can_keep_converted(checkpoint)):
        return "torch"
    return "openvino"


def open_engine(
    checkpoint: Checkpoint,
    *,
    engine: EngineName = "auto",
    device: str = "auto",
    dtype: Dtype = "float32",
    tiny_vae: TinyVae | None = None,
    compile: CompileMode = "off",
    at_once: int = 1,
) -> Engine:
    """The engine for a checkpoint, with the networks loaded; see `choose_engine` for "auto".

    `at_once` is about how many threads will call it at the same time. If they are as many as the cores, ONNX Runtime
    runs each call on one core instead of all: more photos per second, a longer time for each, the same bytes.

    Raises:
        CheckpointError: a network file is damaged.
        InvalidValueError: the device is not available, or the engine cannot run this checkpoint in this precision.
        MissingExtraError: the engine is not installed.
    """
    dtype = "int8" if checkpoint.quantization and dtype == "float32" else dtype
    chosen = choose_engine(checkpoint, engine=engine, device=device, dtype=dtype, compile=compile)
    settings: Any = {"device": device, "dtype": dtype, "tiny_vae": tiny_vae}
    with _one_opens:
        if chosen == "onnx":
            from openmarigold.engines.onnx import open_onnx

            opened: Engine = open_onnx(checkpoint, **settings, at_once=at_once)
        elif chosen == "openvino":
            from openmarigold.engines.openvino import open_openvino

            opened = open_openvino(checkpoint, **settings)
        else:
            from openmarigold.engines.torch import TorchEngine

            opened = TorchEngine(checkpoint, **settings, compile=compile)
    _log.info("%s runs on engine %s, %s, %s", checkpoint.name, chosen, opened.device, dtype)
    return opened


def _check_int8(checkpoint: Checkpoint, *, engine: EngineName, device: str, dtype: Dtype) -> None:
    """Checks the settings of int8 networks.

    Raises:
        InvalidValueError: int8 networks do not run on this engine or device, or in this precision.
    """
    if checkpoint.quantization and dtype not in ("float32", "int8"):
        raise InvalidValueError(
            f"dtype={dtype!r} does not fit {checkpoint.name}, whose networks are in int8; leave it out, or give the "
            "checkpoint that it was made from"
        )
    if checkpoint.quantization and checkpoint.weights == "onnx" and engine == "openvino":
        raise InvalidValueError(
            f"engine='openvino' is not for int8 ONNX networks such as {checkpoint.name}: it may compute some of their "
            "layers wrong; use onnx or auto, or an int8 copy in the format openvino"
        )
    if dtype == "int8" and (engine == "torch" or device not in ("auto", "cpu")):
        raise InvalidValueError(
            f"dtype='int8' is for engines onnx and openvino on a CPU, not engine={engine!r}, device={device!r}; use "
            "bfloat16 or float16 there"
        )


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _openvino_computes(dtype: Dtype) -> bool:
    """Whether OpenVINO is installed and computes in this precision on this CPU."""
    if not is_installed("openvino") or dtype == "float16":
        return False
    if dtype in ("float32", "int8"):
        return True
    from openmarigold.engines.openvino import computes_in_bfloat16

    return computes_in_bfloat16()


def _has_gpu() -> bool:
    """Whether torch finds a GPU; torch is imported only if a driver makes that possible."""
    if sys.platform == "darwin":
        possible = True
    else:
        try:
            ctypes.CDLL(_DRIVERS.get(sys.platform, ""))
            possible = sys.platform in _DRIVERS
        except OSError:
            possible = False
    if not possible or not is_installed("torch"):
        return False
    from openmarigold.engines.torch import has_gpu

    return has_gpu()
