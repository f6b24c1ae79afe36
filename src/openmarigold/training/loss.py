# SPDX-License-Identifier: Apache-2.0
"""Training losses. Paper: §3.1, eq. 2 (the denoising objective), §3.3."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_MIN_LENGTH = 1e-6  # smallest length of a vector that is normalized
_LARGEST_COSINE = 1.0 - 1e-6  # the slope of an angle has no bound at 0
MIN_VARIANCE = 1e-6  # of a prediction in [-1, 1] that is fitted; below it the map is constant but for rounding


class Loss(NamedTuple):
    """A sum of errors and how many were summed, so that the mean can be taken over all processes' samples.

    Attributes:
        total: sum of the errors, with gradients.
        count: how many there are; 0 where nothing is valid.
        per_sample: mean error of each sample, without gradients, NaN where a sample has none; None where samples have
            no errors of their own.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    per_sample: Float[Tensor, " b"] | None = None

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Mean error; 0 if there are none."""
        return self.total / self.count.clamp(min=1.0)


def whole(value: Float[Tensor, ""]) -> Loss:
    """A loss that is a mean already."""
    return Loss(value, torch.ones_like(value))


def masked_latent_loss(
    prediction: Float[Tensor, "b C h w"], target: Float[Tensor, "b C h w"], valid_mask: Bool[Tensor, "b 1 h w"]
) -> Loss:
    """Squared errors over the valid latent cells of the whole batch.

    Invalid cells take no part, neither in the value nor in the gradient.
    """
    weight = valid_mask.to(prediction.dtype)
    # Zeroed before the square: a NaN in an invalid cell would survive a product with 0.
    error = (prediction - target).masked_fill(~valid_mask, 0.0).square()
    per_sample = error.detach().sum(dim=(1, 2, 3)) / (weight.sum(dim=(1, 2, 3)) * prediction.shape[1])
    return Loss(error.sum(), weight.sum() * prediction.shape[1], per_sample)


def affine_invariant_loss(
    prediction: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    valid_mask: Bool[Tensor, "b c H W"],
    pixel_weight: Float[Tensor, "b c H W"] | None = None,
) -> Loss:
    """Absolute errors over the valid pixels of the whole batch, after the best scale and shift of each image.

    Scale and shift are the least-squares fit of `prediction` to `target`, in closed form, and carry gradients. A
    constant prediction is fitted by its shift alone. `pixel_weight` multiplies the errors, not the fit. Garcia et al.
    2024, "Fine-tuning image-conditional diffusion models is easier than you think", eq. 5.
    """
    weight = valid_mask.to(prediction.dtype)
    # Zeroed before any product: a NaN in an invalid pixel would survive a product with 0.
    prediction, target = prediction.masked_fill(~valid_mask, 0.0), target.masked_fill(~valid_mask, 0.0)
    count = weight.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1.0)
    centered = (prediction - prediction.sum(dim=(1, 2, 3), keepdim=True) / count) * weight
    wanted = (target - target.sum(dim=(1, 2, 3), keepdim=True) / count) * weight
    variance = centered.square().sum(dim=(1, 2, 3), keepdim=True) / count
    covariance = (centered * wanted).sum(dim=(1, 2, 3), keepdim=True) / count
    scale = covariance / variance.clamp(min=MIN_VARIANCE)
    error = (scale * centered - wanted).abs()
    if pixel_weight is not None:
        error = error * pixel_weight.masked_fill(~valid_mask, 0.0)
    per_sample = error.detach().sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    return Loss(error.sum(), weight.sum(), per_sample)


def absolute_loss(
    prediction: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    valid_mask: Bool[Tensor, "b c H W"],
    pixel_weight: Float[Tensor, "b c H W"] | None = None,
) -> Loss:
    """Absolute errors over the valid values of the whole batch, times `pixel_weight`."""
    weight = valid_mask.to(prediction.dtype)
    error = (prediction - target).masked_fill(~valid_mask, 0.0).abs()
    if pixel_weight is not None:
        error = error * pixel_weight.masked_fill(~valid_mask, 0.0)
    per_sample = error.detach().sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    return Loss(error.sum(), weight.sum(), per_sample)


def angles(
    first: Float[Tensor, "b 3 H W"], second: Float[Tensor, "b 3 H W"], valid: Bool[Tensor, "b 1 H W"]
) -> Float[Tensor, "b 1 H W"]:
    """Angles [rad] between vectors of any length, with gradients; 0 where they are not valid."""
    first, second = first.masked_fill(~valid, 1.0), second.masked_fill(~valid, 1.0)
    # The product of both squared lengths; torch's own norm takes ten times as long on a CPU.
    squares = first.square().sum(dim=1, keepdim=True) * second.square().sum(dim=1, keepdim=True)
    cosine = (first * second).sum(dim=1, keepdim=True) * squares.clamp(min=_MIN_LENGTH**2).rsqrt()
    return cosine.clamp(-_LARGEST_COSINE, _LARGEST_COSINE).acos().masked_fill(~valid, 0.0)


def angular_loss(
    prediction: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    valid_mask: Bool[Tensor, "b c H W"],
    pixel_weight: Float[Tensor, "b c H W"] | None = None,
) -> Loss:
    """Angles [rad] between predicted and wanted vectors of three channels, over the valid pixels of the whole batch.

    Vectors need not have unit length. Garcia et al. 2024, eq. 6. `pixel_weight` multiplies the angles.
    """
    valid = valid_mask.all(dim=1, keepdim=True)
    error = angles(prediction, target, valid)
    weight = valid.to(prediction.dtype)
    if pixel_weight is not None:
        error = error * pixel_weight[:, :1].masked_fill(~valid, 0.0)
    per_sample = error.detach().sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))
    return Loss(error.sum(), weight.sum(), per_sample)


PIXEL_LOSSES = {"affine_invariant": affine_invariant_loss, "absolute": absolute_loss, "angular": angular_loss}
"""How decoded targets are compared, by the modality's `pixel_loss`."""


def latent_regularization(latent: Float[Tensor, "b C h w"]) -> Float[Tensor, ""]:
    """Squared distance of each channel's mean from 0 and of its standard deviation from 1, over the batch."""
    mean = latent.mean(dim=(0, 2, 3))
    std = latent.std(dim=(0, 2, 3))
    return (mean.square() + (std - 1.0).square()).mean()
