# SPDX-License-Identifier: Apache-2.0
"""What the members of an ensemble agree on, at the size that the networks see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from openmarigold.config import CallConfig
from openmarigold.modalities import Modality
from openmarigold.modalities.modality import Merged


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """The maps of one photo before they get its size."""

    stack: Float[np.ndarray, "c h w"]
    uncertainty: Float[np.ndarray, "u h w"] | None
    """None of a single member."""
    latent: Float32[np.ndarray, "n C hl wl"]
    """The denoised latents of the members."""


def merge_members(
    found: Iterable[tuple[np.ndarray, np.ndarray]], modality: Modality, invariance: str, config: CallConfig
) -> Consensus:
    """The consensus of members, each a stack `[c h w]` and its latents; with a tolerance, of as many as it takes."""
    reduction = config.ensemble_reduction or modality.reductions[0]
    members: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    merged: Merged | None = None
    for member, latent in found:
        members.append(member)
        latents.append(latent)
        # The check runs after every member, so that the batch size does not decide where to stop.
        if config.ensemble_tolerance is not None and len(members) > 1:
            previous, merged = merged, modality.merge(np.stack(members), invariance, reduction)
            if previous and np.abs(merged.stack - previous.stack).mean() < config.ensemble_tolerance:
                break
    if len(members) > 1:
        merged = merged or modality.merge(np.stack(members), invariance, reduction)
    stack, uncertainty = (merged.stack, merged.uncertainty) if merged else (members[0], None)
    return Consensus(stack=stack, uncertainty=uncertainty, latent=np.stack(latents))
