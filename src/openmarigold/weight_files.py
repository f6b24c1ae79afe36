# SPDX-License-Identifier: Apache-2.0
"""Which files hold the weights of a network, and whether they are whole, by names, sizes and headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openmarigold.config import ConvertedFormat
from openmarigold.errors import CheckpointError, OpenMarigoldError, one_line
from openmarigold.text_files import DamagedTextError, parse_json

NETWORKS = ("vae_encoder", "unet", "vae_decoder")
# Format of converted networks -> name of a network -> its file, and where the weights lie that are not in it.
NETWORK_FILES: dict[ConvertedFormat, dict[str, str]] = {
    "onnx": {name: f"{name}/model.onnx" for name in NETWORKS},
    "openvino": {name: f"{name}/model.xml" for name in NETWORKS},
}
ONNX_FILES = NETWORK_FILES["onnx"]
NETWORK_STEM = "diffusion_pytorch_model"
TEXT_ENCODER_STEM = "model"
_MAX_HEADER_BYTES = 100_000_000  # as the safetensors library has it
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@contextmanager
def readable() -> Iterator[None]:
    """Names the file of a checkpoint that the operating system does not give.

    Raises:
        CheckpointError: in the place of an `OSError`.
    """
    try:
        yield
    except OpenMarigoldError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or 'a file of the checkpoint'} cannot be read: {error.strerror or error}; check its "
            "permissions and the disk, or get the checkpoint again"
        ) from error


def weight_files(
    folder: Path, *, stem: str = NETWORK_STEM, variant: str | None = None
) -> tuple[str | None, list[Path]]:
    """(variant, safetensors files) of one network: a single file, or the shards that its index names.

    Without `variant` the plain files, else those named fp16. Only names are looked at.

    Raises:
        CheckpointError: none are there, only pickled ones, or a shard is missing.
    """
    for candidate in (variant,) if variant else (None, "fp16"):
        infix = f".{candidate}" if candidate else ""
        single = folder / f"{stem}{infix}.safetensors"
        if single.is_file():
            return candidate, [single]
        # diffusers and transformers have named the index of a variant in two ways.
        names = dict.fromkeys((f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"))
        for index_path in (folder / name for name in names):
            if index_path.is_file():
                return candidate, _shards(index_path)
    wanted = folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"
    raise CheckpointError(f"{wanted} is missing{_what_is_there(folder, stem)}")


def _shards(index_path: Path) -> list[Path]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} has no weight_map; get the checkpoint again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index_path} names {name!r}, which is no safetensors file beside it")
        if not (index_path.parent / name).is_file():
            raise CheckpointError(f"{index_path.parent / name} is missing, which {index_path.name} names")
    return [index_path.parent / name for name in names]


def _what_is_there(folder: Path, stem: str) -> str:
    """The rest of the message about missing weights: other variants, or how to convert a pickle."""
    others = sorted(path.name for path in folder.glob(f"{stem}*.safetensors"))
    if others:
        return f"; the folder holds {', '.join(others[:3])}: choose with --variant"
    pickles = sorted(path for suffix in ("bin", "pt", "ckpt") for path in folder.glob(f"*.{suffix}"))
    if not pickles:
        return "; a checkpoint is a whole folder in diffusers layout"
    pickle = pickles[0]
    return (
        f"; {pickle.name} is a pickle, which is never loaded: get the .safetensors file, or convert it (in "
        f"{pickle.parent}): {conversion_command(pickle.name)}"
    )


def conversion_command(name: str) -> str:
    """Shell line that turns a pickled weight file into a safetensors one; `weights_only` runs no code in the pickle."""
    target = f"{name.rsplit('.', 1)[0].replace('pytorch_model', TEXT_ENCODER_STEM)}.safetensors"
    if name.startswith(NETWORK_STEM):
        target = f"{name.rsplit('.', 1)[0]}.safetensors"
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"w = torch.load('{name}', map_location='cpu', weights_only=True); "
        f"save_file({{k: v.contiguous().clone() for k, v in w.items()}}, '{target}', {{'format': 'pt'}})\""
    )


def has_weights(folder: Path, *, stem: str = NETWORK_STEM) -> bool:
    """Whether a folder holds the weights of a network, in any variant that is looked for."""
    try:
        return bool(weight_files(folder, stem=stem)[1])
    except CheckpointError:
        return False


def weight_patterns(stem: str, variant: str | None) -> list[str]:
    """Names, with wildcards, that the weight files of a network and variant have."""
    infix = f".{variant}" if variant else ""
    indices = {f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"}
    return [f"{stem}{infix}.safetensors", f"{stem}{infix}-*-of-*.safetensors", *sorted(indices)]


def converted_files(directory: Path, kind: ConvertedFormat) -> list[Path]:
    """The files of converted networks in a folder: for each the network, and its weights where they lie beside it."""
    paths = [directory / file for file in NETWORK_FILES[kind].values()]
    if kind == "openvino":
        return paths + [path.with_suffix(".bin") for path in paths]
    # Networks of more than 2 GB keep their weights in a file beside them, named by the first: .data or _data.
    return paths + [companion for path in paths for companion in sorted(path.parent.glob(f"{path.name}[._]data"))]


def check_safetensors_file(path: Path) -> dict[str, Any]:
    """The header of the file (name → dtype, shape, data_offsets), its size having been compared with it.

    Raises:
        CheckpointError: the file is truncated or not in safetensors format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or header_size > size - 8:
                raise CheckpointError(f"{path} is truncated ({size} bytes); get the checkpoint again")
            header = parse_json(file.read(min(header_size, _MAX_HEADER_BYTES)))
        end = _end_of_tensors({key: entry for key, entry in header.items() if key != "__metadata__"})
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is not a safetensors file ({one_line(error)}); get the checkpoint again"
        ) from error
    expected = 8 + header_size + end
    if size != expected:
        raise CheckpointError(f"{path} is truncated ({size} of {expected} bytes); get the checkpoint again")
    return {key: entry for key, entry in header.items() if key != "__metadata__"}


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file, which has been checked, carries beside its tensors."""
    with path.open("rb") as file:
        metadata = parse_json(file.read(int.from_bytes(file.read(8), "little"))).get("__metadata__")
    return dict(metadata) if isinstance(metadata, dict) else {}


def _end_of_tensors(entries: Mapping[str, Any]) -> int:
    """Where the last tensor's bytes end, after all places have been compared with the shapes and with each other.

    Raises:
        ValueError: a place or shape that is no list of whole numbers from 0 on, a size that differs from the shape's,
            or tensors that overlap or leave a gap.
    """
    places = []
    for name, entry in entries.items():
        start, end = _whole_numbers(name, entry["data_offsets"])
        count = math.prod(_whole_numbers(name, entry["shape"]))
        itemsize = _ITEM_BYTES.get(entry["dtype"])
        if start > end or (itemsize is not None and end - start != itemsize * count):
            raise ValueError(f"tensor {name[:80]!r} has {end - start} bytes, which its shape does not need")
        places.append((start, end))
    position = 0
    for start, end in sorted(places):
        if start != position:
            raise ValueError(f"the tensor at byte {start} overlaps another, or leaves a gap")
        position = end
    return position


def _whole_numbers(name: str, values: Any) -> list[int]:
    # 2.0 and True are equal to whole numbers, and the product of two negative sizes is positive.
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"tensor {name[:80]!r} has shape or data_offsets {values!r:.80}; whole numbers are needed")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged or something else.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; a checkpoint is a whole folder in diffusers layout") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except DamagedTextError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); get the checkpoint again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; get the checkpoint again")
    return content
