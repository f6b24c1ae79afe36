# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU: the engine of the embedded model, without torch.

Safetensors weights, where this engine is asked for by name, are converted once and kept (see `converted`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float

from openmarigold.checkpoints.checkpoint import Checkpoint, TinyVae
from openmarigold.config import Dtype
from openmarigold.engines import converted
from openmarigold.engines.converted import open_networks
from openmarigold.errors import CheckpointError, InvalidValueError, OpenMarigoldError, one_line


class OnnxEngine:
    """Three ONNX Runtime sessions, which any number of threads may run at once. See `Engine`.

    Raises:
        CheckpointError: a network file is damaged.
        InvalidValueError: a device other than the CPU, or another precision than float32.
        MissingExtraError: networks have to be converted and torch is not installed.
    """

    name = "onnx"
    # Measured: batches of 1 to 5 gave equal bytes. ONNX Runtime does not promise it, and on a CPU batches gain nothing.
    max_batch_size: int | None = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        dtype: Dtype = "float32",
        tiny_vae: TinyVae | None = None,
    ) -> None:
        if device not in ("auto", "cpu"):
            raise InvalidValueError(
                f"device={device!r} does not run ONNX networks, cpu does; for a GPU give --checkpoint a folder with "
                'safetensors weights and install "openmarigold[torch]"'
            )
        if dtype != "float32":
            raise InvalidValueError(
                f"dtype={dtype!r} is not for ONNX networks, which compute in float32; leave it out, or use "
                'engine openvino (pip install "openmarigold[openvino]")'
            )
        self.device = "cpu"
        self.dtype = dtype
        self.latent_channels = checkpoint.latent_channels
        self._modality = checkpoint.modality
        self._sessions = open_networks(checkpoint, "onnx", _open_all, tiny_vae=tiny_vae)
        stored = self._sessions["vae_encoder"].get_outputs()[0].shape[1]
        if isinstance(stored, int) and stored != self.latent_channels:
            raise CheckpointError(
                f"{checkpoint.directory / 'model_index.json'}: latent_channels is {self.latent_channels}, and the "
                f"networks have {stored}; get the checkpoint again"
            )

    def encode(self, rgb: Float[np.ndarray, "b 3 H W"]) -> Float[np.ndarray, "b C h w"]:
        return converted.encode(self._run, rgb, latent_channels=self.latent_channels)

    def denoise(
        self,
        rgb_latent: Float[np.ndarray, "#b C h w"],
        noisy_latent: Float[np.ndarray, "b tC h w"],
        *,
        timestep: int,
    ) -> Float[np.ndarray, "b tC h w"]:
        return converted.denoise(self._run, rgb_latent, noisy_latent, timestep=timestep)

    def decode(self, latent: Float[np.ndarray, "b C h w"]) -> Float[np.ndarray, "b t k H W"]:
        return converted.decode(self._run, latent, latent_channels=self.latent_channels, modality=self._modality)

    def to_engine(self, array: Float[np.ndarray, "b C h w"]) -> Float[np.ndarray, "b C h w"]:
        return array

    def from_engine(self, latent: Float[np.ndarray, "b C h w"]) -> Float[np.ndarray, "b C h w"]:
        return latent

    def is_finite(self, latent: Float[np.ndarray, "b C h w"]) -> bool:
        return bool(np.isfinite(latent).all())

    def fitting_batch_size(self, height: int, width: int) -> int:
        return 1

    def _run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        try:
            return self._sessions[name].run(None, inputs)[0]  # pyright: ignore[reportReturnType]
        except Exception as error:  # ONNX Runtime's error classes share no public base
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in inputs.items())
            raise OpenMarigoldError(
                f"{name} failed on {shapes} ({one_line(error)}); try a smaller processing_resolution"
            ) from error


def _open_all(paths: dict[str, Path]) -> dict[str, onnxruntime.InferenceSession]:
    return {name: _open_session(path) for name, path in paths.items()}


def _open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's error classes share no public base
        raise CheckpointError(f"{path} cannot be loaded ({one_line(error)}); get the checkpoint again") from error
