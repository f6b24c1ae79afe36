# SPDX-License-Identifier: Apache-2.0
"""Training recipes: TOML files of three kinds, each a frozen dataclass whose fields are all the knobs there are.

Torch-free, so that a mistake in a recipe is reported before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openmarigold.config import MAX_INFERENCE_STEPS, check_processing_resolution
from openmarigold.errors import InvalidValueError, RecipeError
from openmarigold.text_files import DamagedTextError, from_table, parse_toml, with_current_keys


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """How weights are moved. Paper: §4.1 (Adam, 3e-5, batch 32, exponential decay after a warm-up of 100 steps)."""

    num_steps: int
    batch_size: int
    """Samples of one step, over all processes and accumulated micro-batches: the effective batch."""
    learning_rate: float
    micro_batch_size: int = 0
    """Samples that one process takes at once; batch_size must be a multiple of it times the processes, and the rest is
    accumulated. 0 = no accumulation."""
    optimizer: Literal["adam", "adamw_8bit"] = "adam"
    """adam: AdamW, which without weight decay is Adam. adamw_8bit: its moments in 8 bits (package bitsandbytes)."""
    fused: bool = True
    """The fused kernel of adam where the device has it; off: torch's "foreach" loops, which round differently."""
    warmup_steps: int = 100
    decay: Literal["exponential", "cosine"] = "exponential"
    decay_steps: int = 0
    """Step at which the decay has reached its floor; 0 = num_steps."""
    final_learning_rate_factor: float = 0.01
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    """Largest gradient norm; 0 = no clipping, as in the paper."""
    ema_decay: float = 0.0
    """Decay of the moving average of weights that is saved and validated; 0 = none, as in the paper."""
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, a fraction of the memory."""
    compile: bool = False
    """Compile the trained network with torch.compile: minutes at the start, faster steps on a GPU."""

    def __post_init__(self) -> None:
        _require(self.num_steps >= 1, f"num_steps={self.num_steps} must be at least 1")
        _require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1")
        _require(
            self.micro_batch_size >= 0 and (self.micro_batch_size == 0 or self.batch_size % self.micro_batch_size == 0),
            f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}; 0 = no accumulation",
        )
        _require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be above 0")
        factor = self.final_learning_rate_factor
        _require(0 < factor <= 1, f"final_learning_rate_factor={factor} must be above 0, at most 1")
        _require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must be 0 or more")
        _require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        _require(
            self.decay_steps == 0 or self.decay_steps > self.warmup_steps,
            f"decay_steps={self.decay_steps} must be above warmup_steps={self.warmup_steps}; 0 = num_steps",
        )
        _require(0 <= self.ema_decay < 1, f"ema_decay={self.ema_decay} must be in [0, 1)")
        _require(self.gradient_clip >= 0, f"gradient_clip={self.gradient_clip} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run is carried out, saved and watched. None of it changes what is learned."""

    save_period_s: float = 180.0
    """Seconds between saved states; more where writing one takes over a twentieth of that. 0 = after each step."""
    keep_states: int = 1
    """How many of the newest states are kept."""
    validation_period: int = 0
    """Steps between validations; 0 = only at the end."""
    num_workers: int = 2
    """Threads that read and prepare micro-batches ahead. Their number changes no result."""
    tensorboard: bool = False
    """Also write event files for TensorBoard (package tensorboard) to `tensorboard/`."""

    def __post_init__(self) -> None:
        _require(self.save_period_s >= 0, f"save_period_s={self.save_period_s} must be 0 or more")
        _require(self.keep_states >= 1, f"keep_states={self.keep_states} must be at least 1")
        _require(self.validation_period >= 0, f"validation_period={self.validation_period} must be 0 or more")
        _require(self.num_workers >= 1, f"num_workers={self.num_workers} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples, and how they are varied."""

    sources: dict[str, float]
    """Source name -> share of samples."""
    num_samples: dict[str, int] = field(default_factory=dict)
    """Source name -> how many of its samples are used, drawn by the seed; all where not given. For comparing sources
    of different size."""
    size: tuple[int, int]
    """Height and width of a training view [px], multiples of 8."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Source name -> height and width of its views where they are not `size` (mixture "micro_batch" only)."""
    mixture: Literal["sample", "micro_batch"] = "sample"
    """sample: each sample comes from a random source, any view as often as another. micro_batch: each micro-batch comes
    from one random source, which is gone through in a random order, everything once before anything twice (paper)."""
    min_scale: float = 1.0
    """Smallest part of a picture that a view shows, as a share of the largest crop of its shape."""
    aspect_jitter: float = 0.0
    mirror: Literal["random", "both"] = "random"
    """random: each variant is mirrored or not by chance. both: variants take turns, plain and mirrored."""
    appearance: float = 0.0
    """Strength of the random changes of color: 0 none, 1 strong; above it they are more frequent and larger still."""
    latent_noise: float = 0.0
    """Largest standard deviation of the noise on a color latent, drawn for each sample (depth only): the model is not
    to live on fine detail, in which renders and photos differ most."""
    num_variants: int = 1
    """Random variants of each sample (generator and depth): there are so many views of it, and no others."""
    cache: bool = True
    """Compute the latents of all views once and keep them (generator and depth); false computes them anew each time:
    the same numbers, no disk, slower."""
    invalid: Literal["far", "raw"] = "far"
    """What pixels without depth are encoded as: the far plane, or whatever they hold, as in the published code (0,
    which becomes the near plane)."""
    invalid_is_far: bool = False
    """Learn pixels without depth as the far plane instead of masking them: right where they are all sky."""
    min_depth: float = 1e-5
    """Smallest depth that counts [m], excluded. Paper code: 1e-5."""
    max_depth: dict[str, float] = field(default_factory=dict)
    """Kind of sample -> depth from which on it does not count [m]; farther pixels are as good as without depth. So a
    view through a window does not squeeze the room into a sliver of the normalized range."""
    kind_weights: dict[str, float] = field(default_factory=dict)
    """Kind of sample -> how often it is drawn within its source, 1 where not given (generator and depth)."""

    def __post_init__(self) -> None:
        _require(bool(self.sources), "sources is empty; name at least one, such as { synthetic = 1.0 }")
        _require(all(share > 0 for share in self.sources.values()), "every share in sources must be above 0")
        _require(all(weight >= 0 for weight in self.kind_weights.values()), "every kind_weights must be 0 or above")
        for name, size in {"size": self.size, **{f"sizes.{name}": size for name, size in self.sizes.items()}}.items():
            for side in size:
                _require(side > 0 and side % 8 == 0, f"{name}={list(size)}: {side} is not a multiple of 8")
        for name in ("sizes", "num_samples"):
            unknown = sorted(getattr(self, name).keys() - self.sources.keys())
            _require(not unknown, f"{name} names {', '.join(unknown)}, which sources does not")
        for name, count in self.num_samples.items():
            _require(count >= 1, f"num_samples of {name} = {count} must be 1 or above")
        if self.mixture == "sample":
            different = sorted(
                name for name in self.sources if self.size_of(name) != self.size_of(next(iter(self.sources)))
            )
            _require(
                not different,
                'sizes differ between sources, so that they cannot share a batch; set mixture = "micro_batch"',
            )
        else:
            _require(
                not self.kind_weights,
                'kind_weights needs mixture = "sample"; with "micro_batch" everything is drawn equally',
            )
        _require(0 < self.min_scale <= 1, f"min_scale={self.min_scale} must be in (0, 1]")
        _require(self.aspect_jitter >= 0, f"aspect_jitter={self.aspect_jitter} must be 0 or above")
        _require(self.appearance >= 0, f"appearance={self.appearance} must be 0 or above")
        _require(self.latent_noise >= 0, f"latent_noise={self.latent_noise} must be 0 or above")
        _require(self.num_variants >= 1, f"num_variants={self.num_variants} must be at least 1")
        _require(self.min_depth >= 0, f"min_depth={self.min_depth} must be 0 or above")
        _require(
            self.mirror == "random" or self.num_variants % 2 == 0,
            f'mirror="both" needs an even num_variants, not {self.num_variants}: a plain and a mirrored one',
        )

    def size_of(self, source: str) -> tuple[int, int]:
        """Height and width of the views of a source [px]."""
        return self.sizes.get(source, self.size)


@dataclass(frozen=True, kw_only=True)
class AutoencoderModelConfig:
    """Shape of the autoencoder: diffusers' AutoencoderTiny, downsampling by 8."""

    latent_channels: int = 4
    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    def __post_init__(self) -> None:
        for name in ("encoder_blocks", "decoder_blocks"):
            _require(len(getattr(self, name)) == 4, f"{name} needs four entries (three halvings)")
        for name in ("latent_channels", "width"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class AutoencoderLossConfig:
    """What the autoencoder is asked for."""

    depth_share: float = 0.3
    """Share of samples with depth whose depth map, normalized and repeated to three channels, is the picture."""
    latent_noise_std: float = 0.0
    """Noise added to latents before decoding, so that small errors of the U-Net decode to small errors."""
    latent_regularization: float = 0.0
    """Weight that keeps each latent channel near mean 0 and standard deviation 1."""


@dataclass(frozen=True, kw_only=True)
class UNetModelConfig:
    """Shape of the U-Net: diffusers' UNet2DConditionModel, cross-attention from the second level down."""

    block_out_channels: tuple[int, ...] = (64, 128, 256)
    layers_per_block: int = 2
    head_dim: int = 64
    cross_attention_dim: int = 64

    def __post_init__(self) -> None:
        widths = self.block_out_channels
        _require(len(widths) >= 2, f"block_out_channels={list(widths)} needs two levels or more")
        for width in widths:  # group normalization has 32 groups
            _require(
                width > 0 and width % 32 == 0, f"block_out_channels={list(widths)}: {width} is not a multiple of 32"
            )
        for name in ("layers_per_block", "head_dim", "cross_attention_dim"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Annealed multi-resolution noise. Paper: §3.3."""

    strength: float = 0.9
    annealed: bool = True
    normalization: Literal["sample", "batch"] = "sample"
    """Standard deviation over each sample, or over the whole batch as in the published code."""

    def __post_init__(self) -> None:
        _require(0 <= self.strength <= 1, f"strength={self.strength} must be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class TimestepConfig:
    """Which timesteps are trained, and on which noise schedule."""

    last_share: float = 0.0
    """Share of samples trained at the last timestep, where one-step prediction starts; the rest is uniform."""
    zero_terminal_snr: bool = True
    spacing: Literal["trailing", "leading"] = "trailing"
    """Which timesteps the finished checkpoint visits in prediction; leading is for comparison with v1-0."""
    prediction_type: Literal["base", "v_prediction", "epsilon", "sample"] = "base"
    """What the U-Net is trained to answer; base = as the base checkpoint did."""

    def __post_init__(self) -> None:
        _require(0 <= self.last_share <= 1, f"last_share={self.last_share} must be in [0, 1]")
        _require(
            not (self.prediction_type == "epsilon" and self.zero_terminal_snr),
            'prediction_type="epsilon" says nothing at zero terminal SNR; set zero_terminal_snr = false or use '
            "v_prediction",
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the depth fine-tune minimizes."""

    kind: Literal["denoising", "end_to_end"] = "denoising"
    """denoising: the paper's loss on latents, at every timestep. end_to_end: one step from the last timestep, decoded,
    against the depth map itself after the best scale and shift (Garcia et al. 2024); [noise] and
    timesteps.last_share do not matter then."""
    start_noise: Literal["gaussian", "zeros"] = "gaussian"
    """What end_to_end starts from, in training as in prediction: plain noise, or zeros as in Garcia et al."""
    error: Literal["absolute", "relative"] = "absolute"
    """What end_to_end averages: errors as they are (in units of each image's depth range), as in Garcia et al., or as
    shares of each pixel's depth, as AbsRel does: what is near counts for more."""

    def __post_init__(self) -> None:
        _require(
            self.kind == "end_to_end" or (self.start_noise == "gaussian" and self.error == "absolute"),
            'start_noise="zeros" and error="relative" are for kind="end_to_end"',
        )


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
        try:
            check_processing_resolution(self.processing_resolution)
        except InvalidValueError as error:
            raise RecipeError(str(error)) from error
        steps = self.num_inference_steps
        _require(1 <= steps <= MAX_INFERENCE_STEPS, f"num_inference_steps={steps} must be 1 to {MAX_INFERENCE_STEPS}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the checkpoints of a depth run are scored and looked at. None of it changes what is learned."""

    benchmarks: tuple[str, ...] = ()
    """Names of benchmarks (`openmarigold data list`), whose data `train --benchmark-data` gives."""
    num_images: int = 0
    """How many images of each named benchmark are scored, evenly spread; 0 = all."""
    num_inference_steps: int = 1
    seed: int = 2024
    processing_resolution: int | None = None
    """None: the checkpoint's own; 0: each photo's own size."""

    def __post_init__(self) -> None:
        _require(self.num_images >= 0, f"num_images={self.num_images} must be 0 or more")
        _require(
            1 <= self.num_inference_steps <= MAX_INFERENCE_STEPS,
            f"num_inference_steps={self.num_inference_steps} must be 1 to {MAX_INFERENCE_STEPS}",
        )
        if self.processing_resolution is not None:
            try:
                check_processing_resolution(self.processing_resolution)
            except InvalidValueError as error:
                raise RecipeError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Trains the autoencoder whose latent space everything else lives in."""

    kind: Literal["autoencoder"]
    data: DataConfig
    optimization: OptimizationConfig
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 2024

    def __post_init__(self) -> None:
        _require(
            self.data.mixture == "sample", 'data.mixture must be "sample": an autoencoder is not trained by source'
        )


@dataclass(frozen=True, kw_only=True)
class GeneratorRecipe:
    """Trains an empty-prompt image generator in the latent space of `autoencoder`."""

    kind: Literal["generator"]
    autoencoder: Path
    """Checkpoint folder whose vae/ is used, frozen."""
    data: DataConfig
    optimization: OptimizationConfig
    model: UNetModelConfig = field(default_factory=UNetModelConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 2024


@dataclass(frozen=True, kw_only=True)
class DepthRecipe:
    """Fine-tunes the U-Net of `generator` to denoise depth, the method of the paper (§3.3)."""

    kind: Literal["depth"]
    base: str
    """Checkpoint that is fine-tuned, a folder or a hub id: an image generator (Stable Diffusion 1.5, 2, 2.1 or one of
    ours) or a Marigold. It needs unet/, vae/, scheduler/, and the empty-prompt embedding or a text encoder."""
    data: DataConfig
    optimization: OptimizationConfig
    checkpoint: CheckpointDefaults
    base_variant: str = ""
    """Which weight files of the base are read: "" the plain ones, "fp16" those named so."""
    base_revision: str = ""
    """Branch, tag or commit of a base on the hub; "" = the newest."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 2024

    def __post_init__(self) -> None:
        if self.objective.kind == "end_to_end":
            unused = [] if self.noise == NoiseConfig() else ["[noise]"]
            unused += ["timesteps.last_share"] if self.timesteps.last_share else []
            _require(not unused, f'{" and ".join(unused)} has no effect with objective kind "end_to_end"; leave it out')


Recipe = AutoencoderRecipe | GeneratorRecipe | DepthRecipe
KINDS: dict[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "generator": GeneratorRecipe,
    "depth": DepthRecipe,
}


def read_recipe(path: Path) -> Recipe:
    """The recipe in the TOML file `path`; relative paths in it are taken from the current folder.

    Raises:
        RecipeError: the file is missing or not TOML, or has an unknown, missing or wrong key.
    """
    try:
        table = with_current_keys(parse_toml(path.read_bytes()))
    except (OSError, DamagedTextError) as error:
        raise RecipeError(f"{path} cannot be read as a recipe: {error}; it must be a TOML file") from error
    return parse_recipe(table, where=str(path))


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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(message)
