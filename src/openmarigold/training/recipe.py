# SPDX-License-Identifier: Apache-2.0
"""Training recipes: TOML files of five kinds, each a frozen dataclass whose fields are all the knobs there are.

Torch-free, so that a mistake in a recipe is reported before anything heavy is imported.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openmarigold.config import MAX_INFERENCE_STEPS, check_processing_resolution
from openmarigold.errors import InvalidValueError, RecipeError
from openmarigold.modalities import MODALITIES
from openmarigold.text_files import DamagedTextError, from_table, parse_json, parse_toml, with_current_keys
from openmarigold.training.lite.recipes import LiteRecipe, LogAutoencoderRecipe
from openmarigold.training.nano.recipes import AutoencoderRecipe, GeneratorRecipe
from openmarigold.training.settings import (
    DEFAULT_MODALITY,
    DataConfig,
    NoiseConfig,
    OptimizationConfig,
    RunConfig,
    TimestepConfig,
    check_shapes_kept,
    require,
    require_each,
)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the fine-tune minimizes."""

    kind: Literal["denoising", "end_to_end"] = "denoising"
    """denoising: the paper's loss on latents, at every timestep. end_to_end: one step from the last timestep, decoded,
    against the maps themselves, depth after the best scale and shift (Garcia et al. 2024); [noise] and
    timesteps.last_share do not matter then."""
    start_noise: Literal["gaussian", "zeros"] = "gaussian"
    """Start of end_to_end, in training and in prediction: plain noise, or zeros as in Garcia et al."""
    error: Literal["absolute", "relative", "meters"] = "absolute"
    """What end_to_end averages: errors in units of each image's depth range; as shares of each pixel's depth, as AbsRel
    does, so that what is near counts for more; or in meters, as in Garcia et al., so that far scenes count for more."""

    def __post_init__(self) -> None:
        require(
            self.kind == "end_to_end" or (self.start_noise == "gaussian" and self.error == "absolute"),
            'start_noise="zeros" and another error than "absolute" are for kind="end_to_end"',
        )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates in the place of the whole U-Net (package peft). Hu et al. 2021."""

    rank: int = 0
    """Rank of the updates; 0 = the whole U-Net is trained, as in the paper. 16 is a good start."""
    alpha: float = 0.0
    """Scale of the updates, times the rank; 0 = the rank, a scale of 1."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "conv1", "conv2")
    """Ends of the names of the layers that are updated. The widened first layer, and the last one where there are
    several targets, are always trained in full (but for their biases)."""
    full_learning_rate_factor: float = 0.1
    """Learning rate of those layers relative to the recipe's, which for low-rank updates is about ten times as high."""
    half_base: bool = False
    """Keep the frozen weights in the 16 bits of mixed_precision while training: half their memory. The updates are
    merged into the base's own weights."""

    def __post_init__(self) -> None:
        require_each(self, lambda value: value >= 0, "0 or more", "rank", "alpha")
        require(bool(self.targets), "targets is empty; name layers, such as to_q")
        require_each(self, lambda value: 0 < value <= 1, "above 0, at most 1", "full_learning_rate_factor")


@dataclass(frozen=True, kw_only=True)
class CheckpointDefaults:
    """What the finished checkpoint recommends to those who use it."""

    name: str
    num_inference_steps: int = 1
    processing_resolution: int = 384
    processing_side: Literal["longer", "shorter"] = "longer"
    """Which side of a photo processing_resolution is; the longer one in published checkpoints."""
    final_step: Literal["reference", "clean"] = "clean"
    half_precision: bool = False
    """Store weights in float16, half the size; they are widened to float32 when they are loaded."""

    def __post_init__(self) -> None:
        _check_prediction(self.num_inference_steps, self.processing_resolution)


def _check_prediction(num_inference_steps: int, processing_resolution: int | None) -> None:
    if processing_resolution is not None:
        try:
            check_processing_resolution(processing_resolution)
        except InvalidValueError as error:
            raise RecipeError(str(error)) from error
    is_known = 1 <= num_inference_steps <= MAX_INFERENCE_STEPS
    require(is_known, f"num_inference_steps={num_inference_steps} must be 1 to {MAX_INFERENCE_STEPS}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the checkpoints of a depth run are scored and looked at. None of it changes what is learned."""

    benchmarks: tuple[str, ...] = ()
    """Names of benchmarks (`openmarigold data list`), whose data `train --benchmark-data` gives."""
    num_images: int = 0
    """How many images of each named benchmark are scored, evenly spread; 0 = all. Of held-out scenes: 0 = 100."""
    sources: dict[str, int] = field(default_factory=dict)
    """Prepared set below the data folder -> how many of its samples are scored, evenly spread; 0 = all. Such as the
    part of a data set that is for validation."""
    num_inference_steps: int = 1
    spacing: Literal["trailing", "leading"] = "trailing"
    """Which timesteps validation visits, whatever `timesteps.spacing` recommends to users."""
    ensemble_size: int = 1
    seed: int = 2024
    processing_resolution: int | None = None
    """None: the checkpoint's own; 0: each photo's own size."""

    def __post_init__(self) -> None:
        require_each(self, lambda value: value >= 0, "0 or more", "num_images", "seed")
        require(all(count >= 0 for count in self.sources.values()), "every number in sources must be 0 or more")
        require_each(self, lambda value: value >= 1, "at least 1", "ensemble_size")
        require(
            self.num_inference_steps > 1 or self.spacing == "trailing",
            'one step with spacing="leading" begins at timestep 1, where the result is the starting noise whatever the '
            'weights are; set spacing = "trailing" or num_inference_steps = 10',
        )
        _check_prediction(self.num_inference_steps, self.processing_resolution)


@dataclass(frozen=True, kw_only=True)
class MarigoldRecipe:
    """Fine-tunes the U-Net of `base` to denoise the maps of a modality, the method of the paper (§3.3)."""

    kind: Literal["depth"]
    base: str
    """Checkpoint that is fine-tuned: an image generator (Stable Diffusion 1.5, 2, 2.1 or one of ours) or a Marigold. A
    hub id; a folder with unet/, vae/, scheduler/, and the empty-prompt embedding or a text encoder; or a .safetensors
    file of Stable Diffusion 1 or 2."""
    data: DataConfig
    optimization: OptimizationConfig
    checkpoint: CheckpointDefaults
    modality: str = DEFAULT_MODALITY
    """What is learned: the name of a modality (`openmarigold.modalities`)."""
    base_variant: str = ""
    """Which weight files of the base are read: "" the plain ones, "fp16" those named so."""
    base_revision: str = ""
    """Branch, tag or commit of a base on the hub; "" = the newest."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 2024

    def __post_init__(self) -> None:
        require(self.modality in MODALITIES, f"modality={self.modality!r} is not known; use {', '.join(MODALITIES)}")
        require(
            not self.lora.half_base or (self.lora.rank > 0 and self.optimization.mixed_precision != "no"),
            'lora.half_base needs lora.rank above 0 and optimization.mixed_precision = "bf16" or "fp16"',
        )
        check_shapes_kept(self.data, self.modality)
        require(
            self.objective.error == "absolute" or MODALITIES[self.modality].pixel_loss == "affine_invariant",
            f'objective.error="{self.objective.error}" is for depth, not for {MODALITIES[self.modality].title}; use '
            '"absolute"',
        )
        require(
            self.timesteps.spacing == "trailing" or self.checkpoint.num_inference_steps > 1,
            'timesteps.spacing="leading" with checkpoint.num_inference_steps=1 makes a checkpoint whose only step '
            'begins at timestep 1, where the result is the starting noise; set spacing = "trailing" or '
            "num_inference_steps = 10",
        )
        if self.objective.kind == "end_to_end":
            unused = [] if self.noise == NoiseConfig() else ["[noise]"]
            unused += ["timesteps.last_share"] if self.timesteps.last_share else []
            require(not unused, f'{" and ".join(unused)} has no effect with objective kind "end_to_end"; leave it out')


Recipe = AutoencoderRecipe | GeneratorRecipe | LogAutoencoderRecipe | LiteRecipe | MarigoldRecipe
KINDS: dict[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "generator": GeneratorRecipe,
    "depth": MarigoldRecipe,
    "log_autoencoder": LogAutoencoderRecipe,
    "lite": LiteRecipe,
}


_KEY = re.compile(r'"[^"]*"|[^."]+')


def keeps_latents(recipe: Recipe) -> bool:
    """Whether a run of this kind works on latents that are encoded once and kept, unless `data.cache` is off."""
    return recipe.data.cache and isinstance(recipe, GeneratorRecipe | MarigoldRecipe)


def read_recipe(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, or in the recipe.json of a run; relative paths are taken from the current folder.

    Args:
        overrides: `section.key=value` each, which take the place of what the file holds; values as in TOML, and a text
            needs no quotes.

    Raises:
        RecipeError: the file is missing or not TOML, or has an unknown, missing or wrong key.
    """
    try:
        content = path.read_bytes()
        table = with_current_keys(parse_json(content) if path.suffix == ".json" else parse_toml(content))
        if not isinstance(table, dict):
            raise DamagedTextError("it holds no table")
    except (OSError, DamagedTextError) as error:
        raise RecipeError(
            f"{path} cannot be read as a recipe: {error}; it must be a TOML file or the recipe.json of a run"
        ) from error
    return parse_recipe(with_overrides(table, overrides), where=str(path))


def with_overrides(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe's table with some values replaced.

    >>> with_overrides({"seed": 1, "run": {"num_workers": 2}}, ["run.num_workers=4", "base=my/model"])
    {'seed': 1, 'run': {'num_workers': 4}, 'base': 'my/model'}

    Raises:
        RecipeError: an override that is not `key=value`.
    """
    found: dict[str, Any] = copy.deepcopy(dict(table))
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = [key.strip().strip('"') for key in _KEY.findall(name)]
        if not equals or not all(keys) or not keys:
            raise RecipeError(f"--set {override} is not accepted; give section.key=value")
        try:
            value = parse_toml(f"value = {text.strip()}")["value"]
        except DamagedTextError:
            value = text.strip()
        place = found
        for key in keys[:-1]:
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {override} is not accepted; {key} is not a section")
            place = inner
        place[keys[-1]] = value
    return found


def parse_recipe(table: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe in a parsed TOML (or JSON) table; `where` starts every error message."""
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(f"{where}: kind={kind!r} is not a kind of recipe; use one of {', '.join(KINDS)}")
    return from_table(KINDS[kind], table, where=where, error=RecipeError)


def to_table(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as JSON-ready values; `parse_recipe` accepts it again."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(recipe))
