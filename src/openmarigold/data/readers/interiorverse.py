# SPDX-License-Identifier: Apache-2.0
"""InteriorVerse (Zhu et al., SIGGRAPH Asia 2022) from its folder or tar: albedo, roughness and metallicity.

The steps are those of the published preparation (github.com/prs-eth/Marigold, script/iid); docs/data.md.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from openmarigold.data.archives import Archive, first_named, open_archive
from openmarigold.data.decoding import FrameDefectError, check_size, decode_exr, read_member
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import Listing, RawDataSet, RawFrame, RawSample, damaged_archives
from openmarigold.data.shard_writer import Rejection
from openmarigold.errors import DataError
from openmarigold.images.exr import require_exr

ABOUT = RawDataSet(
    name="interiorverse",
    title="InteriorVerse: path-traced indoor scenes with albedo and material",
    num_images="27,198 in scenes_85",
    size="EXR files, five of each image",
    license="on request, for research; the terms come with the access",
    attribution="InteriorVerse, Zhu et al., SIGGRAPH Asia 2022, https://interiorverse.github.io",
    where="""\
Ask for access on https://interiorverse.github.io; of the two parts only scenes_85 is used, as published. Extracted, or
its tar as it is; of each image four files are read:
  {root}/interiorverse/scenes_85/<scene>/000_im.exr
  {root}/interiorverse/scenes_85/<scene>/000_albedo.exr
  {root}/interiorverse/scenes_85/<scene>/000_material.exr
  {root}/interiorverse/scenes_85/<scene>/000_mask.exr""",
)

_FILE = re.compile(r"(?:^|/)([^/]+)/(\d+)_(im|albedo|material|mask)\.exr$")
_PARTS = ("im", "albedo", "material", "mask")
_GAMMA = 1 / 2.2
_HALF = MapEncoding(kind="float16")
_MAX_SCENE = 60  # characters of a scene's name that a key can hold

_Place = tuple[str, int]


@dataclass(eq=False)
class InteriorVerseReader:
    """Frames of InteriorVerse: `<scene>/NNN_<part>.exr` anywhere below a folder or in a tar.

    Attributes:
        source: the folder or tar; `list_frames` reads it.
        split: what the result is for.
        scenes: only these; none: all.
        listed: frames to take, a line each that begins with the path of a file of the frame.

    Raises:
        MissingExtraError: without the extra `exr`.
    """

    source: Path
    _: KW_ONLY
    split: str = "train"
    scenes: tuple[str, ...] = ()
    listed: list[str] | None = None

    name = "interiorverse"
    modality = "appearance"
    valid_range = (0.0, float("inf"))

    def __post_init__(self) -> None:
        require_exr()
        self.encodings = {"albedo": _HALF, "roughness": _HALF, "metallicity": _HALF}
        self._archive: Archive | None = None

    def settings(self) -> dict[str, Any]:
        return {"gamma": 2.2}

    def list_frames(self) -> Listing:
        self._archive = archive = open_archive(self.source)
        found: dict[_Place, dict[str, str]] = {}
        for name in sorted(archive.names):
            if match := _FILE.search(name):
                found.setdefault((match[1], int(match[2])), {}).setdefault(match[3], name)
        if not found:
            raise DataError(f"{self.source} holds no <scene>/000_im.exr; see `openmarigold data where {self.name}`")
        unknown = sorted(set(self.scenes) - {scene for scene, _ in found})
        if unknown:
            raise DataError(f"{self.source} has no scene {unknown[0]}; --scenes takes names of its folders")
        wanted = sorted(found) if self.listed is None else self._listed_places()
        frames, rejected = [], damaged_archives(archive)
        for scene, number in wanted:
            if self.scenes and scene not in self.scenes:
                continue
            files = found.get((scene, number), {})
            name = f"{scene}/{number:03d}_im.exr"
            missing = [part for part in _PARTS if part not in files]
            if missing:
                rejected.append(Rejection(name=name, reason="missing file", detail=f"no {' and no '.join(missing)}"))
                continue
            key = f"{re.sub(r'[^A-Za-z0-9_-]', '_', scene)[:_MAX_SCENE]}-{number:03d}"
            frames.append(RawFrame(name=name, key=key, kind="rooms", scene=scene, files=files))
        notes = [*archive.notes, *archive.damage.values()]
        return Listing(frames=frames, rejected=rejected, notes=notes, archive=archive)

    def read(self, frame: RawFrame) -> RawSample:
        parts = {part: self._colors(frame.files[part]) for part in _PARTS}
        size = parts["im"].shape[:2]
        for part, pixels in parts.items():
            check_size(pixels, (size[0], size[1]), frame.files[part])
        if not np.isfinite(parts["im"]).all():
            raise FrameDefectError("color not finite", f"{int((~np.isfinite(parts['im'])).any(axis=2).sum())} pixels")
        known = (parts["mask"] != 0).all(axis=-1) & np.isfinite(parts["albedo"]).all(axis=-1)
        known &= np.isfinite(parts["material"][..., :2]).all(axis=-1)
        albedo = np.where(known[..., None], _encoded(parts["albedo"]), np.float32(0))
        material = np.where(known[..., None], np.clip(parts["material"], 0.0, 1.0), np.float32(0))
        maps = {"albedo": albedo, "roughness": material[..., 0].copy(), "metallicity": material[..., 1].copy()}
        rgb = np.rint(_encoded(parts["im"]) * 255).astype(np.uint8)
        return rgb, maps, {"source": frame.name}

    def _colors(self, name: str) -> Float32[np.ndarray, "h w 3"]:
        channels = decode_exr(read_member(self._archive, name), name)
        missing = sorted(set("RGB") - set(channels))
        if missing:
            held = ", ".join(sorted(channels))
            raise FrameDefectError("wrong format", f"{name} has the channels {held}; R, G and B are needed")
        return np.stack([channels[channel].astype(np.float32) for channel in "RGB"], axis=-1)

    def _listed_places(self) -> list[_Place]:
        places = []
        names = self._archive.names if self._archive is not None else ()
        for line in self.listed or ():
            match = _FILE.search(first_named(line, names))
            if match is None:
                raise DataError(f"--list: {line!r:.100} names no frame; each line begins with <scene>/000_im.exr")
            places.append((match[1], int(match[2])))
        return list(dict.fromkeys(places))


def _encoded(values: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Linear values, cut to [0, 1], by a gamma of 2.2."""
    with np.errstate(invalid="ignore"):
        return np.clip(values, 0.0, 1.0) ** np.float32(_GAMMA)
