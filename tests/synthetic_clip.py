# SPDX-License-Identifier: Apache-2.0
"""A clip whose truth is known: a room that stands still, a box that moves through it, and maps that flicker."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from openmarigold.config import CallConfig
from openmarigold.modalities import DEPTH
from openmarigold.modalities.modality import Modality
from openmarigold.predictor import Predictor
from openmarigold.results.prediction import Prediction


def smooth_noise(rng: np.random.Generator, height: int, width: int, *, cell: int) -> np.ndarray:
    """Of mean 0 and deviation 1."""
    from openmarigold.images.photo import resize

    coarse = rng.normal(size=(1, height // cell + 2, width // cell + 2)).astype(np.float32)
    fine = resize(coarse, (height, width), antialias=False)[0]
    return (fine - fine.mean()) / fine.std()


@dataclass(frozen=True)
class Frame:
    rgb: np.ndarray
    depth: np.ndarray
    """The truth."""
    raw: np.ndarray
    """What the model says: a * depth + b, with noise."""
    a: float
    b: float
    is_box: np.ndarray


@lru_cache(maxsize=8)
def _walls(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Photo and depth of a room four times as wide as a frame."""
    room = np.random.default_rng((seed, 1))
    wide = width * 4
    texture = np.stack(
        [128 + sum(30 * smooth_noise(room, height, wide, cell=cell) for cell in (2, 5)) for _ in range(3)],
        axis=-1,
    )
    texture += room.uniform(-60, 60, 3)  # each room has its colors
    rows, columns = np.mgrid[:height, :wide].astype(np.float32)
    wall = 0.75 + 0.25 * np.sin(columns / 11 + seed) + 0.1 * np.cos(columns / 41)
    depth = np.minimum(wall, 0.35 + 1.2 * (1 - rows / height))
    return texture, depth


@dataclass(frozen=True)
class Room:
    """A room of 48 x 64 pixels, or larger; `seed` chooses its walls, `pan` moves the camera [px a frame]."""

    seed: int = 0
    height: int = 48
    width: int = 64
    pan: float = 0.0
    smooth: float = 0.01
    pixel: float = 0.002
    scale: tuple[float, float] = (0.7, 1.4)
    shift: tuple[float, float] = (-0.2, 0.2)
    log: bool = False
    """Maps are up to scale: exp(a random number) * depth, with noise of the logarithm."""

    def frame(self, number: int) -> Frame:
        rng = np.random.default_rng((self.seed, 7, number))
        texture, depth = _walls(self.seed, self.height, self.width)
        rows, columns = np.mgrid[: self.height, : self.width].astype(np.float32)
        left = min(round(self.pan * number), texture.shape[1] - self.width)
        texture, depth = (part[:, left : left + self.width].copy() for part in (texture, depth))
        is_box = np.zeros(depth.shape, dtype=bool)
        side = self.height // 4
        x, y = int((1.7 * number) % (self.width + side)) - side, self.height // 3 + int(6 * np.sin(number / 9))
        is_box[y : y + side, max(x, 0) : max(x + side, 0)] = True
        depth[is_box] = 0.03 + 0.2 * (1 + np.sin(number / 23))
        texture[is_box] = np.array([220, 60, 40]) + 20 * ((columns + rows)[is_box] % 3)[:, None]
        noise = self.smooth * smooth_noise(rng, *depth.shape, cell=8) + self.pixel * rng.normal(size=depth.shape)
        a, b = rng.uniform(*self.scale), rng.uniform(*self.shift)
        if self.log:
            a, b, raw = a, 0.0, a * depth * np.exp(noise)
        else:
            raw = a * depth + b + noise
        rgb = np.clip(texture + rng.normal(0, 1, texture.shape), 0, 255).astype(np.uint8)
        return Frame(rgb=rgb, depth=depth, raw=raw.astype(np.float32), a=float(a), b=float(b), is_box=is_box)


class FakePredictor(Predictor):
    """Gives the maps that it was made with, by the pixels of their photos; safe in threads."""

    def __init__(self, *, modality: Modality = DEPTH, invariance: str = "affine", start_noise: str = "zeros") -> None:
        self.maps: dict[bytes, dict[str, np.ndarray]] = {}
        self.started: list[np.ndarray | None] = []
        self.known = modality
        self.start_noise = start_noise
        self.checkpoint: Any = SimpleNamespace(
            name="fake", invariance=invariance, noise_scale=lambda config: 1.0, one_pass_resolution=0
        )

    @property
    def modality(self) -> Modality:
        return self.known

    def resolve(self, config: CallConfig) -> CallConfig:
        return replace(config, start_noise=config.start_noise or self.start_noise, processing_resolution=0)

    def latent_shape(self, size: tuple[int, int], config: CallConfig) -> tuple[int, int, int]:
        return (4, -(-size[0] // 8), -(-size[1] // 8))

    def learn(self, rgb: np.ndarray, **maps: np.ndarray) -> np.ndarray:
        self.maps[rgb.tobytes()] = maps
        return rgb

    def __call__(self, rgb: Any, *, latents: np.ndarray | None = None, **options: Any) -> Prediction:  # type: ignore
        self.started.append(latents)
        maps = {name: values.copy() for name, values in self.maps.pop(rgb.rgb.tobytes()).items()}
        latent = None if latents is None else (3 * latents + 1).astype(np.float32)
        return Prediction(maps=maps, latent=latent, modality=self.known.name, rgb=rgb.rgb, settings={"seed": 1})
