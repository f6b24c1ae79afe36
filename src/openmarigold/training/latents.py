# SPDX-License-Identifier: Apache-2.0
"""Latents of training views: computed once by the frozen autoencoder and kept on disk, or for each batch again.

Both ways give the same numbers: each view is encoded by itself, in float32, and rounded to half precision (or not, as
the recipe says). A kept row is named by all that it depends on: the sample's bytes, what was done to it, and the
autoencoder. So runs share the rows of the samples that they have in common, several processes encode together, and an
interrupted encoding is continued. Rows that other data or settings need are added to the same folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from openmarigold.errors import DataError, OutputError
from openmarigold.files import make_directory, write_atomically
from openmarigold.modalities.modality import latent_valid_mask
from openmarigold.networks.backbone import Vae, encode_to_latent, hash_of_weights, latent_channels
from openmarigold.printing import quoted_logger
from openmarigold.training.earlier_latents import EarlierLatents
from openmarigold.training.packed import RowStore
from openmarigold.training.views import Mixture, View

LOGGER = quoted_logger(__name__)
SHARD_BYTES = 2**23  # about this much work is lost if the encoding is interrupted
LOG_PERIOD = 20  # shards between progress lines
_ABOUT_FILE = "about.json"
_VERSION = 1  # changes if the same settings make different rows

_VIEW_SETTINGS = ("min_scale", "aspect_jitter", "mirror", "appearance", "invalid", "invalid_is_far")
_LATER_SETTINGS = ("draws", "resampling", "latents")

TargetForm = Literal["none", "latents", "maps"]
"""The needed form of the targets: none, their latents, or the pixels themselves."""


class Latents:
    """Batches of views as arrays, and their latents.

    Keys of a batch: `rgb_latent` [b C h w]; for form "latents" `target_latent` [b t·C h w] (each target encoded by
    itself) and `valid_mask` [b 1 h w] (cells that count; all False for a photo, whose `target_latent` is 0); for "maps"
    `target` [b t k H W] (NaN where a pixel does not count) and `bounds` [b 2] (what -1 and 1 stand for).
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        vae: Vae,
        cache_dir: Path | None,
        accelerator: Accelerator,
        target_form: TargetForm,
        num_workers: int = 2,
        check_inputs: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        """Open the cache and encode its missing shards.

        Args:
            vae: the frozen autoencoder; moved to the accelerator's device.
            cache_dir: where latents are kept; None encodes each batch anew.
            num_workers: threads that read views while others are encoded.
            check_inputs: called with hashes of all that latents are made of, before any are encoded; may refuse.

        Raises:
            DataError: a sample is damaged, or no view of a source has a valid target.
            OutputError: the cache cannot be written.
        """
        self.mixture, self._form = mixture, target_form
        self._vae: Any = vae.requires_grad_(False).to(accelerator.device)
        self._device = accelerator.device
        self._dtype = np.dtype(mixture.config.latents)
        self._row = [self._row_type(number) for number in range(len(mixture.sources))]
        described = self._described(vae)
        self.fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        if check_inputs is not None:
            check_inputs({"autoencoder or data": self.fingerprint, "the data's bytes": mixture.sha256})
        self._folder = cache_dir
        self._stores: dict[tuple[int, int], RowStore] = {}
        if cache_dir is not None:
            self._earlier = EarlierLatents(cache_dir, mixture, self._row, described)
            self._open_cache(cache_dir, accelerator, num_workers)
        self._check_targets()

    @property
    def num_views(self) -> int:
        """Views of all sources."""
        return int(self.mixture.starts[-1])

    @property
    def bytes_of_cache(self) -> int:
        """Size of the whole cache on disk, at most: maps are packed."""
        counts = np.diff(self.mixture.starts)
        return int(sum(count * row.itemsize for count, row in zip(counts, self._row, strict=True)))

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The views of those numbers as arrays: latents where there is a cache, else pictures for `encoded`."""
        if self._folder is None:
            return _stack([self._pictures(self.mixture.view(int(index))) for index in indices])
        return _stack([self._kept(int(index)) for index in indices])

    def uncached(self, views: list[View]) -> dict[str, np.ndarray]:
        """Views as arrays for `encoded`."""
        return _stack([self._pictures(view) for view in views])

    def encoded(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with latents, which are encoded if they are missing."""
        done = dict(batch)
        if "rgb_picture" in done:
            done["rgb_latent"] = torch.stack([self._encode(picture) for picture in done.pop("rgb_picture")])
        if "target_pictures" in done:
            views = done.pop("target_pictures")
            latents = torch.stack([torch.cat([self._encode(picture) for picture in pictures]) for pictures in views])
            # Pictures of zeros stand for no target.
            done["target_latent"] = latents * done.pop("has_target").view(-1, 1, 1, 1)
        return done

    def _encode(self, picture: Float[Tensor, "3 H W"]) -> Float[Tensor, "C h w"]:
        # By itself, so that its latent does not depend on its neighbors in a batch; and not under autocast.
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            latent = encode_to_latent(self._vae, picture[None])[0].float()
            return latent if self._dtype == np.float32 else latent.half().float()

    def _pictures(self, view: View) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {"rgb_picture": view.rgb}
        if self._form == "latents":
            nothing = np.zeros((self.mixture.modality.num_targets, *view.rgb.shape), dtype=np.float32)
            found["target_pictures"] = nothing if view.target is None else view.target.pictures
            found["has_target"] = np.array(view.target is not None, dtype=np.float32)
            found["valid_mask"] = latent_valid_mask(view.valid_mask)[None]
        return found | self._maps(view)

    def _maps(self, view: View) -> dict[str, np.ndarray]:
        if self._form != "maps":
            return {}
        values = np.full(self._target_shape(*view.valid_mask.shape), np.nan, dtype=np.float32)
        bounds = (0.0, 1.0)
        if view.target is not None:
            values, bounds = np.where(view.valid_mask, view.target.values, values), view.target.bounds
        # Rounded as they are kept, so that a cache changes nothing.
        values = values.astype(self._dtype).astype(np.float32)
        return {"target": values, "bounds": np.array(bounds, dtype=np.float32)}

    def _target_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        modality = self.mixture.modality
        return modality.num_targets, modality.decoded_channels, height, width

    def _row_type(self, number: int) -> np.dtype:
        """The stored fields of a view of a source."""
        height, width = self.mixture.size_of(number)
        latent = (latent_channels(self._vae), height // 8, width // 8)
        fields: list[Any] = [("rgb_latent", self._dtype, latent)]
        if self._form == "latents":
            targets = (self.mixture.modality.num_targets * latent[0], *latent[1:])
            fields += [("target_latent", self._dtype, targets), ("valid_mask", np.bool_, (1, *latent[1:]))]
        elif self._form == "maps":
            fields += [("target", self._dtype, self._target_shape(height, width)), ("bounds", np.float32, (2,))]
        return np.dtype(fields)

    def _described(self, vae: Vae) -> dict[str, Any]:
        """Everything that latents depend on. Shares, weights and noise are left out: they only affect which views are
        drawn.
        """
        config = self.mixture.config
        settings = {f"data.{name}": getattr(config, name) for name in (*_VIEW_SETTINGS, "num_variants", "min_depth")}
        for name in _LATER_SETTINGS:  # runs of earlier versions did without them
            if (value := getattr(config, name)) != getattr(type(config), name):
                settings[f"data.{name}"] = value
        settings |= self.mixture.described_limits
        if masked := self.mixture.masked_sources:  # earlier versions learned them as far
            settings["the sources that data.invalid_is_far leaves out"] = masked
        sources = [
            [source.name, source.contents, *config.size_of(source.name), *map(str, source.valid_range)]
            for source in self.mixture.sources
        ]
        return {
            "the autoencoder": hash_of_weights(vae),
            "the data": sources,
            **settings,
            "the objective": self._form,
            "the seed": self.mixture.seed,
        }

    # The cache

    def _open_cache(self, folder: Path, accelerator: Accelerator, num_workers: int) -> None:
        autoencoder = hash_of_weights(self._vae)
        for size in {self.mixture.size_of(number) for number in range(len(self.mixture.sources))}:
            self._stores[size] = self._open_store(folder, size, autoencoder)
        missing = [index for index in range(self.num_views) if not self._is_kept(index)]
        groups = list(self._grouped(missing))
        mine = groups[accelerator.process_index :: accelerator.num_processes]
        accelerator.wait_for_everyone()  # every process lists the existing rows before any process adds rows
        if mine:
            LOGGER.info("encoding %d of %d views", len(missing), self.num_views)
            self._make(mine, num_workers)
        accelerator.wait_for_everyone()
        for store in self._stores.values():
            store.scan()
        absent = next((index for index in missing if not self._is_kept(index)), None)
        if absent is not None:
            raise OutputError(
                f"{folder} lacks what another process has encoded; give a --cache-dir (or --output-dir) that all nodes "
                "see"
            )

    def _open_store(self, folder: Path, size: tuple[int, int], autoencoder: str) -> RowStore:
        """The rows of views of a size, in a folder that is named by what they have in common."""
        mixture = self.mixture
        about: dict[str, Any] = {
            "version": _VERSION,
            "autoencoder": autoencoder,
            "modality": mixture.modality.name,
            "objective": self._form,
            "size": list(size),
            **{name: getattr(mixture.config, name) for name in (*_VIEW_SETTINGS, *_LATER_SETTINGS)},
        }
        text = json.dumps(about, indent=2, sort_keys=True) + "\n"
        number = next(n for n in range(len(mixture.sources)) if mixture.size_of(n) == size)
        maps = ("target",) if self._form == "maps" else ()
        packed = maps if self._dtype == np.float16 else ()
        place = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        make_directory(place)
        write_atomically(place / _ABOUT_FILE, lambda partial: partial.write_text(text, encoding="utf-8"))
        return RowStore(place, self._row[number], packed, deflate=bool(maps))

    def _name(self, index: int) -> str:
        """The name of a view's row."""
        identity = json.dumps(self.mixture.identity(index), separators=(",", ":"))
        return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:32]

    def _store(self, index: int) -> RowStore:
        return self._stores[self.mixture.size_of(self.mixture.source_of(index))]

    def _is_kept(self, index: int) -> bool:
        return index in self._earlier or self._name(index) in self._store(index)

    def _grouped(self, indices: list[int]) -> Iterator[list[int]]:
        """Views in groups of one source, each a file of the cache."""
        for number in range(len(self.mixture.sources)):
            mine = [index for index in indices if self.mixture.source_of(index) == number]
            count = max(1, SHARD_BYTES // self._row[number].itemsize)
            yield from (mine[start : start + count] for start in range(0, len(mine), count))

    def _make(self, groups: list[list[int]], num_workers: int) -> None:
        read = _ahead(self._read, [index for group in groups for index in group], num_workers=num_workers)
        for done, group in enumerate(groups, start=1):
            rows = []
            for index, pictures in zip(group, read, strict=False):
                batch = {
                    name: torch.from_numpy(np.asarray(value))[None].to(self._device) for name, value in pictures.items()
                }
                row = np.zeros((), dtype=self._row[self.mixture.source_of(index)])
                for name, value in self.encoded(batch).items():
                    row[name] = value[0].cpu().numpy()
                rows.append(row)
            self._store(group[0]).add([self._name(index) for index in group], np.stack(rows))
            if done % LOG_PERIOD == 0 or done == len(groups):
                LOGGER.info("encoded %d of %d files of views", done, len(groups))

    def _read(self, index: int) -> dict[str, np.ndarray]:
        return self._pictures(self.mixture.view(index))

    def _check_targets(self) -> None:
        """Check that a view of each source has a valid target; usually the first one has."""
        if self._form == "none":
            return
        for number, source in enumerate(self.mixture.sources):
            start, stop = (int(place) for place in self.mixture.starts[number : number + 2])
            if not any(self._counts(index) for index in range(start, stop)):
                title = self.mixture.modality.title
                raise DataError(
                    f"source {source.name}: none of its {stop - start} views has valid {title}; check the unit of its "
                    f"{title}, data.min_depth and data.max_depth"
                )

    def _counts(self, index: int) -> bool:
        """Whether anything of a view's targets counts."""
        row = self._pictures(self.mixture.view(index)) if self._folder is None else self._kept(index)
        return bool((~np.isnan(row["target"])).any() if self._form == "maps" else row["valid_mask"].any())

    def _kept(self, index: int) -> dict[str, np.ndarray]:
        kept = self._earlier[index] if index in self._earlier else self._store(index)[self._name(index)]
        return {name: _widened(kept[name]) for name in kept.dtype.names or ()}


def _widened(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float32) if array.dtype == np.float16 else np.array(array)


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _ahead(make: Callable[[int], Any], items: list[int], *, num_workers: int) -> Iterator[Any]:
    """`make` of each item in order, computed some items ahead by threads."""
    depth = 4 * num_workers
    with ThreadPoolExecutor(num_workers) as executor:
        pending = [executor.submit(make, item) for item in items[:depth]]
        for number in range(len(items)):
            current = pending.pop(0)
            if number + depth < len(items):
                pending.append(executor.submit(make, items[number + depth]))
            yield current.result()
