# SPDX-License-Identifier: Apache-2.0
"""Description and verification of checkpoints: parameters, sizes, hashes, finite weights.

Files are read in blocks and no network is loaded, so that neither torch nor much memory is needed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openmarigold.checkpoints.checkpoint import Checkpoint, loaded_variant, network_files
from openmarigold.checkpoints.empty_prompt import stored_embedding_path, text_encoder_files
from openmarigold.checkpoints.hashes import checkpoint_sha256
from openmarigold.checkpoints.hub import Repository, stated_sha256
from openmarigold.checkpoints.safetensors_header import StoredTensor, read_header
from openmarigold.checkpoints.weight_files import part_folder, readable, weight_files
from openmarigold.config import is_integer
from openmarigold.errors import CheckpointError
from openmarigold.files import file_sha256

SUMS_FILE = "SHA256SUMS"
_KNOWN_UP_TO = {"affine": "affine-invariant ", "scale": "scale-invariant ", "absolute": "absolute "}
_BLOCK_BYTES = 1 << 22
_FLOAT_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_BF16_EXPONENT = 0x7F80  # all ones: infinite or not a number


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts of `openmarigold checkpoint info`, for JSON: kind, scheduler, defaults, parameters, size, hashes."""
    sums = hash_files(checkpoint)
    return {
        **_described_settings(checkpoint),
        "variant": loaded_variant(checkpoint),
        "parameters": count_parameters(checkpoint),
        "bytes": sum((checkpoint.directory / name).stat().st_size for name in sums),
        "license": stated_license(checkpoint),
        "sha256": checkpoint_sha256(checkpoint),
        "files": sums,
    }


def describe_outline(checkpoint: Checkpoint, repository: Repository, names: Iterable[str]) -> dict[str, Any]:
    """The same facts for a checkpoint on the hub without its weights. Facts that need the weights are None.

    Args:
        checkpoint: as `read_outline` returns it.
        repository: the repository with the hub's list of files.
        names: the files that a prediction reads.
    """
    files = {name: repository.files[name] for name in names}
    return {
        **_described_settings(checkpoint),
        "variant": checkpoint.variant,
        "parameters": None,
        "bytes": sum(file.size for file in files.values()),
        "license": stated_license(checkpoint),
        "sha256": None,
        "files": {name: file.sha256 for name, file in files.items()},
        "commit": repository.commit,
        "bytes_to_download": sum(file.size for file in repository.missing(files).values()),
    }


def _described_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    schedule = checkpoint.schedule
    ddim = {"timestep_spacing": schedule.timestep_spacing, "set_alpha_to_one": schedule.set_alpha_to_one}
    lcm = {"original_inference_steps": schedule.original_inference_steps}
    known_up_to = _KNOWN_UP_TO[checkpoint.invariance] if len(checkpoint.modality.quantities) > 1 else ""
    return {
        "name": checkpoint.name,
        "directory": str(checkpoint.directory),
        "kind": f"{known_up_to}{checkpoint.modality.title}",
        "weights": checkpoint.weights,
        "variant": checkpoint.variant,
        "scheduler": {
            "class": schedule.class_name,
            "prediction_type": schedule.prediction_type,
            "zero_terminal_snr": schedule.rescale_betas_zero_snr,
            **(lcm if schedule.sampler == "lcm" else ddim),
        },
        "defaults": {
            "num_inference_steps": checkpoint.default_num_inference_steps,
            "processing_resolution": checkpoint.default_processing_resolution,
            **({"coarse_resolution": checkpoint.coarse_resolution} if checkpoint.coarse_resolution else {}),
            "processing_side": checkpoint.processing_side,
            "start_noise": checkpoint.default_start_noise,
            **_ensemble_start(checkpoint),
            "final_step": "clean" if schedule.sampler == "lcm" else checkpoint.default_final_step,
        },
        "latent_channels": checkpoint.latent_channels,
        **({"condition_channels": checkpoint.condition_channels} if checkpoint.image_encoder else {}),
        **({"condition_on": checkpoint.condition_on} if checkpoint.condition_on else {}),
        **({"quantization": dict(checkpoint.quantization)} if checkpoint.quantization else {}),
    }


def _ensemble_start(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about an ensemble's members: their starting noise, if a single prediction has another, and mirroring."""
    start, scale = checkpoint.default_ensemble_start_noise, checkpoint.ensemble_noise_scale
    return {
        **({} if start == checkpoint.default_start_noise else {"ensemble_start_noise": start}),
        **({} if scale == 1 else {"ensemble_noise_scale": scale}),
        **({"ensemble_mirror": True} if checkpoint.default_ensemble_mirror else {}),
    }


def checkpoint_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that a prediction reads, relative to the folder, in a fixed order.

    If an embedded model shares the image encoder of another one, the encoder's files are in the other's folder.
    """
    directory = checkpoint.directory
    files = [directory / "model_index.json", *network_files(checkpoint)]
    if checkpoint.weights == "safetensors":
        stored = stored_embedding_path(directory, variant=checkpoint.variant)
        files += [stored] if stored.is_file() else text_encoder_files(directory, checkpoint.variant)
    return sorted(Path(os.path.relpath(path, directory)) for path in files)


def hash_files(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of each of the checkpoint's files by its name within the folder."""
    return {path.as_posix(): _sha256_of(checkpoint.directory / path) for path in checkpoint_files(checkpoint)}


def _sha256_of(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with readable():
        return file_sha256(path)


def count_parameters(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Numbers in the weights of each part, from the files' headers; None if converted ones do not state them."""
    if checkpoint.weights != "safetensors":
        stated = checkpoint.index.get("num_parameters")
        return dict(stated) if isinstance(stated, dict) and all(map(is_integer, stated.values())) else None
    counts = {}
    for name in checkpoint.parts:
        files = weight_files(part_folder(checkpoint.directory, name), variant=checkpoint.variant)[1]
        shapes = (tensor.shape for path in files for tensor in read_header(path).tensors.values())
        counts[name] = sum(math.prod(shape) for shape in shapes)
    return counts


def stated_license(checkpoint: Checkpoint) -> str | None:
    """The license that the folder states: in model_index.json, its model card's front matter, or a license file."""
    if isinstance(checkpoint.index.get("license"), str):
        return checkpoint.index["license"]
    return license_of_folder(checkpoint.directory)


def license_of_folder(folder: Path) -> str | None:
    """The license that the front matter of a model card or a license file states; None if neither does."""
    card = folder / "README.md"
    if card.is_file():
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        line = re.search(r"^license(?:_name)?:\s*(.+)$", front.group(1), re.MULTILINE) if front else None
        if line:
            return line.group(1).strip().strip("'\"")
    files = sorted(path.name for path in folder.glob("LICEN[SC]E*"))
    return f"see {files[0]}" if files else None


def verify(checkpoint: Checkpoint) -> Iterator[tuple[str, list[str]]]:
    """Yields (title of a check, its problems, one line each) as the checks are done.

    Structure, sizes and headers have been checked by reading the checkpoint. Here each hash is compared with the one
    that the folder states (SHA256SUMS, or the hub's name of the file), and each weight must be finite.
    """
    sums = hash_files(checkpoint)
    stated = _stated_sums(checkpoint)
    wrong = [
        f"{checkpoint.directory / name} has SHA-256 {sums[name]}, stated is {stated[name]}; get the checkpoint again"
        for name in sums
        if stated.get(name, sums[name]) != sums[name]
    ]
    missing = [
        f"{checkpoint.directory / name} is named in {SUMS_FILE} and missing"
        for name in stated
        if name not in sums and not (checkpoint.directory / name).is_file()
    ]
    yield f"{len(stated.keys() & sums.keys())} of {len(sums)} hashes are stated and compared", wrong + missing
    weights = [checkpoint.directory / name for name in sums if name.endswith(".safetensors")]
    yield f"{len(weights)} weight files hold finite numbers", [line for path in weights for line in _not_finite(path)]


def write_sums(directory: Path) -> None:
    """Writes SHA256SUMS for all files in a folder, in the format of `sha256sum`."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != SUMS_FILE)
    lines = [f"{_sha256_of(path)}  {path.relative_to(directory).as_posix()}\n" for path in files]
    (directory / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def check_sums(directory: Path) -> None:
    """Passes if the files in a folder's SHA256SUMS are unchanged, or if the folder does not have that file.

    Raises:
        CheckpointError: one is missing or has other bytes, or SHA256SUMS is damaged.
    """
    for name, stated in read_sums(directory).items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is named in {SUMS_FILE} and missing")
        found = _sha256_of(path)
        if found != stated:
            raise CheckpointError(f"{path} has SHA-256 {found}, stated is {stated}")


def read_sums(directory: Path) -> dict[str, str]:
    """SHA-256 by file name, as SHA256SUMS in a folder states it; empty without such a file.

    Raises:
        CheckpointError: it is damaged.
    """
    path = directory / SUMS_FILE
    if not path.is_file():
        return {}
    stated = {}
    with readable():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise CheckpointError(f"{path} has a line that is not in the format of sha256sum: {line[:80]!r}")
        stated[match.group(2)] = match.group(1)
    if not stated:
        raise CheckpointError(f"{path} is empty")
    return stated


def _stated_sums(checkpoint: Checkpoint) -> dict[str, str]:
    stated = {}
    for path in checkpoint_files(checkpoint):
        of_hub = stated_sha256(checkpoint.directory / path)
        if of_hub is not None:
            stated[path.as_posix()] = of_hub
    return stated | read_sums(checkpoint.directory)


def _not_finite(path: Path) -> Iterator[str]:
    for name, tensor in read_header(path).tensors.items():
        dtype = tensor.dtype
        if dtype in _FLOAT_TYPES and not all(_is_finite(block, dtype) for block in _blocks(path, tensor)):
            yield f"{path}: {name} holds values that are not finite; get the checkpoint again"


def _blocks(path: Path, tensor: StoredTensor) -> Iterator[np.ndarray]:
    with readable(), path.open("rb") as file:
        file.seek(tensor.start)
        for position in range(tensor.start, tensor.end, _BLOCK_BYTES):
            content = file.read(min(_BLOCK_BYTES, tensor.end - position))
            yield np.frombuffer(content, dtype=_FLOAT_TYPES[tensor.dtype])


def _is_finite(values: np.ndarray, dtype: str) -> bool:
    if dtype == "BF16":
        return bool(((values & _BF16_EXPONENT) != _BF16_EXPONENT).all())
    return bool(np.isfinite(values).all())
