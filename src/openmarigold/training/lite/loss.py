# SPDX-License-Identifier: Apache-2.0
"""Losses of decoded maps: errors, errors of differences, and the energy score of a pair of members.

A `Comparison` defines how two maps of one kind are compared: log depth up to the scale of each image or as it is,
normals by angle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from openmarigold.training.loss import angles

SCALES = (1, 2, 4, 8, 16)


def aligned(log_depth: Float[Tensor, "b 1 H W"], target: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b 1 H W"]:
    """`log_depth` plus a constant for each image, so that its mean over the valid (not NaN) pixels is the target's."""
    valid = ~target.isnan()
    count = valid.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    difference = torch.where(valid, log_depth - target.nan_to_num(), 0.0)
    return log_depth - difference.sum(dim=(1, 2, 3), keepdim=True) / count


def distance(
    first: Float[Tensor, "b c H W"],
    second: Float[Tensor, "b c H W"],
    valid: Bool[Tensor, "b 1 H W"],
    *,
    gradient_weight: float | Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Mean absolute difference of two maps, plus that of their differences over 1 to 16 pixels, of each image.

    The second part is the mean over distances and directions, as in MegaDepth (Li & Snavely 2018), at full size.
    Channels are summed.
    """
    difference = torch.where(valid, first - second, 0.0)
    found = _mean(difference.abs(), valid)
    if isinstance(gradient_weight, float) and not gradient_weight:
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


def angular_distance(
    first: Float[Tensor, "b 3 H W"],
    second: Float[Tensor, "b 3 H W"],
    valid: Bool[Tensor, "b 1 H W"],
    *,
    gradient_weight: float | Float[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Mean angle [rad] between the vectors of two maps, plus their `distance` as they are, of each image.

    The angle does not see the vectors' lengths, and decoded vectors are cut to [-1, 1] in prediction. The distance
    holds them near 1.
    """
    return _mean(angles(first, second, valid), valid) + distance(first, second, valid, gradient_weight=gradient_weight)


def averted(normals: Float[Tensor, "b 3 H W"], target: Float[Tensor, "b 3 H W"]) -> Float[Tensor, " b"]:
    """Angle [rad] to the camera of pixels whose normal is unknown, such as sky: their sum by the number of all pixels.

    Not by their own number: a few pixels at contours, which are unknown too, would count as much as a whole sky.
    """
    unknown = target.isnan().any(dim=1, keepdim=True)
    towards = normals.new_tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand_as(normals)
    return angles(normals, towards, unknown).mean(dim=(1, 2, 3))


@dataclass(frozen=True)
class Comparison:
    """How a prediction is compared with its target, whose unknown pixels are NaN."""

    align: Callable[[Tensor, Tensor], Tensor]
    """Aligns a prediction to the target: removes the difference that the prediction is not known up to."""
    distance: Callable[..., Tensor]
    """Distance of two maps for each image, over the pixels where a mask is True."""
    excess: Callable[[Tensor, Tensor], Tensor]
    """Error of each image's prediction in unknown pixels, compared with their wanted value."""


UP_TO_SCALE = Comparison(aligned, distance, farness)
"""Comparison of log depth, up to a constant for each image."""
ABSOLUTE = Comparison(lambda answer, target: answer, distance, farness)
"""Comparison of log depth in meters."""
BY_ANGLE = Comparison(lambda answer, target: answer, angular_distance, averted)
"""Comparison of normals."""


def _mean(values: Tensor, counted: Bool[Tensor, "b 1 H W"]) -> Float[Tensor, " b"]:
    return values.sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)


def point_loss(
    answer: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    *,
    gradient_weight: float | Float[Tensor, " b"],
    far_weight: float | Float[Tensor, " b"],
    by: Comparison = UP_TO_SCALE,
) -> Float[Tensor, " b"]:
    """Loss of single answers."""
    answer = by.align(answer, target)
    error = by.distance(answer, target.nan_to_num(), _known(target), gradient_weight=gradient_weight)
    return error + far_weight * by.excess(answer, target)


def pair_loss(
    first: Float[Tensor, "b c H W"],
    second: Float[Tensor, "b c H W"],
    target: Float[Tensor, "b c H W"],
    *,
    gradient_weight: float | Float[Tensor, " b"],
    far_weight: float | Float[Tensor, " b"],
    by: Comparison = UP_TO_SCALE,
) -> Float[Tensor, " b"]:
    """Energy score of two members: mean distance to the target, minus half their own.

    It is smallest where members are spread as the truth is (Gneiting & Raftery 2007), so that their spread says how
    sure the model is, and a member need not be the blurred mean of what is possible.
    """
    valid = _known(target)
    members = [by.align(member, target) for member in (first, second)]
    to_target = [by.distance(each, target.nan_to_num(), valid, gradient_weight=gradient_weight) for each in members]
    apart = by.distance(members[0], members[1], valid, gradient_weight=gradient_weight)
    far = by.excess(members[0], target) + by.excess(members[1], target)
    return 0.5 * (to_target[0] + to_target[1] - apart + far_weight * far)


def _known(target: Float[Tensor, "b c H W"]) -> Bool[Tensor, "b 1 H W"]:
    return ~target.isnan().any(dim=1, keepdim=True)
