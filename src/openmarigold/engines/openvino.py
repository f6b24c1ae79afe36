# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU: the fastest engine there, in float32 and in bfloat16 (extra `openvino`).

Compiled networks take any size, so a folder of mixed photos needs one compilation. Only the autoencoders of large
checkpoints are compiled for each size, which halves their memory. A photo's result does not depend on other photos.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.checkpoints.weight_files import IMAGE_ENCODER
from openmarigold.config import LATENT_FACTOR, Dtype, StoredDtype
from openmarigold.engines.converted import LARGE_BYTES, ConvertedEngine, failed_run, open_networks
from openmarigold.errors import CheckpointError, InvalidValueError, OpenMarigoldError, needs_extra, one_line
from openmarigold.files import some_home, user_cache_dir
from openmarigold.printing import quoted_logger
from openmarigold.privacy import openvino_without_reports

with needs_extra("openvino"), some_home(), openvino_without_reports():  # one of its modules fails without a home folder
    import openvino

_MADV_DONTNEED = 4
_KEPT_SHAPES = 4  # 4:3 and 3:2, landscape and portrait
_BETWEEN_RETURNS_S = 0.1
_SMALL = 8  # latent cells, the minimum for a U-Net that halves the size three times
_log = quoted_logger(__name__)


def open_openvino(checkpoint: Checkpoint, *, device: str, dtype: Dtype, tiny_vae: TinyVae | None) -> ConvertedEngine:
    """The engine of three networks compiled by OpenVINO.

    OpenVINO and ONNX checkpoints run as they are; safetensors weights are converted once and kept (see `converted`).

    Raises:
        CheckpointError: a network file is damaged.
        InvalidValueError: a device other than the CPU, or a precision that this CPU does not compute in.
        MissingExtraError: networks have to be converted and torch is not installed.
    """
    if device not in ("auto", "cpu"):
        raise InvalidValueError(f"device={device!r} is not for engine openvino, which runs on cpu; use engine torch")
    _check_dtype(dtype)
    networks = _Networks(dtype)
    engine = ConvertedEngine("openvino", checkpoint, networks.run, dtype=dtype)
    # In bfloat16 the stored weights need no more than half precision, which halves the memory while compiling.
    stored: StoredDtype = "float16" if dtype == "bfloat16" else "float32"
    num_targets = checkpoint.modality.num_targets
    open_networks(
        checkpoint,
        "openvino",
        lambda paths: networks.open_all(paths, engine, num_targets),
        dtype=stored,
        tiny_vae=tiny_vae,
    )
    return engine


class _Networks:
    """Three compiled networks. Threads take turns: a network computes one image at a time, on all cores."""

    def __init__(self, dtype: Dtype) -> None:
        self.requests: dict[str, Any] = {}
        self._dtype = dtype
        self._core = openvino.Core()
        self._frugal = False  # whether a network's activations are released when another one runs
        self._last = ""
        self._turn = threading.Lock()  # a request that is computing refuses another: "busy"

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        tensors = {key: np.ascontiguousarray(value) for key, value in inputs.items()}
        try:
            with self._turn:
                if self._frugal and self._last not in ("", name):
                    self.requests[self._last].get_compiled_model().release_memory()
                outputs = np.array(self.requests[name].infer(tensors, share_inputs=True)[0], dtype=np.float32)
                self._last = name
                return outputs
        except Exception as error:  # OpenVINO's errors share no public base
            raise failed_run(name, inputs, error) from error

    def open_all(self, paths: dict[str, Path], engine: ConvertedEngine, num_targets: int) -> None:
        weights = [path.with_suffix(".bin") for path in paths.values() if path.suffix == ".xml"]
        large = sum(path.stat().st_size for path in (*weights, *paths.values()) if path.is_file()) >= LARGE_BYTES
        # Large networks open in a second without OpenVINO's own cache, which would store all weights once more.
        cache_dir = None if large else user_cache_dir() / "openvino"
        with _returned_meanwhile(weights if large else ()):
            self.requests = {
                name: self._open(path, cache_dir, _precision(self._dtype, large, name), large and name != "unet")
                for name, path in paths.items()
            }
            if large:
                self._pack(weights, engine, num_targets)
        self._last, self._frugal = "", large and self._dtype == "float32"

    def _pack(self, weights: Iterable[Path], engine: ConvertedEngine, num_targets: int) -> None:
        """Run each network once on a small image so that OpenVINO packs its weights, then release the originals.

        This needs the most memory, so it comes before the activations of a photo. It also finds damaged networks.
        """
        latent = np.zeros((1, engine.latent_channels * num_targets, _SMALL, _SMALL), dtype=np.float32)
        condition = np.zeros((1, engine.condition_channels, _SMALL, _SMALL), dtype=np.float32)
        try:
            engine.encode(np.zeros((1, 3, _SMALL * LATENT_FACTOR, _SMALL * LATENT_FACTOR), dtype=np.float32))
            engine.denoise(condition, latent, timestep=0)
            engine.decode(latent)
        except OpenMarigoldError as error:
            self.requests = {}
            cause = error.__cause__ or error
            if isinstance(cause, MemoryError) or "bad_alloc" in str(cause) or "memory" in str(cause).lower():
                raise OpenMarigoldError(
                    f"the networks do not fit into memory ({one_line(cause)}); use dtype bfloat16, which takes half, "
                    "or another machine"
                ) from error
            raise CheckpointError(f"a network cannot be run ({one_line(cause)}); get the checkpoint again") from error
        for request in self.requests.values():
            if isinstance(request, _NetworkBySize):
                request.requests.clear()  # no photo is so small
        _return_memory(weights)

    def _open(self, path: Path, cache_dir: Path | None, precision: str, by_size: bool) -> Any:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,  # without it, float32 networks run in bfloat16
            "EXECUTION_MODE_HINT": "PERFORMANCE" if precision == "bf16" else "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = self._core.read_model(path)
            if by_size:
                return _NetworkBySize(self._core, model, settings, path)
            if cache_dir is not None:
                # OpenVINO takes a stored network for any precision. What was compiled for float32 and runs in bfloat16
                # gives NaN or ends the process on CPUs with AMX, so each precision has a folder.
                folder = cache_dir / precision
                try:
                    return self._compile_cached(model, {**settings, "CACHE_DIR": str(folder)})
                except RuntimeError as error:
                    _log.warning("OpenVINO's cache in %s is damaged and is removed (%s)", folder, one_line(error))
                    shutil.rmtree(folder, ignore_errors=True)
            return self._core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # OpenVINO's errors share no public base
            raise CheckpointError(f"{path} cannot be loaded ({one_line(error)}); get the checkpoint again") from error

    def _compile_cached(self, model: Any, settings: dict[str, Any]) -> Any:
        """The network from OpenVINO's cache, even if it was just stored there.

        A freshly compiled network may use another image layout than a cached one, and round differently.
        """
        compiled = self._core.compile_model(model, "CPU", settings)
        if not compiled.get_property("LOADED_FROM_CACHE"):
            compiled = self._core.compile_model(model, "CPU", settings)
        return compiled.create_infer_request()


class _NetworkBySize:
    """A network with one input, compiled for each shape; the last ones are kept, only the one in use with its memory.

    For a known shape OpenVINO plans which activations share memory: a Stable Diffusion autoencoder needs half.
    """

    def __init__(self, core: Any, model: Any, settings: dict[str, Any], path: Path) -> None:
        self._core, self._model, self._settings = core, model, settings
        self._weights = [path.with_suffix(".bin")]
        self.requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()  # the last one is in use

    def get_compiled_model(self) -> Any:
        """The compiled network in use."""
        return self.requests[next(reversed(self.requests))].get_compiled_model()

    def infer(self, inputs: dict[str, np.ndarray], *, share_inputs: bool) -> Any:
        (shape,) = (value.shape for value in inputs.values())
        compiled = shape not in self.requests
        if self.requests and shape != next(reversed(self.requests)):
            self.requests[next(reversed(self.requests))].get_compiled_model().release_memory()
        if compiled:
            if len(self.requests) == _KEPT_SHAPES:
                self.requests.popitem(last=False)
            self._model.reshape(list(shape))
            request = self._core.compile_model(self._model, "CPU", self._settings).create_infer_request()
            self.requests[shape] = request
        self.requests.move_to_end(shape)
        outputs = self.requests[shape].infer(inputs, share_inputs=share_inputs)
        if compiled:
            _return_memory(self._weights)
        return outputs


@contextmanager
def _returned_meanwhile(files: Iterable[Path]) -> Iterator[None]:
    """While networks are packed, return the pages of their mapped weight files: else memory holds all weights twice."""
    files, done = list(files), threading.Event()

    def work() -> None:
        while not done.wait(_BETWEEN_RETURNS_S):
            _return_memory(files)

    thread = threading.Thread(target=work, daemon=True)
    if files:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if files:
            thread.join()


def _return_memory(files: Iterable[Path]) -> None:
    """Return freed memory and the pages of packed weight files to the system (Linux).

    The files are mapped for reading only, so the system can read their pages again.
    """
    if not sys.platform.startswith("linux"):
        return
    names = {str(path.resolve()) for path in files}
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] in names and fields[1].startswith("r--"):
                begin, end = (int(number, 16) for number in fields[0].split("-"))
                library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)
    except (OSError, ValueError, AttributeError) as error:
        _log.info("memory is not given back (%s)", one_line(error))


def computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _precision(dtype: str, large: bool = True, name: str = "") -> str:
    """OpenVINO's name of a precision; for int8 networks, the precision of the layers that are not in int8.

    In large networks these layers compute in bfloat16, for speed; in small ones bfloat16 costs more accuracy than int8
    does. With dtype bfloat16 an image encoder stays in float32: in bfloat16 it would cause nine tenths of the error and
    save a fifth of the time.
    """
    if dtype == "bfloat16" and name == IMAGE_ENCODER:
        return "f32"
    if dtype == "int8":
        return "bf16" if large and computes_in_bfloat16() else "f32"
    return {"float32": "f32", "bfloat16": "bf16"}[dtype]


def matrix_product(size: int, device: str, dtype: str) -> Callable[[], object]:
    """A product of square matrices, for timing; the call returns when it is done."""
    from openvino import opset13 as operations

    matrix = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    left = operations.parameter([size, size], np.float32)
    product = operations.matmul(left, matrix, False, False)
    model = openvino.Model([product], [left])  # pyright: ignore[reportGeneralTypeIssues] - its stubs disagree
    request = openvino.compile_model(
        model, device.upper(), {"INFERENCE_PRECISION_HINT": _precision(dtype)}
    ).create_infer_request()
    return lambda: request.infer([matrix], share_inputs=True)


def _check_dtype(dtype: str) -> None:
    if dtype == "float16":
        raise InvalidValueError(
            "dtype='float16' is not for CPUs, whose half-precision arithmetic is hundreds of times slower than "
            "float32; use bfloat16 (the same memory) or float32"
        )
    if dtype == "bfloat16" and not computes_in_bfloat16():
        raise InvalidValueError("dtype='bfloat16' is not supported by this CPU; use float32")
