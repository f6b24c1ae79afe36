# SPDX-License-Identifier: Apache-2.0
"""The three networks of a checkpoint as ONNX or OpenVINO files, which predict without torch.

Each network is traced once at a small size. Its file takes any batch and any photo size. The networks are rewritten to
multiply less (see `rewrites`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openmarigold.checkpoints.calibration import CALIBRATION_FILE, carry_calibration, read_calibration
from openmarigold.checkpoints.checkpoint import EMBEDDING_FILE, TITLES, Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.checkpoints.empty_prompt import stored_embedding_path
from openmarigold.checkpoints.integrity import SUMS_FILE, count_parameters
from openmarigold.checkpoints.weight_files import (
    ENCODER_OF,
    GRAPH_FILES,
    IMAGE_ENCODER,
    NETWORK_FILES,
    WEIGHTS_DIR,
    graph_file,
    graph_metadata,
    graph_sources,
    networks_of,
    part_folder,
    parts_of,
    read_json,
    weight_files,
)
from openmarigold.config import LATENT_FACTOR, ConvertedFormat, StoredDtype
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, OutputError, needs_extra
from openmarigold.files import atomic_directory, check_can_be_replaced
from openmarigold.images.quiet import quiet
from openmarigold.networks.backbone import (
    Vae,
    decode_to_image,
    empty_network,
    encode_to_latent,
    hash_of_weights,
    latent_channels,
    load_image_encoder,
    load_unet,
    load_vae,
    write_json,
)
from openmarigold.networks.image_encoder import EfficientNetLiteEncoder
from openmarigold.networks.prompt import load_empty_prompt_embedding, write_embedding
from openmarigold.networks.rewrites import fold_channel_mean, fold_constant_context, fold_upsampling, split_group_norms
from openmarigold.privacy import openvino_without_reports

# Odd latent sizes make the U-Net's up-sampling follow the skip connections' sizes; with even ones the tracer would
# record a fixed factor of 2 and fail on latents that are not divisible by its depth.
_TRACED_SIZE = (9, 7)
_MIN_STORED_IN_HALF = 256  # values; smaller tensors, such as epsilons and biases of narrow layers, cost nothing
_EXTERNAL_FROM_BYTES = 2**30  # a protocol buffer holds 2 GiB at most
_OF_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file browsers leave in folders
_PACKAGES = {"onnx": ("onnx", "export"), "openvino": ("openvino", "openvino")}


def export_checkpoint(
    source: Checkpoint,
    destination: Path,
    *,
    format: ConvertedFormat,
    dtype: StoredDtype = "float16",
    tiny_vae: TinyVae | None = None,
) -> None:
    """Writes a checkpoint as a folder of ONNX or OpenVINO networks that hold their weights.

    Args:
        format: "onnx" or "openvino".
        dtype: how weights are stored. "float16" halves the files and is widened when a network is loaded; "float32"
            keeps every bit.
        tiny_vae: an autoencoder that replaces the checkpoint's own, in the directions of its `used_for`.

    Raises:
        CheckpointError: the checkpoint is damaged, or in the asked-for format already.
        OutputError: `destination` holds something other than an exported checkpoint, which would be lost.
        MissingExtraError: the package of the format is not installed.
    """
    check_format(format)
    if source.weights == format or source.weights == "openvino":
        raise CheckpointError(
            f"{source.directory} holds {TITLES[source.weights]} networks already; copy the folder, or give one "
            "with safetensors weights"
        )
    calibration = read_calibration(source)
    check_replaceable(destination, source, is_calibrated=calibration is not None and tiny_vae is None)
    with atomic_directory(destination) as folder:
        for name in source.networks:
            (folder / name).mkdir()
            write_network(source, name, folder / name, format=format, dtype=dtype, tiny_vae=tiny_vae)
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", source.schedule.to_config())
        kept = {key: value for key, value in source.full_index.items() if not isinstance(value, list)}
        runtime = {"onnx": "onnxruntime", "openvino": "openvino"}[format]
        components = {name: [runtime, "OnnxModel" if format == "onnx" else "Model"] for name in source.networks}
        components["scheduler"] = ["diffusers", source.schedule.class_name]
        kept |= {"latent_channels": source.latent_channels, "num_parameters": count_parameters(source)}
        if source.image_encoder:
            kept["condition_channels"] = source.condition_channels
        if tiny_vae is not None:
            kept["tiny_vae"] = {"name": tiny_vae.name, "used_for": tiny_vae.used_for}
        write_json(folder / "model_index.json", {**kept, **components})
        carry_calibration(source, calibration, folder, same_networks=tiny_vae is None)


def export_shared(source: Checkpoint, destination: Path) -> None:
    """Writes a copy of a checkpoint with ONNX networks that read their weights from its safetensors files.

    The copy predicts without torch and can be trained further with it; each weight is stored once. Weights folded from
    several others, about a thousandth of a U-Net, are stored in the ONNX files in half precision. Among the models that
    come with the package, an image encoder that another one has is shared with it.

    Raises:
        CheckpointError: the checkpoint is damaged, or without safetensors weights.
        OutputError: `destination` holds something other than such a copy, which would be lost.
        MissingExtraError: the package `onnx` is not installed.
    """
    check_format("onnx")
    if source.weights != "safetensors":
        raise CheckpointError(
            f"{source.directory} holds {TITLES[source.weights]} networks; give a checkpoint with safetensors weights"
        )
    calibration = read_calibration(source)
    check_replaceable(destination, source, shared=True, is_calibrated=calibration is not None)
    with atomic_directory(destination) as folder:
        other = _sibling_with_encoder(source, destination)
        write_json(folder / "model_index.json", source.full_index | ({ENCODER_OF: other.name} if other else {}))
        (folder / "scheduler").mkdir()
        config = Path("scheduler", "scheduler_config.json")
        if source.schedule == NoiseSchedule.from_config(read_json(source.directory / config)):
            shutil.copyfile(source.directory / config, folder / config)
        else:  # the timesteps that its authors use
            write_json(folder / config, source.schedule.to_config())
        embedding = stored_embedding_path(source.directory, variant=source.variant)
        if embedding.is_file():
            shutil.copyfile(embedding, folder / EMBEDDING_FILE)
        else:
            values = load_empty_prompt_embedding(source.directory, variant=source.variant)
            write_embedding(values, folder / EMBEDDING_FILE)
        own = [name for name in source.parts if name != IMAGE_ENCODER or other is None]
        for name in own:
            (folder / name).mkdir()
            for path in _network_sources(source, name):
                shutil.copyfile(path, folder / name / path.name)
        copied = replace(source, directory=folder)
        for name in (name for name in source.networks if name != IMAGE_ENCODER or other is None):
            _write_graph(copied, name, folder / GRAPH_FILES[name])
        for path in _documents(source.directory) or _documents(destination):
            shutil.copyfile(path, folder / path.name)
        carry_calibration(source, calibration, folder, same_networks=True)


def _sibling_with_encoder(source: Checkpoint, destination: Path) -> Path | None:
    """The embedded model with the same image encoder, if the copy is to be one of them too."""
    if not source.image_encoder or destination.resolve().parent != WEIGHTS_DIR.resolve():
        return None
    wanted = hash_of_weights(load_image_encoder(part_folder(source.directory, IMAGE_ENCODER), variant=source.variant))
    for folder in sorted(WEIGHTS_DIR.glob(f"*/{IMAGE_ENCODER}")):
        if folder.parent.name != destination.name and hash_of_weights(load_image_encoder(folder)) == wanted:
            return folder.parent
    return None


def _network_sources(source: Checkpoint, name: str) -> list[Path]:
    """Configuration and weights of a network, and the index of weights in several files."""
    folder = part_folder(source.directory, name)
    weights = weight_files(folder, variant=source.variant)[1]
    return [folder / "config.json", *weights, *(folder.glob("*.index*.json") if len(weights) > 1 else ())]


def _documents(folder: Path) -> list[Path]:
    return sorted((*folder.glob("README.md"), *folder.glob("LICEN[SC]E*")))


def write_network(
    source: Checkpoint,
    name: str,
    folder: Path,
    *,
    format: ConvertedFormat,
    dtype: StoredDtype,
    tiny_vae: TinyVae | None = None,
) -> None:
    """Writes one of a checkpoint's networks into a folder.

    Raises:
        CheckpointError: the checkpoint is damaged.
        MissingExtraError: the package of the format is not installed.
    """
    check_format(format)
    replaced = tiny_vae is not None and name in tiny_vae.networks
    if source.weights == "onnx" and not replaced:
        _onnx_to_openvino(source.directory / NETWORK_FILES["onnx"][name], folder, dtype)
        return
    module, inputs, output = _network(source, name, tiny_vae if replaced else None)
    if format == "openvino" and name != "unet":  # ONNX Runtime would need gigabytes for a transposed convolution
        split_group_norms(fold_upsampling(module))
    write = {"onnx": _write_onnx, "openvino": _write_openvino}[format]
    write(module.eval(), inputs, output, folder, dtype)


def count_network_flops(source: Checkpoint, name: str, height: int, width: int, tiny_vae: TinyVae | None = None) -> int:
    """Arithmetic of one of its networks, not rewritten, for one image of this size [px]; nothing is computed."""
    h, w = height // LATENT_FACTOR, width // LATENT_FACTOR
    with torch.device("meta"):
        inputs = _inputs(source, name, h, w)
        if name == "unet":
            unet = empty_network(source.directory / "unet")
            module: nn.Module = _Denoiser(unet, torch.zeros(1, 2, unet.config["cross_attention_dim"]))
        elif name == IMAGE_ENCODER:
            module = empty_network(part_folder(source.directory, IMAGE_ENCODER))
        else:
            replaced = tiny_vae is not None and name in tiny_vae.networks
            vae = empty_network(tiny_vae.directory if tiny_vae and replaced else source.directory / "vae")
            module = _HalfVae(vae, encode_to_latent if name == "vae_encoder" else decode_to_image)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(*inputs.values())
    return counter.get_total_flops()


def check_format(format: ConvertedFormat) -> None:
    """Raises MissingExtraError unless the package that writes a format is installed."""
    package, extra = _PACKAGES[format]
    with needs_extra(extra), openvino_without_reports():  # every use of the package below comes after this import
        __import__(package)


class _HalfVae(nn.Module):
    def __init__(self, vae: Vae, run: Callable[[Vae, Tensor], Tensor]) -> None:
        super().__init__()
        self.vae, self.run = vae, run

    def forward(self, value: Tensor) -> Tensor:
        return self.run(self.vae, value)


class _Denoiser(nn.Module):
    def __init__(self, unet: nn.Module, context: Float[Tensor, "1 n d"]) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("context", context)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        context = self.context.expand(sample.shape[0], -1, -1)  # pyright: ignore
        return self.unet(sample, timestep, encoder_hidden_states=context, return_dict=False)[0]


def _network(source: Checkpoint, name: str, tiny_vae: TinyVae | None) -> tuple[nn.Module, dict[str, Tensor], str]:
    """A network as a module, small inputs by name, and the name of its output."""
    inputs = _inputs(source, name, *_TRACED_SIZE)
    if name == "unet":
        unet = load_unet(source.directory / "unet", variant=source.variant)
        context = load_empty_prompt_embedding(source.directory, variant=source.variant)
        return _Denoiser(fold_constant_context(unet, context), context), inputs, "prediction"
    if name == IMAGE_ENCODER:
        encoder = load_image_encoder(part_folder(source.directory, IMAGE_ENCODER), variant=source.variant)
        return encoder, inputs, "condition"
    if tiny_vae is not None:
        vae = load_vae(tiny_vae.directory, variant=tiny_vae.variant)
    else:
        vae = load_vae(source.directory / "vae", variant=source.variant)
    assert latent_channels(vae) == source.latent_channels
    if name == "vae_encoder":
        return _HalfVae(vae, encode_to_latent), inputs, "latent"
    if source.modality.decoded_channels == 1:
        vae = fold_channel_mean(vae)
    return _HalfVae(vae, decode_to_image), inputs, "image"


def _inputs(source: Checkpoint, name: str, h: int, w: int) -> dict[str, Tensor]:
    """Inputs of a network by name, for one image whose latent has `h` x `w` cells."""
    channels = source.latent_channels
    if name == "unet":
        sample = torch.zeros(1, source.condition_channels + channels * source.modality.num_targets, h, w)
        return {"sample": sample, "timestep": torch.tensor([999])}
    if name == "vae_decoder":
        return {"latent": torch.zeros(1, channels, h, w)}
    return {"sample": torch.zeros(1, 3, LATENT_FACTOR * h, LATENT_FACTOR * w)}


def check_replaceable(
    destination: Path, source: Checkpoint, *, shared: bool = False, is_calibrated: bool = False
) -> None:
    """Checks that a folder can be written, and that nothing is lost but an older export.

    Args:
        shared: whether the new export is one of `export_shared`, which holds all that such an export holds.
        is_calibrated: whether the new export has a calibration.

    Raises:
        OutputError: it is the working folder or a mount point, or holds something else.
    """
    check_can_be_replaced(destination)
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return
    if not _is_export(destination, shared=shared):
        raise OutputError(
            f"{destination} exists and is not an exported checkpoint; choose a new folder, so that nothing is lost"
        )
    if destination.resolve() == source.directory.resolve() and not shared:
        raise OutputError(f"{destination} is the checkpoint itself, which would be lost; choose a new folder")
    written = {"model_index.json", "scheduler", EMBEDDING_FILE, SUMS_FILE}
    for image_encoder in (False, True):
        written |= {*networks_of(image_encoder=image_encoder), *parts_of(image_encoder=image_encoder)}
    written |= {path.name for path in _documents(destination)} if shared else set()
    written |= {CALIBRATION_FILE} if is_calibrated else set()
    others = sorted(path.name for path in destination.iterdir() if path.name not in (written | _OF_SYSTEMS))
    if others:
        raise OutputError(
            f"{destination} holds {others[0]}, which this export would not hold; move it, or choose a new folder, so "
            "that nothing is lost"
        )


def _is_export(folder: Path, *, shared: bool) -> bool:
    for image_encoder in (False, True):
        networks = networks_of(image_encoder=image_encoder)
        layouts = [[folder / files[name] for name in networks] for files in NETWORK_FILES.values()]
        if shared:
            layouts.append([graph_file(folder, name) for name in networks])
        if any(all(path.is_file() for path in (folder / "model_index.json", *files)) for files in layouts):
            return True
    return False


def _write_graph(source: Checkpoint, name: str, path: Path) -> None:
    """Writes one of `GRAPH_FILES` next to the weights that it reads."""
    import onnx

    from openmarigold.networks.shared_weights import share_weights

    module, inputs, output = _network(source, name, None)
    model = _traced(module.eval(), inputs, output, path.parent)
    share_weights(model, weight_files(path.parent, variant=source.variant)[1])
    _store_weights_in_half(model)
    metadata = graph_metadata(graph_sources(source.directory, name, source.variant))
    onnx.helper.set_model_props(model, metadata)
    for node in model.graph.node:
        node.ClearField("name")  # a fifth of the file, and nothing reads it
    onnx.save(model, path)
    onnx.checker.check_model(str(path))


def _write_onnx(module: nn.Module, inputs: dict[str, Tensor], output: str, folder: Path, dtype: StoredDtype) -> None:
    import onnx

    model = _traced(module, inputs, output, folder)
    if dtype == "float16":
        _store_weights_in_half(model)
    path = folder / "model.onnx"
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _EXTERNAL_FROM_BYTES
    layout = {"save_as_external_data": True, "location": "model.onnx.data"} if large else {}
    onnx.save(model, path, **layout)
    onnx.checker.check_model(str(path))


def _traced(module: nn.Module, inputs: dict[str, Tensor], output: str, folder: Path) -> Any:
    """The network in ONNX format, in memory; the exporter writes a large one as one file for each tensor.

    The batch norms of an image encoder stay operators of their own, so that weights are the stored ones; ONNX Runtime
    folds them into the convolutions when it loads the network.
    """
    import onnx

    names = {0: "batch", 2: "height", 3: "width"}
    keeps_norms = isinstance(module, EfficientNetLiteEncoder)
    settings: dict[str, Any] = {"training": torch.onnx.TrainingMode.PRESERVE} if keeps_norms else {}
    axes = {name: names for name, value in inputs.items() if value.ndim == 4} | {output: names}
    with (
        torch.no_grad(),
        quiet(),
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):  # the tracer warns of shape tests
        path = Path(scratch, "model.onnx")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
            **settings,
        )
        return onnx.load(path)


def _store_weights_in_half(model: Any) -> None:
    """Replaces float32 weights of many values by float16 ones and a Cast, which sessions fold when they load."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.data_location == TensorProto.EXTERNAL:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _MIN_STORED_IN_HALF or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _write_openvino(
    module: nn.Module, inputs: dict[str, Tensor], output: str, folder: Path, dtype: StoredDtype
) -> None:
    # The front end itself: `openvino.convert_model` would also report its use over the network.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), quiet():
        traced: Any = torch.jit.trace(module, tuple(inputs.values()), check_trace=False)
        decoder = TorchScriptPythonDecoder(traced, example_input=tuple(inputs.values()))  # must outlive the conversion
        front_end = FrontEndManager().load_by_framework("pytorch")
        model = front_end.convert(front_end.load(decoder))
    for port, (name, value) in zip(model.inputs, inputs.items(), strict=True):
        shape = [-1, value.shape[1], -1, -1] if value.ndim == 4 else list(value.shape)
        _set_input(port, name, shape)
    model.outputs[0].get_tensor().set_names({output})
    model.validate_nodes_and_infer_types()
    _save_openvino(model, folder, dtype)


def _set_input(port: Any, name: str, shape: list[int]) -> None:
    import openvino

    parameter = port.get_node()
    parameter.set_partial_shape(openvino.PartialShape(shape))
    parameter.set_friendly_name(name)
    port.get_tensor().set_names({name})


def _onnx_to_openvino(path: Path, folder: Path, dtype: StoredDtype) -> None:
    import openvino

    try:
        model = openvino.Core().read_model(path)
    except Exception as error:  # OpenVINO's errors share no public base
        raise CheckpointError(f"{path} cannot be read; get the checkpoint again") from error
    _save_openvino(model, folder, dtype)


def _save_openvino(model: Any, folder: Path, dtype: StoredDtype) -> None:
    import openvino

    save: Callable[..., None] = openvino.save_model
    save(model, folder / "model.xml", compress_to_fp16=dtype == "float16")
