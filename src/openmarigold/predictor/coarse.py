# SPDX-License-Identifier: Apache-2.0
"""Two passes at a photo, for a checkpoint that was trained on small pictures.

At a high resolution its latents show more detail, but their coarse structure is worse. The coarse part therefore comes
from a pass at the checkpoint's own resolution. The two are joined before they are decoded, so the decoder runs once.

Source: Miangoleh et al. 2021 (Boosting Monocular Depth Estimation). There, a network merges two depth maps; here, a
Gaussian filter merges latents. Measured in docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from openmarigold.config import LATENT_FACTOR
from openmarigold.engines import Engine, Latent
from openmarigold.images.tiles import interpolate, lowpass
from openmarigold.predictor.sampling import Guide, PreparedPhoto, denoised

_LOWPASS = 16  # the photo's shorter side divided by the filter's standard deviation, as for tiles


def denoised_twice(
    conditions: Sequence[Latent],
    photos: Sequence[PreparedPhoto],
    batch: Sequence[tuple[int, int]],
    *,
    engine: Engine,
    guide: Guide | None,
    **settings: Any,
) -> Latent:
    """Target latents `[b C·t h w]` as `denoised` returns them; for photos with a coarse pass, both passes joined.

    Args:
        conditions: those of the photos, and those of their coarse passes, if they have any.
        photos: the photos; all or none have a coarse pass.
        batch: row of the photo and number of each member.
        engine: runs the networks.
        guide: guides the first pass only.
        settings: the other arguments of `denoised`.
    """
    latent = denoised(conditions[0], photos, batch, engine=engine, guide=guide, **settings)
    small = [photo.coarse for photo in photos if photo.coarse is not None]
    if not small:
        return latent
    below = engine.from_engine(denoised(conditions[1], small, batch, engine=engine, guide=None, **settings))
    return engine.to_engine(
        np.stack(
            [
                with_coarse(fine, coarse, size=photos[row].processing_size, coarse_size=small[row].processing_size)
                for fine, coarse, (row, _) in zip(engine.from_engine(latent), below, batch, strict=True)
            ]
        )
    )


def with_coarse(
    fine: Float32[np.ndarray, "C h w"],
    coarse: Float32[np.ndarray, "C p q"],
    *,
    size: tuple[int, int],
    coarse_size: tuple[int, int],
) -> Float32[np.ndarray, "C h w"]:
    """Latents with the fine part of `fine` and the coarse part of `coarse`.

    Args:
        fine: latents of a photo; they may cover padding below and to the right.
        coarse: latents of the same photo at a lower resolution, padded likewise.
        size: height and width that the networks saw, without padding [px].
        coarse_size: the same for `coarse`.
    """
    places = (
        (np.arange(cells) + 0.5) * (below / seen) - 0.5
        for cells, seen, below in zip(fine.shape[1:], size, coarse_size, strict=True)
    )
    sigma = min(size) / LATENT_FACTOR / _LOWPASS
    return fine + lowpass(interpolate(coarse, *places) - fine, sigma)
