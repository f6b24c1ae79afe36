# SPDX-License-Identifier: Apache-2.0
"""Images that are computed row by row when asked for, and images that are kept, in strips of rows.

An image between two layers is a `Rows`: it gives any of its rows. A layer is a `Rows` that reads another `Rows`. It
asks that one for the rows that it needs. A `Kept` holds its rows; `keep` makes one. A request for rows of a chain of
layers computes only these rows, and the rows around them that the convolutions see.

Group normalization needs the mean and variance of the whole image. A `Moments` gathers them from strips: each strip's
own per channel, joined in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_STRIP_BYTES = 2**24  # of the widest image of a chain; more is not faster
_FEWEST_ROWS = 8  # of a strip: each 3 x 3 convolution of a chain computes two rows more
Strip = Float[Tensor, "b c r w"]


class Rows(ABC):
    """An image `[b channels height width]` that gives its rows."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, channels, height, width."""

    @property
    @abstractmethod
    def most_row_bytes(self) -> int:
        """Memory of a row of this image, or of what it is made of for one row, whichever is more."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Strip:
        """Rows `start` to `stop` (exclusive). The caller must not change them."""

    @abstractmethod
    def first_needed(self, start: int) -> dict[Kept, int]:
        """The first row of each kept image that the rows from `start` on are made of."""


class Moments:
    """Mean and mean square deviation of each channel of an image whose rows are seen once."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._deviation = torch.zeros((), dtype=torch.float64)

    def add(self, strip: Strip) -> None:
        """Joins a strip's moments with those of the strips before."""
        variance, mean = torch.var_mean(strip.float(), dim=(2, 3), correction=0)
        variance, mean = variance.cpu().double(), mean.cpu().double()  # some devices have no float64
        count = strip.shape[2] * strip.shape[3]
        share = count / (self._count + count)
        change = mean - self._mean
        self._deviation = (1 - share) * self._deviation + share * variance + share * (1 - share) * change**2
        self._mean = self._mean + share * change
        self._count += count

    def normalization(self, norm: nn.GroupNorm) -> tuple[Float[Tensor, "b c 1 1"], Float[Tensor, "b c 1 1"]]:
        """Factor and summand of each channel that make of the image what `norm` would."""
        means = self._mean.unflatten(1, (norm.num_groups, -1))
        mean = means.mean(2, keepdim=True)
        variance = (self._deviation.view_as(means) + (means - mean) ** 2).mean(2, keepdim=True)
        factor = norm.weight.cpu().double() * (variance + norm.eps).rsqrt().expand_as(means).flatten(1)
        summand = norm.bias.cpu().double() - mean.expand_as(means).flatten(1) * factor
        device = norm.weight.device
        return factor.float().to(device)[..., None, None], summand.float().to(device)[..., None, None]


class Kept(Rows):
    """An image whose rows are in memory, from the first that is still needed to the last that is made so far."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self._shape = shape
        self._strips: deque[tuple[int, Tensor]] = deque()
        self._made = 0

    @classmethod
    def of(cls, image: Float[Tensor, "b c h w"]) -> Kept:
        """The whole image."""
        batch, channels, height, width = image.shape
        kept = cls((batch, channels, height, width))
        kept.append(image)
        return kept

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self._shape

    @property
    def most_row_bytes(self) -> int:
        return 0 if not self._strips else row_bytes(self, self._strips[0][1].element_size())

    def append(self, strip: Strip) -> None:
        """Adds the next rows."""
        shared = strip.untyped_storage().nbytes() > strip.numel() * strip.element_size()
        self._strips.append((self._made, strip.clone() if shared else strip))
        self._made += strip.shape[2]

    def rows(self, start: int, stop: int) -> Strip:
        pieces = [
            strip[:, :, max(start - first, 0) : stop - first]
            for first, strip in self._strips
            if first < stop and start < first + strip.shape[2]
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)

    def first_needed(self, start: int) -> dict[Kept, int]:
        return {self: start}

    def free_before(self, row: int) -> None:
        """Frees the strips that end before this row."""
        while self._strips and self._strips[0][0] + self._strips[0][1].shape[2] <= row:
            self._strips.popleft()

    def whole(self) -> Float[Tensor, "b c h w"]:
        """The image in one piece."""
        return self.rows(0, self.shape[2])


@dataclass(frozen=True, eq=False)
class Activated(Rows):
    """An image after group normalization and an activation."""

    source: Rows
    factor: Float[Tensor, "b c 1 1"]
    summand: Float[Tensor, "b c 1 1"]
    activation: nn.Module

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.source.shape

    @property
    def most_row_bytes(self) -> int:
        return self.source.most_row_bytes

    def rows(self, start: int, stop: int) -> Strip:
        strip = self.source.rows(start, stop)
        # In float32 and rounded once, as torch normalizes images of half precision.
        normalized = torch.addcmul(self.summand, strip.float(), self.factor).to(strip.dtype)
        if isinstance(self.activation, nn.SiLU):
            return functional.silu(normalized, inplace=True)
        return self.activation(normalized)

    def first_needed(self, start: int) -> dict[Kept, int]:
        return self.source.first_needed(start)


@dataclass(frozen=True, eq=False)
class Convolved(Rows):
    """A convolution of an image, with zeros around it: `above`, `below`, `left` and `right` rows and columns."""

    source: Rows
    layer: nn.Conv2d
    above: int
    below: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, _, height, width = self.source.shape
        (high, wide), (down, across) = self.layer.kernel_size, self.layer.stride
        rows = (height + self.above + self.below - high) // down + 1
        columns = (width + self.left + self.right - wide) // across + 1
        return batch, self.layer.out_channels, rows, columns

    @property
    def most_row_bytes(self) -> int:
        rows = int(self.layer.stride[0])
        return max(row_bytes(self, self.layer.weight.element_size()), rows * self.source.most_row_bytes)

    def rows(self, start: int, stop: int) -> Strip:
        stride, height = int(self.layer.stride[0]), self.source.shape[2]
        first = stride * start - self.above
        last = stride * (stop - 1) - self.above + int(self.layer.kernel_size[0])
        strip = self.source.rows(max(first, 0), min(last, height))
        columns = self.left
        if self.left != self.right or first < 0 or last > height:
            strip = functional.pad(strip, (self.left, self.right, max(-first, 0), max(last - height, 0)))
            columns = 0
        return functional.conv2d(strip, self.layer.weight, self.layer.bias, self.layer.stride, (0, columns))

    def first_needed(self, start: int) -> dict[Kept, int]:
        return self.source.first_needed(max(0, int(self.layer.stride[0]) * start - self.above))


@dataclass(frozen=True, eq=False)
class Doubled(Rows):
    """An image with each pixel repeated in both directions, or a transposed convolution that doubles.

    Either layer brings row i of its input to rows 2i - 1 to 2i + 2 of its output, or to fewer of them.
    """

    source: Rows
    layer: nn.ConvTranspose2d | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        batch, channels, height, width = self.source.shape
        return batch, self.layer.out_channels if self.layer else channels, 2 * height, 2 * width

    @property
    def most_row_bytes(self) -> int:
        channels = self.source.shape[1]
        wide = 2 * self.source.most_row_bytes if self.layer is None else self.source.most_row_bytes
        return max(wide, wide * self.shape[1] // channels)

    def rows(self, start: int, stop: int) -> Strip:
        first, last = self._first(start), min(self.source.shape[2], stop // 2 + 1)
        strip = self.source.rows(first, last)
        if self.layer is None:
            doubled = functional.interpolate(strip, scale_factor=2.0, mode="nearest")
        else:
            doubled = self.layer(strip)
        return doubled[:, :, start - 2 * first : stop - 2 * first]

    def first_needed(self, start: int) -> dict[Kept, int]:
        return self.source.first_needed(self._first(start))

    def _first(self, start: int) -> int:
        return max(0, (start - 1) // 2)


@dataclass(frozen=True, eq=False)
class Sum(Rows):
    """The sum of two images, divided by a number."""

    first: Rows
    second: Rows
    divisor: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.first.shape

    @property
    def most_row_bytes(self) -> int:
        return max(self.first.most_row_bytes, self.second.most_row_bytes)

    def rows(self, start: int, stop: int) -> Strip:
        total = self.first.rows(start, stop) + self.second.rows(start, stop)
        return total if self.divisor == 1 else total / self.divisor

    def first_needed(self, start: int) -> dict[Kept, int]:
        needed = self.first.first_needed(start)
        for kept, row in self.second.first_needed(start).items():
            needed[kept] = min(row, needed.get(kept, row))
        return needed


def row_bytes(image: Rows, element_size: int) -> int:
    """Memory of one row of the image."""
    batch, channels, _, width = image.shape
    return batch * channels * width * element_size


def keep(*images: Rows, last_use: bool = True) -> list[Kept]:
    """The images, made side by side, strip by strip; all of one height.

    Args:
        images: what is computed and kept.
        last_use: whether nothing else needs what they are made of, so that it is freed on the way.
    """
    results = [Kept(image.shape) for image in images]
    for start, stop in _strips(images):
        for image, result in zip(images, results, strict=True):
            result.append(image.rows(start, stop))
        if last_use:
            needed: dict[Kept, int] = {}
            for image in images:
                for kept, row in image.first_needed(stop).items():
                    needed[kept] = min(row, needed.get(kept, row))
            for kept, row in needed.items():
                kept.free_before(row)
    return results


def moments(image: Rows) -> Moments:
    """Mean and deviation of each channel; what is not kept is computed for it and forgotten."""
    found = Moments()
    for start, stop in _strips([image]):
        found.add(image.rows(start, stop))
    return found


def _strips(images: Sequence[Rows]) -> Iterator[tuple[int, int]]:
    """Rows of strips of about `_STRIP_BYTES`, of nearly equal height."""
    height = images[0].shape[2]
    rows = max(_FEWEST_ROWS, _STRIP_BYTES // max(1, *(image.most_row_bytes for image in images)))
    number = -(-height // rows)
    bounds = [height * index // number for index in range(number + 1)]
    yield from pairwise(bounds)
