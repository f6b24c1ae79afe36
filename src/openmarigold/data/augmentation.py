# SPDX-License-Identifier: Apache-2.0
"""Random variations of a sample: geometry changes color and maps together, appearance changes color only."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from openmarigold.data.sources import Sample
from openmarigold.modalities.modality import Modality

_ROUNDING_PX = 1e-6  # the picture, cut to the shape of the view


def random_view(
    sample: Sample,
    rng: np.random.Generator,
    *,
    modality: Modality,
    size: tuple[int, int],
    min_scale: float,
    aspect_jitter: float,
    mirrored: bool | None = None,
) -> Sample:
    """A random part of `sample`, resized to `size` (height, width) and mirrored half of the time.

    Args:
        modality: its maps are cut and mirrored, if the sample has all of them; other maps are left out.
        min_scale: smallest part, as a share of the largest crop of that shape that fits; in (0, 1].
        aspect_jitter: largest stretch of one side against the other; 0.1 = up to 10 %.
        mirrored: whether the view is mirrored; None = by chance.

    Depth is sampled nearest, since a mean over an edge would invent surfaces. Its values do not change, because depth
    is normalized for each image later. Other maps are resampled by `MapKind.resample`.
    """
    height, width = sample.rgb.shape[:2]
    aspect = size[1] / size[0] * np.exp(rng.uniform(-1, 1) * np.log1p(aspect_jitter))
    crop_height = min(height, width / aspect)
    # Uniform in the logarithm: a halved view is as likely as its double.
    crop_height *= np.exp(rng.uniform(np.log(min_scale), 0.0))
    crop_width = crop_height * aspect
    # A full view may come out larger than the picture by a rounding error.
    left, top = (
        rng.uniform(0, spare if spare > _ROUNDING_PX else 0.0) for spare in (width - crop_width, height - crop_height)
    )
    box = (left, top, min(left + crop_width, width), min(top + crop_height, height))
    by_chance = rng.random() < 0.5
    mirrored = by_chance if mirrored is None else mirrored
    width_height = (size[1], size[0])
    rgb = np.asarray(Image.fromarray(sample.rgb).resize(width_height, Image.Resampling.BILINEAR, box=box))
    maps: Mapping[str, np.ndarray] = {}
    if all(kind.name in sample.maps for kind in modality.maps):
        maps = {kind.name: _cut(sample.maps[kind.name], width_height, box, kind.resample) for kind in modality.maps}
        maps = modality.mirror(maps) if mirrored else maps
    if mirrored:
        rgb = rgb[:, ::-1]
    contiguous = {name: np.ascontiguousarray(values) for name, values in maps.items()}
    return Sample(rgb=np.ascontiguousarray(rgb), maps=contiguous, kind=sample.kind)


def _cut(
    values: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float], resample: str
) -> np.ndarray:
    """A part of a map, resized channel by channel."""
    method = Image.Resampling.NEAREST if resample == "nearest" else Image.Resampling.BILINEAR
    if values.ndim == 2:
        return np.asarray(Image.fromarray(values).resize(size, method, box=box))
    return np.stack([_cut(values[:, :, channel], size, box, resample) for channel in range(values.shape[2])], axis=-1)


def random_appearance(
    rgb: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, *, strength: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The same view through another camera: exposure, white balance, contrast, saturation, blur, noise, JPEG.

    Args:
        strength: 0 changes nothing, 1 is strong; scales both how often and how far.
    """
    if strength <= 0:
        return rgb
    image = rgb.astype(np.float32) / 255.0
    if rng.random() < 0.8:
        gamma = np.exp(rng.normal(0, 0.3 * strength))
        gains = np.exp(rng.normal(0, 0.08 * strength, 3) + rng.normal(0, 0.15 * strength)).astype(np.float32)
        image = np.clip(image, 0, 1) ** np.float32(gamma) * gains
        gray = image.mean(axis=2, keepdims=True)
        saturation = 0.0 if rng.random() < 0.1 * strength else np.exp(rng.normal(0, 0.35 * strength))
        image = gray + (image - gray) * np.float32(saturation)
        contrast = np.exp(rng.normal(0, 0.2 * strength))
        image = (image - gray.mean()) * np.float32(contrast) + gray.mean()
    if rng.random() < 0.3 * strength:
        noise_std = rng.uniform(0.005, 0.04)
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(noise_std)
    varied = Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))
    if rng.random() < 0.25 * strength:
        varied = varied.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    if rng.random() < 0.3 * strength:
        buffer = io.BytesIO()
        varied.save(buffer, "JPEG", quality=int(rng.integers(35, 90)))
        varied = Image.open(buffer).convert("RGB")
    return np.asarray(varied)
