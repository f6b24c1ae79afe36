# SPDX-License-Identifier: Apache-2.0
"""Checks of untrusted configuration files: sizes within limits, no choice of code, and warnings about links."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from openmarigold.checkpoints.weight_files import read_json
from openmarigold.config import is_number
from openmarigold.errors import CheckpointError
from openmarigold.printing import quoted_logger

MAX_LATENT_CHANNELS = 1024
MAX_PROCESSING_RESOLUTION = 16_384  # px, four times what any depth model recommends
MAX_SIZE = 1_000_000
_MAX_LAYERS, _MAX_LIST = 128, 128

# Keys of a text encoder's config.json that are read, with the largest value; all others keep transformers' defaults.
# Some of those choose code: attn_implementation can name a repository of kernels, quantization_config a library.
_TEXT_ENCODER_SIZES = {
    "vocab_size": 1_000_000,
    "hidden_size": 16_384,
    "intermediate_size": 65_536,
    "num_hidden_layers": _MAX_LAYERS,
    "num_attention_heads": 1024,
    "max_position_embeddings": 65_536,
    "projection_dim": 65_536,
}
_TEXT_ENCODER_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
_log = quoted_logger(__name__)


def check_network_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuses numbers that would take all memory or all time before the weights show that they are wrong.

    Raises:
        CheckpointError: a number that is not finite or too large, or a list that is too long.
    """
    for key, value in _leaves(config):
        limit = _MAX_LAYERS if "layers" in key else MAX_SIZE
        if isinstance(value, list):
            what, size, limit = "a list of", len(value), _MAX_LIST
        elif isinstance(value, (int, float)):
            what, size = "the number", abs(value)
        else:
            continue
        if not (math.isfinite(size) and size <= limit):
            raise CheckpointError(f"{path}: {key} is {what} {size:.6g}; at most {limit} is accepted")


def whole_number(
    config: Mapping[str, Any],
    path: Path,
    key: str,
    fallback: int | None = None,
    *,
    least: int = 0,
    most: int = MAX_SIZE,
) -> int:
    """The value of `key` in the content of the file `path`; `fallback` if there is none.

    Raises:
        CheckpointError: it is not a whole number from `least` to `most`.
    """
    value = fallback if config.get(key) is None else config[key]
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(f"{path}: {key} is {value!r:.60}; a whole number from {least} to {most} is needed")
    return value


def text_encoder_settings(folder: Path) -> dict[str, Any]:
    """The sizes in a text encoder's config.json, as arguments of transformers' `CLIPTextConfig`.

    Raises:
        CheckpointError: the file is missing or damaged, or a value is not accepted.
    """
    path = folder / "config.json"
    config: Any = read_json(path)
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]  # in a file that also describes CLIP's image encoder
    settings: dict[str, Any] = {}
    for key, largest in (*_TEXT_ENCODER_SIZES.items(), *((key, MAX_SIZE) for key in _TEXT_ENCODER_TOKENS)):
        if config.get(key) is not None:
            # A text encoder for the empty prompt alone has no layer.
            least = 0 if key == "num_hidden_layers" or key in _TEXT_ENCODER_TOKENS else 1
            settings[key] = whole_number(config, path, key, least=least, most=largest)
    epsilon = config.get("layer_norm_eps", 1e-5)
    if not is_number(epsilon) or not 0 < epsilon < 1:
        raise CheckpointError(f"{path}: layer_norm_eps is {epsilon!r:.60}; a number between 0 and 1 is needed")
    activation = config.get("hidden_act", _ACTIVATIONS[0])
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{path}: hidden_act is {activation!r:.60}; accepted: {', '.join(_ACTIVATIONS)}")
    return {**settings, "layer_norm_eps": epsilon, "hidden_act": activation}


def say_where_links_lead(directory: Path, files: Iterable[Path]) -> None:
    """Warn once for each file that links out of the checkpoint's folder, because its target can change without the
    folder.

    The cache of huggingface_hub is made of such links, which stay within the repository's folder.
    """
    home = directory.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    for path in files:
        target = path.resolve()
        if path.exists() and not target.is_relative_to(home):
            _warn_of_link(path, target)


@cache
def _warn_of_link(path: Path, target: Path) -> None:
    _log.warning("%s is a link out of the checkpoint's folder, to %s", path, target)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all values with their keys; a list comes as a whole and then item by item."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _leaves(entry, str(name))
    elif isinstance(value, list):
        yield key, value
        for entry in value:
            yield from _leaves(entry, key)
    else:
        yield key, value
