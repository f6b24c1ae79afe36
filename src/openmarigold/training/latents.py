# SPDX-License-Identifier: Apache-2.0
"""Latents of training views: computed once by the frozen autoencoder and kept on disk, or for each batch again.

Both ways give the same numbers: each view is encoded by itself, in float32, and rounded to half precision. The cache is
a folder of shards, which appear whole by a rename. So several processes can make it together, and an interrupted cache
is continued. `cache.json` records its sources.
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

from openmarigold.errors import CheckpointError, DataError
from openmarigold.files import make_directory, write_atomically
from openmarigold.modalities.modality import latent_valid_mask
from openmarigold.networks.backbone import Vae, encode_to_latent, hash_of_weights, latent_channels
from openmarigold.printing import quoted_logger
from openmarigold.text_files import DamagedTextError, parse_json, with_current_keys
from openmarigold.training.packed import SUFFIX, PackedRows, write_packed
from openmarigold.training.settings import DEFAULT_MODALITY
from openmarigold.training.views import Mixture, View

LOGGER = quoted_logger(__name__)
SHARD_BYTES = 2**23  # about so much is lost when making a cache is interrupted
LOG_PERIOD = 20  # shards between progress lines
CACHE_FILE = "cache.json"
# Not part of the fingerprint: a state holds the first by itself, and the second in its recipe.
_BYTES, _MODALITY = "the data's bytes", "the modality"

_PACKED_FIELDS = ("target",)

TargetForm = Literal["none", "latents", "maps"]
"""The needed form of the targets: none, their latents, or the pixels themselves."""
# Fields of the caches of version 0.1, and what they are called now.
_OLD_FIELDS = {"depth_latent": "target_latent", "norm_depth": "target", "depth_range": "bounds"}


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
    ) -> None:
        """Open the cache and encode its missing shards.

        Args:
            vae: the frozen autoencoder; moved to the accelerator's device.
            cache_dir: where latents are kept; None encodes each batch anew.
            num_workers: threads that read views while others are encoded.

        Raises:
            CheckpointError: the cache was made from other sources.
            DataError: a sample is damaged, or no view of a source has a valid target.
            OutputError: the cache cannot be written.
        """
        self.mixture, self._form = mixture, target_form
        self._vae: Any = vae.requires_grad_(False).to(accelerator.device)
        self._device = accelerator.device
        self._row = [self._row_type(number) for number in range(len(mixture.sources))]
        described = self._described(vae)
        self.fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        described |= {_BYTES: mixture.sha256, _MODALITY: mixture.modality.name}
        self._folder = cache_dir
        if cache_dir is not None:
            self._open_cache(cache_dir, described, accelerator, num_workers)
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
            return encode_to_latent(self._vae, picture[None])[0].half().float()

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
        values = values.astype(np.float16).astype(np.float32)
        return {"target": values, "bounds": np.array(bounds, dtype=np.float32)}

    def _target_shape(self, height: int, width: int) -> tuple[int, int, int, int]:
        modality = self.mixture.modality
        return modality.num_targets, modality.decoded_channels, height, width

    def _row_type(self, number: int) -> np.dtype:
        """The stored fields of a view of a source."""
        height, width = self.mixture.size_of(number)
        latent = (latent_channels(self._vae), height // 8, width // 8)
        fields: list[Any] = [("rgb_latent", np.float16, latent)]
        if self._form == "latents":
            targets = (self.mixture.modality.num_targets * latent[0], *latent[1:])
            fields += [("target_latent", np.float16, targets), ("valid_mask", np.bool_, (1, *latent[1:]))]
        elif self._form == "maps":
            fields += [("target", np.float16, self._target_shape(height, width)), ("bounds", np.float32, (2,))]
        return np.dtype(fields)

    def _described(self, vae: Vae) -> dict[str, Any]:
        """Everything that latents depend on; shares, weights and noise only affect which are drawn."""
        config = self.mixture.config
        names = ("min_scale", "aspect_jitter", "mirror", "appearance", "num_variants", "invalid", "invalid_is_far")
        settings = {f"data.{name}": getattr(config, name) for name in (*names, "min_depth")}
        settings |= self.mixture.described_limits
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

    def _open_cache(
        self, folder: Path, described: Mapping[str, Any], accelerator: Accelerator, num_workers: int
    ) -> None:
        if accelerator.is_main_process:
            _claim(folder, described)
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:  # on another node the folder may be another one
            _claim(folder, described)
        shards = [
            (number, shard)
            for number in range(len(self.mixture.sources))
            for shard in range(-(-int(np.diff(self.mixture.starts)[number]) // self._views_in_shard(number)))
        ]
        mine = shards[accelerator.process_index :: accelerator.num_processes]
        missing = [place for place in mine if not any(path.is_file() for path in self._places_of(*place))]
        if missing:
            self._make(missing, num_workers)
        accelerator.wait_for_everyone()
        self._shards: dict[tuple[int, int], np.ndarray | PackedRows] = {}

    def _make(self, missing: list[tuple[int, int]], num_workers: int) -> None:
        LOGGER.info("encoding %d shards of views", len(missing))
        views = [(place, index) for place in missing for index in self._views_of(*place)]
        rows: list[np.ndarray] = []
        read = _ahead(self._read, [index for _, index in views], num_workers=num_workers)
        done = 0
        for (place, index), pictures in zip(views, read, strict=True):
            batch = {
                name: torch.from_numpy(np.asarray(value))[None].to(self._device) for name, value in pictures.items()
            }
            row = np.zeros((), dtype=self._row[place[0]])
            for name, value in self.encoded(batch).items():
                row[name] = value[0].cpu().numpy()
            rows.append(row)
            if index == self._views_of(*place)[-1]:
                shard, rows = np.stack(rows), []
                self._write(place, shard)
                done += 1
                if done % LOG_PERIOD == 0 or done == len(missing):
                    LOGGER.info("encoded %d of %d shards", done, len(missing))

    def _write(self, place: tuple[int, int], shard: np.ndarray) -> None:
        plain, packed = self._places_of(*place)
        make_directory(plain.parent)
        if self._form == "maps":
            write_packed(packed, shard, _PACKED_FIELDS)
            return
        digest = hashlib.sha256(shard.tobytes()).hexdigest()
        write_atomically(_sum_of(plain), lambda temporary: temporary.write_text(digest))
        write_atomically(plain, lambda temporary: _write_npy(temporary, shard))

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

    def _views_in_shard(self, number: int) -> int:
        return max(1, SHARD_BYTES // self._row[number].itemsize)

    def _views_of(self, number: int, shard: int) -> range:
        start, stop = (int(place) for place in self.mixture.starts[number : number + 2])
        count = self._views_in_shard(number)
        return range(start + shard * count, min(start + (shard + 1) * count, stop))

    def _places_of(self, number: int, shard: int) -> tuple[Path, Path]:
        """Where a shard lies: as it is, for latents and for maps of earlier versions, or packed."""
        assert self._folder is not None
        plain = self._folder / self.mixture.sources[number].name / f"shard-{shard:05d}.npy"
        return plain, plain.with_suffix(SUFFIX)

    def _kept(self, index: int) -> dict[str, np.ndarray]:
        number = self.mixture.source_of(index)
        shard, row = divmod(index - int(self.mixture.starts[number]), self._views_in_shard(number))
        place = (number, shard)
        if place not in self._shards:
            plain, packed = self._places_of(*place)
            count, dtype = len(self._views_of(*place)), self._row[number]
            self._shards[place] = (
                _open_npy(plain, dtype, count) if plain.is_file() else _open_packed(packed, dtype, count)
            )
        kept = self._shards[place][row]
        names = kept.dtype.names or ()
        return {name: _widened(kept[name]) for name in names}


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


def _claim(folder: Path, described: Mapping[str, Any]) -> None:
    """Record the sources of a new cache, or check those of an existing one."""
    path = folder / CACHE_FILE
    if not path.is_file():
        make_directory(folder)
        text = json.dumps(described, indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    try:
        kept = with_current_keys(parse_json(path.read_bytes()))
    except (OSError, DamagedTextError):
        kept = None
    expected = parse_json(json.dumps(described))
    if not isinstance(kept, dict):
        raise CheckpointError(f"{path} cannot be read; remove {folder} to encode again, or choose another --cache-dir")
    kept.setdefault(_BYTES, expected.get(_BYTES))  # caches of earlier versions have neither this nor the next:
    kept.setdefault(_MODALITY, DEFAULT_MODALITY)
    changed = sorted(key for key in kept.keys() | expected.keys() if kept.get(key) != expected.get(key))
    if changed:
        raise CheckpointError(
            f"the latents in {folder} were made with another state of {', '.join(changed)}; "
            "remove that folder to encode again, or choose another --cache-dir"
        )


def _sum_of(path: Path) -> Path:
    """Where the SHA-256 of a shard's rows stands; written before the shard."""
    return path.with_suffix(".sha256")


def _write_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to the temporary name
        np.save(file, array, allow_pickle=False)


def _open_packed(path: Path, dtype: np.dtype, count: int) -> PackedRows:
    try:
        return PackedRows(path, dtype, _PACKED_FIELDS, count)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not what was kept there; remove it, and it will be encoded again") from error


def _open_npy(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it, and it will be encoded again") from error
    names = [_OLD_FIELDS.get(name, name) for name in array.dtype.names or ()]
    if names == list(dtype.names or ()) and array.dtype.itemsize == dtype.itemsize:
        array = array.view(dtype)  # the same numbers under older names
    stated = _sum_of(path)  # caches of earlier versions have none
    damaged = stated.is_file() and stated.read_text(errors="replace") != hashlib.sha256(array.tobytes()).hexdigest()
    if damaged or array.dtype != dtype or array.shape != (count,):
        raise DataError(f"{path} is not what was kept there; remove it, and it will be encoded again")
    return array
