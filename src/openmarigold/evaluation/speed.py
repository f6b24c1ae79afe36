# SPDX-License-Identifier: Apache-2.0
"""How fast a checkpoint predicts on this machine: seconds and arithmetic of each network, memory, start-up."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import read_configured, read_tiny_vae
from openmarigold.checkpoints.weight_files import NETWORK_FILES, graph_file
from openmarigold.config import LATENT_FACTOR, PredictConfig
from openmarigold.engines import Engine, is_installed
from openmarigold.images.photo import pad_to_multiple, processing_size, rgb_to_planes
from openmarigold.predictor import Predictor

_CEILING_SIZE = 2048  # of square matrices: large enough for the full rate, and a tenth of a second
_STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True, kw_only=True)
class StageSpeed:
    """Speed of one network. The last three are None where its arithmetic cannot be counted."""

    seconds: float
    """Median [s]."""
    gflop: float | None
    """Operations of one run [1e9]; a multiplication and an addition count as two."""
    gflop_per_s: float | None
    ceiling_share: float | None
    """Share of the rate at which the same library multiplies large matrices on this machine."""


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """What was measured; `to_dict` is for JSON."""

    checkpoint: str
    engine: str
    device: str
    dtype: str
    photo_size: tuple[int, int]
    """Width and height [px]."""
    network_size: tuple[int, int]
    """Width and height that the networks see [px]."""
    stages: dict[str, StageSpeed]
    photo_s: float
    """From an array to its depth, with one step and one member: median, warm [s]."""
    first_photo_s: float
    """The same for the first photo of a process [s]."""
    load_s: float
    start_up_s: float
    """From the start of a process to a loaded model [s]."""
    ceiling_gflop_per_s: float | None
    """Measured rate of a large matrix product in the same precision."""
    peak_gib: float | None
    """The most memory of the process [GiB]; on a GPU the host's."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_speed(config: PredictConfig, *, size: tuple[int, int] = (640, 480), repeats: int = 3) -> SpeedReport:
    """Speed of a checkpoint with the settings of `config` on photos of `size` (width, height) [px].

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InvalidValueError: the device is not available, or the engine cannot run this checkpoint in this precision.
        MissingExtraError: the engine is not installed.
    """
    found = read_configured(config)
    started = time.perf_counter()
    predictor = Predictor.from_config(config, found=found)
    load_s = time.perf_counter() - started
    width, height = size
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    settings = {"num_inference_steps": 1, "processing_resolution": config.processing_resolution}

    first_photo_s = _seconds(lambda: predictor(rgb, **settings))
    photo_s = statistics.median(_seconds(lambda: predictor(rgb, **settings)) for _ in range(repeats))

    engine = predictor.engine
    image = _network_input(predictor, rgb, config.processing_resolution)
    seconds = _stage_seconds(engine, image, predictor.modality.num_targets, repeats)
    peak_gib = peak_memory_gib()
    ceiling = matmul_ceiling(engine.name, engine.device, engine.dtype)
    flops = count_flops(found, config, image.shape[2], image.shape[3])
    network_of: dict[str, str] = dict(zip(_STAGES, found.networks, strict=True))
    return SpeedReport(
        checkpoint=predictor.checkpoint.name,
        engine=engine.name,
        device=engine.device,
        dtype=engine.dtype,
        photo_size=size,
        network_size=(image.shape[3], image.shape[2]),
        stages={
            name: _stage_speed(value, None if flops is None else flops[network_of[name]], ceiling)
            for name, value in seconds.items()
        },
        photo_s=photo_s,
        first_photo_s=first_photo_s,
        load_s=load_s,
        start_up_s=_start_up_s(config),
        ceiling_gflop_per_s=ceiling,
        peak_gib=peak_gib,
    )


def _network_input(
    predictor: Predictor, rgb: UInt8[np.ndarray, "h w 3"], resolution: int | None
) -> Float[np.ndarray, "1 3 H W"]:
    """The photo as the networks see it."""
    chosen = predictor.checkpoint.default_processing_resolution if resolution is None else resolution
    seen = processing_size(*rgb.shape[:2], processing_resolution=chosen, side=predictor.checkpoint.processing_side)
    return pad_to_multiple(rgb_to_planes(rgb, seen), multiple=LATENT_FACTOR)[None]


def _stage_seconds(
    engine: Engine, image: Float[np.ndarray, "1 3 H W"], num_targets: int, repeats: int
) -> dict[str, float]:
    """Median of each network [s]."""
    channels = engine.latent_channels * num_targets
    shape = (1, channels, image.shape[2] // LATENT_FACTOR, image.shape[3] // LATENT_FACTOR)
    noise = engine.to_engine(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    rgb_latent = engine.encode(image)
    runs: dict[str, Callable[[], object]] = {
        "encode": lambda: bool(engine.is_finite(engine.encode(image))),  # asking for a truth waits for a GPU
        "denoise": lambda: bool(engine.is_finite(engine.denoise(rgb_latent, noise, timestep=999))),
        "decode": lambda: engine.decode(noise),
    }
    return {name: statistics.median(_seconds(run) for _ in range(repeats)) for name, run in runs.items()}


def _stage_speed(seconds: float, flop: int | None, ceiling: float | None) -> StageSpeed:
    gflop = None if flop is None else flop / 1e9
    rate = None if gflop is None else gflop / seconds
    share = None if rate is None or ceiling is None else rate / ceiling
    return StageSpeed(seconds=seconds, gflop=gflop, gflop_per_s=rate, ceiling_share=share)


def matmul_ceiling(engine: str, device: str, dtype: str) -> float | None:
    """Rate at which an engine's library multiplies large matrices [GFLOP/s]; NumPy's for ONNX Runtime."""
    if engine == "torch":
        from openmarigold.engines.torch import matrix_product
    elif engine == "openvino":
        from openmarigold.engines.openvino import matrix_product
    else:
        matrix = np.random.default_rng(0).standard_normal((_CEILING_SIZE, _CEILING_SIZE)).astype(np.float32)

        def matrix_product(size: int, device: str, dtype: str) -> Callable[[], object]:
            return lambda: matrix @ matrix

    run = matrix_product(_CEILING_SIZE, device, dtype)
    run()
    best = min(_seconds(run) for _ in range(5))
    return 2 * _CEILING_SIZE**3 / best / 1e9


def peak_memory_gib() -> float | None:
    """The most memory that this process has used [GiB]; None where the system does not report it."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found.group(1)) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def _start_up_s(config: PredictConfig) -> float:
    """Time from the start of a new process to a loaded model [s], with the imports of our command line."""
    names = ("variant", "revision", "local_files_only", "engine", "device", "dtype", "tiny_vae", "tiny_vae_for")
    settings = {name: getattr(config, name) for name in names}
    settings["checkpoint"] = None if config.checkpoint is None else str(config.checkpoint)
    code = (
        "import json, sys; from openmarigold import workers; workers.claim(); "
        "from openmarigold.predictor import Predictor; Predictor.load(**json.loads(sys.argv[1]))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-c", code, json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": path}
    return _seconds(lambda: subprocess.run(command, check=True, env=environment, capture_output=True))


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


_COUNTED = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul", "ScaledDotProductAttention")


def count_flops(checkpoint: Checkpoint, config: PredictConfig, height: int, width: int) -> dict[str, int] | None:
    """Arithmetic of each network for one image of this size [px], as the checkpoint has it; None where it cannot be
    counted here.

    Safetensors weights need torch, others OpenVINO.
    """
    tiny_vae = read_tiny_vae(config, checkpoint)
    if checkpoint.weights == "safetensors" and (is_installed("torch") or not checkpoint.graphs):
        if not is_installed("torch"):
            return None
        from openmarigold.networks.conversion import count_network_flops

        return {name: count_network_flops(checkpoint, name, height, width, tiny_vae) for name in checkpoint.networks}
    if not is_installed("openvino") or tiny_vae is not None:
        return None
    directory, kind = checkpoint.directory, checkpoint.weights
    files = {
        name: graph_file(directory, name) if kind == "safetensors" else directory / NETWORK_FILES[kind][name]
        for name in checkpoint.networks
    }
    return {name: _count_file_flops(file, height, width) for name, file in files.items()}


def _count_file_flops(path: Path, height: int, width: int) -> int:
    """Arithmetic of an ONNX or OpenVINO network for one image of this size [px]: convolutions and matrix products."""
    import openvino

    model = openvino.Core().read_model(path)
    shapes = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        if len(shape) == 4:
            cells = 1 if shape[1].get_length() == 3 else LATENT_FACTOR
            shapes[port] = [1, shape[1].get_length(), height // cells, width // cells]
    model.reshape(shapes)
    return sum(_operation_flops(operation) for operation in model.get_ops())


def _operation_flops(operation: Any) -> int:
    name = operation.get_type_name()
    if name not in _COUNTED:
        return 0
    out = math.prod(operation.output(0).get_shape())
    first, second = (list(operation.input(index).get_shape()) for index in (0, 1))
    if name == "MatMul":
        return 2 * out * (first[-2] if operation.get_attributes()["transpose_a"] else first[-1])
    if name == "ScaledDotProductAttention":  # the logits, and their product with the values
        return 4 * math.prod(first) * second[-2]
    if name == "ConvolutionBackpropData":  # each input value goes through all filters
        return 2 * math.prod(first) * math.prod(second[1:])
    return 2 * out * math.prod(second[1:] if name == "Convolution" else second[2:])
