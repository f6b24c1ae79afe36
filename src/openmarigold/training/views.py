# SPDX-License-Identifier: Apache-2.0
"""Training views, and the choice of those in a micro-batch.

A view is one variant of one sample, a function of (seed, its number) alone. The choice of views for a micro-batch is a
function of (seed, step, micro-step). No order is stored: a resumed run, and any number of threads, compute the same
batches.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

from openmarigold.data.augmentation import random_appearance, random_view
from openmarigold.data.remote import DataFolder
from openmarigold.data.sources import Sample, Source
from openmarigold.errors import DataError, RecipeError
from openmarigold.modalities import DEPTH
from openmarigold.modalities.modality import Modality, Target
from openmarigold.seeding import generator_for
from openmarigold.training.settings import DataConfig
from openmarigold.training.starting import shape_distance


@dataclasses.dataclass(frozen=True)
class BatchSlice:
    """One process's part of micro-batch number `micro_step` of a step: `rows` of its `group_size` samples."""

    step: int
    micro_step: int
    group_size: int
    rows: slice


@dataclasses.dataclass(frozen=True)
class View:
    """What the networks see of a sample.

    Attributes:
        rgb: color, [-1, 1].
        target: None for a photo, and for maps without a valid pixel or of a single plane.
        valid_mask: pixels of `target` that count; all False without it.
    """

    rgb: Float32[np.ndarray, "3 H W"]
    target: Target | None
    valid_mask: Bool[np.ndarray, "H W"]


class Mixture:
    """The views of several sources, and the order in which training uses them."""

    def __init__(self, config: DataConfig, *, data_dir: DataFolder, seed: int, modality: Modality = DEPTH) -> None:
        """Opens the sources; reads no samples yet.

        Raises:
            DataError: a source is missing or damaged, or has other maps than the modality.
            RecipeError: a kind that the data does not have, or weights that leave nothing.
        """
        self.config, self.seed, self.modality = config, seed, modality
        parents = [
            Source(
                name,
                data_dir,
                num_samples=config.num_samples.get(name),
                held_out=config.held_out or 0.0,
                seed=seed,
            )
            for name in config.sources
        ]
        for source in parents:
            if not len(source):
                raise DataError(f"source {source.name} holds no samples; prepare it again, or leave it out")
            lacking = [kind.name for kind in modality.maps if source.maps and kind.name not in source.maps]
            if lacking:
                raise DataError(
                    f"source {source.name} has the maps {', '.join(source.maps)}, and {modality.name} needs "
                    f"{', '.join(lacking)}; leave it out, or train another modality"
                )
        self.held_out = [source.held_out for source in parents]
        """The part of each source that `config.held_out` leaves out."""
        self.sources, self._sizes, self.shares = _in_buckets(config, parents)
        kinds = {kind for source in parents for kind in source.all_kinds}
        for name in ("max_depth", "kind_weights", "valid_range"):
            known = kinds | set(config.sources) if name == "valid_range" else kinds
            unknown = sorted(getattr(config, name).keys() - known)
            if unknown:
                raise RecipeError(
                    f"data.{name}: kind {unknown[0]!r} is not known; the data has {', '.join(sorted(known))}"
                )
        self._source_shares = np.cumsum(np.array(self.shares))
        self.starts = np.cumsum([0, *(len(source) for source in self.sources)]) * config.num_variants
        # Weights of kinds need mixture "sample", which has no buckets.
        self._view_shares = np.cumsum(_view_shares(config, self.sources) if config.mixture == "sample" else [1.0])
        self._orders = lru_cache(maxsize=2 * len(self.sources))(self._order)
        self._turns: tuple[int, np.ndarray, np.ndarray] = (0, np.empty(0, int), np.empty(0, int))

    @property
    def contents(self) -> str:
        """Changes when the data is made again or another source comes first."""
        return " ".join(f"{source.name}:{source.contents}" for source in self.sources)

    @property
    def sha256(self) -> str:
        """Changes with any byte of the data."""
        return " ".join(f"{source.name}:{source.sha256}" for source in self.sources)

    def check_batch(self, samples: int) -> None:
        """Passes if every source has enough views for a micro-batch of so many samples.

        Raises:
            DataError: one has fewer.
        """
        for source in self.sources:
            views = len(source) * self.config.num_variants
            if views < samples:
                raise DataError(
                    f"source {source.name} has {len(source)} samples, {views} views, and a micro-batch takes "
                    f"{samples}; give more data, or lower optimization.batch_size or micro_batch_size"
                )

    def choose(self, what: str, share: BatchSlice, batch_size: int) -> tuple[np.random.Generator, np.ndarray, slice]:
        """Which views make up a micro-batch.

        Returns:
            The generator for all other draws, already used for the choice; the numbers of the views that are drawn
            together (of the whole step with mixture "sample", otherwise of the micro-batch); and the rows of this
            process. The number of processes changes no sample: micro-batches are numbered over all of them.
        """
        if self.config.mixture == "sample":
            rng = generator_for(self.seed, what, share.step)
            offset = share.micro_step * share.group_size
            rows = slice(offset + share.rows.start, offset + share.rows.stop)
            return rng, self._draw(rng, batch_size), rows
        rng = generator_for(self.seed, f"{what} micro-batch", share.step, share.micro_step)
        turn = share.step * (batch_size // share.group_size) + share.micro_step
        number, earlier = self._turn(turn)
        return rng, self._next(rng, number, earlier * share.group_size, share.group_size), share.rows

    def _draw(self, rng: np.random.Generator, count: int) -> Int[np.ndarray, " count"]:
        if self.config.kind_weights:
            return np.searchsorted(self._view_shares, rng.random(count) * self._view_shares[-1], side="right")
        chosen = rng.choice(len(self.shares), size=count, p=np.array(self.shares))
        return rng.integers(self.starts[chosen], self.starts[chosen + 1])

    def _turn(self, turn: int) -> tuple[int, int]:
        """Source of micro-batch number `turn`, and how many earlier ones had the same."""
        if turn >= self._turns[0]:
            total = 1024
            while total <= turn:
                total *= 2  # a longer draw begins with the same entries
            draws = generator_for(self.seed, "source of a micro-batch").random(total)
            chosen = np.minimum(np.searchsorted(self._source_shares, draws, side="right"), len(self.sources) - 1)
            earlier = np.zeros(total, dtype=np.int64)
            for number in range(len(self.sources)):
                mine = chosen == number
                earlier[mine] = np.arange(mine.sum())
            self._turns = (total, chosen, earlier)
        _, chosen, earlier = self._turns
        return int(chosen[turn]), int(earlier[turn])

    def _next(self, rng: np.random.Generator, number: int, position: int, count: int) -> Int[np.ndarray, " count"]:
        """Views number `position` and on of a source that is gone through again and again."""
        size, variants = len(self.sources[number]), self.config.num_variants
        places = position + np.arange(count)
        samples = np.array([self._orders(number, int(place // size))[place % size] for place in places])
        return self.starts[number] + samples * variants + rng.integers(variants, size=count)

    def _order(self, number: int, epoch: int) -> np.ndarray:
        return generator_for(self.seed, "order", number, epoch).permutation(len(self.sources[number]))

    def source_of(self, index: int) -> int:
        """Number of the source that view number `index` belongs to."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def size_of(self, number: int) -> tuple[int, int]:
        """Height and width of the views of a source [px]."""
        return self._sizes[number]

    def view(self, index: int) -> View:
        """View number `index`.

        Raises:
            DataError: its sample is damaged.
        """
        config, (number, sample_index, variant) = self.config, self._place(index)
        source = self.sources[number]
        rng = generator_for(self.seed, "view", index)
        if config.draws == "sample":
            rng = generator_for(self.seed, f"view of {source.keys[sample_index]}", variant)
        mirrored = bool(variant % 2) if config.mirror == "both" else None
        if config.resampling == "published":
            by_chance = bool(rng.random() < 0.5)
            return self._published(source.read(sample_index), number, by_chance if mirrored is None else mirrored)
        sample = self._vary(number, sample_index, rng, mirrored=mirrored)
        rgb = random_appearance(sample.rgb, rng, strength=config.appearance)
        return self._as_view(sample, rgb, source)

    def identity(self, index: int) -> tuple[Any, ...]:
        """What view number `index` depends on, besides the settings of all views: its sample above all.

        Equal views of two mixtures have equal ones, unless chance had a part in them and `config.draws` is "number".
        """
        config, (number, sample_index, variant) = self.config, self._place(index)
        source = self.sources[number]
        identity = source.identity(sample_index, (kind.name for kind in self.modality.maps))
        if config.invalid_is_far and not self._learns_far(source):
            identity = (*identity, "unknown is masked")  # earlier versions kept rows in which it counted as far
        limits = self.limits(source.kinds[sample_index], source)
        if self._is_plain(source, sample_index, self.size_of(number)):
            return (*identity, *map(str, limits), variant % 2)
        return (*identity, *map(str, limits), variant, self.seed, *([index] if config.draws == "number" else []))

    def _is_plain(self, source: Source, sample_index: int, size: tuple[int, int]) -> bool:
        """Whether a sample's views have no random variation."""
        config = self.config
        if config.mirror != "both" or (config.min_scale, config.aspect_jitter, config.appearance) != (1.0, 0.0, 0.0):
            return False
        if config.resampling == "published":
            return True
        if not source.has_sizes:
            return False
        height, width = source.size_of(sample_index)
        return height * size[1] == width * size[0]  # nothing is cut off

    def _place(self, index: int) -> tuple[int, int, int]:
        """Source, sample and variant of a view."""
        number = self.source_of(index)
        return number, *divmod(index - int(self.starts[number]), self.config.num_variants)

    def _published(self, sample: Sample, number: int, mirrored: bool) -> View:
        """The view of Marigold's code: mirrored, normalized, then shrunk by picking the pixels nearest to centers."""
        maps, rgb = sample.maps, sample.rgb
        if mirrored:
            maps = self.modality.mirror(maps) if self._has_maps(sample) else maps
            rgb = rgb[:, ::-1]
        whole = self._as_view(Sample(rgb=rgb, maps=maps, kind=sample.kind), rgb, self.sources[number])
        sides = zip(self.size_of(number), rgb.shape[:2], strict=True)
        rows, columns = (((np.arange(count) + 0.5) * side / count).astype(np.intp) for count, side in sides)
        target = whole.target
        if target is not None:
            target = dataclasses.replace(target, values=target.values[:, :, rows][..., columns])
        return View(whole.rgb[:, rows][..., columns], target, whole.valid_mask[rows][:, columns])

    def plain_view(self, source: Source, index: int) -> View:
        """The whole picture number `index` of a source, cut only to the shape of its views, and not varied.

        Raises:
            DataError: the sample is damaged.
        """
        read = source.read(index)
        height, width, _ = read.rgb.shape
        sample = random_view(
            read,
            generator_for(self.seed, "plain view", index),
            modality=self.modality,
            size=_bucket_of(self.config, source.name, (height, width)),
            min_scale=1.0,
            aspect_jitter=0.0,
            mirrored=False,
        )
        return self._as_view(sample, sample.rgb, source)

    def _as_view(self, sample: Sample, rgb: np.ndarray, source: Source) -> View:
        config = self.config
        image = np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / 127.5 - 1.0
        nothing = View(image, None, np.zeros(image.shape[1:], dtype=bool))
        valid_mask = self.valid_mask(sample, source)
        if valid_mask is None:
            return nothing
        try:
            target = self.modality.to_target(sample.maps, valid_mask, config.invalid)
        except DataError:  # no valid target, such as a single plane
            return nothing
        return View(image, target, np.ones_like(valid_mask) if self._learns_far(source) else valid_mask)

    @property
    def masked_sources(self) -> list[str]:
        """The sources whose pixels without depth are masked in spite of `data.invalid_is_far`."""
        return [source.name for source in self.sources if self.config.invalid_is_far and not source.unknown_is_far]

    def _learns_far(self, source: Source) -> bool:
        """Whether pixels without depth are learned as far; in a source where they may be anything they never are."""
        return self.config.invalid_is_far and source.unknown_is_far

    def random_sample(self, rng: np.random.Generator) -> tuple[Sample, Bool[np.ndarray, "h w"] | None]:
        """A view of a random sample of a random source, without changes of color, and which of its pixels count."""
        number = min(int(np.searchsorted(self._source_shares, rng.random(), side="right")), len(self.sources) - 1)
        sample = self._vary(number, int(rng.integers(len(self.sources[number]))), rng)
        return sample, self.valid_mask(sample, self.sources[number])

    def valid_mask(self, sample: Sample, source: Source) -> Bool[np.ndarray, "h w"] | None:
        """Pixels whose maps count, within `limits`; None for a photo."""
        if not self._has_maps(sample):
            return None
        return self.modality.valid_mask(sample.maps, self.limits(sample.kind, source))

    def _has_maps(self, sample: Sample) -> bool:
        return all(kind.name in sample.maps for kind in self.modality.maps)

    def limits(self, kind: str, source: Source) -> tuple[float, float]:
        """Values that count in samples of a kind, exclusive (depth in meters).

        They lie in the range of the source, if it states one, in the recipe's, and where the recipe states none below
        what is usual for the kind.
        """
        config = self.config
        low, high = source.valid_range
        named = [config.valid_range[name] for name in (source.origin, kind) if name in config.valid_range]
        for lower, upper in ((config.min_depth, np.inf), *named):
            low, high = max(low, lower), min(high, upper)
        if kind in config.max_depth:
            return low, min(high, config.max_depth[kind])
        return low, high if named or config.caps is False else min(high, self.modality.usual_limits.get(kind, np.inf))

    @property
    def described_limits(self) -> dict[str, Any]:
        """The settings that `limits` depends on besides the sources, for the description of stored latents. If no cap
        has an effect, it equals the description of versions without caps.
        """
        config = self.config
        kinds = {kind for source in self.sources for kind in source.all_kinds}
        named = config.max_depth.keys() | config.valid_range.keys()
        usual = {} if config.caps is False else self.modality.usual_limits
        caps = {kind: usual[kind] for kind in sorted(kinds & usual.keys() - named)}
        ranges = {"data.valid_range": config.valid_range} if config.valid_range else {}
        return {"data.max_depth": {**config.max_depth, **caps}, **ranges}

    def _vary(
        self, number: int, sample_index: int, rng: np.random.Generator, *, mirrored: bool | None = None
    ) -> Sample:
        config = self.config
        return random_view(
            self.sources[number].read(sample_index),
            rng,
            modality=self.modality,
            size=self.size_of(number),
            min_scale=config.min_scale,
            aspect_jitter=config.aspect_jitter,
            mirrored=mirrored,
        )


def _bucket_of(config: DataConfig, source: str, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the views of a picture of a source."""
    if not config.buckets or source in config.sizes:
        return config.size_of(source)
    return min(config.buckets, key=lambda bucket: shape_distance(bucket, size))


def _in_buckets(config: DataConfig, parents: list[Source]) -> tuple[list[Source], list[tuple[int, int]], list[float]]:
    """The sources, those with buckets in parts of one size each; the size of views and the share of samples of each."""
    total = np.array(list(config.sources.values())).sum()
    sources: list[Source] = []
    sizes: list[tuple[int, int]] = []
    shares: list[float] = []
    for parent in parents:
        share = float(config.sources[parent.name] / total)
        if not config.buckets or parent.name in config.sizes:
            sources, sizes, shares = [*sources, parent], [*sizes, config.size_of(parent.name)], [*shares, share]
            continue
        found = [_bucket_of(config, parent.name, (height, width)) for height, width in parent.sizes.tolist()]
        for bucket in dict.fromkeys(config.buckets):
            members = np.flatnonzero([size == bucket for size in found])
            if len(members):
                sources.append(parent.part(members, f"{bucket[0]}x{bucket[1]}"))
                sizes.append(bucket)
                shares.append(share * len(members) / len(parent))
    return sources, sizes, shares


def _view_shares(config: DataConfig, sources: list[Source]) -> np.ndarray:
    """Probability of each view, up to a factor, in the order of their numbers."""
    shares = []
    for source in sources:
        weights = np.array([config.kind_weights.get(kind, 1.0) for kind in source.kinds])
        if weights.sum() == 0:
            drawn = ", of which num_samples drew a part" if source.name in config.num_samples else ""
            raise RecipeError(
                f"kind_weights leaves nothing of source {source.name}{drawn}; give one of its kinds a weight"
            )
        shares.append(np.repeat(weights, config.num_variants) * config.sources[source.name] / weights.sum())
    return np.concatenate(shares)
