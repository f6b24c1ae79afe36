# SPDX-License-Identifier: Apache-2.0
"""int8: a copy of a checkpoint whose networks were quantized on photos. It is a checkpoint like any other.

`--dtype int8` makes the copy on first use, in the user's cache, from the photos that come with the package;
`checkpoint export --dtype int8` makes it in a given folder, from the user's photos. Only making it needs torch, onnx or
NNCF.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold import __version__
from openmarigold.checkpoints.checkpoint import Checkpoint, read_checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.checkpoints.hashes import checkpoint_sha256, tiny_vae_sha256
from openmarigold.checkpoints.integrity import SUMS_FILE, check_sums, write_sums
from openmarigold.checkpoints.weight_files import NETWORK_FILES, QUANTIZATION
from openmarigold.config import LATENT_FACTOR, ConvertedFormat, ModelConfig
from openmarigold.engines import choose_engine
from openmarigold.errors import CheckpointError, InvalidValueError, OutputError, needs_extra
from openmarigold.files import (
    atomic_directory,
    file_sha256,
    files_sha256,
    make_directory,
    one_at_a_time,
    user_cache_dir,
)
from openmarigold.networks.quantization import Quantized, Sample
from openmarigold.predictor import Predictor
from openmarigold.printing import quoted_logger
from openmarigold.text_files import parse_json

MAX_RESOLUTION = 384
"""Maximum side of the photos that calibrate a network [px]: the size affects the time, but not the ranges of values."""
_VERSION = 4  # raised whenever the same checkpoint would be quantized to something else
_MEASURED = 2  # photos on which single layers are measured, at a third of the side
_LEAST = 64  # side of a photo [px]
_EXTRAS = {"onnx": "export", "openvino": "quantize"}
_PACKAGE = Path(__file__).parents[1]
_log = quoted_logger(__name__)


def default_photos() -> list[Path]:
    """The photos that come with the package, or with its sources.

    Raises:
        InvalidValueError: there are none.
    """
    for folder in (_PACKAGE / "serving" / "page" / "examples", _PACKAGE.parents[1] / "examples" / "photos"):
        if photos := sorted(folder.glob("*.jpg")):
            return photos
    raise InvalidValueError(
        "dtype='int8' needs photos to measure the ranges of values, and this installation has none: write an int8 copy "
        "with `openmarigold checkpoint export --dtype int8 --photos FOLDER` and give it as --checkpoint"
    )


def in_int8(checkpoint: Checkpoint, config: ModelConfig, tiny_vae: TinyVae | None = None) -> Checkpoint:
    """The int8 copy of a checkpoint in the user's cache, which is made on first use. Raises as `export_int8`.

    It is made for the engine that the settings choose; a tiny autoencoder is part of it.
    """
    chosen = choose_engine(checkpoint, engine=config.engine, device=config.device, dtype="int8", compile=config.compile)
    format: ConvertedFormat = "onnx" if chosen == "onnx" else "openvino"
    photos = default_photos()
    tiny = [] if tiny_vae is None else [tiny_vae_sha256(tiny_vae), tiny_vae.used_for]
    sources = [checkpoint_sha256(checkpoint), *tiny, *map(file_sha256, photos)]
    key = hashlib.sha256(json.dumps([_VERSION, format, sources]).encode()).hexdigest()
    folder = user_cache_dir() / "converted" / f"int8-{format}-{key[:32]}"
    make_directory(folder.parent)
    with one_at_a_time(folder.with_suffix(".lock")):  # quantizing takes time and memory
        if (folder / SUMS_FILE).is_file():
            try:
                check_sums(folder)
                return read_checkpoint(folder, wanted=checkpoint.modality.name)
            except CheckpointError as error:
                _log.warning("the int8 copy of %s is damaged and is made again (%s)", checkpoint.name, error)
        _log.warning("%s is quantized to int8, once; kept in %s", checkpoint.name, folder)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged copy may lack any file
        try:
            export_int8(checkpoint, folder, format=format, photos=photos, tiny_vae=tiny_vae)
        except OutputError as error:
            raise OutputError(
                f"{error}; the int8 copy is kept there: set OPENMARIGOLD_CACHE_DIR to a folder with enough space"
            ) from error
        return read_checkpoint(folder, wanted=checkpoint.modality.name)


def export_int8(
    source: Checkpoint,
    destination: Path,
    *,
    format: ConvertedFormat,
    photos: Sequence[Path] = (),
    tiny_vae: TinyVae | None = None,
) -> None:
    """Writes a checkpoint as a folder of ONNX or OpenVINO networks in int8, with SHA256SUMS.

    Its model_index.json states how it was quantized and which layers stayed in floating point.

    Args:
        source: a checkpoint in float32; a converted one must have the same format.
        destination: folder to write; it may hold an older export, which is replaced.
        format: "onnx" (ONNX Runtime) or "openvino" (NNCF).
        photos: photos to measure the ranges of values on. Nothing: `default_photos`.
        tiny_vae: an autoencoder that replaces the checkpoint's, in the directions of its `used_for`.

    Raises:
        CheckpointError: the checkpoint is damaged, or in int8 already.
        InvalidValueError: no photo was given.
        OutputError: `destination` holds something other than an exported checkpoint, which would be lost.
        MissingExtraError: a package that converts or quantizes is not installed.
    """
    if source.quantization:
        raise CheckpointError(f"{source.directory} is in int8 already; copy the folder")
    photos = list(photos) or default_photos()
    with needs_extra(_EXTRAS[format]):
        from openmarigold.networks.conversion import check_replaceable
    quantize = _quantizer(format)
    check_replaceable(destination, source)
    with atomic_directory(destination) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        plain = _in_format(source, Path(scratch, "plain"), format, tiny_vae)
        shutil.copytree(plain.directory / "scheduler", folder / "scheduler")
        recorder = _Recorder(plain, format, Path(scratch))
        resolution = min(plain.one_pass_resolution or MAX_RESOLUTION, MAX_RESOLUTION)
        samples = recorder.inputs(photos, resolution)
        small = recorder.inputs(photos[:_MEASURED], max(_LEAST, resolution // 3 // LATENT_FACTOR * LATENT_FACTOR))
        del recorder  # its networks take memory
        reports = {}
        for name in plain.networks:
            (folder / name).mkdir()
            network = plain.directory / NETWORK_FILES[format][name]
            report = quantize(network, folder / name, _loaded(samples[name]), _loaded(small[name]))
            reports[name] = report.to_dict()
            _log.info("%s: %d layers in int8, %d kept", name, report.num_layers, len(report.kept))
        stated = {
            "dtype": "int8",
            "made_by": f"openmarigold {__version__}, {_tool(format)}",
            "source": source.name,
            "source_sha256": checkpoint_sha256(source),
            "num_photos": len(photos),
            "photos_sha256": files_sha256(photos),
            "networks": reports,
        }
        _write_index(plain, stated, folder)
        write_sums(folder)


def _in_format(source: Checkpoint, folder: Path, format: ConvertedFormat, tiny_vae: TinyVae | None) -> Checkpoint:
    """The checkpoint in float32 networks of a format: itself, or exported to a folder."""
    if source.weights == format and tiny_vae is None:
        return source
    from openmarigold.networks.conversion import export_checkpoint

    export_checkpoint(source, folder, format=format, dtype="float32", tiny_vae=tiny_vae)
    return read_checkpoint(folder, wanted=source.modality.name)


def _write_index(plain: Checkpoint, stated: dict[str, Any], folder: Path) -> None:
    index = parse_json((plain.directory / "model_index.json").read_bytes())
    text = json.dumps({**index, QUANTIZATION: stated}, indent=2, ensure_ascii=False)
    (folder / "model_index.json").write_text(text + "\n", encoding="utf-8")


def _quantizer(format: ConvertedFormat) -> Callable[[Path, Path, Sequence[Sample], Sequence[Sample]], Quantized]:
    with needs_extra(_EXTRAS[format]):
        if format == "openvino":
            from openmarigold.networks.quantization_openvino import quantize_openvino as quantize
        else:
            from openmarigold.networks.quantization_onnx import quantize_onnx as quantize
    return quantize


def _tool(format: ConvertedFormat) -> str:
    from importlib.metadata import version

    package = {"onnx": "onnxruntime", "openvino": "nncf"}[format]
    return f"{package} {version(package)}"


class _Recorder:
    """Records the inputs of each network on photos, in files."""

    def __init__(self, checkpoint: Checkpoint, format: ConvertedFormat, folder: Path) -> None:
        self._folder = folder
        self._predictor = Predictor.from_config(ModelConfig(engine=format, device="cpu"), found=checkpoint)
        engine: Any = self._predictor.engine
        self._run, engine.run = engine.run, self._record
        self._found: dict[str, list[Path]] = {}
        self._number = 0

    def inputs(self, photos: Sequence[Path], resolution: int) -> dict[str, list[Path]]:
        """The files of each network's inputs on photos of a size."""
        self._found = {}
        for photo in photos:
            self._predictor(photo, processing_resolution=resolution)
        return self._found

    def _record(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        self._number += 1
        path = self._folder / f"{name}-{self._number}.npz"
        np.savez(path, **inputs)  # pyright: ignore[reportArgumentType]
        self._found.setdefault(name, []).append(path)
        return self._run(name, **inputs)


def _loaded(paths: Sequence[Path]) -> list[dict[str, np.ndarray]]:
    loaded = []
    for path in paths:
        with np.load(path) as content:
            loaded.append(dict(content))
    return loaded
