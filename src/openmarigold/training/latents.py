# SPDX-License-Identifier: Apache-2.0
"""Latents of augmented views, computed once with the frozen autoencoder and kept on disk.

The encoder is most of a training step of a small U-Net, and it is frozen: each sample is encoded in `num_variants`
random variants, then reused. Half precision on disk; the folder is named after everything that the latents depend on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float32

from openmarigold.backbone import Vae, encode_to_latent, hash_of_weights, latent_channels
from openmarigold.data.augmentation import random_appearance
from openmarigold.data.sources import Source
from openmarigold.depth import depth_range, latent_valid_mask, normalise_depth
from openmarigold.errors import DataError, RecipeError
from openmarigold.files import write_atomically
from openmarigold.seeding import generator_for
from openmarigold.training.recipe import DataConfig
from openmarigold.training.views import Mixture

LOGGER = logging.getLogger(__name__)
CHUNK = 16  # views encoded at once
SAVE_PERIOD = 64  # chunks between progress marks


DepthForm = Literal["none", "latents", "maps"]


@dataclasses.dataclass(frozen=True)
class LatentBatch:
    """Some views: colour as latents, depth in the form that the cache was made for (`DepthForm`), None otherwise."""

    rgb: Float32[np.ndarray, "b C h w"]
    depth: Float32[np.ndarray, "b C h w"] | None = None
    valid_mask: Bool[np.ndarray, "b 1 h w"] | None = None
    """Cells of `depth` that count; all False for a photo, whose `depth` is 0."""
    norm_depth: Float32[np.ndarray, "b 1 H W"] | None = None
    """Normalised depth in [-1, 1], NaN where a pixel does not count."""
    depth_range: Float32[np.ndarray, "b 2"] | None = None
    """What -1 and 1 of `norm_depth` stand for [m]."""


@dataclasses.dataclass(frozen=True)
class _View:
    rgb: Float32[np.ndarray, "3 H W"]
    norm_depth: Float32[np.ndarray, "H W"] | None
    depth_range: tuple[float, float]
    valid_mask: Bool[np.ndarray, "H W"]


class LatentCache:
    """All variants of all samples of a recipe's sources, as latents in memory-mapped files."""

    def __init__(
        self,
        config: DataConfig,
        *,
        vae: Vae,
        seed: int,
        data_dir: Path,
        cache_dir: Path,
        accelerator: Accelerator,
        depth_form: DepthForm,
    ) -> None:
        """Opens the cache, encoding what is missing; an interrupted encoding continues where it was.

        Args:
            depth_form: what is kept of the depth: nothing, the latents of the normalised maps, or the maps themselves.
        """
        self._config, self._seed, self._form = config, seed, depth_form
        self._mixture = Mixture(config, data_dir=data_dir)
        sizes = [len(source) for source in self._mixture.sources]
        self._starts = np.cumsum([0, *sizes]) * config.num_variants
        self._cumulative = np.cumsum(_view_shares(config, self._mixture.sources))
        self.fingerprint = self._fingerprint(vae, accelerator)
        folder = cache_dir / self.fingerprint[:16]
        folder.mkdir(parents=True, exist_ok=True)
        progress_path = folder / "progress.json"
        # Before the first mark nothing in the files counts, and an interruption may have left them without a header.
        mode = "r+" if progress_path.is_file() else "w+"
        total, (height, width) = int(self._starts[-1]), config.size
        latent_shape = (latent_channels(vae), height // 8, width // 8)

        def array(name: str, dtype: type, *shape: int) -> np.ndarray:
            return np.lib.format.open_memmap(folder / f"{name}.npy", mode, dtype, (total, *shape))

        self._arrays = {"rgb": array("rgb", np.float16, *latent_shape)}
        if depth_form == "latents":
            self._arrays["depth"] = array("depth", np.float16, *latent_shape)
            self._arrays["valid_mask"] = array("valid_mask", np.bool_, 1, *latent_shape[1:])
        elif depth_form == "maps":
            self._arrays["norm_depth"] = array("norm_depth", np.float16, 1, height, width)
            self._arrays["depth_range"] = array("depth_range", np.float32, 2)
        self._encode_missing(vae.to(accelerator.device), progress_path, accelerator)

    def draw(self, rng: np.random.Generator, batch_size: int) -> LatentBatch:
        """Latents of `batch_size` random views, sources and kinds in the recipe's shares."""
        if self._config.kind_weights:
            index = np.searchsorted(self._cumulative, rng.random(batch_size) * self._cumulative[-1], side="right")
        else:
            shares = np.array(list(self._config.sources.values()))
            chosen = rng.choice(len(shares), size=batch_size, p=shares / shares.sum())
            index = rng.integers(self._starts[chosen], self._starts[chosen + 1])
        drawn = {name: array[index] for name, array in self._arrays.items()}
        return LatentBatch(**{n: a if a.dtype == np.bool_ else a.astype(np.float32) for n, a in drawn.items()})

    def _encode_missing(self, vae: Vae, progress_path: Path, accelerator: Accelerator) -> None:
        total = int(self._starts[-1])
        done = json.loads(progress_path.read_text())["encoded"] if progress_path.is_file() else 0
        if done >= total:
            return
        LOGGER.info("encoding %d views", total - done)
        starts = list(range(done, total, CHUNK))

        def views(start: int) -> list[_View]:
            return [self._view(index) for index in range(start, min(start + CHUNK, total))]

        with ThreadPoolExecutor(max_workers=1) as executor:
            pending = executor.submit(views, starts[0])
            for number, start in enumerate(starts):
                chunk = pending.result()
                if number + 1 < len(starts):
                    pending = executor.submit(views, starts[number + 1])
                stop = start + len(chunk)
                self._arrays["rgb"][start:stop] = self._encode(vae, [view.rgb for view in chunk], accelerator)
                if self._form == "latents":
                    self._keep_depth_latents(start, chunk, vae, accelerator)
                elif self._form == "maps":
                    self._arrays["norm_depth"][start:stop, 0] = [_marked_depth(view) for view in chunk]
                    self._arrays["depth_range"][start:stop] = [view.depth_range for view in chunk]
                if number % SAVE_PERIOD == SAVE_PERIOD - 1 or stop == total:
                    for array in self._arrays.values():
                        array.flush()  # pyright: ignore[reportAttributeAccessIssue]
                    text = json.dumps({"encoded": stop})
                    write_atomically(progress_path, lambda path, text=text: path.write_text(text))
                    LOGGER.info("encoded %d of %d views", stop, total)

    def _keep_depth_latents(self, start: int, chunk: list[_View], vae: Vae, accelerator: Accelerator) -> None:
        masks = [latent_valid_mask(view.valid_mask)[None] for view in chunk]
        self._arrays["valid_mask"][start : start + len(chunk)] = masks
        deep = [i for i, view in enumerate(chunk) if view.norm_depth is not None]
        if deep:
            maps = [np.repeat(view.norm_depth[None], 3, axis=0) for view in chunk if view.norm_depth is not None]
            self._arrays["depth"][start + np.array(deep)] = self._encode(vae, maps, accelerator)

    def _view(self, index: int) -> _View:
        """View number `index`: colour and normalised depth in [-1, 1]."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        sample_index = (index - int(self._starts[number])) // self._config.num_variants
        rng = generator_for(self._seed, "view", index)
        view = self._mixture.vary(self._mixture.sources[number].read(sample_index), rng)
        rgb = random_appearance(view.rgb, rng, strength=self._config.appearance)
        image = np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / 127.5 - 1.0
        nothing = np.zeros(self._config.size, dtype=bool)
        if view.depth is None:
            return _View(image, None, (0.0, 1.0), nothing)
        valid_mask = view.depth > 0
        try:
            near_far = depth_range(view.depth, valid_mask)
            norm_depth = normalise_depth(view.depth, valid_mask)
        except DataError:  # no depth at all, or a single plane: nothing to learn from
            return _View(image, None, (0.0, 1.0), nothing)
        counted = np.ones_like(valid_mask) if self._config.invalid_is_far else valid_mask
        return _View(image, norm_depth, near_far, counted)

    def _fingerprint(self, vae: Vae, accelerator: Accelerator) -> str:
        digest = hashlib.sha256(hash_of_weights(vae).encode())
        # Shares, weights and noise are applied when drawing; the views do not depend on them, only on the order.
        described = dataclasses.asdict(self._config)
        del described["kind_weights"], described["sources"], described["latent_noise"]
        sources = [[source.name, source.contents] for source in self._mixture.sources]
        where = [accelerator.device.type, accelerator.mixed_precision, self._form]
        digest.update(json.dumps([described, sources, where, self._seed], sort_keys=True).encode())
        return digest.hexdigest()

    @staticmethod
    def _encode(vae: Vae, images: list[np.ndarray], accelerator: Accelerator) -> np.ndarray:
        batch = torch.from_numpy(np.stack(images)).to(accelerator.device, memory_format=torch.channels_last)
        with torch.no_grad(), accelerator.autocast():
            return encode_to_latent(vae, batch).float().cpu().numpy()


def _marked_depth(view: _View) -> Float32[np.ndarray, "H W"]:
    """Normalised depth with NaN where a pixel does not count."""
    nothing = np.full(view.valid_mask.shape, np.nan, dtype=np.float32)
    return nothing if view.norm_depth is None else np.where(view.valid_mask, view.norm_depth, nothing)


def _view_shares(config: DataConfig, sources: list[Source]) -> np.ndarray:
    """Probability of each view, up to a factor, in the order in which they are kept."""
    shares = []
    for source in sources:
        weights = np.array([config.kind_weights.get(kind, 1.0) for kind in source.kinds])
        if weights.sum() == 0:
            raise RecipeError(f"kind_weights leaves nothing of source {source.name}; give one of its kinds a weight")
        shares.append(np.repeat(weights, config.num_variants) * config.sources[source.name] / weights.sum())
    return np.concatenate(shares)
