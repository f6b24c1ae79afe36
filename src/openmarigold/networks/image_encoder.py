# SPDX-License-Identifier: Apache-2.0
"""The image encoder: features of a recognition network, brought to the latent grid.

In the published checkpoints the U-Net sees the autoencoder's latent of the photo. A small generator knows little of the
world, so a checkpoint may hold an image encoder instead: EfficientNet-Lite (Tan & Le 2019, arXiv 1905.11946; Lite: no
squeeze-and-excitation, ReLU6), trained on ImageNet. Its features at strides 2 to 32 become the condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openmarigold.privacy import hidden

with hidden("transformers", "peft", only_ours=True):
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin

_NORM_EPSILON = 1e-3
_STEM_CHANNELS = 32
_STRIDES = (2, 4, 8, 16, 32)
_LATENT_STRIDE = 8


# Of the stages: table 1 of the paper, with the width and depth of a variant.
_KERNELS_STRIDES_EXPANSIONS = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
# Variant -> channels and repeats of the seven stages.
_VARIANTS = {
    "lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "lite1": ((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    "lite2": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}
_TAPPED = (0, 1, 2, 4, 6)  # the last stage of each stride


class EfficientNetLiteEncoder(ModelMixin, ConfigMixin):
    """Images in [-1, 1] to a condition on the latent grid.

    Each of the five features is brought to stride 8 (finer ones space-to-depth, coarser ones bilinear) and projected to
    its share of the condition by a 1x1 convolution. Batch norms keep the statistics of ImageNet, in training too.
    """

    @register_to_config
    def __init__(self, variant: str = "lite2", condition_channels: Sequence[int] = (32, 32, 48, 64, 64)) -> None:
        super().__init__()
        if variant not in _VARIANTS or len(condition_channels) != len(_STRIDES):
            raise ValueError(f"variant {variant!r} with {len(condition_channels)} features is not supported")
        self.stem = _ConvNorm(3, _STEM_CHANNELS, 3, stride=2)
        stages, channels, features = [], _STEM_CHANNELS, []
        for (kernel, stride, expansion), width, repeats in zip(
            _KERNELS_STRIDES_EXPANSIONS, *_VARIANTS[variant], strict=True
        ):
            blocks = []
            for number in range(repeats):
                blocks.append(_Block(channels, width, kernel, stride if number == 0 else 1, expansion))
                channels = width
            stages.append(nn.Sequential(*blocks))
            features.append(channels)
        self.stages = nn.ModuleList(stages)
        self.projections = nn.ModuleList(
            nn.Conv2d(features[stage] * max(1, _LATENT_STRIDE // stride) ** 2, width, 1)
            for stage, stride, width in zip(_TAPPED, _STRIDES, condition_channels, strict=True)
        )

    def pretrained_parameters(self, *, first_stage: int = 0) -> list[nn.Parameter]:
        """The parameters of stem and stages, not of the projections, which start at random; or from a stage on."""
        stem = [] if first_stage else list(self.stem.parameters())
        return [*stem, *self.stages[first_stage:].parameters()]

    def forward(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b K h w"]:
        height, width = image.shape[2] // _LATENT_STRIDE, image.shape[3] // _LATENT_STRIDE
        value, features = self.stem(image), []
        for number, stage in enumerate(self.stages):
            value = stage(value)
            if number in _TAPPED:
                features.append(value)
        parts = []
        for feature, stride, projection in zip(features, _STRIDES, self.projections, strict=True):
            if stride < _LATENT_STRIDE:
                feature = functional.pixel_unshuffle(feature, _LATENT_STRIDE // stride)
            part = projection(feature)
            if stride > _LATENT_STRIDE:  # by a fixed factor, so that places stay where they are at any size
                factor = float(stride // _LATENT_STRIDE)
                part = functional.interpolate(part, scale_factor=factor, mode="bilinear")[:, :, :height, :width]
            parts.append(part)
        return torch.cat(parts, dim=1)


class _FixedNorm(nn.Module):
    """A batch norm with fixed statistics, in training too; its weights are trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, value: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        return functional.batch_norm(value, mean, variance, self.weight, self.bias, eps=_NORM_EPSILON)  # pyright: ignore


class _ConvNorm(nn.Module):
    """A convolution without bias and its batch norm, with ReLU6 unless `linear`. Output sizes are rounded up."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        # As TensorFlow pads, with which the published weights were trained: at stride 2 more at the end.
        before = (kernel - stride) // 2
        self.padding = (before, kernel - 1 - before) * 2 if stride > 1 else ()
        inside = 0 if stride > 1 else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=inside, groups=groups, bias=False)
        self.norm = _FixedNorm(outputs)
        self.linear = linear

    def forward(self, value: Tensor) -> Tensor:
        if self.padding:
            value = functional.pad(value, self.padding)
        value = self.norm(self.conv(value))
        return value if self.linear else functional.relu6(value)


class _Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _ConvNorm(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(wide, wide, kernel, stride=stride, groups=wide)
        self.project = _ConvNorm(wide, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, value: Tensor) -> Tensor:
        result = self.project(self.depthwise(self.expand(value)))
        return value + result if self.residual else result


def published_weights(encoder: EfficientNetLiteEncoder, published: dict[str, Any]) -> dict[str, Tensor]:
    """The state of `encoder` with the weights of the published classifier of its variant.

    Args:
        published: state dict of `efficientnet-lite-pytorch`; its layers come in the same order, its head is left out.

    Raises:
        ValueError: it is the state of another network.
    """
    own = encoder.state_dict()
    pairs = [name for name in own if not name.startswith("projections.")]
    # Both list stem and blocks from front to back, each convolution with its norm.
    head = ("_conv_head", "_bn1", "_fc")
    theirs = [name for name in published if not name.startswith(head) and not name.endswith("num_batches_tracked")]
    if [own[name].shape for name in pairs] != [published[name].shape for name in theirs]:
        raise ValueError("these are not the weights of this variant")
    return own | {name: published[other] for name, other in zip(pairs, theirs, strict=True)}
