# SPDX-License-Identifier: Apache-2.0
"""Losses of log depth up to scale: errors, errors of differences, and the energy score of a pair of members."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

SCALES = (1, 2, 4, 8, 16)


def aligned(log_depth: Float[Tensor, "b 1 H W"], target: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b 1 H W"]:
    """`log_depth` plus a constant for each image, so that its mean over the valid (not NaN) pixels is the target's."""
    valid = ~target.isnan()
    count = valid.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    difference = torch.where(valid, log_depth - target.nan_to_num(), 0.0)
    return log_depth - difference.sum(dim=(1, 2, 3), keepdim=True) / count


def distance(
    first: Float[Tensor, "b 1 H W"],
    second: Float[Tensor, "b 1 H W"],
    valid: Bool[Tensor, "b 1 H W"],
    *,
    gradient_weight: float,
) -> Float[Tensor, " b"]:
    """Mean absolute difference of two maps, plus that of their differences over 1 to 16 pixels, of each image.

    The second part is the mean over distances and directions, as in MegaDepth (Li & Snavely 2018), at full size.
    """
    difference = torch.where(valid, first - second, 0.0)
    found = _mean(difference.abs(), valid)
    if not gradient_weight:
        return found
    steps = []
    for scale in SCALES:
        for axis in (2, 3):
            ends = difference.narrow(axis, scale, difference.shape[axis] - scale)
            starts = difference.narrow(axis, 0, difference.shape[axis] - scale)
            both = valid.narrow(axis, scale, valid.shape[axis] - scale) & valid.narrow(
                axis, 0, valid.shape[axis] - scale
            )
            steps.append(_mean(torch.where(both, ends - starts, 0.0).abs(), both))
    return found + gradient_weight * torch.stack(steps).mean(dim=0)


def farness(log_depth: Float[Tensor, "b 1 H W"], target: Float[Tensor, "b 1 H W"]) -> Float[Tensor, " b"]:
    """How much nearer than the farthest valid pixel the pixels without depth are on average; `log_depth` is aligned."""
    unknown = target.isnan()
    farthest = target.nan_to_num(nan=-torch.inf).amax(dim=(2, 3), keepdim=True)
    return _mean(torch.where(unknown, functional.relu(farthest - log_depth), 0.0), unknown)


def _mean(values: Tensor, counted: Bool[Tensor, "b 1 H W"]) -> Float[Tensor, " b"]:
    return values.sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)


def point_loss(
    log_depth: Float[Tensor, "b 1 H W"], target: Float[Tensor, "b 1 H W"], *, gradient_weight: float, far_weight: float
) -> Float[Tensor, " b"]:
    """Loss of single answers, up to the scale of each image."""
    answer = aligned(log_depth, target)
    error = distance(answer, target.nan_to_num(), ~target.isnan(), gradient_weight=gradient_weight)
    return error + far_weight * farness(answer, target)


def pair_loss(
    first: Float[Tensor, "b 1 H W"],
    second: Float[Tensor, "b 1 H W"],
    target: Float[Tensor, "b 1 H W"],
    *,
    gradient_weight: float,
    far_weight: float,
) -> Float[Tensor, " b"]:
    """Energy score of two members, up to the scale of each: mean distance to the target, minus half their own.

    It is smallest where members are spread as the truth is (Gneiting & Raftery 2007), so that their spread says how
    sure the model is, and a member need not be the blurred mean of what is possible.
    """
    valid = ~target.isnan()
    members = [aligned(member, target) for member in (first, second)]
    to_target = [distance(each, target.nan_to_num(), valid, gradient_weight=gradient_weight) for each in members]
    apart = distance(members[0], members[1], valid, gradient_weight=gradient_weight)
    far = farness(members[0], target) + farness(members[1], target)
    return 0.5 * (to_target[0] + to_target[1] - apart + far_weight * far)
