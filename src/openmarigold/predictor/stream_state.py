# SPDX-License-Identifier: Apache-2.0
"""The state of a stream between frames, converted to plain arrays and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from openmarigold.camera import Camera
from openmarigold.results.prediction import Prediction
from openmarigold.temporal.anchors import Anchor, anchor_of, anchor_state
from openmarigold.temporal.matching import Match
from openmarigold.temporal.smoothing import Smoothed
from openmarigold.text_files import parse_json

STATE_VERSION = 1
"""Version of the arrays of a state; increased when earlier ones can no longer be read."""


@dataclass(frozen=True, kw_only=True)
class StreamedFrame:
    """One frame of a clip, in the gauge of its shot."""

    number: int
    """From 0."""
    prediction: Prediction
    """Its maps in the gauge of its shot; depth may leave [0, 1] there."""
    scale: float
    """From the frame's map to the gauge of its shot, in the modality's gauge space; 1 if nothing is fitted."""
    shift: float
    """As `scale`; 0 if nothing is fitted."""
    shot: int
    """Number of the shot, from 0."""
    is_cut: bool
    """Whether it is the first frame of a shot; False for frame 0."""
    bounds: tuple[float, float] | None
    """Range of values to display, in that gauge; widens slowly. None: the maps have a fixed range."""
    inliers: float
    """Share of the compared samples that the fit describes, 0 to 1; 1 for the first frame of a shot."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pending:
    """A frame that later ones may still change."""

    frame: StreamedFrame
    own: Float32[np.ndarray, "c H W"]
    """Its values in the gauge of its shot, in gauge space, not averaged."""
    smoothed: Smoothed
    """Averaged with the frames before."""
    anchor: Anchor
    """Its look and points."""
    before: int | None
    """Number of the frame that it was compared with; None for the first of a shot."""
    from_before: Match | None
    """From that frame to this one."""


def arrays_of(pending: Pending) -> dict[str, np.ndarray]:
    """Plain arrays of a frame."""
    frame, prediction = pending.frame, pending.frame.prediction
    facts = {
        "number": frame.number,
        "scale": frame.scale,
        "shift": frame.shift,
        "shot": frame.shot,
        "is_cut": frame.is_cut,
        "bounds": frame.bounds,
        "inliers": frame.inliers,
        "settings": prediction.settings,
        "modality": prediction.modality,
        "space": prediction.space,
        "camera": None if prediction.camera is None else asdict(prediction.camera),
        "before": pending.before,
        "share": None if pending.from_before is None else pending.from_before.share,
    }
    arrays = {
        "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        "own": pending.own,
        "smoothed": pending.smoothed.values,
        "gain": pending.smoothed.gain,
        **{f"anchor/{name}": array for name, array in anchor_state(pending.anchor).items()},
        **{f"maps/{name}": array for name, array in prediction.maps.items()},
        **{f"uncertainties/{name}": array for name, array in prediction.uncertainties.items()},
    }
    match = pending.from_before
    optional = {
        "latent": prediction.latent,
        "rgb": prediction.rgb,
        "flow": None if match is None else match.flow,
        "visible": None if match is None else match.visible,
    }
    return {**arrays, **{name: array for name, array in optional.items() if array is not None}}


def pending_of(arrays: Mapping[str, np.ndarray]) -> Pending:
    """The inverse of `arrays_of`."""
    facts: dict[str, Any] = parse_json(arrays["facts"].tobytes())
    prediction = Prediction(
        maps=under(arrays, "maps"),
        uncertainties=under(arrays, "uncertainties"),
        latent=arrays.get("latent"),
        settings=facts["settings"],
        modality=facts["modality"],
        space=facts["space"],
        camera=None if facts["camera"] is None else Camera(**facts["camera"]),
        rgb=arrays.get("rgb"),
    )
    bounds = facts["bounds"]
    frame = StreamedFrame(
        number=facts["number"],
        prediction=prediction,
        scale=facts["scale"],
        shift=facts["shift"],
        shot=facts["shot"],
        is_cut=facts["is_cut"],
        bounds=None if bounds is None else (bounds[0], bounds[1]),
        inliers=facts["inliers"],
    )
    match = None
    if "visible" in arrays:
        match = Match(flow=arrays.get("flow"), visible=arrays["visible"], share=facts["share"])
    return Pending(
        frame=frame,
        own=arrays["own"],
        smoothed=Smoothed(values=arrays["smoothed"], gain=arrays["gain"]),
        anchor=anchor_of(arrays, "anchor"),
        before=facts["before"],
        from_before=match,
    )


def under(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays whose keys begin with `name` and a slash, by the rest of the key."""
    return {key[len(name) + 1 :]: array for key, array in arrays.items() if key.startswith(f"{name}/")}


def joined(parts: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The inverse of `under`, for several names."""
    return {f"{name}/{key}": array for name, part in parts.items() for key, array in part.items()}
