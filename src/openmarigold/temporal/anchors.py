# SPDX-License-Identifier: Apache-2.0
"""The gauge of a shot: earlier frames whose values are known, which each new frame is fitted to.

A fit to the previous frame alone adds the error of each fit to the clip. So each frame is fitted to the previous one
and to some of eight key frames at once, of which the first one of the shot is always one, by what both still see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from openmarigold.gauges import GaugeFit, fit_gauge
from openmarigold.temporal.looks import POOR_FIT, Look
from openmarigold.temporal.matching import Match, composed, is_followed, match_again, match_looks
from openmarigold.temporal.settings import Correspondence

KEY_FRAMES = 8
MAX_SAMPLES = 4096
"""Most samples of all anchors together."""

_AT_ONCE = 3  # key frames that a frame is compared with, besides the previous one
_RETRY = 4  # frames between two looks for a key frame that is out of sight
_FEWEST = 32  # samples that say something
_SEEN = 0.15  # share of the textured pixels below which a key frame is out of sight
_FAMILIAR = 0.75  # share of the best key frame below which there is enough new for another one


@dataclass(kw_only=True, eq=False)
class Anchor:
    """A frame whose values are known in the gauge of its shot."""

    look: Look
    values: Float32[np.ndarray, "h w"]
    known: Bool[np.ndarray, "h w"]
    number: int
    flow: Float32[np.ndarray, "h w 2"] | None = None
    """From the newest frame, while it is in sight; None: the same pixels."""
    share: float = 1.0
    """Share of the newest frame's textured pixels that this frame shows too; 0: out of sight."""


class Anchors:
    """The anchors of one shot."""

    def __init__(self, how: Correspondence, *, with_scale: bool) -> None:
        self.how: Correspondence = how
        self.with_scale = with_scale
        self.previous: Anchor | None = None
        self.keys: list[Anchor] = []
        self.gap = 1

    def fit(
        self,
        look: Look,
        values: Float32[np.ndarray, "h w"],
        known: Bool[np.ndarray, "h w"],
        match: Match,
        *,
        number: int,
    ) -> GaugeFit | None:
        """From a frame's own values to the shot's gauge; None where nothing fits.

        Args:
            look: of the frame.
            values: the map on the look's pixels, in gauge space.
            known: pixels whose values count.
            match: from the frame to the previous one.
            number: of the frame.
        """
        self._follow(match)
        assert self.previous is not None
        seen = [(self.previous, match)]
        for key in self._chosen(number):
            found = self._found(look, key)
            key.flow, key.share = found.flow, found.share if found.share >= _SEEN else 0.0
            if key.share:
                seen.append((key, found))
        samples: list[tuple[np.ndarray, np.ndarray]] = []
        spreads: list[float] = []
        for anchor, found in seen:
            pair = self._samples(values, known, anchor, found, limit=MAX_SAMPLES // len(seen))
            if pair[0].size < _FEWEST:
                continue
            fit = fit_gauge(*pair, with_scale=self.with_scale)
            if fit is not None and self._says_something(fit):
                samples.append(pair)
                spreads.append(fit.spread)
        if not samples:
            return None
        least = 0.5 * float(np.median(spreads)) + 1e-9
        weights = [
            np.full(pair[0].size, (least / max(spread, least)) ** 2)
            for pair, spread in zip(samples, spreads, strict=True)
        ]
        x, y = (np.concatenate([pair[side] for pair in samples]) for side in (0, 1))
        fit = fit_gauge(x, y, weights=np.concatenate(weights), with_scale=self.with_scale)
        return fit if fit is not None and self._says_something(fit) else None

    def add(
        self, look: Look, values: Float32[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"], *, number: int
    ) -> None:
        """A frame, with its values in the gauge of the shot: the previous one of the next, and maybe a key frame."""
        still = np.zeros((*values.shape, 2), dtype=np.float32) if is_followed(look, self.how) else None
        self.previous = Anchor(look=look, values=values, known=known, number=number, flow=still)
        best = max((key.share for key in self.keys), default=0.0)
        age = number - self.keys[-1].number if self.keys else 0
        if self.keys and not (best < _FAMILIAR or (age >= self.gap and len(self.keys) < KEY_FRAMES)):
            return
        if self.keys and best >= _FAMILIAR:
            self.gap = 2 * self.gap
        if len(self.keys) == KEY_FRAMES:  # the first one stays; of the others, the one that is least seen, then oldest
            del self.keys[1 + min(range(KEY_FRAMES - 1), key=lambda place: self.keys[1 + place].share)]
        self.keys.append(Anchor(look=look, values=values, known=known, number=number, flow=still))

    def clear(self) -> None:
        """Forget the shot."""
        self.previous, self.keys, self.gap = None, [], 1

    def _follow(self, match: Match) -> None:
        """Each key frame's flow, from the new frame by way of the previous one."""
        if match.flow is None:
            return
        for key in self.keys:
            if key.share and key.flow is not None:
                key.flow = composed(match.flow, key.flow)

    def _chosen(self, number: int) -> list[Anchor]:
        """The first key frame and others in turn, of those in sight; now and then one that may be in sight again."""
        seen = [key for key in self.keys if key.share]
        lost = [key for key in self.keys if not key.share]
        if len(seen) > _AT_ONCE:
            others, count = seen[1:], _AT_ONCE - 1
            seen = [seen[0], *(others[(number * count + place) % len(others)] for place in range(count))]
        turn, waits = divmod(number, _RETRY)
        return [*seen, lost[turn % len(lost)]] if lost and not waits else seen

    def _found(self, look: Look, key: Anchor) -> Match:
        if key.share or not is_followed(look, self.how):
            return match_again(look, key.look, key.flow)
        return match_looks(look, key.look, self.how)[0]  # out of sight: maybe it is back

    def _samples(
        self,
        values: Float32[np.ndarray, "h w"],
        known: Bool[np.ndarray, "h w"],
        anchor: Anchor,
        match: Match,
        *,
        limit: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        target = match.sampled(anchor.values)
        both = match.visible & known
        if not anchor.known.all():
            both &= match.sampled(anchor.known.astype(np.float32)) > 0.99
        places = np.flatnonzero(both)
        if places.size > limit:
            places = places[np.linspace(0, places.size - 1, limit).astype(np.intp)]
        return values.ravel()[places], target.ravel()[places]

    def _says_something(self, fit: GaugeFit) -> bool:
        return fit.inliers >= POOR_FIT and (not self.with_scale or fit.correlation >= POOR_FIT)

    def state(self) -> dict[str, np.ndarray]:
        """As `restore` takes it."""
        arrays = {"gap": np.array(self.gap), "keys": np.array(len(self.keys))}
        named = {} if self.previous is None else {"previous": self.previous}
        for name, anchor in {**named, **{str(place): key for place, key in enumerate(self.keys)}}.items():
            arrays |= {f"{name}/{field}": value for field, value in anchor_state(anchor).items()}
        return arrays

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.gap = int(state["gap"])
        self.previous = anchor_of(state, "previous") if "previous/values" in state else None
        self.keys = [anchor_of(state, str(place)) for place in range(int(state["keys"]))]


def anchor_state(anchor: Anchor) -> dict[str, np.ndarray]:
    """Plain arrays."""
    found = {**vars(anchor.look), **vars(anchor)}
    return {name: np.asarray(value) for name, value in found.items() if name != "look" and value is not None}


def anchor_of(state: Mapping[str, np.ndarray], name: str) -> Anchor:
    """The inverse of `anchor_state`, whose keys follow a name."""

    def part(field: str) -> np.ndarray:
        return state[f"{name}/{field}"]

    seen = {field: part(field) for field in ("features", "textured", "histogram")}
    return Anchor(
        look=Look(**seen, factor=int(part("factor"))),
        values=part("values"),
        known=part("known"),
        number=int(part("number")),
        flow=state.get(f"{name}/flow"),
        share=float(part("share")),
    )
