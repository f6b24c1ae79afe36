# SPDX-License-Identifier: Apache-2.0
"""Free furniture, maps and textures: sources, places on disk, and attributions of those that were used.

The assets are Debian packages that the user installs or unpacks; nothing of them is part of this repository. An asset's
name is `package/archive/file`, as in `ufoai-maps/0maps.pk3/maps/village.bsp`; it is in `Mesh.source`, and a
texture's name follows from where its copy lies in the cache.
"""

from __future__ import annotations

import fnmatch
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from openmarigold_render.core import Archive, DataError, one_line, open_archive, user_cache_dir, write_atomically
from openmarigold_render.scene import Scene
from openmarigold_render.sweethome import FurnitureFile

MAX_TEXTURE_SIZE = 1024
_JPEG_QUALITY = 95
_SYSTEM = Path("/usr/share")
_FURNITURE = "sweethome3d-furniture"
GAME_MAPS, GAME_TEXTURES, GAME_MODELS = "ufoai-maps", "ufoai-textures", "ufoai-data"
_SOLID = 0.995  # a texture with more than this share of opaque texels has no holes


@dataclass(frozen=True, kw_only=True)
class Package:
    """A Debian package with assets.

    Attributes:
        size_mb: of the download [MB].
        files: what it brings, below `usr/share`.
        doc_root: folder that the names in its copyright file are relative to, seen from the archives' insides.
    """

    name: str
    size_mb: int
    holds: str
    licenses: str
    files: tuple[str, ...]
    doc_root: str = ""


PACKAGES: Mapping[str, Package] = {
    package.name: package
    for package in (
        Package(
            name=_FURNITURE,
            size_mb=120,
            holds="820 pieces of furniture, small things, people, trees and cars in real size (Sweet Home 3D)",
            licenses="CC0, CC BY 3.0, CC BY 3.0 US",
            files=("sweethome3d/furniture/*.sh3f",),
        ),
        Package(
            name=GAME_MAPS,
            size_mb=379,
            holds="891 maps: streets, villages, farms, harbors (UFO: Alien Invasion)",
            licenses="GPL-2+, GPL-3+, GPL-2, CC BY-SA 3.0, CC BY 3.0, Expat, public domain",
            files=("games/ufoai/base/0maps.pk3",),
            doc_root="base/",
        ),
        Package(
            name=GAME_TEXTURES,
            size_mb=336,
            holds="textures of walls, floors, grounds and pictures; the maps need them",
            licenses="GPL-2+, GPL-3+, GPL-2, CC BY-SA 3.0, CC BY 3.0, Expat, public domain",
            files=("games/ufoai/base/0textures.pk3",),
            doc_root="base/",
        ),
        Package(
            name=GAME_MODELS,
            size_mb=312,
            holds="models of trees, cars and street furniture; the maps need them",
            licenses="GPL-2+, GPL-3+, GPL-2, CC BY-SA 3.0, CC BY 3.0, public domain",
            files=("games/ufoai/base/0models.pk3",),
            doc_root="base/",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """The author of an asset and its license."""

    asset: str
    title: str
    creator: str
    license: str
    package: str


def where(folder: Path) -> str:
    """Instructions for getting the assets: packages, their licenses, and how to unpack them without root."""
    names = " ".join(PACKAGES)
    rows = [
        f"  {package.name} ({package.size_mb} MB)\n    {package.holds}\n    licenses: {package.licenses}"
        for package in PACKAGES.values()
    ]
    return "\n".join(
        (
            "assets: furniture, objects, maps and textures for `openmarigold-render pictures`, from Debian's archive.",
            "Each may be left out; what is missing is made of procedural shapes.\n",
            *rows,
            "\nDebian or Ubuntu, as root (then --assets /usr/share):",
            f"  apt install {names}\n",
            "Without root, into a folder:",
            f"  mkdir -p {folder} && cd {folder}",
            f"  apt-get download {names}",
            '  for package in *.deb; do dpkg-deb -x "$package" .; done && rm *.deb',
            "Elsewhere, get the .deb files from https://packages.debian.org and unpack each:",
            "  ar x NAME.deb && tar -xf data.tar.xz\n",
            "Then give the folder: openmarigold-render pictures mix --assets " + str(folder),
            "The pictures derive from these works. Who made what is used, and the terms, goes into the data set's",
            "manifest; the packages' copyright files (usr/share/doc/NAME/copyright) have the full texts.",
        )
    )


class Assets:
    """The packages that are there, their files by name, and textures as files on disk.

    Attributes:
        found: the archives of each package that is there, sorted.
    """

    def __init__(self, folder: Path | None = None, *, cache_dir: Path | None = None) -> None:
        """Looks in `folder`, by default in /usr/share.

        Args:
            folder: a folder that packages were unpacked into, one like /usr/share, or one with the archives themselves.
            cache_dir: where copies of textures are kept, by default the user's cache.

        Raises:
            DataError: there is none of the packages.
        """
        self._roots = (_SYSTEM,) if folder is None else (folder / "usr" / "share", folder / "share", folder)
        self.found: dict[str, tuple[Path, ...]] = {}
        for package in PACKAGES.values():
            paths = self._find(package)
            if paths:
                self.found[package.name] = paths
        if not self.found:
            wanted = ", ".join(PACKAGES)
            raise DataError(
                f"{folder or _SYSTEM} holds none of the packages {wanted}; `openmarigold-render assets` says how to"
                " get them, and without --assets scenes are made of procedural shapes"
            )
        self.cache_dir = (cache_dir or user_cache_dir()) / "assets"
        self._archives: dict[Path, Archive] = {}

    @cached_property
    def furniture(self) -> tuple[FurnitureFile, ...]:
        """The furniture catalogs, sorted by name."""
        return tuple(FurnitureFile(path) for path in self.found.get(_FURNITURE, ()))

    def archive(self, package: str) -> GameArchive:
        """The one .pk3 archive of a package of the game.

        Raises:
            DataError: the package is not there, or its archive is damaged.
        """
        if package not in self.found:
            raise DataError(f"{package} is not there; `openmarigold-render assets` says how to get it")
        path = self.found[package][0]
        if path not in self._archives:
            self._archives[path] = open_archive(path)
        return GameArchive(package, path, self._archives[path])

    def texture(self, name: str, read: Callable[[], bytes], alpha: Callable[[], bytes] | None = None) -> Path:
        """A copy of a texture in the cache, at most 1024 pixels long; made if it is not there.

        Args:
            name: of the asset: package/archive/file.
            alpha: gives another picture whose brightness becomes the alpha channel.

        Raises:
            DataError: the picture is damaged.
            OutputError: the cache cannot be written.
        """
        stem = self.cache_dir / PurePosixPath(name).with_suffix("")
        for suffix in (".png", ".jpg"):
            path = stem.with_name(f"{stem.name}{'+alpha' if alpha else ''}{suffix}")
            if path.exists():
                return path
        picture = _decode(read(), name)
        if alpha is not None:
            mask = _decode(alpha(), name).convert("L").resize(picture.size)
            picture = picture.convert("RGB")
            picture.putalpha(mask)
        has_alpha = picture.mode == "RGBA"
        path = stem.with_name(f"{stem.name}{'+alpha' if alpha else ''}{'.png' if has_alpha else '.jpg'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {} if has_alpha else {"quality": _JPEG_QUALITY}
        kind = "PNG" if has_alpha else "JPEG"
        write_atomically(path, lambda temporary: picture.save(temporary, kind, **options))
        return path

    def sources(self, scene: Scene) -> tuple[str, ...]:
        """Names of all assets in a scene, sorted. Textures that belong to a model go with it."""
        names = set(scene.sources)
        for mesh in {id(one.mesh): one.mesh for one in scene.instances}.values():
            for material in mesh.materials:
                if material.texture is not None and material.texture.is_relative_to(self.cache_dir):
                    names.add(material.texture.relative_to(self.cache_dir).as_posix())
        return tuple(sorted(name for name in names if not _is_part_of_a_model(name)))

    def attributions(self, names: Iterable[str]) -> list[Attribution]:
        """Authors and licenses of assets, sorted by name; for a data set's manifest."""
        return [self._attribution(name) for name in sorted(set(names))]

    def _attribution(self, name: str) -> Attribution:
        package, archive, inner = name.split("/", maxsplit=2)
        title, creator = PurePosixPath(inner).stem, ""
        if package == _FURNITURE:
            for file in self.furniture:
                if file.path.name == archive:
                    piece = file.by_model.get(inner)
                    title, creator = (piece.name, piece.creator) if piece else (title, creator)
            documented = f"{PurePosixPath(archive).stem}/{inner}"
        else:
            documented = PACKAGES[package].doc_root + inner
        notice, license = self._notices(package).find(documented)
        creator = "; ".join(part for part in (creator, notice) if part)
        return Attribution(asset=name, title=title, creator=creator, license=license, package=package)

    def _notices(self, package: str) -> Notices:
        if package not in self._read_notices:
            self._read_notices[package] = Notices.read(self._roots, package)
        return self._read_notices[package]

    @cached_property
    def _read_notices(self) -> dict[str, Notices]:
        return {}

    def _find(self, package: Package) -> tuple[Path, ...]:
        for root in self._roots:
            for pattern in package.files:
                for below in (pattern, PurePosixPath(pattern).name):
                    paths = tuple(sorted(path for path in root.glob(below) if path.is_file()))
                    if paths:
                        return paths
        return ()


@dataclass(frozen=True)
class GameArchive:
    """A .pk3 archive, a ZIP whose files are asked for without regard to case."""

    package: str
    path: Path
    archive: Archive

    @property
    def names(self) -> dict[str, str]:
        """Names of the files, keyed by the same in lower case."""
        return {name.lower(): name for name in sorted(self.archive.names)}

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the files when unpacked [bytes]."""
        with zipfile.ZipFile(self.path) as file:
            return {info.filename: info.file_size for info in file.infolist() if not info.is_dir()}

    def read(self, name: str) -> bytes:
        return self.archive.read(name)

    def asset_name(self, name: str) -> str:
        """The asset's name in `Mesh.source` and in attributions."""
        return f"{self.package}/{self.path.name}/{name}"


def manifest_rows(attributions: Iterable[Attribution]) -> list[dict[str, str]]:
    """Attributions as a manifest stores them."""
    return [
        {
            "asset": one.asset,
            "title": one.title,
            "creator": one.creator,
            "license": one.license,
            "package": one.package,
        }
        for one in attributions
    ]


class Notices:
    """Copyright notice and license of each file, from a Debian copyright file.

    Source: machine-readable debian/copyright file, version 1.0.
    """

    def __init__(self, paragraphs: Iterable[tuple[tuple[str, ...], str, str]], fallback: tuple[str, str]) -> None:
        """Takes patterns, copyright and license of each paragraph, in order; the last that fits a file counts."""
        self._exact: dict[str, tuple[str, str]] = {}
        self._globs: list[tuple[str, tuple[str, str]]] = []
        self._fallback = fallback
        for patterns, notice, license in paragraphs:
            for pattern in patterns:
                if set(pattern) & set("*?"):
                    self._globs.append((pattern, (notice, license)))
                else:
                    self._exact[pattern.lower()] = (notice, license)

    @classmethod
    def read(cls, roots: Iterable[Path], package: str) -> Notices:
        """Reads `doc/PACKAGE/copyright` below one of the roots; without it the package's licenses stand for all."""
        paths = [root / "doc" / package / "copyright" for root in roots]
        path = next((path for path in paths if path.is_file()), None)
        fallback = ("", PACKAGES[package].licenses)
        if path is None:
            return cls((), fallback)
        return cls(_paragraphs(path.read_text(encoding="utf-8", errors="replace")), fallback)

    def find(self, name: str) -> tuple[str, str]:
        """Copyright notice and license of a file, by its name as the copyright file has it."""
        # Textures in the cache may have another suffix than the original.
        stem = PurePosixPath(name.lower()).with_suffix("").as_posix().removesuffix("+alpha")
        for candidate in (name.lower(), *(f"{stem}{suffix}" for suffix in (".png", ".jpg", ".tga", ".jpeg"))):
            if candidate in self._exact:
                return self._exact[candidate]
        for pattern, found in reversed(self._globs):
            if fnmatch.fnmatch(name.lower(), pattern.lower()):
                return found
        return self._fallback


def _paragraphs(text: str) -> Iterable[tuple[tuple[str, ...], str, str]]:
    for block in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, list[str]] = {}
        key = ""
        for line in block.splitlines():
            match = re.match(r"([A-Za-z-]+):(.*)", line)
            if match:
                key = match[1].lower()
                fields[key] = [match[2].strip()]
            elif key:
                fields[key].append(line.strip())
        if "files" in fields and fields.get("license"):
            notice = ", ".join(line.rstrip(",") for line in fields.get("copyright", ()) if line)
            yield tuple(" ".join(fields["files"]).split()), notice, fields["license"][0]


@cache
def has_cutout(path: Path) -> bool:
    """Whether a texture has holes: at least 0.5 % of its texels are more clear than solid."""
    if path.suffix != ".png":
        return False
    with Image.open(path) as picture:
        if "A" not in picture.getbands():
            return False
        alpha = np.asarray(picture.getchannel("A"))
    return bool((alpha >= 128).mean() < _SOLID)


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
        has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        picture = picture.convert("RGBA" if has_alpha else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} cannot be decoded ({one_line(error)}); leave the model out, or get it again"
        ) from error
    picture.thumbnail((MAX_TEXTURE_SIZE, MAX_TEXTURE_SIZE))
    if has_alpha and picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("RGB")
    return picture


def _is_part_of_a_model(name: str) -> bool:
    return name.startswith(f"{_FURNITURE}/") and not name.lower().endswith(".obj")
