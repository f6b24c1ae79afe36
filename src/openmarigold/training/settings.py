# SPDX-License-Identifier: Apache-2.0
"""Settings of recipes of every kind: optimization, run, data and timesteps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from openmarigold.errors import RecipeError
from openmarigold.modalities import MODALITIES

DEFAULT_MODALITY = "depth"
LARGEST_SIDE = 8192
"""Of a view [px]."""
MOST_VARIANTS = 10_000
_LARGEST_SHARE = 1e9  # shares are relative; their sum must stay finite


def require(condition: bool, message: str) -> None:
    """Raises `RecipeError` with the message unless the condition holds."""
    if not condition:
        raise RecipeError(message)


def require_each(settings: object, accepted: Callable[[Any], bool], bounds: str, *names: str) -> None:
    """Raises `RecipeError` for the first of these settings that is not accepted; `bounds` says what is."""
    for name in names:
        value = getattr(settings, name)
        require(accepted(value), f"{name}={value} must be {bounds}")


def is_share(value: float) -> bool:
    """Whether a value is in [0, 1]."""
    return 0 <= value <= 1


def check_sides(name: str, size: tuple[int, int]) -> None:
    """Raises `RecipeError` unless height and width of the setting `name` are multiples of 8, up to `LARGEST_SIDE`."""
    for side in size:
        require(side > 0 and side % 8 == 0, f"{name}={list(size)}: {side} is not a multiple of 8")
        require(side <= LARGEST_SIDE, f"{name}={list(size)}: {side} is above {LARGEST_SIDE} pixels")


def check_shapes_kept(data: DataConfig, modality: str) -> None:
    """Raises `RecipeError` if views with pixels that are not square make the maps of a modality wrong."""
    require(
        MODALITIES[modality].pixel_loss != "angular" or data.aspect_jitter == 0,
        f"data.aspect_jitter={data.aspect_jitter} makes {MODALITIES[modality].title} wrong: where pixels are not "
        "square, a surface faces another way; set it to 0",
    )


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
    warmup_from_zero: bool = False
    """Whether the first step has a rate of 0, and so changes nothing, as in the published code."""
    decay: Literal["exponential", "cosine"] = "exponential"
    decay_steps: int = 0
    """Step at which the decay has reached its floor; 0 = num_steps."""
    final_learning_rate_factor: float = 0.01
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    """Largest gradient norm; 0 = no clipping, as in the paper."""
    ema_decay: float = 0.0
    """Decay of the moving average of weights that is saved and validated; 0 = none, as in the paper."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """16 bits for most operations; weights, moments and losses stay float32. fp16 scales the loss, and needs a GPU."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third slower, a fraction of the memory."""
    compile: bool = False
    """Compile the trained network with torch.compile: minutes at the start, faster steps on a GPU."""
    cudnn_benchmark: bool = False
    """Let cuDNN try its kernels for each size of input and keep the fastest: faster steps on a GPU, and runs that
    differ in rounding."""

    def __post_init__(self) -> None:
        require_each(self, lambda value: value >= 1, "at least 1", "num_steps", "batch_size")
        require(
            self.micro_batch_size >= 0 and (self.micro_batch_size == 0 or self.batch_size % self.micro_batch_size == 0),
            f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}; 0 = no accumulation",
        )
        require_each(self, lambda value: value > 0, "above 0", "learning_rate")
        require_each(self, lambda value: 0 < value <= 1, "above 0, at most 1", "final_learning_rate_factor")
        require_each(self, lambda value: value >= 0, "0 or more", "weight_decay", "warmup_steps", "gradient_clip")
        require(
            self.decay_steps == 0 or self.decay_steps > self.warmup_steps,
            f"decay_steps={self.decay_steps} must be above warmup_steps={self.warmup_steps}; 0 = num_steps",
        )
        require_each(self, lambda value: 0 <= value < 1, "in [0, 1)", "ema_decay")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run is carried out, saved and watched. None of it changes what is learned."""

    save_period_s: float = 180.0
    """Seconds between saved states; more where writing one takes over a twentieth of that. 0 = after each step."""
    keep_states: int = 1
    """How many of the newest states are kept."""
    validation_period: int = 0
    """Steps between validations; 0 = only at the end."""
    checkpoint_period: int = 0
    """Steps between checkpoints that are kept in `checkpoints/step-N/`; 0 = none but the last and the best."""
    num_workers: int = 2
    """Threads that read and prepare micro-batches ahead. Their number changes no result."""
    tensorboard: bool = False
    """Also write event files for TensorBoard (package tensorboard) to `tensorboard/`."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases (package wandb): offline to `wandb/` in the output folder, online to its server."""
    wandb_project: str = "openmarigold"
    patience: int = 0
    """End after so many validations in a row that were no better than the best one before; 0 = never."""
    patience_of: Literal["score", "loss"] = "score"
    """What patience looks at: the score that chooses the best checkpoint, or held_out_loss."""
    check_memory: bool = True
    """Refuse to start where weights, gradients and moments do not fit into free memory."""

    def __post_init__(self) -> None:
        periods = ("save_period_s", "validation_period", "checkpoint_period")
        require_each(self, lambda value: value >= 0, "0 or more", *periods, "patience")
        require_each(self, lambda value: value >= 1, "at least 1", "keep_states", "num_workers")
        require(
            self.patience == 0 or self.validation_period > 0,
            "patience counts validations; set validation_period to the steps between them",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples, and how they are varied."""

    sources: dict[str, float]
    """Source name -> share of samples."""
    num_samples: dict[str, int] = field(default_factory=dict)
    """Source name -> how many of its samples are used, drawn by the seed; all where not given. For comparing sources
    of different size."""
    held_out: float | None = None
    """Share of the scenes of each prepared source that are not trained on, at least one where there are two, drawn by
    the seed; kind depth is validated on them. None = a twentieth where the recipe and the command name no other
    validation, else 0."""
    size: tuple[int, int]
    """Height and width of a training view [px], multiples of 8."""
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Source name -> height and width of its views where they are not `size` (mixture "micro_batch" only)."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Heights and widths of views of the sources that `sizes` does not name: each sample goes to the one that is
    nearest to its shape, and those of one bucket share micro-batches (mixture "micro_batch" only)."""
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
    """Largest standard deviation of the noise on a color latent, drawn for each sample (depth only), so that the model
    does not rely on fine detail, in which renders and photos differ most."""
    num_variants: int = 1
    """Random variants of each sample (generator and depth): there are so many views of it, and no others."""
    draws: Literal["number", "sample"] = "number"
    """What the random changes of a view follow from, besides the seed: its number in the whole mixture, so that they
    change when another source joins, or its sample, so that runs with other sources can share its latents."""
    resampling: Literal["smooth", "published"] = "smooth"
    """smooth: views are cut, then colors are resized smoothly, and targets are normalized by the pixels of the view.
    published: whole pictures are normalized by all their pixels, then everything is resized by picking pixels, as in
    Marigold's code."""
    latents: Literal["float16", "float32"] = "float16"
    """How latents (and the maps of end_to_end) are rounded, with or without a cache. Published: float32, twice the
    disk."""
    cache: bool = True
    """Compute the latents of all views once and keep them (generator and depth); false computes them anew each time:
    the same numbers, no disk, slower."""
    invalid: Literal["far", "raw"] = "far"
    """How pixels without depth are encoded: as the far plane, or by their stored values, as in the published code (0,
    which becomes the near plane)."""
    invalid_is_far: bool = False
    """Learn pixels without depth as the far plane instead of masking them: right where they are all sky. A prepared set
    whose manifest states `unknown_is_far = false` is masked all the same."""
    min_depth: float = 1e-5
    """Smallest depth that counts [m], excluded. Paper code: 1e-5."""
    max_depth: dict[str, float] = field(default_factory=dict)
    """Kind of sample -> largest depth that counts [m], excluded; farther pixels are treated as pixels without depth. So
    a view through a window does not squeeze the room into a sliver of the normalized range."""
    valid_range: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Source or kind of sample -> smallest and largest depth that counts [m], both excluded; where both are named, what
    lies in both ranges."""
    caps: bool | None = None
    """Cap kinds that neither max_depth nor valid_range names (nor the source) at what is usual for them: 20 m indoors,
    80 m outdoors (`Modality.usual_limits`). None = true, but for a run that an earlier version began."""
    kind_weights: dict[str, float] = field(default_factory=dict)
    """Kind of sample -> how often it is drawn within its source, 1 where not given (generator and depth)."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "sources is empty; name at least one, such as { synthetic = 1.0 }")
        require(
            all(0 < share <= _LARGEST_SHARE for share in self.sources.values()),
            f"every share in sources must be above 0, and at most {_LARGEST_SHARE:g}",
        )
        require(
            all(0 <= weight <= _LARGEST_SHARE for weight in self.kind_weights.values()),
            f"every kind_weights must be 0 or above, and at most {_LARGEST_SHARE:g}",
        )
        named = {"size": self.size, **{f"sizes.{name}": size for name, size in self.sizes.items()}}
        for name, size in [*named.items(), *(("buckets", size) for size in self.buckets)]:
            check_sides(name, size)
        for name in ("sizes", "num_samples"):
            unknown = sorted(getattr(self, name).keys() - self.sources.keys())
            require(not unknown, f"{name} names {', '.join(unknown)}, which sources does not")
        for name, count in self.num_samples.items():
            require(count >= 1, f"num_samples of {name} = {count} must be 1 or above")
        require(
            not self.buckets or self.mixture == "micro_batch",
            'buckets need mixture = "micro_batch", since pictures of different sizes cannot share a batch',
        )
        if self.mixture == "sample":
            require(
                len({self.size_of(name) for name in self.sources}) == 1,
                'sizes differ between sources, so that they cannot share a batch; set mixture = "micro_batch"',
            )
        else:
            require(
                not self.kind_weights,
                'kind_weights needs mixture = "sample"; with "micro_batch" everything is drawn equally',
            )
        require(self.held_out is None or 0 <= self.held_out < 1, f"held_out={self.held_out} must be in [0, 1)")
        require_each(self, lambda value: 0 < value <= 1, "in (0, 1]", "min_scale")
        jitters = ("aspect_jitter", "appearance", "latent_noise")
        require_each(self, lambda value: 0 <= value < math.inf, "finite, 0 or above", *jitters, "min_depth")
        require_each(self, lambda value: 1 <= value <= MOST_VARIANTS, f"1 to {MOST_VARIANTS}", "num_variants")
        for name, (low, high) in self.valid_range.items():
            require(0 <= low < high, f"valid_range of {name} = {[low, high]} must be two numbers, 0 <= low < high")
        require(
            self.resampling == "smooth" or (self.min_scale, self.aspect_jitter, self.appearance) == (1.0, 0.0, 0.0),
            'resampling="published" takes whole pictures; leave out min_scale, aspect_jitter and appearance',
        )
        require(
            self.mirror == "random" or self.num_variants % 2 == 0,
            f'mirror="both" needs an even num_variants, not {self.num_variants}: a plain and a mirrored one',
        )

    def size_of(self, source: str) -> tuple[int, int]:
        """Height and width of the views of a source [px]."""
        return self.sizes.get(source, self.size)


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
        require_each(self, is_share, "in [0, 1]", "last_share")
        require(
            not (self.prediction_type == "epsilon" and self.zero_terminal_snr),
            'prediction_type="epsilon" is undefined at zero terminal SNR; set zero_terminal_snr = false or use '
            "v_prediction",
        )


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Annealed multi-resolution noise. Paper: §3.3."""

    strength: float = 0.9
    annealed: bool = True
    normalization: Literal["sample", "batch"] = "sample"
    """Standard deviation over each sample, or over the whole batch as in the published code."""

    def __post_init__(self) -> None:
        require_each(self, is_share, "in [0, 1]", "strength")
