# SPDX-License-Identifier: Apache-2.0
"""Hypersim (Roberts et al., ICCV 2021) from its scene folders or zips: tone mapping, planar depth, split.

`hypersim_maps` prepares other maps of the same frames.

Paper: §4.1. The steps are those of the authors' script; docs/data.md lists the differences and their reasons.
"""

from __future__ import annotations

import csv
import functools
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8, UInt16

from openmarigold.data.archives import open_archive, read_file
from openmarigold.data.arrays import UnexpectedArrayError, hdf5_dataset, hdf5_values
from openmarigold.data.decoding import FrameDefectError, check_size, damaged, plane_depth
from openmarigold.data.encodings import MapEncoding
from openmarigold.data.preparation import Listing, RawDataSet, RawFrame, RawSample
from openmarigold.data.shard_writer import Rejection
from openmarigold.errors import DataError, needs_extra
from openmarigold.modalities.modality import Maps

SPLIT_CSV = "metadata_images_split_scene_v1.csv"
SIZE = (768, 1024)
FOCAL_PX = 886.81
MAX_DEPTH = 65.0

ABOUT = RawDataSet(
    name="hypersim",
    title="Hypersim: photorealistic renderings of 461 indoor scenes",
    num_images="74,619 public",
    size="about 1.9 TB in zips of 1 to 20 GB; the three files needed of each image are a fraction of it",
    license="CC BY-SA 3.0",
    attribution="Hypersim, Roberts et al., ICCV 2021, https://github.com/apple/ml-hypersim, CC BY-SA 3.0",
    where=f"""\
The zips and two download scripts: https://github.com/apple/ml-hypersim (contrib/99991 there gets single files out of
the zips: *.color.hdf5, *.render_entity_id.hdf5 and *.depth_meters.hdf5 are enough for depth). Extracted, or the zips
as they are:
  {{root}}/hypersim/ai_001_001/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5
  {{root}}/hypersim/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5
  {{root}}/hypersim/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.render_entity_id.hdf5
  {{root}}/hypersim/ai_001_002.zip
  {{root}}/hypersim/{SPLIT_CSV}   (evermotion_dataset/analysis/ of that repository)
--modality normals needs *.normal_cam.hdf5, *.normal_world.hdf5 and *.position.hdf5 next to depth_meters, and
_detail/cam_00/camera_keyframe_positions.hdf5; --modality lighting *.diffuse_reflectance.hdf5,
*.diffuse_illumination.hdf5 and *.residual.hdf5 next to color.""",
)

_FRAME = re.compile(r"(ai_\d{3}_\d{3}).*?(cam_\d\d)\D.*?(?<!\d)(\d{4})(?!\d)")
_SCENE, _CAMERA = re.compile(r"ai_\d{3}_\d{3}"), re.compile(r"cam_\d\d")
_FINAL = "images/scene_{camera}_final_hdf5/frame.{number:04d}"
_GEOMETRY = "images/scene_{camera}_geometry_hdf5/frame.{number:04d}"
_GAMMA = 1 / 2.2
_BRIGHT = 0.8
_DARKEST = 1e-4


def tone_map(color: Float32[np.ndarray, "h w 3"], valid_mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of linear light, exposed so that the 90th percentile of brightness becomes 0.8 after gamma 2.2.

    Args:
        color: finite, or infinite where a lamp is brighter than float16 can hold: such pixels become white.
        valid_mask: pixels with geometry; only these set the exposure. Without any, colors are not scaled.

    Raises:
        FrameDefectError: the percentile is not finite.
    """
    scale = 1.0
    if valid_mask.any():
        brightness = color[valid_mask] @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
        with np.errstate(invalid="ignore"):  # between two infinite pixels
            percentile = float(np.percentile(brightness, 90))
        if not np.isfinite(percentile):
            raise FrameDefectError("color not finite", "the brightest tenth of the pixels is infinite or not a number")
        scale = 0.0 if percentile < _DARKEST else _BRIGHT ** (1 / _GAMMA) / percentile
    if scale == 0:
        return np.zeros(color.shape, dtype=np.uint8)
    mapped = np.clip(np.maximum(color * np.float32(scale), 0) ** np.float32(_GAMMA), 0, 1)
    return np.floor(mapped * np.float32(255)).astype(np.uint8)


def millimeters(depth: Float[np.ndarray, "h w"], valid_mask: Bool[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """16-bit codes of planar depth [m]: cut to whole millimeters, 0 where invalid or not finite.

    Depth above 65.535 m becomes 65535: beyond the 65 m that training uses, so still invalid, and far. The published
    conversion lets the 16 bits wrap around, which turns 66 m into 0.46 m.
    """
    known = valid_mask & np.isfinite(depth) & (depth > 0)
    return np.where(known, np.minimum(np.where(known, depth, 0.0) * 1000.0, 65535.0), 0.0).astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class RawFile:
    """A file of a frame: its path below the scene, with `{camera}` and `{number}`, and the shape of its array."""

    path: str
    shape: Literal["h w", "h w 3", "n 3"]


@dataclass(frozen=True, kw_only=True)
class Context:
    """Facts that maps of a frame depend on besides its arrays."""

    number: int
    split: str
    intrinsics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class HypersimMaps:
    """What is prepared of each frame besides its color; can be pickled."""

    modality: str
    encodings: Mapping[str, MapEncoding]
    valid_range: tuple[float, float] = (0.0, float("inf"))
    files: Mapping[str, RawFile]
    """Files besides color and entity, by their content."""
    compose: Callable[[Mapping[str, np.ndarray], Context], tuple[Maps, dict[str, Any]]]
    """The maps from the arrays of all files, and more for the sample's .json. Raises FrameDefectError."""


COLOR = RawFile(path=f"{_FINAL}.color.hdf5", shape="h w 3")
ENTITY = RawFile(path=f"{_GEOMETRY}.render_entity_id.hdf5", shape="h w")


def final(name: str) -> RawFile:
    """A picture of light: `h w 3`."""
    return RawFile(path=f"{_FINAL}.{name}.hdf5", shape="h w 3")


def geometry(name: str) -> RawFile:
    """A picture of vectors: `h w 3`."""
    return RawFile(path=f"{_GEOMETRY}.{name}.hdf5", shape="h w 3")


_MILLIMETERS = MapEncoding(kind="linear", meters_per_unit=0.001)


def _depth(arrays: Mapping[str, np.ndarray], context: Context) -> tuple[Maps, dict[str, Any]]:
    distance, valid_mask = arrays["distance"], arrays["entity"] != -1
    codes = millimeters(plane_depth(distance.astype(np.float32), **context.intrinsics), valid_mask)
    non_finite = int((valid_mask & ~np.isfinite(distance)).sum())
    return {"depth": _MILLIMETERS.meters(codes)}, {"non_finite_depth": non_finite}


DEPTH_MAPS = HypersimMaps(
    modality="depth",
    encodings={"depth": _MILLIMETERS},
    valid_range=(1e-5, MAX_DEPTH),
    files={"distance": RawFile(path=f"{_GEOMETRY}.depth_meters.hdf5", shape="h w")},
    compose=_depth,
)


@dataclass(eq=False)
class HypersimReader:
    """Frames of Hypersim: `ai_VVV_NNN/images/...` below a folder, each scene a folder or a zip.

    Attributes:
        source: folder of scenes; `list_frames` reads it.
        split: part of the data set's own split; with a list only a name for the result.
        split_csv: file of the split, if not in `source`.
        listed: frames to take instead of the split's; each line names scene, camera and frame.
        scenes: only these.
        size: height and width of every frame.
        focal_px: focal length of every camera; an approximation for the few tilt-shift lenses.
        maps: what is prepared of each frame.

    Raises:
        MissingExtraError: h5py is not installed.
    """

    source: Path
    _: KW_ONLY
    split: str = "train"
    split_csv: Path | None = None
    listed: list[str] | None = None
    scenes: tuple[str, ...] = ()
    size: tuple[int, int] = SIZE
    focal_px: float = FOCAL_PX
    maps: HypersimMaps = DEPTH_MAPS

    name = "hypersim"

    def __post_init__(self) -> None:
        _h5py()
        self.modality, self.valid_range = self.maps.modality, self.maps.valid_range
        self.encodings = dict(self.maps.encodings)

    def settings(self) -> dict[str, Any]:
        return {"size": list(self.size), "focal_px": self.focal_px}

    def list_frames(self) -> Listing:
        if not self.source.is_dir():
            raise DataError(f"{self.source} is not a folder; give the one that holds the scenes (ai_001_001, ...)")
        wanted = self._listed_frames() if self.listed is not None else self._split_frames()
        if self.scenes:
            wanted = [row for row in wanted if row[0] in self.scenes]
        here = {scene: self._scene_path(scene) is not None for scene in dict.fromkeys(row[0] for row in wanted)}
        absent = Counter(scene for scene, _, _ in wanted if not here[scene])
        unknown = [scene for scene in self.scenes if not here.get(scene, False)]
        if unknown:
            raise DataError(
                f"{self.source} has no scene {unknown[0]} of the selection; --scenes takes names such as ai_001_001"
            )
        frames = [self._frame(scene, camera, number) for scene, camera, number in wanted if here[scene]]
        notes, rejected = [], []
        if absent:
            notes = [f"{len(absent)} scenes of the selection are not in {self.source}, {min(absent)} first"]
            rejected = [
                Rejection(name=scene, reason="scene not there", detail=f"{count} frames", is_error=False)
                for scene, count in sorted(absent.items())
            ]
        return Listing(frames=frames, rejected=rejected, notes=notes)

    def read(self, frame: RawFrame) -> RawSample:
        arrays = {what: self._dataset(frame, what) for what in frame.files}
        for what, file in self._files().items():
            self._check(arrays[what], file, frame.files[what])
        color, valid_mask = arrays["color"], arrays["entity"] != -1
        if lost := int(np.isnan(color).any(axis=2).sum()):
            reason = "one pixel not finite" if lost == 1 else "color not finite"
            raise FrameDefectError(reason, f"color is NaN in {lost} of {color.shape[0] * color.shape[1]} pixels")
        height, width = self.size
        intrinsics = {"fx": self.focal_px, "fy": self.focal_px, "cx": width / 2, "cy": height / 2}
        context = Context(number=int(frame.fields["frame"]), split=self.split, intrinsics=intrinsics)
        maps, more = self.maps.compose(arrays, context)
        rgb = tone_map(color.astype(np.float32), valid_mask)
        return rgb, maps, {"source": frame.name, **frame.fields, "intrinsics": intrinsics, **more}

    def _files(self) -> dict[str, RawFile]:
        return {"color": COLOR, **self.maps.files, "entity": ENTITY}

    def _check(self, array: np.ndarray, file: RawFile, name: str) -> None:
        if array.ndim != len(file.shape.split()) or (file.shape.endswith("3") and array.shape[-1] != 3):
            raise FrameDefectError("wrong size", f"{name} has shape {list(array.shape)}, not [{file.shape}]")
        if file.shape.startswith("h w"):
            check_size(array, self.size, name)

    def _split_frames(self) -> list[tuple[str, str, int]]:
        places = (self.source, self.source.parent, self.source.parent / "analysis")
        candidates = [self.split_csv] if self.split_csv else [place / SPLIT_CSV for place in places]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise DataError(
                f"{candidates[0]} does not exist; it is evermotion_dataset/analysis/{SPLIT_CSV} of "
                "https://github.com/apple/ml-hypersim: put it there, or give --split-csv or --list"
            )
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [
                    (row["scene_name"], row["camera_name"], int(row["frame_id"]))
                    for row in csv.DictReader(file)
                    if row["included_in_public_release"].strip().lower() == "true"
                    and self.split in ("all", row["split_partition_name"])
                ]
            # They become paths.
            odd = [row for row in rows if not (_SCENE.fullmatch(row[0]) and _CAMERA.fullmatch(row[1]))]
            if odd:
                raise ValueError(f"scene {odd[0][0]!r:.60}, camera {odd[0][1]!r:.60}")
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is not Hypersim's split ({error!r}); get it again") from error
        if not rows:
            raise DataError(f"{path} has no public frame of split {self.split!r}; use train, val, test or all")
        return sorted(set(rows))

    def _listed_frames(self) -> list[tuple[str, str, int]]:
        rows = []
        for line in self.listed or ():
            match = _FRAME.search(line)
            if match is None:
                raise DataError(
                    f"--list: {line!r:.100} names no frame; each line names scene, camera and frame, such as "
                    "ai_001_001/rgb_cam_00_fr0000.png"
                )
            rows.append((match[1], match[2], int(match[3])))
        return list(dict.fromkeys(rows))

    def _frame(self, scene: str, camera: str, number: int) -> RawFrame:
        paths = {what: file.path.format(camera=camera, number=number) for what, file in self._files().items()}
        files = {what: f"{scene}/{path}" for what, path in paths.items()}
        return RawFrame(
            name=files["color"],
            key=f"{scene}-{camera}-{number:04d}",
            kind="rooms",
            scene=scene,
            files=files,
            fields={"camera": camera, "frame": number},
        )

    def _scene_path(self, scene: str) -> Path | None:
        for path in (self.source / scene, self.source / f"{scene}.zip", self.source / "scenes" / scene):
            if path.exists():
                return path
        return None

    def _dataset(self, frame: RawFrame, what: str) -> np.ndarray:
        name = frame.files[what]
        data = self._bytes(frame.scene, name)
        if not data:
            raise FrameDefectError("truncated", f"{name} is empty")
        try:
            with _h5py().File(io.BytesIO(data), "r") as file:
                return hdf5_values(hdf5_dataset(file, "dataset"))
        except UnexpectedArrayError as error:
            raise FrameDefectError("wrong format", f"{name}: {error}") from error
        except Exception as error:  # the library's errors share no base
            raise damaged(name, error) from error

    def _bytes(self, scene: str, name: str) -> bytes:
        place = self._scene_path(scene)
        if place is None:
            raise FrameDefectError("missing file", name)
        within = name.removeprefix(f"{scene}/")
        try:
            if place.is_dir():
                return read_file(place / within)
            archive = _open_scene(place)
            found = next((entry for entry in (name, within) if entry in archive.names), None)
            if found is None:
                raise FileNotFoundError
            return archive.read(found)
        except FileNotFoundError as error:
            raise FrameDefectError("missing file", name) from error
        except (OSError, DataError) as error:
            raise damaged(name, error) from error


_open_scene = functools.lru_cache(maxsize=2)(open_archive)


def _h5py() -> Any:
    with needs_extra("data"):
        import h5py
    return h5py
