# SPDX-License-Identifier: Apache-2.0
"""Maps and models of UFO: Alien Invasion as meshes with materials."""

from __future__ import annotations

import io
import math
import re
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from openmarigold_render.assets import GAME_MODELS, GAME_TEXTURES, Assets, GameArchive, has_cutout
from openmarigold_render.core import DataError, one_line
from openmarigold_render.gamemaps import quake
from openmarigold_render.scene import Instance, Material, Mesh, place

_PICTURES = (".png", ".jpg", ".tga")
_WATER = re.compile(r"water(?!tower)")
# Surfaces that shine in the daylight; all others are rough.
_GLOSSY = re.compile(r"window|glass|marble|metal|tile|water|car_|ice0")
_PLANTS = re.compile(r"/vegi/|fence|leaves|grass")


class GameMeshes:
    """Reads meshes out of the game's archives; each once, so that the same object comes back."""

    def __init__(self, assets: Assets) -> None:
        """Opens the archives of textures and models.

        Raises:
            DataError: one of them is not there, or damaged.
        """
        self._assets = assets
        self._textures = assets.archive(GAME_TEXTURES)
        self._models = assets.archive(GAME_MODELS)
        self._texture_names = self._textures.names
        self._model_names = self._models.names
        self._meshes: dict[tuple[str, int], Mesh] = {}

    def model(self, path: str, skin: int = 0) -> Mesh:
        """An MD2 model in meters, in its own axes and with its own origin.

        Args:
            path: as maps give it, with or without the leading `models/`.

        Raises:
            DataError: there is no such model or skin, or it is damaged.
        """
        low = path.lower().lstrip("/")
        low = low if low in self._model_names else f"models/{low}"
        if low not in self._model_names:
            raise DataError(f"{self._models.path} holds no {path}; the map is of another version, leave it out")
        if (low, skin) not in self._meshes:
            name = self._model_names[low]
            label = self._models.asset_name(name)
            model = quake.read_md2(self._models.read(name), label)
            self._meshes[low, skin] = Mesh(
                name=PurePosixPath(name).stem,
                vertices=model.vertices,
                faces=model.triangles,
                uvs=model.uv,
                face_materials=np.zeros(len(model.triangles), np.int32),
                materials=(self._skin_material(model, name, skin, label),),
                smooth=True,
                source=label,
            )
        return self._meshes[low, skin]

    def map(self, maps: GameArchive, name: str) -> list[Instance]:
        """The surfaces of a map and the models that stand in it, in meters.

        Raises:
            DataError: the map is damaged. Models that are missing or damaged are left out.
        """
        label = maps.asset_name(name)
        parsed = quake.read_bsp(maps.read(name), label)
        instances = [Instance(self._surfaces(parsed, PurePosixPath(name).stem, label), np.eye(4), "map")]
        for number, entity in enumerate(parsed.entities):
            if entity.get("classname") == "misc_model" and entity.get("model", "").lower().endswith(".md2"):
                try:
                    instances.append(self._placed(entity, f"model-{number}"))
                except DataError:
                    continue
        return instances

    def _placed(self, entity: dict[str, str], name: str) -> Instance:
        skin = quake.vector_of(entity, "skin", 1)
        mesh = self.model(entity["model"], int(skin[0]) if skin else 0)
        origin = quake.vector_of(entity, "origin", 3)
        if origin is None:
            raise DataError(f"{entity['model']} has no position in the map; it is left out")
        angles = quake.vector_of(entity, "angles", 3)
        angle = quake.vector_of(entity, "angle", 1)
        yaw = angles[1] if angles else angle[0] if angle else 0.0
        one = quake.vector_of(entity, "modelscale", 1)
        scale = quake.vector_of(entity, "modelscale_vec", 3) or (one * 3 if one else (1.0, 1.0, 1.0))
        x, y, z = (value / quake.UNITS_PER_METER for value in origin)
        return Instance(mesh, place(x, y, z, math.radians(yaw)) @ np.diag([*scale, 1.0]), name)

    def _surfaces(self, parsed: quake.QuakeMap, name: str, label: str) -> Mesh:
        keep = np.ones(len(parsed.triangles), bool)
        materials: list[Material] = []
        place_of = np.zeros(len(parsed.textures), np.int32)
        sizes = np.ones((len(parsed.textures), 2))
        for number in np.unique(parsed.surface):
            texture, flags = parsed.textures[number], parsed.flags[number]
            path, size = self._map_texture(texture)
            sizes[number] = size
            has_holes = path is not None and bool(flags & (quake.ALPHA_TEST | quake.TRANSLUCENT)) and has_cutout(path)
            if flags & quake.TRANSLUCENT == 0x10 and not has_holes and not _WATER.search(texture):
                keep &= parsed.surface != number  # a clear pane
                continue
            rough = 0.12 if _WATER.search(texture) else 0.35 if _GLOSSY.search(texture) else 0.85
            material = Material(name=texture, texture=path, cutout=has_holes, roughness=rough)
            if material not in materials:  # most faces have an entry of their own
                materials.append(material)
            place_of[number] = materials.index(material)
        if not keep.any():
            raise DataError(f"{label} has nothing but clear panes; leave it out")
        surface = parsed.surface[keep]
        uv = parsed.texels[keep] / sizes[surface][:, None]
        uv[..., 1] = 1.0 - uv[..., 1]
        return Mesh(
            name=name,
            vertices=parsed.vertices,
            faces=parsed.triangles[keep],
            uvs=uv.astype(np.float32),
            face_materials=place_of[surface],
            materials=tuple(materials),
            source=label,
        )

    def _map_texture(self, texture: str) -> tuple[Path | None, tuple[int, int]]:
        for suffix in _PICTURES:
            name = self._texture_names.get(f"textures/{texture}{suffix}")
            if name is not None:
                path = self._assets.texture(
                    self._textures.asset_name(name), lambda name=name: self._textures.read(name)
                )
                return path, self._size(name)
        return None, (64, 64)  # never seen in the packages; gray then

    @cache  # noqa: B019  one object a process, and few textures
    def _size(self, name: str) -> tuple[int, int]:
        # Of the original: texture coordinates count its texels, and the copy may be smaller.
        try:
            with Image.open(io.BytesIO(self._textures.read(name))) as picture:
                return picture.size
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{self._textures.asset_name(name)} cannot be decoded ({one_line(error)})") from error

    def _skin_material(self, model: quake.QuakeModel, name: str, skin: int, label: str) -> Material:
        if not model.skins:
            raise DataError(f"{label} has no skin; leave it out")
        given = model.skins[min(max(skin, 0), len(model.skins) - 1)].lower()
        folder = PurePosixPath(name).parent
        stem = (folder / given[1:]).as_posix() if given.startswith(".") else given
        for candidate in (stem, f"models/{stem}"):
            for suffix in ("", *_PICTURES):
                file = self._model_names.get(f"{candidate}{suffix}".lower())
                if file is not None and PurePosixPath(file).suffix.lower() in _PICTURES:
                    path = self._assets.texture(
                        self._models.asset_name(file), lambda file=file: self._models.read(file)
                    )
                    # Elsewhere the alpha channel of a skin is a mask for shine.
                    cutout = bool(_PLANTS.search(file.lower())) and has_cutout(path)
                    return Material(name=stem, texture=path, cutout=cutout, roughness=0.55)
        raise DataError(f"{label}: its skin {given!r} is nowhere in the archive; leave it out")
