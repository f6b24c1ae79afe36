# SPDX-License-Identifier: Apache-2.0
"""Kinds of scenes, and one process's sampler of them: procedural shapes, with assets where there are some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from openmarigold_render.assets import GAME_MAPS, Assets
from openmarigold_render.core import InvalidValueError, generator_for
from openmarigold_render.development import check_exposure
from openmarigold_render.furnishing import AssetCatalog
from openmarigold_render.procedural import MixedCatalog, ProceduralCatalog
from openmarigold_render.rooms import sample_room
from openmarigold_render.scene import Catalog, Scene, Setting
from openmarigold_render.streets import street
from openmarigold_render.tabletops import sample_tabletop
from openmarigold_render.thin import sample_thin

Kind = Literal["rooms", "tabletops", "streets", "thin"]
Source = Literal["rooms", "tabletops", "streets", "thin", "mix"]

MIX: dict[Kind, float] = {"rooms": 0.38, "tabletops": 0.38, "streets": 0.24}
"""Shares of the scenes of `mix`. It does not change: commands in the docs name sets of it by their seed."""
VIEWS = 2  # of a scene: many scenes teach more than many views of few
ASSET_SHARE = 0.65  # of what is drawn for rooms and tables, where there are assets


SAMPLES, SEEDS = (1, 4096), (0, 2**63 - 1)
"""Smallest and largest value of these settings of a run."""
SIDES, ANGLES = (64, 4096), (10.0, 120.0)


@runtime_checkable
class RunSettings(Protocol):
    """What the settings of every run have."""

    @property
    def source(self) -> Source: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def fov(self) -> tuple[float, float]: ...
    @property
    def exposure(self) -> float: ...


def check_settings(settings: RunSettings, bounds: Mapping[str, tuple[int, int]]) -> None:
    """Checks what all runs have, and these settings against their smallest and largest value.

    Raises:
        InvalidValueError: a value that is not accepted.
    """
    if settings.source not in get_args(Source):
        raise InvalidValueError(f"source={settings.source!r} is not known; use {', '.join(get_args(Source))}")
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise InvalidValueError(f"{name}={value!r} is not accepted; give {low} to {high}")
    low, high = SIDES
    if not (low <= settings.width <= high and low <= settings.height <= high):
        raise InvalidValueError(
            f"resolution {settings.width}x{settings.height} is not accepted; give width and height of {low} to {high}"
        )
    low, high = settings.fov
    if not ANGLES[0] <= low <= high <= ANGLES[1]:
        raise InvalidValueError(f"fov {low:g} {high:g} is not accepted; give two angles, 10 <= low <= high <= 120")
    check_exposure(settings.exposure)


def kind_of(source: Source, seed: int, what: str, number: int) -> Kind:
    """Kind of scene `number`: the source, or for mix one that is drawn from (seed, what, number)."""
    if source != "mix":
        return source
    kinds, shares = list(MIX), np.array(list(MIX.values()))
    draw = generator_for(seed, what, number)
    return kinds[int(draw.choice(len(kinds), p=shares / shares.sum()))]


class SceneSampler:
    """Samples scenes; files that they need, such as prints, go into `folder`.

    Raises:
        DataError: the folder of assets holds none.
    """

    def __init__(self, assets: Path | None, folder: Path) -> None:
        procedural = ProceduralCatalog(folder)
        self._assets = None if assets is None else Assets(assets)
        self._catalog: Catalog = procedural
        self._outdoor_catalog: Catalog = procedural
        self._sample_street: Callable[[np.random.Generator, Catalog], Setting] = street
        self.broken: dict[str, str] = {}
        """Assets that were asked for in vain since it was cleared, and why."""
        if self._assets is not None:
            catalog = AssetCatalog(self._assets, procedural)
            self._outdoor_catalog, self.broken = catalog, catalog.broken
            self._catalog = MixedCatalog(catalog, procedural, share=ASSET_SHARE)
            if GAME_MAPS in self._assets.found:
                from openmarigold_render.gamemaps.streets import any_street

                self._sample_street = any_street

    def sample(self, kind: Kind, generator: np.random.Generator) -> Setting:
        """A scene of a kind.

        Raises:
            DataError: an asset in it is broken.
        """
        if kind == "streets":
            return self._sample_street(generator, self._outdoor_catalog)
        if kind == "thin":
            return sample_thin(generator, self._catalog, self._outdoor_catalog)
        return (sample_room if kind == "rooms" else sample_tabletop)(generator, self._catalog)

    def sources(self, scene: Scene) -> tuple[str, ...]:
        """Names of the assets in a scene."""
        return scene.sources if self._assets is None else tuple(self._assets.sources(scene))
