# SPDX-License-Identifier: Apache-2.0
"""The furnishing catalog: pieces of the asset packages by group and room, in real size, read when first drawn.

What is drawn depends on the generator and on the packages alone, never on what was drawn or found broken before: a
broken piece is found again, noted again and replaced by the same next draw.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openmarigold_render.assets import GAME_MODELS, GAME_TEXTURES, Assets, has_cutout
from openmarigold_render.core import DataError
from openmarigold_render.scene import (
    GROUPS,
    Catalog,
    Color,
    Item,
    Material,
    Mesh,
    RoomKind,
    Vector,
)
from openmarigold_render.sweethome import FurnitureFile, Model, Piece
from openmarigold_render.wavefront import MtlMaterial

if TYPE_CHECKING:
    from openmarigold_render.gamemaps.meshes import GameMeshes
    from openmarigold_render.gamemaps.pieces import GameTextures

MAX_TRIANGLES: Mapping[str, int] = {"object": 70_000, "tree": 200_000}
_MAX_TRIANGLES = 130_000
_OWN_ROOM = 0.7  # share of pieces of the room's own category
_TRIES = 8

_ROOM_OF_CATEGORY: Mapping[str, RoomKind] = {
    "Living room": "living",
    "Bedroom": "bed",
    "Kitchen": "kitchen",
    "Bathroom": "bath",
    "Office": "office",
}
# Kitchen and bath fittings look wrong elsewhere; all else may stand in any room.
_FIXED = {"appliance", "wall"}

_LEFT_OUT = re.compile(
    r"socket|switch|plug|antenna|rj45|dimmer|iron railing|pool$|parking|arrow|crossing|^rails$|shipping|tatami"
    r"|escalator|elevator|staircase|^bill |hanging clothes|shower (head|curtain|door)|window (blind|shutter)"
    r"|^curtain|screen door|barnum|smoke|entry |intercom|faucet|sitting|lying|jacuzzi|hammock|sidewalk"
    r"|porch column|diving|sandpit|bathmat|\brug\b|carpet|doormat|air mattress|sleeping|number lock|cooktop"
    r"|induction|coathanger|clothes hanger|^dress$|skirt|trousers|jacket|^short$|motorbike|wire|emergency"
    r"|rail crossing|pallet$|fork lift|skateboard|stroller|tricycle|ceiling fan|surveillance|cctv|towel$"
    r"|contemporary"
)
# In this order; the first that fits a piece's name decides.
_BY_NAME: Sequence[tuple[str, str]] = (
    ("bed", r"\bbed$|\bcrib\b|futon$|hospital bed"),
    ("seat", r"sofa|couch|armchair|puff|ottoman"),
    ("chair", r"\bchair\b|\bchair with|stool|class seat|^bench$|piano bench"),
    ("table", r"\btable\b(?! fan)|\bdesk$|island(?! bath)|workbench|coffee table"),
    (
        "storage",
        r"cabinet|wardrobe|bookcase|shelves|chest$|dresser|cupboard|safe|tv stand|bedside|dressing table|trunck",
    ),
)
_NOT_TABLES = re.compile(r"bedside|dressing|changing|tennis|football|pool table")
_TREES = re.compile(
    r"acacia|^bamboo|coconut|pine|^bush$|beech|cypress|^ficus$|maple|palm|blossom|poplar|christmas tree", re.IGNORECASE
)
_STREET = re.compile(
    r"(?<!abdominal )(?<!work)bench|little bank|wood bank|lamppost|street l|park light|trash|hydrant|mailbox"
    r"|^fence$|pedestrian railing|flower box|plant box|fountain|garden hut|dog house|umbrella|stone lantern"
    r"|^rock$|^cone$|barrel|^crate$|swing|children game|trampoline|football goal|rowboat|snowman|wheelbarrow"
    r"|camping tent|recycling|seesaw|hedge|beach chair|deck chair|pool lounge|cafe|teck chair|rattan|child hut"
    r"|basketball net|wood logs|hose reel|outdoor lamp"
)
_CEILING = re.compile(r"ceiling lamp|chandelier|hanging|pendant|fluorescent light|track lights|^lamp$")
_METAL = re.compile(r"chrome|metal|steel|inox|alumin|silver|brass|iron", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class _Entry:
    item: Item
    room: RoomKind | None


class AssetCatalog:
    """Pieces and textures of the packages that are there; a fallback serves the groups that they lack.

    Attributes:
        broken: pieces that could not be read or are too heavy, and why, by name, as far as they were met.
    """

    def __init__(self, assets: Assets, fallback: Catalog | None = None) -> None:
        """Reads the catalogs' descriptions; meshes are read when drawn.

        Raises:
            DataError: a file is not a furniture catalog.
        """
        self.assets = assets
        self.broken: dict[str, str] = {}
        self._fallback = fallback
        self._groups: dict[str, list[_Entry]] = defaultdict(list)
        self._meshes: dict[tuple[str, Piece], Mesh | DataError] = {}  # two pieces may share a model in two sizes
        for file in assets.furniture:
            self.broken |= file.skipped
            for piece in file.pieces:
                group = group_of(piece)
                if group is not None:
                    item = self._furniture_item(file, piece, group)
                    self._groups[group].append(_Entry(item, _ROOM_OF_CATEGORY.get(piece.category)))
        self.game: GameMeshes | None = None
        self._game_textures: GameTextures | None = None
        if GAME_TEXTURES in assets.found:
            self._add_game()

    def items(self, group: str) -> tuple[Item, ...]:
        """All pieces of a group, broken ones included."""
        return tuple(entry.item for entry in self._groups[_known(group)])

    def draw(
        self,
        group: str,
        generator: np.random.Generator,
        *,
        room: RoomKind | None = None,
        max_size: Vector | None = None,
    ) -> Item | None:
        """One piece of a group whose mesh can be read; None where neither the packages nor the fallback have one."""
        entries = [entry for entry in self._groups[_known(group)] if _fits(entry.item, max_size)]
        own = [entry for entry in entries if room is not None and entry.room == room]
        others = [entry for entry in entries if entry.room is None or group not in _FIXED]
        if room is not None and room != "mixed":
            entries = own if own and generator.random() < _OWN_ROOM else own + others
        for _ in range(_TRIES if entries else 0):
            item = entries[int(generator.integers(len(entries)))].item
            try:
                item.load()
            except DataError as error:
                self.broken[item.name] = str(error)
                continue
            return item
        if self._fallback is not None:
            return self._fallback.draw(group, generator, room=room, max_size=max_size)
        return None

    def texture(self, use: str, generator: np.random.Generator) -> Path | None:
        """A texture of the game for a use; None where there is none, so that a pattern takes its place."""
        if self._game_textures is not None:
            names = self._game_textures.names_for(use)
            for _ in range(_TRIES if names else 0):
                name = names[int(generator.integers(len(names)))]
                try:
                    return self._game_textures.file(name)
                except DataError as error:
                    self.broken[name] = str(error)
        return None if self._fallback is None else self._fallback.texture(use, generator)

    def _add_game(self) -> None:
        """Takes in what the game's packages offer. Only here are their readers imported."""
        from openmarigold_render.gamemaps.meshes import GameMeshes
        from openmarigold_render.gamemaps.pieces import GameTextures, game_items

        self._game_textures = GameTextures(self.assets)
        if GAME_MODELS in self.assets.found:
            self.game = GameMeshes(self.assets)
            for item in game_items(self.game, self.broken):
                self._groups[item.group].append(_Entry(item, None))

    def _furniture_item(self, file: FurnitureFile, piece: Piece, group: str) -> Item:
        source = f"sweethome3d-furniture/{file.path.name}/{piece.model}"

        def load() -> Mesh:
            if (source, piece) not in self._meshes:
                try:
                    self._meshes[source, piece] = self._read(file, piece, group, source)
                except DataError as error:
                    self._meshes[source, piece] = error
            found = self._meshes[source, piece]
            if isinstance(found, DataError):
                raise found
            return found

        lamp = piece.lamp_height
        if lamp is None and piece.category == "Lights":
            lamp = 0.3 * piece.size[2] if group == "ceiling" else 0.75 * piece.size[2]
        return Item(
            name=f"{file.path.stem}: {piece.name}",
            group=group,
            size=piece.size,
            load=load,
            elevation=piece.elevation,
            lamp_height=lamp,
        )

    def _read(self, file: FurnitureFile, piece: Piece, group: str, source: str) -> Mesh:
        model = file.load(piece)
        count, most = len(model.mesh.triangles), MAX_TRIANGLES.get(group, _MAX_TRIANGLES)
        if count > most:
            raise DataError(f"{source} has {count:,} triangles, more than {most:,}; it is left out")
        return _mesh(model, piece, group, source, self.assets, file)


def group_of(piece: Piece) -> str | None:
    """The group of `GROUPS` that a piece belongs to; None: of no use in scenes."""
    name, (width, depth, height) = piece.name.lower(), piece.size
    if piece.is_door_or_window:
        return _door_or_window(name)
    if _LEFT_OUT.search(name) or piece.category in ("Staircases", "Doors and windows"):
        return None
    if piece.category == "Characters":
        return "character"
    if piece.category == "Vehicles":
        return _vehicle(name, depth)
    if piece.category == "Lights" and piece.elevation >= 1.2:
        return "ceiling" if _CEILING.search(name) else "wall"
    if _TREES.search(name) and height > 1.2:
        return "tree"
    if _STREET.search(name) and piece.category in ("Exterior", "Lights", "Miscellaneous"):
        return "street"
    if piece.elevation >= 0.3:
        return "wall" if 0.3 <= piece.elevation <= 2.1 and depth < 0.8 else None
    if height > 0.3 and re.search(r"bedside|stool", name):
        return _floor_group(piece)
    if 0.015 <= height <= 0.5 and max(width, depth) < 0.5:
        return "object"
    if piece.category == "Exterior" or not (0.3 < height < 2.7 and 0.25 < max(width, depth) < 2.9):
        return None
    return _floor_group(piece)


def _floor_group(piece: Piece) -> str:
    name, height = piece.name.lower(), piece.size[2]
    for group, words in _BY_NAME:
        if group == "table" and (_NOT_TABLES.search(name) or not 0.3 <= height <= 1.15):
            continue
        if re.search(words, name):
            return group
    if name in ("bedside table", "dressing table", "changing table"):
        return "storage"
    return "appliance" if piece.category in ("Kitchen", "Bathroom") else "decor"


def _door_or_window(name: str) -> str | None:
    if "garage" in name or "elevator" in name:
        return None
    return "window" if "window" in name else "door"


def _vehicle(name: str, depth: float) -> str | None:
    if re.search(r"bicycle|bike|scooter|yamaha", name):
        return "cycle" if depth > 1.1 else None
    return "vehicle" if depth > 2.0 else None


def _known(group: str) -> str:
    if group not in GROUPS:
        raise DataError(f"there is no group {group!r} of furnishings; there are {', '.join(GROUPS)}")
    return group


def _fits(item: Item, max_size: Vector | None) -> bool:
    return max_size is None or all(size <= most for size, most in zip(item.size, max_size, strict=True))


def _mesh(model: Model, piece: Piece, group: str, source: str, assets: Assets, file: FurnitureFile) -> Mesh:
    mesh = model.mesh
    keep = np.ones(len(mesh.triangles), bool)
    materials: list[Material] = []
    number_of = np.zeros(len(mesh.material_names), np.int32)
    for number, title in enumerate(mesh.material_names):
        if title not in model.materials:  # named, but no triangle has it
            continue
        found = model.materials[title]
        # Panes: what is behind them has the depth.
        if found.alpha < (0.75 if piece.is_door_or_window else 0.04):
            keep &= mesh.material != number
            continue
        number_of[number] = len(materials)
        materials.append(_material(title, found, group, assets, file))
    if not keep.any():
        raise DataError(f"{source} is invisible; it is left out")
    triangles = _outward(model)[keep]
    used, faces = np.unique(triangles, return_inverse=True)
    reverse = triangles[:, 0] != mesh.triangles[keep][:, 0]
    uvs = mesh.uv[keep]
    uvs[reverse] = uvs[reverse][:, ::-1]
    return Mesh(
        name=piece.name,
        vertices=model.vertices[used].astype(np.float32),
        faces=faces.reshape(-1, 3).astype(np.int32),
        uvs=uvs,
        face_materials=number_of[mesh.material[keep]],
        materials=_tinted(materials, number_of[mesh.material[keep]], model.vertices[triangles], group),
        smooth=True,
        source=source,
    )


def _outward(model: Model) -> np.ndarray:
    # Some files wind triangles against their own normals; the normals are what their authors saw.
    mesh = model.mesh
    corners = mesh.vertices[mesh.triangles]
    turns = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    reverse = np.einsum("tc,tc->t", turns, mesh.normals.sum(1, dtype=np.float64)) < 0
    if np.linalg.det(model.axes) < 0:
        reverse = ~reverse
    triangles = mesh.triangles.copy()
    triangles[reverse] = triangles[reverse][:, ::-1]
    return triangles


def _material(title: str, found: MtlMaterial, group: str, assets: Assets, file: FurnitureFile) -> Material:
    texture = None
    if found.color_map is not None:
        name = f"sweethome3d-furniture/{file.path.name}/{found.color_map}"
        alpha_map = found.alpha_map
        alpha = None if alpha_map in (None, found.color_map) else lambda: file.read(str(alpha_map))
        texture = assets.texture(name, lambda: file.read(str(found.color_map)), alpha)
    metallic = 0.9 if texture is None and found.alpha > 0.95 and _METAL.search(title) else 0.0
    shine = 0.0 if found.shininess is None or max(found.specular) < 0.02 else found.shininess
    roughness = float(np.clip(1.0 - np.sqrt(shine / 1000.0), 0.12, 0.95)) if shine else 0.7
    return Material(
        name=title or "plain",
        base_color=_moderate(found.color),
        texture=texture,
        cutout=texture is not None and has_cutout(texture),
        roughness=min(roughness, 0.35) if metallic else roughness,
        metallic=metallic,
        transmission=0.0 if found.alpha > 0.95 or texture is not None else 1.0 - found.alpha,
        tinted=group not in ("character", "vehicle"),
    )


def _tinted(materials: Iterable[Material], number: np.ndarray, points: np.ndarray, group: str) -> tuple[Material, ...]:
    # Of a car only the paint: what covers most of it and is not a picture.
    materials = list(materials)
    if group == "vehicle":
        areas = np.linalg.norm(np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]), axis=1)
        covered = np.bincount(number, areas, len(materials))
        plain = [n for n, one in enumerate(materials) if one.texture is None and one.transmission == 0]
        if plain:
            paint = max(plain, key=lambda n: covered[n])
            materials[paint] = _with_tint(materials[paint])
    return tuple(materials)


def _with_tint(material: Material) -> Material:
    return Material(**{**vars(material), "tinted": True})


def _moderate(color: Color) -> Color:
    # Files hold sRGB; pure black and white are unreal.
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    red, green, blue = (float(np.clip(value, 0.015, 0.85)) for value in linear)
    return red, green, blue
