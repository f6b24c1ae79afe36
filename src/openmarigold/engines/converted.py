# SPDX-License-Identifier: Apache-2.0
"""The engine of converted networks, and their files: the checkpoint's own, or files that are converted once and kept.

Converted networks lie in the user's cache folder (`files.user_cache_dir`). Each has a folder, named by a hash of its
source files, so the same weights in another place are not converted again. Only the conversion needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.checkpoints.empty_prompt import cached_embedding_path, stored_embedding_path
from openmarigold.checkpoints.weight_files import IMAGE_ENCODER, NETWORK_FILES, graph_file, part_folder, weight_files
from openmarigold.config import LATENT_FACTOR, ConvertedFormat, Dtype, StoredDtype
from openmarigold.errors import CheckpointError, OpenMarigoldError, OutputError, needs_extra, one_line
from openmarigold.files import atomic_directory, file_sha256, files_sha256, user_cache_dir
from openmarigold.printing import quoted_logger
from openmarigold.text_files import parse_json

T = TypeVar("T")
Run: TypeAlias = Callable[..., np.ndarray]
LARGE_BYTES = 2**28
"""Smallest size of a large network's weights: OpenVINO saves more time than its start costs, and memory matters."""
_VERSION = 3  # raised whenever the same weights would be converted to something else
_CONTENT_FILE = "content.json"
_log = quoted_logger(__name__)


def network_paths(
    checkpoint: Checkpoint,
    format: ConvertedFormat,
    *,
    dtype: StoredDtype = "float32",
    tiny_vae: TinyVae | None = None,
    renew: bool = False,
) -> dict[str, Path]:
    """The file of each network in a format, converted if it is missing; OpenVINO also reads ONNX files.

    Args:
        dtype: how the weights of converted networks are stored.
        renew: convert again, even if converted files are there.

    Raises:
        CheckpointError: the checkpoint is damaged, or its networks cannot become this format.
        MissingExtraError: a network has to be converted and torch is not installed.
        OutputError: the user's cache cannot be written.
    """
    paths = {}
    for name in checkpoint.networks:
        replaced = tiny_vae is not None and name in tiny_vae.networks
        if checkpoint.graphs and not replaced:
            paths[name] = graph_file(checkpoint.directory, name)
        elif checkpoint.weights == "safetensors" or replaced:
            paths[name] = _converted(checkpoint, name, format, dtype, tiny_vae if replaced else None, renew)
        elif format == "onnx" and checkpoint.weights == "openvino":
            raise CheckpointError(
                f"{checkpoint.directory} holds OpenVINO networks, which engine openvino runs; use that, or auto"
            )
        else:
            paths[name] = checkpoint.directory / NETWORK_FILES[checkpoint.weights][name]
    return paths


def open_networks(
    checkpoint: Checkpoint,
    format: ConvertedFormat,
    open_all: Callable[[dict[str, Path]], T],
    *,
    dtype: StoredDtype = "float32",
    tiny_vae: TinyVae | None = None,
) -> T:
    """The result of `open_all` on `network_paths`; damaged converted files are made again.

    Raises:
        CheckpointError: the checkpoint's own files are damaged, or its networks cannot become this format.
        MissingExtraError: a network has to be converted and torch is not installed.
        OutputError: the user's cache cannot be written.
    """
    paths = network_paths(checkpoint, format, dtype=dtype, tiny_vae=tiny_vae)
    try:
        return open_all(paths)
    except CheckpointError:
        if not any(path.is_relative_to(user_cache_dir()) for path in paths.values()):
            raise
        _log.warning("converted networks of %s are damaged and are made again", checkpoint.name)
        return open_all(network_paths(checkpoint, format, dtype=dtype, tiny_vae=tiny_vae, renew=True))


def can_keep_converted(checkpoint: Checkpoint) -> bool:
    """Whether the user's cache can be written and has space for the converted networks of a checkpoint."""
    folder = user_cache_dir()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2 * weight_bytes(checkpoint)
    except OSError:
        return False


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Size of the networks' files."""
    if checkpoint.weights == "safetensors":
        files = [
            path
            for name in checkpoint.parts
            for path in _sources(part_folder(checkpoint.directory, name), checkpoint.variant)
        ]
    else:
        folders = [checkpoint.directory / name for name in checkpoint.networks]
        files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
    return sum(path.stat().st_size for path in files)


def _converted(
    checkpoint: Checkpoint,
    name: str,
    format: ConvertedFormat,
    dtype: StoredDtype,
    tiny_vae: TinyVae | None,
    renew: bool,
) -> Path:
    sources = _sources_of_network(checkpoint, name, tiny_vae)
    key = hashlib.sha256(json.dumps([_VERSION, format, dtype, name, sources]).encode()).hexdigest()
    folder = user_cache_dir() / "converted" / f"{format}-{name}-{key[:32]}"
    path = folder / Path(NETWORK_FILES[format][name]).name
    if not renew and _is_whole(folder):
        return path
    with needs_extra("torch"):
        from openmarigold.networks.conversion import write_network
    started = time.perf_counter()
    _log.info("converting %s of %s for %s, once; kept in %s", name, checkpoint.name, format, folder)
    try:
        with atomic_directory(folder) as temporary:
            write_network(checkpoint, name, temporary, format=format, dtype=dtype, tiny_vae=tiny_vae)
            sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
            (temporary / _CONTENT_FILE).write_text(json.dumps(sizes), encoding="utf-8")
    except OutputError as error:
        raise OutputError(
            f"{error}; converted networks are kept there: set OPENMARIGOLD_CACHE_DIR to a folder with enough space, "
            "or use engine torch"
        ) from error
    _log.info("converted %s in %.1f s", name, time.perf_counter() - started)
    return path


class ConvertedEngine:
    """An engine of converted networks, on NumPy arrays and the CPU. See `Engine`.

    `run(name, **inputs)` returns the output of a network.
    """

    device = "cpu"
    # Batches gain nothing on a CPU, and results must not depend on them.
    max_batch_size: int | None = 1

    def __init__(self, name: str, checkpoint: Checkpoint, run: Run, *, dtype: Dtype) -> None:
        self.name, self.dtype, self.run = name, dtype, run
        self.latent_channels = checkpoint.latent_channels
        self.condition_channels = checkpoint.condition_channels
        self._image_channels = checkpoint.image_channels
        self._encoder = checkpoint.networks[0]
        self._modality = checkpoint.modality

    def stop(self) -> None:
        """Ends the calls of other threads with their next network, and all later calls, by KeyboardInterrupt."""
        self.run = _stopped

    def encode(self, rgb: Float[np.ndarray, "b 3 H W"]) -> Float[np.ndarray, "b K h w"]:
        condition = self.run(self._encoder, sample=rgb)
        height, width = rgb.shape[2] // LATENT_FACTOR, rgb.shape[3] // LATENT_FACTOR
        _check_output(condition.shape, (len(rgb), self._image_channels, height, width), self._encoder)
        return condition

    def joined(
        self, condition: Float[np.ndarray, "b K h w"], more: Float[np.ndarray, "b r h w"]
    ) -> Float[np.ndarray, "b k h w"]:
        return np.concatenate([condition, more], axis=1)

    def denoise(
        self, rgb_latent: Float[np.ndarray, "#b K h w"], noisy_latent: Float[np.ndarray, "b tC h w"], *, timestep: int
    ) -> Float[np.ndarray, "b tC h w"]:
        condition = np.broadcast_to(rgb_latent, (len(noisy_latent), *rgb_latent.shape[1:]))
        sample = np.concatenate([condition, noisy_latent], axis=1)
        prediction = self.run("unet", sample=sample, timestep=np.array([timestep], dtype=np.int64))
        _check_output(prediction.shape, noisy_latent.shape, "unet")
        return prediction

    def decode(self, latent: Float[np.ndarray, "b tC h w"]) -> Float[np.ndarray, "b t k H W"]:
        targets = latent.reshape(-1, self.latent_channels, *latent.shape[2:])
        decoded = self.run("vae_decoder", latent=targets)
        height, width = latent.shape[2] * LATENT_FACTOR, latent.shape[3] * LATENT_FACTOR
        _check_output(decoded.shape, (len(targets), self._modality.decoded_channels, height, width), "vae_decoder")
        return decoded.reshape(len(latent), self._modality.num_targets, *decoded.shape[1:])

    def to_engine(self, array: Float[np.ndarray, "b C h w"]) -> Float[np.ndarray, "b C h w"]:
        return array

    def from_engine(self, latent: Float[np.ndarray, "b C h w"]) -> Float[np.ndarray, "b C h w"]:
        return latent

    def is_finite(self, latent: Float[np.ndarray, "b C h w"]) -> bool:
        return bool(np.isfinite(latent).all())

    def fitting_batch_size(self, height: int, width: int) -> int:
        return 1


def _stopped(name: str, **inputs: np.ndarray) -> np.ndarray:
    raise KeyboardInterrupt


def failed_run(name: str, inputs: Mapping[str, np.ndarray], error: Exception) -> OpenMarigoldError:
    """The error for a network whose library has failed."""
    shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in inputs.items())
    return OpenMarigoldError(f"{name} failed on {shapes} ({one_line(error)}); try a smaller processing_resolution")


def _check_output(found: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
    """Refuses a network's output of another shape, which NumPy might broadcast silently.

    Raises:
        CheckpointError: the shapes differ.
    """
    if tuple(found) != tuple(expected):
        raise CheckpointError(
            f"{what} gave an output of shape {list(found)}, not {list(expected)}: it is not the network of this "
            "kind of checkpoint; get the checkpoint again"
        )


def _is_whole(folder: Path) -> bool:
    """Whether all files of a conversion are there with their original sizes."""
    try:
        sizes = parse_json((folder / _CONTENT_FILE).read_bytes())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _sources(folder: Path, variant: str | None) -> list[Path]:
    return [folder / "config.json", *weight_files(folder, variant=variant)[1]]


def _sources_of_network(checkpoint: Checkpoint, name: str, tiny_vae: TinyVae | None) -> list[str]:
    """Hashes of a network's source files."""
    directory, variant = checkpoint.directory, checkpoint.variant
    if name == IMAGE_ENCODER:
        return [files_sha256(_sources(part_folder(directory, IMAGE_ENCODER), variant))]
    if name != "unet":
        folder, variant = (tiny_vae.directory, tiny_vae.variant) if tiny_vae else (directory / "vae", variant)
        # Decoders of one channel came first: their files in users' caches keep their names.
        channels = checkpoint.modality.decoded_channels
        more = [f"{channels} channels"] if name == "vae_decoder" and channels != 1 else []
        return [files_sha256(_sources(folder, variant)), *more]
    stored = embedding = stored_embedding_path(directory, variant=variant)
    if not embedding.is_file():
        embedding = cached_embedding_path(directory, variant=variant)
    if not embedding.is_file():
        _make_embedding(directory, variant)
        embedding = next((path for path in (stored, embedding) if path.is_file()), embedding)
    content = file_sha256(embedding) if embedding.is_file() else "not kept"
    return [files_sha256(_sources(directory / "unet", variant)), content]


def _make_embedding(directory: Path, variant: str | None) -> None:
    """Compute the empty prompt's embedding with the text encoder, and keep it."""
    with needs_extra("torch"):
        from openmarigold.networks.prompt import load_empty_prompt_embedding
    load_empty_prompt_embedding(directory, variant=variant)
