# SPDX-License-Identifier: Apache-2.0
"""Numbers of channels of a checkpoint's networks, and whether the networks fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmarigold.camera.conditions import CONDITIONS
from openmarigold.checkpoints.network_configs import MAX_LATENT_CHANNELS, MAX_SIZE, check_network_config, whole_number
from openmarigold.checkpoints.weight_files import IMAGE_ENCODER, part_folder, read_json
from openmarigold.config import is_number
from openmarigold.errors import CheckpointError
from openmarigold.modalities import Modality

IMAGE_ENCODER_CLASS = "EfficientNetLiteEncoder"
IMAGE_ENCODER_VARIANTS = ("lite0", "lite1", "lite2")
_NUM_FEATURES = 5
# Classes of the entry `image_encoder` in model_index.json: ours, and the one that converted networks state.
_ACCEPTED = (["openmarigold", IMAGE_ENCODER_CLASS], ["onnxruntime", "OnnxModel"], ["openvino", "Model"])


def has_image_encoder(index: Mapping[str, Any], path: Path) -> bool:
    """Whether model_index.json, in `path`, names an image encoder.

    Raises:
        CheckpointError: it is one of another class.
    """
    entry = index.get(IMAGE_ENCODER)
    if entry is None or entry == [None, None]:  # diffusers writes this if there is no encoder
        return False
    if entry not in _ACCEPTED:
        raise CheckpointError(
            f"{path}: {IMAGE_ENCODER} is {entry!r:.80}; accepted is {_ACCEPTED[0]}, or none: use a checkpoint in "
            "Marigold's layout"
        )
    return True


def condition_on(index: Mapping[str, Any], path: Path) -> str:
    """The part of the condition besides the image, one of `CONDITIONS`, as model_index.json in `path` states it; or "".

    Raises:
        CheckpointError: it is something else.
    """
    found = index.get("condition_on") or ""
    if found and (not isinstance(found, str) or found not in CONDITIONS):
        raise CheckpointError(f"{path}: condition_on is {found!r:.60}; accepted: {', '.join(CONDITIONS)}, or none")
    return str(found)


def converted_channels(index: Mapping[str, Any], path: Path, *, image_encoder: bool) -> tuple[int, int]:
    """Channels of the latent and of the condition, as the model_index.json of converted networks states them.

    Raises:
        CheckpointError: it does not.
    """
    latent = whole_number(index, path, "latent_channels", least=1, most=MAX_LATENT_CHANNELS)
    if not image_encoder:
        return latent, latent + CONDITIONS.get(condition_on(index, path), 0)
    return latent, whole_number(index, path, "condition_channels", least=1, most=MAX_SIZE)


def channels_of_networks(
    directory: Path, modality: Modality, *, image_encoder: bool, condition_on: str = ""
) -> tuple[int, int]:
    """Channels of the latent and of the condition, on which all networks must agree; also checks their configurations.

    The channels of `condition_on` follow the channels of the image.

    Raises:
        CheckpointError: a configuration is missing or damaged, or they do not fit together.
    """
    channels = {}
    for name, keys in (("vae", ("latent_channels",)), ("unet", ("in_channels", "out_channels"))):
        path = directory / name / "config.json"
        config = _read_config(path)
        factor = config.get("scaling_factor", 1.0)
        if not is_number(factor) or not 0 < factor < math.inf:
            raise CheckpointError(f"{path}: scaling_factor is {factor!r}; a number above 0 is needed")
        most = MAX_LATENT_CHANNELS if name == "vae" else MAX_SIZE  # the U-Net's channels follow from these
        for key in keys:
            channels[key] = whole_number(config, path, key, 4, least=1, most=most)  # 4 is what diffusers assumes
    latent, *found = channels.values()
    condition = (
        _channels_of_condition(part_folder(directory, IMAGE_ENCODER) / "config.json") if image_encoder else latent
    )
    condition += CONDITIONS.get(condition_on, 0)
    wanted = [condition + latent * modality.num_targets, latent * modality.num_targets]
    if found != wanted:
        encoder = f" and an image encoder of {condition} channels" if image_encoder else ""
        encoder += f" (with those of {condition_on})" if condition_on else ""
        raise CheckpointError(
            f"{directory / 'unet' / 'config.json'}: {found[0]} input and {found[1]} output channels do not fit a VAE "
            f"of {latent} latent channels{encoder}; a checkpoint for {modality.title} has {wanted[0]} and {wanted[1]}"
        )
    return latent, condition


def _channels_of_condition(path: Path) -> int:
    """The sum of an image encoder's `condition_channels`; also checks its class and variant."""
    config = _read_config(path)
    for key, accepted in (("_class_name", (IMAGE_ENCODER_CLASS,)), ("variant", IMAGE_ENCODER_VARIANTS)):
        if config.get(key) not in accepted:
            raise CheckpointError(f"{path}: {key} is {config.get(key)!r:.60}; accepted: {', '.join(accepted)}")
    widths = config.get("condition_channels")
    whole = isinstance(widths, list) and all(
        type(width) is int and 1 <= width <= MAX_LATENT_CHANNELS for width in widths
    )
    if not isinstance(widths, list) or not whole or len(widths) != _NUM_FEATURES:
        raise CheckpointError(
            f"{path}: condition_channels is {widths!r:.60}; a list of {_NUM_FEATURES} whole numbers from 1 to "
            f"{MAX_LATENT_CHANNELS} is needed"
        )
    return sum(widths)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        also = f", {IMAGE_ENCODER}/" if path.parent.name == IMAGE_ENCODER else ""
        raise CheckpointError(
            f"{path.parent} is missing; a checkpoint holds unet/{also} and vae/ with config.json and weights"
        )
    config = read_json(path)
    check_network_config(config, path)
    return config
