# SPDX-License-Identifier: Apache-2.0
"""Disk of the latent cache per 1,000 samples, before maps were packed and now, and whether every bit comes back.

    python benchmarks/latent_cache.py DATA/rendered --size 480 640

Needs the extra `train`. Each sample has two views, plain and mirrored. Targets are those of the recipes. Latents are
Gaussian noise in their place, which shrinks less than any latents, so that no autoencoder is needed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from openmarigold.training.packed import RowStore
from openmarigold.training.settings import DataConfig
from openmarigold.training.views import Mixture

CHANNELS = 4


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--samples", type=int, default=50, help="so many of them, evenly spread")
    parser.add_argument("--resampling", choices=("smooth", "published"), default="smooth")
    options = parser.parse_args()
    height, width = options.size
    config = DataConfig(
        sources={options.data.name: 1.0},
        size=(height, width),
        mirror="both",
        num_variants=2,
        resampling=options.resampling,
    )
    mixture = Mixture(config, data_dir=options.data.parent, seed=0)
    total = len(mixture.sources[0])
    chosen = np.unique(np.linspace(0, total - 1, min(options.samples, total)).round().astype(int))
    latent = (CHANNELS, height // 8, width // 8)
    fields = [("rgb_latent", np.float16, latent), ("target", np.float16, (1, 1, height, width))]
    of_maps = np.dtype([*fields, ("bounds", np.float32, (2,))])
    of_latents = np.dtype(
        [fields[0], ("target_latent", np.float16, latent), ("valid_mask", np.bool_, (1, *latent[1:]))]
    )
    rng = np.random.default_rng(0)
    rows = []
    for sample in chosen:
        for variant in range(2):
            view = mixture.view(int(sample) * 2 + variant)
            row = np.zeros((), dtype=of_maps)
            row["rgb_latent"] = rng.standard_normal(latent)
            row["target"] = np.nan
            if view.target is not None:
                row["target"] = np.where(view.valid_mask, view.target.values, np.nan)
                row["bounds"] = view.target.bounds
            rows.append(row)
    with tempfile.TemporaryDirectory() as folder:
        store = RowStore(Path(folder), of_maps, ("target",), deflate=True)
        started = time.perf_counter()
        path = store.add([str(number) for number in range(len(rows))], np.stack(rows))
        packed_s = time.perf_counter() - started
        store.scan()
        started = time.perf_counter()
        equal = all(store[str(number)].tobytes() == row.tobytes() for number, row in enumerate(rows))
        read_s = time.perf_counter() - started
        now = path.stat().st_size
    per_thousand = 1000 / len(chosen) / 1e6
    print(f"{options.data.name}: {len(chosen)} samples, {len(rows)} views of {height}x{width}; MB per 1,000 samples")
    print(f"latents of picture and depth (denoising): {len(rows) * of_latents.itemsize * per_thousand:.1f}, as before")
    before = len(rows) * of_maps.itemsize * per_thousand
    print(f"latent of the picture, and depth (end_to_end): before {before:.1f}, now {now * per_thousand:.1f}")
    print(f"every bit comes back: {equal}; a row takes {1e3 * packed_s / len(rows):.0f} ms to write and "
          f"{1e3 * read_s / len(rows):.0f} ms to read")  # fmt: skip


if __name__ == "__main__":
    main()
