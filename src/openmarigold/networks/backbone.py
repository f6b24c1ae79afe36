# SPDX-License-Identifier: Apache-2.0
"""The networks: U-Net and VAE from diffusers, image encoder; widening, latents, loading and saving.

A checkpoint is a folder in diffusers layout (docs/architecture.md). Shapes: `b` batch, `C` channels of the VAE's
latent, `h = H / 8`, `w = W / 8`. Paper: §3.2 (network), §3.3 (fine-tuning protocol).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openmarigold.printing import quoted_logger
from openmarigold.privacy import hidden

with hidden("transformers", "peft", only_ours=True):  # diffusers imports them (seconds), its networks do not need them
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from openmarigold.checkpoints.calibration import carry_calibration, read_calibration
from openmarigold.checkpoints.channels import IMAGE_ENCODER_CLASS
from openmarigold.checkpoints.checkpoint import EMBEDDING_FILE, TITLES, Checkpoint
from openmarigold.checkpoints.integrity import write_sums
from openmarigold.checkpoints.weight_files import IMAGE_ENCODER, part_folder, weight_files
from openmarigold.config import FloatDtype
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, OutputError, one_line
from openmarigold.files import atomic_directory, check_can_be_replaced
from openmarigold.networks.image_encoder import EfficientNetLiteEncoder
from openmarigold.networks.prompt import (
    copy_text_encoder,
    load_empty_prompt_embedding,
    write_constant_text_encoder,
    write_embedding,
)
from openmarigold.networks.tensors import read_tensors, save_tensors
from openmarigold.text_files import parse_json

Vae = AutoencoderKL | AutoencoderTiny
VAE_CLASSES: dict[str, type[AutoencoderKL] | type[AutoencoderTiny]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
}
_log = quoted_logger(__name__)
_OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def widen_conv_in(unet: UNet2DConditionModel, *, num_latents: int = 2) -> UNet2DConditionModel:
    """The same U-Net with a first layer of so many times the input channels, for [rgb_latent, noisy target latents].

    The weights are repeated and divided by that number and the bias is kept, so equal latents give exactly the
    pretrained activation. Changes `unet` in place; do it before an optimizer holds its parameters. Paper: §3.2.
    """
    old = unet.conv_in
    unet.conv_in = _with_weights(old, torch.cat([old.weight] * num_latents, dim=1) / num_latents, old.bias)
    unet.register_to_config(in_channels=unet.conv_in.in_channels)
    return unet


def widen_conv_out(unet: UNet2DConditionModel, *, num_latents: int) -> UNet2DConditionModel:
    """The same U-Net with a last layer of so many times the output channels: each target starts from what one was.

    Changes `unet` in place, as `widen_conv_in` does; one latent changes nothing.
    """
    if num_latents == 1:
        return unet
    old: Any = unet.conv_out
    unet.conv_out = _with_weights(old, torch.cat([old.weight] * num_latents), torch.cat([old.bias] * num_latents))
    unet.register_to_config(out_channels=unet.conv_out.out_channels)
    return unet


def insert_inputs(unet: UNet2DConditionModel, *, at: int, count: int) -> UNet2DConditionModel:
    """The same U-Net with `count` more input channels before channel `at`, of weight zero: they change nothing yet.

    Changes `unet` in place, as `widen_conv_in` does.
    """
    old = unet.conv_in
    nothing = torch.zeros_like(old.weight[:, :1]).expand(-1, count, -1, -1)
    unet.conv_in = _with_weights(old, torch.cat([old.weight[:, :at], nothing, old.weight[:, at:]], dim=1), old.bias)
    unet.register_to_config(in_channels=unet.conv_in.in_channels)
    return unet


def _with_weights(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution like `layer` with a weight and bias of other numbers of channels."""
    assert bias is not None
    outputs, inputs = weight.shape[:2]
    new: Any = nn.Conv2d(inputs, outputs, layer.kernel_size, layer.stride, layer.padding)  # pyright: ignore
    with torch.no_grad():
        new.weight.copy_(weight)
        new.bias.copy_(bias)
    return new.to(weight.device, weight.dtype)


def latent_channels(vae: Vae) -> int:
    """Channels C of the latent that `vae` encodes to."""
    return int(vae.config["latent_channels"])


def encode_to_latent(vae: Vae, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b C h w"]:
    """Scaled latent of images in [-1, 1]: the mode of the encoder's distribution, never a sample. Paper: §3.2."""
    encoded: Any = vae.encode(image)
    latent = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
    return latent * vae.config["scaling_factor"]


def decode_to_image(vae: Vae, latent: Float[Tensor, "b C h w"]) -> Float[Tensor, "b k H W"]:
    """Decoded image, about [-1, 1] but not clipped, of a scaled latent; `k` is 3, or 1 where the mean is folded in."""
    decoded: Any = vae.decode(latent / vae.config["scaling_factor"])
    return decoded.sample


def decode_from_latent(vae: Vae, latent: Float[Tensor, "b C h w"]) -> Float[Tensor, "b 1 H W"]:
    """Decoded depth, about [-1, 1] but not clipped: the mean of the three decoded channels. Paper: §3.2."""
    return decode_to_image(vae, latent).mean(dim=1, keepdim=True)


def decode_targets(
    vae: Vae, latents: Float[Tensor, "b tC h w"], *, num_targets: int, channels: int
) -> Float[Tensor, "b t k H W"]:
    """Decoded targets, about [-1, 1] but not clipped, each by itself: of `channels` 1 the mean of the three."""
    each = latents.reshape(len(latents) * num_targets, -1, *latents.shape[2:])
    decoded = decode_from_latent(vae, each) if channels == 1 else decode_to_image(vae, each)
    return decoded.reshape(len(latents), num_targets, *decoded.shape[1:])


def load_unet(folder: Path, *, variant: str | None = None, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """U-Net from a diffusers folder with safetensors weights, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return _load(UNet2DConditionModel, folder, variant=variant, dtype=dtype)


def load_vae(folder: Path, *, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Vae:
    """VAE (`AutoencoderKL` or `AutoencoderTiny`, by its config.json), in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, or the class is another one.
    """
    name = _read_config(folder).get("_class_name")
    if name not in VAE_CLASSES:
        raise CheckpointError(f"{folder}: {name!r} is not a supported autoencoder; use one of {', '.join(VAE_CLASSES)}")
    return _load(VAE_CLASSES[name], folder, variant=variant, dtype=dtype)


def load_image_encoder(
    folder: Path, *, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> EfficientNetLiteEncoder:
    """Image encoder from a folder with config.json and safetensors weights, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, or the class is another one.
    """
    name = _read_config(folder).get("_class_name")
    if name != IMAGE_ENCODER_CLASS:
        raise CheckpointError(f"{folder}: {name!r} is not a supported image encoder; use {IMAGE_ENCODER_CLASS}")
    return _load(EfficientNetLiteEncoder, folder, variant=variant, dtype=dtype)


def empty_network(folder: Path) -> Any:
    """The network that a folder's config.json describes, without memory for its weights (torch device "meta").

    Raises:
        CheckpointError: config.json is missing or damaged, or describes something else.
    """
    config = _read_config(folder)
    name = config.get("_class_name")
    classes: dict[Any, Any] = {
        **VAE_CLASSES,
        "UNet2DConditionModel": UNet2DConditionModel,
        IMAGE_ENCODER_CLASS: EfficientNetLiteEncoder,
    }
    if name not in classes:
        raise CheckpointError(f"{folder}: {name!r} is not supported; use one of {', '.join(classes)}")
    with torch.device("meta"):
        return _build(classes[name], config)


def _build(model_class: Any, config: dict[str, Any]) -> Any:
    if model_class is EfficientNetLiteEncoder:  # JSON knows no tuples
        config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return model_class.from_config(config)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = parse_json((folder / "config.json").read_bytes())
        return {key: config[key] for key in config}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} cannot be read ({one_line(error)}); get the checkpoint again"
        ) from error


def _load(model_class: Any, folder: Path, *, variant: str | None, dtype: torch.dtype) -> Any:
    """The network without a second copy of its weights at any time, unlike diffusers' own loading."""
    config = _read_config(folder)
    try:
        with torch.device("meta"):
            model = _build(model_class, config)
    except Exception as error:  # constructors raise many kinds for wrong values
        raise CheckpointError(
            f"{folder} cannot be loaded ({one_line(error)}); get config.json and weights from the same checkpoint"
        ) from error
    expected = model.state_dict()
    state: dict[str, Tensor] = {}
    for path in weight_files(folder, variant=variant)[1]:
        for stored_name, tensor in read_tensors(path, dtype=dtype):
            name = _current_name(stored_name, expected)
            if name in expected and tensor.shape != expected[name].shape:
                raise CheckpointError(
                    f"{folder} cannot be loaded: {name} has shape {list(tensor.shape)} in {path.name} and "
                    f"{list(expected[name].shape)} by config.json; get both from the same checkpoint"
                )
            state[name] = tensor
    for problem, names in (("missing", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys())):
        if names:
            raise CheckpointError(
                f"{folder} cannot be loaded: the weights do not fit config.json ({problem}: "
                f"{', '.join(sorted(names)[:3])}); get both from the same checkpoint"
            )
    model.load_state_dict(state, strict=True, assign=True)
    model.register_to_config(_name_or_path=str(folder))
    return model.eval()


def _current_name(name: str, expected: Mapping[str, Any]) -> str:
    """Name of a weight of today's attention layers; files from before diffusers 0.14 (all VAEs of SD 2) have others."""
    if name in expected:
        return name
    for old, new in _OLD_ATTENTION_NAMES.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def save_checkpoint(
    directory: Path,
    *,
    vae: Vae,
    unet: UNet2DConditionModel | None = None,
    empty_prompt_embedding: Float[Tensor, "1 n d"] | None = None,
    schedule: NoiseSchedule | None = None,
    index: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    text_encoder_of: Path | None = None,
    image_encoder: EfficientNetLiteEncoder | None = None,
    also: Callable[[Path], object] | None = None,
) -> None:
    """Writes a checkpoint folder in diffusers layout, atomically; `index` joins `model_index.json`.

    Without `unet` only `vae/` is written (a trained autoencoder). `dtype` is how weights are stored. With
    `text_encoder_of` the folder is complete for diffusers' pipeline: that checkpoint's text encoder is copied or, where
    it has none that can be read, one is written that knows the empty prompt only. An `image_encoder` makes the U-Net's
    condition; diffusers' pipeline cannot run such a checkpoint. `also` writes more into the folder.
    """
    with atomic_directory(directory) as folder:
        _save_network(vae, folder / "vae", dtype)
        if unet is None:
            return
        assert schedule is not None and empty_prompt_embedding is not None
        _save_network(unet, folder / "unet", dtype)
        if image_encoder is not None:
            _save_network(image_encoder, folder / IMAGE_ENCODER, dtype)
        write_embedding(empty_prompt_embedding, folder / EMBEDDING_FILE)
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", schedule.to_config())
        complete = text_encoder_of is not None and _write_text_encoder(text_encoder_of, folder, empty_prompt_embedding)
        library = "transformers" if complete else None
        components = {
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", type(vae).__name__],
            "scheduler": ["diffusers", schedule.class_name],
            "text_encoder": [library, "CLIPTextModel" if complete else None],
            "tokenizer": [library, "CLIPTokenizer" if complete else None],
            **({IMAGE_ENCODER: ["openmarigold", IMAGE_ENCODER_CLASS]} if image_encoder is not None else {}),
        }
        write_json(folder / "model_index.json", {**(index or {}), **components})
        if also is not None:
            also(folder)


def _write_text_encoder(source: Path, folder: Path, embedding: Float[Tensor, "1 n d"]) -> bool:
    """Copies the text encoder of `source`, else writes a constant one; False where neither can be done."""
    try:
        if copy_text_encoder(source, folder):
            return True
    except CheckpointError:  # such as pickles only; training did not need them, and its result must not be lost
        for name in ("text_encoder", "tokenizer"):
            shutil.rmtree(folder / name, ignore_errors=True)
    if embedding.shape[1] != 2 or find_spec("transformers") is None:
        return False
    write_constant_text_encoder(embedding.cpu(), folder)
    return True


def save_complete_checkpoint(source: Checkpoint, destination: Path, *, dtype: FloatDtype) -> None:
    """Writes a checkpoint as a folder that its pipeline in diffusers (`MarigoldDepthPipeline`) loads, with SHA256SUMS.

    It predicts the same there as here, from the same starting noise and size: where our default is to end on the clean
    latent, the scheduler is told so (`set_alpha_to_one`). The text encoder is copied where there is one, else one is
    written that knows the empty prompt only (`prompt.write_constant_text_encoder`). A checkpoint with an image encoder
    is copied for this package alone: no pipeline of diffusers runs it, and a warning says so.

    Raises:
        CheckpointError: the source holds ONNX networks, or is damaged.
        OutputError: the destination holds files already, or cannot be written.
    """
    check_new_checkpoint(source, destination)
    if source.image_encoder:
        _log.warning(
            "%s has an image encoder, which no pipeline of diffusers runs: the copy is for openmarigold", source.name
        )

    def add_documents(folder: Path) -> None:
        for path in (*source.directory.glob("README.md"), *source.directory.glob("LICEN[SC]E*")):
            shutil.copyfile(path, folder / path.name)
        carry_calibration(source, read_calibration(source), folder, same_networks=True)

    save_networks(source, load_networks(source), destination, dtype=dtype, documents=add_documents)


def check_new_checkpoint(source: Checkpoint, destination: Path) -> None:
    """Checks that a checkpoint has safetensors weights, and that a new one can be written without a loss.

    Raises:
        CheckpointError: the source holds ONNX networks alone.
        OutputError: the destination holds files already.
    """
    if source.weights != "safetensors":
        raise CheckpointError(
            f"{source.directory} holds {TITLES[source.weights]} networks; give the checkpoint that they were made from"
        )
    check_can_be_replaced(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not empty; choose a new folder, so that nothing is lost")


def load_networks(source: Checkpoint) -> dict[str, Any]:
    """All networks of a checkpoint, by their folders' names.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    loaders: dict[str, Callable[..., Any]] = {"unet": load_unet, "vae": load_vae, IMAGE_ENCODER: load_image_encoder}
    return {name: loaders[name](part_folder(source.directory, name), variant=source.variant) for name in source.parts}


def save_networks(
    source: Checkpoint,
    networks: Mapping[str, Any],
    destination: Path,
    *,
    dtype: FloatDtype,
    documents: Callable[[Path], object],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes a complete folder with networks of the form of `source`, and everything else as it is there.

    `documents` writes model card, terms and calibration into the folder; `facts` join model_index.json.
    """
    embedding = load_empty_prompt_embedding(source.directory, variant=source.variant)
    schedule = source.schedule
    if source.default_final_step == "clean" and schedule.sampler == "ddim":
        schedule = replace(schedule, set_alpha_to_one=True)
    index = {key: value for key, value in source.full_index.items() if not isinstance(value, list)}
    index |= {"_class_name": source.modality.pipeline_classes[0], **(facts or {})}

    def add_rest(folder: Path) -> None:
        documents(folder)
        write_sums(folder)

    save_checkpoint(
        destination,
        vae=networks["vae"],
        unet=networks["unet"],
        empty_prompt_embedding=embedding,
        schedule=schedule,
        index=index,
        dtype=getattr(torch, dtype),
        text_encoder_of=source.directory,
        image_encoder=networks.get(IMAGE_ENCODER),
        also=add_rest,
    )


def hash_of_weights(model: Vae | UNet2DConditionModel | EfficientNetLiteEncoder) -> str:
    """SHA-256 of a network's configuration and weights."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}  # not where it lies
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save_network(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    # A copy through the state dict: the model in training keeps its own precision.
    folder.mkdir()
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    save_tensors(state, folder / "diffusion_pytorch_model.safetensors")
    model.save_config(folder)  # pyright: ignore[reportCallIssue]
    config = parse_json((folder / "config.json").read_bytes())
    config.pop("_name_or_path", None)  # where it was read from on this machine
    if isinstance(model, AutoencoderTiny):
        # It registers a setting that its own constructor does not take, which diffusers then warns about.
        config.pop("block_out_channels", None)
    write_json(folder / "config.json", config)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as diffusers does: indented, with a newline at the end."""
    path.write_text(json.dumps(dict(content), indent=2) + "\n", encoding="utf-8")
