# SPDX-License-Identifier: Apache-2.0
"""A raw folder of someone's own pictures with depth: 24 of four rooms, in three sizes, whose color tells the depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {"attic": (48, 64), "bath": (48, 64), "cellar": (64, 40), "den": (48, 64)}
NUM_FRAMES = 6
DESCRIPTION = """
name = "mine"
rgb = "{place}/color/{frame}.jpg"
depth = "{place}/depth/{frame}.png"
meters_per_unit = 0.001
scene = "{place}"
kind = "rooms"
"""


def write_own_pictures(folder: Path, *, seed: int = 3) -> Path:
    """Writes the folder, with its dataset.toml."""
    rng = np.random.default_rng(seed)
    for place, (height, width) in SIZES.items():
        for what in ("color", "depth"):
            (folder / place / what).mkdir(parents=True)
        for frame in range(NUM_FRAMES):
            row, column = np.mgrid[0:height, 0:width]
            depth = 1.5 + rng.uniform(0.01, 0.05) * (height - row) + rng.uniform(-0.01, 0.03) * column
            top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
            depth[top : top + 16, left : left + 16] = rng.uniform(0.8, 1.2)
            shade = (255.0 * (1.0 - (depth - 0.5) / 5.0))[..., None] * np.array([1.0, 0.9, 0.7])
            rgb = np.clip(shade + rng.normal(0, 2, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(rgb).save(folder / place / "color" / f"{frame:03d}.jpg", quality=95)
            codes = np.rint(depth * 1000).astype(np.uint16)
            Image.fromarray(codes).save(folder / place / "depth" / f"{frame:03d}.png")
    (folder / "dataset.toml").write_text(DESCRIPTION)
    return folder


def prepare_own_pictures(folder: Path, data_dir: Path) -> Path:
    """Writes the pictures to `folder` and the prepared set to `data_dir/mine`; returns `data_dir`."""
    from openmarigold.data.preparation import prepare
    from openmarigold.data.readers.rgbd_folder import FolderReader, read_config

    write_own_pictures(folder)
    prepare(FolderReader(folder, read_config(folder / "dataset.toml")), data_dir / "mine")
    return data_dir
