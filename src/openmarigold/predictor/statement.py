# SPDX-License-Identifier: Apache-2.0
"""What a prediction states about how it was made."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from openmarigold.checkpoints.checkpoint import Checkpoint
from openmarigold.checkpoints.configured import TinyVae
from openmarigold.config import CallConfig
from openmarigold.engines import Engine
from openmarigold.predictor.sampling import PreparedPhoto


@runtime_checkable
class Parts(Protocol):
    """What a predictor is made of."""

    checkpoint: Checkpoint
    engine: Engine
    tiny_vae: TinyVae | None


def stated_settings(photo: PreparedPhoto, config: CallConfig, parts: Parts, *, num_members: int) -> dict[str, Any]:
    """The resolved settings of a prediction that was made of `num_members` members."""
    names = ("num_inference_steps", "ensemble_size", "processing_resolution", "seed", "timestep_spacing")
    tiny_vae, found = parts.tiny_vae, parts.checkpoint
    derived = {} if found.derived is None else found.modality_for(photo.camera).quantities
    panorama = photo.photo.metadata.panorama
    return {
        "checkpoint": found.name,
        "invariance": found.invariance,
        **({"quantity": derived[found.invariance]} if derived else {}),  # what was assumed stands there
        **{name: getattr(config, name) for name in names},
        "num_members": num_members,
        **found.facts_of_call(config),
        "start_noise": "given" if photo.noise.is_given else config.start_noise,
        "final_step": config.final_step,
        "engine": parts.engine.name,
        "device": parts.engine.device,
        "dtype": parts.engine.dtype,
        **({} if tiny_vae is None else {"tiny_vae": tiny_vae.name, "tiny_vae_for": tiny_vae.used_for}),
        **({} if panorama is None else {"panorama": panorama}),
    }
