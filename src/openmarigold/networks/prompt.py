# SPDX-License-Identifier: Apache-2.0
"""The constant embedding of the empty prompt: read where it is stored, else made once by the text encoder and stored.

Published checkpoints hold a CLIP text encoder of 340 million parameters that a depth model only ever asks for the
embedding of "": two tokens, begin and end. Paper: §3.3 (the text condition is disabled).
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from openmarigold.checkpoints.empty_prompt import (
    cached_embedding_path,
    has_text_encoder,
    stored_embedding_path,
    text_encoder_weights,
)
from openmarigold.checkpoints.hashes import origin_metadata, text_encoder_sha256
from openmarigold.checkpoints.network_configs import text_encoder_settings
from openmarigold.checkpoints.weight_files import EMBEDDING_FILE, TEXT_ENCODER_STEM, read_json
from openmarigold.errors import CheckpointError, OutputError, needs_extra, one_line
from openmarigold.files import write_atomically
from openmarigold.networks.tensors import save_tensors
from openmarigold.printing import quoted_logger

EMBEDDING_KEY = "empty_prompt_embedding"
_log = quoted_logger(__name__)


def load_empty_prompt_embedding(directory: Path, *, variant: str | None = None) -> Float[Tensor, "1 n d"]:
    """The embedding of a checkpoint folder, from the first of: the file in it, the user's cache, its text encoder.

    What the text encoder makes is stored in the folder, or in the user's cache where the folder cannot be written, so
    that neither it nor its library is needed again.

    Raises:
        CheckpointError: it is nowhere, damaged, or of another size than the U-Net takes.
        MissingExtraError: the text encoder is needed and transformers is not installed.
    """
    stored = stored_embedding_path(directory, variant=variant)
    if stored.is_file():
        return _checked(_read(stored), directory, stored)
    cached = cached_embedding_path(directory, variant=variant)
    if cached.is_file():
        try:
            return _checked(_read(cached), directory, cached)
        except CheckpointError:
            if not has_text_encoder(directory):
                raise
    if not has_text_encoder(directory):
        raise CheckpointError(
            f"{directory} holds neither {EMBEDDING_FILE} nor text_encoder/ and tokenizer/; one of the two is needed"
        )
    embedding = _checked(_encode_empty_prompt(directory, variant), directory, directory / "text_encoder")
    _store(embedding, text_encoder_sha256(directory, variant), stored, cached)
    return embedding


def write_embedding(embedding: Float[Tensor, "1 n d"], path: Path, *, origin: str | None = None) -> None:
    """Writes the embedding as a safetensors file; `origin` is the hash of the text encoder that made it."""
    values = embedding.detach().float().cpu().contiguous()
    metadata = None if origin is None else origin_metadata(origin, values.numpy().tobytes())
    save_tensors({EMBEDDING_KEY: values}, path, metadata=metadata)


def _store(embedding: Tensor, origin: str, *paths: Path) -> None:
    """Writes to the first path that can be written; without one, the text encoder will be needed again."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: write_embedding(embedding, temporary, origin=origin))
            return
        except (OutputError, OSError) as error:
            problem = error
    _log.warning("the empty-prompt embedding could not be stored (%s); it is computed at each start", problem)


def _read(path: Path) -> Tensor:
    try:
        return load_file(path)[EMBEDDING_KEY].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}); get the checkpoint again") from error


def _checked(embedding: Tensor, directory: Path, source: Path) -> Tensor:
    try:
        width = read_json(directory / "unet" / "config.json")["cross_attention_dim"]
    except KeyError as error:
        raise CheckpointError(f"{directory / 'unet' / 'config.json'} has no cross_attention_dim") from error
    if not torch.isfinite(embedding).all():
        raise CheckpointError(f"{source}: the empty-prompt embedding is not finite; get the checkpoint again")
    if embedding.ndim != 3 or embedding.shape[0] != 1 or embedding.shape[2] != width:
        raise CheckpointError(
            f"{source}: the empty-prompt embedding has shape {list(embedding.shape)}; this U-Net takes [1, n, {width}]"
        )
    return embedding


def _encode_empty_prompt(directory: Path, variant: str | None) -> Float[Tensor, "1 n d"]:
    folder = directory / "text_encoder"
    files = text_encoder_weights(folder, variant)
    with needs_extra("torch"):
        from transformers import CLIPTokenizer
    settings = text_encoder_settings(folder)
    try:
        with _without_progress_bars(), torch.no_grad():
            tokenizer = CLIPTokenizer.from_pretrained(directory / "tokenizer", local_files_only=True)
            tokens = tokenizer("", padding="do_not_pad", truncation=True, return_tensors="pt").input_ids
            return _text_encoder(settings, files)(tokens)[0].float()
    except Exception as error:  # transformers raises many kinds for damaged files
        raise CheckpointError(f"{folder} cannot be loaded ({one_line(error)}); get the checkpoint again") from error


def _text_encoder(settings: dict[str, Any], files: Sequence[Path]) -> nn.Module:
    """CLIP's text encoder of these sizes and weights, and of nothing else that its folder may hold.

    transformers' own loading obeys keys of config.json for kernels, quantization and adapters, which may run code.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        config: Any = CLIPTextConfig
        model = CLIPTextModel(config(**settings, attn_implementation="sdpa"))
    parts: Any = getattr(model, "text_model", model)
    expected = parts.state_dict()
    state: dict[str, Tensor] = {}
    for file in files:
        for name, value in load_file(file).items():
            if (short := name.removeprefix("text_model.")) in expected:
                state[short] = value.float()
    parts.load_state_dict(state, strict=True, assign=True)
    positions = torch.arange(settings.get("max_position_embeddings", model.config.max_position_embeddings))
    parts.embeddings.position_ids = positions.expand((1, -1))
    return model.eval()


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars on stderr, and leaves its setting as it was."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as transformers_logging

    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    hub_bars_disabled = are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()
        if hub_bars_disabled:  # enabling the one has enabled the other
            disable_progress_bars()


def copy_text_encoder(source: Path, destination: Path) -> bool:
    """Copies `text_encoder/` (configuration and safetensors weights) and `tokenizer/`; False where they are missing."""
    if not has_text_encoder(source):
        return False
    weights = {path.name for path in text_encoder_weights(source / "text_encoder")}
    for folder in (source / "text_encoder", source / "tokenizer"):
        (destination / folder.name).mkdir()
        for path in sorted(folder.iterdir()):
            if path.is_file() and (path.suffix in (".json", ".txt") or path.name in weights):
                shutil.copyfile(path, destination / folder.name / path.name)
    return True


def write_constant_text_encoder(embedding: Float[Tensor, "1 2 d"], folder: Path) -> None:
    """Writes `text_encoder/` and `tokenizer/` whose embedding of "" is `embedding`, for other pipelines to read.

    Diffusers' pipeline asks a text encoder for the embedding; a checkpoint trained here has only the result. This
    encoder has no layer: token embeddings ±v, of zero mean and unit variance, pass the final layer norm unchanged,
    whose weight and bias make of them the two vectors.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    first, last = embedding[0].float()
    width = len(first)
    config: Any = CLIPTextConfig(
        vocab_size=2,
        hidden_size=width,
        intermediate_size=1,
        projection_dim=1,
        num_hidden_layers=0,
        num_attention_heads=1,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = CLIPTextModel(config)
    parts: Any = getattr(model, "text_model", model)
    sign = torch.ones(width)
    sign[1::2] = -1.0
    with torch.no_grad():
        parts.embeddings.position_embedding.weight.zero_()
        parts.embeddings.token_embedding.weight.copy_(torch.stack([sign, -sign]))
        norm = parts.final_layer_norm
        norm.weight.copy_((first - last) / 2 * sign * math.sqrt(1.0 + norm.eps))
        norm.bias.copy_((first + last) / 2)
    model.config.save_pretrained(folder / "text_encoder")
    # Named as in published files, which every release of transformers understands.
    state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in model.state_dict().items()}
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    save_tensors(state, folder / "text_encoder" / f"{TEXT_ENCODER_STEM}.safetensors")
    # Written by hand: these four files are what every release of transformers reads.
    start, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    contents = {
        "vocab.json": json.dumps({start: 0, end: 1}),
        "merges.txt": "#version: 0.2",
        "special_tokens_map.json": json.dumps(special),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}),
    }
    (folder / "tokenizer").mkdir()
    for name, content in contents.items():
        (folder / "tokenizer" / name).write_text(content + "\n", encoding="utf-8")
