# SPDX-License-Identifier: Apache-2.0
"""Training losses. Paper: §3.1, eq. 2 (the denoising objective), §3.3."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def masked_latent_loss(
    prediction: Float[Tensor, "b C h w"], target: Float[Tensor, "b C h w"], valid_mask: Bool[Tensor, "b 1 h w"]
) -> Float[Tensor, ""]:
    """Mean squared error over the valid latent cells of the whole batch; 0 if there are none.

    Invalid cells take no part, neither in the value nor in the gradient.
    """
    weight = valid_mask.to(prediction.dtype)
    # Zeroed before the square: a NaN in an invalid cell would survive a product with 0.
    error = (prediction - target).masked_fill(~valid_mask, 0.0)
    count = weight.sum() * prediction.shape[1]
    return error.square().sum() / count.clamp(min=1.0)


def latent_regularisation(latent: Float[Tensor, "b C h w"]) -> Float[Tensor, ""]:
    """Squared distance of each channel's mean from 0 and of its standard deviation from 1, over the batch."""
    mean = latent.mean(dim=(0, 2, 3))
    std = latent.std(dim=(0, 2, 3))
    return (mean.square() + (std - 1.0).square()).mean()
