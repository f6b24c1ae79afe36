# SPDX-License-Identifier: Apache-2.0
"""The catalog that needs no assets: procedural furniture and objects, every piece a new one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openmarigold_render.furniture import FURNITURE
from openmarigold_render.objects import OBJECTS
from openmarigold_render.prints import Prints
from openmarigold_render.scene import Catalog, Item, Mesh, RoomKind, Vector, rescaled

_TRIES = 4


class ProceduralCatalog:
    """Pieces made when they are drawn; what is drawn depends on the generator alone."""

    def __init__(self, folder: Path) -> None:
        """`folder` keeps the images of prints."""
        self.prints = Prints(folder)

    def draw(
        self,
        group: str,
        generator: np.random.Generator,
        *,
        room: RoomKind | None = None,
        max_size: Vector | None = None,
    ) -> Item | None:
        """See `Catalog.draw`."""
        for _ in range(_TRIES):
            mesh = self._make(group, generator, room)
            if mesh is None:
                return None
            size = mesh.size
            if max_size is None or bool((size <= max_size).all()):
                return _item(group, mesh, generator)
        return None

    def texture(self, use: str, generator: np.random.Generator) -> Path | None:
        """Pictures and rugs only; walls and floors are patterns."""
        if use == "rug":
            return self.prints.path("rug", generator)
        return self.prints.path("picture", generator) if use == "picture" else None

    def _make(self, group: str, generator: np.random.Generator, room: RoomKind | None) -> Mesh | None:
        if group == "object":
            kinds = list(OBJECTS.values())
            shares = np.array([share for share, _ in kinds])
            make = kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))][1]
        else:
            rows = FURNITURE.get(group, ())
            if not rows:
                return None
            usual = np.array(
                [share * (1.0 if not rooms or room is None or room in rooms else 0.05) for share, rooms, _ in rows]
            )
            make = rows[int(generator.choice(len(rows), p=usual / usual.sum()))][2]
        mesh = make(generator, self.prints)
        width, depth, height = mesh.size.tolist()
        return rescaled(mesh, (width, depth, height))


class MixedCatalog:
    """Two catalogs as one: each draw is from the first with a share, else from the second, and from the other one
    where that has nothing.
    """

    def __init__(self, first: Catalog, second: Catalog, *, share: float) -> None:
        self._first, self._second, self._share = first, second, share

    def draw(
        self,
        group: str,
        generator: np.random.Generator,
        *,
        room: RoomKind | None = None,
        max_size: Vector | None = None,
    ) -> Item | None:
        """See `Catalog.draw`."""
        for catalog in self._order(generator):
            item = catalog.draw(group, generator, room=room, max_size=max_size)
            if item is not None:
                return item
        return None

    def texture(self, use: str, generator: np.random.Generator) -> Path | None:
        """See `Catalog.texture`."""
        for catalog in self._order(generator):
            path = catalog.texture(use, generator)
            if path is not None:
                return path
        return None

    def _order(self, generator: np.random.Generator) -> tuple[Catalog, Catalog]:
        is_first = generator.random() < self._share
        return (self._first, self._second) if is_first else (self._second, self._first)


def _item(group: str, mesh: Mesh, generator: np.random.Generator) -> Item:
    width, depth, height = mesh.size.tolist()
    elevation = 0.0
    if group == "wall":
        elevation = (
            float(generator.uniform(1.3, 1.7))
            if "shelf" in mesh.name or "cupboard" in mesh.name
            else float(np.clip(generator.normal(1.55, 0.15) - 0.5 * height, 0.3, 2.2))
        )
    lamp_height = {"lamp": 0.8 * height, "floor lamp": 0.9 * height}.get(mesh.name)
    if group == "ceiling":
        lamp_height = -0.03
    return Item(
        name=mesh.name,
        group=group,
        size=(width, depth, height),
        load=lambda: mesh,
        elevation=elevation,
        lamp_height=lamp_height,
    )
