# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of one's own: folders in the generic layout, photos with their maps next to them, and prepared sets."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from openmarigold.data.archives import Archive, missing
from openmarigold.data.arrays import load_npy
from openmarigold.data.shards import ShardedDataset
from openmarigold.errors import DataError
from openmarigold.evaluation.benchmark_readers import Decoded, Decoder, Entry, Lister, Listing, read_gray16
from openmarigold.evaluation.map_files import SAVED_SUFFIXES, map_of_bytes
from openmarigold.modalities import MODALITIES
from openmarigold.modalities.modality import MapKind, Modality
from openmarigold.modalities.protocol import Maps
from openmarigold.text_files import DamagedTextError, parse_json

_MANIFEST = "manifest.json"
_MOST_SHOWN = 5  # photos without a map that a note names
_RESULTS = tuple(
    f"_{name}_"
    for modality in MODALITIES.values()
    for name in (*(kind.file_name for kind in modality.maps), *modality.marks, "uncertainty")
)
_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")


def list_folder(modality: Modality) -> Lister:
    """The generic layout: `manifest.json`, a list of `{name, kind, place}`, and a folder of files for each name.

    Each map of the modality is `<map>.npy`, or, of one channel, a 16-bit `<map>.png` with `<map>_scale`, the values per
    unit, in `meta.json`; of several channels also `<map>.exr` or `<map>.png`. Where they are not there, the maps of
    another modality serve from which they can be computed. Without a manifest the folder holds photos and, next to
    them, maps: `<photo>_<map>.npy`, or of several channels also `.exr` or `.png`. Marks of the modality are
    `<mark>.png`, or `<photo>_<mark>.png`.
    """

    def list_entries(archive: Archive) -> Listing:
        if _MANIFEST not in archive.names and (listing := _beside_photos(archive, modality)).entries:
            return listing
        listing = Listing()
        for item in parse_manifest(archive):
            files = {"rgb": f"{item['name']}/rgb.jpg", **_map_files(archive, item["name"], modality)}
            files |= {mark: file for mark in modality.marks if (file := f"{item['name']}/{mark}.png") in archive.names}
            # Missing files are reported when they are read: the manifest is the count.
            listing.entries.append(Entry(name=item["name"], kind=item["kind"], place=item["place"], files=files))
        return listing

    return list_entries


def _map_files(archive: Archive, name: str, modality: Modality) -> dict[str, str]:
    """Files of the maps by role, of the first modality whose maps are there; those of this one where none are."""
    own, meta = _files_of(archive, name, modality), f"{name}/meta.json"
    for source in (modality, *(MODALITIES[other] for other in modality.measured_from)):
        files = own if source is modality else _files_of(archive, name, source)
        if {file for role, file in files.items() if role != "meta"} <= archive.names:
            has_facts = source is not modality or any(kind.channels > 1 for kind in source.maps)
            return {**files, "meta": meta} if has_facts and meta in archive.names else files
    return own


def _files_of(archive: Archive, name: str, modality: Modality) -> dict[str, str]:
    files = {}
    for kind in modality.maps:
        array = f"{name}/{kind.name}.npy"
        if kind.channels > 1:
            candidates = [f"{name}/{kind.name}{suffix}" for suffix in SAVED_SUFFIXES]
            files[kind.name] = next((file for file in candidates if file in archive.names), array)
        elif array in archive.names:
            files[kind.name] = array
        else:
            files |= {kind.name: f"{name}/{kind.name}.png", "meta": f"{name}/meta.json"}
    return files


def _beside_photos(archive: Archive, modality: Modality) -> Listing:
    """Photos that have all maps of the modality next to them, with a note on the others; the folder is the place."""
    listing, without = Listing(), []
    for photo in sorted(archive.names):
        path = PurePosixPath(photo)
        if path.suffix not in _PHOTO_SUFFIXES:
            continue
        stem, files = str(path.with_suffix("")), {"rgb": photo}
        for kind in modality.maps:
            suffixes = SAVED_SUFFIXES if kind.channels > 1 else SAVED_SUFFIXES[:1]
            found = (file for suffix in suffixes if (file := f"{stem}_{kind.name}{suffix}") in archive.names)
            files[kind.name] = next(found, "")
        files |= {mark: file for mark in modality.marks if (file := f"{stem}_{mark}.png") in archive.names}
        if all(files.values()):
            place = stem if path.parent == PurePosixPath() else str(path.parent)
            listing.entries.append(Entry(name=stem, kind="image", place=place, files=files))
        else:
            without.append(photo)
    photos = {entry.name for entry in listing.entries}
    without = [photo for photo in without if not _belongs_to(photo, photos)]
    if without:
        count = "1 photo has" if len(without) == 1 else f"{len(without)} photos have"
        shown = ", ".join(without[:_MOST_SHOWN]) + (", ..." if len(without) > _MOST_SHOWN else "")
        listing.notes.append(f"{count} no {' or '.join(kind.name for kind in modality.maps)} map: {shown}; left out")
    return listing


def _belongs_to(picture: str, photos: Container[str]) -> bool:
    """Whether a picture is a map, a mark or a result of a photo: `a_depth_colored.png` of `a`."""
    stem = str(PurePosixPath(picture).with_suffix(""))
    start = stem.rfind("/") + 1
    ends = (end for end, sign in enumerate(stem) if sign == "_" and end > start)
    return any(stem[:end] in photos and f"{stem[end:]}_".startswith(_RESULTS) for end in ends)


def parse_manifest(archive: Archive) -> list[dict[str, Any]]:
    """The content of `manifest.json`.

    Raises:
        DataError: it is missing, damaged or empty.
    """
    path = archive.location / _MANIFEST
    if _MANIFEST not in archive.names:
        damage = next((f" ({what})" for what in archive.damage.values()), "")
        raise DataError(
            f"{path} cannot be read (No such file or directory){damage}; a benchmark is a folder with manifest.json "
            "and one folder an image"
        )
    try:
        entries = parse_json(archive.read(_MANIFEST))
    except DamagedTextError as error:
        raise DataError(f"{path} is not valid JSON ({error}); get the benchmark again") from error
    needed = ("name", "kind", "place")
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(e, dict) and all(isinstance(e.get(key), str) for key in needed) for e in entries)
    ):
        raise DataError(f"{path} is not a list of objects with name, kind and place; get the benchmark again")
    names = [entry["name"] for entry in entries]
    try:
        "".join(entry[key] for entry in entries for key in needed).encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path} holds {error.object[error.start]!r}, which is not valid Unicode; get the benchmark again"
        ) from None
    outside = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise DataError(f"{path} names {outside[0]!r:.100}, which lies outside the benchmark; get the benchmark again")
    if len(set(names)) < len(names):
        raise DataError(f"{path} lists an image twice; each name must be there once")
    return entries


def decode_folder(modality: Modality) -> Decoder:
    """The maps of a modality in the generic layout; see `list_folder`."""

    def decode(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
        try:
            facts: Any = parse_json(files["meta"]) if "meta" in files else {}
        except DamagedTextError as error:
            raise DataError(f"is not valid JSON ({error}); get the benchmark again") from error
        facts = facts if isinstance(facts, dict) else {}
        if all(kind.name in files for kind in modality.maps):
            return modality.imported(_decoded(files, modality, facts), facts), None
        for name, compute in modality.measured_from.items():
            source = MODALITIES[name]
            if all(kind.name in files for kind in source.maps):
                return compute(_decoded(files, source, facts), facts), None
        raise ValueError(f"the files of {', '.join(files)} give no {modality.title}")

    return decode


def _decoded(files: Mapping[str, bytes], modality: Modality, facts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {kind.name: _decoded_map(files[kind.name], kind, facts) for kind in modality.maps}


def _decoded_map(content: bytes, kind: MapKind, facts: Mapping[str, Any]) -> np.ndarray:
    if kind.channels > 1:
        return map_of_bytes(content, kind)
    if content[:6] != b"\x93NUMPY":
        scale = _scale(facts, f"{kind.name}_scale")
        return read_gray16(content) / scale
    values = load_npy(content)
    if values.dtype.kind not in "fiu" or values.ndim != 2:
        raise ValueError(f"{values.dtype} of shape {list(values.shape)}; numbers of shape [h, w] are needed")
    return values.astype(np.float64)


def _scale(facts: Mapping[str, Any], name: str) -> float:
    try:
        scale = float(facts[name])
    except (KeyError, TypeError, ValueError):
        scale = np.nan
    if not (0 < scale < np.inf):
        raise DataError(f"has no number {name}, the values of its 16-bit picture per unit")
    return scale


# --- Prepared sets: folders of shards


class ShardArchive:
    """A prepared set's files: `<key>/rgb` and, with the map's name, `<key>/<map>`."""

    def __init__(self, dataset: ShardedDataset) -> None:
        self.dataset, self.location = dataset, dataset.folder
        self.notes: tuple[str, ...] = ()
        self.damage: dict[str, str] = {}
        self._places = {
            f"{key}/{role}": (index, role)
            for index, key in enumerate(dataset.keys)
            for role in dataset.places(index)
            if role != "json"
        }
        self.names = frozenset(self._places)

    def read(self, name: str) -> bytes:
        """One file.

        Raises:
            DataError: there is none of that name, or it is damaged.
        """
        if name not in self._places:
            raise missing(self.location, name)
        return self.dataset.member(*self._places[name])

    def file_of(self, name: str) -> Any:
        """Where the file lies: the whole set."""
        return self.location


def list_shards(dataset: ShardedDataset, modality: Modality) -> Lister:
    """The samples of a prepared set; a scene is a place.

    Raises:
        DataError: it lacks a map of the modality.
    """
    absent = [kind.name for kind in modality.maps if kind.name not in dataset.encodings]
    if absent:
        raise DataError(
            f"{dataset.folder} holds the maps {', '.join(dataset.encodings) or 'none'}, not {absent[0]}; give a set "
            f"with {modality.title}"
        )

    def list_entries(archive: Archive) -> Listing:
        listing = Listing()
        for key, kind, scene in zip(dataset.keys, dataset.kinds, dataset.scenes, strict=True):
            files = {role: f"{key}/{role}" for role in ("rgb", *(one.name for one in modality.maps))}
            if set(files.values()) <= archive.names:
                listing.entries.append(Entry(name=key, kind=kind, place=scene, files=files))
            else:
                listing.missing.extend(set(files.values()) - archive.names)
        return listing

    return list_entries


def decode_shards(dataset: ShardedDataset, modality: Modality) -> Decoder:
    """The maps of a prepared set's sample."""

    def decode(files: Mapping[str, bytes], size: tuple[int, int]) -> Decoded:
        maps: Maps = {
            kind.name: dataset.encodings[kind.name].decode(files[kind.name]).astype(np.float64)
            for kind in modality.maps
        }
        return maps, None

    return decode


def stored_shards(dataset: ShardedDataset, modality: Modality) -> str:
    """What a prepared set's manifest states about the maps of a modality: how they are stored, and which values
    count.
    """
    encodings = {kind.name: dataset.encodings[kind.name].record() for kind in modality.maps}
    return json.dumps({"maps": encodings, "valid_range": dataset.valid_range}, sort_keys=True)
