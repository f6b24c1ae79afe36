# SPDX-License-Identifier: Apache-2.0
"""Streets, villages, farms and harbors out of the maps of UFO: Alien Invasion, with things added on free ground."""

from __future__ import annotations

import math
import re
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from openmarigold_render import streets, terrain
from openmarigold_render.assets import GAME_MAPS, GAME_MODELS, GAME_TEXTURES, Assets
from openmarigold_render.core import DataError
from openmarigold_render.furnishing import AssetCatalog
from openmarigold_render.outdoors import OutdoorCatalog
from openmarigold_render.rays import Caster
from openmarigold_render.scene import Camera, Catalog, Instance, Lens, Scene, Setting, translation

MAP_SHARE = 0.4
_MIN_MAP_BYTES = 3_300_000  # smaller ones are single houses or pieces of dull ground
_DULL = re.compile(
    r"maps/(alienb|b|shared|shelter)/|craft|mine|bunker|subway|training|gate\.|tower|pipes|dam\.|shed|excav"
)
_DOWN, _UP = np.array((0.0, 0.0, -1.0)), np.array((0.0, 0.0, 1.0))
_GROUND_RAYS = 400
_STEP = 0.25  # of the histogram of heights [m]
_TRIES = 6
_PLOT = 34.0  # edge of a map with one house [m]


def any_street(generator: np.random.Generator, catalog: Catalog | None = None) -> Setting:
    """A map of the game in two of five scenes, where the catalog has them; a procedural street in all others."""
    if isinstance(catalog, AssetCatalog) and street_maps(catalog.assets) and generator.random() < MAP_SHARE:
        for _ in range(_TRIES):
            try:
                return game_street(generator, catalog)
            except DataError as error:  # skipped by name; the next draw is the same whoever comes here
                catalog.broken[str(error).split(":")[0]] = str(error)
    return streets.street(generator, catalog)


@lru_cache(maxsize=4)
def street_maps(assets: Assets) -> tuple[str, ...]:
    """Names of the maps that show streets, yards or landscapes, sorted; none where a package is missing."""
    if not {GAME_MAPS, GAME_TEXTURES, GAME_MODELS} <= assets.found.keys():
        return ()
    archive = assets.archive(GAME_MAPS)
    sizes = archive.sizes
    return tuple(
        name
        for name in sorted(sizes)
        if name.endswith(".bsp") and sizes[name] >= _MIN_MAP_BYTES and not _DULL.search(name)
    )


def game_street(generator: np.random.Generator, catalog: AssetCatalog) -> Setting:
    """A map, its surroundings, and cars, trees, people and street furniture on its free ground.

    Raises:
        DataError: the map that was drawn is damaged, or has no ground to stand on.
    """
    assert catalog.game is not None
    maps = street_maps(catalog.assets)
    archive = catalog.assets.archive(GAME_MAPS)
    found: list[Instance] = []
    low = high = np.zeros(3)
    name = ""
    for _ in range(_TRIES):  # single houses on a plot are less worth seeing than places with several
        name = maps[int(generator.integers(len(maps)))]
        found = catalog.game.map(archive, name)
        low, high = found[0].mesh.bounds
        if float((high - low)[:2].max()) > _PLOT or generator.random() < 0.25:
            break
    level = _ground_level(generator, Caster(found), low, high, name)
    center = 0.5 * (low + high)
    shift = translation(-float(center[0]), -float(center[1]), -level)
    instances = [Instance(one.mesh, shift @ one.transform, one.name) for one in found]
    caster = Caster(instances)
    half = 0.5 * (high - low)[:2]
    surfaces = found[0].mesh
    wet = np.array(["water" in one.name for one in surfaces.materials])[surfaces.face_materials]
    site = _Site(caster, float(half[0]), float(half[1]), float(high[2]) - level + 1.0, wet)

    ground = terrain.Ground(generator, OutdoorCatalog(catalog))
    for one in instances:
        ground.keep(one)
    reach = 1.45 * float(np.hypot(*half))
    terrain.landscape(ground, reach, use="lawn" if generator.random() < 0.6 else "ground")
    terrain.backdrop(ground, 0.0, reach + 120.0, 70, inside=lambda x, y: math.hypot(x, y) < reach)
    added = _add_things(ground, site)
    sky, lights = terrain.weather(generator)
    return Setting(
        kind="streets",
        scene=Scene(instances=tuple(ground.instances), lights=lights, sky=sky),
        propose=lambda chooser, lens: site.propose(chooser, lens, added),
        rules=streets.RULES,
        facts={"layout": "map", "map": name.removeprefix("maps/").removesuffix(".bsp")},
    )


def _ground_level(
    generator: np.random.Generator,
    caster: Caster,
    low: Float[np.ndarray, " 3"],
    high: Float[np.ndarray, " 3"],
    name: str,
) -> float:
    # Of what rays from above meet: the lowest height that is met often.
    origins = np.concatenate(
        (generator.uniform(low[:2], high[:2], size=(_GROUND_RAYS, 2)), np.full((_GROUND_RAYS, 1), high[2] + 1.0)),
        axis=1,
    )
    hits = caster.cast(origins, _DOWN[None])
    heights = origins[:, 2] - hits.distance
    heights = heights[hits.hit & (hits.normal[:, 2] > 0.7)]
    if len(heights) < 0.1 * _GROUND_RAYS:
        raise DataError(f"{name}: hardly a ray from above meets level ground; leave the map out")
    # A small map whose ground seems to be far above its foot is a single house with a flat roof.
    if float((high - low)[:2].max()) < _PLOT and float(np.median(heights)) > float(low[2]) + 2.2:
        return float(low[2])
    bins = np.floor((heights - heights.min()) / _STEP).astype(int)
    counts = np.bincount(bins)
    often = (counts >= 0.35 * counts.max()) & (counts >= 0.06 * len(heights))
    chosen = int(np.flatnonzero(often)[0]) if often.any() else int(counts.argmax())
    return float(np.median(heights[bins == chosen]))


class _Site:
    """Where one can stand on a map; ground level is z = 0, the map's center the origin."""

    def __init__(
        self, caster: Caster, half_x: float, half_y: float, top: float, wet: Bool[np.ndarray, " faces"]
    ) -> None:
        """`wet` is True for faces of the caster's first instance (the map) that are water."""
        self._caster = caster
        self._wet = wet
        self._half = np.array((half_x, half_y))
        self._top = top

    def draw(self, generator: np.random.Generator, margin: float = 0.0) -> tuple[float, float]:
        """A place of the map, or up to `margin` meters outside."""
        x, y = generator.uniform(-self._half - margin, self._half + margin).tolist()
        return x, y

    def height(self, points: Float[np.ndarray, "n 2"], start: float) -> Float[np.ndarray, " n"]:
        """Height of the first level surface under each point, from `start` down; infinite where there is none, or
        water.
        """
        origins = np.concatenate((points, np.full((len(points), 1), start)), axis=1)
        hits = self._caster.cast(origins, _DOWN[None])
        solid = hits.hit & (hits.normal[:, 2] > 0.9)
        on_map = hits.instance == 0
        solid[on_map] &= ~self._wet[hits.face[on_map]]
        return np.where(solid, start - hits.distance, np.inf)

    def is_clear(self, x: float, y: float, half_x: float, half_y: float) -> float | None:
        """Height of the ground where an object of this footprint fits, nothing above it and no wall through it."""
        signs = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)], dtype=np.float64)
        outline = np.array((x, y)) + signs * (half_x, half_y)
        heights = self.height(outline, self._top)
        middle = float(heights[4])
        if not np.isfinite(middle) or middle > 2.6 or np.abs(heights - middle).max() > 0.15:
            return None
        origin = np.array((x, y, middle + 0.45))
        around = np.delete(outline, 4, axis=0) - (x, y)
        hits = self._caster.cast(origin[None], np.concatenate((around, np.zeros((8, 1))), axis=1))
        return None if (hits.distance < 1.05).any() else middle

    def propose(self, generator: np.random.Generator, lens: Lens, things: list[tuple[float, float]]) -> Camera | None:
        """A camera on the ground, under the open sky, outside of walls, that looks at something."""
        x, y = self.draw(generator, 9.0 if float(self._half.max()) < 17.0 else 0.0)
        height = float(generator.uniform(1.2, 2.0))
        if generator.random() < 0.15:
            height = float(generator.uniform(0.5, 5.0))
        floor = float(self.height(np.array(((x, y),)), self._top)[0])
        outside = abs(x) > self._half[0] or abs(y) > self._half[1]
        if not np.isfinite(floor):
            if not outside:
                return None
            floor = 0.0
        if floor > 2.6:  # a roof
            return None
        position = np.array((x, y, floor + height))
        if not self._is_open(position) or any(math.hypot(x - a, y - b) < 1.0 for a, b in things):
            return None
        target = (0.0, 0.0)
        spread = 0.8
        if things and generator.random() < 0.55:
            target, spread = things[int(generator.integers(len(things)))], 0.25
        heading = math.atan2(target[1] - y, target[0] - x) + float(generator.normal(0.0, spread))
        return terrain.camera(generator, lens, position, heading)

    def _is_open(self, position: Float[np.ndarray, " 3"]) -> bool:
        tilted = np.array(((0, 0, 1), (0.5, 0, 1), (-0.5, 0, 1), (0, 0.5, 1), (0, -0.5, 1)), dtype=np.float64)
        if int(self._caster.cast(position[None], tilted).hit.sum()) >= 3:
            return False
        angles = np.linspace(0.0, 2.0 * math.pi, 8, endpoint=False)
        level = np.stack((np.cos(angles), np.sin(angles), np.zeros(8)), axis=1)
        hits = self._caster.cast(position[None], level)
        # What is seen from behind has the camera inside.
        behind = hits.hit & (np.einsum("nc,nc->n", hits.normal, level) > 0.0)
        return not (hits.distance < 0.5).any() and int((behind & (hits.distance < 8.0)).sum()) < 3


def _add_things(ground: terrain.Ground, site: _Site) -> list[tuple[float, float]]:
    """Cars, trees, people and street furniture where there is room; their places."""
    generator = ground.generator
    groups = ("vehicle", "tree", "character", "cycle", "street")
    added = []
    for _ in range(int(generator.integers(14, 70))):
        group = groups[int(generator.choice(5, p=(0.28, 0.22, 0.22, 0.08, 0.20)))]
        item = ground.draw(group, max_size=(7.0, 7.0, 13.0))
        x, y = site.draw(generator)
        if item is None:
            continue
        angle = float(generator.integers(4)) * 0.5 * math.pi + float(generator.normal(0.0, 0.15))
        share = 0.2 if group == "tree" and item.size[2] > 2.5 else 1.0
        reach = 0.5 * share * math.hypot(item.size[0], item.size[1]) + 0.1
        floor = site.is_clear(x, y, reach, reach)
        if floor is None:
            continue
        tint = terrain.tint_of(generator, group)
        if ground.stand(item.load(), x, y, floor, angle, tint):
            added.append((x, y))
    return added
