# SPDX-License-Identifier: Apache-2.0
"""What the recipes of the embedded models ask of each kind of map: how it is kept, cut, shown, decoded and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from openmarigold.modalities.depth import LOG_DEPTH, LOG_HALF_RANGE
from openmarigold.modalities.metric import METRIC, METRIC_HALF_RANGE, METRIC_MIDDLE
from openmarigold.modalities.modality import Maps, Modality
from openmarigold.modalities.normals import NORMALS
from openmarigold.networks.backbone import Vae, decode_targets
from openmarigold.training.lite.loss import ABSOLUTE, BY_ANGLE, UP_TO_SCALE, Comparison
from openmarigold.training.lite.samples import Cut, cut_depth, cut_normals, pack_depth, pack_normals
from openmarigold.training.loss import angles


@dataclass(frozen=True, kw_only=True)
class MapTarget:
    """How a kind of map is learned."""

    modality: Modality
    """What the model predicts: the variant whose values its decoder gives."""
    pack: Callable[[Maps, Bool[np.ndarray, "h w"]], Shaped[np.ndarray, "h w *c"]]
    """A sample's maps as they are kept in memory."""
    cut: Cut
    """Views of what is kept, NaN where a pixel is unknown."""
    picture: Callable[[Float[Tensor, "b c H W"]], Float[Tensor, "b 3 H W"]]
    """What the autoencoder sees of a view, in [-1, 1]."""
    half_range: float
    """Distance from `middle` that a decoded value of 1 means, in the unit of a view."""
    compare: Comparison
    score: Callable[[Float[Tensor, "b c H W"], Float[Tensor, "b c H W"]], dict[str, float]]
    """Scores, by name, of decoded values and the picture that they should be, for people."""
    middle: float = 0.0
    """The value that a decoded 0 means, if it is fixed."""

    def decode(self, vae: Vae, latent: Float[Tensor, "b C h w"]) -> Float[Tensor, "b c H W"]:
        """Decoded values, about [-1, 1]."""
        return decode_targets(vae, latent, num_targets=1, channels=self.modality.decoded_channels)[:, 0].float()

    def values(self, decoded: Float[Tensor, "b c H W"]) -> Float[Tensor, "b c H W"]:
        """Decoded values in the unit of a view."""
        return self.half_range * decoded + self.middle

    def wanted(self, picture: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c H W"]:
        """The values that decoding a picture's latent should give."""
        return picture[:, : self.modality.decoded_channels]


def log_depth_picture(log_depth: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b 3 H W"]:
    """Log depth around its median, in [-1, 1], the far end where there is none."""
    median = log_depth.flatten(1).nanmedian(dim=1).values.nan_to_num().view(-1, 1, 1, 1)
    return _log_picture((log_depth - median) / LOG_HALF_RANGE)


def metric_depth_picture(log_depth: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b 3 H W"]:
    """Log depth [log m] around `METRIC_MIDDLE`, in [-1, 1], the far end of the view where there is none."""
    return _log_picture((log_depth - METRIC_MIDDLE) / METRIC_HALF_RANGE)


def _log_picture(scaled: Float[Tensor, "b 1 H W"]) -> Float[Tensor, "b 3 H W"]:
    scaled = scaled.clamp(-1.0, 1.0)
    farthest = scaled.nan_to_num(nan=-1.0).amax(dim=(2, 3), keepdim=True)
    return torch.where(scaled.isnan(), farthest, scaled).expand(-1, 3, -1, -1)


def normals_picture(normals: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """The vectors themselves, towards the camera where there are none."""
    towards = normals.new_tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    return torch.where(normals.isnan(), towards, normals)


def _depth_score(half_range: float) -> Callable[[Tensor, Tensor], dict[str, float]]:
    return lambda decoded, wanted: {"log_depth_mae": half_range * float((decoded - wanted).abs().mean())}


def _normals_score(decoded: Tensor, wanted: Tensor) -> dict[str, float]:
    everywhere = torch.ones_like(wanted[:, :1], dtype=torch.bool)
    found = angles(decoded, functional.normalize(wanted, dim=1), everywhere)
    return {"normals_mean_angle": float(torch.rad2deg(found).mean())}


TARGETS: Mapping[str, MapTarget] = MappingProxyType(
    {
        "depth": MapTarget(
            modality=LOG_DEPTH,
            pack=pack_depth,
            cut=cut_depth,
            picture=log_depth_picture,
            half_range=LOG_HALF_RANGE,
            compare=UP_TO_SCALE,
            score=_depth_score(LOG_HALF_RANGE),
        ),
        "metric": MapTarget(
            modality=METRIC,
            pack=pack_depth,
            cut=cut_depth,
            picture=metric_depth_picture,
            half_range=METRIC_HALF_RANGE,
            middle=METRIC_MIDDLE,
            compare=ABSOLUTE,
            score=_depth_score(METRIC_HALF_RANGE),
        ),
        "normals": MapTarget(
            modality=NORMALS,
            pack=pack_normals,
            cut=cut_normals,
            picture=normals_picture,
            half_range=1.0,
            compare=BY_ANGLE,
            score=_normals_score,
        ),
    }
)
"""By the modality, whose only map it is."""


def relief_of_start(index: Mapping[str, Any], target: MapTarget) -> float:
    """The factor from decoded values of a start, given its model_index.json, to the target's unit, up to a constant.

    1 where they are of another kind of map, or the start is not of these recipes.
    """
    space, kinds = index.get("space"), target.modality.maps
    for known in TARGETS.values():
        if known.modality.space == space and known.modality.maps[0].name == kinds[0].name:
            return known.half_range / target.half_range
    return 1.0


def target_of(modality: str) -> MapTarget:
    """The target of a modality that `lite/recipes.py` accepts."""
    return TARGETS[modality]
