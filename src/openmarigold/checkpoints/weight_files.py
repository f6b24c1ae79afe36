# SPDX-License-Identifier: Apache-2.0
"""The files that hold the weights of a network, and whether they are complete, by names, sizes and headers only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.external_data import OnnxFacts, read_onnx_facts
from openmarigold.checkpoints.safetensors_header import check_not_a_pointer
from openmarigold.config import ConvertedFormat
from openmarigold.errors import CheckpointError, OpenMarigoldError
from openmarigold.printing import quoted_logger
from openmarigold.text_files import DamagedTextError, parse_json

IMAGE_ENCODER = "image_encoder"
NETWORKS = ("vae_encoder", "unet", "vae_decoder")
_ALL_NETWORKS = (*NETWORKS, IMAGE_ENCODER)
# Format of converted networks -> name of a network -> its file. Weights may be in other files (`converted_files`).
NETWORK_FILES: dict[ConvertedFormat, dict[str, str]] = {
    "onnx": {name: f"{name}/model.onnx" for name in _ALL_NETWORKS},
    "openvino": {name: f"{name}/model.xml" for name in _ALL_NETWORKS},
}
# ONNX networks next to safetensors weights, which they read (`checkpoint export --shared-weights`).
GRAPH_FILES = {
    "vae_encoder": "vae/encoder.onnx",
    "unet": "unet/unet.onnx",
    "vae_decoder": "vae/decoder.onnx",
    IMAGE_ENCODER: "image_encoder/encoder.onnx",
}
WEIGHTS_DIR = Path(__file__).parents[1] / "weights"
"""The models that come with the package."""
QUANTIZATION = "quantization"
"""Key in model_index.json: how the networks were quantized to int8."""
ENCODER_OF = "image_encoder_of"
"""Key in model_index.json of a model in `WEIGHTS_DIR`: the model next to it whose image encoder it shares."""
EMBEDDING_FILE = "empty_prompt_embedding.safetensors"
NETWORK_STEM = "diffusion_pytorch_model"
TEXT_ENCODER_STEM = "model"
_MADE_FROM = "openmarigold.made_from"
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 64, 4096
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

_log = quoted_logger(__name__)


def networks_of(*, image_encoder: bool) -> tuple[str, str, str]:
    """Names of the networks that encode, denoise and decode; an image encoder replaces the VAE's encoder."""
    return (IMAGE_ENCODER, *NETWORKS[1:]) if image_encoder else NETWORKS


def parts_of(*, image_encoder: bool) -> tuple[str, ...]:
    """Names of the folders that hold safetensors weights of the networks."""
    return ("unet", "vae", IMAGE_ENCODER) if image_encoder else ("unet", "vae")


def part_folder(directory: Path, name: str) -> Path:
    """The folder of a network: in the checkpoint, or in the embedded model whose image encoder it shares.

    Raises:
        CheckpointError: model_index.json names another model, but this checkpoint is not an embedded one.
    """
    own = directory / name
    index = directory / "model_index.json"
    if name != IMAGE_ENCODER or own.is_dir() or not index.is_file():
        return own
    other = read_json(index).get(ENCODER_OF)
    if other is None:
        return own
    # An untrusted folder must not choose which other files are read.
    plain = isinstance(other, str) and Path(other).name == other and other not in ("", ".", "..")
    if not plain or directory.resolve().parent != WEIGHTS_DIR.resolve():
        raise CheckpointError(
            f"{index}: {ENCODER_OF} is {other!r:.60}; only models that come with the package share an image encoder: "
            f"copy {IMAGE_ENCODER}/ into the folder, or write a copy with `openmarigold checkpoint export`"
        )
    return directory.parent / other / IMAGE_ENCODER


def graph_file(directory: Path, name: str) -> Path:
    """One of `GRAPH_FILES` of a checkpoint, next to the weights that it reads."""
    folder, _, file = GRAPH_FILES[name].partition("/")
    return part_folder(directory, folder) / file


@contextmanager
def readable() -> Iterator[None]:
    """Turn an `OSError` while a checkpoint is read into an error that names the file.

    Raises:
        CheckpointError: instead of an `OSError`.
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


def embedding_file(variant: str | None = None) -> str:
    """Name of the file in a checkpoint folder with the embedding of the empty prompt, of a variant or of all."""
    return EMBEDDING_FILE.replace(".", f".{variant}.", 1) if variant else EMBEDDING_FILE


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
            if candidate and not variant and any((folder / name).is_file() for name in plain_pickles(stem)):
                warn_of_half(str(folder))
            return candidate, [single]
        # diffusers and transformers have named the index of a variant in two ways.
        names = dict.fromkeys((f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"))
        for index_path in (folder / name for name in names):
            if index_path.is_file():
                return candidate, _shards(index_path)
    wanted = folder / f"{stem}{f'.{variant}' if variant else ''}.safetensors"
    raise CheckpointError(f"{wanted} is missing{_what_is_there(folder, stem)}")


def plain_pickles(stem: str) -> tuple[str, ...]:
    """Names of the pickled weights of a network, without a variant."""
    return tuple(dict.fromkeys((f"{stem}.bin", f"{stem.replace(TEXT_ENCODER_STEM, 'pytorch_model')}.bin")))


@cache  # once, not with every read
def warn_of_half(where: str) -> None:
    """Warns that weights in half precision are used because the plain ones are pickles."""
    _log.warning(
        "%s has its plain weights only as a pickle, which is never loaded: its weights named fp16 are taken", where
    )


def _shards(index_path: Path) -> list[Path]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path} has no weight_map; get the checkpoint again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index_path} names {name!r}, which is not a safetensors file next to it")
        if not (index_path.parent / name).is_file():
            raise CheckpointError(f"{index_path.parent / name}, which {index_path.name} names, is missing")
    return [index_path.parent / name for name in names]


def _what_is_there(folder: Path, stem: str) -> str:
    """The rest of the message about missing weights: other variants, or how to convert a pickle."""
    others = sorted(path.name for path in folder.glob(f"{stem}*.safetensors"))
    if others:
        return f"; the folder holds {', '.join(others[:3])}: choose with --variant"
    pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
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


def weight_patterns(stem: str, variant: str | None) -> list[str]:
    """Names, with wildcards, that the weight files of a network and variant have."""
    infix = f".{variant}" if variant else ""
    indices = {f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"}
    return [f"{stem}{infix}.safetensors", f"{stem}{infix}-*-of-*.safetensors", *sorted(indices)]


def converted_files(directory: Path, network_format: ConvertedFormat, networks: Iterable[str]) -> list[Path]:
    """The files of converted networks in a folder: the networks themselves, and the files that hold their weights.

    Raises:
        CheckpointError: an ONNX file is damaged, or reads weights from files that are not next to it.
    """
    paths = [directory / NETWORK_FILES[network_format][name] for name in networks]
    if network_format == "openvino":
        return paths + [path.with_suffix(".bin") for path in paths]
    return paths + [other for path in paths if path.is_file() for other in _onnx_facts(path).external_files]


def has_graphs(directory: Path, variant: str | None, networks: Iterable[str]) -> bool:
    """Whether a folder of safetensors weights also holds these networks in ONNX format, which read these weights.

    Raises:
        CheckpointError: one of them is missing, or was made from other weights than those that are there now.
    """
    files = {name: GRAPH_FILES[name] for name in networks}
    paths = {name: graph_file(directory, name) for name in files}
    if not any(path.is_file() for path in paths.values()):
        return False
    for name, path in paths.items():
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a checkpoint holds all of {', '.join(files.values())}")
        facts, sources = _onnx_facts(path), graph_sources(directory, name, variant)
        strangers = [file.name for file in facts.external_files if file not in sources]
        if strangers and variant is not None:
            return False  # they read another variant
        if strangers or facts.metadata.get(_MADE_FROM) != fingerprint(sources):
            what = f"reads {', '.join(strangers)}" if strangers else "was made from other weights or settings"
            raise CheckpointError(
                f"{path} {what}, and the folder holds {', '.join(file.name for file in sources)}; remove "
                f"{', '.join(files.values())}, or write them again with `openmarigold checkpoint export "
                "--shared-weights`"
            )
    return True


def graph_sources(directory: Path, name: str, variant: str | None) -> list[Path]:
    """The source files of one of `GRAPH_FILES`."""
    folder = graph_file(directory, name).parent
    embedding = [directory / EMBEDDING_FILE] if name == "unet" else []
    return [folder / "config.json", *weight_files(folder, variant=variant)[1], *embedding]


def graph_metadata(sources: Iterable[Path]) -> dict[str, str]:
    """Metadata of a graph about its source files."""
    return {_MADE_FROM: fingerprint(sources)}


def fingerprint(paths: Iterable[Path]) -> str:
    """A fast hash of files: over their sizes, their headers (of safetensors files) and 64 blocks of each."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            digest.update(size.to_bytes(8, "little") + file.read(min(header_size, size)))
            for block in range(_FINGERPRINT_BLOCKS):
                file.seek(max(0, size - _FINGERPRINT_BLOCK_BYTES) * block // (_FINGERPRINT_BLOCKS - 1))
                digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()


def _onnx_facts(path: Path) -> OnnxFacts:
    with readable():
        check_not_a_pointer(path)
    return read_onnx_facts(path)


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
