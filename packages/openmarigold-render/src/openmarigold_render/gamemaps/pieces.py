# SPDX-License-Identifier: Apache-2.0
"""Which models of the game stand in scenes as pieces of furnishing, and which of its textures serve for what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from openmarigold_render.assets import GAME_TEXTURES, Assets
from openmarigold_render.core import DataError
from openmarigold_render.gamemaps.meshes import GameMeshes
from openmarigold_render.scene import Item, merged, place, rescaled

# Models of the game that stand on their own: name, group, parts (above one another as they are), factor to real size.
_GAME_MODELS: Sequence[tuple[str, str, tuple[str, ...], float]] = (
    ("park bench", "street", ("city/parkbench/parkbench",), 1.0),
    ("garbage can", "street", ("city/garbagecan/garbagecan",), 0.9),
    ("waste container", "street", ("city/waste/container_closed",), 0.9),
    ("open waste container", "street", ("city/waste/container_opened",), 0.9),
    ("waste bag", "street", ("city/waste/bag",), 0.8),
    ("post box", "street", ("city/mailbox/mailbox",), 1.0),
    ("traffic sign", "street", ("city/trafficsign/sign",), 1.1),
    ("round traffic sign", "street", ("city/trafficsign/sign2",), 1.1),
    ("street light", "street", ("city/light/light1", "city/light/light2"), 1.3),
    ("fuel barrel", "street", ("barrel_fuel/barrel_fuel",), 0.9),
    ("plastic barrel", "street", ("barrel_plastic/barrel_plastic",), 1.0),
    ("tent", "street", ("tent/tent",), 1.0),
    ("concrete mixer", "street", ("construct/mixer/mixer",), 0.9),
    ("skip", "street", ("construct/container/container",), 1.0),
    ("vendor's cart", "street", ("city/vendorcart/vendor_cart",), 1.0),
    ("water tower", "street", ("city/watertower/watertower",), 1.3),
    ("saloon car", "vehicle", ("cars/car3/car3",), 0.95),
    ("old car", "vehicle", ("cars/car4/car",), 0.9),
    ("police car", "vehicle", ("cars/policecar/policecar",), 1.08),
    ("cross-country car", "vehicle", ("cars/landy/landy",), 1.1),
    ("jeep", "vehicle", ("cars/jeep/jeep",), 1.1),
    ("wide cross-country car", "vehicle", ("cars/hummer/hummer",), 0.87),
    ("transporter", "vehicle", ("cars/transporter/transporter",), 0.95),
    ("large van", "vehicle", ("cars/van3/van",), 1.0),
    ("tractor", "vehicle", ("vehicles/tractor/tractor",), 1.1),
    ("touring bicycle", "cycle", ("vehicles/bicycle/bicycle",), 0.9),
    ("motorcycle", "cycle", ("vehicles/motorbike/motorbike",), 1.25),
    ("chestnut", "tree", ("vegi/chestnut/chestnut_stamm2", "vegi/chestnut/chestnut_blaetter2"), 1.6),
    ("tall chestnut", "tree", ("vegi/chestnut/chestnut_stamm3", "vegi/chestnut/chestnut_blaetter3"), 1.7),
    ("leafy tree", "tree", ("vegi/treed/treed_trunk01", "vegi/treed/treed_leaves01"), 1.9),
    ("gum tree", "tree", tuple(f"vegi/gumtree/gum_tree_{part}" for part in ("trunk_l1", "trunk_l2", "branch")), 1.5),
    ("pine", "tree", tuple(f"vegi/pino/{part}" for part in ("pino1", "pino2", "pino2_leaves")), 1.5),
    ("tall pine", "tree", tuple(f"vegi/pino/{p}" for p in ("pino1", "pino2", "pino3", "pino3_leaves")), 1.5),
    ("bare tree", "tree", tuple(f"vegi/tree_dead/tree_dead{part}" for part in (1, 2, 3)), 1.3),
    ("young tree", "tree", ("vegi/tree03/tree03",), 2.0),
    ("large fern", "tree", ("vegi/plant_v1/plant_v1",), 1.0),
)

# Textures of the game by use; the names leave out those with markings that only fit one place.
_TEXTURE_USES: Mapping[str, str] = {
    "wall": r"tex_(ctp1/(bricks|concrete_(?!b)|stucco|wall|wallpaper)_?|buildings/(wall0(?!39)|concrete"
    r"|cementwall)|trak/trak4_(brick|concrete|plaster)|buildings_snow/wall|mattn/(brick|concrete"
    r"|stone|wall))",
    "floor": r"tex_(buildings/(floor0|carpet0)|ctp1/(tiles|marble|wood)_|mattn/(floor0|carpet)"
    r"|material/wood0)",
    "picture": r"tex_pics/(art_|landsc|asia|cow|dragon|science)",
    "ground": r"tex_(nature/(desert00[13489]|dirt(00[123])?|drymud|soil|sand|snow00|rockyground)|mattn/(dirt"
    r"|sand)0|ctp1/(dirt|ground|pebbles)_)",
    "lawn": r"tex_(nature/grass(00[14]|_lush|_mowed_(green|dry)_[abc]$|_tall_green)|ctp1/grass_"
    r"|mattn/grass003)",
    "asphalt": r"tex_(ctp1/(asphalt|ground_g_1)|streets/(base$|street00[14]))",
    "pavement": r"tex_(buildings/concrete_slabs|ctp1/(tiles_g_[124]|concrete_g_[456])|mattn/stone002)",
    "facade": r"tex_(ctp1/(bricks_([cgmrtw]_\d)|stucco|concrete_(g|p)_)|buildings/(wall0(07$|11|13|19|20|22"
    r"|28|32|36|37)|wall_brick|wall_se(07|12|14|15))|mattn/brick03$|trak/trak4_brick)",
    "roof": r"tex_(ctp1/roof_|mattn/roof0(?!06|12))",
    "fabric": r"tex_(furniture/(textil|jap_carpet)|ctp1/curtains)",
}
_NOT_COLOR = re.compile(r"_(nm|sm|gm|dm|rm|fx\d|glow)$")


class GameTextures:
    """The textures of the game by use, and their files."""

    def __init__(self, assets: Assets) -> None:
        """Opens the archive of textures.

        Raises:
            DataError: it is not there, or damaged.
        """
        self._assets = assets
        self._archive = assets.archive(GAME_TEXTURES)
        self._by_use: dict[str, list[str]] = {}

    def names_for(self, use: str) -> list[str]:
        """Names of the textures that serve for a use, sorted; none for an unknown use."""
        if use not in self._by_use:
            stems = (
                (name, name.rsplit(".", 1)[0].removeprefix("textures/").lower())
                for name in self._archive.names.values()
            )
            pattern = re.compile(_TEXTURE_USES[use]) if use in _TEXTURE_USES else None
            self._by_use[use] = [
                name for name, stem in stems if pattern and pattern.match(stem) and not _NOT_COLOR.search(stem)
            ]
        return self._by_use[use]

    def file(self, name: str) -> Path:
        """The file of a texture, by its path in the archive.

        Raises:
            DataError: it is damaged.
        """
        return self._assets.texture(self._archive.asset_name(name), lambda: self._archive.read(name))


def game_items(meshes: GameMeshes, broken: dict[str, str]) -> Iterator[Item]:
    """The pieces that can be read; the others go into `broken`, with the reason."""
    for name, group, parts, factor in _GAME_MODELS:
        try:
            yield _game_item(meshes, name, group, parts, factor)
        except DataError as error:
            broken[name] = str(error)


def _game_item(meshes: GameMeshes, name: str, group: str, parts: tuple[str, ...], factor: float) -> Item:
    mesh = merged(name, [(meshes.model(f"objects/{part}.md2"), np.eye(4)) for part in parts])
    width, depth, height = (float(value) * factor for value in mesh.size)
    if group in ("vehicle", "cycle") and width > depth:  # lengthwise along y, as in the furniture catalogs
        mesh = merged(name, [(mesh, place(0.0, 0.0, 0.0, np.pi / 2))])
        width, depth = depth, width
    mesh = rescaled(mesh, (width, depth, height))
    return Item(name=name, group=group, size=(width, depth, height), load=lambda: mesh)
